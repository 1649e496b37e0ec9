-- What a served task manager needs no more is removed, but for the newest failures.

-- A task that failed, whose client knows: kept to be looked at, and not for the next run.
CREATE TABLE forgotten (
    number INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,
    mac BLOB NOT NULL
);
CREATE INDEX forgotten_seq ON forgotten (seq);

-- Setbacks are removed by task.
CREATE INDEX setback_number ON setback (number);

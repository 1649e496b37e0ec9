-- The first version of a journal. Each row carries a signature (mac) over all its values, made with
-- the user's key: what was not written by a holder of the key is never believed, nor unpickled.
-- Numbers of tasks and processes are those of the task manager. `seq` is one count through all
-- tables: sorted by it, the rows tell the story in the order in which it happened.

-- What concerns the whole journal: label, port of the last run.
CREATE TABLE note (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    mac BLOB NOT NULL
) WITHOUT ROWID;

-- A task as it was requested.
CREATE TABLE task (
    number INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,
    tag TEXT NOT NULL,
    identity BLOB NOT NULL,     -- 16 bytes: what makes a later request equal to this one
    options TEXT NOT NULL,      -- JSON: priority, timeout, retries, crash_limit, key, ...
    parameters BLOB,            -- msgpack: the pickle, then its buffers; NULL: in `piece`
    mac BLOB NOT NULL
);

-- A slave that registered. Deleted when it has left in good order.
CREATE TABLE process (
    id INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,
    info TEXT NOT NULL,         -- JSON: machine, pid, host, workers, token, ...
    mac BLOB NOT NULL
);

-- Tasks that a slave was given in one exchange.
CREATE TABLE hand_out (
    seq INTEGER PRIMARY KEY,
    process INTEGER NOT NULL,
    tasks TEXT NOT NULL,        -- JSON: [[number, attempt], ...]
    mac BLOB NOT NULL
);

-- An attempt that failed and was followed by another one.
CREATE TABLE setback (
    seq INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    process INTEGER NOT NULL,
    outcome TEXT NOT NULL,      -- crashed, exception, ...
    story TEXT NOT NULL,        -- host, process, signal, last lines of standard error; or traceback
    at REAL NOT NULL,           -- seconds since 1970
    mac BLOB NOT NULL
);

-- The end of a task.
CREATE TABLE ending (
    number INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    process INTEGER NOT NULL,
    outcome TEXT NOT NULL,      -- result, exception, crashed, timed_out, ...
    duration_s REAL NOT NULL,   -- in the handler
    story TEXT NOT NULL,        -- remote traceback, or the story of every attempt
    at REAL NOT NULL,           -- seconds since 1970
    result BLOB,                -- as `parameters`: result or exception
    mac BLOB NOT NULL
);

-- Large frames, cut: too long for one value.
CREATE TABLE piece (
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,         -- parameters or result
    buffer INTEGER NOT NULL,    -- which of the frame's buffers
    position INTEGER NOT NULL,  -- which piece of that buffer
    bytes BLOB NOT NULL,
    PRIMARY KEY (number, kind, buffer, position)
);

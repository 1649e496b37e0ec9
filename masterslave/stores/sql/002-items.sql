-- What a task needs to be replayed, and who ran it.

-- A data item that clients have stored: the slaves' code, values of global state. Its number is the
-- `seq` of its entry; of several with one name the last one counts.
CREATE TABLE item (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,         -- frame, or value: plain types as msgpack in a frame of one buffer
    value BLOB,                 -- as `task.parameters`; NULL: in `piece`, kind item
    mac BLOB NOT NULL
);
CREATE INDEX item_name ON item (name);

-- Slaves that have left, so that it can be told where an attempt failed. Rows come from `process`
-- as they are: their signatures are those of that table.
CREATE TABLE former_process (
    seq INTEGER PRIMARY KEY,
    id INTEGER NOT NULL,
    info TEXT NOT NULL,
    mac BLOB NOT NULL
);

CREATE TRIGGER process_left BEFORE DELETE ON process BEGIN
    INSERT OR IGNORE INTO former_process (seq, id, info, mac)
    VALUES (old.seq, old.id, old.info, old.mac);
END;

-- A later run gives the same number to another slave.
CREATE TRIGGER process_replaced BEFORE UPDATE ON process BEGIN
    INSERT OR IGNORE INTO former_process (seq, id, info, mac)
    VALUES (old.seq, old.id, old.info, old.mac);
END;

-- Many tiny requests or results in one row, see `pages.py`.
CREATE TABLE page (
    seq INTEGER PRIMARY KEY,    -- of its last entry
    kind TEXT NOT NULL,         -- task or ending
    first INTEGER NOT NULL,     -- smallest number of a task in it
    last INTEGER NOT NULL,      -- largest
    body BLOB NOT NULL,         -- msgpack
    mac BLOB NOT NULL
);
CREATE INDEX page_last ON page (kind, last);

-- What counts no more in pages: the entry of that kind and number, up to that seq.
CREATE TABLE struck (
    kind TEXT NOT NULL,
    number INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (kind, number)
) WITHOUT ROWID;

-- Every statement of the journal, each under its name.

-- name: add_task
INSERT INTO task (number, seq, tag, identity, options, parameters, mac)
VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: add_process
INSERT INTO process (id, seq, info, mac) VALUES (?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, info = excluded.info, mac = excluded.mac;

-- name: remove_process
DELETE FROM process WHERE id = ?;

-- name: add_hand_out
INSERT INTO hand_out (seq, process, tasks, mac) VALUES (?, ?, ?, ?);

-- name: add_setback
INSERT INTO setback (seq, number, attempt, process, outcome, story, at, mac)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- A task ends once. That a second ending is refused here is the last line of defence.
-- name: add_ending
INSERT INTO ending (number, seq, attempt, process, outcome, duration_s, story, at, result, mac)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: add_piece
INSERT INTO piece (number, kind, buffer, position, bytes) VALUES (?, ?, ?, ?, ?);

-- name: add_page
INSERT INTO page (seq, kind, first, last, body, mac) VALUES (?, ?, ?, ?, ?, ?);

-- Strikes an entry out, where a page may have it.
-- name: strike
INSERT INTO struck (kind, number, seq, mac)
SELECT kind, number, seq, mac
FROM (SELECT ? AS kind, ? AS number, ? AS seq, ? AS mac) AS entry
WHERE EXISTS (
    SELECT 1 FROM page
    WHERE page.kind = entry.kind AND page.last >= entry.number AND page.first <= entry.number
)
ON CONFLICT (kind, number) DO UPDATE SET seq = excluded.seq, mac = excluded.mac;

-- name: has_pages
SELECT EXISTS (SELECT 1 FROM page);

-- name: pages
SELECT seq, kind, first, last FROM page WHERE seq >= ? ORDER BY seq;

-- name: page
SELECT seq, kind, first, last, body, mac FROM page WHERE seq = ?;

-- The newest first.
-- name: pages_with
SELECT seq FROM page, (SELECT ? AS wanted, ? AS number) AS entry
WHERE kind = wanted AND last >= number AND first <= number ORDER BY seq DESC;

-- name: remove_page
DELETE FROM page WHERE seq = ?;

-- name: count_struck
SELECT count(*) FROM struck;

-- name: struck
SELECT kind, number, seq, mac FROM struck WHERE number >= ? ORDER BY number;

-- name: struck_one
SELECT seq, mac FROM struck WHERE kind = ? AND number = ?;

-- name: remove_struck
DELETE FROM struck WHERE kind = ? AND number = ?;

-- name: add_item
INSERT INTO item (number, name, kind, value, mac) VALUES (?, ?, ?, ?, ?);

-- Of a data item that was deleted or stored anew: what was there before.
-- name: remove_item_pieces
DELETE FROM piece WHERE kind = 'item' AND number IN (
    SELECT number FROM item WHERE name = ? AND number < ?
);

-- name: remove_item
DELETE FROM item WHERE name = ? AND number < ?;

-- name: remove_task
DELETE FROM task WHERE number = ?;

-- name: remove_pieces
DELETE FROM piece WHERE number = ? AND kind = ?;

-- name: remove_ending
DELETE FROM ending WHERE number = ?;

-- name: remove_setbacks
DELETE FROM setback WHERE number = ?;

-- name: remove_all_pieces
DELETE FROM piece WHERE number = ? AND kind IN ('parameters', 'result');

-- name: add_forgotten
INSERT INTO forgotten (number, seq, mac) VALUES (?, ?, ?)
ON CONFLICT (number) DO UPDATE SET seq = excluded.seq, mac = excluded.mac;

-- name: remove_forgotten
DELETE FROM forgotten WHERE number = ?;

-- name: forgotten
SELECT number, seq, mac FROM forgotten WHERE number >= ? ORDER BY number;

-- Bytes of those that were forgotten since, the newest first. Lengths are read without the values.
-- name: failure_sizes
SELECT number,
    ifnull((SELECT ifnull(length(parameters), 0) FROM task WHERE task.number = f.number), 0)
    + ifnull((SELECT ifnull(length(result), 0) + length(story) FROM ending
              WHERE ending.number = f.number), 0)
    + ifnull((SELECT sum(length(bytes)) FROM piece
              WHERE piece.number = f.number AND kind IN ('parameters', 'result')), 0)
FROM forgotten AS f WHERE seq >= ? ORDER BY seq DESC;

-- All but the newest of them.
-- name: too_old
SELECT number FROM forgotten ORDER BY seq DESC LIMIT -1 OFFSET ?;

-- The tasks that the next run takes up.
-- name: live
SELECT number FROM task WHERE number NOT IN (SELECT number FROM forgotten);

-- name: count_hand_outs
SELECT count(*) FROM hand_out;

-- name: hand_out_tasks
SELECT seq, tasks FROM hand_out;

-- name: remove_hand_out
DELETE FROM hand_out WHERE seq = ?;

-- name: remove_former_processes
DELETE FROM former_process WHERE seq NOT IN (
    SELECT seq FROM former_process ORDER BY seq DESC LIMIT ?
);

-- name: set_note
INSERT INTO note (name, value, mac) VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, mac = excluded.mac;

-- name: note
SELECT value, mac FROM note WHERE name = ?;

-- The scans begin at a place, so that reading a damaged file can go on behind the damage.
-- name: tasks
SELECT number, seq, tag, identity, options, parameters, mac FROM task
WHERE number >= ? ORDER BY number;

-- name: processes
SELECT id, seq, info, mac FROM process WHERE id >= ? ORDER BY id;

-- name: hand_outs
SELECT seq, process, tasks, mac FROM hand_out WHERE seq >= ? ORDER BY seq;

-- name: setbacks
SELECT seq, number, attempt, process, outcome, story, at, mac FROM setback
WHERE seq >= ? ORDER BY seq;

-- name: endings
SELECT number, seq, attempt, process, outcome, duration_s, story, at, result, mac FROM ending
WHERE number >= ? ORDER BY number;

-- name: former_processes
SELECT seq, id, info, mac FROM former_process WHERE seq >= ? ORDER BY seq;

-- name: items
SELECT number, name, kind, value, mac FROM item WHERE number >= ? ORDER BY number;

-- name: item
SELECT number, name, kind, value, mac FROM item WHERE name = ? ORDER BY number DESC LIMIT 1;

-- name: notes
SELECT name FROM note ORDER BY name;

-- name: task
SELECT number, seq, tag, identity, options, parameters, mac FROM task WHERE number = ?;

-- name: ending
SELECT number, seq, attempt, process, outcome, duration_s, story, at, result, mac FROM ending
WHERE number = ?;

-- name: pieces
SELECT buffer, position, bytes FROM piece WHERE number = ? AND kind = ?
ORDER BY buffer, position;

-- name: last_seq
SELECT max(
    ifnull((SELECT max(seq) FROM task), 0),
    ifnull((SELECT max(seq) FROM process), 0),
    ifnull((SELECT max(seq) FROM former_process), 0),
    ifnull((SELECT max(number) FROM item), 0),
    ifnull((SELECT max(seq) FROM hand_out), 0),
    ifnull((SELECT max(seq) FROM forgotten), 0),
    ifnull((SELECT max(seq) FROM setback), 0),
    ifnull((SELECT max(seq) FROM ending), 0),
    ifnull((SELECT max(seq) FROM struck), 0),
    ifnull((SELECT max(seq) FROM page), 0)
);

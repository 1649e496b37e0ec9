"""A journal's entries in one SQLite file.

The statements are in ``sql/queries.sql``, the tables in ``sql/001-tables.sql`` and the numbered
files that follow it: each brings a file of the version before to its own, and a file's version is
the number of those applied. SQLite's `application_id` tells our files from others.

Written ahead (WAL), a group of entries per transaction: an entry is kept when its transaction has
ended, whatever kills this process then. `synchronous` is NORMAL: if the whole host loses power the
last moments may be missing, in which case their tasks are run again; the file stays sound. It is
locked exclusively for as long as it is open, which also spares the shared-memory file that WAL
needs otherwise and that network file systems do not have.

The module is longer than others as what writes a table stands beside what reads and verifies it,
so a change of the file is a change of one module. Pages are in `pages` and `paged`.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import hmac
import json
import logging
import math
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

import msgpack

from masterslave.entries import (
    Cancelled,
    Dropped,
    Ended,
    Entry,
    Forgotten,
    HandedOut,
    Joined,
    Left,
    Requested,
    Requests,
    Results,
    Setback,
    Stored,
    Written,
    count_of,
)
from masterslave.errors import (
    DataNotFound,
    JournalDamaged,
    JournalError,
    JournalInUse,
)
from masterslave.records import AT_REST, Frame, ProcessInfo, TaskOptions, frame_bytes
from masterslave.stores.base import KEPT_FAILURE_BYTES, KEPT_FAILURES, KEPT_ROWS
from masterslave.stores.full import CANNOT_WRITE, cannot_write
from masterslave.stores.paged import PagedFile, same
from masterslave.stores.pages import ENDING, TASK, Gathered, options_of, plain
from masterslave.stores.statements import migrations, queries

log = logging.getLogger(__name__)

APPLICATION_ID = 0x6D736A31  # "msj1"
_HEADER_BYTES = 100  # of a SQLite file; application_id stands at byte 68
_MAGIC = b"SQLite format 3\0"

#: Frames beyond this size are kept in pieces of it: one value may have 1e9 bytes at most. Larger: a
#: copy of that size is made. Smaller: more rows for arrays.
PIECE_BYTES = 1 << 24

#: The note that keeps the largest number of a task that was forgotten: none is given twice.
_HIGHEST = "highest"

#: Longest step over a damaged place when the place where reading goes on is looked for, in rows.
_SKIP_TO = 1 << 40

#: The journals that are open in this process: its id, the file's device and inode. The system
#: frees all locks of a process on a file when it closes any of its descriptors of that file. So a
#: second look at an open journal would open it to other processes.
_open: set[tuple[int, int, int]] = set()
_opening = threading.Lock()

#: The statements that remove all of a task.
_REMOVE_TASK = ("remove_task", "remove_ending", "remove_setbacks", "remove_all_pieces")

_Row = tuple[Any, ...]
_Item = TypeVar("_Item")


class SqliteStore(PagedFile):
    """A `Store` in one file. Used by one thread at a time, whichever that is."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        key: bytes,
        *,
        create: bool = True,
        guarded: bool = False,
    ) -> None:
        """Open the journal at `path`, or make one if there is no file and `create` allows it.

        `guarded`: others are kept away by other means, so that the file is not locked: on network
        file systems that may not be possible.
        Brings an older version up to date. Raises `JournalInUse` while another process has it open,
        `JournalDamaged` when SQLite finds its structure broken, and `JournalError` for a file of
        another program, of a newer version, or signed with another key. No file is changed then.
        """
        self.path = os.path.abspath(path)
        self._key = hmac.digest(key, b"masterslave journal", "sha256")
        self._guarded = guarded
        self._seq: int | None = None  # of the last entry; None: not looked up yet
        self._hand_outs: int | None = None  # rows, or a few more; None: not counted yet
        super().__init__()
        self._moves = KEPT_ROWS  # of slaves that came or left since those that left were bounded
        self._failure_bytes: int | None = None  # at most so many; None: not looked at yet
        self._tidy_at = KEPT_ROWS  # hand-outs at which superfluous ones are looked for
        self._closed = False
        with _opening:
            new = self._inspect(create)
            self._db = self._connect(new)
            self._file = _identity(os.stat(self.path))
            _open.add(self._file)
        try:
            self._prepare(new)
        except BaseException:
            self.close()
            raise

    # --- opening ----------------------------------------------------------------------------

    def _inspect(self, create: bool) -> bool:
        """Whether the file is to be made; refuses what is not a journal, before it is touched."""
        try:
            status = os.stat(self.path)
            if not stat.S_ISREG(status.st_mode):
                raise JournalError(f"journal {self.path}: is not a regular file")
            if _identity(status) in _open:
                raise JournalInUse(f"journal {self.path}: this very process has it open")
            with open(self.path, "rb") as file:
                header = file.read(_HEADER_BYTES)
        except FileNotFoundError:
            if not create:
                raise JournalError(f"journal {self.path}: there is no such file") from None
            return True
        except OSError as error:
            raise JournalError(f"journal {self.path}: {error.strerror or error}") from error
        if not header:
            return True
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            raise JournalError(
                f"journal {self.path}: is not a journal, or its beginning is damaged; "
                "name another file"
            )
        if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
            raise JournalError(
                f"journal {self.path}: is a database of another program; name another file"
            )
        return False

    def _connect(self, new: bool) -> sqlite3.Connection:
        if new:
            flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
            try:
                os.close(os.open(self.path, flags, 0o600))  # parameters are nobody else's business
            except OSError as error:
                raise JournalError(f"journal {self.path}: {error.strerror or error}") from error
        try:
            vfs = "?vfs=unix-none" if self._guarded else ""
            return sqlite3.connect(
                f"file:{quote(self.path)}{vfs}",
                uri=True,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise JournalError(f"journal {self.path}: {error}") from error

    def _prepare(self, new: bool) -> None:
        with self._translated():
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            if new:
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise JournalError(f"journal {self.path}: cannot be written ahead ({mode})")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA trusted_schema = OFF")
            problem: str = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise self._damaged(problem.strip().rpartition("\n")[2])  # below a heading
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > 0:
                self._check_key()  # before anything is changed
            self._migrate(version)
            self._check_tables()
        self._check_key()

    def _migrate(self, version: int) -> None:
        scripts = migrations()
        if version > len(scripts):
            raise JournalError(
                f"journal {self.path}: was written by a newer masterslave (version {version} of "
                f"the file, this one knows {len(scripts)}); use that, or name another file"
            )
        for number, script in enumerate(scripts[version:], version + 1):
            self._db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version={number};")
            self._db.execute("COMMIT")

    def _check_tables(self) -> None:
        """A definition with one letter wrong may hide all rows of a table, and be no error."""
        with contextlib.closing(sqlite3.connect(":memory:")) as right:
            right.executescript("\n".join(migrations()))
            if not _columns(right) <= _columns(self._db):
                raise self._damaged("its tables are not those that were made")

    def _check_key(self) -> None:
        """The first note tells whether the file was signed with our key."""
        row = self._one("note", ("key",))
        if row is None:
            if self._one("task", (0,)) is not None or self._one("has_pages", ())[0]:
                raise self._damaged("its notes are missing")
            self.set_note("key", "of the user's key file")
        elif row[1] != self._mac(("note", "key", row[0])):
            if row[0] != "of the user's key file":
                raise self._damaged("its notes are not what was written")
            raise JournalError(
                f"journal {self.path}: was signed with another key; "
                "name the key file that it was made with (MASTERSLAVE_KEY_FILE)"
            )

    # --- writing ----------------------------------------------------------------------------

    def write(self, entries: Sequence[Written]) -> None:
        """See `Store.write`."""
        seq = self._last_seq() + 1
        numbered = []
        for entry in entries:
            numbered.append((seq, entry))
            seq += count_of(entry)
        self.write_numbered(numbered)

    def _last_seq(self) -> int:
        if self._seq is None:
            self._seq = self._one("last_seq", ())[0]
        return self._seq

    def write_numbered(self, numbered: Sequence[tuple[int, Written]]) -> None:
        """As `write`, for entries that have their `seq` already, as in the journal they come from.

        The numbers are larger than those of entries of their kind that are here. One that stands
        for many has the first of their `seq`.
        """
        end = self._last_seq()
        rows: dict[str, list[_Row]] = {}
        tiny = Gathered()
        for seq, entry in numbered:
            last = seq
            if type(entry) is Requests:
                options = _options_text(entry.options)
                tiny.add_tasks(seq, entry.tag, options, entry.first, entry.data)
                last += len(entry.data) - 1
            elif type(entry) is Results:
                tiny.add_results(seq, entry.process, entry.at, entry.ends)
                last += len(entry.ends) - 1
            else:
                _WRITERS[type(entry)](self, rows, seq, entry)
            end = max(end, last)
        for place, body in tiny.pages():
            mac = self._mac(("page", *place, body))
            rows.setdefault("add_page", []).append((*place, body, mac))
        # What is removed again in the very group in which it came must be there first.
        statements = sorted(rows, key=lambda name: name.startswith("remove_"))
        with self._translated(), self._transaction():
            for name in statements:
                self._db.executemany(queries()[name], rows[name])
            self._strike(rows.get("remove_task", ()), end)
            gone = [entry.number for _, entry in numbered if isinstance(entry, Forgotten)]
            if "add_forgotten" in rows:
                self._remove_oldest_failures(rows["add_forgotten"][0][1], end)
            moves = len(rows.get("add_process", ())) + len(rows.get("remove_process", ()))
            if moves:
                self._bound_former_processes(moves)
            if self._hand_outs is not None:
                self._hand_outs += len(rows.get("add_hand_out", ()))
            if gone:
                gone += self._tidy()
                self._note_highest(max(gone))
        self._seq = end

    def set_note(self, name: str, value: str) -> None:
        """See `Store.set_note`."""
        with self._translated():
            self._db.execute(queries()["set_note"], (name, value, self._mac(("note", name, value))))

    def _add_task(self, rows: dict[str, list[_Row]], seq: int, entry: Requested) -> None:
        tag, options = plain(entry.tag), _options_text(entry.options)
        values = (entry.number, seq, tag, entry.identity, options)
        blob = self._blob(rows, entry.number, "parameters", entry.frame)
        mac = self._mac(("task", *values), entry.frame)
        rows.setdefault("add_task", []).append((*values, blob, mac))

    def _add_process(self, rows: dict[str, list[_Row]], seq: int, entry: Joined) -> None:
        values = (entry.process, seq, json.dumps(entry.info._asdict()))
        rows.setdefault("add_process", []).append((*values, self._mac(("process", *values))))

    def _remove_process(self, rows: dict[str, list[_Row]], seq: int, entry: Left) -> None:
        rows.setdefault("remove_process", []).append((entry.process,))

    def _add_hand_out(self, rows: dict[str, list[_Row]], seq: int, entry: HandedOut) -> None:
        values = (seq, entry.process, json.dumps(entry.tasks, separators=(",", ":")))
        rows.setdefault("add_hand_out", []).append((*values, self._mac(("hand_out", *values))))

    def _add_setback(self, rows: dict[str, list[_Row]], seq: int, entry: Setback) -> None:
        story = plain(entry.story)
        values = (
            seq, entry.number, entry.attempt, entry.process, entry.outcome, story,
            _seconds(entry.at),
        )  # fmt: skip
        rows.setdefault("add_setback", []).append((*values, self._mac(("setback", *values))))

    def _add_ending(self, rows: dict[str, list[_Row]], seq: int, entry: Ended) -> None:
        story = plain(entry.story)
        values = (
            entry.number, seq, entry.attempt, entry.process, entry.outcome,
            _seconds(entry.duration_s), story, _seconds(entry.at),
        )  # fmt: skip
        blob = self._blob(rows, entry.number, "result", entry.frame)
        mac = self._mac(("ending", *values), entry.frame)
        rows.setdefault("add_ending", []).append((*values, blob, mac))

    def _remove_task(self, rows: dict[str, list[_Row]], seq: int, entry: Cancelled) -> None:
        rows.setdefault("remove_task", []).append((entry.number,))
        rows.setdefault("remove_setbacks", []).append((entry.number,))
        rows.setdefault("remove_pieces", []).append((entry.number, "parameters"))

    def _forget(self, rows: dict[str, list[_Row]], seq: int, entry: Forgotten) -> None:
        if entry.failed:
            values = (entry.number, seq)
            mac = self._mac(("forgotten", *values))
            rows.setdefault("add_forgotten", []).append((*values, mac))
        else:
            for name in _REMOVE_TASK:
                rows.setdefault(name, []).append((entry.number,))

    def _remove_oldest_failures(self, since: int, seq: int) -> None:
        """(In a transaction.) Bound the failures that are kept though they are forgotten.

        `since`: the `seq` of the first that is new.
        """
        old = self._db.execute(queries()["too_old"], (KEPT_FAILURES,)).fetchall()
        if self._failure_bytes is not None:
            new = self._db.execute(queries()["failure_sizes"], (since,))
            self._failure_bytes += sum(size for _, size in new)
        if self._failure_bytes is None or self._failure_bytes > KEPT_FAILURE_BYTES:
            old = sorted({*old, *self._too_large()})
        for name in (*_REMOVE_TASK, "remove_forgotten") if old else ():
            self._db.executemany(queries()[name], old)
        self._strike(old, seq)

    def _too_large(self) -> list[tuple[int]]:
        """(In a transaction.) Failures beside which there are too many bytes of newer ones."""
        kept_bytes, old = 0, []
        for index, (number, size) in enumerate(self._db.execute(queries()["failure_sizes"], (0,))):
            if index and kept_bytes + size > KEPT_FAILURE_BYTES:
                old.append((number,))
            else:
                kept_bytes += size
        self._failure_bytes = kept_bytes
        return old

    def _bound_former_processes(self, moves: int) -> None:
        """(In a transaction.) So many slaves came or left: of those that left, the newest stay."""
        self._moves += moves
        if self._moves >= KEPT_ROWS:
            self._db.execute(queries()["remove_former_processes"], (KEPT_ROWS,))
            self._moves = 0

    # --- removing ---------------------------------------------------------------------------

    def _tidy(self) -> list[int]:
        """(In a transaction.) Remove hand-outs of which no task is left; gives their tasks.

        All are looked at when there are twice as many as the last look has left. So the cost per
        hand-out is bounded, and so is their number by that of the tasks that are left.
        """
        if self._hand_outs is None:
            self._hand_outs = self._db.execute(queries()["count_hand_outs"]).fetchone()[0]
        if self._hand_outs < self._tidy_at:
            return []
        live = {number for (number,) in self._db.execute(queries()["live"])}
        places = self._places_of(TASK)
        struck = self._all_struck() if places else {}

        def paged(number: int) -> bool:
            """Whether a page may have that task; those struck out it has not."""
            within = any(place.first <= number <= place.last for place in places)
            return within and (TASK, number) not in struck

        idle: list[_Row] = []
        gone: list[int] = []
        for seq, text in self._db.execute(queries()["hand_out_tasks"]):
            try:
                numbers = [int(number) for number, _ in json.loads(text)]
            except (TypeError, ValueError):  # damaged: whoever reads it is to see that
                continue
            if live.isdisjoint(numbers) and not any(map(paged, numbers)):
                idle.append((seq,))
                gone += numbers
        self._db.executemany(queries()["remove_hand_out"], idle)
        self._hand_outs -= len(idle)
        self._tidy_at = max(KEPT_ROWS, 2 * self._hand_outs)
        return gone

    def _note_highest(self, number: int) -> None:
        """(In a transaction.) A number of a forgotten task is not given to another one."""
        text = self.note(_HIGHEST)
        if not text or int(text) < number:
            self.set_note(_HIGHEST, str(number))

    def _add_item(self, rows: dict[str, list[_Row]], seq: int, entry: Stored) -> None:
        name, kind, frame = plain(entry.name), "frame", entry.value
        if not _is_frame(frame):
            try:
                kind, frame = "value", [msgpack.packb(entry.value, unicode_errors="surrogatepass")]
            except (TypeError, ValueError, OverflowError) as error:  # stored from within a master
                log.warning("data item %s is not in the journal: %s", name, error)
                return
        blob = self._blob(rows, seq, "item", frame)
        mac = self._mac(("item", seq, name, kind), frame)
        rows.setdefault("add_item", []).append((seq, name, kind, blob, mac))
        self._remove_item(rows, seq, Dropped(name))

    def _remove_item(self, rows: dict[str, list[_Row]], seq: int, entry: Dropped) -> None:
        for query in ("remove_item_pieces", "remove_item"):
            rows.setdefault(query, []).append((plain(entry.name), seq))

    def forget_ending(self, number: int) -> None:
        """Have a finished task run again by the next run that requests it."""
        with self._translated(), self._transaction():
            self._db.execute(queries()["remove_ending"], (number,))
            self._db.execute(queries()["remove_setbacks"], (number,))
            self._db.execute(queries()["remove_pieces"], (number, "result"))
            self._strike([(number,)], self._last_seq(), [ENDING])

    def _blob(
        self, rows: dict[str, list[_Row]], number: int, kind: str, frame: Frame
    ) -> bytes | None:
        """A frame as one value; None when it went into pieces."""
        if frame_bytes(frame) <= PIECE_BYTES:
            packed: bytes = msgpack.packb(frame)
            return packed
        pieces = rows.setdefault("add_piece", [])
        for index, buffer in enumerate(frame):
            view = memoryview(buffer)
            for position in range(0, max(1, -(-len(view) // PIECE_BYTES))):
                begin = position * PIECE_BYTES
                pieces.append((number, kind, index, position, view[begin : begin + PIECE_BYTES]))
        return None

    # --- reading ----------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """See `Store.entries`."""
        if highest := self.note(_HIGHEST):
            yield Forgotten(int(highest), False)
        yield from (entry for _, entry in self.numbered("forgotten"))
        for table in ("process", "task"):
            yield from (entry for _, entry in self.numbered(table))
        attempts = heapq.merge(
            self.numbered("hand_out"), self.numbered("setback"), key=lambda pair: pair[0]
        )
        yield from (entry for _, entry in attempts)
        yield from (entry for _, entry in self.numbered("ending"))  # nothing follows an end

    def readable(self, problems: list[str]) -> Iterator[Entry]:
        """As `entries`, with frames, passing over what cannot be read; tells of it in `problems`.

        Tasks first, then what happened to them.
        """
        for table in ("process", "task", "hand_out", "setback", "ending"):
            for _, entry in self.numbered(table, problems, frames=True):
                yield entry

    def numbered(
        self, table: str, problems: list[str] | None = None, *, frames: bool = False
    ) -> Iterator[tuple[int, Entry]]:
        """All entries of a table with their `seq`; without `problems`, the first one is raised."""
        query, parse = _READERS[table]
        rows = self._parsed(table, query, parse, problems, frames=frames)
        if table not in (TASK, ENDING):
            return rows
        paged = self._paged(table, problems, frames=frames)
        return heapq.merge(rows, paged, key=_number_of)

    def _parsed(
        self,
        table: str,
        query: str,
        parse: Callable[[SqliteStore, _Row, bool], tuple[int, Entry]],
        problems: list[str] | None,
        *,
        frames: bool,
    ) -> Iterator[tuple[int, Entry]]:
        for row in self._rows(table, query, problems):
            try:
                item = parse(self, row, frames)
            except JournalError as error:
                if problems is None:
                    raise
                problems.append(str(error))
                continue
            yield item

    def _rows(self, table: str, query: str, problems: list[str] | None) -> Iterator[_Row]:
        """The rows of a scan; goes on behind damage, if that is to be noted in `problems`."""
        begin: int | None = 0
        while begin is not None:
            try:
                for row in self._db.execute(queries()[query], (begin,)):
                    begin = row[0] + 1
                    yield row
                return
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if problems is None:
                    raise self._damaged(str(error)) from error
                following = self._readable_from(query, begin + 1)
                rest = f"; it goes on at row {following}" if following is not None else ""
                problems.append(f"table {table} from row {begin} on: {error}{rest}")
                begin = following

    def _readable_from(self, query: str, place: int) -> int | None:
        """The first place at or behind `place` at which a scan goes on; None if there is none."""
        bad, good, step = place - 1, place, 1
        while not self._reads(query, good):
            if step > _SKIP_TO:
                return None
            bad, good, step = good, good + step, 2 * step
        while good - bad > 1:
            middle = (bad + good) // 2
            if self._reads(query, middle):
                good = middle
            else:
                bad = middle
        return good

    def _reads(self, query: str, place: int) -> bool:
        try:
            self._db.execute(queries()[query], (place,)).fetchone()
        except sqlite3.DatabaseError:
            return False
        return True

    def _parse_task(self, row: _Row, frames: bool) -> tuple[int, Entry]:
        number, seq, tag, identity, options, blob, mac = row
        frame = self._verified("task", row[:5], "parameters", blob, mac)
        entry = Requested(number, tag, identity, options_of(options), frame if frames else AT_REST)
        return seq, entry

    def _parse_process(self, row: _Row, frames: bool) -> tuple[int, Entry]:
        self._verify("process", row)
        known = {k: v for k, v in json.loads(row[2]).items() if k in ProcessInfo._fields}
        return row[1], Joined(row[0], ProcessInfo(**known))

    def _parse_hand_out(self, row: _Row, frames: bool) -> tuple[int, Entry]:
        self._verify("hand_out", row)
        return row[0], HandedOut(row[1], tuple((n, a) for n, a in json.loads(row[2])))

    def _parse_former_process(self, row: _Row, frames: bool) -> tuple[int, Entry]:
        seq, process, info, mac = row
        return self._parse_process((process, seq, info, mac), frames)

    def _parse_item(self, row: _Row, frames: bool = True) -> tuple[int, Stored]:
        number, name, kind, blob, mac = row
        frame = self._verified("item", row[:3], "item", blob, mac)
        value: Any = frame
        if kind == "value":
            value = msgpack.unpackb(frame[0], unicode_errors="surrogatepass", strict_map_key=False)
        return number, Stored(name, value)

    def _parse_setback(self, row: _Row, frames: bool) -> tuple[int, Entry]:
        self._verify("setback", row)
        return row[0], Setback(*row[1:-1])

    def _parse_forgotten(self, row: _Row, frames: bool) -> tuple[int, Entry]:
        self._verify("forgotten", row)
        return row[1], Forgotten(row[0], True)

    def _parse_ending(self, row: _Row, frames: bool) -> tuple[int, Entry]:
        number, seq, attempt, process, outcome, duration_s, story, at, blob, mac = row
        frame = self._verified("ending", row[:8], "result", blob, mac)
        kept = frame if frames else AT_REST
        return seq, Ended(number, attempt, process, outcome, duration_s, story, kept, at)

    def parameters(self, number: int) -> Frame:
        """See `Store.parameters`."""
        page = self._page_with(TASK, number)
        if page is not None:
            return page.frame(number)
        row = self._there("task", number)
        return self._verified("task", row[:5], "parameters", row[5], row[6])

    def result(self, number: int) -> Frame:
        """See `Store.result`."""
        page = self._page_with(ENDING, number)
        if page is not None:
            return page.frame(number)
        row = self._there("ending", number)
        return self._verified("ending", row[:8], "result", row[8], row[9])

    def item(self, name: str) -> Any:
        """See `Store.item`."""
        row = self._one("item", (plain(name),))
        if row is None:
            raise DataNotFound(f"journal {self.path} has no data item {name!r}")
        return self._parse_item(row)[1].value

    def note(self, name: str) -> str:
        """See `Store.note`."""
        row = self._one("note", (name,))
        if row is None:
            return ""
        if not same(row[1], self._mac(("note", name, row[0]))):
            raise self._damaged(f"its note {name!r} is not what was written")
        value: str = row[0]
        return value

    def note_names(self) -> list[str]:
        """The names of all notes."""
        with self._translated():
            return [name for (name,) in self._db.execute(queries()["notes"])]

    def close(self) -> None:
        """See `Store.close`."""
        if not self._closed:
            self._closed = True
            self._db.close()
            _open.discard(self._file)

    # --- inside -----------------------------------------------------------------------------

    def _one(self, query: str, values: _Row) -> _Row | Any:
        with self._translated():
            return self._db.execute(queries()[query], values).fetchone()

    def _there(self, query: str, number: int) -> _Row:
        row: _Row | None = self._one(query, (number,))
        if row is None:
            raise self._damaged(f"it has no {query} number {number}")
        return row

    def _verify(self, table: str, row: _Row) -> None:
        if not same(row[-1], self._mac((table, *row[:-1]))):
            raise self._damaged(f"{table} {row[0]} is not what was written")

    def _verified(self, table: str, values: _Row, kind: str, blob: Any, mac: Any) -> Frame:
        """The frame of a row whose signature is right."""
        number = values[0]
        if blob is None:
            frame = self._pieces(number, kind)
        else:
            try:
                frame = msgpack.unpackb(blob)
            except Exception as error:  # bytes that nobody has verified may be anything
                raise self._damaged(f"{table} {number} is not what was written") from error
        if not _is_frame(frame) or not same(mac, self._mac((table, *values), frame)):
            raise self._damaged(f"{table} {number} is not what was written")
        return frame

    def _pieces(self, number: int, kind: str) -> Frame:
        buffers: dict[int, bytearray] = {}
        with self._translated():
            for index, _, data in self._db.execute(queries()["pieces"], (number, kind)):
                if not isinstance(data, bytes):
                    raise self._damaged(f"a piece of {kind} {number} is not what was written")
                buffers.setdefault(index, bytearray()).extend(data)
        return list(buffers.values())

    def _mac(self, values: _Row, frame: Frame = AT_REST) -> bytes:
        """The signature of a row: over its table's name, its values and its frame."""
        try:
            head = msgpack.packb(values, unicode_errors="surrogatepass")
        except (TypeError, ValueError, OverflowError):  # damage has put a strange type there
            head = repr(values).encode("utf-8", "surrogatepass")
        if frame is AT_REST:
            return hmac.digest(self._key, head, "sha256")
        sizes = [len(buffer).to_bytes(8, "big") for buffer in frame]
        if len(frame) == 1 and len(frame[0]) < PIECE_BYTES:
            return hmac.digest(self._key, head + sizes[0] + frame[0], "sha256")
        mac = hmac.new(self._key, head, hashlib.sha256)
        for size, buffer in zip(sizes, frame, strict=True):
            mac.update(size)
            mac.update(buffer)
        return mac.digest()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._read_pages.clear()  # one of them may be of this transaction
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except UnicodeDecodeError as error:  # SQLite quotes what it has found there
            raise self._damaged("its tables are unreadable") from error
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise JournalInUse(
                    f"journal {self.path}: another process has it open, most likely the living "
                    "master that writes to it; end that first, or ask it: "
                    "task_manager show LABEL, task_manager failures LABEL"
                ) from error
            if not any(known in text for known in CANNOT_WRITE):
                raise self._damaged(text) from error
            raise cannot_write("journal", self.path, text) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, problem: str) -> JournalDamaged:
        return JournalDamaged(
            f"journal {self.path} is damaged: {problem}; see what can be read with: "
            f"task_manager journal check {self.path}, and save it with: "
            f"task_manager journal export {self.path} --to NEW"
        )


def _is_frame(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, (bytes, bytearray, memoryview)) for part in value
    )


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino


def _columns(db: sqlite3.Connection) -> set[_Row]:
    """All columns of all tables, with their types, and what they are keys of."""
    return set(
        db.execute(
            "SELECT t.name, c.* FROM sqlite_master AS t, pragma_table_info(t.name) AS c "
            "WHERE t.type = 'table'"
        )
    )


def _seconds(number: float) -> float:
    """The number as SQLite gives it back: it has no whole, negative or undefined zeros."""
    value = float(number)
    return 0.0 if value == 0 or math.isnan(value) else value


@lru_cache(256)
def _options_text(options: TaskOptions) -> str:
    fields = options._asdict()
    if options.origin is None:
        del fields["origin"]  # of use to attached clients only
    return json.dumps(fields)


def _number_of(pair: tuple[int, Entry]) -> int:
    """The number of the task that an entry with its `seq` is about."""
    number: int = getattr(pair[1], "number", -1)
    return number


_WRITERS: dict[type, Callable[[SqliteStore, dict[str, list[_Row]], int, Any], None]] = {
    Requested: SqliteStore._add_task,
    Joined: SqliteStore._add_process,
    Left: SqliteStore._remove_process,
    HandedOut: SqliteStore._add_hand_out,
    Setback: SqliteStore._add_setback,
    Ended: SqliteStore._add_ending,
    Cancelled: SqliteStore._remove_task,
    Forgotten: SqliteStore._forget,
    Stored: SqliteStore._add_item,
    Dropped: SqliteStore._remove_item,
}

_READERS: dict[str, tuple[str, Callable[[SqliteStore, _Row, bool], tuple[int, Entry]]]] = {
    "task": ("tasks", SqliteStore._parse_task),
    "process": ("processes", SqliteStore._parse_process),
    "hand_out": ("hand_outs", SqliteStore._parse_hand_out),
    "setback": ("setbacks", SqliteStore._parse_setback),
    "ending": ("endings", SqliteStore._parse_ending),
    "forgotten": ("forgotten", SqliteStore._parse_forgotten),
    "former_process": ("former_processes", SqliteStore._parse_former_process),
    "item": ("items", SqliteStore._parse_item),
}

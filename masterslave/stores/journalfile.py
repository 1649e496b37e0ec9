"""A journal's file as such: opened and locked, brought up to date, its rows read and verified.

The statements are in ``sql/queries.sql``, the tables in ``sql/001-tables.sql`` and the numbered
files that follow it: each brings a file of the version before to its own, and a file's version is
the number of those applied. SQLite's `application_id` tells our files from others.

Written ahead (WAL), a group of entries per transaction: an entry is kept when its transaction has
ended, whatever kills this process then. `synchronous` is NORMAL: if the whole host loses power the
last moments may be missing, in which case their tasks are run again; the file stays sound. It is
locked exclusively for as long as it is open, which also spares the shared-memory file that WAL
needs otherwise and that network file systems do not have.

What a row says as an entry is the business of `rows`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgpack

from masterslave.errors import JournalDamaged, JournalError, JournalInUse
from masterslave.records import Frame
from masterslave.stores.frames import Signer, is_frame, same
from masterslave.stores.full import CANNOT_WRITE, cannot_write
from masterslave.stores.statements import migrations, queries

APPLICATION_ID = 0x6D736A31  # "msj1"
_HEADER_BYTES = 100  # of a SQLite file; application_id stands at byte 68
_MAGIC = b"SQLite format 3\0"

#: Longest step over a damaged place when the place where reading goes on is looked for, in rows.
_SKIP_TO = 1 << 40

#: The journals that are open in this process: its id, the file's device and inode. The system
#: frees all locks of a process on a file when it closes any of its descriptors of that file. So a
#: second look at an open journal would open it to other processes.
_open: set[tuple[int, int, int]] = set()
_opening = threading.Lock()

Row = tuple[Any, ...]


class JournalFile:
    """An open journal. Used by one thread at a time, whichever that is."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        key: bytes,
        *,
        create: bool = True,
        guarded: bool = False,
    ) -> None:
        """Open the journal at `path`, or make one if there is no file and `create` allows it.

        `guarded` and what it raises: see `SqliteStore`.
        """
        self.path = os.path.abspath(path)
        self.mac = Signer(key).mac
        self._guarded = guarded
        self._closed = False
        with _opening:
            new = self._inspect(create)
            self.db = self._connect(new)
            self._identity = _identity(os.stat(self.path))
            _open.add(self._identity)
        try:
            self._prepare(new)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give it up, for another process to use."""
        if not self._closed:
            self._closed = True
            self.db.close()
            _open.discard(self._identity)

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
        with self.translated():
            self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
            if new:
                self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            mode = self.db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise JournalError(f"journal {self.path}: cannot be written ahead ({mode})")
            self.db.execute("PRAGMA synchronous = NORMAL")
            self.db.execute("PRAGMA trusted_schema = OFF")
            problem: str = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise self.damaged(problem.strip().rpartition("\n")[2])  # below a heading
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            if version > 0:
                self.check_key()  # before anything is changed
            self._migrate(version)
            self._check_tables()
        self.check_key()

    def _migrate(self, version: int) -> None:
        scripts = migrations()
        if version > len(scripts):
            raise JournalError(
                f"journal {self.path}: was written by a newer masterslave (version {version} of "
                f"the file, this one knows {len(scripts)}); use that, or name another file"
            )
        for number, script in enumerate(scripts[version:], version + 1):
            self.db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version={number};")
            self.db.execute("COMMIT")

    def _check_tables(self) -> None:
        """A definition with one letter wrong may hide all rows of a table, and be no error."""
        with contextlib.closing(sqlite3.connect(":memory:")) as right:
            right.executescript("\n".join(migrations()))
            if not _columns(right) <= _columns(self.db):
                raise self.damaged("its tables are not those that were made")

    def check_key(self) -> None:
        """The first note tells whether the file was signed with our key."""
        row = self.one("note", ("key",))
        if row is None:
            if self.one("task", (0,)) is not None or self.one("has_pages", ())[0]:
                raise self.damaged("its notes are missing")
            self.set_note("key", "of the user's key file")
        elif row[1] != self.mac(("note", "key", row[0])):
            if row[0] != "of the user's key file":
                raise self.damaged("its notes are not what was written")
            raise JournalError(
                f"journal {self.path}: was signed with another key; "
                "name the key file that it was made with (MASTERSLAVE_KEY_FILE)"
            )

    # --- notes ------------------------------------------------------------------------------

    def set_note(self, name: str, value: str) -> None:
        """Keep a note for the next run."""
        with self.translated():
            self.db.execute(queries()["set_note"], (name, value, self.mac(("note", name, value))))

    def note(self, name: str) -> str:
        """A note of an earlier run; empty if there is none."""
        row = self.one("note", (name,))
        if row is None:
            return ""
        if not same(row[1], self.mac(("note", name, row[0]))):
            raise self.damaged(f"its note {name!r} is not what was written")
        value: str = row[0]
        return value

    def note_names(self) -> list[str]:
        """The names of all notes."""
        with self.translated():
            return [name for (name,) in self.db.execute(queries()["notes"])]

    # --- rows -------------------------------------------------------------------------------

    def one(self, query: str, values: Row) -> Row | Any:
        """The first row that a query gives, or None."""
        with self.translated():
            return self.db.execute(queries()[query], values).fetchone()

    def there(self, query: str, number: int) -> Row:
        """As `one`, of a row that must be there. Raises `JournalDamaged`."""
        row: Row | None = self.one(query, (number,))
        if row is None:
            raise self.damaged(f"it has no {query} number {number}")
        return row

    def rows(self, table: str, query: str, problems: list[str] | None) -> Iterator[Row]:
        """The rows of a scan; goes on behind damage, if that is to be noted in `problems`."""
        begin: int | None = 0
        while begin is not None:
            try:
                for row in self.db.execute(queries()[query], (begin,)):
                    begin = row[0] + 1
                    yield row
                return
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if problems is None:
                    raise self.damaged(str(error)) from error
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
            self.db.execute(queries()[query], (place,)).fetchone()
        except sqlite3.DatabaseError:
            return False
        return True

    def verify(self, table: str, row: Row) -> None:
        """Check a row's signature, its last value. Raises `JournalDamaged`."""
        if not same(row[-1], self.mac((table, *row[:-1]))):
            raise self.damaged(f"{table} {row[0]} is not what was written")

    def verified(self, table: str, values: Row, kind: str, blob: Any, mac: Any) -> Frame:
        """The frame of a row whose signature is right."""
        number = values[0]
        if blob is None:
            frame = self._pieces(number, kind)
        else:
            try:
                frame = msgpack.unpackb(blob)
            except Exception as error:  # bytes that nobody has verified may be anything
                raise self.damaged(f"{table} {number} is not what was written") from error
        if not is_frame(frame) or not same(mac, self.mac((table, *values), frame)):
            raise self.damaged(f"{table} {number} is not what was written")
        return frame

    def _pieces(self, number: int, kind: str) -> Frame:
        buffers: dict[int, bytearray] = {}
        with self.translated():
            for index, _, data in self.db.execute(queries()["pieces"], (number, kind)):
                if not isinstance(data, bytes):
                    raise self.damaged(f"a piece of {kind} {number} is not what was written")
                buffers.setdefault(index, bytearray()).extend(data)
        return list(buffers.values())

    # --- SQLite -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written within the ``with`` is kept, or nothing."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self.db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except UnicodeDecodeError as error:  # SQLite quotes what it has found there
            raise self.damaged("its tables are unreadable") from error
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise JournalInUse(
                    f"journal {self.path}: another process has it open, most likely the living "
                    "master that writes to it; end that first, or ask it: "
                    "task_manager show LABEL, task_manager failures LABEL"
                ) from error
            if not any(known in text for known in CANNOT_WRITE):
                raise self.damaged(text) from error
            raise cannot_write("journal", self.path, text) from error
        except sqlite3.DatabaseError as error:
            raise self.damaged(str(error)) from error

    def damaged(self, problem: str) -> JournalDamaged:
        """The error for that, with what to do about it."""
        return JournalDamaged(
            f"journal {self.path} is damaged: {problem}; see what can be read with: "
            f"task_manager journal check {self.path}, and save it with: "
            f"task_manager journal export {self.path} --to NEW"
        )


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino


def _columns(db: sqlite3.Connection) -> set[Row]:
    """All columns of all tables, with their types, and what they are keys of."""
    return set(
        db.execute(
            "SELECT t.name, c.* FROM sqlite_master AS t, pragma_table_info(t.name) AS c "
            "WHERE t.type = 'table'"
        )
    )

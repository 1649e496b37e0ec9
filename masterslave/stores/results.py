"""Results of calls in one SQLite file, so that a client that crashed does not call again.

| table    | column     | holds                                                                 |
|----------|------------|-----------------------------------------------------------------------|
| `result` | `identity` | what was called with what, and which of equal calls it was            |
|          | `name`     | of the function, for people                                           |
|          | `pieces`   | into how many pieces the frame was cut                                |
|          | `mac`      | signature of all that, and of the frame                               |
| `piece`  | `identity`, `number`, `data` | a piece of a frame                                   |

Signed with the user's key, as a journal is: nothing is given out that a holder of the key has not
written. Locked for as long as it is open; SQLite lets go of that when the process dies.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from masterslave.errors import JournalDamaged, JournalError, JournalInUse
from masterslave.records import Frame
from masterslave.stores.full import CANNOT_WRITE, cannot_write

APPLICATION_ID = 0x6D737231  # "msr1"
_VERSION = 1

_TABLES = """
CREATE TABLE result (identity BLOB PRIMARY KEY, name TEXT, pieces INTEGER, mac BLOB) WITHOUT ROWID;
CREATE TABLE piece (identity BLOB, number INTEGER, data BLOB, PRIMARY KEY (identity, number));
"""


class StoredResult(NamedTuple):
    """What a call has given."""

    identity: bytes
    name: str
    frame: Frame


class ResultStore:
    """Used by one thread at a time, whichever that is."""

    def __init__(self, path: str | os.PathLike[str], key: bytes) -> None:
        """Open the file, or make it.

        Raises `JournalInUse`, `JournalDamaged`, or `JournalError` for a file of another program.
        """
        self.path = os.path.abspath(path)
        self._key = hmac.digest(key, b"masterslave results", "sha256")
        with self._translated():
            self._make_ours_alone()
            self._db = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _make_ours_alone(self) -> None:
        # One that is there is not opened here: to close it again would undo the lock that another
        # store in this process has on it.
        try:
            with contextlib.suppress(FileExistsError):
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
                os.close(os.open(self.path, flags, 0o600))
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise JournalError(f"results {self.path}: is not a regular file")
        except OSError as error:
            raise JournalError(f"results {self.path}: {error.strerror or error}") from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        kind = self._db.execute("PRAGMA application_id").fetchone()[0]
        if not empty and kind != APPLICATION_ID:
            raise JournalError(
                f"results {self.path}: is a database of another program; name another file"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA trusted_schema = OFF")
        if empty:
            self._db.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; {_TABLES} "
                f"PRAGMA user_version = {_VERSION}; COMMIT;"
            )
            return
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            raise JournalError(
                f"results {self.path}: was written by another version of masterslave (version "
                f"{version} of the file, this one knows {_VERSION}); name another file"
            )
        problem: str = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise self._damaged(problem.strip().rpartition("\n")[2])
        self._db.execute("BEGIN IMMEDIATE")  # takes the lock, which stays
        self._db.execute("COMMIT")

    def find(self, identity: bytes) -> Frame | None:
        """The frame that is kept for a call; None if there is none. `JournalDamaged` if changed."""
        with self._translated():
            row = self._db.execute(
                "SELECT name, pieces, mac FROM result WHERE identity = ?", (identity,)
            ).fetchone()
            if row is None:
                return None
            name, count, mac = row
            frame: Frame = [
                data
                for (data,) in self._db.execute(
                    "SELECT data FROM piece WHERE identity = ? ORDER BY number", (identity,)
                )
            ]
        good = (
            isinstance(name, str)
            and len(frame) == count
            and all(isinstance(piece, bytes) for piece in frame)
            and isinstance(mac, bytes)
            and hmac.compare_digest(mac, self._mac(StoredResult(identity, name, frame)))
        )
        if not good:
            raise JournalDamaged(
                f"results {self.path}: the result of {name} is not what was written with this key "
                "(MASTERSLAVE_KEY_FILE); name another file, or delete this one"
            )
        return frame

    def keep(self, results: Sequence[StoredResult]) -> None:
        """Keep results, all or none; they are on disk when this returns.

        Raises `JournalFull` when they cannot be written.
        """
        with self._translated(), self._transaction():
            for one in results:
                values = (one.identity, one.name, len(one.frame), self._mac(one))
                self._db.execute("INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?)", values)
                self._db.execute("DELETE FROM piece WHERE identity = ?", (one.identity,))
                self._db.executemany(
                    "INSERT INTO piece VALUES (?, ?, ?)",
                    [(one.identity, number, piece) for number, piece in enumerate(one.frame)],
                )

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    # --- inside -----------------------------------------------------------------------------

    def _mac(self, one: StoredResult) -> bytes:
        mac = hmac.new(self._key, digestmod="sha256")
        for part in (one.identity, one.name.encode("utf-8", "surrogatepass"), *one.frame):
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.digest()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise JournalInUse(
                    f"results {self.path}: another program has it open; name another file"
                ) from error
            if not any(known in str(error) for known in CANNOT_WRITE):
                raise self._damaged(str(error)) from error
            raise cannot_write("results", self.path, str(error)) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, problem: str) -> JournalDamaged:
        return JournalDamaged(
            f"results {self.path}: is damaged, or no file of results ({problem}); name another file"
        )

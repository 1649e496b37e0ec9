"""Reads a journal that nobody runs, sound or damaged, and changes nothing in its file.

What `SqliteStore` refuses because it is damaged is read here as far as that goes, and each problem
is noted. Every row that is given was verified, so a journal made of them is as good as the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from masterslave.attempts import Attempt, own_story
from masterslave.entries import Ended, Entry, Joined, Requested, Setback
from masterslave.errors import JournalDamaged, JournalError, JournalInUse, UnknownTask
from masterslave.records import Outcome, ProcessInfo
from masterslave.stores.contents import Contents
from masterslave.stores.journalfile import JournalFile
from masterslave.stores.pages import TASK
from masterslave.stores.statements import migrations

#: In the order in which a journal is made of them: slaves that have left made room for others.
TABLES = ("former_process", "process", "task", "hand_out", "setback", "ending", "item", "forgotten")

#: Problems of the file's structure that SQLite is asked for; more say nothing new.
_STRUCTURE_PROBLEMS = 10

#: Where SQLite locks a file, see its ``os.h``: readers of any program hold a part of this range.
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510


class Past(NamedTuple):
    """A task as the journal knows it."""

    request: Requested
    failures: list[Attempt]  # every attempt that failed, the last one too if the task did
    end: Ended | None
    where: str  # who brought it to its end

    @property
    def task_id(self) -> str:
        """Its id, such as ``sqrt_0``."""
        return f"{self.request.tag}_{self.request.number}"

    @property
    def has_failed(self) -> bool:
        """Whether it came to its end without a result."""
        return self.end is not None and self.end.outcome != Outcome.RESULT


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], key: bytes) -> Iterator[JournalReader]:
    """A journal, to be read within the ``with``; no master can open it meanwhile.

    Raises `JournalError` for what is no journal of this key, and `JournalInUse` while a master has
    it. It does not raise `JournalDamaged`: see `JournalReader.problems`.
    """
    with contextlib.ExitStack() as stack:
        reader = JournalReader(path, key, stack)
        if reader.problems and not reader.is_copy:
            # SQLite writes to what it opens when it sees fit. A damaged file is evidence: from here
            # on only a copy is touched.
            reader.close()
            reader = JournalReader(path, key, stack, copy=True)
        stack.callback(reader.close)
        yield reader


def _can_be_opened(path: str) -> bool:
    """Whether opening it works and writes nothing: nothing waits in its WAL, it has our version.

    A master that was killed leaves a WAL, which whoever opens the file next writes into it. SQLite
    needs a file beside it even to read.
    """
    with contextlib.suppress(OSError):
        if os.path.getsize(path + "-wal"):
            return False
    with open(path, "rb") as file:
        version = int.from_bytes(file.read(64)[60:], "big")
    writable = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)
    return writable and version >= len(migrations())


def _copy(path: str, directory: str) -> str:
    """Copy the journal and its WAL, while no master can write to them; gives the copy's path."""
    copy = os.path.join(directory, "copy.db")
    with open(path, "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
        except OSError:
            raise _in_use(path) from None
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path + suffix, copy + suffix)
    return copy


def _in_use(path: str) -> JournalInUse:
    return JournalInUse(
        f"journal {path}: another process has it open, most likely the living master that writes "
        "to it; end that first, or ask it: task_manager show LABEL, task_manager failures LABEL"
    )


class _FileToRead(JournalFile):
    """A journal's file, opened so that nothing in it changes; `problems` has what is wrong."""

    def __init__(
        self, path: str | os.PathLike[str], key: bytes, stack: contextlib.ExitStack, *, copy: bool
    ) -> None:
        self.problems: list[str] = []
        self.is_copy = copy
        self._stack = stack
        super().__init__(path, key, create=False)

    def _connect(self, new: bool) -> sqlite3.Connection:
        if new:
            raise JournalError(f"journal {self.path}: is empty")
        file = self.path
        try:
            if self.is_copy or not _can_be_opened(file):
                self.is_copy = True
                directory = tempfile.TemporaryDirectory(prefix="masterslave-")
                file = _copy(file, self._stack.enter_context(directory))
            db = sqlite3.connect(file, timeout=0, isolation_level=None)
        except OSError as error:
            raise JournalError(
                f"journal {self.path}: cannot be copied to be read: {error.strerror or error}; "
                "TMPDIR chooses where to"
            ) from error
        except sqlite3.Error as error:
            raise JournalError(f"journal {self.path}: {error}") from error
        # Damaged text must reach the signature check instead of being an error of its own.
        db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        return db

    def _prepare(self, new: bool) -> None:
        try:
            with self.translated():
                self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
                self.db.execute("PRAGMA trusted_schema = OFF")
                for (text,) in self.db.execute(f"PRAGMA quick_check({_STRUCTURE_PROBLEMS})"):
                    lines = text.splitlines()
                    self.problems += [s for s in lines if s != "ok" and not s.startswith("***")]
                self._migrate(self.db.execute("PRAGMA user_version").fetchone()[0])
                self.db.execute("PRAGMA query_only = ON")
        except JournalDamaged as error:
            self.problems.append(str(error))
        self.check_key()

    def check_key(self) -> None:
        """As that of any store; but where the note is damaged, the first sound row tells."""
        try:
            super().check_key()
            return
        except JournalDamaged as error:
            problem = str(error)
        except JournalInUse:
            raise
        except JournalError:
            if next(Contents(self).readable([]), None) is None:
                raise
            problem = "the note on its key is not what was written"
        self.problems.append(problem)

    def set_note(self, name: str, value: str) -> None:
        """Nothing is written to what is read only."""

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error) or "busy" in str(error):
                raise _in_use(self.path) from error
            raise self.damaged(str(error)) from error

    def damaged(self, problem: str) -> JournalDamaged:
        return JournalDamaged(problem)  # goes into the list of problems


class JournalReader(Contents):
    """A journal that is read as far as possible; `problems` has a line for what is not."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        key: bytes,
        stack: contextlib.ExitStack,
        *,
        copy: bool = False,
    ) -> None:
        """Open the journal at `path`, or a copy of it, which `stack` removes.

        Raises as `reading`.
        """
        file = _FileToRead(path, key, stack, copy=copy)
        super().__init__(file)
        self.problems = file.problems
        self.is_copy = file.is_copy

    @property
    def size_bytes(self) -> int:
        """Of the file, with what waits in its WAL."""
        total = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                total += os.path.getsize(self.path + suffix)
        return total

    def read(self, table: str, *, frames: bool = False) -> Iterator[tuple[int, Any]]:
        """The sound rows of one of `TABLES` as entries, with their `seq`."""
        return self.numbered(table, self.problems, frames=frames)

    def notes(self) -> dict[str, str]:
        """All notes by name."""
        found = {}
        try:
            names = self._file.note_names()
        except JournalDamaged as error:
            self.problems.append(f"table note: {error}")
            return {}
        for name in names:
            try:
                found[name] = self.note(name)
            except JournalDamaged as error:
                self.problems.append(str(error))
        return found

    def request(self, task_id: str) -> Requested:
        """A task as it was requested. Raises `UnknownTask`, or `JournalDamaged` if it is."""
        tag, _, digits = task_id.rpartition("_")
        if digits.isdecimal() and len(digits) < 19:  # longer ones are no numbers to SQLite
            page = self._pages.page_with(TASK, int(digits))
            row = self._file.one("task", (int(digits),))
            found: Entry | None = None
            if page is not None:
                found = page.entry(int(digits))[1]
            elif row is not None:
                found = self._rows.parse_task(row, frames=True)[1]
            if isinstance(found, Requested) and found.tag == tag:
                return found
        raise UnknownTask(f"journal {self.path}: has no task {task_id!r}")

    def slaves(self) -> Slaves:
        """Who the slaves were."""
        return Slaves(pair for table in TABLES[:2] for pair in self.read(table))

    def tasks(self, *, frames: bool = False) -> Iterator[Past]:
        """All tasks with what became of them, by number. `frames`: with parameters and results."""
        slaves = self.slaves()
        setbacks: dict[int, list[tuple[int, Setback]]] = defaultdict(list)
        for seq, setback in self.read("setback"):
            setbacks[setback.number].append((seq, setback))
        endings = self.read("ending", frames=frames)
        ending = next(endings, None)
        for _, request in self.read("task", frames=frames):
            while ending is not None and ending[1].number < request.number:
                ending = next(endings, None)  # of a task that cannot be read
            failures = [_attempt(slaves, seq, setback) for seq, setback in setbacks[request.number]]
            if ending is None or ending[1].number != request.number:
                yield Past(request, failures, None, "")
                continue
            seq, end = ending
            if end.outcome != Outcome.RESULT:
                failures.append(_attempt(slaves, seq, end))
            yield Past(request, failures, end, slaves.who(end.process, seq))


class Slaves:
    """Which slave had a process id when; later runs give the same ids again."""

    def __init__(self, rows: Iterable[tuple[int, Joined]]) -> None:
        self.infos: dict[str, ProcessInfo] = {}  # by token: one for each slave
        self._joined: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for seq, entry in sorted(rows, key=lambda row: row[0]):
            self.infos[entry.info.token] = entry.info
            self._joined[entry.process].append((seq, entry.info.machine))

    def who(self, process: int, seq: int) -> str:
        """The slave that had that id when the entry with that `seq` was made."""
        for joined, machine in reversed(self._joined[process]):
            if joined < seq:
                return machine
        return f"slave {process}"


def _attempt(slaves: Slaves, seq: int, entry: Setback | Ended) -> Attempt:
    story = entry.story
    if isinstance(entry, Ended):
        story = own_story(entry.attempt, entry.outcome, story)
    where = slaves.who(entry.process, seq)
    return Attempt(entry.attempt, where, entry.outcome, entry.at, story)

"""What is kept of a start, in the home directory that all nodes share: one folder per label.

::

    ~/.masterslave/starts/LABEL/
        start.json        what was asked for (`Plan`)
        jobs/NAME.json    one submission each (`Submission`): written before it, completed after
        slaves/*.json     one slave each (`Note`), by the slave itself
        logs/             what the jobs print
        stopping          is there from the moment that the run is to end: nothing more is submitted

Each file has one writer and is replaced as a whole, so no lock is needed, which network file
systems keep badly. A start that was killed half-way has left its name: `stop` asks the system for
jobs of that name. All is for the owner only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from masterslave.errors import StartError
from masterslave.launchers.shell import start_of
from masterslave.pairing import Note, Progress, own_job_id

T = TypeVar("T")

_VERSION = 1

#: Longest name of a file, in bytes, that every file system takes.
_NAME_BYTES = 200


class Plan(NamedTuple):
    """What was asked for: all that is needed to submit more of the same."""

    label: str
    name: str  # of its jobs: each one's name begins with it
    on: str  # the launcher's name
    host: str  # where it was started, and where the launcher's commands are
    began_at: float  # Unix time
    serves: bool = False  # whether the task manager is of this run, too
    manager_on: str = ""  # the launcher of the task manager, if it serves
    waits: bool = True  # whether slaves wait for their task manager: it may come later
    master: str = ""  # ``host:port`` of the task manager, where it was named
    job: Mapping[str, Any] = {}  # fields of `Job` for slaves, without name, command and count
    launcher: Mapping[str, Any] = {}  # what the launcher is made with
    workers: int = 1  # of each slave
    memory: int | None = None  # bytes of each worker
    idle_s: float | None = None  # of passing slaves
    low: int | None = None  # slaves, where they are scaled on demand
    high: int | None = None


class Submission(NamedTuple):
    """One call of a launcher."""

    name: str
    role: str  # "slave", "manager" or "scale"
    on: str  # the launcher's name
    count: int  # type: ignore[assignment]  # hides a method of tuples nobody calls
    at: float  # Unix time
    ids: tuple[str, ...] | None = None  # None: not known yet, or never to be known


#: By the type of a field: those that its value has in a file (lists: see `_fits`).
_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
    "Mapping[str, Any]": (dict,),
    "tuple[str, ...]": (),
    "tuple[str, ...] | None": (type(None),),
}


def start_root(home: Path) -> Path:
    """The folder of all starts."""
    return home / ".masterslave" / "starts"


def file_name(label: str) -> str:
    """A label as the name of a file; different labels have different ones.

    Without what shells know, and "%": batch systems read paths of logs by rules of their own.
    """
    text = quote(label, safe="").replace("%", "=")
    if text.startswith("."):
        text = "=2E" + text[1:]
    if len(text) > _NAME_BYTES:
        digest = hashlib.sha256(label.encode()).hexdigest()[:16]
        text = f"{text[: _NAME_BYTES - 17]}-{digest}"
    return text


class RunFolder:
    """The folder of one label's start. Makes nothing unless `create` is called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.slaves = path / "slaves"
        self._jobs = path / "jobs"
        self._stopping = path / "stopping"

    @classmethod
    def of(cls, label: str, home: Path) -> RunFolder:
        """That of a label."""
        return cls(start_root(home) / file_name(label))

    def create(self, plan: Plan) -> bool:
        """Make it, with its plan, at once; False if there is one already.

        Raises `StartError` when it cannot be written.
        """
        parent = self.path.parent
        with self._kept():
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))  # owner-only by itself
            try:
                for name in ("jobs", "slaves", "logs"):
                    (made / name).mkdir(mode=0o700)
                _write(made / "start.json", {"version": _VERSION, **plan._asdict()})
                made.rename(self.path)  # fails where there is a folder that is not empty
            except OSError:
                shutil.rmtree(made, ignore_errors=True)
                if self.exists():
                    return False
                raise
        return True

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Raise `StartError` where something cannot be written, such as on a full disk."""
        try:
            yield
        except OSError as error:
            raise StartError(
                f"the record of the start in {self.path} cannot be kept: "
                f"{error.strerror or error}; make room there or make it writable, or set HOME to a "
                "directory of yours that all nodes share"
            ) from error

    def exists(self) -> bool:
        """Whether there is a start of the label. Raises `StartError` where that cannot be seen."""
        return _is_there(self.path / "start.json")

    def plan(self) -> Plan:
        """What was asked for. Raises `StartError` when it cannot be read."""
        return _read(self.path / "start.json", Plan)

    # --- submissions ------------------------------------------------------------------------

    def write(self, submission: Submission) -> None:
        """Put a submission on record, or replace what is on record of it. Raises `StartError`."""
        with self._kept():
            _write(self._jobs / f"{submission.name}.json", submission._asdict())

    def forget(self, submission: Submission) -> None:
        """A submission was not made after all, or all of it is over. Raises `StartError`."""
        with self._kept(), contextlib.suppress(FileNotFoundError):
            (self._jobs / f"{submission.name}.json").unlink()

    def submissions(self) -> list[Submission]:
        """All on record, oldest first. Raises `StartError` for one that cannot be read."""
        found = []
        for submission in _read_all(self._jobs, Submission):
            ids = submission.ids
            found.append(submission._replace(ids=None if ids is None else tuple(ids)))
        return sorted(found, key=lambda submission: (submission.at, submission.name))

    # --- slaves -----------------------------------------------------------------------------

    def notes(self) -> list[Note]:
        """What the slaves have said of themselves."""
        return [note._replace(tries=tuple(note.tries)) for note in _read_all(self.slaves, Note)]

    # --- the end ----------------------------------------------------------------------------

    def mark_stopping(self) -> None:
        """From now on, nothing more is submitted. Raises `StartError` when it cannot be written."""
        with self._kept(), contextlib.suppress(FileExistsError):
            os.close(os.open(self._stopping, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def is_stopping(self) -> bool:
        """Whether the run is to end, or has ended. Raises `StartError` where it cannot be seen."""
        return _is_there(self._stopping) or not _is_there(self.path)

    def remove(self) -> None:
        """Nothing is left of it. Jobs that still write to it are left to themselves.

        Raises `StartError` where it cannot be removed.
        """
        aside = self.path.parent / f".old-{os.getpid()}-{time.monotonic_ns()}"
        with self._kept(), contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)  # at once, whatever takes long or is in the way
            shutil.rmtree(aside, ignore_errors=True)


class SlaveNote:
    """A slave's own note, which it keeps up to date. What cannot be written is left out.

    It is for people who look for a slave that is missing; no slave ends for want of it.
    """

    def __init__(self, folder: RunFolder, note: Note) -> None:
        self._folder = folder
        self._was_there = os.path.isdir(folder.slaves)
        host = quote(note.host, safe="")
        self._path = folder.slaves / f"{host}-{note.pid}-{int(note.began_at)}.json"
        self.note = note
        self._save()

    def tries(self, addresses: list[str]) -> None:
        """Where it is going to look for its manager."""
        self._change(tries=tuple(addresses))

    def failed_for_now(self, error: str) -> None:
        """It has not found its manager, and goes on looking."""
        self._change(error=error)

    def registered(self) -> None:
        """Its manager has accepted it."""
        self._change(progress=Progress.REGISTERED.value, error="")

    def ended(self, error: str) -> None:
        """It ends; `error` is empty if in order."""
        progress = Progress.FAILED if error else Progress.LEFT
        self._change(progress=progress.value, error=error)

    def is_unwanted(self) -> bool:
        """Whether its run has been stopped meanwhile: there is no use in waiting any longer."""
        try:
            return self._was_there and self._folder.is_stopping()
        except StartError:  # the home is away for a while, as network file systems are
            return False

    def _change(self, **fields: Any) -> None:
        changed = self.note._replace(**fields)
        if changed != self.note:
            self.note = changed
            self._save()

    def _save(self) -> None:
        if self._was_there:
            with contextlib.suppress(OSError):  # the disk is full, or the run has been stopped
                _write(self._path, self.note._asdict())


def note_here(folder: str, job: str, system: str) -> SlaveNote:
    """The note of a slave in this process, which the system's job of that name has started."""
    python = f"{platform.python_version()} {sys.executable}"
    job_id = own_job_id(system, os.environ, _this_process())
    note = Note(job, job_id, platform.node(), os.getpid(), python, time.time())
    return SlaveNote(RunFolder(Path(folder)), note)


def _this_process() -> str:
    """``PID:START`` as the launchers without a batch system name it; START is of the kernel."""
    return f"{os.getpid()}:{start_of(str(os.getpid()))}"


def last_lines(path: str, count: int = 3) -> str:
    """The last lines of a log that say something, joined; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-count:])


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path.parent, error) from error
    return True


def _unreadable(folder: Path, error: OSError) -> StartError:
    return StartError(
        f"the record of the start in {folder} cannot be read: {error.strerror or error}; "
        "may you look into your home directory, and is HOME right?"
    )


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a file as a whole. Owner-only."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _fits(value: Any, wanted: str) -> bool:
    """Whether a value from a file is of the type that a field of a record has."""
    if isinstance(value, list):
        return wanted.startswith("tuple") and all(isinstance(text, str) for text in value)
    return type(value) in _TYPES[wanted]


def _read(path: Path, kind: type[T]) -> T:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("version", _VERSION) != _VERSION:
            raise ValueError("it is of another version of this library")
        record = kind(**values)
        for name, hint in kind.__annotations__.items():
            wanted = str(getattr(hint, "__forward_arg__", hint))
            if name in values and not _fits(values[name], wanted):
                raise ValueError(f"{name}={values[name]!r:.60} makes no sense")
        return record
    except FileNotFoundError as error:
        raise StartError(f"{path}: has gone: the run has been stopped") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StartError(
            f"{path}: cannot be used: {error}; end the jobs that it is about by the batch "
            f"system's own commands, then delete {path}"
        ) from error


def _read_all(folder: Path, kind: type[T]) -> list[T]:
    found = []
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise _unreadable(folder, error) from error
    for path in (folder / name for name in names if name.endswith(".json")):
        try:
            found.append(_read(path, kind))
        except StartError:
            if os.path.exists(path):
                raise
    return found

"""A shared folder: where things are in it, its key, and files as `seal` makes them.

::

    DIR/id          a random name: what was written in another folder is refused here
        master      the living master, which sets its time every 2.5 s; a second one is refused
        stop        the job is over
        orders      what slaves are told: tasks to stop, data to forget, the end
        status      what ``task_manager show --folder DIR`` shows
        journal     of the master
        slaves/     a file for each slave, whose time is its sign of life while it has no lock
        data/       the slaves' code, global state
        tasks/      see `names`; some thousand files in it or in a sub-directory, see `spread`
        aside/      what is being written
        refused/    files that were not accepted, as they were found
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from masterslave.errors import ConnectionFailed, SettingsError
from masterslave.folder import seal
from masterslave.folder.files import Files
from masterslave.folder.names import owner_name
from masterslave.folder.seal import Refused
from masterslave.records import Frame

log = logging.getLogger(__name__)

_DIRECTORIES = ("slaves", "data", "tasks", "aside", "refused")


class Machine(NamedTuple):
    """Where a process is, as far as others may look whether it lives."""

    host: str
    boot: str  # id of the system's start; empty if the system has none
    namespace: str  # of process ids

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        boot = namespace = ""
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
            namespace = os.readlink("/proc/self/ns/pid")
        return cls(platform.node(), boot, namespace)


def started_at(pid: int) -> str:
    """When a process of this machine was started, in the system's own units.

    Empty if it has ended, "?" where the system does not say.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:
            pass
        return "?"


class Who(NamedTuple):
    """A process that has a file in the folder."""

    machine: Machine
    pid: int
    started: str

    @classmethod
    def me(cls) -> Who:
        """This process."""
        return cls(Machine.here(), os.getpid(), started_at(os.getpid()))

    @classmethod
    def of(cls, value: Any) -> Who:
        """From plain types."""
        machine, pid, started = value
        return cls(Machine(*machine), int(pid), str(started))

    def is_here(self) -> bool:
        """Whether it is known to this system by its process id."""
        here = Machine.here()
        return bool(here.boot) and self.machine == here

    def has_ended(self) -> bool:
        """Whether it is known to have ended; only one of this machine can be."""
        return self.is_here() and started_at(self.pid) != self.started


_REMEDY = "name a directory that master and slaves share and may write to"


def no_parent(path: str | os.PathLike[str]) -> str:
    """What to tell of a folder that nobody could make, as there is nothing to make it in."""
    path = os.path.abspath(path)
    above = os.path.dirname(path)
    if os.path.isdir(above):
        return ""
    return f"folder {path}: there is no directory {above}; make it, or correct the path"


class Place:
    """A shared folder as one process uses it."""

    def __init__(self, path: str | os.PathLike[str], key: bytes, *, make: bool = False) -> None:
        """`make`: make what is missing. Raises `SettingsError`, `ConnectionFailed`."""
        self.path = os.path.abspath(path)
        self.me = Who.me()
        self.owner = owner_name(self.me.machine.host, self.me.pid)
        token = secrets.token_hex(4)  # process ids of containers are those of others, too
        self.files = Files(self.at("aside"), f"{self.owner}-{token}")
        base = seal.derive(key, b"id")
        mistyped = no_parent(self.path)
        if mistyped:  # where a slave may not see it, the network may still do
            raise (SettingsError if make else ConnectionFailed)(mistyped)
        try:
            if make:
                for name in _DIRECTORIES:
                    self.files.make_directory(self.at(name))
                with contextlib.suppress(FileExistsError):
                    if self.files.look(self.at("id")) is None:
                        made = seal.pack(base, "id", secrets.token_bytes(16))
                        self.files.create(self.at("id"), made)
            identity = seal.read(base, "id", self.files.open_to_read(self.at("id")))[0]
        except Refused as error:
            raise SettingsError(f"folder {self.path}: its file id {error}") from None
        except FileNotFoundError:
            if make:  # such as in /proc
                raise SettingsError(
                    f"folder {self.path}: no directory can be made there; {_REMEDY}"
                ) from None
            raise ConnectionFailed(
                f"folder {self.path}: no master has been here; start the master first, or name "
                "the folder that was given to it"
            ) from None
        except OSError as error:
            raise SettingsError(
                f"folder {self.path}: {error.strerror or error}; {_REMEDY}"
            ) from error
        self._key = seal.derive(key, b"files" + identity)

    def at(self, *parts: str) -> str:
        """The path of something in it."""
        return os.path.join(self.path, *parts)

    def check_writable(self) -> None:
        """Raise `SettingsError` if this process may not write; a full disk is no such thing."""
        probe = self.at("aside", f"{self.owner}-probe-{secrets.token_hex(4)}")
        try:
            self.files.replace(probe, [])
            self.files.remove(probe)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise SettingsError(
                    f"folder {self.path}: {error.strerror}: a slave must be able to write there; "
                    f"{_REMEDY}"
                ) from error

    def is_there(self) -> bool:
        """Whether the folder is there, by the file that nobody ever removes."""
        return self.files.look(self.at("id")) is not None

    # --- signed files -----------------------------------------------------------------------

    def pack(self, name: str, head: Any, frames: Iterable[Frame] = ()) -> list[Any]:
        """The pieces of a file that is to be read under that name."""
        return seal.pack(self._key, name, head, frames)

    def write(self, head: Any, *parts: str, frames: Iterable[Frame] = ()) -> None:
        """Write a file, in the place of one that may be there. Raises `OSError`."""
        self.files.replace(self.at(*parts), self.pack(parts[-1], head, frames))

    def read(self, *parts: str, name: str = "") -> tuple[Any, list[Frame]]:
        """Read a file; `name`: the one it was signed for, if it has another one by now.

        Raises `Refused`, `FileNotFoundError` or another `OSError`.
        """
        descriptor = self.files.open_to_read(self.at(*parts))
        return seal.read(self._key, name or parts[-1], descriptor)

    def refuse(self, reason: object, *parts: str) -> None:
        """Put a file aside that is not accepted, and say so."""
        path = self.at(*parts)
        log.error("refused: %s %s", path, reason, extra={"action": "file_refused"})
        try:
            self.files.move(path, self.at("refused", f"{parts[-1]}-{secrets.token_hex(4)}"))
        except OSError as error:
            log.error("%s cannot be moved away: %s", path, error)

    def clear(self, *parts: str) -> None:
        """Remove all files of a directory. Raises `OSError`."""
        for name in self.files.list(self.at(*parts)).names:
            self.files.remove(self.at(*parts, name))

    # --- the master -------------------------------------------------------------------------

    def age_s(self, *parts: str) -> float | None:
        """Seconds since a file's time was set, by the file server's clock; None: no such file."""
        probe = f"clock-{secrets.token_hex(4)}"
        there = self.files.look(self.at(*parts))
        if there is None:
            return None
        self.write(None, "aside", probe)
        now = self.files.look(self.at("aside", probe))
        self.files.remove(self.at("aside", probe))
        return None if now is None else (now.mtime_ns - there.mtime_ns) / 1e9


#: How often a master sets the time of its file, in seconds. Larger: its death is noticed later.
BEAT_S = 2.5

#: A master whose file is older is taken for dead, in seconds. Larger: slaves and a second master
#: notice its death late. Smaller: a file server that hangs for a moment looks like it.
SILENT_S = 10.0


def lives(place: Place, who: Who, patience_s: float) -> bool:
    """Whether the process that wrote ``master`` lives. Blocks for up to `patience_s` seconds."""
    if who.is_here():
        return not who.has_ended()
    age_s = place.age_s("master")
    if age_s is None or age_s > SILENT_S:
        return False
    first = place.files.look(place.at("master"))
    deadline = time.monotonic() + min(patience_s, SILENT_S - age_s)
    while (now := place.files.look(place.at("master"))) == first:
        if time.monotonic() > deadline:
            return patience_s < SILENT_S - age_s  # it may have died just now
        time.sleep(BEAT_S / 4)
    return now is not None

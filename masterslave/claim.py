"""Who alone does something for a run, on whatever host: one process at a time.

The next one has it when that has ended in whatever way.

::

    FOLDER/00000001.json    host, pid and start of the process that had it first
    FOLDER/00000002.json    of the next one, which has it now

The largest number has it. To take over is to make the next number, which the file system lets one
process do (a hard link). So nothing is removed that another process may just have made, and no file
is locked, which network file systems keep badly. A process of another host cannot be looked at: it
touches its file all the while.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import threading
from pathlib import Path
from typing import Any

from masterslave.errors import StartError
from masterslave.launchers.shell import start_of
from masterslave.launchers.ssh import LocalLauncher

#: Between two touches, in seconds. Smaller: a burden for the file server.
_TOUCH_S = 15.0

#: A process of another host that has not touched its file for so long has ended, in seconds.
#: Larger: the host of one that was killed is missed for longer. Smaller: two have it when one's
#: file server is slow.
LOST_S = 120.0


class Taken(StartError):
    """Another process has it."""

    def __init__(self, host: str, pid: int) -> None:
        super().__init__(f"process {pid} on {host}")
        self.host = host
        self.pid = pid


class Claim:
    """Taken by this process when it is made; `give_up` ends it. Raises `Taken`, and `StartError`
    where nothing can be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._number = self._take()
        except OSError as error:
            raise StartError(f"{folder} cannot be written: {error.strerror or error}") from error
        self._path = _file(folder, self._number)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="masterslave-claim", daemon=True)
        self._thread.start()

    def is_ours(self) -> bool:
        """Whether nobody has taken over, for this process had been stopped for a long time."""
        return max(_numbers(self._folder), default=0) == self._number

    def give_up(self) -> None:
        """Others may have it at once, those of other hosts as well."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the run has been stopped: the folder has gone
            os.truncate(self._path, 0)

    def _take(self) -> int:
        me = {"host": platform.node(), "pid": os.getpid(), "start": start_of(str(os.getpid()))}
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self._folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(me, file)
            while True:
                last = max(_numbers(self._folder), default=0)
                os.utime(name)
                _check_free(_file(self._folder, last), os.stat(name).st_mtime)
                with contextlib.suppress(FileExistsError):  # another one was first: look at it
                    os.link(name, _file(self._folder, last + 1))
                    break
        finally:
            os.unlink(name)
        for number in _numbers(self._folder):
            if number <= last:
                _file(self._folder, number).unlink(missing_ok=True)
        return last + 1

    def _touch(self) -> None:
        while not self._ended.wait(_TOUCH_S):
            with contextlib.suppress(OSError):  # such as a run that has been stopped
                os.utime(self._path)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.json"


def _numbers(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()]


def _check_free(path: Path, now: float) -> None:
    """Raise `Taken` where its process lives. `now`: of the clock of the file's own server."""
    try:
        text, touched_at = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except FileNotFoundError:  # none yet, or the next one is there
        return
    holder = _read(text)
    if holder is None:  # given up
        return
    host, pid, start = holder
    if host == platform.node():
        job_id = f"{pid}:{start}"
        lives = not LocalLauncher().states([job_id])[job_id].is_over
    else:
        lives = now - touched_at < LOST_S
    if lives:
        raise Taken(host, pid)


def _read(text: str) -> tuple[str, int, str] | None:
    try:
        found: Any = json.loads(text)
        return str(found["host"]), int(found["pid"]), str(int(found["start"]))
    except (ValueError, TypeError, KeyError):
        return None

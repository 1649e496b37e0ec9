"""The shortcut: two pipes between a task manager and one worker of the same machine.

A task that comes alone goes through two processes on its way to a worker, and its result through
two on the way back, each woken to do little. So a task manager that finds a slave idle gives the
task to one of its workers itself, and has the result from there. The slave's supervisor, which
is not woken for it, is still in charge::

    task manager --task------------------------> worker      (a pipe)
         ^                                         | |
         +---result-- (a pipe) --------------------+ +--"begins", "has ended"--> board <- supervisor

| what happens                             | what becomes of a task on the shortcut             |
|------------------------------------------|----------------------------------------------------|
| the worker dies while it runs it         | the supervisor reads it from the board, and blames  |
| the worker dies before it has begun      | the supervisor says that the shortcut is closed:    |
|                                          | the task manager takes the task back                |
| the task manager lets go of the slave,   | it takes the results that are there, and closes its |
| or the slave registers again             | ends; the supervisor reads what comes afterwards    |
| the task manager dies                    | the supervisor reads the results                    |
| the result is large, or the worker ends  | the result goes by the worker's pipe                |

So a result has a reader at all times, and a task is never known to nobody: the supervisor keeps
all ends open. One task is on a shortcut at a time, and messages are short enough to be written and
read as one (`PIPE_BUF`).

The task manager opens the pipes through ``/proc``, as it does with lent memory (see `shared`), and
only if they have the inode numbers that the slave has stated over its signed connection.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack

from masterslave.packing import Packers
from masterslave.records import (
    Assignment,
    Completion,
    as_assignment,
    as_completion,
)

#: Longest message: the system writes and reads it as one.
LONGEST_BYTES = int(getattr(select, "PIPE_BUF", 512))

_READ_BYTES = 1 << 16

_PACKERS = Packers(unicode_errors="surrogatepass")
_UNPACKING: dict[str, Any] = {"strict_map_key": False, "unicode_errors": "surrogatepass"}


class PipeNames(NamedTuple):
    """The pipes of a shortcut, as the slave names them to the task manager. Integers only."""

    pid: int  # of the supervisor
    to_descriptor: int  # of the pipe to the worker
    to_inode: int
    back_descriptor: int  # of the one back
    back_inode: int


class ShortcutClosed(Exception):
    """The other ends are gone."""


def can_have_shortcuts() -> bool:
    """Whether this system has what shortcuts need."""
    return hasattr(os, "pipe2") and hasattr(select, "epoll") and os.path.isdir("/proc/self/fd")


class Shortcut:
    """The supervisor's: it makes the pipes, and reads the results when nobody else does."""

    def __init__(self) -> None:
        """Raises `OSError`."""
        self._ends: list[int] = []
        try:
            self._ends += os.pipe2(os.O_CLOEXEC)
            self._ends += os.pipe2(os.O_CLOEXEC)
            for end in self._ends[1:3]:  # ours, if anybody's
                os.set_blocking(end, False)
            inodes = [os.fstat(end).st_ino for end in self._ends]
        except BaseException:
            self.close()
            raise
        _, to, back, _ = self._ends
        self.names = PipeNames(os.getpid(), to, inodes[1], back, inodes[2])
        #: Whether the task manager has the pipes, or is about to; else the results are for us.
        self.is_lent = False

    @property
    def worker_ends(self) -> tuple[int, int]:
        """The descriptors that the worker inherits: tasks are read from the one."""
        return self._ends[0], self._ends[3]

    def fileno(self) -> int:
        """Readable when there are results."""
        return self._ends[2]

    def read(self) -> list[Completion]:
        """The results that are there, without waiting. Raises `ValueError` for what is none."""
        return _results(self._ends[2])

    def close(self) -> None:
        """Close all ends. Unread results are lost."""
        while self._ends:
            os.close(self._ends.pop())


class WorkerShortcut:
    """The worker's ends."""

    def __init__(self, to: int, back: int) -> None:
        """The descriptors are its own from now on."""
        for end in (to, back):
            os.set_inheritable(end, False)
        self._to, self._back = to, back

    def fileno(self) -> int:
        """Readable when there is a task."""
        return self._to

    def receive(self) -> Assignment:
        """The task that is there; blocks until there is one. Raises `ShortcutClosed`."""
        data = os.read(self._to, LONGEST_BYTES)
        if not data:
            raise ShortcutClosed
        return as_assignment(msgpack.unpackb(data, **_UNPACKING))

    def send(self, done: Completion) -> bool:
        """Hand in the result; false when it is too long."""
        data = _PACKERS.pack(done)
        return len(data) <= LONGEST_BYTES and os.write(self._back, data) > 0

    def close(self) -> None:
        """Close both."""
        os.close(self._to)
        os.close(self._back)


class ManagerShortcut:
    """The task manager's ends. `read` and `close` by one thread at a time."""

    def __init__(self, names: PipeNames, listener: Listener, heard: Callable[[], None]) -> None:
        """Open the pipes; `heard` is called from `listener`'s thread when there is a result.

        Raises `OSError` when they are not there, or others.
        """
        self._to = _open(names.pid, names.to_descriptor, names.to_inode, os.O_WRONLY)
        try:
            self._back = _open(names.pid, names.back_descriptor, names.back_inode, os.O_RDONLY)
        except OSError:
            os.close(self._to)
            raise
        self._listener = listener
        listener.listen(self._back, heard)

    def pack(self, task: Assignment) -> bytes | None:
        """The message for a task; None if it does not go this way."""
        data = _PACKERS.pack(task)
        return data if len(data) <= LONGEST_BYTES else None

    def send(self, data: bytes) -> None:
        """Give the worker a task, as packed. Does not wait, as none other is on the way.

        A worker that is gone is no error here: its supervisor says what has become of the task.
        """
        with contextlib.suppress(OSError):
            os.write(self._to, data)

    def read(self) -> list[Completion]:
        """The results that are there, without waiting. Raises `ValueError` for what is none."""
        return _results(self._back)

    def close(self) -> None:
        """Let go of the pipes."""
        self._listener.forget(self._back)
        os.close(self._back)
        os.close(self._to)


class Listener:
    """One thread that waits for the results of all shortcuts of a task manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None
        self._thread: threading.Thread | None = None
        self._wake_out, self._wake_in = -1, -1
        self._stopped = False

    def listen(self, descriptor: int, heard: Callable[[], None]) -> None:
        """Have `heard` called whenever something can be read there. It must not block."""
        with self._lock:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC)
                self._epoll.register(self._wake_out, select.EPOLLIN)
                self._thread = threading.Thread(target=self._run, name="shortcuts", daemon=True)
                self._thread.start()
            self._heard[descriptor] = heard
            self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """Listen no more; the descriptor is open still."""
        with self._lock:
            if self._heard.pop(descriptor, None) is not None and self._epoll is not None:
                self._epoll.unregister(descriptor)

    def stop(self) -> None:
        """End the thread. Blocks until it has ended."""
        with self._lock:
            self._stopped = True
            if self._thread is None:
                return
            os.write(self._wake_in, b"\0")
        self._thread.join()
        with self._lock:
            assert self._epoll is not None
            self._epoll.close()
            self._epoll = self._thread = None
            os.close(self._wake_out)
            os.close(self._wake_in)

    def _run(self) -> None:
        epoll, heard = self._epoll, self._heard
        assert epoll is not None
        while not self._stopped:
            for descriptor, _ in epoll.poll():
                call = heard.get(descriptor)
                if call is not None:
                    call()


def _open(pid: int, descriptor: int, inode: int, flags: int) -> int:
    """Open another process's end of a pipe, if that is the one. Raises `OSError`."""
    path = f"/proc/{pid:d}/fd/{descriptor:d}"
    seen = os.stat(path)  # to open what is no pipe might do something
    if not stat.S_ISFIFO(seen.st_mode) or seen.st_ino != inode or seen.st_uid != os.getuid():
        raise OSError(f"{path} is another pipe, or none")
    opened = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    now = os.fstat(opened)
    if (now.st_ino, now.st_dev) != (seen.st_ino, seen.st_dev):
        os.close(opened)
        raise OSError(f"{path} is another pipe by now")
    return opened


def _results(descriptor: int) -> list[Completion]:
    try:
        data = os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return []
    if not data:
        return []
    unpacker = msgpack.Unpacker(max_buffer_size=_READ_BYTES, **_UNPACKING)
    unpacker.feed(data)
    return [as_completion(item) for item in unpacker]


def as_names(item: Sequence[Any]) -> PipeNames:
    """Rebuild `PipeNames` from the list that came over a wire; `ValueError` if it is none."""
    if len(item) != len(PipeNames._fields) or not all(
        type(number) is int and 0 <= number < 1 << 63 for number in item
    ):
        raise ValueError("the pipes of a shortcut must be given by five integers")
    return PipeNames(*item)

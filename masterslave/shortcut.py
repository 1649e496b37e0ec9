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
| or the slave registers again             | ends; the supervisor reads what comes afterwards,   |
|                                          | and takes out what the worker has not read          |
| it is cancelled before it has begun      | the supervisor takes it out, or sees it begin       |
| the slave is to end                      | it goes on until the task manager sends nothing     |
|                                          | more; a worker that leaves gives tasks back         |
| the task manager dies                    | the supervisor reads the results                    |
| the result is large, or the worker ends  | the result goes by the worker's pipe                |
| the handler has closed the worker's ends | the worker ends, which is a crash                   |
| what comes back is no result             | the slave is taken for lost, and registers again    |

So a result has a reader at all times, and a task is never known to nobody: the supervisor keeps
all ends open. One task is on a shortcut at a time, and messages are short enough to be written and
read as one (`PIPE_BUF`).

The task manager opens the pipes through ``/proc``, as it does with lent memory (see `shared`), and
only if they have the inode numbers that the slave has stated over its signed connection, and if
the system is the same one: it has a number that is new each time it is booted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import stat
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
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
    system: int  # which one they are on, see `_system`


class ShortcutClosed(Exception):
    """The other ends are gone."""


def can_have_shortcuts() -> bool:
    """Whether this system has what shortcuts need."""
    return (
        hasattr(os, "pipe2")
        and hasattr(select, "epoll")
        and os.path.isdir("/proc/self/fd")
        and _system() != 0
    )


@functools.cache
def _system() -> int:
    """A number of this system since it was booted, the same in its containers; 0: it has none."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
        return uuid.UUID(text.strip()).int >> 66 | 1  # of 62 bits
    except (OSError, ValueError):
        return 0


class Shortcut:
    """The supervisor's: it makes the pipes, and reads the results when nobody else does."""

    def __init__(self) -> None:
        """Raises `OSError`."""
        self._ends: list[int] = []
        try:
            self._ends += os.pipe2(os.O_CLOEXEC)
            self._ends += os.pipe2(os.O_CLOEXEC)
            for end in self._ends[:3]:  # the worker, too, never waits in `read`
                os.set_blocking(end, False)
            inodes = [os.fstat(end).st_ino for end in self._ends]
        except BaseException:
            self.close()
            raise
        _, to, back, _ = self._ends
        self.names = PipeNames(os.getpid(), to, inodes[1], back, inodes[2], _system())
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

    def has_tasks(self) -> bool:
        """Whether there is a task that the worker has not read."""
        poll = select.poll()
        poll.register(self._ends[0], select.POLLIN)
        return bool(poll.poll(0))

    def take_back(self) -> list[Assignment]:
        """The tasks that the worker has not read: it will not get them.

        Raises `ValueError` for what is none.
        """
        try:
            return [as_assignment(item) for item in _messages(self._ends[0])]
        except TypeError as error:
            raise ValueError(f"no task: {error}") from error

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
        self._back_inode = os.fstat(back).st_ino

    def fileno(self) -> int:
        """Readable when there is a task."""
        return self._to

    def receive(self) -> Assignment | None:
        """The task that is there; None when it was taken back. Raises `ShortcutClosed`."""
        try:
            data = os.read(self._to, LONGEST_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise ShortcutClosed
        return as_assignment(msgpack.unpackb(data, **_UNPACKING))

    def send(self, done: Completion) -> bool:
        """Hand in the result; false when it is too long. Raises `OSError`."""
        data = _PACKERS.pack(done)
        if len(data) > LONGEST_BYTES:
            return False
        # A handler may have closed what is not its own, and the number may be its own file's now.
        if os.fstat(self._back).st_ino != self._back_inode:
            raise OSError("the pipe for results was closed")
        return os.write(self._back, data) > 0

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
        if names.system != _system():
            raise OSError("the pipes are of another system")
        with contextlib.ExitStack() as undo:
            self._to = _open(names.pid, names.to_descriptor, names.to_inode, os.O_WRONLY)
            undo.callback(os.close, self._to)
            self._back = _open(names.pid, names.back_descriptor, names.back_inode, os.O_RDONLY)
            undo.callback(os.close, self._back)
            listener.listen(self._back, heard)
            undo.pop_all()
        self._listener = listener
        self._lock = threading.Lock()  # `send` is called without the task manager's
        self._is_open = True

    def pack(self, task: Assignment) -> bytes | None:
        """The message for a task; None if it does not go this way."""
        data = _PACKERS.pack(task)
        return data if len(data) <= LONGEST_BYTES else None

    def send(self, data: bytes) -> None:
        """Give the worker a task, as packed. Does not wait, as none other is on the way.

        A worker that is gone is no error here: its supervisor says what has become of the task.
        Nor is a shortcut that was closed since: its task is run again.
        """
        with self._lock, contextlib.suppress(OSError):
            if self._is_open:  # else the descriptor may be another file's by now
                os.write(self._to, data)

    def read(self) -> list[Completion]:
        """The results that are there, without waiting. Raises `ValueError` for what is none."""
        return _results(self._back)

    def close(self) -> None:
        """Let go of the pipes."""
        self._listener.forget(self._back)
        with self._lock:
            self._is_open = False
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
        """Have `heard` called whenever something can be read there. It must not block.

        Raises `OSError`, also when it was stopped.
        """
        with self._lock:
            if self._stopped:
                raise OSError("nobody listens any more")
            epoll = self._epoll or self._begin()
            epoll.register(descriptor, select.EPOLLIN)
            self._heard[descriptor] = heard

    def _begin(self) -> select.epoll:
        epoll = select.epoll()
        try:
            self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC)
        except OSError:
            epoll.close()
            raise
        epoll.register(self._wake_out, select.EPOLLIN)
        self._epoll = epoll
        self._thread = threading.Thread(target=self._run, name="shortcuts", daemon=True)
        self._thread.start()
        return epoll

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
            for descriptor, events in epoll.poll():
                call = heard.get(descriptor)
                if call is not None:
                    call()
                if events & select.EPOLLHUP:
                    self._forget_if_ended(descriptor)

    def _forget_if_ended(self, descriptor: int) -> None:
        """Listen no more where nothing can come: else one would be told of it without end."""
        with self._lock:
            if descriptor not in self._heard or self._epoll is None:
                return
            poll = select.poll()  # it may have been closed, and be another one's now
            poll.register(descriptor, select.POLLIN)
            events = dict(poll.poll(0)).get(descriptor, 0)
            if events & select.POLLHUP and not events & select.POLLIN:
                del self._heard[descriptor]
                self._epoll.unregister(descriptor)


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
    return [as_completion(item) for item in _messages(descriptor)]


def _messages(descriptor: int) -> list[Any]:
    """What is there, without waiting. Raises `ValueError` for what was not written as a whole."""
    try:
        data = os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return []
    if not data:
        return []
    unpacker = msgpack.Unpacker(max_buffer_size=_READ_BYTES, **_UNPACKING)
    unpacker.feed(data)
    messages, end = [], 0
    try:
        for message in unpacker:
            messages.append(message)
            end = unpacker.tell()
    except ValueError as error:
        raise ValueError("what came is no message") from error
    if end != len(data):
        raise ValueError("a message ends in its midst")
    return messages


def as_names(item: Sequence[Any]) -> PipeNames:
    """Rebuild `PipeNames` from the list that came over a wire; `ValueError` if it is none."""
    if len(item) != len(PipeNames._fields) or not all(
        type(number) is int and 0 <= number < 1 << 63 for number in item
    ):
        raise ValueError("the pipes of a shortcut must be given by six integers")
    return PipeNames(*item)

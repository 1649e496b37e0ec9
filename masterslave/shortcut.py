"""The shortcut: two pipes between a task manager and one worker of the same machine.

A task that comes alone goes through two processes on its way to a worker, and its result through
two on the way back, each woken to do little. So a task manager that finds a slave idle gives the
task to one of its workers itself, and has the result from there. The slave's supervisor, which
is not woken for it, is still in charge::

    task manager --task------------------------> worker      (a pipe)
         ^                                         | |
         +---result-- (a pipe, or the board) ------+ +--"begins", "has ended"--> board <- supervisor

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

Of tiny tasks many go at once. Their results are posted on a board of the shortcut's own, which the
task manager reads every few milliseconds, or when the worker says by the pipe that it is time to;
when it lets go, the supervisor is the reader.

Where one of many turns out long, those behind it are taken back: the worker, which may be late
only, is forbidden on the board to begin another task; when it is sure what it had begun, the task
manager sends word that nothing else is to be run, and lifts the ban.

A task manager that has not noticed yet that its slave has taken the shortcut back may read from the
pipe that there is a result, and not find it, as the board is not its own any more. So its
supervisor looks at the board by itself then, as long as the worker is at a task.

So a result has a reader at all times, and a task is never known to nobody: the supervisor keeps
all ends open. A result in the pipe is short enough to be written and read as one (`PIPE_BUF`), and
never more tasks are on their way than the pipe to the worker has room for.

| message                          | pipe                                                        |
|----------------------------------|-------------------------------------------------------------|
| assignment, a list of its fields | to the worker: a task that comes alone                      |
| list of assignments              | to the worker: to be run in order                           |
| ``[None, id, attempt, ...]``     | to the worker: not to be run after all                      |
| ``[False, name...]``             | to the worker: data items that were deleted                 |
| completion, a list of its fields | back: the end of a task that came alone                     |
| ``None``                         | back: there is something on the board                       |

The task manager opens pipes and board through ``/proc``, as it does with lent memory (see
`shared`), and only if they are what the slave has stated over its signed connection, by their inode
numbers, and if the system is the same one: it has a number that is new each time it is booted.

The module is longer than others as the three ends are here together: each mirrors the others.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import mmap
import os
import secrets
import select
import stat
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from masterslave import board
from masterslave.board import LOOKED_AT_S, SENT, Board, BoardDamaged, Poster
from masterslave.listener import Ear, Listener
from masterslave.packing import Packers
from masterslave.records import (
    Assignment,
    Completion,
    as_assignment,
    as_completion,
)

try:
    import fcntl
    import resource
except ImportError:  # not on every system; there are no shortcuts there
    fcntl = resource = None  # type: ignore[assignment]

#: Part of the files that a process may have open beyond which no shortcut is made. Larger: with
#: a hundred workers the program itself may run out of files. Smaller: the last of many have none.
_PART_OF_FILES = 2

_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032  # linux/fcntl.h

#: Room for tasks on their way to a worker. Larger: memory that the system gives to a user's pipes.
#: Smaller: fewer tiny tasks at once.
_WANTED_BYTES = 1 << 19

#: Longest result in a pipe: the system writes and reads it as one.
LONGEST_BYTES = int(getattr(select, "PIPE_BUF", 512))

#: Read at once of results: what a pipe holds by itself. Larger: new memory for each message.
#: Smaller: a result might be read in two parts. Of tasks all that the pipe may hold is read at
#: once, as the supervisor may take out the rest.
_READ_BYTES = 1 << 16

_LOOK = b"\xc0"  # None, in msgpack

_PACKERS = Packers(unicode_errors="surrogatepass")
_UNPACKING: dict[str, Any] = {"strict_map_key": False, "unicode_errors": "surrogatepass"}


class PipeNames(NamedTuple):
    """The parts of a shortcut, as the slave names them to the task manager. Integers only."""

    pid: int  # of the supervisor
    to_descriptor: int  # of the pipe to the worker
    to_inode: int
    back_descriptor: int  # of the one back
    back_inode: int
    board_descriptor: int  # of the board for results
    board_inode: int
    system: int  # which one they are on, see `_system`


class ShortcutClosed(Exception):
    """The other ends are gone."""


def can_have_shortcuts() -> bool:
    """Whether this system has what shortcuts need."""
    return (
        hasattr(os, "pipe2")
        and hasattr(os, "eventfd")
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
        self._lock = threading.Lock()
        self._board: Board | None = None
        try:
            self._ends += os.pipe2(os.O_CLOEXEC)
            self._ends += os.pipe2(os.O_CLOEXEC)
            self._ends.append(board.create())
            for end in self._ends[:3]:  # the worker, too, never waits in `read`
                os.set_blocking(end, False)
            with contextlib.suppress(OSError):  # too much for this user already
                fcntl.fcntl(self._ends[1], _F_SETPIPE_SZ, _WANTED_BYTES)
            _check_number(max(self._ends))
            inodes = [os.fstat(end).st_ino for end in self._ends]
            self._board = Board(self._ends[4], secrets.randbits(62) + 1)
        except BaseException:
            self.close()
            raise
        _, to, back, _, posts = self._ends
        self.names = PipeNames(
            os.getpid(), to, inodes[1], back, inodes[2], posts, inodes[4], _system()
        )
        self._is_lent = False

    @property
    def worker_ends(self) -> tuple[int, int, int]:
        """The descriptors that the worker inherits: for tasks, for what goes back, the board."""
        return self._ends[0], self._ends[3], self._ends[4]

    @property
    def is_lent(self) -> bool:
        """Whether the task manager has the pipes, or is about to; else the results are for us."""
        return self._is_lent

    @is_lent.setter
    def is_lent(self, is_lent: bool) -> None:
        with self._lock:
            self._is_lent = is_lent

    def fileno(self) -> int:
        """Readable when there are results."""
        return self._ends[2]

    def read(self, *, last: bool = False) -> list[Completion]:
        """The results that are there and are not the task manager's, without waiting.

        In any thread. `last`: the worker has ended, and all that is there is for us; the task
        manager gets nothing any more that is on the board. Raises `ValueError` for what is none.
        """
        with self._lock:
            if self._board is None or (self._is_lent and not last):
                return []
            self._board.claim()
            return _results(self._ends[2], self._board)

    def under_way(self) -> tuple[str, int] | None:
        """Id and attempt of the task that came this way and the worker runs now, or None.

        In any thread; also when the worker has died.
        """
        with self._lock:
            try:
                return None if self._board is None else self._board.under_way()
            except BoardDamaged:
                return None  # the messages on it tell of that

    @property
    def turns(self) -> int:
        """A number that grows when a task begins or ends that comes this way.

        Not to be read while another thread may call `close`.
        """
        return 0 if self._board is None else self._board.turns

    def has_tasks(self) -> bool:
        """Whether there is a task that the worker has not read."""
        poll = select.poll()
        poll.register(self._ends[0], select.POLLIN)
        return bool(poll.poll(0))

    def take_back(self) -> tuple[list[Assignment], list[tuple[str, int]]]:
        """The tasks that the worker has not read: it will not get them.

        Also of which others it was to be told that they are not to be run after all. Raises
        `ValueError` for what is no task.
        """
        tasks: list[Assignment] = []
        skipped: list[tuple[str, int]] = []
        with self._lock:
            for message in _messages(self._ends[0], _WANTED_BYTES) if self._ends else ():
                if message[0] is None:
                    skipped += _keys(message)
                    continue
                if message[0] is False:  # of data it is told by its pipe as well
                    continue
                try:
                    tasks += map(as_assignment, _each(message))
                except TypeError as error:
                    raise ValueError(f"no task: {error}") from error
        return tasks, skipped

    def close(self) -> None:
        """Close all ends. Unread results are lost."""
        with self._lock:
            if self._board is not None:
                self._board.close()
                self._board = None
            while self._ends:
                os.close(self._ends.pop())


class WorkerShortcut:
    """The worker's ends."""

    def __init__(self, to: int, back: int, posts: int) -> None:
        """The descriptors are its own from now on."""
        for end in (to, back):
            os.set_inheritable(end, False)
        self._to, self._back = to, back
        self._back_inode = os.fstat(back).st_ino
        self._poster = Poster(posts)
        os.close(posts)
        self._space = memoryview(bytearray(_WANTED_BYTES))
        self._unpacker = msgpack.Unpacker(max_buffer_size=0, **_UNPACKING)
        self.tasks: deque[Assignment] = deque()  # to be run in order
        self._look_at = 0  # length of that at which the task manager may want to send more
        self._alone = False  # whether the last task came alone
        self._holds = self._poster.holds  # as of the last look
        self._seen = -1  # of what was sent, as the board counts it
        self.forgotten: list[str] = []  # names of data items that were deleted, for the caller
        self.has_skipped = False  # whether tasks are not to be run after all, for the caller

    def fileno(self) -> int:
        """Readable when there is a message."""
        return self._to

    def has_news(self) -> bool:
        """Whether anything was sent since it was received; no system call."""
        return self._poster.words[SENT] != self._seen

    def receive(self) -> None:
        """Take in the messages that are there; does not wait. Raises `ShortcutClosed`."""
        self._seen = self._poster.words[SENT]  # what comes later counts once more
        try:
            count = os.readv(self._to, [self._space])
        except BlockingIOError:
            return
        if not count:
            raise ShortcutClosed
        self._unpacker.feed(self._space[:count])
        for message in self._unpacker:
            if message and message[0] is None:
                self.skip(_keys(message))
                continue
            if message and message[0] is False:
                self.forgotten += message[1:]
                continue
            self._alone = not self.tasks and type(message[0]) is str
            self.tasks.extend(map(as_assignment, _each(message)))
            self._look_at = len(self.tasks) // 2

    def skip(self, keys: Iterable[Sequence[Any]]) -> None:
        """These, by id and attempt, are not to be run after all."""
        gone = {(task_id, attempt) for task_id, attempt in keys}
        kept = [task for task in self.tasks if (task.task_id, task.attempt) not in gone]
        self.tasks = deque(kept)
        self.has_skipped = True

    def begin(self) -> Assignment | None:
        """Begin the first task, and have others see that; None: not now, see `may_begin`."""
        if self._holds % 2:
            return None
        task = self.tasks[0]
        if self._poster.begins(task.task_id, task.attempt) == self._holds:
            return self.tasks.popleft()
        self._poster.has_ended()
        return None

    def may_begin(self) -> bool:
        """Whether tasks may be begun that could not be, when what was sent has been received."""
        self._holds = self._poster.holds
        return self._holds % 2 == 0

    def ends(self) -> None:
        """No task that came this way is being run any more, and none comes next."""
        self._poster.has_ended()

    def send(self, done: Completion) -> bool:
        """Hand in the end of the task that was first; false when it is too long, or no room is.

        Raises `OSError`.
        """
        if self._alone:
            data = _PACKERS.pack(done)
            if len(data) <= LONGEST_BYTES:
                self._write(data)
                return True
        frame = done.frame
        if len(frame) > 1 or (frame and len(frame[0]) > board.LONGEST_BYTES):
            return False
        if not self._poster.post([0, *done]):
            return False
        left, duration_s = len(self.tasks), done.duration_s
        if not left or left == self._look_at or board.SHORT_S < duration_s < LOOKED_AT_S / left:
            self._write(_LOOK)
        return True

    def tell(self) -> None:
        """Say that there may be something on the board. Raises `OSError`."""
        self._write(_LOOK)

    def _write(self, data: bytes) -> None:
        # A handler may have closed what is not its own, and the number may be its own file's now.
        if os.fstat(self._back).st_ino != self._back_inode:
            raise OSError("the pipe for results was closed")
        os.write(self._back, data)

    def close(self) -> None:
        """Close both, and let go of the board."""
        os.close(self._to)
        os.close(self._back)
        self._poster.close()


class ManagerShortcut:
    """The task manager's ends. `read` and `close` by one thread at a time."""

    def __init__(
        self,
        names: PipeNames,
        listener: Listener,
        heard: Callable[[], None],
        *,
        keeps: bool = False,
    ) -> None:
        """Open them; `heard` is called when there may be a result, in `listener`'s thread or an
        ear's.

        `keeps`: results stay where the supervisor finds them until `acknowledge` is called.
        Raises `OSError` when they are not there, or others.
        """
        if names.system != _system():
            raise OSError("the pipes are of another system")
        pid = names.pid
        with contextlib.ExitStack() as undo:
            to = _open(pid, names.to_descriptor, names.to_inode, os.O_WRONLY)
            undo.callback(os.close, to)
            back = _open(pid, names.back_descriptor, names.back_inode, os.O_RDONLY)
            undo.callback(os.close, back)
            posts = _open(pid, names.board_descriptor, names.board_inode, os.O_RDWR)
            try:
                self._board = Board(posts, secrets.randbits(62) + 1, acknowledges=keeps)
            finally:
                os.close(posts)
            undo.callback(self._board.close)
            _check_number(back)
            room = fcntl.fcntl(to, _F_GETPIPE_SZ)
            listener.listen(back, heard)
            undo.callback(self.release)
            self._close = undo.pop_all()
        self._board.claim()
        self._listener, self._to, self._back, self._keeps = listener, to, back, keeps
        self._heard = heard
        #: Bytes of messages to the worker that surely fit into the pipe: of one that is half empty
        #: no page is less than half full.
        self.room_bytes = room // 2 - 2 * mmap.PAGESIZE
        self._is_close = False  # whether the board is looked at often

    def pack(self, tasks: Sequence[Assignment]) -> bytes:
        """The message for tasks."""
        alone = len(tasks) == 1 and not self._keeps  # its result comes by the pipe, and is gone
        return _PACKERS.pack(tasks[0] if alone else tasks)

    def pack_skip(self, keys: Sequence[tuple[str, int]]) -> bytes:
        """The message that says not to run these, by id and attempt."""
        return _PACKERS.pack([None, *itertools.chain.from_iterable(keys)])

    def pack_forget(self, names: Sequence[str]) -> bytes:
        """The message that says that these data items were deleted."""
        return _PACKERS.pack([False, *names])

    def send(self, data: bytes) -> None:
        """Send what was packed, of `room_bytes` at most that were not read.

        A worker that is gone is no error here: its supervisor says what has become of its tasks.
        """
        with contextlib.suppress(OSError):
            os.write(self._to, data)
        self._board.has_sent()

    def read(self) -> list[Completion]:
        """The results that are there, without waiting. Raises `ValueError` for what is none."""
        return _results(self._back, self._board)

    def acknowledge(self) -> None:
        """The results that were read are on record; else the supervisor finds them, too."""
        self._board.acknowledge()

    def hold(self) -> bool:
        """Have the worker begin no task; false where that cannot be. See `Board.hold`."""
        return self._board.hold()

    def begun(self) -> tuple[bool, tuple[str, int] | None]:
        """Whether it is sure that it begins none, and the last that it began.

        Raises `ValueError`.
        """
        try:
            task = self._board.last_begun()
        except BoardDamaged as error:
            raise ValueError(str(error)) from error
        return self._board.holds(), task

    def release(self) -> None:
        """The worker may begin tasks again."""
        if self._board.holds():
            self._board.release()

    def look_closely(self, closely: bool) -> None:
        """Have `heard` called every few milliseconds, or only when the worker says something."""
        if closely != self._is_close:
            self._is_close = closely
            self._listener.watch(self._back, closely)

    def ear(self) -> Ear | None:
        """For a thread that waits itself for a result from here; None where that cannot be."""
        try:
            return self._listener.ear(self._back, self._heard)
        except OSError:  # too many open files
            return None

    def close(self) -> None:
        """Let go of all. Nothing else is to be called afterwards."""
        self._listener.forget(self._back)
        self._close.close()


def _check_number(descriptor: int) -> None:
    """Raise `OSError` if there are so many open files that others should have the rest."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and descriptor > limit // _PART_OF_FILES:
        raise OSError(errno.EMFILE, "too many open files for one more shortcut")


def _open(pid: int, descriptor: int, inode: int, flags: int) -> int:
    """Open another process's end of a pipe, or its board, if that is the one. Raises `OSError`."""
    path = f"/proc/{pid:d}/fd/{descriptor:d}"
    is_board = flags == os.O_RDWR
    seen = os.stat(path)  # to open what is something else might do something
    right_kind = stat.S_ISREG(seen.st_mode) if is_board else stat.S_ISFIFO(seen.st_mode)
    if not right_kind or seen.st_ino != inode or seen.st_uid != os.getuid():
        raise OSError(f"{path} is not what was named")
    opened = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    now = os.fstat(opened)
    if (now.st_ino, now.st_dev) != (seen.st_ino, seen.st_dev) or (
        is_board and not board.is_sealed(opened)
    ):
        os.close(opened)
        raise OSError(f"{path} is not what was named")
    return opened


def _each(message: Any) -> Any:
    """The tasks of a message."""
    return [message] if type(message[0]) is str else message


def _keys(message: list[Any]) -> list[tuple[str, int]]:
    """Ids and attempts of the tasks that a message says are not to be run."""
    return list(zip(message[1::2], message[2::2], strict=False))


def _results(descriptor: int, posts: Board) -> list[Completion]:
    ended = [as_completion(item) for item in _messages(descriptor) if item is not None]
    try:
        if posts.has_news():
            ended += [as_completion(post[1:]) for post in posts.take(0)]
    except BoardDamaged as error:
        raise ValueError(str(error)) from error
    return ended


def _messages(descriptor: int, size: int = _READ_BYTES) -> list[Any]:
    """What is there, without waiting. Raises `ValueError` for what was not written as a whole."""
    try:
        data = os.read(descriptor, size)
    except BlockingIOError:
        return []
    if not data or data == _LOOK:
        return []
    with contextlib.suppress(ValueError):  # nearly always one message; an unpacker takes longer
        message = msgpack.unpackb(data, **_UNPACKING)
        if isinstance(message, list) and message:
            return [message]
    unpacker = msgpack.Unpacker(max_buffer_size=size, **_UNPACKING)
    unpacker.feed(data)
    messages, end = [], 0
    try:
        for message in unpacker:
            if message is not None and (not isinstance(message, list) or not message):
                raise ValueError("what came is no message")
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
        raise ValueError("the pipes of a shortcut must be given by eight integers")
    return PipeNames(*item)

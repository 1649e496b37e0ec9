"""The pipe between a slave's supervisor and each of its workers.

One socket pair; messages are msgpack lists whose first item is their kind:

| supervisor -> worker             |                                                       |
|----------------------------------|-------------------------------------------------------|
| `["code", label, record, limit,  | what to load, bytes of memory it may have, whether to |
|   share]`                        | share memory; the first                               |
| `["tasks", [assignment...]]`     | to be run in order                                    |
| `["skip", [task id...]]`         | tasks in line that are not to be run here after all   |
| `["data", name, frame, error]`   | the data item asked for, or why there is none         |
| `["forget", [name...]]`          | data items that were deleted                          |
| `["end"]`                        | leave                                                 |

| worker -> supervisor             |                                                       |
|----------------------------------|-------------------------------------------------------|
| `["ready", tags, period]`        | the code is loaded; the watchdog period it asks for   |
| `["failed", summary, text]`      | the code does not load; the worker leaves             |
| `["done", completion]`           | the end of the first task in line                     |
| `["look"]`                       | there is something on the board, or has ended there   |
| `["skipped"]`                    | a "skip" was read; before, it may be at one of those  |
| `["beside", completion]`         | the end of a task that came by the `shortcut`         |
| `["need", name]`                 | asks for a data item                                  |
| `["leaving"]`                    | `terminationTest` was true: the slave is to end       |

Where there is a `board`, the ends of tiny tasks are posted on it instead, as ``[n, *completion]``,
n being how many messages had been sent by the pipe before. `SupervisorEnd` gives both kinds in the
order in which the worker wrote them.

The supervisor never waits for a worker: its end is non-blocking and keeps what is not sent yet.

A message with large buffers (see `pieces`) is sent as ``[nil, what is left of it, places,
[length...]]`` and is followed by the buffers, one after the other, as they are: sent from where
they are, and received to where they stay. What is in shared memory, or can be put there, is not
sent (see `shared`): its place has ``[n, inode, size, stamp, used, start, length]`` instead of a
length, and the n-th of the descriptors that come with the message is the one to map.

Both ends are here, as each is the other's mirror.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from typing import Any

import msgpack

from masterslave import pieces
from masterslave.board import LONGEST_BYTES, Board, BoardDamaged, Poster
from masterslave.packing import Packers
from masterslave.records import Assignment, Completion, Outcome, Piece
from masterslave.shared import (
    Loan,
    LoanError,
    Name,
    available,
    borrow,
    for_another,
    keeps,
    lend_for_a_message,
    loan_of,
    trim,
)
from masterslave.shortcut import ShortcutClosed, WorkerShortcut

#: Read at once, unless it is the rest of a large buffer.
_CHUNK_BYTES = 1 << 18

#: Segments of shared memory that come with one message; its others are sent. Larger: more than the
#: receiver can have open. The system allows 253.
_MOST_LOANS = 64

# Plain integers: combining the enumeration's members takes longer than receiving.
_PACKERS = Packers(unicode_errors="surrogatepass")

_UNPACKING: dict[str, Any] = {"strict_map_key": False, "unicode_errors": "surrogatepass"}

#: Several messages have come at once: so many times more that is expected. Larger: those that come
#: one by one again are received more slowly. Smaller: busy pipes are looked at twice.
_SEVERAL = 30

_CLOSE_ON_EXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_CONTROL_CUT = int(socket.MSG_CTRUNC)
_NOT_WAITING = int(socket.MSG_DONTWAIT)
_RIGHTS_SPACE = 0
if hasattr(socket, "CMSG_SPACE"):
    _RIGHTS_SPACE = socket.CMSG_SPACE(_MOST_LOANS * array.array("i").itemsize)

#: A worker that has nothing to do for so long gives unused shared memory back. Larger: it is kept
#: from other programs. Smaller: the next results need new memory after each pause.
_IDLE_S = 1.0

#: Between two attempts to send descriptors when too many of the user's are on their way already.
_POLL_S = 0.001

#: Of the end of a task by the shortcut that took longer the supervisor is told as well, as it may
#: have seen that it ran, and have said that there is no room here. Larger than what it waits for
#: before it says so: the slave gets no tasks. Smaller: it is woken for each short one.
_TOLD_S = 0.02

#: What goes back by the shortcut: the worker goes on after it.
_GO_BACK = (Outcome.RESULT.value, Outcome.EXCEPTION.value)

_NO_GAP = memoryview(b"")  # an empty view of a buffer would keep the buffer


class PipeClosed(Exception):
    """The other end is gone."""


def pack(message: list[Any], loans: list[Loan] | None = None, *, lend: bool = False) -> list[Piece]:
    """The bytes of one message, in parts that are to be sent one after the other.

    `loans`: is filled with those of the parts that are lent; None: nothing is. `lend`: put large
    parts into shared memory that are not there yet.
    """
    left, places, parts = pieces.lift(message)
    if parts:
        sizes: list[int | list[int]] = []
        sent: list[Piece] = []
        for part in parts:
            size = None if loans is None else _lent(part, loans, lend)
            if size is None:
                sent.append(part)
            sizes.append(len(part) if size is None else size)
        left, parts = [None, left, places, sizes], sent
    packed = _PACKERS.pack(left)
    return [packed, *parts] if parts else [packed]


def _lent(part: Piece, loans: list[Loan], lend: bool) -> list[int] | None:
    """Where a part is among the loans of its message; None: it is to be sent."""
    found = loan_of(part)
    if found is None and lend and len(loans) < _MOST_LOANS:
        lent = lend_for_a_message(part)
        found = None if lent is None else loan_of(lent)
    if found is None:
        return None
    loan, start = found
    if loan not in loans:
        if len(loans) == _MOST_LOANS:
            return None
        loans.append(loan)
    return [loans.index(loan), *loan.name[1:], start, len(part)]


def _sent_at_once(sock: socket.socket, message: list[Any]) -> _Outgoing | None:
    """Send a message without large parts, as far as that can be done in one go.

    Gives what is left of it; None: nothing. Raises `OSError`.
    """
    packed = _PACKERS.pack(message)
    try:
        sent = sock.send(packed)
    except BlockingIOError:
        sent = 0
    return None if sent == len(packed) else _Outgoing.of(memoryview(packed)[sent:])


class _Outgoing:
    """Parts of messages, of which the first of each takes descriptors along."""

    @classmethod
    def of(cls, part: memoryview) -> _Outgoing:
        """The rest of a message."""
        rest = cls.__new__(cls)
        rest.descriptors, rest.parts = [], deque((part,))
        return rest

    def __init__(self, message: list[Any], share: bool, *, lend: bool = False) -> None:
        self.descriptors: list[int] = []
        loans: list[Loan] | None = [] if share else None
        parts = pack(message, loans, lend=lend)
        try:
            for loan in loans or ():
                self.descriptors.append(for_another(loan))
        except OSError:  # too many files: all is sent
            self.close()
            parts = pack(message)
        self.parts = deque(memoryview(part) for part in parts)

    def send(self, sock: socket.socket) -> None:
        """Send some of it. Raises `OSError`."""
        part = self.parts[0]
        if self.descriptors:
            rights = array.array("i", self.descriptors)
            sent = sock.sendmsg([part], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            self.close()
        else:
            sent = sock.send(part)
        if sent < len(part):
            self.parts[0] = part[sent:]
        else:
            self.parts.popleft()

    def close(self) -> None:
        """Close the descriptors, which are with the receiver or not needed."""
        while self.descriptors:
            os.close(self.descriptors.pop())


class _Reader:
    """Finds the messages in a stream of bytes.

    `space` is where the next bytes of the stream are to be received; `got` takes them from there,
    and the descriptors that came with them from `descriptors`. `keep`: whether what was borrowed
    may have to be handed on.
    """

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self.descriptors: deque[int] = deque()
        self._borrowed: list[memoryview] = []  # of the current message, in order
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._unpacker = msgpack.Unpacker(max_buffer_size=0, **_UNPACKING)
        self._fed = 0  # bytes that the unpacker was given
        self._used = 0  # of these, bytes of what is complete; its `tell` counts half messages, too
        self._several = 0  # so many more times, several messages at once are likely
        self._left: Any = None  # of a message whose large buffers are to come, and their places
        self._lengths: deque[Any] = deque()  # of those that have not begun
        self._buffers: list[Piece] = []
        self._gap = _NO_GAP  # what is missing of the last one

    def space(self) -> memoryview:
        return self._gap if self._gap else self._chunk

    def got(self, count: int) -> list[list[Any]]:
        """The messages that are complete with so many bytes more."""
        messages: list[list[Any]] = []
        if self._gap:
            self._gap = self._gap[count:] or _NO_GAP
        else:
            if self._left is None and self._used == self._fed:
                message = self._only_one(self._chunk[:count])
                if message is not None:
                    return [message]
            self._unpacker.feed(self._chunk[:count])
            self._fed += count
        while self._buffers_are_there():
            if self._left is not None:
                left, places = self._left
                messages.append(pieces.restore(left, places, self._buffers))
                self._left, self._buffers, self._borrowed = None, [], []
            for message in self._unpacker:
                self._used = self._unpacker.tell()
                if message[0] is None:  # its buffers come next
                    _, left, places, lengths = message
                    self._left = left, places
                    self._lengths.extend(lengths)
                    break
                messages.append(message)
            else:
                break
        return messages

    def _only_one(self, data: memoryview) -> list[Any] | None:
        """The message, if that is all that has come, and small.

        The unpacker goes on and on through a buffer that is in no cache, which takes longer.
        """
        if self._several:
            self._several -= 1
            return None
        try:
            message: list[Any] = msgpack.unpackb(data, **_UNPACKING)
        except ValueError:  # more than one, or not all of it
            self._several = _SEVERAL
            return None
        return None if message[0] is None else message

    def _buffers_are_there(self) -> bool:
        """Fill the large buffers of the current message; false when more must come in first."""
        while not self._gap and self._lengths:
            length = self._lengths.popleft()
            if not isinstance(length, int):
                self._buffers.append(self._loan(*length))
                continue
            buffer = bytearray(length)
            have = self._unpacker.read_bytes(len(buffer))
            self._used += len(have)
            buffer[: len(have)] = have
            self._buffers.append(buffer)
            self._gap = memoryview(buffer)[len(have) :] or _NO_GAP
        return not self._gap

    def _loan(self, number: int, *where: int) -> memoryview:
        *fields, start, length = where
        if number == len(self._borrowed):
            if not self.descriptors:
                raise LoanError("a descriptor is missing")
            name = Name(-1, *fields)
            self._borrowed.append(borrow(self.descriptors.popleft(), name, keep=self._keep))
        return self._borrowed[number][start : start + length]

    def close(self) -> None:
        """Close the descriptors of messages that did not come to their end."""
        while self.descriptors:
            os.close(self.descriptors.popleft())


def _receive(sock: socket.socket, reader: _Reader, flags: int = 0) -> int:
    """Receive into the reader; gives how many bytes. Raises `OSError`."""
    if not _CLOSE_ON_EXEC:  # so nothing is lent
        return sock.recv_into(reader.space(), 0, flags)
    count, extra, told, _ = sock.recvmsg_into(
        [reader.space()], _RIGHTS_SPACE, flags | _CLOSE_ON_EXEC
    )
    for _, _, data in extra:  # of one kind only
        reader.descriptors.extend(array.array("i", data))
    if told & _CONTROL_CUT:
        raise LoanError(errno.EMFILE, f"a loan cannot be taken: {os.strerror(errno.EMFILE)}")
    return count


class SupervisorEnd:
    """The non-blocking end, driven by a selector."""

    def __init__(
        self, sock: socket.socket, *, share: bool = True, board: Board | None = None
    ) -> None:
        """`share`: have large buffers go by shared memory where the system has it."""
        self._board = board
        self._heard = 0  # messages that came by the pipe
        sock.setblocking(False)
        self._sock = sock
        self._share = share and available()
        self._reader = _Reader(keep=True)
        self._unsent: deque[_Outgoing] = deque()

    def fileno(self) -> int:
        """For the selector."""
        return self._sock.fileno()

    def send(self, message: list[Any]) -> None:
        """Send now what fits, keep the rest for `flush`. A worker that is gone is no error here."""
        if self._unsent or pieces.has_large(message):
            self._unsent.append(_Outgoing(message, self._share))
            self.flush()
            return
        with contextlib.suppress(OSError):  # its death is noticed by other means
            rest = _sent_at_once(self._sock, message)
            if rest is not None:
                self._unsent.append(rest)

    def flush(self) -> None:
        """Send more of what is kept, without waiting."""
        try:
            while self._unsent:
                self._unsent[0].send(self._sock)
                if not self._unsent[0].parts:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # too many descriptors are on their way
                self._drop_unsent()  # its death is noticed by other means

    def _drop_unsent(self) -> None:
        while self._unsent:
            self._unsent.popleft().close()

    @property
    def wants_to_write(self) -> bool:
        """Whether the selector should tell when there is room again."""
        return bool(self._unsent)

    def receive(self) -> list[list[Any]]:
        """The messages that have come in, without waiting. Raises `PipeClosed` at the end."""
        messages: list[list[Any]] = []
        try:
            count = _receive(self._sock, self._reader)
            if not count:
                raise PipeClosed
            messages = self._reader.got(count)
        except BlockingIOError:
            pass
        except OSError as error:
            raise PipeClosed from error
        return self._merged(messages)

    def has_posts(self) -> bool:
        """Whether something was posted on the board since that was read last."""
        return self._board is not None and self._board.has_news()

    def posts(self) -> list[list[Any]]:
        """As `receive`, without a look at the pipe: what was posted. Raises `PipeClosed`."""
        return self._merged([])

    def _merged(self, messages: list[list[Any]]) -> list[list[Any]]:
        """The messages of the pipe with those of the board, in order.

        What was posted together is one message: ``["posted", [[n, *completion]...]]``.
        """
        if self._board is None:
            return messages
        if self._board.is_empty():  # what was posted before one of these would be
            self._heard += len(messages)
            return [message for message in messages if message[0] != "look"]
        merged: list[list[Any]] = []
        try:
            for message in messages:
                if posts := self._board.take(self._heard):
                    merged.append(["posted", posts])
                self._heard += 1
                if message[0] != "look":
                    merged.append(message)
            if posts := self._board.take(self._heard):
                merged.append(["posted", posts])
        except BoardDamaged as error:
            raise PipeClosed from error
        return merged

    def under_way(self) -> tuple[str, int] | None:
        """Id and attempt of the task by the shortcut that the worker is running now, or None."""
        board = self._board  # another thread may be closing it
        try:
            return None if board is None else board.under_way()
        except BoardDamaged:
            return None  # the messages on it tell of that

    @property
    def turns(self) -> int:
        """A number that grows with each task by the shortcut, as of the last look at them."""
        return 0 if self._board is None else self._board.turns

    def receive_all(self) -> list[list[Any]]:
        """What a worker that has died had still sent."""
        messages: list[list[Any]] = []
        try:
            while count := _receive(self._sock, self._reader):
                messages += self._reader.got(count)
        except OSError:  # nothing more, or reset
            pass
        try:
            return self._merged(messages)
        except PipeClosed:
            return []

    def close(self) -> None:
        """Close it; the worker sees the end."""
        self._drop_unsent()
        if self._board is not None:
            self._board.close()
            self._board = None
        self._reader.close()
        self._sock.close()


class WorkerEnd:
    """The blocking end, used by the worker's main thread."""

    def __init__(
        self,
        sock: socket.socket,
        board: Poster | None = None,
        shortcut: WorkerShortcut | None = None,
    ) -> None:
        """`shortcut`: where tasks come from the task manager itself; needs a `board`."""
        self._shortcut = shortcut if board is not None else None
        self._poll: select.poll | None = None
        if self._shortcut is not None:
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)
            self._poll.register(self._shortcut, select.POLLIN)
        self._sock = sock
        self._board = board
        self._sent = 0  # messages
        self._began = 0.0  # when the last task by the shortcut did
        self.share = False  # whether large buffers go by shared memory
        self._reader = _Reader(keep=False)
        self._messages: deque[list[Any]] = deque()

    def send(self, message: list[Any]) -> None:
        """Send a message; blocks until the supervisor has taken it. Raises `PipeClosed`."""
        self._sent += 1
        try:
            if not pieces.has_large(message):
                outgoing = _sent_at_once(self._sock, message)
                if outgoing is None:
                    return
            else:
                outgoing = _Outgoing(message, self.share, lend=True)
        except OSError as error:
            raise PipeClosed from error
        try:
            while outgoing.parts:
                try:
                    outgoing.send(self._sock)
                except OSError as error:
                    if error.errno != errno.ETOOMANYREFS:
                        raise
                    time.sleep(_POLL_S)
        except OSError as error:
            raise PipeClosed from error
        finally:
            outgoing.close()

    def post(self, done: Completion) -> bool:
        """Post the end of a task on the board; false when it does not go there.

        The supervisor finds it when it next looks, or is told to: ``send(["look"])``.
        """
        if self._board is None or len(done.frame) > 1:
            return False
        if done.frame and (type(done.frame[0]) is not bytes or len(done.frame[0]) > LONGEST_BYTES):
            return False
        return self._board.post([self._sent, *done])

    def receive(self) -> list[Any]:
        """The next message; blocks until there is one.

        Raises `PipeClosed` at the end, `LoanError` when a loan cannot be taken, as for want of
        files that may be open.
        """
        while not self._messages:
            try:
                if keeps() and not self._is_there(_IDLE_S):
                    trim()
                count = _receive(self._sock, self._reader)
                if count:
                    self._messages.extend(self._reader.got(count))
            except LoanError:
                raise  # the supervisor is there, and tells the story of our end
            except OSError as error:
                raise PipeClosed from error
            if not count:
                raise PipeClosed
        return self._messages.popleft()

    def next_task(self) -> Assignment | None:
        """The next task that came by the shortcut and is to be run now; None: there is none."""
        if self._shortcut is None or not self._shortcut.tasks:
            return None
        assert self._board is not None
        task = self._shortcut.tasks.popleft()
        self._board.begins(task.task_id, task.attempt)
        self._began = time.monotonic()
        return task

    def has_task(self) -> bool:
        """Whether there is one."""
        return self._shortcut is not None and bool(self._shortcut.tasks)

    def receive_or_tasks(self) -> list[Any] | None:
        """As `receive`, or None when tasks have come by the shortcut."""
        while self._poll is not None and not self._messages:
            ready = self._poll.poll(1000 * _IDLE_S if keeps() else None)
            if not ready:
                trim()
            elif any(descriptor != self._sock.fileno() for descriptor, _ in ready):
                self._receive_tasks()
                if self.has_task() and not self._messages:
                    return None
            else:
                break
        return self.receive()

    def _receive_tasks(self) -> None:
        assert self._shortcut is not None
        try:
            self._shortcut.receive()
        except ShortcutClosed:
            self._poll = None
        if self._shortcut.forgotten:
            self._messages.append(["forget", self._shortcut.forgotten])
            self._shortcut.forgotten = []

    def hand_in(self, done: Completion) -> None:
        """Send the end of a task that came by the shortcut. Raises `PipeClosed`."""
        assert self._shortcut is not None and self._board is not None
        try:
            is_sent = done.outcome in _GO_BACK and self._shortcut.send(done)
        except OSError as error:  # the supervisor has all ends, too: it has gone, or ours have
            raise PipeClosed from error
        if not is_sent:
            self.send(["beside", done])
        if not self._shortcut.tasks:
            self._board.has_ended()
        if time.monotonic() - self._began > _TOLD_S:
            self.send(["look"])

    def _is_there(self, timeout_s: float) -> bool:
        """Wait for something to be received, for so long at most."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(1000 * timeout_s))

    def receive_available(self) -> list[list[Any]]:
        """The messages that are there already; does not wait. Raises `PipeClosed` at the end.

        Takes in what has come by the shortcut, too.
        """
        if self._poll is not None:
            self._receive_tasks()
        count: int | None = None
        try:
            count = _receive(self._sock, self._reader, _NOT_WAITING)
            self._messages.extend(self._reader.got(count))
        except (BlockingIOError, LoanError) as error:
            if isinstance(error, LoanError):
                raise
        except OSError as error:
            raise PipeClosed from error
        if count == 0:
            raise PipeClosed
        messages = list(self._messages)
        self._messages.clear()
        return messages

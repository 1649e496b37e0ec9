"""The pipe between a slave's supervisor and each of its workers.

One socket pair; messages are msgpack lists whose first item is their kind:

| supervisor -> worker             |                                                       |
|----------------------------------|-------------------------------------------------------|
| `["code", label, record, limit,  | what to load, bytes of memory it may have, whether to |
|   share]`                        | share memory; the first                               |
| `["tasks", [assignment...]]`     | to be run in order                                    |
| `["skip", [task id...]]`         | tasks in line that are not to be run here after all   |
| `["skip_beside", [[id, attempt]  | the same of tasks that came by the `shortcut`         |
|   ...]]`                         |                                                       |
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
| `["need_anew", name]`            | the same, of one that was deleted, as the `shortcut`  |
|                                  | tells; the supervisor may not know that yet           |
| `["leaving"]`                    | `terminationTest` was true: the slave is to end       |

Where there is a `board`, the ends of tiny tasks are posted on it instead, as ``[n, *completion]``,
n being how many messages had been sent by the pipe before. `SupervisorEnd` gives both kinds in the
order in which the worker wrote them.

The supervisor never waits for a worker: its end is non-blocking and keeps what is not sent yet.

How a message travels: see `stream`.

Both ends are here, as each is the other's mirror.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from masterslave import pieces
from masterslave.board import LONGEST_BYTES, SENT, Board, BoardDamaged, Poster
from masterslave.records import Assignment, Completion, Outcome
from masterslave.shared import LoanError, available, keeps, trim
from masterslave.shortcut import ShortcutClosed, WorkerShortcut
from masterslave.stream import Outgoing, Reader, receive, sent_at_once

_NOT_WAITING = int(socket.MSG_DONTWAIT)

#: A worker that has nothing to do for so long gives unused shared memory back. Larger: it is kept
#: from other programs. Smaller: the next results need new memory after each pause.
_IDLE_S = 1.0

#: Between two attempts to send descriptors when too many of the user's are on their way already.
_POLL_S = 0.001

#: Between two looks whether tasks may be begun, when that is forbidden for the moment. Larger: a
#: worker waits. Smaller: it uses up its processor.
_HELD_S = 0.001

#: After so long it is sure what a worker has begun that was forbidden to begin more; see `board`.
#: Larger: what is to be taken back is held back longer. Smaller: the processor may not have written
#: it to memory.
_SURE_S = 0.0005

#: Of the end of a task by the shortcut that took longer the supervisor is told as well, as it may
#: have seen that it ran, and have said that there is no room here. Larger than what it waits for
#: before it says so: the slave gets no tasks. Smaller: it is woken for each short one.
_TOLD_S = 0.02

#: What goes back by the shortcut: the worker goes on after it.
_GO_BACK = (Outcome.RESULT.value, Outcome.EXCEPTION.value)


class PipeClosed(Exception):
    """The other end is gone."""


class SupervisorEnd:
    """The non-blocking end, driven by a selector."""

    def __init__(
        self, sock: socket.socket, *, share: bool = True, board: Board | None = None
    ) -> None:
        """`share`: have large buffers go by shared memory where the system has it."""
        self._board = board
        self._held_at: float | None = None  # when the worker was forbidden to begin tasks, if it is
        self._is_unsure = False  # what it has begun, as was asked for
        self._heard = 0  # messages that came by the pipe
        sock.setblocking(False)
        self._sock = sock
        self._share = share and available()
        self._reader = Reader(keep=True)
        self._unsent: deque[Outgoing] = deque()

    def fileno(self) -> int:
        """For the selector."""
        return self._sock.fileno()

    def send(self, message: list[Any]) -> None:
        """Send now what fits, keep the rest for `flush`. A worker that is gone is no error here."""
        if self._unsent or pieces.has_large(message):
            self._unsent.append(Outgoing(message, self._share))
            self.flush()
            return
        with contextlib.suppress(OSError):  # its death is noticed by other means
            rest = sent_at_once(self._sock, message)
            if rest is not None:
                self._unsent.append(rest)
        if self._board is not None:
            self._board.has_sent()

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
        if self._board is not None:
            self._board.has_sent()

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
            count = receive(self._sock, self._reader)
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
        try:
            posts = self._board.take(self._heard) if self._board is not None else []
        except BoardDamaged as error:
            raise PipeClosed from error
        return [["posted", posts]] if posts else []

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

    def begun(self, now: float) -> int | None:
        """How many tasks of those sent by this pipe the worker has begun.

        It begins no more until `go_on` is called afterwards. None: that is not sure yet, and to be
        asked again; it goes on if it is not. 0 where there is no board to see it.
        """
        if self._board is None:
            return 0
        if self._held_at is None:
            self._board.hold()
            self._held_at = now
        self._is_unsure = now - self._held_at <= _SURE_S
        return None if self._is_unsure else self._board.begun()

    def go_on(self) -> None:
        """The worker may begin tasks again, unless it is not sure yet which it has begun.

        Nor before all is sent: it would not know yet what it is to skip.
        """
        if self._held_at is None or self._unsent:
            return
        if not self._is_unsure and self._board is not None:
            self._board.release()
            self._held_at = None
        self._is_unsure = False

    def receive_all(self) -> list[list[Any]]:
        """What a worker that has died had still sent."""
        messages: list[list[Any]] = []
        try:
            while count := receive(self._sock, self._reader):
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
        self._sock, self._descriptor = sock, sock.fileno()
        self._board = board
        self._holds = 0 if board is None else board.holds  # as of the last look
        self._seen = -1  # of what was sent, as the board counts it; -1: there may be more
        self._sent = 0  # messages
        self._begun = 0  # tasks that came by the pipe
        self._began = 0.0  # when the last task by the shortcut did
        self._runs_beside = False  # whether it is being run
        self.share = False  # whether large buffers go by shared memory
        self._reader = Reader(keep=False)
        self._messages: deque[list[Any]] = deque()

    def send(self, message: list[Any]) -> None:
        """Send a message; blocks until the supervisor has taken it. Raises `PipeClosed`."""
        self._sent += 1
        try:
            if not pieces.has_large(message):
                outgoing = sent_at_once(self._sock, message)
                if outgoing is None:
                    return
            else:
                outgoing = Outgoing(message, self.share, lend=True)
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
                sent = self._board.words[SENT] if self._board is not None else -1
                count = receive(self._sock, self._reader)
                self._seen = sent if self._reader.has_all else -1
                if count:
                    self._messages.extend(self._reader.got(count))
            except LoanError:
                raise  # the supervisor is there, and tells the story of our end
            except OSError as error:
                raise PipeClosed from error
            if not count:
                raise PipeClosed
        return self._messages.popleft()

    def begin(self) -> bool:
        """Begin a task that came by this pipe; false: not before `receive_held`."""
        if self._board is None:
            return True
        if self._holds % 2 == 0:
            if self._board.begins_number(self._begun + 1) == self._holds:
                self._begun += 1
                return True
            self._board.begins_number(self._begun)
        return False

    def receive_held(self) -> list[list[Any]]:
        """As `receive_available`, when no task could be begun; waits a little if that is so still.

        The supervisor takes some back in the meantime.
        """
        assert self._board is not None
        self._holds = self._board.holds
        if self._holds % 2:
            self._is_there(_HELD_S)
        return self.receive_available()

    def next_task(self) -> Assignment | None:
        """The next task that came by the shortcut and is to be run now; None: not now."""
        shortcut = self._shortcut
        while shortcut is not None and shortcut.tasks:
            task = shortcut.begin()
            if task is not None:
                self._began, self._runs_beside = time.monotonic(), True
                return task
            if not shortcut.may_begin():  # the task manager takes some back just now
                return None
            self._receive_tasks()
        return None

    def has_task(self) -> bool:
        """Whether there is one."""
        return self._shortcut is not None and bool(self._shortcut.tasks)

    def receive_or_tasks(self) -> list[Any] | None:
        """As `receive`, or None when tasks have come by the shortcut."""
        while self._poll is not None and not self._messages:
            is_held_back = self.has_task()
            wait_s = _HELD_S if is_held_back else _IDLE_S if keeps() else None
            ready = self._poll.poll(None if wait_s is None else 1000 * wait_s)
            if not ready:
                if is_held_back:
                    return None
                trim()
            elif any(descriptor != self._descriptor for descriptor, _ in ready):
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
        self._say_what_was_held_back()
        if self._shortcut.forgotten:
            self._messages.append(["forget_beside", self._shortcut.forgotten])
            self._shortcut.forgotten = []

    def skip(self, keys: Iterable[Sequence[Any]]) -> None:
        """Tasks that came by the shortcut, by id and attempt, are not to be run after all."""
        if self._shortcut is not None:
            self._shortcut.skip(keys)
            self._say_what_was_held_back()

    def _say_what_was_held_back(self) -> None:
        """The last results were not told of if tasks were to come that were taken back now."""
        assert self._shortcut is not None
        has_skipped, self._shortcut.has_skipped = self._shortcut.has_skipped, False
        if not has_skipped or self._shortcut.tasks or self._runs_beside:
            return
        self._shortcut.ends()
        try:
            self._shortcut.tell()
        except OSError as error:
            raise PipeClosed from error

    def hand_in(self, done: Completion) -> None:
        """Send the end of a task that came by the shortcut. Raises `PipeClosed`."""
        assert self._shortcut is not None
        self._runs_beside = False
        try:
            is_sent = done.outcome in _GO_BACK and self._shortcut.send(done)
        except OSError as error:  # the supervisor has all ends, too: it has gone, or ours have
            raise PipeClosed from error
        if not is_sent:
            self.send(["beside", done])
        if not self._shortcut.tasks:
            self._shortcut.ends()
        if time.monotonic() - self._began > _TOLD_S:
            self.send(["look"])

    def _is_there(self, timeout_s: float) -> bool:
        """Wait for something to be received, for so long at most."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(1000 * timeout_s))

    def receive_news(self) -> list[list[Any]]:
        """As `receive_available`, without a system call where the boards say that nothing came."""
        if self._board is None:
            return self.receive_available()
        if self._shortcut is not None and self._shortcut.has_news():
            self._receive_tasks()
        if self._board.words[SENT] != self._seen:
            self._receive_now()
        return self._take_messages() if self._messages else []

    def receive_available(self) -> list[list[Any]]:
        """The messages that are there already; does not wait. Raises `PipeClosed` at the end.

        Takes in what has come by the shortcut, too.
        """
        if self._poll is not None:
            self._receive_tasks()
        self._receive_now()
        return self._take_messages()

    def _receive_now(self) -> None:
        """Take in what has come by the pipe. Raises `PipeClosed` at the end."""
        count: int | None = None
        sent = self._board.words[SENT] if self._board is not None else -1
        try:
            count = receive(self._sock, self._reader, _NOT_WAITING)
            self._seen = sent if self._reader.has_all else -1
            self._messages.extend(self._reader.got(count))
        except (BlockingIOError, LoanError) as error:
            if isinstance(error, LoanError):
                raise
            self._seen = sent
        except OSError as error:
            raise PipeClosed from error
        if count == 0:
            raise PipeClosed

    def _take_messages(self) -> list[list[Any]]:
        messages = list(self._messages)
        self._messages.clear()
        return messages

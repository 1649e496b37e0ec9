"""A worker's board: short messages to its supervisor in memory that both have mapped.

Of tiny tasks a worker ends thousands in the time that a few messages by the pipe take, so it posts
their results here, without a system call, and the supervisor reads them many at once. It is a ring
of bytes in anonymous memory (memfd) that is given to the worker at its birth; nothing of it has a
name in a file system.

| bytes | what                                                                                   |
|-------|----------------------------------------------------------------------------------------|
| 0-7   | how many bytes were ever posted; only the worker writes it, after the message itself   |
| 8-15  | how many of them were taken; only the supervisor writes it                             |
| 16-23 | beginnings and ends of tasks that came by the `shortcut`; odd: one is being run        |
| 24-31 | who reads it, where that changes: results that come by a `shortcut` are on a board, too |
| 32-39 | beginnings and ends of times in which the reader forbids to begin a task; odd: it does  |
| 40-47 | how many tasks were begun that came by the worker's pipe                               |
| 48-55 | grows when something was sent to the worker by the pipe that the board belongs to      |
| 64-   | the task that is being run: msgpack of its id and attempt                              |
| 512-  | messages, msgpack, one after the other; at the end they go on at the beginning         |

So a worker that dies at whatever point leaves whole messages only. Other messages go by the pipe
at the same time: each one here begins with how many had been sent there before it (`pipe` merges
them). Both counts are written in one piece, and become visible in order, on x86 only; elsewhere
there is no board, and all goes by the pipe.

The reader can see what the worker has begun, and keep that so: it forbids to begin more, and looks
a moment later. A worker first says what it begins and then looks whether it may, so either it has
seen that it may not, or what it began can be seen as soon as the processor has written it to
memory, which takes less than a microsecond.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import platform
from collections import deque
from typing import Any

import msgpack

#: Bytes of messages that fit on a board. Larger: memory. Smaller: results of tiny tasks go by the
#: pipe after all while the supervisor is held up.
BOARD_BYTES = 1 << 18

#: Longest message on a board. Larger: copied twice where the pipe does it once.
LONGEST_BYTES = 1 << 13

#: A supervisor looks this often at the boards of workers that have more than one task. Larger: a
#: result waits there while the next task runs. Smaller: the supervisor wakes up in vain.
LOOKED_AT_S = 0.005

#: Of tasks longer than this the reader is told when the last ones of a line are under way; of
#: shorter ones when half of the line has been run. Larger: a worker waits after tasks of a
#: millisecond. Smaller: a system call for each tiny task.
SHORT_S = 0.0005

_WORDS_BYTES, _HEADER_BYTES = 64, 512
#: Places in the header, in words of 8 bytes.
_POSTED, _TAKEN, _TURNS, _READER, _HOLDS, _BEGUN, SENT = range(7)

#: Longest id of a task whose beginning stands on a board, in characters (of up to 4 bytes).
#: Larger: more memory for each worker. Smaller: tasks of long tags do not take the shortcut.
LONGEST_ID = 100


class BoardDamaged(Exception):
    """What stands on a board is not what a worker posts: it has written where it must not."""


def can_have_boards() -> bool:
    """Whether this system has what boards need."""
    return hasattr(os, "memfd_create") and platform.machine() in ("x86_64", "AMD64", "i686")


def create() -> int:
    """Memory for a board; gives its descriptor, for the supervisor and the worker to map."""
    descriptor = os.memfd_create("board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, _HEADER_BYTES + BOARD_BYTES)
        if hasattr(fcntl, "F_ADD_SEALS"):  # who shrinks it would have the other one killed
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_sealed(descriptor: int) -> bool:
    """Whether a board of somebody else's is one that nobody can shrink, and of the right size."""
    needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return False
    size = os.fstat(descriptor).st_size
    return seals & needed == needed and size == _HEADER_BYTES + BOARD_BYTES


class _Mapping:
    """`words`: the header's; a worker that looks at one for each task has no time for a call."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, _HEADER_BYTES + BOARD_BYTES)
        whole = memoryview(self._map)
        self.words = whole[:_WORDS_BYTES].cast("Q")
        self._task = whole[_WORDS_BYTES:_HEADER_BYTES]
        self._ring = whole[_HEADER_BYTES:]

    def close(self) -> None:
        """Let go of the memory."""
        self.words.release()
        self._task.release()
        self._ring.release()
        with contextlib.suppress(BufferError):  # a view is still being let go of
            self._map.close()


class Poster(_Mapping):
    """The worker's side."""

    def __init__(self, descriptor: int) -> None:
        """Map it; the descriptor stays the caller's."""
        super().__init__(descriptor)
        self._posted = 0
        self._limit = BOARD_BYTES  # up to where there is room, as far as is known
        self._pack = msgpack.Packer(unicode_errors="surrogatepass", autoreset=True).pack

    def post(self, message: list[Any]) -> bool:
        """Post a message; false when it is too long, or there is no room at present."""
        data = self._pack(message)
        size = len(data)
        end = self._posted + size
        if end > self._limit:
            self._limit = self.words[_TAKEN] + BOARD_BYTES
        if size > LONGEST_BYTES or end > self._limit:
            return False
        start = self._posted % BOARD_BYTES
        if start + size <= BOARD_BYTES:
            self._ring[start : start + size] = data
        else:
            part = BOARD_BYTES - start
            self._ring[start:] = data[:part]
            self._ring[: size - part] = data[part:]
        self.words[_POSTED] = self._posted = end
        return True

    def begins(self, task_id: str, attempt: int) -> int:
        """The worker begins a task that came by the shortcut, with an id of `LONGEST_ID` at most.

        Others see it when they next look, also after the worker's death. Gives `holds`: where that
        has changed, the task is not to be begun yet; see `Board.hold`.
        """
        data = self._pack([task_id, attempt])
        turns = self.words[_TURNS]
        if turns % 2:  # of the one before
            self.words[_TURNS] = turns = turns + 1
        self._task[: len(data)] = data
        self.words[_TURNS] = turns + 1
        return self.words[_HOLDS]

    def begins_number(self, number: int) -> int:
        """As `begins`, of a task that came by the pipe: so many it has begun then."""
        self.words[_BEGUN] = number
        return self.words[_HOLDS]

    @property
    def holds(self) -> int:
        """A number that grows with each `hold` and `release`; odd: no task is to be begun now."""
        return self.words[_HOLDS]

    def has_ended(self) -> None:
        """That task is over, its result is on its way, and none comes next."""
        self.words[_TURNS] = (self.words[_TURNS] | 1) + 1


class Board(_Mapping):
    """The reader's side."""

    def __init__(self, descriptor: int, reader: int = 0, *, acknowledges: bool = False) -> None:
        """Map it; the descriptor stays the caller's. `reader`: a number of its own, see `claim`.

        `acknowledges`: what was taken stays there until `acknowledge` is called.
        """
        super().__init__(descriptor)
        self._reader = reader
        self._acknowledges = acknowledges
        self._taken = 0
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=0, strict_map_key=False, unicode_errors="surrogatepass"
        )
        self._read: deque[list[Any]] = deque()  # not given yet
        #: Beginnings and ends by the shortcut when last looked at, and what began last.
        self._seen: tuple[int, tuple[str, int] | None] = 0, None

    def under_way(self) -> tuple[str, int] | None:
        """Id and attempt of the task that came by the shortcut and is being run, or None.

        Raises `BoardDamaged`. May be called by several threads.
        """
        turns, task = self._look_at_turns()
        return task if turns % 2 else None

    def last_begun(self) -> tuple[str, int] | None:
        """As `under_way`, also if the task has ended since; None: there was none yet."""
        return self._look_at_turns()[1]

    def begun(self) -> int:
        """How many tasks were begun that came by the pipe."""
        return self.words[_BEGUN]

    def _look_at_turns(self) -> tuple[int, tuple[str, int] | None]:
        while (turns := self.words[_TURNS]) != self._seen[0]:
            text = bytes(self._task)
            if turns == self.words[_TURNS]:  # else the worker may have been writing it
                self._seen = turns, self._read_task(text)
        return self._seen

    @property
    def turns(self) -> int:
        """A number that grows with each beginning and end by the shortcut."""
        return self.words[_TURNS]

    def _read_task(self, text: bytes) -> tuple[str, int]:
        unpacker = msgpack.Unpacker(max_buffer_size=0, unicode_errors="surrogatepass")
        unpacker.feed(text)
        try:
            task_id, attempt = unpacker.unpack()
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise BoardDamaged(f"a task on a board is none: {error}") from error
        if not isinstance(task_id, str) or type(attempt) is not int:
            raise BoardDamaged("a task on a board is none")
        return task_id, attempt

    def claim(self) -> None:
        """From now on, this is who reads it. What another one takes at this moment comes twice."""
        if self.words[_READER] != self._reader:
            self.words[_READER] = self._reader
            self._taken = self.words[_TAKEN]
            self.release()  # who forbade it may be gone

    def hold(self) -> bool:
        """Forbid the worker to begin a task; false if somebody else reads this board.

        What it has begun, `last_begun` tells, when a moment has passed.
        """
        if self.words[_READER] != self._reader:
            return False
        self.words[_HOLDS] |= 1
        return True

    def holds(self) -> bool:
        """Whether it is forbidden, and nobody else has come to read this board since."""
        return bool(self.words[_HOLDS] % 2) and self.words[_READER] == self._reader

    def release(self) -> None:
        """The worker may begin tasks again; first it receives what was sent."""
        if (holds := self.words[_HOLDS]) % 2:
            self.words[_HOLDS] = holds + 1

    def has_sent(self) -> None:
        """Something is there for the worker, in the pipe that this board belongs to.

        So it sees that there is without a system call. To be called after it was sent. Of two who
        do so at the same moment one may not be seen, until the worker looks into the pipe.
        """
        self.words[SENT] += 1

    def has_news(self) -> bool:
        """Whether anything was posted since it was read."""
        return bool(self.words[_POSTED] != self._taken)

    def acknowledge(self) -> None:
        """What was taken is safe: nobody else need read it, and there is room for more."""
        if self.words[_READER] == self._reader:
            self.words[_TAKEN] = self._taken

    def is_empty(self) -> bool:
        """Whether `take` has nothing to give, whatever was sent."""
        return not self._read and not self.has_news()

    def take(self, sent: int) -> list[list[Any]]:
        """The messages posted before more than `sent` others went by the pipe, in order.

        Raises `BoardDamaged`.
        """
        self._look()
        messages = []
        while self._read and self._read[0][0] <= sent:
            messages.append(self._read.popleft())
        return messages

    def _look(self) -> None:
        if self.words[_READER] != self._reader:
            return
        posted = self.words[_POSTED]
        size = posted - self._taken
        if not size:
            return
        if not 0 < size <= BOARD_BYTES:
            raise BoardDamaged(f"{size} bytes are on a board of {BOARD_BYTES}")
        start, end = self._taken % BOARD_BYTES, self._taken % BOARD_BYTES + size
        data = bytes(self._ring[start:end])
        if end > BOARD_BYTES:
            data += bytes(self._ring[: end - BOARD_BYTES])
        if self.words[_READER] != self._reader:
            return  # it may have been taken, and overwritten, meanwhile
        self._taken = posted
        if not self._acknowledges:
            self.acknowledge()
        self._unpacker.feed(data)
        try:
            for message in self._unpacker:
                if not isinstance(message, list) or not message or type(message[0]) is not int:
                    raise BoardDamaged("a message on a board is none")
                self._read.append(message)
        except (ValueError, msgpack.UnpackException) as error:
            raise BoardDamaged(f"a message on a board is none: {error}") from error

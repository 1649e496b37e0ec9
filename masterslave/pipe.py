"""The pipe between a slave's supervisor and each of its workers.

One socket pair; messages are msgpack lists whose first item is their kind:

| supervisor -> worker             |                                                       |
|----------------------------------|-------------------------------------------------------|
| `["code", label, record, limit]` | what to load, bytes of memory it may have; the first  |
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
| `["skipped"]`                    | a "skip" was read; before, it may be at one of those  |
| `["need", name]`                 | asks for a data item                                  |
| `["leaving"]`                    | `terminationTest` was true: the slave is to end       |

The supervisor never waits for a worker: its end is non-blocking and keeps what is not sent yet.

A message with large buffers (see `pieces`) is sent as ``[nil, what is left of it, places,
[length...]]`` and is followed by the buffers, one after the other, as they are: sent from where
they are, and received to where they stay.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

import msgpack

from masterslave import pieces
from masterslave.records import Piece

#: Read at once, unless it is the rest of a large buffer.
_CHUNK_BYTES = 1 << 18

_NO_GAP = memoryview(b"")  # an empty view of a buffer would keep the buffer


class PipeClosed(Exception):
    """The other end is gone."""


def pack(message: list[Any]) -> list[Piece]:
    """The bytes of one message, in parts that are to be sent one after the other."""
    left, places, parts = pieces.lift(message)
    if parts:
        left = [None, left, places, list(map(len, parts))]
    packed: bytes = msgpack.packb(left, unicode_errors="surrogatepass")
    return [packed, *parts] if parts else [packed]


class _Reader:
    """Finds the messages in a stream of bytes.

    `space` is where the next bytes of the stream are to be received; `got` takes them from there.
    """

    def __init__(self) -> None:
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=0, strict_map_key=False, unicode_errors="surrogatepass"
        )
        self._left: Any = None  # of a message whose large buffers are to come, and their places
        self._lengths: deque[int] = deque()  # of those that have not begun
        self._buffers: list[Piece] = []
        self._gap = _NO_GAP  # what is missing of the last one

    def space(self) -> memoryview:
        return self._gap if self._gap else self._chunk

    def got(self, count: int) -> list[list[Any]]:
        """The messages that are complete with so many bytes more."""
        if self._gap:
            self._gap = self._gap[count:] or _NO_GAP
        else:
            self._unpacker.feed(self._chunk[:count])
        messages: list[list[Any]] = []
        while self._buffers_are_there():
            if self._left is not None:
                left, places = self._left
                messages.append(pieces.restore(left, places, self._buffers))
                self._left, self._buffers = None, []
            for message in self._unpacker:
                if message[0] is None:  # its buffers come next
                    _, left, places, lengths = message
                    self._left = left, places
                    self._lengths.extend(lengths)
                    break
                messages.append(message)
            else:
                break
        return messages

    def _buffers_are_there(self) -> bool:
        """Fill the large buffers of the current message; false when more must come in first."""
        while not self._gap and self._lengths:
            buffer = bytearray(self._lengths.popleft())
            have = self._unpacker.read_bytes(len(buffer))
            buffer[: len(have)] = have
            self._buffers.append(buffer)
            self._gap = memoryview(buffer)[len(have) :] or _NO_GAP
        return not self._gap


class SupervisorEnd:
    """The non-blocking end, driven by a selector."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = _Reader()
        self._unsent: deque[memoryview] = deque()

    def fileno(self) -> int:
        """For the selector."""
        return self._sock.fileno()

    def send(self, message: list[Any]) -> None:
        """Send now what fits, keep the rest for `flush`. A worker that is gone is no error here."""
        self._unsent.extend(map(memoryview, pack(message)))
        self.flush()

    def flush(self) -> None:
        """Send more of what is kept, without waiting."""
        try:
            while self._unsent:
                sent = self._sock.send(self._unsent[0])
                if sent < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # its death is noticed by other means

    @property
    def wants_to_write(self) -> bool:
        """Whether the selector should tell when there is room again."""
        return bool(self._unsent)

    def receive(self) -> list[list[Any]]:
        """The messages that have come in, without waiting. Raises `PipeClosed` at the end."""
        try:
            count = self._sock.recv_into(self._reader.space())
        except BlockingIOError:
            return []
        except OSError as error:
            raise PipeClosed from error
        if not count:
            raise PipeClosed
        return self._reader.got(count)

    def receive_all(self) -> list[list[Any]]:
        """What a worker that has died had still sent."""
        messages: list[list[Any]] = []
        try:
            while count := self._sock.recv_into(self._reader.space()):
                messages += self._reader.got(count)
        except OSError:  # nothing more, or reset
            pass
        return messages

    def close(self) -> None:
        """Close it; the worker sees the end."""
        self._sock.close()


class WorkerEnd:
    """The blocking end, used by the worker's main thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = _Reader()
        self._messages: deque[list[Any]] = deque()

    def send(self, message: list[Any]) -> None:
        """Send a message; blocks until the supervisor has taken it. Raises `PipeClosed`."""
        try:
            for part in pack(message):
                self._sock.sendall(part)
        except OSError as error:
            raise PipeClosed from error

    def receive(self) -> list[Any]:
        """The next message; blocks until there is one. Raises `PipeClosed` at the end."""
        while not self._messages:
            try:
                count = self._sock.recv_into(self._reader.space())
            except OSError as error:
                raise PipeClosed from error
            if not count:
                raise PipeClosed
            self._messages.extend(self._reader.got(count))
        return self._messages.popleft()

    def receive_available(self) -> list[list[Any]]:
        """The messages that are there already; does not wait. Raises `PipeClosed` at the end."""
        try:
            count = self._sock.recv_into(self._reader.space(), 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            count = None
        except OSError as error:
            raise PipeClosed from error
        if count is not None:
            if not count:
                raise PipeClosed
            self._messages.extend(self._reader.got(count))
        messages = list(self._messages)
        self._messages.clear()
        return messages

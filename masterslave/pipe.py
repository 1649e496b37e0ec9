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

On the wire a message is, with numbers big-endian:

| bytes | what                                                                            |
|-------|---------------------------------------------------------------------------------|
| 8     | length of the msgpack part                                                      |
| 4     | m, the number of large buffers (see `pieces`)                                   |
| 8 m   | their lengths                                                                   |
| ...   | msgpack part: the message, or if m > 0: [what is left of the message, places]   |
| ...   | the large buffers, one after the other                                          |

Large buffers are sent from where they are and received to where they stay.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgpack

from masterslave import pieces
from masterslave.records import Piece

#: Read at once, unless it is the rest of a large buffer.
_CHUNK_BYTES = 1 << 18

_HEADER = struct.Struct("!QI")
_NO_GAP = memoryview(b"")  # an empty view of a buffer would keep the buffer


class PipeClosed(Exception):
    """The other end is gone."""


def pack(message: list[Any]) -> list[Piece]:
    """The bytes of one message, in parts that are to be sent one after the other."""
    lifted, places, parts = pieces.lift(message)
    body = msgpack.packb([lifted, places] if parts else message, unicode_errors="surrogatepass")
    lengths = struct.pack(f"!{len(parts)}Q", *map(len, parts))
    return [_HEADER.pack(len(body), len(parts)) + lengths + body, *parts]


def _unpack(body: memoryview) -> Any:
    return msgpack.unpackb(body, strict_map_key=False, unicode_errors="surrogatepass")


class _Reader:
    """Finds the messages in a stream of bytes.

    `space` is where the next bytes of the stream are to be received; `got` takes them from there.
    """

    def __init__(self) -> None:
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._bytes = bytearray()  # not understood yet
        self._lifted: Any = None  # a message that waits for its large buffers
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
            self._bytes += self._chunk[:count]
        return list(self._messages())

    def _messages(self) -> Iterator[list[Any]]:
        while self._gather_buffers():
            if self._lifted is not None:
                lifted, places = self._lifted
                buffers, self._buffers, self._lifted = self._buffers, [], None
                yield pieces.restore(lifted, places, buffers)
            have = len(self._bytes)
            if have < _HEADER.size:
                return
            length, count = _HEADER.unpack_from(self._bytes)
            start = _HEADER.size + 8 * count
            if have < start + length:
                return
            if count:
                self._lengths.extend(struct.unpack_from(f"!{count}Q", self._bytes, _HEADER.size))
            with memoryview(self._bytes) as view, view[start : start + length] as body:
                message = _unpack(body)
            del self._bytes[: start + length]
            if count:
                self._lifted = message
            else:
                yield message

    def _gather_buffers(self) -> bool:
        """Fill the large buffers of the current message; false when more must come in first."""
        while not self._gap and self._lengths:
            buffer = bytearray(self._lengths.popleft())
            have = self._bytes[: len(buffer)]
            buffer[: len(have)] = have
            del self._bytes[: len(have)]
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

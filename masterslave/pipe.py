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
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

import msgpack

_CHUNK_BYTES = 1 << 18


class PipeClosed(Exception):
    """The other end is gone."""


def pack(message: list[Any]) -> bytes:
    """The bytes of one message."""
    packed: bytes = msgpack.packb(message, unicode_errors="surrogatepass")
    return packed


class _Reader:
    """Finds the messages in a stream of bytes."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=0, strict_map_key=False, unicode_errors="surrogatepass"
        )

    def feed(self, data: bytes) -> list[list[Any]]:
        self._unpacker.feed(data)
        return list(self._unpacker)


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
        self._unsent.append(memoryview(pack(message)))
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
            data = self._sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise PipeClosed from error
        if not data:
            raise PipeClosed
        return self._reader.feed(data)

    def receive_all(self) -> list[list[Any]]:
        """What a worker that has died had still sent."""
        messages: list[list[Any]] = []
        try:
            while True:
                data = self._sock.recv(_CHUNK_BYTES)
                if not data:
                    break
                messages += self._reader.feed(data)
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
            self._sock.sendall(pack(message))
        except OSError as error:
            raise PipeClosed from error

    def receive(self) -> list[Any]:
        """The next message; blocks until there is one. Raises `PipeClosed` at the end."""
        while not self._messages:
            try:
                data = self._sock.recv(_CHUNK_BYTES)
            except OSError as error:
                raise PipeClosed from error
            if not data:
                raise PipeClosed
            self._messages.extend(self._reader.feed(data))
        return self._messages.popleft()

    def receive_available(self) -> list[list[Any]]:
        """The messages that are there already; does not wait. Raises `PipeClosed` at the end."""
        try:
            data = self._sock.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            data = None
        except OSError as error:
            raise PipeClosed from error
        if data is not None:
            if not data:
                raise PipeClosed
            self._messages.extend(self._reader.feed(data))
        messages = list(self._messages)
        self._messages.clear()
        return messages

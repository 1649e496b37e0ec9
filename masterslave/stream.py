"""Messages as bytes on a socket of this host, and back: large buffers and descriptors included.

A message with large buffers (see `pieces`) is sent as ``[nil, what is left of it, places,
[length...]]`` and is followed by the buffers, one after the other, as they are: sent from where
they are, and received to where they stay. What is in shared memory, or can be put there, is not
sent (see `shared`): its place has ``[n, inode, size, stamp, used, start, length]`` instead of a
length, and the n-th of the descriptors that come with the message is the one to map.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from typing import Any

import msgpack

from masterslave import pieces
from masterslave.packing import Packers
from masterslave.records import Piece
from masterslave.shared import (
    Loan,
    LoanError,
    Name,
    borrow,
    for_another,
    lend_for_a_message,
    loan_of,
)

#: Read at once, unless it is the rest of a large buffer.
_CHUNK_BYTES = 1 << 18

#: Segments of shared memory that come with one message; its others are sent. Larger: more than the
#: receiver can have open. The system allows 253.
_MOST_LOANS = 128

# Plain integers: combining the enumeration's members takes longer than receiving.
_PACKERS = Packers(unicode_errors="surrogatepass")

_UNPACKING: dict[str, Any] = {"strict_map_key": False, "unicode_errors": "surrogatepass"}

#: Several messages have come at once: so many times more that is expected. Larger: those that come
#: one by one again are received more slowly. Smaller: busy pipes are looked at twice.
_SEVERAL = 30

_CLOSE_ON_EXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_CONTROL_CUT = int(socket.MSG_CTRUNC)
_RIGHTS_SPACE = 0
if hasattr(socket, "CMSG_SPACE"):
    _RIGHTS_SPACE = socket.CMSG_SPACE(_MOST_LOANS * array.array("i").itemsize)

_NO_GAP = memoryview(b"")  # an empty view of a buffer would keep the buffer


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


def sent_at_once(sock: socket.socket, message: list[Any]) -> Outgoing | None:
    """Send a message without large parts, as far as that can be done in one go.

    Gives what is left of it; None: nothing. Raises `OSError`.
    """
    packed = _PACKERS.pack(message)
    try:
        sent = sock.send(packed)
    except BlockingIOError:
        sent = 0
    return None if sent == len(packed) else Outgoing.of(memoryview(packed)[sent:])


class Outgoing:
    """Parts of messages, of which the first of each takes descriptors along."""

    @classmethod
    def of(cls, part: memoryview) -> Outgoing:
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


class Reader:
    """Finds the messages in a stream of bytes.

    `space` is where the next bytes of the stream are to be received; `got` takes them from there,
    and the descriptors that came with them from `descriptors`. `keep`: whether what was borrowed
    may have to be handed on.
    """

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self.descriptors: deque[int] = deque()
        self.has_all = False  # whether nothing more was there when it was received last
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
        """Where the next bytes are to be received."""
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


def receive(sock: socket.socket, reader: Reader, flags: int = 0) -> int:
    """Receive into the reader; gives how many bytes. Raises `OSError`."""
    if not _CLOSE_ON_EXEC:  # so nothing is lent
        return sock.recv_into(reader.space(), 0, flags)
    space = reader.space()
    count, extra, told, _ = sock.recvmsg_into([space], _RIGHTS_SPACE, flags | _CLOSE_ON_EXEC)
    reader.has_all = count < len(space) and not extra  # the system stops at descriptors
    for _, _, data in extra:  # of one kind only
        reader.descriptors.extend(array.array("i", data))
    if told & _CONTROL_CUT:
        raise LoanError(errno.EMFILE, f"a loan cannot be taken: {os.strerror(errno.EMFILE)}")
    return count

"""Whether the other end of a connection can borrow from this process, and what is sent if so.

Host names say nothing of that (containers, users); so each end offers a segment of `shared` memory
with a secret in it, and who can tell the secret can borrow.
"""

from __future__ import annotations

import hmac
import os
import secrets
import struct

from masterslave.records import Piece
from masterslave.shared import (
    LEND_BYTES,
    LoanError,
    Name,
    borrow_from,
    lend_anyhow,
    lend_for_a_message,
    loan_of,
)

#: Begins the record by which the ends of a connection find out whether they share memory.
OFFER = b"MSLO"
_OFFER = struct.Struct("!Q5QB32s")

#: A piece in an announcement: its name, where it begins and how long it is.
_ENTRY = struct.Struct("!5QQQ")
ENTRY_BYTES = _ENTRY.size
_NOWHERE = (1 << 64) - 1  # the descriptor of a piece that comes as it is


_probes: dict[int, tuple[memoryview, Name, bytes]] = {}  # by process, as one may fork


def _probe(pid: int) -> tuple[memoryview, Name, bytes]:
    """A segment of this process with random bytes that only those know who can read it.

    Always the same one, also for threads that ask for the first one at the same time: who had been
    told of another would give the wrong answer.
    """
    probe = _probes.get(pid)
    if probe is None:
        secret = secrets.token_bytes(32)
        probe = _probes.setdefault(pid, (*lend_anyhow(secret), secret))
    return probe


class Peer:
    """What one end of a connection knows of the other: whether it can borrow from this process.

    Each offers a segment with a secret in it, and tells the secret of the other's. It is asked
    beside the first messages, and takes no message of its own. A process that has more than one
    connection to another tells at once what it has read before.
    """

    _last_read: bytes | None = None  # the secret that this process has read last

    def __init__(self, *, first: bool) -> None:
        """`first`: whether this end sends before it receives."""
        self.can_borrow = False
        self._pid = -1  # of the other process, on its own word
        self._answer = Peer._last_read if first else None  # to its offer
        self._to_say = first

    def offer(self) -> bytes:
        """What is to be sent before the next message; empty when there is nothing."""
        if not self._to_say:
            return b""
        self._to_say = False
        pid = os.getpid()
        try:
            name = _probe(pid)[1]
        except OSError:  # no file for it
            return b""
        answered = self._answer is not None
        return OFFER + _OFFER.pack(pid, *name, answered, self._answer or b"")

    def hear(self, data: Piece) -> None:
        """The other's offer, and its answer to ours. Raises `ValueError` for what is none."""
        try:
            pid, *name, answered, answer = _OFFER.unpack(bytes(data[len(OFFER) :]))
        except struct.error as error:
            raise ValueError("an offer of shared memory is damaged") from error
        if answered:
            self.can_borrow = hmac.compare_digest(answer, _probe(os.getpid())[2])
        if self._pid < 0 and pid < 1 << 31:
            self._pid = pid
            try:
                with borrow_from(pid, Name(*name)) as view:
                    secret = bytes(view[:32])
            except (OSError, OverflowError):
                return  # another host, another user: nothing to answer
            self._to_say = secret != self._answer
            Peer._last_read = self._answer = secret

    def lent(self, piece: Piece) -> Piece:
        """The piece, or a copy of it that can be lent; itself where it cannot."""
        if not self.can_borrow or len(piece) < LEND_BYTES or loan_of(piece) is not None:
            return piece
        return lend_for_a_message(piece) or piece

    def entry(self, piece: Piece) -> tuple[bytes, bool]:
        """What announces a piece, and whether that is all of it."""
        found = loan_of(piece) if self.can_borrow else None
        if found is None:
            return _ENTRY.pack(_NOWHERE, 0, 0, 0, 0, 0, len(piece)), False
        loan, start = found
        return _ENTRY.pack(*loan.name, start, len(piece)), True

    def borrowed(self, entry: Piece, whole: dict[Name, memoryview]) -> memoryview | int:
        """The piece that an entry names, or the length of one that comes as it is.

        `whole`: what was borrowed for the same message. Raises `LoanError`.
        """
        *fields, start, length = _ENTRY.unpack(entry)
        name = Name(*fields)
        if name.descriptor == _NOWHERE:
            return int(length)
        if self._pid < 0 or start + length > name.used or not length:
            raise LoanError("a piece cannot be where it was said to be")
        if name not in whole:
            whole[name] = borrow_from(self._pid, name)
        return whole[name][start : start + length]

"""A socket on which nothing passes that the holder of the key has not signed.

`SealedSocket` looks like a socket to Pyro. Below it, each message travels as one signed record
(see `proofs`); above it, Pyro sees the bytes only after they were verified and after their header
was found harmless: Pyro's own message, of a plain type, in msgpack. Pyro would otherwise decode
the very first message of anyone with any serializer the sender names.

Where Pyro is configured for TLS, that is one more layer, below the records.

The large buffers of a message (see `pieces`) do not go through Pyro, which would copy each of them
several times. They precede it in records of their own, which the signature covers like any other:

| record       | data                                                                     |
|--------------|--------------------------------------------------------------------------|
| announcement | ``MSLP``, then the length of each piece, 8 bytes, big-endian             |
| one piece    | the piece; nothing else is accepted until as many came as were announced |
| message      | Pyro's; the pieces belong to it                                          |

Between processes of one host large pieces are lent (see `shared`), and only their names are sent:

| record       | data                                                                     |
|--------------|--------------------------------------------------------------------------|
| offer        | ``MSLO``, and what `lending.Peer` says; before an announcement or message |
| announcement | ``MSLS``, then an entry for each piece: where it is, or that it follows  |

What was lent is held until the other side's next message is there: by then it has opened it.

A message is Pyro's, or an exchange (see `exchanges`), which Pyro never sees.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from masterslave.errors import AuthenticationError
from masterslave.lending import ENTRY_BYTES, OFFER, Peer
from masterslave.pieces import PIECE_BYTES
from masterslave.proofs import (
    GREETING,
    HELLO_BYTES,
    NONCE_BYTES,
    PROOF_BYTES,
    RECORD_HEADER,
    REPLY_BYTES,
    Signer,
    check_greeting,
    client_proof,
    same,
    server_proof,
    signers,
)
from masterslave.records import Piece
from masterslave.shared import Name, available

#: A record is one Pyro message, of which Pyro itself allows 1 GiB.
MAX_RECORD_BYTES = 1 << 30

#: Begins a message that is an exchange.
EXCHANGE = b"MSLX"

#: Begins the record that announces pieces.
_ANNOUNCEMENT = b"MSLP"

#: Begins the one that announces pieces of which some are lent.
_LOANS = b"MSLS"

#: Sign and send small messages joined, large ones as two pieces that are not copied.
_JOIN_BYTES = 65536

#: Memory that is reserved because a length says so, before its record can be verified; more as its
#: bytes arrive. Larger: a changed length costs more. Smaller: pieces would be copied as they come.
_TRUSTED_BYTES = PIECE_BYTES

#: Received at once when nothing tells how much there is. Larger: memory that is in no cache, for
#: nearly all messages are short. Smaller: two system calls for more of them.
_CHUNK_BYTES = 4096

_HAS_POLL = hasattr(select, "poll") and hasattr(socket, "MSG_DONTWAIT")

# Pyro's message header (its protocol.py): tag 4s, version H, type B, serializer B, flags H, ...
_PYRO_HEADER = struct.Struct("!4sHBBHHII")
PYRO_HEADER_BYTES = 40
CONNECT, CONNECT_OK, CONNECT_FAIL, INVOKE, RESULT, PING = 1, 2, 3, 4, 5, 6
_EXCEPTION, _CORRELATION = 1 << 0, 1 << 6
MSGPACK_ID = 4
SERPENT_ID = 1


class ChannelError(OSError):
    """The peer broke the protocol; an OSError so that Pyro ends the connection."""


class ChannelEnded(ChannelError):
    """The peer has gone in the middle of a message."""


def check_message(header: Piece, serializer_id: int, types: tuple[int, ...], limit: int) -> int:
    """The size of the message after its header; `ChannelError` unless it is a plain Pyro message.

    Refused: other serializers (marshal can crash the interpreter), compression (it could unpack
    to any size), batches, streams, and blobs whose envelope Pyro always reads with marshal.
    """
    if len(header) < PYRO_HEADER_BYTES:
        raise ChannelError("a message is shorter than its header")
    tag, _, kind, serializer, flags, _, data, annotations = _PYRO_HEADER.unpack_from(header)
    if tag != b"PYRO":
        raise ChannelError("not a Pyro message")
    if kind not in types:
        raise ChannelError(f"a message of type {kind} is not accepted here")
    if serializer != serializer_id and kind != PING:
        raise ChannelError(f"serializer {serializer} is not accepted here, only {serializer_id}")
    if flags & ~(_EXCEPTION | _CORRELATION):
        raise ChannelError(f"message flags {flags:#x} are not accepted here")
    if data + annotations > limit:
        raise ChannelError(f"a message of {data + annotations} bytes is too long")
    return int(data + annotations)


def server_handshake(sock: socket.socket, key: bytes, timeout_s: float) -> SealedSocket:
    """Prove the key to a client that has connected, and have it proved.

    Blocks for `timeout_s` seconds at most, all in all. Raises `AuthenticationError` or
    `ForeignProtocol` if the client is not welcome, `OSError` if it is too slow or leaves.
    """
    deadline = time.monotonic() + timeout_s
    # Judge by the first bytes: a foreign protocol's client may send no more and wait.
    start = _receive(sock, len(GREETING), deadline)
    check_greeting(start)
    client_nonce = _receive(sock, HELLO_BYTES - len(start), deadline)
    server_nonce = os.urandom(NONCE_BYTES)
    sock.sendall(GREETING + server_nonce + server_proof(key, client_nonce, server_nonce))
    proof = _receive(sock, PROOF_BYTES, deadline)
    if not same(proof, client_proof(key, client_nonce, server_nonce)):
        raise AuthenticationError("a client could not prove that it holds the key")
    sock.settimeout(None)
    outgoing, incoming = signers(key, client_nonce, server_nonce, server=True)
    return SealedSocket(sock, outgoing, incoming, (INVOKE, PING))


def client_handshake(sock: socket.socket, key: bytes, timeout_s: float) -> SealedSocket:
    """The client's side of `server_handshake`; raises the same errors."""
    deadline = time.monotonic() + timeout_s
    client_nonce = os.urandom(NONCE_BYTES)
    sock.sendall(GREETING + client_nonce)
    start = _receive(sock, len(GREETING), deadline)
    check_greeting(start)
    rest = _receive(sock, REPLY_BYTES - len(start), deadline)
    server_nonce, proof = rest[:NONCE_BYTES], rest[NONCE_BYTES:]
    if not same(proof, server_proof(key, client_nonce, server_nonce)):
        raise AuthenticationError("the other side could not prove that it holds the same key")
    sock.sendall(client_proof(key, client_nonce, server_nonce))
    sock.settimeout(None)
    outgoing, incoming = signers(key, client_nonce, server_nonce, server=False)
    return SealedSocket(sock, outgoing, incoming, (RESULT, PING))


# --- connections, whatever is sent on them ---------------------------------------------------


def end_connection(sock: Any) -> None:
    """Shut a connection down, from any thread.

    A TLS socket's own `shutdown` forgets its TLS first: what another thread is about to send would
    go out in the clear.
    """
    with contextlib.suppress(OSError):
        if isinstance(sock, ssl.SSLSocket):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)


# --- sockets --------------------------------------------------------------------------------


def keep_alive(sock: socket.socket) -> None:
    """Have the system find out within a minute that the other host has gone without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 15),  # seconds of silence before the first question
        ("TCP_KEEPINTVL", 5),  # seconds between questions
        ("TCP_KEEPCNT", 6),  # questions without an answer
        ("TCP_USER_TIMEOUT", 45_000),  # milliseconds that sent data may stay unacknowledged
    ):
        option = getattr(socket, name, None)  # not every system has all
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class SealedSocket:
    """Signs what is sent and verifies what is received; the rest is the socket's own."""

    def __init__(
        self, sock: socket.socket, outgoing: Signer, incoming: Signer, types: tuple[int, ...]
    ) -> None:
        self._sock = sock
        self._outgoing = outgoing
        self._incoming = incoming
        self._types = types
        self._ahead = b""  # received, and not verified
        self._poll: select.poll | None = None  # for `wait`
        self._record = memoryview(b"")  # verified, not yet taken by Pyro
        self._attached: Sequence[Piece] = ()
        self._pieces: list[Piece] = []  # verified, of the message that came last
        self._peer: Peer | None = None  # with whom memory is shared
        self._held: Sequence[Piece] = ()  # lent with the last message that was sent
        self.on_piece: Callable[[], None] = lambda: None  # called for each piece sent or received

    def share_memory(self, *, first: bool) -> None:
        """From now on, lend and borrow large pieces if the other side is found on this host.

        `first`: whether this side sends the first message.
        """
        if available():
            self._peer = Peer(first=first)

    def attach(self, pieces: Sequence[Piece]) -> None:
        """Have these pieces sent with the next message, and no others.

        Nothing is copied, but large ones into memory that the other side can borrow if it can.
        """
        if pieces and self._peer is not None:
            pieces = [self._peer.lent(piece) for piece in pieces]
        self._attached = pieces

    def take_pieces(self) -> list[Piece]:
        """The pieces that came with the last message; they are given once."""
        taken, self._pieces = self._pieces, []
        return taken

    def sendall(self, data: bytes) -> None:
        """Send one message of Pyro's as one record, and before it the pieces attached to it."""
        if self._peer is not None and (offer := self._peer.offer()):
            self._send_record(offer)
        if self._attached:
            pieces, self._attached = self._attached, ()
            for piece in self._announce(pieces):
                self._send_record(piece)
                self.on_piece()
        self._send_record(data)

    def _announce(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Say which pieces belong to the next message; gives those that are to be sent."""
        if self._peer is None or not self._peer.can_borrow:
            self._send_record(_ANNOUNCEMENT + struct.pack(f"!{len(pieces)}Q", *map(len, pieces)))
            return pieces
        self._held = pieces
        entries = [self._peer.entry(piece) for piece in pieces]
        self._send_record(_LOANS + b"".join(entry for entry, _ in entries))
        return [piece for piece, (_, lent) in zip(pieces, entries, strict=True) if not lent]

    def _send_record(self, data: Piece) -> None:
        header = self._outgoing.header(data)
        if len(data) < _JOIN_BYTES:
            self._sock.sendall(header + data)
        else:
            self._sock.sendall(header)
            self._sock.sendall(data)

    def send_now(self, data: bytes) -> None:
        """Send a small message without pieces, or raise `ChannelError` rather than wait.

        For messages to a peer that waits for one, and so has taken all that came before.
        """
        offer = self._peer.offer() if self._peer is not None else b""
        record = self._outgoing.header(offer) + offer if offer else b""
        record += self._outgoing.header(data) + data
        if self._sock.send(record, socket.MSG_DONTWAIT) < len(record):
            raise ChannelError("the peer does not read what it waits for")

    def send(self, data: bytes) -> int:
        """Send all of `data`, as `sendall`; there are no partial records."""
        self.sendall(data)
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Give up to `size` verified bytes; waits for a record when none is left."""
        if not self._record and size:
            record = self._next_record()
            if record is None:
                return b""
            self._record = self._checked(record)
        piece, self._record = self._record[:size], self._record[size:]
        return bytes(piece)

    def next_exchange(self) -> Piece | None:
        """The next message if it is an exchange; waits for a message.

        None: it is Pyro's, and will be given by `recv`; or the connection has ended.
        """
        record = self._next_record()
        if record is None:
            return None
        if record[: len(EXCHANGE)] == EXCHANGE:
            return record
        self._record = self._checked(record)
        return None

    @property
    def can_wait(self) -> bool:
        """Whether one can be told that something comes, and not wait: TLS may have it already."""
        return _HAS_POLL and not isinstance(self._sock, ssl.SSLSocket)

    def wait(self, timeout_s: float) -> bool:
        """Wait until something has come, the end included; false when the time is over."""
        if self._ahead:
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN)
        return bool(self._poll.poll(1000 * max(0.0, timeout_s)))

    def exchange_at_hand(self) -> Piece | None:
        """The next message if it is an exchange and has come in full; does not wait.

        None as well when large pieces come first. Raises `OSError`, also at the end.
        """
        start, ahead = RECORD_HEADER.size, self._ahead
        end = start
        while True:
            if len(ahead) >= start:
                length, mac = RECORD_HEADER.unpack_from(ahead)
                end = start + length
                if length >= _JOIN_BYTES:
                    return None
                if len(ahead) >= end:
                    break
            try:
                data = self._sock.recv(max(_CHUNK_BYTES, end - len(ahead)), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            if not data:
                raise ChannelEnded(_ENDED_EARLY if ahead else "the peer has closed the connection")
            ahead = self._ahead = ahead + data if ahead else data
        if ahead[start : start + len(EXCHANGE)] != EXCHANGE:
            return None
        message, self._ahead = ahead[start:end], ahead[end:]
        self._verify(mac, message)
        self._pieces, self._held = [], ()
        return message

    def _verify(self, mac: bytes, data: Piece) -> None:
        try:
            self._incoming.verify(mac, data)
        except AuthenticationError as error:
            raise ChannelError(str(error)) from error

    def _next_record(self) -> Piece | None:
        """The next message; the pieces before it are put aside."""
        self._pieces = []
        data = self._verified()
        if data is not None and data[: len(EXCHANGE)] == EXCHANGE:
            self._held = ()
            return data
        if data is not None and data[: len(OFFER)] == OFFER:
            self._hear(data)
            data = self._verified()
        if data is not None and data[: len(_ANNOUNCEMENT)] in (_ANNOUNCEMENT, _LOANS):
            try:
                if data[: len(_LOANS)] == _LOANS:
                    self._receive_loans(data)
                else:
                    self._receive_pieces(data)
            except BaseException:
                self._pieces = []  # of no use without the message
                raise
            data = self._verified()
            if data is None:
                raise ChannelError("the peer closed the connection before a message's end")
        if data is not None:
            self._held = ()
        return data

    def _checked(self, data: Piece) -> memoryview:
        """What Pyro may see of a message: all of it, if it is harmless."""
        header = data[:PYRO_HEADER_BYTES]
        size = check_message(header, MSGPACK_ID, self._types, MAX_RECORD_BYTES)
        if len(data) != PYRO_HEADER_BYTES + size:  # a second message would pass without a look
            raise ChannelError("a record is not one whole message")
        return memoryview(data)

    def _hear(self, offer: Piece) -> None:
        if self._peer is not None:
            try:
                self._peer.hear(offer)
            except ValueError as error:
                raise ChannelError(str(error)) from error

    def _receive_loans(self, announcement: Piece) -> None:
        entries = memoryview(announcement)[len(_LOANS) :]
        if self._peer is None or len(entries) % ENTRY_BYTES or not entries:
            raise ChannelError("an announcement of loans is damaged")
        whole: dict[Name, memoryview] = {}
        for start in range(0, len(entries), ENTRY_BYTES):
            try:
                piece = self._peer.borrowed(entries[start : start + ENTRY_BYTES], whole)
            except OSError as error:
                raise ChannelError(f"a loan cannot be taken: {error}") from error
            self._take_piece(self._piece(piece) if isinstance(piece, int) else piece)

    def _receive_pieces(self, announcement: Piece) -> None:
        lengths = memoryview(announcement)[len(_ANNOUNCEMENT) :]
        if len(lengths) % 8 or not lengths:
            raise ChannelError("an announcement of pieces is damaged")
        for (length,) in struct.iter_unpack("!Q", lengths):
            self._take_piece(self._piece(length))

    def _piece(self, length: int) -> Piece:
        piece = self._verified(length)
        if piece is None:
            raise ChannelError("the peer closed the connection before a message's end")
        return piece

    def _take_piece(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self.on_piece()

    def _verified(self, announced: int | None = None) -> Piece | None:
        """The data of the next record, of the announced length if one was; None at the end."""
        ahead = self._ahead
        if len(ahead) < RECORD_HEADER.size:
            ahead = self._fill(RECORD_HEADER.size, may_end=True)
            if not ahead:
                return None
        length, mac = RECORD_HEADER.unpack_from(ahead)
        if length > MAX_RECORD_BYTES:
            raise ChannelError(f"a message of {length} bytes is too long")
        if announced is not None and length != announced:
            raise ChannelError(f"a piece of {length} bytes is not the announced one")
        data: Piece
        end = RECORD_HEADER.size + length
        if length >= _JOIN_BYTES:
            self._ahead = ahead[end:]
            data = _receive(self._sock, length, first=ahead[RECORD_HEADER.size : end])
        else:
            if len(ahead) < end:
                ahead = self._fill(end)
            data, self._ahead = ahead[RECORD_HEADER.size : end], ahead[end:]
        self._verify(mac, data)
        return data

    def _fill(self, size: int, *, may_end: bool = False) -> bytes:
        """Receive until at least so many bytes are there; gives what is there.

        b"" if the peer has closed and `may_end`.
        """
        ahead = self._ahead
        while len(ahead) < size:
            data = self._sock.recv(max(_CHUNK_BYTES, size - len(ahead)))
            if not data:
                if may_end and not ahead:
                    return b""
                raise ChannelEnded(_ENDED_EARLY)
            ahead = self._ahead = ahead + data if ahead else data
        return ahead

    def close(self) -> None:
        """Close the connection, and let go of what was to be sent or had come."""
        self._attached, self._held, self._pieces = (), (), []
        self._sock.close()

    def shutdown(self, how: int) -> None:
        """End the connection, in both directions whatever `how` says."""
        end_connection(self._sock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


_ENDED_EARLY = "the peer closed the connection in the middle of a message"


def _receive(
    sock: socket.socket, size: int, deadline: float | None = None, *, first: bytes = b""
) -> bytes:
    """Exactly `size` bytes, `first` at their beginning, before the deadline."""
    data = bytearray(max(len(first), min(size, _TRUSTED_BYTES)))
    got = len(first)
    data[:got] = first
    while got < size:
        if got == len(data):
            data.extend(bytes(min(got, size - got)))
        if deadline is not None:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
        with memoryview(data) as view:
            count = sock.recv_into(view[got:])
        if count == 0:
            raise ChannelEnded(_ENDED_EARLY)
        got += count
    return bytes(data) if size < _JOIN_BYTES else data  # type: ignore[return-value]

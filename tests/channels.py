"""The two ends of a channel, and messages that are sent through it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from conftest import PATIENCE_S
from Pyro5 import protocol

from masterslave.transports.channel import (
    MSGPACK_ID,
    SealedSocket,
    client_handshake,
    server_handshake,
)

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
PLAIN = (protocol.MSG_INVOKE, protocol.MSG_PING)
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets; calls that should fail must not hang."""
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(PATIENCE_S)
    yield ends
    for end in ends:
        end.close()


def message(
    data: bytes = b"data",
    kind: int = protocol.MSG_INVOKE,
    flags: int = 0,
    serializer: int = MSGPACK_ID,
    sizes: tuple[int, int] | None = None,
) -> bytes:
    """A message of Pyro's, its sizes told wrong if asked for."""
    header = struct.pack(
        "!4sHBBHHII16sHH", b"PYRO", protocol.PROTOCOL_VERSION, kind, serializer, flags, 0,
        *(sizes or (len(data), 0)), b"\0" * 16, 0, 0x4DC5,
    )  # fmt: skip
    return header + data


class Server(threading.Thread):
    """Does the server's handshake; `outcome()` gives its socket or raises its error."""

    def __init__(self, sock: socket.socket, key: bytes = KEY, timeout_s: float = PATIENCE_S):
        super().__init__(daemon=True)
        self.arguments = sock, key, timeout_s
        self.result: SealedSocket | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = server_handshake(*self.arguments)
        except Exception as error:
            self.result = error

    def outcome(self) -> SealedSocket:
        self.join(PATIENCE_S)
        if isinstance(self.result, Exception):
            raise self.result
        assert self.result is not None, "the handshake hangs"
        return self.result


def sealed(pair: Pair) -> tuple[SealedSocket, SealedSocket]:
    """Client's and server's end of an authenticated channel."""
    server = Server(pair[1])
    client = client_handshake(pair[0], KEY, PATIENCE_S)
    return client, server.outcome()


def read(sock: SealedSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "ended early"
        data += piece
    return data


def take(sock: socket.socket, size: int) -> bytes:
    return sock.recv(size, socket.MSG_WAITALL)

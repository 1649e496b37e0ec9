"""A socket for Pyro's own name server, which is open to all and speaks its own language."""

from __future__ import annotations

import socket
from typing import Any

from masterslave.transports.channel import (
    CONNECT,
    CONNECT_FAIL,
    CONNECT_OK,
    INVOKE,
    PING,
    PYRO_HEADER_BYTES,
    RESULT,
    SERPENT_ID,
    check_message,
)


class GuardedSocket:
    """Passes Pyro messages through after a look at their header, for Pyro's own name server.

    The name server is open to all by design: it is spoken to without a key and holds addresses
    only. But neither side of it need decode whatever the other one names: one serializer, plain
    messages, no length that no name has.
    """

    #: Of a message to a name server, which has a name, an address and some words. Larger: a
    #: stranger can have more stored.
    _TO_SERVER_BYTES = 1 << 14

    #: Of a message from a name server, which may list all names.
    _TO_CLIENT_BYTES = 1 << 22

    def __init__(self, sock: socket.socket, *, server: bool) -> None:
        self._sock = sock
        to_server, to_client = (CONNECT, INVOKE, PING), (CONNECT_OK, CONNECT_FAIL, RESULT)
        self._types = to_server if server else to_client
        self._limit = self._TO_SERVER_BYTES if server else self._TO_CLIENT_BYTES
        self._header = b""
        self._left = 0  # bytes of the current message's body

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive within the current message; the header is let through once it is harmless."""
        if self._left:
            data = self._sock.recv(min(size, self._left), flags)
            self._left -= len(data)
            return data
        data = self._sock.recv(min(size, PYRO_HEADER_BYTES - len(self._header)), flags)
        self._header += data
        if len(self._header) == PYRO_HEADER_BYTES:
            self._left = check_message(self._header, SERPENT_ID, self._types, self._limit)
            self._header = b""
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

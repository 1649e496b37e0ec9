"""Authentication: how both sides prove that they hold the key, and how each record is signed.

Before the first byte of Pyro's protocol, on every connection::

    client -> server   "MSL" version(1)  client nonce(32)
    server -> client   "MSL" version(1)  server nonce(32)  server proof(32)
    client -> server   client proof(32)

    proof       = HMAC-SHA256(key, role | client nonce | server nonce)
    session key = HMAC-SHA256(key, direction | client nonce | server nonce), one per direction

and from then on nothing but records::

    length of data (8, big-endian)   HMAC-SHA256(session key, counter(8) | length(8) | data) (32)
    data

The counter is that of records in the direction, so a record can be neither replayed, nor moved,
nor reflected; both nonces are fresh, so a recorded conversation proves nothing. A challenge and
response of this form with separate roles is ISO/IEC 9798-4, three-pass mutual authentication.

Pure: nonces come in as arguments.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from masterslave.errors import AuthenticationError, ForeignProtocol

KEY_BYTES = 32
NONCE_BYTES = 32
PROOF_BYTES = 32
MAGIC = b"MSL"
VERSION = 2  # 2: exchanges are messages of our own
GREETING = MAGIC + bytes([VERSION])
HELLO_BYTES = len(GREETING) + NONCE_BYTES
REPLY_BYTES = HELLO_BYTES + PROOF_BYTES
RECORD_HEADER = struct.Struct("!Q32s")
_COUNTERS = struct.Struct("!QQ")

#: HMAC's inner and outer padding of a key, as `bytes.translate` makes it (RFC 2104).
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_BLOCK_BYTES = 64  # of SHA-256


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


def check_greeting(data: bytes) -> bytes:
    """The nonce of a client's hello or the rest of a server's reply, after the greeting.

    Raises `ForeignProtocol` when it is none of ours, `AuthenticationError` for another version.
    """
    if data[:3] != MAGIC:
        raise ForeignProtocol("the other side does not speak this library's protocol")
    if data[3] != VERSION:
        raise AuthenticationError(
            f"the other side speaks protocol version {data[3]}, this one {VERSION}: "
            "use the same version of masterslave on both"
        )
    return data[len(GREETING) :]


def server_proof(key: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """What only a server that holds the key can answer to these nonces."""
    return _mac(key, b"masterslave server", client_nonce, server_nonce)


def client_proof(key: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """What only a client that holds the key can answer to these nonces."""
    return _mac(key, b"masterslave client", client_nonce, server_nonce)


def same(proof: bytes, expected: bytes) -> bool:
    """Compare without telling by the time taken where they differ."""
    return hmac.compare_digest(proof, expected)


class Signer:
    """Signs, or verifies, the records of one direction of one connection, in order."""

    def __init__(self, key: bytes, direction: bytes, client_nonce: bytes, server_nonce: bytes):
        self._key = _mac(key, b"masterslave " + direction, client_nonce, server_nonce)
        padded = self._key.ljust(_BLOCK_BYTES, b"\0")
        # The states after the first blocks, which are the same for every record: copying them takes
        # a third of the time of `hmac.digest`, which looks up the algorithm each time.
        self._inner = hashlib.sha256(padded.translate(_INNER))
        self._outer = hashlib.sha256(padded.translate(_OUTER))
        self._counter = 0

    def _next_mac(self, data: bytes | bytearray | memoryview) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(_COUNTERS.pack(self._counter, len(data)))
        self._counter += 1
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()

    def header(self, data: bytes | bytearray | memoryview) -> bytes:
        """The record header to send before `data`."""
        return RECORD_HEADER.pack(len(data), self._next_mac(data))

    def verify(self, mac: bytes, data: bytes | bytearray | memoryview) -> None:
        """Raise `AuthenticationError` unless `data` is the next record that the peer signed."""
        if not hmac.compare_digest(mac, self._next_mac(data)):
            raise AuthenticationError("a message was tampered with on its way")


def signers(
    key: bytes, client_nonce: bytes, server_nonce: bytes, *, server: bool
) -> tuple[Signer, Signer]:
    """The signer for what this side sends, and the one for what it receives."""
    up = Signer(key, b"to server", client_nonce, server_nonce)
    down = Signer(key, b"to client", client_nonce, server_nonce)
    return (down, up) if server else (up, down)

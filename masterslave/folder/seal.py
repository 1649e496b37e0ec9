r"""The form of every file in a shared folder: signed over its name and all that is in it.

::

    "MSFOLD1\n" (8)   length of body (8, big-endian)   SHA-256 of body (32)
    HMAC-SHA256(folder's key, name | 0 | length | SHA-256) (32)
    body:  length of head (4)   head (msgpack)   pieces

The signature of the first 80 bytes is verified before another byte is read, so a file of a stranger
costs nothing, whatever its size; the body is verified before it is decoded. A file that was moved
under another name, or into another folder, is refused. Nothing is unpickled here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack

from masterslave.errors import MasterSlaveError
from masterslave.records import Frame, Piece

_MAGIC = b"MSFOLD1\n"
_PRELUDE = struct.Struct("!8sQ32s32s")
_HEAD_LENGTH = struct.Struct("!I")

#: Pieces below this become bytes of their own. Larger: small results keep a whole file in memory.
#: Smaller: arrays are copied once more.
_OWN_BYTES = 1 << 16


class Refused(MasterSlaveError):
    """A file that does not hold what a holder of the key has written under its name."""


def derive(key: bytes, purpose: bytes) -> bytes:
    """A key for one purpose."""
    return hmac.digest(key, b"masterslave folder " + purpose, "sha256")


def _mac(key: bytes, name: str, length: int, digest: bytes) -> bytes:
    signed = name.encode() + b"\0" + length.to_bytes(8, "big") + digest
    return hmac.digest(key, signed, "sha256")


def pack(key: bytes, name: str, head: Any, frames: Iterable[Frame] = ()) -> list[Piece]:
    """The pieces of a file: `head` is of plain types, `frames` are carried as they are."""
    kept = [list(frame) for frame in frames]
    sizes = [[memoryview(piece).nbytes for piece in frame] for frame in kept]
    packed = msgpack.packb([head, sizes], use_bin_type=True)
    body: list[Piece] = [_HEAD_LENGTH.pack(len(packed)), packed]
    body += (piece for frame in kept for piece in frame)
    running = hashlib.sha256()
    length = 0
    for piece in body:
        running.update(piece)
        length += memoryview(piece).nbytes
    digest = running.digest()
    return [_PRELUDE.pack(_MAGIC, length, digest, _mac(key, name, length, digest)), *body]


def read(key: bytes, name: str, descriptor: int) -> tuple[Any, list[Frame]]:
    """What `pack` was given, from an open file, which is closed. Raises `Refused`, `OSError`."""
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("is not a regular file")
        prelude = file.read(_PRELUDE.size)
        if len(prelude) < _PRELUDE.size:
            raise Refused(f"is truncated: it has {len(prelude)} bytes")
        magic, length, digest, mac = _PRELUDE.unpack(prelude)
        if magic != _MAGIC:
            raise Refused("is not a file of masterslave")
        if not hmac.compare_digest(mac, _mac(key, name, length, digest)):
            raise Refused(
                "is signed with another key, or was written under another name or in another folder"
            )
        there = status.st_size - _PRELUDE.size
        if there != length:
            raise Refused(f"is truncated or longer: {there} bytes of {length}")
        body = bytearray(length)
        view, got = memoryview(body), 0
        while got < length:
            count = file.readinto(view[got:])
            if not count:
                raise Refused(f"is truncated: {got} bytes of {length}")
            got += count
    if not hmac.compare_digest(digest, hashlib.sha256(body).digest()):
        raise Refused("is damaged: it does not hold what was written")
    return _unpack(view)


def _unpack(view: memoryview) -> tuple[Any, list[Frame]]:
    start = _HEAD_LENGTH.size
    (size,) = _HEAD_LENGTH.unpack(view[:start])
    head, sizes = msgpack.unpackb(view[start : start + size], raw=False, strict_map_key=False)
    pieces = _pieces(view[start + size :], [size for frame in sizes for size in frame])
    return head, [[next(pieces) for _ in frame] for frame in sizes]


def _pieces(view: memoryview, sizes: Sequence[int]) -> Iterator[Piece]:
    at = 0
    for size in sizes:
        piece = view[at : at + size]
        yield bytes(piece) if size < _OWN_BYTES else piece
        at += size

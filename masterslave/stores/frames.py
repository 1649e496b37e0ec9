"""Frames in a journal's rows, and the signature over a row and its frame.

A frame is one value of its row, or, if it is large, rows of their own: its pieces. Pure: bytes in,
bytes out.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import msgpack

from masterslave.records import AT_REST, Frame, frame_bytes

#: Frames beyond this size are kept in pieces of it: one value may have 1e9 bytes at most. Larger: a
#: copy of that size is made. Smaller: more rows for arrays.
PIECE_BYTES = 1 << 24


class Signer:
    """Signs rows with a key made of the user's."""

    def __init__(self, key: bytes) -> None:
        self._key = hmac.digest(key, b"masterslave journal", "sha256")

    def mac(self, values: tuple[Any, ...], frame: Frame = AT_REST) -> bytes:
        """The signature of a row: over its table's name, its values and its frame."""
        try:
            head = msgpack.packb(values, unicode_errors="surrogatepass")
        except (TypeError, ValueError, OverflowError):  # damage has put a strange type there
            head = repr(values).encode("utf-8", "surrogatepass")
        if frame is AT_REST:
            return hmac.digest(self._key, head, "sha256")
        sizes = [len(buffer).to_bytes(8, "big") for buffer in frame]
        if len(frame) == 1 and len(frame[0]) < PIECE_BYTES:
            return hmac.digest(self._key, head + sizes[0] + frame[0], "sha256")
        mac = hmac.new(self._key, head, hashlib.sha256)
        for size, buffer in zip(sizes, frame, strict=True):
            mac.update(size)
            mac.update(buffer)
        return mac.digest()


def same(kept: Any, right: bytes) -> bool:
    """Whether a signature is the right one."""
    return isinstance(kept, bytes) and hmac.compare_digest(kept, right)


def is_frame(value: Any) -> bool:
    """Whether that is a frame: a list of bytes."""
    return isinstance(value, list) and all(
        isinstance(part, (bytes, bytearray, memoryview)) for part in value
    )


def as_value(frame: Frame) -> bytes | None:
    """A frame as one value; None when it is to go into pieces."""
    if frame_bytes(frame) > PIECE_BYTES:
        return None
    packed: bytes = msgpack.packb(frame)
    return packed


def in_pieces(frame: Frame) -> Iterator[tuple[int, int, memoryview]]:
    """The pieces of a frame, with the number of its buffer and their place in that."""
    for index, buffer in enumerate(frame):
        view = memoryview(buffer)
        for position in range(0, max(1, -(-len(view) // PIECE_BYTES))):
            begin = position * PIECE_BYTES
            yield index, position, view[begin : begin + PIECE_BYTES]

"""The number of a global state, made of its contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from masterslave import pieces
from masterslave.records import Frame, Piece

#: Global state is digested in parts of this size. Larger: fewer threads take part. Smaller: more
#: steps, each of which takes the interpreter's lock.
DIGEST_BYTES = 1 << 23


def state_id(frames: Mapping[str, Frame]) -> int:
    """A number that is the same for the same values, and for no others.

    So a task that names a state means the same in the next run of a master with a journal, and to
    slaves that have outlived the run before.
    """
    digest = hashlib.sha256()
    chunks: list[Piece] = []
    for name, frame in sorted(frames.items()):
        for piece in (name.encode(), *frame):
            digest.update(len(piece).to_bytes(8, "big"))
            chunks += pieces.cut(piece, DIGEST_BYTES)
    if len(chunks) > 1 + 2 * len(frames):  # large: by as many threads as there are processors
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            digests = list(threads.map(_digest, chunks))
    else:
        digests = list(map(_digest, chunks))
    digest.update(b"".join(digests))
    return int.from_bytes(digest.digest()[:8], "big") >> 1  # any language's signed integer holds it


def _digest(data: Piece) -> bytes:
    return hashlib.sha256(data).digest()

"""Values as msgpack, by packers that are used again.

A new packer has a new buffer of some 100 KB, memory that is in no cache; for a message of
some hundred bytes that takes longer than all the rest.
"""

from __future__ import annotations

from typing import Any

import msgpack

#: A packer whose last value was larger is not kept. Larger: memory, for each thread that packs at
#: the same time. Smaller: one more new buffer per large message.
_KEPT_BYTES = 1 << 18


class Packers:
    """Packers with the same options, one for each thread that packs at the same time."""

    def __init__(self, **options: Any) -> None:
        """`options`: those of `msgpack.Packer`."""
        self._options = options
        self._spare: list[Any] = []  # its methods are atomic

    def pack(self, value: Any) -> bytes:
        """The value as bytes. Raises what `msgpack.packb` does."""
        try:
            packer = self._spare.pop()
        except IndexError:
            packer = msgpack.Packer(autoreset=True, **self._options)
        packed: bytes = packer.pack(value)  # one that raises is not used again
        if len(packed) <= _KEPT_BYTES:
            self._spare.append(packer)
        return packed

"""Large buffers beside the messages they belong to, in pieces.

A message that crosses a wire is a nest of lists and dictionaries with bytes in it. Encoding large
ones with the rest would copy them several times on each side, and encoders and messages have
largest sizes. So they are lifted out before a message is encoded, travel after or before it as
they are, and are put back into their places where it arrives::

    ["done", ["fit_3", 1, "result", [<pickle>, <80 MB>], 0.2, ""]]
                                                 |
    lifted  ["done", ["fit_3", 1, "result", [<pickle>, None], 0.2, ""]]
    places  [[[1, 3, 1], 2]]                 the way there, and of how many pieces
    pieces  <64 MB> <16 MB>                  views of the original, nothing is copied

Pure: no socket here. `payload` cuts its frames with the same size, so that what was cut there
is only passed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from masterslave.records import Assignment, Completion, Delivery, Piece

#: Largest piece. Larger: more temporary memory, and a longer silence on a slow network, where each
#: piece is a sign of life. Smaller: more arrays are joined from pieces, which copies them once.
PIECE_BYTES = 1 << 26

#: Buffers of at least this size travel beside their message. Larger: they are copied some times
#: more. Smaller: finding and announcing them costs more than copying them.
LIFT_BYTES = 1 << 16

#: The way to a piece through lists and dictionaries, and how many pieces belong there.
Place = Sequence[Any]


def cut(data: Piece, size: int | None = None) -> Iterator[Piece]:
    """The data itself, or views of it of `size` (`PIECE_BYTES`) at most; nothing is copied."""
    size = PIECE_BYTES if size is None else size
    if len(data) <= size:
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield view[start : start + size]


def lift(value: Any) -> tuple[Any, list[Place], list[Piece]]:
    """Take the large buffers out of a nest of lists, tuples and dictionaries.

    Gives what is left of it, the places and the pieces in order. The value is not changed; without
    large buffers it is itself what is left.
    """
    places: list[Place] = []
    pieces: list[Piece] = []
    if not has_large(value):
        return value, places, pieces
    return _lift(value, [], places, pieces), places, pieces


def has_large(value: Any) -> bool:
    """Whether there is something to lift: a quick look, for messages by the thousand have none."""
    for item in value.values() if isinstance(value, dict) else value:
        kind = type(item)
        if kind is Completion or kind is Assignment or kind is Delivery:  # nearly all that travels
            item = item.frame  # noqa: PLW2901 - the only part that can be large
            kind = type(item)
        if kind is str or kind is int or kind is float:
            continue
        if kind is bytes:
            if len(item) >= LIFT_BYTES:
                return True
        elif kind is list or isinstance(item, (list, tuple, dict)):
            if kind is list and len(item) == 1 and type(item[0]) is bytes:  # a frame, as most are
                if len(item[0]) >= LIFT_BYTES:
                    return True
            elif item and has_large(item):
                return True
        elif isinstance(item, (bytearray, memoryview)) and len(item) >= LIFT_BYTES:
            return True
    return False


def _lift(value: Any, path: list[Any], places: list[Place], pieces: list[Piece]) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    left: Any = None
    for key, item in items:
        replacement = None
        if isinstance(item, (bytes, bytearray, memoryview)):
            if len(item) < LIFT_BYTES:
                continue
            before = len(pieces)
            pieces.extend(cut(item))
            places.append([[*path, key], len(pieces) - before])
        elif isinstance(item, (list, tuple, dict)):
            path.append(key)
            replacement = _lift(item, path, places, pieces)
            path.pop()
            if replacement is item:
                continue
        else:
            continue
        if left is None:
            left = dict(value) if isinstance(value, dict) else list(value)
        left[key] = replacement
    return value if left is None else left


def restore(lifted: Any, places: Sequence[Place], pieces: Sequence[Piece]) -> Any:
    """Put the pieces back, as they come out of a wire: `lifted` is changed and given.

    What was cut is joined. Raises `ValueError` when the pieces are not those of the places.
    """
    position = 0
    for path, count in places:
        own = pieces[position : position + count]
        position += count
        if count < 1 or len(own) < count:
            raise ValueError("a message lacks pieces that belong to it")
        target = lifted
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = own[0] if count == 1 else b"".join(own)
    if position != len(pieces):
        raise ValueError("a message came with pieces that do not belong to it")
    return lifted

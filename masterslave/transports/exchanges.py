"""Exchanges as messages of their own, beside Pyro's on the same authenticated connections.

The exchange of results and tasks is what a slave does all the time, and what it costs decides how
long a short task takes. As a call of Pyro's it costs several times more than all that it does. So
its messages go below Pyro, as records of `channel`: signed, verified and kept to sizes like any
other, and decoded only then. Connecting, registering and everything else are calls of Pyro's.

| message  | data                                                                     |
|----------|--------------------------------------------------------------------------|
| question | ``MSLX``, msgpack of ``[arguments of exchange, places, label]``          |
| answer   | ``MSLX``, msgpack of ``[tasks and notices, places]``                     |
| error    | ``MSLX``, msgpack of ``[None, [], name of the class, list of texts]``    |

Places: see `pieces`, which travel before the message. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import msgpack

from masterslave import pieces
from masterslave.errors import LabelUnknown, remote_error
from masterslave.packing import Packers
from masterslave.records import Piece
from masterslave.transports.channel import EXCHANGE

_PACKERS = Packers()

#: Other errors that arrive as themselves: what an impossible argument comes to, and another label.
_OWN: dict[str, type[Exception]] = {
    cls.__name__: cls for cls in (ValueError, TypeError, LabelUnknown)
}


def pack(value: list[Any], label: str | None = None) -> tuple[bytes, list[Piece]]:
    """The message for a question or an answer, and the pieces that go before it.

    `label`: of the task manager that a question is for.
    """
    left, places, parts = pieces.lift(value)
    content = [left, places] if label is None else [left, places, label]
    return EXCHANGE + _PACKERS.pack(content), parts


def pack_error(error: Exception) -> bytes:
    """The message for an error in the place of an answer."""
    name = type(error).__name__
    return EXCHANGE + _PACKERS.pack([None, [], name, [str(arg) for arg in error.args]])


def unpack_question(message: Piece, parts: Sequence[Piece]) -> tuple[list[Any], str]:
    """The arguments, and the label. Raises `ValueError` if it is no question."""
    content = _unpack(message)
    if len(content) != 3 or not isinstance(content[0], list):
        raise ValueError("an exchange without arguments or label")
    args, places, label = content
    return _restored(args, places, parts), str(label)


def unpack_answer(message: Piece, parts: Sequence[Piece]) -> Any:
    """The tasks and the notices. Raises the error that came in their place."""
    content = _unpack(message)
    if len(content) == 2:
        return _restored(content[0], content[1], parts)
    if len(content) == 4:
        _raise(str(content[2]), content[3])
    raise ValueError("an exchange without an answer")


def _raise(name: str, args: Any) -> NoReturn:
    texts = map(str, args) if isinstance(args, list) else ()
    if name in _OWN:
        raise _OWN[name](*texts)
    raise remote_error(name, *texts)


def _unpack(message: Piece) -> list[Any]:
    content = msgpack.unpackb(memoryview(message)[len(EXCHANGE) :])
    if not isinstance(content, list):
        raise ValueError("an exchange that is no list")
    return content


def _restored(value: Any, places: Any, parts: Sequence[Piece]) -> Any:
    if not places and not parts:
        return value
    try:
        return pieces.restore(value, places, parts)
    except (TypeError, LookupError) as error:
        raise ValueError(f"an exchange whose pieces have no place: {error}") from error

"""What a journal keeps: one type for each thing that happens to a task or to a slave.

::

    task manager --Entry--> Journal (groups) --> store --> Kept --> task manager of the next run

Tasks go by their number here: the task ``sqrt_7`` is number 7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from masterslave.records import Frame, Outcome, Piece, ProcessInfo, TaskOptions

#: Parameters and results up to this size are tiny, see `Requests`. Larger: more is read for one
#: that is looked for. Smaller: more rows in a journal.
TINY_BYTES = 4096


class Requested(NamedTuple):
    """A client has requested a task."""

    number: int
    tag: str
    identity: bytes  # as `identity` gives it
    options: TaskOptions
    frame: Frame  # parameters


class Joined(NamedTuple):
    """A slave has registered."""

    process: int
    info: ProcessInfo


class Left(NamedTuple):
    """A slave has left in good order: it has nothing more."""

    process: int


class HandedOut(NamedTuple):
    """A slave was given tasks. Of an attempt that has failed: its slave was not lost after all."""

    process: int
    tasks: tuple[tuple[int, int], ...]  # number and attempt of each


class Setback(NamedTuple):
    """An attempt failed, and the task is run again."""

    number: int
    attempt: int
    process: int
    outcome: str  # an Outcome's value, or LOST
    story: str
    at: float  # seconds since 1970


class Ended(NamedTuple):
    """A task has reached its end."""

    number: int
    attempt: int
    process: int
    outcome: str  # an Outcome's value
    duration_s: float  # in the handler
    story: str  # remote traceback, or how each attempt ended
    frame: Frame  # result or exception, may be empty
    at: float  # seconds since 1970


class Cancelled(NamedTuple):
    """A client has taken a task back; it will not be asked for again."""

    number: int


class Forgotten(NamedTuple):
    """The next run needs nothing of a task: its client has its result, or has gone for good.

    A store gives these back first: of failures that it keeps, and of the largest number forgotten.
    """

    number: int
    failed: bool  # it is kept while it is among the newest failures, to be looked at


class Stored(NamedTuple):
    """A data item was stored, in the place of an earlier one of its name.

    Kept so that a task can be replayed; no run takes items over from the one before.
    """

    name: str
    value: Any  # a frame, or plain types


class Dropped(NamedTuple):
    """A data item was deleted."""

    name: str


Entry = (
    Requested
    | Joined
    | Left
    | HandedOut
    | Setback
    | Ended
    | Cancelled
    | Forgotten
    | Stored
    | Dropped
)


class Requests(NamedTuple):
    """Many `Requested` at once: one tag, the same options, tiny parameters, numbers that run on."""

    first: int  # number
    tag: str
    options: TaskOptions
    data: list[bytes]  # of each the only piece of its parameters


class Results(NamedTuple):
    """Many `Ended` at once: tiny results that came in one message."""

    process: int
    at: float
    ends: list[tuple[int, int, float, bytes]]  # number, attempt, duration in s, the only piece


#: What a store is given to write.
Written = Entry | Requests | Results


def count_of(entry: Written) -> int:
    """How many entries it stands for."""
    if type(entry) is Requests:
        return len(entry.data)
    return len(entry.ends) if type(entry) is Results else 1


def singly(entries: Iterable[Written]) -> Iterator[Entry]:
    """The same entries one by one."""
    for entry in entries:
        if isinstance(entry, Requests):
            for number, data in enumerate(entry.data, entry.first):
                name = identity(entry.tag, [data], entry.options.key)
                yield Requested(number, entry.tag, name, entry.options, [data])
        elif isinstance(entry, Results):
            for number, attempt, duration_s, data in entry.ends:
                yield Ended(
                    number, attempt, entry.process, Outcome.RESULT.value, duration_s, "", [data],
                    entry.at,
                )  # fmt: skip
        else:
            yield entry


def identity(tag: str, frame: Frame, key: str | None) -> bytes:
    """What makes a request equal to one of an earlier run: 16 bytes.

    The tag and the client's own `key`, or, without one, the tag and the bytes of the parameters.
    """
    digest = hashlib.blake2b(digest_size=16)
    name = tag.encode("utf-8", "surrogatepass")
    if key is not None:
        parts: list[Piece] = [b"key", name, key.encode("utf-8", "surrogatepass")]
    else:
        parts = [b"parameters", name, *frame]
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()

"""A store in memory, for tests and for journals that need not survive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from masterslave.entries import (
    Cancelled,
    Dropped,
    Ended,
    Entry,
    Forgotten,
    HandedOut,
    Joined,
    Left,
    Requested,
    Setback,
    Stored,
    Written,
    singly,
)
from masterslave.errors import DataNotFound, JournalDamaged
from masterslave.records import AT_REST, Frame, frame_bytes
from masterslave.stores.base import KEPT_FAILURE_BYTES, KEPT_FAILURES

_Kept = TypeVar("_Kept")


class MemoryStore:
    """A `Store` that lives as long as its object: close it, and give it to the next run."""

    def __init__(self) -> None:
        self._processes: dict[int, Joined] = {}
        self._requested: dict[int, Requested] = {}
        self._attempts: list[HandedOut | Setback] = []
        self._ended: dict[int, Ended] = {}
        self._notes: dict[str, str] = {}
        self._items: dict[str, Any] = {}
        self._forgotten: dict[int, Forgotten] = {}  # failures that are kept, oldest first
        self._highest = -1  # number that is forgotten

    def write(self, entries: Sequence[Written]) -> None:
        """See `Store.write`."""
        for entry in singly(entries):
            if isinstance(entry, Joined):
                self._processes[entry.process] = entry
            elif isinstance(entry, Left):
                self._processes.pop(entry.process, None)
            elif isinstance(entry, Requested):
                self._requested[entry.number] = entry
            elif isinstance(entry, Ended):
                self._ended[entry.number] = entry
            elif isinstance(entry, Cancelled):
                self._remove(entry.number)
            elif isinstance(entry, Forgotten):
                self._forget(entry)
            elif isinstance(entry, Stored):
                self._items[entry.name] = entry.value
            elif isinstance(entry, Dropped):
                self._items.pop(entry.name, None)
            else:
                self._attempts.append(entry)

    def entries(self) -> Iterator[Entry]:
        """See `Store.entries`."""
        if self._highest >= 0:
            yield Forgotten(self._highest, False)
        yield from self._forgotten.values()
        yield from self._processes.values()
        for requested in self._requested.values():
            yield requested._replace(frame=AT_REST)
        yield from self._attempts
        for ended in self._ended.values():
            yield ended._replace(frame=AT_REST)

    def _remove(self, number: int) -> None:
        self._requested.pop(number, None)
        self._ended.pop(number, None)
        self._attempts = [
            kept for kept in self._attempts if isinstance(kept, HandedOut) or kept.number != number
        ]

    def _size(self, number: int) -> int:
        kept = self._requested.get(number), self._ended.get(number)
        return sum(frame_bytes(one.frame) for one in kept if one is not None)

    def _forget(self, entry: Forgotten) -> None:
        self._highest = max(self._highest, entry.number)
        self._forgotten.pop(entry.number, None)
        if not entry.failed:
            self._remove(entry.number)
        else:
            self._forgotten[entry.number] = entry
            while len(self._forgotten) > 1 and (
                len(self._forgotten) > KEPT_FAILURES
                or sum(map(self._size, self._forgotten)) > KEPT_FAILURE_BYTES
            ):
                oldest = next(iter(self._forgotten))
                del self._forgotten[oldest]
                self._remove(oldest)
        live = self._requested.keys() - self._forgotten.keys()
        self._attempts = [
            kept
            for kept in self._attempts
            if not isinstance(kept, HandedOut) or any(one in live for one, _ in kept.tasks)
        ]

    def parameters(self, number: int) -> Frame:
        """See `Store.parameters`."""
        return _there(self._requested, number).frame

    def result(self, number: int) -> Frame:
        """See `Store.result`."""
        return _there(self._ended, number).frame

    def item(self, name: str) -> Any:
        """See `Store.item`."""
        if name not in self._items:
            raise DataNotFound(f"the journal has no data item {name!r}")
        return self._items[name]

    def note(self, name: str) -> str:
        """See `Store.note`."""
        return self._notes.get(name, "")

    def set_note(self, name: str, value: str) -> None:
        """See `Store.set_note`."""
        self._notes[name] = value

    def close(self) -> None:
        """See `Store.close`."""


def _there(kept: dict[int, _Kept], number: int) -> _Kept:
    try:
        return kept[number]
    except KeyError:
        raise JournalDamaged(f"the journal has no entry for task number {number}") from None

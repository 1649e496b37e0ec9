"""A store in memory, for tests and for journals that need not survive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from masterslave.entries import (
    Cancelled,
    Dropped,
    Ended,
    Entry,
    HandedOut,
    Joined,
    Left,
    Requested,
    Setback,
    Stored,
)
from masterslave.errors import DataNotFound, JournalDamaged
from masterslave.records import AT_REST, Frame

_Kept = TypeVar("_Kept")


class MemoryStore:
    """A `Store` that lives as long as its object: close it, and give it to the next run."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._requested: dict[int, Requested] = {}
        self._ended: dict[int, Ended] = {}
        self._cancelled: set[int] = set()
        self._left: set[int] = set()
        self._notes: dict[str, str] = {}
        self._items: dict[str, Any] = {}

    def write(self, entries: Sequence[Entry]) -> None:
        """See `Store.write`."""
        self._entries += entries
        for entry in entries:
            if isinstance(entry, Requested):
                self._requested[entry.number] = entry
            elif isinstance(entry, Ended):
                self._ended[entry.number] = entry
            elif isinstance(entry, Cancelled):
                self._cancelled.add(entry.number)
            elif isinstance(entry, Left):
                self._left.add(entry.process)
            elif isinstance(entry, Stored):
                self._items[entry.name] = entry.value
            elif isinstance(entry, Dropped):
                self._items.pop(entry.name, None)

    def entries(self) -> Iterator[Entry]:
        """See `Store.entries`."""
        for entry in self._entries:
            if isinstance(entry, Joined) and entry.process not in self._left:
                yield entry
        kept = [n for n in self._requested if n not in self._cancelled]
        for number in kept:
            yield self._requested[number]._replace(frame=AT_REST)
        for entry in self._entries:
            attempt = isinstance(entry, (HandedOut, Setback))
            if attempt and getattr(entry, "number", None) not in self._cancelled:
                yield entry
        for number in kept:
            if number in self._ended:
                yield self._ended[number]._replace(frame=AT_REST)

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

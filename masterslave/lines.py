"""Waiting lines: per tag first come first served within a priority, returned tasks at the head.

Every operation costs O(1) in the number of waiting items; a new priority of a tag costs a sort of
that tag's priorities, of which there are few.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Line(Generic[Item]):
    """One tag's items, by priority."""

    __slots__ = ("by_priority", "priorities")

    def __init__(self) -> None:
        self.by_priority: dict[int, deque[tuple[int, Item]]] = {}
        self.priorities: list[int] = []  # those with items, highest last

    def queue(self, priority: int) -> deque[tuple[int, Item]]:
        line = self.by_priority.get(priority)
        if line is None:
            line = self.by_priority[priority] = deque()
            self.priorities.append(priority)
            self.priorities.sort()
        return line


class WaitingLines(Generic[Item]):
    """Items in line, each under a tag and a priority."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[Item]] = {}
        self._last = 0  # rank of the newest arrival; grows
        self._first = 0  # rank of the newest return; falls, so that returns stand before arrivals

    def join(self, item: Item, tag: str, priority: int) -> None:
        """Stand at the end of the line."""
        self._last += 1
        self._line(tag).queue(priority).append((self._last, item))

    def join_at_head(self, item: Item, tag: str, priority: int) -> None:
        """Stand before all others of that tag and priority."""
        self._first -= 1
        self._line(tag).queue(priority).appendleft((self._first, item))

    def first(self, tags: Iterable[str]) -> Item | None:
        """The item whose turn it is among those of the given tags: priority, then order."""
        best: tuple[int, int] | None = None
        winner: Item | None = None
        for tag in tags:
            line = self._lines.get(tag)
            if line is None:
                continue
            priority = line.priorities[-1]
            rank, item = line.by_priority[priority][0]
            if best is None or (-priority, rank) < best:
                best = (-priority, rank)
                winner = item
        return winner

    def leave(self, tag: str) -> None:
        """The first item of that tag leaves the line."""
        line = self._lines[tag]
        priority = line.priorities[-1]
        queue = line.by_priority[priority]
        queue.popleft()
        if not queue:
            del line.by_priority[priority]
            line.priorities.pop()
            if not line.priorities:
                del self._lines[tag]

    def _line(self, tag: str) -> _Line[Item]:
        line = self._lines.get(tag)
        if line is None:
            line = self._lines[tag] = _Line()
        return line

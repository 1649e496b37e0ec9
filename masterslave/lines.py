"""Lines of tasks: those that wait for a slave, and those that wait for their client.

Waiting for a slave: per tag first come first served within a priority, returned tasks at the head.
Every operation costs O(1) in the number of waiting items; a new priority of a tag costs a sort of
that tag's priorities, of which there are few. There may be millions, so an item costs two places
in a deque and no object of its own, which the garbage collector would have to visit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")


class Several(Generic[Item]):
    """Items that stand in line as one, since they came one after the other."""

    __slots__ = ()

    def head(self) -> Item:
        """The one whose turn it is."""
        raise NotImplementedError

    def pass_on(self) -> bool:
        """That one stands in line no more; true if it was the last."""
        raise NotImplementedError


def head_of(queue: deque[Any]) -> Any:
    """The item whose turn it is, in a line that is not empty."""
    head = queue[1]
    return head.head() if isinstance(head, Several) else head


def pass_on(queue: deque[Any]) -> None:
    """The item whose turn it was stands there no more."""
    head = queue[1]
    if not isinstance(head, Several) or head.pass_on():
        queue.popleft()
        queue.popleft()


class _Line(Generic[Item]):
    """One tag's items, by priority."""

    __slots__ = ("by_priority", "priorities")

    def __init__(self) -> None:
        self.by_priority: dict[int, deque[Any]] = {}  # rank, item, rank, item, ...
        self.priorities: list[int] = []  # those with items, highest last

    def queue(self, priority: int) -> deque[Any]:
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
        line = self._lines.get(tag) or self._line(tag)
        queue = line.by_priority.get(priority)
        if queue is None:
            queue = line.queue(priority)
        queue.append(self._last)
        queue.append(item)

    def join_several(self, several: Several[Item], tag: str, priority: int) -> None:
        """They stand at the end of the line, with one place for all."""
        self._last += 1
        self._line(tag).queue(priority).extend((self._last, several))

    def join_at_head(self, item: Item, tag: str, priority: int) -> None:
        """Stand before all others of that tag and priority."""
        self._first -= 1
        self._line(tag).queue(priority).extendleft((item, self._first))

    def first(self, tags: Collection[str]) -> Item | None:
        """The item whose turn it is among those of the given tags: priority, then order."""
        lines = self._lines
        if not lines:
            return None
        best: tuple[int, int] | None = None
        winner: deque[Any] | None = None
        if len(lines) == 1:  # nothing is to be compared
            ((tag, only),) = lines.items()
            return head_of(only.by_priority[only.priorities[-1]]) if tag in tags else None
        for tag in tags:
            line = lines.get(tag)
            if line is None:
                continue
            priority = line.priorities[-1]
            queue = line.by_priority[priority]
            rank = (-priority, queue[0])
            if best is None or rank < best:
                best = rank
                winner = queue
        return None if winner is None else head_of(winner)

    def highest(self, tags: Collection[str]) -> int | None:
        """The priority of what `first` gives; None when there is nothing."""
        lines = (self._lines.get(tag) for tag in tags)
        return max((line.priorities[-1] for line in lines if line is not None), default=None)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def leave(self, tag: str) -> None:
        """The first item of that tag leaves the line."""
        line = self._lines[tag]
        queue = line.by_priority[line.priorities[-1]]
        pass_on(queue)
        if not queue:
            self.emptied(tag)

    def only_line(self, tag: str) -> deque[Any] | None:
        """The items of highest priority, a rank before each, if none is of another tag.

        Who takes items from it himself, by `head_of` and `pass_on`, says so by `emptied` when none
        is left.
        """
        if len(self._lines) > 1:
            return None
        line = self._lines[tag]
        return line.by_priority[line.priorities[-1]]

    def emptied(self, tag: str) -> None:
        """No item of the highest priority of that tag is left."""
        line = self._lines[tag]
        del line.by_priority[line.priorities.pop()]
        if not line.priorities:
            del self._lines[tag]

    def _line(self, tag: str) -> _Line[Item]:
        line = self._lines.get(tag)
        if line is None:
            line = self._lines[tag] = _Line()
        return line


class Tagged(Protocol):
    """What can wait for its client."""

    tag: str


Result = TypeVar("Result", bound=Tagged)


class _Fifo(Generic[Result]):
    """Items in order of arrival, of which some may have been taken elsewhere."""

    __slots__ = ("_is_taken", "_items", "_taken")

    def __init__(self, items: Iterable[Result], is_taken: Callable[[Result], bool]) -> None:
        self._items = deque(items)
        self._is_taken = is_taken
        self._taken = 0  # about so many were taken elsewhere

    def __len__(self) -> int:
        return len(self._items) - self._taken

    def add(self, item: Result) -> None:
        self._items.append(item)

    def add_all(self, items: Iterable[Result]) -> None:
        self._items.extend(items)

    def take(self) -> Result | None:
        items, is_taken = self._items, self._is_taken
        if not self._taken:  # nearly always
            return items.popleft() if items else None
        while items:
            item = items.popleft()
            if not is_taken(item):
                return item
            self._taken -= 1
        return None

    def left(self) -> list[Result]:
        return [item for item in self._items if not self._is_taken(item)]

    def took_one_elsewhere(self) -> None:
        """Keeps what was taken from piling up, at a cost of O(1) on average."""
        self._taken += 1
        if self._taken > 100 and self._taken > len(self._items) // 2:
            self._items = deque(self.left())
            self._taken = 0


class FinishedLine(Generic[Result]):
    """Items that their client takes in order of arrival, those of one tag or of any."""

    def __init__(self, is_taken: Callable[[Result], bool]) -> None:
        """`is_taken`: must be true of what `take` has given, from then on."""
        self._is_taken = is_taken
        self._all = _Fifo[Result]((), is_taken)
        self._by_tag: dict[str, _Fifo[Result]] = {}  # of the tags that were asked for

    def __len__(self) -> int:
        return len(self._all)

    def add(self, item: Result) -> None:
        """An item arrives."""
        self._all.add(item)
        if self._by_tag and item.tag in self._by_tag:
            self._by_tag[item.tag].add(item)

    def add_all(self, items: Collection[Result]) -> None:
        """Items arrive, in this order."""
        if self._by_tag:
            for item in items:
                self.add(item)
        else:
            self._all.add_all(items)

    def take(self, tag: str | None) -> Result | None:
        """The oldest item, of that tag if given; None when there is none."""
        if tag is None:
            item = self._all.take()
            if self._by_tag and item is not None and item.tag in self._by_tag:
                self._by_tag[item.tag].took_one_elsewhere()
            return item
        line = self._by_tag.get(tag)
        if line is None:
            mine = (item for item in self._all.left() if item.tag == tag)
            line = self._by_tag[tag] = _Fifo(mine, self._is_taken)
        item = line.take()
        if item is not None:
            self._all.took_one_elsewhere()
        return item

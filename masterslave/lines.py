"""Lines of tasks: those that wait for a slave, and those that wait for their client.

Waiting for a slave: per tag first come first served within a priority, returned tasks at the head.
Every operation costs O(1) in the number of waiting items; a new priority of a tag costs a sort of
that tag's priorities, of which there are few. There may be millions, so an item costs two places
in a deque and no object of its own, which the garbage collector would have to visit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, islice
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

    def take(self, limit: int) -> tuple[list[Item], bool]:
        """So many at most, whose turn it is, stand in line no more; and whether the last is gone.

        Perhaps none, where they must be taken one by one.
        """
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


def take_several(queue: deque[Any], limit: int) -> list[Any]:
    """So many items at most, whose turn it is, stand there no more; see `Several.take`."""
    if not queue or not isinstance(queue[1], Several):
        return []
    items, is_last = queue[1].take(limit)
    if is_last:
        queue.popleft()
        queue.popleft()
    return items


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

        Who takes items from it himself, by `head_of`, `pass_on` and `take_several`, says so by
        `emptied` when none is left.
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


#: So many entries of the past may stand in the order of tags. Larger: memory. Smaller: the order is
#: made anew more often, where results are taken by their tags.
_PAST = 16


class Tagged(Protocol):
    """What can wait for its client."""

    @property
    def tag(self) -> str:
        """The name of its handler."""


Result = TypeVar("Result", bound=Tagged)


class FinishedLine(Generic[Result]):
    """Items that their client takes in order of arrival, those of one tag or of any.

    Each tag has a line of its own, so none is looked at twice. To take those of any tag costs
    O(log tags), for as many as one after the other are of the same.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[Any]] = {}  # rank, item, rank, item, ... of tags with items
        # A heap of ranks and tags, of the oldest of each tag and some that were; None: to be made.
        self._order: list[tuple[int, str]] | None = None
        self._arrived = 0  # so many in all; the newest one's rank
        self._taken = 0  # so many in all

    def __len__(self) -> int:
        return self._arrived - self._taken

    def add(self, item: Result) -> None:
        """An item arrives."""
        self.add_all(item.tag, (item,))

    def add_all(self, tag: str, items: Sequence[Result]) -> None:
        """Items arrive, in this order, all of that tag."""
        first, self._arrived = self._arrived + 1, self._arrived + len(items)
        line = self._lines.get(tag)
        if line is None:
            line = self._lines[tag] = deque()
            self._is_first(first, tag)
        if len(items) == 1:
            line.append(first)
            line.append(items[0])
        else:
            ranks = range(first, self._arrived + 1)
            line.extend(chain.from_iterable(zip(ranks, items, strict=True)))

    def take_run(self, tag: str | None, limit: int) -> list[Result]:
        """The oldest items, of that tag if given, else all of one: that of the oldest one of all.

        So many at most, of at least one, and none that is behind one of another tag, unless a tag
        is given. An empty list when there is none.
        """
        until = None
        if tag is None:
            if not self._lines:
                return []
            tag, until = self._oldest()
        line = self._lines.get(tag)
        if line is None:
            return []
        if until is None and len(line) <= 2 * limit:
            del self._lines[tag]
            run = [line[1]] if len(line) == 2 else list(islice(line, 1, None, 2))
        else:
            run, pop = [], line.popleft
            while line and len(run) < limit and (until is None or line[0] < until):
                pop()
                run.append(pop())
            if not line:
                del self._lines[tag]
            else:
                self._is_first(line[0], tag)
        self._taken += len(run)
        return run

    def _oldest(self) -> tuple[str, int | None]:
        """The tag of the oldest item of all, and the rank of the oldest of another tag, if any."""
        lines = self._lines
        if len(lines) == 1:
            (tag,) = lines
            self._order = None
            return tag, None
        order = self._order
        if order is None:
            order = self._order = [(line[0], tag) for tag, line in lines.items()]
            heapify(order)
        _, tag = self._first(order)
        heappop(order)  # who takes items of it puts it back
        return tag, self._first(order)[0]

    def _first(self, order: list[tuple[int, str]]) -> tuple[int, str]:
        """The first that is not of the past; those before it are removed."""
        while True:
            rank, tag = order[0]
            line = self._lines.get(tag)
            if line is not None and line[0] == rank:
                return rank, tag
            heappop(order)

    def _is_first(self, rank: int, tag: str) -> None:
        """The item of that rank is the oldest of its tag now."""
        if self._order is None:
            return
        if len(self._order) > 2 * len(self._lines) + _PAST:
            self._order = None
        else:
            heappush(self._order, (rank, tag))

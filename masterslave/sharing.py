"""Lines of waiting tasks of several clients, who share the slaves.

Each client has lines of its own (`lines.WaitingLines`). The highest priority of all goes first;
among clients that have tasks of it, the one goes first that has had the fewest, so they take turns
(stride scheduling: each task costs its client ``1 / weight`` of a turn). A client that comes, or
had nothing waiting for a while, begins beside the others: it neither waits behind what they have
requested before, nor catches up on what it has not asked for.

::

    first(tags) --> clients by turns had  [B 3.0] [A 3.5] [C 4.0] --> lines of B --> its first task

With one client nothing is compared. With several, a task costs O(log clients) while all wait under
priority 0; with other priorities, or where a slave does not handle the tags of those whose turn it
is, O(clients).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection
from typing import Any, Generic, TypeVar

from masterslave.lines import Several, WaitingLines

Item = TypeVar("Item")

#: So many entries of the past may stand in the order of turns. Larger: a longer search among them.
#: Smaller: the order is made anew more often.
_PAST = 16


class _Share(Generic[Item]):
    """What a client has of the slaves."""

    __slots__ = ("cost", "entry", "lines", "number", "turn")

    def __init__(self, number: int) -> None:
        self.number = number  # order of arrival, for those that are equal otherwise
        self.lines = WaitingLines[Item]()
        self.turn = 0.0  # what its tasks have cost so far
        self.cost = 1.0  # of a task
        self.entry = 0  # number of its entry in the order of turns; others of it are of the past


class SharedLines(Generic[Item]):
    """Items in line, each of a client, under a tag and a priority."""

    def __init__(self) -> None:
        self._shares: dict[int, _Share[Item]] = {}  # of all clients that were ever here
        self._waiting: dict[int, _Share[Item]] = {}  # of those with items
        self._only: WaitingLines[Item] | None = None  # the lines of the one client with items
        # Of several: a heap of (turn, client's number, entry's number, share).
        self._order: list[tuple[float, int, int, _Share[Item]]] = []
        self._entries = 0
        self._now = 0.0  # the turn of who was served last
        self._has_priorities = False  # whether an item may have another priority than 0
        self._arrivals = 0

    def join(self, item: Item, client: int, tag: str, priority: int) -> None:
        """Stand at the end of the client's line."""
        share = self._waiting.get(client) or self._comes(client)
        if priority:
            self._has_priorities = True
        share.lines.join(item, tag, priority)

    def join_several(self, several: Several[Item], client: int, tag: str, priority: int) -> None:
        """They stand at the end of the client's line, with one place for all."""
        share = self._waiting.get(client) or self._comes(client)
        if priority:
            self._has_priorities = True
        share.lines.join_several(several, tag, priority)

    def join_at_head(self, item: Item, client: int, tag: str, priority: int) -> None:
        """Stand before all others of that client, tag and priority."""
        share = self._waiting.get(client) or self._comes(client)
        if priority:
            self._has_priorities = True
        share.lines.join_at_head(item, tag, priority)

    def first(self, tags: Collection[str]) -> Item | None:
        """The item whose turn it is among those of the given tags."""
        only = self._only
        if only is not None:
            return only.first(tags)
        if not self._waiting:
            return None
        return self._of_highest(tags) if self._has_priorities else self._of_next(tags)

    def leave(self, client: int, tag: str) -> None:
        """The first item of that client and tag leaves the line, unserved."""
        lines = self._waiting[client].lines
        lines.leave(tag)
        if not lines:
            self._goes(client)

    def serve(self, client: int, tag: str) -> None:
        """The first item of that client and tag leaves the line, and its client has had a turn."""
        only = self._only
        if only is not None:  # nobody is there to be compared with
            only.leave(tag)
            if not only:
                self._goes(client)
            return
        share = self._waiting[client]
        self._now = share.turn
        share.turn += share.cost
        if self._order[0][3] is share:
            heapq.heapreplace(self._order, self._entry(share))
        else:
            heapq.heappush(self._order, self._entry(share))
        share.lines.leave(tag)
        if not share.lines:
            self._goes(client)

    def only_line(self, tag: str) -> deque[Any] | None:
        """See `WaitingLines.only_line`; None where several clients take turns."""
        return None if self._only is None else self._only.only_line(tag)

    def emptied(self, client: int, tag: str) -> None:
        """See `WaitingLines.emptied`."""
        lines = self._waiting[client].lines
        lines.emptied(tag)
        if not lines:
            self._goes(client)

    def weigh(self, client: int, weight: float) -> None:
        """From now on the client gets so many turns for each of one with weight 1."""
        self._share(client).cost = 1.0 / weight

    def forget(self, client: int) -> None:
        """The client and its items are gone for good."""
        if client in self._waiting:
            self._goes(client)
        self._shares.pop(client, None)

    # --- inside -----------------------------------------------------------------------------

    def _of_next(self, tags: Collection[str]) -> Item | None:
        """The first item of the first client in order of turns that has one of these tags."""
        order = self._order
        passed = []
        found = None
        while order:
            _, _, entry, share = order[0]
            if entry != share.entry or not share.lines:
                heapq.heappop(order)
                continue
            found = share.lines.first(tags)
            if found is not None:
                break
            passed.append(heapq.heappop(order))
        for one in passed:
            heapq.heappush(order, one)
        return found

    def _of_highest(self, tags: Collection[str]) -> Item | None:
        best: tuple[int, float, int] | None = None
        winner = None
        for share in self._waiting.values():
            priority = share.lines.highest(tags)
            if priority is None:
                continue
            rank = -priority, share.turn, share.number
            if best is None or rank < best:
                best, winner = rank, share
        return None if winner is None else winner.lines.first(tags)

    def _share(self, client: int) -> _Share[Item]:
        share = self._shares.get(client)
        if share is None:
            self._arrivals += 1
            share = self._shares[client] = _Share(self._arrivals)
        return share

    def _comes(self, client: int) -> _Share[Item]:
        """A client has something waiting again."""
        share = self._share(client)
        waiting = self._waiting
        if not waiting:
            self._has_priorities = False
        elif len(waiting) == 1:
            (other,) = waiting.values()  # its turns were not counted while it was alone
            self._now = max(self._now, other.turn)
        share.turn = max(share.turn, self._now)
        waiting[client] = share
        if len(waiting) == 1:
            self._only = share.lines
            self._order = []
        else:
            self._only = None
            self._queue_up(share)
        return share

    def _goes(self, client: int) -> None:
        """A client has nothing waiting any more."""
        share = self._waiting.pop(client)
        share.lines = WaitingLines()
        self._only = None
        if len(self._waiting) == 1:
            (other,) = self._waiting.values()
            self._only = other.lines

    def _queue_up(self, share: _Share[Item]) -> None:
        """One more client of several has something waiting."""
        if self._order and len(self._order) < 2 * len(self._waiting) + _PAST:
            heapq.heappush(self._order, self._entry(share))
        else:
            self._order = [self._entry(one) for one in self._waiting.values()]
            heapq.heapify(self._order)

    def _entry(self, share: _Share[Item]) -> tuple[float, int, int, _Share[Item]]:
        self._entries += 1
        share.entry = self._entries
        return share.turn, share.number, share.entry, share

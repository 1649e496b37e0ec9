"""Threads that wait in the task manager, woken one by one and only for what concerns them.

A `threading.Condition` for all would wake a herd for each task; here each waiting thread has its
own. While its slave may take tasks, it stands in the line of each tag that the slave handles, and a
task wakes the one that has stood there longest. While it may not, it waits beside the lines, for
orders only, so that tasks do not wake the busy. All methods are called with the task manager's
lock held.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable


class Waiter:
    """One waiting thread."""

    def __init__(self, lock: threading.Lock) -> None:
        self.tags: frozenset[str] = frozenset()  # in whose lines it stands
        self.woken = threading.Condition(lock)
        self.called_for: str | None = None  # tag of the task that it was woken for


class Waiters:
    """The waiting threads, by tag, longest waiting first."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._by_tag: dict[str, OrderedDict[Waiter, None]] = {}

    def line_up(self, waiter: Waiter, tags: Iterable[str]) -> None:
        """A waiter stands in the lines of these tags from now on, and in no others."""
        self.leave(waiter)
        waiter.tags = frozenset(tags)
        for tag in waiter.tags:
            self._by_tag.setdefault(tag, OrderedDict())[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """A waiter stands in no line any more."""
        for tag in waiter.tags:
            line = self._by_tag.get(tag)
            if line is not None:
                line.pop(waiter, None)
                if not line:
                    del self._by_tag[tag]
        waiter.tags = frozenset()

    def wait(self, waiter: Waiter, timeout_s: float) -> None:
        """Block, the lock released meanwhile, until woken or for `timeout_s` seconds."""
        try:
            waiter.woken.wait(timeout_s)
        finally:
            self.leave(waiter)

    def wake(self, tag: str) -> None:
        """Wake one waiter that handles `tag`, if there is one; it leaves all its lines."""
        line = self._by_tag.get(tag)
        if line:
            waiter = next(iter(line))
            waiter.called_for = tag
            self.rouse(waiter)

    def rouse(self, waiter: Waiter) -> None:
        """Wake this waiter."""
        self.leave(waiter)
        waiter.woken.notify()

    def __bool__(self) -> bool:
        return bool(self._by_tag)

    def __len__(self) -> int:
        return len({waiter for line in self._by_tag.values() for waiter in line})

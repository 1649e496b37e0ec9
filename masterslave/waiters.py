"""Threads that wait in the task manager for tasks, woken one by one and only for what they handle.

A `threading.Condition` for all would wake a herd for each task; here each waiter has its own, and
a task wakes the one that has waited longest among those that handle its tag. All methods are
called with the task manager's lock held.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable


class Waiter:
    """One waiting thread."""

    def __init__(self, lock: threading.Lock, tags: frozenset[str]) -> None:
        self.tags = tags
        self.woken = threading.Condition(lock)


class Waiters:
    """The waiting threads, by tag, longest waiting first."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._by_tag: dict[str, OrderedDict[Waiter, None]] = {}

    def wait(self, tags: frozenset[str], timeout_s: float) -> None:
        """Block, the lock released meanwhile, until woken or for `timeout_s` seconds."""
        waiter = Waiter(self._lock, tags)
        for tag in tags:
            self._by_tag.setdefault(tag, OrderedDict())[waiter] = None
        try:
            waiter.woken.wait(timeout_s)
        finally:
            self._remove(waiter)

    def wake(self, tag: str) -> None:
        """Wake one waiter that handles `tag`, if there is one; it waits no longer for any tag."""
        line = self._by_tag.get(tag)
        if line:
            waiter = next(iter(line))
            self._remove(waiter)
            waiter.woken.notify()

    def wake_everybody(self) -> None:
        """Wake every waiter."""
        self.wake_all(list(self._by_tag))

    def wake_all(self, tags: Iterable[str] | None) -> None:
        """Wake every waiter for any of these tags; None stands for no tags."""
        for tag in list(tags or ()):
            for waiter in list(self._by_tag.get(tag, ())):
                self._remove(waiter)
                waiter.woken.notify()

    def __len__(self) -> int:
        return len({waiter for line in self._by_tag.values() for waiter in line})

    def _remove(self, waiter: Waiter) -> None:
        for tag in waiter.tags:
            line = self._by_tag.get(tag)
            if line is not None:
                line.pop(waiter, None)
                if not line:
                    del self._by_tag[tag]

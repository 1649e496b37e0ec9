"""What observers are to be told: noted under the task manager's lock, told without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from masterslave.hooks import Observer
from masterslave.waiters import Monitor

log = logging.getLogger(__name__)


class Outbox:
    """Calls of observers that are still to be made."""

    def __init__(self, lock: Monitor, observers: Sequence[Observer]) -> None:
        self._lock = lock
        self._observers = tuple(observers)
        self.is_read = bool(observers)  # whether it is worth noting anything
        self._calls: list[tuple[str, tuple[Any, ...]]] = []

    def note(self, hook: str, *args: Any) -> None:
        """(Locked.) Something has happened."""
        if self.is_read:
            self._calls.append((hook, args))

    def tell(self) -> None:
        """(Not locked.) Make the calls noted so far; what an observer raises is logged."""
        if not self._calls:
            return
        with self._lock:
            calls, self._calls = self._calls, []
        for hook, args in calls:
            for observer in self._observers:
                try:
                    getattr(observer, hook)(*args)
                except Exception:
                    log.exception("observer %r failed in %s", observer, hook)

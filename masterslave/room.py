"""Room for requests: in memory without a journal, on the disk with one. Who finds none waits.

`MASTERSLAVE_MEMORY` bounds the parameters of unfinished tasks where there is no journal to lay
them aside in; with one, requests wait only while it cannot be written.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from masterslave.errors import JournalError, MasterSlaveError, QueueFull
from masterslave.ledger import Ledger
from masterslave.queue import TaskQueue
from masterslave.settings import Settings
from masterslave.waiters import Monitor

log = logging.getLogger(__name__)

#: Between two looks of a request that waits for room, should nobody tell it of any.
_LOOK_S = 1.0


class Room:
    """Where requests wait for room. `lock` is the task manager's, not held by callers of `take`."""

    def __init__(
        self,
        lock: Monitor,
        queue: TaskQueue,
        ledger: Ledger | None,
        settings: Settings,
        has_ended: Callable[[], bool],
    ) -> None:
        """`has_ended`: whether the task manager takes no more requests: then nobody waits."""
        self._found = lock.condition()
        self._queue = queue
        self._ledger = ledger
        self._settings = settings
        self._has_ended = has_ended
        self._budget = settings.memory_bytes
        self._is_said = False  # that requests wait
        self.waiting = 0  # requests that wait

    def take(self, size: int, wait_s: float = math.inf) -> None:
        """Block until there is room for a request of so many bytes, or the job has ended.

        Raises `QueueFull` or `JournalError` where there is none after `wait_s` seconds, or instead
        of waiting where the settings say so.
        """
        if self._ledger is None and self._queue.parameter_bytes + size <= self._budget:
            self._is_said = False
            return
        deadline: float | None = None
        while (problem := self._problem(size)) is not None:
            now = time.monotonic()
            deadline = now + wait_s if deadline is None else deadline
            if self._settings.when_full == "raise" or now >= deadline:
                raise problem
            with self._found:
                if not self._is_said:
                    log.warning("requests wait: %s", problem, extra={"action": "requests_wait"})
                self._is_said = True
                self.waiting += 1
                self._found.wait(_LOOK_S)
                self.waiting -= 1
        self._is_said = False

    def found(self) -> None:
        """(Locked.) There may be room now, or the job has ended."""
        if self.waiting:
            self._found.notify_all()

    def _problem(self, size: int) -> MasterSlaveError | None:
        if self._has_ended():
            return None
        if self._ledger is not None:
            if self._ledger.trouble:
                try:
                    self._ledger.sync()
                except JournalError as error:
                    return error
            return None
        budget, held = self._budget, self._queue.parameter_bytes
        if not held or held + size <= budget:
            return None
        return QueueFull(
            f"the parameters of unfinished tasks take {held} bytes of memory, and the budget is "
            f"{budget} (MASTERSLAVE_MEMORY); start slaves, or use a journal: it keeps them on disk"
        )

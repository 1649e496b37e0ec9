"""The time that a slave may run: when it takes no more tasks, when it gives up what still runs,
and when it has had nothing to do for so long that it ends.

::

    start ............................ drain_at ........ kill_at .... end
      | takes tasks that usually fit      | what runs may  | leaves      | the batch system
      | before drain_at                   | finish         | in order    | would kill it

Pure: time is an argument, in seconds of any steady clock.
"""

from __future__ import annotations

from typing import NamedTuple

#: Kept for handing in the last results and leaving. Larger: a part of each job's time is not used.
#: Smaller: a slave whose master is slow to answer is killed while it leaves, as if it had crashed.
LEAVE_S = 5.0

#: Largest parts of a short lifetime that leaving and finishing may take.
_LEAVE_PART, _GRACE_PART = 0.05, 0.25


class Lifetime(NamedTuple):
    """The end of a slave's time, and what is to happen before it."""

    drain_at: float
    kill_at: float

    @classmethod
    def until(cls, end: float, now: float, grace_s: float) -> Lifetime:
        """Of a slave that must have left at `end`; tasks get `grace_s` seconds to finish."""
        left_s = max(0.0, end - now)
        kill_at = end - min(LEAVE_S, _LEAVE_PART * left_s)
        return cls(kill_at - min(grace_s, _GRACE_PART * left_s), kill_at)

    def left_s(self, now: float) -> float:
        """Seconds for which it still takes tasks."""
        return max(0.0, self.drain_at - now)


class Idleness:
    """Ends a slave that has had nothing to do for `limit_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since: float | None = None

    def is_over(self, busy: bool, now: float) -> bool:
        """Whether it is to end; call it whenever something may have changed.

        `busy`: it has a task, or its workers are not ready for one.
        """
        if busy:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= self.limit_s

    def wait_s(self, now: float) -> float | None:
        """Seconds until it may be over; None: not before something has changed."""
        return None if self._since is None else max(0.0, self._since + self.limit_s - now)

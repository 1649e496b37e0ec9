"""How many slaves a job should have: more while tasks wait, never more than allowed.

::

    manager's status --> View --Scaler.decide--> Growth --> jobs are submitted (commands/scale.py)

Slaves become fewer by themselves: those beyond the lower limit are started with ``--idle`` and end
when they have had nothing to do for so long. So nothing here ever ends a slave.

Pure: time is an argument, in seconds of any steady clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from masterslave.errors import SettingsError

#: Between two decisions to grow. Larger: a burst waits for its slaves. Smaller: a batch system is
#: flooded with jobs before the first of them has shown what one slave gets done.
STEP_S = 5.0

#: Tasks must have waited for so long while there are slaves. Larger: slow to grow. Smaller: jobs
#: are submitted for tasks that the present slaves run in a moment.
PATIENCE_S = 2.0

#: Pauses after jobs that ended without a slave, from the first to the longest, doubled each time.
#: Larger: one bad node delays a job. Smaller: a broken environment floods the batch system.
_PAUSE_FROM_S, _PAUSE_TO_S = 10.0, 600.0


class Limits(NamedTuple):
    """Between how many slaves a job may have."""

    low: int  # are there at all times
    high: int  # are never exceeded, jobs that wait in a queue included
    workers: int = 1  # of each slave

    def checked(self) -> Limits:
        """Return self; raise `SettingsError` when these cannot be limits."""
        if self.low < 0 or self.high < 1 or self.low > self.high:
            raise SettingsError(
                f"min={self.low}, max={self.high}: 0 <= min <= max and max >= 1 is needed"
            )
        return self


class View(NamedTuple):
    """What is known of a job at one moment."""

    waiting: int  # tasks that a slave of ours could run
    slaves: int  # present
    idle_workers: int  # of these
    pending: int  # jobs of slaves that have not come yet, and may

    @classmethod
    def of(cls, status: Mapping[str, Any], pending: int) -> View:
        """Read it out of what `TaskManager.status` gives. Tasks that no slave handles need none."""
        slaves = status["slaves"]
        ready = [slave for slave in slaves if slave["tags"] is not None]
        handled = {tag for slave in ready for tag in slave["tags"]}
        waiting = sum(
            count for tag, count in status["waiting"].items() if not ready or tag in handled
        )
        idle = sum(max(0, slave["workers"] - slave["holds"]) for slave in slaves)
        return cls(waiting, len(slaves), idle, pending)


class Growth(NamedTuple):
    """How many slaves to start now."""

    lasting: int = 0  # stay when they are idle
    passing: int = 0  # end when they are idle


_NONE = Growth()


class Scaler:
    """Decides by and by; remembers since when tasks wait, and what failed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits.checked()
        self._waiting_since: float | None = None
        self._next_step = -math.inf
        self._failed_in_row = 0
        self._paused_until = -math.inf

    def failed(self, now: float) -> float:
        """Jobs have ended without a slave: wait before the next ones. Gives the pause in s."""
        pause_s = float(min(_PAUSE_TO_S, _PAUSE_FROM_S * 2.0 ** min(self._failed_in_row, 30)))
        self._failed_in_row += 1
        self._paused_until = now + pause_s
        return pause_s

    def came(self) -> None:
        """A slave has come: what failed before was not for good."""
        self._failed_in_row = 0
        self._paused_until = -math.inf

    def decide(self, view: View, now: float) -> Growth:
        """What to start at this moment; whoever asks is expected to do it."""
        limits, total = self._limits, view.slaves + view.pending
        if view.waiting <= view.idle_workers:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if now < self._paused_until:
            return _NONE
        lasting = max(0, limits.low - total)
        passing = 0
        if now >= self._next_step and self._has_waited(view, now):
            wanted = math.ceil((view.waiting - view.idle_workers) / limits.workers)
            wanted -= view.pending + lasting
            room = limits.high - total - lasting
            passing = max(0, min(wanted, room, max(1, total)))  # twice as many at most
        if lasting or passing:
            self._next_step = now + STEP_S
        return Growth(lasting, passing)

    def _has_waited(self, view: View, now: float) -> bool:
        if self._waiting_since is None:
            return False
        return view.slaves == 0 or now - self._waiting_since >= PATIENCE_S

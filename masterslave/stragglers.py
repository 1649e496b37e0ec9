"""Which running task deserves a second attempt elsewhere: pure logic, time is an argument.

Off unless a tag asks for it. When nothing of that tag waits and a worker is idle, a task that has
run far longer than the tag's average is started there too; the first result wins. (The idea of
backup tasks is that of J. Dean and S. Ghemawat, "MapReduce", OSDI 2004, section 3.6.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from masterslave.pace import Pace

#: No task younger than this is repeated. Larger: short stragglers hold up the end of a job.
#: Smaller: a hiccup of the machine has tasks repeated.
YOUNGEST_S = 0.25


class _Run(NamedTuple):
    tag: str
    process: int
    since: float


class Stragglers:
    """The running tasks of the tags that want it."""

    def __init__(self) -> None:
        self._factors: dict[str, float] = {}  # tag -> how much longer than the average
        self._runs: dict[str, _Run] = {}  # task id -> its first attempt, oldest first

    def enable(self, tag: str, factor: float | None) -> None:
        """Repeat tasks of that tag that run longer than `factor` averages; None: do not."""
        if factor is None:
            self._factors.pop(tag, None)
        else:
            self._factors[tag] = factor

    def __bool__(self) -> bool:
        return bool(self._factors)

    def began(self, task_id: str, tag: str, process: int, now: float) -> None:
        """A slave was given a task."""
        if tag in self._factors:
            self._runs[task_id] = _Run(tag, process, now)

    def ended(self, task_id: str) -> None:
        """The task does not run any more, or has its second attempt."""
        self._runs.pop(task_id, None)

    def pick(self, process: int, tags: Collection[str], pace: Pace, now: float) -> str | None:
        """The task that an idle slave should run a second time, None if there is none.

        `tags`: those that it handles and of which nothing waits.
        """
        for task_id, run in self._runs.items():
            if run.tag in tags and run.process != process and self._is_late(run, pace, now):
                return task_id
        return None

    def late_tags(self, pace: Pace, now: float) -> set[str]:
        """The tags that have a task to be repeated."""
        return {run.tag for run in self._runs.values() if self._is_late(run, pace, now)}

    def _is_late(self, run: _Run, pace: Pace, now: float) -> bool:
        mean_s = pace.estimate_s(run.tag)
        factor = self._factors.get(run.tag)
        if mean_s is None or factor is None:
            return False
        return now - run.since > max(YOUNGEST_S, factor * mean_s)

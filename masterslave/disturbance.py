"""Which worker is hit by chaos, when, and which results are held back: pure, time is an argument.

The shell (`supervisor.py`) tells which tasks it gave out and what has ended, and carries out what
`Disturbance` answers. All that is drawn comes from the seed, in the order of the calls.
"""

from __future__ import annotations

import heapq
from enum import Enum
from random import Random

from masterslave.chaos import Chaos
from masterslave.records import Completion

#: The earliest kill comes so many times before the latest one. Larger: more of the kills hit tiny
#: tasks and workers that have just begun. Smaller: only tasks about as long as `kill_s` are hit.
_SPREAD = 2000.0


class Blow(Enum):
    """What is done to a worker."""

    KILL = "kill"
    STOP = "stop"
    CONTINUE = "continue"


class Disturbance:
    """The chaos among the workers of one slave."""

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self._random = Random(f"{chaos.seed} workers")  # noqa: S311 - no secret
        self._blows: list[tuple[float, int, int, Blow]] = []  # heap: when, number of draw, worker
        self._late: list[tuple[float, int, Completion]] = []  # heap
        self._draws = 0

    def gave(self, worker: int, tasks: int, now: float) -> None:
        """A worker got so many tasks."""
        for _ in range(tasks):
            if self._random.random() < self._chaos.kill:
                after_s = self._chaos.kill_s * _SPREAD ** -self._random.random()
                self._plan(now + after_s, worker, Blow.KILL)
            if self._random.random() < self._chaos.stop:
                begin = now + self._chaos.stop_s * _SPREAD ** -self._random.random()
                self._plan(begin, worker, Blow.STOP)
                end = begin + self._random.uniform(0.0, self._chaos.stop_s)
                self._plan(end, worker, Blow.CONTINUE)

    def blows(self, now: float) -> list[tuple[int, Blow]]:
        """What is to be done by now, in order: to which worker, and what."""
        due = []
        while self._blows and self._blows[0][0] <= now:
            _, _, worker, blow = heapq.heappop(self._blows)
            due.append((worker, blow))
        return due

    def hold_back(
        self, completions: list[Completion], now: float, *, none: bool = False
    ) -> list[Completion]:
        """What is to be handed in now, of what has ended and what was held back before.

        `none`: from now on nothing may be held back.
        """
        passed = []
        for done in completions:
            if not none and self._random.random() < self._chaos.delay:
                due = now + self._random.uniform(0.0, self._chaos.delay_s)
                heapq.heappush(self._late, (due, self._draw(), done))
            else:
                passed.append(done)
        while self._late and (none or self._late[0][0] <= now):
            passed.append(heapq.heappop(self._late)[2])
        return passed

    def held_back(self) -> list[Completion]:
        """What has ended and is not handed in yet. May be called from any thread."""
        return [done for _, _, done in list(self._late)]

    def wait_s(self, now: float) -> float | None:
        """Seconds until something is due; None: nothing is."""
        due = [heap[0][0] for heap in (self._blows, self._late) if heap]
        return max(0.0, min(due) - now) if due else None

    def _plan(self, when: float, worker: int, blow: Blow) -> None:
        heapq.heappush(self._blows, (when, self._draw(), worker, blow))

    def _draw(self) -> int:
        self._draws += 1  # so that the heaps never compare what comes behind it
        return self._draws

"""Which tasks of a shared folder take so long that they are run a second time. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from masterslave.pace import Pace
from masterslave.records import Assignment

#: A task is slow when it takes so many times the average, and so many seconds. Larger: one slow
#: machine holds up the end of a job for longer. Smaller: usual tasks are run twice.
_SLOW, _YOUNGEST_S = 3.0, 1.0


class Late:
    """Knows since when bundles are at work, and picks what is late, when little else is left."""

    def __init__(self, fraction: float, pace: Pace) -> None:
        """`fraction`: when no more of a tag's tasks are left, slow ones are picked; 0: never."""
        self._fraction, self._pace = fraction, pace
        self._ended: Counter[str] = Counter()  # tag -> tasks that have come to an end here
        self._begun_at: dict[str, float] = {}  # bundle -> when its last tasks should be begun
        self._picked: set[str] = set()

    def taken(self, bundle: str, tag: str, tasks: int, workers: int, now: float) -> None:
        """A slave of so many workers has a bundle of so many tasks."""
        before = (tasks - 1) // max(1, workers)  # tasks that each worker runs first
        self._begun_at[bundle] = now + before * (self._pace.estimate_s(tag) or 0.0)

    def forget(self, bundle: str) -> None:
        """A bundle has come to its end, or nobody has it any more."""
        self._begun_at.pop(bundle, None)

    def ended(self, tag: str) -> None:
        """A task has come to its end."""
        self._ended[tag] += 1

    def pick(
        self,
        now: float,
        bundles: Mapping[str, Mapping[tuple[str, int], Assignment]],
        waiting: Mapping[str, int],
        running: Mapping[str, int],
    ) -> Iterator[str]:
        """The ids of late tasks, each once."""
        for bundle, since in list(self._begun_at.items() if self._fraction else ()):
            for task in list(bundles.get(bundle, {}).values()):
                left, mean_s = running.get(task.tag, 0), self._pace.estimate_s(task.tag)
                few = left <= self._fraction * (left + self._ended[task.tag])
                if waiting.get(task.tag) or not few or mean_s is None:
                    continue
                slow = now - since >= max(_YOUNGEST_S, _SLOW * mean_s)
                if slow and task.task_id not in self._picked:
                    self._picked.add(task.task_id)
                    yield task.task_id

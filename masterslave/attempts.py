"""What became of each attempt that failed: for those who ask why a task failed.

Pure: `FailureLog` is told by a living task manager, `own_story` reads what its journal keeps.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from masterslave.records import Outcome

#: Failed tasks that are kept, and as many that are still under way after a failed attempt. Larger:
#: more memory, longer answers. Smaller: a job in which much fails forgets how it began.
KEPT_TASKS = 1000

#: Characters of all their stories together, beyond which the oldest are forgotten, too.
KEPT_CHARACTERS = 1 << 24


#: Of a task that ended so, the story is that of all its attempts.
OF_ALL_ATTEMPTS = frozenset((Outcome.CRASHED.value, Outcome.OUT_OF_MEMORY.value))


class Attempt(NamedTuple):
    """An attempt that failed."""

    attempt: int  # its number
    where: str  # the slave: process, host
    outcome: str  # an Outcome's value
    at: float  # seconds since 1970
    story: str  # traceback, or how the worker died


class FailedTask(NamedTuple):
    """A task of which an attempt failed."""

    task_id: str
    tag: str
    outcome: str  # how it ended; empty while it is under way
    attempts: list[Attempt]

    def as_row(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "task_id": self.task_id,
            "tag": self.tag,
            "outcome": self.outcome,
            "attempts": [attempt._asdict() for attempt in self.attempts],
        }


class FailureLog:
    """The newest failures, in bounded memory. Not thread-safe: the shell locks."""

    def __init__(self, tasks: int = KEPT_TASKS, characters: int = KEPT_CHARACTERS) -> None:
        self._tasks = tasks
        self._characters = characters
        self._failed: OrderedDict[str, FailedTask] = OrderedDict()  # oldest first; so below
        self._under_way: OrderedDict[str, FailedTask] = OrderedDict()
        self._used = 0  # characters
        self.forgotten = 0  # tasks that failed and had to be forgotten

    def setback(self, task_id: str, tag: str, attempt: Attempt) -> None:
        """An attempt failed and another one follows."""
        task = self._under_way.pop(task_id, None) or FailedTask(task_id, tag, "", [])
        task.attempts.append(attempt)
        self._under_way[task_id] = task
        self._used += len(attempt.story)
        self._trim()

    def failed(self, task_id: str, tag: str, attempt: Attempt) -> None:
        """A task came to its end with an attempt that failed."""
        before = self._under_way.pop(task_id, None)
        attempts = [*(before.attempts if before is not None else ()), attempt]
        self._failed[task_id] = FailedTask(task_id, tag, attempt.outcome, attempts)
        self._used += len(attempt.story)
        self._trim()

    @property
    def is_under_way(self) -> bool:
        """Whether any task of which an attempt failed has not come to its end."""
        return bool(self._under_way)

    def ended_well(self, task_id: str) -> None:
        """A task has its result, or nobody wants it any more."""
        if task_id in self._under_way:
            self._drop(self._under_way, task_id)

    def rows(self) -> dict[str, Any]:
        """All that is known, as plain types, oldest first."""
        return {
            "failed": [task.as_row() for task in self._failed.values()],
            "under_way": [task.as_row() for task in self._under_way.values()],
            "forgotten": self.forgotten,
        }

    def _trim(self) -> None:
        while len(self._under_way) > self._tasks:
            self._drop(self._under_way, next(iter(self._under_way)))
        while self._failed and (len(self._failed) > self._tasks or self._used > self._characters):
            self._drop(self._failed, next(iter(self._failed)))
            self.forgotten += 1
        while self._under_way and self._used > self._characters:
            self._drop(self._under_way, next(iter(self._under_way)))

    def _drop(self, tasks: OrderedDict[str, FailedTask], task_id: str) -> None:
        self._used -= sum(len(attempt.story) for attempt in tasks.pop(task_id).attempts)


def own_story(attempt: int, outcome: str, story: str) -> str:
    """What the last attempt's own story is, in the story that a task ended with."""
    if outcome not in OF_ALL_ATTEMPTS:
        return story
    begin = f"attempt {attempt}: "
    if story.startswith(begin):
        return story[len(begin) :]
    return story.rpartition(f"\n{begin}")[2]


def headline(outcome: str, story: str) -> str:
    """The line of a story that says most: the last one of a traceback, else the first one."""
    lines = story.strip().splitlines() or [""]
    if outcome == Outcome.EXCEPTION:
        return lines[-1]
    return lines[0].partition("; last lines of standard error:")[0]

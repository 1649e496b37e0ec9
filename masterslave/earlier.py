"""Tasks of earlier runs, as the journal tells of them, until this run requests them again.

::

    journal --> park, failed_before, finished_before --> PARKED --claim, reclaim--> as it had come
                                                            +----drop_owned--> (gone)

A task is found by the identity of its request. One whose request says by its `TaskOptions.origin`
which client it came from is kept for that client first. As pure as `queue`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from masterslave.queue import TaskQueue
from masterslave.records import AT_REST, LOST, Frame, Outcome, TaskOptions
from masterslave.states import OUTCOME_EVENTS, Task, is_open


class EarlierRuns:
    """The parked tasks of a queue. Not thread-safe: the shell locks."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._parked: dict[bytes, deque[Task]] = {}  # identity -> tasks in order of request
        self._owned: dict[str, deque[tuple[bytes, Task]]] = {}  # client's token -> identity, task

    # --- what the journal tells -------------------------------------------------------------

    def park(self, number: int, tag: str, identity: bytes, options: TaskOptions) -> Task:
        """A task that an earlier run has requested, as its journal says.

        Then tell of its attempts by `Leases.adopt` and `failed_before`, and of its end, if it had
        come to one, by `finished_before`: it stands as that run left it.
        """
        task = self._queue.park(number, tag, options)
        if options.origin is None:
            self._parked.setdefault(identity, deque()).append(task)
        else:
            self._owned.setdefault(options.origin[0], deque()).append((identity, task))
        return task

    def failed_before(
        self, process: int, task_id: str, attempt: int, outcome: str, story: str
    ) -> None:
        """An attempt of a parked task has failed in an earlier run, and was to be answered.

        No limit is asked about it: those of its request of that time may not be those of the next.
        If its slave was only `LOST`, that may come back with it, and then it has not failed.
        """
        task = self._queue.tasks[task_id]
        if not is_open(task):
            return
        if outcome == Outcome.EXCEPTION:
            task.failures += 1
        else:
            task.crashes += 1
        task.history += (f"attempt {attempt}: {story}",)
        if outcome == LOST:
            blamed = self._queue.held.blamed.setdefault(process, [])
            blamed.append((task_id, attempt, task.history[-1]))
        else:
            task.answered = max(task.answered, attempt)
        if attempt >= task.attempt:
            task.attempt = attempt
            self._queue.held.unhold(task)

    def absolved_before(self, task_id: str, attempt: int) -> None:
        """A failed attempt of a parked task was none, as its slave came back; if it has failed."""
        task = self._queue.tasks[task_id]
        stories = [story for story in task.history if story.startswith(f"attempt {attempt}: ")]
        if stories and is_open(task):
            task.crashes -= 1
            task.history = tuple(one for one in task.history if one != stories[-1])
            self._queue.held.absolve(task_id, attempt)

    def finished_before(self, task_id: str, outcome: str, detail: str) -> None:
        """A parked task has come to its end in an earlier run; its result is at rest."""
        task = self._queue.tasks[task_id]
        if is_open(task):
            self._queue.finish(task, OUTCOME_EVENTS[outcome], AT_REST, detail)

    # --- who asks for them ------------------------------------------------------------------

    def claim(
        self, client: int, identity: bytes, frame: Frame, options: TaskOptions
    ) -> Task | None:
        """A client states a task. The first parked one of that identity takes its place, if any.

        Gives that task, with the id that it has had all along; None: it is a new one.
        """
        task = self._next_parked(identity, options)
        if task is not None:
            self._queue.claim(client, task, frame, options)
        return task

    def _next_parked(self, identity: bytes, options: TaskOptions) -> Task | None:
        """The parked task that a request takes up: the one that came of it, or an equal one."""
        if options.origin is not None:
            # Those of one request stand in its order, but for what its client has had before it
            # knew their ids.
            owned = self._owned.get(options.origin[0])
            if owned and owned[0][0] == identity and owned[0][1].options.origin == options.origin:
                return owned.popleft()[1]
        line = self._parked.get(identity)
        if not line:
            return None
        task = line.popleft()
        if not line:
            del self._parked[identity]
        return task

    def reclaim(
        self, client: int, token: str, outstanding: Collection[str], answered: int
    ) -> tuple[list[str], list[Task]]:
        """A client of an earlier run is back: its tasks of that run are its own again.

        `token`: by which its requests are known. `outstanding`: the ids of the tasks that it waits
        for. `answered`: the number of the last of its requests of which it knows the ids. What came
        of earlier ones and is not outstanding it has had. Gives the ids that are unknown here, and
        the tasks that it has had, which are forgotten.
        """
        had = []
        wanted = set(outstanding)
        left: deque[tuple[bytes, Task]] = deque()
        for identity, task in self._owned.pop(token, ()):
            origin = task.options.origin
            if task.id in wanted:
                self._queue.claim(client, task, AT_REST, task.options)
            elif origin is not None and origin[1] > answered:
                left.append((identity, task))  # to be claimed by that request, made again
            else:
                self._queue.drop_parked(task)
                had.append(task)
        if left:
            self._owned[token] = left
        tasks = self._queue.tasks
        missing = [one for one in outstanding if one not in tasks or tasks[one].client != client]
        return missing, had

    def owners(self) -> list[str]:
        """The tokens of the clients of an earlier run that have not come back."""
        return list(self._owned)

    def disown(self, token: str) -> None:
        """A client of an earlier run does not come back: an equal request takes up its tasks."""
        for identity, task in self._owned.pop(token, ()):
            self._parked.setdefault(identity, deque()).append(task)

    def drop_owned(self, token: str) -> list[tuple[Task, list[int]]]:
        """A client of an earlier run does not come back, and nobody will take its results.

        Gives its tasks, each with the slaves that run it, to be told.
        """
        dropped = []
        for _, task in self._owned.pop(token, ()):
            dropped.append((task, [task.holder] if task.holder is not None else []))
            self._queue.drop_parked(task)
        return dropped

    def __bool__(self) -> bool:
        """Whether there may be tasks that this run has not requested."""
        return bool(self._parked or self._owned)

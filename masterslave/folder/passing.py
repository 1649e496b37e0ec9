"""A task manager that takes tasks to lay them out, and learns later which slave has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from masterslave.errors import ConnectionFailed, TaskManagerTermination
from masterslave.manager import TaskManager
from masterslave.records import Assignment, Delivery
from masterslave.states import State


class PassingManager(TaskManager):
    """What the folder needs beside a `TaskManager`: one member of it, the shelf, is no process.

    The shelf holds the tasks that lie in the folder and that no slave has taken yet. To everybody
    else they wait.
    """

    shelf: int = -1
    _given_up = ""

    def give_up(self, reason: str) -> None:
        """End the job, which cannot go on: who waits for results is told why."""
        self._given_up = reason
        self.terminate()

    def getResults(
        self,
        process_id: int = 0,
        tag: str | None = None,
        limit: int = 1,
        timeout: float | None = None,
        while_outstanding: bool = False,
    ) -> list[Delivery]:
        """See `TaskManager.getResults`. Raises `ConnectionFailed` when the folder has gone."""
        try:
            return super().getResults(process_id, tag, limit, timeout, while_outstanding)
        except TaskManagerTermination:
            if self._given_up:
                raise ConnectionFailed(self._given_up) from None
            raise

    def open_shelf(self, name: str) -> None:
        """Make the shelf."""
        self.shelf = self.registerProcess(None, name)[0]

    def lay_out(self, tags: Iterable[str]) -> None:
        """The shelf takes tasks of these tags from now on."""
        with self._lock:
            member = self._roster.get(self.shelf)
            if member.tags != (wanted := frozenset(tags)):
                member.tags = wanted
                self._handout.rouse(member)

    def pass_on(self, process_id: int, attempts: Iterable[tuple[str, int]]) -> None:
        """A slave has taken these attempts from the shelf."""
        taken = []
        with self._lock:
            member = self._roster.known(process_id)
            for task_id, attempt in attempts:
                task = self._queue.tasks.get(task_id)
                if member is None or task is None or task.state is not State.RUNNING:
                    continue
                if (task.attempt, task.holder) == (attempt, self.shelf):
                    self._leases.pass_on(task, process_id)
                    taken.append(Assignment(task_id, task.tag, attempt, [], None))
            if self._ledger is not None:
                self._ledger.handed_out(process_id, taken)

    def repeat(self, task_id: str) -> Assignment | None:
        """The shelf takes another attempt of a task that a slave is at; None: it has ended."""
        with self._lock:
            shelf = self._roster.get(self.shelf)
            task = self._leases.repeat(self.shelf, task_id)
            if task is None:
                return None
            if self._ledger is not None:
                self._ledger.handed_out(self.shelf, [task])
        if self._ledger is None:
            return task
        tasks = self._settling.put_on_record(self._ledger, shelf, [task], {})
        return tasks[0] if tasks else None

    def priorities(self, task_ids: Iterable[str]) -> dict[str, int]:
        """The priority of each of these tasks that has one other than 0."""
        with self._lock:
            found = ((task_id, self._queue.tasks.get(task_id)) for task_id in task_ids)
            return {i: t.options.priority for i, t in found if t is not None and t.options.priority}

    def find_process(self, token: str) -> int | None:
        """The slave with that token, present or lost."""
        with self._lock:
            ids = [m.id for m in self._roster.all_known() if token and m.info.token == token]
            return ids[0] if ids else None

    def notices_for(self, process_id: int) -> dict[str, Any]:
        """What a slave is to be told."""
        with self._lock:
            member = self._roster.known(process_id)
            return {} if member is None else member.notices()

    def data_items(self) -> dict[str, Any]:
        """All data items as they are now."""
        with self._lock:
            return dict(self._data)

    def laid_out(self) -> dict[str, int]:
        """Tag -> number of tasks on the shelf."""
        counts: dict[str, int] = {}
        with self._lock:
            for task in self._queue.held.of(self.shelf):
                counts[task.tag] = counts.get(task.tag, 0) + 1
        return counts

    def status(self) -> dict[str, Any]:
        """See `TaskManager.status`."""
        status = super().status()
        for tag, count in self.laid_out().items():
            status["running"][tag] = max(0, status["running"].get(tag, 0) - count)
            status["waiting"][tag] = status["waiting"].get(tag, 0) + count
        status["running"] = {tag: count for tag, count in status["running"].items() if count}
        status["masters"] = [row for row in status["masters"] if row["id"] != self.shelf]
        status["active_processes"] -= 1
        return status

"""Which slave has which tasks, and which lost one is to blame for what."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from masterslave.states import Task


class Held:
    """What a slave has."""

    __slots__ = ("by_tag", "tasks")

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}  # oldest first
        self.by_tag: dict[str, int] = {}  # how many


class Holdings(dict[int, Held]):
    """By process id, of those that have tasks."""

    def __init__(self) -> None:
        super().__init__()
        # Of each lost process: tasks that count it as a crash, with attempt and story.
        self.blamed: dict[int, list[tuple[str, int, str]]] = {}

    def hold(self, task: Task, process: int) -> None:
        """A slave has that task now."""
        task.holder = process
        held = self.get(process)
        if held is None:
            held = self[process] = Held()
        if task.id not in held.tasks:
            held.by_tag[task.tag] = held.by_tag.get(task.tag, 0) + 1
        held.tasks[task.id] = task

    def unhold(self, task: Task) -> None:
        """Nobody has that task any more."""
        if task.holder is not None:
            held = self.get(task.holder)
            if held is not None:
                if held.tasks.pop(task.id, None) is not None:
                    held.by_tag[task.tag] -= 1
                if not held.tasks:
                    del self[task.holder]
            task.holder = None

    def let_go(self, process: int) -> list[Task]:
        """A slave has nothing any more; gives what it had."""
        held = self.pop(process, None)
        return [] if held is None else list(held.tasks.values())

    def of(self, process: int) -> Collection[Task]:
        """The tasks that a slave has, oldest first."""
        held = self.get(process)
        return () if held is None else held.tasks.values()

    def load_of(self, process: int) -> Mapping[str, int]:
        """How many tasks of each tag a slave has."""
        held = self.get(process)
        return {} if held is None else held.by_tag

    def absolve(self, task_id: str, attempt: int) -> None:
        """Nobody is to blame for that attempt any more."""
        for blamed in self.blamed.values():
            blamed[:] = [one for one in blamed if one[:2] != (task_id, attempt)]

    def to_blame(self) -> list[int]:
        """The lost slaves whose loss counts as a crash of a task, until they come back."""
        return [process for process, tasks in self.blamed.items() if tasks]

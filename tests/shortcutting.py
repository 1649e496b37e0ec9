"""A task manager and its shortcuts, whose ends are played by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from managing import Clock, X
from test_manager_parked import Slave

from masterslave.journal import Journal
from masterslave.listener import Listener
from masterslave.manager import TaskManager
from masterslave.records import Assignment, Completion, Outcome, ProcessInfo
from masterslave.settings import Settings
from masterslave.stores.memory import MemoryStore


class End:
    """A shortcut as the task manager sees it."""

    def __init__(self, heard: Callable[[], None]) -> None:
        self.heard = heard
        self.tasks: list[Assignment] = []  # that were sent
        self.results: list[Completion] = []  # not read yet
        self.is_damaged = False
        self.is_open = True
        self.room_bytes = 1000
        self.skipped: list[str] = []
        self.forgotten: list[str] = []
        self.is_watched = False
        self.acknowledged = 0
        self.is_held, self.may_hold, self.is_sure = False, True, True
        self.last: tuple[str, int] | None = None
        self.ears: list[Any] = []  # for threads that wait, in order

    def pack(self, tasks: Sequence[Assignment]) -> bytes:
        self._next = tasks
        return b"tasks".ljust(10 * len(tasks))

    def pack_skip(self, keys: Sequence[tuple[str, int]]) -> bytes:
        return b" ".join([b"skip", *(task_id.encode() for task_id, _ in keys)])

    def hold(self) -> bool:
        assert self.is_open
        self.is_held = self.may_hold
        return self.may_hold

    def begun(self) -> tuple[bool, tuple[str, int] | None]:
        assert self.is_held
        return self.is_sure, self.last

    def release(self) -> None:
        self.is_held = False

    def pack_forget(self, names: Sequence[str]) -> bytes:
        return b" ".join([b"forget", *map(str.encode, names)])

    def send(self, data: bytes) -> None:
        assert self.is_open
        kind, *names = data.decode().split()
        if kind == "tasks":
            self.tasks += self._next
        elif kind == "skip":
            self.skipped += names
        else:
            self.forgotten += names

    def acknowledge(self) -> None:
        self.acknowledged += 1

    def look_closely(self, closely: bool) -> None:
        self.is_watched = closely

    def ear(self) -> Any:
        assert self.is_open
        return self.ears.pop(0) if self.ears else None

    def read(self) -> list[Completion]:
        assert self.is_open
        if self.is_damaged:
            raise ValueError("no result")
        results, self.results = self.results, []
        return results

    def close(self) -> None:
        assert self.is_open
        self.is_open = False

    def ends(
        self,
        outcome: Outcome = Outcome.RESULT,
        *,
        attempt: int = 0,
        place: int = -1,
        duration_s: float = 0.1,
    ) -> Completion:
        """The worker hands in a task, the last; the task manager is not told of it yet."""
        task = self.tasks[place]
        attempt = attempt or task.attempt
        done = Completion(task.task_id, attempt, outcome.value, [b"r"], duration_s, "")
        self.results.append(done)
        return done

    def works(self, outcome: Outcome = Outcome.RESULT) -> None:
        """The worker hands in the last task."""
        self.ends(outcome)
        self.heard()


class Scene:
    """A task manager, a client, and slaves with shortcuts to all their workers."""

    def __init__(self, manager: TaskManager, clock: Clock) -> None:
        self.manager, self.clock = manager, clock
        self.refuses = False
        self.opened: list[End] = []
        self.client: int = manager.registerProcess(None, "client")[0]
        manager.allowShortcuts(self._open)

    def _open(self, names: Sequence[Any], heard: Callable[[], None]) -> End:
        if self.refuses:
            raise OSError("not here")
        self.opened.append(End(heard))
        return self.opened[-1]

    def slave(self, workers: int = 1, token: str = "a", period: float | None = None) -> Slave:
        """A slave with an idle worker or more, whose call is parked."""
        self.info = ProcessInfo(f"slave {token}", 1, "host", workers, token)
        process_id, _, self.generation = self.manager.registerProcess(period, self.info)
        self.manager.announceTags(process_id, ["sqrt", "x" * 120])
        for number in range(workers):
            self.offer(process_id, number)
        return Slave(self.manager, process_id).park(generation=self.generation)

    def offer(self, process_id: int, worker: int) -> bool:
        return self.manager.openShortcut(process_id, self.generation, worker, [1, 2, 3, 4, 5, 6])

    def closed(self, slave: Slave, *workers: int) -> None:
        self.manager.closeShortcuts(slave.id, self.generation, workers)

    def request(self, *, tag: str = "sqrt", frame: list[bytes] = X, **options: Any) -> str:
        chosen = [0, options.get("timeout"), options.get("retries", 0),
                  options.get("crash_limit", 5), None]  # fmt: skip
        return self.manager.addTaskRequest(tag, frame, self.client, chosen)

    def results(self) -> list[tuple[str, str]]:
        got = self.manager.getResults(self.client, None, 100, 0.0)
        return [(one.task_id, one.outcome) for one in got]

    def crashes(self, task_id: str) -> int:
        return self.manager._queue.tasks[task_id].crashes

    def held(self, slave: Slave) -> list[str]:
        return [task.id for task in self.manager._leases.held.of(slave.id)]

    def hand_in(self, slave: Slave, *done: Completion, room: int | None = None) -> list[Any]:
        return self.manager.exchange(slave.id, done, (), room, 0.0, self.generation)


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.stop()


@pytest.fixture
def scene(manager: TaskManager, clock: Clock) -> Iterator[Scene]:
    scene = Scene(manager, clock)
    yield scene
    manager.forbidShortcuts()
    assert not [end for end in scene.opened if end.is_open], "left open"


@pytest.fixture
def journaled(clock: Clock) -> Iterator[Scene]:
    """A scene whose task manager has a journal."""
    settings = Settings(key_file=Path("unused"))
    manager = TaskManager("job", settings, clock=clock, journal=Journal(MemoryStore()))
    yield Scene(manager, clock)
    manager.forbidShortcuts()


def journaled_slave(scene: Scene) -> int:
    """A slave with one worker and a shortcut to it."""
    info = ProcessInfo("slave a", 1, "host", 1, "a")
    process_id, _, scene.generation = scene.manager.registerProcess(None, info)
    scene.manager.announceTags(process_id, ["sqrt"])
    assert scene.offer(process_id, 0)
    return int(process_id)

"""A task manager in this process, its slaves and clients played by the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave.manager import TaskManager
from masterslave.records import Assignment, Delivery, Outcome, ProcessInfo
from masterslave.settings import Settings

X = [b"x"]
LONG_S = 4 * PATIENCE_S  # a wait that must be ended by something else than its time-out


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(clock: Clock) -> TaskManager:
    return TaskManager("job", Settings(key_file=Path("unused")), clock=clock)


@pytest.fixture
def live() -> Iterator[TaskManager]:
    """A task manager with the real clock, in which threads may wait."""
    manager = TaskManager("job", Settings(key_file=Path("unused")))
    yield manager
    manager.terminate()


def join(
    manager: TaskManager,
    tags: str = "sqrt",
    *,
    workers: int = 1,
    period: float | None = None,
    token: str = "",
) -> int:
    """A slave that handles these tags; gives its process id."""
    info = ProcessInfo(f"slave {token}", 1, "host", workers, token)
    process_id = manager.registerProcess(period, info)[0]
    manager.announceTags(process_id, tags.split())
    return int(process_id)


def take(manager: TaskManager, slave: int) -> list[Assignment]:
    return list(manager.exchange(slave)[0])


def give(
    manager: TaskManager,
    slave: int,
    task: Assignment,
    outcome: Outcome = Outcome.RESULT,
    *,
    duration_s: float = 0.0,
    detail: str = "",
    frame: list[bytes] | None = None,
) -> None:
    done = (task.task_id, task.attempt, outcome.value, frame or [b"r"], duration_s, detail)
    manager.exchange(slave, [done], (), False)


def ids(tasks: list[Assignment] | list[Delivery]) -> list[str]:
    return [task.task_id for task in tasks]


class Call:
    """A call in a thread of its own; `outcome()` gives its result or raises its error."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._result: Any = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._result = function(*args, **kwargs)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def outcome(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert self.done, "the call is still blocked"
        if self._error is not None:
            raise self._error
        return self._result


def waiting(manager: TaskManager) -> int:
    """How many threads stand in line for tasks."""
    with manager._lock:
        return len(manager._handout.waiters)


def wait_for_line(manager: TaskManager, length: int) -> None:
    wait_until(lambda: waiting(manager) == length, f"{length} slaves stand in line")


def wait_for_clients(manager: TaskManager, number: int) -> None:
    wait_until(
        lambda: sum(map(len, manager._results.calls.values())) == number, f"{number} clients wait"
    )


@contextmanager
def in_line(manager: TaskManager, slaves: list[int]) -> Iterator[list[Call]]:
    """These slaves wait for tasks, in this order."""
    calls = []
    for number, slave in enumerate(slaves, start=1):
        calls.append(Call(manager.exchange, slave, (), (), None, LONG_S))
        wait_for_line(manager, number)
    yield calls

"""Observers: told of everything that happens, without the lock, and unable to do harm."""

from __future__ import annotations

import inspect
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from masterslave.hooks import Observer
from masterslave.manager import TaskManager
from masterslave.records import Outcome, TaskOptions
from masterslave.settings import Settings

HOOKS = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if name[0] != "_"]


class Recorder(Observer):
    """Writes down every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []


def _recording(name: str) -> Any:
    def hook(self: Recorder, *args: Any) -> None:
        self.calls.append((name, *args))

    return hook


for _name in HOOKS:
    setattr(Recorder, _name, _recording(_name))


def make_manager(*observers: Observer, clock: Any = lambda: 0.0) -> TaskManager:
    return TaskManager("observed", Settings(key_file=Path("unused")), observers, clock=clock)


def make_slave(manager: TaskManager, name: str = "slave") -> int:
    process_id = manager.registerProcess(None, (name, 1, "host", 1, "token"))[0]
    manager.announceTags(process_id, ["sqrt"])
    return int(process_id)


def observed() -> tuple[Recorder, TaskManager, int]:
    """A recorder, the task manager that it observes, and a slave of that."""
    seen = Recorder()
    manager = make_manager(seen)
    return seen, manager, make_slave(manager)


def hand_out(manager: TaskManager, slave: int, crash_limit: int = 5) -> str:
    """Have the slave run a new task."""
    task_id = manager.addTaskRequest("sqrt", [b"x"], 0, TaskOptions(crash_limit=crash_limit))
    manager.exchange(slave)
    return task_id


def hand_in(
    manager: TaskManager, slave: int, task_id: str, outcome: Outcome, detail: str = ""
) -> None:
    manager.exchange(slave, [(task_id, 1, outcome.value, [b"r"], 0.5, detail)], (), False)


def test_the_base_class_takes_every_call_and_does_nothing() -> None:
    observer = Observer()
    for name in HOOKS:
        hook = getattr(observer, name)
        assert hook(*(None for _ in inspect.signature(hook).parameters)) is None


def test_the_life_of_a_task_and_its_slave_is_told_in_order() -> None:
    seen, manager, slave = observed()
    task_id = hand_out(manager, slave)
    hand_in(manager, slave, task_id, Outcome.RESULT)
    manager.unregisterProcess(slave)
    assert seen.calls == [
        ("process_joined", slave, "slave"),
        ("task_requested", "sqrt_0", "sqrt"),
        ("task_finished", "sqrt_0", "sqrt", "result", 0.5),
        ("process_left", slave, "slave", "unregistered"),
    ]


def test_every_request_of_a_batch_is_told() -> None:
    seen = Recorder()
    ids = make_manager(seen).addTaskRequests("sqrt", [[b"1"], [b"2"], [b"3"]])
    assert seen.calls == [("task_requested", task_id, "sqrt") for task_id in ids]


def test_a_lost_slave_and_its_rescheduled_task_are_told() -> None:
    seen, manager, slave = observed()
    task_id = hand_out(manager, slave)
    seen.calls.clear()
    manager.lostProcess(slave, "its connection closed")
    assert seen.calls == [
        ("task_rescheduled", task_id, "sqrt", "its slave was lost"),
        ("process_left", slave, "slave", "its connection closed"),
    ]


def test_a_silent_slave_is_told_when_the_clock_says_so() -> None:
    seen = Recorder()
    now = [0.0]
    manager = make_manager(seen, clock=lambda: now[0])
    manager.registerProcess(10.0, "sleepy")
    now[0] = 50.0
    manager.checkLiveness()
    assert seen.calls[-1] == ("process_left", 0, "sleepy", "silent for 50.0 s")


@pytest.mark.parametrize(
    ("outcome", "told"),
    [(Outcome.EXCEPTION, "exception"), (Outcome.CRASHED, "crashed"),
     (Outcome.TIMED_OUT, "timed_out")],
)  # fmt: skip
def test_each_way_to_fail_is_told(outcome: Outcome, told: str) -> None:
    seen, manager, slave = observed()
    task_id = hand_out(manager, slave, crash_limit=1)
    hand_in(manager, slave, task_id, outcome, "why")
    assert seen.calls[-1] == ("task_finished", task_id, "sqrt", told, 0.5)


def test_a_cancelled_task_is_told_once() -> None:
    seen = Recorder()
    manager = make_manager(seen)
    task_id = manager.addTaskRequest("with_line", [b"x"])
    assert manager.cancelTask(task_id) and not manager.cancelTask(task_id)
    assert seen.calls[1:] == [("task_finished", task_id, "with_line", "cancelled", 0.0)]


def test_a_dropped_result_is_not_told() -> None:
    seen, manager, slave = observed()
    task_id = hand_out(manager, slave)
    hand_in(manager, slave, task_id, Outcome.RESULT)
    before = list(seen.calls)
    hand_in(manager, slave, task_id, Outcome.RESULT)
    assert seen.calls == before


def test_a_slave_that_comes_back_with_its_task_does_not_count_as_rescheduled() -> None:
    seen, manager, slave = observed()
    task_id = hand_out(manager, slave)
    seen.calls.clear()
    # Its old connection is not missed yet; the task was never given up.
    manager.registerProcess(None, ("slave", 1, "host", 1, "token"), slave, [(task_id, 1)])
    assert seen.calls == [("process_joined", slave, "slave")]


def test_observers_are_called_without_the_lock() -> None:
    class Curious(Observer):
        """Asks back from another thread, which would hang if the lock were held."""

        def __init__(self) -> None:
            self.asked: list[str] = []

        def _ask(self, hook: str) -> None:
            thread = threading.Thread(target=manager.status, daemon=True)
            thread.start()
            thread.join(30)
            assert not thread.is_alive()
            self.asked.append(hook)

        def task_requested(self, task_id: str, tag: str) -> None:
            self._ask("requested")

        def task_finished(self, *args: Any) -> None:
            self._ask("finished")

        def task_rescheduled(self, *args: Any) -> None:
            self._ask("rescheduled")

        def process_joined(self, *args: Any) -> None:
            self._ask("joined")

        def process_left(self, *args: Any) -> None:
            self._ask("left")

    curious = Curious()
    manager = make_manager(curious)
    slave = make_slave(manager)
    hand_in(manager, slave, hand_out(manager, slave), Outcome.RESULT)
    hand_out(manager, slave)
    manager.lostProcess(slave, "gone")
    assert curious.asked == ["joined", "requested", "finished", "requested", "rescheduled", "left"]


def test_an_observer_may_request_tasks_itself() -> None:
    class Chain(Observer):
        def task_requested(self, task_id: str, tag: str) -> None:
            if tag == "first":
                manager.addTaskRequest("second", [b"y"])

    seen = Recorder()
    manager = make_manager(Chain(), seen)
    manager.addTaskRequest("first", [b"x"])
    assert manager.numberOfTasks()[0] == {"first": 1, "second": 1}
    assert sorted(call[1] for call in seen.calls) == ["first_0", "second_1"]


def test_a_failing_observer_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Observer):
        def task_requested(self, task_id: str, tag: str) -> None:
            raise ZeroDivisionError("an observer's own trouble")

    seen = Recorder()
    manager = make_manager(Broken(), seen)
    with caplog.at_level(logging.ERROR):
        assert manager.addTaskRequest("sqrt", [b"x"]) == "sqrt_0"
    assert seen.calls == [("task_requested", "sqrt_0", "sqrt")]
    assert "task_requested" in caplog.text and "an observer's own trouble" in caplog.text
    assert manager.numberOfTasks()[0] == {"sqrt": 1}

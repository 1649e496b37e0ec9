"""Retries that wait before they run again: the queue, the task manager, the watchdog, a job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, World, wait_until
from queueing import CLIENT, OTHER_SLAVE, SLAVE, TAGS, Queue, ask, delivered, end, queue_of, take

from masterslave import MasterProcess, SettingsError, TaskRaisedException
from masterslave.leases import MAX_BACKOFF_S
from masterslave.manager import TaskManager
from masterslave.records import Assignment, Completion, Outcome, ProcessInfo, TaskOptions
from masterslave.settings import Settings
from masterslave.slavecode import script_record
from masterslave.states import State
from masterslave.watchdog import Watchdog

X = [b"x"]
RAISED = Outcome.EXCEPTION


# --- the option -----------------------------------------------------------------------------


@pytest.mark.parametrize("backoff", [0, 0.1, 1, 3600.0])
def test_seconds_that_can_be_used(backoff: float) -> None:
    assert TaskOptions(backoff=backoff).checked().backoff == backoff


@pytest.mark.parametrize("backoff", [-1, -0.1, float("inf"), float("nan"), True, "1", None])
def test_seconds_that_cannot_be_used(backoff: Any) -> None:
    with pytest.raises(SettingsError, match=f"backoff={backoff!r}: must be a number of seconds"):
        TaskOptions(backoff=backoff).checked()


# --- the queue ------------------------------------------------------------------------------


def deferred(backoff: float = 1.0, retries: int = 2, now: float = 100.0) -> Queue:
    """A queue whose task a_0 has raised at `now` and waits for its first retry."""
    queue = queue_of(1, retries=retries, backoff=backoff)
    assert end(queue, take(queue), RAISED, now=now).kind == "deferred"
    return queue


def due_ids(queue: Queue, now: float) -> list[str]:
    return [effect.task.id for effect in queue.leases.due(now) if effect.task is not None]


def test_a_failed_task_waits_out_of_line_until_it_is_due() -> None:
    queue = deferred()
    assert queue.leases.hand_out(SLAVE, TAGS) is None
    assert queue.leases.next_due() == 101.0
    assert due_ids(queue, 100.999) == []
    assert due_ids(queue, 101.0) == ["a_0"]
    assert queue.leases.next_due() is None
    assert take(queue).attempt == 2


def test_it_counts_as_waiting() -> None:
    queue = deferred()
    assert queue.counts() == ({"a": 1}, {}, {})
    assert queue.outstanding(CLIENT) == 1
    assert list(queue.waiting_tags()) == ["a"]


def test_without_back_off_it_runs_again_at_once() -> None:
    queue = queue_of(1, retries=1)
    assert end(queue, take(queue), RAISED, now=100.0).kind == "rescheduled"
    assert take(queue).attempt == 2


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (1.0, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]),
        (45.0, [45.0, 60.0, 60.0]),
        (1e6, [60.0, 60.0]),
    ],
)
def test_it_waits_twice_as_long_each_time(backoff: float, delays: list[float]) -> None:
    queue = queue_of(1, retries=len(delays), backoff=backoff)
    now, seen = 0.0, []
    for _ in delays:
        end(queue, take(queue), RAISED, now=now)
        at = queue.leases.next_due()
        assert at is not None
        seen.append(at - now)
        now = at
        queue.leases.due(now)
    assert seen == delays
    assert end(queue, take(queue), RAISED, now=now).kind == "finished"


def test_any_number_of_retries_can_be_counted() -> None:
    queue = queue_of(1, retries=2000, backoff=1e-9)
    now = 0.0
    for _ in range(2000):
        end(queue, take(queue), RAISED, now=now)
        now += MAX_BACKOFF_S
        assert due_ids(queue, now) == ["a_0"]


def test_who_is_due_first_stands_first_and_before_who_has_not_run() -> None:
    queue = queue_of(3, retries=1, backoff=1.0)
    first, second, third = take(queue), take(queue), take(queue)
    ask(queue)
    end(queue, second, RAISED, now=0.0)
    end(queue, third, RAISED, now=1.0)
    end(queue, first, RAISED, now=1.0)
    assert due_ids(queue, 2.0) == ["a_1", "a_0", "a_2"], "then in order of request"
    assert [take(queue).task_id for _ in range(4)] == ["a_1", "a_0", "a_2", "a_3"]


def test_a_crash_is_answered_at_once() -> None:
    queue = queue_of(1, retries=1, backoff=1.0)
    assert end(queue, take(queue), Outcome.CRASHED, now=0.0).kind == "rescheduled"
    assert take(queue).attempt == 2


def test_a_deferred_task_can_be_cancelled() -> None:
    queue = deferred()
    assert queue.cancel("a_0") == (True, [])
    assert queue.leases.next_due() is None
    assert queue.leases.due(1e9) == []
    assert queue.counts() == ({}, {}, {})
    assert queue.cancel("a_0") == (False, [])


def test_losing_its_slave_changes_nothing_for_a_deferred_task() -> None:
    queue = deferred()
    assert queue.leases.lose(SLAVE, "gone", 1) == []
    assert queue.leases.release(SLAVE) == []
    assert due_ids(queue, 101.0) == ["a_0"]


def test_a_late_result_of_an_earlier_attempt_ends_a_deferred_task() -> None:
    queue = queue_of(1, retries=1, backoff=1.0)
    lost = take(queue)
    queue.leases.lose(SLAVE, "gone", 1)
    end(queue, take(queue, OTHER_SLAVE), RAISED, OTHER_SLAVE, now=0.0)
    assert end(queue, lost).kind == "finished"
    assert queue.leases.next_due() is None
    assert delivered(queue).outcome == "result"


@pytest.mark.parametrize("backoff", [0.0, 1.0])
def test_an_exception_handed_in_twice_uses_up_one_retry(backoff: float) -> None:
    queue = queue_of(1, retries=1, backoff=backoff)
    assignment = take(queue)
    end(queue, assignment, RAISED)
    assert end(queue, assignment, RAISED).kind == "dropped"
    queue.leases.due(backoff)
    assert end(queue, assignment, RAISED).kind == "dropped"
    assert end(queue, take(queue)).kind == "finished"
    assert delivered(queue).outcome == "result"


@pytest.mark.parametrize("outcome", [RAISED, Outcome.CRASHED, Outcome.OUT_OF_MEMORY])
@pytest.mark.parametrize("backoff", [0.0, 1.0])
def test_a_slave_that_comes_back_has_not_what_it_had_handed_in(
    backoff: float, outcome: Outcome
) -> None:
    """The acknowledgement was lost: it says that it holds the attempt, and hands it in again."""
    queue = queue_of(1, retries=2, backoff=backoff)
    assignment = take(queue)
    end(queue, assignment, outcome)
    assert queue.leases.reconcile(SLAVE, [("a_0", 1)]) == ([], [("a_0", 1)])
    assert end(queue, assignment, outcome).kind == "dropped"
    task = queue.tasks["a_0"]
    assert task.failures + task.crashes == 1
    assert task.state in (State.WAITING, State.DEFERRED)


# --- the task manager and its watchdog ------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def manager_at(clock: Callable[[], float]) -> tuple[TaskManager, int]:
    manager = TaskManager("job", Settings(key_file=Path("unused")), clock=clock)
    slave = manager.registerProcess(None, ProcessInfo("slave", 1, "host", 4, ""))[0]
    manager.announceTags(slave, ["sqrt"])
    return manager, slave


def take_one(manager: TaskManager, slave: int) -> Assignment:
    (task,) = manager.exchange(slave)[0]
    return Assignment(*task)


def fail(manager: TaskManager, slave: int, task: Assignment) -> None:
    done = Completion(task.task_id, task.attempt, RAISED.value, [b"e"], 0.0, "ValueError: 1")
    manager.exchange(slave, [done], (), 0)


def test_the_task_manager_knows_when_the_next_retry_is_due() -> None:
    clock = Clock()
    manager, slave = manager_at(clock)
    alarms: list[float] = []
    manager.setAlarm(lambda: alarms.append(clock.now))
    assert manager.secondsUntilDue() is None
    manager.addTaskRequest("sqrt", X, 0, TaskOptions(retries=2, backoff=5.0))
    fail(manager, slave, take_one(manager, slave))
    assert alarms == [1000.0]
    assert manager.secondsUntilDue() == 5.0
    clock.now += 4.0
    assert manager.secondsUntilDue() == 1.0
    manager.putDueInLine()
    assert manager.exchange(slave) == [[], {}]
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {}]
    clock.now += 1.0
    manager.putDueInLine()
    assert manager.secondsUntilDue() is None
    assert take_one(manager, slave).attempt == 2


def test_the_watchdog_is_woken_only_for_what_is_due_sooner() -> None:
    manager, slave = manager_at(Clock())
    alarms: list[str] = []
    options = [TaskOptions(retries=1, backoff=backoff) for backoff in (5.0, 9.0, 5.0, 2.0)]
    tasks = []
    for one in options:
        manager.addTaskRequest("sqrt", X, 0, one)
        tasks.append(take_one(manager, slave))
    manager.setAlarm(lambda: alarms.append("woken"))
    woken = []
    for task in tasks:
        fail(manager, slave, task)
        woken.append(len(alarms))
    assert woken == [1, 1, 1, 2]


def test_the_watchdog_wakes_when_a_retry_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masterslave.watchdog.LOOK_S", 1000.0)  # it does not look by chance
    manager, slave = manager_at(time.monotonic)
    watchdog = Watchdog(manager, 1000.0)
    watchdog.start()
    try:
        for backoff in (0.1, 0.01):  # the second is due first
            manager.addTaskRequest("sqrt", X, 0, TaskOptions(retries=1, backoff=backoff))
        for task in manager.exchange(slave)[0]:
            fail(manager, slave, task)
        for task_id in ("sqrt_1", "sqrt_0"):  # the slave's call waits for them
            ((task,), _) = manager.exchange(slave, timeout=PATIENCE_S)
            assert (task.task_id, task.attempt) == (task_id, 2)
    finally:
        watchdog.stop()


# --- a real job -----------------------------------------------------------------------------

SLAVE_SCRIPT = """
    import os, time
    from masterslave import startSlaveProcess

    def do_try(name, failures):
        with open(name, "a") as file:
            file.write(f"{time.monotonic()}" + chr(10))
        with open(name) as file:
            count = len(file.readlines())
        if count <= failures:
            raise ValueError(f"attempt {count}")
        return count

    startSlaveProcess()
"""


@pytest.fixture
def master(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[MasterProcess]:
    monkeypatch.chdir(world.path)
    settings = replace(Settings.from_environment(), port=0)
    master = MasterProcess("job", False, settings=settings)
    master.keep_slave_code(script_record(world.write("slave.py", SLAVE_SCRIPT)))
    world.task_manager("slave", "job", "-m", master.address)
    yield master
    master.shutdown()


def test_a_task_is_tried_again_after_its_back_off(world: World, master: MasterProcess) -> None:
    master.requestTask("try", "times", 2, retries=2, backoff=0.1)
    assert master.retrieveResult(timeout=PATIENCE_S)[2] == 3
    first, second, third = map(float, (world.path / "times").read_text().split())
    assert second - first >= 0.1
    assert third - second >= 0.2


def test_the_last_exception_is_told_when_the_retries_are_used_up(
    world: World, master: MasterProcess
) -> None:
    master.requestTasks("try", [("times", 9)], retries=1, backoff=0.01)
    with pytest.raises(TaskRaisedException, match="ValueError: attempt 2"):
        master.retrieveResult(timeout=PATIENCE_S)
    assert len((world.path / "times").read_text().split()) == 2


def test_a_task_that_waits_for_its_retry_can_be_cancelled(
    world: World, master: MasterProcess
) -> None:
    task_id = master.requestTask("try", "times", 9, retries=1, backoff=1000.0)
    manager = master.task_manager
    wait_until(lambda: manager.secondsUntilDue() is not None, "it has failed once")
    assert manager.numberOfTasks() == [{"try": 1}, {}, {}]
    assert master.cancelTask(task_id)
    assert list(master.results()) == []
    assert manager.secondsUntilDue() is None

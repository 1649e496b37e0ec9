"""Slaves that fall silent or are lost, and come back; deadlines with a clock of the test's."""

from __future__ import annotations

import pytest
from managing import Clock, X, give, ids, join, take

from masterslave.errors import (
    UnknownProcess,
)
from masterslave.manager import TaskManager
from masterslave.records import ProcessInfo, TaskOptions

# --- liveness -------------------------------------------------------------------------------


def test_silence_of_exactly_four_periods_is_not_death(manager: TaskManager, clock: Clock) -> None:
    slave = join(manager, period=10.0)
    clock.now += 40.0
    manager.checkLiveness()
    assert manager.activeProcesses() == [slave]
    clock.now += 0.001
    manager.checkLiveness()
    assert manager.activeProcesses() == []


def test_a_silent_slaves_tasks_run_elsewhere(manager: TaskManager, clock: Clock) -> None:
    silent, other = join(manager, period=10.0), join(manager)
    task_id = manager.addTaskRequest("sqrt", X)
    assert ids(take(manager, silent)) == [task_id]
    assert take(manager, other) == []
    clock.now += 41.0
    manager.checkLiveness()
    (again,) = take(manager, other)
    assert (again.task_id, again.attempt) == (task_id, 2)


@pytest.mark.parametrize("sign", ["ping", "exchange", "registerProcess"])
def test_every_sign_of_life_counts(manager: TaskManager, clock: Clock, sign: str) -> None:
    slave = join(manager, period=10.0, token="t")
    clock.now += 39.0
    if sign == "registerProcess":
        manager.registerProcess(10.0, ProcessInfo("slave", 1, "host", 1, "t"), slave)
    else:
        getattr(manager, sign)(slave)
    clock.now += 39.0
    manager.checkLiveness()
    assert manager.activeProcesses() == [slave]


def test_a_process_without_a_period_is_never_taken_for_dead(
    manager: TaskManager, clock: Clock
) -> None:
    slave = join(manager, period=None)
    clock.now += 1e9
    manager.checkLiveness()
    assert manager.activeProcesses() == [slave]
    assert manager.livenessInterval() is None


def test_a_ping_of_a_slave_taken_for_dead_is_refused(manager: TaskManager) -> None:
    slave = join(manager)
    manager.lostProcess(slave, "gone")
    for process_id in (slave, 99):
        with pytest.raises(UnknownProcess, match=f"process {process_id}"):
            manager.ping(process_id)


def test_the_shortest_period_sets_the_watchdogs_pace(manager: TaskManager) -> None:
    join(manager, period=30.0)
    short = join(manager, period=2.0)
    assert manager.livenessInterval() == 2.0
    manager.unregisterProcess(short)
    assert manager.livenessInterval() == 30.0


# --- losses ---------------------------------------------------------------------------------


def test_a_loss_of_an_earlier_registration_comes_too_late(manager: TaskManager) -> None:
    info = ProcessInfo("a slave", 1, "host", 1, "token")
    slave, _, first = manager.registerProcess(10.0, info)
    _, _, second = manager.registerProcess(10.0, info, slave)
    manager.lostProcess(slave, "its connection closed", first)
    assert manager.activeProcesses() == [slave]
    manager.lostProcess(slave, "its connection closed", second)
    assert manager.activeProcesses() == []


def test_a_late_result_is_used_if_no_other_came(manager: TaskManager) -> None:
    lost = join(manager)
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, lost)
    manager.lostProcess(lost, "its connection closed")
    give(manager, lost, task, frame=[b"late"])
    assert manager.getAnyResult().frame == [b"late"]
    assert manager.numberOfTasks() == [{}, {}, {}]
    assert take(manager, join(manager)) == []


def test_a_late_result_stops_the_attempt_that_runs_in_vain(manager: TaskManager) -> None:
    lost, other = join(manager), join(manager)
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, lost)
    manager.lostProcess(lost, "its connection closed")
    take(manager, other)
    give(manager, lost, task, frame=[b"late"])
    assert manager.exchange(other)[1] == {"stop": [task.task_id]}
    assert manager.getAnyResult().frame == [b"late"]


def test_a_late_result_is_dropped_when_another_came_first(manager: TaskManager) -> None:
    lost, other = join(manager), join(manager)
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, lost)
    manager.lostProcess(lost, "its connection closed")
    (again,) = take(manager, other)
    give(manager, other, again, frame=[b"first"])
    give(manager, lost, task, frame=[b"second"])
    assert manager.getAnyResult().frame == [b"first"]
    assert manager.getResults(0, timeout=0.0) == []
    assert manager.status()["dropped"] == 1


def test_a_lost_slave_is_told_to_register_again(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X)
    manager.lostProcess(slave, "gone")
    assert manager.exchange(slave) == [[], {"register": True}]
    assert manager.exchange(99) == [[], {"register": True}]


def test_a_slave_that_comes_back_keeps_its_id_and_what_it_holds(manager: TaskManager) -> None:
    slave = join(manager, workers=2, token="t")
    manager.addTaskRequests("sqrt", [X, X])
    kept, taken = take(manager, slave)
    manager.lostProcess(slave, "its connection closed")
    other = join(manager)
    assert ids(take(manager, other)) == [kept.task_id]  # what was oldest goes first
    info = ProcessInfo("slave", 1, "host", 2, "t")
    held = [(kept.task_id, 1), (taken.task_id, 1)]
    assert manager.registerProcess(None, info, slave, held)[:2] == [slave, [kept.task_id]]
    give(manager, slave, taken)
    assert manager.getAnyResult().task_id == taken.task_id


def test_a_slave_with_another_token_is_another_process(manager: TaskManager) -> None:
    slave = join(manager, token="t")
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, slave)
    info = ProcessInfo("thief", 1, "host", 1, "another")
    process_id, obsolete, _ = manager.registerProcess(None, info, slave, [(task.task_id, 1)])
    assert process_id != slave
    assert obsolete == [task.task_id]
    assert sorted(manager.activeProcesses()) == sorted([slave, process_id])


def test_a_slave_that_registers_again_without_its_tasks_gives_them_back(
    manager: TaskManager,
) -> None:
    slave = join(manager, token="t")
    task_id = manager.addTaskRequest("sqrt", X)
    take(manager, slave)
    manager.registerProcess(None, ProcessInfo("slave", 1, "host", 1, "t"), slave, [])
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {}]
    assert take(manager, slave)[0].task_id == task_id


def test_only_started_tasks_are_blamed_for_a_loss(manager: TaskManager) -> None:
    slave = join(manager, workers=2)
    manager.addTaskRequests("sqrt", [X, X], 0, TaskOptions(crash_limit=1))
    _, second = take(manager, slave)
    manager.exchange(slave, (), [second.task_id], False)
    manager.lostProcess(slave, "killed by signal 9")
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {"sqrt": 1}]
    delivery = manager.getAnyResult()
    assert (delivery.task_id, delivery.outcome) == (second.task_id, "crashed")
    assert "killed by signal 9" in delivery.detail


def test_a_slave_that_leaves_in_order_costs_its_tasks_nothing(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X, 0, TaskOptions(crash_limit=1))
    (task,) = take(manager, slave)
    manager.exchange(slave, (), [task.task_id], False)
    manager.unregisterProcess(slave)
    manager.unregisterProcess(slave)  # no error
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {}]


def test_losing_twice_is_losing_once(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X, 0, TaskOptions(crash_limit=2))
    (task,) = take(manager, slave)
    manager.exchange(slave, (), [task.task_id], False)
    manager.lostProcess(slave, "its connection closed")
    manager.lostProcess(slave, "silent")
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {}]

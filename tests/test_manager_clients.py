"""What clients get of the task manager: their results, and an end to what they cancel."""

from __future__ import annotations

import pytest
from managing import LONG_S, Call, X, give, ids, in_line, join, take, wait_for_clients

from masterslave.errors import (
    SettingsError,
    TaskManagerTermination,
    UnknownTask,
)
from masterslave.manager import TaskManager
from masterslave.pace import HORIZON_S
from masterslave.records import Outcome, TaskOptions

# --- clients --------------------------------------------------------------------------------


def test_each_client_gets_its_own_results(manager: TaskManager) -> None:
    one, two = (manager.registerProcess(None, f"client {i}")[0] for i in (1, 2))
    slave = join(manager, workers=4)
    mine = manager.addTaskRequests("sqrt", [X, X], one)
    others = manager.addTaskRequests("sqrt", [X, X], two)
    for task in take(manager, slave):
        give(manager, slave, task)
    assert ids(manager.getResults(two, limit=10)) == others
    assert manager.getResults(two, timeout=0.0) == []
    assert ids(manager.getResults(one, limit=10)) == mine


def test_results_come_in_order_of_completion_and_by_tag(manager: TaskManager) -> None:
    slave = join(manager, "sqrt cube", workers=3)
    manager.addTaskRequest("sqrt", X)
    manager.addTaskRequest("cube", X)
    manager.addTaskRequest("sqrt", X)
    for task in reversed(take(manager, slave)):
        give(manager, slave, task)
    assert manager.getResultWithTag("cube").task_id == "cube_1"
    assert [manager.getAnyResult().task_id for _ in range(2)] == ["sqrt_2", "sqrt_0"]


def test_a_result_wakes_its_client_and_no_other(live: TaskManager) -> None:
    slave = join(live)
    mine = Call(live.getResults, 1, None, 1, LONG_S)
    other = Call(live.getResults, 2, None, 1, LONG_S)
    wait_for_clients(live, 2)
    task_id = live.addTaskRequest("sqrt", X, 1)
    (task,) = take(live, slave)
    give(live, slave, task)
    assert ids(mine.outcome()) == [task_id]
    assert not other.done
    live.terminate()
    with pytest.raises(TaskManagerTermination):
        other.outcome()


def test_a_client_waits_for_one_tag_while_others_finish(live: TaskManager) -> None:
    slave = join(live, "sqrt cube", workers=2)
    live.addTaskRequest("sqrt", X)
    wanted = live.addTaskRequest("cube", X)
    sqrt, cube = take(live, slave)
    call = Call(live.getResultWithTag, "cube", 0, LONG_S)
    wait_for_clients(live, 1)
    give(live, slave, sqrt)
    give(live, slave, cube)
    assert call.outcome().task_id == wanted
    assert live.numberOfTasks()[2] == {"sqrt": 1}


def test_many_results_can_be_taken_at_once(manager: TaskManager) -> None:
    slave = join(manager, workers=5)
    requested = manager.addTaskRequests("sqrt", [X] * 5)
    for task in take(manager, slave):
        give(manager, slave, task)
    assert ids(manager.getResults(0, limit=3)) == requested[:3]
    assert ids(manager.getResults(0, limit=3)) == requested[3:]


def test_options_are_checked_before_anything_is_queued(manager: TaskManager) -> None:
    with pytest.raises(SettingsError, match="retries=-1"):
        manager.addTaskRequests("sqrt", [X, X], 0, TaskOptions(retries=-1))
    assert manager.numberOfTasks() == [{}, {}, {}]


def test_retries_answer_exceptions_with_other_attempts(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X, 0, TaskOptions(retries=1))
    (task,) = take(manager, slave)
    give(manager, slave, task, Outcome.EXCEPTION, detail="ValueError: once")
    (again,) = take(manager, slave)
    assert again.attempt == 2
    give(manager, slave, again, Outcome.EXCEPTION, detail="ValueError: twice")
    assert manager.getAnyResult().detail == "ValueError: twice"


# --- cancelling -----------------------------------------------------------------------------


def test_a_cancelled_waiting_task_is_never_handed_out(manager: TaskManager) -> None:
    first, second = manager.addTaskRequests("sqrt", [X, X])
    assert manager.cancelTask(first) is True
    slave = join(manager, workers=2)
    assert ids(take(manager, slave)) == [second]
    assert manager.status()["cancelled"] == 1


def test_the_slave_of_a_cancelled_task_is_told_once(manager: TaskManager) -> None:
    slave = join(manager)
    task_id = manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, slave)
    assert manager.cancelTask(task_id) is True
    assert manager.exchange(slave)[1] == {"stop": [task_id]}
    assert manager.exchange(slave)[1] == {}
    give(manager, slave, task)  # too late
    assert manager.getResults(0, timeout=0.0) == []
    assert manager.numberOfTasks() == [{}, {}, {}]


def test_a_waiting_slave_is_told_of_a_cancelled_task_at_once(live: TaskManager) -> None:
    slave = join(live, workers=2)
    task_id = live.addTaskRequest("sqrt", X)
    take(live, slave)
    with in_line(live, [slave]) as calls:
        live.cancelTask(task_id)
        assert calls[0].outcome() == [[], {"stop": [task_id]}]


def test_a_slave_gets_tiny_tasks_in_the_place_of_cancelled_ones(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, slave)
    give(manager, slave, task, duration_s=0.9 * HORIZON_S)
    cancelled = manager.addTaskRequests("sqrt", [X] * 5)
    assert ids(take(manager, slave)) == cancelled[:2]  # more would last too long
    for task_id in cancelled:
        manager.cancelTask(task_id)
    others = manager.addTaskRequests("sqrt", [X] * 5)
    assert ids(take(manager, slave)) == others[:2]


def test_cancelling_disturbs_no_other_slave(live: TaskManager) -> None:
    slave, bystander = join(live), join(live)
    task_id = live.addTaskRequest("sqrt", X)
    take(live, slave)
    with in_line(live, [bystander]) as calls:
        live.cancelTask(task_id)
        assert live.exchange(slave, timeout=LONG_S)[1] == {"stop": [task_id]}
        follower = live.addTaskRequest("sqrt", X)
        assert ids(calls[0].outcome()[0]) == [follower]


def test_cancelling_the_last_task_ends_the_wait_for_it(live: TaskManager) -> None:
    task_id = live.addTaskRequest("sqrt", X)
    call = Call(live.getResults, 0, None, 1, LONG_S, True)
    wait_for_clients(live, 1)
    assert live.cancelTask(task_id)
    assert call.outcome() == []


def test_a_finished_task_cannot_be_cancelled(manager: TaskManager) -> None:
    slave = join(manager)
    task_id = manager.addTaskRequest("sqrt", X)
    give(manager, slave, take(manager, slave)[0])
    assert manager.cancelTask(task_id) is False
    assert manager.getAnyResult().task_id == task_id
    assert manager.cancelTask(task_id) is False


@pytest.mark.parametrize("task_id", ["sqrt_1", "sqrt", "", "sqrt_-1"])
def test_a_task_that_never_was_cannot_be_cancelled(manager: TaskManager, task_id: str) -> None:
    manager.addTaskRequest("sqrt", X)
    with pytest.raises(UnknownTask):
        manager.cancelTask(task_id)

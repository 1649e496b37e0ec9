"""Slaves that wait for tasks in threads: who is woken, and how much each gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import wait_until
from managing import LONG_S, Call, X, give, ids, in_line, join, take, wait_for_line, waiting

from masterslave.errors import (
    UnknownProcess,
)
from masterslave.manager import TaskManager
from masterslave.pace import BYTES_IN_HAND, HORIZON_S, MAX_IN_HAND
from masterslave.records import Outcome, ProcessInfo, TaskOptions

# --- waiting slaves -------------------------------------------------------------------------


def test_one_task_wakes_one_of_many(live: TaskManager) -> None:
    slaves = [join(live) for _ in range(5)]
    with in_line(live, slaves) as calls:
        task_id = live.addTaskRequest("sqrt", X)
        # The last to come gets it. The others were not even woken: they still stand in line.
        assert ids(calls[4].outcome()[0]) == [task_id]
        assert waiting(live) == 4
        assert [call.done for call in calls] == [False, False, False, False, True]
        live.terminate()
        assert [call.outcome() for call in calls[:4]] == [[[], {"terminate": True}]] * 4


def test_a_task_wakes_who_handles_its_tag(live: TaskManager) -> None:
    slaves = [join(live, "sqrt"), join(live, "cube"), join(live, "sqrt cube")]
    with in_line(live, slaves) as calls:
        task_id = live.addTaskRequest("cube", X)
        assert ids(calls[2].outcome()[0]) == [task_id]
        assert waiting(live) == 2
        task_id = live.addTaskRequest("cube", X)
        assert ids(calls[1].outcome()[0]) == [task_id]
        assert not calls[0].done


def test_a_batch_wakes_as_many_as_there_are_tasks(live: TaskManager) -> None:
    with in_line(live, [join(live) for _ in range(4)]) as calls:
        requested = live.addTaskRequests("sqrt", [X, X, X])
        wait_until(lambda: sum(call.done for call in calls) == 3, "each task has found a slave")
        wait_for_line(live, 1)
        live.terminate()
        got = [call.outcome()[0] for call in calls]
        assert sorted(ids([task for tasks in got for task in tasks])) == requested
        assert sorted(map(len, got)) == [0, 1, 1, 1]


def test_a_rescheduled_task_wakes_a_waiting_slave(live: TaskManager) -> None:
    first = join(live)
    task_id = live.addTaskRequest("sqrt", X)
    take(live, first)
    with in_line(live, [join(live)]) as calls:
        live.lostProcess(first, "gone")
        assert ids(calls[0].outcome()[0]) == [task_id]


def test_who_may_not_take_the_task_passes_the_call_on(live: TaskManager) -> None:
    full, idle = join(live, "sqrt cube"), join(live)
    with in_line(live, [full, idle]) as calls:
        # While it stands in line, its other connection takes what it can run. The queue is
        # filled unseen, as if another slave had just given the task back.
        with live._lock:
            live._queue.request(0, "cube", X, TaskOptions())
        assert len(take(live, full)) == 1
        task_id = live.addTaskRequest("sqrt", X)
        assert ids(calls[1].outcome()[0]) == [task_id]


def test_a_slave_lost_while_it_waits_gets_no_task(live: TaskManager) -> None:
    lost, other = join(live), join(live)
    with in_line(live, [lost]) as calls:
        live.lostProcess(lost, "its connection closed")
        task_id = live.addTaskRequest("sqrt", X)
        assert ids(take(live, other)) == [task_id]
        live.terminate()
        assert calls[0].outcome()[0] == []


def test_a_slave_lost_while_it_waits_for_one_task_gets_none(live: TaskManager) -> None:
    lost, other = join(live), join(live)
    call = Call(live.getAnyTask, lost, LONG_S)
    wait_for_line(live, 1)
    live.lostProcess(lost, "its connection closed")
    task_id = live.addTaskRequest("sqrt", X)
    with pytest.raises(UnknownProcess):
        call.outcome()
    assert ids(take(live, other)) == [task_id]


def test_a_slave_without_announced_tags_gets_nothing(live: TaskManager) -> None:
    slave = live.registerProcess(None, ProcessInfo("slave", 1, "host", 4, ""))[0]
    live.announceSlave(slave)
    live.addTaskRequest("sqrt", X)
    assert live.exchange(slave, timeout=0.02) == [[], {}]


def test_who_wants_nothing_gets_nothing(live: TaskManager) -> None:
    slave = join(live)
    live.addTaskRequest("sqrt", X)
    assert live.exchange(slave, room=0, timeout=0.02) == [[], {}]


@pytest.mark.parametrize(
    ("call", "empty"),
    [
        (lambda manager, slave: manager.exchange(slave, timeout=0.02), [[], {}]),
        (lambda manager, slave: manager.getAnyTask(slave, 0.02), None),
        (lambda manager, slave: manager.getTaskWithTag("sqrt", slave, 0.02), None),
        (lambda manager, slave: manager.getResults(0, timeout=0.02), []),
        (lambda manager, slave: manager.getAnyResult(0, 0.02), None),
        (lambda manager, slave: manager.getResultWithTag("sqrt", 0, 0.02), None),
        (lambda manager, slave: manager.waitForSlavesToLeave(0.02), False),
        (lambda manager, slave: manager.getResults(7, while_outstanding=True), []),
    ],
)
def test_every_wait_ends_with_its_time(
    live: TaskManager, call: Callable[[TaskManager, int], Any], empty: Any
) -> None:
    assert Call(call, live, join(live)).outcome() == empty
    assert waiting(live) == 0


def test_the_last_slave_to_leave_ends_the_wait(live: TaskManager) -> None:
    first, second = join(live), join(live)
    live.registerProcess(None, "a client does not count")
    call = Call(live.waitForSlavesToLeave, LONG_S)
    live.unregisterProcess(first)
    assert not call.done
    live.lostProcess(second, "gone")
    assert call.outcome() is True


# --- how much is handed out -----------------------------------------------------------------


def test_a_tag_never_seen_is_handed_out_one_per_worker(manager: TaskManager) -> None:
    slave = join(manager, workers=3)
    manager.addTaskRequests("sqrt", [X] * 10)
    assert len(take(manager, slave)) == 3
    assert take(manager, slave) == []


def test_a_few_thousand_tiny_tasks_are_for_all(manager: TaskManager) -> None:
    slaves = [join(manager, workers=2) for _ in range(3)]
    manager.addTaskRequests("sqrt", [X] * 6000)
    for first in take(manager, slaves[0]):
        give(manager, slaves[0], first, duration_s=0.0)
    left = 6000 - 2
    for slave in slaves:
        got = len(take(manager, slave))
        assert got == max(left // 4, 2 * 512)
        assert take(manager, slave) == []
        left -= got


def test_the_last_tasks_of_some_milliseconds_are_for_all(manager: TaskManager) -> None:
    slaves = [join(manager, workers=8) for _ in range(2)]
    manager.addTaskRequests("sqrt", [X] * 36)
    for first in take(manager, slaves[0]):
        give(manager, slaves[0], first, duration_s=HORIZON_S / 2)
    assert [len(take(manager, slave)) for slave in slaves] == [16, 12]


def test_large_tasks_that_take_no_time_are_for_all_slaves(manager: TaskManager) -> None:
    """Their way does, which nobody has measured."""
    large = [b"pickle", bytes(BYTES_IN_HAND // 8 - 6)]
    slaves = [join(manager, workers=2) for _ in range(2)]
    manager.addTaskRequests("sqrt", [large] * 40)
    for first in take(manager, slaves[0]):
        give(manager, slaves[0], first, duration_s=0.0)
    for slave in slaves:
        assert len(take(manager, slave)) == 2 * 8
        assert take(manager, slave) == []


def test_of_huge_tasks_there_is_a_reserve(manager: TaskManager) -> None:
    huge = [b"pickle", bytes(2 * BYTES_IN_HAND)]
    slave = join(manager, workers=2)
    manager.addTaskRequests("sqrt", [huge] * 20)
    for first in take(manager, slave):
        give(manager, slave, first, duration_s=0.0)
    held = 0
    while got := take(manager, slave):
        held += len(got)
    assert held == 2 * 3


@pytest.mark.parametrize(
    ("duration_s", "least", "most"),
    [(0.0, MAX_IN_HAND, MAX_IN_HAND), (0.001, 10, 20), (0.1, 1, 1), (3600.0, 1, 1)],
)
def test_the_load_adapts_to_the_duration(
    manager: TaskManager, duration_s: float, least: int, most: int
) -> None:
    slave = join(manager)
    manager.addTaskRequests("sqrt", [X] * (5 * MAX_IN_HAND))
    (first,) = take(manager, slave)
    give(manager, slave, first, duration_s=duration_s)
    assert least <= len(take(manager, slave)) <= most
    assert take(manager, slave) == []  # it has all that it may hold


def test_one_slave_leaves_long_tasks_to_the_others(manager: TaskManager) -> None:
    slaves = [join(manager) for _ in range(3)]
    manager.addTaskRequests("sqrt", [X] * 3)
    assert [len(take(manager, slave)) for slave in slaves] == [1, 1, 1]


def test_what_was_given_back_makes_room_again(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequests("sqrt", [X] * 3)
    (first,) = take(manager, slave)
    give(manager, slave, first, Outcome.RETURNED)
    assert ids(take(manager, slave)) == [first.task_id]


def test_higher_priority_goes_first(manager: TaskManager) -> None:
    slave = join(manager, "low high", workers=2)
    manager.addTaskRequest("low", X)
    manager.addTaskRequest("high", X, 0, TaskOptions(priority=1))
    assert [task.tag for task in take(manager, slave)] == ["high", "low"]


def test_a_slave_that_has_not_announced_itself_yet_is_no_master(live: TaskManager) -> None:
    before = live.status()["masters"]
    info = ProcessInfo("PID 2 on node", 2, "node", 4, "token")
    process_id = live.registerProcess(None, info)[0]
    assert (live.status()["masters"], live.status()["slaves"]) == (before, [])
    live.announceSlave(process_id)
    assert [row["id"] for row in live.status()["slaves"]] == [process_id]
    assert live.status()["masters"] == before

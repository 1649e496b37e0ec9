"""Calls of slaves that wait in the task manager without a thread: who answers them, and when."""

from __future__ import annotations

import threading
from typing import Any

from conftest import wait_until
from managing import Call, Clock, X, give, ids, join

from masterslave.manager import TaskManager
from masterslave.records import DEFAULT_OPTIONS
from masterslave.waiters import Parked


class Slave:
    """A slave whose call is parked, and what it was answered."""

    def __init__(self, manager: TaskManager, process_id: int) -> None:
        self.manager = manager
        self.id = process_id
        self.answers: list[tuple[list[str], dict[str, Any]]] = []
        self.threads: list[str] = []
        self.parked: Parked | None = None

    def park(self, timeout: float = 20.0, **options: Any) -> Slave:
        got = self.manager.exchangeOrPark(self._take, self.id, timeout=timeout, **options)
        if isinstance(got, Parked):
            self.parked = got
        else:
            self._take(got)
        return self

    def _take(self, answer: list[Any]) -> None:
        assert not self.manager._lock._lock.locked(), "an answer is sent without the lock"
        self.answers.append((ids(answer[0]), answer[1]))
        self.threads.append(threading.current_thread().name)


def test_who_requests_a_task_answers_the_slave_that_waits_for_it(manager: TaskManager) -> None:
    slave = Slave(manager, join(manager)).park()
    assert slave.answers == []
    manager.addTaskRequest("sqrt", X)
    assert slave.answers == [(["sqrt_0"], {})]
    assert slave.threads == [threading.current_thread().name]
    assert manager._handout._waiter_of == {}


def test_many_requests_are_answered_once_with_as_many_as_the_slave_may_hold(
    manager: TaskManager,
) -> None:
    slave = Slave(manager, join(manager, workers=2)).park()
    manager.addTaskRequests("sqrt", [X] * 5)
    assert slave.answers == [(["sqrt_0", "sqrt_1"], {})]


def test_each_task_goes_to_another_slave_that_waits(manager: TaskManager) -> None:
    slaves = [Slave(manager, join(manager)).park() for _ in range(3)]
    manager.addTaskRequests("sqrt", [X] * 2)
    assert [slave.answers for slave in slaves] == [[], [(["sqrt_1"], {})], [(["sqrt_0"], {})]]


def test_what_is_there_is_answered_at_once(manager: TaskManager) -> None:
    manager.addTaskRequest("sqrt", X)
    slave = Slave(manager, join(manager)).park()
    assert slave.parked is None
    assert slave.answers == [(["sqrt_0"], {})]


def test_without_time_to_wait_nothing_is_parked(manager: TaskManager) -> None:
    slave = Slave(manager, join(manager)).park(timeout=0.0)
    assert (slave.parked, slave.answers) == (None, [([], {})])


def test_a_parked_call_ends_with_its_time(manager: TaskManager) -> None:
    slave = Slave(manager, join(manager)).park()
    assert slave.parked is not None
    manager.endParked(slave.parked)
    assert slave.answers == [([], {})]
    manager.endParked(slave.parked)
    manager.addTaskRequest("sqrt", X)
    assert slave.answers == [([], {})], "it is answered once"


def test_its_time_is_over_when_it_was_answered_already(manager: TaskManager) -> None:
    slave = Slave(manager, join(manager)).park()
    manager.addTaskRequest("sqrt", X)
    assert slave.parked is not None
    manager.endParked(slave.parked)
    assert slave.answers == [(["sqrt_0"], {})]


def test_another_call_of_the_same_slave_has_the_first_one_answered(manager: TaskManager) -> None:
    process_id = join(manager)
    first = Slave(manager, process_id).park()
    second = Slave(manager, process_id).park()
    assert first.answers == [([], {})]
    manager.addTaskRequest("sqrt", X)
    assert (first.answers, second.answers) == ([([], {})], [(["sqrt_0"], {})])


def test_a_parked_call_beside_one_that_waits_with_a_thread(manager: TaskManager) -> None:
    process_id = join(manager)
    parked = Slave(manager, process_id).park()
    call = Call(manager.exchange, process_id, (), (), None, 60.0)
    parked_after = Slave(manager, process_id)
    wait_until(lambda: parked.answers)
    assert parked.answers == [([], {})]
    parked_after.park()
    assert call.outcome() == [[], {}]
    manager.addTaskRequest("sqrt", X)
    assert parked_after.answers == [(["sqrt_0"], {})]


def test_orders_are_answered(manager: TaskManager) -> None:
    process_id = join(manager)
    manager.addTaskRequest("sqrt", X)
    (task,) = manager.exchange(process_id)[0]
    slave = Slave(manager, process_id).park()
    manager.cancelTask(task.task_id)
    assert slave.answers == [([], {"stop": ["sqrt_0"]})]


def test_the_end_of_the_job_is_answered(manager: TaskManager) -> None:
    slave = Slave(manager, join(manager)).park()
    manager.terminate()
    assert slave.answers == [([], {"terminate": True})]


def test_a_slave_that_was_lost_meanwhile_is_told_to_register(manager: TaskManager) -> None:
    slave = Slave(manager, join(manager)).park()
    manager.lostProcess(slave.id, "a test")
    assert slave.answers == [([], {"register": True})]
    manager.addTaskRequest("sqrt", X)
    assert slave.answers == [([], {"register": True})]
    assert manager.numberOfTasks()[0] == {"sqrt": 1}


def test_a_slave_that_registered_again_gets_nothing_by_its_old_call(manager: TaskManager) -> None:
    process_id = join(manager, token="t")
    old = Slave(manager, process_id).park()
    info = ["slave t", 1, "host", 1, "t"]
    manager.registerProcess(None, info, process_id)
    manager.announceTags(process_id, ["sqrt"])
    new = Slave(manager, process_id).park()
    manager.addTaskRequest("sqrt", X)
    assert [tasks for tasks, _ in old.answers] == [[]]
    assert new.answers == [(["sqrt_0"], {})]


def test_woken_for_a_task_that_another_one_takes_it_stays(manager: TaskManager) -> None:
    """The only task is taken while the lock is still held, by who has come first."""
    second, first = (Slave(manager, join(manager)).park() for _ in range(2))
    with manager._lock:
        manager._intake.add(0, "sqrt", [X], DEFAULT_OPTIONS, [])
        manager._handout.waiters.rouse(second.parked)  # in vain: the first one was woken for it
    assert (first.answers, second.answers) == ([(["sqrt_0"], {})], [])
    manager.addTaskRequest("sqrt", X)
    assert second.answers == [(["sqrt_1"], {})]


def test_a_task_that_comes_back_goes_to_who_is_parked(manager: TaskManager) -> None:
    manager.addTaskRequest("sqrt", X)
    holder = join(manager)
    manager.exchange(holder)
    slave = Slave(manager, join(manager)).park()
    manager.lostProcess(holder, "a test")
    assert slave.answers == [(["sqrt_0"], {})]


def test_a_busy_slave_is_parked_for_orders_and_for_what_its_result_makes_room_for(
    manager: TaskManager,
) -> None:
    process_id = join(manager)
    manager.addTaskRequests("sqrt", [X] * 2)
    (task,) = manager.exchange(process_id, (), (), 1)[0]
    slave = Slave(manager, process_id).park(room=-1)
    assert slave.answers == []
    give(manager, process_id, task)  # without room
    assert slave.answers == []
    manager.exchange(process_id, (), (), 1)
    assert manager.numberOfTasks()[1] == {"sqrt": 1}


def test_a_sign_of_life_is_what_the_slave_says_at_the_end_of_its_time(
    manager: TaskManager, clock: Clock
) -> None:
    slave = Slave(manager, join(manager, period=10.0)).park()
    clock.now += 35.0
    assert slave.parked is not None
    manager.endParked(slave.parked)
    clock.now += 35.0
    manager.checkLiveness()
    assert manager.activeProcesses() == [slave.id]
    clock.now += 35.0
    manager.checkLiveness()
    assert manager.activeProcesses() == []

"""A slave's uplink and the shortcuts to its workers: offered, taken back, withdrawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from conftest import PATIENCE_S, wait_until
from test_uplink import SETTINGS, Line, Slave, client_of, results

from masterslave import TaskManager
from masterslave.payload import Codec
from masterslave.records import Assignment, Completion, Outcome
from masterslave.shortcut import (
    Listener,
    ManagerShortcut,
    Shortcut,
    WorkerShortcut,
    as_names,
    can_have_shortcuts,
)

pytestmark = pytest.mark.skipif(not can_have_shortcuts(), reason="no shortcuts on this system")


class Worker:
    """A worker's ends of a shortcut, and its supervisor's."""

    def __init__(self) -> None:
        self.shortcut = Shortcut()
        self.ends = WorkerShortcut(*(os.dup(end) for end in self.shortcut.worker_ends))

    def give(self, task: Assignment) -> None:
        """As a task manager does that is gone by now."""
        os.write(self.shortcut.names.to_descriptor, msgpack.packb(task))

    def works(self, task: Assignment) -> None:
        done = Completion(task.task_id, task.attempt, "result", task.frame, 0.0, "")
        assert self.ends.send(done)

    def close(self) -> None:
        self.ends.close()
        self.shortcut.close()


@pytest.fixture
def manager() -> Iterator[TaskManager]:
    """One that uses shortcuts."""
    manager, listener = TaskManager("job", SETTINGS), Listener()
    manager.allowShortcuts(lambda names, heard: ManagerShortcut(as_names(names), listener, heard))
    yield manager
    manager.terminate()
    manager.forbidShortcuts()
    listener.stop()


@pytest.fixture
def line(manager: TaskManager) -> Line:
    return Line(manager)


@pytest.fixture
def slave(line: Line) -> Iterator[Slave]:
    slave = Slave(line, SETTINGS)
    slave.uplink.register()
    slave.uplink.start()
    slave.uplink.announce(["echo"], None)
    slave.uplink.hand_in([], [], room=1)
    yield slave
    slave.uplink.stop(10.0)


@pytest.fixture
def worker(slave: Slave) -> Iterator[Worker]:
    """One whose shortcut was offered and is lent."""
    worker = Worker()
    slave.uplink.offer(0, worker.shortcut)
    yield worker
    slave.uplink.withdraw(0)
    worker.close()


def opened(manager: TaskManager) -> int:
    with manager._lock:
        return sum(map(len, manager._shortcuts._of.values()))


def test_what_is_offered_is_lent(manager: TaskManager, worker: Worker) -> None:
    wait_until(lambda: worker.shortcut.is_lent and opened(manager) == 1, "it is used")


def test_what_is_not_used_is_not_lent(manager: TaskManager, line: Line, slave: Slave) -> None:
    manager.forbidShortcuts()
    worker = Worker()
    slave.uplink.offer(0, worker.shortcut)
    wait_until(lambda: "openShortcut" in line.calls, "it was offered")
    wait_until(lambda: not worker.shortcut.is_lent, "it is not")
    slave.uplink.withdraw(0)
    worker.close()


@pytest.mark.parametrize("breaks", ["before", "after"])
def test_an_offer_that_was_cut_off_is_made_again(
    manager: TaskManager, line: Line, slave: Slave, breaks: str
) -> None:
    line.plan = [("openShortcut", breaks)]
    worker = Worker()
    slave.uplink.offer(0, worker.shortcut)
    wait_until(lambda: line.calls.count("openShortcut") == 2, "it is made again")
    wait_until(lambda: worker.shortcut.is_lent and opened(manager) == 1, "it is used")
    slave.uplink.withdraw(0)
    worker.close()


def test_after_another_registration_it_is_offered_again(
    manager: TaskManager, line: Line, slave: Slave, worker: Worker
) -> None:
    wait_until(lambda: opened(manager) == 1, "it is used")
    line.plan = [("exchange", "lost")]
    slave.uplink.hand_in([], ["none"], room=1)
    # Once more, or twice: sender and fetcher may both be told.
    wait_until(lambda: line.calls.count("openShortcut") > 1, "it is offered again")
    wait_until(lambda: worker.shortcut.is_lent and opened(manager) == 1, "it is used")


def test_results_that_nobody_has_read_are_handed_in_at_registration(
    manager: TaskManager, line: Line, slave: Slave, worker: Worker
) -> None:
    wait_until(lambda: worker.shortcut.is_lent, "it is used")
    client, frame = client_of(manager), Codec().encode(0)
    options = [0, PATIENCE_S, 0, 1000, None]  # its supervisor is to look at the clock
    (task_id,) = manager.addTaskRequests("echo", [frame], client, options)
    wait_until(lambda: slave.tasks, "it came the long way")
    task = slave.tasks[0]
    manager.lostProcess(slave.uplink.process_id, "a test")
    worker.works(task)
    # Once more, or twice: sender and fetcher may both be told.
    wait_until(lambda: line.calls.count("registerProcess") > 1, "it registers again")
    assert results(manager, 1) == [0]
    assert task.task_id == task_id


def test_tasks_that_nobody_has_read_are_taken_out_at_registration(
    line: Line, slave: Slave, worker: Worker
) -> None:
    wait_until(lambda: worker.shortcut.is_lent, "it is used")
    worker.give(Assignment("echo_9", "echo", 1, Codec().encode(9), None))
    line.plan = [("exchange", "lost")]
    slave.uplink.hand_in([], ["none"], room=1)
    wait_until(lambda: not worker.shortcut.has_tasks(), "it is taken out")


@pytest.mark.parametrize("breaks", ["", "before", "after"])
def test_what_is_withdrawn_is_closed_after_what_is_known_of_it(
    manager: TaskManager, line: Line, slave: Slave, worker: Worker, breaks: str
) -> None:
    wait_until(lambda: opened(manager) == 1, "it is used")
    if breaks:
        line.plan = [("closeShortcuts", breaks)]
    slave.uplink.withdraw(0)
    unrun = Completion("echo_9", 1, Outcome.RETURNED.value, [], 0.0, "not begun")
    slave.uplink.hand_in([unrun], [], room=0)
    wait_until(lambda: opened(manager) == 0, "it is closed")
    assert "exchange" in line.calls[: line.calls.index("closeShortcuts")]


def test_who_wants_no_tasks_offers_nothing(manager: TaskManager, line: Line, slave: Slave) -> None:
    assert slave.uplink.gets_nothing(), "nothing is lent"
    slave.uplink.refuse_tasks()
    worker = Worker()
    slave.uplink.offer(0, worker.shortcut)
    wait_until(lambda: not slave.uplink._offers._to_offer, "it was looked at")
    assert "openShortcut" not in line.calls
    assert not worker.shortcut.is_lent
    slave.uplink.withdraw(0)
    worker.close()


def test_who_has_lent_one_gets_nothing_when_the_task_manager_knows_that_it_wants_nothing(
    manager: TaskManager, slave: Slave, worker: Worker
) -> None:
    wait_until(lambda: worker.shortcut.is_lent and opened(manager) == 1, "it is used")
    assert not slave.uplink.gets_nothing()
    slave.uplink.refuse_tasks()
    wait_until(slave.uplink.gets_nothing, "it is told")
    (member,) = (one for one in manager._roster.all_known() if one.is_slave)
    assert member.room == 0


def test_a_worker_that_ends_while_it_is_offered_is_not_used(
    manager: TaskManager, line: Line, slave: Slave, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, real = Worker(), manager.openShortcut

    def open_shortcut(*args: Any) -> bool:
        slave.uplink.withdraw(0)
        slave.uplink.hand_in([], [], room=0)
        return real(*args)

    monkeypatch.setattr(manager, "openShortcut", open_shortcut)
    slave.uplink.offer(0, worker.shortcut)
    wait_until(lambda: "closeShortcuts" in line.calls, "it is told")
    wait_until(lambda: opened(manager) == 0, "it is closed")
    worker.close()


def test_results_of_what_is_lent_are_the_task_managers_until_the_worker_has_ended(
    worker: Worker,
) -> None:
    wait_until(lambda: worker.shortcut.is_lent, "it is used")
    posted = Completion("echo_9", 1, "result", Codec().encode(9), 0.0, "")
    worker.ends.send(posted)
    assert worker.shortcut.read() == []
    assert worker.shortcut.read(last=True) in ([posted], [])

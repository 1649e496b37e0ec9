"""A task manager whose journal cannot be written for a while, or is slow."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import wait_until
from journals import TryingStore
from managing import LONG_S, Call, Clock, X, give, ids, join, take, wait_for_line
from queueing import Queue

from masterslave import roster
from masterslave.entries import (
    TINY_BYTES,
    Ended,
    HandedOut,
    Joined,
    Left,
    Requested,
    identity,
)
from masterslave.errors import JournalFull, TaskManagerTermination
from masterslave.journal import WAITING_BYTES, Journal
from masterslave.ledger import Ledger, names
from masterslave.manager import TaskManager
from masterslave.records import Completion, Frame, Outcome, TaskOptions
from masterslave.settings import Settings

FULL = 1_000_000  # attempts to write that fail: as good as for ever


@pytest.fixture
def store() -> TryingStore:
    return TryingStore()


@pytest.fixture
def kept(store: TryingStore, clock: Clock) -> TaskManager:
    """A task manager with a journal and a clock of the test's."""
    return TaskManager(
        "job", Settings(key_file=Path("unused")), clock=clock, journal=Journal(store)
    )


@pytest.fixture
def live(store: TryingStore) -> TaskManager:
    """A task manager with a journal and the real clock, in which threads may wait."""
    return TaskManager("job", Settings(key_file=Path("unused")), journal=Journal(store))


def fill(store: TryingStore) -> None:
    store.errors = [JournalFull("the disk is full")] * FULL


def make_room(store: TryingStore) -> None:
    store.errors = []


def entries(store: TryingStore) -> list[str]:
    return [type(entry).__name__ for group in store.groups for entry in group]


# --- what is answered is on record ----------------------------------------------------------


def test_a_slave_gets_a_task_when_that_is_on_record(kept: TaskManager, store: TryingStore) -> None:
    slave = join(kept)
    kept.announceSlave(slave)
    kept.addTaskRequest("sqrt", X)
    store.gate.clear()
    call = Call(kept.exchange, slave)
    wait_until(lambda: store.busy)
    assert not call.done
    store.gate.set()
    assert ids(call.outcome()[0]) == ["sqrt_0"]
    assert entries(store) == ["Joined", "Requested", "HandedOut"]


def test_a_result_is_delivered_when_it_is_on_record(kept: TaskManager, store: TryingStore) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    (task,) = take(kept, slave)
    store.gate.clear()
    acknowledged = Call(give, kept, slave, task)
    wait_until(lambda: store.busy)
    received = Call(lambda: (kept.getResults(timeout=LONG_S), entries(store)))
    wait_until(lambda: kept.status()["delivered"])
    assert not received.done
    store.gate.set()
    (delivery,), on_record = received.outcome()
    assert delivery.task_id == "sqrt_0"
    assert on_record[-1] == "Ended"
    acknowledged.outcome()


def test_a_result_is_delivered_while_nothing_can_be_put_on_record(
    kept: TaskManager, store: TryingStore
) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    (task,) = take(kept, slave)
    fill(store)
    with pytest.raises(JournalFull):
        give(kept, slave, task)
    assert ids(kept.getResults(timeout=0.0)) == ["sqrt_0"]


def test_a_result_is_acknowledged_when_it_is_on_record(
    kept: TaskManager, store: TryingStore
) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    (task,) = take(kept, slave)
    store.gate.clear()
    call = Call(give, kept, slave, task)
    wait_until(lambda: store.busy)
    assert not call.done
    store.gate.set()
    call.outcome()
    assert entries(store)[-1] == "Ended"


def test_a_client_of_another_process_is_answered_when_its_requests_are_on_record(
    kept: TaskManager, store: TryingStore
) -> None:
    embedded = kept.registerProcess(None, "the master")[0]
    other = kept.registerProcess(None, "another client")[0]
    kept.embedClient(embedded)
    store.gate.clear()
    kept.addTaskRequest("sqrt", X, embedded)  # does not wait
    call = Call(kept.addTaskRequest, "sqrt", X, other)
    wait_until(lambda: store.busy)
    assert not call.done
    store.gate.set()
    assert call.outcome() == "sqrt_1"
    assert entries(store) == ["Requested", "Requested"]


def test_a_master_that_only_requests_is_written_now_and_then(
    kept: TaskManager, store: TryingStore
) -> None:
    client = kept.registerProcess(None, "the master")[0]
    kept.embedClient(client)
    for _ in range(4):
        kept.addTaskRequest("sqrt", [bytes(WAITING_BYTES // 2)], client)
    assert entries(store) == ["Requested"] * 3


def test_who_is_no_slave_is_not_in_the_journal(kept: TaskManager, store: TryingStore) -> None:
    client = kept.registerProcess(None, "a client")[0]
    slave = join(kept)
    kept.announceSlave(slave)
    for process in (client, slave):
        kept.unregisterProcess(process)
    kept.addTaskRequest("sqrt", X)
    (group,) = store.groups
    assert [type(entry) for entry in group] == [Joined, Left, Requested]


def test_what_the_journal_holds_of_an_attempt(kept: TaskManager, store: TryingStore) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    (task,) = take(kept, slave)
    give(kept, slave, task, Outcome.EXCEPTION, duration_s=1.5, detail="why", frame=[b"error"])
    handed_out, end = [e for group in store.groups for e in group][-2:]
    assert handed_out == HandedOut(slave, ((0, 1),))
    assert isinstance(end, Ended)
    assert end._replace(at=0.0) == Ended(0, 1, slave, "exception", 1.5, "why", [b"error"], 0.0)


def test_a_late_result_that_is_dropped_is_not_in_the_journal(
    kept: TaskManager, store: TryingStore
) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    (task,) = take(kept, slave)
    for _ in range(3):
        give(kept, slave, task)
    assert entries(store).count("Ended") == 1


# --- nothing can be written -----------------------------------------------------------------


def test_while_nothing_can_be_written_nothing_is_handed_out(
    kept: TaskManager, store: TryingStore
) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    fill(store)
    for _ in range(3):
        with pytest.raises(JournalFull, match="the disk is full"):
            kept.exchange(slave)
    assert kept.numberOfTasks() == [{"sqrt": 1}, {}, {}]
    assert kept.status()["journal_trouble"] == "the disk is full"
    make_room(store)
    assert take(kept, slave) == []  # this call finds out
    (task,) = take(kept, slave)
    assert kept.status()["journal_trouble"] == ""
    give(kept, slave, task)
    assert entries(store)[-1] == "Ended"


def test_a_result_that_was_not_acknowledged_is_handed_in_again_and_counts_once(
    kept: TaskManager, store: TryingStore
) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    (task,) = take(kept, slave)
    fill(store)
    for _ in range(3):
        with pytest.raises(JournalFull):
            give(kept, slave, task)
    make_room(store)
    give(kept, slave, task)
    assert entries(store).count("Ended") == 1
    assert ids(kept.getResults(limit=9, timeout=0.0)) == ["sqrt_0"]


def test_orders_of_a_call_that_failed_come_with_the_next_one(
    kept: TaskManager, store: TryingStore
) -> None:
    slave = join(kept)
    kept.announceSlave(slave)
    kept.addTaskRequest("sqrt", X)
    take(kept, slave)
    kept.storeData(state=X)
    kept.deleteData("state")
    kept.cancelTask("sqrt_0")
    fill(store)
    for _ in range(2):
        with pytest.raises(JournalFull):
            kept.exchange(slave)
    make_room(store)
    assert kept.exchange(slave)[1] == {"stop": ["sqrt_0"], "forget": ["state"]}
    assert kept.exchange(slave)[1] == {}


def test_a_slave_that_waits_tries_the_journal_instead(
    live: TaskManager, store: TryingStore
) -> None:
    slave = join(live)
    fill(store)
    live.addTaskRequest("cube", X)
    with pytest.raises(JournalFull):
        live.exchange(slave, (), (), 0)
    store.gate.clear()
    call = Call(live.exchange, slave, (), (), 1, LONG_S)  # there is nothing for it
    wait_until(lambda: store.busy, "it tries to write")
    make_room(store)
    store.gate.set()
    assert call.outcome() == [[], {}]


def test_slaves_that_waited_when_the_trouble_came_go_on_when_it_ends(
    live: TaskManager, store: TryingStore
) -> None:
    slave, other = join(live), join(live, "cube")
    live.addTaskRequest("cube", X)
    (task,) = take(live, other)
    call = Call(live.exchange, slave, (), (), None, LONG_S)
    wait_for_line(live, 1)
    fill(store)
    with pytest.raises(JournalFull):
        give(live, other, task)
    with live._lock:  # a request that was accepted just before the trouble came
        books = live._ledger
        assert books is not None
        live._queue.request(0, "sqrt", X, TaskOptions())
        live._handout.waiters.wake("sqrt")
    with pytest.raises(JournalFull):
        call.outcome()
    make_room(store)
    assert live.exchange(slave) == [[], {}]
    assert ids(live.exchange(slave, (), (), None, LONG_S)[0]) == ["sqrt_1"]


@pytest.mark.parametrize("how", ["getAnyTask", "getTaskWithTag"])
def test_a_single_task_that_cannot_be_put_on_record_goes_back(
    kept: TaskManager, store: TryingStore, how: str
) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    fill(store)
    arguments = (slave,) if how == "getAnyTask" else ("sqrt", slave)
    with pytest.raises(JournalFull):
        getattr(kept, how)(*arguments)
    assert kept.numberOfTasks() == [{"sqrt": 1}, {}, {}]
    make_room(store)
    task = getattr(kept, how)(*arguments)
    assert (task.task_id, task.attempt) == ("sqrt_0", 2)


def test_requests_wait_with_a_line_in_the_log_and_go_on(
    live: TaskManager, store: TryingStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slave = join(live)
    fill(store)
    assert live.addTaskRequest("sqrt", X) == "sqrt_0"  # it is not lost, so it is not refused
    call = Call(live.addTaskRequest, "sqrt", X)
    wait_until(lambda: live.status()["blocked_requests"] == 1)
    make_room(store)
    assert call.outcome() == "sqrt_1"
    assert ids(take(live, slave)) == ["sqrt_0"]
    said = [getattr(record, "action", "") for record in caplog.records]
    assert [action for action in said if action.startswith(("journal", "requests"))] == [
        "journal_trouble",
        "requests_wait",
        "journal_mended",
    ]


def test_requests_are_refused_where_the_settings_say_so(
    kept: TaskManager, store: TryingStore
) -> None:
    kept._room._settings = replace(kept._settings, when_full="raise")
    fill(store)
    kept.addTaskRequest("sqrt", X)
    for _ in range(2):
        with pytest.raises(JournalFull, match="the disk is full"):
            kept.addTaskRequest("sqrt", X)
    assert kept.numberOfTasks() == [{"sqrt": 1}, {}, {}]
    make_room(store)
    assert kept.addTaskRequest("sqrt", X) == "sqrt_1"


def test_a_request_that_waits_for_the_journal_is_told_of_the_end(
    live: TaskManager, store: TryingStore
) -> None:
    fill(store)
    live.addTaskRequest("sqrt", X)
    call = Call(live.addTaskRequest, "sqrt", X)
    wait_until(lambda: live.status()["blocked_requests"] == 1)
    live.terminate()
    with pytest.raises(TaskManagerTermination):
        call.outcome()


def test_results_in_memory_can_be_had_while_nothing_can_be_written(
    kept: TaskManager, store: TryingStore
) -> None:
    slave = join(kept)
    kept.addTaskRequest("sqrt", X)
    (task,) = take(kept, slave)
    fill(store)
    with pytest.raises(JournalFull):
        give(kept, slave, task, frame=[b"value"])
    (delivery,) = kept.getResults(timeout=0.0)
    assert delivery.frame == [b"value"]
    assert not kept.cancelTask("sqrt_0")


# --- what is written together ----------------------------------------------------------------


def run_all(
    store: TryingStore, frames: list[Frame], options: TaskOptions, memory_bytes: int = 1 << 20
) -> list[str]:
    """Tasks are requested, run and end with the same frames as results; what was written."""
    queue = Queue()
    journal = Journal(store)
    books = Ledger(journal, queue.leases, queue.earlier, memory_bytes)
    if books.request_all(7, "sqrt", frames, options) is None:
        for frame, name in zip(frames, names("sqrt", frames, options), strict=True):
            books.request(7, "sqrt", frame, options, name)
    ends = []
    while (task := queue.leases.hand_out(1, ["sqrt"])) is not None:
        ends.append(Completion(task.task_id, 1, "result", task.frame, 0.5, ""))
    plain, others = queue.leases.complete_all(1, ends)
    assert (len(plain), others) == (len(frames), [])
    books.finished(plain, 1)
    journal.sync()
    assert journal.written == journal.added == 2 * len(frames)
    assert [entry.number for entry in store.groups[0]] == 2 * list(range(len(frames)))  # type: ignore[union-attr]
    return [type(entry).__name__ for entry in store.written]


def test_tiny_requests_and_results_are_written_together(store: TryingStore) -> None:
    assert run_all(store, [[b"x"], [b"y"], [b"z"]], TaskOptions(key="k")) == ["Requests", "Results"]
    assert store.parameters(1) == store.result(1) == [b"y"]


@pytest.mark.parametrize(
    "frames", [[[b"x"], [b"y", b"z"]], [[bytearray(b"x")]] * 2, [[bytes(TINY_BYTES + 1)]] * 2]
)
def test_what_is_not_tiny_is_written_by_itself(store: TryingStore, frames: list[Frame]) -> None:
    assert {"Requested", "Ended"} <= set(run_all(store, frames, TaskOptions()))


def test_tasks_of_an_attached_client_are_written_by_themselves(store: TryingStore) -> None:
    """They will be removed one by one."""
    options = TaskOptions(origin=("token", 1))
    assert run_all(store, [[b"x"], [b"y"]], options) == 2 * ["Requested"] + 2 * ["Ended"]


def test_what_is_to_rest_is_written_by_itself(store: TryingStore) -> None:
    written = run_all(store, [[b"x"], [b"y"]], TaskOptions(), memory_bytes=1)
    assert written == 2 * ["Requested"] + 2 * ["Ended"]


def test_requests_that_may_take_the_place_of_earlier_ones_are_looked_at_by_themselves(
    store: TryingStore,
) -> None:
    queue = Queue()
    books = Ledger(Journal(store), queue.leases, queue.earlier, 1 << 20)
    assert not books.knows()
    queue.earlier.park(0, "sqrt", identity("sqrt", [b"x"], None), TaskOptions())
    assert books.knows()
    assert books.request_all(7, "sqrt", [[b"x"]], TaskOptions()) is None
    assert books.request_all(7, "sqrt", [], TaskOptions()) is None


def test_slaves_that_were_lost_do_not_stay_on_record(
    store: TryingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "_LOST", 2)

    def run() -> tuple[TaskManager, Journal]:
        journal = Journal(store)
        return TaskManager("job", Settings(key_file=Path("unused")), journal=journal), journal

    def on_record(journal: Journal) -> list[int]:
        journal.sync()
        return [one.process for one in store.entries() if isinstance(one, Joined)]

    manager, journal = run()
    slaves = [join(manager) for _ in range(5)]
    for slave in slaves:
        manager.announceSlave(slave)
    assert on_record(journal) == slaves
    for slave in slaves:
        manager.lostProcess(slave, "killed")
    assert on_record(journal) == slaves[-2:]  # who may come back
    # None of them held a task, so the next run waits for none of them.
    assert on_record(run()[1]) == []

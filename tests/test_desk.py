"""The task manager's side of clients in other processes."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from journals import TryingStore
from managing import LONG_S, Call, Clock, X, give, ids, join, take, wait_for_clients

from masterslave.entries import Ended, HandedOut, Requested, Setback
from masterslave.errors import DataNotFound, JournalFull, TaskManagerTermination, UnknownProcess
from masterslave.journal import Journal
from masterslave.manager import TaskManager
from masterslave.records import SLAVE_CODE, Outcome, ProcessInfo
from masterslave.settings import Settings
from masterslave.stores import memory
from masterslave.stores.memory import MemoryStore


def attach(manager: TaskManager, token: str, *args: Any, period: float | None = None) -> list[Any]:
    return manager.attachClient(ProcessInfo(f"client {token}", 1, "host", 0, token), period, *args)


def submit(manager: TaskManager, client: tuple[int, int], serial: int, count: int = 1) -> list[str]:
    return manager.submitTasks(*client, 0, serial, "sqrt", [X] * count)


@pytest.fixture
def client(manager: TaskManager) -> tuple[int, int]:
    process_id, generation, missing = attach(manager, "a")
    assert missing == []
    return process_id, generation


def serve(manager: TaskManager, slave: int) -> list[str]:
    """Have the slave run what it gets; gives the ids."""
    tasks = take(manager, slave)
    for task in tasks:
        give(manager, slave, task)
    return ids(tasks)


def test_a_call_made_again_under_its_number_is_not_carried_out_again(
    manager: TaskManager, client: tuple[int, int]
) -> None:
    first = submit(manager, client, 1, 3)
    assert submit(manager, client, 1, 3) == first
    assert manager.numberOfTasks()[0] == {"sqrt": 3}
    assert submit(manager, client, 2) == ["sqrt_3"]
    with pytest.raises(ValueError, match="call 1 of lane 0 is over"):
        submit(manager, client, 1, 3)
    assert manager.withdrawTask(*client, 1, 1, "sqrt_3")
    assert manager.withdrawTask(*client, 1, 1, "sqrt_3")  # what it was answered before
    assert not manager.withdrawTask(*client, 1, 2, "sqrt_3")


def test_a_parcel_of_results_comes_again_until_it_was_received(
    manager: TaskManager, client: tuple[int, int]
) -> None:
    slave = join(manager)
    submit(manager, client, 1, 2)
    first, second = serve(manager, slave) + serve(manager, slave)
    one = manager.collectResults(*client, 0, 1, 0.0)
    assert (one[0], ids(one[1])) == (1, [first])
    assert manager.collectResults(*client, 0, 9, 0.0) == one
    two = manager.collectResults(*client, 1, 9, 0.0)
    assert (two[0], ids(two[1])) == (2, [second])
    assert manager.collectResults(*client, 2, 9, 0.0) == [2, []]


def test_a_client_that_comes_back_in_time_finds_its_tasks(
    manager: TaskManager, client: tuple[int, int], clock: Clock
) -> None:
    slave = join(manager)
    task_ids = submit(manager, client, 1, 2)
    manager.lostProcess(client[0], "its connection closed")
    with pytest.raises(UnknownProcess):
        submit(manager, client, 2)
    serve(manager, slave)
    clock.now += 59.0
    manager.checkLiveness()
    process_id, generation, missing = attach(manager, "a", client[0], task_ids, 1)
    assert (process_id, missing) == (client[0], [])
    assert generation != client[1]
    with pytest.raises(UnknownProcess):
        manager.collectResults(*client, 0, 9, 0.0)
    assert ids(manager.collectResults(process_id, generation, 0, 9, 0.0)[1]) == task_ids[:1]


def test_a_parcel_that_was_lost_with_its_connection_comes_again(
    manager: TaskManager, client: tuple[int, int]
) -> None:
    task_ids = submit(manager, client, 1)
    serve(manager, join(manager))
    manager.collectResults(*client, 0, 9, 0.0)
    process_id, generation, missing = attach(manager, "a", client[0], task_ids, 1)
    assert missing == []
    assert ids(manager.collectResults(process_id, generation, 0, 9, 0.0)[1]) == task_ids


def test_another_ones_token_brings_nobody_elses_tasks(
    manager: TaskManager, client: tuple[int, int]
) -> None:
    task_ids = submit(manager, client, 1)
    other, _, missing = attach(manager, "b", client[0], task_ids, 1)
    assert other != client[0]
    assert missing == task_ids


def test_the_tasks_of_a_client_that_is_silent_are_dropped_after_its_time_of_grace(
    manager: TaskManager, clock: Clock
) -> None:
    process_id, generation, _ = attach(manager, "a", period=10.0)
    slave = join(manager)
    task_ids = submit(manager, (process_id, generation), 1, 3)
    manager.storeItems(process_id, generation, {"item": 1})
    serve(manager, slave)
    running = take(manager, slave)
    clock.now += 41.0
    manager.checkLiveness()
    assert manager.activeProcesses() == [slave]
    clock.now += 60.0
    manager.checkLiveness()
    assert [sum(counts.values()) for counts in manager.numberOfTasks()] == [0, 0, 0]
    with pytest.raises(DataNotFound):
        manager.retrieveData("item")
    assert manager.exchange(slave)[1] == {"stop": ids(running), "forget": ["item"]}
    give(manager, slave, running[0])  # too late, and of no use
    assert attach(manager, "a", process_id, task_ids, 1)[2] == task_ids


def test_tasks_are_kept_when_the_task_manager_is_told_so(clock: Clock) -> None:
    manager = TaskManager("job", Settings(key_file=Path("unused")), clock=clock, keep=True)
    process_id, generation, _ = attach(manager, "a")
    task_ids = submit(manager, (process_id, generation), 1)
    manager.lostProcess(process_id, "its connection closed")
    clock.now += 1e6
    manager.checkLiveness()
    assert attach(manager, "a", process_id, task_ids, 1)[2] == []


def test_two_clients_bring_the_same_code_at_the_same_moment(
    manager: TaskManager, client: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the first one lets go of the lock, its code is there for the second to see."""
    other = tuple(attach(manager, "b")[:2])
    code = {"kind": "script", "source": "same", "path": "/same.py", "cwd": "/"}
    lock = type(manager._lock)
    let_go, comes = lock.__exit__, [True]

    def let_go_and_another_one_comes(self: Any, *args: Any) -> None:
        let_go(self, *args)
        if comes:
            comes.clear()
            manager.storeItems(*other, {SLAVE_CODE: dict(code)})

    monkeypatch.setattr(lock, "__exit__", let_go_and_another_one_comes)
    manager.storeItems(*client, {SLAVE_CODE: code})
    assert not comes
    assert manager.retrieveData(SLAVE_CODE) == code


def test_a_client_that_leaves_takes_only_its_own_tasks_with_it(
    manager: TaskManager, client: tuple[int, int]
) -> None:
    other = tuple(attach(manager, "b")[:2])
    submit(manager, client, 1, 2)
    (kept,) = submit(manager, other, 1)
    for one in (client, other):
        manager.storeItems(*one, {"shared": 1})
    manager.storeItems(*client, {"own": 1})
    manager.detachClient(client[0])
    assert manager.numberOfTasks()[0] == {"sqrt": 1}
    assert manager.retrieveData("shared") == 1
    with pytest.raises(DataNotFound):
        manager.retrieveData("own")
    slave = join(manager)
    assert serve(manager, slave) == [kept]
    manager.deleteItem(*other, "shared")
    with pytest.raises(DataNotFound):
        manager.retrieveData("shared")


def test_a_client_that_waits_is_woken_by_a_result_and_by_the_end(live: TaskManager) -> None:
    client = tuple(attach(live, "a")[:2])
    slave = join(live)
    (task_id,) = submit(live, client, 1)
    call = Call(live.collectResults, *client, 0, 9, LONG_S)
    wait_for_clients(live, 1)
    assert live.status()["client_waits"]
    serve(live, slave)
    assert ids(call.outcome()[1]) == [task_id]
    call = Call(live.collectResults, *client, 1, 9, LONG_S)
    wait_for_clients(live, 1)
    assert not live.status()["client_waits"]  # nothing is outstanding: it only looks
    live.terminate()
    with pytest.raises(TaskManagerTermination):
        call.outcome()


def test_a_call_that_waits_ends_when_its_client_has_come_back(live: TaskManager) -> None:
    process_id, generation, _ = attach(live, "a")
    call = Call(live.collectResults, process_id, generation, 0, 9, LONG_S)
    wait_for_clients(live, 1)
    attach(live, "a", process_id)
    with pytest.raises(UnknownProcess):
        call.outcome()


# --- a task manager that was started again --------------------------------------------------


class Runs:
    """The runs of a task manager with one journal."""

    def __init__(self, clock: Clock) -> None:
        self.store = MemoryStore()
        self.clock = clock

    def next(self, *, keep: bool = False, written: bool = False) -> TaskManager:
        """The next one; `written`: after an orderly end of the one before, else after its death."""
        if written:
            self.journal.close()
        self.journal = Journal(self.store)
        settings = Settings(key_file=Path("unused"))
        return TaskManager("job", settings, clock=self.clock, journal=self.journal, keep=keep)

    def numbers(self) -> list[int]:
        """The tasks of which the journal holds anything, as if it were all written now."""
        self.journal.sync()
        kinds = (Requested, Setback, Ended)
        held = [entry for entry in self.store.entries() if isinstance(entry, (*kinds, HandedOut))]
        numbers = {entry.number for entry in held if isinstance(entry, kinds)}
        for entry in held:
            if isinstance(entry, HandedOut):
                numbers.update(number for number, _ in entry.tasks)
        return sorted(numbers)


def test_clients_find_their_own_tasks_after_a_restart_though_all_are_equal(clock: Clock) -> None:
    runs = Runs(clock)
    manager = runs.next()
    slave = join(manager)
    a, b = (tuple(attach(manager, token)[:2]) for token in "ab")
    of_a, of_b = submit(manager, a, 1, 3), submit(manager, b, 1, 3)
    assert serve(manager, slave) == of_a[:1]
    assert ids(manager.collectResults(*a, 0, 9, 0.0)[1]) == of_a[:1]
    submit(manager, a, 2)  # the answer is lost
    manager = runs.next()
    slave = join(manager)
    *b, missing = attach(manager, "b", b[0], of_b, 1)
    assert missing == []
    *a, missing = attach(manager, "a", a[0], of_a[1:], 1)
    assert missing == []
    assert submit(manager, a, 2) == ["sqrt_6"]  # as before
    assert submit(manager, a, 3) == ["sqrt_7"]  # and not what it has had of the run before
    done = [task_id for _ in range(7) for task_id in serve(manager, slave)]
    assert sorted(done) == sorted([*of_a[1:], *of_b, "sqrt_6", "sqrt_7"])[:7]
    received = ids(manager.collectResults(*a, 0, 9, 0.0)[1])
    assert sorted(received) == [*of_a[1:], "sqrt_6", "sqrt_7"]
    assert sorted(ids(manager.collectResults(*b, 0, 9, 0.0)[1])) == of_b


def test_where_clients_are_kept_who_does_not_come_back_leaves_its_tasks_to_equal_requests(
    clock: Clock,
) -> None:
    runs = Runs(clock)
    manager = runs.next(keep=True)
    client = tuple(attach(manager, "a")[:2])
    (task_id,) = submit(manager, client, 1)
    serve(manager, join(manager))
    manager = runs.next(keep=True)
    other = tuple(attach(manager, "b")[:2])
    assert submit(manager, other, 1) == ["sqrt_1"]  # the first one's client may come back
    clock.now += 60.0
    manager.checkLiveness()
    assert submit(manager, other, 2) == [task_id]
    assert ids(manager.collectResults(*other, 0, 9, 0.0)[1]) == [task_id]


# --- what the journal forgets ---------------------------------------------------------------


@pytest.fixture
def runs(clock: Clock) -> Runs:
    return Runs(clock)


def fail(manager: TaskManager, slave: int) -> list[str]:
    """Have the slave fail in what it gets; gives the ids."""
    tasks = take(manager, slave)
    for task in tasks:
        give(manager, slave, task, Outcome.EXCEPTION, detail="no")
    return ids(tasks)


def failed(manager: TaskManager) -> list[str]:
    return [row["task_id"] for row in manager.failedTasks()["failed"]]


def test_what_its_client_has_received_is_forgotten_and_not_before(runs: Runs) -> None:
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    slave = join(manager)
    submit(manager, client, 1, 2)
    serve(manager, slave)
    number, got = manager.collectResults(*client, 0, 9, 0.0)
    assert ids(got) == ["sqrt_0"]
    assert runs.numbers() == [0, 1]  # it is on its way
    assert manager.collectResults(*client, 0, 9, 0.0) == [number, got]
    assert runs.numbers() == [0, 1]
    assert manager.collectResults(*client, number, 9, 0.0)[1] == []
    assert runs.numbers() == [1]


def test_a_parcel_whose_arrival_was_not_told_comes_from_the_next_run(runs: Runs) -> None:
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    of_a = submit(manager, client, 1)
    serve(manager, join(manager))
    assert ids(manager.collectResults(*client, 0, 9, 0.0)[1]) == of_a
    manager = runs.next()  # the answer was lost
    *client, missing = attach(manager, "a", client[0], of_a, 1)
    assert missing == []
    assert ids(manager.collectResults(*client, 0, 9, 0.0)[1]) == of_a


@pytest.mark.parametrize("written", [False, True])
def test_the_next_run_has_nothing_of_what_was_received(runs: Runs, written: bool) -> None:
    """Whether the removal was written or not when the task manager died."""
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    submit(manager, client, 1)
    serve(manager, join(manager))
    number, _ = manager.collectResults(*client, 0, 9, 0.0)
    manager.collectResults(*client, number, 9, 0.0)
    manager = runs.next(written=written)
    assert manager.status()["parked"] == (not written)
    *client, missing = attach(manager, "a", client[0], [], 1)
    assert missing == []
    assert manager.status()["parked"] == 0
    assert runs.numbers() == []
    assert manager.collectResults(*client, 0, 9, 0.0)[1] == []
    assert submit(manager, tuple(client), 2) == ["sqrt_1"]  # no number is given twice


def test_a_request_whose_answer_was_lost_finds_the_rest_of_its_tasks(runs: Runs) -> None:
    """The client had the first result, and dropped it, before it knew the tasks' ids."""
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    frames = [[b"a"], [b"b"], [b"c"]]
    first = manager.submitTasks(*client, 0, 1, "sqrt", frames)
    assert serve(manager, join(manager)) == first[:1]
    number, _ = manager.collectResults(*client, 0, 9, 0.0)
    manager.collectResults(*client, number, 9, 0.0)
    manager = runs.next(written=True)
    *again, missing = attach(manager, "a", client[0], [], 0)
    assert missing == []
    assert manager.submitTasks(*again, 0, 1, "sqrt", frames) == ["sqrt_3", *first[1:]]
    slave = join(manager)
    by_id = {}
    while tasks := take(manager, slave):
        by_id.update((task.task_id, task.frame) for task in tasks)
        for task in tasks:
            give(manager, slave, task)
    assert by_id == dict(zip(["sqrt_3", *first[1:]], frames, strict=True))


def test_what_a_client_has_withdrawn_or_left_behind_is_forgotten(runs: Runs) -> None:
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    slave = join(manager)
    withdrawn, sent = submit(manager, client, 1, 2)
    assert manager.withdrawTask(*client, 1, 1, withdrawn)
    assert serve(manager, slave) == [sent]
    manager.collectResults(*client, 0, 1, 0.0)
    finished = submit(manager, client, 2)
    assert serve(manager, slave) == finished
    submit(manager, client, 3)
    assert runs.numbers() == [1, 2, 3]
    manager.detachClient(client[0])
    assert runs.numbers() == []


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_client_that_was_given_up_leaves_is_forgotten(
    runs: Runs, clock: Clock, restarted: bool
) -> None:
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    submit(manager, client, 1, 3)
    slave = join(manager)
    serve(manager, slave)
    take(manager, slave)
    if restarted:
        manager = runs.next()
    else:
        manager.lostProcess(client[0], "test")
    clock.now += 59.0
    manager.checkLiveness()
    assert runs.numbers() == [0, 1, 2]
    clock.now += 1.0
    manager.checkLiveness()
    assert runs.numbers() == []
    assert manager.status()["parked"] == 0


def test_failures_stay_to_be_seen_but_not_to_be_run(runs: Runs) -> None:
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    submit(manager, client, 1)
    assert fail(manager, join(manager)) == ["sqrt_0"]
    number, _ = manager.collectResults(*client, 0, 9, 0.0)
    manager.collectResults(*client, number, 9, 0.0)
    manager = runs.next(written=True)
    assert failed(manager) == ["sqrt_0"]
    assert manager.status()["parked"] == 0
    other = tuple(attach(manager, "b")[:2])
    assert submit(manager, other, 1) == ["sqrt_1"]


def test_of_failures_the_newest_stay(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT_FAILURES", 3)
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    submit(manager, client, 1, 9)
    slave = join(manager)
    for _ in range(9):
        fail(manager, slave)
    manager.detachClient(client[0])
    manager = runs.next(written=True)
    assert failed(manager) == ["sqrt_6", "sqrt_7", "sqrt_8"]


def test_a_long_lived_task_manager_does_not_grow(runs: Runs) -> None:
    manager = runs.next()
    client = tuple(attach(manager, "a")[:2])
    slave = join(manager)
    parcel = 0
    for serial in range(1, 200):
        submit(manager, client, serial)
        serve(manager, slave)
        parcel, got = manager.collectResults(*client, parcel, 9, 0.0)
        assert len(got) == 1
        assert len(runs.numbers()) <= 2
    assert manager._ledger is not None
    assert not manager._ledger._ends


def test_the_tasks_of_an_embedded_client_are_kept_for_the_next_run(runs: Runs) -> None:
    manager = runs.next()
    manager.addTaskRequest("sqrt", X)
    serve(manager, join(manager))
    assert ids(manager.getResults()) == ["sqrt_0"]
    assert runs.numbers() == [0]


class Patient:
    """A client as `attached.RemoteManager` is one, whose answers may be lost."""

    def __init__(self, manager: TaskManager) -> None:
        self.serial = self.answered = self.parcel = 0
        self.asked: list[bytes] = []  # of the request that is not answered
        self.waits: dict[str, bytes] = {}  # task id -> parameter
        self.early: set[str] = set()
        self.got: list[bytes] = []
        self.id: int | None = None
        self.attach(manager)

    def attach(self, manager: TaskManager) -> None:
        found = attach(manager, "a", self.id, list(self.waits), self.answered)
        process_id, self.generation, missing = found
        assert missing == []
        if process_id != self.id:
            self.id, self.parcel = process_id, 0
            self.early.clear()

    def submit(self, manager: TaskManager, count: int, lost: bool) -> None:
        if not self.asked:
            self.serial += 1
            self.asked = [b"%d %d" % (self.serial, i) for i in range(count)]
        frames = [[one] for one in self.asked]
        assert self.id is not None
        answer = manager.submitTasks(self.id, self.generation, 0, self.serial, "sqrt", frames)
        if lost:
            return
        for task_id, parameter in zip(answer, self.asked, strict=True):
            if task_id in self.early:
                self.got.append(parameter)
            else:
                self.waits[task_id] = parameter
        self.asked, self.answered = [], self.serial
        self.early.clear()

    def collect(self, manager: TaskManager, lost: bool) -> None:
        assert self.id is not None
        answer = manager.collectResults(self.id, self.generation, self.parcel, 2, 0.0)
        if lost or answer[0] == self.parcel:
            return
        self.parcel = answer[0]
        for delivery in answer[1]:
            parameter = self.waits.pop(delivery.task_id, None)
            if parameter is not None:
                assert delivery.frame == [b"result of " + parameter]
                self.got.append(parameter)
            elif self.asked:
                self.early.add(delivery.task_id)


@pytest.mark.parametrize("seed", range(100))
def test_each_result_comes_once_whenever_the_task_manager_dies(runs: Runs, seed: int) -> None:
    """And when all has come, the journal holds nothing."""
    draw = random.Random(seed)
    manager = runs.next()
    slave, client = join(manager), Patient(manager)

    def work() -> None:
        for task in take(manager, slave):
            give(manager, slave, task, frame=[b"result of " + bytes(task.frame[0])])

    for _ in range(80):
        move, lost = draw.random(), draw.random() < 0.3
        if move < 0.1:
            manager = runs.next(written=draw.random() < 0.5)
            slave = join(manager)
            client.attach(manager)
        elif move < 0.4:
            client.submit(manager, draw.randint(1, 4), lost)
        elif move < 0.7:
            work()
        else:
            client.collect(manager, lost)
    if client.asked:
        client.submit(manager, 0, False)
    for _ in range(500):
        work()
        client.collect(manager, False)
    assert not client.waits
    assert len(client.got) == len(set(client.got))
    assert {int(one.split()[0]) for one in client.got} == set(range(1, client.serial + 1))
    client.collect(manager, False)
    assert runs.numbers() == []


# --- the end --------------------------------------------------------------------------------


def test_an_idle_client_learns_of_the_end_by_its_ping(
    manager: TaskManager, client: tuple[int, int]
) -> None:
    slave = join(manager)
    manager.terminate()
    manager.ping(slave)  # a slave is told by its exchange
    with pytest.raises(TaskManagerTermination):
        manager.ping(client[0])
    with pytest.raises(TaskManagerTermination):
        submit(manager, client, 1)


def test_the_end_waits_for_idle_clients(live: TaskManager) -> None:
    client = attach(live, "a")
    live.terminate()
    call = Call(live.waitForClientsToKnow, LONG_S)
    assert not live.waitForClientsToKnow(0.0)
    live.lostProcess(client[0], "its connection was closed")
    assert call.outcome() is True


def test_a_task_manager_without_a_journal_knows_nothing_of_the_run_before(
    manager: TaskManager,
) -> None:
    assert attach(manager, "a", 5, ["sqrt_0", "cube_1"], 3)[2] == ["sqrt_0", "cube_1"]


# --- a journal that cannot be written -------------------------------------------------------


@pytest.fixture
def trying(clock: Clock) -> tuple[TryingStore, TaskManager]:
    """A task manager that does not wait for room, and its store."""
    store = TryingStore()
    settings = Settings(key_file=Path("unused"), when_full="raise")
    return store, TaskManager("job", settings, clock=clock, journal=Journal(store))


def test_a_request_that_cannot_be_put_on_record_is_taken_back_and_asked_for_again(
    trying: tuple[TryingStore, TaskManager], clock: Clock
) -> None:
    store, manager = trying
    client = tuple(attach(manager, "a")[:2])
    slave = join(manager)
    store.errors = [JournalFull("the disk is full")] * 3
    for _ in range(3):
        with pytest.raises(JournalFull):
            submit(manager, client, 1, 2)
        assert manager.numberOfTasks() == [{}, {}, {}]
    requested = submit(manager, client, 1, 2)
    assert submit(manager, client, 1, 2) == requested
    assert manager.numberOfTasks()[0] == {"sqrt": 2}
    # Killed now, the next run has what was answered, and nothing else.
    settings = Settings(key_file=Path("unused"))
    manager = TaskManager("job", settings, clock=clock, journal=Journal(store))
    *client, missing = attach(manager, "a", client[0], requested, 1)
    assert missing == []
    assert manager.numberOfTasks()[0] == {"sqrt": 2}
    slave = join(manager)
    assert sorted([*serve(manager, slave), *serve(manager, slave)]) == requested


@pytest.mark.parametrize("failures", [1, 2])
def test_a_call_that_is_there_twice_is_taken_back_once_or_answered(
    trying: tuple[TryingStore, TaskManager], failures: int
) -> None:
    """Its connection broke while it was being written; whoever is answered has its tasks."""
    store, manager = trying
    client = tuple(attach(manager, "a")[:2])
    store.errors = [JournalFull("the disk is full")] * failures
    store.gate.clear()
    calls = [Call(submit, manager, client, 1, 2)]
    wait_until(lambda: store.busy)
    calls.append(Call(submit, manager, client, 1, 2))
    store.gate.set()
    answers = []
    for call in calls:
        with contextlib.suppress(JournalFull):
            answers.append(call.outcome())
    waiting = manager.numberOfTasks()[0].get("sqrt", 0)
    assert waiting == (2 if answers else 0), (answers, waiting)
    assert submit(manager, client, 1, 2) in (
        answers or [["sqrt_2", "sqrt_3"], ["sqrt_4", "sqrt_5"]]
    )
    assert manager.numberOfTasks()[0] == {"sqrt": 2}

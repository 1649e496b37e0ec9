"""A task manager that goes on where an earlier one ended, in one process, with a clock of ours.

`jobs(store)` stands for the process that was killed and started again: nothing of an earlier task
manager is used but the store, and nothing was closed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from journals import KEY
from managing import Clock, give, ids, take

from masterslave.errors import JournalDamaged, JournalError
from masterslave.journal import Journal
from masterslave.manager import TaskManager
from masterslave.records import Assignment, Delivery, Outcome, ProcessInfo, TaskOptions
from masterslave.settings import Settings
from masterslave.stores.base import Store
from masterslave.stores.memory import MemoryStore
from masterslave.stores.sqlite import SqliteStore

RESUME_S = Settings(key_file=Path("unused")).resume_s


class Run:
    """One run of a master: the only client, and as many slaves as it likes."""

    def __init__(self, store: Store, clock: Clock, memory_bytes: int = 1 << 30) -> None:
        settings = Settings(key_file=Path("unused"), memory_bytes=memory_bytes)
        self.manager = TaskManager("job", settings, clock=clock, journal=Journal(store))
        self.client = int(self.manager.registerProcess(None, "the master")[0])
        self.manager.embedClient(self.client)

    def ask(self, *parameters: bytes, tag: str = "sqrt", **options: object) -> list[str]:
        """Request tasks of these parameters; gives their ids."""
        checked = TaskOptions(**options)  # type: ignore[arg-type]
        frames = [[one] for one in parameters]
        return self.manager.addTaskRequests(tag, frames, self.client, checked)

    def slave(self, token: str, workers: int = 1, pid: int = 1, host: str = "elsewhere") -> int:
        """A slave that joins; gives its process id."""
        info = ProcessInfo(f"slave {token}", pid, host, workers, token)
        slave = int(self.manager.registerProcess(None, info)[0])
        self._announce(slave)
        return slave

    def back(
        self, slave: int, token: str, *held: Assignment, workers: int = 1
    ) -> tuple[int, list[tuple[str, int]]]:
        """A slave of before comes back; gives its process id, and what it should let go of."""
        info = ProcessInfo(f"slave {token}", 1, "elsewhere", workers, token)
        pairs = [(task.task_id, task.attempt) for task in held]
        process, obsolete, _ = self.manager.registerProcess(None, info, slave, pairs)
        self._announce(process)
        return process, [(task_id, attempt) for task_id, attempt in obsolete]

    def _announce(self, slave: int) -> None:
        self.manager.announceSlave(slave)
        self.manager.announceTags(slave, ["sqrt", "cube"])

    def result(self) -> Delivery:
        (delivery,) = self.manager.getResults(self.client, timeout=0.0)
        return delivery

    def results(self) -> dict[str, bytes]:
        """All results that are there: task id -> value."""
        found = self.manager.getResults(self.client, limit=1000, timeout=0.0)
        assert all(one.outcome == Outcome.RESULT for one in found)
        return {one.task_id: b"".join(map(bytes, one.frame)) for one in found}

    def work(self, slave: int) -> list[Assignment]:
        """Have a slave do all that it gets; the result of x is "<x>"."""
        done = []
        while tasks := take(self.manager, slave):
            for task in tasks:
                give(self.manager, slave, task, frame=answer(task))
                done.append(task)
        return done

    def status(self, name: str) -> object:
        return self.manager.status()[name]


def answer(task: Assignment) -> list[bytes]:
    return [b"<", *map(bytes, task.frame), b">"]


Jobs = Callable[..., Run]


@pytest.fixture
def store() -> Store:
    return MemoryStore()


@pytest.fixture
def jobs(store: Store, clock: Clock) -> Jobs:
    return lambda memory_bytes=1 << 30: Run(store, clock, memory_bytes)


# --- what an earlier run has done -----------------------------------------------------------


def test_what_had_finished_is_delivered_without_being_handed_out(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1", b"2")
    assert len(first.work(first.slave("a"))) == 2
    second = jobs()
    slave = second.slave("b")
    assert second.ask(b"2", b"1") == ["sqrt_1", "sqrt_0"]
    assert take(second.manager, slave) == []
    assert second.results() == {"sqrt_1": b"<2>", "sqrt_0": b"<1>"}
    assert second.manager.outstandingTasks(second.client) == 0


def test_what_was_delivered_is_delivered_again_in_the_next_run(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1")
    first.work(first.slave("a"))
    assert first.results() == {"sqrt_0": b"<1>"}
    for _ in range(3):
        run = jobs()
        run.ask(b"1")
        assert run.results() == {"sqrt_0": b"<1>"}
        assert run.results() == {}


@pytest.mark.parametrize(
    "outcome",
    [Outcome.EXCEPTION, Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY],
)
def test_what_had_failed_is_delivered_as_a_failure(jobs: Jobs, outcome: Outcome) -> None:
    first = jobs()
    first.ask(b"1", crash_limit=1)
    slave = first.slave("a")
    (task,) = take(first.manager, slave)
    give(first.manager, slave, task, outcome, detail="the story of it", frame=[b"what was raised"])
    expected = first.result()
    second = jobs()
    second.ask(b"1", crash_limit=1)
    assert take(second.manager, second.slave("b")) == []
    got = second.result()
    assert got.outcome == outcome.value
    assert "the story of it" in got.detail
    assert got == expected._replace(frame=got.frame)
    assert list(map(bytes, got.frame)) == list(map(bytes, expected.frame))


def test_what_had_waited_waits(jobs: Jobs) -> None:
    first = jobs()
    slave = first.slave("a")
    first.ask(b"1", b"2", b"3")
    (task,) = take(first.manager, slave)
    give(first.manager, slave, task, frame=answer(task))
    second = jobs()
    second.ask(b"1", b"2", b"3")
    assert second.status("waiting") == {"sqrt": 2}
    assert ids(second.work(second.slave("b"))) == ["sqrt_1", "sqrt_2"]
    assert second.results() == {"sqrt_0": b"<1>", "sqrt_1": b"<2>", "sqrt_2": b"<3>"}


def test_requests_that_never_came_on_record_are_new(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1")
    assert take(first.manager, first.slave("a")) != []
    first.ask(b"2", b"3")  # nobody has waited for these
    second = jobs()
    assert second.status("parked") == 1
    assert second.ask(b"3", b"1", b"2") == ["sqrt_1", "sqrt_0", "sqrt_2"]


def test_ids_go_on(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1", b"2")
    first.work(first.slave("a"))
    second = jobs()
    assert second.ask(b"new") == ["sqrt_2"]
    assert second.ask(b"2", b"2") == ["sqrt_1", "sqrt_3"]
    assert second.ask(b"8", tag="cube") == ["cube_4"]


# --- which request is which -----------------------------------------------------------------


def test_of_equal_requests_the_nth_is_the_nth(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"x", b"x", b"x")
    slave = first.slave("a", workers=3)
    for number, task in enumerate(take(first.manager, slave)):
        if number != 1:
            give(first.manager, slave, task, frame=[b"%d" % number])
    second = jobs()
    assert second.ask(b"x") == ["sqrt_0"]
    assert second.results() == {"sqrt_0": b"0"}
    assert second.ask(b"x") == ["sqrt_1"]
    assert second.results() == {}
    assert second.ask(b"x") == ["sqrt_2"]
    assert second.results() == {"sqrt_2": b"2"}
    assert second.ask(b"x") == ["sqrt_3"]


def test_the_same_parameters_of_another_tag_are_another_task(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"x")
    first.work(first.slave("a"))
    second = jobs()
    assert second.ask(b"x", tag="cube") == ["cube_1"]
    assert second.results() == {}


def test_a_key_is_the_identity_whatever_the_parameters(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1", key="k")
    first.ask(b"1", key="other")
    first.ask(b"1")
    first.work(first.slave("a"))
    second = jobs()
    assert second.ask(b"2", key="k") == ["sqrt_0"]
    assert second.ask(b"2") == ["sqrt_3"]
    assert second.ask(b"1") == ["sqrt_2"]
    assert second.results() == {"sqrt_0": b"<1>", "sqrt_2": b"<1>"}


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_a_task_that_runs_again_runs_with_the_parameters_of_its_last_request(
    jobs: Jobs, clock: Clock, memory_bytes: int
) -> None:
    first = jobs()
    first.ask(b"old", key="k")
    take(first.manager, first.slave("a"))  # so it is on record
    second = jobs(memory_bytes)
    second.ask(b"new", key="k")
    second.ask(b"more")
    second.manager.exchange(second.slave("b"), (), (), 0)  # what is on record may rest now
    clock.now += RESUME_S
    second.manager.checkLiveness()
    second.work(second.slave("c"))
    assert second.results() == {"sqrt_0": b"<new>", "sqrt_1": b"<more>"}


def test_what_is_not_requested_again_stays_parked(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1", b"2", b"3")
    slave = first.slave("a")
    (task,) = take(first.manager, slave)
    give(first.manager, slave, task)
    second = jobs()
    assert second.status("parked") == 3
    second.ask(b"2")
    assert second.status("parked") == 2
    assert ids(second.work(second.slave("b"))) == ["sqrt_1"]
    assert second.results() == {"sqrt_1": b"<2>"}
    assert second.manager.numberOfTasks() == [{}, {}, {}]
    third = jobs()
    assert third.status("parked") == 3
    third.ask(b"1", b"2", b"3")
    assert third.results() == {"sqrt_0": b"r", "sqrt_1": b"<2>"}


def test_a_parked_task_cannot_be_cancelled_by_its_id(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1")
    first.work(first.slave("a"))
    second = jobs()
    assert not second.manager.cancelTask("sqrt_0")
    second.ask(b"1")
    assert second.results() == {"sqrt_0": b"<1>"}


# --- cancelled ------------------------------------------------------------------------------


def test_what_was_cancelled_is_run_anew(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1", b"2")
    assert first.manager.cancelTask("sqrt_0")
    first.work(first.slave("a"))
    second = jobs()
    assert second.status("parked") == 1
    assert second.ask(b"1") == ["sqrt_2"]
    assert ids(second.work(second.slave("b"))) == ["sqrt_2"]
    assert second.results() == {"sqrt_2": b"<1>"}


def test_a_late_result_of_a_cancelled_task_is_nobody_elses(jobs: Jobs) -> None:
    """A slave that missed the order to stop hands in a task: nobody else may have its number."""
    first = jobs()
    first.ask(b"1")
    slave = first.slave("a")
    (cancelled,) = take(first.manager, slave)
    first.manager.cancelTask("sqrt_0")
    take(first.manager, first.slave("b"))  # the cancellation is on record
    second = jobs()
    (new,) = second.ask(b"2")
    assert ids(take(second.manager, second.slave("c"))) == [new]
    process, obsolete = second.back(slave, "a", cancelled)
    assert obsolete == [(cancelled.task_id, 1)]
    give(second.manager, process, cancelled, frame=[b"of another task"])
    assert second.results() == {}


# --- slaves of before -----------------------------------------------------------------------


def test_a_slave_that_comes_back_keeps_its_tasks_and_its_results_count(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1", b"2", b"3")
    slave = first.slave("a", workers=2)
    held = take(first.manager, slave)
    assert ids(held) == ["sqrt_0", "sqrt_1"]
    second = jobs()
    assert second.status("awaited_slaves") == 1
    second.ask(b"1", b"2", b"3")
    assert second.status("running") == {"sqrt": 2}
    other = second.slave("b", workers=3)
    assert ids(take(second.manager, other)) == ["sqrt_2"]
    assert second.back(slave, "a", *held, workers=2) == (slave, [])
    assert second.status("awaited_slaves") == 0
    assert take(second.manager, other) == []
    for task in held:
        give(second.manager, slave, task, frame=answer(task))
    assert second.results() == {"sqrt_0": b"<1>", "sqrt_1": b"<2>"}


def test_a_slave_may_come_back_before_its_tasks_are_requested(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1", b"2")
    slave = first.slave("a", workers=2)
    held = take(first.manager, slave)
    second = jobs()
    second.back(slave, "a", *held, workers=2)
    give(second.manager, slave, held[0], frame=answer(held[0]))
    assert second.status("parked") == 2
    second.ask(b"2", b"1")
    assert second.results() == {"sqrt_0": b"<1>"}
    assert take(second.manager, second.slave("b")) == []
    give(second.manager, slave, held[1], frame=answer(held[1]))
    assert second.results() == {"sqrt_1": b"<2>"}
    third = jobs()
    third.ask(b"1", b"2")
    assert third.results() == {"sqrt_0": b"<1>", "sqrt_1": b"<2>"}


def test_what_a_slave_that_comes_back_does_not_hold_is_run_elsewhere(jobs: Jobs) -> None:
    """The answer that should have brought it the task was lost with the master."""
    first = jobs()
    first.ask(b"1", b"2")
    slave = first.slave("a", workers=2)
    held = take(first.manager, slave)
    second = jobs()
    second.ask(b"1", b"2")
    second.back(slave, "a", held[1], workers=2)
    assert ids(take(second.manager, second.slave("b", workers=9))) == ["sqrt_0"]


def test_others_get_the_tasks_of_a_slave_that_does_not_come_back(jobs: Jobs, clock: Clock) -> None:
    first = jobs()
    first.ask(b"1", crash_limit=1)
    take(first.manager, first.slave("a"))
    second = jobs()
    second.ask(b"1", crash_limit=1)
    other = second.slave("b")
    clock.now += RESUME_S - 0.001
    second.manager.checkLiveness()
    assert take(second.manager, other) == []
    clock.now += 0.001
    second.manager.checkLiveness()
    assert second.status("awaited_slaves") == 0
    (task,) = take(second.manager, other)
    assert (task.task_id, task.attempt) == ("sqrt_0", 2)
    give(second.manager, other, task)
    assert second.result().outcome == Outcome.RESULT


def test_a_slave_that_comes_back_too_late_may_still_hand_in_its_result(
    jobs: Jobs, clock: Clock
) -> None:
    first = jobs()
    first.ask(b"1")
    slave = first.slave("a")
    (held,) = take(first.manager, slave)
    second = jobs()
    second.ask(b"1")
    clock.now += RESUME_S
    second.manager.checkLiveness()
    other = second.slave("b")
    (again,) = take(second.manager, other)
    assert second.back(slave, "a", held) == (slave, [("sqrt_0", 1)])
    give(second.manager, slave, held, frame=[b"late"])
    give(second.manager, other, again, frame=[b"second"])
    assert second.results() == {"sqrt_0": b"late"}


def test_a_dead_slave_on_this_machine_is_not_awaited(jobs: Jobs) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    first = jobs()
    first.ask(b"1", b"2")
    living = first.slave("a", pid=os.getpid(), host=platform.node())
    take(first.manager, living)
    take(first.manager, first.slave("b", pid=dead, host=platform.node()))
    second = jobs()
    assert second.status("awaited_slaves") == 1
    second.ask(b"1", b"2")
    assert ids(take(second.manager, second.slave("c", workers=2))) == ["sqrt_1"]


def test_a_slave_that_had_left_is_not_awaited(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1")
    slave = first.slave("a")
    take(first.manager, slave)
    first.manager.unregisterProcess(slave)
    first.slave("b")
    first.manager.exchange(0)  # so that its leaving is on record
    second = jobs()
    assert second.status("awaited_slaves") == 0
    second.ask(b"1")
    assert ids(take(second.manager, second.slave("c"))) == ["sqrt_0"]


def test_who_has_another_token_is_not_the_slave_of_before(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1")
    slave = first.slave("a")
    (held,) = take(first.manager, slave)
    second = jobs()
    second.ask(b"1")
    process, obsolete = second.back(slave, "another", held)
    assert process != slave
    assert obsolete == [("sqrt_0", 1)]
    assert take(second.manager, process) == []
    assert second.back(slave, "a", held) == (slave, [])


def test_new_processes_get_ids_that_no_awaited_slave_has(jobs: Jobs) -> None:
    first = jobs()
    slaves = [first.slave(str(number)) for number in range(5)]
    first.ask(b"1")
    take(first.manager, slaves[-1])
    second = jobs()
    assert second.client > slaves[-1]
    assert second.slave("new") not in (second.client, *slaves)


def test_a_slave_survives_many_masters(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1")
    slave = first.slave("a")
    (held,) = take(first.manager, slave)
    for _ in range(4):
        run = jobs()
        run.ask(b"1")
        assert run.back(slave, "a", held) == (slave, [])
        assert take(run.manager, run.slave("b")) == []
    give(run.manager, slave, held, frame=[b"at last"])
    assert run.results() == {"sqrt_0": b"at last"}


# --- failures that were answered by another attempt -----------------------------------------


@pytest.mark.parametrize("asked_first", [True, False], ids=["after the request", "before it"])
def test_a_slave_that_was_lost_to_the_master_before_keeps_its_task(
    jobs: Jobs, asked_first: bool
) -> None:
    first = jobs()
    (task_id,) = first.ask(b"1", crash_limit=2)
    slave = first.slave("a")
    (task,) = take(first.manager, slave)
    first.manager.exchange(slave, (), [task_id], 0)
    first.manager.lostProcess(slave, "a cable was cut")
    first.manager._ledger.sync()  # type: ignore[union-attr]
    second = jobs()
    if asked_first:
        second.ask(b"1", crash_limit=2)
    assert second.back(slave, "a", task) == (slave, [])  # nothing to let go of
    if not asked_first:
        second.ask(b"1", crash_limit=2)
    kept = second.manager._queue.tasks[task_id]
    assert (kept.holder, kept.attempt, kept.crashes, kept.history) == (slave, 1, 0, ())
    assert take(second.manager, second.slave("b")) == []
    give(second.manager, slave, task, frame=answer(task))
    assert second.results() == {task_id: b"<1>"}
    third = jobs()
    third.ask(b"1", crash_limit=2)
    assert third.results() == {task_id: b"<1>"}


def test_a_slave_that_was_lost_and_stays_away_counts_a_crash(jobs: Jobs) -> None:
    first = jobs()
    (task_id,) = first.ask(b"1", crash_limit=2)
    slave = first.slave("a")
    take(first.manager, slave)
    first.manager.exchange(slave, (), [task_id], 0)
    first.manager.lostProcess(slave, "a cable was cut")
    first.manager._ledger.sync()  # type: ignore[union-attr]
    second = jobs()
    second.ask(b"1", crash_limit=2)
    assert second.manager._queue.tasks[task_id].crashes == 1
    (again,) = take(second.manager, second.slave("b"))  # at once: nobody is awaited
    assert (again.task_id, again.attempt) == (task_id, 2)


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.OUT_OF_MEMORY, Outcome.EXCEPTION])
def test_failures_are_counted_through_all_runs(jobs: Jobs, outcome: Outcome) -> None:
    for number in range(1, 4):
        run = jobs()
        run.ask(b"1", crash_limit=3, retries=2)
        slave = run.slave("a")
        (task,) = take(run.manager, slave)
        assert task.attempt == number
        give(run.manager, slave, task, outcome, detail=f"story {number}")
    got = run.result()
    assert got.outcome == outcome.value
    assert "story 3" in got.detail
    if outcome is not Outcome.EXCEPTION:
        assert got.detail.splitlines() == [f"attempt {n}: story {n}" for n in (1, 2, 3)]


def test_a_lost_slave_is_counted_through_all_runs(jobs: Jobs) -> None:
    for _ in range(2):
        run = jobs()
        run.ask(b"1", crash_limit=2)
        slave = run.slave("a")
        take(run.manager, slave)
        run.manager.lostProcess(slave, "its host is down")
        run.manager.exchange(run.client)
    got = run.result()
    assert got.outcome == Outcome.CRASHED
    assert got.detail.count("its host is down") == 2


@pytest.mark.parametrize("meanwhile", ["nothing", "another slave has it"])
def test_a_slave_that_was_only_cut_off_costs_nothing_in_any_run(jobs: Jobs, meanwhile: str) -> None:
    run = jobs()
    held: dict[int, Assignment] = {}
    for _ in range(3):
        run.ask(b"1", crash_limit=2)
        if not held:
            first = run.slave("a")
            (held[first],) = take(run.manager, first)
        elif run.status("awaited_slaves"):
            (slave,) = held
            assert run.back(slave, "a", held[slave]) == (slave, [])
        for _ in range(3):
            ((slave, task),) = held.items()
            run.manager.lostProcess(slave, "its cable was pulled")
            if meanwhile != "nothing":
                other = run.slave("b")
                (again,) = take(run.manager, other)
                assert run.back(slave, "a", task)[1] == [(task.task_id, task.attempt)]
                run.manager.unregisterProcess(other)
                (task,) = take(run.manager, slave)
                assert task.attempt == again.attempt + 1
            else:
                assert run.back(slave, "a", task) == (slave, [])
            held = {slave: task}
        run.manager.exchange(run.client)  # all is on record
        run = jobs()
    run.ask(b"1", crash_limit=2)
    ((slave, task),) = held.items()
    assert run.back(slave, "a", task) == (slave, [])
    give(run.manager, slave, task, Outcome.CRASHED, detail="the first that counts")
    (task,) = take(run.manager, slave)
    give(run.manager, slave, task, Outcome.CRASHED, detail="the second")
    assert [line.partition(": ")[2] for line in run.result().detail.splitlines()] == [
        "the first that counts", "the second",
    ]  # fmt: skip


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.EXCEPTION])
def test_limits_are_those_of_the_last_request(jobs: Jobs, outcome: Outcome) -> None:
    """Someone raises the limits and starts the master again, twice."""
    for crash_limit, retries, failures in ((2, 1, 1), (9, 9, 4), (9, 9, 0)):
        run = jobs()
        run.ask(b"1", crash_limit=crash_limit, retries=retries)
        slave = run.slave("a")
        for _ in range(failures):
            (task,) = take(run.manager, slave)
            give(run.manager, slave, task, outcome)
    assert run.manager.getResults(run.client, timeout=0.0) == []
    (task,) = take(run.manager, slave)
    assert task.attempt == 6
    for _ in range(3):
        give(run.manager, slave, task, outcome)
        (task,) = take(run.manager, slave)
    give(run.manager, slave, task, outcome, detail="enough")
    if outcome is Outcome.EXCEPTION:  # one more: retries do not count the first attempt
        (task,) = take(run.manager, slave)
        give(run.manager, slave, task, outcome, detail="enough")
    assert run.result().outcome == outcome.value


def test_a_failed_attempt_is_not_awaited(jobs: Jobs) -> None:
    first = jobs()
    first.ask(b"1", retries=3)
    slave = first.slave("a")
    (task,) = take(first.manager, slave)
    give(first.manager, slave, task, Outcome.EXCEPTION)
    second = jobs()
    assert second.status("awaited_slaves") == 0
    second.ask(b"1", retries=3)
    assert ids(take(second.manager, second.slave("b"))) == ["sqrt_0"]


# --- memory ---------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "journal", KEY)
    yield store
    store.close()


def in_memory(run: Run) -> tuple[int, int]:
    queue = run.manager._queue
    return queue.parameter_bytes, queue.result_bytes


def test_what_is_too_much_for_the_memory_rests_and_comes_back_right(
    either: Store, clock: Clock
) -> None:
    run = Run(either, clock, memory_bytes=5000)
    parameters = [b"%04d" % n * 250 for n in range(40)]
    run.ask(*parameters)
    slave = run.slave("a")
    take(run.manager, slave)  # what it does is on record, what came before as well
    assert sum(in_memory(run)) <= 6000
    run.manager.unregisterProcess(slave)
    assert len(run.work(run.slave("b", workers=3))) == 40
    assert sum(in_memory(run)) <= 6000
    got = run.results()
    assert {int(k.split("_")[1]): v for k, v in got.items()} == {
        number: b"<" + one + b">" for number, one in enumerate(parameters)
    }
    assert in_memory(run) == (0, 0)
    again = Run(either, clock, memory_bytes=5000)
    again.ask(*parameters)
    assert in_memory(again) == (0, 0)
    assert again.results() == got


def test_the_books_of_memory_are_right_when_a_result_is_taken_before_it_rests(jobs: Jobs) -> None:
    """Delivered between the moment when it is on record and that when it would be let go of."""
    run = jobs(1)
    slave = run.slave("a")
    for _ in range(3):
        run.ask(b"x" * 1000)
        (task,) = take(run.manager, slave)
        books = run.manager._ledger
        assert books is not None
        real = books.filled

        def deliver_meanwhile(tasks, real=real):  # type: ignore[no-untyped-def]
            assert len(run.results()) == 1
            return real(tasks)

        books.filled = deliver_meanwhile  # type: ignore[method-assign]
        give(run.manager, slave, task, frame=[b"y" * 500])
        books.filled = real  # type: ignore[method-assign]
        assert in_memory(run) == (0, 0)


def test_a_result_that_cannot_be_read_any_more_is_a_failure(jobs: Jobs, store: MemoryStore) -> None:
    first = jobs()
    first.ask(b"1", b"2")
    first.work(first.slave("a"))
    second = jobs()
    second.ask(b"1", b"2")
    del store._ended[0]
    got = {d.task_id: d for d in second.manager.getResults(second.client, limit=2, timeout=0.0)}
    assert got["sqrt_1"].outcome == Outcome.RESULT
    assert got["sqrt_0"].outcome == Outcome.EXCEPTION
    assert "the result cannot be read" in got["sqrt_0"].detail


def test_parameters_that_cannot_be_read_any_more_are_a_failure(
    jobs: Jobs, store: MemoryStore
) -> None:
    run = jobs(1)
    run.ask(b"1", b"2", b"3")
    slave = run.slave("a", workers=3)
    other = run.slave("b")
    run.manager.exchange(other, (), (), 0)
    del store._requested[1]
    assert ids(take(run.manager, slave)) == ["sqrt_0", "sqrt_2"]
    got = run.result()
    assert (got.task_id, got.outcome) == ("sqrt_1", Outcome.EXCEPTION)
    assert "its parameters cannot be read" in got.detail


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["closed", "open", "wal"])
def test_a_damaged_journal_gives_an_error_or_right_results(
    tmp_path: Path, clock: Clock, part: str
) -> None:
    """Closed in order, or of a master that was killed: then part of it is in a file beside it.

    Of that file, what follows a damaged place is as if it had never been written.
    """
    import random

    from test_sqlite_store import damage

    path = tmp_path / "journal"
    store = SqliteStore(path, KEY)
    first = Run(store, clock)
    parameters = [b"%03d" % number * 99 for number in range(12)]
    first.ask(*parameters[:8])
    slave = first.slave("a")
    first.work(slave)
    first.ask(*parameters[8:])
    take(first.manager, slave)
    wal = path.with_name("journal-wal")
    if part == "closed":
        store.close()
    files = {file: file.read_bytes() for file in (path, wal) if file.exists()}
    store.close()
    outcomes = set()
    for seed in range(70):
        for file in (path, wal):
            file.unlink(missing_ok=True)
        for file, data in files.items():
            hit = file == (wal if part == "wal" else path)
            file.write_bytes(damage(data, random.Random(f"{part} {seed}")) if hit else data)
        try:
            store = SqliteStore(path, KEY)
        except JournalError:
            outcomes.add("refused")
            continue
        try:
            run = Run(store, clock)
        except JournalDamaged:
            outcomes.add("found out")
            store.close()
            continue
        run.ask(*parameters)
        run.work(run.slave("b"))
        clock.now += RESUME_S
        run.manager.checkLiveness()
        run.work(run.slave("c"))
        assert sorted(run.results().values()) == [b"<" + one + b">" for one in parameters], seed
        outcomes.add("went on")
        store.close()
    assert (
        outcomes
        >= {
            "closed": {"refused", "found out", "went on"},
            "open": {"refused", "went on"},
            "wal": {"went on"},
        }[part]
    )

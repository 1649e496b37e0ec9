"""Stragglers: which task is run a second time, where, and what becomes of both attempts."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import World
from queueing import Queue

from masterslave import MasterProcess, Settings, SettingsError, TaskManager
from masterslave.pace import Pace
from masterslave.records import Completion, Outcome, TaskOptions
from masterslave.stragglers import YOUNGEST_S, Stragglers

HERE, THERE = 1, 2


def pace_of(**means: float) -> Pace:
    pace = Pace()
    for tag, mean in means.items():
        pace.record(tag, mean)
    return pace


def one_run(factor: float | None = 3.0, tag: str = "a") -> Stragglers:
    stragglers = Stragglers()
    stragglers.enable("a", factor)
    stragglers.began(f"{tag}_0", tag, HERE, 100.0)
    return stragglers


# --- which -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "process", "tags", "picked"),
    [
        (31.0, THERE, {"a"}, "a_0"),
        (29.0, THERE, {"a"}, None),  # not three times the average yet
        (31.0, HERE, {"a"}, None),  # it runs here already
        (31.0, THERE, {"b"}, None),  # not handled, or some of the tag wait
    ],
)
def test_a_late_task_is_picked_for_another_slave(
    age: float, process: int, tags: set[str], picked: str | None
) -> None:
    assert one_run().pick(process, tags, pace_of(a=10.0), 100.0 + age) == picked


def test_nothing_is_late_that_nobody_can_judge() -> None:
    assert one_run().pick(THERE, {"a"}, Pace(), 1e9) is None
    tiny = pace_of(a=0.001)
    assert one_run().pick(THERE, {"a"}, tiny, 100.0 + 0.9 * YOUNGEST_S) is None
    assert one_run().pick(THERE, {"a"}, tiny, 100.0 + 1.1 * YOUNGEST_S) == "a_0"


def test_only_tags_that_ask_for_it_are_watched() -> None:
    pace = pace_of(a=1.0, b=1.0)
    assert one_run(tag="b").late_tags(pace, 1e9) == set()
    assert one_run().late_tags(pace, 1e9) == {"a"}
    off = one_run()
    off.enable("a", None)
    assert not off
    assert off.pick(THERE, {"a"}, pace, 1e9) is None


def test_a_task_that_has_ended_is_not_picked() -> None:
    stragglers = one_run()
    stragglers.ended("a_0")
    assert stragglers.pick(THERE, {"a"}, pace_of(a=1.0), 1e9) is None


# --- in the queue -----------------------------------------------------------------------------


def repeated(options: TaskOptions | None = None) -> Queue:
    queue = Queue()
    queue.request(0, "a", [b"x"], options or TaskOptions())
    assert queue.leases.hand_out(HERE, ["a"]) is not None
    second = queue.leases.repeat(THERE, "a_0")
    assert second is not None
    assert (second.task_id, second.attempt, second.frame) == ("a_0", 2, [b"x"])
    return queue


def done(attempt: int, outcome: Outcome = Outcome.RESULT) -> Completion:
    return Completion("a_0", attempt, outcome.value, [b"%d" % attempt], 0.1, "detail")


@pytest.mark.parametrize(("first", "other"), [((HERE, 1), (THERE, 2)), ((THERE, 2), (HERE, 1))])
def test_the_first_result_wins_and_the_other_attempt_is_stopped(
    first: tuple[int, int], other: tuple[int, int]
) -> None:
    queue = repeated()
    effect = queue.leases.complete(first[0], done(first[1]))
    assert (effect.kind, effect.stop_on) == ("finished", other[0])
    assert queue.leases.complete(other[0], done(other[1])).kind == "dropped"
    delivery = queue.deliver(0)
    assert delivery is not None
    assert delivery.frame == [b"%d" % first[1]]
    assert queue.deliver(0) is None


def test_the_death_of_either_slave_costs_nothing_but_its_attempt() -> None:
    queue = repeated()
    assert queue.leases.lose(HERE, "lost", 1) == []  # on record it is elsewhere
    assert queue.leases.complete(THERE, done(2)).kind == "finished"
    queue = repeated()
    assert [effect.kind for effect in queue.leases.lose(THERE, "lost", 1)] == ["rescheduled"]
    assert queue.leases.complete(HERE, done(1)).kind == "finished"


def test_a_cancelled_task_is_stopped_on_both_slaves() -> None:
    assert repeated().cancel("a_0") == (True, [THERE, HERE])


def test_a_task_that_failed_for_good_is_stopped_on_the_other_slave() -> None:
    queue = repeated(TaskOptions(crash_limit=1))
    effect = queue.leases.complete(THERE, done(2, Outcome.CRASHED))
    assert (effect.kind, effect.stop_on) == ("finished", HERE)


def test_what_does_not_run_is_not_repeated() -> None:
    queue = Queue()
    queue.request(0, "a", [b"x"], TaskOptions())
    assert queue.leases.repeat(THERE, "a_0") is None
    assert queue.leases.repeat(THERE, "a_1") is None
    assert queue.leases.hand_out(THERE, ["a"]) is not None
    assert queue.leases.repeat(THERE, "a_0") is None  # its own


# --- in the task manager ----------------------------------------------------------------------


def test_an_idle_slave_gets_the_straggler_once_nothing_waits() -> None:
    now = [0.0]
    manager = TaskManager("job", Settings(Path("unused")), clock=lambda: now[0])
    manager.registerProcess(None, "master")
    slaves = [manager.registerProcess(None, f"slave {i}")[0] for i in range(2)]
    for slave in slaves:
        manager.announceTags(slave, ["a"])
    manager.repeatStragglers("a", 3.0)
    manager.addTaskRequests("a", [[b"0"], [b"1"]])

    def take(slave: int, *completions: Completion) -> list[tuple[str, int]]:
        tasks, _ = manager.exchange(slave, completions)
        return [(task.task_id, task.attempt) for task in tasks]

    assert take(slaves[0]) == [("a_0", 1)]
    assert take(slaves[1]) == [("a_1", 1)]
    now[0] += 1.0
    finished = Completion("a_1", 1, Outcome.RESULT.value, [b"1"], 1.0, "")
    assert take(slaves[1], finished) == []  # a_0 is not late yet
    now[0] += 2.5
    assert take(slaves[0]) == []  # it is at it
    assert take(slaves[1]) == [("a_0", 2)]
    assert take(slaves[1]) == []
    assert manager.numberOfTasks() == [{}, {"a": 1}, {"a": 1}]
    take(slaves[1], Completion("a_0", 2, Outcome.RESULT.value, [b"0"], 1.0, ""))
    _, notices = manager.exchange(slaves[0])
    assert notices["stop"] == ["a_0"]
    assert len(manager.getResults(limit=5, timeout=0)) == 2


@pytest.mark.parametrize("factor", [0.5, "3", True, float("nan")])
def test_a_factor_must_make_sense(world: World, factor: object) -> None:
    master = MasterProcess("job")
    try:
        with pytest.raises(SettingsError, match="factor="):
            master.repeatStragglers("a", factor)  # type: ignore[arg-type]
    finally:
        master.shutdown()


def test_a_job_is_not_held_up_by_one_slow_task(world: World) -> None:
    job = world.script(
        """
        import os, time
        from masterslave import MasterProcess, SlaveProcess, runJob

        class Master(MasterProcess):
            def run(self):
                self.repeatStragglers("work", 2)
                self.requestTasks("work", ((i,) for i in range(20)))
                print(sorted(result for _, _, result in self.results()))

        class Slave(SlaveProcess):
            def do_work(self, i):
                if i == 19:
                    try:
                        os.close(os.open("first", os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        return i
                    time.sleep(3600)
                return i

        runJob("job", Master, Slave, launch_slaves=2)
        """
    )
    assert job.finish() == f"{list(range(20))}\n"

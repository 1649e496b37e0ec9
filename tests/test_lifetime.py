"""The time that a slave may run: pure logic, and the task manager with a clock of the test's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from managing import LONG_S, Call, Clock, X, ids, in_line, wait_for_line, waiting
from test_dispatch import ended, result, sent, slave, task

from masterslave import SettingsError, tables
from masterslave.diagnosis import explain, situation
from masterslave.dispatch import Dispatch
from masterslave.lifetime import LEAVE_S, Idleness, Lifetime
from masterslave.manager import TaskManager
from masterslave.pace import Pace
from masterslave.records import NO_TIME_LEFT, Outcome, ProcessInfo, TaskOptions
from masterslave.roster import Member
from masterslave.settings import Settings
from masterslave.units import format_duration, parse_duration

# --- durations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90.0),
        (0.5, 0.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("90m", 5400.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        ("1:30:00", 5400.0),
        ("90:00", 5400.0),
        ("2-12:00:00", 216000.0),
        (" 10 M ", 600.0),
    ],
)
def test_durations(text: float | str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", 0, "0:00", "1:2:3:4", "1h30", float("inf"), float("nan"), True, None]
)
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(SettingsError, match="must be positive seconds, or read like 90m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0:00:00"), (61, "0:01:01"), (5400, "1:30:00"), (4e5, "111:06:40")]
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# --- what the batch system says -------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "lifetime_s"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1003600"}, 3600.0),
        ({"PBS_WALLTIME": "7200"}, 7200.0),
        ({"SLURM_JOB_END_TIME": "1003600", "PBS_WALLTIME": "60"}, 60.0),
        ({"SLURM_JOB_END_TIME": "999999"}, None),  # left over from a job that has ended
        ({"SLURM_JOB_END_TIME": "4294967295"}, None),  # no limit
        ({"SLURM_JOB_END_TIME": "UNLIMITED", "PBS_WALLTIME": ""}, None),
        ({"PBS_WALLTIME": "0"}, None),
    ],
)
def test_what_the_batch_system_says(environ: dict[str, str], lifetime_s: float | None) -> None:
    settings = Settings.from_environment({"HOME": "/home/me", **environ}, 1_000_000.0)
    assert settings.lifetime_s == lifetime_s


# --- drain, kill, end -----------------------------------------------------------------------


def test_a_long_lifetime_has_time_to_finish_and_to_leave() -> None:
    life = Lifetime.until(10_000.0, now=0.0, grace_s=30.0)
    assert life.kill_at == 10_000.0 - LEAVE_S
    assert life.drain_at == life.kill_at - 30.0
    assert [life.left_s(now) for now in (0.0, 9_000.0, 9_965.0, 9_999.0)] == [9965, 965, 0, 0]


@pytest.mark.parametrize("lifetime_s", [0.1, 4.0, 60.0])
def test_most_of_a_short_lifetime_is_for_work(lifetime_s: float) -> None:
    life = Lifetime.until(1000.0 + lifetime_s, now=1000.0, grace_s=30.0)
    assert 1000.0 + 0.69 * lifetime_s < life.drain_at < life.kill_at < 1000.0 + lifetime_s


def test_a_lifetime_that_is_over_is_over() -> None:
    assert Lifetime.until(5.0, now=10.0, grace_s=30.0).left_s(10.0) == 0.0


# --- a slave begins nothing that no longer fits ---------------------------------------------


def timed_slave(ends_at: float, **knows: float) -> Dispatch:
    """A slave of one worker that takes tasks until `ends_at`."""
    dispatch = slave(1, knows=knows)
    dispatch._ends_at = ends_at
    return dispatch


def test_a_task_that_fits_is_begun() -> None:
    dispatch = timed_slave(100.0, x=10.0)
    dispatch.arrived([task("A", "x")])
    assert sent(dispatch.tick(90.0)) == {1: "A"}


def test_a_task_that_does_not_fit_is_given_back_with_the_reason() -> None:
    dispatch = timed_slave(100.0, x=10.0)
    dispatch.arrived([task("A", "x")])
    assert dispatch.tick(90.5) == []
    (done,) = dispatch.completions
    assert (done.task_id, done.outcome, done.detail) == ("A", "returned", NO_TIME_LEFT)
    assert dispatch.holds() == []


def test_what_stands_behind_a_task_that_does_not_fit_is_begun() -> None:
    dispatch = timed_slave(100.0, x=10.0, y=1.0)
    dispatch.arrived([task("A", "x"), task("B", "y"), task("C", "never seen")])
    assert sent(dispatch.tick(95.0)) == {1: "B"}
    assert ended(dispatch) == {"A": "returned"}
    dispatch.finished(1, result(task("B", "y"), 1.0), 96.0)
    assert sent(dispatch.tick(96.0)) == {1: "C"}, "of which nobody knows how long it takes"


def test_without_an_end_everything_fits() -> None:
    dispatch = slave(1, knows={"x": 1e9})
    dispatch.arrived([task("A", "x")])
    assert sent(dispatch.tick(0.0)) == {1: "A"}


# --- a member and its time ------------------------------------------------------------------


def test_a_member_has_time_for_what_usually_fits() -> None:
    member, pace = Member(1, ProcessInfo("", 1, "host", 1, "")), Pace()
    member.tags = frozenset(("long", "short", "new"))
    pace.record("long", 50.0)
    pace.record("short", 1.0)
    assert member.timely_tags(pace, 1e9) == member.tags, "no end is known"
    member.ends_at = 100.0
    assert member.timely_tags(pace, 50.0) == member.tags
    assert member.timely_tags(pace, 51.0) == {"short", "new"}
    assert member.timely_tags(pace, 99.5) == {"new"}
    assert member.timely_tags(pace, 100.0) == frozenset()
    member.too_long.add("new")
    assert member.timely_tags(pace, 50.0) == {"long", "short"}
    assert member.left_s(60.0) == 40.0


def test_a_member_whose_workers_are_not_ready_has_no_tags() -> None:
    member = Member(1, ProcessInfo("", 1, "host", 1, ""))
    assert member.timely_tags(Pace(), 0.0) == frozenset()


# --- the task manager -----------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(clock: Clock) -> Iterator[TaskManager]:
    manager = TaskManager("job", Settings(key_file=Path("unused")), clock=clock)
    yield manager
    manager.terminate()


def join(
    manager: TaskManager, tags: str = "sqrt", left_s: float | None = None, workers: int = 1
) -> int:
    info = ProcessInfo("slave", 1, "host", workers, "", left_s)
    process_id = manager.registerProcess(None, info)[0]
    manager.announceTags(process_id, tags.split())
    return int(process_id)


def learn(manager: TaskManager, **durations: float) -> None:
    """Have the task manager know how long tasks of some tags take."""
    for tag, duration_s in durations.items():
        manager._scheduler.pace.record(tag, duration_s)


def take(manager: TaskManager, slave: int) -> list[str]:
    return ids(manager.exchange(slave)[0])


def test_a_slave_gets_nothing_that_no_longer_fits(manager: TaskManager, clock: Clock) -> None:
    learn(manager, long=50.0, short=1.0)
    slave = join(manager, "long short", left_s=100.0, workers=2)
    manager.addTaskRequests("long", [X, X])
    assert take(manager, slave) == ["long_0", "long_1"]
    for task_id in ("long_1", "long_0"):
        manager.returnTask(task_id, slave, 1)
    clock.now += 50.5
    assert take(manager, slave) == []
    manager.addTaskRequests("short", [X, X])
    assert take(manager, slave) == ["short_2", "short_3"], "other tags still go"
    assert take(manager, join(manager, "long", left_s=None)) == ["long_0"]


def test_at_the_end_of_its_time_a_slave_gets_nothing(manager: TaskManager, clock: Clock) -> None:
    slave = join(manager, left_s=100.0)
    clock.now += 100.0
    manager.addTaskRequest("sqrt", X)
    assert take(manager, slave) == []


def test_what_a_slave_gave_back_for_want_of_time_does_not_come_again(manager: TaskManager) -> None:
    slave = join(manager, "sqrt cube", left_s=100.0)
    manager.addTaskRequest("sqrt", X)
    assert take(manager, slave) == ["sqrt_0"]
    back = ("sqrt_0", 1, Outcome.RETURNED.value, [], 0.0, NO_TIME_LEFT)
    assert manager.exchange(slave, [back]) == [[], {}]
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {}]
    manager.addTaskRequest("cube", X)
    assert take(manager, slave) == ["cube_1"]
    assert take(manager, join(manager, left_s=100.0)) == ["sqrt_0"]


def test_a_slave_that_comes_back_says_anew_how_much_time_it_has(
    manager: TaskManager, clock: Clock
) -> None:
    learn(manager, sqrt=50.0)
    info = ProcessInfo("slave", 1, "host", 1, "token", 100.0)
    slave = manager.registerProcess(None, info)[0]
    clock.now += 70.0  # its clock stood still, as it was stopped
    assert manager.registerProcess(None, info._replace(left_s=60.0), slave)[0] == slave
    manager.announceTags(slave, ["sqrt"])
    manager.addTaskRequest("sqrt", X)
    assert take(manager, slave) == ["sqrt_0"]


def test_a_task_that_does_not_fit_wakes_who_has_time(manager: TaskManager) -> None:
    learn(manager, sqrt=50.0)
    brief, patient = join(manager, left_s=10.0), join(manager)
    call = Call(manager.exchange, brief, (), (), None, LONG_S)
    with in_line(manager, [patient]) as calls:  # the brief one does not stand in line at all
        manager.addTaskRequest("sqrt", X)
        assert ids(calls[0].outcome()[0]) == ["sqrt_0"]
        assert not call.done


def test_who_has_no_time_left_by_now_passes_the_call_on_once(
    manager: TaskManager, clock: Clock
) -> None:
    learn(manager, sqrt=50.0)
    slaves = [join(manager, "sqrt cube", left_s=60.0), join(manager, "sqrt cube", left_s=60.0)]
    with in_line(manager, [join(manager), *slaves]) as calls:
        clock.now += 20.0
        manager.addTaskRequest("sqrt", X)
        assert ids(calls[0].outcome()[0]) == ["sqrt_0"]
        wait_for_line(manager, 2)
        with manager._lock:
            assert set(manager._handout.waiters._by_tag) == {"cube"}, (
                "nobody is woken for sqrt again"
            )
        manager.addTaskRequests("sqrt", [X, X])
        assert waiting(manager) == 2
        manager.addTaskRequest("cube", X)
        wait_until(lambda: [call.done for call in calls].count(True) == 2)
        (taken,) = [call for call in calls[1:] if call.done]
        assert ids(taken.outcome()[0]) == ["cube_3"]


def test_who_takes_another_task_passes_the_call_on(manager: TaskManager, clock: Clock) -> None:
    learn(manager, sqrt=50.0)
    both = join(manager, "sqrt cube", left_s=60.0)
    with in_line(manager, [join(manager), both]) as calls:
        clock.now += 20.0
        with manager._lock:
            manager._queue.request(0, "cube", X, TaskOptions())  # comes while it is being woken
        manager.addTaskRequest("sqrt", X)
        assert ids(calls[1].outcome()[0]) == ["cube_0"]
        assert ids(calls[0].outcome()[0]) == ["sqrt_1"]


# --- what the user is told ------------------------------------------------------------------


def reasons(manager: TaskManager) -> list[str]:
    return explain(situation(manager.status()))


def test_tasks_that_wait_only_for_time_have_their_sentence(
    manager: TaskManager, clock: Clock
) -> None:
    learn(manager, sqrt=50.0)
    join(manager, "sqrt cube", left_s=100.0)
    join(manager, "sqrt cube", left_s=100.0)
    manager.addTaskRequests("sqrt", [X, X])
    manager.addTaskRequest("cube", X)
    assert reasons(manager) == []
    clock.now += 60.0
    assert reasons(manager) == ["2 tasks wait, but no slave has enough time left for tag 'sqrt'"]
    join(manager, "sqrt")
    assert reasons(manager) == []


def test_the_time_left_is_shown(
    manager: TaskManager, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    learn(manager, sqrt=5000.0)
    join(manager, left_s=5461.0)
    join(manager)
    clock.now += 1000.0
    timed, endless = manager.status()["slaves"]
    assert (timed["left_s"], timed["no_time_for"]) == (4461.0, ["sqrt"])
    assert "left_s" not in endless
    tables.print_status(manager.status(), verbose=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["role", "process", "workers", "holds", "done", "time", "left", "handles"] in lines
    assert ["slave", "slave", "1", "0", "0", "1:14:21", "sqrt"] in lines
    assert ["slave", "slave", "1", "0", "0", "sqrt"] in lines


def test_where_no_slave_has_an_end_no_time_is_shown(
    manager: TaskManager, capsys: pytest.CaptureFixture[str]
) -> None:
    join(manager)
    tables.print_status(manager.status(), verbose=True)
    assert "time left" not in capsys.readouterr().out


def test_a_slave_is_idle_for_too_long_only_without_an_interruption() -> None:
    idleness = Idleness(10.0)
    assert idleness.wait_s(0.0) is None
    assert not idleness.is_over(False, 0.0)
    assert idleness.wait_s(4.0) == 6.0
    assert not idleness.is_over(True, 9.0)
    assert idleness.wait_s(9.0) is None
    assert not idleness.is_over(False, 11.0)
    assert not idleness.is_over(False, 20.9)
    assert idleness.is_over(False, 21.0)

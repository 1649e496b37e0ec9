"""Chaos: what is asked for, what the dice decide, and whole jobs that give the right results."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, World, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave import ConnectionFailed, MasterProcess, Settings, SettingsError, TaskManager
from masterslave.chaos import Chaos
from masterslave.disturbance import Blow, Disturbance
from masterslave.launchers.local import SlaveOptions, slave_command
from masterslave.records import Completion, ProcessInfo
from masterslave.transports.base import Link
from masterslave.transports.disturbed import Disturbed
from masterslave.transports.memory import MemoryLink

# --- what is asked for ----------------------------------------------------------------------


def test_a_line_is_read() -> None:
    assert Chaos.parse(" kill=0.01, cut = 0.5,delay_s=1,seed=7 ,") == Chaos(
        kill=0.01, cut=0.5, delay_s=1.0, seed=7
    )


@pytest.mark.parametrize("text", ["", " ", ",,"])
def test_an_empty_line_is_no_chaos(text: str) -> None:
    assert Chaos.parse(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kil=0.1", r"'kil=0.1' must be NAME=NUMBER; the names are kill, stop, .*, seed$"),
        ("kill", "'kill' must be NAME=NUMBER"),
        ("0.1", "'0.1' must be NAME=NUMBER"),
        ("delay=0.1,kill=", "'kill=' must be a probability from 0 to 1$"),
        ("kill=1.1", "'kill=1.1' must be a probability from 0 to 1$"),
        ("kill=-0.1", "'kill=-0.1' must be a probability"),
        ("kill=nan", "'kill=nan' must be a probability"),
        ("kill=often", "'kill=often' must be a probability"),
        ("cut=0.6", "'cut=0.6' must be a probability from 0 to 0.5$"),
        ("drop=1", "'drop=1' must be a probability from 0 to 0.9$"),
        ("delay_s=0", "'delay_s=0' must be a number of seconds above 0$"),
        ("stop_s=inf", "'stop_s=inf' must be a number of seconds above 0$"),
        ("seed=1.5", "'seed=1.5' must be a whole number of at least 0$"),
        ("seed=-1", "'seed=-1' must be a whole number of at least 0$"),
        ("kill=0.1,kill=0.1", "'kill' stands there twice"),
    ],
)
def test_the_part_that_cannot_be_used_is_named(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^chaos: {message}"):
        Chaos.parse(text)


probabilities = st.floats(0, 0.5)
seconds = st.floats(0, 1e6, exclude_min=True)


@settings(deadline=None, database=None)
@given(
    st.builds(
        Chaos,
        *[probabilities] * 6,
        *[seconds] * 3,
        seed=st.none() | st.integers(0),
    )
)
def test_what_is_written_can_be_read(chaos: Chaos) -> None:
    assert Chaos.parse(str(chaos)) == (None if chaos == Chaos() else chaos)


def test_slaves_do_not_draw_the_same() -> None:
    chaos = Chaos(kill=0.1, seed=7)
    assert len({chaos.of_slave(number) for number in range(5)}) == 5
    assert Chaos(kill=0.1).of_slave(3) == Chaos(kill=0.1)  # each draws a seed of its own


def test_a_seed_is_given_to_those_that_have_none() -> None:
    assert Chaos().seeded(3) == Chaos(seed=3)
    assert Chaos(seed=0).seeded(3) == Chaos(seed=0)


def test_the_environment_says_what_goes_wrong() -> None:
    home = {"HOME": "/home/someone"}
    assert Settings.from_environment(home).chaos is None
    wanted = Settings.from_environment({**home, "MASTERSLAVE_CHAOS": "kill=0.1"}).chaos
    assert wanted == Chaos(kill=0.1)
    with pytest.raises(SettingsError, match="'kill=2'"):
        Settings.from_environment({**home, "MASTERSLAVE_CHAOS": "kill=2"})


# --- blows to the workers -------------------------------------------------------------------


def all_blows(chaos: Chaos, tasks: int = 1) -> list[tuple[int, Blow]]:
    disturbance = Disturbance(chaos)
    for worker in (1, 2):
        disturbance.gave(worker, tasks, 100.0)
    return disturbance.blows(math.inf)


def test_without_probability_nothing_happens() -> None:
    disturbance = Disturbance(Chaos(seed=1))
    disturbance.gave(1, 1000, 0.0)
    ended = [completion(i) for i in range(1000)]
    assert disturbance.hold_back(ended, 0.0) == ended
    assert disturbance.blows(math.inf) == []
    assert disturbance.wait_s(0.0) is None


def test_the_same_seed_decides_the_same() -> None:
    chaos = Chaos(kill=0.1, stop=0.1, seed=5)
    assert all_blows(chaos, 100) == all_blows(chaos, 100)
    assert all_blows(chaos, 100) != all_blows(chaos.of_slave(1), 100)


def test_a_share_of_the_tasks_brings_a_blow() -> None:
    counts = Counter(blow for _, blow in all_blows(Chaos(kill=0.1, stop=0.3, seed=1), 1000))
    assert 150 < counts[Blow.KILL] < 250
    assert 500 < counts[Blow.STOP] < 700
    assert counts[Blow.CONTINUE] == counts[Blow.STOP]


@pytest.mark.parametrize("seed", range(20))
def test_blows_come_in_time_and_a_stopped_worker_goes_on(seed: int) -> None:
    disturbance = Disturbance(Chaos(kill=1.0, stop=1.0, kill_s=2.0, stop_s=0.5, seed=seed))
    disturbance.gave(3, 1, 100.0)
    when: dict[Blow, float] = {}
    now = 100.0
    while (wait_s := disturbance.wait_s(now)) is not None:
        assert disturbance.blows(now + wait_s * 0.99) == []
        now += wait_s * 1.000001 + 1e-9
        when |= {blow: now for worker, blow in disturbance.blows(now) if worker == 3}
    assert set(when) == set(Blow)
    assert 100.0 < when[Blow.KILL] < 102.01
    assert 100.0 < when[Blow.STOP] <= when[Blow.CONTINUE] < 101.01


# --- results held back ----------------------------------------------------------------------


def completion(number: int) -> Completion:
    return Completion(f"a_{number}", 1, "result", [b""], 0.0, "")


def test_what_is_held_back_comes_in_time_and_once() -> None:
    disturbance = Disturbance(Chaos(delay=0.5, delay_s=0.2, seed=1))
    ended = [completion(i) for i in range(100)]
    passed = disturbance.hold_back(ended, 10.0)
    assert 20 < len(passed) < 80
    assert {c.task_id for c in passed + disturbance.held_back()} == {c.task_id for c in ended}
    wait_s = disturbance.wait_s(10.0)
    assert wait_s is not None
    assert 0 < wait_s < 0.2
    first = disturbance.hold_back([], 10.0 + wait_s + 1e-9)
    assert len(first) == 1
    rest = disturbance.hold_back([], 10.2)
    assert sorted(passed + first + rest) == sorted(ended)
    assert disturbance.held_back() == []


def test_at_the_end_nothing_is_held_back() -> None:
    disturbance = Disturbance(Chaos(delay=1.0, seed=1))
    assert disturbance.hold_back([completion(1)], 0.0) == []
    assert disturbance.hold_back([completion(2)], 0.0, none=True) == [completion(2), completion(1)]


# --- links ----------------------------------------------------------------------------------


class Counted:
    """A link that counts what passes."""

    def __init__(self, manager: TaskManager, calls: Counter[str]) -> None:
        self._link = MemoryLink(manager)
        self._calls = calls

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self._calls[method] += 1
        return self._link.call(method, *args, **kwargs)

    def close(self) -> None:
        self._link.close()


class Slave:
    """Speaks to a task manager over disturbed links as a slave does."""

    def __init__(self, **chaos: Any) -> None:
        self.manager = TaskManager("job", Settings(key_file=Path("unused")))
        self.client = self.manager.registerProcess(None, "client")[0]
        self.calls: Counter[str] = Counter()
        self.connect = Disturbed(lambda: Counted(self.manager, self.calls), Chaos(**chaos))
        self.id: int | None = None
        self.link = self.join()

    def join(self) -> Link:
        link = self.connect()
        info = list(ProcessInfo("slave", 1, "host", 1, "token"))
        self.id, _, self.generation = link.call("registerProcess", None, info, self.id, [])
        link.call("announceTags", self.id, ["a"])
        return link

    def exchange(
        self, done: list[Any] | None = None, room: int = 1, wait_s: float = 0.0
    ) -> tuple[list[Any], dict[str, Any]]:
        return self.link.call("exchange", self.id, done or [], [], room, wait_s, self.generation)

    def request(self, count: int) -> None:
        self.manager.addTaskRequests("a", [[b""]] * count, self.client)


def test_links_are_not_cut_before_the_first_exchange() -> None:
    slave = Slave(cut=0.5, seed=1)
    for _ in range(50):
        slave.join()
    assert slave.calls["registerProcess"] == 51


def test_links_are_cut_before_and_after_the_call() -> None:
    slave = Slave(cut=0.5, seed=1)
    made = Counter[bool]()
    for _ in range(100):
        before = slave.calls["exchange"]
        try:
            slave.exchange()
        except ConnectionFailed as error:
            made[slave.calls["exchange"] > before] += 1
            assert "chaos cut the connection of exchange" in str(error)
            with pytest.raises(ConnectionFailed, match="the link was closed"):
                slave.link._link.call("ping", slave.id)  # type: ignore[attr-defined]
            with contextlib.suppress(ConnectionFailed):
                while True:  # registering is cut, too
                    slave.join()
            slave.link = slave.connect()
    assert min(made[True], made[False]) > 10


def test_results_are_handed_in_twice_and_count_once() -> None:
    slave = Slave(duplicate=1.0, seed=2)
    slave.request(40)
    tasks, _ = slave.exchange()
    while tasks:
        done = [(t.task_id, t.attempt, "result", [b"x"], 0.0, "") for t in tasks]
        tasks, _ = slave.exchange(done)
    slave.exchange()
    got = slave.manager.getResults(slave.client, None, 100, 0.0)
    assert sorted(d.task_id for d in got) == sorted(f"a_{i}" for i in range(40))
    assert slave.manager.status()["dropped"] == 40


def test_duplicates_take_no_tasks() -> None:
    slave = Slave(duplicate=1.0, seed=3)
    slave.request(10)
    tasks, _ = slave.exchange()
    for _ in range(9):
        done = [(t.task_id, t.attempt, "result", [b"x"], 0.0, "") for t in tasks]
        tasks, _ = slave.exchange(done)
        assert len(slave.manager._queue.held.of(slave.id or 0)) == len(tasks)


def test_a_share_of_the_signs_of_life_is_dropped() -> None:
    slave = Slave(drop=0.5, seed=1)
    for _ in range(100):
        assert slave.exchange() == [[], {}]
    assert 25 < slave.calls["exchange"] < 75


def test_what_says_something_is_not_dropped() -> None:
    slave = Slave(drop=0.9, seed=1)
    for number in range(100):
        slave.exchange(room=number % 2)  # as told by the call before: never
    done = [("a_7", 1, "result", [b"x"], 0.0, "")]
    for _ in range(100):
        slave.exchange(done)
    assert slave.calls["exchange"] == 200


def test_a_slave_whose_pings_are_dropped_is_missed() -> None:
    now = 0.0
    slave = Slave(drop=0.9, seed=1)
    slave.manager = manager = TaskManager(
        "job", Settings(key_file=Path("unused")), clock=lambda: now
    )
    slave.id = None
    slave.link = link = slave.connect()
    info = list(ProcessInfo("slave", 1, "host", 1, "token"))
    slave.id, _, slave.generation = link.call("registerProcess", 1.0, info, None, [])
    slave.exchange()
    for _ in range(40):
        now += 1.0
        slave.exchange()
        manager.checkLiveness()
        if slave.id not in manager.activeProcesses():
            return
    pytest.fail("every fourth ping at least has come through")


# --- command line and launcher --------------------------------------------------------------


def test_the_command_of_a_slave_says_what_goes_wrong() -> None:
    command = slave_command("demo", "host:1", SlaveOptions(chaos=Chaos.parse("kill=0.1,seed=3")))
    assert command[-3:] == ["--chaos=kill=0.1,seed=3", "--", "demo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("kil=0.1", "'kil=0.1' must be NAME=NUMBER"), ("cut=1", "'cut=1' must be a probability")],
)
def test_wrong_usage_is_told(world: World, text: str, message: str) -> None:
    for arguments in (("slave", "x", "--chaos", text), ("--chaos", text, "slave", "x")):
        program = world.task_manager(*arguments)
        program.finish(2)
        assert f"argument --chaos: chaos: {message}" in program.err
    world.env["MASTERSLAVE_CHAOS"] = text
    program = world.task_manager("slave", "x")
    program.finish(1)
    assert f"task_manager: chaos: {message}" in program.err
    assert program.err.count("\n") == 1


@pytest.mark.parametrize("chaos", ["kill=2", 0.1, Chaos(kill=0.1)])
def test_a_launch_with_chaos_that_makes_no_sense_is_refused(world: World, chaos: Any) -> None:
    master = MasterProcess("job", use_name_server=True)
    try:
        with pytest.raises(SettingsError, match="chaos"):
            master.launchSlaveJobs(1, chaos=chaos)
    finally:
        master.shutdown()


# --- whole jobs -----------------------------------------------------------------------------

JOB = """
    import json, os, sys, time
    from masterslave import GlobalStateValue, MasterProcess, SlaveProcess, runJob
    from masterslave import TaskRaisedException

    class Master(MasterProcess):
        def run(self):
            count, chaos = int(sys.argv[1]), sys.argv[2]
            self.launchSlaveJobs(2, chaos=None if chaos == "environment" else chaos)
            state = self.setGlobalState(square=[i * i for i in range(count)])
            ids = []
            for i in range(count):
                ids.append(self.requestTask("square", i, GlobalStateValue(state, "square")))
            place = {task_id: i for i, task_id in enumerate(ids)}
            report = {"right": [], "raised": [], "wrong": []}
            for _ in ids:
                try:
                    task_id, _, result = self.retrieveResult(timeout=60)
                    i = place[task_id]
                    report["right" if result == i * i else "wrong"].append(i)
                except TaskRaisedException as error:
                    i = place[error.task_id]
                    good = repr(error.exception) == f"ValueError({i})"
                    report["raised" if good else "wrong"].append((i, str(error)))
            report["left"] = self.task_manager.numberOfTasks()
            report["dropped"] = self.task_manager.status()["dropped"]
            print(json.dumps(report))

    class Slave(SlaveProcess):
        def do_square(self, i, square):
            time.sleep(0.001 * (i % 7))
            if i % 50 == 7:
                raise ValueError(i)
            return square[i]

    runJob("job", Master, Slave, watchdog_period=0.2)
"""
COUNT = 300
KINDS = {
    "kill": "kill=0.03",
    "stop": "stop=0.05,stop_s=0.2",
    "delay": "delay=0.3",
    "duplicate": "duplicate=0.5",
    "drop": "drop=0.7",
    "cut": "cut=0.1",
}
TOGETHER = "kill=0.01,stop=0.02,stop_s=0.2,delay=0.1,duplicate=0.2,drop=0.3,cut=0.05"


def run_job(world: World, chaos: str, count: int = COUNT) -> tuple[dict[str, Any], str]:
    """What the master reports, and what all of them wrote to standard error."""
    program = world.script(JOB, count, chaos)
    report = json.loads(program.finish())
    wait_until(lambda: not processes_of(world), "no process is left")
    return report, program.err


def processes_of(world: World) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if not ended and process.environ().get("HOME") == str(world.path):
                found.append(process)
    return found


def check_report(report: dict[str, Any], count: int = COUNT) -> None:
    """Each task once, with the right value or the exception that its handler raises."""
    raised = [i for i in range(count) if i % 50 == 7]
    assert report["wrong"] == []
    assert sorted(i for i, _ in report["raised"]) == raised
    assert sorted(report["right"]) == [i for i in range(count) if i not in raised]
    assert report["left"] == [{}, {}, {}]


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_is_delivered_once_whatever_goes_wrong(world: World, kind: str) -> None:
    report, err = run_job(world, f"{KINDS[kind]},seed=11")
    check_report(report)
    assert err.count("chaos is on: ") == 2
    happened: dict[str, Callable[[], object]] = {
        "kill": lambda: "was killed by SIGKILL" in err,
        "duplicate": lambda: report["dropped"] > COUNT / 10,
        "cut": lambda: "lost the master: chaos cut the connection" in err,
    }
    assert happened.get(kind, lambda: True)()


@pytest.mark.parametrize("seed", [1, 20, 300])
def test_each_task_is_delivered_once_when_all_goes_wrong_at_once(world: World, seed: int) -> None:
    report, _ = run_job(world, f"{TOGETHER},seed={seed}")
    check_report(report)


def test_the_environment_brings_chaos_to_a_program_as_it_is(world: World) -> None:
    world.env["MASTERSLAVE_CHAOS"] = "duplicate=1,seed=5"
    report, err = run_job(world, "environment", 50)
    check_report(report, 50)
    assert report["dropped"] > 0
    assert "chaos is on: duplicate=1.0,seed=5" in err
    assert "chaos is on: duplicate=1.0,seed=6" in err


def test_a_program_can_refuse_the_environments_chaos(world: World) -> None:
    world.env["MASTERSLAVE_CHAOS"] = "kill=1"
    report, err = run_job(world, "", 50)
    check_report(report, 50)
    assert "chaos" not in err


def test_a_task_that_runs_while_its_slave_is_cut_off_again_and_again_is_no_crash(
    world: World,
) -> None:
    program = world.script(
        """
        import time
        from masterslave import MasterProcess, SlaveProcess, runJob

        class Master(MasterProcess):
            def run(self):
                self.launchSlaveJobs(1, chaos="cut=0.3,seed=1")
                self.requestTask("long", crash_limit=2)
                print(self.retrieveResult(timeout=60)[2])

        class Slave(SlaveProcess):
            def do_long(self):
                time.sleep(2)
                return "done"

        runJob("job", Master, Slave, watchdog_period=0.05)
        """
    )
    assert program.finish() == "done\n"
    assert program.err.count("was lost (its connection closed)") > 2


def test_a_task_that_is_killed_too_often_is_reported(world: World) -> None:
    program = world.script(
        """
        import time
        from masterslave import MasterProcess, SlaveProcess, TaskRaisedException, runJob

        class Master(MasterProcess):
            def run(self):
                self.launchSlaveJobs(1, chaos="kill=1,kill_s=0.1,seed=1")
                self.requestTask("wait", crash_limit=2)
                try:
                    self.retrieveResult(timeout=60)
                except TaskRaisedException as error:
                    print(error.traceback.count("was killed by SIGKILL"))

        class Slave(SlaveProcess):
            def do_wait(self):
                time.sleep(60)

        runJob("job", Master, Slave)
        """
    )
    assert program.finish() == "2\n"


def test_a_slave_started_by_hand_says_that_chaos_is_on(world: World) -> None:
    master = world.script(
        """
        from masterslave import MasterProcess, SlaveProcess, runJob

        class Master(MasterProcess):
            def run(self):
                self.requestTasks("echo", [(i,) for i in range(20)])
                print(sorted(result for _, _, result in self.results(timeout=60)))

        class Slave(SlaveProcess):
            def do_echo(self, x):
                return x

        runJob("job", Master, Slave)
        """
    )
    slave = world.task_manager("slave", "job", "-w", "-n", 2, "--chaos", "duplicate=0.5")
    assert master.finish() == f"{list(range(20))}\n"
    slave.finish()
    assert "chaos is on: duplicate=0.5,seed=" in slave.err  # the seed makes it repeatable


def test_a_round_of_the_benchmark_is_clean(world: World) -> None:
    benchmark = ROOT / "benchmarks" / "chaos.py"
    some = "kill-slave,kill-worker,stop-worker,kill-master,restart-names,kill,duplicate,cut"
    program = world.start(benchmark, "--tasks", 300, "--only", some)
    heading, row = program.finish().splitlines()
    counts = dict(zip(heading.split(), row.split(), strict=True))
    assert {counts[name] for name in ("lost", "twice", "wrong", "failed", "again")} == {"0"}

"""Slaves that are to end, as real processes: none of their tasks is blamed, all are done elsewhere.

Tasks have a crash limit of one here: a single crash counted would be the end of a task.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from conftest import PATIENCE_S, Program, World, family, wait_until

from masterslave import MasterProcess, Settings, SettingsError, TaskRaisedException, WorkerCrashed
from masterslave.slavecode import script_record

SLAVE = """
    import os, time
    from masterslave import startSlaveProcess

    def note(text):
        with open("notes", "a") as file:
            file.write(f"{text} {os.getpid()}" + chr(10))

    def do_hold(name):
        note("begin " + name)
        while not os.path.exists(name):
            time.sleep(0.005)
        return name

    def do_work(x):
        time.sleep(0.05)
        return os.getppid()

    startSlaveProcess()
"""


class Job:
    def __init__(self, world: World) -> None:
        self.world = world
        settings = replace(Settings.from_environment(), port=0)
        self.master = MasterProcess("job", False, settings=settings)
        self.master.keep_slave_code(script_record(world.write("slave.py", SLAVE)))

    def request(self, tag: str, *parameters: Any) -> str:
        return self.master.requestTask(tag, *parameters, crash_limit=1)

    def slave(self, *arguments: object) -> Program:
        """Start a slave, wait until its workers are there."""
        slave = self.start(*arguments)
        wait_until(lambda: slave.pid in [one["pid"] for one in self.ready()], "the slave is ready")
        return slave

    def start(self, *arguments: object) -> Program:
        return self.world.task_manager("slave", "job", "-m", self.master.address, *arguments)

    def ready(self) -> list[dict[str, Any]]:
        slaves = self.master.task_manager.status()["slaves"]
        return [slave for slave in slaves if slave["tags"] is not None]

    def result(self) -> Any:
        return self.master.retrieveResult(timeout=PATIENCE_S)[2]

    def begun(self, name: str, times: int = 1) -> list[int]:
        """Process ids of the workers that have begun to hold that file."""

        def pids() -> list[int]:
            path = self.world.path / "notes"
            lines = path.read_text().splitlines() if path.exists() else []
            return [int(line.split()[-1]) for line in lines if line.startswith(f"begin {name} ")]

        wait_until(lambda: len(pids()) >= times, f"{name} has begun {times} times")
        return pids()

    def ends_elsewhere(self, name: str) -> None:
        """Another slave begins the task again, and ends it."""
        before = self.begun(name)
        self.slave()
        assert self.begun(name, 2)[:-1] == before
        (self.world.path / name).touch()
        assert self.result() == name


@pytest.fixture
def job(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.chdir(world.path)
    job = Job(world)
    yield job
    job.master.shutdown()


# --- the end of its time --------------------------------------------------------------------


def test_a_slave_leaves_before_its_time_is_over_and_gives_back_what_runs(job: Job) -> None:
    slave = job.slave("--lifetime", "6", "-v")
    job.request("hold", "long")
    job.begun("long")
    slave.finish(0)
    assert "its time is nearly up: finishing what runs, for " in slave.err
    assert job.ready() == []
    job.ends_elsewhere("long")


def test_what_ends_within_the_last_seconds_counts(job: Job) -> None:
    slave = job.slave("--lifetime", "8", "-v")
    job.request("hold", "long")
    job.begun("long")
    wait_until(lambda: "nearly up" in slave.err)
    (job.world.path / "long").touch()
    assert job.result() == "long"
    slave.finish(0)
    assert len(job.begun("long")) == 1


def test_many_tasks_are_all_done_though_slaves_come_and_go(job: Job) -> None:
    brief = [job.start("--lifetime", lifetime, "-n", "2") for lifetime in (2, 3, 4)]
    job.master.requestTasks("work", ((x,) for x in range(200)), crash_limit=1)
    job.start()
    assert len([job.result() for _ in range(200)]) == 200
    for slave in brief:
        slave.finish(0)
    assert job.master.task_manager.status()["dropped"] == 0


@pytest.mark.parametrize("variable", ["SLURM_JOB_END_TIME", "PBS_WALLTIME"])
def test_a_slave_knows_what_its_batch_system_allows(job: Job, variable: str) -> None:
    end = 4 + (int(time.time()) if variable == "SLURM_JOB_END_TIME" else 0)
    job.world.env[variable] = str(end)
    job.start().finish(0)


def test_the_command_line_goes_before_the_batch_system(job: Job) -> None:
    job.world.env["PBS_WALLTIME"] = "1"
    job.slave("--lifetime", "1:00:00")
    (slave,) = job.ready()
    assert 3000 < slave["left_s"] < 3600


def test_a_launched_slave_may_have_an_end(job: Job) -> None:
    (pid,) = job.master.launchSlaveJobs(1, lifetime="1h")
    wait_until(job.ready, "the slave is ready")
    (slave,) = job.ready()
    assert slave["pid"] == pid
    assert slave["left_s"] < 3600
    with pytest.raises(SettingsError, match="duration 'soon'"):
        job.master.launchSlaveJobs(1, lifetime="soon")


def test_a_wrong_duration_on_the_command_line(world: World) -> None:
    command = world.task_manager("--lifetime", "soon", "slave", "job")
    command.finish(2)
    assert "duration 'soon': must be positive seconds" in command.err


# --- SIGTERM --------------------------------------------------------------------------------


def test_a_slave_that_is_stopped_gives_back_what_runs_at_no_cost(job: Job) -> None:
    job.world.env["MASTERSLAVE_GRACE"] = "0.1"
    slave = job.slave()
    job.request("hold", "long")
    job.begun("long")
    slave.send_signal(signal.SIGTERM)
    slave.finish(0)
    job.ends_elsewhere("long")


@pytest.mark.parametrize("first", ["supervisor", "workers"])
def test_a_batch_system_that_ends_all_processes_blames_no_task(job: Job, first: str) -> None:
    slave = job.slave("-n", "2")
    job.request("hold", "long")
    job.begun("long")
    supervisor, *workers = family(slave.pid)
    assert len(workers) == 2
    everyone = [supervisor, *workers] if first == "supervisor" else [*workers, supervisor]
    for process in everyone:
        process.send_signal(signal.SIGTERM)
    slave.finish(0)
    job.ends_elsewhere("long")


def test_a_worker_that_alone_is_told_to_end_has_crashed(job: Job) -> None:
    job.slave()
    job.request("hold", "long")
    (pid,) = job.begun("long")
    psutil.Process(pid).send_signal(signal.SIGTERM)
    with pytest.raises(TaskRaisedException) as caught:
        job.result()
    assert isinstance(caught.value.exception, WorkerCrashed)
    assert "SIGTERM" in caught.value.traceback

"""Slaves with a memory limit, as real processes: the master lives in the test's process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import PATIENCE_S, Program, World, wait_until

from masterslave import (
    MasterProcess,
    Settings,
    SettingsError,
    TaskOutOfMemory,
    TaskRaisedException,
    WorkerCrashed,
)
from masterslave.slavecode import script_record

SLAVE = """
    import ctypes, os, signal, time
    from masterslave import startSlaveProcess

    kept = []

    def note(text):
        with open("notes", "a") as file:
            file.write(f"{text} {os.getpid()}" + chr(10))

    def do_allocate(megabytes):
        note("allocate")
        return len(bytearray(megabytes << 20)) >> 20

    def do_keep(megabytes):
        note("keep")
        kept.append(bytearray(megabytes << 20))
        return os.getpid()

    def do_small_pieces():
        note("small_pieces")
        pieces = []
        while True:
            pieces.append([None] * 10)

    def do_result(megabytes):
        return [bytes(1 << 20)] * 2 + [bytearray(megabytes << 20)]

    def do_die_full(megabytes, number):
        note("die")
        block = bytearray(megabytes << 20)
        time.sleep(1.0)  # long enough to be looked at
        os.kill(os.getpid(), number)

    def do_echo(x):
        return x

    startSlaveProcess()
"""


class Job:
    def __init__(self, world: World) -> None:
        self.world = world
        settings = replace(Settings.from_environment(), port=0)
        self.master = MasterProcess("job", False, settings=settings)
        self.master.keep_slave_code(script_record(world.write("slave.py", SLAVE)))
        self.request = self.master.requestTask

    def slave(self, *arguments: object) -> Program:
        return self.world.task_manager("slave", "job", "-m", self.master.address, *arguments)

    def result(self, tag: str | None = None) -> Any:
        return self.master.retrieveResult(tag, timeout=PATIENCE_S)[2]

    def failure(self) -> TaskRaisedException:
        with pytest.raises(TaskRaisedException) as caught:
            self.result()
        return caught.value

    def notes(self, beginning: str) -> list[str]:
        path = self.world.path / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[-1] for line in lines if line.startswith(beginning)]


@pytest.fixture
def job(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.chdir(world.path)
    job = Job(world)
    yield job
    job.master.shutdown()


def test_a_task_that_needs_too_much_is_told_with_the_story_of_each_attempt(job: Job) -> None:
    job.slave("--memory", "300M")
    job.request("echo", 1)
    job.request("allocate", 1000, crash_limit=2)
    ids = job.master.requestTasks("echo", ((x,) for x in range(50)))
    failures, results = [], []
    for _ in range(52):
        try:
            results.append(job.result())
        except TaskRaisedException as error:
            failures.append(error)
    assert sorted(results) == sorted([1, *range(50)]), "the others are unharmed"
    (failure,) = failures
    assert failure.tag == "allocate"
    assert failure.task_id not in ids
    assert isinstance(failure.exception, TaskOutOfMemory)
    attempts = [line for line in failure.traceback.splitlines() if line.startswith("attempt ")]
    assert [line.split(":")[0] for line in attempts] == ["attempt 1", "attempt 2"]
    pids = job.notes("allocate")
    assert len(set(pids)) == 2, "the second attempt is made in a fresh worker"
    for line, pid in zip(attempts, pids, strict=True):
        assert f"PID {pid} on " in line
        assert "ran out of the 300M of memory that it may have" in line
    assert "bytearray(megabytes << 20)" in failure.traceback, "it shows where"
    assert str(failure.exception) == attempts[-1]


def test_a_leak_of_earlier_tasks_costs_a_task_one_attempt_only(job: Job) -> None:
    job.slave("--memory", "300M")
    job.request("keep", 200)
    first = job.result()
    job.request("keep", 200)
    second = job.result()
    assert first != second
    assert job.notes("keep") == [str(first), str(first), str(second)]


def test_many_small_pieces_are_too_much_as_well(job: Job) -> None:
    job.slave("--memory", "100M")
    job.request("small_pieces", crash_limit=1)
    assert isinstance(job.failure().exception, TaskOutOfMemory)
    job.request("echo", "goes on")
    assert job.result() == "goes on"


def test_a_result_that_does_not_fit_beside_itself(job: Job) -> None:
    job.slave("--memory", "300M")
    job.request("result", 200, crash_limit=1)
    assert isinstance(job.failure().exception, TaskOutOfMemory)


@pytest.mark.parametrize("number", [6, 9])
def test_a_death_close_to_the_limit_is_told_apart_from_a_crash(job: Job, number: int) -> None:
    job.slave("--memory", "300M")
    job.request("die_full", 275, number, crash_limit=1)
    failure = job.failure()
    assert isinstance(failure.exception, TaskOutOfMemory), failure.traceback
    assert f"(signal {number}), using 2" in failure.traceback
    assert "of the 300M of memory" in failure.traceback
    job.request("die_full", 10, number, crash_limit=1)
    failure = job.failure()
    assert isinstance(failure.exception, WorkerCrashed), failure.traceback


def test_without_a_limit_a_memory_error_is_an_exception(job: Job) -> None:
    job.slave()
    job.request("allocate", 1 << 40)
    assert isinstance(job.failure().exception, MemoryError)


def test_launched_slaves_may_have_a_limit_and_several_workers(job: Job) -> None:
    job.master.launchSlaveJobs(1, workers=2, memory="300M")
    job.request("allocate", 1000, crash_limit=1)
    assert isinstance(job.failure().exception, TaskOutOfMemory)
    wait_until(lambda: job.master.task_manager.status()["workers"] == 2)


@pytest.mark.parametrize("memory", ["much", 0, -1, True])
def test_a_wrong_limit_of_a_launched_slave_is_refused(job: Job, memory: Any) -> None:
    with pytest.raises(SettingsError, match="must be a number of bytes"):
        job.master.launchSlaveJobs(1, memory=memory)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_a_wrong_number_of_workers_is_refused(job: Job, workers: Any) -> None:
    with pytest.raises(SettingsError, match=r"launchSlaveJobs: workers=.* at least 1"):
        job.master.launchSlaveJobs(1, workers=workers)


def test_a_limit_below_what_a_worker_needs_is_told(job: Job) -> None:
    slave = job.slave("--memory", "1M")
    slave.finish(1)
    assert "memory limit 1M: a worker uses" in slave.err.splitlines()[-1]


def test_a_wrong_size_on_the_command_line(world: World) -> None:
    command = world.task_manager("--memory", "lots", "slave", "job")
    command.finish(2)
    assert "size 'lots': must be a number of bytes" in command.err

"""Locks in a shared folder: renewed by slaves, freed by the master, and what waits behind them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Program, World, wait_until

from masterslave import initializeMasterProcess
from masterslave.master import MasterProcess

JOB = """
    import os, sys, time
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def run(self):
            count = int(sys.argv[1])
            self.requestTasks("gate", [(i,) for i in range(count)])
            print(sorted(result for _, _, result in self.results(timeout=100)), flush=True)

    class Slave(SlaveProcess):
        def do_gate(self, i):
            with open("ran", "a") as file:
                file.write(f"{i}\\n")
            while not os.path.exists("go"):
                time.sleep(0.01)
            return i

    runJob("demo", Master, Slave, 0.25, folder="shared")
"""

SLAVE = """
    import os, time

    def do_quick(x, hangs):
        time.sleep(0.05)
        while hangs and not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
            time.sleep(0.01)
        return x
"""


@pytest.fixture
def tasks(world: World) -> Path:
    return world.path / "shared" / "tasks"


def slave(world: World) -> Program:
    return world.task_manager("slave", "--folder", "shared", "-w")


def locks(tasks: Path, program: Program) -> list[Path]:
    return sorted(tasks.glob(f"*.lock-*-{program.pid}"))


def ran(world: World) -> list[str]:
    file = world.path / "ran"
    return file.read_text().split() if file.exists() else []


def test_a_slave_renews_its_lock_and_keeps_it_for_as_long_as_its_task_takes(
    world: World, tasks: Path
) -> None:
    job = world.script(JOB, 1)
    one = slave(world)
    wait_until(lambda: ran(world), "the task runs")
    (lock,) = locks(tasks, one)
    times = set()

    def lived_for_long() -> bool:
        times.add(lock.stat().st_mtime_ns)
        return len(times) > 12  # four periods of silence are death

    wait_until(lived_for_long, "its time is set again and again")
    assert locks(tasks, one) == [lock]
    (world.path / "go").touch()
    assert job.finish() == "[0]\n"
    one.finish()
    assert ran(world) == ["0"]
    assert "lost" not in job.err
    assert "freed" not in job.err


def test_a_slave_that_is_stopped_amid_a_long_task_loses_its_lock(world: World, tasks: Path) -> None:
    job = world.script(JOB, 1)
    first = slave(world)
    wait_until(lambda: ran(world), "the task runs")
    first.send_signal(signal.SIGSTOP)
    wait_until(lambda: not locks(tasks, first), "its lock is freed")
    second = slave(world)
    wait_until(lambda: len(ran(world)) == 2, "another slave has the task")
    first.send_signal(signal.SIGCONT)
    (world.path / "go").touch()
    assert job.finish() == "[0]\n"
    first.finish()
    second.finish()


def test_a_lock_of_which_its_slave_knows_nothing_is_freed(world: World, tasks: Path) -> None:
    """The file server had failed it just after the rename."""
    job = world.script(JOB, 2)
    one = slave(world)
    wait_until(lambda: ran(world), "one task runs")
    (lock,) = locks(tasks, one)
    owner = lock.name.partition("lock-")[2]
    wait_until(lambda: list(tasks.glob("*.in")), "the other one waits")
    (waiting,) = tasks.glob("*.in")
    leaked = tasks / f"{waiting.name.removesuffix('in')}lock-{owner}"
    waiting.rename(leaked)
    wait_until(lambda: not leaked.exists(), "it is freed")
    assert locks(tasks, one) == [lock]  # this one is renewed
    (world.path / "go").touch()
    assert job.finish() == "[0, 1]\n"
    one.finish()
    assert f"{leaked} is freed: its slave lives and does not renew it" in job.err
    assert sorted(ran(world)) == ["0", "1"]


@pytest.fixture
def master(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[MasterProcess]:
    """A master in the folder ``shared``, in this process."""
    world.write("slave.py", SLAVE)
    monkeypatch.chdir(world.path)
    monkeypatch.syspath_prepend(str(world.path))
    made = initializeMasterProcess(
        "demo", slave_module="slave", folder="shared", straggler_fraction=0.0
    )  # nothing is run twice
    yield made
    made.shutdown()
    sys.modules.pop("slave", None)


def test_what_waits_behind_a_task_that_takes_far_too_long_is_given_back(
    world: World, master: MasterProcess
) -> None:
    slaves = [slave(world) for _ in range(2)]
    master.requestTasks("quick", [(x, False) for x in range(100)])
    assert len(list(master.results(timeout=100))) == 100
    master.requestTasks("quick", [(x, x == 0) for x in range(200)])
    got = {master.retrieveResult(timeout=100)[2] for _ in range(199)}
    assert got == set(range(1, 200))  # those in the bundle of the first one, too
    (world.path / "go").touch()
    assert master.retrieveResult(timeout=100)[2] == 0
    assert sum(master.task_manager.numberOfTasks()[2].values()) == 0
    master.shutdown()
    for one in slaves:
        one.finish()
    assert os.listdir(world.path / "shared" / "tasks") == []

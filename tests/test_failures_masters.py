"""Rows of the failure table: the end of masters and of the name server."""

from __future__ import annotations

import signal

import psutil
import Pyro5
import pytest
from conftest import Program, World, family, is_running, wait_until
from failing_job import StartJob

from masterslave.transports.pyro import NameServer, NameServerGone


def known_labels() -> list[str] | None:
    try:
        with NameServer(broadcast=False) as names:
            return names.labels()
    except NameServerGone:
        return None


# --- the name server ------------------------------------------------------------------------


def test_jobs_go_on_without_the_name_server_and_register_with_the_next_one(
    world: World, start_job: StartJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pyro5.config, "NS_HOST", "0.0.0.0")  # where no master starts one itself
    names = world.start_name_server()
    job = start_job(named=True)
    assert known_labels() == ["job"]
    job.slave("-n", 2)
    job.request("hold", "a", crash_limit=1)
    job.wait_for("begin a")
    names.kill()
    names.wait()
    job.request("echo", "without")
    assert job.result() == "without"
    world.start_name_server()
    wait_until(lambda: known_labels() == ["job"], "the registration is renewed")
    world.task_manager("slave", "job", "-n", 2)
    wait_until(lambda: len(job.ready()) == 2, "a slave that is started afterwards finds the job")
    job.release("a")
    assert job.result() == "a"
    assert job.events.left == []


def test_a_name_server_that_ends_with_its_master_is_replaced_by_another_master(
    world: World, start_job: StartJob
) -> None:
    holder = world.script(
        """
        import time
        from masterslave import MasterProcess
        master = MasterProcess("holder")
        print("there", flush=True)
        time.sleep(1000)
        """
    )
    wait_until(lambda: "there" in holder.out)
    job = start_job(named=True)
    assert known_labels() == ["holder", "job"]
    holder.kill()
    holder.wait()
    wait_until(lambda: known_labels() == ["job"])
    world.task_manager("slave", "job")  # finds the master by its label
    job.request("echo", 1)
    assert job.result() == 1


# --- two masters ----------------------------------------------------------------------------

HOLDING_MASTER = """
    import os, signal, sys, time
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def run(self):
            for i in range(3):
                self.requestTask("hold", i)
            print("runs", flush=True)
            self.retrieveResult()

    class Slave(SlaveProcess):
        def do_hold(self, i):
            time.sleep(0.3)  # so long that the slave has told of it and has no more to say
            with open("notes", "a") as file:
                print("begin", i, os.getpid(), file=file)
            time.sleep(1000)

    # As in a terminal: a test runner in the background may have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runJob("job", Master, Slave, watchdog_period=PERIOD, launch_slaves=2)
"""


def start_holding_master(
    world: World, period_s: float | None = 1.0
) -> tuple[Program, list[psutil.Process]]:
    """A master with two launched slaves whose workers are busy; and all their processes."""
    master = world.script(HOLDING_MASTER.replace("PERIOD", repr(period_s)))
    notes = world.path / "notes"
    wait_until(lambda: notes.exists() and notes.read_text().count("\n") == 2, "both slaves work")
    processes = family(master.pid)
    assert len(processes) == 5
    return master, processes


def test_a_second_master_with_the_label_gets_a_clear_error(
    world: World, start_job: StartJob
) -> None:
    world.start_name_server()
    first, _ = start_holding_master(world)
    second = world.start("script.py")
    second.finish(1)
    assert "LabelInUse: a master with label 'job' is running at " in second.err
    assert first.poll() is None
    assert "2 slaves with 2 workers" in world.task_manager("job").finish()
    first.kill()
    first.wait()
    job = start_job(named=True)  # the entry of the dead one is in the way no more
    assert known_labels() == ["job"]
    assert job.master.label == "job"


# --- the master ends ------------------------------------------------------------------------


@pytest.mark.parametrize("period_s", [1.0, 120.0, None])
def test_slaves_and_workers_end_when_their_master_is_gone(
    world: World, period_s: float | None
) -> None:
    world.env["MASTERSLAVE_MASTER_GONE"] = "1"
    master, processes = start_holding_master(world, period_s)
    master.kill()
    master.wait()
    wait_until(lambda: not any(is_running(p.pid) for p in processes), "nothing is left")
    assert "the master has been gone for 1 s" in master.err


def test_an_interrupt_ends_a_job_in_order(world: World) -> None:
    master, processes = start_holding_master(world)
    master.send_signal(signal.SIGINT)
    master.finish(None)
    assert master.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert not any(is_running(p.pid) for p in processes)
    assert master.err.count("Traceback (most recent call last)") == 1
    assert master.err.rstrip().endswith("KeyboardInterrupt")


def test_an_exception_of_the_master_ends_a_job_in_order(world: World) -> None:
    text = HOLDING_MASTER.replace("self.retrieveResult()", "1 / 0").replace("PERIOD", "None")
    master = world.script(text)
    master.finish(1)
    assert master.err.rstrip().endswith("ZeroDivisionError: division by zero")
    assert master.err.count("Traceback (most recent call last)") == 1

"""`task_manager slave`, and waiting for a master that is not there yet."""

from __future__ import annotations

import signal
from dataclasses import replace

import psutil
import pytest
from command import StartMaster, start_slave, wait_for_slaves
from conftest import PATIENCE_S, World, free_port, is_running, wait_until

from masterslave import MasterProcess, Settings

# --- slaves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "slave job -n 2",
        "slave -n 2 job",
        "slave job --workers=2",
        "-v slave job -n2",
        "-n 2 slave job",
    ],
)
def test_a_slave_with_two_workers(world: World, start_master: StartMaster, form: str) -> None:
    master = start_master()
    slave = world.task_manager(*form.split())
    wait_until(lambda: slave.poll() is not None or master.task_manager.status()["slaves"])
    assert slave.poll() is None, slave.err
    wait_for_slaves(master)
    (row,) = master.task_manager.status()["slaves"]
    assert row["workers"] == 2
    assert row["pid"] == slave.pid
    wait_until(lambda: len(psutil.Process(slave.pid).children()) == 2)
    master.requestTask("echo", "through it")
    assert master.retrieveResult(timeout=PATIENCE_S)[2] == "through it"


def test_a_slave_ends_well_with_its_job(world: World, start_master: StartMaster) -> None:
    master = start_master()
    slave = start_slave(world, master)
    master.shutdown()
    assert slave.finish(0) == ""
    assert slave.err == ""


def test_a_slave_that_is_interrupted_leaves_without_a_traceback(
    world: World, start_master: StartMaster
) -> None:
    master = start_master()
    slave = start_slave(world, master)
    master.requestTask("pid")
    worker = master.retrieveResult(timeout=PATIENCE_S)[2]
    slave.send_signal(signal.SIGINT)
    slave.finish(0)
    assert slave.err == ""
    assert not is_running(worker)


# --- waiting for the master -----------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["by label", "by host"])
def test_show_waits_for_a_master_that_is_started_later(
    world: World, start_master: StartMaster, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    port = free_port()
    where = [] if named else ["-m", f"127.0.0.1:{port}"]
    program = world.task_manager("-w", "-v", "job", *where)
    wait_until(lambda: "waiting for the master of job" in program.err)
    if named:
        start_master()
        assert program.finish().startswith("task manager job\n")
    else:
        settings = replace(Settings.from_environment(), port=port)
        master = MasterProcess("job", use_name_server=False, settings=settings)
        try:
            assert program.finish().startswith("task manager job\n")
        finally:
            master.shutdown()


def test_a_slave_waits_for_a_master_that_is_started_later(
    world: World, start_master: StartMaster
) -> None:
    slave = world.task_manager("slave", "-w", "-v", "job")
    wait_until(lambda: "waiting for the master of job" in slave.err)
    master = start_master()
    master.requestTask("echo", "late")
    assert master.retrieveResult(timeout=PATIENCE_S)[2] == "late"
    assert slave.poll() is None


def test_waiting_can_be_interrupted(world: World) -> None:
    script = world.write(
        "wait.py",
        """
        import signal, sys
        from masterslave.cli import main
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
        sys.exit(main())
        """,
    )
    program = world.start(script, "-w", "-v", "job")
    wait_until(lambda: "waiting for the master of job" in program.err)
    program.send_signal(signal.SIGINT)
    program.finish(130)
    assert "Traceback" not in program.err

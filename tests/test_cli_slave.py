"""`task_manager slave`, and waiting for a master that is not there yet."""

from __future__ import annotations

import signal
from dataclasses import replace

import psutil
import pytest
from command import StartMaster, start_slave, wait_for_slaves
from conftest import PATIENCE_S, World, free_port, is_running, wait_until

from masterslave import MasterProcess, Settings
from masterslave.runfolder import Plan, RunFolder

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


# --- leaving before the job is over, and the notes of slaves of jobs -------------------------


def test_a_slave_that_is_idle_for_too_long_ends(world: World, start_master: StartMaster) -> None:
    master = start_master()
    slave = start_slave(world, master, "--idle", 0.5)
    assert slave.finish() == ""
    assert master.task_manager.status()["slaves"] == []


def test_a_slave_is_not_idle_while_a_task_runs(world: World, start_master: StartMaster) -> None:
    master = start_master()
    slave = start_slave(world, master, "--idle", 0.5)
    for _ in range(3):
        master.requestTask("nap", 1.0)
        assert master.retrieveResult(timeout=PATIENCE_S)[2] is None
    slave.finish()


def test_a_slave_that_is_dismissed_finishes_what_it_runs(
    world: World, start_master: StartMaster
) -> None:
    master = start_master()
    slave = start_slave(world, master)
    other = world.task_manager("slave", master.label, "-m", master.address)
    wait_for_slaves(master, 2)
    rows = master.task_manager.status()["slaves"]
    (process_id,) = [row["id"] for row in rows if row["pid"] == slave.pid]
    for _ in range(2):
        master.requestTask("nap", 0.5)
    wait_until(lambda: master.task_manager.status()["running"] == {"nap": 2})
    assert master.task_manager.dismissSlaves([process_id, 99]) == 1
    slave.finish()
    assert [master.retrieveResult(timeout=PATIENCE_S)[1] for _ in range(2)] == ["nap", "nap"]
    assert other.poll() is None


def test_a_slave_of_a_job_says_how_it_fares(world: World, start_master: StartMaster) -> None:
    folder = RunFolder(world.path / "run")
    folder.create(Plan("job", "ms-job", "local", "here", 0.0))
    record = ("--record", folder.path, "--job", "local:ms-job-s1")
    early = world.task_manager("slave", "job", *record)
    early.finish(1)
    master = start_master()
    slave = start_slave(world, master, *record)
    notes = {note.pid: note for note in folder.notes()}
    assert notes[early.pid].progress == "failed"
    assert "name server" in notes[early.pid].error
    note = notes[slave.pid]
    assert (note.progress, note.job, note.error) == ("registered", "ms-job-s1", "")
    assert note.tries == (master.address,)
    assert note.job_id.startswith(f"{slave.pid}:")
    master.shutdown()
    slave.finish()
    assert {note.pid: note for note in folder.notes()}[slave.pid].progress == "left"


def test_a_slave_that_waits_ends_when_its_run_is_stopped(world: World) -> None:
    folder = RunFolder(world.path / "run")
    folder.create(Plan("job", "ms-job", "local", "here", 0.0))
    slave = world.task_manager("slave", "job", "-w", "--record", folder.path)
    wait_until(lambda: [note for note in folder.notes() if note.error])
    assert slave.poll() is None
    folder.mark_stopping()
    slave.finish(1)
    assert slave.err == "task_manager: job was stopped while this slave waited for its manager\n"

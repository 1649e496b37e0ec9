"""Jobs over a shared folder, with real slaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import World, is_running, wait_until

from masterslave.errors import FolderInUse, SettingsError
from masterslave.folder.files import Files
from masterslave.master import MasterProcess
from masterslave.slave import SlaveProcess

JOB = """
    import os, sys, time
    from masterslave import GlobalStateValue, MasterProcess, SlaveProcess
    from masterslave import TaskRaisedException, runJob

    class Master(MasterProcess):
        def run(self):
            state = self.setGlobalState(offset=1000)
            count = int(sys.argv[1])
            tasks = [(i, GlobalStateValue(state, "offset")) for i in range(count)]
            self.requestTasks("work", tasks)
            self.requestTask("divide", 1, 0, retries=1)
            got, failed = [], []
            for _ in range(count + 1):
                try:
                    got.append(self.retrieveResult(timeout=100)[2])
                except TaskRaisedException as error:
                    failed.append(str(error))
            print(sorted(got) == [1000 + i for i in range(count)], failed, flush=True)

    class Slave(SlaveProcess):
        def do_work(self, i, offset):
            with open("ran", "a") as file:
                file.write(f"{i}\\n")
            time.sleep(float(sys.argv[2]))
            return offset + i

        def do_divide(self, a, b):
            return a / b

    runJob("demo", Master, Slave, 1.0, int(sys.argv[3]), folder="shared")
"""
GOOD = "True ['task divide_{} raised ZeroDivisionError: division by zero']\n"


def ran(world: World) -> list[int]:
    file = world.path / "ran"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def listed(world: World, end: str) -> list[str]:
    return sorted(
        p.name for p in (world.path / "shared" / "tasks").glob("*") if re.search(end, p.name)
    )


def test_a_job_needs_no_network(world: World) -> None:
    job = world.script(JOB, 40, 0.01, 2)
    assert job.finish() == GOOD.format(40)
    assert job.err == ""
    assert set(ran(world)) == set(range(40))  # once each, but for a race as a slave joins
    for name in ("tasks", "slaves", "aside", "refused"):
        assert os.listdir(world.path / "shared" / name) == []
    assert not (world.path / "shared" / "master").exists()


def test_slaves_come_by_the_folder_and_it_shows_what_goes_on(world: World) -> None:
    pause = "time.sleep(float(sys.argv[2]))"
    held = f"{pause}\n            while i == 59 and not os.path.exists('go'): {pause}"
    assert pause in JOB
    job = world.script(JOB.replace(pause, held), 60, 0.1, 0)
    wait_until(lambda: listed(world, r"work_\d+\.1\.in"), "inputs lie there before any slave comes")
    slave = world.task_manager("slave", "--folder", "shared", "-w", "-n", 2)
    wait_until(lambda: listed(world, rf"lock-.*-{slave.pid}$"), "the slave has taken some")

    def status() -> dict[str, object]:
        shown = world.task_manager("show", "--folder", "shared", "--json").finish()
        seen.append(json.loads(shown))
        return seen[-1]

    seen: list[dict[str, object]] = []
    wait_until(lambda: status()["workers"] == 2, "the slave is shown")
    assert seen[-1]["label"] == "demo"
    assert seen[-1]["active_processes"] == 2
    (world.path / "go").touch()
    assert job.finish() == GOOD.format(60)
    slave.finish()


def test_a_slave_that_waits_and_one_that_is_idle(world: World) -> None:
    late = world.task_manager("slave", "--folder", "shared", "-w")
    job = world.script(JOB, 3, 0.01, 0)
    assert job.finish() == GOOD.format(3)
    late.finish()
    job = world.script(
        JOB.replace("state = ", "time.sleep(1000); state = "), 3, 0.01, 0, name="b.py"
    )
    wait_until((world.path / "shared" / "master").exists, "the master is there")
    world.task_manager("slave", "--folder", "shared", "-w", "--idle", "0.5").finish()
    job.terminate()
    job.finish(143)


def test_who_comes_when_the_job_is_over_leaves(world: World) -> None:
    """In a batch system with fewer places than slaves, the last ones begin when all is done."""
    world.script(JOB, 0, 0, 1).finish(None)
    late = world.task_manager("slave", "--folder", "shared", "-w")
    late.finish()
    assert "its job is over; start the master to go on: leaving" in late.err
    hasty = world.task_manager("slave", "--folder", "shared")
    hasty.finish(1)
    assert hasty.err.count("\n") == 1
    again = world.script(JOB, 3, 0.01, 1)  # and the next master takes that back
    assert again.finish().startswith("True ")


def test_no_master_is_said_in_one_line(world: World) -> None:
    slave = world.task_manager("slave", "--folder", "shared")
    slave.finish(1)
    assert "no master has been here" in slave.err
    assert len(slave.err.splitlines()) == 1
    show = world.task_manager("show")
    show.finish(2)  # wrong usage
    assert "name a LABEL, or a folder" in show.err


@pytest.mark.parametrize("folder", [5, "", "a\0b"])
def test_what_is_no_path_is_refused(folder: Any) -> None:
    for name in ("folder", "failover_folder"):
        with pytest.raises(SettingsError, match=f"^{name}=.*must be a path"):
            MasterProcess("demo", **{name: folder})
    with pytest.raises(SettingsError, match=r"^folder=.*must be a path"):
        SlaveProcess("demo", folder=folder)


def test_a_folder_that_cannot_be_made_is_said_in_one_line(world: World) -> None:
    mistyped = world.path / "shraed" / "run1"
    with pytest.raises(SettingsError, match=r"there is no directory .*shraed; make it, or correct"):
        MasterProcess("demo", folder=mistyped)
    assert not mistyped.parent.exists()
    (world.path / "loop").symlink_to(world.path / "loop")
    for path, why in (("loop", "Too many levels"), ("/proc", "no directory can be made")):
        with pytest.raises(SettingsError, match=f"{why}.*; name a directory that master and"):
            MasterProcess("demo", folder=world.path / path)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("", "--folder='': must be a path; for the working directory write '.'"),
        ("shraed/run1", "shraed; make it, or correct the path"),
        ("loop", "loop: Too many levels of symbolic links; name a directory that"),
    ],
)
def test_a_wrong_folder_of_a_command_is_said_in_one_line(
    world: World, folder: str, words: str
) -> None:
    """Also where it would wait: no master comes to where none can be."""
    (world.path / "loop").symlink_to(world.path / "loop")
    for command in (["slave", "-w"], ["slave"], ["show"]):
        program = world.task_manager(*command, "--folder", folder)
        program.finish(1)
        assert words in program.err
        assert len(program.err.splitlines()) == 1
    assert not (world.path / "shraed").exists()


def test_slaves_are_killed_and_nothing_is_lost_or_doubled(world: World) -> None:
    job = world.script(JOB, 60, 0.1, 0)
    for _ in range(3):
        slaves = [
            world.task_manager("slave", "--folder", "shared", "-w", "-n", 2) for _ in range(2)
        ]
        for slave in slaves:
            pattern = rf"lock-.*-{slave.pid}$"
            wait_until(lambda p=pattern: listed(world, p) or job.poll() is not None, "it works")
        for slave in slaves:
            slave.kill()
    world.task_manager("slave", "--folder", "shared", "-w", "-n", 2)
    assert job.finish() == GOOD.format(60)
    assert set(ran(world)) == set(range(60))


def test_a_killed_master_goes_on_from_the_folder(world: World) -> None:
    job = world.script(JOB, 30, 0.1, 0)
    slave = world.task_manager("slave", "--folder", "shared", "-w")
    wait_until(lambda: len(ran(world)) > 5, "some tasks have run")
    job.kill()
    job.wait()
    wait_until(lambda: listed(world, r"out$"), "its slave goes on")
    assert is_running(slave.pid)
    again = world.start(world.path / "script.py", 30, 0.1, 0)
    printed = again.finish()
    assert printed.startswith("True ['task divide_"), again.err
    slave.finish()
    # What was in the slave's hands when the master came back may be the exception.
    assert len(ran(world)) <= 30 + 2
    assert set(ran(world)) == set(range(30))


def test_a_second_master_is_refused_while_the_first_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.path)
    first = MasterProcess("one", folder="shared")
    try:
        with pytest.raises(FolderInUse, match="the master of 'one', process"):
            MasterProcess("two", folder="shared")
    finally:
        first.shutdown()
    MasterProcess("one", folder="shared").shutdown()


@pytest.mark.parametrize("harm", ["damage", "foreign", "truncate", "remove"])
def test_bad_files_are_refused_and_named_and_the_job_goes_on(world: World, harm: str) -> None:
    job = world.script(JOB, 12, 0.05, 0)
    wait_until(lambda: len(listed(world, r"work.*in$")) >= 8, "inputs lie there")
    path = world.path / "shared" / "tasks" / listed(world, r"work.*in$")[0]
    content = path.read_bytes()
    if harm == "damage":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "foreign":
        path.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
        (path.parent / "square_1.1.out").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    elif harm == "truncate":
        path.write_bytes(content[:50])
    else:
        path.unlink()
    slave = world.task_manager("slave", "--folder", "shared", "-w")
    assert job.finish() == GOOD.format(12)
    slave.finish()
    assert not (world.path / "owned").exists()
    if harm != "remove":
        assert any(path.stem in name for name in os.listdir(world.path / "shared" / "refused"))
        assert path.stem in slave.err
    if harm == "foreign":
        assert "square_1.1.out" in job.err


def test_a_full_disk_is_said_and_nothing_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(world.path)
    world.write("slave.py", "def do_twice(x): return 2 * x\n")
    from masterslave import initializeMasterProcess

    monkeypatch.syspath_prepend(str(world.path))
    master = initializeMasterProcess("full", slave_module="slave", folder="shared")
    files: Files = master._service._place.files  # type: ignore[attr-defined]

    def full(kind: str, path: str) -> None:
        if kind == "create":
            raise OSError(28, "No space left on device")

    try:
        files.before = full
        master.requestTask("twice", 21)
        wait_until(lambda: "twice_0.1 cannot be written" in caplog.text, "it is said")
        files.before = lambda kind, path: None
        master.launchSlaveJobs()
        assert master.retrieveResult(timeout=60)[2] == 42
    finally:
        files.before = lambda kind, path: None
        master.shutdown()


def test_a_slave_whose_connection_is_refused_uses_the_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = JOB.replace('folder="shared"', 'failover_folder="shared"')
    job = world.script(text, 20, 0.05, 0)
    wait_until((world.path / "shared" / "status").exists, "the master is there")
    with socket.create_server(("127.0.0.1", 0)) as server:
        refused = server.getsockname()[1]
    slave = world.task_manager("slave", "-m", f"127.0.0.1:{refused}", "--folder", "shared", "demo")
    assert job.finish() == GOOD.format(20)
    slave.finish()
    assert "using folder" in slave.err


def test_network_and_folder_serve_the_same_run(world: World) -> None:
    text = JOB.replace('folder="shared"', 'failover_folder="shared"')
    job = world.script(text, 40, 0.05, 1)  # one by the network
    wait_until((world.path / "shared" / "status").exists, "the master is there")
    slave = world.task_manager("slave", "--folder", "shared", "-w")
    assert job.finish() == GOOD.format(40)
    slave.finish()
    assert set(ran(world)) == set(range(40))


def test_a_stopped_slave_is_given_up_and_its_late_result_does_no_harm(world: World) -> None:
    job = world.script(JOB, 6, 0.5, 0)
    first = world.task_manager("slave", "--folder", "shared", "-w")
    wait_until(lambda: listed(world, rf"lock-.*-{first.pid}$"), "it has a task")
    first.send_signal(signal.SIGSTOP)
    wait_until(lambda: not listed(world, rf"lock-.*-{first.pid}$"), "its lock is freed")
    second = world.task_manager("slave", "--folder", "shared", "-w")
    first.send_signal(signal.SIGCONT)
    assert job.finish() == GOOD.format(6)
    first.finish()
    second.finish()
    assert Path(world.path / "shared" / "refused").exists()

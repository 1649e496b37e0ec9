"""`start`, `stop`, `status`, `allocate` with real processes on this machine."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import StartMaster
from conftest import PATIENCE_S, World, is_running, wait_until

from masterslave import (
    ClusterExecutor,
    StartError,
    allocate,
    masterHost,
    runfolder,
    start,
    starting,
    stop,
)
from masterslave.errors import ConnectionFailed, LabelInUse, LauncherError, SettingsError
from masterslave.keyfile import load_key
from masterslave.launchers.shell import start_of
from masterslave.launchers.ssh import LocalLauncher
from masterslave.pairing import JobView
from masterslave.runfolder import Plan, RunFolder, Submission
from masterslave.settings import Settings
from masterslave.starting import Started, check_request, environment, manager_job, slave_job
from masterslave.stopping import _why_silent, overview

PLAN = Plan(
    "lab", "ms-lab", "slurm", "here", 0.0,
    job={
        "directory": "/work", "walltime_s": 60.0, "environment": {"A": "b"},
        "options": ["-p", "x"], "container": None, "python": None,
    },
    workers=2,
)  # fmt: skip


def pid_of(job_id: str) -> int:
    return int(job_id.partition(":")[0])


def started(*args: Any, **options: Any) -> Started:
    found = start(*args, **options)
    assert isinstance(found, Started)
    return found


@pytest.fixture
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """This process starts things from the world's directory, and stops what is left."""
    monkeypatch.chdir(world.path)
    monkeypatch.setenv("PYTHONPATH", world.env["PYTHONPATH"])
    yield world
    for path in (world.path / ".masterslave" / "starts").glob("*"):
        stop(path.name, within=1.0)


def rows(label: str) -> list[Any]:
    return overview(label).rows


def wait_for_slave(label: str, count: int = 1) -> None:
    wait_until(lambda: sum(1 for row in rows(label) if row.slave) == count, f"{count} slaves")


def nothing_is_left(world: World) -> None:
    wait_until(lambda: not world.processes(), "all processes have ended")
    starts = world.path / ".masterslave" / "starts"
    assert not starts.exists() or list(starts.iterdir()) == []


# --- what is run ----------------------------------------------------------------------------


def test_the_job_of_slaves() -> None:
    job = slave_job(PLAN, Path("/home/starts/lab"), "ms-lab-s0", 3, 2, last=False)
    assert job.command[3:] == (
        "slave", "-n", "2", "-w", "--record", "/home/starts/lab", "--job", "slurm:ms-lab-s0",
        "--", "lab",
    )  # fmt: skip
    assert (job.count, job.cpus, job.walltime_s, job.directory) == (3, 2, 60.0, "/work")
    assert (job.options, job.environment) == (("-p", "x"), {"A": "b"})
    assert job.log_folder == "/home/starts/lab/logs"


def test_what_slaves_are_told() -> None:
    plan = PLAN._replace(on="sge", master="n1:7766", memory=1024, idle_s=9.0)
    command = slave_job(plan, Path("/f"), "n", 1, 1, last=False).command
    text = " ".join(command[3:])
    assert "-m n1:7766 --memory 1024 --lifetime 60.0 --idle 9.0" in text
    assert "--idle" not in slave_job(plan, Path("/f"), "n", 1, 1, last=True).command


def test_slaves_in_a_container_see_the_records_and_their_directory() -> None:
    job = {**PLAN.job, "container": ["podman", "image", ["--net=host"], ["/work"]]}
    made = slave_job(
        PLAN._replace(job=job), Path("/h/.masterslave/starts/lab"), "n", 1, 1, last=True
    )
    assert made.command[:4] == ("python3", "-m", "masterslave", "slave")
    assert made.container is not None
    assert made.container.mounts == ("/work", "/h/.masterslave")


@pytest.mark.parametrize(
    ("on", "manager_on", "host"),
    [("local", "local", "127.0.0.1"), ("slurm", "local", "0.0.0.0"), ("slurm", "slurm", "0.0.0.0")],
)
def test_a_manager_listens_where_its_slaves_may_be(
    world: World, on: str, manager_on: str, host: str
) -> None:
    plan = PLAN._replace(on=on, serves=True, manager_on=manager_on)
    job = manager_job(plan, Path("/f"), "n", "j.db")
    assert job.environment["MASTERSLAVE_HOST"] == host
    assert job.command[3:] == ("serve", "-v", "--journal", "j.db", "--", "lab")
    assert job.options == (("-p", "x") if on == manager_on else ())


def test_no_secret_is_handed_on() -> None:
    given = {"PYRO_SSL": "1", "PYRO_SSL_SERVERKEYPASSWD": "x", "PATH": "y", "MASTERSLAVE_PORT": "1",
             "MASTERSLAVE_GRACE": "3", "PYRO_NS_HOST": "n"}  # fmt: skip
    passed = environment(Settings(Path("/key")), given)
    assert passed == {"PYRO_SSL": "1", "MASTERSLAVE_GRACE": "3", "PYRO_NS_HOST": "n",
                      "MASTERSLAVE_KEY_FILE": "/key"}  # fmt: skip


@pytest.mark.parametrize(
    "request_",
    [
        {"n": 0}, {"n": True}, {"per_slave": 0}, {"low": 1}, {"high": 1}, {"low": 2, "high": 1},
        {"here": True}, {"journal": "x"}, {"serve": True, "master": "h"}, {"master": "h:x"},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(request_: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        check_request(**request_)


# --- the command line -----------------------------------------------------------------------


def test_start_status_tasks_stop(here: World) -> None:
    command = here.task_manager
    said = command("start", "lab", "--serve", "-n", 2, "--on", "local").finish()
    assert re.match(r"task manager lab: job \d+:\d+\nslaves on local: \d+:\d+\n$", said)
    wait_for_slave("lab")
    with ClusterExecutor("lab") as executor:
        assert list(executor.map(abs, [-1, -2, -3])) == [1, 2, 3]
    shown = json.loads(command("status", "lab", "--json").finish())
    assert [(row["role"], row["workers"], row["missing"]) for row in shown["rows"]] == [
        ("manager", None, False),
        ("slave", 2, False),
    ]
    assert "PID" in command("status", "lab").finish()
    lines = command("stop", "lab").finish().splitlines()
    assert lines[0] == "told 1 slave to finish what runs and leave"
    assert lines[-1] == "nothing is left"
    nothing_is_left(here)


def test_a_dry_run_does_nothing(here: World) -> None:
    options = ("start", "lab", "-n", 5, "--serve", "--on", "local", "--per-slave", 2, "--dry-run")
    said = here.task_manager(*options).finish()
    assert re.findall("^# .*", said, re.MULTILINE) == [
        "# 1 manager on local", "# 2 slaves on local", "# 1 slave on local",
    ]  # fmt: skip
    assert "serve -v -- lab" in said
    nothing_is_left(here)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("start lab --on local", 1, "--serve starts a task manager as well"),
        ("start lab --on cray", 2, "invalid choice: 'cray'"),
        ("start lab --on local -n 0", 2, "'0' is not a number of at least 1"),
        ("start lab --min 2 --max 1", 2, "min=2, max=1"),
        ("start lab --here", 2, "--here is for --serve"),
        ("start lab --on ssh", 2, "--on ssh and --host go together"),
        ("start lab --on pbs --set dialect", 2, "'dialect' is not NAME=VALUE"),
        ("start lab --on slurm --set odd=1", 1, "launcher slurm: got an unexpected keyword"),
        ("start lab --container x", 2, "'x' is not KIND:IMAGE"),
        ("start lab --serve --on local -- --partition=x", 1, "nothing to pass options to"),
        ("stop lab", 1, "nothing of label 'lab' was started"),
        ("status lab", 1, "nothing of label 'lab' was started"),
        ("scale lab", 1, "nothing of label 'lab' was started"),
    ],
)
def test_errors_are_one_line(here: World, words: str, status: int, text: str) -> None:
    program = here.task_manager(*words.split())
    program.finish(status)
    assert text in program.err
    if status == 1:
        assert program.err.count("\n") == 1
    nothing_is_left(here)


def test_a_system_that_does_not_answer_is_named(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setattr(
        "masterslave.launchers.slurm.SlurmLauncher.is_available", lambda self: False
    )
    with pytest.raises(LauncherError, match="slurm does not answer on "):
        start("lab", on="slurm", serve=True)
    # What would be run there can be seen all the same, on a laptop say.
    seen = start("lab", 3, on="slurm", serve=True, options=["--partition=x"], dry_run=True)
    assert isinstance(seen, str)
    assert re.findall("^# .*", seen, re.MULTILINE) == [
        "# 1 manager on slurm",
        "# 3 slaves on slurm",
    ]
    assert seen.count("--partition=x") == 2
    nothing_is_left(here)


# --- starting twice, losses, stale records ---------------------------------------------------


def test_a_label_is_started_once(here: World) -> None:
    first = started("lab", on="local", serve=True)
    wait_for_slave("lab")
    with pytest.raises(LabelInUse, match="is there already"):
        start("lab", on="local", serve=True)
    with pytest.raises(
        StartError, match=f"started already on local .*{first.slaves[0]}|{first.manager}"
    ):
        start("lab", on="local")
    stop("lab")
    nothing_is_left(here)


def test_slaves_are_ended_where_the_system_of_their_manager_does_not_answer(here: World) -> None:
    found = started("lab", on="local", wait=True)
    folder = RunFolder.of("lab", here.path)
    there = Submission("ms-lab-manager", "manager", "ssh", 1, 0.0, ("nohost.invalid:4711:1",))
    folder.write(there)
    with pytest.raises(StartError, match="stop lab: task manager nohost"):
        stop("lab")
    assert not is_running(pid_of(found.slaves[0]))
    folder.forget(there)
    stop("lab")
    nothing_is_left(here)


def test_a_stale_record_is_replaced(here: World) -> None:
    first = started("lab", on="local", serve=True)
    for job_id in (first.manager, *first.slaves):
        os.killpg(pid_of(job_id), signal.SIGKILL)
    wait_until(lambda: not is_running(pid_of(first.manager)))
    wait_until(lambda: not is_running(pid_of(first.slaves[0])))
    second = started("lab", on="local", serve=True)
    assert second.manager != first.manager
    stop("lab")
    nothing_is_left(here)


def test_a_slave_that_was_killed_is_missing_and_stop_ends_the_rest(here: World) -> None:
    found = started("lab", 2, on="local", serve=True, per_slave=1)
    wait_for_slave("lab", 2)
    notes = RunFolder.of("lab", here.path).notes
    wait_until(lambda: [note.progress for note in notes()] == ["registered"] * 2, "they know it")
    os.kill(pid_of(found.slaves[0]), signal.SIGKILL)
    wait_until(lambda: [row for row in rows("lab") if row.job == found.slaves[0] and row.missing])
    (row,) = [row for row in rows("lab") if row.job == found.slaves[0]]
    assert "lost on" in row.remark
    stop("lab")
    nothing_is_left(here)


def test_a_manager_that_was_killed(here: World) -> None:
    found = started("lab", on="local", serve=True)
    wait_for_slave("lab")
    # Its record says so a moment after the task manager knows the slave, in which that could end.
    notes = RunFolder.of("lab", here.path).notes
    wait_until(lambda: [note.progress for note in notes()] == ["registered"], "it knows it")
    os.kill(pid_of(found.manager), signal.SIGKILL)
    wait_until(lambda: not is_running(pid_of(found.manager)))
    seen = overview("lab")
    assert (seen.manager, bool(seen.why)) == ("", True)
    assert [row.role for row in rows("lab") if row.missing] == ["manager"]
    with pytest.raises(StartError, match=r"the task manager of 'lab' .* has ended"):
        masterHost("lab", timeout=PATIENCE_S)
    lines = stop("lab")
    assert any("does not answer, so slaves are cancelled" in line for line in lines)
    nothing_is_left(here)


def test_what_never_came_up_says_why_and_is_stopped(here: World) -> None:
    found = started("lab", on="local", serve=True, python="/bin/false")
    wait_until(lambda: [row for row in rows("lab") if row.missing])
    (row,) = [row for row in rows("lab") if row.job == found.slaves[0]]
    assert row.remark.startswith("ended before its slave said anything")
    stop("lab")
    nothing_is_left(here)


def test_a_start_that_was_cut_off_is_found_by_its_name(here: World) -> None:
    found = started("lab", on="local", serve=True)
    wait_for_slave("lab")
    folder = RunFolder.of("lab", here.path)
    for submission in folder.submissions():
        folder.write(submission._replace(ids=None))
    with pytest.raises(StartError, match=r"cut off while it submitted|started already"):
        start("lab", on="local")
    lines = stop("lab")
    assert sum("the start was cut off; 1 job of that name found" in line for line in lines) == 2
    assert not is_running(pid_of(found.slaves[0]))
    nothing_is_left(here)


def test_nothing_is_submitted_while_it_is_stopped(here: World) -> None:
    folder = RunFolder.of("lab", here.path)
    folder.create(PLAN._replace(on="local"))
    folder.mark_stopping()
    from masterslave.starting import submit_on_record

    with pytest.raises(StartError, match="is being stopped"):
        submit_on_record(
            folder, "slave", LocalLauncher(), slave_job(PLAN, folder.path, "n", 1, 1, last=True)
        )
    assert folder.submissions() == []
    folder.remove()


def test_a_submission_that_fails_leaves_nothing(here: World) -> None:
    with pytest.raises(LauncherError):
        start("lab", on="local", serve=True, options=["--partition=x"])
    nothing_is_left(here)


def test_a_full_disk_is_told_in_a_line(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps nobody from stopping what runs."""

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    started("lab", on="local", serve=True)
    wait_for_slave("lab")
    monkeypatch.setattr(runfolder, "_write", full)
    with pytest.raises(
        StartError, match="cannot be kept: No space left on device; make room there"
    ):
        start("other", on="local", wait=True)

    def not_marked(folder: RunFolder) -> None:
        raise StartError("no space")

    monkeypatch.setattr(RunFolder, "mark_stopping", not_marked)
    lines = stop("lab")
    assert lines[0] == "no space; goes on, and cannot keep others from starting more"
    assert lines[-1] == "nothing is left"
    nothing_is_left(here)


def test_a_record_that_cannot_be_changed_keeps_nothing_alive(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    started("lab", on="local", serve=True)
    wait_for_slave("lab")

    def read_only(folder: RunFolder, submission: Submission) -> None:
        raise StartError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "forget", read_only)
        with pytest.raises(StartError, match=r"stop lab: slave .*: read-only; task manager "):
            stop("lab")
    wait_until(lambda: not here.processes())
    assert stop("lab")[-1] == "nothing is left"
    nothing_is_left(here)


def test_a_directory_that_has_gone_is_told(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = here.path / "gone"
    gone.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(gone)
        gone.rmdir()
        with pytest.raises(StartError, match="the working directory has been removed"):
            start("lab", on="local", serve=True)
    nothing_is_left(here)


def test_a_slave_that_ends_at_once_has_left_word_of_the_reason(
    here: World, start_master: StartMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is another one than its master's, which `start` would have found out."""
    master = start_master("lab")
    monkeypatch.setenv("MASTERSLAVE_KEY_FILE", str(here.path / "other-key"))
    monkeypatch.setattr(starting, "_check_manager", lambda *arguments: None)
    load_key(here.path / "other-key")
    found = started("lab", on="local", master=master.address)
    wait_until(lambda: rows("lab")[0].phase == "ended", "the slave has ended")
    (row,) = rows("lab")
    assert (row.job, row.missing) == (found.slaves[0], True)
    assert row.remark.startswith("failed on ")
    assert f"PID {pid_of(row.job)}, Python 3" in row.remark
    assert f"tries {master.address}" in row.remark
    assert "key" in row.remark.rpartition(master.address)[2]
    stop("lab")
    nothing_is_left(here)


def test_why_a_task_manager_does_not_answer() -> None:
    view = JobView("7", "ms-lab-manager", "manager", "running")
    assert _why_silent([view], 3.4) == "its job 7 was started 3 s ago"
    assert _why_silent([view], 600.0) == ""  # then what was found at its address is told
    assert _why_silent([view._replace(over=True)], 3.4) == "its job 7 has ended"


def test_slaves_of_others_stay(here: World, start_master: StartMaster) -> None:
    master = start_master("lab")
    own = here.task_manager("slave", "lab")
    started("lab", on="local")
    wait_until(lambda: len(master.task_manager.status()["slaves"]) == 2)
    stop("lab")
    assert [row["pid"] for row in master.task_manager.status()["slaves"]] == [own.pid]


def test_a_job_that_cannot_be_looked_for_is_named(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.of("lab", here.path)
    folder.create(PLAN._replace(on="psij", launcher={"executor": "lsf"}))
    folder.write(Submission("ms-lab-s0", "slave", "psij", 1, 0.0))
    with pytest.raises(StartError, match="ms-lab-s0 may have been submitted: psij jobs cannot"):
        stop("lab")
    assert folder.exists()
    folder.remove()


@pytest.mark.parametrize(
    ("words", "label", "passed"),
    [
        (["lab", "--", "--qos=y", "--", "z"], "lab", "--qos=y -- z"),
        (["--", "-n", "--", "--qos=y"], "-n", "--qos=y"),
        (["--", "--", "--"], "--", ""),
    ],
)
def test_what_stands_behind_two_dashes(
    here: World, words: list[str], label: str, passed: str
) -> None:
    out = here.task_manager("start", "-n", 2, "--dry-run", "--on", "slurm", *words).finish()
    assert f"--array=0-1{' ' if passed else ''}{passed} <<'END'" in out
    assert f" -- {label} < /dev/null\n" in out


def test_an_option_to_be_passed_on_is_not_taken_for_a_label(here: World) -> None:
    program = here.task_manager("start", "--on", "slurm", "--dry-run", "--", "--qos=y")
    program.finish(2)
    assert "required: LABEL" in program.err


# --- on demand ------------------------------------------------------------------------------


def test_slaves_come_with_tasks_and_go_when_idle(here: World) -> None:
    started("lab", on="local", serve=True, low=0, high=2, idle=0.5)
    wait_until(lambda: overview("lab").manager)
    with ClusterExecutor("lab") as executor:
        assert executor.submit(abs, -1).result(PATIENCE_S) == 1

    def all_left() -> bool:
        return all(row.role != "slave" or row.remark == "left in order" for row in rows("lab"))

    wait_until(all_left, "slaves that are idle end")
    stop("lab")
    nothing_is_left(here)


def test_the_lower_limit_is_kept(here: World) -> None:
    started("lab", on="local", serve=True, low=1, high=1)
    wait_for_slave("lab")
    (row,) = [row for row in rows("lab") if row.slave]
    os.kill(pid_of(row.job), signal.SIGKILL)
    wait_until(lambda: [new for new in rows("lab") if new.slave and new.job != row.job])
    stop("lab")
    nothing_is_left(here)


def scale_of(label: str) -> list[Any]:
    return [row for row in rows(label) if row.role == "scale"]


def test_a_second_process_that_starts_slaves_is_refused(here: World) -> None:
    found = started("lab", on="local", serve=True, low=1, high=1)
    wait_for_slave("lab")
    second = here.task_manager("scale", "lab")
    second.finish(1)
    assert second.err == (
        "task_manager: slaves of lab are started on demand by process "
        f"{pid_of(found.scaling)} on {platform.node()} already; that one ends with: "
        "task_manager stop lab\n"
    )
    wait_for_slave("lab")
    assert [row.job for row in scale_of("lab")] == [found.scaling]
    stop("lab")
    nothing_is_left(here)


def test_the_next_process_that_starts_slaves_takes_up_what_a_killed_one_has_left(
    here: World,
) -> None:
    """Its slave, and what it was about to submit when it was killed."""
    found = started("lab", on="local", serve=True, low=1, high=1)
    wait_for_slave("lab")
    os.kill(pid_of(found.scaling), signal.SIGKILL)
    wait_until(lambda: scale_of("lab")[0].phase == "ended")
    folder = RunFolder.of("lab", here.path)
    (slave,) = [one for one in folder.submissions() if one.role == "slave"]
    folder.write(slave._replace(ids=None))
    folder.write(Submission("ms-lab-s1", "slave", "local", 1, 0.0))
    second = here.task_manager("-v", "scale", "lab")
    wait_until(lambda: "found" in second.err, "what the killed one has left is found")
    assert folder.submissions()[-1].ids == (f"{second.pid}:{start_of(str(second.pid))}",)
    wait_until(lambda: slave in folder.submissions(), "its id is known again")
    assert "ms-lab-s1" not in [one.name for one in folder.submissions()]
    assert [row.job for row in rows("lab") if row.slave] == list(slave.ids or ())
    (own,) = scale_of("lab")
    assert (own.phase, pid_of(own.job)) == ("running", second.pid)
    os.kill(pid_of((slave.ids or ("",))[0]), signal.SIGKILL)
    wait_until(lambda: [one for one in rows("lab") if one.slave and one.job not in slave.ids])
    stop("lab")
    second.finish(None)  # by itself, as the run is stopped, or by SIGTERM on its last steps
    assert second.returncode in (0, -signal.SIGTERM), second.err
    nothing_is_left(here)


# --- allocate, masterHost -------------------------------------------------------------------


def test_an_allocation(here: World) -> None:
    with allocate(2, "local") as workers:
        with workers.executor() as executor:
            assert sum(executor.map(abs, range(-9, 0))) == 45
        assert masterHost(workers.label) == workers.address
        assert [row.workers for row in workers.status().rows] == [2]
    nothing_is_left(here)


def test_an_allocation_ends_with_an_error_in_its_block(here: World) -> None:
    with pytest.raises(ZeroDivisionError), allocate(1, "local", label="lab"):
        raise ZeroDivisionError
    nothing_is_left(here)


def test_an_allocation_that_cannot_start_leaves_nothing(here: World) -> None:
    with pytest.raises(LauncherError), allocate(1, "local", options=["-x"]):
        pass
    nothing_is_left(here)


def test_the_slaves_of_a_program_that_was_killed_end(here: World) -> None:
    here.env["MASTERSLAVE_MASTER_GONE"] = "0.5"
    program = here.script("""
        import time
        from masterslave import allocate
        with allocate(1, "local", label="lab") as workers:
            with workers.executor() as executor:
                print(executor.submit(abs, -1).result(), flush=True)
                time.sleep(600)
    """)
    wait_until(lambda: program.out or program.poll() is not None)
    program.kill()
    program.wait()
    wait_until(lambda: not here.processes(), "its slaves end by themselves")
    stop("lab")


def test_nobody_waits_for_a_host_without_end(here: World) -> None:
    with pytest.raises(ConnectionFailed, match=r"no task manager in 0\.1 s: "):
        masterHost("lab", timeout=0.1)


def test_a_start_that_was_killed_after_its_submission(here: World) -> None:
    """Slaves that wait run already, and nobody was told their ids."""
    script = here.script("""
        import os, signal
        from masterslave import start
        from masterslave.launchers.ssh import LocalLauncher
        submit = LocalLauncher.submit
        def cut_off(self, job):
            submit(self, job)
            os.kill(os.getpid(), signal.SIGKILL)
        LocalLauncher.submit = cut_off
        start("lab", 2, "local", wait=True, per_slave=1)
    """)
    script.finish(-signal.SIGKILL)
    assert [row.phase for row in rows("lab")] == ["submitting"]
    said = here.task_manager("stop", "lab").finish()
    assert "the start was cut off; 2 jobs of that name found" in said
    nothing_is_left(here)

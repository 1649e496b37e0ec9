"""Commands of batch systems that fail, hang or are not there; the twin that starts nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from conftest import World, wait_until

from masterslave.errors import LauncherError
from masterslave.launchers import available_launcher, launcher
from masterslave.launchers.base import Job, JobState, Phase, in_portions, run_command
from masterslave.launchers.memory import MemoryLauncher

JOB = Job("demo", ("true",), count=2)


@pytest.fixture
def programs(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first among those in which commands are looked for."""
    folder = world.path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.chdir(world.path)
    return folder


def put(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(LauncherError, match="cannot run no-such-program: No such file"):
        run_command(["no-such-program", "-x"])


def test_a_command_that_fails_is_told_with_what_it_said() -> None:
    with pytest.raises(LauncherError) as caught:
        run_command(["sh", "-c", "echo out; echo 'no  such queue' >&2; exit 3"])
    assert str(caught.value).startswith("exit status 3 of sh: no such queue (sh -c ")


def test_a_command_that_hangs_is_ended_with_its_children(world: World) -> None:
    pid = world.path / "pid"
    with pytest.raises(LauncherError, match=r"no answer of sh in 0\.5 s \(sh -c"):
        run_command(["sh", "-c", f"sleep 1000 & echo $! > {pid}; wait"], limit_s=0.5)
    wait_until(lambda: not _runs(int(pid.read_text())), "its child has ended")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_ids_are_cut_into_portions() -> None:
    parts = list(in_portions([str(i) for i in range(1100)]))
    assert [len(part) for part in parts] == [500, 500, 100]
    assert [one for part in parts for one in part] == [str(i) for i in range(1100)]


def test_copies_that_did_start_are_cancelled_when_others_cannot(programs: Path) -> None:
    """Of two hosts one refuses."""
    log = programs / "log"
    refusal = "no) echo refused >&2; exit 255;;"
    put(programs, "ssh", f'case "$5" in {refusal} esac; echo "$5" >> {log}; echo "yes:7:8"')
    with pytest.raises(LauncherError, match=r"exit status 255 of ssh: refused \(ssh -o"):
        launcher("ssh", hosts=["yes", "no"]).submit(JOB)
    assert log.read_text().split() == ["yes", "yes"]  # started, cancelled


@pytest.mark.parametrize(
    ("name", "program"),
    [("slurm", "sbatch"), ("sge", "qsub"), ("pbs", "qsub"), ("htcondor", "condor_submit")],
)
def test_an_answer_without_an_id_is_an_error(programs: Path, name: str, program: str) -> None:
    put(programs, program, "cat > /dev/null; echo 'Welcome!'")
    with pytest.raises(LauncherError, match=r"gave no job ids? but 'Welcome!"):
        launcher(name).submit(JOB)


@pytest.mark.parametrize(
    ("name", "program"),
    [("slurm", "squeue"), ("sge", "qstat"), ("pbs", "qstat"), ("htcondor", "condor_q")],
)
def test_a_system_that_does_not_answer_is_no_end_of_jobs(
    programs: Path, name: str, program: str
) -> None:
    put(programs, program, "echo 'cannot reach the controller' >&2; exit 1")
    with pytest.raises(LauncherError, match="cannot reach the controller"):
        launcher(name).states(["1"])


def test_states_of_openpbs_arrays(programs: Path) -> None:
    blocks = "".join(
        f"Job Id: 12[{i}].srv\\n    Job_Name = x\\n    job_state = {word}\\n"
        for i, word in enumerate("QRFX")
    )
    put(programs, "qsub", "echo '12[].srv'")
    put(programs, "qstat", f"[ \"$1 $2\" = '-f -x' ] || exit 2; printf '{blocks}'; exit 35")
    pbs = launcher("pbs")
    ids = pbs.submit(JOB._replace(count=5))
    assert ids == [f"12[{i}].srv" for i in range(5)]
    phases = [Phase.PENDING, Phase.RUNNING, Phase.ENDED, Phase.ENDED, Phase.UNKNOWN]
    assert [pbs.states(ids)[one].phase for one in ids] == phases


def test_accounting_knows_what_the_queue_has_forgotten(programs: Path) -> None:
    put(programs, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    put(programs, "sacct", "echo '7_0|TIMEOUT'; echo '7_1|CANCELLED by 0'")
    states = launcher("slurm").states(["7_0", "7_1", "8"])
    assert states["7_0"] == JobState(Phase.ENDED, "TIMEOUT")
    assert states["7_1"] == JobState(Phase.ENDED, "CANCELLED")
    assert states["8"] == JobState(Phase.UNKNOWN)


@pytest.mark.parametrize(
    ("answering", "name"),
    [
        (["qstat", "qconf", "condor_q"], "sge"),
        (["qstat", "condor_q"], "pbs"),
        (["condor_q"], "htcondor"),
        (["sbatch", "scontrol", "qconf"], "slurm"),
        ([], "local"),
    ],
)
def test_what_is_there_is_taken(programs: Path, answering: list[str], name: str) -> None:
    for program in ("sbatch", "scontrol", "qconf", "qstat", "condor_q"):
        put(programs, program, "exit 0" if program in answering else "exit 1")
    assert available_launcher().name == name


def test_a_process_that_has_the_number_of_ours_is_left_alone(world: World) -> None:
    local = launcher("local")
    other = f"{os.getpid()}:1"
    assert local.states([other])[other].is_over
    local.cancel([other])  # or this test would have ended here


def test_texts_that_are_no_ids_are_refused() -> None:
    for one in ("0:1", "-1:1", "1;ls:1", "", "x"):
        with pytest.raises(LauncherError, match="not the id of a process"):
            launcher("local").cancel([one])


def test_the_twin_keeps_what_it_was_told() -> None:
    twin = launcher("memory")
    assert isinstance(twin, MemoryLauncher)
    ids = twin.submit(JOB)
    assert len(ids) == 2 and twin.jobs[ids[0]] == JOB
    assert {state.phase for state in twin.states(ids).values()} == {Phase.PENDING}
    twin.set_state(ids[0], Phase.RUNNING)
    twin.set_state(ids[1], Phase.ENDED, "TIMEOUT")
    twin.cancel([*ids, "unknown"])
    assert twin.states([*ids, "unknown"]) == {
        ids[0]: JobState(Phase.ENDED, "cancelled"),
        ids[1]: JobState(Phase.ENDED, "TIMEOUT"),
        "unknown": JobState(Phase.UNKNOWN),
    }

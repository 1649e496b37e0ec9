"""Every launcher with its real system: start, work, stop, and nothing is left."""

from __future__ import annotations

import gc
import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from clusters.places import ODD, PLACES, Place
from clusters.systems import Systems, require, take_lock
from conftest import PATIENCE_S, ROOT, World, is_running, wait_until

from masterslave import MasterProcess, Settings
from masterslave.errors import LauncherError
from masterslave.launchers.base import Phase
from masterslave.launchers.local import slave_job
from masterslave.slavecode import script_record

pytestmark = pytest.mark.timeout(600)  # the first start of HTCondor unpacks a distribution

ECHO = """
    from masterslave import startSlaveProcess
    def do_echo(x):
        return x
    startSlaveProcess()
"""
#: Says what it was given, and ends at SIGTERM, or Grid Engine's SIGUSR2.
LISTENER = (
    'trap "echo told to end; exit 0" TERM USR2; printf "%s|" "$1" "$ODD" "$PWD"; '
    "echo; while :; do sleep 0.1; done"
)


#: Its thread leaves the pipes of its processes to be closed by nobody.
UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(
    params=[pytest.param(name, marks=UNCLOSED if name == "psij" else ()) for name in PLACES]
)
def place(
    request: pytest.FixtureRequest,
    world: World,
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    yield PLACES[request.param](world, systems, monkeypatch)
    if request.param == "psij":
        wait_until(lambda: not psij_holds_processes(), "PSI/J has let go of its processes")


def psij_holds_processes() -> bool:
    """But for the last one, which a variable of its thread refers to for ever."""
    entries = [one for one in gc.get_objects() if type(one).__name__ == "_ChildProcessEntry"]
    return len(entries) > 1


@pytest.fixture
def master(world: World) -> Iterator[MasterProcess]:
    settings = replace(Settings.from_environment(), port=0)
    master = MasterProcess("job", use_name_server=False, settings=settings)
    master.keep_slave_code(script_record(world.write("echo.py", ECHO)))
    yield master
    master.shutdown()


def test_jobs_are_started_seen_and_cancelled(place: Place) -> None:
    """Three copies: each has its words, variables, directory and log; one is cancelled alone."""
    system = place.launcher
    assert system.is_available()
    folder = place.world.path / ODD
    Path(f"{place.root}/{folder}").mkdir()
    job = place.job("sh", "-c", LISTENER, "sh", ODD, count=3, directory=str(folder))
    ids = system.submit(job)
    assert len(set(ids)) == 3
    place.wait_for(ids, over=False)
    for one in ids:
        wait_until(lambda one=one: "|\n" in place.log(job, one), f"the output of {one}")
        assert place.log(job, one).splitlines()[0] == f"{ODD}|{ODD}|{folder}|"
    system.cancel(ids[:1])
    place.wait_for(ids[:1], over=True)
    states = system.states(ids)
    assert [states[one].phase for one in ids[1:]] == [Phase.RUNNING] * 2
    system.cancel(ids)  # the first one again
    place.wait_for(ids, over=True)
    system.cancel(ids)
    if place.tells:
        for one in ids:
            wait_until(lambda one=one: "told to end" in place.log(job, one), f"{one} was told")
    wait_until(lambda: not place.processes(), "nothing is left")


def test_slaves_work_and_leave_with_their_master(place: Place, master: MasterProcess) -> None:
    job = slave_job(
        "job", master.address, place.job(count=2, walltime_s=3600), python=place.python
    )  # fmt: skip
    ids = place.launcher.submit(job)
    requested = master.requestTasks("echo", ((i,) for i in range(100)))
    results = [result for _, _, result in master.results(timeout=PATIENCE_S * 2)]
    assert len(requested) == 100
    assert sorted(results) == list(range(100))
    master.shutdown()
    place.wait_for(ids, over=True)
    wait_until(lambda: not place.processes(), "nothing is left")


#: Does not hear SIGTERM, nor does its child, which has a process group of its own.
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setpgid(0, 0)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("name", ["local", "ssh"])
def test_what_does_not_end_is_killed_with_its_whole_session(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = PLACES[name](world, systems, monkeypatch)
    place.launcher._kill_after_s = 0.3  # type: ignore[attr-defined]
    job = place.job(place.python, "-c", DEAF)
    ids = place.launcher.submit(job)
    wait_until(lambda: place.log(job, ids[0]).count("ready") == 2, "both are there")
    place.launcher.cancel(ids)
    wait_until(lambda: not place.processes(), "nothing is left")


def test_what_a_system_refuses_is_told_in_its_words(place: Place) -> None:
    refusals = {"local": "no program no such program", "ssh": "no program no such program",
                "slurm": "unrecognized option '--no-such-option'", "sge": "--no-such-option",
                "pbs": "Unknown option: no-such-option",
                "htcondor": "on Line 14 of submit file", "psij": "must be NAME=VALUE"}  # fmt: skip
    options = () if place.launcher.name in ("local", "ssh") else ("--no-such-option",)
    job = place.job("no such program", options=options)._replace(container=None)
    with pytest.raises(LauncherError) as caught:
        place.launcher.submit(job)
    assert len(str(caught.value).splitlines()) == 1
    assert refusals[place.launcher.name] in str(caught.value)


def test_ids_that_nobody_knows(place: Place) -> None:
    unknown = {
        "local": "4000000:1",
        "ssh": "node1:4000000:1",
        "htcondor": "99999.0",
        "psij": "4000000:1",
    }
    one = unknown.get(place.launcher.name, "99999")
    assert place.launcher.states([one])[one].is_over
    place.launcher.cancel([one])
    assert place.launcher.states([]) == {}
    place.launcher.cancel([])


@UNCLOSED
def test_psij_leaves_a_process_alone_that_has_the_number_of_one_that_ended(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = PLACES["psij"](world, systems, monkeypatch)
    other = world.start("-c", "import time; time.sleep(1000)")
    stale = f"{other.pid}:1"
    assert place.launcher.states([stale])[stale].is_over
    place.launcher.cancel([stale])
    assert is_running(other.pid)


@pytest.mark.parametrize("name", ["ssh", "sge", "slurm", "docker", "condor"])
def test_a_system_whose_daemons_were_killed_is_started_again(systems: Systems, name: str) -> None:
    """So a session that was killed is in nobody's way."""
    systems.start(name)
    before = systems.pids(name)
    assert before
    systems.kill(name)
    wait_until(lambda: not any(is_running(pid) for pid in before), "the daemons are dead")
    systems.start(name)
    assert systems.pids(name)
    assert not set(before) & {pid for pid in systems.pids(name) if is_running(pid)}


@pytest.mark.parametrize(("ci", "word"), [("1", "error"), ("", "skipped")])
def test_a_system_that_is_missing_is_a_failure_in_ci(world: World, ci: str, word: str) -> None:
    programs = world.path / "none"
    programs.mkdir()
    world.env.update(PATH=str(programs), MASTERSLAVE_CI=ci)
    chosen = f"{__file__}::test_ids_that_nobody_knows[apptainer]"
    own = ("-p", "no:cacheprovider", f"--rootdir={ROOT}", "-rs", "-q")
    out = world.start("-m", "pytest", chosen, *own).finish(status=1 if ci else 0)
    assert f"1 {word}" in out
    assert "no apt-get, no dpkg, no flock, no patchelf, no mksquashfs" in out


def test_who_waits_for_the_pool_of_others_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    first = take_lock(tmp_path / "lock", lines.append)
    assert not lines
    with pytest.raises(pytest.fail.Exception, match=f"belonged to process {os.getpid()} for 0 s"):
        take_lock(tmp_path / "lock", lines.append, limit_s=0.0)
    (line,) = lines
    assert line.startswith(f"waiting for {tmp_path / 'lock'}, 0 s at most: it belongs to process")
    os.close(first)
    os.close(take_lock(tmp_path / "lock", lines.append))
    assert len(lines) == 1


def test_systems_of_a_session_that_was_killed_are_ended_by_the_next(world: World) -> None:
    require("ssh")
    text = (
        "import os, signal; from clusters.systems import Systems; s = Systems(); s.start('ssh'); "
        "print(*s.pids('ssh'), s.path, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    world.env["PYTHONPATH"] = f"{ROOT / 'tests'}:{ROOT}"
    pid, path = world.start("-c", text).finish(None).split()
    assert is_running(int(pid)) and Path(path).exists()
    world.start(
        "-c", "from clusters.systems import Systems as S; S().end_those_of_the_dead()"
    ).finish()
    assert not is_running(int(pid))
    assert not Path(path).exists()


def test_commands_are_shown_as_they_would_be_typed(place: Place) -> None:
    job = place.job("sh", "-c", "exit 0")
    for command in place.launcher.render(job).commands:
        assert shlex.join(command) in str(place.launcher.render(job))

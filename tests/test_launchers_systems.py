"""Every launcher with its real system: start, work, stop, and nothing is left."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from clusters.systems import Systems, require
from conftest import PATIENCE_S, ROOT, World, is_running, wait_until

from masterslave import MasterProcess, Settings
from masterslave.errors import LauncherError
from masterslave.launchers import launcher
from masterslave.launchers.base import Container, Job, Launcher, Phase
from masterslave.launchers.local import slave_job
from masterslave.slavecode import script_record

pytestmark = pytest.mark.timeout(600)  # the first start of HTCondor unpacks a distribution

ECHO = """
    from masterslave import startSlaveProcess
    def do_echo(x):
        return x
    startSlaveProcess()
"""
SITE = sysconfig.get_path("purelib")
ODD = 'it\'s "$HOME" `x`; a\\b  ü'

#: Says what it was given, and ends at SIGTERM, or Grid Engine's SIGUSR2.
LISTENER = (
    'trap "echo told to end; exit 0" TERM USR2; printf "%s|" "$1" "$ODD" "$PWD"; '
    "echo; while :; do sleep 0.1; done"
)


class Place(NamedTuple):
    """A launcher, and what its processes need where they run."""

    launcher: Launcher
    world: World
    root: str = "/"  # where they see the file system
    python: str = sys.executable
    path: str = f"{ROOT}:{SITE}"
    container: Container | None = None
    tells: bool = True  # cancelling tells the process, and does not kill it at once

    def job(self, *command: str, count: int = 1, **changes: object) -> Job:
        world = self.world
        environment = {
            "HOME": str(world.path), "PYTHONPATH": self.path, "ODD": ODD, "LC_ALL": "C.UTF-8",
            "TEST_SESSIONS": os.environ.get("TEST_SESSIONS", ""), "MASTERSLAVE_BROADCAST": "0",
            "MASTERSLAVE_MASTER_GONE": "20",
        }  # fmt: skip
        folder = str(world.path / "logs")
        job = Job(
            "te/st", command, count, str(world.path), folder, environment=environment,
            container=self.container,
        )  # fmt: skip
        return job._replace(**changes)

    def log(self, job: Job, job_id: str) -> str:
        path = Path(self.root + self.launcher.log_file(job, job_id))
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, ids: list[str], *, over: bool) -> None:
        def reached() -> bool:
            states = self.launcher.states(ids).values()
            if over:
                return all(state.is_over for state in states)
            return all(state.phase is Phase.RUNNING for state in states)

        wait_until(reached, f"{ids} {'have ended' if over else 'run'}")

    def processes(self) -> list[psutil.Process]:
        """What runs of our jobs, and is not about to be reaped."""
        return [process for process in self.world.processes() if is_running(process.pid)]


def make_local(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(launcher("local", kill_after_s=PATIENCE_S), world)


def make_ssh(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
    options = ["-F", systems.start("ssh")["SSH_TEST_CONFIG"]]
    hosts = ["node1", "node2"]
    return Place(launcher("ssh", hosts=hosts, options=options, kill_after_s=PATIENCE_S), world)


def make_podman(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in systems.start("podman").items():
        monkeypatch.setenv(name, value)
    mounts = (f"{ROOT}:{ROOT}:ro", *([] if SITE.startswith(f"{ROOT}/") else [f"{SITE}:{SITE}:ro"]))
    container = Container("podman", "work:1", mounts=mounts)
    local = launcher("local", kill_after_s=PATIENCE_S)
    return Place(local, world, python="python3", container=container)


def batch(name: str, **settings: object) -> Callable[..., Place]:
    def make(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
        for variable, value in systems.start(name).items():
            monkeypatch.setenv(variable, value)
        return Place(launcher(name, **settings), world, tells=name != "pbs")

    return make


def make_htcondor(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The pool lives in a folder with another system: what it needs of us is copied there."""
    systems.start("condor")
    root = systems.folder("condor")
    library = root / "home" / "work" / "library"
    shutil.rmtree(library, ignore_errors=True)
    shutil.copytree(ROOT / "masterslave", library / "masterslave")
    for name in ("Pyro5", "serpent", "msgpack", "cloudpickle", "psutil", "rich", "pygments"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, library / name)
        else:
            shutil.copy(origin, library)
    there = Path(f"{root}{world.path}")
    (there / "logs").mkdir(parents=True)
    (world.path / "logs").mkdir()
    work = (root / "home" / "work").stat()
    programs = world.path / "programs"
    programs.mkdir()
    inside = "export HOME=/home/work CONDOR_CONFIG=/home/work/condor_config PATH=/usr/bin:/bin"
    for name in ("condor_submit", "condor_q", "condor_rm"):
        program = programs / name
        words = f'"cd /home/work; {inside}; {name} $(printf "%q " "$@")"'
        program.write_text(f"#!/bin/bash\nexec chroot {root} su work -s /bin/bash -c {words}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for path in (there, there / "logs"):
        os.chown(path, work.st_uid, work.st_gid)
    key = Settings.from_environment().key_file
    from masterslave.keyfile import load_key

    load_key(key)
    shutil.copytree(key.parent, there / key.parent.name)
    for path in (there / key.parent.name, there / key.parent.name / key.name):
        os.chown(path, work.st_uid, work.st_gid)
    for path in reversed(there.parents):  # of pytest's, for their owner only
        if path.is_relative_to(root / "tmp"):
            path.chmod(0o755)
    return Place(
        launcher("htcondor"), world, str(root), "/usr/bin/python3", "/home/work/library"
    )  # fmt: skip


PLACES: dict[str, Callable[..., Place]] = {
    "local": make_local,
    "ssh": make_ssh,
    "podman": make_podman,
    "slurm": batch("slurm"),
    "sge": batch("sge"),
    "pbs": batch("pbs", dialect="torque", arrays=False),
    "htcondor": make_htcondor,
}


@pytest.fixture(params=list(PLACES))
def place(
    request: pytest.FixtureRequest,
    world: World,
    systems: Systems,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    return PLACES[request.param](world, systems, monkeypatch)


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
    job = place.job("sh", "-c", LISTENER, "sh", ODD, count=3)
    ids = system.submit(job)
    assert len(set(ids)) == 3
    place.wait_for(ids, over=False)
    for one in ids:
        wait_until(lambda one=one: "|\n" in place.log(job, one), f"the output of {one}")
        assert place.log(job, one).splitlines()[0] == f"{ODD}|{ODD}|{place.world.path}|"
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


def test_what_a_system_refuses_is_told_in_its_words(place: Place) -> None:
    job = place.job("true", directory="relative/nowhere", options=("--no-such-option",))
    with pytest.raises(LauncherError) as caught:
        place.launcher.submit(job)
    assert len(str(caught.value).splitlines()) == 1


def test_ids_that_nobody_knows(place: Place) -> None:
    unknown = {"local": "4000000:1", "ssh": "node1:4000000:1", "htcondor": "99999.0"}
    one = unknown.get(place.launcher.name, "99999")
    assert place.launcher.states([one])[one].is_over
    place.launcher.cancel([one])
    assert place.launcher.states([]) == {}
    place.launcher.cancel([])


@pytest.mark.parametrize("name", ["ssh", "sge", "slurm"])
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

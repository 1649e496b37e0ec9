"""Launchers, and what their processes need where they run."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import PATIENCE_S, ROOT, World, is_running, wait_until

from clusters.pool import LIBRARY, Pool
from clusters.systems import Systems, missing
from masterslave import Settings
from masterslave.keyfile import load_key
from masterslave.launchers import launcher
from masterslave.launchers.base import Container, Job, Launcher, Phase

SITE = sysconfig.get_path("purelib")
ODD = 'it\'s "$HOME" `x`; a\\b  ü'


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


def make_psij(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
    """PSI/J with its own way to start processes here."""
    if importlib.util.find_spec("psij") is None:
        missing("no psij-python")
    return Place(launcher("psij"), world)


#: What containers see of this machine, so that their Python finds the library.
MOUNTS = (f"{ROOT}:{ROOT}:ro", *([] if SITE.startswith(f"{ROOT}/") else [f"{SITE}:{SITE}:ro"]))


def contained(kind: str) -> Callable[..., Place]:
    def make(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
        for name, value in systems.start(kind).items():
            monkeypatch.setenv(name, value)
        container = Container(kind, systems.image(kind), mounts=MOUNTS)
        local = launcher("local", kill_after_s=PATIENCE_S)
        return Place(local, world, python="python3", container=container)

    return make


def batch(name: str, system: str = "", **settings: object) -> Callable[..., Place]:
    def make(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
        for variable, value in systems.start(system or name).items():
            monkeypatch.setenv(variable, value)
        return Place(launcher(name, **settings), world, tells=name != "pbs")

    return make


def make_htcondor(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The pool lives in a folder with another system: its commands are called there."""
    pool = Pool(world, systems)
    (world.path / "logs").mkdir()
    programs = world.path / "programs"
    programs.mkdir()
    for name in ("condor_submit", "condor_q", "condor_rm"):
        program = programs / name
        command = f'{pool.prefix("/home/work")}"{name} $(printf \'%q \' "$@")"'
        program.write_text(f"#!/bin/bash\nexec {command}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    key = Settings.from_environment().key_file
    load_key(key)
    pool.give(key.parent)
    return Place(launcher("htcondor"), world, str(pool.root), "/usr/bin/python3", LIBRARY)


PLACES: dict[str, Callable[..., Place]] = {
    "local": make_local,
    "ssh": make_ssh,
    "docker": contained("docker"),
    "podman": contained("podman"),
    "apptainer": contained("apptainer"),
    "slurm": batch("slurm"),
    "sge": batch("sge"),
    "pbs": batch("pbs", dialect="torque", arrays=False),
    "htcondor": make_htcondor,
    "psij": make_psij,
}

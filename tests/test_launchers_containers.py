"""The shell above a client of docker or podman, or apptainer, with a program in their place."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave.launchers.base import Container, Job
from masterslave.launchers.containers import process_command, program

#: Writes down what it was given; as ``run`` it does what the image is called.
CLIENT = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$1" = run ] || exit 1
trap 'echo "told to end" >> "$CALLS"; exit 7' TERM
case "$*" in
  *" killed "*) kill -9 $$;;
  *" works "*) exit 3;;
esac
echo ready >> "$CALLS"
while :; do sleep 0.05; done
"""

#: Writes down what it was given, and what it would hand on.
APPTAINER = """#!/bin/sh
printf '%s\\n' "$$" "$@"
env | sed -n s/^APPTAINERENV_//p
"""


class Shell:
    def __init__(self, path: Path) -> None:
        self._calls = path / "calls"
        self._calls.touch()
        (path / "docker").write_text(CLIENT)
        (path / "docker").chmod(0o755)
        self._env = {"PATH": f"{path}:/usr/bin:/bin", "CALLS": str(self._calls)}
        self._path = path

    def start(self, image: str) -> subprocess.Popen[bytes]:
        job = Job("a b", ("x",), directory=str(self._path), container=Container("docker", image))
        return subprocess.Popen(process_command(job), env=self._env)

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()

    def name(self) -> str:
        return self.calls()[0].split()[2]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize(("image", "status"), [("works", 3), ("killed", 128 + signal.SIGKILL)])
def test_what_is_left_is_removed_and_the_status_is_the_clients(
    shell: Shell, image: str, status: int
) -> None:
    process = shell.start(image)
    assert process.wait(PATIENCE_S) == status
    assert shell.calls()[0].startswith(f"run --name a_b-{shell.name()[4:]} --rm ")
    assert shell.calls()[1:] == [f"rm --force {shell.name()}"]
    assert shell.name().endswith(f"-{process.pid}")


def test_signals_are_handed_on(shell: Shell) -> None:
    process = shell.start("waits")
    wait_until(lambda: "ready" in shell.calls(), "the client is there")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 7
    assert shell.calls()[1:] == ["ready", "told to end", f"rm --force {shell.name()}"]


def test_the_program_that_must_be_there() -> None:
    job = Job("a", ("x",))
    assert program(job) == "x"
    assert program(job._replace(container=Container("podman", "image"))) == "podman"


def test_a_job_of_a_system_that_takes_one_line() -> None:
    job = Job("a", ("x",), directory="/w", container=Container("podman", "image"))
    assert not any("\n" in word for word in process_command(job))


@pytest.mark.parametrize("job_id", [None, "", "7:1", 'a b"`id`$HOME\\'])
def test_apptainer_takes_the_place_of_its_shell_and_is_told_which_job_it_is(
    tmp_path: Path, job_id: str | None
) -> None:
    program = tmp_path / "apptainer"
    program.write_text(APPTAINER)
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_ID": "12", "OTHER": "x"}
    if job_id is not None:
        env["MASTERSLAVE_JOB_ID"] = job_id
    job = Job("a b", ("x", "$y"), directory="/w", container=Container("apptainer", "i m"))
    command = process_command(job)
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    lines = process.communicate(timeout=PATIENCE_S)[0].splitlines()
    given = ["exec", "--pwd", "/w", "--bind", "/w:/w", "i m", "x", "$y"]
    assert lines[: 1 + len(given)] == [str(process.pid), *given]
    told = {"JOB_ID=12"} | ({f"MASTERSLAVE_JOB_ID={job_id}"} if job_id is not None else set())
    assert set(lines[1 + len(given) :]) == told

"""`start` and `stop` with slaves in real containers, of docker, of podman and of apptainer."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from clusters.places import MOUNTS, SITE
from clusters.systems import Systems
from conftest import PATIENCE_S, ROOT, World, wait_until

from masterslave import ClusterExecutor, masterHost
from masterslave.launchers import launcher
from masterslave.launchers.base import Container, Job, run_command
from masterslave.stopping import overview

pytestmark = pytest.mark.timeout(300)

#: With options of their own. apptainer's: as users have it who are not root, in a user namespace;
#: and as many sites advise, with nothing of the host's environment, `/tmp` and home directory.
KINDS = (
    "docker", "podman", "apptainer", "apptainer --userns", "apptainer --contain --cleanenv",
)  # fmt: skip


class Engine:
    """A container system, and ``task_manager start`` with it."""

    def __init__(self, name: str, world: World, systems: Systems, patch: pytest.MonkeyPatch):
        self.kind, *options = name.split()
        self.world = world
        self.use(systems.start(self.kind), patch)
        patch.chdir(world.path)
        self._folder = systems.folder(self.kind)
        self._temporary = world.path / "tmp"
        self._temporary.mkdir()
        self.use({"APPTAINER_TMPDIR": str(self._temporary)}, patch)
        self.options = [
            "--container", f"{self.kind}:{systems.image(self.kind)}",
            f"--container-option=--env=PYTHONPATH={ROOT}:{SITE}",
            *(f"--container-option={option}" for option in options),
            *(word for mount in MOUNTS for word in ("--mount", mount)),
        ]  # fmt: skip

    def use(self, variables: dict[str, str], patch: pytest.MonkeyPatch) -> None:
        self.world.env.update(variables)
        for name, value in variables.items():
            patch.setenv(name, value)

    def run(self, *arguments: Any) -> str:
        return self.world.task_manager(*arguments).finish()

    def containers(self) -> list[str]:
        """Ids of all that there are, ended ones, too."""
        if self.kind == "apptainer":
            return runtime_parents(str(self.world.path))
        return run_command([self.kind, "ps", "--all", "--quiet"]).out.split()

    def check_nothing_is_left(self) -> None:
        wait_until(lambda: not self.containers(), "no container is left")
        wait_until(lambda: not self.world.processes(), "no process is left")
        starts = self.world.path / ".masterslave" / "starts"
        assert not starts.exists() or not list(starts.iterdir())
        if self.kind == "apptainer":
            wait_until(lambda: not self.images_in_use(), "no image is in use")
            assert not list(self._temporary.iterdir())

    def images_in_use(self) -> list[str]:
        """Devices of the kernel's, and processes, that serve apptainer's image."""
        image = str(self._folder / "work.sif")
        devices = Path("/sys/block").glob("loop*/loop/backing_file")
        found = [str(device) for device in devices if read(device).startswith(image)]
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error):
                if process.info["name"].startswith("squashfuse") and any(
                    file.path.startswith(image) for file in process.open_files()
                ):
                    found.append(str(process.pid))
        return found


def runtime_parents(directory: str) -> list[str]:
    """apptainer has no containers but processes: above each stands one, which knows where it was
    started by what it has in the place of its environment."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "starter" and any(
                directory in value for value in process.environ().values()
            ):
                found.append(str(process.pid))
    return found


def read(path: Path) -> str:
    """Empty where it has just gone."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@pytest.fixture(params=KINDS)
def engine(
    request: pytest.FixtureRequest, world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> Engine:
    return Engine(request.param, world, systems, monkeypatch)


def test_two_containers_with_two_workers_each(engine: Engine) -> None:
    engine.run(
        "start", "lab", "-n", 4, "--per-slave", 2, "--on", "local", "--serve", "--here",
        *engine.options,
    )  # fmt: skip
    wait_until(lambda: sum(bool(row.job and row.workers) for row in overview("lab").rows) == 2)
    seen = overview("lab")
    slaves = [row for row in seen.rows if row.role == "slave"]
    assert [row.workers for row in slaves] == [2, 2]
    assert len({row.slave for row in slaves}) == 2
    assert not any(row.missing for row in seen.rows)
    assert len(engine.containers()) == 2
    with ClusterExecutor("lab") as executor:
        assert list(executor.map(abs, range(-99, 1))) == list(range(99, -1, -1))
    done = [row.done for row in overview("lab").rows if row.role == "slave"]
    assert sum(number or 0 for number in done) == 100
    assert "told 2 slaves to finish what runs and leave" in engine.run("stop", "lab")
    engine.check_nothing_is_left()


def test_stopped_before_the_slaves_are_there(engine: Engine) -> None:
    engine.run("start", "lab", "-n", 2, "--on", "local", "-w", *engine.options)
    assert "nothing is left" in engine.run("stop", "lab")
    engine.check_nothing_is_left()


def test_a_key_that_is_elsewhere_is_seen_inside(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    key = tmp_path_factory.mktemp("keys") / "key"
    engine.use({"MASTERSLAVE_KEY_FILE": str(key)}, monkeypatch)
    engine.run("start", "lab", "--on", "local", "--serve", "--here", *engine.options)
    with ClusterExecutor("lab", masterHost("lab", PATIENCE_S)) as executor:
        assert executor.submit(abs, -1).result(PATIENCE_S) == 1
    engine.run("stop", "lab")
    engine.check_nothing_is_left()


def test_a_slave_does_not_outlive_its_apptainer(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine("apptainer", world, systems, monkeypatch)
    engine.run("start", "lab", "-n", 2, "--on", "local", "--serve", "--here", *engine.options)
    wait_until(lambda: any(row.job and row.workers for row in overview("lab").rows))
    (parent,) = engine.containers()
    os.kill(int(parent), signal.SIGKILL)
    wait_until(lambda: not engine.containers(), "its container is gone")
    wait_until(lambda: len(world.processes()) == 1, "only the task manager is left")
    engine.run("stop", "lab")
    engine.check_nothing_is_left()


@pytest.mark.parametrize("name", ["apptainer", "apptainer --userns"])
def test_a_killed_apptainer_leaves_nothing(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In a user namespace, a process in a group of its own serves the image."""
    engine = Engine(name, world, systems, monkeypatch)
    container = Container("apptainer", systems.image("apptainer"), tuple(name.split()[1:]))
    text = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    job = Job("deaf", ("sh", "-c", text), directory=str(world.path), log_folder=str(world.path),
              environment={"HOME": str(world.path)}, container=container)  # fmt: skip
    local = launcher("local", kill_after_s=0.3)
    ids = local.submit(job)
    log = Path(local.log_file(job, ids[0]))
    wait_until(lambda: "ready" in read(log), "it runs")
    assert len(engine.images_in_use()) == 1
    local.cancel(ids)
    engine.check_nothing_is_left()


@pytest.mark.parametrize("name", ["podman", "apptainer", "apptainer --cleanenv"])
def test_a_container_in_a_batch_job_knows_its_job(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    engine = Engine(name, world, systems, monkeypatch)
    engine.use(systems.start("slurm"), monkeypatch)
    engine.run(
        "start", "lab", "-n", 2, "--on", "slurm", "--serve", "--here", "--walltime", "10m",
        *engine.options,
    )  # fmt: skip
    masterHost("lab", PATIENCE_S)
    wait_until(lambda: sum(bool(row.job and row.workers) for row in overview("lab").rows) == 2)
    engine.run("stop", "lab")
    engine.check_nothing_is_left()

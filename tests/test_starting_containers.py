"""`start` and `stop` with slaves in real containers, of docker and of podman."""

from __future__ import annotations

from typing import Any

import pytest
from clusters.places import MOUNTS, SITE
from clusters.systems import Systems
from conftest import PATIENCE_S, ROOT, World, wait_until

from masterslave import ClusterExecutor, masterHost
from masterslave.launchers.base import run_command
from masterslave.stopping import overview

pytestmark = pytest.mark.timeout(300)

KINDS = ("docker", "podman")


class Engine:
    """A container system, and ``task_manager start`` with it."""

    def __init__(self, kind: str, world: World, systems: Systems, patch: pytest.MonkeyPatch):
        self.kind = kind
        self.world = world
        self.use(systems.start(kind), patch)
        patch.chdir(world.path)
        self.options = [
            "--container", f"{kind}:work:1", f"--container-option=--env=PYTHONPATH={ROOT}:{SITE}",
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
        return run_command([self.kind, "ps", "--all", "--quiet"]).out.split()

    def check_nothing_is_left(self) -> None:
        wait_until(lambda: not self.containers(), "no container is left")
        wait_until(lambda: not self.world.processes(), "no process is left")
        assert not list((self.world.path / ".masterslave" / "starts").iterdir())


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


def test_a_container_in_a_batch_job_knows_its_job(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine("podman", world, systems, monkeypatch)
    engine.use(systems.start("slurm"), monkeypatch)
    engine.run(
        "start", "lab", "-n", 2, "--on", "slurm", "--serve", "--here", "--walltime", "10m",
        *engine.options,
    )  # fmt: skip
    masterHost("lab", PATIENCE_S)
    wait_until(lambda: sum(bool(row.job and row.workers) for row in overview("lab").rows) == 2)
    engine.run("stop", "lab")
    engine.check_nothing_is_left()

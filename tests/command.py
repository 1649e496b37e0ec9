"""The command `task_manager` in this process, and masters that it is asked about."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from conftest import PATIENCE_S, Program, World, wait_until

from masterslave import MasterProcess, Settings, cli
from masterslave.slavecode import script_record

ECHO = """
    import os, time
    from masterslave import startSlaveProcess
    def do_echo(x):
        return x
    def do_nap(seconds):
        time.sleep(seconds)
    def do_pid():
        return os.getpid()
    startSlaveProcess()
"""

Run = Callable[..., tuple[int, str, str]]
StartMaster = Callable[..., MasterProcess]


@pytest.fixture
def start_master(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartMaster]:
    """Start a master in this process: label, whether the name server knows it."""
    monkeypatch.chdir(world.path)
    masters: list[MasterProcess] = []

    def start(label: str = "job", *, named: bool = True) -> MasterProcess:
        settings = replace(Settings.from_environment(), port=0, renewal_s=0.1)
        masters.append(MasterProcess(label, named, settings=settings))
        masters[-1].keep_slave_code(script_record(world.write("echo.py", ECHO)))
        return masters[-1]

    yield start
    for master in reversed(masters):  # the first one has the name server
        master.shutdown()


@pytest.fixture
def run(world: World, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command, in this process unless it is a slave; gives status, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        if "slave" in arguments:
            world.env.update({n: v for n, v in os.environ.items() if n.startswith("MASTERSLAVE_")})
            program = world.task_manager(*arguments)
            return (program.wait(PATIENCE_S), program.out, program.err)
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:  # of argparse
            assert isinstance(end.code, int)
            status = end.code
        return (status, *capsys.readouterr())

    return run


def wait_for_slaves(master: MasterProcess, count: int = 1) -> None:
    def ready() -> bool:
        slaves = master.task_manager.status()["slaves"]
        return sum(slave["tags"] is not None for slave in slaves) == count

    wait_until(ready, f"{count} slaves are ready")


def start_slave(world: World, master: MasterProcess, *arguments: object) -> Program:
    slave = world.task_manager("slave", master.label, "-m", master.address, *arguments)
    wait_for_slaves(master)
    return slave

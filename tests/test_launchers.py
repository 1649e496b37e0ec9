"""Launchers: the command of a slave on this machine, and what becomes of its process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from conftest import PATIENCE_S, World, is_running, wait_until

from masterslave import MasterProcess, Settings
from masterslave.launchers.local import LocalSlaves, SlaveOptions, slave_command
from masterslave.slavecode import script_record

ECHO = """
    from masterslave import startSlaveProcess
    def do_echo(x):
        return x
    startSlaveProcess()
"""
LABELS = ["plain", "-dash", "--", "-n", "--help", "two  words", 'it\'s "quoted"', "$HOME;ls", "ü/ö"]


@pytest.fixture
def masters(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[MasterProcess]]:
    monkeypatch.chdir(world.path)
    started: list[MasterProcess] = []
    yield started
    for master in started:
        master.shutdown()


def start_master(world: World, masters: list[MasterProcess], label: str = "job") -> MasterProcess:
    settings = replace(Settings.from_environment(), port=0)
    master = MasterProcess(label, use_name_server=False, settings=settings)
    masters.append(master)
    master.keep_slave_code(script_record(world.write("echo.py", ECHO)))
    return master


def test_the_command_of_a_slave() -> None:
    python, option, boot, *rest = slave_command("demo", "127.0.0.1:7766", SlaveOptions(3))
    assert (python, option) == (sys.executable, "-c")
    assert rest == ["slave", "-m", "127.0.0.1:7766", "-n", "3", "--", "demo"]
    compile(boot, "boot", "exec")


def test_a_slave_has_one_worker_unless_told_otherwise() -> None:
    assert slave_command("demo", "host:1")[3:] == ["slave", "-m", "host:1", "-n", "1", "--", "demo"]


def test_a_slave_follows_a_master_that_the_name_server_knows() -> None:
    assert "--follow" in slave_command("demo", "host:1", SlaveOptions(follow=True))
    assert "--follow" not in slave_command("demo", "host:1")


@pytest.mark.parametrize("label", LABELS)
def test_any_label_stays_one_argument(label: str) -> None:
    command = slave_command(label, "host:1")
    assert command[-2:] == ["--", label]
    assert label == "--" or label not in command[2]  # nothing of it becomes code


@pytest.mark.parametrize("label", LABELS)
def test_a_launched_slave_finds_a_master_of_any_label(
    world: World, masters: list[MasterProcess], label: str
) -> None:
    master = start_master(world, masters, label)
    master.launchSlaveJobs(1)
    master.requestTask("echo", label)
    assert master.retrieveResult(timeout=PATIENCE_S)[2] == label


def test_launched_slaves_have_sessions_of_their_own(
    world: World, masters: list[MasterProcess]
) -> None:
    master = start_master(world, masters)
    pids = master.launchSlaveJobs(2)
    assert len(set(pids)) == 2
    for pid in pids:
        wait_until(lambda pid=pid: os.getsid(pid) == pid)


def test_launched_slaves_end_with_their_master(world: World, masters: list[MasterProcess]) -> None:
    master = start_master(world, masters)
    pids = master.launchSlaveJobs(2)
    master.requestTask("echo", 1)
    master.retrieveResult(timeout=PATIENCE_S)
    master.shutdown()
    assert not any(is_running(pid) for pid in pids)


def test_slaves_that_do_not_end_are_killed(world: World, masters: list[MasterProcess]) -> None:
    master = start_master(world, masters)
    slaves = LocalSlaves()
    (pid,) = slaves.launch("job", master.address, 1)
    wait_until(lambda: master.task_manager.status()["slaves"])
    os.kill(pid, signal.SIGSTOP)
    slaves.end(0.0)
    assert not is_running(pid)


def test_a_slave_that_ended_in_trouble_is_named_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    slaves = LocalSlaves()
    (pid,) = slaves.launch("job", "127.0.0.1:1", 1)

    def reaped() -> bool:
        slaves.reap()
        return bool(caplog.records)

    with caplog.at_level(logging.WARNING):
        wait_until(reaped)
    assert caplog.messages == [f"slave PID {pid} ended with status 1"]
    assert "cannot reach a task manager at 127.0.0.1:1" in capfd.readouterr().err

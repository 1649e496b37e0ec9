"""Versions of clients and slaves, compared in words."""

from __future__ import annotations

import platform

import pytest
from conftest import World, wait_until

from masterslave import ClusterExecutor, TaskManager
from masterslave.payload import own_versions
from masterslave.records import ProcessInfo
from masterslave.versions import as_line, mismatch

SAME = {"python": "3.11.7", "cloudpickle": "3.1.3", "masterslave": "0.1.0", "protocol": "1"}


def line(**changes: str) -> str:
    return as_line({**SAME, **changes})


def test_what_goes_together() -> None:
    assert mismatch(line(), line()) == ""
    assert mismatch(line(), line(python="3.11.2", cloudpickle="3.0", masterslave="0.2")) == ""
    assert mismatch("", line()) == mismatch(line(), "") == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"python": "3.12.1"}, "runs Python 3.12.1, the client 3.11.7: functions and classes"),
        ({"cloudpickle": "2.2.0"}, "has cloudpickle 2.2.0, the client 3.1.3"),
        ({"protocol": "2", "masterslave": "1.0"}, "has masterslave 1.0, which speaks another"),
    ],
)
def test_what_does_not(changes: dict[str, str], text: str) -> None:
    assert mismatch(line(), line(**changes)).startswith(text)


def test_this_process_says_its_own() -> None:
    assert f"python={platform.python_version()} " in own_versions()
    assert mismatch(own_versions(), own_versions()) == ""


@pytest.mark.parametrize("client_first", [True, False])
def test_it_is_said_whoever_comes_last(
    client_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    manager = TaskManager("job")
    client = ProcessInfo("the client", 1, "node1", 0, "c", versions=line())
    slave = ProcessInfo("PID 2 on node2", 2, "node2", 1, "s", versions=line(python="3.12.0"))
    if client_first:
        manager.attachClient(client)
        manager.announceSlave(manager.registerProcess(None, slave)[0])
    else:
        manager.announceSlave(manager.registerProcess(None, slave)[0])
        manager.attachClient(client)
    (said,) = manager.status()["mismatches"]
    assert said.startswith("slave PID 2 on node2 runs Python 3.12.0, the client 3.11.7")
    assert said in caplog.text


def test_slaves_tell_theirs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.path)
    with ClusterExecutor(workers=1) as executor:
        manager = executor._core._master.task_manager
        wait_until(lambda: manager.status()["slaves"])
        told = {member.info.versions for member in manager._roster.present.values()}
        assert told == {own_versions()}
        assert manager.status()["mismatches"] == []

"""Home directories that cannot be written, read or found: one clear line, or done without."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Program, World, free_port, wait_until
from disks import SmallDisk, mounted

KEY = "ab" * 32

#: Become a Python whose root may read and write only what modes allow, as everybody else.
COMMON = """
    import ctypes, os, sys
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                sys.exit("cannot give up a right")
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

COMMANDS = (
    ("show", "job"),
    ("list",),
    ("status", "job"),
    ("stop", "job"),
    ("failures", "job"),
    ("start", "job", "--on", "local", "-n", "1", "--serve"),
    ("serve", "job"),
    ("slave", "job", "-m", "127.0.0.1:1"),
)


def read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


@contextlib.contextmanager
def homes(kind: str, folder: Path) -> Iterator[Path | str]:
    """A home directory of that kind."""
    with contextlib.ExitStack() as undo:
        home: Path | str = folder
        if kind in ("read-only", "missing", "full"):
            undo.enter_context(mounted(folder))
        else:
            folder.mkdir()
        if kind == "full":
            SmallDisk(folder).fill()
        elif kind == "read-only":
            read_only(folder)
        elif kind == "missing":
            read_only(folder)  # where root could make one otherwise
            home = folder / "gone" / "home"
        elif kind == "not a folder":
            (folder / ".masterslave").touch()
        elif kind == "not ours":
            folder.chmod(0)
            undo.callback(folder.chmod, 0o700)
        elif kind == "relative":
            home = "home"
        yield home


KINDS = ["read-only", "missing", "full", "not a folder", "not ours", "relative"]


@pytest.fixture(params=KINDS)
def home(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[Path | str]:
    with homes(request.param, tmp_path / "home") as path:
        world.env["HOME"] = str(path)
        yield path


@pytest.fixture(autouse=True)
def common(world: World) -> Path:
    """The program that gives up root's rights."""
    return world.write("common.py", COMMON)


def task_manager(world: World, *arguments: object) -> Program:
    return world.start(world.path / "common.py", "-m", "masterslave", *arguments)


@pytest.mark.parametrize("key", ["of the home", "elsewhere"])
def test_each_command_says_in_one_line_what_is_wrong(
    world: World, home: Path | str, key: str
) -> None:
    """With a key elsewhere, serving and slaves work; see below."""
    if key == "elsewhere":
        path = world.write("key", KEY)
        path.chmod(0o600)
        world.env["MASTERSLAVE_KEY_FILE"] = str(path)
    commands = [one for one in COMMANDS if key == "of the home" or one[0] not in ("serve", "slave")]
    programs = [task_manager(world, *one) for one in commands]
    for program, command in zip(programs, commands, strict=True):
        program.finish(1)
        *before, last = program.err.splitlines()
        assert last.startswith("task_manager: "), program.err
        assert all("masterslave.connectionfile: " in line for line in before), program.err
        if command[0] == "start":
            assert re.search("HOME|MASTERSLAVE_KEY_FILE", last), "the remedy is named"


def test_with_a_key_elsewhere_it_is_done_without(world: World, home: Path | str) -> None:
    path = world.write("key", KEY)
    path.chmod(0o600)
    world.env["MASTERSLAVE_KEY_FILE"] = str(path)
    port = free_port()
    manager = task_manager(world, "serve", "job", "-v", "--port", port)
    wait_until(lambda: "task manager job at" in manager.out or manager.poll() is not None)
    slave = task_manager(world, "slave", "job", "-m", f"127.0.0.1:{port}")
    world.write(
        "client.py",
        f"""
        from masterslave import ClusterExecutor
        with ClusterExecutor("job", "127.0.0.1:{port}") as executor:
            print(executor.submit(pow, 2, 5).result(), flush=True)
        """,
    )
    client = world.start(world.path / "common.py", "client.py")
    assert client.finish() == "32\n"
    shown = task_manager(world, "show", "job")  # by the name server
    assert shown.finish().startswith("task manager job\n")
    manager.send_signal(signal.SIGTERM)
    manager.finish()
    slave.finish()
    if os.path.isabs(str(home)):
        said = [line for line in manager.err.splitlines() if "no connection file" in line]
        assert len(said) == 1, manager.err
        assert said[0].endswith("; slaves need the name server or -m")
    for program in (manager, slave, client, shown):
        assert "Traceback" not in program.err


def test_a_slave_of_a_start_goes_on_when_its_record_cannot_be_seen(world: World) -> None:
    """The home is away for a while: that is no order to leave."""
    record = world.path / "record"
    for name in ("slaves", "jobs", "logs"):
        (record / name).mkdir(parents=True)
    (record / "start.json").write_text("{}")
    port = free_port()
    slave = task_manager(world, "slave", "job", "-w", "-m", f"127.0.0.1:{port}", "--record", record)
    wait_until(lambda: list((record / "slaves").glob("*.json")) or slave.poll() is not None)
    record.chmod(0)
    try:
        manager = world.task_manager("serve", "job", "-v", "--port", port)
        wait_until(lambda: "is ready" in manager.err or slave.poll() is not None, "it has come")
        assert slave.poll() is None, slave.err
        manager.send_signal(signal.SIGTERM)
        manager.finish()
        slave.finish()
        assert "Traceback" not in slave.err
    finally:
        record.chmod(0o700)

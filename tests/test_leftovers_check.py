"""The check that a session of tests leaves nothing behind: what is left, it finds and names."""

from __future__ import annotations

import ast
import os
import re

import pytest
from conftest import ROOT, World, is_running, wait_until
from leftovers import LIBRARY_THREADS, MARK, SHARED_MEMORY, marked_processes

SESSIONS = pytest.mark.parametrize("workers", ["0", "2"])

NOTHING = """
    import socket, subprocess, sys, threading

    def test_that_cleans_up():
        subprocess.run([sys.executable, "-c", ""], check=True)
        thread = threading.Thread(target=print, name="pyro-server")
        thread.start()
        thread.join()
        socket.create_server(("127.0.0.1", 0)).close()

    def test_another():
        pass
"""
PROCESS = """
    import subprocess, sys

    def test_that_leaves_a_process():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.pid, file=open("pid", "w"))
        child.returncode = 0  # or subprocess would warn of it
"""
FORK = """
    import os, signal

    def test_that_leaves_a_fork():
        pid = os.fork()
        if not pid:
            try:
                signal.pause()
            finally:
                os._exit(0)
        print(pid, file=open("pid", "w"))
"""
FILE = """
    import pathlib

    def test_that_leaves_a_file():
        pathlib.Path("/dev/shm", NAME).touch()
"""
SOCKET = """
    import socket
    kept = []

    def test_that_leaves_a_socket():
        kept.append(socket.create_server(("127.0.0.1", 0)))
        print(kept[0].getsockname()[1], file=open("port", "w"))
"""
THREAD = """
    import threading, time

    def test_that_leaves_a_thread():
        threading.Thread(target=time.sleep, args=(600,), name="pyro-server", daemon=True).start()
"""

MASTER = """
    from masterslave import MasterProcess
    kept = []

    def test_that_leaves_a_master(world):
        kept.append(MasterProcess("forgotten"))
        raise ValueError("it fails")

    def test_after_it(world):
        master = MasterProcess("another")
        assert kept[0].task_manager.status()["terminated"]
        master.shutdown()
"""


def run(
    world: World, text: str, workers: str, status: int, *,
    patience_s: float = 0.0, plugin: str = "leftovers",
) -> str:  # fmt: skip
    """Run a session of its own; give what it printed."""
    world.env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "tests", ROOT)))
    test = world.write("test_it.py", text)
    session = world.start(
        "-m", "pytest", "-p", plugin, "-p", "no:cacheprovider", "-n", workers,
        "-o", f"leftovers_patience_s={patience_s}", "--rootdir", world.path, test,
    )  # fmt: skip
    out = session.finish(None)
    assert session.returncode == status, out + session.err
    return out


@SESSIONS
def test_a_session_that_leaves_nothing_passes(world: World, workers: str) -> None:
    out = run(world, NOTHING, workers, 0, patience_s=30)
    assert "2 passed" in out and "left behind" not in out


@SESSIONS
def test_a_process_that_is_left_is_named_and_ended(world: World, workers: str) -> None:
    out = run(world, PROCESS, workers, 1)
    pid = (world.path / "pid").read_text().strip()
    assert "1 passed" in out and "left behind" in out
    assert f"process {pid} of test_it.py::test_that_leaves_a_process" in out
    assert "time.sleep(600)" in out
    wait_until(lambda: not is_running(int(pid)), "it is ended")


def test_a_fork_that_is_left_is_named(world: World) -> None:
    out = run(world, FORK, "0", 1)
    assert f"process {(world.path / 'pid').read_text().strip()} of " in out


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system shows no shared memory")
def test_a_file_that_is_left_in_shared_memory_is_named(world: World) -> None:
    path = SHARED_MEMORY / f"masterslave-test-{os.getpid()}"
    try:
        out = run(world, FILE.replace("NAME", repr(path.name)), "0", 1)
    finally:
        path.unlink(missing_ok=True)
    assert f"file {path}" in out


@SESSIONS
def test_a_socket_that_is_left_open_is_named(world: World, workers: str) -> None:
    out = run(world, SOCKET, workers, 1)
    port = (world.path / "port").read_text().strip()
    where = "gw" if workers != "0" else "the process of the session"
    assert f"socket LISTEN 127.0.0.1:{port} in {where}" in out


def test_a_thread_of_the_library_that_is_left_is_named(world: World) -> None:
    assert "thread pyro-server in the process of the session" in run(world, THREAD, "0", 1)


def test_a_master_that_a_failing_test_has_left_is_named_and_shut_down(world: World) -> None:
    out = run(world, MASTER, "0", 1, patience_s=30, plugin="conftest")
    assert "1 failed, 1 passed, 1 error" in out
    assert re.search("has left threads .*name-server, pyro-server, registration, watchdog", out)
    assert "masters that it has not shut down: ['forgotten']" in out
    assert "left behind" not in out  # by the session


def test_what_is_about_to_end_is_waited_for(world: World) -> None:
    text = THREAD.replace("time.sleep, args=(600,)", "time.sleep, args=(0.5,)")
    assert "left behind" not in run(world, text, "0", 0, patience_s=30)


def test_what_a_world_starts_carries_the_mark(world: World) -> None:
    mark = os.environ[MARK].split(",")[-1]
    program = world.script("import time; time.sleep(600)")
    wait_until(  # for a moment after its start nobody can see its environment
        lambda: program.pid in [process.pid for process in marked_processes(mark)], "it is found"
    )


def test_a_world_ends_orphans(world: World) -> None:
    parent = world.script("""
        import subprocess, sys
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
    """)
    orphan = int(parent.finish())
    assert is_running(orphan)
    world.end()
    assert not is_running(orphan)


def test_every_thread_of_the_library_is_known_by_its_name() -> None:
    names = []
    for path in (ROOT / "masterslave").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "threading.Thread":
                names += [ast.literal_eval(k.value) for k in node.keywords if k.arg == "name"]
    assert names and set(names) <= set(LIBRARY_THREADS)

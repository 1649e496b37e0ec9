"""A master in this process with code for real slaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import World, wait_until

from masterslave import (
    MasterProcess,
    TaskRaisedException,
    initializeMasterProcess,
)

HANDLERS = """
    import os
    import signal
    import sys
    import time
    from masterslave import startSlaveProcess

    class Unpicklable(Exception):
        def __reduce__(self):
            raise TypeError("stays where it is")

    class TwoArguments(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")

    class Silent(Exception):
        def __str__(self):
            raise RuntimeError("has no text")

    def do_square(x):
        return x * x

    def do_order(x):
        with open("order", "a") as file:
            file.write(f"{x}\\n")
        return x

    def do_divide(a, b):
        return a / b

    def do_raise(name):
        if name == "SystemExit":
            sys.exit("leaves")
        if name == "KeyboardInterrupt":
            raise KeyboardInterrupt("interrupted")
        if name == "Silent":
            raise Silent("one")
        raise {"Unpicklable": Unpicklable, "TwoArguments": TwoArguments}[name]("one", "two")

    def do_lock():
        import threading
        return threading.Lock()

    def do_wait():
        with open("pid", "w") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(1000)

    def do_die():
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def do_count(name):
        with open(name, "a") as file:
            file.write(".")
        return os.path.getsize(name)

    def do_third_time(name):
        if do_count(name) < 3:
            raise ValueError("not yet")
        return "done"

    startSlaveProcess()
"""


@pytest.fixture
def master(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[MasterProcess]:
    """A master on a free port, without slaves; it knows code for them."""
    monkeypatch.chdir(world.path)
    monkeypatch.setenv("MASTERSLAVE_PORT", "0")
    world.write("slave.py", HANDLERS)
    master = initializeMasterProcess("demo", slave_script="slave.py", use_name_server=False)
    try:
        yield master
    finally:
        master.shutdown()


@pytest.fixture
def served(master: MasterProcess) -> MasterProcess:
    """The same with a slave of one worker."""
    master.launchSlaveJobs()
    return master


def failure(master: MasterProcess) -> TaskRaisedException:
    """The next result, which must be a failure."""
    with pytest.raises(TaskRaisedException) as caught:
        master.retrieveResult()
    return caught.value


def running_worker(folder: Path) -> int:
    """Wait until ``do_wait`` runs; the id of its process."""
    file = folder / "pid"
    wait_until(lambda: file.exists() and file.read_text().endswith(" "), "the task runs")
    return int(file.read_text())

"""A job with its master in this process, and slaves whose handlers fail in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import PATIENCE_S, Program, World, wait_until

from masterslave import (
    MasterProcess,
    Observer,
    Settings,
    TaskRaisedException,
)
from masterslave.slavecode import script_record

SLAVE = """
    import ctypes, os, signal, sys, threading, time
    from masterslave import SlaveProcess

    def note(text):
        with open("notes", "a") as file:
            file.write(text + chr(10))

    class Odd(Exception):
        def __init__(self, text):
            super().__init__(text)
            self.lock = threading.Lock()  # cannot be pickled

    def do_echo(x):
        return x

    def do_divide(x, y):
        return x / y

    def do_odd():
        raise Odd("very odd")

    def do_lock():
        return threading.Lock()

    def do_hold(name):
        note(f"begin {name} {os.getpid()}")
        while not os.path.exists(name):
            time.sleep(0.005)
        note(f"end {name} {os.getpid()}")
        return name

    def do_work(x):
        time.sleep(0.01)
        return x

    def do_die(how):
        note(f"dying {os.getpid()}")
        print("last words before", how, file=sys.stderr, flush=True)
        if how == "exit":
            os._exit(7)
        if how == "segfault":
            ctypes.string_at(0)
        os.kill(os.getpid(), signal.SIGKILL)

    def do_hog(seconds):
        note("hog")
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # keeps the interpreter's lock
        return "done"

    SlaveProcess("job", watchdog_period=PERIOD).start(globals())
"""
PERIOD_S = 0.2  # where slaves ping: four of them are patience enough for a loaded machine


class Events(Observer):
    """Remembers who left and what was run again."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.again: list[tuple[str, str]] = []

    def process_left(self, process_id: int, info: str, reason: str) -> None:
        self.left.append(reason)

    def task_rescheduled(self, task_id: str, tag: str, reason: str) -> None:
        self.again.append((task_id, reason))


class Job:
    """A master in this process, and slaves that are programs."""

    def __init__(self, world: World, period_s: float | None, named: bool) -> None:
        self.world = world
        self.events = Events()
        settings = replace(Settings.from_environment(), port=0, renewal_s=0.1)
        self.master = MasterProcess("job", named, settings=settings, observers=[self.events])
        script = world.write("slave.py", SLAVE.replace("PERIOD", repr(period_s)))
        self.master.keep_slave_code(script_record(script))
        self.request = self.master.requestTask

    def slave(self, *arguments: object, address: str = "") -> Program:
        """Start a slave, wait until its workers are there."""
        before = len(self.ready())
        address = address or self.master.address
        slave = self.world.task_manager("slave", "job", "-m", address, *arguments)
        wait_until(lambda: len(self.ready()) > before, "the slave is ready")
        return slave

    def status(self) -> dict[str, Any]:
        return self.master.task_manager.status()

    def ready(self) -> list[dict[str, Any]]:
        return [slave for slave in self.status()["slaves"] if slave["tags"] is not None]

    def count(self, state: str) -> int:
        return sum(self.status()[state].values())

    def result(self) -> Any:
        return self.master.retrieveResult(timeout=PATIENCE_S)[2]

    def failure(self) -> TaskRaisedException:
        with pytest.raises(TaskRaisedException) as caught:
            self.master.retrieveResult(timeout=PATIENCE_S)
        return caught.value

    def notes(self, beginning: str) -> list[str]:
        """The last words of the notes that begin so: process ids, mostly."""
        path = self.world.path / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[-1] for line in lines if line.startswith(beginning)]

    def wait_for(self, note: str, count: int = 1) -> list[int]:
        wait_until(lambda: len(self.notes(note)) >= count, f"{count} times {note}")
        return [int(pid) for pid in self.notes(note)]

    def release(self, *names: str) -> None:
        """Let the tasks hold(name) end."""
        for name in names:
            (self.world.path / name).touch()


StartJob = Callable[..., Job]


@pytest.fixture
def start_job(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartJob]:
    jobs: list[Job] = []
    monkeypatch.chdir(world.path)

    def start(period_s: float | None = None, *, named: bool = False) -> Job:
        jobs.append(Job(world, period_s, named))
        return jobs[-1]

    yield start
    for job in jobs:
        job.master.shutdown()

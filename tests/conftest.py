"""Fixtures: a world of its own for each test, and a check that nothing is left behind.

Every test that starts processes does so through `world`: an empty home, its own key, its own name
server port, loopback only. What it started is ended by process id when the test is over.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

# Modules with fixtures and helpers, and the check of what is left behind.
pytest_plugins = [
    "leftovers", "attacks", "channels", "command", "dispatching", "failing_job", "labels",
    "managing", "mastering", "shortcutting", "scripts", "disks", "distribution", "clusters.systems",
]  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent
SHOWN = 4000  # characters of what a program printed, where a test fails
LOOK_S = 0.25  # longest pause between two looks at a condition
PATIENCE_S = 60.0  # until a condition that must come true is given up; no test asserts a time


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    """Return as soon as `condition()` is true; fail when it does not come true at all."""
    began = looked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < began + PATIENCE_S, f"did not come true: {what or condition}"
        # A look may cost a process or more: as much time is left to whom it waits for.
        time.sleep(min(max(0.01, now - looked), LOOK_S))
        looked = time.monotonic()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def is_running(pid: int) -> bool:
    """Whether a process lives; one that has ended and waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Program(subprocess.Popen):
    """A started program whose output is kept in files."""

    def __init__(self, command: list[str], world: World, **kwargs: object) -> None:
        world.count += 1
        self.out_path = world.path / f"out-{world.count}"
        self.err_path = world.path / f"err-{world.count}"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            super().__init__(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                cwd=world.path, env=world.env, start_new_session=True, **kwargs,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self.out_path.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.err_path.read_text(errors="replace")

    def finish(self, status: int | None = 0) -> str:
        """Wait for the end; give what it printed. `status`: the one it must end with."""
        try:
            self.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGABRT)  # faulthandler shows where it hangs
            self.wait(PATIENCE_S)
            pytest.fail(f"hangs: {self.args}\n{self.out}\n{self.err}")
        if status is not None:
            assert self.returncode == status, f"{self.args}\n{self.out}\n{self.err}"
        return self.out


class World:
    """An environment of its own: home, key, name server port, working directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.ns_port = free_port()
        self.env = {
            **{name: value for name, value in os.environ.items() if not _ours(name)},
            "HOME": str(path),
            "PYRO_NS_PORT": str(self.ns_port),
            "MASTERSLAVE_BROADCAST": "0",
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",
            "COLUMNS": "200",
        }
        self.programs: list[Program] = []

    def write(self, name: str, text: str) -> Path:
        """A file in the working directory; the text may be indented."""
        path = self.path / name
        path.write_text(textwrap.dedent(text))
        return path

    def start(self, *command: object) -> Program:
        """Start a program: `command` are the arguments of the Python interpreter."""
        program = Program([sys.executable, *map(str, command)], self)
        self.programs.append(program)
        return program

    def script(self, text: str, *arguments: object, name: str = "script.py") -> Program:
        """Write a script and start it."""
        return self.start(self.write(name, text), *arguments)

    def task_manager(self, *arguments: object) -> Program:
        """Start ``task_manager ARGUMENTS``."""
        return self.start("-m", "masterslave", *arguments)

    def start_name_server(self) -> Program:
        """Start Pyro's own, return when it is there."""
        where = ("-n", "127.0.0.1", "-p", self.ns_port)
        program = self.start("-m", "Pyro5.nameserver", *where, "-x")
        wait_until(lambda: _answers(self.ns_port), "the name server is there")
        return program

    def names(self) -> Any:
        """The name server, spoken to as any program may."""
        import Pyro5.client

        return Pyro5.client.Proxy(f"PYRO:Pyro.NameServer@127.0.0.1:{self.ns_port}")

    def enter(self, label: str, address: str) -> None:
        """Put an entry into the name server, as anyone can."""
        with self.names() as names:
            name = f"TaskManager.{label}"
            names.register(name, f"PYRO:{name}@{address}", metadata={address})

    def processes(self) -> list[psutil.Process]:
        """All that lives of what was started here; they know each other by their home."""
        from leftovers import live_processes

        return live_processes(lambda environment: environment.get("HOME") == str(self.path))

    def end(self) -> None:
        """End what still runs, orphans as well, and what it starts meanwhile."""

        def kill() -> bool:
            processes = self.processes()
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return not processes

        wait_until(kill, "everything is ended")
        for program in self.programs:
            program.wait()


class Impostor(threading.Thread):
    """Some other program that has a port: answers each connection by `answer(socket)`."""

    def __init__(self, answer: Callable[[socket.socket], object], port: int = 0) -> None:
        super().__init__(daemon=True)
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", port))
        self.visits = 0
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.visits += 1
            with client, contextlib.suppress(OSError):
                client.settimeout(PATIENCE_S)
                self._answer(client)

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.join()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


def _ours(name: str) -> bool:
    return name.startswith(("MASTERSLAVE_", "PYRO_")) or bool(re.match("(OMP|MKL)_NUM", name))


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants that live."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def shut_down_masters() -> list[str]:
    """Shut down the masters in this process that nobody has shut down; give their labels."""
    from masterslave import MasterProcess

    masters = [found for found in gc.get_objects() if isinstance(found, MasterProcess)]
    left = [m for m in masters if vars(m).get("_down") is False]  # it has been started
    for master in left:
        master.shutdown()
    return [master.label for master in left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what the programs that it started have printed."""
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.when == "call" and report.failed and isinstance(world, World):
        for program in world.programs:
            name = " ".join(map(str, program.args))  # type: ignore[union-attr]
            said = f"{program.out[-SHOWN:]}{program.err[-SHOWN:]}"
            report.sections.append((f"status {program.poll()} of {name}", said))
    return report


@pytest.fixture
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> Iterator[World]:
    """A world of its own; this process lives in it as well, and must have left it at the end."""
    from leftovers import SESSION, library_threads  # only pytest may be the first to import it

    world = World(tmp_path)
    threads = set(library_threads())

    def left() -> list[str]:
        return sorted(thread.name for thread in set(library_threads()) - threads)

    for name in [name for name in os.environ if _ours(name) and name != "MASTERSLAVE_CI"]:
        monkeypatch.delenv(name)  # of CI the tests must know: there they may not skip
    for name in ("HOME", "PYRO_NS_PORT", "MASTERSLAVE_BROADCAST"):
        monkeypatch.setenv(name, world.env[name])
    import Pyro5

    monkeypatch.setattr(Pyro5.config, "NS_PORT", world.ns_port)
    try:
        yield world
    finally:
        world.end()
        if names := left():
            labels = shut_down_masters()
            ended = pytestconfig.stash[SESSION].wait_for_end(left)
            if labels or not ended:
                pytest.fail(
                    "the test has left threads of the library in this process: "
                    f"{', '.join(names)}; masters that it has not shut down: {labels}",
                    pytrace=False,
                )

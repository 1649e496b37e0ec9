"""A pytest plugin: a session that leaves something behind fails, and says what.

At its end no process that a test has started may live, no file may be left in shared memory, and
in the processes that ran the tests no internet socket may be open and no thread of the library may
run. With pytest-xdist the workers look into themselves; the controller does the rest, when they
have ended.

What a session started is known by a mark in its environment, which every child inherits.
"""

from __future__ import annotations

import contextlib
import gc
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

MARK = "TEST_SESSIONS"  # the marks of this session and of those around it, with commas between
SHARED_MEMORY = Path("/dev/shm")
LIBRARY_THREADS = (
    "client", "client-receiver", "executor", "folder-in", "folder-out", "masterslave-claim",
    "name-server", "name-server-end", "pump", "pump-fetcher", "pump-submitter", "pyro-answer",
    "pyro-server", "registration", "shortcuts", "uplink-fetcher", "uplink-sender", "watchdog",
    "Pyro-Worker", "housekeeper", "oneway-call",  # Pyro's own, inside the library's server
)  # fmt: skip


# --- what there is --------------------------------------------------------------------------


def live_processes(belongs: Callable[[Mapping[str, str]], bool]) -> list[psutil.Process]:
    """Processes whose environment, as they were started with, is told apart by `belongs`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if not ended and belongs(process.environ()):
                found.append(process)
    return found


def marked_processes(mark: str) -> list[psutil.Process]:
    return live_processes(lambda environment: mark in environment.get(MARK, "").split(","))


def shared_memory() -> set[str]:
    """The names of this user's files in shared memory."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for path in SHARED_MEMORY.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if status.st_uid == os.getuid() and stat.S_ISREG(status.st_mode):
                    found.add(path.name)
    return found


def library_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(LIBRARY_THREADS)]


def open_sockets() -> list[str]:
    """The internet sockets of this process."""
    gc.collect()  # what is in a reference cycle is closed by its collection
    found = []
    for sock in psutil.Process().net_connections(kind="inet"):
        ends = " to ".join(f"{end.ip}:{end.port}" for end in (sock.laddr, sock.raddr) if end)
        found.append(f"{sock.status} {ends}".strip())
    return found


# --- what is left of a session --------------------------------------------------------------


class Session:
    """What a session has found before its tests, and what it finds after them."""

    def __init__(self, config: pytest.Config) -> None:
        self.patience_s = float(config.getini("leftovers_patience_s"))
        self.mark = uuid.uuid4().hex
        self.shared_before = shared_memory()
        self.found: list[str] = []

    def wait_for_end(self, of: Callable[[], Collection[Any]]) -> bool:
        """Return when nothing of that is left; False when it stays beyond the patience."""
        deadline = time.monotonic() + self.patience_s
        while (left := of()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not left

    def look_inside(self, where: str) -> None:
        """What this process still holds. `where`: its name in the report."""
        self._keep(lambda: [f"thread {t.name} in {where}" for t in library_threads()])
        self._keep(lambda: [f"socket {sock} in {where}" for sock in open_sockets()])

    def look_outside(self) -> None:
        """What has been left to this machine."""
        self._keep(lambda: [_describe(process) for process in self._processes()])
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        suspects = shared_memory() - self.shared_before
        self._keep(lambda: [f"file {SHARED_MEMORY / s}" for s in suspects & shared_memory()])

    def _processes(self) -> list[psutil.Process]:
        # A fork shows the environment of its origin: unmarked if that is this very process.
        children = psutil.Process().children(recursive=True)
        forked = [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return [p for p in {*marked_processes(self.mark), *forked} if not _is_pythons(p)]

    def _keep(self, find: Callable[[], list[str]]) -> None:
        """Take note of what does not go within the patience."""
        if not self.wait_for_end(find):
            self.found += find()


def _is_pythons(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's helper, which lives until the process of the session ends."""
    with contextlib.suppress(psutil.Error):
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


def _describe(process: psutil.Process) -> str:
    command, test = "", "an unknown test"
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline()) or process.name()
        test = process.environ().get("PYTEST_CURRENT_TEST", test)
    return f"process {process.pid} of {test}: {command[:200]}"


# --- the plugin -----------------------------------------------------------------------------

SESSION = pytest.StashKey[Session]()


def _is_xdist_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("leftovers_patience_s", "how long to wait for what is about to end", default="30")


def pytest_configure(config: pytest.Config) -> None:
    session = config.stash[SESSION] = Session(config)
    if not _is_xdist_worker(config):
        os.environ[MARK] = ",".join(filter(None, [os.environ.get(MARK), session.mark]))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _is_xdist_worker(config):
        os.environ[MARK] = os.environ[MARK].removesuffix(config.stash[SESSION].mark).strip(",")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """An xdist worker has ended: take over what it has found inside itself."""
    output = getattr(node, "workeroutput", {})  # one that crashed has none
    node.config.stash[SESSION].found += output.get("leftovers", [])


@pytest.hookimpl(trylast=True)  # after fixtures are torn down and xdist's workers have ended
def pytest_sessionfinish(session: pytest.Session) -> None:
    here = session.config.stash[SESSION]
    if _is_xdist_worker(session.config):
        here.look_inside(session.config.workerinput["workerid"])
        session.config.workeroutput["leftovers"] = here.found
        return
    here.look_inside("the process of the session")
    here.look_outside()
    if here.found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    found = config.stash[SESSION].found
    if found:
        terminalreporter.section("left behind", red=True, bold=True)
        for line in found:
            terminalreporter.line(line)

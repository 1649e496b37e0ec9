"""A worker process as its supervisor sees it: its environment, its end, the story of its death."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import is_running, wait_until

from masterslave.payload import Codec
from masterslave.pipe import PipeClosed
from masterslave.slavecode import script_record
from masterslave.workerprocess import WorkerProcess, worker_command, worker_environment

SCRIPT = """
import os, subprocess, sys
from masterslave import startSlaveProcess

def do_environment(name):
    return os.environ.get(name)

def do_write(text, size):
    os.write(2, text * size)

def do_die(text, number):
    sys.stderr.write(text)
    sys.stderr.flush()
    os.kill(os.getpid(), number)

def do_leave(status):
    os._exit(status)

def do_child():
    return subprocess.Popen(["sleep", "1000"]).pid

startSlaveProcess()
"""


class Seat:
    """Sits where the supervisor sits, with one worker."""

    def __init__(self, path: Path) -> None:
        script = path / "script.py"
        script.write_text(SCRIPT)
        self.process = WorkerProcess(0, "label", script_record(script))
        self.heard: list[list[Any]] = []

    def hear(self) -> None:
        try:
            self.heard += self.process.pipe.receive()
        except PipeClosed:
            self.process.pipe_closed = True
        if not self.process.stderr_ended:
            self.process.relay_stderr()

    def wait_for(self, kind: str) -> list[Any]:
        def heard() -> bool:
            self.hear()
            return any(message[0] == kind for message in self.heard)

        wait_until(heard, kind)
        return next(message for message in self.heard if message[0] == kind)

    def send(self, tag: str, *parameters: Any) -> None:
        self.wait_for("ready")
        task = ("x_0", tag, 1, Codec().encode(parameters), None)
        self.process.pipe.send(["tasks", [task]])

    def run(self, tag: str, *parameters: Any) -> Any:
        self.send(tag, *parameters)
        _, completion = self.wait_for("done")
        return Codec().decode(completion[3])

    def wait_for_end(self) -> str:
        wait_until(self.process.has_ended, "the worker ends")
        self.process.close()
        return self.process.story()


@pytest.fixture
def seat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Seat]]:
    monkeypatch.chdir(tmp_path)
    seats: list[Seat] = []

    def take() -> Seat:
        seats.append(Seat(tmp_path))
        return seats[-1]

    yield take
    for each in seats:
        each.process.kill()
        wait_until(each.process.has_ended)
        if not each.process.stderr.closed:
            each.process.close()


# --- before it starts -----------------------------------------------------------------------


def test_the_command_of_a_worker() -> None:
    python, option, boot = worker_command(7, 4711)
    assert (python, option) == (sys.executable, "-c")
    assert boot.endswith("w.main(7, 4711, None, None)")
    compile(boot, "boot", "exec")


def test_numerical_libraries_get_one_thread_unless_the_user_said_otherwise() -> None:
    environment = worker_environment({"HOME": "/home/x", "MKL_NUM_THREADS": "4"})
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
    assert environment["MKL_NUM_THREADS"] == "4"
    assert environment["HOME"] == "/home/x"


@pytest.mark.parametrize(("set_to", "seen"), [(None, "1"), ("3", "3")])
def test_a_worker_sees_that_environment(
    seat: Callable[[], Seat],
    monkeypatch: pytest.MonkeyPatch,
    set_to: str | None,
    seen: str,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_to is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    assert seat().run("environment", "OMP_NUM_THREADS") == seen
    assert os.environ.get("OMP_NUM_THREADS") == set_to  # ours is as it was


# --- its life -------------------------------------------------------------------------------


def test_a_worker_tells_when_it_is_ready_and_what_it_handles(seat: Callable[[], Seat]) -> None:
    message = seat().wait_for("ready")
    assert message == ["ready", ["child", "die", "environment", "leave", "write"], 120.0]


def test_a_worker_that_lives_has_not_ended(seat: Callable[[], Seat]) -> None:
    worker = seat()
    worker.wait_for("ready")
    assert not worker.process.has_ended()
    assert worker.process.story().endswith(" is running")


def test_a_worker_that_is_asked_leaves_by_itself(seat: Callable[[], Seat]) -> None:
    worker = seat()
    worker.wait_for("ready")
    worker.process.ask_to_leave()
    story = worker.wait_for_end()
    assert worker.process.left_by_itself()
    assert story.endswith(" ended with exit status 0")


def test_a_worker_whose_supervisor_closes_the_pipe_leaves(seat: Callable[[], Seat]) -> None:
    worker = seat()
    worker.wait_for("ready")
    worker.process.pipe.close()
    wait_until(worker.process.has_ended)
    assert worker.process.story().endswith(" ended with exit status 0")


def test_a_pid_descriptor_tells_of_the_end(seat: Callable[[], Seat]) -> None:
    import select

    worker = seat()
    if worker.process.exit_descriptor is None:
        pytest.skip("this system has no pidfd")
    worker.wait_for("ready")
    poll = select.poll()
    poll.register(worker.process.exit_descriptor, select.POLLIN)
    assert poll.poll(0) == []
    worker.process.kill()
    assert poll.poll(60000)


# --- its end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGSEGV, "SIGSEGV (signal 11)"),
        (signal.SIGKILL, "SIGKILL (signal 9)"),
        (signal.SIGTERM, "SIGTERM (signal 15)"),
        (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_the_story_names_process_host_and_signal(
    seat: Callable[[], Seat], number: int, name: str
) -> None:
    worker = seat()
    worker.send("die", "first line\nsecond line\n", int(number))
    story = worker.wait_for_end()
    head, *tail = story.splitlines()
    assert head.startswith("PID ")
    assert f" on {platform.node()} ({platform.machine()}) was killed by {name}" in head
    assert head.endswith("; last lines of standard error:")
    assert tail[:2] == ["    first line", "    second line"]
    assert not worker.process.left_by_itself()


def test_the_story_names_the_exit_status(seat: Callable[[], Seat]) -> None:
    worker = seat()
    worker.send("leave", 7)
    assert worker.wait_for_end().endswith(" ended with exit status 7")
    assert not worker.process.left_by_itself()


def test_the_story_keeps_the_last_lines_only(seat: Callable[[], Seat]) -> None:
    worker = seat()
    text = "".join(f"line {i}\n" for i in range(500)) + "no end of line"
    worker.send("die", text, int(signal.SIGKILL))
    tail = worker.wait_for_end().splitlines()[1:]
    assert tail[-1] == "    no end of line"
    assert tail[-2] == "    line 499"
    assert 10 < len(tail) < 30


def test_endless_lines_do_not_fill_the_memory(seat: Callable[[], Seat]) -> None:
    worker = seat()
    worker.run("write", b"x", 1 << 22)
    worker.process.kill()
    assert len(worker.wait_for_end()) < 10_000


def test_bytes_that_are_no_text_do_no_harm(seat: Callable[[], Seat]) -> None:
    worker = seat()
    worker.run("write", b"\xff\xfe\n", 3)
    worker.process.kill()
    assert "\ufffd" in worker.wait_for_end()


def test_standard_error_is_passed_on(
    seat: Callable[[], Seat], capsys: pytest.CaptureFixture[str]
) -> None:
    worker = seat()
    worker.run("write", b"look here\n", 2)
    worker.process.kill()
    worker.wait_for_end()
    assert capsys.readouterr().err == "look here\nlook here\n"


def test_what_it_started_is_killed_with_it(seat: Callable[[], Seat]) -> None:
    worker = seat()
    child = worker.run("child")
    assert is_running(child)
    worker.process.kill()
    worker.wait_for_end()
    wait_until(lambda: not is_running(child))


def test_what_it_started_is_killed_when_it_ends_by_itself(seat: Callable[[], Seat]) -> None:
    worker = seat()
    child = worker.run("child")
    assert is_running(child)
    worker.process.ask_to_leave()
    assert worker.wait_for_end().endswith(" ended with exit status 0")
    wait_until(lambda: not is_running(child))


def test_waiting_kills_one_that_does_not_leave(seat: Callable[[], Seat]) -> None:
    worker = seat()
    worker.wait_for("ready")
    worker.process.wait_or_kill(0.0)
    assert worker.wait_for_end().endswith("was killed by SIGKILL (signal 9)")


def test_a_worker_dies_with_its_supervisor(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    program = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).resolve().parent.parent)!r})\n"
        "from masterslave.workerprocess import WorkerProcess\n"
        "from masterslave.slavecode import script_record\n"
        "worker = WorkerProcess(0, 'label', script_record('script.py'))\n"
        "while not (heard := worker.pipe.receive()): time.sleep(0.01)\n"
        "print(worker.story().split()[1], flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as supervisor:
        try:
            assert supervisor.stdout is not None
            worker = int(supervisor.stdout.readline())
            assert is_running(worker)
        finally:
            supervisor.kill()
    wait_until(lambda: not is_running(worker))

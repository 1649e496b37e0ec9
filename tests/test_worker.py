"""A worker from within: loading its code, running tasks, talking to its supervisor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until

from masterslave import DataNotFound, GlobalStateValue, PayloadError, SlaveProcess, slavecode
from masterslave.payload import Codec
from masterslave.pipe import PipeClosed
from masterslave.worker import active, handlers_in, handlers_of
from masterslave.workerprocess import WorkerProcess

HANDLERS = """
import os, sys, threading
from masterslave import startSlaveProcess

def do_add(x, y):
    return x + y

def do_divide(x, y):
    return x / y

def do_exit(status):
    sys.exit(status)

def do_interrupt():
    raise KeyboardInterrupt("nobody pressed a key")

def do_lock():
    return threading.Lock()

def do_where():
    return os.getcwd(), sys.argv, sys.path, __name__, __file__

not_a_handler = do_ = 3
"""
TAGS = ["add", "divide", "exit", "interrupt", "lock", "where"]


class Seat:
    """Sits where the supervisor sits, with one worker."""

    def __init__(self, record: slavecode.Record) -> None:
        self.process = WorkerProcess(0, "label", record)
        self.heard: list[list[Any]] = []
        self.count = 0

    def next(self) -> list[Any]:
        """The next message of the worker; ["closed"] at the end."""

        def heard() -> bool:
            if not self.process.stderr_ended:
                self.process.relay_stderr()
            try:
                for message in self.process.pipe.receive():
                    if message[0] == "posted":
                        self.heard += [["done", post[1:]] for post in message[1]]
                    else:
                        self.heard.append(message)
            except PipeClosed:
                self.heard.append(["closed"])
            return bool(self.heard)

        wait_until(heard, "a message")
        return self.heard.pop(0)

    def send(self, *message: Any) -> None:
        self.process.pipe.send(list(message))

    def assign(self, tag: str, *parameters: Any) -> str:
        task_id = f"{tag}_{self.count}"
        self.count += 1
        self.send("tasks", [(task_id, tag, self.count, Codec().encode(parameters), None)])
        return task_id

    def outcome(self, tag: str, *parameters: Any) -> tuple[str, Any, str]:
        """Run a task; gives outcome, result or exception, detail."""
        task_id = self.assign(tag, *parameters)
        kind, completion = self.next()
        assert kind == "done"
        assert completion[:2] == [task_id, self.count]
        assert completion[4] >= 0
        return completion[2], Codec().decode(completion[3]), completion[5]

    def end(self) -> None:
        self.process.kill()
        wait_until(self.process.has_ended)
        self.process.close()


Start = Callable[..., Seat]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a worker on a script's text, or on a record."""
    monkeypatch.chdir(tmp_path)
    seats: list[Seat] = []

    def start(source: str | slavecode.Record, **changes: Any) -> Seat:
        if isinstance(source, str):
            (tmp_path / "script.py").write_text(source)
            source = slavecode.script_record(tmp_path / "script.py")
        seats.append(Seat({**source, **changes}))
        return seats[-1]

    yield start
    for seat in seats:
        seat.end()


def start_ready(start: Start, ending: str = "startSlaveProcess()\n") -> Seat:
    seat = start(HANDLERS + ending)
    assert seat.next() == ["ready", TAGS, 120.0]
    return seat


# --- finding handlers -----------------------------------------------------------------------


def test_handlers_in_a_namespace_are_callables_with_a_tag() -> None:
    namespace = {"do_sqrt": abs, "do_": abs, "do_x": 3, "undo_y": abs, "do_a_b": len}
    assert handlers_in(namespace) == {"sqrt": abs, "a_b": len}


def test_handlers_of_an_object_are_its_methods_inherited_ones_too() -> None:
    class Base(SlaveProcess):
        def do_one(self) -> int:
            return 1

    class Derived(Base):
        do_constant = 5

        def do_two(self) -> int:
            return 2

        @staticmethod
        def do_three() -> int:
            return 3

    handlers = handlers_of(Derived("label"))
    assert sorted(handlers) == ["one", "three", "two"]
    assert [handlers[tag]() for tag in sorted(handlers)] == [1, 3, 2]


def test_this_process_is_no_worker() -> None:
    assert active() is None


# --- running tasks --------------------------------------------------------------------------


def test_a_result_comes_back(start: Start) -> None:
    seat = start_ready(start)
    assert seat.outcome("add", 2, 3) == ("result", 5, "")
    assert seat.outcome("add", "a", "b") == ("result", "ab", "")


def test_tasks_are_run_in_order(start: Start) -> None:
    seat = start_ready(start)
    ids = [seat.assign("add", i, i) for i in range(50)]
    done = [seat.next()[1] for _ in ids]
    assert [completion[0] for completion in done] == ids
    assert [Codec().decode(completion[3]) for completion in done] == [2 * i for i in range(50)]


def test_an_exception_comes_back_with_the_traceback_of_the_handler(start: Start) -> None:
    seat = start_ready(start)
    outcome, error, detail = seat.outcome("divide", 1, 0)
    assert outcome == "exception"
    assert type(error) is ZeroDivisionError
    lines = detail.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('script.py", line 9, in do_divide')  # no frame of the worker's own
    assert lines[2].strip() == "return x / y"
    assert lines[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("tag", "parameters", "kind"),
    [("exit", (3,), SystemExit), ("interrupt", (), KeyboardInterrupt), ("add", (1,), TypeError)],
)
def test_whatever_a_handler_raises_is_the_tasks(
    start: Start, tag: str, parameters: tuple[Any, ...], kind: type[BaseException]
) -> None:
    seat = start_ready(start)
    outcome, error, _ = seat.outcome(tag, *parameters)
    assert outcome == "exception"
    assert type(error) is kind
    assert seat.outcome("add", 1, 1)[1] == 2  # the worker goes on


def test_a_result_that_cannot_be_pickled(start: Start) -> None:
    outcome, error, detail = start_ready(start).outcome("lock")
    assert outcome == "exception"
    assert isinstance(error, PayloadError)
    assert "the result of task lock_0" in str(error)
    assert "lock" in detail.splitlines()[-1]


def test_parameters_that_cannot_be_unpickled(start: Start) -> None:
    seat = start_ready(start)
    seat.send("tasks", [("add_9", "add", 1, [b"garbage"], None)])
    completion = seat.next()[1]
    assert completion[2] == "exception"
    assert isinstance(Codec().decode(completion[3]), PayloadError)
    assert seat.outcome("add", 1, 1)[1] == 2


def test_a_worker_leaves_when_told(start: Start) -> None:
    seat = start_ready(start)
    seat.send("end")
    assert seat.next() == ["closed"]
    wait_until(seat.process.has_ended)
    assert seat.process.left_by_itself()


def test_a_termination_test_ends_the_slave_after_the_current_task(start: Start) -> None:
    seat = start(
        """
from masterslave import SlaveProcess
class Slave(SlaveProcess):
    def do_echo(self, x):
        self.last = x
        return x
    def terminationTest(self):
        return self.last == "enough"
Slave("label", watchdog_period=7.5).start()
"""
    )
    assert seat.next() == ["ready", ["echo"], 7.5]
    for x in ("go on", "enough", "too much"):
        seat.assign("echo", x)
    assert [Codec().decode(seat.next()[1][3]) for _ in range(2)] == ["go on", "enough"]
    assert seat.next() == ["leaving"]
    seat.send("end")
    assert seat.next() == ["closed"]  # and no word of the third task


def test_one_object_serves_all_tasks_of_a_worker(start: Start) -> None:
    seat = start(
        """
from masterslave import SlaveProcess
class Slave(SlaveProcess):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.count = 0
    def do_count(self):
        self.count += 1
        return self.count
Slave("label").start()
"""
    )
    assert seat.next()[0] == "ready"
    assert [seat.outcome("count")[1] for _ in range(3)] == [1, 2, 3]


# --- global state ---------------------------------------------------------------------------


def test_a_global_state_value_is_asked_for_once(start: Start) -> None:
    seat = start_ready(start)
    value = GlobalStateValue(1, "x")
    seat.assign("add", value, value)
    assert seat.next() == ["need", "state_1_x"]
    seat.send("data", "state_1_x", Codec().encode(21), "")
    assert Codec().decode(seat.next()[1][3]) == 42
    assert seat.outcome("add", value, 1)[1] == 22  # without asking again


def test_a_global_state_value_that_was_deleted_is_asked_for_again(start: Start) -> None:
    seat = start_ready(start)
    value = GlobalStateValue(1, "x")
    seat.assign("add", value, 1)
    assert seat.next()[0] == "need"
    seat.send("data", "state_1_x", Codec().encode(1), "")
    assert seat.next()[0] == "done"
    seat.send("forget", ["state_1_x"])
    seat.assign("add", value, 1)
    assert seat.next() == ["need", "state_1_x"]
    seat.send("data", "state_1_x", None, "no data item 'state_1_x'")
    completion = seat.next()[1]
    error = Codec().decode(completion[3])
    assert isinstance(error, DataNotFound)
    assert "state_1_x" in str(error)
    assert seat.outcome("add", 1, 1)[1] == 2


def test_what_the_shortcut_says_is_deleted_is_asked_for_anew(start: Start) -> None:
    """The supervisor may still have it, and be told of that later."""
    seat = start_ready(start)
    seat.send("forget_beside", ["state_1_x", "state_1_y"])
    seat.assign("add", GlobalStateValue(1, "x"), 1)
    assert seat.next() == ["need_anew", "state_1_x"]
    seat.send("data", "state_1_x", Codec().encode(1), "")  # it was set again
    assert Codec().decode(seat.next()[1][3]) == 2
    seat.send("forget", ["state_1_x", "state_1_y"])
    seat.assign("add", GlobalStateValue(1, "y"), 1)
    assert seat.next() == ["need", "state_1_y"], "by now it knows"
    seat.send("data", "state_1_y", Codec().encode(2), "")
    assert Codec().decode(seat.next()[1][3]) == 3


def test_tasks_that_come_while_a_value_is_awaited_are_run_later(start: Start) -> None:
    seat = start_ready(start)
    seat.assign("add", GlobalStateValue(1, "x"), 1)
    seat.assign("add", 100, 1)
    assert seat.next() == ["need", "state_1_x"]
    seat.send("data", "state_1_x", Codec().encode(1), "")
    assert [Codec().decode(seat.next()[1][3]) for _ in range(2)] == [2, 101]


def test_a_worker_that_awaits_a_value_leaves_when_told(start: Start) -> None:
    seat = start_ready(start)
    seat.assign("add", GlobalStateValue(1, "x"), 1)
    assert seat.next() == ["need", "state_1_x"]
    seat.send("end")
    assert seat.next() == ["closed"]  # and the task has no outcome


# --- loading the code -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1\n", "it ended without starting a slave: call runJob or startSlaveProcess in it"),
        ("import sys\nsys.exit(3)\n", "it left with exit status 3 before it started a slave"),
        ("def do_x(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        (
            "import masterslave\nmasterslave.startSlaveProcess()\n",
            "handles no tasks: define do_<tag> in it",
        ),
        (
            "from masterslave import *\nrunJob('other', MasterProcess, SlaveProcess)\n",
            "it ended without starting a slave",
        ),
        (
            "from masterslave import *\nSlaveProcess('label', watchdog_period=-1).start()\n",
            "watchdog_period=-1: must be a positive number",
        ),
    ],
    ids=[
        "no slave", "exit", "syntax", "import", "interrupt", "no handlers", "other label", "period"
    ],
)  # fmt: skip
def test_code_that_does_not_load_is_reported(start: Start, source: str, reason: str) -> None:
    seat = start(source)
    kind, text, problem = seat.next()
    assert kind == "failed"
    assert reason in problem
    assert "\n" not in text
    assert text.startswith("the slave's code (")
    assert "script.py) does not load: " in text
    assert reason in text
    assert seat.next() == ["closed"]


def test_a_module_is_loaded_by_its_name(start: Start, tmp_path: Path) -> None:
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    record = slavecode.module_record("my_handlers")
    seat = start({**record, "sys_path": [*record["sys_path"], str(tmp_path)]})
    assert seat.next() == ["ready", TAGS, 120.0]
    assert seat.outcome("add", 1, 2)[1] == 3
    assert seat.outcome("where")[1][3] == "my_handlers"


def test_a_module_that_is_not_there_is_reported(start: Start) -> None:
    kind, text, _ = start(slavecode.module_record("no_such_module")).next()
    assert kind == "failed"
    assert "the slave's code (no_such_module) does not load" in text


def test_a_class_of_an_interactive_session_travels_by_value(start: Start) -> None:
    class Slave(SlaveProcess):
        def do_add(self, x: int, y: int) -> int:
            return x + y

    seat = start(slavecode.object_record((Slave, 3.0)))
    assert seat.next() == ["ready", ["add"], 3.0]
    assert seat.outcome("add", 1, 2)[1] == 3


def test_an_object_that_cannot_be_loaded_is_reported(start: Start) -> None:
    record = slavecode.object_record(None)
    kind, text, _ = start({**record, "frame": [b"garbage"]}).next()
    assert kind == "failed"
    assert "(a class of an interactive session) does not load" in text


def test_a_script_finds_itself_as_if_it_were_run(start: Start, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    seat = start(
        HANDLERS + "if __name__ == '__main__':\n    startSlaveProcess()\n",
        cwd=str(other),
        argv=["script.py", "--fast"],
        sys_path=["/no/such/directory", str(other)],
    )
    assert seat.next()[0] == "ready"
    cwd, argv, path, name, file = seat.outcome("where")[1]
    assert cwd == str(other)
    assert argv == ["script.py", "--fast"]
    assert path[0] == str(tmp_path)  # where the script is, as when Python runs it
    assert str(other) in path
    assert "/no/such/directory" not in path
    assert name == "__main__"
    assert file == str(tmp_path / "script.py")


def test_a_working_directory_that_is_not_here_is_said(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    seat = start(HANDLERS + "startSlaveProcess()\n", cwd="/no/such/directory")
    assert seat.next()[0] == "ready"
    assert seat.outcome("where")[1][0] == os.getcwd()
    seat.end()
    err = capsys.readouterr().err
    assert "the master's working directory /no/such/directory is not here" in err
    assert err.count("\n") == 1
    seat.end = lambda: None  # type: ignore[method-assign]


def test_the_traceback_shows_lines_of_a_script_that_is_not_here(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(HANDLERS + "startSlaveProcess()\n")
    record = slavecode.script_record(tmp_path / "script.py")
    (tmp_path / "script.py").unlink()
    seat = start(record)
    assert seat.next()[0] == "ready"
    assert "    return x / y" in seat.outcome("divide", 1, 0)[2]


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_what_a_handler_starts_does_not_inherit_the_pipe(start: Start) -> None:
    seat = start(
        """
import subprocess, sys
from masterslave import startSlaveProcess
def do_sockets():
    code = (
        "import os\\n"
        "for name in os.listdir('/proc/self/fd'):\\n"
        "    try:\\n"
        "        print(os.readlink('/proc/self/fd/' + name))\\n"
        "    except OSError:\\n"
        "        pass\\n"
    )
    out = subprocess.run([sys.executable, "-c", code], stdout=-1, text=True, close_fds=False)
    return [line for line in out.stdout.splitlines() if line.startswith("socket")]
startSlaveProcess()
"""
    )
    assert seat.next()[0] == "ready"
    assert seat.outcome("sockets")[1] == []

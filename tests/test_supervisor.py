"""A slave's supervisor: real workers, and a task manager of the test's own process."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PATIENCE_S, is_running, wait_until
from test_uplink import Line

from masterslave import ConnectionFailed, GlobalStateValue, Settings, SlaveError, TaskManager
from masterslave.payload import Codec
from masterslave.records import Delivery
from masterslave.slavecode import script_record
from masterslave.supervisor import Supervisor

SETTINGS = Settings(Path("unused"), grace_s=5.0, poll_s=0.2)
SCRIPT = """
import os, signal, sys, time
from masterslave import SlaveProcess

def note(text):
    with open("notes", "a") as file:
        file.write(text + chr(10))

class Slave(SlaveProcess):
    count = 0

    def do_echo(self, x):
        return x

    def do_pid(self):
        return os.getpid()

    def do_environment(self, name):
        return os.environ.get(name)

    def do_say(self, text):
        print(text, file=sys.stderr, flush=True)

    def do_kill(self):
        note("kill")
        os.kill(os.getpid(), signal.SIGKILL)

    def do_hold(self, name):
        note("begin " + name)
        while not os.path.exists(name):
            time.sleep(0.005)
        return name

    def do_tick(self):
        while not os.path.exists("enough"):
            note("tick")
            time.sleep(0.01)

    def do_count(self):
        self.count += 1
        return self.count

    def terminationTest(self):
        return self.count == 30

note("start")
try:
    os.mkdir("first")  # only one worker can
except FileExistsError:
    while os.path.exists("slow"):
        time.sleep(0.005)
while os.path.exists("slowest"):
    time.sleep(0.005)
Slave("job", watchdog_period=None).start()
"""


class Job:
    """A task manager, its client, and slaves that run in threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manager = TaskManager("job", SETTINGS)
        self.line = Line(self.manager)
        self.client: int = self.manager.registerProcess(None, "client")[0]
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def supervisor(self, workers: int = 1, script: str = SCRIPT, **settings: Any) -> Supervisor:
        path = self.path / "script.py"
        path.write_text(script)
        chosen = replace(SETTINGS, **settings)
        return Supervisor("job", self.line.connect, workers, chosen, script_record(path))

    def slave(self, workers: int = 1, **settings: Any) -> threading.Thread:
        """Start a slave, wait until a worker of it is ready."""
        before = len(self.ready())
        thread = threading.Thread(target=self._run, args=(self.supervisor(workers, **settings),))
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: len(self.ready()) > before, "the slave is ready")
        return thread

    def _run(self, supervisor: Supervisor) -> None:
        try:
            supervisor.run()
        except BaseException as error:
            self.errors.append(error)

    def ready(self) -> list[dict[str, Any]]:
        return [s for s in self.manager.status()["slaves"] if s["tags"] is not None]

    def request(self, tag: str, *parameters: Any, crash_limit: int = 5, timeout: Any = None) -> str:
        options = [0, timeout, 0, crash_limit, None]
        frame = Codec().encode(parameters)
        return self.manager.addTaskRequest(tag, frame, self.client, options)

    def outcome(self) -> Delivery:
        delivery = self.manager.getAnyResult(self.client, PATIENCE_S)
        assert delivery is not None, f"no result comes: {self.manager.status()}"
        return delivery

    def result(self) -> Any:
        delivery = self.outcome()
        assert delivery.outcome == "result", delivery.detail
        return Codec().decode(delivery.frame)

    def has_no_more_to_say(self, task_id: str) -> bool:
        """Whether the slave has told of the task's start, and does not stand in line for more."""
        told = self.manager._queue.tasks[task_id].started
        return told and len(self.manager._handout.waiters) == 0

    def notes(self, text: str) -> int:
        path = self.path / "notes"
        return path.read_text().splitlines().count(text) if path.exists() else 0

    def end(self) -> None:
        self.manager.terminate()
        for thread in self.threads:
            thread.join(PATIENCE_S / 3)
            ended = not thread.is_alive()
            while thread.is_alive():  # do not spoil the tests to come
                for pid in workers():
                    psutil.Process(pid).kill()
                thread.join(0.01)
            assert ended, "the slave does not end"


def workers() -> list[int]:
    """The worker processes that live; other tests may have left Python's resource tracker."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # which has ended by now
            if "resource_tracker" not in " ".join(child.cmdline()) and is_running(child.pid):
                found.append(child.pid)
    return found


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.chdir(tmp_path)
    job = Job(tmp_path)
    yield job
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    job.end()
    assert workers() == []
    with warnings.catch_warnings():  # one test, not each, is to tell of what was left open
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


# --- a slave's life -------------------------------------------------------------------------


def test_a_slave_works_until_the_job_is_over(job: Job) -> None:
    slave = job.slave(2)
    for i in range(100):
        job.request("echo", i)
    assert sorted(job.result() for _ in range(100)) == list(range(100))
    assert len(workers()) == 2
    job.manager.terminate()
    slave.join(PATIENCE_S)
    assert job.errors == []
    assert workers() == []
    assert job.manager.status()["slaves"] == []


def test_a_slave_tells_what_it_is(job: Job) -> None:
    job.slave(2)
    (row,) = job.ready()
    assert row["pid"] == os.getpid()
    assert row["workers"] == 2
    assert row["tags"] == [
        "count", "echo", "environment", "function-call", "hold", "kill", "pid", "say", "tick"
    ]  # fmt: skip


def test_the_code_that_the_master_keeps_is_used(job: Job) -> None:
    (job.path / "kept.py").write_text(SCRIPT)
    job.manager.storeData(slave_code=script_record(job.path / "kept.py"))
    supervisor = Supervisor("job", job.line.connect, 1, SETTINGS)
    thread = threading.Thread(target=supervisor.run)
    job.threads.append(thread)
    thread.start()
    job.request("echo", "kept")
    assert job.result() == "kept"


def test_no_code_at_all(job: Job) -> None:
    supervisor = Supervisor("job", job.line.connect, 1, SETTINGS)
    with pytest.raises(SlaveError, match="keeps no slave code"):
        supervisor.run()
    assert job.manager.status()["slaves"] == []


def test_no_master(job: Job) -> None:
    job.line.refused = 1
    with pytest.raises(ConnectionFailed, match="nobody is there"):
        job.supervisor().run()


@pytest.mark.parametrize("refused", [0, 1], ids=["no code", "no master"])
def test_a_slave_that_cannot_start_leaves_nothing_open(job: Job, refused: int) -> None:
    gc.collect()
    job.line.refused = refused
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        supervisor = Supervisor("job", job.line.connect, 1, SETTINGS)
        with pytest.raises((SlaveError, ConnectionFailed)):
            supervisor.run()
        del supervisor
        gc.collect()
    assert [str(w.message) for w in caught if w.category is ResourceWarning] == []


def test_a_slave_whose_workers_are_busy_hears_of_the_end_of_the_job(job: Job) -> None:
    slave = job.slave()
    task_id = job.request("hold", "never")
    wait_until(lambda: job.has_no_more_to_say(task_id))
    job.manager.terminate()
    slave.join(PATIENCE_S)
    assert not slave.is_alive()
    assert workers() == []


def test_a_slave_whose_workers_still_load_hears_of_the_end_of_the_job(job: Job) -> None:
    (job.path / "slowest").touch()
    slave = threading.Thread(target=job._run, args=(job.supervisor(2),))
    job.threads.append(slave)
    slave.start()
    wait_until(lambda: job.notes("start") == 2)
    job.manager.terminate()
    slave.join(PATIENCE_S)
    assert not slave.is_alive()
    assert workers() == []


def test_a_slave_ends_when_its_master_is_gone(job: Job) -> None:
    slave = job.slave(2, master_gone_s=0.2)
    job.request("hold", "a")
    wait_until(lambda: job.notes("begin a"))
    job.line.refused = 1_000_000
    job.line.plan = [("exchange", "before")]
    job.request("echo", 1)  # makes a call happen
    slave.join(PATIENCE_S)
    assert not slave.is_alive()
    assert workers() == []
    (error,) = job.errors
    assert isinstance(error, SlaveError)
    assert "the master has been gone for 0.2 s: nobody is there" in str(error)


# --- code that does not load ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "last_line"),
    [
        ("def do_x(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_module\n", "No module named 'no_such_module'"),
        ("raise ValueError('not today')\n", "ValueError: not today"),
        ("x = 1\n", "call runJob or startSlaveProcess in it"),
        ("from masterslave import *\nstartSlaveProcess()\n", "handles no tasks"),
    ],
    ids=["syntax", "import", "raises", "no slave", "no handlers"],
)
def test_code_that_does_not_load_is_told_to_the_master(
    job: Job, script: str, last_line: str
) -> None:
    with pytest.raises(SlaveError, match=r"script\.py\) does not load") as caught:
        job.supervisor(2, script=script).run()
    assert last_line in str(caught.value)
    (failure,) = job.manager.status()["failures"]
    assert failure.startswith(f"PID {os.getpid()} on ")
    assert last_line in failure
    assert job.manager.status()["slaves"] == []
    assert workers() == []


def test_workers_that_die_while_they_start_are_given_up(job: Job) -> None:
    script = (
        "import os, sys\n"
        "open('notes', 'a').write('start\\n')\n"
        "print('a library is missing', file=sys.stderr)\n"
        "os._exit(9)\n"
    )
    with pytest.raises(SlaveError, match="workers die while they start") as caught:
        job.supervisor(script=script).run()
    assert job.notes("start") == 3
    assert "ended with exit status 9" in str(caught.value)
    assert "a library is missing" in str(caught.value)
    (failure,) = job.manager.status()["failures"]
    assert failure.startswith(f"PID {os.getpid()} on ")


# --- workers --------------------------------------------------------------------------------


def test_a_worker_that_dies_is_replaced_and_its_task_blamed(job: Job) -> None:
    job.slave()
    job.request("pid")
    first = job.result()
    task_id = job.request("kill", crash_limit=2)
    delivery = job.outcome()
    assert (delivery.task_id, delivery.outcome) == (task_id, "crashed")
    assert job.notes("kill") == 2
    assert delivery.detail.count("SIGKILL") == 2
    assert f"PID {first} on " in delivery.detail
    job.request("pid")
    assert job.result() != first


def test_a_task_past_its_limit_is_stopped(job: Job) -> None:
    job.slave()
    job.request("hold", "never", timeout=0.1)
    delivery = job.outcome()
    assert delivery.outcome == "timed_out"
    assert "time limit of 0.1 s" in delivery.detail
    job.request("echo", 1)
    assert job.result() == 1


def test_a_cancelled_task_is_stopped(job: Job) -> None:
    job.slave()
    task_id = job.request("hold", "never")
    wait_until(lambda: job.has_no_more_to_say(task_id))
    (worker,) = workers()
    assert job.manager.cancelTask(task_id)
    wait_until(lambda: not is_running(worker), "its worker is killed")
    job.request("echo", 1)
    assert job.result() == 1


def test_a_worker_has_one_thread_per_library(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    job.slave()
    job.request("environment", "OMP_NUM_THREADS")
    assert job.result() == "1"
    job.request("environment", "MKL_NUM_THREADS")
    assert job.result() == "5"


def test_standard_error_is_passed_on(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.slave()
    job.request("say", "it is warm in here")
    job.result()
    seen = []

    def passed_on() -> bool:
        seen.append(capsys.readouterr().err)
        return "it is warm in here\n" in "".join(seen)

    wait_until(passed_on)
    assert "".join(seen).count("it is warm") == 1


def test_a_slave_takes_no_tasks_for_a_worker_that_still_loads(job: Job) -> None:
    (job.path / "slow").touch()  # all workers but the first one wait in their script
    job.slave(2)
    wait_until(lambda: job.notes("start") == 2)
    job.request("tick")
    wait_until(lambda: job.notes("tick") >= 1)
    task_id = job.request("echo", 1)
    wait_until(lambda: job.notes("tick") >= 45)  # time enough for thousands of calls to and fro
    task = job.manager._queue.tasks.get(task_id)
    (job.path / "enough").touch()
    (job.path / "slow").unlink()
    assert task is not None
    assert task.attempt < 10
    assert len(job.line.calls) < 100
    assert {job.result(), job.result()} == {None, 1}


# --- data items -----------------------------------------------------------------------------


def test_a_data_item_is_fetched_once_for_all_workers(job: Job) -> None:
    job.manager.storeData(state_1_x=Codec().encode("shared"))
    job.slave(2)
    for _ in range(50):
        job.request("echo", GlobalStateValue(1, "x"))
    assert {job.result() for _ in range(50)} == {"shared"}
    job.request("hold", "a")
    wait_until(lambda: job.notes("begin a"))
    job.request("echo", GlobalStateValue(1, "x"))  # by the other worker
    assert job.result() == "shared"
    # The master's code and the usual one, of which there is none here, and this.
    assert job.line.calls.count("retrieveData") == 3


def test_a_data_item_that_is_not_there(job: Job) -> None:
    job.slave()
    job.request("echo", GlobalStateValue(1, "x"))
    delivery = job.outcome()
    assert delivery.outcome == "exception"
    assert "DataNotFound" in delivery.detail
    assert "state_1_x" in delivery.detail


def test_a_data_item_that_was_deleted_is_forgotten(job: Job) -> None:
    job.manager.storeData(state_1_x=Codec().encode("shared"))
    job.slave()
    job.request("echo", GlobalStateValue(1, "x"))
    assert job.result() == "shared"
    job.manager.deleteData("state_1_x")
    wait_until(lambda: not job.manager._roster.slaves()[0].dropped_data, "the slave is told")
    job.request("echo", GlobalStateValue(1, "x"))
    assert job.outcome().outcome == "exception"


# --- connections that break -----------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_broken_connections_lose_and_double_nothing(job: Job, when: str) -> None:
    job.slave(2)
    count = 300
    job.line.plan = [("exchange", when)] * 10
    for i in range(count):
        job.request("echo", i, crash_limit=100)
    assert sorted(job.result() for _ in range(count)) == list(range(count))
    assert job.manager.numberOfTasks() == [{}, {}, {}]
    assert len(job.line.plan) < 10, "none of it has happened"
    assert job.manager.status()["delivered"] == count


def test_what_runs_while_the_connection_is_broken_is_not_run_twice(job: Job) -> None:
    job.slave(2)
    for name in "ab":
        job.request("hold", name)
        wait_until(lambda name=name: job.notes(f"begin {name}"))
    with job.line._lock:
        job.line.refused = 3
        job.line.plan = [("exchange", "before")]
    (job.path / "a").touch()  # its result is the call that breaks
    assert job.result() == "a"
    wait_until(lambda: job.manager.numberOfTasks()[1] == {"hold": 1}, "the other is adopted")
    (job.path / "b").touch()
    assert job.result() == "b"
    assert (job.notes("begin a"), job.notes("begin b")) == (1, 1)


# --- the end of a slave by its own will -----------------------------------------------------


@pytest.mark.parametrize("count", [1, 2], ids=["one worker", "two workers"])
def test_a_termination_test_ends_the_slave_in_order(job: Job, count: int) -> None:
    slave = job.slave(count)
    tasks = 1000
    for _ in range(tasks):  # tiny ones, of which the slave holds many in advance
        job.request("count", crash_limit=1)
    slave.join(PATIENCE_S)
    assert not slave.is_alive()
    assert job.errors == []
    waiting, running, finished = job.manager.numberOfTasks()
    assert running == {}
    assert waiting["count"] + finished["count"] == tasks
    assert max(job.result() for _ in range(finished["count"])) == 30


def test_what_others_run_is_finished_first(job: Job) -> None:
    slave = job.slave(2)
    job.request("hold", "a", crash_limit=1)
    wait_until(lambda: job.notes("begin a"))
    for _ in range(30):
        job.request("count")
    for _ in range(30):
        job.result()
    wait_until(lambda: len(workers()) >= 1)
    (job.path / "a").touch()
    assert job.result() == "a"
    slave.join(PATIENCE_S)
    assert not slave.is_alive()
    assert job.errors == []

"""Each row of the failure table, with real processes: the master lives in the test's process.

The journal and the budgets of disk and memory have tests of their own.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import Pyro5
import pytest
from conftest import PATIENCE_S, Program, World, family, is_running, wait_until

from masterslave import (
    MasterProcess,
    Observer,
    PayloadError,
    RemoteException,
    Settings,
    TaskRaisedException,
    TaskTimedOut,
    WorkerCrashed,
)
from masterslave.slavecode import script_record
from masterslave.transports.pyro import NameServer, NameServerGone

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


# --- a handler raises -----------------------------------------------------------------------


def test_an_exception_arrives_with_its_remote_traceback(start_job: StartJob) -> None:
    job = start_job()
    job.slave()
    task_id = job.request("divide", 1, 0)
    error = job.failure()
    assert (error.task_id, error.tag) == (task_id, "divide")
    assert type(error.exception) is ZeroDivisionError
    assert "in do_divide\n    return x / y" in error.traceback
    assert error.traceback in str(error.__cause__)
    job.request("divide", 6, 2)
    assert job.result() == 3


def test_an_exception_that_cannot_be_pickled_arrives_as_its_text(start_job: StartJob) -> None:
    job = start_job()
    job.slave()
    job.request("odd")
    error = job.failure()
    assert isinstance(error.exception, RemoteException)
    assert error.exception.type_name.endswith("Odd")
    assert error.exception.text == "very odd"
    assert "in do_odd" in error.traceback


def test_a_result_that_cannot_be_pickled_is_an_exception_with_its_text(start_job: StartJob) -> None:
    job = start_job()
    job.slave()
    task_id = job.request("lock")
    error = job.failure()
    assert isinstance(error.exception, PayloadError)
    assert task_id in str(error.exception)
    assert "lock" in str(error.exception)


# --- a worker dies --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "end"),
    [
        ("exit", "exit status 7"),
        ("segfault", "SIGSEGV (signal 11)"),
        ("kill", "SIGKILL (signal 9)"),
    ],
)
def test_a_poison_task_is_stopped_with_the_story_of_each_attempt(
    start_job: StartJob, how: str, end: str
) -> None:
    job = start_job()
    job.slave("-n", 2)
    job.master.requestTasks("echo", [(i,) for i in range(20)], crash_limit=1)
    poison = job.request("die", how, crash_limit=3)
    job.master.requestTasks("echo", [(i,) for i in range(20, 40)], crash_limit=1)
    results, failures = [], []
    for _ in range(41):
        try:
            results.append(job.result())
        except TaskRaisedException as error:
            failures.append(error)
    assert sorted(results) == list(range(40))  # a crash limit of 1: none was blamed
    assert [error.task_id for error in failures] == [poison]
    error = failures[0]
    assert type(error.exception) is WorkerCrashed
    pids = job.notes("dying")
    assert len(set(pids)) == 3
    for attempt, pid in enumerate(pids, 1):
        assert f"attempt {attempt}: PID {pid} on {platform.node()} " in error.traceback
    assert error.traceback.count(end) == 3
    assert error.traceback.count(f"last words before {how}") == 3


def test_a_task_whose_worker_is_killed_runs_again(start_job: StartJob) -> None:
    job = start_job()
    job.slave("-n", 2)
    job.request("hold", "other", crash_limit=1)
    job.wait_for("begin other")
    task_id = job.request("hold", "a")
    psutil.Process(job.wait_for("begin a")[0]).kill()
    first, second = job.wait_for("begin a", 2)
    assert first != second
    job.release("a", "other")
    assert {job.result(), job.result()} == {"a", "other"}
    assert len(job.notes("begin other")) == 1  # its neighbour went on
    assert {again for again, _ in job.events.again} == {task_id}


def test_an_idle_worker_that_is_killed_is_replaced(start_job: StartJob) -> None:
    job = start_job()
    slave = job.slave()
    (worker,) = psutil.Process(slave.pid).children()
    worker.kill()
    wait_until(lambda: not is_running(worker.pid))
    job.request("echo", "still here", crash_limit=1)
    assert job.result() == "still here"


def test_what_a_handler_started_dies_with_its_worker(world: World, start_job: StartJob) -> None:
    job = start_job()
    job.master.keep_slave_code(
        script_record(
            world.write(
                "parent.py",
                """
                import os, subprocess, time
                from masterslave import SlaveProcess
                def do_start():
                    with open("notes", "a") as file:
                        print("child", subprocess.Popen(["sleep", "1000"]).pid, file=file)
                    os.kill(os.getpid(), 9)
                SlaveProcess("job").start(globals())
                """,
            )
        )
    )
    job.slave()
    job.request("start", crash_limit=1)
    assert type(job.failure().exception) is WorkerCrashed
    (child,) = job.wait_for("child")
    wait_until(lambda: not is_running(child), "the handler's child is killed")


# --- a handler hangs ------------------------------------------------------------------------


def test_a_task_past_its_time_limit_is_stopped_and_its_worker_replaced(
    start_job: StartJob,
) -> None:
    job = start_job()
    job.slave("-n", 2)
    job.request("hold", "other")
    job.wait_for("begin other")
    job.request("hold", "forever", timeout=0.2)
    error = job.failure()
    assert type(error.exception) is TaskTimedOut
    assert "time limit of 0.2 s" in str(error.exception)
    (pid,) = job.wait_for("begin forever")
    assert not is_running(pid)
    job.request("echo", "next")  # the other worker is busy: a new one must run it
    assert job.result() == "next"
    job.release("other")
    assert job.result() == "other"
    assert len(job.notes("begin other")) == 1


def test_the_story_of_a_time_out_tells_where(start_job: StartJob) -> None:
    job = start_job()
    job.slave()
    job.request("hold", "forever", timeout=0.1)
    error = job.failure()
    (pid,) = job.wait_for("begin forever")
    assert f"PID {pid} on {platform.node()}" in error.traceback


def test_a_handler_that_keeps_the_interpreters_lock_is_not_taken_for_dead(
    start_job: StartJob,
) -> None:
    job = start_job(PERIOD_S)
    job.slave()
    job.request("hog", 10 * PERIOD_S)
    assert job.result() == "done"
    assert len(job.notes("hog")) == 1
    assert job.events.left == []
    assert job.events.again == []


# --- a slave is lost ------------------------------------------------------------------------


def test_tasks_of_a_killed_slave_run_elsewhere_at_once(
    start_job: StartJob, caplog: pytest.LogCaptureFixture
) -> None:
    job = start_job()  # nobody pings: only the closed connection tells
    victim = job.slave("-n", 2)
    job.request("hold", "a")
    job.request("hold", "b")
    workers = [*job.wait_for("begin a"), *job.wait_for("begin b")]
    job.slave("-n", 2)
    victim.kill()
    job.wait_for("begin a", 2)
    job.wait_for("begin b", 2)
    wait_until(lambda: not any(map(is_running, workers)), "its workers die with it")
    job.release("a", "b")
    assert {job.result(), job.result()} == {"a", "b"}
    assert job.events.left == ["its connection closed"]
    (lost,) = [r for r in caplog.records if getattr(r, "action", "") == "process_lost"]
    assert "2 of its tasks are run elsewhere" in lost.getMessage()
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_workers_in_the_middle_of_a_system_call_die_with_their_slave(start_job: StartJob) -> None:
    job = start_job()
    slave = job.slave("-n", 2)
    job.request("hog", 1000)
    wait_until(lambda: job.notes("hog"))
    workers = psutil.Process(slave.pid).children()
    assert len(workers) == 2
    slave.kill()
    wait_until(lambda: not any(is_running(worker.pid) for worker in workers))


def test_a_stopped_slave_goes_on_later_and_its_late_result_is_dropped(start_job: StartJob) -> None:
    job = start_job(PERIOD_S)
    slave = job.slave()
    job.request("hold", "a")
    (first,) = job.wait_for("begin a")
    slave.send_signal(signal.SIGSTOP)
    wait_until(lambda: not job.status()["slaves"], "it is taken for dead")
    second_slave = job.slave()
    job.wait_for("begin a", 2)
    job.release("a")
    job.wait_for("end a", 2)  # the stopped slave's worker has its result ready, too
    assert job.result() == "a"
    slave.send_signal(signal.SIGCONT)
    wait_until(lambda: job.status()["dropped"] == 1, "its late result comes")
    wait_until(lambda: len(job.ready()) == 2, "it is back")
    assert job.status()["delivered"] == 1
    assert job.count("finished") == 0
    second_slave.send_signal(signal.SIGTERM)
    second_slave.finish()
    job.request("echo", "works again")
    assert job.result() == "works again"
    assert is_running(first) or len(psutil.Process(slave.pid).children()) == 1


def test_the_late_result_of_a_stopped_slave_is_used_when_no_other_came(
    start_job: StartJob,
) -> None:
    job = start_job(PERIOD_S)
    slave = job.slave()
    (row,) = job.ready()
    job.request("hold", "a")
    (worker,) = job.wait_for("begin a")
    for pid in (slave.pid, worker):
        psutil.Process(pid).suspend()
    wait_until(lambda: not job.status()["slaves"], "it is taken for dead")
    assert job.count("waiting") == 1  # to be run elsewhere, were there another slave
    job.release("a")
    for pid in (worker, slave.pid):
        psutil.Process(pid).resume()
    assert job.result() == "a"
    assert len(job.notes("begin a")) == 1
    wait_until(lambda: [slave["id"] for slave in job.ready()] == [row["id"]], "it is recognised")


def test_a_task_that_runs_elsewhere_by_now_is_let_go_by_the_slave_that_was_stopped(
    start_job: StartJob,
) -> None:
    job = start_job(PERIOD_S)
    slave = job.slave()
    job.request("hold", "a")
    (worker,) = job.wait_for("begin a")
    slave.send_signal(signal.SIGSTOP)
    wait_until(lambda: not job.status()["slaves"])
    job.slave()
    job.wait_for("begin a", 2)
    slave.send_signal(signal.SIGCONT)
    wait_until(lambda: not is_running(worker), "the slave gives its own attempt up")
    job.request("echo", 1)  # on a new worker of the same slave: the other is busy
    assert job.result() == 1
    job.release("a")
    assert job.result() == "a"
    assert len(job.notes("begin a")) == 2


# --- a slave is cut off ---------------------------------------------------------------------


class Relay:
    """Stands between slaves and their master; can be cut, and can let bytes lie."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._open = True
        self._flow = threading.Event()
        self._flow.set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Close all connections, and each new one as it comes."""
        with self._lock:
            self._open = False
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        with self._lock:
            self._open = True

    def freeze(self) -> None:
        """As when a cable is pulled: nothing passes, nobody is told."""
        self._flow.clear()

    def thaw(self) -> None:
        self._flow.set()

    def close(self) -> None:
        self.cut()
        self.thaw()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._flow.wait()
            with self._lock:
                try:
                    server = socket.create_connection(self._target) if self._open else None
                except OSError:
                    server = None
                if server is None:
                    client.close()
                    continue
                self._sockets |= {client, server}
            for pair in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._pass_on, args=pair))
                self._threads[-1].start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flow.wait()
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay_to(job: Job) -> Iterator[Relay]:
    relay = Relay(job.master.address)
    try:
        yield relay
    finally:
        relay.close()


def test_a_slave_that_was_cut_off_goes_on_and_is_recognised(start_job: StartJob) -> None:
    job = start_job()
    with relay_to(job) as relay:
        slave = job.slave("-n", 3, address=relay.address)
        (row,) = job.ready()
        for name in "abc":
            job.request("hold", name)
        for name in "abc":
            job.wait_for(f"begin {name}")
        relay.cut()
        wait_until(lambda: not job.status()["slaves"], "the closed connection is noticed")
        job.release("a", "b")
        job.wait_for("end a")
        job.wait_for("end b")
        relay.heal()
        assert {job.result(), job.result()} == {"a", "b"}  # ended while it was cut off
        wait_until(lambda: [slave["id"] for slave in job.ready()] == [row["id"]])
        wait_until(lambda: job.count("running") == 1, "what it still runs is adopted")
        job.release("c")
        assert job.result() == "c"
        for name in "abc":
            assert len(job.notes(f"begin {name}")) == 1
        job.request("echo", "new work")
        assert job.result() == "new work"
        assert job.status()["delivered"] == 4
        assert slave.poll() is None


def test_a_slave_is_cut_off_many_times_and_nothing_is_lost_or_doubled(
    start_job: StartJob,
) -> None:
    job = start_job()
    with relay_to(job) as relay:
        job.slave("-n", 2, address=relay.address)
        ids = job.master.requestTasks("work", [(i,) for i in range(200)], crash_limit=100)
        seen = []
        for count in range(200):
            if count % 20 == 10:
                relay.cut()
                wait_until(lambda: not job.status()["slaves"], "the cut is noticed")
                relay.heal()
            seen.append(job.master.retrieveResult(timeout=PATIENCE_S))
        assert sorted(result for _, _, result in seen) == list(range(200))
        assert sorted(task_id for task_id, _, _ in seen) == sorted(ids)
        assert job.count("running") == job.count("waiting") == job.count("finished") == 0


def test_a_slave_behind_a_pulled_cable_is_missed_after_four_periods(start_job: StartJob) -> None:
    job = start_job(PERIOD_S)
    with relay_to(job) as relay:
        job.slave(address=relay.address)
        job.request("hold", "a")
        job.wait_for("begin a")
        relay.freeze()
        wait_until(lambda: not job.status()["slaves"], "it is taken for dead")
        assert job.events.left[0].startswith("silent for ")
        job.slave()
        job.wait_for("begin a", 2)
        job.release("a")
        job.wait_for("end a", 2)
        assert job.result() == "a"
        relay.thaw()
        wait_until(lambda: len(job.ready()) == 2, "it is back")
        wait_until(lambda: job.status()["dropped"] == 1, "its late result comes")
        assert job.status()["delivered"] == 1


# --- the name server ------------------------------------------------------------------------


def known_labels() -> list[str] | None:
    try:
        with NameServer(broadcast=False) as names:
            return names.labels()
    except NameServerGone:
        return None


def test_jobs_go_on_without_the_name_server_and_register_with_the_next_one(
    world: World, start_job: StartJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pyro5.config, "NS_HOST", "0.0.0.0")  # where no master starts one itself
    names = world.start_name_server()
    job = start_job(named=True)
    assert known_labels() == ["job"]
    job.slave("-n", 2)
    job.request("hold", "a", crash_limit=1)
    job.wait_for("begin a")
    names.kill()
    names.wait()
    job.request("echo", "without")
    assert job.result() == "without"
    world.start_name_server()
    wait_until(lambda: known_labels() == ["job"], "the registration is renewed")
    job.release("a")
    assert job.result() == "a"
    assert job.events.left == []


def test_a_name_server_that_ends_with_its_master_is_replaced_by_another_master(
    world: World, start_job: StartJob
) -> None:
    holder = world.script(
        """
        import time
        from masterslave import MasterProcess
        master = MasterProcess("holder")
        print("there", flush=True)
        time.sleep(1000)
        """
    )
    wait_until(lambda: "there" in holder.out)
    job = start_job(named=True)
    assert known_labels() == ["holder", "job"]
    holder.kill()
    holder.wait()
    wait_until(lambda: known_labels() == ["job"])
    world.task_manager("slave", "job")  # finds the master by its label
    job.request("echo", 1)
    assert job.result() == 1


# --- two masters ----------------------------------------------------------------------------

HOLDING_MASTER = """
    import os, signal, sys, time
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def run(self):
            for i in range(3):
                self.requestTask("hold", i)
            print("runs", flush=True)
            self.retrieveResult()

    class Slave(SlaveProcess):
        def do_hold(self, i):
            time.sleep(0.3)  # so long that the slave has told of it and has no more to say
            with open("notes", "a") as file:
                print("begin", i, os.getpid(), file=file)
            time.sleep(1000)

    # As in a terminal: a test runner in the background may have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runJob("job", Master, Slave, watchdog_period=PERIOD, launch_slaves=2)
"""


def start_holding_master(
    world: World, period_s: float | None = 1.0
) -> tuple[Program, list[psutil.Process]]:
    """A master with two launched slaves whose workers are busy; and all their processes."""
    master = world.script(HOLDING_MASTER.replace("PERIOD", repr(period_s)))
    notes = world.path / "notes"
    wait_until(lambda: notes.exists() and notes.read_text().count("\n") == 2, "both slaves work")
    processes = family(master.pid)
    assert len(processes) == 5
    return master, processes


def test_a_second_master_with_the_label_gets_a_clear_error(
    world: World, start_job: StartJob
) -> None:
    world.start_name_server()
    first, _ = start_holding_master(world)
    second = world.start("script.py")
    second.finish(1)
    assert "LabelInUse: a master with label 'job' is running at " in second.err
    assert first.poll() is None
    assert "2 slaves with 2 workers" in world.task_manager("job").finish()
    first.kill()
    first.wait()
    job = start_job(named=True)  # the entry of the dead one is in the way no more
    assert known_labels() == ["job"]
    assert job.master.label == "job"


# --- the master ends ------------------------------------------------------------------------


@pytest.mark.parametrize("period_s", [1.0, 120.0, None])
def test_slaves_and_workers_end_when_their_master_is_gone(
    world: World, period_s: float | None
) -> None:
    world.env["MASTERSLAVE_MASTER_GONE"] = "1"
    master, processes = start_holding_master(world, period_s)
    master.kill()
    master.wait()
    wait_until(lambda: not any(is_running(p.pid) for p in processes), "nothing is left")
    assert "the master has been gone for 1 s" in master.err


def test_an_interrupt_ends_a_job_in_order(world: World) -> None:
    master, processes = start_holding_master(world)
    master.send_signal(signal.SIGINT)
    master.finish(None)
    assert master.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert not any(is_running(p.pid) for p in processes)
    assert master.err.count("Traceback (most recent call last)") == 1
    assert master.err.rstrip().endswith("KeyboardInterrupt")


def test_an_exception_of_the_master_ends_a_job_in_order(world: World) -> None:
    text = HOLDING_MASTER.replace("self.retrieveResult()", "1 / 0").replace("PERIOD", "None")
    master = world.script(text)
    master.finish(1)
    assert master.err.rstrip().endswith("ZeroDivisionError: division by zero")
    assert master.err.count("Traceback (most recent call last)") == 1


# --- a slave is told to end -----------------------------------------------------------------


def test_a_slave_told_to_end_finishes_what_runs_and_leaves(start_job: StartJob) -> None:
    job = start_job()
    slave = job.slave()
    ids = [job.request("hold", name, crash_limit=1) for name in "abc"]
    job.wait_for("begin a")
    slave.send_signal(signal.SIGTERM)
    job.slave("-n", 2)
    job.wait_for("begin b")
    job.wait_for("begin c")
    assert slave.poll() is None  # it still runs the first one
    job.release(*"abc")
    assert {job.result() for _ in ids} == set("abc")
    slave.finish(0)
    for name in "abc":
        assert len(job.notes(f"begin {name}")) == 1
    assert "unregistered" in job.events.left


def test_what_a_slave_holds_in_advance_goes_back_when_it_is_told_to_end(
    start_job: StartJob,
) -> None:
    job = start_job()
    slave = job.slave()
    count = 300
    job.master.requestTasks("work", [(i,) for i in range(count)], crash_limit=1)
    results = [job.result() for _ in range(20)]
    slave.send_signal(signal.SIGTERM)
    slave.finish(0)
    held = job.count("running")
    assert held == 0
    assert job.count("waiting") > 0
    job.slave("-n", 2)
    results += [job.result() for _ in range(count - 20)]
    assert sorted(results) == list(range(count))
    assert job.status()["dropped"] == 0  # so nothing ran twice


def test_past_its_grace_time_a_slave_gives_back_what_it_runs(
    world: World, start_job: StartJob
) -> None:
    world.env["MASTERSLAVE_GRACE"] = "0.3"
    job = start_job()
    slave = job.slave()
    job.request("hold", "a", crash_limit=1)
    (worker,) = job.wait_for("begin a")
    slave.send_signal(signal.SIGTERM)
    slave.finish(0)
    assert not is_running(worker)
    job.slave()
    job.wait_for("begin a", 2)
    job.release("a")
    assert job.result() == "a"


def test_a_second_signal_kills_at_once(start_job: StartJob) -> None:
    job = start_job()
    slave = job.slave("-n", 2, "-v")
    job.request("hold", "a", crash_limit=1)
    (worker,) = job.wait_for("begin a")
    slave.send_signal(signal.SIGTERM)
    wait_until(lambda: "told to end" in slave.err)
    assert is_running(worker)
    slave.send_signal(signal.SIGTERM)
    slave.finish(0)
    assert not is_running(worker)
    assert job.count("waiting") == 1
    job.slave()
    job.wait_for("begin a", 2)
    job.release("a")
    assert job.result() == "a"


# --- strangers ------------------------------------------------------------------------------


def test_strangers_are_refused_and_the_job_goes_on(
    world: World, start_job: StartJob, caplog: pytest.LogCaptureFixture
) -> None:
    job = start_job()
    job.slave("-n", 2)
    job.request("hold", "a", crash_limit=1)
    job.wait_for("begin a")
    host, _, port = job.master.address.rpartition(":")
    pyro_header = struct.pack("!4sHBBHHII", b"PYRO", 502, 1, 3, 0, 0, 0xFFFFFFFF, 0) + bytes(16)
    garbage = [b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\xff" * 1000, pyro_header, b"\x80\x05N."]
    silent = socket.create_connection((host, int(port)))  # half open: it says nothing
    with silent:
        for text in garbage:
            with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as sock:
                sock.sendall(text)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1000) == b"", "a stranger gets no answer"
        world.env["MASTERSLAVE_KEY_FILE"] = str(world.path / "other-key")
        stranger = world.task_manager("slave", "job", "-m", job.master.address)
        stranger.finish(1)
        assert "key" in stranger.err
        wait_until(
            lambda: (
                sum(getattr(r, "action", "") == "refused" for r in caplog.records)
                >= len(garbage) + 1
            ),
            "each is logged",
        )
        job.request("echo", "undisturbed")
        assert job.result() == "undisturbed"
    job.release("a")
    assert job.result() == "a"
    assert job.events.left == []


# --- all at once ----------------------------------------------------------------------------


def test_a_job_survives_twenty_killings(start_job: StartJob) -> None:
    job = start_job()
    tasks, kills, dice = 300, 20, random.Random(7)
    job.master.requestTasks("work", [(i,) for i in range(tasks // 2)])
    poison = job.request("die", "segfault", crash_limit=3)
    job.master.requestTasks("work", [(i,) for i in range(tasks // 2, tasks)])
    pids = set(job.master.launchSlaveJobs(3))
    results: list[int] = []
    failures: list[TaskRaisedException] = []
    killed = 0
    while len(results) + len(failures) <= tasks:
        try:
            results.append(job.result())
        except TaskRaisedException as error:
            failures.append(error)
        while killed < kills and len(results) >= (killed + 1) * tasks // (kills + 1):
            alive = [pid for pid in pids if is_running(pid)]
            victims = [process for pid in alive for process in family(pid)]
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(victims).kill()
                killed += 1
            missing = 3 - sum(map(is_running, pids))
            pids |= set(job.master.launchSlaveJobs(missing) if missing else ())
    assert killed == kills
    assert sorted(results) == list(range(tasks))
    assert [error.task_id for error in failures] == [poison]
    assert type(failures[0].exception) is WorkerCrashed
    assert "SIGSEGV" in failures[0].traceback
    assert sum(map(job.count, ("waiting", "running", "finished"))) == 0
    everyone = [process for pid in pids for process in family(pid)]
    job.master.shutdown()
    assert not any(is_running(process.pid) for process in everyone)

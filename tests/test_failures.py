"""Rows of the failure table, with real processes: handlers and workers that fail, strangers.

The journal and the budgets of disk and memory have tests of their own.
"""

from __future__ import annotations

import contextlib
import platform
import random
import re
import socket
import struct
from collections import Counter

import psutil
import pytest
from conftest import PATIENCE_S, World, family, is_running, wait_until
from failing_job import PERIOD_S, StartJob

from masterslave import (
    PayloadError,
    RemoteException,
    TaskRaisedException,
    TaskTimedOut,
    WorkerCrashed,
)
from masterslave.slavecode import script_record

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
    # On a busy machine there may be attempts between them that were taken back before they began.
    told = re.findall(rf"attempt \d+: PID (\d+) on {platform.node()} ", error.traceback)
    assert told == pids
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


def test_a_worker_killed_among_tiny_tasks_costs_none_of_the_others(
    world: World, start_job: StartJob
) -> None:
    """What it had posted on its board counts, and the one that ran is to blame."""
    job = start_job()
    job.master.keep_slave_code(
        script_record(
            world.write(
                "risky.py",
                """
                import os
                from masterslave import SlaveProcess
                runs = os.open("runs", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
                def do_count(x):
                    os.write(runs, b"%d " % x)
                    if x % 250 == 249 and not os.path.exists(f"died-{x}"):
                        open(f"died-{x}", "w").close()
                        os.kill(os.getpid(), 9)
                    return x
                SlaveProcess("job").start(globals())
                """,
            )
        )
    )
    job.slave()
    ids = job.master.requestTasks("count", [(x,) for x in range(2000)])
    killers = set(range(249, 2000, 250))
    got = [result for _, _, result in job.master.results(timeout=PATIENCE_S)]
    assert sorted(got) == list(range(2000))
    runs = Counter(map(int, (world.path / "runs").read_text().split()))
    assert {x for x, count in runs.items() if count > 1} == killers, "only they ran twice"
    assert {ids.index(task) for task, why in job.events.again if why != "not begun"} == killers


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

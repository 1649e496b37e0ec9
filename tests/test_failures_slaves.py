"""Rows of the failure table: slaves that are lost, cut off, or told to end."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator

import psutil
import pytest
from conftest import PATIENCE_S, World, is_running, wait_until
from failing_job import PERIOD_S, Job, StartJob

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
        wait_until(lambda: job.events.left, "it is taken for dead, and that is told")
        assert job.events.left[0].startswith("silent for ")
        assert not job.status()["slaves"]
        job.slave()
        job.wait_for("begin a", 2)
        job.release("a")
        job.wait_for("end a", 2)
        assert job.result() == "a"
        relay.thaw()
        wait_until(lambda: len(job.ready()) == 2, "it is back")
        wait_until(lambda: job.status()["dropped"] == 1, "its late result comes")
        assert job.status()["delivered"] == 1


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

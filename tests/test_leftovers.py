"""What a job leaves behind, however it ended: one key file, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
from collections.abc import Collection

import psutil
import pytest
from conftest import Program, World, wait_until
from leftovers import shared_memory

JOB = """
    import os, signal, time
    from masterslave import MasterProcess, SlaveProcess, TaskRaisedException, runJob

    class Master(MasterProcess):
        def run(self):
            print("slaves", *self.launchSlaveJobs(2), flush=True)
            shared = self.setGlobalState(data=bytes(1 << 20))
            self.requestTasks("work", [(i, bytes(1 << 18)) for i in range(40)])
            self.requestTask("die", crash_limit=1)
            for _ in range(41):
                try:
                    self.retrieveResult()
                except TaskRaisedException as error:
                    print("failed", error.task_id, flush=True)
            print("waits", flush=True)
            while os.path.exists("wait"):
                time.sleep(0.005)

    class Slave(SlaveProcess):
        def do_work(self, i, data):
            return i, data
        def do_die(self):
            os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
    runJob("job", Master, Slave)
"""


class Traces:
    """What could be left of the processes of one world, beside themselves."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.home = world.path
        self.temporary = world.path / "tmp"
        self.temporary.mkdir()
        world.env["TMPDIR"] = str(self.temporary)
        self.shared_before = shared_memory()

    def listening(self) -> set[tuple[str, int]]:
        found = set()
        for process in self.world.processes():
            with contextlib.suppress(psutil.Error):
                sockets = process.net_connections(kind="tcp")
                found |= {tuple(s.laddr) for s in sockets if s.status == psutil.CONN_LISTEN}
        return found

    def files(self) -> set[str]:
        """Files in the home that no test has put there."""
        ours = ("out-", "err-", "job.py", "wait")
        found = {str(p.relative_to(self.home)) for p in self.home.rglob("*") if not p.is_dir()}
        return {name for name in found if not name.startswith(ours)}


@pytest.fixture
def traces(world: World) -> Traces:
    return Traces(world)


def start_job(world: World, traces: Traces) -> tuple[Program, set[tuple[str, int]]]:
    """A job all of whose tasks are done and whose master waits; and where it listens."""
    (world.path / "wait").touch()
    job = world.script(JOB, name="job.py")
    wait_until(lambda: "waits" in job.out, "the tasks are done")
    assert "failed die_40" in job.out
    assert len(world.processes()) >= 4  # the master, two slaves, their workers
    ports = traces.listening()
    assert len(ports) == 2  # the task manager, the name server
    return job, ports


def check_nothing_is_left(
    traces: Traces, ports: set[tuple[str, int]], *, besides: Collection[str] = ()
) -> None:
    assert traces.world.processes() == []
    for address in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()
    wait_until(lambda: not shared_memory() - traces.shared_before, "shared memory is free again")
    assert traces.files() == {".masterslave/key", *besides}
    key = traces.home / ".masterslave" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_a_job_leaves_nothing_behind(world: World, traces: Traces) -> None:
    job, ports = start_job(world, traces)
    (world.path / "wait").unlink()
    job.finish()
    check_nothing_is_left(traces, ports)


def test_a_job_with_a_killed_slave_leaves_nothing_behind(world: World, traces: Traces) -> None:
    job, ports = start_job(world, traces)
    slave = int(job.out.split("slaves ", 1)[1].split()[0])
    os.kill(slave, signal.SIGKILL)
    (world.path / "wait").unlink()
    job.finish()
    wait_until(lambda: not world.processes(), "the worker of the killed slave ends")
    check_nothing_is_left(traces, ports)


def test_an_interrupted_job_leaves_nothing_behind(world: World, traces: Traces) -> None:
    job, ports = start_job(world, traces)
    job.send_signal(signal.SIGINT)
    job.finish(None)
    check_nothing_is_left(traces, ports)


def test_a_killed_master_leaves_nothing_behind(world: World, traces: Traces) -> None:
    world.env["MASTERSLAVE_MASTER_GONE"] = "0.5"
    job, ports = start_job(world, traces)
    job.kill()
    job.wait()
    wait_until(lambda: not world.processes(), "its slaves end")
    check_nothing_is_left(traces, ports)


def test_a_job_that_is_killed_altogether_leaves_nothing_behind(
    world: World, traces: Traces
) -> None:
    job, ports = start_job(world, traces)
    for process in world.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
    wait_until(lambda: not world.processes())
    stale = ".masterslave/managers/job.json"  # nobody is there to remove it; the next who asks does
    check_nothing_is_left(traces, ports, besides=[stale])
    world.task_manager("job").finish(1)
    check_nothing_is_left(traces, ports)

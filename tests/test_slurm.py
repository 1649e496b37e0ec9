"""What Slurm does to jobs while they work: nothing is lost, or doubled, or left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from clusters.places import Place, batch
from clusters.systems import Systems
from conftest import PATIENCE_S, World, is_running, wait_until

from masterslave import MasterProcess, Settings
from masterslave.launchers.base import Phase, run_command
from masterslave.launchers.local import SlaveOptions, slave_job
from masterslave.slavecode import script_record

pytestmark = pytest.mark.timeout(400)

SLAVE = """
    import os, time
    from masterslave import startSlaveProcess
    def do_work(i, seconds, hold=None):
        while hold and not os.path.exists(hold):
            time.sleep(0.02)
        time.sleep(seconds)
        return i
    def do_hog(i, seen):
        if not os.path.exists(seen):
            open(seen, "w").close()
            memory = bytearray(1 << 30)
            for at in range(0, len(memory), 4096):
                memory[at] = 1
        return i
    startSlaveProcess()
"""


class Work:
    """A master, and slaves that Slurm has started for it."""

    def __init__(self, place: Place, master: MasterProcess, address: str) -> None:
        self.place = place
        self.master = master
        self.address = address

    def start(self, count: int, *options: str, **changes: object) -> list[str]:
        job = self.place.job(count=count, memory_bytes=400 << 20, options=options, **changes)
        job = job._replace(environment={**job.environment, "MASTERSLAVE_GRACE": "1"})
        return self.place.launcher.submit(slave_job("job", self.address, job, SlaveOptions()))

    def wait_for_slaves(self, count: int) -> None:
        wait_until(lambda: self.slaves() >= count, f"{count} slaves are there")

    def slaves(self) -> int:
        return self.master.task_manager.numberOfActiveProcesses() - 1  # the master

    def word(self, job_id: str) -> str:
        return self.place.launcher.states([job_id])[job_id].word

    def results(self) -> list[int]:
        return sorted(result for _, _, result in self.master.results(timeout=PATIENCE_S * 2))

    def finish(self, ids: list[str]) -> None:
        """Nothing comes after the end, and nothing is left."""
        self.master.shutdown()
        self.place.launcher.cancel(ids)
        self.place.wait_for(ids, over=True)
        wait_until(lambda: not self.place.processes(), "nothing is left")


def start_master(world: World, host: str = "127.0.0.1") -> MasterProcess:
    settings = replace(Settings.from_environment(), port=0, host=host)
    master = MasterProcess("job", use_name_server=False, settings=settings)
    master.keep_slave_code(script_record(world.write("slave.py", SLAVE)))
    return master


@pytest.fixture
def work(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    place = batch("slurm")(world, systems, monkeypatch)
    master = start_master(world)
    yield Work(place, master, master.address)
    master.shutdown()


def test_a_thousand_tasks_while_a_node_loses_its_daemon_and_a_job_is_cancelled(
    work: Work, systems: Systems
) -> None:
    ids = work.start(8)
    work.wait_for_slaves(8)
    work.master.requestTasks("work", ((i, 0.03) for i in range(1000)))
    arriving = work.master.results(timeout=PATIENCE_S * 2)
    results = [next(arriving)[2] for _ in range(100)]
    daemon = int((systems.folder("slurm") / "run" / f"slurmd-m{os.getpid()}n1.pid").read_text())
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not is_running(daemon), "the daemon is dead")
    work.place.launcher.cancel(ids[-1:])
    results += [result for _, _, result in arriving]
    assert sorted(results) == list(range(1000))
    systems.start("slurm")  # the daemon finds its jobs again
    work.finish(ids)


def test_a_job_that_is_preempted_comes_back(work: Work, world: World) -> None:
    """With what it had not done: one of its tasks waits all the while."""
    hold = world.path / "hold"
    ids = work.start(1, "--partition=low", "--requeue")
    work.wait_for_slaves(1)
    work.master.requestTasks("work", ((i, 0.0, str(hold) if i == 10 else None) for i in range(50)))
    arriving = work.master.results(timeout=PATIENCE_S * 2)
    results = [next(arriving)[2] for _ in range(10)]
    urgent = work.place.job("sleep", "1000", count=2)
    urgent = urgent._replace(options=("--partition=high", "--exclusive"), memory_bytes=1 << 20)
    others = work.place.launcher.submit(urgent)
    states = work.place.launcher.states
    wait_until(lambda: states(ids)[ids[0]].phase is Phase.PENDING, "it waits again")
    wait_until(lambda: work.slaves() == 0, "its slave has left")
    hold.touch()
    work.place.launcher.cancel(others)
    # Slurm lets a job wait for two minutes before it is started again.
    run_command(["scontrol", "update", f"JobId={ids[0]}", "StartTime=now"])
    results += [result for _, _, result in arriving]
    assert sorted(results) == list(range(50))
    work.finish(ids + others)


@pytest.mark.long  # Slurm counts walltime in minutes
def test_a_slave_has_left_when_its_walltime_is_over(work: Work) -> None:
    ids = work.start(1, walltime_s=60)
    work.wait_for_slaves(1)
    work.master.requestTasks("work", ((i, 0.5) for i in range(110)))
    wait_until(lambda: work.slaves() == 0, "the slave has left")
    wait_until(lambda: work.word(ids[0]) not in ("RUNNING", "COMPLETING"), "the job has ended")
    assert work.word(ids[0]) == "COMPLETED"  # not "TIMEOUT"
    ids += work.start(1)
    assert work.results() == list(range(110))
    work.finish(ids)


def test_a_task_that_takes_too_much_memory_is_tried_again(
    work: Work, world: World, systems: Systems
) -> None:
    if systems.variables("slurm").get("MEM") != "1":
        # In CI, too: how the kernel was booted, nothing that could be installed.
        pytest.skip("the kernel has no memory controller of cgroup v1 at /sys/fs/cgroup/memory")
    ids = work.start(2)
    work.wait_for_slaves(2)
    work.master.requestTask("hog", 1000, str(world.path / "seen"))
    work.master.requestTasks("work", ((i, 0.01) for i in range(50)))
    assert work.results() == [*range(50), 1000]
    assert (world.path / "seen").exists()
    work.master.shutdown()
    work.place.wait_for(ids, over=True)  # cancelled meanwhile, it would be CANCELLED for Slurm
    assert "OUT_OF_MEMORY" in [work.word(one) for one in ids]
    work.finish(ids)


@pytest.mark.long
def test_a_node_that_is_cut_off_while_its_job_is_run_again_brings_no_result_twice(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = batch("slurm", system="slurm-cut")(world, systems, monkeypatch)
    master = start_master(world, "0.0.0.0")
    port = master.address.rpartition(":")[2]
    work = Work(place, master, f"{systems.network}.254:{port}")
    hold = Path(world.path / "hold")
    cable = ["ip", "-n", f"{systems.prefix}1", "link", "set", "eth0"]
    try:
        first = work.start(1, f"--nodelist=m{os.getpid()}c1", "--requeue")
        work.wait_for_slaves(1)
        master.requestTask("work", 0, 0.0, str(hold))
        wait_until(lambda: master.task_manager.numberOfTasks()[1].get("work") == 1, "the task runs")
        slaves = place.processes()
        run_command([*cable, "down"])
        states = place.launcher.states
        wait_until(lambda: states(first)[first[0]].phase is Phase.PENDING, "it is to run again")
        assert all(is_running(process.pid) for process in slaves)  # the old one does all the while
        node = f"ReqNodeList=m{os.getpid()}c2"
        run_command(["scontrol", "update", f"JobId={first[0]}", node, "StartTime=now"])
        place.wait_for(first, over=False)
        master.requestTasks("work", ((i, 0.05) for i in range(1, 100)))
        hold.touch()
        arriving = master.results(timeout=PATIENCE_S * 2)
        results = [next(arriving)[2] for _ in range(50)]
        run_command([*cable, "up"])
        results += [result for _, _, result in arriving]
        assert sorted(results) == list(range(100))
        work.finish(first)
    finally:
        run_command([*cable, "up"], statuses=range(256))
        master.shutdown()

"""Slaves that are cut off: hosts in network namespaces, real cables that are really cut."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from clusters.namespaces import Namespaces, namespaces, why_not
from conftest import Program, World, wait_until

JOB = """
    import logging, os, time
    from masterslave import MasterProcess, SlaveProcess, runJob
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    class Master(MasterProcess):
        def __init__(self, label, **options):
            super().__init__(label, use_name_server=False, **options)
        def run(self):
            self.requestTasks("work", ((i,) for i in range(60)))
            for task_id, tag, (i, pid) in self.results():
                print("done", i, pid, flush=True)
            self.requestTask("last")
            print("last", self.retrieveResult()[2], flush=True)

    class Slave(SlaveProcess):
        def do_work(self, i):
            while i == 59 and not os.path.exists("healed"):
                time.sleep(0.01)  # so the job cannot end before
            time.sleep(0.02)
            return i, os.getpid()
        def do_last(self):
            return "task"

    runJob("job", Master, Slave, watchdog_period=0.25)
"""


@pytest.fixture
def hosts() -> Iterator[Namespaces]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with namespaces(3) as made:
        yield made


def start(world: World, hosts: Namespaces, host: int, *command: object) -> Program:
    program = Program(hosts.command(host, sys.executable, *command), world)
    world.programs.append(program)
    return program


@pytest.mark.parametrize("silently", [True, False], ids=["cable pulled", "connections reset"])
def test_a_slave_that_was_cut_off_comes_back_and_no_result_is_lost_or_doubled(
    world: World, hosts: Namespaces, silently: bool
) -> None:
    world.env["MASTERSLAVE_HOST"] = "0.0.0.0"
    job = start(world, hosts, 1, world.write("job.py", JOB))
    at = ["-m", hosts.address(1)]
    slaves = [
        start(world, hosts, host, "-m", "masterslave", "slave", "job", *at, "-w", "-v", "-n", 2)
        for host in (2, 3)
    ]
    wait_until(lambda: job.out.count("done") >= 10, "the job is under way")
    # A busy machine may lose a slave, too, for a moment: only what is more counts.
    wait_until(lambda: job.err.count("is ready") >= 2, "both slaves work")
    losses = job.err.count("was lost")
    hosts.cut(3, silently=silently)
    wait_until(lambda: job.err.count("was lost") > losses, "the master misses who was cut off")
    wait_until(lambda: job.out.count("done") == 59, "the other one does its work")
    assert slaves[1].poll() is None, slaves[1].err
    ready = job.err.count("is ready")
    hosts.heal(3)
    wait_until(lambda: job.err.count("is ready") > ready, "the slave is recognised")
    (world.path / "healed").touch()
    job.finish()
    done = [line.split()[1] for line in job.out.splitlines() if line.startswith("done")]
    assert sorted(map(int, done)) == list(range(60))
    assert job.out.endswith("last task\n")
    for slave in slaves:
        slave.finish()

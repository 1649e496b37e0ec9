"""Slaves that are cut off: hosts in network namespaces, real cables that are really cut."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from clusters.namespaces import Namespaces, namespaces, why_not
from clusters.systems import missing
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
        missing(reason)
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


CLIENT = """
    import sys
    from masterslave import ClusterExecutor, MasterProcess

    master = MasterProcess("served", attach=True, master_host=sys.argv[1])
    master.requestTasks("square", ((x,) for x in range(30)))
    print(sorted(result for task_id, tag, result in master.results()), flush=True)
    open("attached", "w").close()
    master.requestTask("until", "healed")
    print(master.retrieveResult()[2], flush=True)
    master.shutdown()
    with ClusterExecutor("served", sys.argv[1]) as executor:
        print(sum(executor.map(abs, range(-10, 0))))
"""

SLAVE = """
    import os, sys, time
    from masterslave import startSlaveProcess

    def do_square(x):
        return x * x

    def do_until(path):
        while not os.path.exists(path):
            time.sleep(0.01)
        return path

    startSlaveProcess("served", sys.argv[1])
"""


def test_a_served_task_manager_its_slave_and_its_client_are_on_three_hosts(
    world: World, hosts: Namespaces
) -> None:
    world.env["MASTERSLAVE_HOST"] = "0.0.0.0"
    port = 2799  # of hosts of our own: nobody else has it
    served = start(world, hosts, 1, "-m", "masterslave", "serve", "served", "--port", port, "-v")
    wait_until(lambda: f":{port}" in served.out, "it is served")
    where = f"{hosts.address(1)}:{port}"
    start(world, hosts, 2, world.write("slave.py", SLAVE), where)
    client = start(world, hosts, 3, world.write("client.py", CLIENT), where)
    wait_until(lambda: (world.path / "attached").exists(), "the client has results")
    hosts.cut(3, silently=False)
    wait_until(lambda: "client" in served.err, "the task manager misses its client")
    (world.path / "healed").touch()  # its result is there before the client is
    hosts.heal(3)
    assert client.finish().splitlines() == [str([x * x for x in range(30)]), "healed", "55"]
    served.terminate()
    wait_until(lambda: not world.processes(), "slave and task manager have ended")

"""Masters that are killed -9 and started again with their journal: real processes.

What one process can show of this is in `test_restart`; served task managers are in `test_serve`.
"""

from __future__ import annotations

import random
import re
import signal
from collections import Counter

import psutil
import pytest
from conftest import PATIENCE_S, Impostor, Program, World, wait_until
from labels import speak_http

#: Asks for `work` of so many numbers and `hold` of so many more, says what it asks and gets; a
#: handler leaves a line each time that it runs. Slaves are awaited longer than any machine stalls.
JOB = """
    import os, sys, time
    from dataclasses import replace
    from masterslave import MasterProcess, Settings, SlaveProcess, runJob

    work, hold, launch = map(int, sys.argv[1:])

    class Master(MasterProcess):
        def __init__(self, label, journal):
            settings = replace(Settings.from_environment(), resume_s=60.0)
            super().__init__(label, settings=settings, journal=journal)
        def run(self):
            print("at", self.address, flush=True)
            for i in range(work + hold):
                self.requestTask("work" if i < work else "hold", i)
                print("asked", i, flush=True)
            for _, _, result in self.results():
                print("got", result, flush=True)

    class Slave(SlaveProcess):
        def note(self, what):
            with open("ran", "ab", buffering=0) as file:
                file.write(b"%s %d\\n" % (what, os.getppid()))
        def do_work(self, i):
            self.note(b"%d" % i)
            time.sleep(0.002)
            return i
        def do_hold(self, i):
            self.note(b"%d" % i)
            while not os.path.exists("go"):
                time.sleep(0.01)
            return i

    runJob("job", Master, Slave, launch_slaves=launch, journal="run.db")
"""


class Runs:
    """One job, run again and again."""

    def __init__(self, world: World, work: int, hold: int = 0) -> None:
        self.world = world
        self.work, self.hold = work, hold
        self.numbers = list(range(work + hold))
        world.write("job.py", JOB)

    def start(self, launch: int = 0) -> Program:
        return self.world.start("job.py", self.work, self.hold, launch)

    def slaves(self, count: int, workers: int = 2) -> list[Program]:
        command = ("slave", "job", "-w", "-n", workers)
        return [self.world.task_manager(*command) for _ in range(count)]

    def lines(self) -> list[tuple[int, int]]:
        """What ran, a line for each time: number, process id of the slave."""
        path = self.world.path / "ran"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(number), int(slave)) for number, slave in map(str.split, lines)]

    def ran(self) -> Counter[int]:
        """How often each number ran."""
        return Counter(number for number, _ in self.lines())

    def ran_by(self) -> set[int]:
        return {slave for _, slave in self.lines()}

    def await_holds(self) -> None:
        """Return when all that will hold do."""
        held = self.numbers[self.work :]
        wait_until(lambda: set(held) <= set(self.ran()), "the last tasks run")

    def let_go(self) -> None:
        (self.world.path / "go").touch()

    def all_once(self) -> bool:
        return self.ran() == Counter(self.numbers)


def got(program: Program) -> list[int]:
    """What a master received, in order."""
    return [int(number) for number in re.findall(r"^got (\d+)$", program.out, re.MULTILINE)]


def port(program: Program) -> int:
    found = re.match(r"at 127\.0\.0\.1:(\d+)\n", program.out)
    assert found is not None, program.out + program.err
    return int(found[1])


def kill(*programs: Program) -> None:
    """Kill -9, and see to it that the system knows them no more."""
    for program in programs:
        program.kill()
    for program in programs:
        program.wait()


# --- slaves that outlive their master ---------------------------------------------------------


def test_what_has_finished_or_runs_meanwhile_is_not_run_again(world: World) -> None:
    runs = Runs(world, work=60, hold=2)
    first = runs.start()
    slaves = runs.slaves(2)
    runs.await_holds()
    wait_until(lambda: len(got(first)) >= 30, "half of the results are there")
    kill(first)
    runs.let_go()  # the slaves have no master to tell
    second = runs.start()
    second.finish()
    for slave in slaves:
        assert slave.finish() == ""
    assert sorted(got(second)) == runs.numbers
    assert runs.all_once(), runs.ran()
    assert runs.ran_by() <= {slave.pid for slave in slaves}  # one may have come late
    assert port(second) == port(first)


@pytest.mark.parametrize("seed", range(2))
def test_a_master_that_is_killed_again_and_again(world: World, seed: int) -> None:
    """While it starts, while it asks, while it receives: nothing is lost, nothing runs twice."""
    chance = random.Random(seed)
    runs = Runs(world, work=150)
    slaves = runs.slaves(2)
    for moment in [chance.randrange(300) for _ in range(4)]:
        master = runs.start()
        wait_until(lambda m=master, n=moment: m.out.count("\n") >= n or m.poll() is not None)
        kill(master)
        assert max(Counter(got(master)).values(), default=1) == 1
    last = runs.start()
    last.finish()
    for slave in slaves:
        assert slave.finish(None) == "" and "Traceback" not in slave.err
    assert sorted(got(last)) == runs.numbers
    assert runs.all_once(), runs.ran()


# --- slaves that die with their master --------------------------------------------------------


def test_what_had_not_finished_is_run_again_when_the_slaves_were_killed_too(world: World) -> None:
    runs = Runs(world, work=40, hold=2)
    first = runs.start()
    slaves = runs.slaves(1)
    runs.await_holds()
    wait_until(lambda: len(got(first)) == 40, "all other results are there")
    workers = psutil.Process(slaves[0].pid).children()
    kill(first, *slaves)
    psutil.wait_procs(workers, PATIENCE_S)
    runs.let_go()
    second = runs.start()
    (slave,) = runs.slaves(1)
    second.finish()
    slave.finish()
    assert sorted(got(second)) == runs.numbers
    assert runs.ran() == Counter([*range(40), 40, 40, 41, 41])


# --- a master that is not where it was --------------------------------------------------------


@pytest.mark.parametrize("started", ["by hand", "by the master"])
def test_slaves_find_their_master_when_its_port_is_taken(world: World, started: str) -> None:
    runs = Runs(world, work=40, hold=1)
    by_hand = started == "by hand"
    first = runs.start(launch=0 if by_hand else 1)
    slaves = runs.slaves(1) if by_hand else []
    runs.await_holds()
    before = runs.ran_by()
    kill(first)
    with Impostor(speak_http, port(first)):
        second = runs.start()
        runs.let_go()
        second.finish()
    for slave in slaves:
        slave.finish()
    assert port(second) != port(first)
    assert sorted(got(second)) == runs.numbers
    assert runs.all_once(), runs.ran()
    assert runs.ran_by() == before
    wait_until(lambda: not world.processes(), "the slave has left with its master")


def test_launched_slaves_do_not_take_another_job_at_the_old_address_for_theirs(
    world: World,
) -> None:
    runs = Runs(world, work=10, hold=1)
    first = runs.start(launch=1)
    runs.await_holds()
    (slave,) = runs.ran_by()
    psutil.Process(slave).send_signal(signal.SIGSTOP)  # so it does not see the port free
    kill(first)
    other = world.task_manager("serve", "other", "-v", "--port", port(first))
    wait_until(lambda: "at 127.0.0.1:" in other.out, "the other job has the port")
    second = runs.start()
    wait_until(lambda: "asked" in second.out, "the job is there again")
    psutil.Process(slave).send_signal(signal.SIGCONT)
    runs.let_go()
    second.finish()
    assert port(second) != port(first)
    assert sorted(got(second)) == runs.numbers
    assert runs.all_once(), runs.ran()
    other.send_signal(signal.SIGTERM)
    other.finish()


# --- refusals -----------------------------------------------------------------------------------


def test_the_journal_of_a_living_master_is_refused_to_a_second_one(world: World) -> None:
    runs = Runs(world, work=3)
    first = runs.start()
    wait_until(lambda: "asked" in first.out, "the first has the journal")
    second = runs.start()
    second.finish(1)
    last = second.err.splitlines()[-1]
    assert re.fullmatch(r"masterslave\.errors\.Journal\w*: .*run\.db.*another process.*", last)
    assert second.out == ""
    assert first.poll() is None
    (slave,) = runs.slaves(1)
    first.finish()
    slave.finish()
    assert sorted(got(first)) == runs.numbers

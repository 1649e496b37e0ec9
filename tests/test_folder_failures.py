"""A shared folder when slaves are slow, killed, cut off, told to stop, or out of space."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.namespaces import Namespaces, namespaces, why_not
from conftest import Program, World, wait_until

from masterslave import SettingsError, SlaveProcess, initializeMasterProcess, startSlaveProcess
from masterslave.folder.finder import Finder
from masterslave.folder.place import Place
from masterslave.keyfile import load_key
from masterslave.master import MasterProcess

SLAVE = """
    import os, time

    def note(name, text):
        with open(os.path.join(os.path.dirname(__file__), name), "a") as file:
            file.write(f"{text}\\n")

    def is_there(name):
        return os.path.exists(os.path.join(os.path.dirname(__file__), name))

    def do_twice(x):
        return 2 * x

    def do_gate(x, gate):
        note("ran", f"{x} {os.getppid()}")
        while not is_there(gate):
            time.sleep(0.01)
        return x

    def do_slow_once(x):
        time.sleep(0.02)
        if x == 0 and not is_there("slow"):  # its second attempt is quick
            note("slow", os.getpid())
            while not is_there("end"):
                time.sleep(0.01)
            return "late"
        return x

    def do_large(size):
        return os.urandom(size)
"""

NETWORK_JOB = """
    import os, sys, time
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def __init__(self, label, **options):
            super().__init__(label, use_name_server=False, **options)
        def run(self):
            self.requestTasks("work", ((i,) for i in range(60)))
            for _, _, i in self.results(timeout=100):
                print("done", i, flush=True)

    class Slave(SlaveProcess):
        def do_work(self, i):
            while i > 20 and not os.path.exists("cut"):
                time.sleep(0.01)  # so the job cannot end before
            time.sleep(0.02)
            return i

    runJob("job", Master, Slave, watchdog_period=0.25, failover_folder="shared")
"""


@pytest.fixture
def master(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[MasterProcess]:
    """A master in the folder ``shared``, in this process."""
    world.write("slave.py", SLAVE)
    monkeypatch.chdir(world.path)
    monkeypatch.syspath_prepend(str(world.path))
    made = initializeMasterProcess("demo", slave_module="slave", folder="shared")
    yield made
    made.shutdown()
    sys.modules.pop("slave", None)


def tasks(world: World, pattern: str) -> list[str]:
    folder = world.path / "shared" / "tasks"
    return sorted(name for name in os.listdir(folder) if re.search(pattern, name))


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def slave(world: World, workers: int = 1) -> Program:
    return world.task_manager("slave", "--folder", "shared", "-w", "-n", workers)


def test_a_straggler_is_run_once_more_and_its_late_result_is_nobodys(
    world: World, master: MasterProcess
) -> None:
    slaves = [slave(world) for _ in range(2)]
    master.requestTasks("slow_once", [(x,) for x in range(40)])
    got = [result for _, _, result in master.results(timeout=100)]
    assert sorted(got) == list(range(40))  # though the first attempt has not ended
    assert len(lines(world.path / "slow")) == 1
    (world.path / "end").touch()
    master.requestTask("twice", 21)
    assert master.retrieveResult(timeout=100)[2] == 42
    master.shutdown()
    for one in slaves:
        one.finish()


def test_twelve_slaves_of_which_some_are_killed_lose_and_double_nothing(
    world: World, master: MasterProcess
) -> None:
    chance = random.Random(1)

    def slave(world: World) -> Program:
        return world.task_manager("slave", "--folder", "shared", "-w", "--idle", "20")

    slaves = [slave(world) for _ in range(12)]
    wait_until(lambda: len(master.task_manager.status()["slaves"]) == 12, "all are there")
    count = 400
    master.requestTasks("slow_once", [(x,) for x in range(1, count + 1)], crash_limit=100)
    got: Counter[int] = Counter()
    for number in range(count):
        if number % 50 == 25:
            victim = slaves.pop(chance.randrange(len(slaves)))
            victim.kill()
            slaves.append(slave(world))
        got[master.retrieveResult(timeout=100)[2]] += 1
    assert got == Counter(range(1, count + 1))
    assert master.task_manager.status()["waiting"] == {}
    master.shutdown()
    for one in slaves:
        one.finish()  # also one that has come too late for the job


def test_what_lies_there_is_taken_away_when_it_is_cancelled(
    world: World, master: MasterProcess
) -> None:
    unwanted = master.requestTask("gate", 1, "never")
    wanted = master.requestTask("twice", 4)
    wait_until(lambda: len(tasks(world, "in$")) == 2, "both lie there")
    assert master.cancelTask(unwanted)
    wait_until(lambda: tasks(world, "in$") == [f"{wanted}.1.in"], "one is taken away")
    slave(world)
    assert master.retrieveResult(timeout=100)[2] == 8
    assert lines(world.path / "ran") == []


def test_what_a_slave_runs_is_stopped_when_it_is_cancelled(
    world: World, master: MasterProcess
) -> None:
    slave(world)
    unwanted = master.requestTask("gate", 1, "never")
    wait_until(lambda: lines(world.path / "ran"), "it runs")
    assert master.cancelTask(unwanted)
    master.requestTask("twice", 4)
    assert master.retrieveResult(timeout=100)[2] == 8
    wait_until(lambda: tasks(world, ".") == [], "nothing of it is left")


def test_a_slave_without_space_keeps_its_results_until_there_is_some(
    world: World, master: MasterProcess
) -> None:
    one = slave(world)
    master.requestTask("twice", 21)
    assert master.retrieveResult(timeout=100)[2] == 42
    _, most = resource.prlimit(one.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (1 << 16, most))  # as a quota would
    master.requestTask("large", 1 << 20)
    wait_until(lambda: "cannot be written, they are kept" in one.err, "it says so")
    assert "File too large" in one.err
    resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (most, most))
    assert len(master.retrieveResult(timeout=100)[2]) == 1 << 20
    assert master.task_manager.status()["active_processes"] == 2  # the slave is the same
    master.shutdown()
    one.finish()
    assert os.listdir(world.path / "shared" / "aside") == []


@pytest.fixture
def hosts() -> Iterator[Namespaces]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with namespaces(2) as made:
        yield made


def test_a_slave_that_is_cut_off_goes_on_by_the_folder_that_its_master_named(
    world: World, hosts: Namespaces
) -> None:
    world.env["MASTERSLAVE_HOST"] = "0.0.0.0"
    script = world.write("job.py", NETWORK_JOB)
    job = Program(hosts.command(1, sys.executable, script), world)
    world.programs.append(job)
    at = ["-m", hosts.address(1)]
    command = ["-m", "masterslave", "slave", "job", *at, "-w"]  # it is told no folder
    one = Program(hosts.command(2, sys.executable, *command), world)
    world.programs.append(one)
    wait_until(lambda: job.out.count("done") >= 10, "the job is under way by the network")
    assert "using folder" not in one.err
    hosts.cut(2, silently=False)  # silence is believed after 45 s only, by the system
    (world.path / "cut").touch()
    wait_until(lambda: "using folder" in one.err, "the slave takes the other way")
    job.finish()
    done = [int(line.split()[1]) for line in job.out.splitlines()]
    assert sorted(done) == list(range(60))
    one.finish()


def test_a_slave_script_names_a_folder(world: World) -> None:
    """The network leads nowhere, so it is the folder that it works by."""
    world.write("slave.py", SLAVE)
    text = """
        import sys
        from masterslave import initializeMasterProcess
        master = initializeMasterProcess("demo", slave_module="slave", failover_folder="shared")
        master.requestTask("twice", 21)
        print(master.retrieveResult(timeout=100)[2])
    """
    job = world.script(text)
    wait_until((world.path / "shared" / "status").exists, "the master is there")
    text = """
        from slave import do_twice
        from masterslave import startSlaveProcess
        startSlaveProcess("demo", "127.0.0.1:1", folder="shared")
    """
    one = world.script(text, name="script_of_slave.py")
    assert job.finish() == "42\n"
    one.finish()
    assert "using folder" in one.err


def test_a_slave_that_comes_after_the_end_does_not_wait_for_ever(
    world: World, master: MasterProcess
) -> None:
    master.shutdown()
    late = world.task_manager("slave", "--folder", "shared", "-w", "--idle", "0.3")
    late.finish()
    assert "its job is over; start the master to go on: leaving" in late.err


@pytest.mark.parametrize("folder", ["", 3, b""])
def test_a_folder_that_is_no_path_is_named(folder: object) -> None:
    with pytest.raises(SettingsError, match=r"folder=.*: must be a path"):
        SlaveProcess("demo", folder=folder)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"folder=.*: must be a path"):
        startSlaveProcess("demo", folder=folder)  # type: ignore[arg-type]


def test_what_a_slave_returns_that_nobody_has_seen_is_not_lost(
    world: World, master: MasterProcess
) -> None:
    """It comes, takes something and leaves while the master is held up."""
    master.requestTask("twice", 21)
    wait_until(lambda: tasks(world, r"\.in$"), "it lies there")
    place = Place(world.path / "shared", load_key(master.settings.key_file))
    claim = Finder(place).claim(0.0, frozenset({"twice"}))
    assert claim is not None
    head = place.read("tasks", claim.lock, name=f"{claim.bundle}.in")[0]
    task_id, _, attempt, _ = head["tasks"][0]
    end = f"{claim.bundle}.out"
    done = {"owner": place.owner, "done": [[task_id, attempt, "returned", 0.0, "not begun"]]}
    place.files.finish(
        place.at("tasks", claim.lock), place.at("tasks", end), place.pack(end, done, [[]])
    )
    slave(world)
    assert master.retrieveResult(timeout=100)[2] == 42


def test_the_task_of_a_killed_slave_runs_elsewhere(world: World, master: MasterProcess) -> None:
    first = slave(world)
    master.requestTask("gate", 1, "open")
    wait_until(lambda: lines(world.path / "ran"), "it runs")
    first.send_signal(signal.SIGKILL)
    second = slave(world)
    wait_until(lambda: len(lines(world.path / "ran")) == 2, "it runs elsewhere")
    (world.path / "open").touch()
    assert master.retrieveResult(timeout=100)[2] == 1
    master.shutdown()
    second.finish()

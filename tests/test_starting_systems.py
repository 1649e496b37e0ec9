"""`start`, `stop`, `status`, `allocate` with real batch systems on this machine."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from clusters.pool import Pool
from clusters.systems import Systems, missing
from conftest import PATIENCE_S, ROOT, World, wait_until

from masterslave import ClusterExecutor, StartError, allocate, masterHost, runfolder, start, stop
from masterslave.errors import LauncherError
from masterslave.launchers import launcher, psij
from masterslave.launchers.base import run_command
from masterslave.runfolder import RunFolder
from masterslave.starting import Started
from masterslave.stopping import overview

pytestmark = pytest.mark.timeout(600)  # the first start of HTCondor unpacks a system

#: PSI/J's thread leaves the pipes of its processes to be closed by nobody.
UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture
def slurm(world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world with a Slurm, of whose jobs none is left at the end."""
    for name, value in systems.start("slurm").items():
        monkeypatch.setenv(name, value)
        world.env[name] = value
    monkeypatch.chdir(world.path)
    monkeypatch.setenv("PYTHONPATH", world.env["PYTHONPATH"])
    yield world
    for path in (world.path / ".masterslave" / "starts").glob("*"):
        stop(path.name, within=1.0)


def started(*args: Any, **options: Any) -> Started:
    found = start(*args, **options)
    assert isinstance(found, Started)
    return found


def all_over(ids: tuple[str, ...]) -> bool:
    return all(state.is_over for state in launcher("slurm").states(ids).values())


def test_manager_and_slaves_in_jobs(slurm: World) -> None:
    found = started("lab", 5, serve=True, per_slave=2, walltime="10m")
    assert found.on == "slurm"  # it answers, so it was chosen
    assert len(found.slaves) == 3
    address = masterHost("lab", timeout=PATIENCE_S)
    with ClusterExecutor("lab", address) as executor:
        assert sum(executor.map(abs, range(-99, 0))) == 4950
    wait_until(lambda: sum(1 for row in overview("lab").rows if row.slave) == 3)
    rows = {row.job: row for row in overview("lab").rows}
    assert [rows[one].workers for one in found.slaves] == [2, 2, 1]
    assert all(row.phase == "running" for row in rows.values())
    lines = stop("lab")
    assert lines[0] == "told 3 slaves to finish what runs and leave"
    assert all_over((found.manager, *found.slaves))
    wait_until(lambda: not slurm.processes())


def test_why_a_slave_is_missing(slurm: World) -> None:
    held = started("held", 1, "slurm", serve=True, options=["--hold"])
    seen = overview("held")
    assert seen.why == f"its job {held.manager} waits: JobHeldUser"
    for row in seen.rows:
        assert (row.phase, row.remark, row.missing) == ("pending", "waits: JobHeldUser", False)
    broken = started("broken", 1, "slurm", wait=True, python="/bin/false")
    alone = started("alone", 1, "slurm", wait=True)
    wait_until(lambda: "before its slave said anything" in overview("broken").rows[0].remark)
    wait_until(lambda: "looks for its manager on " in overview("alone").rows[0].remark)
    for label in ("held", "broken", "alone"):
        stop(label)
    assert all_over((held.manager, *held.slaves, *broken.slaves, *alone.slaves))
    wait_until(lambda: not slurm.processes())


@pytest.mark.parametrize("name", ["slurm", "sge", "pbs"])
def test_how_a_job_ended_that_has_brought_no_slave(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its interpreter is not there, or it was killed while it looked for its manager."""
    settings = reach(name, world, systems, monkeypatch)

    def remark(label: str) -> str:
        (row,) = overview(label).rows
        return row.remark

    started("broken", 1, name, wait=True, python="/no/python", launcher_settings=settings)
    alone = started("alone", 1, name, wait=True, launcher_settings=settings)
    wait_until(lambda: "before its slave said anything" in remark("broken"))
    assert re.search("its log: .*/no/python: .*not found", remark("broken"))
    wait_until(lambda: remark("alone").startswith("looks for its manager on "))
    launcher(name, **settings).cancel(alone.slaves)
    wait_until(lambda: "; until then its slave looked for its manager" in remark("alone"))
    if name == "sge":
        assert remark("broken").startswith("ended (exit status 127) before ")
        assert re.match(r"ended \(exit status \d+ .*, failed 100 : ", remark("alone"))
    for label in ("broken", "alone"):
        stop(label)
    wait_until(lambda: not world.processes())


def test_what_slurm_refuses_is_told_in_its_words(slurm: World) -> None:
    program = slurm.task_manager("start", "lab", "--serve", "--on", "slurm", "--", "--partition=x")
    program.finish(1)
    assert "sbatch: error: invalid partition specified: x" in program.err
    assert program.err.count("\n") == 1
    assert not list((slurm.path / ".masterslave" / "starts").iterdir())


def test_a_job_whose_record_cannot_be_kept_is_cancelled(
    slurm: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the job's id comes back."""
    write = runfolder._write
    submitted = []

    def full(path: Path, values: Mapping[str, Any]) -> None:
        if values.get("ids"):
            submitted.extend(values["ids"])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, values)

    monkeypatch.setattr(runfolder, "_write", full)
    with pytest.raises(StartError, match="cannot be kept: No space left on device"):
        start("lab", 2, "slurm", wait=True)
    assert len(submitted) == 2
    wait_until(lambda: all_over(tuple(submitted)))
    assert not list((slurm.path / ".masterslave" / "starts").iterdir())


@pytest.mark.long
def test_slaves_come_while_tasks_wait_and_leave_when_idle(slurm: World) -> None:
    """Two at most, however many tasks wait."""
    started("lab", 1, "slurm", serve=True, here=True, low=0, high=2, idle=2.0)
    folder = RunFolder.of("lab", slurm.path)
    most = 0

    def living() -> int:
        nonlocal most
        listed = run_command(["squeue", "--noheader", "--array", "--format=%i"])
        most = max(most, len(listed.out.split()))
        return most

    with ClusterExecutor("lab", masterHost("lab", PATIENCE_S)) as executor:
        assert living() == 0
        futures = [executor.submit(time.sleep, 0.2) for _ in range(100)]
        wait_until(lambda: living() and all(future.done() for future in futures), "all is done")
    assert most == 2
    assert len([note for note in folder.notes() if note.job_id]) >= 2
    wait_until(lambda: not run_command(["squeue", "--noheader"]).out, "idle slaves have left")
    rows = overview("lab").rows
    assert not [row for row in rows if row.slave or row.missing]
    stop("lab")
    wait_until(lambda: not slurm.processes())


@pytest.mark.long
def test_scaling_goes_on_where_a_process_was_killed_while_it_submitted(slurm: World) -> None:
    """Slurm has the job, whose id was told to nobody: it counts, so there are two at most."""
    found = started("lab", 1, "slurm", serve=True, here=True, low=1, high=2)
    folder = RunFolder.of("lab", slurm.path)
    wait_until(lambda: [row for row in overview("lab").rows if row.slave], "the first slave")
    os.kill(int(found.scaling.partition(":")[0]), signal.SIGKILL)
    (first,) = [one for one in folder.submissions() if one.role == "slave"]
    folder.write(first._replace(ids=None))
    second = slurm.task_manager("scale", "lab")
    wait_until(lambda: first in folder.submissions(), "its id is known again")

    def living() -> int:
        return len(run_command(["squeue", "--noheader", "--array", "--format=%i"]).out.split())

    seen = set()
    with ClusterExecutor("lab", masterHost("lab", PATIENCE_S)) as executor:
        futures = [executor.submit(time.sleep, 0.2) for _ in range(100)]
        wait_until(lambda: seen.add(living()) or all(future.done() for future in futures))
    assert max(seen) == 2
    stop("lab")
    second.finish()  # in order: what it submits is on record first
    wait_until(lambda: not slurm.processes())


@pytest.mark.parametrize(
    ("name", "arguments", "printed"),
    [
        ("one_word.py", ["lab"], "pi is about 3.144\n"),
        ("allocate.py", ["--on", "slurm"], r"pi is about 3\.1\d+, by 2 workers \(slurm\)\n"),
    ],
)
def test_examples(slurm: World, name: str, arguments: list[str], printed: str) -> None:
    """The word that makes a cluster of a pool is the label of what runs in jobs."""
    if "lab" in arguments:
        started("lab", 2, "slurm", serve=True)
        masterHost("lab", PATIENCE_S)
    assert re.fullmatch(printed, slurm.start(ROOT / "examples" / name, *arguments).finish())
    if "lab" in arguments:
        stop("lab")
    wait_until(lambda: not slurm.processes())
    assert not run_command(["squeue", "--noheader", "--states=PENDING,RUNNING"]).out


def test_an_allocation(slurm: World) -> None:
    with allocate(2, "slurm") as workers:
        with workers.executor() as executor:
            assert sum(executor.map(abs, range(-9, 0))) == 45
        ids = workers.started.slaves
    assert all_over(ids)
    wait_until(lambda: not slurm.processes())


#: Killed as soon as its jobs are submitted: their ids were told to nobody.
KILLED = """
    import json, os, signal, sys
    from masterslave import start
    from masterslave.starting import choose
    name, label, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    system = type(choose(name, settings, ask=False))
    submit = system.submit
    def killed(self, job):
        print(*submit(self, job), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    system.submit = killed
    start(label, 3, name, wait=True, launcher_settings=settings)
"""


def reach(
    name: str, world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Start a system, have this process and the world's find it; gives its launcher's settings."""
    if name.startswith("psij") and importlib.util.find_spec("psij") is None:
        missing("no psij-python")
    system = {"psij": "", "psij-slurm": "slurm-psij", "local": ""}.get(name, name)
    if system:
        for variable, value in systems.start(system).items():
            monkeypatch.setenv(variable, value)
            world.env[variable] = value
    monkeypatch.chdir(world.path)
    if name == "psij-slurm":
        monkeypatch.setattr(psij, "_ASK_S", 0.5)
        return {"executor": "slurm"}
    if name == "pbs":
        return {"dialect": "torque", "arrays": False}
    if name == "ssh":
        options = ["-F", world.env["SSH_TEST_CONFIG"]]
        return {"hosts": ["node1", "node2"], "options": options}
    return {}


def test_a_system_that_psij_does_not_know_is_named(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach("psij", world, systems, monkeypatch)
    with pytest.raises(LauncherError, match=r"psij has no 'cray', only .*local"):
        start("lab", 1, "psij", serve=True, launcher_settings={"executor": "cray"})


@UNCLOSED
@pytest.mark.parametrize("name", ["slurm", "sge", "pbs", "ssh", "psij"])
def test_a_start_that_was_killed_is_found_by_the_name_of_its_jobs(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Only its own jobs are: not those of another start of a label which begins like it."""
    settings = reach(name, world, systems, monkeypatch)
    label, other = "a-long-label", "a-long-label-as-well"
    killed = world.script(KILLED, name, label, json.dumps(settings))
    ids = killed.finish(-signal.SIGKILL).split()
    assert len(ids) == 3
    others = started(other, 3, name, wait=True, launcher_settings=settings)
    system, folder = launcher(name, **settings), RunFolder.of(label, world.path)
    (submission,) = folder.submissions()
    found = system.find(submission.name, str(folder.logs))
    if name == "ssh":  # two names of one host, as here, show each process twice
        ids, found = ([one.partition(":")[2] for one in some] for some in (ids, found))
    assert sorted(set(found)) == sorted(ids)
    if name == "ssh":
        ids = [f"node1:{one}" for one in ids]
    assert "the start was cut off" in stop(label)[0]
    states = system.states
    assert all(state.is_over for state in states(ids).values())
    assert not any(state.is_over for state in states(others.slaves).values())
    stop(other)
    assert all(state.is_over for state in states(others.slaves).values())
    wait_until(lambda: not world.processes())


def test_a_host_that_there_is_not_is_named(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = reach("ssh", world, systems, monkeypatch)
    settings["hosts"] = ["node1", "nohost.invalid"]
    with pytest.raises(
        LauncherError, match=r"cannot log in to nohost\.invalid: .*resolve"
    ) as caught:
        start("lab", 2, "ssh", serve=True, launcher_settings=settings)
    assert "\n" not in str(caught.value)
    assert not world.processes()


@UNCLOSED
@pytest.mark.parametrize("name", ["sge", "pbs", "ssh", "psij", "psij-slurm"])
def test_other_systems(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Slaves of a manager here: jobs and slaves are found to belong together; nothing is left."""
    settings = reach(name, world, systems, monkeypatch)
    name = name.partition("-")[0]
    found = started("lab", 2, name, serve=True, here=True, launcher_settings=settings)
    wait_until(lambda: sum(1 for row in overview("lab").rows if row.job and row.workers) == 2)
    with ClusterExecutor("lab", masterHost("lab", PATIENCE_S)) as executor:
        assert sum(executor.map(abs, range(-99, 1))) == 4950
    stop("lab")
    where = launcher(name, **settings)
    assert all(state.is_over for state in where.states(found.slaves).values())
    wait_until(lambda: not world.processes())


@UNCLOSED
@pytest.mark.parametrize("name", ["sge", "pbs", "ssh", "psij", "psij-slurm"])
def test_an_allocation_of_other_systems(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = reach(name, world, systems, monkeypatch)
    name = name.partition("-")[0]
    with allocate(2, name, launcher_settings=settings) as workers:
        with workers.executor() as executor:
            assert sum(executor.map(abs, range(-99, 1))) == 4950
        ids = workers.started.slaves
    assert len(ids) == 2
    assert all(state.is_over for state in launcher(name, **settings).states(ids).values())
    wait_until(lambda: not world.processes())


@UNCLOSED
@pytest.mark.parametrize("name", ["local", "slurm", "sge", "pbs", "ssh", "psij", "psij-slurm"])
def test_odd_labels_and_folders_come_through_all_shells(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Home, working directory and label have all that a shell may stumble over."""
    settings = reach(name, world, systems, monkeypatch)
    folder = world.path / '-it\'s "$HOME" `x`; %j $PBS_JOBID  ü' / "work & more"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    if name not in ("pbs", "psij", "psij-slurm"):  # which themselves do not quote files in there
        world.path = folder.parent
        monkeypatch.setenv("HOME", str(world.path))
        world.env["HOME"] = str(world.path)
    name = name.partition("-")[0]
    label = '-- it\'s "$HOME" `x` %j \\ é'
    started(label, 2, name, serve=True, here=name != "local", launcher_settings=settings)
    try:
        wait_until(lambda: sum(row.workers or 0 for row in overview(label).rows) == 2)
    except AssertionError:
        print(overview(label))
        raise
    with ClusterExecutor(label, masterHost(label, PATIENCE_S)) as executor:
        there = executor.submit(os.getcwd).result(PATIENCE_S)
    assert there == str(folder)
    logs = RunFolder.of(label, world.path).logs
    assert [path for path in logs.iterdir() if path.suffix == ".log"]
    stop(label)
    wait_until(lambda: not world.processes())


@UNCLOSED
@pytest.mark.parametrize("name", ["ssh", "psij", "psij-slurm"])
def test_an_allocation_ends_with_a_block_that_fails(
    world: World, systems: Systems, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At once: its slaves may not even have started."""
    settings = reach(name, world, systems, monkeypatch)
    name = name.partition("-")[0]
    with pytest.raises(KeyError), allocate(2, name, launcher_settings=settings):
        raise KeyError
    wait_until(lambda: not world.processes())
    assert not list((world.path / ".masterslave" / "starts").iterdir())


# --- HTCondor: the pool has a system of its own, so all of it runs there ------------------------


@pytest.fixture
def pool(world: World, systems: Systems) -> Pool:
    return Pool(world, systems)


CALLS = """
    from masterslave import ClusterExecutor, masterHost
    with ClusterExecutor("lab", masterHost("lab", 60)) as executor:
        print(sum(executor.map(abs, range(-99, 0))))
"""
CUT_OFF = """
    import json, subprocess, sys
    from pathlib import Path
    from masterslave.launchers import launcher, psij
    from masterslave.runfolder import RunFolder
    from masterslave.starting import start
    from masterslave.stopping import stop
    command = [sys.executable, "killed.py", "htcondor", "a lab", "{}"]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    other = start("a lab, too", 2, "htcondor", wait=True)
    folder = RunFolder.of("a lab", Path.cwd())
    (submission,) = folder.submissions()
    print(launcher("htcondor").find(submission.name, str(folder.logs)) == killed.stdout.split())
    print(stop("a lab")[0])
    states = launcher("htcondor").states
    for ids in (killed.stdout.split(), other.slaves):
        print(killed.returncode, [state.is_over for state in states(ids).values()])
    stop("a lab, too")
"""


ODD = """
    import os
    from pathlib import Path
    from masterslave import ClusterExecutor, masterHost, start, stop
    home = Path.cwd() / "-it's \\"$HOME\\" `x`; %j  ü"
    folder = home / "work & more"
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ["HOME"] = str(home)
    label = "-- it's \\"$HOME\\" `x` $(Cluster) \\\\ é"
    start(label, 1, "htcondor", serve=True, here=True)
    executor = ClusterExecutor(label, masterHost(label, 60))
    print(executor.submit(os.getcwd).result(120) == str(folder))
    executor.shutdown()
    print(stop(label)[-1])
"""


def paired(pool: Pool) -> int:
    rows = json.loads(pool.task_manager("status", "lab", "--json"))["rows"]
    return sum(bool(row["job"] and row["workers"]) for row in rows)


def remark(pool: Pool, label: str) -> str:
    (row,) = json.loads(pool.task_manager("status", label, "--json"))["rows"]
    return str(row["remark"])


def queue_is_empty(pool: Pool) -> bool:
    """What has completed may be listed for a moment."""
    listed = pool.run("condor_q", "-constraint", "JobStatus != 4", "-autoformat", "ClusterId")
    return not listed.strip()


def test_htcondor_with_manager_and_slaves_in_jobs(pool: Pool) -> None:
    pool.give(pool.world.write("calls.py", CALLS))
    arguments = ("-n", 2, "--on", "htcondor", "--serve", "--walltime", "10m", "--json")
    found = json.loads(pool.task_manager("start", "lab", *arguments))
    assert found["on"] == "htcondor" and found["manager"] and len(found["slaves"]) == 2
    assert pool.run("python3", "calls.py") == "4950\n"
    wait_until(lambda: paired(pool) == 2, "both jobs have their slaves")
    pool.task_manager("start", "held", "--on", "htcondor", "-w", "--", "hold = true")
    (row,) = json.loads(pool.task_manager("status", "held", "--json"))["rows"]
    assert (row["phase"], row["missing"]) == ("pending (HELD)", False)
    assert row["remark"].startswith("waits: held: ")
    pool.run("condor_rm", row["job"])
    pool.task_manager("start", "none", "--on", "htcondor", "-w", "--python", "no-python")
    wait_until(lambda: "(exit status 127) before its slave" in remark(pool, "none"))
    assert "no-python" in remark(pool, "none").rpartition("its log: ")[2]
    wait_until(lambda: "ended (via condor_rm (by user work)) before" in remark(pool, "held"))
    for label in ("held", "none"):
        pool.task_manager("stop", label)
    assert "told 2 slaves to finish what runs and leave" in pool.task_manager("stop", "lab")
    assert queue_is_empty(pool)
    wait_until(lambda: not pool.world.processes())


def test_odd_labels_and_folders_come_through_htcondor(pool: Pool) -> None:
    pool.give(pool.world.write("odd.py", ODD))
    assert pool.run("env", "LC_ALL=C.UTF-8", "python3", "odd.py") == "True\nnothing is left\n"
    wait_until(lambda: not pool.world.processes())


def test_an_allocation_of_htcondor(pool: Pool) -> None:
    pool.give(ROOT / "examples" / "allocate.py")
    printed = pool.run("python3", "allocate.py", "--on", "htcondor")
    assert re.fullmatch(r"pi is about 3\.1\d+, by 2 workers \(htcondor\)\n", printed)
    assert queue_is_empty(pool)
    wait_until(lambda: not pool.world.processes())


def test_a_start_with_htcondor_that_was_killed_is_found_by_the_name_of_its_jobs(pool: Pool) -> None:
    pool.give(pool.world.write("killed.py", KILLED))
    pool.give(pool.world.write("cut_off.py", CUT_OFF))
    found, told, *over = pool.run("python3", "cut_off.py").splitlines()
    assert found == "True"
    assert "the start was cut off" in told
    assert over == ["-9 [True, True, True]", "-9 [False, False]"]
    assert queue_is_empty(pool)
    wait_until(lambda: not pool.world.processes())


def test_the_submit_file_of_a_shared_folder_for_htcondor(pool: Pool) -> None:
    """One master and its slaves, none of which is told where another one runs."""
    for name in ("folder.py", "folder.sub"):
        pool.give(ROOT / "examples" / name)
    pool.run("condor_submit", "slaves=3", "folder.sub")
    said = pool.there / "folder-0.out"
    wait_until(lambda: said.exists() and said.read_text(), "the master has printed")
    assert said.read_text() == "the sum of squares is 2470\n"
    wait_until(lambda: queue_is_empty(pool), "the slaves have left with their master")
    errors = {path.name: path.read_text() for path in pool.there.glob("folder-*.err")}
    assert set(errors) == {f"folder-{number}.err" for number in range(4)}
    assert not any("Traceback" in text for text in errors.values()), errors
    for name in ("tasks", "slaves", "aside", "refused"):
        assert list((pool.there / "run1" / name).iterdir()) == []
    wait_until(lambda: not pool.world.processes(), "nothing is left")

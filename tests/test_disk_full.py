"""A journal on a disk that is full, really: a small file system, or a limit on the size of files.

The first needs the right to mount; the second is had by anyone, and stands for quotas as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import Program, World, wait_until
from disks import Place, SmallDisk, mounted

TASKS = 24
FREE = 6  # tasks that need not wait
JOB = """
    import os, sys, time
    from masterslave import MasterProcess, SlaveProcess, runJob
    from masterslave.errors import JournalFull

    TASKS, FREE = {tasks}, {free}

    def wait_for(name):
        while not os.path.exists(name):
            time.sleep(0.01)

    class Master(MasterProcess):
        def run(self):
            self.requestTasks("work", [(number,) for number in range(TASKS)])
            got = [self.take() for _ in range(FREE)]
            print("first", flush=True)
            wait_for("ask")
            for number in range(TASKS, TASKS + 3):
                try:
                    self.requestTask("work", number)
                except JournalFull as error:
                    print("refused:", error, flush=True)
                    wait_for("room")
                    self.requestTask("work", number)
                print("asked", number, flush=True)
            got += [self.take() for _ in range(TASKS + 3 - FREE)]
            left = self.task_manager.outstandingTasks(self.process_id)
            print(sorted(got) == list(range(TASKS + 3)), left, flush=True)

        def take(self):
            number, data = self.retrieveResult()[2]
            assert data == bytes([number]) * 30000
            return number

    class Slave(SlaveProcess):
        def do_work(self, number):
            if number >= FREE:
                wait_for("go")
            with open("ran", "a") as file:
                print(number, file=file)
            return number, bytes([number]) * 30000

    runJob("job", Master, Slave, launch_slaves=2, journal=sys.argv[1])
"""


def start(world: World, place: Place) -> Program:
    """A master with two slaves, up to the moment when its journal cannot be written any more."""
    world.env["MASTERSLAVE_PORT"] = "0"
    script = world.write("job.py", JOB.format(tasks=TASKS, free=FREE))
    master = world.start(script, place.path)
    wait_until(lambda: "first" in master.out or master.poll() is not None, "it has begun")
    assert master.poll() is None, master.err
    place.fill(master)
    (world.path / "go").touch()
    wait_until(lambda: "cannot be written" in master.err, "it says so")
    return master


def ran(world: World) -> list[int]:
    return [int(number) for number in (world.path / "ran").read_text().split()]


# --- in the midst of a job ------------------------------------------------------------------


def test_a_job_waits_for_room_and_goes_on_with_nothing_lost_or_doubled(
    world: World, place: Place
) -> None:
    master = start(world, place)
    (world.path / "ask").touch()
    wait_until(lambda: "requests wait: journal" in master.err, "requests wait")
    assert "asked" not in master.out
    assert max(ran(world)) < TASKS, "a task was handed out that is not on record"
    place.make_room(master)
    assert master.finish().endswith("True 0\n")
    assert sorted(ran(world)) == list(range(TASKS + 3))
    trouble = [line for line in master.err.splitlines() if "results are not acknowledged" in line]
    assert len(trouble) == 1, master.err
    assert re.fullmatch(
        rf"journal {place.path} cannot be written: [\w /]+ \([^()]+\); requests wait, "
        "and results are not acknowledged, until it can be",
        trouble[0],
    )
    assert master.err.count("the journal can be written again") == 1


def test_a_master_killed_while_the_disk_is_full_loses_nothing_it_acknowledged(
    world: World, place: Place
) -> None:
    master = start(world, place)
    master.kill()
    master.wait()
    if isinstance(place, SmallDisk):
        place.make_room(None)
    (world.path / "ask").touch()
    second = world.start(world.path / "job.py", place.path)
    assert second.finish().endswith("True 0\n")
    # Its slaves have outlived it, and hand in what could not be acknowledged.
    assert sorted(ran(world)) == list(range(TASKS + 3))


def test_requests_are_refused_where_the_settings_say_so(world: World, place: Place) -> None:
    world.env["MASTERSLAVE_WHEN_FULL"] = "raise"
    master = start(world, place)
    (world.path / "ask").touch()
    wait_until(lambda: "refused: " in master.out, "a request is refused")
    assert f"refused: journal {place.path} cannot be written: " in master.out
    assert "requests wait: " not in master.err
    place.make_room(master)
    (world.path / "room").touch()
    assert master.finish().endswith("True 0\n")
    assert sorted(ran(world)) == list(range(TASKS + 3))


# --- from the start -------------------------------------------------------------------------


def refused(world: World, path: Path, problem: str, *before: str) -> None:
    """A task manager of its own and a master both say in one line what is wrong."""
    script = world.write(
        "master.py",
        """
        import sys
        from masterslave import MasterProcess
        MasterProcess("job", use_name_server=False, journal=sys.argv[1])
        """,
    )
    world.env["MASTERSLAVE_PORT"] = "0"
    arguments = ("serve", "job", "--journal", path)
    served = world.start(*before, "-m", "masterslave", *arguments)
    served.finish(1)
    assert re.fullmatch(rf"task_manager: journal {path}\b.*{problem}.*\n", served.err), served.err
    master = world.start(*before, script, path)
    master.finish(1)
    last = master.err.strip().splitlines()[-1]
    assert re.match(rf"masterslave\.errors\.Journal\w+: journal {path}\b.*{problem}", last)


def test_a_disk_that_is_full_from_the_start(world: World, small_disk: SmallDisk) -> None:
    small_disk.fill(None)
    refused(world, small_disk.path, "cannot be written: ")


def test_a_limit_from_the_start(world: World) -> None:
    """Run by a program that limits itself and then becomes what it was told to be."""
    world.write(
        "limited.py",
        """
        import os, resource, sys
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # a traceback, not a page
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
        """,
    )
    refused(world, world.path / "journal", "cannot be written: ", "limited.py")


@pytest.mark.parametrize("there", [False, True], ids=["new", "there already"])
def test_a_folder_that_may_not_be_written(world: World, tmp_path: Path, there: bool) -> None:
    with contextlib.ExitStack() as undo:
        folder = tmp_path / "disk"
        if os.geteuid() == 0:  # to whom modes mean nothing
            undo.enter_context(mounted(folder))
        else:
            folder.mkdir()
        path = folder / "journal"
        if there:
            from masterslave.keyfile import load_key
            from masterslave.settings import Settings
            from masterslave.stores.sqlite import SqliteStore

            SqliteStore(path, load_key(Settings.from_environment().key_file)).close()
        if os.geteuid() == 0:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        else:
            folder.chmod(0o500)
            undo.callback(folder.chmod, 0o700)
        problem = "(cannot be written|[Rr]ead-only|Permission denied|readonly)"
        refused(world, path, problem)

"""A served task manager whose journal cannot be written for a while: nothing is lost or doubled."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from command import Run
from conftest import Program, World, free_port, wait_until
from disks import Place, SmallDisk

TASKS = 40
FREE = 5  # tasks that need not wait

SLAVE = """
    import os, time
    from masterslave import startSlaveProcess

    def do_work(number):
        if number >= {free}:
            while not os.path.exists("go"):
                time.sleep(0.01)
        with open("ran", "a") as file:
            print(number, file=file)
        return number, bytes([number]) * 30000

    startSlaveProcess("demo", "{where}")
"""

CLIENT = """
    import logging, os, time
    from masterslave import MasterProcess

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    master = MasterProcess("demo", attach=True, master_host="{where}")
    master.requestTasks("work", [(number,) for number in range({tasks})])
    got = [master.retrieveResult()[2] for _ in range({free})]
    print("first", flush=True)
    while not os.path.exists("ask"):
        time.sleep(0.01)
    for number in range({tasks}, {tasks} + 3):
        master.requestTask("work", number)
        print("asked", number, flush=True)
    got += [master.retrieveResult()[2] for _ in range({tasks} + 3 - {free})]
    right = sorted((number, bytes([number]) * 30000) for number in range({tasks} + 3))
    print(sorted(got) == right, master.task_manager.outstandingTasks(), flush=True)
    master.shutdown()
"""


class Scene:
    """Manager, slaves and a client, up to the moment when the journal cannot be written."""

    def __init__(self, world: World, place: Place) -> None:
        self.world = world
        self.place = place
        self.port = free_port()
        self.manager = self.serve()
        for _ in range(2):
            self._script("slave.py", SLAVE)
        self.client = self._script("client.py", CLIENT)
        wait_until(lambda: "first" in self.client.out or self.client.poll() is not None, "it began")
        assert self.client.poll() is None, self.client.err
        place.fill(self.manager)
        (world.path / "go").touch()
        wait_until(lambda: "cannot be written" in self.manager.err, "the manager says so")

    def serve(self) -> Program:
        where = ("--port", self.port, "--journal", self.place.path)
        program = self.world.task_manager("serve", "demo", "-v", *where)
        wait_until(lambda: "task manager demo at" in program.out or program.poll() is not None)
        return program

    def _script(self, name: str, text: str) -> Program:
        text = text.format(where=f"127.0.0.1:{self.port}", tasks=TASKS, free=FREE)
        return self.world.script(text, name=name)

    def ask(self) -> None:
        """The client requests more, and is told that it waits, and why."""
        (self.world.path / "ask").touch()
        wait_until(lambda: "requests wait: " in self.client.err, "the client says so")
        assert "asked" not in self.client.out

    def ends_well(self) -> None:
        assert self.client.finish().endswith("True 0\n")
        ran = sorted(map(int, (self.world.path / "ran").read_text().split()))
        assert ran == list(range(TASKS + 3)), "each task is run once"
        self.manager.send_signal(signal.SIGTERM)
        self.manager.finish()
        wait_until(lambda: not self.world.processes(), "nothing is left")


@pytest.fixture
def scene(world: World, place: Place) -> Scene:
    return Scene(world, place)


def told(place: Place) -> str:
    """What is said of the file: which, how much is free, what to do."""
    remedy = "make room there" if isinstance(place, SmallDisk) else "but files .* raise ulimit -f"
    folder = re.escape(str(place.path.parent))
    return (
        rf"journal {re.escape(str(place.path))} cannot be written: [\w /]+ "
        rf"\([\d.]+[KMGT]? is free in {folder}[,;] {remedy}\)"
    )


def test_it_waits_for_room_and_goes_on(scene: Scene, place: Place, run: Run) -> None:
    scene.ask()
    lines = [line for line in scene.manager.err.splitlines() if "not acknowledged" in line]
    assert len(lines) == 1, scene.manager.err
    assert re.search(rf": {told(place)}; requests wait, and results are not", lines[0]), lines[0]
    assert scene.manager.err.count("room: requests wait") == 1, "it is said once"
    waits = [line for line in scene.client.err.splitlines() if "requests wait" in line]
    assert len(waits) == 1, "it is said once"
    assert re.fullmatch(rf"requests wait: {told(place)}", waits[0]), waits[0]
    _, shown, _ = run("show", "demo", "-m", f"127.0.0.1:{scene.port}")
    assert re.search(rf"^! requests wait, and results are not .*: {told(place)}$", shown, re.M)
    place.make_room(scene.manager)
    scene.ends_well()
    assert scene.manager.err.count("the journal can be written again") == 1
    assert "Traceback" not in scene.manager.err + scene.client.err


def test_killed_and_started_again_meanwhile_it_still_waits_for_room(
    scene: Scene, place: Place
) -> None:
    scene.ask()
    scene.manager.kill()
    scene.manager.wait()
    scene.manager = scene.serve()
    if isinstance(place, SmallDisk):  # a limit ends with the process that it was for
        said = "results are not acknowledged"
        wait_until(lambda: said in scene.manager.err, "the manager says so again")
        assert re.search(told(place), scene.manager.err)
        # What it was asked for when it did not know of that yet is not answered either.
        assert "asked" not in scene.client.out
        scene.manager.kill()
        scene.manager.wait()
        scene.manager = scene.serve()
        place.make_room(None)
    scene.ends_well()
    assert "Traceback" not in scene.manager.err + scene.client.err


def test_told_to_end_meanwhile_it_says_what_is_not_on_record(scene: Scene, place: Place) -> None:
    scene.manager.send_signal(signal.SIGTERM)
    scene.manager.finish(None)
    assert re.search(f"the last entries are not in the journal: {told(place)}", scene.manager.err)
    assert "Traceback" not in scene.manager.err
    if isinstance(place, SmallDisk):
        place.make_room(None)
    assert Path(place.path).exists()

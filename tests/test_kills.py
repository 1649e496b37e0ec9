"""All around a served task manager is killed at random, in the midst of thousands of tasks.

``KILLS_SEEDS=3-10`` in the environment has it run in a longer form, with these seeds.
"""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Program, World, free_port, wait_until

FROM, _, TO = os.environ.get("KILLS_SEEDS", "").partition("-")
LONG = bool(FROM)
SEEDS = list(range(int(FROM), int(TO or FROM) + 1)) if LONG else [1, 2]
TASKS = 2000 if LONG else 1000  # per client
KILLS = 15 if LONG else 6

SLAVE = """
    from masterslave import startSlaveProcess

    def do_square(x):
        return x * x

    startSlaveProcess("demo", "{where}")
"""

ATTACHED = """
    from masterslave import MasterProcess

    master = MasterProcess("demo", attach=True, master_host="{where}")
    master.requestTasks("square", ((x,) for x in range({tasks})))
    with open("attached", "a", buffering=1) as file:
        for task_id, tag, result in master.results():
            print(result, file=file)
    master.shutdown()
"""

EXECUTOR = """
    from concurrent.futures import as_completed
    from masterslave import ClusterExecutor

    with ClusterExecutor("demo", "{where}") as executor:
        futures = [executor.submit(lambda x: x * x, x) for x in range({tasks})]
        with open("executor", "a", buffering=1) as file:
            for future in as_completed(futures):
                print(future.result(), file=file)
"""

# What the callback was told is on disk, so the next run must not have it called again. The lines
# are written with one system call each: a kill leaves whole ones.
STORED = """
    import os, sys
    from masterslave import ClientThread

    def say(name, text):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, (text + chr(10)).encode())
        os.close(file)

    def noted(x):
        say({ran!r}, str(x))
        return x * x

    run = sys.argv[1]
    with ClientThread(lambda job, y: say("got" + run, str(y)), "{where}", label="demo",
                      store="results.db") as client:
        say("attached" + run, "")
        for x in range({tasks}):
            client.submit(noted, x)
"""

SQUARES = [x * x for x in range(TASKS)]


class Scene:
    """A served task manager with a journal, slaves and three clients, one of which has a store."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.port = free_port()
        self.runs = 0
        self.done_before: list[tuple[set[int], int]] = []  # results got, lines of `ran` by then
        self.manager = self._serve()
        wait_until(self.answers, "it is there")
        self.slaves = [self._slave() for _ in range(2)]
        self.clients = [
            self._script("attached.py", ATTACHED),
            self._script("executor.py", EXECUTOR),
        ]
        self.stored = self._store()
        wait_until(lambda: bool(self.lines("attached") and self.lines("executor")), "all work")

    def _slave(self) -> Program:
        slave = self._script("slave.py", SLAVE)
        wait_until(lambda: self.has(slave), "the slave is there")
        return slave

    def has(self, slave: Program) -> bool:
        """Whether the slave has come to the task manager that is there now."""
        return re.search(rf"PID {slave.pid} .*is ready", self.manager.err) is not None

    def _serve(self) -> Program:
        where = ("--port", self.port, "--journal", "tasks.db")
        return self.world.task_manager("serve", "demo", "-v", *where)

    def _script(self, name: str, text: str, *arguments: object) -> Program:
        ran = str(self.world.path / "ran")
        text = text.format(where=f"127.0.0.1:{self.port}", tasks=TASKS, ran=ran)
        return self.world.script(text, *arguments, name=name)

    def _store(self) -> Program:
        self.runs += 1
        program = self._script("stored.py", STORED, self.runs)
        there = self.world.path / f"attached{self.runs}"
        wait_until(lambda: there.exists() or program.poll() is not None, "the client is there")
        return program

    def lines(self, name: str) -> list[int]:
        path: Path = self.world.path / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def got(self) -> list[int]:
        return self.lines(f"got{self.runs}")

    def progress(self) -> int:
        return len(self.lines("attached")) + len(self.lines("executor")) + len(self.got())

    # --- what is killed -------------------------------------------------------------------------

    def kill_manager(self) -> None:
        self.manager.kill()
        self.manager.wait()
        self.manager = self._serve()
        wait_until(self.answers, "it is there again")  # who starts meanwhile would be refused

    def answers(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def kill_store(self) -> None:
        if self.stored.poll() is not None:
            return
        self.stored.kill()
        self.stored.wait()
        self.done_before.append((set(self.got()), len(self.lines("ran"))))
        self.stored = self._store()

    def kill_slave(self) -> None:
        self.slaves[0].kill()
        self.slaves[0].wait()
        self.slaves = [*self.slaves[1:], self._slave()]


@pytest.mark.timeout(900 if LONG else 120)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_call_has_one_result_whatever_is_killed(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.env["MASTERSLAVE_CLIENT_GRACE"] = "5"
    scene = Scene(world)
    kills: list[Callable[[], None]] = [scene.kill_manager, scene.kill_store, scene.kill_slave]
    order = kills * (KILLS // len(kills))
    chance.shuffle(order)
    for kill in order:
        goal = scene.progress() + chance.randrange(1, TASKS // KILLS)
        await_progress(scene, goal)
        kill()
    for program in (*scene.clients, scene.stored):
        program.finish()
    assert sorted(scene.lines("attached")) == SQUARES
    assert sorted(scene.lines("executor")) == SQUARES
    assert Counter(scene.got()) == Counter(SQUARES)
    for got, ran in scene.done_before:
        again = {x * x for x in scene.lines("ran")[ran:]} & got
        assert not again, "what was on disk was called again"
    for slave in scene.slaves:  # or it looks for a minute for a task manager that has ended
        wait_until(functools.partial(scene.has, slave), "the slave is there again")
    scene.manager.send_signal(signal.SIGTERM)
    wait_until(lambda: not world.processes(), "nothing is left")
    assert "Traceback" not in scene.manager.err


def await_progress(scene: Scene, goal: int) -> None:
    wait_until(lambda: scene.progress() >= goal or ended(scene), "the work goes on")


def ended(scene: Scene) -> bool:
    """Whether all clients have ended, so that no more progress will come."""
    return all(program.poll() is not None for program in (*scene.clients, scene.stored))

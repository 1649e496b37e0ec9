"""Whatever happens in whatever order to tasks on shortcuts, each has one result in the end."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from managing import Clock, X

from masterslave.journal import Journal
from masterslave.manager import TaskManager
from masterslave.records import Assignment, Completion, Outcome, ProcessInfo
from masterslave.settings import Settings
from masterslave.stores.memory import MemoryStore
from masterslave.waiters import Parked

TAG = "tiny"
STEPS = 150
Key = tuple[str, int]


def ended(key: Key, outcome: Outcome = Outcome.RESULT) -> Completion:
    return Completion(*key, outcome.value, [b"r"], 1e-6, "died")


class Pipe:
    """A worker, and what is on its way to it and back; it outlives the task manager's end."""

    def __init__(self) -> None:
        self.to: deque[tuple[str, Any]] = deque()  # messages that it has not read
        self.line: deque[Key] = deque()  # in its memory; the first may have begun
        self.has_begun = False
        self.results: list[Completion] = []  # that nobody has read
        self.is_held = False  # it is to begin nothing
        self.is_told = False  # it has to read what came before it begins anything
        self.begun: list[Key] = []  # whatever it has begun

    def read(self) -> None:
        """The worker takes in all that has come."""
        while self.to:
            kind, what = self.to.popleft()
            if kind == "tasks":
                self.line.extend(what)
            elif kind == "skip":
                assert not self.has_begun or self.line[0] not in what, "it has begun that"
                self.line = deque(key for key in self.line if key not in what)
        self.is_told = False

    def run(self, count: int) -> None:
        """The worker ends so many tasks, and has begun the next one."""
        for _ in range(count):
            if not self.line or not self.begin():
                break
            self.results.append(ended(self.line.popleft()))
            self.has_begun = False
        self.begin()

    def begin(self) -> bool:
        """The worker begins its first task, if it has not and may."""
        if not self.has_begun and not self.is_held:
            if self.is_told:
                self.read()
            self.has_begun = bool(self.line)
            self.begun += [self.line[0]] if self.line else []
        return self.has_begun

    def take(self) -> list[Completion]:
        taken, self.results = self.results, []
        return taken


class End:
    """The task manager's end of a pipe."""

    room_bytes = 4000

    def __init__(self, pipe: Pipe, heard: Callable[[], None]) -> None:
        self.pipe, self.heard = pipe, heard
        self.is_open, self.is_watched = True, False

    def pack(self, tasks: Sequence[Assignment]) -> bytes:
        self._next: tuple[str, Any] = "tasks", [(task.task_id, task.attempt) for task in tasks]
        return b"x" * 40 * len(tasks)

    def pack_skip(self, keys: Sequence[Key]) -> bytes:
        self._next = "skip", set(keys)
        return b"x" * 10 * len(keys)

    def hold(self) -> bool:
        assert self.is_open
        self.pipe.is_held = True
        return True

    def begun(self) -> tuple[bool, Key | None]:
        assert self.pipe.is_held
        return True, self.pipe.begun[-1] if self.pipe.begun else None

    def release(self) -> None:
        self.pipe.is_told = self.pipe.is_told or self.pipe.is_held
        self.pipe.is_held = False

    def pack_forget(self, names: Sequence[str]) -> bytes:
        self._next = "forget", names
        return b"x"

    def send(self, data: bytes) -> None:
        assert self.is_open
        self.pipe.to.append(self._next)

    def read(self) -> list[Completion]:
        assert self.is_open
        return self.pipe.take()

    def acknowledge(self) -> None:
        assert self.is_open

    def look_closely(self, closely: bool) -> None:
        self.is_watched = closely

    def close(self) -> None:
        self.release()
        self.is_open = False


class Slave:
    """A slave with workers, whose supervisor is played."""

    def __init__(self, world: World, workers: int, token: str) -> None:
        self.world = world
        self.info = ProcessInfo(f"slave {token}", 1, "host", workers, token)
        self.id: int | None = None
        self.held: list[Key] = []  # that came the long way
        self.pipes: dict[int, Pipe] = {number: Pipe() for number in range(workers)}
        self.numbers = workers
        self.ends: dict[int, End] = {}
        self.parked: Parked | None = None
        self.is_lost = False
        self.register()

    def register(self) -> None:
        """The supervisor takes out what is unread, says what it holds, offers all pipes anew."""
        done = []
        for pipe in self.pipes.values():
            pipe.to.clear()
            done += pipe.take()
        begun = [pipe.line[0] for pipe in self.pipes.values() if pipe.has_begun]
        holds = [*self.held, *begun, *((one.task_id, one.attempt) for one in done)]
        manager = self.world.manager
        self.id, gone, self.generation = manager.registerProcess(None, self.info, self.id, holds)
        for pipe in self.pipes.values():
            pipe.to.clear()
        obsolete = {tuple(key) for key in gone}
        self.held = [key for key in self.held if key not in obsolete]
        self.is_lost = False
        manager.announceTags(self.id, [TAG])
        self.ends = {}
        for number in self.pipes:
            self.offer(number)
        self.call(done)

    def offer(self, number: int) -> None:
        self.world.offered = self.pipes[number]
        if self.world.manager.openShortcut(self.id, self.generation, number, [0] * 8):
            self.ends[number] = self.world.opened

    def call(self, done: Sequence[Completion] = ()) -> None:
        """The supervisor hands in, and waits for tasks."""
        got = self.world.manager.exchangeOrPark(
            self.answer, self.id, done, [], len(self.pipes), self.world.wait_s, self.generation
        )
        if isinstance(got, Parked):
            self.parked = got
        else:
            self.answer(got)

    def answer(self, answer: list[Any]) -> None:
        self.parked = None
        self.held += [(task.task_id, task.attempt) for task in answer[0]]
        if answer[1].get("register"):
            self.is_lost = True

    def work(self, count: int) -> None:
        """It runs tasks that came the long way."""
        if self.held:
            done, self.held = self.held[:count], self.held[count:]
            self.call(list(map(ended, done)))

    def dies(self, number: int) -> None:
        """A worker does: results first, then the blame, then the task manager is told."""
        pipe = self.pipes.pop(number)
        done = pipe.take()
        if pipe.has_begun:
            done.append(ended(pipe.line[0], Outcome.CRASHED))
        self.call(done)
        if number in self.ends:
            self.world.manager.closeShortcuts(self.id, self.generation, [number])
            del self.ends[number]
        self.pipes[self.numbers] = Pipe()
        self.offer(self.numbers)
        self.numbers += 1


class World:
    """A task manager, a client and slaves."""

    def __init__(self, chance: random.Random, *, journal: bool) -> None:
        self.chance, self.clock = chance, Clock()
        self.wait_s = 0.0 if journal else 20.0  # with a journal calls wait in their threads
        self.manager = TaskManager(
            "job",
            Settings(key_file=Path("unused")),
            clock=self.clock,
            journal=Journal(MemoryStore()) if journal else None,
        )
        self.client = self.manager.registerProcess(None, "client")[0]
        self.manager.allowShortcuts(self.open)
        self.manager._scheduler.pace.record(TAG, 0.0)
        self.requested: list[str] = []
        self.cancelled: set[str] = set()
        self.results: Counter[str] = Counter()
        self.direct = 0
        self.slaves = [Slave(self, workers, str(workers)) for workers in (1, 2)]

    def open(self, names: Sequence[Any], heard: Callable[[], None]) -> End:
        self.opened = End(self.offered, heard)
        return self.opened

    def request(self) -> None:
        count = self.chance.choice([1, 1, 2, 5, 30])
        options = [0, None, 0, 10**6, None]
        self.requested += self.manager.addTaskRequests(TAG, [X] * count, self.client, options)

    def cancel(self) -> None:
        if self.requested:
            task_id = self.chance.choice(self.requested)
            if self.manager.cancelTask(task_id):
                self.cancelled.add(task_id)

    def deliver(self) -> None:
        for one in self.manager.getResults(self.client, None, 10**6, 0.0):
            assert one.outcome == "result"
            self.results[one.task_id] += 1

    def look(self, slave: Slave, *, all_of_them: bool) -> None:
        """Time goes on; those are heard that are looked at closely, or all."""
        self.clock.now += 0.005
        for end in list(slave.ends.values()):
            if end.is_open and (end.is_watched or all_of_them):
                end.heard()

    def step(self, *, calm: bool = False) -> None:
        """Something happens; `calm`: nothing is lost, cancelled or begun anew."""
        slave = self.chance.choice(self.slaves)
        if slave.is_lost:
            slave.register()
            return
        pipe = self.chance.choice(list(slave.pipes.values()))
        what = self.chance.choices(
            ["request", "read", "run", "look", "told", "work", "call", "dies", "register", "lost",
             "cancel", "stall", "deliver"],
            [6, 6, 8, 4, 6, 4, 4, *([0] * 4 if calm else [1] * 4), 2, 2],
        )[0]  # fmt: skip
        if what == "request":
            self.request()
        elif what == "read":
            pipe.read()
        elif what == "run":
            self.direct += len(pipe.line)
            pipe.run(self.chance.choice([0, 1, 3, 50]))
        elif what in ("look", "told"):
            self.look(slave, all_of_them=what == "told")
        elif what == "work":
            slave.work(self.chance.choice([1, 50]))
        elif what == "call":
            slave.call()
        elif what == "dies":
            slave.dies(self.chance.choice(list(slave.pipes)))
        elif what == "register":
            slave.register()
        elif what == "lost":
            self.manager.lostProcess(slave.id or 0, "silent")
            slave.is_lost = True
        elif what == "cancel":
            self.cancel()
        elif what == "stall":
            for _ in range(12):
                self.look(slave, all_of_them=False)
        else:
            self.deliver()

    def finish(self) -> None:
        """All goes well from now on; so all comes to its end."""
        for _ in range(50):
            for slave in self.slaves:
                if slave.is_lost:
                    slave.register()
                for pipe in slave.pipes.values():
                    pipe.read()
                    pipe.run(10**6)
                self.look(slave, all_of_them=True)
                slave.work(10**6)
                if slave.parked is None:
                    slave.call()
            self.deliver()
            if not self.manager.outstandingTasks(self.client):
                return
        pytest.fail(f"{self.manager.numberOfTasks()} are left")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("journal", [False, True], ids=["no journal", "journal"])
def test_each_task_has_one_result(journal: bool, seed: int) -> None:
    direct = 0
    for number in range(15):
        world = World(random.Random(15 * seed + number), journal=journal)
        for _ in range(STEPS):
            world.step()
        world.finish()
        world.manager.forbidShortcuts()
        wanted = [task_id for task_id in world.requested if task_id not in world.cancelled]
        assert world.results == Counter(wanted), f"number {number}"
        direct += world.direct
    assert direct > 100, "tasks go this way"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("journal", [False, True], ids=["no journal", "journal"])
def test_what_is_taken_back_from_a_late_worker_is_run_once(journal: bool, seed: int) -> None:
    taken_back = 0
    for number in range(15):
        world = World(random.Random(15 * seed + number), journal=journal)
        for _ in range(STEPS):
            world.step(calm=True)
        world.finish()
        world.manager.forbidShortcuts()
        begun = [
            key for slave in world.slaves for pipe in slave.pipes.values() for key in pipe.begun
        ]
        assert max(Counter(task_id for task_id, _ in begun).values(), default=1) == 1
        taken_back += sum(attempt > 1 for _, attempt in begun)
    assert taken_back > 20, "tasks are taken back"

"""How a slave shares its tasks among its workers: random histories, with workers that lag behind.

A worker of the model has its own view: what it has not read yet, what it has in line, what it has
said and nobody has heard. So a task that is taken back may have begun by then.
"""

from __future__ import annotations

import itertools
import random
from collections import deque

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_dispatch import LONG_S, TINY_S, result, slave, task

from masterslave.dispatch import AHEAD_S, STALL_S, Action, Kill, Send, Skip
from masterslave.records import Assignment, Completion, Outcome

Key = tuple[str, int]
LEAVING, SKIPPED, BESIDE = "leaving", "skipped", "beside"


def key(of: Assignment | Completion) -> Key:
    return of.task_id, of.attempt


class _Worker:
    """A worker as it is, and as it must look from the supervisor."""

    def __init__(self) -> None:
        self.unread: deque[Send | Skip] = deque()
        self.tasks: deque[Assignment] = deque()
        self.running: Assignment | None = None
        self.ended = False  # by itself
        self.said: deque[Completion | str | tuple[str, Completion]] = deque()
        self.unanswered = 0  # Skips whose answer was not heard
        self.beside: Assignment | None = None  # came by the shortcut, and is running
        self.has_left = False  # has said that it leaves
        self.seen: Assignment | None = None  # what the supervisor has seen of `beside`
        # as seen from the supervisor:
        self.line: deque[Assignment] = deque()
        self.since = 0.0  # when the first of the line became the first
        self.left = False
        self.killed: tuple[Key, str] | None = None  # its first task then, how that is to end
        self.skipped: set[Key] = set()  # what it may run all the same

    def read(self, *, everything: bool) -> None:
        while self.unread and (everything or not self.tasks):
            message = self.unread.popleft()
            if isinstance(message, Send):
                self.tasks.extend(message.tasks)
            else:
                self.tasks = deque(t for t in self.tasks if t.task_id not in message.task_ids)
                self.said.append(SKIPPED)

    def age(self, now: float) -> float:
        return now - self.since


class Slave(RuleBasedStateMachine):
    """Any sequence of events: each task that arrived ends exactly once, or is still here."""

    pick = st.randoms(use_true_random=False)

    def __init__(self) -> None:
        super().__init__()
        self.dispatch = slave(knows={"tiny": TINY_S})
        self.now = 0.0
        self.numbers = itertools.count()
        self.workers: dict[int, _Worker] = {}
        self.here: dict[Key, Assignment] = {}
        self.again: list[Assignment] = []  # ended without a result: another attempt may come
        self.told: set[Key] = set()  # starts that the task manager was told of
        self.expected: list[tuple[Key, str]] = []  # completions that must come next
        self.returns = False  # whether tasks may be given back as well
        self.draining = False
        for _ in range(2):
            self.a_worker_gets_ready()

    @property
    def stalled(self) -> bool:
        return all(
            w.age(self.now) > STALL_S if w.line else w.unanswered for w in self.workers.values()
        )

    def carry_out(self, actions: list[Action], killed: Outcome) -> None:
        for action in actions:
            worker = self.workers[action.worker]
            if isinstance(action, Kill):
                assert worker.killed is None, "once is enough"
                worker.killed = key(worker.line[0]), killed.value
            elif isinstance(action, Skip):
                behind = [one for one in worker.line if one.task_id in action.task_ids]
                assert behind, "it has none of these"
                assert worker.line[0] not in behind, "the first is running"
                worker.line = deque(one for one in worker.line if one not in behind)
                worker.skipped.update(map(key, behind))
                worker.unread.append(action)
                worker.unanswered += 1
            else:
                assert worker.killed is None, "it is about to die"
                assert not worker.left, "it wants no more"
                assert not worker.unanswered, "it may be at a task of its own"
                lines = [one for other in self.workers.values() for one in other.line]
                assert not [one for one in action.tasks if one in lines], "runs twice"
                if not worker.line:
                    worker.since = self.now
                worker.line.extend(action.tasks)
                worker.unread.append(action)

    # --- the task manager -------------------------------------------------------------------

    @rule(
        tag=st.sampled_from(["tiny", "tiny", "other"]),
        count=st.integers(1, 8),
        timeout=st.sampled_from([None, None, STALL_S, 1.0]),
        at_once=st.booleans(),
        pick=pick,
    )
    def tasks_arrive(
        self, tag: str, count: int, timeout: float | None, at_once: bool, pick: random.Random
    ) -> None:
        batch = [task(f"{tag}_{next(self.numbers)}", tag, timeout=timeout) for _ in range(count)]
        doubled = [pick.choice(list(self.here.values()))] if self.here else []
        self.here.update((key(one), one) for one in batch)
        self.dispatch.arrived(batch + doubled)
        if at_once:
            self.time_goes_by(0.0)

    @precondition(lambda self: self.again)
    @rule()
    def tasks_come_again(self) -> None:
        batch = [one._replace(attempt=one.attempt + 1) for one in self.again]
        self.again.clear()
        self.here.update((key(one), one) for one in batch)
        self.dispatch.arrived(batch)
        self.time_goes_by(0.0)

    @precondition(lambda self: len(self.here) > 3)
    @rule(pick=pick)
    def tasks_are_cancelled(self, pick: random.Random) -> None:
        ids = {pick.choice(list(self.here))[0] for _ in range(2)}
        running = [worker.line[0] for worker in self.workers.values() if worker.line]
        for one in [one for one in self.here.values() if one.task_id in ids]:
            if one not in running:
                del self.here[key(one)]
                self.again.append(one)
        self.carry_out(self.dispatch.cancelled(ids), Outcome.RETURNED)
        for worker in self.workers.values():
            assert not [one for one in itertools.islice(worker.line, 1, None) if one.task_id in ids]
            assert not worker.line or worker.line[0].task_id not in ids or worker.killed

    @rule(tell_s=st.sampled_from([0.0, AHEAD_S]), untell=st.booleans())
    def starts_are_told(self, tell_s: float, untell: bool) -> None:
        if untell:
            self.dispatch.untell()
            self.told.clear()
        before = self.now - tell_s
        began = {key(w.line[0]) for w in self.workers.values() if w.line and w.since <= before}
        fresh = self.dispatch.newly_started(before)
        assert sorted(fresh) == sorted(name for name, _ in began - self.told)
        self.told |= began

    # --- the clock and the slave ------------------------------------------------------------

    @rule(wait_s=st.sampled_from([0.0, AHEAD_S, STALL_S, 2 * STALL_S, 2.0]))
    def time_goes_by(self, wait_s: float) -> None:
        self.every_task_ends_once_or_is_here()  # what came before has been handed in
        self.now += wait_s
        self.carry_out(self.dispatch.tick(self.now), Outcome.TIMED_OUT)
        self.returns = self.draining or self.stalled
        assert self.dispatch.stalled(self.now) == self.stalled
        assert not (self.returns and self.dispatch.backlog), "it is to be given back"
        for worker in self.workers.values():
            late = worker.line and worker.line[0].timeout
            assert not late or worker.age(self.now) <= late or worker.killed, "past its limit"
            assert len(worker.line) <= 1 or worker.age(self.now) <= STALL_S, "held up"
            idle = not (worker.line or worker.left or worker.killed or worker.unanswered)
            assert not (idle and self.dispatch.backlog), "it could run something"

    @precondition(lambda self: len(self.here) > 10)
    @rule()
    def drain(self) -> None:
        self.returns = self.draining = True
        self.dispatch.drain()

    @precondition(lambda self: len(self.here) > 10)
    @rule()
    def interrupt(self) -> None:
        self.carry_out(self.dispatch.interrupt("stopped"), Outcome.RETURNED)

    # --- workers ----------------------------------------------------------------------------

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def a_worker_gets_ready(self) -> None:
        number = next(self.numbers)
        self.workers[number] = _Worker()
        self.dispatch.worker_ready(number)

    @precondition(lambda self: self.workers)
    @rule(
        pick=pick,
        steps=st.integers(1, 4),
        long_s=st.sampled_from([0.0, AHEAD_S / 2, LONG_S]),
        raises=st.booleans(),
        looks=st.booleans(),
        heard=st.integers(0, 4),
        leaves=st.integers(0, 20),
        runs_out=st.integers(0, 8),
    )
    def a_worker_works(
        self,
        pick: random.Random,
        steps: int,
        long_s: float,
        raises: bool,
        looks: bool,
        heard: int,
        leaves: int,
        runs_out: int,
    ) -> None:
        number = pick.choice(list(self.workers))
        if runs_out == 8:
            self.run_out_of_memory(self.workers[number])
        for _ in range(steps):
            self.step(self.workers[number], long_s, raises=raises, looks=looks, leaves=leaves == 20)
        if heard:
            self.hear(number, heard)
            self.time_goes_by(0.0)

    @precondition(lambda self: any(len(worker.line) > 1 for worker in self.workers.values()))
    @rule(raises=st.booleans())
    def workers_go_on_with_what_was_taken_back(self, raises: bool) -> None:
        """The race that is rare otherwise: what stands second has begun before the Skip is read."""
        chosen = [number for number, worker in self.workers.items() if len(worker.line) > 1]
        for number in chosen:
            self.step(self.workers[number], LONG_S, raises=raises)
        self.time_goes_by(2 * STALL_S)
        for number in chosen:
            for _ in range(2):
                self.step(self.workers[number], LONG_S, raises=raises)
            self.hear(number, 1)

    def step(
        self,
        worker: _Worker,
        long_s: float,
        *,
        raises: bool,
        looks: bool = False,
        leaves: bool = False,
    ) -> None:
        """It ends what it runs and begins the next; before that it may look at its messages."""
        if worker.ended:
            return
        worker.beside = None  # its result goes to the task manager
        if worker.running is not None:
            tiny = worker.running.tag == "tiny"
            done = result(worker.running, TINY_S if tiny else long_s)
            if raises:
                done = done._replace(outcome=Outcome.EXCEPTION.value)
            worker.said.append(done)
            worker.running = None
            if leaves:
                worker.said.append(LEAVING)
                worker.has_left = True
                worker.tasks.clear()
        worker.read(everything=looks)
        if worker.tasks:
            worker.running = worker.tasks.popleft()

    def run_out_of_memory(self, worker: _Worker) -> None:
        """It tells of its task, and ends. Such workers have no shortcuts."""
        if worker.running is not None and worker.seen is None and not self.told_beside(worker):
            done = result(worker.running, 0.0)
            worker.said.append(done._replace(outcome=Outcome.OUT_OF_MEMORY.value))
            worker.running = None
            worker.ended = True

    def hear(self, number: int, count: int) -> None:
        worker = self.workers[number]
        for _ in range(min(count, len(worker.said))):
            said = worker.said.popleft()
            if said == SKIPPED:
                worker.unanswered -= 1
                self.dispatch.skipped(number)
                continue
            if isinstance(said, tuple) and said[0] == BESIDE:
                self.hear_beside(number, worker, said[1])
                continue
            if isinstance(said, str):
                if worker.seen is not None:
                    del self.here[key(worker.seen)]
                    worker.seen = None
                worker.line.clear()
                worker.left = self.returns = self.draining = True
                self.dispatch.leaving(number)
                self.dispatch.drain()
                continue
            assert isinstance(said, Completion)
            first = 0 if worker.seen is None else 1
            if len(worker.line) > first and key(worker.line[first]) == key(said):
                del worker.line[first]
                if worker.seen is None:
                    worker.since = self.now
                self.expected.append((key(said), said.outcome))
            if count % 2:
                self.dispatch.finished(number, said, self.now)
            else:
                self.dispatch.finished_all(number, [said], self.now)
            if said.outcome == Outcome.OUT_OF_MEMORY:
                del self.workers[number]
                self.dispatch.died(number, "has ended by itself")
                return

    @precondition(lambda self: len(self.workers) > 1)
    @rule(pick=pick)
    def any_worker_dies(self, pick: random.Random) -> None:
        self.a_worker_dies(pick.choice(list(self.workers)))

    @precondition(lambda self: any(worker.killed for worker in self.workers.values()))
    @rule()
    def killed_workers_die(self) -> None:
        for number in [number for number, worker in self.workers.items() if worker.killed]:
            self.a_worker_dies(number)
            self.a_worker_gets_ready()

    def a_worker_dies(self, number: int) -> None:
        worker = self.workers[number]
        self.hear(number, len(worker.said))
        if number not in self.workers:
            return
        self.look(number)
        del self.workers[number]
        if worker.line:
            first = key(worker.line[0])
            if worker.killed is None:
                outcome = Outcome.CRASHED.value
                ran = worker.running and key(worker.running)
                ran = key(worker.beside) if worker.beside else ran
                assert ran in (None, first) or ran in worker.skipped, "the wrong one is blamed"
            else:
                victim, outcome = worker.killed
                outcome = outcome if victim == first else Outcome.RETURNED.value
            self.expected.append((first, outcome))
        self.dispatch.died(number, "story")

    # --- the shortcut -----------------------------------------------------------------------

    def free(self) -> list[int]:
        """Workers that may begin a task by the shortcut."""
        return [
            number
            for number, one in self.workers.items()
            if not (one.tasks or one.running or one.ended or one.has_left or one.beside)
        ]

    @precondition(lambda self: self.free())
    @rule(
        pick=pick,
        looks=st.booleans(),
        wait_s=st.sampled_from([0.0, 0.0, STALL_S / 2, 2 * STALL_S]),
        heard=st.integers(0, 2),
        ends=st.sampled_from(["", "", "directly", "by the pipe", "seen, by the pipe"]),
        raises=st.booleans(),
        leaves=st.integers(0, 10),
    )
    def a_task_comes_beside(
        self,
        pick: random.Random,
        looks: bool,
        wait_s: float,
        heard: int,
        ends: str,
        raises: bool,
        leaves: int,
    ) -> None:
        """A worker that has read of nothing else begins it, and perhaps ends it."""
        number = pick.choice(self.free())
        worker = self.workers[number]
        worker.beside = Assignment(f"beside_{next(self.numbers)}", "beside", 1, [], None)
        if looks:
            self.look(number)
        self.time_goes_by(wait_s)
        self.hear(number, heard)  # of what came before, while this one is seen
        self.time_goes_by(0.0)
        if number not in self.workers or not ends:
            return
        if "pipe" in ends:
            done = result(worker.beside)
            if raises:
                done = done._replace(outcome=Outcome.EXCEPTION.value)
            worker.said.append((BESIDE, done))
            if ends.startswith("seen"):
                self.look(number)  # before the end stands on the board
        worker.beside = None
        if leaves == 10:
            worker.said.append(LEAVING)
            worker.has_left = True
            self.hear(number, len(worker.said))

    @rule()
    def the_supervisor_looks(self) -> None:
        for number in self.workers:
            self.look(number)

    def look(self, number: int) -> None:
        worker = self.workers[number]
        if worker.seen is not None and worker.seen != worker.beside:
            assert worker.line.popleft() == worker.seen
            worker.since = self.now
            self.here.pop(key(worker.seen), None)
            worker.seen = None
        if worker.beside is not None and worker.seen is None:
            worker.seen = worker.beside
            worker.line.appendleft(worker.beside)
            worker.since = self.now
            self.here[key(worker.beside)] = worker.beside
        under_way = None if worker.beside is None else key(worker.beside)
        self.carry_out(self.dispatch.beside(number, under_way, self.now), Outcome.RETURNED)
        self.told &= set(self.here)

    def hear_beside(self, number: int, worker: _Worker, done: Completion) -> None:
        if worker.seen is not None and key(worker.seen) == key(done):
            worker.line.popleft()
            worker.seen = None
            worker.since = self.now
        self.here.setdefault(key(done), Assignment(done.task_id, "beside", done.attempt, [], None))
        self.expected.append((key(done), done.outcome))
        self.dispatch.finished_beside(number, done, self.now)

    def told_beside(self, worker: _Worker) -> bool:
        return any(isinstance(said, tuple) and said[0] == BESIDE for said in worker.said)

    # --- what must always hold --------------------------------------------------------------

    @invariant()
    def every_task_ends_once_or_is_here(self) -> None:
        for done in self.dispatch.completions:
            assert key(done) in self.here, "ended twice, or never came"
            ended = self.here.pop(key(done))
            self.told.discard(key(done))
            if self.expected and self.expected[0][0] == key(done):
                assert done.outcome == self.expected.pop(0)[1]
            else:
                assert self.returns
                assert (done.outcome, done.detail) == ("returned", "not begun")
            if done.outcome != Outcome.RESULT.value:
                self.again.append(ended)
        self.dispatch.completions.clear()
        assert self.expected == [], "something has ended and is not told"
        self.returns = False
        assert self.dispatch.holds() == list(self.here), "oldest first"
        lines = [one for worker in self.workers.values() for one in worker.line]
        assert sorted(map(key, [*self.dispatch.backlog, *lines])) == sorted(self.here)

    @invariant()
    def its_view_of_the_workers_is_right(self) -> None:
        for number, worker in self.workers.items():
            assert self.dispatch.running(number) == (worker.line[0] if worker.line else None)
        assert self.dispatch.busy() == bool(self.here)
        fed = [
            worker
            for worker in self.workers.values()
            if not (worker.left or worker.killed) and (worker.line or not worker.unanswered)
        ]
        assert self.dispatch.room(self.now) == (0 if self.draining or self.stalled else len(fed))

    def teardown(self) -> None:
        """The slave leaves: everything ends."""
        for number in list(self.workers):
            self.a_worker_dies(number)
        self.drain()
        self.every_task_ends_once_or_is_here()
        assert self.here == {}


TestSlave = Slave.TestCase
TestSlave.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

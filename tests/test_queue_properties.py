"""The task queue: random histories against a model, and what each event costs."""

from __future__ import annotations

import gc
import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from queueing import (
    CLIENT,
    OTHER_CLIENT,
    OTHER_SLAVE,
    SLAVE,
    TAGS,
    Queue,
    ask,
    check_books,
    end,
    queue_of,
    take,
)

from masterslave.records import Assignment, Completion, Outcome, TaskOptions
from masterslave.states import FINISHED, State

# --- random histories -----------------------------------------------------------------------


class _Known:
    """What the model knows of one task."""

    def __init__(self, client: int, tag: str, options: TaskOptions) -> None:
        self.client, self.tag, self.options = client, tag, options
        self.state = State.WAITING
        self.attempt = self.crashes = self.failures = self.answered = 0
        self.due = 0.0
        self.holder: int | None = None
        self.started = False
        self.frame: list[bytes] = []

    @property
    def live(self) -> bool:
        return self.state in (State.WAITING, State.DEFERRED, State.RUNNING)


class History(RuleBasedStateMachine):
    """Any sequence of events, against lists in place of everything that is clever."""

    slaves = st.sampled_from([SLAVE, OTHER_SLAVE])
    clients = st.sampled_from([CLIENT, OTHER_CLIENT])
    pick = st.randoms(use_true_random=False)

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue()
        self.known: dict[str, _Known] = {}
        self.line: list[str] = []  # waiting tasks in order of turn, whatever their priority
        self.deferred: list[str] = []
        self.now = 0.0
        self.held: dict[int, list[str]] = {SLAVE: [], OTHER_SLAVE: []}
        self.finished: list[str] = []  # in order of completion, not delivered
        self.handed_out: list[tuple[int, Assignment]] = []
        self.blamed: dict[int, list[str]] = {SLAVE: [], OTHER_SLAVE: []}  # by the last loss
        self.dropped = 0

    def reschedule(self, task_id: str) -> None:
        known = self.known[task_id]
        self.held[known.holder or 0].remove(task_id)
        known.state, known.holder, known.started = State.WAITING, None, False
        self.line.insert(0, task_id)

    def retry(self, task_id: str) -> str:
        known = self.known[task_id]
        known.failures += 1
        known.answered = known.attempt
        delay_s = min(60.0, known.options.backoff * 2 ** (known.failures - 1))
        self.reschedule(task_id)
        if not delay_s:
            return "rescheduled"
        self.line.remove(task_id)
        self.deferred.append(task_id)
        known.state, known.due = State.DEFERRED, self.now + delay_s
        return "deferred"

    def place_of(self, task_id: str) -> list[str]:
        """Where a live task is."""
        known = self.known[task_id]
        if known.holder is not None:
            return self.held[known.holder]
        return self.line if known.state is State.WAITING else self.deferred

    def crash(self, task_id: str, state: State = State.CRASHED) -> None:
        known = self.known[task_id]
        known.crashes += 1
        if known.crashes < known.options.crash_limit:
            self.reschedule(task_id)
        else:
            self.finish(task_id, state, [])

    def finish(self, task_id: str, state: State, frame: list[bytes]) -> None:
        known = self.known[task_id]
        self.place_of(task_id).remove(task_id)
        known.state, known.holder, known.frame = state, None, frame
        self.finished.append(task_id)

    @rule(
        client=clients,
        tag=st.sampled_from(TAGS),
        priority=st.integers(-1, 1),
        retries=st.integers(0, 2),
        crash_limit=st.integers(1, 3),
        backoff=st.sampled_from([0.0, 1.0, 50.0]),
    )
    def request(
        self, client: int, tag: str, priority: int, retries: int, crash_limit: int, backoff: float
    ) -> None:
        options = TaskOptions(priority, None, retries, crash_limit, None, backoff)
        task = self.queue.request(client, tag, [b"parameters"], options)
        assert task.id not in self.known
        self.known[task.id] = _Known(client, tag, options)
        self.line.append(task.id)

    @rule(
        client=clients,
        tag=st.sampled_from(TAGS),
        priority=st.integers(-1, 1),
        count=st.integers(0, 4),
    )
    def request_many(self, client: int, tag: str, priority: int, count: int) -> None:
        options = TaskOptions(priority)
        ids = self.queue.request_all(client, tag, [[b"parameters"]] * count, options)
        assert len(ids) == count
        for task_id in ids:
            assert task_id not in self.known
            self.known[task_id] = _Known(client, tag, options)
            self.line.append(task_id)

    @rule(slave=slaves, count=st.integers(1, 4))
    def hand_out_run(self, slave: int, count: int) -> None:
        first = self.queue.leases.peek(TAGS)
        if first is None:
            assert not self.line
            return
        expected = sorted(self.line, key=lambda one: -self.known[one].options.priority)
        others = [one for one in expected if self.known[one].tag != first.tag]
        end_of_run = expected.index(others[0]) if others else len(expected)
        run = self.queue.leases.hand_out_run(slave, first, TAGS, count, 1 << 20)
        ids = [assignment.task_id for assignment in run]
        assert ids[0] == first.id
        assert {assignment.tag for assignment in run} == {first.tag}
        if len({self.known[one].client for one in expected}) == 1:  # else they take turns
            urgent = sum(
                self.known[one].options.priority == first.options.priority for one in expected
            )
            assert ids == expected[: len(ids)]
            assert min(count, end_of_run, urgent) <= len(ids) <= min(count, end_of_run)
        for assignment in run:
            known = self.known[assignment.task_id]
            self.line.remove(assignment.task_id)
            self.held[slave].append(assignment.task_id)
            known.attempt += 1
            known.state, known.holder = State.RUNNING, slave
            assert assignment.attempt == known.attempt
            assert assignment.frame == [b"parameters"]
            self.handed_out.append((slave, assignment))

    @rule(slave=slaves, tags=st.sampled_from([("a",), ("b", "a"), ("a", "b")]))
    def hand_out(self, slave: int, tags: tuple[str, ...]) -> None:
        mine = [task_id for task_id in self.line if self.known[task_id].tag in tags]
        peeked = self.queue.leases.peek(tags)
        if peeked is not None:  # whose turn it is: see test_sharing
            urgent = max(self.known[task_id].options.priority for task_id in mine)
            mine = [one for one in mine if self.known[one].client == peeked.client]
            assert peeked.options.priority == urgent
        turn = max(mine, key=lambda task_id: self.known[task_id].options.priority, default=None)
        assert (None if peeked is None else peeked.id) == turn
        got = self.queue.leases.hand_out(slave, tags)
        assert (None if got is None else got.task_id) == turn
        if got is not None:
            known = self.known[got.task_id]
            self.line.remove(got.task_id)
            self.held[slave].append(got.task_id)
            known.attempt += 1
            known.state, known.holder = State.RUNNING, slave
            assert got.attempt == known.attempt
            assert got.frame == [b"parameters"]
            self.handed_out.append((slave, got))

    @precondition(lambda self: self.deferred)
    @rule(seconds=st.sampled_from([0.0, 1.0, 2.0, 60.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        due = [i for i in self.deferred if self.known[i].due <= self.now]
        due.sort(key=lambda i: (self.known[i].due, self.queue.tasks[i].ticket))
        effects = self.queue.leases.due(self.now)
        assert [(e.kind, e.task and e.task.id) for e in effects] == [("due", i) for i in due]
        for task_id in reversed(due):
            self.deferred.remove(task_id)
            self.line.insert(0, task_id)
            self.known[task_id].state = State.WAITING

    @precondition(lambda self: self.handed_out)
    @rule(pick=pick)
    def start(self, pick: random.Random) -> None:
        slave, assignment = pick.choice(self.handed_out)
        self.queue.leases.started(slave, [assignment.task_id])
        if assignment.task_id in self.held[slave]:
            self.known[assignment.task_id].started = True

    @precondition(lambda self: self.handed_out)
    @rule(
        pick=pick,
        among=st.sampled_from(["recent", "all", "outdated"]),
        outcome=st.sampled_from(Outcome),
    )
    def complete(self, pick: random.Random, among: str, outcome: Outcome) -> None:
        """Any attempt that was ever handed out, so often a late or a doubled one."""
        choice = self.handed_out[-4:] if among == "recent" else self.handed_out
        if among == "outdated":  # of a slave that has a later attempt of the same task
            running = [(slave, a) for slave, a in choice if self.known[a.task_id].holder == slave]
            choice = [one for one in running if one[1].attempt < self.known[one[1].task_id].attempt]
        if not choice:
            return
        slave, assignment = pick.choice(choice)
        task_id, known = assignment.task_id, self.known[assignment.task_id]
        effect = end(self.queue, assignment, outcome, slave, now=self.now)
        frame = [f"{task_id}/{assignment.attempt}/{outcome.value}".encode()]
        current = known.holder == slave and known.attempt == assignment.attempt
        retried = outcome is Outcome.EXCEPTION and known.failures < known.options.retries
        answered = outcome is Outcome.EXCEPTION and assignment.attempt <= known.answered
        kind = "finished"
        stop_on = None
        if not known.live or (
            not current
            and (retried or answered or outcome not in (Outcome.RESULT, Outcome.EXCEPTION))
        ):
            kind = "dropped"
            self.dropped += 1
        elif not current:
            stop_on = known.holder
            self.finish(task_id, State(outcome.value), frame)
        elif retried:
            kind = self.retry(task_id)
        elif outcome is Outcome.RETURNED:
            kind = "rescheduled"
            self.reschedule(task_id)
        elif outcome in (Outcome.CRASHED, Outcome.OUT_OF_MEMORY):
            known.answered = known.attempt
            self.crash(task_id, State(outcome.value))
            kind = "rescheduled" if known.live else "finished"
        else:
            self.finish(task_id, State(outcome.value), frame)
        assert (effect.kind, effect.stop_on) == (kind, stop_on)
        assert (None if effect.task is None else effect.task.id) == (
            None if kind == "dropped" else task_id
        )

    @rule(slave=slaves, could_run=st.integers(1, 2))
    def lose(self, slave: int, could_run: int) -> None:
        held = list(self.held[slave])
        guilty = [task_id for task_id in held if self.known[task_id].started]
        effects = self.queue.leases.lose(slave, "lost", could_run)
        self.blamed[slave] = []
        for task_id in reversed(held):
            if task_id in (guilty or held[:could_run]):
                self.blamed[slave].append(task_id)
                self.crash(task_id)
            else:
                self.reschedule(task_id)
        ended = {effect.task.id: effect.kind for effect in effects if effect.task is not None}
        assert ended == {
            task_id: "rescheduled" if self.known[task_id].live else "finished" for task_id in held
        }

    @rule(slave=slaves)
    def release(self, slave: int) -> None:
        held = list(self.held[slave])
        self.blamed[slave] = []  # it has left for good
        assert len(self.queue.leases.release(slave)) == len(held)
        for task_id in reversed(held):
            self.reschedule(task_id)

    def keeps(self, slave: int, assignment: Assignment) -> bool:
        """Whether a slave that says it has that attempt may go on with it; if so it does."""
        known = self.known[assignment.task_id]
        if known.attempt != assignment.attempt or known.attempt == known.answered:
            return False
        if known.state is State.WAITING:
            self.line.remove(assignment.task_id)
            self.held[slave].append(assignment.task_id)
            known.state, known.holder = State.RUNNING, slave
            self.handed_out.append((slave, assignment))
        return known.holder == slave

    @precondition(lambda self: self.handed_out)
    @rule(pick=pick, slave=slaves, recent=st.booleans())
    def adopt(self, pick: random.Random, slave: int, recent: bool) -> None:
        _, assignment = pick.choice(self.handed_out[-4:] if recent else self.handed_out)
        adopted = self.queue.leases.adopt(slave, assignment.task_id, assignment.attempt)
        assert adopted == self.keeps(slave, assignment)

    @precondition(lambda self: self.handed_out)
    @rule(pick=pick, slave=slaves, share=st.sampled_from([0.0, 0.5, 1.0]))
    def reconcile(self, pick: random.Random, slave: int, share: float) -> None:
        """It has a share of what is on record, and something from before that is not."""
        record = {a.task_id: a for s, a in self.handed_out if s == slave}
        has = [record[i] for i in self.held[slave] if pick.random() < share]
        has += [pick.choice(self.handed_out)[1] for _ in range(2)]
        said = [(one.task_id, one.attempt) for one in has]
        missing = [i for i in self.held[slave] if (i, self.known[i].attempt) not in said]
        for task_id in self.blamed[slave]:
            self.known[task_id].crashes -= self.known[task_id].live
        self.blamed[slave] = []
        effects, obsolete = self.queue.leases.reconcile(slave, said)
        assert [(e.kind, e.task and e.task.id) for e in effects] == [
            ("rescheduled", i) for i in reversed(missing)
        ]
        for task_id in reversed(missing):
            self.reschedule(task_id)
        assert obsolete == [(one.task_id, one.attempt) for one in has if not self.keeps(slave, one)]

    @precondition(lambda self: self.known)
    @rule(pick=pick)
    def cancel(self, pick: random.Random) -> None:
        task_id = pick.choice(list(self.known))
        known = self.known[task_id]
        holders = [] if known.holder is None else [known.holder]
        assert self.queue.cancel(task_id) == (known.live, holders)
        if known.live:
            self.place_of(task_id).remove(task_id)
            known.state, known.holder = State.CANCELLED, None

    @rule(client=clients, tag=st.sampled_from([None, *TAGS]))
    def deliver(self, client: int, tag: str | None) -> None:
        mine = [
            task_id
            for task_id in self.finished
            if self.known[task_id].client == client and tag in (None, self.known[task_id].tag)
        ]
        delivery = self.queue.deliver(client, tag)
        assert (None if delivery is None else delivery.task_id) == (mine[0] if mine else None)
        if delivery is not None:
            known = self.known[delivery.task_id]
            self.finished.remove(delivery.task_id)
            assert known.state in FINISHED, "delivered twice"
            assert (delivery.outcome, delivery.frame) == (known.state.value, known.frame)
            assert delivery.tag == known.tag
            known.state = State.DELIVERED

    @invariant()
    def nothing_is_lost(self) -> None:
        gone = (State.CANCELLED, State.DELIVERED)
        there = {i: known for i, known in self.known.items() if known.state not in gone}
        states = Counter(known.state for known in self.known.values())
        assert set(self.queue.tasks) == set(there)
        for task_id, known in there.items():
            task = self.queue.tasks[task_id]
            assert (task.state, task.holder) == (known.state, known.holder)
            assert (task.attempt, task.started) == (known.attempt, known.started)
            assert task.answered == known.answered
            assert (task.crashes, task.failures) == (known.crashes, known.failures)
        assert self.queue.delivered == states[State.DELIVERED]
        assert self.queue.cancelled == states[State.CANCELLED]
        assert self.queue.leases.dropped == self.dropped

    @invariant()
    def books_are_right(self) -> None:
        check_books(self.queue)
        assert self.queue.leases.next_due() == min(
            (self.known[i].due for i in self.deferred), default=None
        )
        for slave, held in self.held.items():
            assert [task.id for task in self.queue.held.of(slave)] == held

    def teardown(self) -> None:
        """Let the job come to its end: every task is delivered once, or was cancelled."""
        for slave in self.held:
            self.release(slave)
        self.time_goes_by(60.0)
        while (got := self.queue.leases.hand_out(SLAVE, TAGS)) is not None:
            end(self.queue, got)
        for client in (CLIENT, OTHER_CLIENT):
            while (delivery := self.queue.deliver(client)) is not None:
                known = self.known[delivery.task_id]
                assert known.client == client
                assert known.state not in (State.DELIVERED, State.CANCELLED)
                known.state = State.DELIVERED
        left = [
            i for i, k in self.known.items() if k.state not in (State.DELIVERED, State.CANCELLED)
        ]
        assert left == []
        assert self.queue.counts() == ({}, {}, {})


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


# --- costs ----------------------------------------------------------------------------------


def cost(action: Callable[[], object]) -> int:
    """Lines and functions, Python's and C's, that the action takes."""
    steps = 0

    def count(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += event in ("line", "call", "c_call")
        return count

    tracer, profiler = sys.gettrace(), sys.getprofile()
    gc.disable()  # what it calls would be counted
    sys.settrace(count)
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(profiler)
        sys.settrace(tracer)
        gc.enable()
    return steps


def memory(action: Callable[[], object]) -> int:
    """Bytes that the action takes at its most: a copy of something long would show."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def long_queue(waiting: int) -> Queue:
    """So many tasks that wait, of three priorities; some held, some finished."""
    queue = Queue()
    for _ in range(30):
        ask(queue, priority=1)
    for slave in (SLAVE, OTHER_SLAVE):
        for _ in range(10):
            take(queue, slave)
    for _ in range(10):
        end(queue, take(queue))
    for i in range(waiting):
        ask(queue, TAGS[i % 2], priority=-(i % 3))
    return queue


def middle(queue: Queue) -> str:
    """A task in the midst of the line."""
    number = max(task.ticket for task in queue.tasks.values()) // 2
    return next(task.id for task in queue.tasks.values() if task.ticket == number)


def events(queue: Queue) -> dict[str, Callable[[], object]]:
    running = next(iter(queue.held.of(SLAVE)))
    done = Completion(running.id, running.attempt, "result", [b""], 0.1, "")
    other = next(iter(queue.held.of(OTHER_SLAVE)))
    waiting = middle(queue)
    return {
        "request": lambda: ask(queue),
        "hand_out": lambda: queue.leases.hand_out(SLAVE, TAGS),
        "complete": lambda: queue.leases.complete(SLAVE, done),
        "late complete": lambda: queue.leases.complete(SLAVE, done),
        "return": lambda: queue.leases.complete(
            OTHER_SLAVE, Completion(other.id, other.attempt, "returned", [], 0.0, "")
        ),
        "deliver": lambda: queue.deliver(CLIENT),
        "deliver by tag": lambda: queue.deliver(CLIENT, "a"),
        "cancel": lambda: queue.cancel(waiting),
        "adopt": lambda: queue.leases.adopt(OTHER_SLAVE, other.id, other.attempt),
        "started": lambda: queue.leases.started(OTHER_SLAVE, [other.id]),
        "lose": lambda: queue.leases.lose(SLAVE, "lost", 1),
        "release": lambda: queue.leases.release(OTHER_SLAVE),
        "counts": queue.counts,
        "outstanding": lambda: queue.outstanding(CLIENT),
        "held_by": lambda: queue.held.of(SLAVE),
    }


def test_an_event_costs_the_same_however_long_the_queue_is() -> None:
    for event in events(long_queue(100)).values():
        event()  # what Python itself finds out only once
    short = {name: cost(event) for name, event in events(long_queue(100)).items()}
    long = {name: cost(event) for name, event in events(long_queue(20_000)).items()}
    assert long == short
    assert min(short.values()) > 1, "the count itself does not work"


def test_no_event_copies_the_queue() -> None:
    queues = [long_queue(20_000) for _ in range(3)]  # a copy of its pointers takes 160 kB
    assert memory(lambda: list(queues[0].tasks)) > 100_000, "the measure itself does not work"
    took = [{name: memory(event) for name, event in events(queue).items()} for queue in queues]
    least = {name: min(one[name] for one in took) for name in took[0]}  # other threads take some
    assert {name: size for name, size in least.items() if size > 20_000} == {}


def test_tasks_in_line_are_nothing_to_the_garbage_collector() -> None:
    queue = Queue()
    queue.request_all(CLIENT, "a", [[b"parameters"]], TaskOptions(priority=1))
    gc.collect()
    before = len(gc.get_objects())
    ids = queue.request_all(CLIENT, "a", [[b"parameters"]] * 10_000, TaskOptions(priority=1))
    gc.collect()
    assert len(gc.get_objects()) - before < 200  # a block for 256 tasks
    assert take(queue).task_id == "a_0"
    assert queue.tasks[ids[-1]].options.priority == 1


def test_cancelled_tasks_in_line_are_passed_over_once() -> None:
    queue = queue_of(1000)
    for i in range(999):
        queue.cancel(f"a_{i}")
    assert take(queue).task_id == "a_999"
    ask(queue)
    assert cost(lambda: queue.leases.hand_out(SLAVE, TAGS)) < 140

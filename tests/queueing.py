"""Pure queues for tests: brought into a state, compared, their books checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from masterslave.earlier import EarlierRuns
from masterslave.holdings import Holdings
from masterslave.leases import Leases
from masterslave.lines import FinishedLine, WaitingLines
from masterslave.queue import TaskQueue
from masterslave.records import (
    AT_REST,
    Assignment,
    Completion,
    Delivery,
    Outcome,
    TaskOptions,
)
from masterslave.sharing import SharedLines
from masterslave.states import FINISHED, Effect, State, Task

CLIENT, OTHER_CLIENT = 100, 101
SLAVE, OTHER_SLAVE = 1, 2
IDENTITY = b"identity"
TAGS = ("a", "b")
BACKOFF_S = 1.0


class Queue(TaskQueue):
    """A queue with what works on it at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases(self)
        self.earlier = EarlierRuns(self)


def queue_of(count: int, tag: str = "a", **options: Any) -> Queue:
    """A queue with so many waiting tasks of one client: a_0, a_1, ..."""
    queue = Queue()
    for _ in range(count):
        ask(queue, tag, **options)
    return queue


def ask(queue: Queue, tag: str = "a", client: int = CLIENT, **options: Any) -> str:
    return queue.request(client, tag, [b"parameters"], TaskOptions(**options)).id


def take(queue: Queue, slave: int = SLAVE, tags: Iterable[str] = TAGS) -> Assignment:
    assignment = queue.leases.hand_out(slave, tags)
    assert assignment is not None
    return assignment


def take_all(queue: Queue, slave: int = SLAVE, tags: Iterable[str] = TAGS) -> list[str]:
    ids = []
    while (assignment := queue.leases.hand_out(slave, tags)) is not None:
        ids.append(assignment.task_id)
    return ids


def end(
    queue: Queue,
    assignment: Assignment,
    outcome: Outcome = Outcome.RESULT,
    slave: int = SLAVE,
    detail: str = "detail",
    now: float = 0.0,
) -> Effect:
    frame = [f"{assignment.task_id}/{assignment.attempt}/{outcome.value}".encode()]
    return queue.leases.complete(
        slave,
        Completion(assignment.task_id, assignment.attempt, outcome.value, frame, 0.1, detail),
        now,
    )


def delivered(queue: Queue, client: int = CLIENT, tag: str | None = None) -> Delivery:
    delivery = queue.deliver(client, tag)
    assert delivery is not None
    return delivery


def task_in(wanted: State) -> tuple[Queue, Task]:
    """A queue that has brought its only task into that state, by public events."""
    if wanted is State.PARKED:
        queue = Queue()
        return queue, queue.earlier.park(0, "a", IDENTITY, TaskOptions(crash_limit=1))
    deferred = wanted is State.DEFERRED
    queue = queue_of(1, crash_limit=1, retries=int(deferred), backoff=BACKOFF_S)
    task = queue.tasks["a_0"]
    if wanted is State.CANCELLED:
        queue.cancel("a_0")
    elif wanted is not State.WAITING:
        assignment = take(queue)
        if wanted is not State.RUNNING:
            names = {State.DELIVERED: "result", State.DEFERRED: "exception"}
            end(queue, assignment, Outcome(names.get(wanted, wanted.value)))
        if wanted is State.DELIVERED:
            delivered(queue)
    assert task.state is wanted
    return queue, task


def picture(queue: Queue, *others: Task) -> Any:
    """All that a queue holds, as plain values that can be compared."""
    seen: set[int] = {id(queue)}

    def plain(value: Any) -> Any:
        if isinstance(value, Task):
            return value.id
        if isinstance(value, (TaskQueue, Leases, EarlierRuns, Holdings)):
            if id(value) in seen:
                return None
            seen.add(id(value))
            inside = {name: plain(part) for name, part in vars(value).items()}
            return [inside, plain(dict(value)) if isinstance(value, Holdings) else None]
        if isinstance(value, dict):
            return [(key, plain(item)) for key, item in value.items()]
        if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
            return [plain(item) for item in value]
        if isinstance(value, FinishedLine):
            return [plain(value._lines), value._arrived, value._taken]
        if isinstance(value, WaitingLines):
            return [plain(value._lines), value._first, value._last]
        if isinstance(value, SharedLines):
            return [plain(getattr(value, name)) for name in ("_waiting", "_now", "_order")]
        if type(value).__module__.startswith("masterslave") and hasattr(value, "__slots__"):
            return [(name, plain(getattr(value, name))) for name in value.__slots__]
        return value

    tasks = {**queue.tasks, **{task.id: task for task in others}}
    inside = {name: plain(value) for name, value in vars(queue).items()}
    return inside, [[getattr(task, name) for name in Task.__slots__] for task in tasks.values()]


def check_books(queue: TaskQueue) -> None:
    """Whatever the queue counts must be what a recount of its tasks gives."""
    tasks = queue.tasks.values()
    names = {**dict.fromkeys(FINISHED, "done"), State.DEFERRED: "waiting"}
    shown = ("parked", "waiting", "running", "done")
    parts: dict[str, Counter[str]] = {name: Counter() for name in shown}
    for task in tasks:
        parts[names.get(task.state, task.state.value)][task.tag] += 1
    assert queue.counts() == (parts["waiting"], parts["running"], parts["done"])
    assert sorted(queue.waiting_tags()) == sorted(parts["waiting"])
    assert queue.parked() == parts["parked"].total()
    for state in FINISHED:
        there = Counter(task.tag for task in tasks if task.state is state)
        assert +queue.tally[state] == there, state
    running = [task for task in tasks if task.state in (State.RUNNING, State.PARKED)]
    for slave in {task.holder for task in running} - {None} | {SLAVE, OTHER_SLAVE}:
        assert slave is not None
        held = [task.id for task in queue.held.of(slave)]
        assert sorted(held) == sorted(task.id for task in running if task.holder == slave)
    assert all(task.holder is None for task in tasks if task not in running)
    assert all(task.holder is not None for task in running if task.state is State.RUNNING)
    in_memory = [task for task in tasks if task.frame is not AT_REST]
    finished = sum(task.size for task in in_memory if task.state in FINISHED)
    alive = (State.WAITING, State.DEFERRED, State.RUNNING)
    live = sum(task.size for task in in_memory if task.state in alive)
    assert (queue.parameter_bytes, queue.result_bytes) == (live, finished)
    assert all(task.size == sum(map(len, task.frame)) for task in tasks if task.frame)
    for client in (CLIENT, OTHER_CLIENT):
        mine = Counter(task.tag for task in tasks if task.client == client)
        assert queue.outstanding(client) == mine.total()
        assert {tag: queue.outstanding(client, tag) for tag in TAGS} == {
            tag: mine[tag] for tag in TAGS
        }

"""The task queue: each transition and each refusal, random histories against a model, costs."""

from __future__ import annotations

import gc
import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from masterslave.errors import IllegalTransition, UnknownTask
from masterslave.lines import WaitingLines
from masterslave.queue import FINISHED, TRANSITIONS, Effect, Event, State, Task, TaskQueue
from masterslave.records import Assignment, Completion, Delivery, Outcome, TaskOptions

CLIENT, OTHER_CLIENT = 100, 101
SLAVE, OTHER_SLAVE = 1, 2
TAGS = ("a", "b")


# --- helpers --------------------------------------------------------------------------------


def queue_of(count: int, tag: str = "a", **options: Any) -> TaskQueue:
    """A queue with so many waiting tasks of one client: a_0, a_1, ..."""
    queue = TaskQueue()
    for _ in range(count):
        ask(queue, tag, **options)
    return queue


def ask(queue: TaskQueue, tag: str = "a", client: int = CLIENT, **options: Any) -> str:
    return queue.request(client, tag, [b"parameters"], TaskOptions(**options)).id


def take(queue: TaskQueue, slave: int = SLAVE, tags: Iterable[str] = TAGS) -> Assignment:
    assignment = queue.hand_out(slave, tags)
    assert assignment is not None
    return assignment


def take_all(queue: TaskQueue, slave: int = SLAVE, tags: Iterable[str] = TAGS) -> list[str]:
    ids = []
    while (assignment := queue.hand_out(slave, tags)) is not None:
        ids.append(assignment.task_id)
    return ids


def end(
    queue: TaskQueue,
    assignment: Assignment,
    outcome: Outcome = Outcome.RESULT,
    slave: int = SLAVE,
    detail: str = "detail",
) -> Effect:
    frame = [f"{assignment.task_id}/{assignment.attempt}/{outcome.value}".encode()]
    return queue.complete(
        slave,
        Completion(assignment.task_id, assignment.attempt, outcome.value, frame, 0.1, detail),
    )


def delivered(queue: TaskQueue, client: int = CLIENT, tag: str | None = None) -> Delivery:
    delivery = queue.deliver(client, tag)
    assert delivery is not None
    return delivery


def state(queue: TaskQueue, task_id: str) -> State:
    return queue.tasks[task_id].state


def task_in(wanted: State) -> tuple[TaskQueue, Task]:
    """A queue that has brought its only task into that state, by public events."""
    queue = queue_of(1, crash_limit=1)
    task = queue.tasks["a_0"]
    if wanted is State.CANCELLED:
        queue.cancel("a_0")
    elif wanted is not State.WAITING:
        assignment = take(queue)
        if wanted is not State.RUNNING:
            names = {State.DELIVERED: "result"}
            end(queue, assignment, Outcome(names.get(wanted, wanted.value)))
        if wanted is State.DELIVERED:
            delivered(queue)
    assert task.state is wanted
    return queue, task


def picture(queue: TaskQueue, *others: Task) -> Any:
    """All that a queue holds, as plain values that can be compared."""

    def plain(value: Any) -> Any:
        if isinstance(value, Task):
            return value.id
        if isinstance(value, dict):
            return [(key, plain(item)) for key, item in value.items()]
        if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
            return [plain(item) for item in value]
        if isinstance(value, WaitingLines):
            return [plain(value._lines), value._first, value._last]
        if type(value).__module__.startswith("masterslave") and hasattr(value, "__slots__"):
            return [(name, plain(getattr(value, name))) for name in value.__slots__]
        return value

    tasks = {**queue.tasks, **{task.id: task for task in others}}
    inside = {name: plain(value) for name, value in vars(queue).items()}
    return inside, [[getattr(task, name) for name in Task.__slots__] for task in tasks.values()]


def check_books(queue: TaskQueue) -> None:
    """Whatever the queue counts must be what a recount of its tasks gives."""
    tasks = queue.tasks.values()
    parts: dict[str, Counter[str]] = {name: Counter() for name in ("waiting", "running", "done")}
    for task in tasks:
        parts[task.state.value if task.state not in FINISHED else "done"][task.tag] += 1
    assert queue.counts() == (parts["waiting"], parts["running"], parts["done"])
    assert sorted(queue.waiting_tags()) == sorted(parts["waiting"])
    running = [task for task in tasks if task.state is State.RUNNING]
    for slave in {task.holder for task in running} | {SLAVE, OTHER_SLAVE}:
        assert slave is not None
        held = [task.id for task in queue.held_by(slave)]
        assert sorted(held) == sorted(task.id for task in running if task.holder == slave)
    assert all(task.holder is None for task in tasks if task.state is not State.RUNNING)
    for client in (CLIENT, OTHER_CLIENT):
        mine = Counter(task.tag for task in tasks if task.client == client)
        assert queue.outstanding(client) == mine.total()
        assert {tag: queue.outstanding(client, tag) for tag in TAGS} == {
            tag: mine[tag] for tag in TAGS
        }


# --- transitions and refusals ---------------------------------------------------------------


@pytest.mark.parametrize(("before", "event"), TRANSITIONS, ids=lambda value: value.value)
def test_each_transition_of_the_table_is_made(before: State, event: Event) -> None:
    queue, task = task_in(before)
    after = TRANSITIONS[before, event]
    outcomes = {
        Event.RESULT: Outcome.RESULT,
        Event.EXCEPTION: Outcome.EXCEPTION,
        Event.CRASH: Outcome.CRASHED,
        Event.TIME_OUT: Outcome.TIMED_OUT,
        Event.RESCHEDULE: Outcome.RETURNED,
    }
    if event in outcomes:
        if before is State.WAITING:  # late: of an attempt that was given up
            assignment = take(queue)
            end(queue, assignment, Outcome.RETURNED)
        else:
            assignment = Assignment(task.id, task.tag, task.attempt, [], None)
        end(queue, assignment, outcomes[event])
    elif event is Event.HAND_OUT:
        take(queue)
    elif event is Event.ADOPT:
        end(queue, take(queue), Outcome.RETURNED)
        assert queue.adopt(SLAVE, task.id, 1)
    elif event is Event.CANCEL:
        assert queue.cancel(task.id)[0]
    else:
        assert event is Event.DELIVER
        assert delivered(queue).outcome == before.value
    assert task.state is after
    check_books(queue)


ILLEGAL = [
    (state, event) for state in State for event in Event if (state, event) not in TRANSITIONS
]


@pytest.mark.parametrize(("before", "event"), ILLEGAL, ids=lambda value: value.value)
def test_any_other_event_is_refused_and_changes_nothing(before: State, event: Event) -> None:
    queue, task = task_in(before)
    others = [] if task.id in queue.tasks else [task]
    pictured = picture(queue, *others)
    with pytest.raises(IllegalTransition, match=f"{task.id} is {before.value}: {event.value}"):
        queue._move(task, event)
    assert picture(queue, *others) == pictured


def test_nothing_follows_a_task_that_is_gone_and_every_state_can_be_reached() -> None:
    assert set(TRANSITIONS.values()) == set(State)  # rescheduled: waiting again
    assert {before for before, _ in TRANSITIONS} == set(State) - {State.CANCELLED, State.DELIVERED}
    for finished in FINISHED:
        assert [event for before, event in TRANSITIONS if before is finished] == [Event.DELIVER]


# --- from request to delivery ---------------------------------------------------------------


def test_ids_are_the_tag_and_a_running_number() -> None:
    queue = TaskQueue()
    assert [ask(queue, tag) for tag in ("sqrt", "sqrt", "cube_root", "sqrt")] == [
        "sqrt_0",
        "sqrt_1",
        "cube_root_2",
        "sqrt_3",
    ]


def test_a_slave_gets_what_was_requested() -> None:
    queue = TaskQueue()
    queue.request(CLIENT, "a", [b"head", b"buffer"], TaskOptions(timeout=1.5))
    assert take(queue) == Assignment("a_0", "a", 1, [b"head", b"buffer"], 1.5)
    assert [task.id for task in queue.held_by(SLAVE)] == ["a_0"]
    check_books(queue)


@pytest.mark.parametrize(
    "outcome", [Outcome.RESULT, Outcome.EXCEPTION, Outcome.TIMED_OUT], ids=lambda o: o.value
)
def test_the_client_gets_what_the_slave_handed_in(outcome: Outcome) -> None:
    queue = queue_of(1)
    effect = end(queue, take(queue), outcome)
    assert (effect.kind, effect.stop_on) == ("finished", None)
    frame = [f"a_0/1/{outcome.value}".encode()]
    assert queue.deliver(CLIENT) == Delivery("a_0", "a", outcome.value, frame, "detail")
    assert queue.delivered == 1
    assert queue.tasks == {}
    assert queue.deliver(CLIENT) is None
    check_books(queue)


def test_results_are_delivered_in_order_of_completion() -> None:
    queue = queue_of(4)
    assignments = [take(queue) for _ in range(4)]
    for i in (2, 0, 3, 1):
        end(queue, assignments[i])
    assert [delivered(queue).task_id for _ in range(4)] == ["a_2", "a_0", "a_3", "a_1"]


def test_results_can_be_asked_for_by_tag() -> None:
    queue = TaskQueue()
    for tag in ("a", "b", "a", "b"):
        ask(queue, tag)
    for _ in range(4):
        end(queue, take(queue))
    assert delivered(queue, tag="b").task_id == "b_1"
    assert delivered(queue).task_id == "a_0"
    assert delivered(queue, tag="a").task_id == "a_2"
    assert queue.deliver(CLIENT, "a") is None
    assert queue.deliver(CLIENT, "unheard of") is None
    assert delivered(queue, tag="b").task_id == "b_3"


def test_many_clients_get_their_own_results_each() -> None:
    queue = TaskQueue()
    clients = range(100, 110)
    owner = {ask(queue, "a", client): client for _ in range(5) for client in clients}
    for _ in owner:
        end(queue, take(queue))
    for client in clients:
        assert queue.outstanding(client) == 5
        got = [delivered(queue, client).task_id for _ in range(5)]
        assert got == [task_id for task_id in owner if owner[task_id] == client]
        assert queue.deliver(client) is None
        assert queue.outstanding(client) == 0


def test_a_stranger_has_nothing_in_the_queue() -> None:
    queue = queue_of(1)
    end(queue, take(queue))
    assert queue.deliver(999) is None
    assert queue.outstanding(999) == queue.outstanding(999, "a") == 0
    assert list(queue.held_by(999)) == queue.lose(999, "story", 1) == queue.release(999) == []


# --- whose turn it is -----------------------------------------------------------------------


def test_first_come_first_served() -> None:
    assert take_all(queue_of(5)) == ["a_0", "a_1", "a_2", "a_3", "a_4"]


def test_a_higher_priority_goes_first_then_order_of_request() -> None:
    queue = TaskQueue()
    for priority in (0, 5, -5, 5, 0):
        ask(queue, priority=priority)
    assert take_all(queue) == ["a_1", "a_3", "a_0", "a_4", "a_2"]


def test_priority_counts_across_tags() -> None:
    queue = TaskQueue()
    ask(queue, "a"), ask(queue, "b", priority=1), ask(queue, "b"), ask(queue, "a")
    assert take_all(queue) == ["b_1", "a_0", "b_2", "a_3"]


def test_a_slave_gets_only_tags_that_it_handles() -> None:
    queue = TaskQueue()
    ask(queue, "a", priority=9), ask(queue, "b")
    assert queue.peek(("c",)) is None
    assert queue.hand_out(SLAVE, ()) is None
    assert take_all(queue, tags=("b", "c")) == ["b_1"]
    assert take_all(queue, tags=("a",)) == ["a_0"]


def test_peek_shows_the_next_task_and_takes_nothing() -> None:
    queue = queue_of(2)
    for _ in range(2):
        task = queue.peek(TAGS)
        assert task is not None
        assert (task.id, task.state) == ("a_0", State.WAITING)
    assert take_all(queue) == ["a_0", "a_1"]
    assert queue.peek(TAGS) is None


def test_a_returned_task_is_first_of_its_priority() -> None:
    queue = TaskQueue()
    for priority in (0, 0, 1, 0):
        ask(queue, priority=priority)
    held = [take(queue) for _ in range(2)]
    assert [assignment.task_id for assignment in held] == ["a_2", "a_0"]
    effect = end(queue, held[1], Outcome.RETURNED)
    assert (effect.kind, effect.task) == ("rescheduled", queue.tasks["a_0"])
    ask(queue, priority=2)
    assert take_all(queue) == ["a_4", "a_0", "a_1", "a_3"]


def test_a_returned_task_is_a_new_attempt_at_no_cost() -> None:
    queue = queue_of(1, crash_limit=1)
    for attempt in (1, 2, 3, 4):
        assignment = take(queue)
        assert assignment.attempt == attempt
        end(queue, assignment, Outcome.RETURNED)
    task = queue.tasks["a_0"]
    assert (task.crashes, task.failures, task.history) == (0, 0, [])


# --- exceptions and crashes -----------------------------------------------------------------


def test_exceptions_are_retried_as_often_as_asked() -> None:
    queue = queue_of(1, retries=2)
    for _ in range(2):
        assert end(queue, take(queue), Outcome.EXCEPTION).kind == "rescheduled"
    assert end(queue, take(queue), Outcome.EXCEPTION, detail="the last").kind == "finished"
    delivery = delivered(queue)
    assert (delivery.outcome, delivery.frame) == ("exception", [b"a_0/3/exception"])
    assert delivery.detail == "the last"


def test_a_retry_may_succeed() -> None:
    queue = queue_of(1, retries=1)
    end(queue, take(queue), Outcome.EXCEPTION)
    end(queue, take(queue))
    assert delivered(queue).outcome == "result"


def test_a_time_out_is_not_retried() -> None:
    queue = queue_of(1, retries=5, crash_limit=5)
    assert end(queue, take(queue), Outcome.TIMED_OUT).kind == "finished"
    assert delivered(queue).outcome == "timed_out"


def test_a_poison_task_is_stopped_with_the_story_of_each_attempt() -> None:
    queue = queue_of(1, crash_limit=3)
    for attempt in (1, 2):
        effect = end(queue, take(queue), Outcome.CRASHED, detail=f"story {attempt}")
        assert effect.kind == "rescheduled"
    effect = end(queue, take(queue), Outcome.CRASHED, detail="story 3")
    assert effect.kind == "finished"
    story = "attempt 1: story 1\nattempt 2: story 2\nattempt 3: story 3"
    assert queue.deliver(CLIENT) == Delivery("a_0", "a", "crashed", [], story)
    check_books(queue)


def test_exceptions_and_crashes_are_counted_apart_and_told_together() -> None:
    queue = queue_of(1, crash_limit=2, retries=1)
    end(queue, take(queue), Outcome.CRASHED, detail="crash")
    end(queue, take(queue), Outcome.EXCEPTION, detail="exception")
    end(queue, take(queue), Outcome.RETURNED)
    end(queue, take(queue), Outcome.CRASHED, detail="crash again")
    delivery = delivered(queue)
    assert delivery.outcome == "crashed"
    assert delivery.detail == "attempt 1: crash\nattempt 2: exception\nattempt 4: crash again"


# --- late and doubled -----------------------------------------------------------------------


def test_a_doubled_result_is_dropped_and_counted() -> None:
    queue = queue_of(1)
    assignment = take(queue)
    end(queue, assignment)
    assert end(queue, assignment) == Effect("dropped", None)
    delivered(queue)
    assert end(queue, assignment) == Effect("dropped", None)
    assert queue.dropped == 2
    assert queue.deliver(CLIENT) is None
    check_books(queue)


def test_a_late_result_of_a_waiting_task_is_used() -> None:
    queue = queue_of(2)
    late = take(queue)
    queue.lose(SLAVE, "lost", 1)
    assert end(queue, late) == Effect("finished", queue.tasks["a_0"], None)
    assert take_all(queue, OTHER_SLAVE) == ["a_1"], "it is not run again"
    assert delivered(queue).frame == [b"a_0/1/result"]
    check_books(queue)


def test_a_late_result_stops_the_attempt_that_is_under_way() -> None:
    queue = queue_of(1)
    late = take(queue)
    queue.lose(SLAVE, "lost", 1)
    second = take(queue, OTHER_SLAVE)
    assert end(queue, late).stop_on == OTHER_SLAVE
    assert list(queue.held_by(OTHER_SLAVE)) == []
    assert end(queue, second, slave=OTHER_SLAVE).kind == "dropped"
    assert delivered(queue).frame == [b"a_0/1/result"]
    assert queue.deliver(CLIENT) is None
    check_books(queue)


def test_a_late_result_is_dropped_when_another_came_first() -> None:
    queue = queue_of(1)
    late = take(queue)
    queue.lose(SLAVE, "lost", 1)
    end(queue, take(queue, OTHER_SLAVE), slave=OTHER_SLAVE)
    assert end(queue, late).kind == "dropped"
    assert delivered(queue).frame == [b"a_0/2/result"]


def test_a_late_exception_counts_when_no_retry_is_left() -> None:
    queue = queue_of(1)
    late = take(queue)
    queue.lose(SLAVE, "lost", 1)
    assert end(queue, late, Outcome.EXCEPTION).kind == "finished"
    assert delivered(queue).outcome == "exception"


def test_a_late_exception_is_dropped_when_another_attempt_is_due_anyway() -> None:
    queue = queue_of(1, retries=1)
    late = take(queue)
    queue.lose(SLAVE, "lost", 1)
    assert end(queue, late, Outcome.EXCEPTION).kind == "dropped"
    assert state(queue, "a_0") is State.WAITING
    assert queue.tasks["a_0"].failures == 0


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.RETURNED])
@pytest.mark.parametrize("running", [False, True])
def test_a_late_failure_of_a_worker_is_dropped(outcome: Outcome, running: bool) -> None:
    queue = queue_of(1, crash_limit=1)
    late = take(queue)
    end(queue, late, Outcome.RETURNED)
    if running:
        take(queue, OTHER_SLAVE)
    before = picture(queue)
    assert end(queue, late, outcome).kind == "dropped"
    queue.dropped = 0
    assert picture(queue) == before


def test_a_completion_from_a_slave_that_does_not_hold_the_task_is_late() -> None:
    queue = queue_of(1, crash_limit=1)
    assignment = take(queue)
    assert end(queue, assignment, Outcome.CRASHED, OTHER_SLAVE).kind == "dropped"
    assert end(queue, assignment, Outcome.RETURNED, OTHER_SLAVE).kind == "dropped"
    assert queue.tasks["a_0"].holder == SLAVE


def test_an_earlier_attempt_is_late_even_from_the_slave_that_runs_the_next_one() -> None:
    queue = queue_of(1, crash_limit=1)
    first = take(queue)
    end(queue, first, Outcome.RETURNED)
    take(queue)
    for outcome in (Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.RETURNED):
        assert end(queue, first, outcome).kind == "dropped"
    assert end(queue, first).stop_on == SLAVE
    assert delivered(queue).frame == [b"a_0/1/result"]


def test_a_completion_of_an_unknown_task_is_dropped() -> None:
    assert end(queue_of(1), Assignment("a_7", "a", 1, [], None)).kind == "dropped"


# --- losing a slave -------------------------------------------------------------------------


def test_started_tasks_of_a_lost_slave_count_a_crash_prefetched_ones_none() -> None:
    queue = queue_of(4)
    take_all(queue)
    queue.started(SLAVE, ["a_1", "a_2", "unknown"])
    effects = queue.lose(SLAVE, "power cut", 1)
    assert {effect.kind for effect in effects} == {"rescheduled"}
    assert [queue.tasks[f"a_{i}"].crashes for i in range(4)] == [0, 1, 1, 0]
    assert queue.tasks["a_1"].history == ["attempt 1: power cut"]
    assert queue.tasks["a_0"].history == []
    assert list(queue.held_by(SLAVE)) == []
    check_books(queue)


def test_a_lost_slaves_tasks_are_first_in_line_in_their_order() -> None:
    queue = TaskQueue()
    for tag in ("a", "b", "a", "b", "a"):
        ask(queue, tag)
    held = [take(queue).task_id for _ in range(4)]
    queue.started(SLAVE, [held[1]])
    queue.lose(SLAVE, "lost", 1)
    assert take_all(queue, OTHER_SLAVE) == [*held, "a_4"]


def test_as_many_as_it_has_workers_are_blamed_when_it_told_of_no_start() -> None:
    queue = queue_of(4)
    take_all(queue)
    queue.lose(SLAVE, "lost", 2)
    assert [queue.tasks[f"a_{i}"].crashes for i in range(4)] == [1, 1, 0, 0]


def test_losing_its_slave_once_too_often_ends_a_task() -> None:
    queue = queue_of(2, crash_limit=2)
    for number in (1, 2):
        take_all(queue, number)
        queue.started(number, ["a_0"])
        effects = queue.lose(number, f"slave {number} was lost", 1)
    kinds = {effect.task.id: effect.kind for effect in effects if effect.task is not None}
    assert kinds == {"a_0": "finished", "a_1": "rescheduled"}
    story = "attempt 1: slave 1 was lost\nattempt 2: slave 2 was lost"
    assert queue.deliver(CLIENT) == Delivery("a_0", "a", "crashed", [], story)
    check_books(queue)


def test_a_start_is_forgotten_with_its_attempt() -> None:
    queue = queue_of(2)
    first = take(queue)
    queue.started(SLAVE, ["a_0"])
    end(queue, first, Outcome.RETURNED)
    take_all(queue)
    queue.started(SLAVE, ["a_1"])
    queue.lose(SLAVE, "lost", 1)
    assert [queue.tasks[f"a_{i}"].crashes for i in range(2)] == [0, 1]


def test_only_the_holder_can_say_that_a_task_was_started() -> None:
    queue = queue_of(1)
    take(queue)
    queue.started(OTHER_SLAVE, ["a_0"])
    assert not queue.tasks["a_0"].started


def test_losing_a_slave_does_not_touch_what_others_hold() -> None:
    queue = queue_of(2)
    take(queue), take(queue, OTHER_SLAVE)
    queue.lose(SLAVE, "lost", 1)
    assert [task.id for task in queue.held_by(OTHER_SLAVE)] == ["a_1"]
    assert queue.lose(SLAVE, "lost", 1) == []


def test_a_slave_that_leaves_gives_all_back_at_no_cost_and_in_order() -> None:
    queue = queue_of(4, crash_limit=1)
    for _ in range(3):
        take(queue)
    queue.started(SLAVE, ["a_0", "a_1"])
    effects = queue.release(SLAVE)
    assert [effect.kind for effect in effects] == ["rescheduled"] * 3
    assert take_all(queue, OTHER_SLAVE) == ["a_0", "a_1", "a_2", "a_3"]
    assert {task.crashes for task in queue.tasks.values()} == {0}
    check_books(queue)


# --- coming back ----------------------------------------------------------------------------


def test_a_slave_that_comes_back_goes_on_with_its_attempt() -> None:
    queue = queue_of(2)
    assignment = take(queue)
    queue.lose(SLAVE, "cut off", 1)
    assert queue.adopt(SLAVE, "a_0", 1)
    assert queue.tasks["a_0"].holder == SLAVE
    assert take_all(queue, OTHER_SLAVE) == ["a_1"], "it runs already"
    assert end(queue, assignment) == Effect("finished", queue.tasks["a_0"], None)
    assert delivered(queue).frame == [b"a_0/1/result"]
    check_books(queue)


def test_what_a_slave_holds_on_record_it_may_keep() -> None:
    queue = queue_of(1)
    take(queue)
    before = picture(queue)
    assert queue.adopt(SLAVE, "a_0", 1)
    assert picture(queue) == before


def test_a_slave_must_let_go_of_what_others_run_or_nobody_wants() -> None:
    queue = queue_of(4)
    assignments = [take(queue) for _ in range(4)]
    queue.lose(SLAVE, "cut off", 1)
    take(queue, OTHER_SLAVE)  # a_0 again, attempt 2
    end(queue, assignments[1])  # a late result
    queue.cancel("a_2")
    before = picture(queue)
    for task_id, attempt in (("a_0", 1), ("a_0", 2), ("a_1", 1), ("a_2", 1), ("a_9", 1)):
        assert not queue.adopt(SLAVE, task_id, attempt)
    assert not queue.adopt(SLAVE, "a_3", 2), "an attempt that was never made"
    assert picture(queue) == before


def test_a_task_that_was_never_handed_out_cannot_be_adopted() -> None:
    queue = queue_of(1)
    assert not queue.adopt(SLAVE, "a_0", 0)
    assert take(queue).attempt == 1


def test_an_adopted_task_can_be_lost_again() -> None:
    queue = queue_of(3)
    take(queue), take(queue)
    for _ in range(5):
        queue.lose(SLAVE, "cut off", 0)
        assert queue.adopt(SLAVE, "a_0", 1)
        assert queue.adopt(SLAVE, "a_1", 1)
        check_books(queue)
    queue.lose(SLAVE, "cut off", 0)
    assert take_all(queue) == ["a_0", "a_1", "a_2"], "its old places in line count for nothing"


# --- cancelling -----------------------------------------------------------------------------


def test_a_waiting_task_can_be_cancelled() -> None:
    queue = queue_of(3)
    assert queue.cancel("a_1") == (True, None)
    assert take_all(queue) == ["a_0", "a_2"]
    assert queue.outstanding(CLIENT) == 2
    assert queue.cancelled == 1
    check_books(queue)


def test_the_slave_that_runs_a_cancelled_task_is_named() -> None:
    queue = queue_of(1)
    assignment = take(queue)
    assert queue.cancel("a_0") == (True, SLAVE)
    assert list(queue.held_by(SLAVE)) == []
    assert end(queue, assignment).kind == "dropped"
    assert queue.deliver(CLIENT) is None
    check_books(queue)


def test_a_finished_task_cannot_be_cancelled() -> None:
    queue = queue_of(1)
    end(queue, take(queue))
    assert queue.cancel("a_0") == (False, None)
    delivered(queue)
    assert queue.cancel("a_0") == (False, None)
    assert queue.cancelled == 0


def test_cancelling_twice_does_nothing_more() -> None:
    queue = queue_of(1)
    queue.cancel("a_0")
    assert queue.cancel("a_0") == (False, None)
    assert queue.cancelled == 1


@pytest.mark.parametrize("task_id", ["a_1", "a", "", "a_x", "a_-1", "b_0"])
def test_cancelling_what_was_never_requested_is_an_error(task_id: str) -> None:
    queue = queue_of(1)
    before = picture(queue)
    with pytest.raises(UnknownTask, match=repr(task_id)):
        queue.cancel(task_id)
    assert picture(queue) == before


def test_a_cancelled_task_lets_go_of_its_parameters() -> None:
    queue = queue_of(2)
    task = queue.tasks["a_1"]
    queue.cancel("a_1")
    assert task.frame == [], "its place in line may stay for long"


# --- random histories -----------------------------------------------------------------------


class _Known:
    """What the model knows of one task."""

    def __init__(self, client: int, tag: str, options: TaskOptions) -> None:
        self.client, self.tag, self.options = client, tag, options
        self.state = State.WAITING
        self.attempt = self.crashes = self.failures = 0
        self.holder: int | None = None
        self.started = False
        self.frame: list[bytes] = []

    @property
    def live(self) -> bool:
        return self.state in (State.WAITING, State.RUNNING)


class History(RuleBasedStateMachine):
    """Any sequence of events, against lists in place of everything that is clever."""

    slaves = st.sampled_from([SLAVE, OTHER_SLAVE])
    clients = st.sampled_from([CLIENT, OTHER_CLIENT])
    pick = st.randoms(use_true_random=False)

    def __init__(self) -> None:
        super().__init__()
        self.queue = TaskQueue()
        self.known: dict[str, _Known] = {}
        self.line: list[str] = []  # waiting tasks in order of turn, whatever their priority
        self.held: dict[int, list[str]] = {SLAVE: [], OTHER_SLAVE: []}
        self.finished: list[str] = []  # in order of completion, not delivered
        self.handed_out: list[tuple[int, Assignment]] = []
        self.dropped = 0

    def reschedule(self, task_id: str) -> None:
        known = self.known[task_id]
        self.held[known.holder or 0].remove(task_id)
        known.state, known.holder, known.started = State.WAITING, None, False
        self.line.insert(0, task_id)

    def crash(self, task_id: str) -> None:
        known = self.known[task_id]
        known.crashes += 1
        if known.crashes < known.options.crash_limit:
            self.reschedule(task_id)
        else:
            self.finish(task_id, State.CRASHED, [])

    def finish(self, task_id: str, state: State, frame: list[bytes]) -> None:
        known = self.known[task_id]
        if known.holder is None:
            self.line.remove(task_id)
        else:
            self.held[known.holder].remove(task_id)
        known.state, known.holder, known.frame = state, None, frame
        self.finished.append(task_id)

    @rule(
        client=clients,
        tag=st.sampled_from(TAGS),
        priority=st.integers(-1, 1),
        retries=st.integers(0, 2),
        crash_limit=st.integers(1, 3),
    )
    def request(self, client: int, tag: str, priority: int, retries: int, crash_limit: int) -> None:
        options = TaskOptions(priority, None, retries, crash_limit)
        task = self.queue.request(client, tag, [b"parameters"], options)
        assert task.id not in self.known
        self.known[task.id] = _Known(client, tag, options)
        self.line.append(task.id)

    @rule(slave=slaves, tags=st.sampled_from([("a",), ("b", "a"), ("a", "b")]))
    def hand_out(self, slave: int, tags: tuple[str, ...]) -> None:
        mine = [task_id for task_id in self.line if self.known[task_id].tag in tags]
        turn = max(mine, key=lambda task_id: self.known[task_id].options.priority, default=None)
        peeked = self.queue.peek(tags)
        assert (None if peeked is None else peeked.id) == turn
        got = self.queue.hand_out(slave, tags)
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

    @precondition(lambda self: self.handed_out)
    @rule(pick=pick)
    def start(self, pick: random.Random) -> None:
        slave, assignment = pick.choice(self.handed_out)
        self.queue.started(slave, [assignment.task_id])
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
        effect = end(self.queue, assignment, outcome, slave)
        frame = [f"{task_id}/{assignment.attempt}/{outcome.value}".encode()]
        current = known.holder == slave and known.attempt == assignment.attempt
        retried = outcome is Outcome.EXCEPTION and known.failures < known.options.retries
        kind = "finished"
        stop_on = None
        if not known.live or (
            not current and (retried or outcome not in (Outcome.RESULT, Outcome.EXCEPTION))
        ):
            kind = "dropped"
            self.dropped += 1
        elif not current:
            stop_on = known.holder
            self.finish(task_id, State(outcome.value), frame)
        elif outcome is Outcome.RETURNED or retried:
            kind = "rescheduled"
            known.failures += retried
            self.reschedule(task_id)
        elif outcome is Outcome.CRASHED:
            self.crash(task_id)
            kind = "finished" if known.state is State.CRASHED else "rescheduled"
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
        effects = self.queue.lose(slave, "lost", could_run)
        for task_id in reversed(held):
            if task_id in (guilty or held[:could_run]):
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
        assert len(self.queue.release(slave)) == len(held)
        for task_id in reversed(held):
            self.reschedule(task_id)

    @precondition(lambda self: self.handed_out)
    @rule(pick=pick, slave=slaves, recent=st.booleans())
    def adopt(self, pick: random.Random, slave: int, recent: bool) -> None:
        _, assignment = pick.choice(self.handed_out[-4:] if recent else self.handed_out)
        known = self.known[assignment.task_id]
        waits = known.state is State.WAITING and known.attempt == assignment.attempt
        has = known.holder == slave and known.attempt == assignment.attempt
        assert self.queue.adopt(slave, assignment.task_id, assignment.attempt) == (waits or has)
        if waits:
            self.line.remove(assignment.task_id)
            self.held[slave].append(assignment.task_id)
            known.state, known.holder = State.RUNNING, slave
            self.handed_out.append((slave, assignment))

    @precondition(lambda self: self.known)
    @rule(pick=pick)
    def cancel(self, pick: random.Random) -> None:
        task_id = pick.choice(list(self.known))
        known = self.known[task_id]
        assert self.queue.cancel(task_id) == (known.live, known.holder)
        if known.live:
            (self.line if known.holder is None else self.held[known.holder]).remove(task_id)
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

    @precondition(lambda self: self.queue.tasks)
    @rule(pick=pick, event=st.sampled_from(Event))
    def refuse(self, pick: random.Random, event: Event) -> None:
        task = pick.choice(list(self.queue.tasks.values()))
        if (task.state, event) in TRANSITIONS:
            return
        before = picture(self.queue)
        with pytest.raises(IllegalTransition):
            self.queue._move(task, event)
        assert picture(self.queue) == before

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
            assert (task.crashes, task.failures) == (known.crashes, known.failures)
        assert self.queue.delivered == states[State.DELIVERED]
        assert self.queue.cancelled == states[State.CANCELLED]
        assert self.queue.dropped == self.dropped

    @invariant()
    def books_are_right(self) -> None:
        check_books(self.queue)
        for slave, held in self.held.items():
            assert [task.id for task in self.queue.held_by(slave)] == held

    def teardown(self) -> None:
        """Let the job come to its end: every task is delivered once, or was cancelled."""
        for slave in self.held:
            self.release(slave)
        while (got := self.queue.hand_out(SLAVE, TAGS)) is not None:
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
    max_examples=120,
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


def long_queue(waiting: int) -> TaskQueue:
    """So many tasks that wait, of three priorities; some held, some finished."""
    queue = TaskQueue()
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


def middle(queue: TaskQueue) -> str:
    """A task in the midst of the line."""
    number = max(task.ticket for task in queue.tasks.values()) // 2
    return next(task.id for task in queue.tasks.values() if task.ticket == number)


def events(queue: TaskQueue) -> dict[str, Callable[[], object]]:
    running = next(iter(queue.held_by(SLAVE)))
    done = Completion(running.id, running.attempt, "result", [b""], 0.1, "")
    other = next(iter(queue.held_by(OTHER_SLAVE)))
    waiting = middle(queue)
    return {
        "request": lambda: ask(queue),
        "hand_out": lambda: queue.hand_out(SLAVE, TAGS),
        "complete": lambda: queue.complete(SLAVE, done),
        "late complete": lambda: queue.complete(SLAVE, done),
        "return": lambda: queue.complete(
            OTHER_SLAVE, Completion(other.id, other.attempt, "returned", [], 0.0, "")
        ),
        "deliver": lambda: queue.deliver(CLIENT),
        "deliver by tag": lambda: queue.deliver(CLIENT, "a"),
        "cancel": lambda: queue.cancel(waiting),
        "adopt": lambda: queue.adopt(OTHER_SLAVE, other.id, other.attempt),
        "started": lambda: queue.started(OTHER_SLAVE, [other.id]),
        "lose": lambda: queue.lose(SLAVE, "lost", 1),
        "release": lambda: queue.release(OTHER_SLAVE),
        "counts": queue.counts,
        "outstanding": lambda: queue.outstanding(CLIENT),
        "held_by": lambda: queue.held_by(SLAVE),
    }


def test_an_event_costs_the_same_however_long_the_queue_is() -> None:
    short = {name: cost(event) for name, event in events(long_queue(100)).items()}
    long = {name: cost(event) for name, event in events(long_queue(20_000)).items()}
    assert long == short
    assert min(short.values()) > 1, "the count itself does not work"


def test_no_event_copies_the_queue() -> None:
    queue = long_queue(20_000)  # a copy of its pointers alone takes 160 kB
    assert memory(lambda: list(queue.tasks)) > 100_000, "the measure itself does not work"
    assert {n: m for n, event in events(queue).items() if (m := memory(event)) > 20_000} == {}


def test_cancelled_tasks_in_line_are_passed_over_once() -> None:
    queue = queue_of(1000)
    for i in range(999):
        queue.cancel(f"a_{i}")
    assert take(queue).task_id == "a_999"
    ask(queue)
    assert cost(lambda: queue.hand_out(SLAVE, TAGS)) < 100

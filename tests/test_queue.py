"""The task queue: whose turn it is, what a client gets, what it takes back."""

from __future__ import annotations

import random

import pytest
from queueing import (
    CLIENT,
    OTHER_CLIENT,
    SLAVE,
    TAGS,
    Queue,
    ask,
    check_books,
    delivered,
    end,
    picture,
    queue_of,
    take,
    take_all,
)

from masterslave.errors import UnknownTask
from masterslave.notes import TINY_BYTES
from masterslave.records import (
    Assignment,
    Completion,
    Delivery,
    Frame,
    Outcome,
    TaskOptions,
)
from masterslave.states import State

# --- from request to delivery ---------------------------------------------------------------


def test_ids_are_the_tag_and_a_running_number() -> None:
    queue = Queue()
    assert [ask(queue, tag) for tag in ("sqrt", "sqrt", "cube_root", "sqrt")] == [
        "sqrt_0",
        "sqrt_1",
        "cube_root_2",
        "sqrt_3",
    ]


def test_a_slave_gets_what_was_requested() -> None:
    queue = Queue()
    queue.request(CLIENT, "a", [b"head", b"buffer"], TaskOptions(timeout=1.5))
    assert take(queue) == Assignment("a_0", "a", 1, [b"head", b"buffer"], 1.5)
    assert [task.id for task in queue.held.of(SLAVE)] == ["a_0"]
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
    queue = Queue()
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


def test_results_by_tag_and_then_of_any_come_once_each() -> None:
    queue, first = queue_of(300), 151
    ids = take_all(queue)
    for task_id in ids:
        end(queue, Assignment(task_id, "a", 1, [], None))
    got = [delivered(queue, tag="a").task_id for _ in range(first)]
    got += [one.task_id for one in queue.deliver_all(CLIENT, None, 1000)]
    assert got == ids
    check_books(queue)


def test_many_clients_get_their_own_results_each() -> None:
    queue = Queue()
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
    assert (
        list(queue.held.of(999))
        == queue.leases.lose(999, "story", 1)
        == queue.leases.release(999)
        == []
    )


# --- whose turn it is -----------------------------------------------------------------------


def test_a_higher_priority_goes_first_then_order_of_request() -> None:
    queue = Queue()
    for priority in (0, 5, -5, 5, 0):
        ask(queue, priority=priority)
    assert take_all(queue) == ["a_1", "a_3", "a_0", "a_4", "a_2"]


def test_priority_counts_across_tags() -> None:
    queue = Queue()
    ask(queue, "a"), ask(queue, "b", priority=1), ask(queue, "b"), ask(queue, "a")
    assert take_all(queue) == ["b_1", "a_0", "b_2", "a_3"]


def test_a_slave_gets_only_tags_that_it_handles() -> None:
    queue = Queue()
    ask(queue, "a", priority=9), ask(queue, "b")
    assert queue.leases.peek(("c",)) is None
    assert queue.leases.hand_out(SLAVE, ()) is None
    assert take_all(queue, tags=("b", "c")) == ["b_1"]
    assert take_all(queue, tags=("a",)) == ["a_0"]


def test_a_returned_task_is_first_of_its_priority() -> None:
    queue = Queue()
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
    assert (task.crashes, task.failures, task.history) == (0, 0, ())


# --- exceptions and crashes -----------------------------------------------------------------


def test_exceptions_are_retried_as_often_as_asked() -> None:
    queue = queue_of(1, retries=2)
    for _ in range(2):
        assert end(queue, take(queue), Outcome.EXCEPTION).kind == "rescheduled"
    assert end(queue, take(queue), Outcome.EXCEPTION, detail="the last").kind == "finished"
    delivery = delivered(queue)
    assert (delivery.outcome, delivery.frame) == ("exception", [b"a_0/3/exception"])
    assert delivery.detail == "the last"


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


# --- cancelling -----------------------------------------------------------------------------


def test_a_waiting_task_can_be_cancelled() -> None:
    queue = queue_of(3)
    assert queue.cancel("a_1") == (True, [])
    assert take_all(queue) == ["a_0", "a_2"]
    assert queue.outstanding(CLIENT) == 2
    assert queue.cancelled == 1
    check_books(queue)


def test_the_slave_that_runs_a_cancelled_task_is_named() -> None:
    queue = queue_of(1)
    assignment = take(queue)
    assert queue.cancel("a_0") == (True, [SLAVE])
    assert list(queue.held.of(SLAVE)) == []
    assert end(queue, assignment).kind == "dropped"
    assert queue.deliver(CLIENT) is None
    check_books(queue)


def test_a_finished_task_cannot_be_cancelled() -> None:
    queue = queue_of(1)
    end(queue, take(queue))
    assert queue.cancel("a_0") == (False, [])
    delivered(queue)
    assert queue.cancel("a_0") == (False, [])
    assert queue.cancelled == 0


def test_cancelling_twice_does_nothing_more() -> None:
    queue = queue_of(1)
    queue.cancel("a_0")
    assert queue.cancel("a_0") == (False, [])
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


# --- many in one pass -----------------------------------------------------------------------


def test_requests_in_one_pass_are_as_requests_one_by_one() -> None:
    frames: list[Frame] = [[b"1"], [b"2", b"large"], [bytearray(b"3")], [b"4"]]
    options = TaskOptions(priority=2, timeout=1.5, origin=("token", 3))
    one_by_one, many = Queue(), Queue()
    ids = [one_by_one.request(CLIENT, "a", frame, options).id for frame in frames]
    assert many.request_all(CLIENT, "a", frames, options) == ids
    for queue in (one_by_one, many):
        assert queue.parameter_bytes == 9
        assert queue.outstanding(CLIENT, "a") == 4
        assert queue.counts() == ({"a": 4}, {}, {})
    assert [take(many) for _ in ids] == [take(one_by_one) for _ in ids]
    assert [task.options for task in many.tasks.values()] == [options] * 4


@pytest.mark.parametrize("seed", range(20))
def test_hand_outs_in_one_pass_are_as_hand_outs_one_by_one(seed: int) -> None:
    chance = random.Random(seed)
    queues = one_by_one, many = Queue(), Queue()
    ids: list[str] = []
    for _ in range(chance.randrange(1, 6)):
        options = TaskOptions(chance.choice((0, 0, 0, 1)), timeout=chance.choice((None, 1.0, 2.0)))
        size = chance.choice((1, 10, TINY_BYTES, TINY_BYTES + 1))
        frames: list[Frame] = [[bytes(size)] for _ in range(chance.choice((1, 3, 300)))]
        tag = chance.choice("aaab")
        ids += one_by_one.request_all(CLIENT, tag, frames, options)
        many.request_all(CLIENT, tag, frames, options)
    for task_id in chance.sample(ids, min(len(ids), chance.choice((0, 1, 20)))):
        for queue in queues:
            queue.tasks[task_id]  # it is an object from now on
            if task_id.endswith("7"):
                queue.cancel(task_id)
    while (first := many.leases.peek(TAGS)) is not None:
        count, room = chance.randrange(1, 400), chance.choice((0, 5000, 1 << 20, 1 << 26))
        run = many.leases.hand_out_run(SLAVE, first, TAGS, count, room)
        size = len(first.frame[0])
        assert 1 <= len(run) <= count
        assert sum(len(task.frame[0]) for task in run[1:]) <= max(0, room - size)
        assert run == [take(one_by_one) for _ in run]
        assert many.counts() == one_by_one.counts()
    assert one_by_one.leases.peek(TAGS) is None
    assert list(many.held.of(SLAVE)) == [many.tasks[task.id] for task in one_by_one.held.of(SLAVE)]
    check_books(many)


def test_what_was_only_noted_is_a_task_to_whoever_looks() -> None:
    queue = Queue()
    first, second, third = queue.request_all(CLIENT, "a", [[b"x"]] * 3, TaskOptions())
    other = queue.request_all(CLIENT, "a", [[b"y"]], TaskOptions(retries=3))[0]
    task = queue.tasks[second]
    assert (task.id, task.ticket, task.state, task.frame) == (second, 1, State.WAITING, [b"x"])
    assert queue.tasks.get(second) is task
    assert [one.id for one in queue.tasks.values()] == [first, second, third, other]
    assert dict(queue.tasks.items())[other].options.retries == 3
    assert queue.tasks[first].options == TaskOptions()
    assert queue.cancel(third) == (True, [])
    assert take_all(queue) == [first, second, other]
    check_books(queue)


def test_a_result_of_a_task_that_was_only_noted_is_dropped() -> None:
    queue = Queue()
    (task_id,) = queue.request_all(CLIENT, "a", [[b"x"]], TaskOptions())
    plain, others = queue.leases.complete_all(
        SLAVE, [Completion(task_id, 1, "result", [b""], 0.1, "")]
    )
    assert plain == []
    assert [effect.kind for effect, _ in others] == ["dropped"]
    assert take(queue).task_id == task_id


def test_many_of_tags_by_turns_are_delivered_up_to_a_number() -> None:
    queue = Queue()
    for number in range(6):
        ask(queue, "ab"[number % 2])
    for _ in range(6):
        end(queue, take(queue))
    assert [one.task_id for one in queue.deliver_all(CLIENT, None, 3)] == ["a_0", "b_1", "a_2"]
    assert [one.task_id for one in queue.deliver_all(CLIENT, "b", 3)] == ["b_3", "b_5"]
    check_books(queue)
    assert [one.task_id for one in queue.deliver_all(CLIENT, None, 3)] == ["a_4"]


def test_many_are_delivered_up_to_a_number_and_a_size() -> None:
    queue = queue_of(4)
    for _ in range(4):
        end(queue, take(queue))  # of 12 bytes each
    assert [one.task_id for one in queue.deliver_all(CLIENT, None, 2)] == ["a_0", "a_1"]
    assert [one.task_id for one in queue.deliver_all(CLIENT, "a", 9, 1)] == ["a_2"]
    assert [one.task_id for one in queue.deliver_all(CLIENT, "a", 9, 100)] == ["a_3"]
    assert queue.deliver_all(CLIENT, None, 9) == queue.deliver_all(OTHER_CLIENT, None, 9) == []
    assert (queue.delivered, queue.result_bytes) == (4, 0)

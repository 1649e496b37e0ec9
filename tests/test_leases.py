"""Leases: slaves are lost, come back, or hand in what was given up or done already."""

from __future__ import annotations

import pytest
from queueing import (
    CLIENT,
    OTHER_CLIENT,
    OTHER_SLAVE,
    SLAVE,
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

from masterslave.records import Assignment, Completion, Delivery, Outcome
from masterslave.states import Effect, State

# --- late and doubled -----------------------------------------------------------------------


def test_a_doubled_result_is_dropped_and_counted() -> None:
    queue = queue_of(1)
    assignment = take(queue)
    end(queue, assignment)
    assert end(queue, assignment) == Effect("dropped", None)
    delivered(queue)
    assert end(queue, assignment) == Effect("dropped", None)
    assert queue.leases.dropped == 2
    assert queue.deliver(CLIENT) is None
    check_books(queue)


def test_what_ends_together_is_delivered_in_order_to_each_client() -> None:
    queue = Queue()
    for client in (CLIENT, OTHER_CLIENT, CLIENT, CLIENT):
        ask(queue, "a", client)
    done = []
    for outcome in ("result", "result", "exception", "result"):
        task = take(queue)
        done.append(Completion(task.task_id, 1, outcome, [outcome.encode()], 0.1, ""))
    plain, others = queue.leases.complete_all(SLAVE, done)
    assert [one for _, one in plain] == [done[0], done[1], done[3]]
    assert [(effect.kind, one) for effect, one in others] == [("finished", done[2])]
    check_books(queue)
    assert [one.task_id for one in queue.deliver_all(CLIENT, None, 9)] == ["a_0", "a_2", "a_3"]
    assert [one.task_id for one in queue.deliver_all(OTHER_CLIENT, None, 9)] == ["a_1"]
    check_books(queue)


def test_a_late_result_of_a_waiting_task_is_used() -> None:
    queue = queue_of(2)
    late = take(queue)
    queue.leases.lose(SLAVE, "lost", 1)
    assert end(queue, late) == Effect("finished", queue.tasks["a_0"], None)
    assert take_all(queue, OTHER_SLAVE) == ["a_1"], "it is not run again"
    assert delivered(queue).frame == [b"a_0/1/result"]
    check_books(queue)


def test_a_late_result_stops_the_attempt_that_is_under_way() -> None:
    queue = queue_of(1)
    late = take(queue)
    queue.leases.lose(SLAVE, "lost", 1)
    second = take(queue, OTHER_SLAVE)
    assert end(queue, late).stop_on == OTHER_SLAVE
    assert list(queue.held.of(OTHER_SLAVE)) == []
    assert end(queue, second, slave=OTHER_SLAVE).kind == "dropped"
    assert delivered(queue).frame == [b"a_0/1/result"]
    assert queue.deliver(CLIENT) is None
    check_books(queue)


def test_a_late_exception_counts_when_no_retry_is_left() -> None:
    queue = queue_of(1)
    late = take(queue)
    queue.leases.lose(SLAVE, "lost", 1)
    assert end(queue, late, Outcome.EXCEPTION).kind == "finished"
    assert delivered(queue).outcome == "exception"


def test_a_late_exception_is_dropped_when_another_attempt_is_due_anyway() -> None:
    queue = queue_of(1, retries=1)
    late = take(queue)
    queue.leases.lose(SLAVE, "lost", 1)
    assert end(queue, late, Outcome.EXCEPTION).kind == "dropped"
    assert queue.tasks["a_0"].state is State.WAITING
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
    queue.leases.dropped = 0
    assert picture(queue) == before


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
    queue.leases.started(SLAVE, ["a_1", "a_2", "unknown"])
    effects = queue.leases.lose(SLAVE, "power cut", 1)
    assert {effect.kind for effect in effects} == {"rescheduled"}
    assert [queue.tasks[f"a_{i}"].crashes for i in range(4)] == [0, 1, 1, 0]
    assert queue.tasks["a_1"].history == ("attempt 1: power cut",)
    assert queue.tasks["a_0"].history == ()
    assert list(queue.held.of(SLAVE)) == []
    check_books(queue)


def test_a_lost_slaves_tasks_are_first_in_line_in_their_order() -> None:
    queue = Queue()
    for tag in ("a", "b", "a", "b", "a"):
        ask(queue, tag)
    held = [take(queue).task_id for _ in range(4)]
    queue.leases.started(SLAVE, [held[1]])
    queue.leases.lose(SLAVE, "lost", 1)
    assert take_all(queue, OTHER_SLAVE) == [*held, "a_4"]


def test_as_many_as_it_has_workers_are_blamed_when_it_told_of_no_start() -> None:
    queue = queue_of(4)
    take_all(queue)
    queue.leases.lose(SLAVE, "lost", 2)
    assert [queue.tasks[f"a_{i}"].crashes for i in range(4)] == [1, 1, 0, 0]


def test_losing_its_slave_once_too_often_ends_a_task() -> None:
    queue = queue_of(2, crash_limit=2)
    for number in (1, 2):
        take_all(queue, number)
        queue.leases.started(number, ["a_0"])
        effects = queue.leases.lose(number, f"slave {number} was lost", 1)
    kinds = {effect.task.id: effect.kind for effect in effects if effect.task is not None}
    assert kinds == {"a_0": "finished", "a_1": "rescheduled"}
    story = "attempt 1: slave 1 was lost\nattempt 2: slave 2 was lost"
    assert queue.deliver(CLIENT) == Delivery("a_0", "a", "crashed", [], story)
    check_books(queue)


def test_a_start_is_forgotten_with_its_attempt() -> None:
    queue = queue_of(2)
    first = take(queue)
    queue.leases.started(SLAVE, ["a_0"])
    end(queue, first, Outcome.RETURNED)
    take_all(queue)
    queue.leases.started(SLAVE, ["a_1"])
    queue.leases.lose(SLAVE, "lost", 1)
    assert [queue.tasks[f"a_{i}"].crashes for i in range(2)] == [0, 1]


def test_only_the_holder_can_say_that_a_task_was_started() -> None:
    queue = queue_of(1)
    take(queue)
    queue.leases.started(OTHER_SLAVE, ["a_0"])
    assert not queue.tasks["a_0"].started


def test_losing_a_slave_does_not_touch_what_others_hold() -> None:
    queue = queue_of(2)
    take(queue), take(queue, OTHER_SLAVE)
    queue.leases.lose(SLAVE, "lost", 1)
    assert [task.id for task in queue.held.of(OTHER_SLAVE)] == ["a_1"]
    assert queue.leases.lose(SLAVE, "lost", 1) == []


def test_a_slave_that_leaves_gives_all_back_at_no_cost_and_in_order() -> None:
    queue = queue_of(4, crash_limit=1)
    for _ in range(3):
        take(queue)
    queue.leases.started(SLAVE, ["a_0", "a_1"])
    effects = queue.leases.release(SLAVE)
    assert [effect.kind for effect in effects] == ["rescheduled"] * 3
    assert take_all(queue, OTHER_SLAVE) == ["a_0", "a_1", "a_2", "a_3"]
    assert {task.crashes for task in queue.tasks.values()} == {0}
    check_books(queue)


# --- coming back ----------------------------------------------------------------------------


def test_a_slave_that_comes_back_goes_on_with_its_attempt() -> None:
    queue = queue_of(2)
    assignment = take(queue)
    queue.leases.lose(SLAVE, "cut off", 1)
    assert queue.leases.adopt(SLAVE, "a_0", 1)
    assert queue.tasks["a_0"].holder == SLAVE
    assert take_all(queue, OTHER_SLAVE) == ["a_1"], "it runs already"
    assert end(queue, assignment) == Effect("finished", queue.tasks["a_0"], None)
    assert delivered(queue).frame == [b"a_0/1/result"]
    check_books(queue)


def test_a_slave_must_let_go_of_what_others_run_or_nobody_wants() -> None:
    queue = queue_of(4)
    assignments = [take(queue) for _ in range(4)]
    queue.leases.lose(SLAVE, "cut off", 1)
    take(queue, OTHER_SLAVE)  # a_0 again, attempt 2
    end(queue, assignments[1])  # a late result
    queue.cancel("a_2")
    before = picture(queue)
    for task_id, attempt in (("a_0", 1), ("a_0", 2), ("a_1", 1), ("a_2", 1), ("a_9", 1)):
        assert not queue.leases.adopt(SLAVE, task_id, attempt)
    assert not queue.leases.adopt(SLAVE, "a_3", 2), "an attempt that was never made"
    assert picture(queue) == before


def test_a_task_that_was_never_handed_out_cannot_be_adopted() -> None:
    queue = queue_of(1)
    assert not queue.leases.adopt(SLAVE, "a_0", 0)
    assert take(queue).attempt == 1


def test_an_adopted_task_can_be_lost_again() -> None:
    queue = queue_of(3)
    take(queue), take(queue)
    for _ in range(5):
        queue.leases.lose(SLAVE, "cut off", 0)
        assert queue.leases.adopt(SLAVE, "a_0", 1)
        assert queue.leases.adopt(SLAVE, "a_1", 1)
        check_books(queue)
    queue.leases.lose(SLAVE, "cut off", 0)
    assert take_all(queue) == ["a_0", "a_1", "a_2"], "its old places in line count for nothing"


# --- coming back and saying what it has -----------------------------------------------------


def come_back(
    queue: Queue, *held: tuple[str, int], slave: int = SLAVE
) -> tuple[list[str], list[tuple[str, int]]]:
    """Which tasks go back to the line, and which ones the slave is to let go of."""
    effects, obsolete = queue.leases.reconcile(slave, held)
    assert {effect.kind for effect in effects} <= {"rescheduled"}
    check_books(queue)
    return [effect.task.id for effect in effects if effect.task is not None], obsolete


def test_nothing_changes_when_a_slave_has_what_is_on_record() -> None:
    queue = queue_of(3)
    take_all(queue)
    queue.leases.started(SLAVE, ["a_0"])
    before = picture(queue)
    assert come_back(queue, ("a_0", 1), ("a_1", 1), ("a_2", 1)) == ([], [])
    assert picture(queue) == before


def test_a_slave_that_is_new_has_nothing_and_changes_nothing() -> None:
    queue = queue_of(2)
    take(queue)
    before = picture(queue)
    assert come_back(queue, slave=OTHER_SLAVE) == ([], [])
    assert picture(queue) == before


def test_what_never_reached_a_slave_goes_back_in_order_at_no_cost() -> None:
    queue = queue_of(5, crash_limit=1)
    for _ in range(4):
        take(queue)
    assert come_back(queue, ("a_1", 1)) == (["a_3", "a_2", "a_0"], [])
    assert [task.id for task in queue.held.of(SLAVE)] == ["a_1"]
    assert take_all(queue, OTHER_SLAVE) == ["a_0", "a_2", "a_3", "a_4"]
    assert {task.crashes for task in queue.tasks.values()} == {0}


def test_a_lost_slave_goes_on_with_what_nobody_else_got() -> None:
    queue = queue_of(4)
    for _ in range(3):
        take(queue)
    queue.leases.lose(SLAVE, "cut off", 0)
    take(queue, OTHER_SLAVE)  # a_0 again, attempt 2
    assert come_back(queue, ("a_0", 1), ("a_1", 1), ("a_2", 1)) == ([], [("a_0", 1)])
    assert [task.id for task in queue.held.of(SLAVE)] == ["a_1", "a_2"]
    assert [task.id for task in queue.held.of(OTHER_SLAVE)] == ["a_0"]
    assert take_all(queue, OTHER_SLAVE) == ["a_3"]


def test_a_slave_that_comes_back_was_not_killed_by_its_task() -> None:
    queue = queue_of(2, crash_limit=2)
    take_all(queue)
    for _ in range(3):
        queue.leases.started(SLAVE, ["a_0"])
        queue.leases.lose(SLAVE, "cut off", 1)
        come_back(queue, ("a_0", 1), ("a_1", 1))
    assert queue.tasks["a_0"].history == ()
    assert {task.crashes for task in queue.tasks.values()} == {0}
    queue.leases.started(SLAVE, ["a_0"])
    queue.leases.lose(SLAVE, "killed", 1)
    assert queue.tasks["a_0"].history == ("attempt 1: killed",)


def test_a_task_that_another_slave_runs_by_now_is_cleared_as_well_of_this_loss_only() -> None:
    queue = queue_of(1, crash_limit=3)
    for slave in (SLAVE, OTHER_SLAVE):
        take(queue, slave)
        queue.leases.lose(slave, f"slave {slave} was lost", 1)
    assert come_back(queue) == ([], [])
    assert queue.tasks["a_0"].crashes == 1
    assert queue.tasks["a_0"].history == (f"attempt 2: slave {OTHER_SLAVE} was lost",)


def test_a_slave_lets_go_of_what_has_ended_and_of_what_never_was() -> None:
    queue = queue_of(3)
    finished = take(queue)
    take(queue)
    end(queue, finished)
    queue.cancel("a_1")
    before = picture(queue)
    held = [("a_0", 1), ("a_1", 1), ("a_7", 1)]
    assert come_back(queue, *held) == ([], held)
    assert picture(queue) == before


def test_an_earlier_attempt_is_not_the_one_on_record() -> None:
    queue = queue_of(1)
    end(queue, take(queue), Outcome.RETURNED)
    take(queue)
    assert come_back(queue, ("a_0", 1)) == (["a_0"], [("a_0", 1)])
    assert take(queue, OTHER_SLAVE).attempt == 3


def test_what_a_slave_came_back_with_is_its_own_again() -> None:
    queue = queue_of(2, crash_limit=1)
    first = take(queue)
    take(queue)
    queue.leases.lose(SLAVE, "cut off", 0)
    come_back(queue, ("a_0", 1), ("a_1", 1))
    assert end(queue, first) == Effect("finished", queue.tasks["a_0"], None)
    queue.leases.started(SLAVE, ["a_1"])
    assert [effect.kind for effect in queue.leases.lose(SLAVE, "power cut", 1)] == ["finished"]
    assert [delivered(queue).outcome for _ in range(2)] == ["result", "crashed"]

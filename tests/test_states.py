"""The states of a task: each transition of the table is made, any other is refused."""

from __future__ import annotations

import pytest
from queueing import (
    BACKOFF_S,
    CLIENT,
    IDENTITY,
    SLAVE,
    check_books,
    delivered,
    end,
    picture,
    take,
    task_in,
)

from masterslave.errors import IllegalTransition
from masterslave.records import (
    Assignment,
    Outcome,
    TaskOptions,
)
from masterslave.states import FINISHED, TRANSITIONS, Event, State


@pytest.mark.parametrize(("before", "event"), TRANSITIONS, ids=lambda value: value.value)
def test_each_transition_of_the_table_is_made(before: State, event: Event) -> None:
    queue, task = task_in(before)
    after = TRANSITIONS[before, event]
    outcomes = {
        Event.RESULT: Outcome.RESULT,
        Event.EXCEPTION: Outcome.EXCEPTION,
        Event.CRASH: Outcome.CRASHED,
        Event.OUT_OF_MEMORY: Outcome.OUT_OF_MEMORY,
        Event.TIME_OUT: Outcome.TIMED_OUT,
        Event.RESCHEDULE: Outcome.RETURNED,
        Event.DEFER: Outcome.EXCEPTION,
    }
    if (before, event) == (State.PARKED, Event.DROP):
        task = queue.earlier.park(7, "sqrt", IDENTITY, TaskOptions(origin=("token", 1)))
        assert queue.earlier.reclaim(CLIENT, "token", [], 1) == ([], [task])
    elif before is State.PARKED:
        if event is not Event.CLAIM:
            assert queue.leases.adopt(SLAVE, task.id, 1)
        if event in outcomes:
            end(queue, Assignment(task.id, task.tag, 1, [], None), outcomes[event])
        assert queue.earlier.claim(CLIENT, IDENTITY, [b"parameters"], TaskOptions()) is task
    elif event in outcomes:
        if event is Event.DEFER:
            task.options = TaskOptions(retries=1, backoff=1.0)
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
        assert queue.leases.adopt(SLAVE, task.id, 1)
    elif event is Event.FALL_DUE:
        queue.leases.due(BACKOFF_S)
    elif event is Event.CANCEL:
        assert queue.cancel(task.id)[0]
    elif event is Event.DROP:
        assert queue.drop_client(CLIENT) == ([], [task])
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
        queue.move(task, event)
    assert picture(queue, *others) == pictured


def test_nothing_follows_a_task_that_is_gone_and_every_state_can_be_reached() -> None:
    # Rescheduled: waiting again. Parked is where a task begins that the journal knows.
    assert set(TRANSITIONS.values()) == set(State) - {State.PARKED}
    assert {before for before, _ in TRANSITIONS} == set(State) - {State.CANCELLED, State.DELIVERED}
    for finished in FINISHED:
        after = [event for before, event in TRANSITIONS if before is finished]
        assert after == [Event.DELIVER, Event.DROP]

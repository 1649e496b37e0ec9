"""What an executor is given, and what follows when it loses it: no process, no clock."""

from __future__ import annotations

from masterslave.flights import ALONE_TASKS, APART_S, HELD_S, Flight, Flights
from masterslave.records import Assignment, Completion, Outcome


def task(name: str, timeout: float | None = None, attempt: int = 1) -> Assignment:
    return Assignment(name, "work", attempt, [b""], timeout)


def result(one: Assignment, duration_s: float = 1.0) -> Completion:
    return Completion(one.task_id, one.attempt, Outcome.RESULT.value, [b""], duration_s, "")


def all_off(flights: Flights, now: float = 0.0) -> list[Flight]:
    flown = []
    while (flight := flights.take_off(now)) is not None:
        flown.append(flight)
    return flown


def outcomes(flights: Flights) -> list[tuple[str, str]]:
    done, flights.completions = flights.completions, []
    return [(one.task_id, one.outcome) for one in done]


def ids(flown: list[Flight]) -> list[list[str]]:
    return [[one.task_id for one in flight.tasks] for flight in flown]


def test_as_many_fly_as_there_are_workers() -> None:
    flights = Flights(2)
    flights.arrived([task("a"), task("b"), task("c")])
    flown = all_off(flights)
    assert ids(flown) == [["a"], ["b"]]
    flights.landed(flown[0].number, [result(task("a"))], [], [])
    assert outcomes(flights) == [("a", "result")]
    assert ids(all_off(flights)) == [["c"]]


def test_tiny_tasks_fly_together_and_those_with_a_time_limit_alone() -> None:
    flights = Flights(1)
    flights.arrived([task("a")])
    flights.landed(all_off(flights)[0].number, [result(task("a"), 0.0001)], [], [])
    flights.arrived([task("b"), task("c"), task("d", timeout=1.0), task("e")])
    flown = flights.take_off(0.0)
    assert flown is not None
    assert ids([flown]) == [["b", "c"]]


def test_what_a_worker_lacks_goes_with_the_same_task() -> None:
    flights = Flights(1)
    flights.arrived([task("a")])
    first = all_off(flights)[0]
    flights.landed(first.number, [], ["a"], ["state_1_x"])
    again = all_off(flights)[0]
    assert (ids([again]), again.attach) == ([["a"]], ["state_1_x"])
    assert outcomes(flights) == []


def test_who_flew_alone_is_to_blame_for_a_broken_executor() -> None:
    flights = Flights(2)
    flights.arrived([task("a")])
    all_off(flights)
    flights.broke("died")
    assert outcomes(flights) == [("a", "crashed")]
    assert flights.pool == 1


def test_suspects_fly_one_after_the_other_and_the_first_fall_in_company_costs_nothing() -> None:
    flights = Flights(3)
    flights.arrived([task("a"), task("b")])
    all_off(flights)
    flights.broke("died")
    assert outcomes(flights) == []
    flights.arrived([task("c")])
    assert ids(all_off(flights, 10.0)) == [["a"]]
    flights.broke("died")
    assert outcomes(flights) == [("a", "crashed")]
    assert ids(all_off(flights, 10.5)) == [["b"]]  # and no other beside it
    wait_s = flights.next_deadline(10.5)
    assert wait_s is not None
    assert wait_s <= APART_S
    assert ids(all_off(flights, 10.6 + APART_S)) == [["c"]]


def test_a_task_that_crashed_alone_flies_alone_in_its_next_attempt() -> None:
    flights = Flights(2)
    flights.arrived([task("a")])
    all_off(flights)
    flights.broke("died")
    flights.arrived([task("b"), task("a", attempt=2)])
    assert ids(all_off(flights)) == [["a"]]


def test_suspects_that_fall_again_in_company_count_a_crash_each() -> None:
    flights = Flights(2)
    flights.arrived([task("a"), task("b")])
    all_off(flights)
    flights.broke("died")
    all_off(flights, 0.0)
    all_off(flights, 2 * APART_S)
    flights.broke("died")
    assert sorted(outcomes(flights)) == [("a", "crashed"), ("b", "crashed")]


def test_a_time_limit_ends_the_task_and_its_worker_counts_as_busy_until_it_lands() -> None:
    flights = Flights(1)
    slow = task("a", timeout=1.0)
    flights.arrived([slow])
    number = all_off(flights)[0].number
    assert flights.tick(0.5) == []
    assert flights.tick(1.5) == [number]
    assert outcomes(flights) == [("a", "timed_out")]
    assert flights.room() == 0
    flights.arrived([task("b")])
    assert all_off(flights, 1.5) == []
    flights.landed(number, [result(slow)], [], [])
    assert outcomes(flights) == []
    assert flights.room() == 1
    assert ids(all_off(flights, 2.0)) == [["b"]]


def test_cancelled_tasks_are_dropped_wherever_they_are() -> None:
    flights = Flights(1)
    flights.arrived([task("a"), task("b")])
    number = all_off(flights)[0].number
    assert flights.cancelled(["a", "b"]) == [number]
    flights.landed(number, [result(task("a"))], [], [])
    assert outcomes(flights) == []
    assert all_off(flights) == []


def test_what_the_executor_has_not_begun_goes_back_at_no_cost() -> None:
    flights = Flights(1)
    flights.arrived([task("a"), task("b")])
    flights.given_back(all_off(flights)[0].number, "not begun")
    flights.give_back_all("not begun")
    assert outcomes(flights) == [("a", "returned"), ("b", "returned")]


def test_a_worker_that_forgets_a_task_is_a_crash_and_no_wait_without_end() -> None:
    flights = Flights(1)
    flights.arrived([task("a")])
    flights.landed(all_off(flights)[0].number, [], [], [])
    assert outcomes(flights) == [("a", "crashed")]


def test_of_a_pool_that_has_broken_nothing_lands_any_more() -> None:
    flights = Flights(2)
    flights.arrived([task("a"), task("b")])
    flown = all_off(flights)
    flights.broke("died")
    flights.landed(flown[0].number, [result(task("a"))], [], [])
    flights.failed(flown[1].number, "died")
    assert outcomes(flights) == []


def test_a_submission_that_was_refused_is_a_crash_and_a_rest_that_gets_longer() -> None:
    flights = Flights(2)
    rests = []
    now = 0.0
    for attempt in range(1, 5):
        flights.arrived([task("a", attempt=attempt)])
        (flight,) = all_off(flights, now)
        flights.refused(flight.number, "no network", now)
        flights.arrived([task(f"b{attempt}")])
        assert all_off(flights, now) == []
        rest_s = flights.next_deadline(now)
        assert rest_s is not None
        rests.append(rest_s)
        flights.cancelled([f"b{attempt}"])
        now += rest_s
    assert outcomes(flights) == [("a", "crashed")] * 4
    assert rests == sorted(rests)
    assert rests[0] < rests[-1]


def test_after_many_refusals_in_a_row_there_is_no_rest_and_all_are_told_soon() -> None:
    flights = Flights(1)
    now = 0.0
    for attempt in range(200):
        flights.arrived([task(f"t{attempt}")])
        now += flights.next_deadline(now) or 0.0
        (flight,) = all_off(flights, now)
        flights.refused(flight.number, "no network", now)
    assert len(outcomes(flights)) == 200
    assert now < 20


def test_what_others_cancel_goes_back_at_no_cost_but_not_for_ever() -> None:
    flights = Flights(1)
    ended: list[tuple[str, str]] = []
    while ("a", "crashed") not in ended:
        assert len(ended) < 100
        flights.arrived([task("a")])
        flights.given_back(all_off(flights)[0].number, "not begun")
        ended += outcomes(flights)
    assert set(ended[:-1]) == {("a", "returned")}
    assert len(ended) > 5


def test_the_time_in_which_nothing_comes_back() -> None:
    flights = Flights(2)
    assert flights.quiet_s(100.0) == 0
    flights.arrived([task("a"), task("b")])
    flown = all_off(flights, 100.0)
    assert flights.quiet_s(103.0) == 3
    flights.landed(flown[0].number, [result(task("a"))], [], [], 104.0)
    assert flights.quiet_s(105.0) == 1
    flights.cancelled(["b"])
    assert flights.quiet_s(106.0) == 0


def bundle(flights: Flights, *names: str) -> Flight:
    """A submission of several, in an executor with one worker that knows their tag as tiny."""
    flights.arrived([task("known")])
    flights.landed(all_off(flights)[0].number, [result(task("known"), 0.0001)], [], [])
    flights.arrived([task(name) for name in names])
    (flight,) = all_off(flights)
    assert ids([flight]) == [list(names)]
    outcomes(flights)
    return flight


def test_what_a_submission_had_no_time_for_is_next_in_the_same_order() -> None:
    flights = Flights(1)
    flight = bundle(flights, "a", "b", "c")
    flights.arrived([task("d")])
    flights.landed(flight.number, [result(task("a"), 0.001)], ["b", "c"], [])
    assert outcomes(flights) == [("a", "result")]
    assert ids(all_off(flights)) == [["b", "c", "d"]]


def test_a_tag_with_one_long_task_is_submitted_one_by_one_for_a_while() -> None:
    flights = Flights(1)
    flight = bundle(flights, "a", "b", "c")
    flights.landed(flight.number, [result(task("a"), 2 * HELD_S)], ["b", "c"], [])
    outcomes(flights)
    names = [f"t{i}" for i in range(ALONE_TASKS)]
    flights.arrived([task(name) for name in names])
    for name in ["b", "c", *names[:-2]]:
        (flight,) = all_off(flights)
        assert ids([flight]) == [[name]]
        flights.landed(flight.number, [result(task(name), 0.0001)], [], [])
    assert ids(all_off(flights)) == [names[-2:]]


def repeating(capacity: int = 2) -> Flights:
    """An executor in which tasks of a tenth of a second may run twice."""
    flights = Flights(capacity)
    flights.arrived([task("known")])
    flights.landed(all_off(flights)[0].number, [result(task("known"), 0.1)], [], [])
    flights.repeat("work", 3.0)
    outcomes(flights)
    return flights


def test_a_late_task_takes_off_once_more_when_nothing_else_waits_and_one_result_counts() -> None:
    for first in (0, 1):
        flights = repeating()
        flights.arrived([task("a")])
        (flight,) = all_off(flights, 10.0)
        assert all_off(flights, 10.2) == []
        assert flights.next_deadline(10.2) is not None
        (again,) = all_off(flights, 10.5)
        assert (ids([again]), again.again, flight.again) == ([["a"]], True, False)
        assert all_off(flights, 99.0) == []  # not a third time
        both = [flight, again]
        flights.landed(both[first].number, [result(task("a"))], [], [])
        assert flights.unwanted == [both[1 - first].number]
        flights.landed(both[1 - first].number, [result(task("a"))], [], [])
        assert outcomes(flights) == [("a", "result")]
        assert flights.room() == 2


def test_tasks_are_not_repeated_unless_asked_nor_while_others_wait_or_no_worker_is_idle() -> None:
    flights = repeating()
    flights.repeat("work", None)
    flights.arrived([task("a")])
    all_off(flights, 10.0)
    assert all_off(flights, 99.0) == []
    flights = repeating(1)
    flights.arrived([task("a")])
    all_off(flights, 10.0)
    assert all_off(flights, 99.0) == []
    flights = repeating()
    flights.arrived([task("a")])
    all_off(flights, 10.0)
    flights.arrived([task("b")])
    assert ids(all_off(flights, 99.0)) == [["b"]]


def test_of_a_repeated_task_one_failure_is_none_and_two_are_one() -> None:
    flights = repeating()
    flights.arrived([task("a")])
    both = all_off(flights, 10.0) + all_off(flights, 10.5)
    flights.failed(both[1].number, "died")
    assert outcomes(flights) == []
    flights.failed(both[0].number, "died")
    assert outcomes(flights) == [("a", "crashed")]


def test_a_broken_executor_costs_a_repeated_task_one_crash() -> None:
    flights = repeating()
    flights.arrived([task("a")])
    assert len(all_off(flights, 10.0) + all_off(flights, 10.5)) == 2
    flights.broke("died")
    assert outcomes(flights) == [("a", "crashed")]


def test_a_repeated_task_that_lacks_something_or_is_cancelled_leaves_nothing() -> None:
    flights = repeating()
    flights.arrived([task("a")])
    both = all_off(flights, 10.0) + all_off(flights, 10.5)
    flights.landed(both[1].number, [], ["a"], ["slave_code"])
    flights.landed(both[0].number, [result(task("a"))], [], [])
    assert outcomes(flights) == [("a", "result")]
    assert all_off(flights, 11.0) == []
    flights.arrived([task("b")])
    both = all_off(flights, 20.0) + all_off(flights, 20.5)
    assert sorted(flights.cancelled(["b"])) == sorted(one.number for one in both)


def test_a_time_limit_ends_both_flights_of_a_repeated_task_at_once() -> None:
    flights = repeating()
    flights.arrived([task("a", timeout=1.0)])
    both = all_off(flights, 10.0) + all_off(flights, 10.5)
    late = flights.tick(11.1)
    assert sorted([*late, *flights.unwanted]) == sorted(one.number for one in both)
    assert outcomes(flights) == [("a", "timed_out")]

"""What an executor is given, and what follows when it loses it: no process, no clock."""

from __future__ import annotations

from masterslave.flights import APART_S, Flight, Flights
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

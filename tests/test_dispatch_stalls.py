"""What a slave's dispatch does about tasks that take long, and what it says when asked."""

from __future__ import annotations

import pytest
from dispatching import (
    LONG_S,
    STALLED_S,
    TELL_S,
    TINY_S,
    ended,
    result,
    sent,
    slave,
    task,
    tasks,
    waiting,
    with_full_line,
)

from masterslave.dispatch import AHEAD_S, STALL_S, Dispatch, Kill, Skip

# --- stalls ---------------------------------------------------------------------------------


def test_a_task_that_takes_long_gives_the_backlog_back() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("ABC"))
    dispatch.tick(0.0)
    dispatch.tick(STALL_S)
    assert waiting(dispatch) == "BC"
    dispatch.tick(STALL_S + 0.01)
    assert ended(dispatch) == {"B": "returned", "C": "returned"}
    assert dispatch.holds() == [("A", 1)]


def test_the_backlog_stays_as_long_as_one_worker_goes_on() -> None:
    dispatch = slave(1, 2)
    dispatch.arrived(tasks("ABC"))
    dispatch.tick(0.0)
    dispatch.finished(2, result(task("B")), STALL_S)
    assert sent(dispatch.tick(STALL_S)) == {2: "C"}
    dispatch.arrived(tasks("D"))
    dispatch.tick(2 * STALL_S)
    assert waiting(dispatch) == "D"
    dispatch.tick(STALL_S + STALLED_S)
    assert ended(dispatch) == {"B": "result", "D": "returned"}


def test_what_stands_behind_a_long_task_is_taken_back() -> None:
    dispatch = with_full_line()
    assert dispatch.tick(STALL_S) == []
    assert dispatch.tick(STALLED_S) == [Skip(1, ["B", "C"])]
    assert ended(dispatch) == {"B": "returned", "C": "returned", "D": "returned"}
    assert dispatch.holds() == [("A", 1)]
    assert dispatch.tick(2 * STALLED_S) == [], "once is enough"


class Begun:
    """What a worker says that it has begun, or that this is not sure yet."""

    def __init__(self) -> None:
        self.count: int | None = None
        self.dispatch = with_full_line()
        self.before = self.dispatch._workers[1].ended
        self.dispatch._begun = lambda worker: (
            None if self.count is None else self.before + self.count
        )


def test_nothing_is_taken_back_before_it_is_sure_what_has_begun() -> None:
    begun = Begun()
    assert begun.dispatch.tick(STALLED_S) == []
    wait_s = begun.dispatch.next_deadline(STALLED_S, LONG_S)
    assert wait_s is not None
    assert wait_s < TELL_S, "it asks again soon"
    begun.count = 1
    assert begun.dispatch.tick(STALLED_S + wait_s) == [Skip(1, ["B", "C"])]


def test_what_a_late_worker_has_begun_stays() -> None:
    begun = Begun()
    begun.count = 2
    assert begun.dispatch.tick(STALLED_S) == [Skip(1, ["C"])]
    assert waiting(begun.dispatch) == "CD", "it may be at a short one by now"
    assert begun.dispatch.tick(STALLED_S) == [], "A has ended, as will be told soon"
    begun.dispatch.finished(1, result(task("A", "tiny"), 0.0), STALLED_S)
    begun.dispatch.finished(1, result(task("B", "tiny"), 0.0), STALLED_S)
    assert [done.task_id for done in begun.dispatch.completions if done.outcome == "result"] == [
        "A",
        "B",
    ]


def test_a_worker_that_has_begun_all_keeps_them() -> None:
    begun = Begun()
    begun.count = 3
    assert begun.dispatch.tick(STALLED_S) == []
    assert begun.dispatch.tick(2 * STALLED_S - 0.001) == []
    begun.dispatch.finished_all(
        1, [result(task(name, "tiny"), 0.0) for name in "AB"], 2 * STALLED_S
    )
    assert begun.dispatch.running(1) == task("C", "tiny")


def test_a_task_by_the_shortcut_stands_before_those_that_are_counted() -> None:
    begun = Begun()
    begun.dispatch.beside(1, ("X_1", 1), 0.0)
    begun.count = 1  # A, whose end is not told yet
    assert begun.dispatch.tick(STALLED_S) == [Skip(1, ["B", "C"])]
    assert waiting(begun.dispatch) == "BCD"


def test_what_ended_here_before_is_not_counted() -> None:
    begun = Begun()
    begun.dispatch.finished(1, result(task("A", "tiny"), AHEAD_S / 3), 0.0)
    begun.count = 2  # A and B
    assert begun.dispatch.tick(STALLED_S) == [Skip(1, ["C"])]


def test_nothing_is_sent_ahead_to_a_worker_with_a_long_task() -> None:
    dispatch = slave(1, 2, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("AB", "tiny"))
    assert sent(dispatch.tick(0.0)) == {1: "A", 2: "B"}
    dispatch.finished(2, result(task("B", "tiny"), TINY_S), STALLED_S)
    dispatch.arrived(tasks("CDE", "tiny"))
    assert sent(dispatch.tick(STALLED_S)) == {2: "CDE"}, "and not behind A"


def test_another_worker_runs_what_was_taken_back_in_its_old_order() -> None:
    dispatch = slave(1, 2, knows={"tiny": AHEAD_S / 3, "long": LONG_S})
    dispatch.arrived([*tasks("A", "tiny"), *tasks("X", "long"), *tasks("BCD", "tiny")])
    assert sent(dispatch.tick(0.0)) == {1: "ABC", 2: "X"}
    dispatch.finished(2, result(task("X", "long")), STALLED_S)
    skip, *sends = dispatch.tick(STALLED_S)
    assert skip == Skip(1, ["B", "C"])
    assert sent(sends) == {2: "BCD"}


def recalled_to_another() -> Dispatch:
    """Worker 1 still runs A; B was taken back from it and runs at worker 2."""
    dispatch = slave(1, 2, knows={"tiny": TINY_S, "long": LONG_S})
    dispatch.arrived([*tasks("A", "tiny"), *tasks("X", "long"), *tasks("B", "tiny")])
    assert sent(dispatch.tick(0.0)) == {1: "AB", 2: "X"}
    dispatch.finished(2, result(task("X", "long")), STALLED_S)
    skip, send = dispatch.tick(STALLED_S)
    assert skip == Skip(1, ["B"])
    assert sent([send]) == {2: "B"}
    dispatch.completions.clear()
    return dispatch


def test_a_task_that_was_taken_back_too_late_runs_twice_and_is_handed_in_once() -> None:
    dispatch = recalled_to_another()
    for worker, name in ((1, "A"), (1, "B"), (2, "B")):
        dispatch.finished(worker, result(task(name, "tiny"), 0.0), 1.0)
    assert [done.task_id for done in dispatch.completions] == ["A", "B"]
    assert not dispatch.busy()


def test_a_worker_that_dies_of_what_was_taken_back_costs_no_crash_here() -> None:
    dispatch = recalled_to_another()
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.0)
    dispatch.died(1, "killed by SIGSEGV")
    assert ended(dispatch) == {"A": "result"}
    dispatch.died(2, "killed by SIGSEGV")
    assert ended(dispatch) == {"B": "crashed"}


def test_the_late_end_of_an_attempt_is_not_taken_for_that_of_the_next() -> None:
    dispatch = with_full_line()
    dispatch.tick(STALLED_S)
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.0)
    dispatch.completions.clear()
    dispatch.skipped(1)
    dispatch.arrived([task("B", "tiny", attempt=2)])
    dispatch.tick(1.0)
    assert dispatch.running(1) == task("B", "tiny", attempt=2)
    dispatch.finished(1, result(task("B", "tiny", attempt=1)), 1.0)  # it had begun by then
    assert ("B", 2) in dispatch.holds()
    dispatch.finished(1, result(task("B", "tiny", attempt=2)), 1.0)
    assert [done.attempt for done in dispatch.completions if done.task_id == "B"] == [2]
    assert ("B", 2) not in dispatch.holds()


def test_what_stands_behind_a_long_task_goes_back_while_draining() -> None:
    dispatch = with_full_line()
    dispatch.drain()
    assert dispatch.tick(STALLED_S) == [Skip(1, ["B", "C"])]
    assert ended(dispatch) == {"B": "returned", "C": "returned", "D": "returned"}


def test_a_worker_gets_nothing_until_it_has_read_what_to_skip() -> None:
    """It may have begun one of those tasks, and be blamed for another one."""
    dispatch = with_full_line()
    dispatch.tick(STALLED_S)
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.0)
    dispatch.completions.clear()
    assert dispatch.room(1.0) == 0
    dispatch.arrived(tasks("X"))
    assert dispatch.tick(1.0) == []
    assert ended(dispatch) == {"X": "returned"}
    dispatch.skipped(1)
    assert dispatch.room(1.0) == 1
    dispatch.arrived(tasks("Y"))
    assert sent(dispatch.tick(1.0)) == {1: "Y"}


# --- questions ------------------------------------------------------------------------------


def test_a_slave_is_stalled_when_every_worker_has_been_at_one_task_for_long() -> None:
    dispatch = slave()
    assert dispatch.stalled(0.0), "there is nobody"
    dispatch.worker_ready(1)
    dispatch.worker_ready(2)
    dispatch.arrived(tasks("A"))
    dispatch.tick(0.0)
    assert not dispatch.stalled(STALLED_S), "one is idle"
    dispatch.arrived(tasks("B"))
    dispatch.tick(1.0)
    assert not dispatch.stalled(1.0 + 0.99 * STALL_S), "one has just begun"
    assert dispatch.stalled(1.0 + STALLED_S)
    dispatch.finished(1, result(task("A")), 1.0 + STALLED_S)
    assert not dispatch.stalled(1.0 + STALLED_S)


def test_there_is_room_for_a_task_per_ready_worker() -> None:
    dispatch = slave()
    assert dispatch.room(0.0) == 0
    for worker in (1, 2, 3):
        dispatch.worker_ready(worker)
    assert dispatch.room(0.0) == 3
    dispatch.arrived(tasks("AB"))
    dispatch.tick(0.0)
    assert dispatch.room(STALLED_S) == 3, "also for those that are busy"
    dispatch.cancelled(["A"])
    assert dispatch.room(0.0) == 2, "not for one that is being killed"
    dispatch.leaving(3)
    assert dispatch.room(0.0) == 1


def test_there_is_no_room_in_a_slave_that_is_stalled_or_leaves() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("A"))
    dispatch.tick(0.0)
    assert dispatch.room(0.0) == 1
    assert dispatch.room(STALLED_S) == 0
    dispatch.drain()
    assert dispatch.room(0.0) == 0


def test_a_start_is_told_once_and_not_before_its_time() -> None:
    dispatch = with_full_line()
    assert dispatch.newly_started(before=-0.1) == []
    assert dispatch.newly_started(before=0.0) == ["A"]
    assert dispatch.newly_started(before=1.0) == []
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.0)
    assert dispatch.newly_started(before=0.9) == []
    assert dispatch.newly_started(before=1.0) == ["B"]


def test_the_start_of_another_attempt_is_told_again() -> None:
    dispatch = slave(1)
    for attempt in (1, 2):
        dispatch.arrived([task("A", attempt=attempt)])
        dispatch.tick(0.0)
        assert dispatch.newly_started(0.0) == ["A"]
        dispatch.died(1, "story")
        dispatch.worker_ready(1)


def test_starts_are_told_again_to_a_task_manager_that_has_lost_track() -> None:
    dispatch = slave(1, 2)
    dispatch.arrived(tasks("AB"))
    dispatch.tick(0.0)
    dispatch.newly_started(0.0)
    dispatch.finished(2, result(task("B")), 1.0)
    dispatch.untell()
    assert dispatch.newly_started(0.0) == ["A"]
    assert dispatch.newly_started(0.0) == []


def test_the_clock_is_of_no_interest_when_nothing_runs() -> None:
    dispatch = slave(1)
    assert dispatch.next_deadline(5.0, TELL_S) is None


def test_at_each_deadline_there_is_something_to_do() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("AB", timeout=3.0))
    now = 10.0
    dispatch.tick(now)
    seen = []
    while (wait_s := dispatch.next_deadline(now, TELL_S)) is not None:
        assert wait_s > 0
        now += wait_s
        started = dispatch.newly_started(now - TELL_S)
        actions = dispatch.tick(now)
        assert started or actions or dispatch.completions, "woken for nothing"
        seen += [*started, *actions, *ended(dispatch)]
    assert seen == ["A", "B", Kill(1, "killed at its time limit of 3 s")]
    assert now == pytest.approx(13.0, abs=0.1)


def test_the_clock_wakes_for_what_stands_behind_a_long_task() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("AB", "tiny"))
    dispatch.tick(0.0)
    dispatch.newly_started(0.0)
    wait_s = dispatch.next_deadline(0.0, TELL_S)
    assert wait_s is not None
    assert dispatch.tick(wait_s) == [Skip(1, ["B"])]
    assert dispatch.next_deadline(wait_s, TELL_S) is None, "woken for nothing"

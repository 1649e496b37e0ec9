"""How a slave shares its tasks among its workers: who is blamed, who is fed, what goes back."""

from __future__ import annotations

import math

import pytest
from dispatching import (
    LONG_S,
    STALLED_S,
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

from masterslave.dispatch import _AHEAD_BYTES, AHEAD_S, ENOUGH_S, NEXT_S, Kill, Skip
from masterslave.records import Completion, Outcome

# --- feeding --------------------------------------------------------------------------------


def test_each_idle_worker_gets_a_task_in_order() -> None:
    dispatch = slave(1, 2)
    dispatch.arrived(tasks("ABC"))
    assert sent(dispatch.tick(0.0)) == {1: "A", 2: "B"}
    assert waiting(dispatch) == "C"
    assert sent(dispatch.tick(0.0)) == {}


def test_many_ends_are_as_one_after_the_other() -> None:
    one_by_one, together = (with_full_line() for _ in range(2))
    ends = [
        result(task("A", "tiny"), TINY_S),
        result(task("X", "tiny"), TINY_S),  # of a task that was given up here
        result(task("B", "tiny"), TINY_S)._replace(outcome="exception"),
        result(task("C", "tiny"), TINY_S),
    ]
    for end in ends:
        one_by_one.finished(1, end, 1.0)
    together.finished_all(1, ends, 1.0)
    assert together.completions == one_by_one.completions == [ends[0], *ends[2:]]
    assert together.holds() == one_by_one.holds()
    assert together.running(1) is one_by_one.running(1) is None
    assert together._pace._mean_s == one_by_one._pace._mean_s
    together.finished_all(7, ends, 1.0)  # of a worker that is gone
    assert len(together.completions) == 3


def test_a_worker_that_has_finished_gets_the_next_task() -> None:
    dispatch = slave(1, 2)
    dispatch.arrived(tasks("ABC"))
    dispatch.tick(0.0)
    dispatch.finished(2, result(task("B")), 1.0)
    assert sent(dispatch.tick(1.0)) == {2: "C"}
    assert dispatch.completions == [result(task("B"))]


def test_what_comes_while_there_are_no_workers_goes_back() -> None:
    dispatch = slave()
    dispatch.arrived(tasks("A"))
    assert dispatch.tick(0.0) == []
    assert ended(dispatch) == {"A": "returned"}
    dispatch.worker_ready(1)
    dispatch.arrived(tasks("B"))
    assert sent(dispatch.tick(0.0)) == {1: "B"}


def test_tasks_that_are_known_to_be_tiny_are_sent_ahead() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("ABCDE", "tiny"))
    assert sent(dispatch.tick(0.0)) == {1: "ABCDE"}


def test_a_task_of_unknown_length_is_not_sent_ahead() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived([*tasks("A", "tiny"), *tasks("B", "new"), *tasks("C", "tiny")])
    assert sent(dispatch.tick(0.0)) == {1: "A"}
    assert waiting(dispatch) == "BC"


def test_of_tasks_of_some_milliseconds_the_next_one_is_sent_ahead_and_no_more() -> None:
    dispatch = slave(1, 2, knows={"short": 0.9 * NEXT_S})
    dispatch.arrived(tasks("ABCDE", "short"))
    assert sent(dispatch.tick(0.0)) == {1: "AC", 2: "BD"}
    assert sent(dispatch.tick(0.0)) == {}
    assert waiting(dispatch) == "E"
    dispatch.finished(2, result(task("B", "short"), 0.9 * NEXT_S), 0.0)
    assert sent(dispatch.tick(0.0)) == {2: "E"}


def test_of_shorter_ones_three_are_sent_ahead_while_there_are_many() -> None:
    dispatch = slave(1, 2, knows={"short": 0.5 * NEXT_S})
    dispatch.arrived(tasks("ABCDEFGHIJ", "short"))
    assert sent(dispatch.tick(0.0)) == {1: "ACDE", 2: "BFGH"}
    assert waiting(dispatch) == "IJ"
    for done in "BF":
        dispatch.finished(2, result(task(done, "short"), 0.5 * NEXT_S), 0.0)
        assert sent(dispatch.tick(0.0)) == {}, "it has another one"
    dispatch.finished(2, result(task("G", "short"), 0.5 * NEXT_S), 0.0)
    assert sent(dispatch.tick(0.0)) == {2: "I"}, "there is one for each worker only"


@pytest.mark.parametrize("rest", range(5))
def test_the_last_short_ones_are_divided_evenly(rest: int) -> None:
    dispatch = slave(1, 2, 3, 4, knows={"short": 0.5 * NEXT_S})
    dispatch.arrived(tasks("ABCDEFGH"[: 4 + rest], "short"))
    lines = sent(dispatch.tick(0.0))
    assert sorted(map(len, lines.values())) == [1] * (4 - rest) + [2] * rest


def test_shorter_ones_are_not_sent_ahead_behind_one_that_is_longer() -> None:
    dispatch = slave(1, knows={"short": 0.5 * NEXT_S, "longer": 0.9 * NEXT_S})
    dispatch.arrived([*tasks("A", "longer"), *tasks("BCDEF", "short")])
    assert sent(dispatch.tick(0.0)) == {1: "AB"}


def test_a_long_task_is_not_sent_ahead() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S, "long": LONG_S})
    dispatch.arrived([*tasks("A", "tiny"), *tasks("B", "long")])
    assert sent(dispatch.tick(0.0)) == {1: "A"}
    dispatch.finished(1, result(task("A", "tiny"), TINY_S), 0.0)
    assert sent(dispatch.tick(0.0)) == {1: "B"}


@pytest.mark.parametrize("tag", ["long", "new"])
def test_a_tiny_task_is_not_put_behind_one_that_is_not(tag: str) -> None:
    dispatch = slave(1, knows={"tiny": TINY_S, "long": LONG_S})
    dispatch.arrived([*tasks("A", tag), *tasks("B", "tiny")])
    assert sent(dispatch.tick(0.0)) == {1: "A"}


def test_work_sent_ahead_is_limited_and_refilled_before_the_worker_runs_dry() -> None:
    dispatch = slave(1, knows={"tiny": AHEAD_S / 9})
    names = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    dispatch.arrived(tasks(names, "tiny"))
    got = sent(dispatch.tick(0.0))[1]
    assert got in ("ABCDEFGH", "ABCDEFGHI"), "about AHEAD_S seconds of work, rounding aside"
    left = len(got)
    for name in names:
        dispatch.finished(1, result(task(name, "tiny"), AHEAD_S / 9), 0.0)
        left -= 1
        assert left > 0 or got == names, "it waits for its supervisor"
        more = sent(dispatch.tick(0.0)).get(1, "")
        got += more
        left += len(more)
    assert got == names


def test_large_tasks_are_for_all_workers_however_little_they_take() -> None:
    dispatch = slave(1, 2, knows={"tiny": 0.0})
    large = [b"pickle", bytes(_AHEAD_BYTES // 2 - 6)]
    dispatch.arrived([one._replace(frame=large) for one in tasks("ABCDEFGH", "tiny")])
    assert sent(dispatch.tick(0.0)) == {1: "ACD", 2: "BEF"}
    dispatch = slave(1, knows={"tiny": 0.0})
    huge = [b"pickle", bytes(2 * _AHEAD_BYTES)]
    dispatch.arrived([one._replace(frame=huge) for one in tasks("ABCD", "tiny")])
    assert sent(dispatch.tick(0.0)) == {1: "AB"}, "one is there when the first has ended"


def test_a_slave_says_whether_its_workers_may_soon_want_more() -> None:
    dispatch = slave(1, knows={"short": ENOUGH_S / 2, "tiny": TINY_S})
    assert dispatch.runs_low(0.0)
    dispatch.arrived(tasks("a", "short"))
    dispatch.tick(0.0)
    assert dispatch.runs_low(0.0)  # half of what is enough
    dispatch.arrived(tasks("b", "short"))
    assert not dispatch.runs_low(0.0)
    assert dispatch.runs_low(ENOUGH_S / 4)  # the first has run for some time
    dispatch.arrived(tasks("c", "short"))
    assert not dispatch.runs_low(ENOUGH_S)  # longer than usual: it may end at any time
    dispatch.finished(1, result(task("a", "short"), ENOUGH_S / 2), ENOUGH_S)
    dispatch.tick(ENOUGH_S)
    assert not dispatch.runs_low(ENOUGH_S)
    assert dispatch.runs_low(1.25 * ENOUGH_S)


def test_one_worker_that_may_run_dry_is_enough() -> None:
    dispatch = slave(1, 2, knows={"short": ENOUGH_S})
    dispatch.arrived(tasks("abcd", "short"))
    dispatch.tick(0.0)
    assert not dispatch.runs_low(ENOUGH_S / 2)
    dispatch.finished(2, result(task("b", "short"), ENOUGH_S), ENOUGH_S / 2)
    dispatch.tick(ENOUGH_S / 2)
    assert not dispatch.runs_low(ENOUGH_S / 2)
    assert dispatch.runs_low(ENOUGH_S)


def test_what_waits_in_the_lines_of_workers_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("masterslave.dispatch.ENOUGH_S", 2.9 * TINY_S)
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("abcd", "tiny"))
    dispatch.tick(0.0)
    assert waiting(dispatch) == ""
    assert not dispatch.runs_low(0.0)


def test_nobody_knows_how_long_tasks_of_a_new_kind_last() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("abcdef"))
    assert dispatch.runs_low(0.0)


def test_every_idle_worker_is_served_before_tasks_are_sent_ahead() -> None:
    dispatch = slave(1, 2, 3, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("ABC", "tiny"))
    assert sent(dispatch.tick(0.0)) == {1: "A", 2: "B", 3: "C"}


def test_a_task_that_is_here_already_is_not_taken_twice() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("AB"))
    dispatch.tick(0.0)
    dispatch.arrived(tasks("ABC"))
    assert waiting(dispatch) == "BC"
    assert dispatch.holds() == [("A", 1), ("B", 1), ("C", 1)], "oldest first"


# --- death and blame ------------------------------------------------------------------------


def test_the_first_of_a_dead_workers_line_is_blamed_and_the_rest_is_not() -> None:
    dispatch = with_full_line()
    dispatch.died(1, "killed by SIGSEGV")
    assert dispatch.completions == [
        Completion("A", 1, Outcome.CRASHED.value, [], 0.0, "killed by SIGSEGV")
    ]
    assert waiting(dispatch) == "BCD"
    assert sorted(dispatch.holds()) == [("B", 1), ("C", 1), ("D", 1)]
    dispatch.worker_ready(2)
    assert sent(dispatch.tick(0.0)) == {2: "BCD"}


def test_a_worker_that_dies_idle_costs_no_task() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("A"))
    dispatch.tick(0.0)
    dispatch.finished(1, result(task("A")), 1.0)
    dispatch.died(1, "exit status 1")
    dispatch.died(7, "unheard of")
    assert ended(dispatch) == {"A": "result"}
    dispatch.arrived(tasks("B"))
    assert dispatch.tick(1.0) == [], "nobody is there"


def test_after_one_task_the_next_is_blamed() -> None:
    dispatch = with_full_line()
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.0)
    dispatch.died(1, "story")
    assert ended(dispatch) == {"A": "result", "B": "crashed"}
    assert waiting(dispatch) == "CD"


def test_a_completion_from_a_worker_that_was_given_up_is_ignored() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("A"))
    dispatch.tick(0.0)
    dispatch.died(1, "story")
    dispatch.completions.clear()
    dispatch.finished(1, result(task("A")), 1.0)
    dispatch.worker_ready(2)
    dispatch.finished(2, result(task("A")), 1.0)
    assert dispatch.completions == []


# --- time limits ----------------------------------------------------------------------------


def test_a_task_past_its_limit_is_killed_and_reported_as_such() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("AB", timeout=2.0))
    dispatch.tick(10.0)
    assert dispatch.tick(12.0) == []
    [kill] = dispatch.tick(12.1)
    assert kill == Kill(1, "killed at its time limit of 2 s")
    assert dispatch.tick(13.0) == [], "once is enough"
    dispatch.died(1, "killed by SIGKILL")
    outcomes = {done.task_id: (done.outcome, done.detail) for done in dispatch.completions}
    story = "killed at its time limit of 2 s; killed by SIGKILL"
    assert outcomes["A"] == ("timed_out", story)
    assert outcomes.get("B", ("returned",))[0] == "returned"


def test_the_time_in_line_does_not_count_for_the_limit() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("AB", "tiny", timeout=2.0))
    assert sent(dispatch.tick(0.0)) == {1: "AB"}
    dispatch.finished(1, result(task("A", "tiny")), 1.5)
    assert dispatch.tick(3.0) == []
    assert dispatch.tick(3.6) == [Kill(1, "killed at its time limit of 2 s")]


def test_what_stands_behind_a_task_past_its_limit_is_taken_back_at_once() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("ABC", "tiny", timeout=2.0))
    assert sent(dispatch.tick(0.0)) == {1: "ABC"}
    dispatch.worker_ready(2)
    kill, skip, *sends = dispatch.tick(2.5)
    assert kill == Kill(1, "killed at its time limit of 2 s")
    assert skip == Skip(1, ["B", "C"])
    assert sent(sends) == {2: "BC"}
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"A": "timed_out"}


def test_a_task_that_finished_just_before_the_kill_is_not_blamed() -> None:
    dispatch = with_full_line()
    assert dispatch.cancelled(["A"]) == [Kill(1, "cancelled")]
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.0)
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"A": "result", "B": "returned"}, "B may have begun"
    assert waiting(dispatch) == "CD"


def test_a_worker_that_finished_all_just_before_the_kill_costs_nothing() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("A", timeout=2.0))
    dispatch.tick(0.0)
    assert len(dispatch.tick(2.5)) == 1
    dispatch.finished(1, result(task("A")), 2.5)
    dispatch.arrived(tasks("B"))
    assert dispatch.tick(2.5) == [], "nothing for a worker that is about to die"
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"A": "result"}
    assert waiting(dispatch) == "B"


# --- cancelling and stopping ----------------------------------------------------------------


def test_a_cancelled_task_that_no_worker_has_is_forgotten() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("ABC"))
    dispatch.tick(0.0)
    assert dispatch.cancelled(["B", "unknown"]) == []
    assert waiting(dispatch) == "C"
    assert sorted(dispatch.holds()) == [("A", 1), ("C", 1)]
    assert dispatch.completions == []


def test_a_cancelled_task_that_runs_is_killed_at_no_cost() -> None:
    dispatch = with_full_line()
    assert dispatch.cancelled(["A"]) == [Kill(1, "cancelled")]
    assert dispatch.cancelled(["A"]) == [], "once is enough"
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"A": "returned"}
    assert waiting(dispatch) == "BCD"


def test_a_cancelled_task_that_stands_in_line_is_skipped_and_the_running_one_goes_on() -> None:
    dispatch = with_full_line()
    assert dispatch.cancelled(["C", "B"]) == [Skip(1, ["B", "C"])]
    assert dispatch.cancelled(["B"]) == [], "once is enough"
    assert dispatch.holds() == [("A", 1), ("D", 1)]
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.0)
    dispatch.skipped(1)
    assert sent(dispatch.tick(1.0)) == {1: "D"}
    assert ended(dispatch) == {"A": "result"}


def test_a_cancelled_task_that_had_begun_by_then_is_not_handed_in() -> None:
    dispatch = with_full_line()
    assert dispatch.cancelled(["B"]) == [Skip(1, ["B"])]
    for name in "ABC":
        dispatch.finished(1, result(task(name, "tiny"), 0.0), 1.0)
    assert ended(dispatch) == {"A": "result", "C": "result"}
    assert dispatch.holds() == [("D", 1)]


def test_a_worker_whose_whole_line_is_cancelled_is_killed() -> None:
    dispatch = with_full_line()
    assert dispatch.cancelled("ABCD") == [Skip(1, ["B", "C"]), Kill(1, "cancelled")]
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"A": "returned"}
    assert not dispatch.busy()
    assert dispatch.holds() == []


def test_an_outdated_attempt_ends_and_a_later_one_of_the_same_task_stays() -> None:
    dispatch = with_full_line()
    first, later = task("D", "tiny"), task("D", "tiny")._replace(attempt=2)
    dispatch.arrived([later])
    assert dispatch.outdated([(first.task_id, first.attempt)]) == []
    assert dispatch.holds() == [("A", 1), ("B", 1), ("C", 1), ("D", 2)]


def test_two_attempts_in_one_line_are_skipped_together_and_the_later_one_waits_again() -> None:
    dispatch = with_full_line()
    later = task("B", "tiny")._replace(attempt=2)
    dispatch.arrived([later])
    dispatch.backlog.rotate(1)  # before D
    dispatch._workers[1].line.append(dispatch.backlog.popleft())
    assert dispatch.outdated([("B", 1)]) == [Skip(1, ["B", "B"])]
    assert dispatch.holds() == [("A", 1), ("C", 1), ("D", 1), ("B", 2)]
    assert [one.attempt for one in dispatch.backlog] == [2, 1]


def test_a_task_that_finished_before_it_was_cancelled_stays_finished() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("A"))
    dispatch.tick(0.0)
    dispatch.finished(1, result(task("A")), 1.0)
    assert dispatch.cancelled(["A"]) == []
    assert ended(dispatch) == {"A": "result"}


def test_draining_gives_back_what_no_worker_has_and_finishes_what_runs() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("ABC"))
    dispatch.tick(0.0)
    dispatch.drain()
    assert ended(dispatch) == {"B": "returned", "C": "returned"}
    assert dispatch.busy()
    dispatch.finished(1, result(task("A")), 1.0)
    assert dispatch.tick(1.0) == []
    assert ended(dispatch) == {"A": "result"}
    assert not dispatch.busy()


def test_what_arrives_while_draining_goes_back_at_once() -> None:
    dispatch = slave(1)
    dispatch.drain()
    dispatch.arrived(tasks("A"))
    assert dispatch.tick(0.0) == []
    assert ended(dispatch) == {"A": "returned"}
    assert dispatch.holds() == []


def test_what_a_dead_worker_had_ahead_goes_back_while_draining() -> None:
    dispatch = with_full_line()
    dispatch.drain()
    dispatch.died(1, "story")
    dispatch.tick(0.0)
    assert ended(dispatch) == {"A": "crashed", "B": "returned", "C": "returned", "D": "returned"}


def test_a_worker_that_leaves_gives_back_what_it_has_not_begun() -> None:
    dispatch = with_full_line()
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.0)
    dispatch.leaving(1)
    dispatch.leaving(7)
    assert waiting(dispatch) == "BCD"
    assert dispatch.tick(1.0) == [], "it wants no more"
    dispatch.finished(1, result(task("B", "tiny"), 0.0), 1.0)
    assert ended(dispatch) == {"A": "result"}, "what it still ran by mistake does not count"
    dispatch.died(1, "exit status 0")
    dispatch.worker_ready(2)
    assert sent(dispatch.tick(1.0)) == {2: "BCD"}


def test_an_interrupt_kills_what_runs_at_no_cost() -> None:
    dispatch = slave(1, 2, 3)
    dispatch.arrived(tasks("AB"))
    dispatch.tick(0.0)
    assert dispatch.interrupt("stopped") == [Kill(1, "stopped"), Kill(2, "stopped")]
    assert dispatch.interrupt("stopped") == []
    for worker in (1, 2, 3):
        dispatch.died(worker, "killed by SIGKILL")
    assert ended(dispatch) == {"A": "returned", "B": "returned"}


def test_how_long_tasks_usually_take_together() -> None:
    dispatch = slave(1, knows={"short": 0.5, "none": 0.0})
    assert dispatch.usual_s(tasks("ab", "short") + tasks("c", "none")) == 1.0
    assert dispatch.usual_s(tasks("a", "short") + tasks("b", "new")) == math.inf


# --- tasks that come by the shortcut --------------------------------------------------------


def beside(name: str, attempt: int = 1) -> tuple[str, int]:
    return name, attempt


def test_a_task_by_the_shortcut_is_first_in_line_while_it_is_seen() -> None:
    dispatch = slave(1, 2)
    assert dispatch.beside(1, beside("S_0"), 1.0) == []
    assert dispatch.busy()
    assert dispatch.holds() == [("S_0", 1)]
    running = dispatch.running(1)
    assert running is not None
    assert (running.task_id, running.tag) == ("S_0", "S")
    assert dispatch.newly_started(1.0) == ["S_0"]
    dispatch.arrived(tasks("A"))
    assert sent(dispatch.tick(1.0)) == {2: "A"}, "the other one is idle"
    assert dispatch.beside(1, None, 2.0) == []
    assert dispatch.holds() == [("A", 1)]
    assert ended(dispatch) == {}, "the task manager has its result"


def test_one_after_the_other_by_the_shortcut() -> None:
    dispatch = slave(1)
    for number in range(3):
        dispatch.beside(1, beside(f"S_{number}"), float(number))
        dispatch.beside(1, beside(f"S_{number}"), float(number))
        assert dispatch.holds() == [(f"S_{number}", 1)]
    dispatch.beside(7, beside("S_9"), 3.0)
    assert dispatch.holds() == [("S_2", 1)], "of a worker that is not here"


def test_a_worker_that_dies_is_blamed_for_its_task_by_the_shortcut() -> None:
    dispatch = with_full_line()
    dispatch.beside(1, beside("S_0"), 1.0)
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"S_0": "crashed"}
    assert waiting(dispatch) == "ABCD"


def test_what_had_ended_before_it_died_is_not_to_blame() -> None:
    dispatch = slave(1)
    dispatch.beside(1, beside("S_0"), 1.0)
    dispatch.finished_beside(1, result(task("S_0")), 1.0)
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"S_0": "result"}
    assert dispatch.holds() == []


def test_the_end_of_one_that_was_not_seen_is_handed_in() -> None:
    dispatch = slave(1)
    dispatch.finished_beside(1, result(task("S_0")), 1.0)
    dispatch.finished_beside(7, result(task("S_1")), 1.0)
    assert ended(dispatch) == {"S_0": "result", "S_1": "result"}
    dispatch.beside(1, beside("S_0"), 1.0)  # it was read before the end stood on the board
    dispatch.beside(1, None, 1.0)
    assert not dispatch.busy()
    assert ended(dispatch) == {}


def test_the_end_of_what_stands_in_line_is_heard_while_one_is_seen() -> None:
    dispatch = with_full_line()
    dispatch.beside(1, beside("S_0"), 1.0)
    dispatch.finished(1, result(task("A", "tiny"), 0.0), 1.02)
    dispatch.finished_all(1, [result(task("B", "tiny"), 0.0)], 1.02)
    assert ended(dispatch) == {"A": "result", "B": "result"}
    assert dispatch.newly_started(1.01) == ["S_0"], "it began before"
    assert dispatch.holds() == [("C", 1), ("D", 1), ("S_0", 1)]
    dispatch.beside(1, None, 1.0)
    assert dispatch.running(1) == task("C", "tiny")


def test_what_stands_behind_a_long_one_goes_back() -> None:
    dispatch = with_full_line()
    dispatch.beside(1, beside("S_0"), 1.0)
    assert dispatch.tick(1.0 + STALLED_S) == [Skip(1, ["A", "B", "C"])]
    assert ended(dispatch) == dict.fromkeys("ABCD", "returned")
    assert dispatch.room(1.0 + STALLED_S) == 0
    dispatch.skipped(1)
    dispatch.beside(1, None, 2.0)
    assert dispatch.room(2.0) == 1


def test_a_cancelled_one_is_killed() -> None:
    dispatch = slave(1)
    dispatch.beside(1, beside("S_0"), 1.0)
    assert dispatch.cancelled(["S_0"]) == [Kill(1, "cancelled")]
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"S_0": "returned"}


def test_one_that_was_cancelled_before_it_was_seen_is_killed_when_it_is() -> None:
    dispatch = slave(1)
    assert dispatch.cancelled(["S_0"]) == []
    assert dispatch.beside(1, beside("S_1"), 1.0) == []
    assert dispatch.beside(1, beside("S_0"), 1.0) == [Kill(1, "cancelled")]
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"S_0": "returned"}


def test_another_task_manager_may_use_the_id_of_a_cancelled_one() -> None:
    dispatch = slave(1)
    dispatch.cancelled(["S_0"])
    dispatch.untell()
    assert dispatch.beside(1, beside("S_0"), 1.0) == []


def test_the_one_that_begins_as_its_worker_is_killed_is_not_to_blame() -> None:
    dispatch = slave(1)
    dispatch.beside(1, beside("S_0"), 1.0)
    dispatch.cancelled(["S_0"])
    assert dispatch.beside(1, beside("S_1"), 1.0) == []
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"S_1": "returned"}


def test_an_interrupt_kills_what_came_by_the_shortcut_at_no_cost() -> None:
    dispatch = slave(1, 2)
    dispatch.beside(1, beside("S_0"), 1.0)
    assert dispatch.interrupt("stopped") == [Kill(1, "stopped")]
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"S_0": "returned"}


def test_a_worker_that_leaves_after_a_task_by_the_shortcut_gives_nothing_back_for_it() -> None:
    dispatch = slave(1)
    dispatch.beside(1, beside("S_0"), 1.0)
    dispatch.leaving(1)  # it is told of the end in this way first
    assert ended(dispatch) == {}
    assert not dispatch.busy()
    dispatch.beside(1, None, 1.0)
    dispatch.died(1, "ended with exit status 0")
    assert ended(dispatch) == {}
    assert dispatch.holds() == []


def test_an_outdated_attempt_by_the_shortcut_is_killed_and_another_one_not() -> None:
    dispatch = slave(1)
    dispatch.beside(1, beside("S_0", 2), 1.0)
    assert dispatch.outdated([("S_0", 1)]) == []
    assert dispatch.outdated([("S_0", 2)]) == [Kill(1, "cancelled")]

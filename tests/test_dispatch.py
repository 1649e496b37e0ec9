"""How a slave shares its tasks among its workers: who is blamed, who is fed, what goes back."""

from __future__ import annotations

import itertools
import random
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from masterslave.dispatch import AHEAD_S, STALL_S, Action, Dispatch, Kill, Send
from masterslave.records import Assignment, Completion, Outcome

TINY_S = AHEAD_S / 20
LONG_S = 60.0
TELL_S = 0.05


# --- helpers --------------------------------------------------------------------------------


def task(name: str, tag: str = "new", attempt: int = 1, timeout: float | None = None) -> Assignment:
    return Assignment(name, tag, attempt, [b"parameters"], timeout)


def tasks(names: str, tag: str = "new", **kwargs: Any) -> list[Assignment]:
    return [task(name, tag, **kwargs) for name in names]


def result(of: Assignment, duration_s: float = LONG_S) -> Completion:
    return Completion(of.task_id, of.attempt, Outcome.RESULT.value, [b"result"], duration_s, "")


def slave(*workers: int, knows: dict[str, float] | None = None) -> Dispatch:
    """A slave with these workers, all idle, that knows how long tasks of some tags take."""
    dispatch = Dispatch()
    dispatch.worker_ready(-1)
    for tag, duration_s in (knows or {}).items():
        dispatch.arrived([task(f"learn {tag}", tag)])
        dispatch.tick(0.0)
        dispatch.finished(-1, result(task(f"learn {tag}", tag), duration_s), 0.0)
    dispatch.died(-1, "no more to learn")
    dispatch.completions.clear()
    for worker in workers:
        dispatch.worker_ready(worker)
    return dispatch


def sent(actions: list[Action]) -> dict[int, str]:
    """Worker -> names of the tasks it got."""
    got: dict[int, str] = {}
    for action in actions:
        assert isinstance(action, Send)
        got[action.worker] = got.get(action.worker, "") + "".join(t.task_id for t in action.tasks)
    return got


def ended(dispatch: Dispatch) -> dict[str, str]:
    """Task -> outcome, of what is to be handed in; the shell takes it."""
    completions, dispatch.completions = dispatch.completions, []
    return {done.task_id: done.outcome for done in completions}


def waiting(dispatch: Dispatch) -> str:
    return "".join(task.task_id for task in dispatch.backlog)


def with_full_line() -> Dispatch:
    """Worker 1 runs task A and has B and C, tiny ones, in advance; D waits for it to have room."""
    dispatch = slave(1, knows={"tiny": AHEAD_S / 3})
    dispatch.arrived(tasks("ABCD", "tiny"))
    assert sent(dispatch.tick(0.0)) == {1: "ABC"}
    assert waiting(dispatch) == "D"
    return dispatch


# --- feeding --------------------------------------------------------------------------------


def test_each_idle_worker_gets_a_task_in_order() -> None:
    dispatch = slave(1, 2)
    dispatch.arrived(tasks("ABC"))
    assert sent(dispatch.tick(0.0)) == {1: "A", 2: "B"}
    assert waiting(dispatch) == "C"
    assert sent(dispatch.tick(0.0)) == {}


def test_a_worker_that_has_finished_gets_the_next_task() -> None:
    dispatch = slave(1, 2)
    dispatch.arrived(tasks("ABC"))
    dispatch.tick(0.0)
    dispatch.finished(2, result(task("B")), 1.0)
    assert sent(dispatch.tick(1.0)) == {2: "C"}
    assert dispatch.completions == [result(task("B"))]


def test_nothing_is_sent_to_a_worker_that_is_not_ready() -> None:
    dispatch = slave()
    dispatch.arrived(tasks("A"))
    assert dispatch.tick(0.0) == []
    dispatch.worker_ready(1)
    assert sent(dispatch.tick(0.0)) == {1: "A"}


def test_tasks_that_are_known_to_be_tiny_are_sent_ahead() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("ABCDE", "tiny"))
    assert sent(dispatch.tick(0.0)) == {1: "ABCDE"}


def test_a_task_of_unknown_length_is_not_sent_ahead() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived([*tasks("A", "tiny"), *tasks("B", "new"), *tasks("C", "tiny")])
    assert sent(dispatch.tick(0.0)) == {1: "A"}
    assert waiting(dispatch) == "BC"


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
    assert sorted(dispatch.holds()) == [("A", 1), ("B", 1), ("C", 1)]


def test_another_attempt_is_another_task() -> None:
    dispatch = slave(1)
    dispatch.arrived([task("A", attempt=1), task("A", attempt=2)])
    assert len(dispatch.backlog) == 2


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
    assert dispatch.idle_workers() == 0


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
    assert outcomes["A"] == ("timed_out", "killed at its time limit of 2 s")
    assert outcomes.get("B", ("returned",))[0] == "returned"


def test_the_time_in_line_does_not_count_for_the_limit() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("AB", "tiny", timeout=2.0))
    assert sent(dispatch.tick(0.0)) == {1: "AB"}
    dispatch.finished(1, result(task("A", "tiny")), 1.5)
    assert dispatch.tick(3.0) == []
    assert dispatch.tick(3.6) == [Kill(1, "killed at its time limit of 2 s")]


def test_a_task_that_finished_just_before_the_kill_is_not_blamed() -> None:
    dispatch = slave(1, knows={"tiny": TINY_S})
    dispatch.arrived(tasks("ABC", "tiny", timeout=2.0))
    assert sent(dispatch.tick(0.0)) == {1: "ABC"}
    assert dispatch.tick(2.5) == [Kill(1, "killed at its time limit of 2 s")]
    dispatch.finished(1, result(task("A", "tiny"), 2.4), 2.5)
    dispatch.died(1, "killed by SIGKILL")
    assert ended(dispatch) == {"A": "result", "B": "returned"}
    assert waiting(dispatch) == "C"


def test_a_worker_that_finished_all_just_before_the_kill_costs_nothing() -> None:
    dispatch = slave(1)
    dispatch.arrived(tasks("A", timeout=2.0))
    dispatch.tick(0.0)
    assert len(dispatch.tick(2.5)) == 1
    dispatch.finished(1, result(task("A")), 2.5)
    dispatch.arrived(tasks("B"))
    assert dispatch.tick(2.5) == [], "nothing for a worker that is about to die"
    assert not dispatch.hungry()
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
    assert not dispatch.hungry()
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
    assert not dispatch.hungry()
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


def test_nothing_is_given_back_while_a_worker_is_free_for_it() -> None:
    dispatch = slave(1, 2)
    dispatch.arrived(tasks("A"))
    dispatch.tick(0.0)
    dispatch.arrived(tasks("B"))
    assert sent(dispatch.tick(2 * STALL_S)) == {2: "B"}
    assert dispatch.completions == []


def test_other_workers_that_go_on_do_not_use_up_a_stalled_slaves_backlog() -> None:
    dispatch = slave(1, 2)
    dispatch.arrived(tasks("ABC"))
    dispatch.tick(0.0)
    dispatch.finished(2, result(task("B")), STALL_S)
    assert sent(dispatch.tick(STALL_S)) == {2: "C"}
    dispatch.arrived(tasks("D"))
    dispatch.tick(2 * STALL_S)
    assert ended(dispatch) == {"B": "result", "D": "returned"}


# --- questions ------------------------------------------------------------------------------


def test_a_slave_is_hungry_when_a_worker_is_idle_and_nothing_is_here() -> None:
    dispatch = slave()
    assert not dispatch.hungry(), "no worker is ready"
    dispatch.worker_ready(1)
    assert dispatch.hungry()
    dispatch.arrived(tasks("A"))
    assert not dispatch.hungry()
    dispatch.tick(0.0)
    assert not dispatch.hungry()
    dispatch.worker_ready(2)
    assert dispatch.hungry()
    dispatch.drain()
    assert not dispatch.hungry()


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


def test_running_tells_what_a_worker_runs() -> None:
    dispatch = with_full_line()
    running = dispatch.running(1)
    assert running is not None
    assert running.task_id == "A"
    assert dispatch.running(2) is None


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


# --- random histories -----------------------------------------------------------------------


class Slave(RuleBasedStateMachine):
    """Any sequence of events: each task that arrived ends exactly once, or is still here."""

    pick = st.randoms(use_true_random=False)
    durations = st.sampled_from([0.0, TINY_S, AHEAD_S / 2, STALL_S, LONG_S])

    def __init__(self) -> None:
        super().__init__()
        self.dispatch = Dispatch()
        self.now = 0.0
        self.numbers = itertools.count()
        self.lines: dict[int, deque[Assignment]] = {}  # living worker -> what it was sent
        self.left: set[int] = set()  # workers that want no more
        self.kills: dict[int, tuple[str, str]] = {}  # worker -> its first task then, its outcome
        self.here: dict[tuple[str, int], Assignment] = {}
        self.expected: dict[tuple[str, int], str] = {}  # completions that must come next
        self.returns = False  # whether tasks may be given back as well

    def carry_out(self, actions: list[Action], outcome: Outcome) -> None:
        for action in actions:
            assert action.worker in self.lines, "a worker that is not there"
            assert action.worker not in self.kills, "a worker that is about to die"
            line = self.lines[action.worker]
            if isinstance(action, Kill):
                self.kills[action.worker] = (line[0].task_id, outcome.value)
            else:
                elsewhere = [one for other in self.lines.values() for one in other]
                assert not [one for one in action.tasks if one in elsewhere], "runs twice"
                line.extend(action.tasks)

    @rule()
    def a_worker_gets_ready(self) -> None:
        number = next(self.numbers)
        self.lines[number] = deque()
        self.dispatch.worker_ready(number)

    @rule(
        tag=st.sampled_from(["a", "b"]),
        count=st.integers(1, 8),
        timeout=st.sampled_from([None, None, STALL_S, 1.0]),
        pick=pick,
    )
    def tasks_arrive(
        self, tag: str, count: int, timeout: float | None, pick: random.Random
    ) -> None:
        batch = [task(f"{tag}_{next(self.numbers)}", tag, timeout=timeout) for _ in range(count)]
        again = [pick.choice(list(self.here.values()))] if self.here else []
        self.here.update({(one.task_id, one.attempt): one for one in batch})
        self.dispatch.arrived(batch + again)

    @rule(wait_s=st.sampled_from([0.0, 0.0, AHEAD_S, STALL_S, 2.0]))
    def time_goes_by(self, wait_s: float) -> None:
        self.now += wait_s
        self.returns = True
        self.carry_out(self.dispatch.tick(self.now), Outcome.TIMED_OUT)

    @precondition(lambda self: any(self.lines.values()))
    @rule(pick=pick, duration_s=durations, raises=st.booleans())
    def a_worker_finishes(self, pick: random.Random, duration_s: float, raises: bool) -> None:
        worker = pick.choice([number for number, line in self.lines.items() if line])
        done = result(self.lines[worker].popleft(), duration_s)
        if raises:
            done = done._replace(outcome=Outcome.EXCEPTION.value)
        self.expected[done.task_id, done.attempt] = done.outcome
        self.dispatch.finished(worker, done, self.now)

    @precondition(lambda self: self.lines)
    @rule(pick=pick, killed=st.booleans())
    def a_worker_dies(self, pick: random.Random, killed: bool) -> None:
        choice = self.kills if killed and self.kills else self.lines
        worker = pick.choice(list(choice))
        line = self.lines.pop(worker)
        blamed, outcome = self.kills.pop(worker, (None, Outcome.CRASHED.value))
        if line:
            if blamed not in (None, line[0].task_id):
                outcome = Outcome.RETURNED.value
            self.expected[line[0].task_id, line[0].attempt] = outcome
        self.dispatch.died(worker, "story")

    @precondition(lambda self: len(self.lines) > 1)
    @rule(pick=pick)
    def a_worker_leaves(self, pick: random.Random) -> None:
        worker = pick.choice(list(self.lines))
        self.lines[worker].clear()
        self.left.add(worker)
        self.dispatch.leaving(worker)

    @precondition(lambda self: self.here)
    @rule(pick=pick)
    def tasks_are_cancelled(self, pick: random.Random) -> None:
        ids = {pick.choice(list(self.here))[0] for _ in range(2)}
        for one in [one for one in self.dispatch.backlog if one.task_id in ids]:
            del self.here[one.task_id, one.attempt]
        self.carry_out(self.dispatch.cancelled(ids), Outcome.RETURNED)

    @precondition(lambda self: len(self.here) > 10)
    @rule()
    def drain(self) -> None:
        self.returns = True
        self.dispatch.drain()

    @precondition(lambda self: len(self.here) > 10)
    @rule()
    def interrupt(self) -> None:
        self.carry_out(self.dispatch.interrupt("stopped"), Outcome.RETURNED)

    @invariant()
    def every_task_ends_once_or_is_here(self) -> None:
        for done in self.dispatch.completions:
            key = (done.task_id, done.attempt)
            assert key in self.here, "ended twice, or never came"
            del self.here[key]
            if key not in self.expected:
                assert self.returns
                assert (done.outcome, done.detail) == ("returned", "not begun")
            else:
                assert done.outcome == self.expected.pop(key)
        self.dispatch.completions.clear()
        assert self.expected == {}, "something has ended and is not told"
        self.returns = False
        assert sorted(self.dispatch.holds()) == sorted(self.here)
        everywhere = [*self.dispatch.backlog, *(t for line in self.lines.values() for t in line)]
        assert sorted((one.task_id, one.attempt) for one in everywhere) == sorted(self.here)

    @invariant()
    def its_view_of_the_workers_is_right(self) -> None:
        for worker, line in self.lines.items():
            assert self.dispatch.running(worker) == (line[0] if line else None)
        idle = {number for number, line in self.lines.items() if not line}
        assert self.dispatch.idle_workers() == len(idle - self.left - set(self.kills))
        assert self.dispatch.busy() == bool(self.here)

    def teardown(self) -> None:
        """The slave leaves: everything ends."""
        self.dispatch.drain()
        for worker in list(self.lines):
            self.dispatch.died(worker, "story")
        self.dispatch.tick(self.now)
        assert not self.dispatch.busy()
        done = [(one.task_id, one.attempt) for one in self.dispatch.completions]
        assert sorted(done) == sorted(self.here)


TestSlave = Slave.TestCase
TestSlave.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

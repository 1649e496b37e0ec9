"""Deadlines of processes that promised to ping; time is an argument, nothing waits."""

from __future__ import annotations

from masterslave.liveness import SILENT_PERIODS, Liveness


def test_four_silent_periods_are_too_many() -> None:
    liveness = Liveness()
    liveness.register(1, 2.0, now=100.0)
    deadline = 100.0 + SILENT_PERIODS * 2.0
    assert SILENT_PERIODS == 4
    assert liveness.silent(deadline) == []
    assert liveness.silent(deadline + 0.5) == [(1, 8.5)]


def test_a_sign_of_life_moves_the_deadline() -> None:
    liveness = Liveness()
    liveness.register(1, 1.0, now=0.0)
    liveness.heard(1, now=3.0)
    assert liveness.silent(6.0) == []
    assert liveness.silent(7.5) == [(1, 4.5)]


def test_each_process_has_its_own_period() -> None:
    liveness = Liveness()
    liveness.register(1, 1.0, now=0.0)
    liveness.register(2, 10.0, now=0.0)
    assert [process for process, _ in liveness.silent(5.0)] == [1]
    assert [process for process, _ in liveness.silent(41.0)] == [1, 2]


def test_who_promises_nothing_is_never_silent() -> None:
    liveness = Liveness()
    liveness.register(1, None, now=0.0)
    liveness.heard(1, now=1.0)
    assert liveness.silent(1e9) == []


def test_a_promise_can_be_taken_back() -> None:
    liveness = Liveness()
    liveness.register(1, 1.0, now=0.0)
    liveness.register(1, None, now=1.0)
    assert liveness.silent(1e9) == []
    assert liveness.ping_interval_s() is None


def test_a_new_promise_replaces_the_old_one() -> None:
    liveness = Liveness()
    liveness.register(1, 1.0, now=0.0)
    liveness.register(1, 100.0, now=3.0)
    assert liveness.silent(50.0) == []
    assert liveness.ping_interval_s() == 100.0


def test_who_has_left_is_not_missed() -> None:
    liveness = Liveness()
    liveness.register(1, 1.0, now=0.0)
    liveness.forget(1)
    liveness.forget(1)
    liveness.heard(1, now=1.0)
    assert liveness.silent(1e9) == []


def test_a_stranger_gets_no_deadline_by_being_heard() -> None:
    liveness = Liveness()
    liveness.heard(7, now=0.0)
    assert liveness.silent(1e9) == []


def test_the_shortest_promise_sets_the_watchdogs_pace() -> None:
    liveness = Liveness()
    assert liveness.ping_interval_s() is None
    for process, period_s in ((1, 5.0), (2, 0.5), (3, None)):
        liveness.register(process, period_s, now=0.0)
    assert liveness.ping_interval_s() == 0.5

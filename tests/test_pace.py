"""How much a slave may hold: tiny tasks in advance, long ones only for a free worker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave.pace import HORIZON_S, MAX_IN_HAND, RESERVE_S, Pace


def pace_of(**durations_s: float) -> Pace:
    pace = Pace()
    for tag, duration_s in durations_s.items():
        pace.record(tag, duration_s)
    return pace


def test_nothing_is_known_of_a_tag_before_its_first_task() -> None:
    assert pace_of(a=1.0).estimate_s("b") is None


def test_the_first_duration_is_the_estimate() -> None:
    pace = pace_of(a=0.5, b=2.0)
    assert (pace.estimate_s("a"), pace.estimate_s("b")) == (0.5, 2.0)


def test_a_free_worker_always_gets_a_task() -> None:
    pace = pace_of(long=1e6)
    for tag in ("long", "unknown"):
        assert pace.more_to_hold(tag, 0, 0.0, 1)
        assert pace.more_to_hold(tag, 3, 1e6, 4)


def test_unknown_and_long_tasks_are_not_held_in_advance() -> None:
    long_s = 1.01 * HORIZON_S
    pace = pace_of(long=long_s)
    for workers in (1, 4, 128):
        assert not pace.more_to_hold("long", workers, workers * long_s, workers)
        assert not pace.more_to_hold("unknown", workers, 0.0, workers)


def test_tiny_tasks_are_held_up_to_the_horizon() -> None:
    pace = pace_of(tiny=HORIZON_S / 100)
    assert pace.more_to_hold("tiny", 10, 10 * HORIZON_S / 100, 1)
    assert not pace.more_to_hold("tiny", 100, HORIZON_S, 1)


def test_a_tiny_task_is_not_put_behind_a_long_one() -> None:
    pace = pace_of(tiny=HORIZON_S / 100, long=10.0)
    assert not pace.more_to_hold("tiny", 1, 10.0, 1)


def test_the_horizon_is_that_of_each_worker() -> None:
    pace = pace_of(tiny=HORIZON_S / 100)
    assert not pace.more_to_hold("tiny", 150, 1.5 * HORIZON_S, 1)
    assert pace.more_to_hold("tiny", 150, 1.5 * HORIZON_S, 2)


def test_of_tasks_of_some_milliseconds_each_worker_may_have_the_next_one() -> None:
    pace = pace_of(short=0.9 * HORIZON_S, long=1.01 * HORIZON_S)
    assert pace.more_to_hold("short", 64, 64 * 0.9 * HORIZON_S, 64) == 64
    assert pace.more_to_hold("short", 128, 128 * 0.9 * HORIZON_S, 64) == 0
    assert pace.more_to_hold("long", 64, 64 * 1.01 * HORIZON_S, 64) == 0


def test_of_somewhat_shorter_ones_the_slave_has_four_more_in_reserve() -> None:
    pace = pace_of(short=0.9 * RESERVE_S, long=1.01 * RESERVE_S)
    for held, more in ((0, 384), (64, 320), (128, 256), (192, 192), (320, 64), (384, 0)):
        assert pace.more_to_hold("short", held, held * 0.9 * RESERVE_S, 64) == more
    assert pace.more_to_hold("long", 64, 64 * 1.01 * RESERVE_S, 64) == 64
    assert pace.more_to_hold("short", 1, 10.0, 1) == 0, "behind a long one"


def test_what_a_slave_may_hold_beyond_its_part_is_what_it_needs() -> None:
    pace = pace_of(tiny=0.0, short=HORIZON_S / 20, longer=0.9 * HORIZON_S, long=60.0)
    assert pace.fair_to_hold("tiny", 3) == pace.fair_to_hold("new", 3) == 3 * 512
    assert pace.fair_to_hold("short", 3) == 3 * 20
    assert pace.fair_to_hold("longer", 3) == pace.fair_to_hold("long", 3) == 3 * 2


def test_tasks_that_take_no_time_at_all_are_limited_in_number() -> None:
    pace = pace_of(tiny=0.0)
    assert pace.more_to_hold("tiny", 3 * MAX_IN_HAND - 1, 0.0, 3)
    assert not pace.more_to_hold("tiny", 3 * MAX_IN_HAND, 0.0, 3)


def test_one_long_task_is_enough_to_stop_prefetching() -> None:
    pace = pace_of(a=0.0)
    pace.record("a", 60.0)
    assert not pace.more_to_hold("a", 1, 0.0, 1)


def test_one_short_task_does_not_make_long_ones_forgotten() -> None:
    pace = pace_of(a=60.0)
    pace.record("a", 0.0)
    assert not pace.more_to_hold("a", 1, 0.0, 1)


@settings(deadline=None, database=None)
@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_the_estimate_stays_among_the_durations(durations_s: list[float]) -> None:
    pace = Pace()
    for duration_s in durations_s:
        pace.record("a", duration_s)
    estimate_s = pace.estimate_s("a")
    assert estimate_s is not None
    slack = 1e-9 * max(durations_s)
    assert min(durations_s) - slack <= estimate_s <= max(durations_s) + slack


def test_the_estimate_follows_a_program_that_changes() -> None:
    pace = pace_of(a=10.0)
    for _ in range(100):
        pace.record("a", 0.001)
    assert pace.estimate_s("a") == pytest.approx(0.001, rel=0.01)

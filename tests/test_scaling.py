"""How many slaves a job should have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masterslave.errors import SettingsError
from masterslave.scaling import PATIENCE_S, STEP_S, Growth, Limits, Scaler, View


def test_the_lower_limit_is_there_without_any_task() -> None:
    scaler = Scaler(Limits(2, 5))
    assert scaler.decide(View(0, 0, 0, 0), 0.0) == Growth(lasting=2)
    assert scaler.decide(View(0, 1, 1, 1), 1.0) == Growth()
    assert scaler.decide(View(0, 1, 1, 0), 2.0) == Growth(lasting=1)  # one was lost


def test_the_first_slaves_come_at_once() -> None:
    assert Scaler(Limits(0, 5)).decide(View(9, 0, 0, 0), 0.0) == Growth(passing=1)


def test_more_come_only_when_tasks_have_waited() -> None:
    scaler = Scaler(Limits(0, 9))
    assert scaler.decide(View(9, 2, 0, 0), 0.0) == Growth()
    assert scaler.decide(View(9, 2, 0, 0), PATIENCE_S) == Growth(passing=2)
    assert scaler.decide(View(0, 2, 0, 2), PATIENCE_S + 1) == Growth()
    assert scaler.decide(View(9, 4, 0, 0), PATIENCE_S + 2 * STEP_S) == Growth()  # a new wait begins


def test_growth_doubles_step_by_step_up_to_the_limit() -> None:
    scaler = Scaler(Limits(0, 10))
    there, steps = 0, []
    for step in range(8):
        growth = scaler.decide(View(1000, there, 0, 0), step * STEP_S)
        there += growth.passing
        steps.append(there)
    assert steps == [1, 2, 4, 8, 10, 10, 10, 10]


def test_jobs_in_the_queue_count() -> None:
    scaler = Scaler(Limits(0, 10, workers=4))
    assert scaler.decide(View(8, 0, 0, 2), 0.0) == Growth()
    assert scaler.decide(View(9, 0, 0, 2), STEP_S) == Growth(passing=1)


def test_what_fails_is_not_tried_again_at_once() -> None:
    scaler = Scaler(Limits(1, 2))
    pauses = [scaler.failed(0.0) for _ in range(12)]
    assert pauses[:3] == [10.0, 20.0, 40.0]
    assert pauses[-1] == 600.0
    assert scaler.decide(View(5, 0, 0, 0), 599.0) == Growth()
    assert scaler.decide(View(5, 0, 0, 0), 600.0) != Growth()
    scaler.came()
    assert scaler.failed(601.0) == 10.0


@given(
    st.integers(0, 3), st.integers(1, 9), st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9),
                       st.floats(0, 9))),
)  # fmt: skip
def test_the_upper_limit_holds(low: int, more: int, workers: int, views: list[Any]) -> None:
    limits = Limits(low, low + more, workers)
    scaler, now = Scaler(limits), 0.0
    for *view, passed in views:
        now += passed
        seen = View(*view)
        growth = scaler.decide(seen, now)
        assert min(growth) >= 0
        if sum(growth):
            assert seen.slaves + seen.pending + sum(growth) <= limits.high


@pytest.mark.parametrize("limits", [(-1, 2), (3, 2), (0, 0)])
def test_limits_that_cannot_be(limits: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match=f"min={limits[0]}, max={limits[1]}"):
        Limits(*limits).checked()


def test_tasks_that_no_slave_handles_need_no_slaves() -> None:
    slave = {"tags": ["a"], "workers": 2, "holds": 1}
    status = {"slaves": [slave], "waiting": {"a": 3, "b": 4}}
    assert View.of(status, 1) == View(3, 1, 1, 1)
    assert View.of({"slaves": [], "waiting": {"a": 3, "b": 4}}, 0) == View(7, 0, 0, 0)

"""The values that travel: options are checked, tuples survive the wire."""

from __future__ import annotations

import math
import os
import pickle
import re
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masterslave.errors import SettingsError
from masterslave.records import (
    Assignment,
    Completion,
    GlobalStateValue,
    Outcome,
    TaskOptions,
    as_assignment,
    as_completion,
    frame_bytes,
    getMachineInfo,
)


def over_the_wire(value: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(value))


def test_the_default_options_can_be_used() -> None:
    assert TaskOptions().checked() == TaskOptions(0, None, 0, 5, None)


def test_good_options_are_given_back_unchanged() -> None:
    options = TaskOptions(priority=-3, timeout=0.5, retries=2, crash_limit=1, key="a")
    assert options.checked() is options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", 1.5),
        ("priority", True),
        ("priority", "high"),
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", math.inf),
        ("timeout", math.nan),
        ("timeout", "1"),
        ("timeout", True),
        ("retries", -1),
        ("retries", 1.0),
        ("retries", True),
        ("retries", None),
        ("crash_limit", 0),
        ("crash_limit", None),
        ("crash_limit", True),
        ("key", 5),
        ("key", b"bytes"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"{name}={value!r}: must be")):
        TaskOptions(**{name: value}).checked()


def test_an_assignment_survives_the_wire() -> None:
    sent = Assignment("sqrt_0", "sqrt", 1, [b"pickle", b"buffer"], 2.5)
    got = as_assignment(over_the_wire(sent))
    assert type(got) is Assignment
    assert got == sent


def test_a_completion_survives_the_wire() -> None:
    sent = Completion("sqrt_0", 1, Outcome.RESULT.value, [b"x"], 0.25, "")
    got = as_completion(over_the_wire(sent))
    assert type(got) is Completion
    assert got == sent


def test_an_assignment_of_another_length_is_refused() -> None:
    with pytest.raises(TypeError):
        as_assignment(["sqrt_0", 1])


@pytest.mark.parametrize("item", [None, 3, "abcdef", ["sqrt_0", 1], {}, b"123456", [None] * 7])
def test_what_is_no_completion_is_refused(item: Any) -> None:
    with pytest.raises(ValueError):
        as_completion(item)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("task_id", [None, 1, b"x", [], "x" * 70_000]),
        ("attempt", [None, 1.0, True, "1", 1 << 63, math.nan]),
        ("outcome", [None, "gone", 1, [], {}]),
        ("frame", [None, b"x", "x", ["x"], [1], [[b"x"]], {}]),
        ("duration_s", [None, "0", -0.1, math.nan, math.inf, 1e10, []]),
        ("detail", [None, 1, b"x", []]),
    ],
)
def test_a_completion_with_a_field_that_cannot_be_is_refused(field: str, values: list[Any]) -> None:
    good = Completion("sqrt_0", 1, Outcome.RESULT.value, [b"x"], 0.25, "")
    for value in values:
        with pytest.raises(ValueError):
            as_completion(good._replace(**{field: value}))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(), inner, max_size=3),
))  # fmt: skip
def test_anything_is_a_completion_or_a_value_error(item: Any) -> None:
    try:
        done = as_completion(item)
    except ValueError:
        return
    assert list(done) == list(item)


def test_options_that_no_journal_can_hold_are_refused() -> None:
    for name, value in (
        ("priority", 10**5000),
        ("priority", -(1 << 63) - 1),
        ("retries", 10**5000),
        ("crash_limit", 1 << 63),
        ("timeout", 10**400),
        ("key", "x" * 70_000),
    ):
        with pytest.raises(SettingsError, match=name):
            TaskOptions(**{name: value}).checked()


def test_global_state_values_of_one_state_have_names_of_their_own() -> None:
    labels = {GlobalStateValue(i, name).label for i in (1, 2) for name in ("a", "b")}
    assert len(labels) == 4


def test_a_global_state_value_can_be_sent() -> None:
    value = GlobalStateValue(3, "matrix")
    assert pickle.loads(pickle.dumps(value)).label == value.label == "state_3_matrix"


def test_a_frame_is_as_large_as_its_pieces() -> None:
    assert frame_bytes([]) == 0
    assert frame_bytes([b"head", b"", b"buffer"]) == 10


def test_the_machine_info_reads_as_documented() -> None:
    assert re.fullmatch(rf"PID {os.getpid()} on \S+ \(\S+\)", getMachineInfo())
    assert getMachineInfo(4711).startswith("PID 4711 on ")

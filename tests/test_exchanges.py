"""Messages of exchanges: there and back, with and without pieces, errors, and what is none."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masterslave.errors import JournalFull, LabelUnknown, MasterSlaveError
from masterslave.pieces import LIFT_BYTES
from masterslave.records import Assignment
from masterslave.transports.channel import EXCHANGE
from masterslave.transports.exchanges import pack, pack_error, unpack_answer, unpack_question

LARGE = b"x" * LIFT_BYTES


@pytest.mark.parametrize("frame", [[], [b""], [b"small"], [b"small", LARGE], [LARGE, LARGE]])
def test_a_question_there_and_back(frame: list[bytes]) -> None:
    args = [1, [["fit_0", 1, "result", frame, 0.5, ""]], ["fit_1"], -1, 2.5, 1 << 47]
    message, parts = pack(args, "job")
    assert len(parts) == frame.count(LARGE)
    assert len(message) < LIFT_BYTES
    assert unpack_question(message, list(parts)) == (args, "job")


@pytest.mark.parametrize("frame", [[b"small"], [b"small", LARGE]])
def test_an_answer_there_and_back(frame: list[bytes]) -> None:
    tasks = [Assignment("fit_0", "fit", 1, frame, 2.5), Assignment("fit_1", "fit", 2, [], None)]
    message, parts = pack([tasks, {"stop": ["fit_9"], "terminate": True}])
    answer = unpack_answer(message, list(parts))
    assert answer == [[list(task) for task in tasks], {"stop": ["fit_9"], "terminate": True}]


@pytest.mark.parametrize(
    "error", [ValueError("room is wrong"), LabelUnknown("other"), JournalFull("no space", "left")]
)
def test_an_error_arrives_as_itself(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        unpack_answer(pack_error(error), [])
    assert caught.value.args == error.args


def test_an_error_of_another_kind_arrives_by_name() -> None:
    with pytest.raises(MasterSlaveError, match=r"ZeroDivisionError.*by zero"):
        unpack_answer(pack_error(ZeroDivisionError("by zero")), [])


@pytest.mark.parametrize(
    "content",
    [
        1,
        {},
        [],
        [[1], []],
        [1, [], "job"],
        [[1], 5, "job"],
        [[1], [[[7, 7], 1]], "job"],
        [[1], [[[0], 1]], "job"],
    ],
)
def test_what_is_no_question_is_refused(content: Any) -> None:
    with pytest.raises(ValueError):
        unpack_question(EXCHANGE + msgpack.packb(content), [LARGE] if content == 5 else [])


@pytest.mark.parametrize("content", [1, [], [1, 2, 3], [[1], [], "job", [], 5]])
def test_what_is_no_answer_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match="exchange"):
        unpack_answer(EXCHANGE + msgpack.packb(content), [])


def test_pieces_that_belong_nowhere_are_refused() -> None:
    message, _ = pack([1], "job")
    with pytest.raises(ValueError, match="pieces"):
        unpack_question(message, [LARGE])


@given(st.binary(max_size=200))
def test_noise_is_a_value_error_or_a_question(noise: bytes) -> None:
    try:
        args, label = unpack_question(EXCHANGE + noise, [])
    except ValueError:
        return
    assert isinstance(args, list)
    assert isinstance(label, str)

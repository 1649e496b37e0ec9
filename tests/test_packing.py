"""Packers that are used again: by many threads, after errors, and not after large values."""

from __future__ import annotations

import threading
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masterslave.packing import _KEPT_BYTES, Packers

VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.lists(VALUES, max_size=5))
def test_values_come_back_whatever_was_packed_before(values: list[Any]) -> None:
    packers = Packers()
    for value in values:
        assert msgpack.unpackb(packers.pack(value)) == value
    assert len(packers._spare) <= 1


def test_a_value_that_cannot_be_packed_spoils_nothing() -> None:
    packers = Packers()
    for _ in range(3):
        with pytest.raises(TypeError):
            packers.pack(["begun", object()])
        assert msgpack.unpackb(packers.pack(["whole"])) == ["whole"]


def test_options_are_those_of_msgpack() -> None:
    with pytest.raises(UnicodeEncodeError):
        Packers().pack("\ud800")
    assert Packers(unicode_errors="surrogatepass").pack("\ud800") == b"\xa3\xed\xa0\x80"


def test_memory_of_large_values_is_not_kept() -> None:
    packers = Packers()
    packers.pack(b"x" * 100)
    assert len(packers._spare) == 1
    packers.pack(b"x" * (_KEPT_BYTES + 1))
    assert packers._spare == []


def test_threads_do_not_share_a_packer() -> None:
    packers = Packers()
    wrong: list[Any] = []

    def pack(number: int) -> None:
        for i in range(2000):
            value = [number, i, "x" * number]
            if msgpack.unpackb(packers.pack(value)) != value:
                wrong.append(value)

    threads = [threading.Thread(target=pack, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

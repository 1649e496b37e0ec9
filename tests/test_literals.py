"""What name servers say: all that serpent writes is read, and nothing else is made of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from Pyro5.core import URI
from Pyro5.errors import NamingError
from Pyro5.serializers import serializers

from masterslave.transports.literals import loads

SERPENT = serializers["serpent"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False),  # serpent writes it as an object
    TEXT,
)
HASHABLE = ATOMS.filter(lambda atom: atom is not None)  # for serpent
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(TEXT, inner, max_size=4),
        st.sets(HASHABLE, min_size=1, max_size=4),
    ),
    max_leaves=12,
)


@given(VALUES)
def test_what_serpent_writes_is_read_as_serpent_reads_it(value: Any) -> None:
    data = SERPENT.dumps(value)
    assert loads(data) == SERPENT.loads(data)


def test_objects_stay_dictionaries() -> None:
    assert loads(SERPENT.dumps(URI("PYRO:a@h:1")))["__class__"] == "Pyro5.core.URI"
    assert loads(SERPENT.dumps(NamingError("no")))["args"] == ("no",)
    proxy = {"__class__": "Pyro5.client.Proxy", "state": ()}
    assert loads(SERPENT.dumps(proxy)) == proxy


@given(st.one_of(st.binary(max_size=60), st.text("(){}[]'\"\\,:#1-.eNoneTru \n", max_size=60)))
def test_anything_else_is_refused_and_no_more(data: bytes | str) -> None:
    try:
        loads(data if isinstance(data, bytes) else data.encode())
    except ValueError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"", b"#", b"1 2", b"1,", b"[1", b"]", b"(,)", b"[1,,2]", b"{1:2,3}", b"{1,2:3}", b"{[]:1}",
        b"{[]}", b"1+1", b"-x", b"lambda:0", b"__import__", b"a()", b"f''", b"b''", b"'a", b"'\\q'",
        b"'\\N{DIGIT ONE}'", b"'\\ud800'", b"'\\U00110000'", b"'a' 'b'", b"'\n'", b"9" * 100, b"1j",
        b"\xff", b"0x10",
    ],
)  # fmt: skip
def test_what_is_no_plain_literal_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        loads(data)


@pytest.mark.parametrize("data", [b"[" * 16000, b"(" * 8000 + b")" * 8000, b"{1:" * 5000])
def test_deep_nesting_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="out of place"):
        loads(data)


@pytest.mark.parametrize("data", [b"-" * 16000 + b"1", b"1" + b"()" * 8000, b"1+" * 8000 + b"1"])
def test_long_expressions_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        loads(data)


def test_a_trailing_comma_makes_a_tuple_of_one() -> None:
    assert (loads(b"(1)"), loads(b"(1,)"), loads(b"()")) == (1, (1,), ())
    assert loads(b"[1,]") == [1]
    assert loads(b"{1:2,}") == {1: 2}

"""What makes two requests equal: the identity under which a later run finds a task again."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from masterslave.entries import identity

frames = st.lists(st.binary(max_size=6), max_size=4)
texts = st.text(max_size=4)
keys = st.none() | texts


def test_an_identity_is_sixteen_bytes_and_the_same_every_time() -> None:
    one = identity("sqrt", [b"head", b"buffer"], None)
    assert len(one) == 16
    assert one == identity("sqrt", [b"head", b"buffer"], None)
    assert one.hex() == "6a8fed602749655c77b322f73a4b33fc"  # in every version: journals hold it


def test_the_same_bytes_cut_in_another_way_are_another_task() -> None:
    requests = [
        ("a", [b"bc", b"d"], None),
        ("a", [b"b", b"cd"], None),
        ("a", [b"bcd"], None),
        ("ab", [b"c", b"d"], None),
        ("ab", [b"cd"], None),
        ("abcd", [], None),
        ("abcd", [b""], None),
        ("abcd", [b"", b""], None),
        ("a", [], "bcd"),
        ("ab", [], "cd"),
        ("abcd", [], ""),
        ("key", [b"a", b"b"], None),
        ("a", [b"b"], "key"),
        ("parameters", [b"a", b"b"], None),
    ]
    for one, other in combinations(requests, 2):
        assert identity(*one) != identity(*other), (one, other)


def test_a_key_replaces_the_parameters_within_its_tag() -> None:
    assert identity("a", [b"1"], "k") == identity("a", [b"2", b"3"], "k")
    assert identity("a", [b"1"], "k") != identity("b", [b"1"], "k")
    assert identity("a", [b"1"], "k") != identity("a", [b"1"], None)
    assert identity("a", [b"1"], "") != identity("a", [b"1"], None)


def test_half_characters_have_an_identity_too() -> None:
    found = {identity("tag", [], key) for key in ("\ud800", "\\ud800", "?", "\udc80")}
    assert len(found) == 4


@given(texts, frames, keys, texts, frames, keys)
def test_identities_are_equal_exactly_when_the_requests_are(
    tag: str, frame: list[bytes], key: str | None, tag2: str, frame2: list[bytes], key2: str | None
) -> None:
    same = tag == tag2 and key == key2 and (key is not None or frame == frame2)
    assert (identity(tag, frame, key) == identity(tag2, frame2, key2)) == same
    if key is not None:
        assert identity(tag, frame, key) == identity(tag, frame2, key)

"""What is kept of functions: pickled once, sent once, and never as they were."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

from masterslave import functions
from masterslave.errors import PayloadError
from masterslave.functions import (
    MANY,
    ONE,
    Functions,
    Surroundings,
    call_frame,
    client_surroundings,
    is_by_reference,
    item_name,
    lasting_parts,
    read_call,
)
from masterslave.payload import Codec


class Counting(Codec):
    """A codec that counts how often it pickles."""

    count = 0

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return super().encode(*args, **kwargs)


class Kept:
    """The task manager's side."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self.stored: list[str] = []
        self.around = Surroundings("/here", ("/lib",), "node1", "")
        self.codec = Counting()
        self.functions = Functions(self.codec, self.store, self.items.pop, lambda: self.around)

    def store(self, name: str, pieces: Any) -> None:
        self.stored.append(name)
        self.items[name] = pieces

    def use(self, function: Callable[..., Any], count: int = 1) -> bytes:
        return self.functions.use(function, count)

    def call(self, digest: bytes, *args: Any) -> Any:
        return self.codec.decode(self.items[item_name(digest)][1:])(*args)


@pytest.fixture
def kept() -> Iterator[Kept]:
    yield Kept()


def adder(number: Any) -> Callable[[Any], Any]:
    return lambda x: x + number


@pytest.mark.parametrize("kind", [ONE, MANY])
@pytest.mark.parametrize("values", [((1, 2), {"a": 3}), ((np.arange(100_000.0),), {})])
def test_a_call_and_its_arguments_come_back(kind: bytes, values: Any) -> None:
    codec = Codec()
    frame = call_frame(kind, b"d" * 32, codec.encode(values))
    got_kind, digest, arguments = read_call(frame)
    assert (got_kind, digest) == (kind, b"d" * 32)
    assert repr(codec.decode(arguments)) == repr(values)


def test_a_frame_that_is_no_call_is_refused() -> None:
    for frame in ([b"x"], Codec().encode(((), {})), [b"MSCA1short"]):
        with pytest.raises(ValueError, match="not the frame of a call"):
            read_call(frame)


def test_a_modules_function_is_pickled_once(kept: Kept) -> None:
    digests = {kept.use(math.hypot) for _ in range(100)}
    assert len(digests) == len(kept.stored) == 1
    assert kept.codec.count == 1
    assert kept.call(digests.pop(), 3.0, 4.0) == 5.0


def test_a_closure_over_what_cannot_change_is_pickled_once(kept: Kept) -> None:
    function = adder(b"x" * 1_000_000)
    digests = {kept.use(function) for _ in range(100)}
    assert len(digests) == len(kept.stored) == 1
    assert kept.codec.count == 1
    assert len(kept.call(digests.pop(), b"")) == 1_000_000


def test_a_closure_over_an_array_is_sent_once_and_again_when_it_has_changed(kept: Kept) -> None:
    array = np.zeros(300_001)
    function = adder(array)
    first = {kept.use(function) for _ in range(10)}
    assert len(first) == len(kept.stored) == 1
    array[-1] = 1.0
    second = kept.use(function)
    assert second not in first
    assert kept.call(second, 1.0)[-1] == 2.0
    assert kept.call(first.pop(), 1.0)[-1] == 1.0  # calls that were submitted before


def test_a_small_change_in_a_list_is_seen(kept: Kept) -> None:
    items = [1, 2]
    function = functools.partial(len, items)
    before = kept.use(function)
    items.append(3)
    after = kept.use(function)
    assert (kept.call(before), kept.call(after)) == (2, 3)


FACTOR = 2


def scaled(x: int) -> int:
    return FACTOR * x


def test_a_global_that_is_bound_anew_is_seen(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled, "__module__", "__main__")
    before = kept.use(scaled)
    assert kept.use(scaled) == before
    monkeypatch.setitem(globals(), "FACTOR", 5)
    after = kept.use(scaled)
    assert (kept.call(before, 1), kept.call(after, 1)) == (2, 5)


def test_equal_functions_are_one_item(kept: Kept) -> None:
    assert kept.use(adder(1)) == kept.use(adder(1))
    assert kept.use(adder(1)) != kept.use(adder(2))
    assert len(kept.stored) == 2


def test_other_surroundings_make_another_item(kept: Kept) -> None:
    before = kept.use(math.sqrt)
    kept.around = kept.around._replace(cwd="/there")
    assert kept.use(math.sqrt) != before


def test_what_nobody_needs_goes_at_last_the_oldest_first(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "IDLE_FUNCTIONS", 3)
    digests = []
    for number in range(10):
        digests.append(kept.use(adder(number)))
        gc.collect()
        kept.functions.release(digests[-1])
    kept.functions.release(b"unknown")
    kept.use(math.sqrt)  # the last of the dead are buried
    left = [item_name(digest) for digest in digests if item_name(digest) in kept.items]
    assert left == [item_name(digest) for digest in digests[-3:]]


def test_what_calls_need_stays_however_much_it_is(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "IDLE_FUNCTIONS", 1)
    digests = [kept.use(adder(number), 2) for number in range(10)]
    for digest in digests:
        kept.functions.release(digest)
    gc.collect()
    assert {item_name(digest) for digest in digests} <= set(kept.items)


def test_a_large_function_that_has_changed_is_kept_in_the_place_of_what_it_was(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both together are more than may lie idle."""
    monkeypatch.setattr(functions, "IDLE_BYTES", 5000)
    data = [np.zeros(500)]

    def length(x: int) -> int:
        return x + len(data[0])

    first = kept.use(length)
    kept.functions.release(first)
    data[0] = np.zeros(501)
    second = kept.use(length)
    assert second != first
    assert kept.call(second, 1) == 502
    assert list(kept.items) == [item_name(second)]


def test_closing_drops_all(kept: Kept) -> None:
    kept.use(math.sqrt)
    kept.functions.release(kept.use(adder(1)))
    kept.functions.close()
    assert kept.items == {}


def test_what_cannot_be_pickled_is_named(kept: Kept) -> None:
    import threading

    with pytest.raises(PayloadError, match=r"<closure>\.number \(a _thread\.lock\)"):
        kept.use(adder(threading.Lock()))
    assert kept.items == {}


def test_parts_that_last() -> None:
    assert lasting_parts(adder(1)) is not None
    assert lasting_parts(adder((1, "a", math.sqrt))) is not None
    assert lasting_parts(adder(adder(b""))) is not None
    for value in ([], {}, np.zeros(1), (1, []), adder([])):
        assert lasting_parts(adder(value)) is None


def test_a_function_that_refers_to_itself_has_parts() -> None:
    def recursive(x: int) -> int:
        return recursive(x - 1) if x else 0

    parts = lasting_parts(recursive)
    assert parts is not None
    assert not any(part is recursive for part in parts)


def test_what_is_by_reference() -> None:
    assert is_by_reference(math.sqrt) and is_by_reference(Functions) and is_by_reference(adder)
    assert not is_by_reference(adder(1))
    assert not is_by_reference("abc".join)
    assert not is_by_reference(functools.partial(pow, 2))
    cloudpickle.register_pickle_by_value(functions)
    try:
        assert not is_by_reference(Functions)
    finally:
        cloudpickle.unregister_pickle_by_value(functions)


def test_surroundings_follow_the_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    before = client_surroundings("/here")
    assert client_surroundings("/here") == before
    monkeypatch.syspath_prepend("/nowhere")
    after = client_surroundings("/here")
    assert after.sys_path[0] == "/nowhere"
    assert after.sys_path[1:] == before.sys_path

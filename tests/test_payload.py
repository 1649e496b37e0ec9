"""Payloads: what travels, how it arrives, and what is said when it cannot."""

from __future__ import annotations

import dataclasses
import enum
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import World
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave.errors import PayloadError, RemoteException
from masterslave.payload import OUT_OF_BAND_BYTES, Codec, clean, describe, plain_frame, script_id

CODECS = [Codec(), Codec("script"), Codec("script", shared_main=True)]


@pytest.fixture(params=CODECS, ids=["nothing known", "own script", "same script"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.param


def there_and_back(value: Any, codec: Codec | None = None) -> Any:
    """As it arrives: out of what crossed the wire as bytes."""
    codec = codec or Codec()
    return codec.decode([bytes(piece) for piece in codec.encode(value)])


# --- values ---------------------------------------------------------------------------------

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@pytest.mark.parametrize("value", [1, 1.5, True, None, 2j, "x" * 4096, b"x", (), (1, "x", None)])
def test_plain_values_need_no_codec(value: Any) -> None:
    frame = plain_frame(value)
    assert frame is not None
    assert frame == Codec().encode(value)
    assert Codec().decode(frame) == value


class Number(int):
    """Of this script: another one would not find it."""


@pytest.mark.parametrize(
    "value", [Number(1), "x" * 4097, (1, (2,)), [1], (1, "x" * 4097), (Number(1),)]
)
def test_what_is_long_or_made_of_parts_needs_a_codec(value: Any) -> None:
    assert plain_frame(value) is None


@settings(deadline=None, database=None)
@given(plain)
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    for codec in CODECS:
        assert there_and_back(value, codec) == value


def test_the_bytes_main_in_a_value_do_no_harm(codec: Codec) -> None:
    assert there_and_back(("__main__", b"__main__"), codec) == ("__main__", b"__main__")


def test_an_object_that_stands_twice_arrives_as_one(codec: Codec) -> None:
    array = np.zeros(OUT_OF_BAND_BYTES)
    value: list[Any] = [array, array]
    value.append(value)
    got = there_and_back(value, codec)
    assert got[0] is got[1]
    assert got[2] is got


# --- arrays ---------------------------------------------------------------------------------

LARGE = OUT_OF_BAND_BYTES // 8


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, 4 * LARGE])
def test_arrays_arrive_equal_and_writable(size: int, codec: Codec) -> None:
    array = np.arange(size, dtype=float)
    got = there_and_back(array, codec)
    np.testing.assert_array_equal(got, array)
    assert got.flags.writeable
    got += 1.0
    np.testing.assert_array_equal(array, np.arange(size, dtype=float))


def test_large_arrays_travel_beside_the_pickle_small_ones_inside(codec: Codec) -> None:
    small, large = np.ones(LARGE - 1), np.arange(LARGE, dtype=float)
    head, *buffers = codec.encode({"small": small, "large": large, "as well": large + 1})
    assert buffers == [large.tobytes(), (large + 1).tobytes()]
    assert small.nbytes < len(head) < small.nbytes + 2000


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.asfortranarray(np.arange(4.0 * LARGE).reshape(4, LARGE)),
        lambda: np.arange(4.0 * LARGE)[::2],
        lambda: np.arange(4.0 * LARGE).reshape(4, LARGE)[:, 1:],
        lambda: np.array(5.0),
        lambda: np.arange(LARGE, dtype=">f8"),
        lambda: np.zeros(LARGE, dtype=[("x", "f8"), ("n", "i2")]),
        lambda: np.array([None, "text", 3] * LARGE, dtype=object),
        lambda: np.broadcast_to(np.arange(LARGE), (3, LARGE)),
    ],
    ids=["fortran", "strided", "sliced", "scalar", "big-endian", "records", "objects", "broadcast"],
)
def test_arrays_of_any_layout_arrive(make: Callable[[], Any], codec: Codec) -> None:
    array = make()
    got = there_and_back(array, codec)
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype


def test_a_large_array_beside_something_by_value(codec: Codec) -> None:
    array = np.arange(LARGE)
    function, got = there_and_back((lambda: array.sum(), array), codec)
    assert function() == got.sum() == array.sum()
    assert got.flags.writeable


@pytest.mark.parametrize("beside", ["__main__", lambda: 0], ids=["main", "lambda"])
def test_a_buffer_is_sent_once_whatever_stands_beside_it(beside: Any, codec: Codec) -> None:
    large = np.arange(LARGE)
    assert codec.encode([large, beside, large])[1:] == [large.tobytes()]
    assert codec.encode([large, beside])[1:] == [large.tobytes()]


# --- functions and classes ------------------------------------------------------------------


def test_lambdas_and_closures_travel(codec: Codec) -> None:
    base = 40

    def add(x: int) -> int:
        return base + x

    assert there_and_back(add, codec)(2) == 42
    assert there_and_back(lambda x: add(x) + 1, codec)(2) == 43


def test_local_classes_travel(codec: Codec) -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    class Colour(enum.Enum):
        RED = 1

    points = there_and_back([Point(3), Point(4)], codec)
    assert [point.x for point in points] == [3, 4]
    assert type(points[0]) is type(points[1])
    assert there_and_back(Colour.RED, codec).value == 1


@dataclasses.dataclass
class Importable:
    """A class that both sides can import."""

    x: int


def test_what_can_be_imported_travels_by_name(codec: Codec) -> None:
    assert there_and_back(Importable, codec) is Importable
    assert there_and_back([Importable(3), lambda: 0], codec)[0] == Importable(3)


SCRIPT = """
    import dataclasses, functools, json, sys
    from pathlib import Path
    from masterslave import payload

    @dataclasses.dataclass
    class Point:
        x: int
        def mirrored(self):
            return Point(-self.x)
        class Inside:
            pass

    def old(x):
        return "the old one"
    kept = old
    def old(x):
        return "the new one"

    def double(x):
        return 2 * x

    def twice(f):
        @functools.wraps(f)
        def wrapper(x):
            return f(f(x))
        return wrapper

    @twice
    def decorated(x):
        return x + 1

    values = {
        "class": Point, "object": Point(3), "inner class": Point.Inside, "function": double,
        "lambda": lambda x: double(x), "replaced": kept, "decorated": decorated,
        "both": [Point(3), lambda: Point(3)],
    }
    shared = "shared" in sys.argv
    main_id = None if "unknown" in sys.argv else payload.script_id(Path(__file__).read_text())
    payload.set_main_id(main_id)
    codec = payload.Codec(main_id, shared_main=shared)
    place = Path(sys.argv[2])
    if sys.argv[1] == "write":
        for name, value in values.items():
            (place / name).write_bytes(codec.encode(value)[0])
    else:
        def read(name):
            return codec.decode([(place / name).read_bytes()])
        point, function = read("both")
        print(json.dumps({
            "class": read("class") is Point,
            "object": [type(read("object")) is Point, read("object").mirrored().x],
            "inner class": read("inner class") is Point.Inside,
            "function": [read("function") is double, read("function")(4)],
            "lambda": read("lambda")(4),
            "replaced": read("replaced")(0),
            "decorated": read("decorated")(0),
            "both": [type(point) is type(function()), point.x],
        }))
"""
OTHER_SCRIPT = SCRIPT.replace("2 * x", "20 * x").replace("-self.x", "0").replace("x + 1", "x + 10")
OTHER_SCRIPT = OTHER_SCRIPT.replace("the old one", "other").replace("the new one", "other")


def exchange(world: World, writer: str, reader: str, *options: str) -> dict[str, Any]:
    """What one script writes and another one, or the same, reads: name -> what it found."""
    place = world.path / "values"
    place.mkdir()
    world.script(writer, "write", place, *options, name="writer.py").finish()
    out = world.script(reader, "read", place, *options, name="reader.py").finish()
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("options", [(), ("shared",)], ids=["own script", "same script"])
def test_classes_of_the_same_script_stay_the_same_class(
    world: World, options: tuple[str, ...]
) -> None:
    found = exchange(world, SCRIPT, SCRIPT, *options)
    assert found["class"] is True
    assert found["object"] == [True, -3]
    assert found["inner class"] is True
    assert found["function"] == [True, 8]
    assert found["lambda"] == 8
    assert found["decorated"] == 2
    assert found["both"] == [True, 3]


@pytest.mark.parametrize("options", [(), ("shared",)], ids=["own script", "same script"])
def test_a_function_whose_name_was_given_to_another_is_not_mistaken_for_it(
    world: World, options: tuple[str, ...]
) -> None:
    assert exchange(world, SCRIPT, SCRIPT, *options)["replaced"] == "the old one"


@pytest.mark.parametrize("options", [(), ("unknown",)], ids=["other script", "no script"])
def test_another_script_gets_classes_and_functions_by_value(
    world: World, options: tuple[str, ...]
) -> None:
    found = exchange(world, SCRIPT, OTHER_SCRIPT, *options)
    assert found["class"] is False
    assert found["object"] == [False, -3]
    assert found["inner class"] is False
    assert found["function"] == [False, 8]
    assert found["lambda"] == 8
    assert found["replaced"] == "the old one"
    assert found["decorated"] == 2
    assert found["both"] == [True, 3]


def test_the_same_text_is_the_same_script() -> None:
    assert script_id("print()") == script_id("print()") != script_id("print( )")
    assert script_id("\udc80") != script_id("")


# --- what cannot be pickled -----------------------------------------------------------------


class Stubborn:
    """Refuses to be pickled, or to be unpickled."""

    def __init__(self, *, leaves: bool) -> None:
        self.leaves = leaves

    def __reduce__(self) -> Any:
        if not self.leaves:
            raise RuntimeError("I stay here")
        return int, ("not a number",)


class Speechless:
    """Cannot even be shown."""

    def __reduce__(self) -> Any:
        raise RuntimeError("I stay here")

    def __repr__(self) -> str:
        raise RuntimeError("I say nothing")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (threading.Lock(), r"^value \(a _thread.lock\) cannot be pickled: cannot pickle '_thread"),
        ((1, threading.Lock()), r"^value\[1\] \(a _thread.lock\) cannot be pickled: "),
        ([lambda: 0, Stubborn(leaves=False)], r"^value\[1\] \(a .*Stubborn\).*: I stay here"),
        ((i for i in "x"), r"^value \(a generator\) cannot be pickled"),
        (Speechless(), r"^value \(a .*Speechless\) cannot be pickled: I stay here"),
    ],
    ids=["lock", "tuple", "list", "generator", "speechless"],
)
def test_what_cannot_be_pickled_is_named(value: Any, names: str, codec: Codec) -> None:
    with pytest.raises(PayloadError, match=names) as caught:
        codec.encode(value)
    assert caught.value.__cause__ is not None


def test_what_is_nested_too_deeply_is_an_error_of_its_own(codec: Codec) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        with pytest.raises(PayloadError, match="cannot be pickled"):
            codec.encode(deep)
    finally:
        while deep:  # freed by hand: the interpreter's own way is as deep
            deep = deep.pop()


@pytest.mark.parametrize(
    "frame",
    [
        [],
        [b""],
        [b"garbage"],
        Codec().encode(Stubborn(leaves=True)),
        Codec().encode(np.zeros(LARGE))[:1],
        [b"cno.such.module\nthing\n."],
    ],
    ids=["empty", "nothing", "garbage", "refuses", "buffer missing", "module missing"],
)
def test_what_cannot_be_unpickled_is_said(frame: list[bytes], codec: Codec) -> None:
    with pytest.raises(PayloadError, match=r"cannot be unpickled here: [A-Z]\w+: .") as caught:
        codec.decode(frame)
    assert caught.value.__cause__ is not None


def test_a_long_value_is_described_briefly() -> None:
    assert describe(5) == "int 5"
    text = describe(list(range(1000)))
    assert text.startswith("list [0, 1, 2")
    assert text.endswith("...")
    assert len(text) <= len("list ") + 60


# --- exceptions -----------------------------------------------------------------------------


class TwoArguments(Exception):
    """As people write them: pickled without complaint, not to be unpickled."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


class WithLock(Exception):
    def __init__(self) -> None:
        super().__init__("it is locked")
        self.lock = threading.Lock()


class Mute(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __str__(self) -> str:
        raise RuntimeError("no text")


def exception_over(error: BaseException, codec: Codec, detail: str = "") -> BaseException:
    return codec.decode_exception(codec.encode_exception(error), detail)


def test_an_exception_arrives_with_all_that_it_carries(codec: Codec) -> None:
    error = OSError(2, "No such file", "name")
    error.remark = [1, 2]  # type: ignore[attr-defined]
    got = exception_over(error, codec)
    assert type(got) is FileNotFoundError
    assert (got.args, got.filename) == (error.args, "name")
    assert got.remark == [1, 2]  # type: ignore[attr-defined]


def test_an_exception_is_sent_without_its_frames(codec: Codec) -> None:
    unpicklable = threading.Lock()
    try:
        raise ValueError("text")
    except ValueError as error:
        got = exception_over(error, codec)
    assert unpicklable is not None
    assert repr(got) == "ValueError('text')"
    assert got.__traceback__ is None


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_is_no_error_in_the_strict_sense_arrives_as_well(kind: type, codec: Codec) -> None:
    assert type(exception_over(kind("text"), codec)) is kind


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TwoArguments("name", 3), "name 3"),
        (WithLock(), "it is locked"),
        (Mute(), "(its text cannot be shown)"),
        (TwoArguments("\udcff.txt", 3), "?.txt 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_stand_in_comes_for_an_exception_that_cannot_travel(
    error: Exception, text: str, codec: Codec
) -> None:
    got = exception_over(error, codec)
    assert isinstance(got, RemoteException)
    assert got.type_name == f"{__name__}.{type(error).__name__}"
    assert got.text == text


def test_an_exception_of_a_local_class_arrives(codec: Codec) -> None:
    class LocalError(Exception):
        pass

    got = exception_over(LocalError("text"), codec)
    assert (type(got).__name__, str(got)) == ("LocalError", "text")


def test_an_exception_of_a_module_that_is_not_here_is_told_from_its_traceback(
    codec: Codec,
) -> None:
    trace = "Traceback (most recent call last):\n  ...\nfar.away.Error: broken: badly\n"
    got = codec.decode_exception([b"cfar.away\nError\n."], trace)
    assert isinstance(got, RemoteException)
    assert (got.type_name, got.text) == ("far.away.Error", "broken: badly")


def test_what_is_no_exception_is_not_passed_off_as_one(codec: Codec) -> None:
    got = codec.decode_exception(codec.encode("just text"), "")
    assert isinstance(got, RemoteException)
    assert "just text" in str(got)


def test_text_is_brought_into_a_form_that_every_encoder_takes() -> None:
    assert clean("zażółć\n", 100) == "zażółć\n"
    assert clean("cannot read \udcff.txt", 100) == "cannot read ?.txt"


@pytest.mark.parametrize("length", [10, 11])
def test_of_a_long_text_the_middle_is_left_out(length: int) -> None:
    text = "beginning" + length * "x" + "the end"
    assert clean(text, len(text)) == text
    short = clean(text, 10)
    assert short.split("\n") == ["begin", "...", "e end"]


def test_an_exception_that_runs_out_of_every_way_still_arrives(codec: Codec) -> None:
    got = codec.decode_exception([], "")
    assert isinstance(got, RemoteException)

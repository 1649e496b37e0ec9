"""Calls in a worker: functions are kept within bounds, and surroundings are put in order."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from masterslave import calls
from masterslave.calls import Calls
from masterslave.errors import DataNotFound, FunctionError, InitializerFailed
from masterslave.functions import MANY, ONE, Functions, Surroundings, call_frame, item_name
from masterslave.payload import Codec


class Side:
    """A client's functions, and one worker."""

    def __init__(self, cwd: str | None) -> None:
        self.items: dict[str, Any] = {}
        self.fetched: list[str] = []
        self.around = Surroundings(cwd, tuple(sys.path), "node1", "")
        self.functions = Functions(
            Codec(), self.items.__setitem__, self.items.pop, lambda: self.around
        )
        self.calls = Calls(self.fetch)

    def fetch(self, name: str) -> Any:
        self.fetched.append(name)
        if name not in self.items:
            raise DataNotFound(name)
        return self.items[name]

    def frame(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        digest = self.functions.use(function)
        return call_frame(ONE, digest, Codec().encode((args, kwargs)))

    def run(self, frame: Any) -> Any:
        try:
            function, args, kwargs = self.calls.prepare(frame)
            return function(*args, **kwargs)
        finally:
            self.calls.leave()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.run(self.frame(function, *args, **kwargs))


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "client").mkdir()
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")
    yield Side(str(tmp_path / "client"))


def constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def test_calls_are_made(side: Side) -> None:
    assert side.call(lambda *args, **kwargs: (args, kwargs), 1, 2, a=3) == ((1, 2), {"a": 3})
    digest = side.functions.use(divmod)
    frame = call_frame(MANY, digest, Codec().encode([(7, 2), (9, 4)]))
    assert side.run(frame) == [(3, 1), (2, 1)]


def test_a_function_is_fetched_once(side: Side) -> None:
    function = constant(1)
    assert [side.call(function) for _ in range(5)] == [1] * 5
    assert len(side.fetched) == 1


def test_what_is_kept_has_a_bound(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_KEPT", 2)
    functions = [constant(number) for number in range(3)]
    for turn in (functions, functions[1:]):
        assert [side.call(f) for f in turn] == [f() for f in turn]
    assert len(side.fetched) == 3
    side.call(functions[0])
    assert len(side.fetched) == 4
    monkeypatch.setattr(calls, "_KEPT_BYTES", 100_000)
    big = [constant(bytes(90_000 + number)) for number in range(3)]
    for function in big:
        side.call(function)
    assert len(side.calls._kept) == 1 and side.calls._size < 100_000


def test_what_is_forgotten_is_fetched_again(side: Side) -> None:
    function = constant(1)
    side.call(function)
    side.calls.forget([*side.fetched, "another"])
    assert side.calls._size == 0
    side.call(function)
    assert len(side.fetched) == 2


def test_a_call_is_in_its_clients_directory_and_the_worker_back_in_its_own(side: Side) -> None:
    own = os.getcwd()
    assert side.call(os.getcwd) == side.around.cwd
    assert os.getcwd() == own
    with pytest.raises(ZeroDivisionError):
        side.call(divmod, 1, 0)
    assert os.getcwd() == own
    side.call(os.chdir, "/")
    assert os.getcwd() == own
    side.around = side.around._replace(cwd=None)
    assert side.call(os.getcwd) == own


def test_a_directory_that_is_missing_is_named(side: Side) -> None:
    side.around = side.around._replace(cwd="/no/such/place")
    with pytest.raises(FunctionError, match=r"/no/such/place \(on node1\) is not on .*cwd=None"):
        side.call(os.getcwd)


def test_paths_are_taken_over_where_they_exist(side: Side, tmp_path: Path) -> None:
    side.around = side.around._replace(sys_path=(str(tmp_path), "/no/such/path", sys.path[0]))
    before = list(sys.path)
    assert side.call(constant(1)) == 1
    assert sys.path == [*before, str(tmp_path)]


def test_a_function_that_is_gone_is_an_error_in_words(side: Side) -> None:
    frame = side.frame(constant(1))
    side.items.clear()
    with pytest.raises(FunctionError, match="its client has left"):
        side.run(frame)


def changed(side: Side, frame: Any, **changes: Any) -> Any:
    """The same call, of a client that says something else of itself."""
    name = item_name(bytes(frame[0][5:37]))
    first, *rest = side.items[name]
    side.items[name] = [json.dumps({**json.loads(first), **changes}).encode(), *rest]
    return frame


def test_code_of_another_python_is_not_touched(side: Side) -> None:
    frame = changed(side, side.frame(constant(1)), python=[3, 9])
    with pytest.raises(FunctionError, match=r"constant.* by value from Python 3\.9 on node1"):
        side.run(frame)
    assert side.run(changed(side, side.frame(pow, 2, 2), python=[3, 9])) == 4  # by its name


def test_what_cannot_be_imported_is_named(side: Side) -> None:
    codec = Codec()
    digest = side.functions.use(len)
    frame = codec.encode(((Path("x"),), {}))
    frame[0] = bytes(frame[0]).replace(b"pathlib", b"pathlic")
    side.around = side.around._replace(sys_path=("/no/such/path",))
    with pytest.raises(FunctionError, match=r"No module named 'pathlic'.*modules=\['pathlic'\]"):
        side.run(call_frame(ONE, digest, frame))


def test_an_initializer_runs_once(side: Side) -> None:
    ran: list[int] = []
    digest = side.functions.use(constant(1))
    name = item_name(digest)
    side.calls._kept[name] = calls._Kept(lambda: (ran.append, (1,), "token"), {}, 0)
    side.around = side.around._replace(initializer=name)
    assert [side.call(constant(2)) for _ in range(3)] == [2] * 3
    assert ran == [1]


def test_an_initializer_that_fails_is_not_tried_again(side: Side) -> None:
    ran: list[int] = []

    def fails(number: int) -> None:
        ran.append(number)
        raise ValueError("no good")

    name = item_name(side.functions.use(constant(1)))
    side.calls._kept[name] = calls._Kept(lambda: (fails, (1,), "token"), {}, 0)
    side.around = side.around._replace(initializer=name)
    for _ in range(2):
        with pytest.raises(InitializerFailed, match="ValueError: no good"):
            side.call(constant(2))
    assert ran == [1]

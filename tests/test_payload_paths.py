"""What cannot be pickled is named with the way to it; what is large is remarked on."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import World

from masterslave import (
    MasterProcess,
    PayloadError,
    TaskRaisedException,
    initializeMasterProcess,
    master,
    unpicklable,
)
from masterslave.payload import Codec

LOCK = threading.Lock()
CODECS = [Codec(), Codec("script"), Codec("script", shared_main=True)]


@pytest.fixture(params=CODECS, ids=["nothing known", "own script", "same script"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.param


class Thing:
    """Has what it is given."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class SlotsAndMore(Slots):
    def __init__(self, a: Any, b: Any, c: Any) -> None:
        super().__init__(a, b)
        self.c = c


class Chooser(Thing):
    """Leaves its lock behind."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}


class Refuser:
    """Has a lock, but that is not why."""

    def __init__(self) -> None:
        self.lock = LOCK

    def __reduce__(self) -> Any:
        raise RuntimeError("I stay here")


class Rebuilt:
    """Made again from arguments that are its attributes."""

    def __init__(self, name: str, lock: Any) -> None:
        self.name, self.lock = name, lock

    def __reduce__(self) -> Any:
        return Rebuilt, (self.name, self.lock)


class Registered:
    """Known to `copyreg`."""

    def __init__(self, part: Any) -> None:
        self.part = part


copyreg.pickle(Registered, lambda one: (Registered, (one.part,)))  # type: ignore[arg-type,return-value]


@dataclasses.dataclass
class Data:
    x: int
    lock: Any


Named = collections.namedtuple("Named", "x lock")


class Items(list[Any]):
    pass


class Hostile:
    """Whose attributes do what they like."""

    def __init__(self) -> None:
        self.lock = LOCK

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__new__, (Hostile,), {"lock": LOCK}

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise RuntimeError("not that one")
        return super().__getattribute__(name)


def closure(lock: Any) -> Callable[[], Any]:
    def refer() -> Any:
        return lock

    return refer


def with_defaults(lock: Any) -> Callable[[], Any]:
    def refer(a: int = 1, b: Any = lock, *, c: Any = {"d": lock}) -> Any:  # noqa: B006
        return a, b, c

    return refer


def of_globals() -> Callable[[], Any]:
    return lambda: [LOCK for _ in "x"]


def local_class() -> type:
    class Local:
        good = 1
        lock = LOCK

        def method(self) -> None:
            pass

    return Local


def ring() -> Thing:
    """Its child is looked at first, and fails only because of its parent."""
    parent = Thing()
    parent.child = Thing(parent=parent)
    parent.lock = LOCK
    return parent


def loop() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    value.append({"k": LOCK})
    return value


PATHS: list[tuple[str, Callable[[], Any], str]] = [
    ("attributes", lambda: (1, Thing(model=Thing(lock=LOCK))), "[1].model.lock"),
    ("itself", lambda: LOCK, ""),
    ("dictionary", lambda: {"a": {1: [0, {"b": LOCK}]}}, "['a'][1][1]['b']"),
    ("key", lambda: {(1, LOCK): 2}, "<key (1, <unlocked _thread.lock object at ...>[1]"),
    ("set", lambda: {1, LOCK}, "{...}"),
    ("slots", lambda: Slots(1, [LOCK]), ".b[0]"),
    ("slots and attributes", lambda: SlotsAndMore(1, 2, LOCK), ".c"),
    ("slots beside attributes", lambda: SlotsAndMore(LOCK, 2, 3), ".a"),
    ("dataclass", lambda: Data(1, LOCK), ".lock"),
    ("named tuple", lambda: Named(1, LOCK), ".lock"),
    ("subclass of list", lambda: Items([1, LOCK]), "[1]"),
    ("defaultdict", lambda: collections.defaultdict(list, {"a": [LOCK]}), "['a'][0]"),
    ("OrderedDict", lambda: collections.OrderedDict(a=LOCK), "['a']"),
    ("deque", lambda: collections.deque([1, LOCK]), "[1]"),
    ("partial", lambda: functools.partial(print, 1, LOCK), ".args[1]"),
    ("partial's keyword", lambda: functools.partial(print, end=[LOCK]), ".keywords['end'][0]"),
    ("partial's function", lambda: functools.partial(closure(LOCK)), ".func.<closure>.lock"),
    ("closure", lambda: closure(LOCK), ".<closure>.lock"),
    ("closure in a closure", lambda: closure(closure(LOCK)), ".<closure>.lock.<closure>.lock"),
    ("default", lambda: with_defaults(LOCK), ".__defaults__[1]"),
    ("global", lambda: of_globals(), ".<globals>.LOCK"),
    ("method", lambda: Thing(lock=LOCK).__init__, ".__self__.lock"),
    ("class", local_class, ".lock"),
    ("object of a local class", lambda: local_class()(), ".__class__.lock"),
    ("exception", lambda: ValueError("text", LOCK), ".args[1]"),
    ("array of objects", lambda: np.array([1, LOCK], dtype=object), ".<state>[4][1]"),
    ("arguments", lambda: Rebuilt("x", [LOCK]), ".lock[0]"),
    ("copyreg", lambda: Registered(Thing(a=LOCK)), ".part.a"),
    ("its own choice", lambda: Chooser(lock=LOCK, model=[LOCK]), ".model[0]"),
    ("ring", ring, ".lock"),
    ("loop", loop, "[2]['k']"),
    ("among many", lambda: [*range(100_000), LOCK, *range(100_000)], "[100000]"),
    ("deep", lambda: functools.reduce(lambda inner, _: [inner], range(50), LOCK), "[0]" * 50),
    ("large neighbours", lambda: [np.zeros(10**6), b"x" * 10**6, Thing(a=LOCK)], "[2].a"),
]


@pytest.mark.parametrize(("make", "path"), [p[1:] for p in PATHS], ids=[p[0] for p in PATHS])
def test_the_way_to_what_cannot_be_pickled(
    make: Callable[[], Any], path: str, codec: Codec
) -> None:
    with pytest.raises(PayloadError) as caught:
        codec.encode(make(), "parameters")
    expected = f"parameters{path} (a _thread.lock) cannot be pickled: cannot pickle '_thread.lock'"
    assert str(caught.value).startswith(expected)
    assert caught.value.__cause__ is not None


def test_an_object_that_refuses_as_a_whole_is_to_blame_itself(codec: Codec) -> None:
    with pytest.raises(PayloadError) as caught:
        codec.encode([1, Thing(a=Refuser())], "result")
    assert str(caught.value) == (
        f"result[1].a (a {__name__}.Refuser) cannot be pickled: I stay here"
    )


def test_the_first_of_several_is_named(codec: Codec) -> None:
    with pytest.raises(PayloadError, match=r"^value\[1\] "):
        codec.encode([0, (i for i in "x"), LOCK])


def deep(levels: int) -> list[Any]:
    value: list[Any] = [LOCK]
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "make",
    [lambda: deep(unpicklable._DEPTH + 20), lambda: [Hostile()]],
    ids=["too deep", "hostile"],
)
def test_where_no_way_can_be_told_the_whole_is_described(
    make: Callable[[], Any], codec: Codec
) -> None:
    with pytest.raises(PayloadError, match=r"^list \[.* cannot be pickled: .*_thread.lock"):
        codec.encode(make())


def test_attempts_are_limited() -> None:
    attempts: list[Any] = []

    def failure(value: Any) -> Exception | None:
        attempts.append(value)
        return ValueError("no") if isinstance(value, (Thing, list, dict)) else None

    rings = [ring() for _ in range(1000)]
    for one in rings:
        one.child.others = rings  # each part leads to all others
        del one.lock
    assert unpicklable.find(rings, "value", failure) is None
    assert 0 < len(attempts) <= unpicklable._ATTEMPTS


def test_what_fails_once_only_is_described_as_a_whole(codec: Codec) -> None:
    class Moody:
        left = 2  # as often as a value is tried in order to be sent

        def __reduce__(self) -> Any:
            Moody.left -= 1
            if Moody.left >= 0:
                raise RuntimeError("not today")
            return int, ()

    with pytest.raises(PayloadError, match=r"^list \[.*not today"):
        codec.encode([Moody()])


def test_a_lack_of_memory_is_nobodys_fault(codec: Codec) -> None:
    class Greedy:
        def __reduce__(self) -> Any:
            raise MemoryError("too much")

    with pytest.raises(PayloadError, match=r"^list \[.*too much"):
        codec.encode([Greedy()])


# --- in a job -------------------------------------------------------------------------------

SLAVE = """
    import threading
    from masterslave import startSlaveProcess

    class Model:
        pass

    def do_model(size):
        model = Model()
        model.parts = {"lock": threading.Lock()}
        return [1, model]

    def do_bytes(size):
        return bytes(size)

    startSlaveProcess()
"""


@pytest.fixture
def job(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[MasterProcess]:
    """A master on a free port, without slaves."""
    monkeypatch.chdir(world.path)
    monkeypatch.setenv("MASTERSLAVE_PORT", "0")
    world.write("slave.py", SLAVE)
    job = initializeMasterProcess("demo", slave_script="slave.py", use_name_server=False)
    try:
        yield job
    finally:
        job.shutdown()


def test_a_request_fails_in_its_caller_with_the_way(job: MasterProcess) -> None:
    model = Thing(model=Thing(lock=LOCK))
    expected = (
        "the parameters of a task 'fit': parameters[1].model.lock (a _thread.lock) cannot be "
        "pickled: cannot pickle '_thread.lock' object"
    )
    with pytest.raises(PayloadError) as one:
        job.requestTask("fit", 1, model)
    with pytest.raises(PayloadError) as many:
        job.requestTasks("fit", [(1, 2), (1, model)])
    assert str(one.value) == str(many.value) == expected
    assert job.task_manager.numberOfTasks() == [{}, {}, {}]


def test_a_global_state_fails_with_its_name(job: MasterProcess) -> None:
    with pytest.raises(PayloadError, match=r"^table\['a'\]\.lock \(a _thread\.lock\) cannot"):
        job.setGlobalState(good=1, table={"a": Thing(lock=LOCK)})


def test_results_fail_with_the_way_and_large_ones_bring_no_warning(
    job: MasterProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master, "_LARGE_PARAMETERS_BYTES", 1000)
    job.launchSlaveJobs()
    task_id = job.requestTask("model", 0)
    with pytest.raises(TaskRaisedException) as caught:
        job.retrieveResult()
    assert str(caught.value.exception) == (
        f"the result of task {task_id}: result[1].parts['lock'] (a _thread.lock) cannot be "
        "pickled: cannot pickle '_thread.lock' object"
    )
    job.requestTask("bytes", 2000)
    assert job.retrieveResult()[2] == bytes(2000)
    assert remarks(caplog) == []


def remarks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    found = [r for r in caplog.records if getattr(r, "action", "") == "large_parameters"]
    caplog.clear()
    return found


def test_large_parameters_are_remarked_on_once_per_tag(
    job: MasterProcess, caplog: pytest.LogCaptureFixture
) -> None:
    limit = master._LARGE_PARAMETERS_BYTES
    assert limit == 10_000_000
    job.requestTask("small", bytes(limit - 1000))
    assert remarks(caplog) == []
    job.requestTasks("small", [(bytes(limit // 100),)] * 110)  # each by itself
    assert remarks(caplog) == []
    large = np.zeros(limit, np.uint8)
    for _ in range(2):
        job.requestTask("large", large)
    (remark,) = remarks(caplog)
    assert (remark.levelno, remark.name) == (logging.WARNING, "masterslave.master")
    for words in ("'large'", "10 MB", "setGlobalState", "GlobalStateValue"):
        assert words in remark.getMessage()
    texts = tuple(f"{number:04096d}" for number in range(3000))
    for tag, many in (("small", (large,)), ("texts", texts), ("number", (1 << 8 * limit,))):
        job.requestTasks(tag, [many] * 2)
        (remark,) = remarks(caplog)
        assert repr(tag) in remark.getMessage()


def test_a_large_global_state_is_the_remedy_and_brings_no_warning(
    job: MasterProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master, "_LARGE_PARAMETERS_BYTES", 1000)
    job.setGlobalState(table=bytes(2000))
    assert remarks(caplog) == []

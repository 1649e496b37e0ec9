"""The contract of every store: what is written comes back, and nothing else does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from journals import (
    INFO,
    KEY,
    Kept,
    ended,
    expected,
    found,
    histories,
    requested,
    setback,
)

from masterslave.entries import Cancelled, Entry, Forgotten, HandedOut, Joined, Left, Written
from masterslave.errors import JournalDamaged
from masterslave.records import AT_REST, TaskOptions
from masterslave.stores import frames, memory, upkeep
from masterslave.stores.base import Store
from masterslave.stores.memory import MemoryStore
from masterslave.stores.sqlite import SqliteStore


class Place:
    """Where a store lives; opened again, it is the store of the next run."""

    def __init__(self, kind: str, path: Path) -> None:
        self._memory = MemoryStore() if kind == "memory" else None
        self._path = path
        self._opened: list[Store] = []

    def open(self) -> Store:
        store = self._memory or SqliteStore(self._path, KEY)
        self._opened.append(store)
        return store

    def again(self, store: Store) -> Store:
        store.close()
        return self.open()

    def close(self) -> None:
        for store in self._opened:
            store.close()


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = Place(request.param, tmp_path / "journal")
    yield place
    place.close()


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


def written(store: Store, *entries: Entry) -> Kept:
    store.write(entries)
    return found(store)


def test_a_new_store_is_empty(store: Store) -> None:
    assert found(store) == Kept({}, [], [], {})
    assert store.note("label") == ""


def test_an_empty_group_is_nothing(store: Store) -> None:
    assert written(store) == Kept({}, [], [], {})


def test_a_tasks_whole_life_comes_back(place: Place) -> None:
    entries: list[Entry] = [
        Joined(1, INFO),
        requested(0),
        HandedOut(1, ((0, 1),)),
        setback(0),
        HandedOut(1, ((0, 2),)),
        ended(0, 2),
    ]
    store = place.open()
    for entry in entries:
        store.write([entry])
    assert found(store) == found(place.again(store)) == expected(entries)


def test_the_next_run_goes_on_where_this_one_ended(place: Place) -> None:
    """The order of what happened is one through all runs."""
    entries: list[Entry] = []
    store = place.open()
    for number in range(4):
        entries += [requested(number), HandedOut(number, ((number, 1),)), setback(number)]
        store.write(entries[-3:-1])
        store.write(entries[-1:])
        store = place.again(store)
    assert found(store) == expected(entries)
    assert [type(entry).__name__ for entry in found(store).attempts] == ["HandedOut", "Setback"] * 4


def test_what_was_cancelled_does_not_come_back(place: Place) -> None:
    store = place.open()
    store.write([requested(0), requested(1), HandedOut(5, ((0, 1), (1, 1))), setback(0)])
    store.write([setback(0), setback(1), Cancelled(0)])
    store = place.again(store)
    kept = found(store)
    assert [task.number for task in kept.tasks] == [1]
    assert kept.attempts == [HandedOut(5, ((0, 1), (1, 1))), setback(1)]
    with pytest.raises(JournalDamaged):
        store.parameters(0)


def test_what_was_requested_and_cancelled_in_one_group_does_not_come_back(place: Place) -> None:
    entries = [requested(0), requested(1), Cancelled(0), requested(2), setback(1), Cancelled(1)]
    entries += [setback(2), Cancelled(2), requested(3)]
    store = place.open()
    store.write(entries)
    kept = found(place.again(store))
    assert [task.number for task in kept.tasks] == [3]
    assert kept.attempts == []


def test_who_has_left_does_not_come_back(place: Place) -> None:
    other = INFO._replace(token="other")
    store = place.open()
    store.write([Joined(1, INFO), Joined(2, INFO), Left(1), Joined(3, INFO), Left(3)])
    store.write([Joined(4, other), Left(4), Left(99)])
    assert found(place.again(store)).processes == {2: Joined(2, INFO)}


def test_a_slave_that_joins_again_is_the_one_of_the_last_time(place: Place) -> None:
    other = INFO._replace(workers=9, token="other")
    store = place.open()
    store.write([Joined(1, INFO), Joined(1, other), Joined(2, other)])
    store.write([Joined(2, INFO)])
    kept = found(place.again(store))
    assert kept.processes == {1: Joined(1, other), 2: Joined(2, INFO)}


def test_a_later_run_may_give_the_number_of_a_slave_that_left_to_another_one(place: Place) -> None:
    store = place.open()
    store.write([Joined(1, INFO), Left(1)])
    store = place.again(store)
    store.write([Joined(1, INFO)])
    assert found(place.again(store)).processes == {1: Joined(1, INFO)}


def test_a_later_run_may_give_the_number_of_a_cancelled_task_to_another_one(place: Place) -> None:
    store = place.open()
    store.write([requested(7, "old"), setback(7)])
    store.write([Cancelled(7)])
    store = place.again(store)
    store.write([requested(7, "new"), ended(7)])
    assert found(place.again(store)) == expected([requested(7, "new"), ended(7)])


@pytest.mark.parametrize(
    "frame",
    [
        [],
        [b""],
        [b"", b"", b""],
        [b"head", b"", b"tail"],
        [bytes(range(256))],
        [b"x" * 99],
        [b"x" * 100],
        [b"x" * 101],
        [b"x" * 1001, b"", b"y" * 300, b"z"],
        [b"", b"x" * 200],
        [b"ab" * 50, b"\xc1" * 7],
    ],
    ids=lambda frame: "+".join(str(len(buffer)) for buffer in frame) or "none",
)
def test_frames_come_back_by_number(
    place: Place, frame: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "PIECE_BYTES", 100)
    store = place.open()
    others = [requested(4, frame=[b"w" * 500]), ended(4, frame=[b"v" * 500])]
    store.write([requested(3, frame=frame), *others, requested(5), ended(3, frame=frame[::-1])])
    store = place.again(store)
    assert list(map(bytes, store.parameters(3))) == frame
    assert list(map(bytes, store.result(3))) == frame[::-1]
    assert list(map(bytes, store.parameters(4))) == [b"w" * 500]
    assert list(store.parameters(5)) == requested(5).frame
    ends = [entry for entry in store.entries() if entry == ended(3)._replace(frame=AT_REST)]
    assert len(ends) == 1


def test_parameters_of_a_finished_task_are_still_there(store: Store) -> None:
    written(store, requested(0), ended(0))
    assert store.parameters(0) == requested(0).frame


def test_frames_that_nobody_has_written_are_not_there(store: Store) -> None:
    written(store, requested(0))
    for ask, number in ((store.parameters, 1), (store.result, 0), (store.result, -1)):
        with pytest.raises(JournalDamaged, match=f"number {number}"):
            ask(number)


def test_cancelling_takes_large_parameters_along(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "PIECE_BYTES", 10)
    store = place.open()
    store.write([requested(0, frame=[b"old" * 99]), requested(1)])
    store.write([Cancelled(0)])
    store = place.again(store)
    store.write([requested(0, frame=[b"new" * 33])])
    assert list(map(bytes, store.parameters(0))) == [b"new" * 33]


@pytest.mark.parametrize(
    "text", ["", "\0", "a\0b", "\udc80.txt", "caf\u00e9", "\U0001f600", "x" * 100_000, "'\"%?"]
)
def test_odd_text_comes_back(place: Place, text: str) -> None:
    entries: list[Entry] = [
        Joined(1, INFO._replace(machine=text, token=text)),
        requested(0, text)._replace(options=TaskOptions(key=text)),
        setback(0, story=text),
        ended(0, story=text),
    ]
    store = place.open()
    store.write(entries)
    store.set_note("odd", "caf\u00e9\0")
    store = place.again(store)
    assert found(store) == expected(entries)
    assert store.note("odd") == "caf\u00e9\0"


def test_whole_numbers_and_endless_ones_are_times_as_well(place: Place) -> None:
    """A slave may be of another version, and say 0 for 0.0."""
    for number, duration_s in enumerate((0, 3, 0.0, -0.0, 1e-300, math.inf)):
        store = place.open()
        entry = ended(number)._replace(duration_s=duration_s, at=number)
        store.write([requested(number), entry, setback(number)._replace(at=7)])
        store = place.again(store)
        assert found(store).ends[number] == entry
        store.close()


def test_notes_are_kept_and_replaced(place: Place) -> None:
    store = place.open()
    store.set_note("port", "1")
    store.set_note("label", "job")
    store.set_note("port", "2")
    store = place.again(store)
    assert [store.note(name) for name in ("port", "label", "other")] == ["2", "job", ""]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@given(groups=histories())
def test_any_history_comes_back(kind: str, groups: list[list[Written]], tmp_path: Path) -> None:
    path = tmp_path / kind
    for left in tmp_path.glob(f"{kind}*"):
        left.unlink()
    place = Place(kind, path)
    store = place.open()
    for index, group in enumerate(groups):
        store.write(group)
        if index % 3 == 2:
            store = place.again(store)
    try:
        assert found(store) == expected([entry for group in groups for entry in group])
    finally:
        place.close()


# --- what is forgotten ----------------------------------------------------------------------


def test_what_was_forgotten_does_not_come_back(place: Place) -> None:
    store = place.open()
    store.write([requested(0), requested(1), HandedOut(1, ((0, 1), (1, 1))), setback(0), ended(0)])
    store.write([Forgotten(0, False)])
    store = place.again(store)
    kept = found(store)
    assert [task.number for task in kept.tasks] == [1]
    assert kept.attempts == [HandedOut(1, ((0, 1), (1, 1)))]  # of the other one, too
    assert kept.ends == {}
    assert kept.highest == 0
    for frame in (store.parameters, store.result):
        with pytest.raises(JournalDamaged):
            frame(0)


def test_all_of_a_task_may_be_in_one_group(place: Place) -> None:
    store = place.open()
    story = [requested(0), HandedOut(1, ((0, 1),)), setback(0), ended(0), Forgotten(0, False)]
    assert written(store, *story) == expected([Forgotten(0, False)])
    assert found(place.again(store)) == expected([Forgotten(0, False)])


def test_the_largest_number_is_remembered(place: Place) -> None:
    store = place.open()
    store.write([requested(number) for number in range(3)])
    for number in (2, 0, 1):
        store.write([Forgotten(number, False)])
    assert found(place.again(store)).highest == 2


def test_failures_are_kept_and_named(place: Place) -> None:
    store = place.open()
    store.write([requested(0), setback(0), ended(0), Forgotten(0, True)])
    kept = found(place.again(store))
    assert kept.failures == {0}
    assert [task.number for task in kept.tasks] == [0]
    assert (len(kept.attempts), list(kept.ends)) == (1, [0])


def test_the_oldest_failures_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, upkeep):
        monkeypatch.setattr(module, "KEPT_FAILURES", 2)
    store = place.open()
    order = (3, 0, 4, 1, 2)  # in which they came to be forgotten
    store.write([entry for n in range(5) for entry in (requested(n), setback(n), ended(n))])
    for number in order[:3]:
        store.write([Forgotten(number, True)])
    store = place.again(store)
    store.write([Forgotten(number, True) for number in order[3:]])
    kept = found(place.again(store))
    assert kept.failures == set(order[3:])
    assert [task.number for task in kept.tasks] == sorted(order[3:])
    assert {one.number for one in kept.attempts if not isinstance(one, HandedOut)} == {1, 2}
    assert kept.ends.keys() == {1, 2}


def test_failures_are_bounded_in_bytes_but_for_the_newest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory, upkeep):
        monkeypatch.setattr(module, "KEPT_FAILURE_BYTES", 100_000)
    monkeypatch.setattr(frames, "PIECE_BYTES", 25_000)  # the largest ones are kept in pieces
    store = place.open()

    def fail(number: int, size: int) -> None:
        nonlocal store
        frame = [bytes(size)]
        store.write([requested(number, frame=frame), ended(number, frame=frame)])
        store.write([Forgotten(number, True)])
        if number % 5 == 0:
            store = place.again(store)

    for number in range(20):
        fail(number, 10_001)
    assert found(store).failures == {16, 17, 18, 19}  # parameters and result, and what is beside
    fail(20, 30_000)
    assert found(store).failures == {19, 20}
    fail(21, 200_000)
    kept = found(place.again(store))
    assert kept.failures == {21}
    assert [task.number for task in kept.tasks] == [21] and kept.ends.keys() == {21}

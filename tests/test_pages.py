"""Pages: many tiny entries of a journal in one row."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from journals import KEY, ended, expected, found, requested

from masterslave.entries import (
    Cancelled,
    Forgotten,
    HandedOut,
    Requests,
    Results,
    Written,
    count_of,
    identity,
    singly,
)
from masterslave.errors import JournalDamaged
from masterslave.records import AT_REST, TaskOptions
from masterslave.stores import paged, upkeep
from masterslave.stores.pages import ENDING, PAGE_ENTRIES, TASK, Gathered, Page, by_number
from masterslave.stores.sqlite import SqliteStore

OPTIONS = TaskOptions(priority=3, key="k")


def requests(first: int, count: int, tag: str = "sqrt") -> Requests:
    return Requests(first, tag, TaskOptions(), [b"parameters of %d" % i for i in range(count)])


def results(numbers: Sequence[int], process: int = 1, at: float = 1.5e9) -> Results:
    return Results(process, at, [(n, 1, 0.25, b"result of %d" % n) for n in numbers])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, KEY)
    yield store
    store.close()


def rows(store: SqliteStore, table: str) -> int:
    count: int = store._file.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return count


# --- pure -----------------------------------------------------------------------------------


def test_entries_that_stand_for_many_are_counted_and_told_one_by_one() -> None:
    group: list[Written] = [Requests(7, "a", OPTIONS, [b"x", b"y"]), Cancelled(3), results([7, 8])]
    assert [count_of(one) for one in group] == [2, 1, 2]
    first, second, cancelled, one, other = singly(group)
    assert (first.number, second.number, second.frame) == (7, 8, [b"y"])
    assert second.identity == identity("a", [b"y"], "k")
    assert cancelled == Cancelled(3)
    assert (one, other) == (ended(7), ended(8))


def test_what_is_gathered_comes_out_of_its_pages() -> None:
    tiny = Gathered()
    tiny.add_tasks(1, "a", "A", 0, [b"0", b"1"])
    tiny.add_tasks(3, "b\udcff", "A", 2, [b"2"])
    tiny.add_tasks(9, "a", "A", 3, [b"3"])
    tiny.add_results(4, 5, 1.5, [(1, 2, 0.25, b"r1"), (0, 1, 0.5, b"r0")])
    pages = [
        Page(place, body, {"A": TaskOptions(), "B": OPTIONS}.get) for place, body in tiny.pages()
    ]
    assert [page.place for page in pages] == [
        (9, TASK, 0, 3), (3, TASK, 2, 2), (5, ENDING, 0, 1),
    ]  # fmt: skip
    first, second, ends = pages
    assert [seq for seq, _ in first.entries(frames=True)] == [1, 2, 9]
    assert 1 in first
    assert 2 not in first
    assert (first.frame(3), first.seq_of(3)) == ([b"3"], 9)
    entry = second.entry(2)[1]
    assert entry.tag == "b\\udcff"  # type: ignore[union-attr]
    assert entry.identity == identity("b\udcff", [b"2"], None)  # type: ignore[union-attr]
    assert [entry for _, entry in ends.entries(frames=False)] == [
        ended(1, 2)._replace(process=5, at=1.5, frame=AT_REST),
        ended(0, 1)._replace(process=5, at=1.5, frame=AT_REST, duration_s=0.5),
    ]


def test_many_make_several_pages() -> None:
    tiny = Gathered()
    tiny.add_results(1, 1, 1.0, [(n, 1, 0.1, b"r") for n in range(2 * PAGE_ENTRIES + 1)])
    places = [place for place, _ in tiny.pages()]
    assert [place.last - place.first + 1 for place in places] == [PAGE_ENTRIES, PAGE_ENTRIES, 1]
    assert len({place.seq for place in places}) == 3


def test_pages_that_overlap_are_read_by_number() -> None:
    numbers = ([0, 4, 8], [1, 3, 20], [5], [21, 22])
    pages = [(min(some), [(100 + n, requested(n)) for n in some]) for some in numbers]
    order = [entry.number for _, entry in by_number(pages)]
    assert order == sorted(n for some in numbers for n in some)


# --- in the file ----------------------------------------------------------------------------


def test_a_group_of_tiny_tasks_is_a_few_rows(store: SqliteStore) -> None:
    group: list[Written] = [
        *(requests(i, 1) for i in range(100)),
        HandedOut(1, tuple((i, 1) for i in range(100))),
        results(range(60)),
        results(range(60, 100), at=2e9),
    ]
    store.write(group)
    assert (rows(store, "page"), rows(store, "task"), rows(store, "ending")) == (2, 0, 0)
    assert found(store) == expected(group)
    store.write([requests(100, 2), requested(102), ended(100)])
    assert [entry.number for _, entry in store.numbered("task")] == list(range(103))
    seqs = [seq for table in ("task", "hand_out", "ending") for seq, _ in store.numbered(table)]
    assert sorted(seqs) == list(range(1, 206))


def test_what_was_cancelled_in_a_page_does_not_come_back(store: SqliteStore) -> None:
    groups: list[list[Written]] = [
        [requests(0, 4), Cancelled(1)],  # in the very group
        [results([0, 3])],
        [Cancelled(2), Forgotten(3, False)],
    ]
    for group in groups:
        store.write(group)
    kept = found(store)
    assert kept == expected([entry for group in groups for entry in group])
    assert ([task.number for task in kept.tasks], list(kept.ends)) == ([0], [0])
    for number in (1, 2, 3):
        with pytest.raises(JournalDamaged, match=f"no task number {number}"):
            store.parameters(number)
    store.write([requests(1, 1)])  # a later run may give the number to another one
    assert store.parameters(1) == [b"parameters of 0"]


def test_a_finished_task_of_a_page_may_be_forgotten_to_run_again(store: SqliteStore) -> None:
    store.write([requests(0, 2), results([0, 1])])
    store.forget_ending(0)
    assert list(found(store).ends) == [1]
    store.write([Results(1, 2e9, [(0, 2, 1.0, b"again")])])
    assert found(store).ends[0].attempt == 2
    assert store.result(0) == [b"again"]


def test_the_file_does_not_grow_with_what_was_struck_out(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "KEPT_ROWS", 50)
    store._pages._clear_at = 50
    store.write([requests(0, 40), results([7])])
    counts = []
    for turn in range(1, 30):
        first = 40 * turn
        store.write([requests(first, 40), results(range(first, first + 20))])
        cancelled = [Cancelled(n) for n in range(first, first + 40)]
        store.write(cancelled)
        counts.append((rows(store, "page"), rows(store, "struck")))
    assert max(pages for pages, _ in counts) <= 12
    assert max(struck for _, struck in counts) <= 400
    kept = found(store)
    assert ([task.number for task in kept.tasks], list(kept.ends)) == (list(range(40)), [7])


def test_hand_outs_of_tasks_in_pages_stay(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "KEPT_ROWS", 3)
    store._upkeep._tidy_at = 3
    store.write([requests(0, 6), *(HandedOut(1, ((i, 1),)) for i in range(6))])
    store.write([Forgotten(i, False) for i in range(4)])
    kept = [entry.tasks[0][0] for _, entry in store.numbered("hand_out")]  # type: ignore[union-attr]
    assert kept == [4, 5]


def test_a_page_that_was_read_in_a_group_that_failed_is_not_believed(store: SqliteStore) -> None:
    store.write([requested(0)])
    store._pages._clear_at = 1
    with pytest.raises(JournalDamaged):
        store.write([requests(1, 2), Cancelled(1), requested(0)])
    store.write([Requests(1, "sqrt", TaskOptions(), [b"other", b"another"])])
    assert store.parameters(2) == [b"another"]


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE page SET seq = seq + 100 WHERE kind = 'task'", TASK),
        ("UPDATE page SET kind = 'ending' WHERE kind = 'task'", ENDING),
        ("UPDATE page SET kind = 'odd' WHERE kind = 'task'", TASK),
        ("UPDATE page SET first = 1 WHERE kind = 'task'", TASK),
        ("UPDATE page SET first = 'x' WHERE kind = 'task'", TASK),
        ("UPDATE page SET last = 99 WHERE kind = 'task'", TASK),
        ("UPDATE page SET body = x'00' WHERE kind = 'task'", TASK),
        ("UPDATE page SET mac = x'00' WHERE kind = 'task'", TASK),
        ("UPDATE page SET body = 5 WHERE kind = 'ending'", ENDING),
        ("UPDATE struck SET kind = 'ending' WHERE kind = 'task'", TASK),
        ("UPDATE struck SET number = 0", TASK),
        ("UPDATE struck SET seq = 77", TASK),
        ("UPDATE struck SET mac = 'x'", TASK),
    ],
)
def test_every_value_of_a_page_is_signed(path: Path, statement: str, table: str) -> None:
    store = SqliteStore(path, KEY)
    store.write([requests(0, 3), results([0])])
    store.write([Cancelled(1)])
    store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute(statement).rowcount
    store = SqliteStore(path, KEY)
    with pytest.raises(JournalDamaged, match="is not what was written"):
        list(store.numbered(table))
    problems: list[str] = []
    left = list(store.numbered(table, problems))
    assert problems
    assert len(left) <= 3
    store.close()


def test_a_damaged_page_does_not_hide_another_one(path: Path) -> None:
    store = SqliteStore(path, KEY)
    store.write([requests(0, 1), requests(1, 1, "a"), requests(2, 1)])  # of 0 and 2, and of 1
    store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute("UPDATE page SET mac = x'00' WHERE first = 0").rowcount == 1
    store = SqliteStore(path, KEY)
    assert store.parameters(1) == [b"parameters of 0"]
    with pytest.raises(JournalDamaged, match="page 3 is not what was written"):
        store.parameters(2)
    problems: list[str] = []
    assert [entry.number for _, entry in store.numbered(TASK, problems)] == [1]  # type: ignore[union-attr]
    assert len(problems) == 1
    store.close()

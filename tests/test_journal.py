"""The journal: groups, order, and what becomes of entries that cannot be written."""

from __future__ import annotations

import logging
import threading

import pytest
from conftest import wait_until
from journals import TryingStore, requested
from managing import Call

from masterslave.entries import Joined, Requested
from masterslave.errors import JournalDamaged, JournalError, JournalFull
from masterslave.journal import WAITING_BYTES, WAITING_ENTRIES, Journal
from masterslave.records import ProcessInfo


@pytest.fixture
def store() -> TryingStore:
    return TryingStore()


@pytest.fixture
def journal(store: TryingStore) -> Journal:
    return Journal(store)


def written(store: TryingStore) -> list[int]:
    return [e.number for group in store.groups for e in group if isinstance(e, Requested)]


def add(journal: Journal, *numbers: int) -> None:
    for number in numbers:
        journal.add(requested(number))


def test_nothing_is_written_before_sync_and_everything_after_it(
    journal: Journal, store: TryingStore
) -> None:
    add(journal, 0, 1, 2)
    assert store.groups == []
    assert (journal.added, journal.written) == (3, 0)
    journal.sync()
    assert [len(group) for group in store.groups] == [3]
    assert (journal.added, journal.written) == (3, 3)


def test_a_sync_with_nothing_to_write_leaves_the_store_alone(
    journal: Journal, store: TryingStore
) -> None:
    journal.sync()
    add(journal, 0)
    journal.sync()
    journal.sync()
    assert len(store.groups) == 1


def test_who_comes_while_a_group_is_written_goes_into_the_next_one_together(
    journal: Journal, store: TryingStore
) -> None:
    store.gate.clear()
    add(journal, 0)
    first = Call(journal.sync)
    wait_until(lambda: store.busy)
    add(journal, *range(1, 11))
    others = [Call(journal.sync) for _ in range(10)]
    assert not any(call.done for call in others)
    store.gate.set()
    for call in [first, *others]:
        call.outcome()
    assert [len(group) for group in store.groups] == [1, 10]
    assert written(store) == list(range(11))


def test_sync_returns_only_when_its_own_entries_are_kept(
    journal: Journal, store: TryingStore
) -> None:
    store.gate.clear()
    add(journal, 0)
    first = Call(journal.sync)
    wait_until(lambda: store.busy)
    add(journal, 1)
    second = Call(journal.sync)
    assert not first.done
    assert not second.done
    assert journal.written == 0
    store.gate.set()
    second.outcome()
    assert written(store) == [0, 1]


@pytest.mark.parametrize("failing", [0, 7])
def test_many_threads_lose_nothing_and_keep_the_order(
    journal: Journal, store: TryingStore, failing: int
) -> None:
    """Every thread adds under one lock, as the task manager does, and syncs without it."""
    store.errors = [JournalFull("no room") for _ in range(failing)]
    lock = threading.Lock()
    order: list[int] = []
    failures: list[JournalError] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(100):
            with lock:
                number = len(order)
                order.append(number)
                journal.add(requested(number), 5)
            while True:
                try:
                    journal.sync()
                    break
                except JournalFull as error:
                    failures.append(error)
            assert journal.written > number

    calls = [Call(work) for _ in range(8)]
    for call in calls:
        call.outcome()
    assert written(store) == order == list(range(800))
    assert len(failures) == failing
    assert store.most_at_once == 1
    assert journal.added == journal.written == 800
    assert journal.trouble == ""


def test_what_could_not_be_written_goes_with_the_next_attempt_in_order(
    journal: Journal, store: TryingStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.errors = [JournalFull("the disk is full") for _ in range(3)]
    add(journal, 0, 1)
    for number in (2, 3, 4):
        with pytest.raises(JournalFull, match="the disk is full"):
            journal.sync()
        add(journal, number)
        assert journal.trouble == "the disk is full"
    assert journal.written == 0
    journal.sync()
    assert written(store) == [0, 1, 2, 3, 4]
    assert journal.trouble == ""
    said = [(r.levelno, r.action) for r in caplog.records if hasattr(r, "action")]
    assert said == [(logging.ERROR, "journal_trouble"), (logging.WARNING, "journal_mended")]


def test_those_who_wait_for_a_group_that_fails_fail_or_write_it_themselves(
    journal: Journal, store: TryingStore
) -> None:
    store.gate.clear()
    store.errors = [JournalFull("no room")]
    add(journal, 0)
    first = Call(journal.sync)
    wait_until(lambda: store.busy)
    add(journal, 1)
    second = Call(journal.sync)
    store.gate.set()
    with pytest.raises(JournalFull):
        first.outcome()
    second.outcome()
    assert written(store) == [0, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_an_interrupted_write_forgets_nothing(
    journal: Journal, store: TryingStore, error: BaseException
) -> None:
    store.errors = [error]
    add(journal, 0)
    with pytest.raises(type(error)):
        journal.sync()
    add(journal, 1)
    journal.sync()
    assert written(store) == [0, 1]


def test_sync_is_due_by_number_or_by_size(journal: Journal) -> None:
    assert not journal.is_due()
    for number in range(WAITING_ENTRIES):
        journal.add(requested(number))
    assert not journal.is_due()
    add(journal, WAITING_ENTRIES)
    assert journal.is_due()
    journal.sync()
    assert not journal.is_due()
    journal.add(requested(9000), WAITING_BYTES)
    assert not journal.is_due()
    journal.add(requested(9001), 1)
    assert journal.is_due()
    journal.sync()
    assert not journal.is_due()


def test_a_failed_sync_stays_due(journal: Journal, store: TryingStore) -> None:
    journal.add(requested(0), WAITING_BYTES + 1)
    store.errors = [JournalFull("no room")]
    with pytest.raises(JournalFull):
        journal.sync()
    assert journal.is_due()


def test_close_writes_what_is_left(journal: Journal, store: TryingStore) -> None:
    add(journal, 0)
    journal.close()
    assert written(store) == [0]
    assert store.closed


def test_close_gives_the_store_up_even_when_it_cannot_be_written(
    journal: Journal, store: TryingStore
) -> None:
    add(journal, 0)
    store.errors = [JournalDamaged("broken")]
    with pytest.raises(JournalDamaged):
        journal.close()
    assert store.closed


def test_reading_waits_for_a_group_that_is_being_written(
    journal: Journal, store: TryingStore
) -> None:
    add(journal, 0)
    store.gate.clear()
    writing = Call(journal.sync)
    wait_until(lambda: store.busy)
    reading = Call(journal.parameters, 0)
    store.gate.set()
    writing.outcome()
    assert reading.outcome() == requested(0).frame


def test_notes_and_entries_reach_the_store(journal: Journal) -> None:
    journal.set_note("port", "7766")
    assert (journal.note("port"), journal.note("label")) == ("7766", "")
    journal.add(Joined(3, ProcessInfo("slave", 1, "host", 2, "token")))
    journal.sync()
    assert list(journal.entries()) == [Joined(3, ProcessInfo("slave", 1, "host", 2, "token"))]

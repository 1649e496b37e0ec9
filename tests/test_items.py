"""Data items and former slaves in a journal, and what the next run must not take for its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from masterslave import TaskManager
from masterslave.entries import Dropped, Entry, HandedOut, Joined, Left, Stored
from masterslave.errors import DataNotFound, JournalDamaged
from masterslave.journal import Journal
from masterslave.records import ProcessInfo
from masterslave.stores.base import Store
from masterslave.stores.frames import PIECE_BYTES
from masterslave.stores.memory import MemoryStore
from masterslave.stores.sqlite import SqliteStore
from masterslave.stores.statements import migrations

KEY = bytes(32)
LARGE = [b"head", bytes(PIECE_BYTES) + b"tail"]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Gives the same journal each time, closed and opened again."""
    stores: list[Store] = []

    def reopen() -> Store:
        if request.param == "memory":
            stores[:] = stores or [MemoryStore()]
        else:
            if stores:
                stores.pop().close()
            stores.append(SqliteStore(tmp_path / "journal", KEY))
        return stores[0]

    def close() -> None:
        for store in stores:
            store.close()

    request.addfinalizer(close)
    return reopen


VALUES = {
    "frame": [b"pickle", b"buffer"],
    "empty": [],
    "large": LARGE,
    "record": {"kind": "script", "source": "x = 'é'", "argv": [], "package": None, "n": {1: 2.5}},
    "half a character": {"cwd": "/data/\udcff"},
}


@pytest.mark.parametrize("name", VALUES)
def test_a_data_item_comes_back(reopen: Callable[[], Store], name: str) -> None:
    reopen().write([Stored("item", VALUES[name])])
    assert reopen().item("item") == VALUES[name]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    ("entries", "left"),
    [
        ([Stored("a", [b"1"]), Stored("a", [b"2"])], [b"2"]),
        ([Stored("a", LARGE), Stored("a", [b"2"])], [b"2"]),
        ([Stored("a", [b"1"]), Dropped("a")], None),
        ([Stored("a", LARGE), Dropped("a"), Stored("a", [b"3"])], [b"3"]),
        ([Stored("b", [b"1"]), Dropped("a")], None),
        ([Dropped("a"), Stored("a", LARGE)], LARGE),
    ],
)
def test_the_last_item_of_a_name_counts(
    reopen: Callable[[], Store], entries: list[Entry], left: list[bytes] | None, grouped: bool
) -> None:
    for group in [entries] if grouped else [[entry] for entry in entries]:
        reopen().write(group)
    store = reopen()
    if left is None:
        with pytest.raises(DataNotFound, match="'a'"):
            store.item("a")
    else:
        assert store.item("a") == left
    assert list(store.entries()) == []  # no run takes them over


def test_nothing_is_left_of_items_that_were_deleted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "journal", KEY)
    store.write([Stored("a", LARGE), Stored("b", LARGE), Stored("b", [b"1"]), Dropped("a")])
    store.close()
    db = sqlite3.connect(tmp_path / "journal")
    assert db.execute("SELECT count(*) FROM piece").fetchone() == (0,)
    assert db.execute("SELECT name FROM item").fetchall() == [("b",)]
    db.close()


def test_a_value_that_no_file_can_hold_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(tmp_path / "journal", KEY)
    store.write([Stored("a", object()), Stored("b", {"n": 1 << 70}), Stored("c", [b"1"])])
    assert store.item("c") == [b"1"]
    with pytest.raises(DataNotFound):
        store.item("a")
    store.close()
    assert [record.args[0] for record in caplog.records] == ["a", "b"]  # type: ignore[index]


def test_a_changed_item_is_not_believed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "journal", KEY)
    store.write([Stored("a", [b"1"]), Stored("b", [b"2"])])
    store.close()
    db = sqlite3.connect(tmp_path / "journal", isolation_level=None)
    db.execute("UPDATE item SET name = 'x' WHERE name = 'b'")
    db.execute("UPDATE item SET name = 'b' WHERE name = 'a'")
    db.close()
    store = SqliteStore(tmp_path / "journal", KEY)
    with pytest.raises(JournalDamaged):
        store.item("b")
    store.close()


def test_what_a_manager_stores_and_deletes() -> None:
    store = MemoryStore()
    manager = TaskManager("job", journal=(journal := Journal(store)))
    manager.storeData(a=[b"1"], b=[1, "two"])
    manager.storeData(a=[b"3"], c={"x": 1})
    manager.deleteData("b")
    journal.sync()
    assert (store.item("a"), store.item("c")) == ([b"3"], {"x": 1})
    with pytest.raises(DataNotFound):
        store.item("b")
    again = TaskManager("job", journal=Journal(store))
    with pytest.raises(DataNotFound):
        again.retrieveData("a")


def test_much_data_does_not_wait_in_memory_for_a_request() -> None:
    store = MemoryStore()
    manager = TaskManager("job", journal=Journal(store))
    manager.storeData(a=[bytes(1 << 25)])
    assert store.item("a") == [bytes(1 << 25)]


# --- slaves that have left ------------------------------------------------------------------


def info(pid: int) -> ProcessInfo:
    return ProcessInfo(f"PID {pid}", pid, "node", 1, str(pid))


@pytest.mark.parametrize("grouped", [True, False])
def test_slaves_that_left_or_whose_number_another_one_has(tmp_path: Path, grouped: bool) -> None:
    entries = [
        Joined(1, info(11)), Joined(2, info(22)), Left(1), Joined(2, info(23)), Joined(3, info(33)),
    ]  # fmt: skip
    store = SqliteStore(tmp_path / "journal", KEY)
    for group in [entries] if grouped else [[entry] for entry in entries]:
        store.write(group)
    living = [(entry.process, entry.info.pid) for _, entry in store.numbered("process")]
    former = [(entry.process, entry.info.pid) for _, entry in store.numbered("former_process")]
    store.close()
    assert living == [(2, 23), (3, 33)]
    assert former == [(1, 11), (2, 22)]


def test_numbers_of_entries_go_on_where_the_last_rows_have_gone(tmp_path: Path) -> None:
    for entry in [Joined(1, info(11)), Left(1), Stored("a", [b"1"]), Joined(1, info(12)), Left(1)]:
        store = SqliteStore(tmp_path / "journal", KEY)
        store.write([entry])
        former = list(store.numbered("former_process"))
        store.close()
    assert [entry.info.pid for _, entry in former] == [11, 12]


# --- older files, reused numbers ------------------------------------------------------------


def test_a_journal_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    store = SqliteStore(path, KEY)
    store.set_note("label", "job")
    store.close()
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(
        "DROP TRIGGER process_left; DROP TRIGGER process_replaced; DROP TABLE item; "
        "DROP TABLE former_process; DROP TABLE forgotten; DROP INDEX setback_number; "
        "DROP TABLE page; DROP TABLE struck; "
        "PRAGMA user_version = 1;"
    )
    db.close()
    store = SqliteStore(path, KEY)
    assert store.note("label") == "job"
    store.write([Stored("a", [b"1"]), Joined(1, info(1)), Left(1)])
    assert store.item("a") == [b"1"]
    store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone()[0] == len(migrations())
    db.close()


def test_the_number_of_a_cancelled_task_is_not_given_again() -> None:
    """A slave that still runs it may hand in its result to the next run."""
    store = MemoryStore()
    manager = TaskManager("job", journal=(journal := Journal(store)))
    slave = manager.registerProcess(None, list(info(11)))[0]
    manager.announceSlave(slave)
    manager.announceTags(slave, ["f"])
    cancelled = manager.addTaskRequest("f", [b"old"])
    (task,), _ = manager.exchange(slave)
    assert task.task_id == cancelled
    manager.cancelTask(cancelled)
    journal.sync()
    assert any(isinstance(entry, HandedOut) for entry in store.entries())
    again = TaskManager("job", journal=Journal(store))
    new = again.addTaskRequest("f", [b"new"])
    again.exchange(slave, [(cancelled, 1, "result", [b"of the old one"], 0.1, "")], (), 0)
    assert new != cancelled
    assert again.getResults(0, timeout=0) == []

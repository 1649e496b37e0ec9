"""A journal's file does not grow with what is of no use any more."""

from __future__ import annotations

from pathlib import Path

import pytest
from journals import (
    INFO,
    KEY,
    ended,
    found,
    read,
    requested,
    setback,
)

from masterslave.entries import (
    Cancelled,
    Forgotten,
    HandedOut,
    Joined,
    Left,
)
from masterslave.stores import frames, upkeep
from masterslave.stores.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_the_file_does_not_grow_with_what_was_cancelled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "PIECE_BYTES", 1 << 12)
    store = SqliteStore(path, KEY)
    sizes = []
    for number in range(20):
        store.write([requested(number, frame=[bytes(1 << 16)])])
        store.write([Cancelled(number)])
        sizes.append(store._file.db.execute("PRAGMA page_count").fetchone()[0])
    store.close()
    assert sizes[-1] == sizes[1]


def test_the_file_does_not_grow_with_what_was_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(upkeep, "KEPT_ROWS", 4)
    store = SqliteStore(path, KEY)
    tables = ("task", "ending", "piece", "setback", "hand_out", "former_process", "forgotten")
    rows, sizes = [], []
    for number in range(60):
        frame = [bytes(1 << 16)]
        store.write([requested(number, frame=frame), Joined(1, INFO), setback(number)])
        store.write([HandedOut(1, ((number, 1),)), ended(number, frame=frame), Left(1)])
        store.write([Forgotten(number, False)])
        db = store._file.db
        counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables]
        rows.append([count for (count,) in counts])
        sizes.append(db.execute("PRAGMA page_count").fetchone()[0])
    store.close()
    assert [max(column) for column in zip(*rows, strict=True)] == [0, 0, 0, 0, 3, 6, 0]
    assert max(sizes[20:]) == max(sizes[:20])


def test_hand_outs_of_what_is_left_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "KEPT_ROWS", 4)
    store = SqliteStore(path, KEY)
    store.write([requested(number) for number in range(40)])
    for number in range(0, 40, 2):
        store.write([HandedOut(1, ((number, 1), (number + 1, 1)))])
        store.write([Cancelled(number), Cancelled(number + 1)] if number % 8 else [])
        store.write([Forgotten(number, False)])
    kept = found(store)
    store.close()
    assert kept == read(path)
    assert kept.attempts == [HandedOut(1, ((n, 1), (n + 1, 1))) for n in range(0, 40, 8)]

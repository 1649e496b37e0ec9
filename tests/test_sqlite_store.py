"""The SQLite store: groups of entries, and what becomes of damaged files."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import sqlite3
from pathlib import Path

import pytest
from journals import (
    ENTRIES,
    INFO,
    KEY,
    Kept,
    ended,
    expected,
    found,
    make,
    read,
    requested,
    setback,
)

from masterslave.entries import (
    Cancelled,
    Entry,
    HandedOut,
    Joined,
    Requests,
    Results,
    Written,
)
from masterslave.errors import JournalDamaged, JournalError
from masterslave.records import TaskOptions
from masterslave.stores import frames
from masterslave.stores.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


# --- writing --------------------------------------------------------------------------------


def test_a_group_is_kept_as_a_whole_or_not_at_all(path: Path) -> None:
    make(path, [requested(0)])
    store = SqliteStore(path, KEY)
    with pytest.raises(JournalError):
        store.write([requested(1), Joined(5, INFO), requested(0), requested(2)])
    store.write([requested(3)])
    store.close()
    kept = read(path)
    assert [task.number for task in kept.tasks] == [0, 3]
    assert kept.processes == {}


def test_a_task_ends_once(path: Path) -> None:
    make(path)
    store = SqliteStore(path, KEY)
    with pytest.raises(JournalError):
        store.write([ended(0, frame=[b"another result"])])
    assert store.result(0) == ended(0).frame
    store.close()


def test_a_duration_that_is_no_number_does_not_stop_the_journal(path: Path) -> None:
    make(path, [requested(0), ended(0)._replace(duration_s=math.nan)])
    assert read(path).ends == {0: ended(0)._replace(duration_s=0.0)}


def test_what_was_written_survives_any_end_of_the_process(path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        store = SqliteStore(path, KEY)
        store.write(ENTRIES)
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.with_name("journal-wal").exists()
    assert read(path) == expected(ENTRIES)


def test_a_finished_task_may_be_forgotten_to_run_again(path: Path) -> None:
    make(path, [*ENTRIES, setback(0), ended(1)])
    store = SqliteStore(path, KEY)
    store.forget_ending(0)
    kept = found(store)
    assert list(kept.ends) == [1]
    assert kept.attempts == [HandedOut(1, ((0, 1), (1, 1))), setback(1)]
    assert store.parameters(0) == requested(0).frame
    store.write([ended(0, 2)])
    assert found(store).ends[0] == ended(0, 2)
    store.close()


# --- damage ---------------------------------------------------------------------------------


class Original:
    """A journal with everything in it: one closed in order, and one whose master was killed."""

    def __init__(self, folder: Path) -> None:
        self.entries: list[Written] = []
        noise = random.Random(1)
        store = SqliteStore(folder / "open", KEY)
        store.set_note("label", "job")
        for number in range(24):
            large = 4 if number % 5 == 0 else 1  # in pieces
            frame = [b"ascii text " * 150 * large, noise.randbytes(30 * large)]
            tiny = [noise.randbytes(40) for _ in range(20)]
            ends = [(100 * number + 100 + i, 1, 0.5, data) for i, data in enumerate(tiny[::2])]
            group: list[Written] = [
                requested(number, frame=frame),
                Requests(100 * number + 100, "tiny", TaskOptions(), tiny),
                Results(1, 1.5e9, ends),
                Joined(number, INFO._replace(pid=number)),
                HandedOut(number, ((number, 1),)),
                setback(number, story=f"story {number}"),
                HandedOut(number, ((number, 2),)),
            ]
            if number % 2:
                group.append(ended(number, 2, frame=[b"r" * (20 if number % 3 else 4000)]))
            self.entries += group
            store.write(group)
            if number == 12:
                store.close()
                store = SqliteStore(folder / "open", KEY)
        self.open = (folder / "open").read_bytes()
        self.wal = (folder / "open-wal").read_bytes()
        store.close()
        self.closed = (folder / "open").read_bytes()
        kept = expected(self.entries)
        self.written = {repr(entry) for entry in self.all_of(kept)}

    @staticmethod
    def all_of(kept: Kept) -> list[Entry]:
        return [*kept.processes.values(), *kept.tasks, *kept.attempts, *kept.ends.values()]


def damage(data: bytes, chance: random.Random) -> bytes:
    """The bytes, damaged in one of the ways in which disks, cables and people do it."""
    broken = bytearray(data)
    at = chance.randrange(len(data))
    if chance.random() < 0.5:  # most of the structure is at the beginnings of pages
        at = min(len(data) - 1, at // 4096 * 4096 + chance.randrange(200))
    how = chance.choice(["bit", "byte", "bytes", "sector", "cut", "swap"])
    if how == "bit":
        broken[at] ^= 1 << chance.randrange(8)
    elif how == "byte":
        broken[at] = chance.randrange(256)
    elif how == "bytes":
        size = len(broken[at : at + chance.randrange(1, 600)])
        broken[at : at + size] = chance.randbytes(size)
    elif how == "sector":
        begin = at // 512 * 512
        broken[begin : begin + 512] = bytes(len(broken[begin : begin + 512]))
    elif how == "cut":
        del broken[at:]
    else:
        one, other = (chance.randrange(len(data) // 4096) * 4096 for _ in range(2))
        broken[one : one + 4096] = data[other : other + 4096]
        broken[other : other + 4096] = data[one : one + 4096]
    return bytes(broken)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "PIECE_BYTES", 3000)
        return Original(tmp_path_factory.mktemp("original"))


@pytest.mark.parametrize("part", ["closed", "open", "wal"])
def test_a_damaged_journal_gives_an_error_or_what_was_written(
    original: Original, part: str, path: Path
) -> None:
    outcomes = set()
    for seed in range(70):
        chance = random.Random(f"{part} {seed}")
        for file in path.parent.iterdir():
            file.unlink()
        path.write_bytes(original.closed if part == "closed" else original.open)
        if part != "closed":
            path.with_name("journal-wal").write_bytes(original.wal)
        place = path if part != "wal" else path.with_name("journal-wal")
        place.write_bytes(damage(place.read_bytes(), chance))
        try:
            store = SqliteStore(path, KEY)
        except JournalError as error:
            assert str(path) in str(error), seed
            outcomes.add("refused")
            continue
        try:
            read_all(store, original, outcomes)
            problems: list[str] = []
            for entry in store.readable(problems):
                if hasattr(entry, "frame"):
                    entry = entry._replace(frame=[*map(bytes, entry.frame)])
                assert repr(entry) in original.written, seed
            if "unreadable" in outcomes:
                assert problems
            outcomes.discard("unreadable")
        finally:
            store.close()
    assert outcomes >= ({"fewer"} if part == "wal" else {"refused", "all"})


def read_all(store: SqliteStore, original: Original, outcomes: set[str]) -> None:
    try:
        label = store.note("label")
        kept = found(store)
    except JournalDamaged as error:
        assert "is damaged: " in str(error)
        outcomes.add("unreadable")
        return
    assert label == "job"
    got = {repr(entry) for entry in original.all_of(kept)}
    assert got <= original.written
    outcomes.add("all" if got == original.written else "fewer")


def test_every_value_is_signed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes a value of any row, the database being sound, is found out."""
    monkeypatch.setattr(frames, "PIECE_BYTES", 100)
    entries: list[Written] = [
        *ENTRIES,
        requested(2, frame=[b"a" * 150, b"b" * 150]),
        ended(2),
        ended(1),
    ]
    entries += [
        Requests(3, "tiny", TaskOptions(), [b"x", b"y", b"z"]),
        Results(1, 1.5, [(3, 1, 0.5, b"r")]),
    ]
    entries.append(Cancelled(5))
    make(path, entries)
    whole = path.read_bytes()
    written = {repr(entry) for entry in Original.all_of(expected(entries))}
    keys = {
        "note": "name", "task": "number", "process": "id", "hand_out": "seq", "setback": "seq",
        "ending": "number", "piece": "number", "page": "seq", "struck": "seq",
    }  # fmt: skip
    tried = set()
    for table, key in keys.items():
        with contextlib.closing(sqlite3.connect(path)) as db:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        for column, value in itertools.product(columns, ("x", b"y", -7, 12345678, 2.5, None)):
            path.write_bytes(whole)
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA synchronous = OFF")
                if (table, column, value) == ("task", "parameters", None):
                    continue  # is so already: it is in pieces
                where = f"WHERE {key} = (SELECT max({key}) FROM {table})"
                try:
                    assert db.execute(f"UPDATE {table} SET {column} = ? {where}", (value,)).rowcount
                    db.commit()
                except sqlite3.IntegrityError:
                    continue  # the table itself does not take such a value
            tried.add((table, column))
            with contextlib.suppress(JournalError):
                got = {repr(entry) for entry in Original.all_of(read(path))}
                assert got <= written, (table, column, value)
                # Its order among the pieces is all that counts of a piece's numbers.
                assert got < written or table in ("note", "piece"), (table, column, value)
    assert len(tried) > 38

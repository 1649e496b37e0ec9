"""Entries as a task manager writes them, and what a store must make of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st

from masterslave.entries import (
    Cancelled,
    Ended,
    Entry,
    Forgotten,
    HandedOut,
    Joined,
    Left,
    Requested,
    Requests,
    Results,
    Setback,
    Written,
    identity,
    singly,
)
from masterslave.errors import JournalError
from masterslave.records import AT_REST, Frame, Outcome, ProcessInfo, TaskOptions
from masterslave.stores.base import Store
from masterslave.stores.memory import MemoryStore
from masterslave.stores.sqlite import SqliteStore

KEY = bytes(range(32))
INFO = ProcessInfo("PID 7 on node1 (x86_64)", 7, "node1", 2, "token")


def requested(number: int, tag: str = "sqrt", frame: Frame | None = None) -> Requested:
    if frame is None:
        frame = [b"parameters of %d" % number]
    return Requested(number, tag, identity(tag, frame, None), TaskOptions(), frame)


def ended(number: int, attempt: int = 1, frame: Frame | None = None, story: str = "") -> Ended:
    if frame is None:
        frame = [b"result of %d" % number]
    return Ended(number, attempt, 1, Outcome.RESULT.value, 0.25, story, frame, 1.5e9)


def setback(number: int, attempt: int = 1, story: str = "died") -> Setback:
    return Setback(number, attempt, 1, Outcome.CRASHED.value, story, 1.5e9)


class TryingStore(MemoryStore):
    """A store that blocks while its gate is shut, and raises what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.errors: list[BaseException] = []  # of the next writes
        self.groups: list[list[Entry]] = []
        self.written: list[Written] = []  # the same, as they were given
        self.busy = 0
        self.most_at_once = 0
        self.closed = False

    def write(self, entries: Sequence[Written]) -> None:
        self.busy += 1
        self.most_at_once = max(self.most_at_once, self.busy)
        try:
            assert self.gate.wait(60)
            if self.errors:
                raise self.errors.pop()
            super().write(entries)
            self.groups.append(list(singly(entries)))
            self.written += entries
        finally:
            self.busy -= 1

    def close(self) -> None:
        self.closed = True


# --- what a store must give back ------------------------------------------------------------


class Kept(NamedTuple):
    """What is in a store, in a form that does not depend on how it is ordered there."""

    processes: dict[int, Joined]
    tasks: list[Requested]  # with their frames
    attempts: list[HandedOut | Setback]
    ends: dict[int, Ended]  # with their frames
    failures: frozenset[int] = frozenset()  # of these, the tasks that are only kept to be looked at
    highest: int = -1  # number of a task that was forgotten


def expected(entries: Sequence[Written]) -> Kept:
    """What a store must give back that was given these."""
    kept = Kept({}, [], [], {})
    for entry in singly(entries):
        if isinstance(entry, Joined):
            kept.processes[entry.process] = entry
        elif isinstance(entry, Left):
            kept.processes.pop(entry.process, None)
        elif isinstance(entry, Requested):
            kept.tasks.append(_plain(entry))
        elif isinstance(entry, (HandedOut, Setback)):
            kept.attempts.append(_plain(entry))
        elif isinstance(entry, Ended):
            kept.ends[entry.number] = _plain(entry)
        elif isinstance(entry, Cancelled):
            kept.tasks[:] = [t for t in kept.tasks if t.number != entry.number]
            kept.attempts[:] = [a for a in kept.attempts if not _is_setback_of(a, entry.number)]
        elif isinstance(entry, Forgotten):
            kept = kept._replace(highest=max(kept.highest, entry.number))
            if entry.failed:
                kept = kept._replace(failures=kept.failures | {entry.number})
                continue
            kept.tasks[:] = [t for t in kept.tasks if t.number != entry.number]
            kept.attempts[:] = [a for a in kept.attempts if not _is_setback_of(a, entry.number)]
            kept.ends.pop(entry.number, None)
    kept.attempts[:] = [a for a in kept.attempts if not _is_idle(kept, a)]
    kept.tasks.sort(key=lambda task: task.number)
    return kept


def _is_idle(kept: Kept, attempt: HandedOut | Setback) -> bool:
    """Whether it is a hand-out of which no task is left: a store may keep it for a while."""
    live = {task.number for task in kept.tasks} - kept.failures
    return isinstance(attempt, HandedOut) and live.isdisjoint(one for one, _ in attempt.tasks)


def found(store: Store) -> Kept:
    """What a store gives back, frames by number; checks the order in which it does."""
    kept = Kept({}, [], [], {})
    stage = 0
    for entry in list(store.entries()):
        now = {Forgotten: 0, Joined: 1, Requested: 2, HandedOut: 3, Setback: 3, Ended: 4}[
            type(entry)
        ]
        assert now >= stage, "forgotten numbers, processes, tasks, attempts, ends"
        stage = now
        if isinstance(entry, Forgotten):
            kept = kept._replace(highest=max(kept.highest, entry.number))
            if entry.failed:
                kept = kept._replace(failures=kept.failures | {entry.number})
        elif isinstance(entry, Joined):
            assert entry.process not in kept.processes
            kept.processes[entry.process] = entry
        elif isinstance(entry, Requested):
            assert entry.frame is AT_REST
            frame = [*map(bytes, store.parameters(entry.number))]
            kept.tasks.append(_plain(entry)._replace(frame=frame))
        elif isinstance(entry, (HandedOut, Setback)):
            kept.attempts.append(_plain(entry))
        elif isinstance(entry, Ended):
            assert entry.frame is AT_REST
            assert entry.number not in kept.ends
            frame = [*map(bytes, store.result(entry.number))]
            kept.ends[entry.number] = _plain(entry)._replace(frame=frame)
    kept.attempts[:] = [a for a in kept.attempts if not _is_idle(kept, a)]
    kept.tasks.sort(key=lambda task: task.number)
    return kept


def _plain(entry: Any) -> Any:
    """An entry as it may come back: half characters, which no file takes, are written out."""
    fields = {
        name: value.encode("utf-8", "backslashreplace").decode()
        for name, value in entry._asdict().items()
        if name in ("tag", "story")
    }
    return entry._replace(**fields)


def _is_setback_of(entry: Entry, number: int) -> bool:
    return isinstance(entry, Setback) and entry.number == number


# --- random histories -----------------------------------------------------------------------

texts = st.text(max_size=8) | st.sampled_from(
    ["", "\0", "a\0b", "\ud800", "\udcff.txt", "\U0001f600", "'; --", "\r\n", "\\ud800"]
)
frames = st.lists(st.binary(max_size=12), max_size=3)
floats = st.floats(allow_nan=False)
options = st.builds(
    TaskOptions,
    priority=st.integers(),
    timeout=st.none() | st.integers(1, 9) | st.floats(0.001, 1e9),
    retries=st.integers(0, 1 << 70),
    crash_limit=st.integers(1, 9),
    key=st.none() | texts,
    backoff=st.floats(0.0, 1e9),
)
lefts = st.none() | st.floats(0.0, 1e9)
infos = st.builds(
    ProcessInfo, texts, st.integers(), texts, st.integers(0, 999), texts, left_s=lefts
)


@st.composite
def endings(draw: st.DrawFn, number: int, process: int) -> list[Written]:
    """A task ends, and may be forgotten."""
    outcome = draw(st.sampled_from(Outcome)).value
    end = Ended(
        number, 1, process, outcome, draw(floats), draw(texts), draw(frames), draw(floats)
    )  # fmt: skip
    return [end, *[Forgotten(number, outcome != Outcome.RESULT)] * draw(st.booleans())]


@st.composite
def grouped(draw: st.DrawFn, entries: list[Written]) -> list[list[Written]]:
    """These entries, cut anywhere."""
    groups: list[list[Written]] = [[]]
    for entry in entries:
        groups[-1].append(entry)
        if draw(st.booleans()):
            groups.append([])
    return groups


@st.composite
def histories(draw: st.DrawFn, max_size: int = 12) -> list[list[Written]]:
    """Groups of entries, in an order that a task manager may write them in."""
    entries: list[Written] = []
    live: list[int] = []
    joined: list[int] = []
    number = draw(st.sampled_from([0, 1, 1 << 40]))
    process = draw(st.sampled_from([0, 1, 1 << 40]))
    for _ in range(draw(st.integers(0, max_size))):
        kinds = ["request", "request many", "join"]
        kinds += ["hand out", "setback", "end", "end many", "cancel", "forget"] * bool(live)
        kind = draw(st.sampled_from(kinds + ["leave", "join again"] * bool(joined)))
        if kind == "request":
            tag, frame, chosen = draw(texts), draw(frames), draw(options)
            entries.append(Requested(number, tag, identity(tag, frame, chosen.key), chosen, frame))
            live.append(number)
            number += draw(st.integers(1, 2))
        elif kind == "request many":
            many = draw(st.lists(st.binary(max_size=12), min_size=1, max_size=4))
            entries.append(Requests(number, draw(texts), draw(options), many))
            live += range(number, number + len(many))
            number += len(many) + draw(st.integers(0, 1))
        elif kind == "end many":
            some = draw(st.lists(st.sampled_from(live), unique=True, min_size=1, max_size=3))
            ends = [(one, 1, draw(floats), draw(st.binary(max_size=12))) for one in some]
            entries.append(Results(process, draw(floats), ends))
            live = [one for one in live if one not in some]
            for one in some:
                if draw(st.booleans()):
                    entries.append(Forgotten(one, False))
        elif kind == "join":
            entries.append(Joined(process, draw(infos)))
            joined.append(process)
            process += draw(st.integers(1, 2))
        elif kind == "join again":
            entries.append(Joined(draw(st.sampled_from(joined)), draw(infos)))
        elif kind == "leave":
            entries.append(Left(joined.pop(draw(st.integers(0, len(joined) - 1)))))
        elif kind == "hand out":
            chosen_ones = draw(st.lists(st.sampled_from(live), max_size=3))
            pairs = tuple((one, draw(st.integers(1, 99))) for one in chosen_ones)
            entries.append(HandedOut(process, pairs))
        else:
            one = draw(st.sampled_from(live))
            if kind == "setback":
                outcome = draw(st.sampled_from(Outcome)).value
                entries.append(Setback(one, 1, process, outcome, draw(texts), draw(floats)))
                continue
            live.remove(one)
            if kind in ("cancel", "forget"):
                entries.append(Cancelled(one) if kind == "cancel" else Forgotten(one, False))
            else:
                entries += draw(endings(one, process))
    return draw(grouped(entries))


# --- journals in files ----------------------------------------------------------------------

ENTRIES: list[Entry] = [
    Joined(1, INFO),
    requested(0),
    requested(1),
    HandedOut(1, ((0, 1), (1, 1))),
    setback(1),
    ended(0),
]


def make(path: Path, entries: Sequence[Written] = ENTRIES, key: bytes = KEY) -> None:
    store = SqliteStore(path, key)
    store.write(entries)
    store.close()


def read(path: Path) -> Kept:
    store = SqliteStore(path, KEY)
    try:
        return found(store)
    finally:
        store.close()


def refused(path: Path, match: str, key: bytes = KEY) -> JournalError:
    """Opening it fails, in one line that names it, and changes nothing."""
    before = files(path.parent)
    with pytest.raises(JournalError, match=match) as caught:
        SqliteStore(path, key)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(path.parent) == before
    return caught.value


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}

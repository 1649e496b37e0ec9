"""Entries of a journal as rows of its tables, and back.

What writes a table stands beside what reads and verifies it, so a change of a table is a change of
one module. Tiny tasks and their results share rows: those are in `pages`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgpack

from masterslave.entries import (
    Cancelled,
    Dropped,
    Ended,
    Entry,
    Forgotten,
    HandedOut,
    Joined,
    Left,
    Requested,
    Setback,
    Stored,
)
from masterslave.records import AT_REST, Frame, ProcessInfo, TaskOptions
from masterslave.stores.frames import as_value, in_pieces, is_frame
from masterslave.stores.journalfile import JournalFile, Row
from masterslave.stores.pages import options_of, plain

log = logging.getLogger(__name__)

#: The statements that remove all of a task.
REMOVE_TASK = ("remove_task", "remove_ending", "remove_setbacks", "remove_all_pieces")

#: What a group of entries comes to: statements by name, each with the values that it is run for.
Statements = dict[str, list[Row]]


class Rows:
    """The rows of one file: made to be written, and parsed."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self._mac = file.mac
        self._verify = file.verify
        self._verified = file.verified

    # --- entries to rows --------------------------------------------------------------------

    def _add_task(self, rows: Statements, seq: int, entry: Requested) -> None:
        tag, options = plain(entry.tag), options_text(entry.options)
        values = (entry.number, seq, tag, entry.identity, options)
        blob = as_value(entry.frame)
        if blob is None:
            _cut(rows, entry.number, "parameters", entry.frame)
        mac = self._mac(("task", *values), entry.frame)
        rows.setdefault("add_task", []).append((*values, blob, mac))

    def _add_process(self, rows: Statements, seq: int, entry: Joined) -> None:
        values = (entry.process, seq, json.dumps(entry.info._asdict()))
        rows.setdefault("add_process", []).append((*values, self._mac(("process", *values))))

    def _remove_process(self, rows: Statements, seq: int, entry: Left) -> None:
        rows.setdefault("remove_process", []).append((entry.process,))

    def _add_hand_out(self, rows: Statements, seq: int, entry: HandedOut) -> None:
        values = (seq, entry.process, json.dumps(entry.tasks, separators=(",", ":")))
        rows.setdefault("add_hand_out", []).append((*values, self._mac(("hand_out", *values))))

    def _add_setback(self, rows: Statements, seq: int, entry: Setback) -> None:
        story = plain(entry.story)
        values = (
            seq, entry.number, entry.attempt, entry.process, entry.outcome, story,
            _seconds(entry.at),
        )  # fmt: skip
        rows.setdefault("add_setback", []).append((*values, self._mac(("setback", *values))))

    def _add_ending(self, rows: Statements, seq: int, entry: Ended) -> None:
        story = plain(entry.story)
        values = (
            entry.number, seq, entry.attempt, entry.process, entry.outcome,
            _seconds(entry.duration_s), story, _seconds(entry.at),
        )  # fmt: skip
        blob = as_value(entry.frame)
        if blob is None:
            _cut(rows, entry.number, "result", entry.frame)
        mac = self._mac(("ending", *values), entry.frame)
        rows.setdefault("add_ending", []).append((*values, blob, mac))

    def _remove_task(self, rows: Statements, seq: int, entry: Cancelled) -> None:
        rows.setdefault("remove_task", []).append((entry.number,))
        rows.setdefault("remove_setbacks", []).append((entry.number,))
        rows.setdefault("remove_pieces", []).append((entry.number, "parameters"))

    def _forget(self, rows: Statements, seq: int, entry: Forgotten) -> None:
        if entry.failed:
            values = (entry.number, seq)
            mac = self._mac(("forgotten", *values))
            rows.setdefault("add_forgotten", []).append((*values, mac))
        else:
            for name in REMOVE_TASK:
                rows.setdefault(name, []).append((entry.number,))

    def _add_item(self, rows: Statements, seq: int, entry: Stored) -> None:
        name, kind, frame = plain(entry.name), "frame", entry.value
        if not is_frame(frame):
            try:
                kind, frame = "value", [msgpack.packb(entry.value, unicode_errors="surrogatepass")]
            except (TypeError, ValueError, OverflowError) as error:  # stored from within a master
                log.warning("data item %s is not in the journal: %s", name, error)
                return
        blob = as_value(frame)
        if blob is None:
            _cut(rows, seq, "item", frame)
        mac = self._mac(("item", seq, name, kind), frame)
        rows.setdefault("add_item", []).append((seq, name, kind, blob, mac))
        self._remove_item(rows, seq, Dropped(name))

    def _remove_item(self, rows: Statements, seq: int, entry: Dropped) -> None:
        for query in ("remove_item_pieces", "remove_item"):
            rows.setdefault(query, []).append((plain(entry.name), seq))

    # --- rows to entries --------------------------------------------------------------------

    def parse_task(self, row: Row, frames: bool) -> tuple[int, Entry]:
        """A verified request with its `seq`. Raises `JournalDamaged`."""
        number, seq, tag, identity, options, blob, mac = row
        frame = self._verified("task", row[:5], "parameters", blob, mac)
        entry = Requested(number, tag, identity, options_of(options), frame if frames else AT_REST)
        return seq, entry

    def _parse_process(self, row: Row, frames: bool) -> tuple[int, Entry]:
        self._verify("process", row)
        known = {k: v for k, v in json.loads(row[2]).items() if k in ProcessInfo._fields}
        return row[1], Joined(row[0], ProcessInfo(**known))

    def _parse_hand_out(self, row: Row, frames: bool) -> tuple[int, Entry]:
        self._verify("hand_out", row)
        return row[0], HandedOut(row[1], tuple((n, a) for n, a in json.loads(row[2])))

    def _parse_former_process(self, row: Row, frames: bool) -> tuple[int, Entry]:
        seq, process, info, mac = row
        return self._parse_process((process, seq, info, mac), frames)

    def parse_item(self, row: Row, frames: bool = True) -> tuple[int, Stored]:
        """A verified data item with its `seq`. Raises `JournalDamaged`."""
        number, name, kind, blob, mac = row
        frame = self._verified("item", row[:3], "item", blob, mac)
        value: Any = frame
        if kind == "value":
            value = msgpack.unpackb(frame[0], unicode_errors="surrogatepass", strict_map_key=False)
        return number, Stored(name, value)

    def _parse_setback(self, row: Row, frames: bool) -> tuple[int, Entry]:
        self._verify("setback", row)
        return row[0], Setback(*row[1:-1])

    def _parse_forgotten(self, row: Row, frames: bool) -> tuple[int, Entry]:
        self._verify("forgotten", row)
        return row[1], Forgotten(row[0], True)

    def _parse_ending(self, row: Row, frames: bool) -> tuple[int, Entry]:
        number, seq, attempt, process, outcome, duration_s, story, at, blob, mac = row
        frame = self._verified("ending", row[:8], "result", blob, mac)
        kept = frame if frames else AT_REST
        return seq, Ended(number, attempt, process, outcome, duration_s, story, kept, at)


def _cut(rows: Statements, number: int, kind: str, frame: Frame) -> None:
    """Have a frame that is too large for one value kept in pieces."""
    pieces = rows.setdefault("add_piece", [])
    pieces += [(number, kind, *piece) for piece in in_pieces(frame)]


def _seconds(number: float) -> float:
    """The number as SQLite gives it back: it has no whole, negative or undefined zeros."""
    value = float(number)
    return 0.0 if value == 0 or math.isnan(value) else value


@lru_cache(256)
def options_text(options: TaskOptions) -> str:
    """Options as `pages.options_of` reads them."""
    fields = options._asdict()
    if options.origin is None:
        del fields["origin"]  # of use to attached clients only
    return json.dumps(fields)


WRITERS: dict[type, Callable[[Rows, Statements, int, Any], None]] = {
    Requested: Rows._add_task,
    Joined: Rows._add_process,
    Left: Rows._remove_process,
    HandedOut: Rows._add_hand_out,
    Setback: Rows._add_setback,
    Ended: Rows._add_ending,
    Cancelled: Rows._remove_task,
    Forgotten: Rows._forget,
    Stored: Rows._add_item,
    Dropped: Rows._remove_item,
}

READERS: dict[str, tuple[str, Callable[[Rows, Row, bool], tuple[int, Entry]]]] = {
    "task": ("tasks", Rows.parse_task),
    "process": ("processes", Rows._parse_process),
    "hand_out": ("hand_outs", Rows._parse_hand_out),
    "setback": ("setbacks", Rows._parse_setback),
    "ending": ("endings", Rows._parse_ending),
    "forgotten": ("forgotten", Rows._parse_forgotten),
    "former_process": ("former_processes", Rows._parse_former_process),
    "item": ("items", Rows.parse_item),
}

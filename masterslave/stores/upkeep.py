"""Keeps a journal's file from growing for ever: what is of no use any more goes, bit by bit.

It is called within the transaction of a group of entries. What makes it look at all that there is
it does when that is twice as much as the last look has left, so the cost per entry is bounded.
"""

from __future__ import annotations

import json

from masterslave.stores.base import KEPT_FAILURE_BYTES, KEPT_FAILURES, KEPT_ROWS
from masterslave.stores.journalfile import JournalFile, Row
from masterslave.stores.paged import Pages
from masterslave.stores.pages import TASK
from masterslave.stores.rows import REMOVE_TASK, Statements
from masterslave.stores.statements import queries

#: The note that keeps the largest number of a task that was forgotten: none is given twice.
HIGHEST = "highest"


class Upkeep:
    """What one file holds that may be superfluous."""

    def __init__(self, file: JournalFile, pages: Pages) -> None:
        self._file = file
        self._pages = pages
        self._hand_outs: int | None = None  # rows, or a few more; None: not counted yet
        self._tidy_at = KEPT_ROWS  # hand-outs at which superfluous ones are looked for
        self._moves = KEPT_ROWS  # of slaves that came or left since those that left were bounded
        self._failure_bytes: int | None = None  # at most so many; None: not looked at yet

    def after(self, rows: Statements, forgotten: list[int], end: int) -> None:
        """These rows were just written, the last one with the `seq` `end`.

        `forgotten`: the numbers of tasks that were among them for the last time.
        """
        if "add_forgotten" in rows:
            self._remove_oldest_failures(rows["add_forgotten"][0][1], end)
        moves = len(rows.get("add_process", ())) + len(rows.get("remove_process", ()))
        if moves:
            self._bound_former_processes(moves)
        if self._hand_outs is not None:
            self._hand_outs += len(rows.get("add_hand_out", ()))
        if forgotten:
            self._note_highest(max(forgotten + self._tidy()))

    def _remove_oldest_failures(self, since: int, seq: int) -> None:
        """Bound the failures that are kept though they are forgotten.

        `since`: the `seq` of the first that is new.
        """
        old = self._file.db.execute(queries()["too_old"], (KEPT_FAILURES,)).fetchall()
        if self._failure_bytes is not None:
            new = self._file.db.execute(queries()["failure_sizes"], (since,))
            self._failure_bytes += sum(size for _, size in new)
        if self._failure_bytes is None or self._failure_bytes > KEPT_FAILURE_BYTES:
            old = sorted({*old, *self._too_large()})
        for name in (*REMOVE_TASK, "remove_forgotten") if old else ():
            self._file.db.executemany(queries()[name], old)
        self._pages.strike(old, seq)

    def _too_large(self) -> list[tuple[int]]:
        """Failures beside which there are too many bytes of newer ones."""
        kept_bytes, old = 0, []
        for index, (number, size) in enumerate(
            self._file.db.execute(queries()["failure_sizes"], (0,))
        ):
            if index and kept_bytes + size > KEPT_FAILURE_BYTES:
                old.append((number,))
            else:
                kept_bytes += size
        self._failure_bytes = kept_bytes
        return old

    def _bound_former_processes(self, moves: int) -> None:
        """So many slaves came or left: of those that left, the newest stay."""
        self._moves += moves
        if self._moves >= KEPT_ROWS:
            self._file.db.execute(queries()["remove_former_processes"], (KEPT_ROWS,))
            self._moves = 0

    def _tidy(self) -> list[int]:
        """Remove hand-outs of which no task is left; gives their tasks.

        All are looked at when there are twice as many as the last look has left. So the cost per
        hand-out is bounded, and so is their number by that of the tasks that are left.
        """
        if self._hand_outs is None:
            self._hand_outs = self._file.db.execute(queries()["count_hand_outs"]).fetchone()[0]
        if self._hand_outs < self._tidy_at:
            return []
        live = {number for (number,) in self._file.db.execute(queries()["live"])}
        places = self._pages.places_of(TASK)
        struck = self._pages.all_struck() if places else {}

        def paged(number: int) -> bool:
            """Whether a page may have that task; those struck out it has not."""
            within = any(place.first <= number <= place.last for place in places)
            return within and (TASK, number) not in struck

        idle: list[Row] = []
        gone: list[int] = []
        for seq, text in self._file.db.execute(queries()["hand_out_tasks"]):
            try:
                numbers = [int(number) for number, _ in json.loads(text)]
            except (TypeError, ValueError):  # damaged: whoever reads it is to see that
                continue
            if live.isdisjoint(numbers) and not any(map(paged, numbers)):
                idle.append((seq,))
                gone += numbers
        self._file.db.executemany(queries()["remove_hand_out"], idle)
        self._hand_outs -= len(idle)
        self._tidy_at = max(KEPT_ROWS, 2 * self._hand_outs)
        return gone

    def _note_highest(self, number: int) -> None:
        """A number of a forgotten task is not given to another one."""
        text = self._file.note(HIGHEST)
        if not text or int(text) < number:
            self._file.set_note(HIGHEST, str(number))

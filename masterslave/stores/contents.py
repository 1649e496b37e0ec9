"""What a journal's file holds, read as entries: each row, and what is in pages."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

from masterslave.entries import Entry, Forgotten
from masterslave.errors import DataNotFound, JournalError
from masterslave.records import Frame
from masterslave.stores.journalfile import JournalFile, Row
from masterslave.stores.paged import Pages
from masterslave.stores.pages import ENDING, TASK, plain
from masterslave.stores.rows import READERS, Rows
from masterslave.stores.upkeep import HIGHEST


class Contents:
    """A journal that is read. Used by one thread at a time, whichever that is."""

    def __init__(self, file: JournalFile) -> None:
        self.path = file.path
        self._file = file
        self._rows = Rows(file)
        self._pages = Pages(file)

    def entries(self) -> Iterator[Entry]:
        """See `Store.entries`."""
        if highest := self.note(HIGHEST):
            yield Forgotten(int(highest), False)
        yield from (entry for _, entry in self.numbered("forgotten"))
        for table in ("process", "task"):
            yield from (entry for _, entry in self.numbered(table))
        attempts = heapq.merge(
            self.numbered("hand_out"), self.numbered("setback"), key=lambda pair: pair[0]
        )
        yield from (entry for _, entry in attempts)
        yield from (entry for _, entry in self.numbered("ending"))  # nothing follows an end

    def readable(self, problems: list[str]) -> Iterator[Entry]:
        """As `entries`, with frames, passing over what cannot be read; tells of it in `problems`.

        Tasks first, then what happened to them.
        """
        for table in ("process", "task", "hand_out", "setback", "ending"):
            for _, entry in self.numbered(table, problems, frames=True):
                yield entry

    def numbered(
        self, table: str, problems: list[str] | None = None, *, frames: bool = False
    ) -> Iterator[tuple[int, Entry]]:
        """All entries of a table with their `seq`; without `problems`, the first one is raised."""
        query, parse = READERS[table]
        rows = self._parsed(table, query, parse, problems, frames=frames)
        if table not in (TASK, ENDING):
            return rows
        paged = self._pages.paged(table, problems, frames=frames)
        return heapq.merge(rows, paged, key=_number_of)

    def _parsed(
        self,
        table: str,
        query: str,
        parse: Callable[[Rows, Row, bool], tuple[int, Entry]],
        problems: list[str] | None,
        *,
        frames: bool,
    ) -> Iterator[tuple[int, Entry]]:
        for row in self._file.rows(table, query, problems):
            try:
                item = parse(self._rows, row, frames)
            except JournalError as error:
                if problems is None:
                    raise
                problems.append(str(error))
                continue
            yield item

    def parameters(self, number: int) -> Frame:
        """See `Store.parameters`."""
        page = self._pages.page_with(TASK, number)
        if page is not None:
            return page.frame(number)
        row = self._file.there("task", number)
        return self._file.verified("task", row[:5], "parameters", row[5], row[6])

    def result(self, number: int) -> Frame:
        """See `Store.result`."""
        page = self._pages.page_with(ENDING, number)
        if page is not None:
            return page.frame(number)
        row = self._file.there("ending", number)
        return self._file.verified("ending", row[:8], "result", row[8], row[9])

    def item(self, name: str) -> Any:
        """See `Store.item`."""
        row = self._file.one("item", (plain(name),))
        if row is None:
            raise DataNotFound(f"journal {self.path} has no data item {name!r}")
        return self._rows.parse_item(row)[1].value

    def note(self, name: str) -> str:
        """See `Store.note`."""
        return self._file.note(name)

    def close(self) -> None:
        """See `Store.close`."""
        self._file.close()


def _number_of(pair: tuple[int, Entry]) -> int:
    """The number of the task that an entry with its `seq` is about."""
    number: int = getattr(pair[1], "number", -1)
    return number

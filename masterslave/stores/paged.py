"""Pages in a journal's file: found, read, struck out and removed. What is in one: `pages`."""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from masterslave.entries import Ended, Entry, Requested
from masterslave.errors import JournalDamaged, JournalError
from masterslave.stores.base import KEPT_ROWS
from masterslave.stores.pages import ENDING, TASK, Page, Place, Struck, by_number, options_of
from masterslave.stores.statements import queries

#: Pages that are kept when they were read. Larger: memory, some hundred KB each. Smaller: one is
#: read again for each result that comes back from the journal, where they come in another order.
_PAGES_AT_HAND = 8

_Row = tuple[Any, ...]


class PagedFile:
    """The part of a `SqliteStore` that is about pages."""

    _db: sqlite3.Connection

    def __init__(self) -> None:
        self._struck: int | None = None  # rows, or a few more; None: not counted yet
        self._clear_at = KEPT_ROWS  # of them, at which pages are looked through
        self._read_pages: dict[int, Page] = {}  # by seq, used last comes last

    # What the rest of the store has for this.

    def _one(self, query: str, values: _Row) -> _Row | Any:
        raise NotImplementedError

    def _there(self, query: str, number: int) -> _Row:
        raise NotImplementedError

    def _rows(self, table: str, query: str, problems: list[str] | None) -> Iterator[_Row]:
        raise NotImplementedError

    def _verify(self, table: str, row: _Row) -> None:
        raise NotImplementedError

    def _mac(self, values: _Row) -> bytes:
        raise NotImplementedError

    def _translated(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def _damaged(self, problem: str) -> JournalDamaged:
        raise NotImplementedError

    # --- pages ------------------------------------------------------------------------------

    def _strike(
        self, numbers: Sequence[_Row], seq: int, kinds: Sequence[str] = (TASK, ENDING)
    ) -> None:
        """(In a transaction.) Entries of these tasks count no more, up to that `seq`."""
        if not numbers or not self._db.execute(queries()["has_pages"]).fetchone()[0]:
            return
        rows = []
        for kind in kinds:
            for (number,) in numbers:
                values = (kind, number, seq)
                rows.append((*values, self._mac(("struck", *values))))
        self._db.executemany(queries()["strike"], rows)
        if self._struck is None:
            self._struck = self._db.execute(queries()["count_struck"]).fetchone()[0]
        self._struck += len(rows)
        if self._struck >= self._clear_at:
            self._clear_pages()

    def _clear_pages(self) -> None:
        """(In a transaction.) Remove pages of which all is struck out, and what struck it out.

        All are looked at when there is twice as much as the last look has left, as in `_tidy`.
        """
        struck = self._all_struck()
        needed: set[tuple[str, int]] = set()
        for place in [*self._places_of(TASK), *self._places_of(ENDING)]:
            page = self._page(place.seq)
            entries = zip(page.numbers, page.seqs, strict=True)
            dead = [n for n, seq in entries if struck.get((place.kind, n), -1) >= seq]
            if len(dead) == len(page.numbers):
                self._db.execute(queries()["remove_page"], (place.seq,))
                self._read_pages.pop(place.seq, None)
            else:
                needed.update((place.kind, number) for number in dead)
        idle = [key for key in struck if key not in needed]
        self._db.executemany(queries()["remove_struck"], idle)
        self._struck = len(needed)
        self._clear_at = max(KEPT_ROWS, 2 * self._struck)

    def _all_struck(self) -> dict[tuple[str, int], int]:
        """Kind and number of all that is struck out, and up to which `seq`."""
        found = {}
        with self._translated():
            for row in self._db.execute(queries()["struck"], (-1 << 63,)):
                self._verify("struck", row)
                one = Struck(*row[:3])
                found[one.kind, one.number] = one.seq
        return found

    def _is_struck(self, kind: str, number: int, seq: int) -> bool:
        row = self._one("struck_one", (kind, number))
        if row is None:
            return False
        if not same(row[1], self._mac(("struck", kind, number, row[0]))):
            raise self._damaged(f"struck {number} is not what was written")
        return bool(row[0] >= seq)

    def _places_of(self, kind: str, problems: list[str] | None = None) -> list[Place]:
        """Where the pages of a kind are, in the order of the smallest numbers in them."""
        places = []
        for row in self._rows("page", "pages", problems):
            place = Place(*row)
            if place.kind == kind:
                places.append(place)
            elif place.kind not in (TASK, ENDING):
                text = f"page {place.seq} is not what was written"
                if problems is None:
                    raise self._damaged(text)
                problems.append(str(self._damaged(text)))
        # What is not a number there is damage, and is found when the page is read.
        return sorted(places, key=lambda one: (isinstance(one.first, int) and one.first, one.seq))

    def _page(self, seq: int) -> Page:
        """The page of that key; those read last are at hand."""
        page = self._read_pages.pop(seq, None)
        if page is None:
            row = self._there("page", seq)
            self._verify("page", row)
            page = Page(Place(*row[:4]), row[4], options_of)
            while len(self._read_pages) >= _PAGES_AT_HAND:
                del self._read_pages[next(iter(self._read_pages))]
        self._read_pages[seq] = page
        return page

    def _page_with(self, kind: str, number: int) -> Page | None:
        """The newest page that has that entry, if it counts."""
        with self._translated():
            found = self._db.execute(queries()["pages_with"], (kind, number)).fetchall()
        damaged: int | None = None
        for (seq,) in found:
            try:
                page = self._page(seq)
            except JournalError:  # another one may have it
                damaged = seq
                continue
            if number in page:
                return None if self._is_struck(kind, number, page.seq_of(number)) else page
        if damaged is not None and self._one(kind, (number,)) is None:
            self._page(damaged)  # raises
        return None

    def _paged(
        self, kind: str, problems: list[str] | None, *, frames: bool
    ) -> Iterator[tuple[int, Entry]]:
        """The entries of that kind that are in pages and count, by number."""
        places = self._places_of(kind, problems)
        if not places:
            return
        try:
            struck = self._all_struck()
        except JournalError as error:
            if problems is None:
                raise
            problems.append(str(error))
            struck = {}

        def pages() -> Iterator[tuple[int, Iterator[tuple[int, Requested | Ended]]]]:
            for place in places:
                try:
                    page = self._page(place.seq)
                except JournalError as error:
                    if problems is None:
                        raise
                    problems.append(str(error))
                    continue
                yield place.first, page.entries(frames=frames)

        for seq, entry in by_number(pages()):
            if struck.get((kind, entry.number), -1) < seq:
                yield seq, entry


def same(kept: Any, right: bytes) -> bool:
    """Whether a signature is the right one."""
    return isinstance(kept, bytes) and hmac.compare_digest(kept, right)

"""Pages in a journal's file: found, read, struck out and removed. What is in one: `pages`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from masterslave.entries import Ended, Entry, Requested
from masterslave.errors import JournalError
from masterslave.stores.base import KEPT_ROWS
from masterslave.stores.frames import same
from masterslave.stores.journalfile import JournalFile, Row
from masterslave.stores.pages import ENDING, TASK, Page, Place, Struck, by_number, options_of
from masterslave.stores.statements import queries

#: Pages that are kept when they were read. Larger: memory, some hundred KB each. Smaller: one is
#: read again for each result that comes back from the journal, where they come in another order.
_PAGES_AT_HAND = 8


class Pages:
    """The pages of one file."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self._mac = file.mac
        self._struck: int | None = None  # rows, or a few more; None: not counted yet
        self._clear_at = KEPT_ROWS  # of them, at which pages are looked through
        self._read_pages: dict[int, Page] = {}  # by seq, used last comes last

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction of the file; no page that was read in one that fails is kept at hand."""
        try:
            with self._file.transaction():
                yield
        except BaseException:
            self._read_pages.clear()  # one of them may be of this transaction
            raise

    def strike(
        self, numbers: Sequence[Row], seq: int, kinds: Sequence[str] = (TASK, ENDING)
    ) -> None:
        """(In a transaction.) Entries of these tasks count no more, up to that `seq`."""
        if not numbers or not self._file.db.execute(queries()["has_pages"]).fetchone()[0]:
            return
        rows = []
        for kind in kinds:
            for (number,) in numbers:
                values = (kind, number, seq)
                rows.append((*values, self._mac(("struck", *values))))
        self._file.db.executemany(queries()["strike"], rows)
        if self._struck is None:
            self._struck = self._file.db.execute(queries()["count_struck"]).fetchone()[0]
        self._struck += len(rows)
        if self._struck >= self._clear_at:
            self._clear_pages()

    def _clear_pages(self) -> None:
        """(In a transaction.) Remove pages of which all is struck out, and what struck it out.

        All are looked at when there is twice as much as the last look has left, as in `Upkeep`.
        """
        struck = self.all_struck()
        needed: set[tuple[str, int]] = set()
        for place in [*self.places_of(TASK), *self.places_of(ENDING)]:
            page = self._page(place.seq)
            entries = zip(page.numbers, page.seqs, strict=True)
            dead = [n for n, seq in entries if struck.get((place.kind, n), -1) >= seq]
            if len(dead) == len(page.numbers):
                self._file.db.execute(queries()["remove_page"], (place.seq,))
                self._read_pages.pop(place.seq, None)
            else:
                needed.update((place.kind, number) for number in dead)
        idle = [key for key in struck if key not in needed]
        self._file.db.executemany(queries()["remove_struck"], idle)
        self._struck = len(needed)
        self._clear_at = max(KEPT_ROWS, 2 * self._struck)

    def all_struck(self) -> dict[tuple[str, int], int]:
        """Kind and number of all that is struck out, and up to which `seq`."""
        found = {}
        with self._file.translated():
            for row in self._file.db.execute(queries()["struck"], (-1 << 63,)):
                self._file.verify("struck", row)
                one = Struck(*row[:3])
                found[one.kind, one.number] = one.seq
        return found

    def _is_struck(self, kind: str, number: int, seq: int) -> bool:
        row = self._file.one("struck_one", (kind, number))
        if row is None:
            return False
        if not same(row[1], self._mac(("struck", kind, number, row[0]))):
            raise self._file.damaged(f"struck {number} is not what was written")
        return bool(row[0] >= seq)

    def places_of(self, kind: str, problems: list[str] | None = None) -> list[Place]:
        """Where the pages of a kind are, in the order of the smallest numbers in them."""
        places = []
        for row in self._file.rows("page", "pages", problems):
            place = Place(*row)
            if place.kind == kind:
                places.append(place)
            elif place.kind not in (TASK, ENDING):
                text = f"page {place.seq} is not what was written"
                if problems is None:
                    raise self._file.damaged(text)
                problems.append(str(self._file.damaged(text)))
        # What is not a number there is damage, and is found when the page is read.
        return sorted(places, key=lambda one: (isinstance(one.first, int) and one.first, one.seq))

    def _page(self, seq: int) -> Page:
        """The page of that key; those read last are at hand."""
        page = self._read_pages.pop(seq, None)
        if page is None:
            row = self._file.there("page", seq)
            self._file.verify("page", row)
            page = Page(Place(*row[:4]), row[4], options_of)
            while len(self._read_pages) >= _PAGES_AT_HAND:
                del self._read_pages[next(iter(self._read_pages))]
        self._read_pages[seq] = page
        return page

    def page_with(self, kind: str, number: int) -> Page | None:
        """The newest page that has that entry, if it counts."""
        with self._file.translated():
            found = self._file.db.execute(queries()["pages_with"], (kind, number)).fetchall()
        damaged: int | None = None
        for (seq,) in found:
            try:
                page = self._page(seq)
            except JournalError:  # another one may have it
                damaged = seq
                continue
            if number in page:
                return None if self._is_struck(kind, number, page.seq_of(number)) else page
        if damaged is not None and self._file.one(kind, (number,)) is None:
            self._page(damaged)  # raises
        return None

    def paged(
        self, kind: str, problems: list[str] | None, *, frames: bool
    ) -> Iterator[tuple[int, Entry]]:
        """The entries of that kind that are in pages and count, by number."""
        places = self.places_of(kind, problems)
        if not places:
            return
        try:
            struck = self.all_struck()
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

"""Many small entries of a journal as one row: a page.

A row costs some microseconds to sign and to insert, as much as a tiny task costs otherwise. So tiny
requests and results that come together share a row and a signature. Pure: bytes in, entries out.

| kind   | body, msgpack                                                                        |
|--------|--------------------------------------------------------------------------------------|
| task   | [tag, options as JSON, numbers, seqs, parameters]                                      |
| ending | [numbers, seqs, processes, attempts, durations, times, results]                        |

The last ones are lists of equal length, one item for each entry; parameters and results are the
only piece of their frames. All endings of a page are results. The identity of a task is made of the
rest when it is read. What is in a page cannot be removed from it: it is struck out by a row beside
it, see `Struck`.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack

from masterslave.entries import Ended, Requested, identity
from masterslave.records import AT_REST, Frame, Outcome, TaskOptions

TASK, ENDING = "task", "ending"

#: Entries of a page. Larger: more is lost where the file is damaged, and read to look at a single
#: one. Smaller: more rows, each as dear as some tasks.
PAGE_ENTRIES = 256

_RESULT = Outcome.RESULT.value


def plain(text: str) -> str:
    """Text that SQLite takes: half characters, which file names may have, are written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Place(NamedTuple):
    """A page in the file, as far as can be told without reading it."""

    seq: int  # of its last entry, the key of its row
    kind: str
    first: int  # smallest number of a task in it
    last: int  # largest


class Struck(NamedTuple):
    """An entry of a page that counts no more: of that kind and number, up to that `seq`."""

    kind: str
    number: int
    seq: int


class Gathered:
    """The tiny entries of one group."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], tuple[list[int], list[int], list[bytes]]] = {}
        self._ends: tuple[list[Any], ...] = tuple([] for _ in range(7))

    def add_tasks(
        self, seq: int, tag: str, options: str, first: int, data: Sequence[bytes]
    ) -> None:
        """Requests with numbers from `first` on, and `seq` from that on."""
        columns = self._tasks.get((tag, options))
        if columns is None:
            columns = self._tasks[tag, options] = ([], [], [])
        count = len(data)
        if count == 1:  # requested one by one
            columns[0].append(first)
            columns[1].append(seq)
            columns[2].append(data[0])
            return
        columns[0].extend(range(first, first + count))
        columns[1].extend(range(seq, seq + count))
        columns[2].extend(data)

    def add_results(
        self, seq: int, process: int, at: float, ends: Sequence[tuple[int, int, float, bytes]]
    ) -> None:
        """Results, with `seq` from that on."""
        numbers, seqs, processes, attempts, durations, times, data = self._ends
        for number, attempt, duration_s, result in ends:
            numbers.append(number)
            attempts.append(attempt)
            durations.append(duration_s)
            data.append(result)
        seqs.extend(range(seq, seq + len(ends)))
        processes.extend([process] * len(ends))
        times.extend([at] * len(ends))

    def pages(self) -> Iterator[tuple[Place, bytes]]:
        """All of it, each page with its body."""
        for (tag, options), columns in self._tasks.items():
            for part in _parts(columns):
                yield _place(TASK, part[0], part[1]), _packed([tag, options, *part])
        for part in _parts(self._ends):
            yield _place(ENDING, part[0], part[1]), _packed(part)


def _packed(body: list[Any]) -> bytes:
    data: bytes = msgpack.packb(body, unicode_errors="surrogatepass")  # a tag may have half ones
    return data


def _parts(columns: Sequence[list[Any]]) -> Iterator[list[list[Any]]]:
    for begin in range(0, len(columns[0]), PAGE_ENTRIES):
        yield [column[begin : begin + PAGE_ENTRIES] for column in columns]


def _place(kind: str, numbers: list[int], seqs: list[int]) -> Place:
    return Place(max(seqs), kind, min(numbers), max(numbers))


class Page:
    """A page that was read and verified."""

    def __init__(self, place: Place, body: bytes, options: Any = None) -> None:
        """`options`: makes `TaskOptions` of their text."""
        self.place = place
        columns = msgpack.unpackb(body, unicode_errors="surrogatepass")
        if place.kind == TASK:
            self._tag, self._options = columns[0], options(columns[1])
            columns = columns[2:]
        self.numbers: list[int] = columns[0]
        self.seqs: list[int] = columns[1]
        self._columns: list[list[Any]] = columns[2:]
        self._index: dict[int, int] | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._places()

    def frame(self, number: int) -> Frame:
        """Parameters or result of a task that is in it."""
        return [self._columns[-1][self._places()[number]]]

    def seq_of(self, number: int) -> int:
        """Of the entry of a task that is in it."""
        return self.seqs[self._places()[number]]

    def entry(self, number: int) -> tuple[int, Requested | Ended]:
        """Its entry, with frame and `seq`."""
        return self._entry(self._places()[number], frames=True)

    def entries(self, *, frames: bool) -> Iterator[tuple[int, Requested | Ended]]:
        """All entries with their `seq`."""
        return (self._entry(place, frames=frames) for place in range(len(self.numbers)))

    def _places(self) -> dict[int, int]:
        if self._index is None:
            self._index = {number: place for place, number in enumerate(self.numbers)}
        return self._index

    def _entry(self, place: int, *, frames: bool) -> tuple[int, Requested | Ended]:
        number, data = self.numbers[place], self._columns[-1][place]
        kept: Frame = [data] if frames else AT_REST
        if self.place.kind == TASK:
            options: TaskOptions = self._options
            name = identity(self._tag, [data], options.key)
            return self.seqs[place], Requested(number, plain(self._tag), name, options, kept)
        process, attempt, duration_s, at = (column[place] for column in self._columns[:-1])
        end = Ended(number, attempt, process, _RESULT, duration_s, "", kept, at)
        return self.seqs[place], end


def by_number(
    pages: Iterable[tuple[int, Iterable[tuple[int, Requested | Ended]]]],
) -> Iterator[tuple[int, Requested | Ended]]:
    """The entries of all pages in the order of their tasks.

    `pages`: of each the smallest number in it and its entries, in the order of the former.
    """
    heap: list[tuple[int, int, Requested | Ended]] = []
    for first, entries in pages:
        while heap and heap[0][0] < first:
            yield heapq.heappop(heap)[1:]
        for seq, entry in entries:
            heapq.heappush(heap, (entry.number, seq, entry))
    while heap:
        yield heapq.heappop(heap)[1:]


@lru_cache(256)
def options_of(text: str) -> TaskOptions:
    """The options of that text; those of later versions are left out."""
    known = {k: v for k, v in json.loads(text).items() if k in TaskOptions._fields}
    if known.get("origin") is not None:
        known["origin"] = tuple(known["origin"])
    return TaskOptions(**known)

"""What a store offers: it keeps entries, and gives them back to the next run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from masterslave.entries import Entry, Written
from masterslave.records import Frame

#: Tasks that failed and are forgotten, but are kept to be looked at. Larger: a served task
#: manager's journal is larger for ever. Smaller: a job in which much fails forgets how it began.
KEPT_FAILURES = 1000

#: Bytes of these, beside which older ones are not kept; the newest one is, whatever its size.
#: Larger: a larger journal, for ever. Smaller: few failures with large parameters can be replayed.
KEPT_FAILURE_BYTES = 1 << 28

#: Hand-outs, and slaves that left, of which it is not worth while to look for the superfluous
#: ones. Larger: a larger journal. Smaller: more looks.
KEPT_ROWS = 1000


class Store(Protocol):
    """Keeps a journal's entries. Used by one thread at a time (see `journal.Journal`)."""

    def write(self, entries: Sequence[Written]) -> None:
        """Keep all of these entries, or none. Returns when they will survive this process.

        Raises `JournalFull` when there is no room, `JournalError` when it cannot be done at all.
        """

    def entries(self) -> Iterator[Entry]:
        """What was kept: numbers forgotten, processes, tasks, their attempts in order, their ends.

        Frames are `AT_REST`; every byte is verified, theirs too. Cancelled and forgotten tasks and
        processes that left are not among them, but for the newest `KEPT_FAILURES` of the forgotten
        ones that failed. Hand-outs of forgotten tasks go sooner or later. Raises `JournalDamaged`.
        """

    def parameters(self, number: int) -> Frame:
        """The parameters of a task. Raises `JournalDamaged` if they are not there any more."""

    def result(self, number: int) -> Frame:
        """The result or exception of a finished task. Raises as `parameters`."""

    def item(self, name: str) -> Any:
        """The data item of that name. Raises `DataNotFound`, or as `parameters`."""

    def note(self, name: str) -> str:
        """A note of an earlier run; empty if there is none."""

    def set_note(self, name: str, value: str) -> None:
        """Keep a note for the next run. Raises as `write`."""

    def close(self) -> None:
        """Give it up, for another process to use."""

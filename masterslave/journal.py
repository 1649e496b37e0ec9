"""The journal: what must not be lost with this process, written in groups.

::

    threads that hold the task manager's lock --add--> [entries] --sync--> store (memory, SQLite)

`add` is cheap and never blocks. `sync` returns when everything added so far is kept: the first
thread that calls it writes what all have added, the others wait for that and find their own
entries written. So the busier the task manager, the larger the groups.

What cannot be written stays here, in order, and goes with the next attempt; nobody is told that
it was done.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator

from masterslave.entries import Entry, Written, count_of
from masterslave.errors import JournalError
from masterslave.records import Frame
from masterslave.stores.base import Store

log = logging.getLogger(__name__)

#: Entries that may wait for the next `sync`. Larger: more memory, and more that a killed master
#: must state again. Smaller: more transactions for a master that only requests.
WAITING_ENTRIES = 2000

#: Bytes of frames that may wait. Larger and smaller: as above.
WAITING_BYTES = 1 << 24


class Journal:
    """Collects entries and brings them to a store. All methods may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._using = threading.Lock()  # the store is used by one thread at a time
        self._waiting: deque[Written] = deque()
        self._taken = 0  # entries that went into a group, written or on its way
        self._waiting_bytes = 0
        self.added = 0  # entries so far
        self.written = 0  # ... of which the store has so many
        self.trouble = ""  # why the last attempt to write failed; empty when it did not

    def add(self, entry: Written, size: int = 0) -> None:
        """Note something that has happened; the callers' lock keeps the order.

        `size`: bytes of its frame, or of its frames.
        """
        self._waiting.append(entry)
        self._waiting_bytes += size
        self.added += count_of(entry)

    def is_due(self) -> bool:
        """Whether so much waits that someone should call `sync`."""
        waiting = self.added - self._taken
        return waiting > WAITING_ENTRIES or self._waiting_bytes > WAITING_BYTES

    def sync(self) -> None:
        """Block until all that was added before this call is kept.

        Raises `JournalError` when that cannot be done now; nothing is forgotten then.
        """
        goal = self.added
        if self.written >= goal:
            return
        with self._using:
            if self.written >= goal:
                return
            group = [self._waiting.popleft() for _ in range(len(self._waiting))]
            count = sum(map(count_of, group))
            self._taken += count
            size, self._waiting_bytes = self._waiting_bytes, 0
            try:
                self._store.write(group)
            except BaseException as error:
                self._waiting.extendleft(reversed(group))
                self._taken -= count
                self._waiting_bytes += size
                if not self.trouble and isinstance(error, JournalError):
                    log.error(
                        "%s; requests wait, and results are not acknowledged, until it can be",
                        error,
                        extra={"action": "journal_trouble"},
                    )
                self.trouble = str(error)
                raise
            self.written += count
            if self.trouble:
                self.trouble = ""
                log.warning("the journal can be written again", extra={"action": "journal_mended"})

    def entries(self) -> Iterator[Entry]:
        """What earlier runs have left, see `Store.entries`; to be used up before anything else."""
        with self._using:
            yield from self._store.entries()

    def parameters(self, number: int) -> Frame:
        """The parameters of a task that were written; blocks as long as reading takes."""
        with self._using:
            return self._store.parameters(number)

    def result(self, number: int) -> Frame:
        """The result of a finished task that was written; blocks as long as reading takes."""
        with self._using:
            return self._store.result(number)

    def note(self, name: str) -> str:
        """A note of an earlier run; empty if there is none."""
        with self._using:
            return self._store.note(name)

    def set_note(self, name: str, value: str) -> None:
        """Keep a note for the next run. Raises `JournalError`."""
        with self._using:
            self._store.set_note(name, value)

    def close(self) -> None:
        """Write what is left and close the store. Raises `JournalError` if that fails."""
        try:
            self.sync()
        finally:
            with self._using:
                self._store.close()

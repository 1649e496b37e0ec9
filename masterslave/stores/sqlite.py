"""A journal's entries in one SQLite file.

| module        | what it knows                                                                 |
|---------------|-------------------------------------------------------------------------------|
| `journalfile` | the file: opening, locking, versions, the key, damage, SQLite's errors        |
| `rows`        | which rows an entry makes, and which entry a row is                            |
| `frames`      | large frames in pieces; signatures                                            |
| `pages`, `paged` | many tiny entries as one row                                               |
| `contents`    | all of it, read                                                               |
| `upkeep`      | what may go                                                                   |

Here groups of entries are written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from masterslave.entries import Forgotten, Requests, Results, Written, count_of
from masterslave.stores.contents import Contents
from masterslave.stores.journalfile import JournalFile
from masterslave.stores.pages import ENDING, Gathered
from masterslave.stores.rows import WRITERS, Statements, options_text
from masterslave.stores.statements import queries
from masterslave.stores.upkeep import Upkeep


class SqliteStore(Contents):
    """A `Store` in one file. Used by one thread at a time, whichever that is."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        key: bytes,
        *,
        create: bool = True,
        guarded: bool = False,
    ) -> None:
        """Open the journal at `path`, or make one if there is no file and `create` allows it.

        `guarded`: others are kept away by other means, so that the file is not locked: on network
        file systems that may not be possible.
        Brings an older version up to date. Raises `JournalInUse` while another process has it open,
        `JournalDamaged` when SQLite finds its structure broken, and `JournalError` for a file of
        another program, of a newer version, or signed with another key. No file is changed then.
        """
        super().__init__(JournalFile(path, key, create=create, guarded=guarded))
        self._mac = self._file.mac
        self._upkeep = Upkeep(self._file, self._pages)
        self._seq: int | None = None  # of the last entry; None: not looked up yet

    def write(self, entries: Sequence[Written]) -> None:
        """See `Store.write`."""
        seq = self._last_seq() + 1
        numbered = []
        for entry in entries:
            numbered.append((seq, entry))
            seq += count_of(entry)
        self.write_numbered(numbered)

    def _last_seq(self) -> int:
        if self._seq is None:
            self._seq = self._file.one("last_seq", ())[0]
        return self._seq

    def write_numbered(self, numbered: Sequence[tuple[int, Written]]) -> None:
        """As `write`, for entries that have their `seq` already, as in the journal they come from.

        The numbers are larger than those of entries of their kind that are here. One that stands
        for many has the first of their `seq`.
        """
        end = self._last_seq()
        rows: Statements = {}
        tiny = Gathered()
        for seq, entry in numbered:
            last = seq
            if type(entry) is Requests:
                options = options_text(entry.options)
                tiny.add_tasks(seq, entry.tag, options, entry.first, entry.data)
                last += len(entry.data) - 1
            elif type(entry) is Results:
                tiny.add_results(seq, entry.process, entry.at, entry.ends)
                last += len(entry.ends) - 1
            else:
                WRITERS[type(entry)](self._rows, rows, seq, entry)
            end = max(end, last)
        for place, body in tiny.pages():
            mac = self._mac(("page", *place, body))
            rows.setdefault("add_page", []).append((*place, body, mac))
        # What is removed again in the very group in which it came must be there first.
        statements = sorted(rows, key=lambda name: name.startswith("remove_"))
        with self._file.translated(), self._pages.transaction():
            for name in statements:
                self._file.db.executemany(queries()[name], rows[name])
            self._pages.strike(rows.get("remove_task", ()), end)
            gone = [entry.number for _, entry in numbered if isinstance(entry, Forgotten)]
            self._upkeep.after(rows, gone, end)
        self._seq = end

    def set_note(self, name: str, value: str) -> None:
        """See `Store.set_note`."""
        self._file.set_note(name, value)

    def forget_ending(self, number: int) -> None:
        """Have a finished task run again by the next run that requests it."""
        with self._file.translated(), self._pages.transaction():
            self._file.db.execute(queries()["remove_ending"], (number,))
            self._file.db.execute(queries()["remove_setbacks"], (number,))
            self._file.db.execute(queries()["remove_pieces"], (number, "result"))
            self._pages.strike([(number,)], self._last_seq(), [ENDING])

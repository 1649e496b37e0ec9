"""How a slave finds an input in a shared folder and takes it: the most urgent first.

It lists ``tasks``, and one sub-directory at a time: of those of the highest priority it begins with
its own, by a digest of its name, so that a thousand slaves do not all want the same file.
"""

from __future__ import annotations

import random
import zlib
from typing import NamedTuple

from masterslave.folder import names
from masterslave.folder.pauses import Watch
from masterslave.folder.place import Place

_CANDIDATES_S = 0.1  # for so long a listing is used; then there may be something more urgent

#: For so long a sub-directory that has served is not listed. Larger: an input that a file server
#: shows late is taken late. Smaller: more listings in vain.
_SERVED_S = 10.0

#: One of so many is taken, and of as large a part of all, so that not all slaves want the same.
_FIRST_FEW, _FIRST_PART = 8, 8


class Claim(NamedTuple):
    """An input that this slave has taken."""

    bundle: str
    where: str  # sub-directory, "": ``tasks`` itself
    lock: str  # its name by now


def _is_like(entry: names.Entry, first: names.Entry) -> bool:
    """Whether it may be taken as well; a smaller one not, or the larger would be the last."""
    smaller = entry.tag == first.tag and entry.tasks < first.tasks
    return entry.priority == first.priority and not smaller


class Finder:
    """Takes inputs, for one thread at a time."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._candidates: list[names.Entry] = []  # the most urgent first
        self._where = ""  # they lie there
        self._listed_at = 0.0
        self._took = False  # something, when it last looked for it
        self._watches: dict[str, Watch] = {}
        self._here: list[names.Entry] = []  # of ``tasks`` itself, as last listed
        self._directories: list[names.Directory] = []
        self._rich: set[str] = set()  # sub-directories that had something when last listed
        self._served: set[str] = set()  # those in which nothing of ours will be any more
        self._served_since = 0.0
        self._tags: frozenset[str] = frozenset()

    def claim(self, now: float, tags: frozenset[str]) -> Claim | None:
        """Take one input of these tags, as `names.tag_text` gives them; None: there is none."""
        if tags != self._tags:
            self._tags = tags
            self._served.clear()
            self._watches.clear()
            self._candidates = []
        if now - self._served_since > _SERVED_S:  # whatever a file server showed too late
            self._served.clear()
            self._served_since = now
        if now - self._listed_at > _CANDIDATES_S:
            self._candidates = []
        while self._candidates or self._look(now):
            claim = self._take()
            if claim is not None:
                self._took = True
                return claim
        self._took = False
        return None

    def _take(self) -> Claim | None:
        few = max(_FIRST_FEW, len(self._candidates) // _FIRST_PART)
        first = self._candidates[:few]
        equal = [one for one in first if _is_like(one, first[0])]
        entry = random.choice(equal)  # noqa: S311 - no secret
        self._candidates.remove(entry)
        lock = f"{entry.bundle}.lock-{self._place.owner}"
        path = self._place.at("tasks", self._where, f"{entry.bundle}.in")
        if self._place.files.move(path, self._place.at("tasks", self._where, lock)):
            return Claim(entry.bundle, self._where, lock)
        return None

    def _look(self, now: float) -> bool:
        """Find candidates in one directory; false: there are none in any."""
        # A slave that has worked finds another directory than before, and need not ask.
        if self._took or self._has_changed("", now):
            listing = self._list("", now)
            self._here = self._wanted(listing)
            found = map(names.parse_directory, listing)
            self._directories = [one for one in found if one is not None]
            self._served &= {one.name for one in self._directories}
            self._took = False
        for priority, where in self._order():
            if where == "":
                self._candidates = [one for one in self._here if one.priority == priority]
                self._here = [one for one in self._here if one.priority != priority]
            elif where in self._rich or self._has_changed(where, now):
                self._rich.discard(where)
                try:
                    self._candidates = self._wanted(self._list(where, now))
                except FileNotFoundError:  # the master has removed it
                    self._served.add(where)
                if self._candidates:
                    self._rich.add(where)
                elif self._is_full(where):
                    self._served.add(where)
            if self._candidates:
                self._where, self._listed_at = where, now
                return True
        return False

    def _order(self) -> list[tuple[int, str]]:
        """Priority and name of each directory in which there may be something, best first."""
        places: dict[int, list[str]] = {entry.priority: [""] for entry in self._here}
        for one in sorted(self._directories, key=lambda one: one.number):
            if one.name not in self._served:
                places.setdefault(one.priority, []).append(one.name)
        order = []
        for priority in sorted(places, reverse=True):
            line = places[priority]
            start = zlib.crc32(self._place.owner.encode()) % len(line)
            order += [(priority, where) for where in line[start:] + line[:start]]
        return order

    def _is_full(self, where: str) -> bool:
        """Whether nothing comes into a sub-directory any more: a later one has been begun."""
        mine = names.parse_directory(where)
        return mine is not None and any(
            one.priority == mine.priority and one.number > mine.number for one in self._directories
        )

    def _wanted(self, listing: list[str]) -> list[names.Entry]:
        wanted = [
            entry
            for entry in map(names.parse, listing)
            if entry is not None and entry.kind == "in" and entry.tag in self._tags
        ]
        wanted.sort(key=lambda entry: (-entry.priority, entry.number, entry))
        return wanted

    def _has_changed(self, where: str, now: float) -> bool:
        stamp = self._place.files.look(self._place.at("tasks", where))
        return self._watches.setdefault(where, Watch()).must_list(stamp, now)

    def _list(self, where: str, now: float) -> list[str]:
        listing = self._place.files.list(self._place.at("tasks", where))
        self._watches.setdefault(where, Watch()).listed(listing.stamp, now)
        return listing.names

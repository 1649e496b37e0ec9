"""The directories with tasks, as the master of a shared folder uses them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from masterslave.folder import names
from masterslave.folder.bundles import DIRECTORY_MOST
from masterslave.folder.pauses import Watch
from masterslave.folder.place import Place
from masterslave.folder.seal import Refused
from masterslave.folder.spread import Spread
from masterslave.records import Assignment, Frame


class Found(NamedTuple):
    """A file with tasks."""

    where: str  # sub-directory, "": ``tasks`` itself
    name: str
    entry: names.Entry


class Shelves:
    """``tasks`` and its sub-directories. `write` may be called by another thread than the rest."""

    def __init__(self, place: Place) -> None:
        """Removes the inputs of an earlier master: they are to be asked for again."""
        self._place = place
        there: Counter[str] = Counter({"": 0})
        for where in self._directories():
            there[where] = 0
            for name in self._list(where):
                entry = names.parse(name)
                if entry is not None and entry.kind == "in":
                    place.files.remove(self.at(where, name))
                elif entry is not None:
                    there[where] += 1
        self._spread = Spread(DIRECTORY_MOST, there)
        self._watches: dict[str, Watch] = {"": Watch()}
        self._writing = threading.Lock()  # a directory is complete before the next one is begun

    def at(self, where: str, name: str) -> str:
        """The path of a file."""
        return self._place.at("tasks", where, name)

    def _list(self, where: str) -> list[str]:
        return self._place.files.list(self._place.at("tasks", where)).names

    def _directories(self) -> list[str]:
        return ["", *(name for name in self._list("") if names.parse_directory(name))]

    def write(self, bundle: str, priority: int, head: Any, frames: Iterable[Frame]) -> None:
        """Lay out an input. Raises `OSError`."""
        with self._writing:
            where, is_missing = self._spread.place(bundle, priority)
            try:
                if is_missing:
                    self._place.files.make_directory(self._place.at("tasks", where))
                    self._spread.made(where)
                self._place.write(head, "tasks", where, f"{bundle}.in", frames=frames)
            finally:
                self._spread.written(where)

    def take_back(self, bundle: str) -> bool:
        """Remove an input; false: somebody has taken it."""
        return self._place.files.remove(self.at(self._spread.where(bundle), f"{bundle}.in"))

    def are_many(self) -> bool:
        """Whether there are sub-directories."""
        return bool(self._spread.directories())

    def look(self, now: float) -> bool:
        """Whether there may be something new in any of them."""
        look = self._place.files.look
        return any(
            self._watches.setdefault(where, Watch()).must_list(
                look(self._place.at("tasks", where)), now
            )
            for where in ["", *self._spread.directories()]
        )

    def collect(self, now: float) -> list[Found]:
        """All that lies there, outputs last. Removes directories that have served."""
        found = []
        for where in ["", *self._spread.directories()]:
            before = self._spread.before_look(where)
            try:
                listing = self._place.files.list(self._place.at("tasks", where))
            except FileNotFoundError:
                if not where:
                    raise
                self._removed(where)
                continue
            self._watches.setdefault(where, Watch()).listed(listing.stamp, now)
            files = 0
            for name in listing.names:
                entry = names.parse(name)
                if entry is not None:
                    files += 1
                    found.append(Found(where, name, entry))
                elif where or names.parse_directory(name) is None:
                    self._place.refuse("has no name of ours", "tasks", where, name)
            if self._spread.seen(where, files, before):
                with contextlib.suppress(OSError):  # something has just come into it
                    self._place.files.remove_directory(self._place.at("tasks", where))
                    self._removed(where)
        found.sort(key=lambda one: one.entry.kind == "out")
        return found

    def _removed(self, where: str) -> None:
        self._spread.removed(where)
        self._watches.pop(where, None)

    def locks_of(self, owner: str) -> list[Found]:
        """The locks of a slave."""
        found = []
        for where in ["", *self._spread.directories()]:
            with contextlib.suppress(FileNotFoundError):
                for name in self._list(where):
                    entry = names.parse(name)
                    if entry is not None and entry.kind == "lock" and entry.owner == owner:
                        found.append(Found(where, name, entry))
        return found

    def tasks_in(self, lock: Found) -> dict[tuple[str, int], Assignment] | None:
        """The tasks that a lock is for; None: it does not say so, or not any more."""
        where, name, entry = lock
        try:
            head = self._place.read("tasks", where, name, name=f"{entry.bundle}.in")[0]
        except (Refused, OSError):
            return None
        return {(t[0], t[2]): Assignment(t[0], t[1], t[2], [], t[3]) for t in head["tasks"]}

    def clear(self) -> None:
        """Remove inputs and locks, and the sub-directories that are empty then."""
        for where in self._directories()[::-1]:
            for name in self._list(where):
                entry = names.parse(name)
                if entry is not None and entry.kind in ("in", "lock"):
                    self._place.files.remove(self.at(where, name))
            if where:
                with contextlib.suppress(OSError):  # results for the next master lie there
                    self._place.files.remove_directory(os.path.join(self._place.at("tasks"), where))

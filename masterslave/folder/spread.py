"""In which directory the master of a shared folder puts a bundle. Pure.

Bundles lie in ``tasks`` itself as long as there are few files in it. Beyond that they go into
numbered sub-directories, each of one priority. Such a directory is filled once: when it has had as
many bundles as one may have, the next one is begun. So a slave that has found nothing of its tags
in one need not look there again once a later one is there.
"""

from __future__ import annotations

import threading
from collections import Counter

from masterslave.folder import names


class Spread:
    """Decides where bundles go, and which sub-directories have served. Safe in several threads.

    A directory is called by its name below ``tasks``, which itself is called "".
    """

    def __init__(self, most: int, there: Counter[str]) -> None:
        """`most`: files in a directory. `there`: directory -> files that an earlier master left."""
        self._most = most
        self._lock = threading.Lock()
        self._files = Counter(there)  # as last seen, and what came since
        self._made = {name for name in there if name}  # sub-directories that are there
        self._put: Counter[str] = Counter()  # directory -> bundles that were put into it so far
        self._written: Counter[str] = Counter()  # of these, those whose writing is over
        self._open: dict[int, str] = {}  # priority -> the sub-directory that is being filled
        self._where: dict[str, str] = {}  # bundle -> sub-directory
        numbers = [found.number for found in map(names.parse_directory, there) if found]
        self._next = 1 + max(numbers, default=0)

    def directories(self) -> list[str]:
        """All sub-directories that are there."""
        with self._lock:
            return [name for name in self._files if name in self._made]

    def place(self, bundle: str, priority: int) -> tuple[str, bool]:
        """Where a bundle is to be written, and whether that directory is to be made first."""
        with self._lock:
            where = ""
            if self._files[""] >= self._most:
                where = self._open.get(priority, "")
                if not where or self._put[where] >= self._most:
                    where = names.directory_name(self._next, priority)
                    self._next += 1
                    self._open[priority] = where
                self._where[bundle] = where
            self._files[where] += 1
            self._put[where] += 1
            return where, bool(where) and where not in self._made

    def made(self, where: str) -> None:
        """A sub-directory is there from now on."""
        with self._lock:
            self._made.add(where)

    def written(self, where: str) -> None:
        """A bundle is there now, or could not be written."""
        with self._lock:
            self._written[where] += 1

    def before_look(self, where: str) -> int:
        """To be asked for before a directory is listed, and given to `seen` then."""
        with self._lock:
            return self._written[where]

    def where(self, bundle: str) -> str:
        """Where a bundle was put."""
        return self._where.get(bundle, "")

    def seen(self, where: str, files: int, before: int) -> bool:
        """So many files lie in a directory; true: it has served, and is to be removed.

        What was not written `before_look` is not among them, or is counted twice until the next
        look: a directory may get less than it has room for, and not more.
        """
        with self._lock:
            self._files[where] = files + self._put[where] - before
            if not where or self._files[where]:
                return False
            for priority, name in list(self._open.items()):
                if name == where:
                    if self._files[""] >= self._most and self._put[where] < self._most:
                        return False  # it will be needed at once
                    del self._open[priority]
            return True

    def removed(self, where: str) -> None:
        """A sub-directory has gone."""
        with self._lock:
            self._made.discard(where)
            for counts in (self._files, self._put, self._written):
                counts.pop(where, None)
            for bundle in [one for one, place in self._where.items() if place == where]:
                del self._where[bundle]

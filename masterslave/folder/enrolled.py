"""Slaves as the master of a shared folder knows them."""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import Any

from masterslave.folder.place import Place, Who
from masterslave.folder.seal import Refused
from masterslave.liveness import SILENT_PERIODS

#: A lock that was not renewed for so many periods of a slave that lives is freed. Larger: its tasks
#: wait for longer. Smaller: a slave that is held up loses what it is at.
_STALE_PERIODS = SILENT_PERIODS + 1


class Enrolled:
    """A slave that has a file in the folder."""

    @classmethod
    def read(cls, place: Place, owner: str) -> Enrolled | None:
        """By its file; None if there is none, or one that must be refused. Raises `OSError`."""
        try:
            return cls(place.read("slaves", owner)[0])
        except FileNotFoundError:
            return None
        except (Refused, ValueError, KeyError, TypeError, IndexError) as error:
            place.refuse(error, "slaves", owner)
            return None

    def __init__(self, head: dict[str, Any]) -> None:
        self.head = head
        self.who = Who.of(head["who"])
        self.period_s: float | None = head["period_s"]
        self.workers: int = head["info"][3]
        self.tags: list[str] | None = head["tags"]
        self.registration: str = head["registration"]
        self.id = -1
        self.mtime_ns = 0
        self.look_at = 0.0
        self.is_freed = False  # its locks were removed, as it was silent for too long
        self.told = ""  # its failure that was reported
        self._turn = 0
        self._locks: dict[str, tuple[int, float]] = {}  # lock -> its time, and since when it has it

    def stale_lock(self, place: Place, locks: Collection[str], now: float) -> str:
        """Look at one of its locks, in turn; gives it if it was not renewed for too long.

        A slave that lives and does not renew a lock knows nothing of it: it took it, and the file
        server failed it then. Raises `OSError`.
        """
        self._locks = {lock: self._locks[lock] for lock in locks if lock in self._locks}
        if not locks or self.period_s is None:
            return ""
        self._turn += 1
        lock = [*locks][self._turn % len(locks)]
        file = place.files.look(lock)
        if file is None:  # its output has just been written
            return ""
        mtime_ns, since = self._locks.get(lock, (-1, now))
        if mtime_ns != file.mtime_ns:
            self._locks[lock] = file.mtime_ns, now
            return ""
        return lock if now - since > _STALE_PERIODS * self.period_s else ""


class Crew(dict[str, Enrolled]):
    """All of them, by their names in the folder."""

    def workers(self) -> int:
        """Of all slaves."""
        return sum(slave.workers for slave in list(self.values()))

    def tags(self) -> set[str]:
        """All that any of them handles."""
        return {tag for slave in list(self.values()) for tag in slave.tags or ()}

    def at_once(self) -> int:
        """Workers of the smallest slave."""
        return max(1, min((slave.workers for slave in list(self.values())), default=1))

    def shortest_period_s(self) -> float:
        """The shortest time between two signs of life that one has promised."""
        return min((slave.period_s or inf for slave in list(self.values())), default=inf)

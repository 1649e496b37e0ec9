"""Slaves as the master of a shared folder knows them."""

from __future__ import annotations

from math import inf
from typing import Any

from masterslave.folder.place import Place, Who
from masterslave.folder.seal import Refused


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


class Crew(dict[str, Enrolled]):
    """All of them, by their names in the folder."""

    def workers(self) -> int:
        """Of all slaves."""
        return sum(slave.workers for slave in list(self.values()))

    def at_once(self) -> int:
        """Workers of the smallest slave."""
        return max(1, min((slave.workers for slave in list(self.values())), default=1))

    def shortest_period_s(self) -> float:
        """The shortest time between two signs of life that one has promised."""
        return min((slave.period_s or inf for slave in list(self.values())), default=inf)

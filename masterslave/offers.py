"""Which shortcuts to its workers a slave lends to the task manager, and what that is to be told.

::

    a worker is ready --add--> to be offered --lend--> lent
                                  ^                     |  take_back: at each registration, and
                                  +---------------------+  when the connection is lost
    a worker has ended --remove--> settle: all that is known of its tasks is to be handed in
                                      --> to be told as closed, after that

Whatever is not lent, the slave reads itself. All methods are called with the uplink's lock held.
"""

from __future__ import annotations

import contextlib
import logging

from masterslave.records import Completion
from masterslave.shortcut import Shortcut

log = logging.getLogger(__name__)


class Offers:
    """The shortcuts of one slave, by the numbers of its workers."""

    def __init__(self) -> None:
        self._all: dict[int, Shortcut] = {}
        self._to_offer: set[int] = set()
        self._lent: set[int] = set()  # those that the task manager has, or is about to
        self._ended: set[int] = set()  # of workers that have
        self._to_close: set[int] = set()  # those of whose tasks all is known here

    def add(self, worker: int, shortcut: Shortcut) -> None:
        """A worker is ready."""
        self._all[worker] = shortcut
        self._to_offer.add(worker)

    def remove(self, worker: int) -> None:
        """A worker has ended, and its shortcut is about to be closed."""
        self._to_offer.discard(worker)
        if self._all.pop(worker, None) is not None:
            self._ended.add(worker)

    def settle(self) -> bool:
        """What was known of ended workers' tasks is in line; true if some are to be closed."""
        self._to_close |= self._ended & self._lent
        self._lent -= self._ended
        self._ended.clear()
        return bool(self._to_close)

    @property
    def are_due(self) -> bool:
        """Whether the task manager is to be told something."""
        return bool(self._to_offer or self._to_close)

    def take_closed(self) -> list[int]:
        """The workers whose shortcuts are to be told as closed; they are given once."""
        closed = list(self._to_close)
        self._to_close.clear()
        return closed

    def put_back(self, closed: list[int]) -> None:
        """These could not be told."""
        self._to_close.update(closed)

    def take_offers(self) -> dict[int, Shortcut]:
        """What is to be offered; it is given once for each registration."""
        offers = {worker: self._all[worker] for worker in self._to_offer}
        self._to_offer.clear()
        return offers

    def lend(self, worker: int) -> bool:
        """The task manager is about to have this one; false when it was removed since."""
        shortcut = self._all.get(worker)
        if shortcut is None:
            return False
        shortcut.is_lent = True
        self._lent.add(worker)
        return True

    def refused(self, worker: int, shortcut: Shortcut) -> None:
        """It does not use it."""
        shortcut.is_lent = False
        self._lent.discard(worker)

    def take_back(self) -> None:
        """The task manager lets go of all: they are to be offered again."""
        self._to_offer = set(self._all)
        self._lent.clear()
        self._to_close.clear()
        for shortcut in self._all.values():
            shortcut.is_lent = False

    def any_lent(self) -> bool:
        """Whether the task manager may give a worker a task."""
        return any(shortcut.is_lent for shortcut in self._all.values())

    def empty(self) -> None:
        """Take out the tasks that workers have not read: nobody says that they are held here."""
        for shortcut in self._all.values():
            with contextlib.suppress(ValueError):
                shortcut.take_back()

    def read(self) -> list[Completion]:
        """The results that nobody has read."""
        ended: list[Completion] = []
        for worker, shortcut in self._all.items():
            try:
                ended += shortcut.read()
            except ValueError as error:  # its task is not held, and is run again
                log.warning("worker %d has written what is no result: %s", worker, error)
        return ended

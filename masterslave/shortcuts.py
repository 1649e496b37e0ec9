"""Tasks that go to an idle worker of this machine without its supervisor between (`shortcut`).

Of a slave that holds nothing else, and whose call for tasks is parked, a task that comes alone goes
to one of its workers directly; the call stays parked. All else goes the long way. What is on a
shortcut is leased to the slave like any task. All methods are called with the task manager's lock
held, so results are read by one thread at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from masterslave.leases import Leases
from masterslave.records import Assignment, Completion, Outcome, frame_bytes
from masterslave.roster import Member
from masterslave.settling import Settling

log = logging.getLogger(__name__)

#: Longest id, in characters; see `board.LONGEST_ID`.
_LONGEST_ID = 100

#: Larger frames are not even packed to see whether they fit. Larger: in vain. Smaller: fewer tasks.
_LARGEST_FRAME = 4000


class End(Protocol):
    """The task manager's ends of a shortcut, see `shortcut.ManagerShortcut`."""

    def pack(self, task: Assignment) -> bytes | None:
        """The message for a task; None if it does not go this way."""

    def send(self, data: bytes) -> None:
        """Give the worker a task, without waiting."""

    def read(self) -> list[Completion]:
        """The results that are there, without waiting. Raises `ValueError`."""

    def close(self) -> None:
        """Let go of it."""


#: Opens what a slave has named, and has the function called when there is something to be read.
#: Raises `OSError` where that cannot be, `ValueError` for what is no name.
Opener = Callable[[Sequence[Any], Callable[[], None]], End]


class _Shortcut:
    __slots__ = ("end", "task")

    def __init__(self, end: End) -> None:
        self.end = end
        self.task: tuple[str, int] | None = None  # id and attempt of what the worker has


class Shortcuts:
    """The shortcuts of all slaves."""

    def __init__(self, clock: Callable[[], float], leases: Leases, settling: Settling) -> None:
        self._clock = clock
        self._held = leases.held
        self._settling = settling
        self._of: dict[int, dict[int, _Shortcut]] = {}  # process id -> number of the worker
        self.opener: Opener | None = None  # None: there are no shortcuts here

    def open(
        self, member: Member, worker: int, names: Sequence[Any], heard: Callable[[], None]
    ) -> bool:
        """A slave offers a shortcut to one of its workers; false when it is of no use here.

        `heard` is called, without the lock, when there is something for `hear`.
        """
        self.close(member, [worker])
        if self.opener is None:
            return False
        try:
            end = self.opener(names, heard)
        except (OSError, ValueError) as error:
            log.debug("no shortcut to worker %d of %s: %s", worker, member.info.machine, error)
            return False
        self._of.setdefault(member.id, {})[worker] = _Shortcut(end)
        return True

    def take(self, member: Member, tasks: Sequence[Assignment]) -> Callable[[], None] | None:
        """Have tasks that were just handed out go this way, if they can.

        Gives what sends them, to be called without the lock; None: they are to go the long way.
        """
        mine = self._of.get(member.id)
        if mine is None or len(tasks) != 1 or member.has_notices():
            return None
        task, idle, busy = tasks[0], None, 0
        for shortcut in mine.values():
            if shortcut.task is None:
                idle = shortcut
            else:
                busy += 1
        if (
            idle is None
            or task.timeout is not None  # its supervisor is to look at the clock
            or len(self._held.of(member.id)) != busy + 1
            or len(task.task_id) > _LONGEST_ID
            or frame_bytes(task.frame) > _LARGEST_FRAME
        ):
            return None
        end, data = idle.end, idle.end.pack(task)
        if data is None:
            return None
        idle.task = task.task_id, task.attempt
        return lambda: end.send(data)

    def hear(self, member: Member, worker: int) -> bool:
        """Use the results that have come from a worker; true if there were any.

        Raises `ValueError` when something came that is none.
        """
        shortcut = self._of.get(member.id, {}).get(worker)
        ended = [] if shortcut is None else shortcut.end.read()
        if not ended:
            return False
        self.freed(member, ended)
        self._settling.settle_all(member.id, member, ended, self._clock())
        return True

    def is_busy(self, member: Member) -> bool:
        """Whether a slave has tasks that went this way."""
        mine = self._of.get(member.id)
        return mine is not None and any(one.task is not None for one in mine.values())

    def freed(self, member: Member, ended: Iterable[Completion]) -> None:
        """Attempts have ended, whichever way that was told."""
        keys = {(done.task_id, done.attempt) for done in ended}
        for shortcut in self._of.get(member.id, {}).values():
            if shortcut.task in keys:
                shortcut.task = None

    def close(self, member: Member, workers: Iterable[int]) -> None:
        """These workers have ended: what had gone to them and has not come back is run again."""
        mine = self._of.get(member.id)
        gone = [mine.pop(worker) for worker in workers if worker in mine] if mine else []
        for shortcut in gone:
            ended = self._last_words(shortcut)
            keys = {(done.task_id, done.attempt) for done in ended}
            if shortcut.task is not None and shortcut.task not in keys:
                unrun = Outcome.RETURNED.value
                ended.append(Completion(*shortcut.task, unrun, [], 0.0, "not begun"))
            if ended:
                self._settling.settle_all(member.id, member, ended, self._clock())
        if mine is not None and not mine:
            del self._of[member.id]

    def let_go(self, member: Member) -> None:
        """A slave leaves, is lost or registers again: what it holds is settled in the usual way.

        Its supervisor reads what comes from now on.
        """
        for shortcut in self._of.pop(member.id, {}).values():
            if ended := self._last_words(shortcut):
                self._settling.settle_all(member.id, member, ended, self._clock())

    def _last_words(self, shortcut: _Shortcut) -> list[Completion]:
        ended: list[Completion] = []
        try:
            ended += shortcut.end.read()
        except ValueError as error:  # it is closed, and the tasks are run again
            log.warning("a shortcut is damaged: %s", error, extra={"action": "shortcut_damaged"})
        shortcut.end.close()
        return ended

"""Which processes are here: they join, leave, are lost, come back, or are awaited in vain.

What a process held when it went is run elsewhere: at no cost to its tasks if it left in good order,
as a crash of those that it had begun if it was lost. All methods are called with the task manager's
lock held.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence

from masterslave.handout import HandOut
from masterslave.leases import Leases
from masterslave.ledger import Ledger
from masterslave.outbox import Outbox
from masterslave.records import ProcessInfo
from masterslave.roster import Member, Roster
from masterslave.settling import Settling
from masterslave.shortcuts import Shortcuts
from masterslave.waiters import Monitor

log = logging.getLogger(__name__)


class Attendance:
    """Keeps the roster, and has queue, journal and observers know of it."""

    def __init__(
        self,
        lock: Monitor,
        clock: Callable[[], float],
        roster: Roster,
        leases: Leases,
        ledger: Ledger | None,
        outbox: Outbox,
        handout: HandOut,
        settling: Settling,
        shortcuts: Shortcuts,
    ) -> None:
        self._clock = clock
        self._roster = roster
        self._leases = leases
        self._ledger = ledger
        self._outbox = outbox
        self._handout = handout
        self._settling = settling
        self._shortcuts = shortcuts
        self.gone = lock.condition()  # told when a process leaves
        self.awaited: dict[int, float] = {}  # slaves of an earlier run -> until when

    def join(
        self,
        info: ProcessInfo,
        watchdog_period: float | None,
        resume: int | None,
        held: Sequence[tuple[str, int]],
    ) -> tuple[Member, list[tuple[str, int]]]:
        """A process joins or comes back; see `TaskManager.registerProcess`.

        Gives those attempts among `held` that it should let go of.
        """
        member = self._roster.join(info, watchdog_period, resume, self._clock())
        self.awaited.pop(member.id, None)
        self._shortcuts.let_go(member)
        absolved = self._leases.take_back_blame(member.id)
        if self._ledger is not None:
            self._ledger.absolved(member.id, absolved)
        effects, obsolete = self._leases.reconcile(member.id, held)
        for effect in effects:
            self._settling.act(effect, member, "not begun")
        self._handout.rouse(member)  # its calls from before are void
        self._outbox.note("process_joined", member.id, info.machine)
        return member, obsolete

    def leave(self, process_id: int) -> None:
        """A process leaves in good order, if it is here."""
        member = self._roster.leave(process_id)
        if member is None:
            return
        self._shortcuts.let_go(member)
        self._settling.release(member)
        if self._ledger is not None and member.is_slave:
            self._ledger.left(process_id)
        self._handout.rouse(member)
        self.gone.notify_all()
        self._outbox.note("process_left", process_id, member.info.machine, "unregistered")

    def lose(
        self, process_id: int, reason: str, generation: int | None
    ) -> tuple[Member, int] | None:
        """A process is taken for dead; see `TaskManager.lostProcess`.

        Gives it, and how many of its tasks are run elsewhere; None when it is not here.
        """
        known = self._roster.known(process_id)
        if known is not None and generation not in (None, known.generation):
            return None
        member = self._roster.lose(process_id)
        if member is None:
            return None
        for forgotten in self._roster.take_crowded_out():
            if self._ledger is not None and forgotten.is_slave:
                self._ledger.left(forgotten.id)  # nor does a journal grow with each loss
        self._shortcuts.let_go(member)
        story = f"{member.info.machine} was lost: {reason}"
        effects = self._leases.lose(process_id, story, max(1, member.info.workers))
        self._handout.rouse(member)
        for effect in effects:
            self._settling.write(effect, process_id)
            self._settling.act(effect, member, "its slave was lost")
        self.gone.notify_all()
        self._outbox.note("process_left", process_id, member.info.machine, reason)
        return member, len(effects)

    def silent(self, now: float) -> list[tuple[int, float, int]]:
        """Who has been silent too long: process id, for how many seconds, which registration."""
        return [
            (process_id, age_s, self._roster.get(process_id).generation)
            for process_id, age_s in self._roster.liveness.silent(now)
        ]

    # --- slaves of an earlier run -----------------------------------------------------------

    def await_those(self, slaves: Mapping[int, ProcessInfo], resume_s: float) -> None:
        """Wait so many seconds for those that may live and come back with their tasks."""
        for process_id, info in slaves.items():
            self._roster.remember(process_id, info)
            if not self._leases.held.of(process_id):
                continue  # it was lost before; nothing waits for it
            self.awaited[process_id] = self._clock() + resume_s
            if info.host == platform.node() and not _is_running(info.pid):
                self._give_up(process_id, "has ended")

    def give_up_late_ones(self, now: float, resume_s: float) -> None:
        """Await no more who has not come back within these seconds."""
        for process_id in [p for p, until in self.awaited.items() if until <= now]:
            self._give_up(process_id, f"did not come back within {resume_s:g} s")

    def _give_up(self, process_id: int, reason: str) -> None:
        """Others may run its tasks."""
        del self.awaited[process_id]
        member = self._roster.known(process_id)
        log.info("a slave of an earlier run %s", reason, extra={"action": "slave_given_up"})
        for effect in self._leases.release(process_id):
            self._settling.act(effect, member, "not begun")


def _is_running(pid: int) -> bool:
    """Whether there is a process of that id on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there is, and it is somebody else's
        return True
    return True

"""Slaves' calls that take tasks: at once, after a wait, or parked without a thread.

::

    take --> a task or a notice is there --------------------------------> answered
      +--> waits, with a thread or parked --woken--> is there now? ------> answered
                        ^                                 | no, and there is time
                        +---------------------------------+

Of each slave one call waits at most. All methods are called with the task manager's lock held.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from masterslave.errors import TaskManagerTermination
from masterslave.leases import Leases
from masterslave.ledger import Ledger
from masterslave.records import Assignment
from masterslave.roster import Member, Roster
from masterslave.scheduler import Scheduler
from masterslave.waiters import Monitor, Parked, Waiter, Waiters

log = logging.getLogger(__name__)


class HandOut:
    """Where slaves wait for tasks."""

    def __init__(
        self,
        lock: Monitor,
        clock: Callable[[], float],
        roster: Roster,
        leases: Leases,
        scheduler: Scheduler,
        ledger: Ledger | None,
    ) -> None:
        self._lock = lock
        lock.decide = self._decide
        self._clock = clock
        self._roster = roster
        self._leases = leases
        self._scheduler = scheduler
        self._ledger = ledger
        self.waiters = Waiters()
        #: Sends tasks to workers directly if that can be, see `Shortcuts.take`.
        self.direct: Callable[[Member, list[Assignment]], bool] = lambda member, tasks: False
        self.closed = False  # the job is over: nothing is handed out any more
        self._waiter_of: dict[int, Waiter] = {}  # process id -> its exchange that waits
        self._single_calls: set[Waiter] = set()  # of `take_one`

    def close(self) -> None:
        """The job is over: all who wait are answered."""
        self.closed = True
        for member in self._roster.all_known():
            self.rouse(member)
        for waiter in list(self._single_calls):
            self.waiters.rouse(waiter)

    def take(
        self, member: Member, timeout: float, answer: Callable[[list[Any]], None] | None = None
    ) -> list[Assignment] | Parked:
        """Hand out what the slave may hold, waiting for the first task or notice if asked to.

        `answer`: have the call parked instead.
        """
        tasks = [] if self.closed else self._hand_out(member)
        if tasks and self._ledger is None and self.direct(member, tasks):
            tasks = []
        if tasks or timeout <= 0 or self._must_answer(member):
            self.line_up(member)  # what this call freed and did not take is the waiting one's
            return tasks
        self.rouse(member)  # an earlier call that waits would be forgotten
        if answer is not None:
            parked = Parked(self._lock, member.id, member.generation, answer)
            self._waiter_of[member.id] = parked
            self.line_up(member)
            return parked
        waiter = self._waiter_of[member.id] = Waiter(self._lock)
        generation = member.generation
        deadline = self._clock() + timeout
        while not tasks and (wait_s := deadline - self._clock()) > 0:
            self.line_up(member)
            self.waiters.wait(waiter, wait_s)
            current = self._waiter_of.get(member.id) is waiter
            if current and not self.closed and self.is_current(member, generation):
                tasks = self._hand_out(member)
            self._pass_on(waiter, tasks)
            if not current or not self.is_current(member, generation):
                return tasks
            if self._must_answer(member):
                break
        del self._waiter_of[member.id]
        self._roster.liveness.heard(member.id, self._clock())
        return tasks

    def rouse(self, member: Member) -> None:
        """End a member's waiting call, if there is one."""
        waiter = self._waiter_of.pop(member.id, None)
        if waiter is not None:
            self.waiters.rouse(waiter)

    def line_up(self, member: Member) -> None:
        """Have a member's waiting call stand in line for tasks while a worker of it is idle."""
        waiter = self._waiter_of.get(member.id)
        if waiter is None or waiter.tags:
            return
        if self._scheduler.is_idle(member):
            tags = self._scheduler.tags_for(member, self._clock())
            self.waiters.line_up(waiter, tags)
            if self._leases.peek(tags) is not None:
                self.waiters.rouse(waiter)  # there is something for it already

    def more(self, member: Member) -> list[Assignment]:
        """Tasks for a member whose call waits, beside that."""
        return self._hand_out(member) if member.id in self._waiter_of and not self.closed else []

    def refill(self, member: Member) -> None:
        """A member has handed in results beside its waiting call, which may get more tasks now."""
        waiter = self._waiter_of.get(member.id)
        if waiter is not None and self._leases.peek(member.tags or ()) is not None:
            self.waiters.rouse(waiter)
        else:
            self.line_up(member)

    def is_current(self, member: Member, generation: int | None) -> bool:
        """Whether that is a slave's registration that counts."""
        present = self._roster.present.get(member.id) is member
        return present and member.generation == generation

    def notices(self, member: Member | None, generation: int | None) -> dict[str, Any]:
        """What a slave is told at the end of an exchange, once."""
        notices = {}
        if member is not None and member.generation == generation:
            notices = member.notices()
        if self.closed:
            notices["terminate"] = True
        elif member is None or member.id not in self._roster.present:
            notices["register"] = True
        return notices

    def take_one(
        self, process_id: int, tag: str | None, timeout: float
    ) -> tuple[Member, list[Assignment]]:
        """Take one task, of that tag if given, waiting for it; gives the slave and the task if any.

        Raises `UnknownProcess`, or `TaskManagerTermination` when the job is over.
        """
        deadline = self._clock() + timeout
        member = self._roster.get(process_id)
        tags = frozenset((tag,)) if tag is not None else member.tags or frozenset()
        waiter = Waiter(self._lock)
        while True:
            if self.closed:
                raise TaskManagerTermination("the task manager has ended")
            self._roster.get(process_id)  # it may have been lost while it waited
            assignment = self._leases.hand_out(member.id, tags)
            wait_s = deadline - self._clock()
            if assignment is not None or wait_s <= 0:
                break
            self._single_calls.add(waiter)
            self.waiters.line_up(waiter, tags)
            self.waiters.wait(waiter, wait_s)
            self._single_calls.discard(waiter)
        return member, [assignment] if assignment is not None else []

    # --- inside -----------------------------------------------------------------------------

    def _decide(self, parked: Parked) -> Callable[[], None] | None:
        """A parked call was woken: what its answer is, if it is to be answered now."""
        if parked.is_answered:
            return None
        member = self._roster.known(parked.process_id)
        current = self._waiter_of.get(parked.process_id) is parked
        tasks: list[Assignment] = []
        if member is not None and current and self.is_current(member, parked.generation):
            if not self.closed:
                tasks = self._hand_out(member)
            self._pass_on(parked, tasks)
            if tasks and not parked.is_over and self.direct(member, tasks):
                self.line_up(member)
                return None
            if not (tasks or parked.is_over or self._must_answer(member)):
                self.line_up(member)
                return None
            self._roster.liveness.heard(member.id, self._clock())
        else:
            self._pass_on(parked, tasks)
        if current:
            del self._waiter_of[parked.process_id]
        parked.is_answered = True
        reply = [tasks, self.notices(member, parked.generation)]
        return lambda: parked.answer(reply)

    def _must_answer(self, member: Member) -> bool:
        """Whether there is something to tell a slave even if there is no task for it.

        While the journal cannot be written nothing is handed out, so waiting would be in vain;
        the call that answers is the one that tries the journal again.
        """
        if self.closed or member.has_notices():
            return True
        return self._ledger is not None and bool(self._ledger.trouble)

    def _pass_on(self, waiter: Waiter, taken: Iterable[Assignment]) -> None:
        """What a call was woken for and did not take is another one's.

        It may have been woken for a tag that it has no time left for, or found a task of another
        tag. Who is woken in vain no longer stands in line for that tag, so this comes to an end.
        """
        tag, waiter.called_for = waiter.called_for, None
        if tag is None or tag in {task.tag for task in taken}:
            return
        if self._leases.peek((tag,)) is not None:
            self.waiters.wake(tag)

    def _hand_out(self, member: Member) -> list[Assignment]:
        if self._ledger is not None and self._ledger.trouble:
            return []  # nothing can be put on record, so nothing is begun
        now = self._clock()
        tasks = self._scheduler.hand_out(member, now)
        if not tasks and (tasks := self._scheduler.repeat(member, now)):
            repeated = tasks[0].task_id
            log.info("task %s is run a second time", repeated, extra={"action": "task_repeated"})
        return tasks

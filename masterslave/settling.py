"""What comes of an event in the queue, carried out: on record, told, logged, woken for.

The queue says by an `Effect` what has happened to a task. Here the journal and the stories of
failures hear of it, the client and other slaves that wait for it, slaves that run it in vain, and
observers. All methods are called with the task manager's lock held, but for `put_on_record`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from masterslave.attempts import Attempt, FailureLog, own_story
from masterslave.errors import JournalError
from masterslave.handout import HandOut
from masterslave.leases import Leases
from masterslave.ledger import Ledger
from masterslave.outbox import Outbox
from masterslave.records import Assignment, Completion, Outcome
from masterslave.room import Room
from masterslave.roster import Member, Roster
from masterslave.scheduler import Scheduler
from masterslave.states import Effect, Task
from masterslave.waiters import Monitor, ResultWaiters

log = logging.getLogger(__name__)


class Settling:
    """Settles what has ended."""

    def __init__(
        self,
        lock: Monitor,
        clock: Callable[[], float],
        roster: Roster,
        leases: Leases,
        scheduler: Scheduler,
        ledger: Ledger | None,
        room: Room,
        outbox: Outbox,
        handout: HandOut,
        results: ResultWaiters,
    ) -> None:
        self._lock = lock
        self._clock = clock
        self._roster = roster
        self._leases = leases
        self._scheduler = scheduler
        self._ledger = ledger
        self._room = room
        self._outbox = outbox
        self._handout = handout
        self._slaves_wait = handout.waiters
        self._clients_wait = results
        self.failure_log = FailureLog()
        #: Called when `seconds_until_due` has become less.
        self.alarm: Callable[[], None] = lambda: None
        self._alarm_due: float | None = None  # the next back-off's end that the watchdog knows of

    def settle_all(
        self, process_id: int, member: Member | None, ended: list[Completion], now: float
    ) -> None:
        """Use the completions of one call: what each costs is paid for every task."""
        plain, others = self._scheduler.complete_all(process_id, member, ended, now)
        if plain:
            if self._ledger is not None:
                self._ledger.finished(plain, process_id)
            if self.failure_log.is_under_way:
                for task, _ in plain:
                    self.failure_log.ended_well(task.id)
            if self._outbox.is_read:
                for task, done in plain:
                    self._outbox.note(
                        "task_finished", task.id, task.tag, task.outcome, done.duration_s
                    )
            for client in {task.client for task, _ in plain} if self._clients_wait.calls else ():
                self._clients_wait.notify(client)
            self._room.found()
        for effect, done in others:
            self.write(effect, process_id, done.attempt, done.duration_s)
            self.act(effect, member, done.detail, done.duration_s)

    def _settle(self, process_id: int, member: Member | None, done: Completion, now: float) -> None:
        """Use one completion."""
        effect = self._scheduler.complete(process_id, member, done, now)
        self.write(effect, process_id, done.attempt, done.duration_s)
        self.act(effect, member, done.detail, done.duration_s)

    def act(
        self, effect: Effect, member: Member | None, reason: str, duration_s: float = 0.0
    ) -> None:
        """Carry out what an event in the queue came to."""
        task = effect.task
        if task is None:
            return
        self._scheduler.ended(task.id)
        if effect.stop_on is not None:
            self._order_stop(effect.stop_on, task.id)
        if effect.kind == "finished":
            self._clients_wait.notify(task.client)
            self._room.found()
            if self._outbox.is_read:
                self._outbox.note("task_finished", task.id, task.tag, task.outcome, duration_s)
            if task.outcome in ("crashed", "out_of_memory", "timed_out"):
                log.error("task %s: %s", task.id, task.detail, extra={"action": "task_failed"})
        elif effect.kind == "rescheduled":
            self._slaves_wait.wake(task.tag)
            self._rescheduled(task, member, reason)
        elif effect.kind == "deferred":
            at = self._leases.next_due()
            if at is not None and (self._alarm_due is None or at < self._alarm_due):
                self._alarm_due = at
                self.alarm()
            self._rescheduled(task, member, reason)
        elif effect.kind == "due":
            self._slaves_wait.wake(task.tag)

    def write(
        self, effect: Effect, process_id: int, attempt: int | None = None, duration_s: float = 0.0
    ) -> None:
        """Put on record what an event in the queue came to."""
        task = effect.task
        if task is None:
            return
        if attempt is None:
            attempt = task.attempt
        if self._ledger is not None:
            self._ledger.settled(effect, process_id, attempt, duration_s)
        outcome = effect.setback or (task.outcome if effect.kind == "finished" else "")
        if outcome == Outcome.RESULT:
            self.failure_log.ended_well(task.id)
        elif outcome:
            if effect.setback:
                story = task.history[-1].partition(": ")[2]
            else:
                story = own_story(attempt, outcome, task.detail)
            member = self._roster.known(process_id)
            where = member.info.machine if member is not None else f"process {process_id}"
            failed = Attempt(attempt, where, outcome, time.time(), story)
            tell = self.failure_log.setback if effect.setback else self.failure_log.failed
            tell(task.id, task.tag, failed)

    def release(self, member: Member) -> None:
        """A slave has left: what it held is run elsewhere, at no cost."""
        for effect in self._leases.release(member.id):
            self.act(effect, member, "not begun")

    def has_cancelled(self, task_id: str, holders: Iterable[int]) -> None:
        """A task was taken back; those who run it are to be told."""
        for holder in holders:
            self._order_stop(holder, task_id)
        self.failure_log.ended_well(task_id)
        if self._ledger is not None:
            self._ledger.cancelled(task_id)
        self._outbox.note("task_finished", task_id, task_id.rpartition("_")[0], "cancelled", 0.0)

    # --- retries ----------------------------------------------------------------------------

    def put_due_in_line(self) -> None:
        """Have retries run whose back-off is over."""
        for effect in self._leases.due(self._clock()):
            self.act(effect, None, "")

    def seconds_until_due(self) -> float | None:
        """Seconds until a back-off is over; None when there is none."""
        at = self._alarm_due = self._leases.next_due()
        return None if at is None else max(0.0, at - self._clock())

    # --- the journal ------------------------------------------------------------------------

    def put_on_record(
        self,
        books: Ledger,
        member: Member | None,
        tasks: list[Assignment],
        notices: dict[str, Any],
    ) -> list[Assignment]:
        """Have the journal hold all that this call did; gives its tasks, with their parameters.

        Raises `JournalError` when that fails; the tasks and notices wait for another call then.
        """
        try:
            books.sync()
        except JournalError:
            with self._lock:
                if member is not None:
                    member.take_back(notices)
                    self.return_unsent(member, tasks)
            raise
        filled, unreadable = books.filled(tasks)
        if unreadable or books.has_heavy():
            with self._lock:
                for done in unreadable:
                    assert member is not None
                    self._settle(member.id, member, done, self._clock())
                books.rest()
        return filled

    def return_unsent(self, member: Member, tasks: list[Assignment]) -> None:
        """Tasks were handed out, and cannot be sent: they go back to the head of their lines."""
        for task in reversed(tasks):
            returned = Outcome.RETURNED.value
            done = Completion(task.task_id, task.attempt, returned, [], 0.0, "not begun")
            self._settle(member.id, member, done, self._clock())

    # --- inside -----------------------------------------------------------------------------

    def _rescheduled(self, task: Task, member: Member | None, reason: str) -> None:
        if reason != "not begun":
            where = member.info.machine if member is not None else "a slave"
            log.log(
                logging.WARNING if task.crashes else logging.INFO,
                "task %s is run again (attempt %d on %s: %s)",
                task.id,
                task.attempt,
                where,
                reason.strip().rpartition("\n")[2],
                extra={"action": "task_rescheduled"},
            )
        self._outbox.note("task_rescheduled", task.id, task.tag, reason)

    def _order_stop(self, process_id: int, task_id: str) -> None:
        member = self._roster.present.get(process_id)
        if member is not None:
            member.cancelled.append(task_id)
            self._handout.rouse(member)

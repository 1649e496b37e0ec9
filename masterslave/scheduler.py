"""Which tasks a slave gets: the queue's order, tempered by what it has time and workers for.

Knows how long tasks of a tag take (`pace`), so that a slave holds some milliseconds of tiny tasks
and no long one more than it has workers, gets nothing that its time no longer suffices for, and,
when nothing waits, may repeat a task that takes long elsewhere (`stragglers`). Time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable

from masterslave.leases import Leases
from masterslave.pace import Pace
from masterslave.pieces import LIFT_BYTES
from masterslave.records import (
    BATCH_BYTES,
    NO_TIME_LEFT,
    Assignment,
    Completion,
    Outcome,
    frame_bytes,
)
from masterslave.roster import Member
from masterslave.states import Effect, Task
from masterslave.stragglers import Stragglers

#: Outcomes that say how long the handler takes.
_RAN = frozenset((Outcome.RESULT.value, Outcome.EXCEPTION.value))


class Scheduler:
    """Hands out a queue's tasks and takes note of how long they took."""

    def __init__(self, leases: Leases) -> None:
        self._queue = leases.queue
        self._leases = leases
        self._held = leases.held
        self.pace = Pace()
        self._stragglers = Stragglers()

    def tags_for(self, member: Member, now: float) -> frozenset[str]:
        """The tags of which a slave may get tasks now."""
        return member.timely_tags(self.pace, now)

    def hand_out(self, member: Member, now: float) -> list[Assignment]:
        """Give a slave what it may hold: as many tasks as make up a message, or none."""
        tasks: list[Assignment] = []
        tags = self.tags_for(member, now)
        queue, leases = self._queue, self._leases
        while (task := leases.peek(tags)) is not None:
            load = self._held.load_of(member.id)
            count = member.may_take(task.tag, load, self.pace)
            held, fair = load.get(task.tag, 0), self.pace.fair_to_hold(task.tag, member.room)
            if held + count > fair:
                quarter = (queue.waiting(task.tag) + held) // 4
                count = min(count, max(fair, quarter) - held)
            if task.size > LIFT_BYTES:
                held, of_tag = sum(load.values()), load.get(task.tag, 0)
                count = min(
                    count, self.pace.more_bytes_to_hold(task.size, of_tag, held, member.room)
                )
            if count <= 0:
                break
            size = sum(frame_bytes(assignment.frame) for assignment in tasks)
            if tasks and size + task.size > BATCH_BYTES:
                break  # the rest fits into the next answer
            tasks += leases.hand_out_run(member.id, task, tags, count, BATCH_BYTES - size)
        if self._stragglers:
            for assignment in tasks:
                self._stragglers.began(assignment.task_id, assignment.tag, member.id, now)
        return tasks

    def held_by(self, member: Member) -> int:
        """How many tasks a slave holds."""
        return len(self._held.of(member.id))

    def is_idle(self, member: Member) -> bool:
        """Whether one of a slave's workers waits for a task."""
        return member.is_idle(self.held_by(member))

    def complete_all(
        self, process_id: int, member: Member | None, batch: Iterable[Completion], now: float
    ) -> tuple[list[tuple[Task, Completion]], list[tuple[Effect, Completion]]]:
        """A slave hands in the ends of attempts; see `Leases.complete_all`."""
        plain, others = self._leases.complete_all(process_id, batch, now)
        durations: dict[str, list[float]] = {}
        for task, done in plain:
            of_tag = durations.get(task.tag)
            if of_tag is None:
                of_tag = durations[task.tag] = []
            of_tag.append(done.duration_s)
        for tag, of_tag in durations.items():
            self.pace.record_all(tag, of_tag)
        if member is not None:
            member.finished += len(plain)
        if self._stragglers:
            for task, _ in plain:
                self._stragglers.ended(task.id)
        for effect, done in others:
            self._took_note(effect, member, done)
        return plain, others

    def complete(
        self, process_id: int, member: Member | None, done: Completion, now: float
    ) -> Effect:
        """A slave hands in the end of an attempt; `member` as far as it is known."""
        effect = self._leases.complete(process_id, done, now)
        self._took_note(effect, member, done)
        return effect

    def _took_note(self, effect: Effect, member: Member | None, done: Completion) -> None:
        task = effect.task
        if task is None:
            return
        if done.outcome in _RAN:
            self.pace.record(task.tag, done.duration_s)
            if member is not None:
                member.finished += 1
        elif member is not None and done.detail == NO_TIME_LEFT:
            member.too_long.add(task.tag)

    # --- stragglers -------------------------------------------------------------------------

    def repeat_stragglers(self, tag: str, factor: float | None) -> None:
        """See `Stragglers.enable`."""
        self._stragglers.enable(tag, factor)

    def ended(self, task_id: str) -> None:
        """The task does not run any more."""
        if self._stragglers:
            self._stragglers.ended(task_id)

    def late_tags(self, now: float) -> set[str]:
        """The tags that have a task to be repeated."""
        return self._stragglers.late_tags(self.pace, now)

    def repeat(self, member: Member, now: float) -> list[Assignment]:
        """Nothing waits for an idle worker: let it begin a task that takes long elsewhere."""
        if not self._stragglers or not self.is_idle(member):
            return []
        tags = (member.tags or frozenset()) - set(self._queue.waiting_tags())
        task_id = self._stragglers.pick(member.id, tags, self.pace, now)
        if task_id is None:
            return []
        self._stragglers.ended(task_id)
        assignment = self._leases.repeat(member.id, task_id)
        if assignment is None:
            return []
        return [assignment]

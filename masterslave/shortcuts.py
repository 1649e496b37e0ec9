"""Tasks that go to workers of this machine without their supervisor between (`shortcut`).

Two kinds of them do: tasks for which there are idle workers, and tiny tasks, many at once. Of all
others, the supervisor is to decide which worker runs them, and when; while it has some of those, so
it is of all. A slave gets tasks this way when its call for tasks is there, in whose answer they
would be else; a call that waits goes on waiting. What is on a shortcut is leased to the slave like
any task.

A worker that says nothing for long while tasks stand behind the one that it runs gives those up:
it is forbidden to begin another one, and when it is sure what it has begun, the rest is taken back
(see `board`). So one that was late only, as others had the processor, runs none that is taken back.

All methods are called with the task manager's lock held, so results are read by one thread at a
time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, Protocol

from masterslave.leases import Leases
from masterslave.pace import HORIZON_S, Pace
from masterslave.records import Assignment, Completion, Outcome, frame_bytes
from masterslave.roster import Member
from masterslave.settling import Settling
from masterslave.waiters import Waiting

log = logging.getLogger(__name__)

#: Longest id, in characters; see `board.LONGEST_ID`.
_LONGEST_ID = 100

#: Larger frames are not even packed to see whether they fit. Larger: in vain. Smaller: fewer tasks.
_LARGEST_FRAME = 4000

#: Tasks that usually take up to so long go many at once. Larger: more stands behind one that turns
#: out long. Smaller: the slave's supervisor is woken for them.
_TINY_S = 0.0005

#: A worker that has said nothing for so long gives up what stands behind its task. Larger: that is
#: held back. Smaller: on a busy machine, tasks are taken back for nothing.
_STALL_S = 2.5 * HORIZON_S

#: After so long it is sure what a worker has begun that was forbidden to begin more; see `board`.
#: Larger: what is to be taken back is held back longer. Smaller: the processor may not have written
#: it to memory.
_SURE_S = 0.001

#: Of the room for messages to a worker tasks take up to so much. Larger: of those that are to be
#: taken back only the last ones can be named. Smaller: fewer tasks at once.
_PART_FOR_TASKS = 0.75

#: Slaves try again to hand in results when so much time has passed since the journal could not be
#: written. Larger: what stands behind a long task is held back then. Smaller: it is run twice.
_AFTER_S = 2.0

#: Tasks taken back that the log names. Larger: long lines. Smaller: one looks in vain.
_NAMED = 10

_RETURNED = Outcome.RETURNED.value

#: Of an assignment its id and attempt; and number and bytes of one that is not known.
_KEY, _UNKNOWN = itemgetter(0, 2), (-1, 0.0)

#: Outcomes with which the worker has ended, or is about to.
_DEATHS = (Outcome.CRASHED.value, Outcome.OUT_OF_MEMORY.value, Outcome.TIMED_OUT.value)


class End(Protocol):
    """The task manager's ends of a shortcut, see `shortcut.ManagerShortcut`."""

    room_bytes: int  # of messages that may be on their way

    def pack(self, tasks: Sequence[Assignment]) -> bytes:
        """The message for tasks."""

    def pack_skip(self, keys: Sequence[tuple[str, int]]) -> bytes:
        """The message that says not to run these, by id and attempt."""

    def pack_forget(self, names: Sequence[str]) -> bytes:
        """The message that says that these data items were deleted."""

    def send(self, data: bytes) -> None:
        """Send a message to the worker, without waiting."""

    def read(self) -> list[Completion]:
        """The results that are there, without waiting. Raises `ValueError`."""

    def acknowledge(self) -> None:
        """The results that were read are safe."""

    def hold(self) -> bool:
        """Have the worker begin no task; false where that cannot be."""

    def begun(self) -> tuple[bool, tuple[str, int] | None]:
        """Whether it is sure that it begins none, and the last that it began.

        Sure it is when a moment has passed since `hold`, see `board`. Raises `ValueError`.
        """

    def release(self) -> None:
        """The worker may begin tasks again."""

    def look_closely(self, closely: bool) -> None:
        """Whether to be told of results that the worker says nothing of."""

    def ear(self) -> Waiting | None:
        """For a thread that waits itself for a result from here; None where that cannot be."""

    def close(self) -> None:
        """Let go of it."""


#: Opens what a slave has named, and has the function called when there is something to be read.
#: Raises `OSError` where that cannot be, `ValueError` for what is no name.
Opener = Callable[[Sequence[Any], Callable[[], None]], End]


class _Shortcut:
    __slots__ = (
        "end", "ended_number", "heard_at", "held_at", "is_shut", "looked_at", "on_way_bytes",
        "sent", "stalls", "tasks",
    )  # fmt: skip

    def __init__(self, end: End) -> None:
        self.end = end
        # Id and attempt of what it has, in order; of each its number, and its bytes on the way.
        self.tasks: dict[tuple[str, int], tuple[int, float]] = {}
        self.sent = 0  # tasks
        self.ended_number = -1  # the highest number of one that has ended
        self.on_way_bytes = 0.0  # of messages that may not have been read
        self.is_shut = False  # gets no more tasks
        self.heard_at = 0.0  # or when it was given something, being idle
        self.looked_at = 0.0  # whether or not there was something
        self.held_at: float | None = None  # when it was forbidden to begin tasks, if it is
        self.stalls = False  # it runs one task for long, and what stood behind is taken back

    def ended(self, done: Iterable[Completion], now: float) -> None:
        """These are over, if it had them."""
        pop, last = self.tasks.pop, self.ended_number
        for task_id, attempt, _, _, _, _ in done:
            number, part = pop((task_id, attempt), _UNKNOWN)
            self.on_way_bytes -= part
            last = last if last > number else number  # they need not come in order
        self.ended_number = last
        self.heard_at = now
        self.stalls = False
        self.release()
        if not self.tasks:
            self.on_way_bytes = 0.0
            self.end.look_closely(False)

    def release(self) -> None:
        """It may begin tasks, if it was forbidden."""
        if self.held_at is not None:
            self.held_at = None
            self.end.release()


class Shortcuts:
    """The shortcuts of all slaves."""

    def __init__(
        self, clock: Callable[[], float], leases: Leases, pace: Pace, settling: Settling
    ) -> None:
        self._clock = clock
        self._held = leases.held
        self._pace = pace
        self._settling = settling
        self._of: dict[int, dict[int, _Shortcut]] = {}  # process id -> number of the worker
        self.opener: Opener | None = None  # None: there are no shortcuts here
        self._last: _Shortcut | None = None  # that was given something
        #: Whether slaves keep results as they cannot be put on record.
        self.is_held_up: Callable[[], bool] = lambda: False

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
        shortcut = self._of.setdefault(member.id, {})[worker] = _Shortcut(end)
        if member.dropped_lately:  # a task would overtake what its slave is told of them
            self._tell_to_forget(shortcut, list(member.dropped_lately))
        return True

    def take(self, member: Member, tasks: Sequence[Assignment]) -> bool:
        """Send tasks that were just handed out this way; false if they are to go the long way."""
        mine = self._of.get(member.id)
        if not mine or not tasks or member.has_notices():
            return False
        held = len(self._held.of(member.id))
        if held == 1 and not any(one.tasks for one in mine.values()):  # what is waited for most
            idle = next((one for one in mine.values() if not one.is_shut), None)
            return idle is not None and _are_light(tasks) and self._send([(idle, tasks)])
        busy = sum(len(shortcut.tasks) for shortcut in mine.values())
        open_ones = [one for one in mine.values() if not one.is_shut]
        ready = [one for one in open_ones if not one.tasks]
        has_others = held != busy + len(tasks)
        if has_others or len(tasks) > len(ready):
            load = self._held.load_of(member.id)
            if not all(self._is_tiny(tag) for tag, count in load.items() if count):
                return False  # its supervisor is to decide who runs them, and when
            ready = sorted(open_ones, key=lambda one: len(one.tasks))
            ready = [one for one in ready if not one.stalls]
        if not ready or not _are_light(tasks):
            return False
        each = -(-len(tasks) // len(ready))
        shares = [tasks[start : start + each] for start in range(0, len(tasks), each)]
        return self._send(list(zip(ready, shares, strict=False)))

    def _send(self, shares: Sequence[tuple[_Shortcut, Sequence[Assignment]]]) -> bool:
        """Send tasks to these workers; false, and nothing is sent, if there is no room for all."""
        parcels = [(one, share, one.end.pack(share)) for one, share in shares]
        if any(
            one.on_way_bytes + len(data) > _PART_FOR_TASKS * one.end.room_bytes
            for one, _, data in parcels
        ):
            return False
        now = self._clock()
        for one, share, data in parcels:
            if not one.tasks:
                one.heard_at = now
            part = len(data) / len(share)
            numbers = range(one.sent, one.sent + len(share))
            one.sent += len(share)
            one.tasks.update(zip(map(_KEY, share), zip(numbers, repeat(part)), strict=True))
            one.on_way_bytes += len(data)
            one.end.send(data)
            if len(one.tasks) > 1:
                one.end.look_closely(True)
        self._last = shares[-1][0]
        return True

    def ear(self) -> Waiting | None:
        """For a thread that waits for a result: it listens itself where the next may come from.

        None where no task came alone and runs.
        """
        last = self._last
        return last.end.ear() if last is not None and len(last.tasks) == 1 else None

    def wants(self, member: Member, tag: str) -> bool:
        """Whether a slave has nothing but tiny tasks, and could have more of that tag this way."""
        mine = self._of.get(member.id, {})
        load = self._held.load_of(member.id)
        return (
            self._is_tiny(tag)
            and any(not one.is_shut for one in mine.values())
            and (all(self._is_tiny(tag) for tag, count in load.items() if count))
        )

    def acknowledge(self, member: Member, worker: int) -> None:
        """The results that were heard from a worker are safe."""
        shortcut = self._of.get(member.id, {}).get(worker)
        if shortcut is not None:
            shortcut.end.acknowledge()

    def forget(self, member: Member, name: str) -> None:
        """A data item was deleted, which no task that comes by a shortcut later is to find."""
        for shortcut in self._of.get(member.id, {}).values():
            self._tell_to_forget(shortcut, [name])

    def _tell_to_forget(self, shortcut: _Shortcut, names: Sequence[str]) -> None:
        data = shortcut.end.pack_forget(names)
        if shortcut.on_way_bytes + len(data) <= shortcut.end.room_bytes:
            shortcut.end.send(data)
            shortcut.on_way_bytes += len(data)
        else:  # a task would overtake it
            shortcut.is_shut = True

    def _is_tiny(self, tag: str) -> bool:
        usual_s = self._pace.estimate_s(tag)
        return usual_s is not None and usual_s <= _TINY_S

    def hear(self, member: Member, worker: int) -> bool:
        """Use the results that have come from a worker; true if there were any.

        Raises `ValueError` when something came that is none.
        """
        shortcut = self._of.get(member.id, {}).get(worker)
        if shortcut is None:
            return False
        now = self._clock()
        ended = shortcut.end.read()
        if ended:
            shortcut.ended(ended, now)
            self._count_stalls(member)
            self._settling.settle_all(member.id, member, ended, now)
        if self.is_held_up():
            shortcut.heard_at = now + _AFTER_S
        elif now - shortcut.looked_at > _STALL_S / 2:  # so we do not know what it has said
            shortcut.heard_at = max(shortcut.heard_at, now)
        shortcut.looked_at = now
        if len(shortcut.tasks) > 1 and now - shortcut.heard_at > _STALL_S:
            if shortcut.held_at is None:
                if shortcut.end.hold():
                    shortcut.held_at = now
            elif now - shortcut.held_at > _SURE_S:
                self._recall(member, shortcut, now)
        else:
            shortcut.release()
        return bool(ended)

    def _recall(self, member: Member, shortcut: _Shortcut, now: float) -> None:
        """Take back what stands behind the task that a worker runs."""
        shortcut.stalls = True
        behind = self._not_begun(shortcut)
        room = shortcut.end.room_bytes - shortcut.on_way_bytes
        while len(skip := shortcut.end.pack_skip(behind)) > room and behind:
            del behind[: (len(behind) + 1) // 2]  # these stay
        if behind:
            shortcut.end.send(skip)
            shortcut.on_way_bytes += len(skip)
            for key in behind:
                del shortcut.tasks[key]  # it may not have been read: what it took is still taken
            before, said = list(shortcut.tasks)[-1][0], " ".join(one for one, _ in behind[:_NAMED])
            log.info("%s takes long; run elsewhere, %d: %s", before, len(behind), said)
        shortcut.release()
        shortcut.heard_at = now
        self._count_stalls(member)
        unrun = [Completion(*key, _RETURNED, [], 0.0, "not begun") for key in reversed(behind)]
        self._settling.settle_all(member.id, member, unrun, now)

    def _not_begun(self, shortcut: _Shortcut) -> list[tuple[str, int]]:
        """What a worker that may begin no task has surely not begun, but for the first task."""
        is_sure, last = shortcut.end.begun()
        if not is_sure:
            return []
        begun = shortcut.tasks[last][0] if last in shortcut.tasks else shortcut.ended_number
        behind = list(shortcut.tasks.items())[1:]
        return [key for key, (number, _) in behind if number > begun]

    def _count_stalls(self, member: Member) -> None:
        stalled = [one for one in self._of.get(member.id, {}).values() if one.stalls]
        member.stalled = len(stalled)
        member.behind = sum(max(0, len(one.tasks) - 1) for one in stalled)

    def is_busy(self, member: Member) -> bool:
        """Whether a slave has tasks that went this way."""
        mine = self._of.get(member.id)
        return mine is not None and any(one.tasks for one in mine.values())

    def freed(self, member: Member, ended: Iterable[Completion]) -> None:
        """Attempts have ended, as was told in another way."""
        outcomes = {(one.task_id, one.attempt): one.outcome for one in ended}
        for shortcut in self._of.get(member.id, {}).values():
            if not shortcut.tasks.keys().isdisjoint(outcomes):
                was = {outcomes[key] for key in shortcut.tasks.keys() & outcomes.keys()}
                shortcut.is_shut = shortcut.is_shut or not was.isdisjoint(_DEATHS)
                shortcut.ended(ended, self._clock())
        self._count_stalls(member)

    def close(self, member: Member, workers: Iterable[int]) -> None:
        """These workers have ended: what had gone to them and has not come back is run again."""
        mine = self._of.get(member.id)
        gone = [mine.pop(worker) for worker in workers if worker in mine] if mine else []
        for shortcut in gone:
            ended = self._last_words(shortcut)
            shortcut.ended(ended, 0.0)
            ended += [
                Completion(*key, _RETURNED, [], 0.0, "not begun")
                for key in reversed(shortcut.tasks)
            ]
            if ended:
                self._settling.settle_all(member.id, member, ended, self._clock())
        if mine is not None and not mine:
            del self._of[member.id]
        self._count_stalls(member)

    def let_go(self, member: Member) -> None:
        """A slave leaves, is lost or registers again: what it holds is settled in the usual way.

        Its supervisor reads what comes from now on.
        """
        for shortcut in self._of.pop(member.id, {}).values():
            if ended := self._last_words(shortcut):
                self._settling.settle_all(member.id, member, ended, self._clock())
        self._count_stalls(member)

    def _last_words(self, shortcut: _Shortcut) -> list[Completion]:
        if shortcut is self._last:
            self._last = None
        ended: list[Completion] = []
        try:
            ended += shortcut.end.read()
        except ValueError as error:  # it is closed, and the tasks are run again
            log.warning("a shortcut is damaged: %s", error, extra={"action": "shortcut_damaged"})
        shortcut.end.close()
        return ended


def _are_light(tasks: Iterable[Assignment]) -> bool:
    for task_id, _, _, frame, timeout in tasks:
        if timeout is not None:  # its supervisor is to look at the clock
            return False
        if len(task_id) > _LONGEST_ID or frame_bytes(frame) > _LARGEST_FRAME:
            return False
    return True

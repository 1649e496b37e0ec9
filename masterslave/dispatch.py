"""How a slave shares its tasks among its workers: pure logic, time is an argument.

::

    from the task manager --> backlog --> a worker's line: the first is running, the rest are next

A worker gets its next task when it has finished the last one; only of tiny tasks does it hold
some in advance, and one to three of some milliseconds. A worker that dies is blamed for the first
task of its line, the others were not begun. A task that holds up its line for long gives the rest
of the slave's work back, so that other slaves can run it; what the worker has begun meanwhile,
being late only, stays.

A task that went to a worker by the `shortcut` is first in its line while it is seen to run.

The shell (`supervisor.py`) tells what happened and carries out what `Dispatch` answers.

The module is longer than others as all of its events change the same few lines.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from masterslave.pace import HORIZON_S, Pace
from masterslave.records import (
    NO_TIME_LEFT,
    Assignment,
    Completion,
    Frame,
    Outcome,
    frame_bytes,
)

#: Work in line for each worker that is enough for results to be gathered, see `Uplink.hand_in`.
#: Larger: seldom so much. Smaller: workers run dry while their slave waits for more results.
ENOUGH_S = 0.006

#: Work in a worker's own line beyond the running task. Larger: more waits behind a task that turns
#: out long. Smaller: the worker waits for its supervisor between tiny tasks.
AHEAD_S = 0.002

#: Large parameters of those tasks, together. Larger: they wait while other workers could have them.
#: Smaller: as above.
_AHEAD_BYTES = 1 << 21

#: Usual duration up to which one further task stands behind the running one, whatever `AHEAD_S`
#: says, so that the worker need not wait for its supervisor in between. Larger: a task waits behind
#: another one while other workers may come free. Smaller: workers wait a good part of their time.
NEXT_S = HORIZON_S

#: The same for so many at once, while there is a next one for each worker besides. Larger: as
#: above. Smaller: more messages, each of which takes as long as what a worker does for a task.
_NEXT_THREE_S = 0.6 * HORIZON_S
_THREE = 3

#: A running task that takes this much longer than the horizon makes the slave give back what it
#: holds in advance. Larger: held-back tasks wait longer. Smaller: work travels to and fro.
STALL_S = 2.5 * HORIZON_S


#: So soon it is asked again what a worker has begun, when that was not sure. Larger: what stands
#: behind a long task is held back longer. Smaller: one asks in vain.
_SURE_S = 0.001

#: Parameters of at least this size are the worker's alone while it runs the task. Smaller: time is
#: lost on counting what is not worth it.
_LET_GO_BYTES = 1 << 20

_LET_GO: Frame = []  # stands for them here

#: Cancelled tasks that are remembered as they may be on a shortcut. Larger: memory. Smaller: of
#: more that are cancelled at a time, one may be run to its end.
_CANCELLED = 256


class Send(NamedTuple):
    """Give these tasks to a worker."""

    worker: int
    tasks: list[Assignment]


class Kill(NamedTuple):
    """End a worker: its task is past its limit, or was cancelled."""

    worker: int
    why: str  # becomes part of the story


class Skip(NamedTuple):
    """Tell a worker not to run these tasks of its line after all."""

    worker: int
    task_ids: list[str]


Action = Send | Kill | Skip
_RESULT, _RETURNED = Outcome.RESULT.value, Outcome.RETURNED.value


def _slim(task: Assignment) -> Assignment:
    """The first task of a line as it is kept here: it will not be sent to another worker."""
    large = frame_bytes(task.frame) >= _LET_GO_BYTES
    return task._replace(frame=_LET_GO) if large else task


class _Blame(NamedTuple):
    """Why a worker is being killed."""

    task_id: str
    outcome: Outcome
    why: str


class _Worker:
    __slots__ = ("beside", "blame", "busy_since", "ended", "line", "ready", "refill_at", "unread")

    def __init__(self) -> None:
        self.beside: tuple[str, int] | None = None  # first in line, came by the shortcut
        self.ready = False
        self.line: deque[Assignment] = deque()
        self.busy_since = 0.0  # when the first of the line began, as far as can be told from here
        self.refill_at = 1  # length of the line at which it gets more in advance
        self.ended = 0  # of the tasks that it got from here
        self.unread = 0  # Skips that it has not answered: it may be at a task of theirs
        self.blame: _Blame | None = None

    def condemn(self, outcome: Outcome, why: str) -> None:
        self.blame = _Blame(self.line[0].task_id, outcome, why)


class Dispatch:
    """The tasks of one slave and who runs them."""

    def __init__(
        self, ends_at: float | None = None, begun: Callable[[int], int | None] = lambda _: 0
    ) -> None:
        """`ends_at`: begin no task that usually takes longer than until then.

        `begun`: how many of the tasks that it got from here a worker has begun; it begins no more
        until it is told what to skip. None: that is not sure yet, and to be asked again.
        """
        self._ends_at = ends_at
        self._begun = begun
        self.backlog: deque[Assignment] = deque()
        self.completions: list[Completion] = []  # to be handed in; the shell empties it
        self.draining = False  # takes no more tasks, finishes those that run
        self._workers: dict[int, _Worker] = {}
        self._pace = Pace()
        self._known: dict[tuple[str, int], None] = {}  # (task, attempt) held here, oldest first
        self._announced: set[str] = set()  # tasks whose start was reported
        self._cancelled: deque[str] = deque(maxlen=_CANCELLED)  # unknown here when they were

    # --- what happens -----------------------------------------------------------------------

    def worker_ready(self, worker: int) -> None:
        """A worker has loaded the slave's code."""
        self._workers.setdefault(worker, _Worker()).ready = True

    def arrived(self, tasks: Iterable[Assignment]) -> None:
        """Tasks came from the task manager; one that is here already is not taken twice."""
        for task in tasks:
            if (task.task_id, task.attempt) not in self._known:
                self._known[task.task_id, task.attempt] = None
                self.backlog.append(task)

    def finished(self, worker: int, done: Completion, now: float) -> None:
        """A worker hands in the first task of its line."""
        state = self._workers.get(worker)
        if state is None:
            return
        if state.beside is not None:  # that was before, or is not told of in this way
            beside, began = state.line.popleft(), state.busy_since
            state.beside, was = None, state.beside
            self.finished(worker, done, now)
            state.beside, state.busy_since = was, began
            state.line.appendleft(beside)
            return
        state.ended += 1
        ends = done.outcome == Outcome.OUT_OF_MEMORY  # the worker does, and begins nothing more
        key = (done.task_id, done.attempt)
        # Else it is of an attempt that was given up here in the meantime.
        if state.line and (state.line[0].task_id, state.line[0].attempt) == key:
            task = state.line.popleft()
            state.busy_since = now
            if not ends:
                self._pace.record(task.tag, done.duration_s)
            self._end(done)
        if ends:
            self.backlog.extendleft(reversed(state.line))
            del self._workers[worker]

    def finished_all(self, worker: int, ends: Iterable[Completion], now: float) -> None:
        """`finished` for each of these; nearly all are results of what comes first in its line."""
        state = self._workers.get(worker)
        known, announced = self._known, self._announced
        durations: dict[str, list[float]] = {}  # by tag
        for done in ends:
            first = state.line[0] if state is not None and state.line else None
            if (
                state is None
                or first is None
                or state.beside is not None
                or done.outcome != _RESULT
                or first.task_id != done.task_id
                or first.attempt != done.attempt
            ):
                self.finished(worker, done, now)
                state = self._workers.get(worker)
                continue
            state.line.popleft()
            state.ended += 1
            state.busy_since = now
            durations.setdefault(first.tag, []).append(done.duration_s)
            known.pop((first.task_id, first.attempt), None)
            announced.discard(first.task_id)
            self.completions.append(done)
        for tag, of_tag in durations.items():
            self._pace.record_all(tag, of_tag)

    def beside(self, worker: int, task: tuple[str, int] | None, now: float) -> list[Action]:
        """What a worker is seen to run that came by the shortcut: id and attempt; None: nothing."""
        state = self._workers.get(worker)
        if state is None or state.beside == task:
            return []
        if state.beside is not None:
            self._forget_beside(state, now)
        if task is None:
            return []
        task_id, attempt = state.beside = task
        tag = task_id.rpartition("_")[0]
        state.line.appendleft(Assignment(task_id, tag, attempt, _LET_GO, None))
        state.busy_since = now
        self._known[task] = None
        if task_id not in self._cancelled or state.blame is not None:
            return []
        state.condemn(Outcome.RETURNED, "cancelled")
        return [Kill(worker, "cancelled")]

    def finished_beside(self, worker: int, done: Completion, now: float) -> None:
        """The end of a task that came by the shortcut is to be handed in here."""
        state = self._workers.get(worker)
        if state is not None and state.beside == (done.task_id, done.attempt):
            self._forget_beside(state, now)
        self._end(done)
        if state is not None and done.outcome == Outcome.OUT_OF_MEMORY:  # the worker ends
            self.backlog.extendleft(reversed(state.line))
            del self._workers[worker]

    def _forget_beside(self, state: _Worker, now: float) -> None:
        assert state.beside is not None
        task_id, _ = state.beside
        self._known.pop(state.beside, None)
        self._announced.discard(task_id)
        state.beside = None
        state.line.popleft()
        state.busy_since = now

    def skipped(self, worker: int) -> None:
        """A worker has read a Skip: from now on it runs none of those tasks."""
        state = self._workers.get(worker)
        if state is not None:
            state.unread -= 1

    def died(self, worker: int, story: str, outcome: Outcome = Outcome.CRASHED) -> None:
        """A worker has ended. Its running task is to blame unless it was killed on purpose.

        `outcome`: of its running task, when it was not.
        """
        state = self._workers.pop(worker, None)
        if state is None or not state.line:
            return
        first = state.line.popleft()
        self.backlog.extendleft(reversed(state.line))
        if state.blame is not None and state.blame.task_id == first.task_id:
            outcome, story = state.blame.outcome, f"{state.blame.why}; {story}"
        elif state.blame is not None:  # the one it was killed for had just finished
            outcome, story = Outcome.RETURNED, "not begun"
        self._end(Completion(first.task_id, first.attempt, outcome.value, [], 0.0, story))

    def leaving(self, worker: int) -> None:
        """A worker wants no more: what it has not begun goes back."""
        state = self._workers.get(worker)
        if state is not None:
            state.ready = False
            if state.beside is not None:  # it has ended, or the worker would not leave
                self._forget_beside(state, state.busy_since)
            if state.line and state.line[0].frame is _LET_GO:
                self._give_back(state.line.popleft(), "not begun")
            self.backlog.extendleft(reversed(state.line))
            state.line.clear()

    def cancelled(self, task_ids: Iterable[str]) -> list[Action]:
        """The task manager wants nothing more of these tasks."""
        gone = set(task_ids)
        here = {task_id for task_id, _ in self._known}
        self._cancelled.extend(task_id for task_id in gone if task_id not in here)
        return self._stop(lambda task: task.task_id in gone)

    def outdated(self, attempts: Iterable[tuple[str, int]]) -> list[Action]:
        """The task manager wants nothing more of these attempts; a later one may be here, too."""
        gone = set(attempts)
        return self._stop(lambda task: (task.task_id, task.attempt) in gone)

    def _stop(self, is_gone: Callable[[Assignment], bool]) -> list[Action]:
        for task in filter(is_gone, list(self.backlog)):
            self.backlog.remove(task)
            del self._known[task.task_id, task.attempt]
        actions: list[Action] = []
        for number, state in self._workers.items():
            ids = {task.task_id for task in islice(state.line, 1, None) if is_gone(task)}
            behind = [task for task in islice(state.line, 1, None) if task.task_id in ids]
            if behind:
                state.unread += 1
                actions.append(Skip(number, [task.task_id for task in behind]))
                for task in behind:
                    state.line.remove(task)
                    if is_gone(task):
                        del self._known[task.task_id, task.attempt]
                    else:  # another attempt of the same task, which the worker passes over as well
                        self.backlog.appendleft(task)
            if state.line and is_gone(state.line[0]) and state.blame is None:
                state.condemn(Outcome.RETURNED, "cancelled")
                actions.append(Kill(number, "cancelled"))
        return actions

    def drain(self) -> None:
        """Give back what no worker has; take nothing more."""
        self.draining = True
        self._give_back_backlog()

    def interrupt(self, why: str) -> list[Action]:
        """Kill what still runs, at no cost to the tasks."""
        actions: list[Action] = []
        for number, state in self._workers.items():
            if state.line and state.blame is None:
                state.condemn(Outcome.RETURNED, why)
                actions.append(Kill(number, why))
        return actions

    def tick(self, now: float) -> list[Action]:
        """Kill what is past its time limit, feed the workers, give back what is held up."""
        actions: list[Action] = []
        for number, state in self._workers.items():
            if not state.line:
                continue
            task, age = state.line[0], now - state.busy_since
            if task.timeout is not None and age > task.timeout and state.blame is None:
                why = f"killed at its time limit of {task.timeout:g} s"
                state.condemn(Outcome.TIMED_OUT, why)
                actions.append(Kill(number, why))
            if age > STALL_S and len(state.line) > 1:
                actions += self._recall(number, state, now)
        if not self.draining:
            actions += self._feed(now)
        if self.backlog and (self.draining or self.stalled(now)):
            self._give_back_backlog()
        return actions

    # --- questions --------------------------------------------------------------------------

    def stalled(self, now: float) -> bool:
        """Whether no worker is idle or at a short task, so that what waits here is held back."""
        return all(
            now - worker.busy_since > STALL_S if worker.line else worker.unread
            for worker in self._workers.values()
        )

    def room(self, now: float) -> int:
        """How many tasks of any length may be here: one per ready worker; none if no use."""
        if self.draining:
            return 0
        room, stalled = 0, True
        for worker in self._workers.values():
            if worker.line:
                stalled = stalled and now - worker.busy_since > STALL_S
            elif worker.unread:
                continue
            else:
                stalled = False
            if worker.ready and worker.blame is None:
                room += 1
        return 0 if stalled else room

    def runs_low(self, now: float) -> bool:
        """Whether a worker may want a task that is not here within `ENOUGH_S` seconds."""
        share_s = 0.0  # of what waits here, for each worker
        if self.backlog and self._workers:
            estimate_s = self._pace.estimate_s(self.backlog[-1].tag) or 0.0
            share_s = len(self.backlog) * estimate_s / len(self._workers)
        if share_s >= ENOUGH_S:
            return False
        for worker in self._workers.values():
            line, left_s = worker.line, share_s
            if line:
                left_s += max(0.0, self._estimate_s(line[0]) - (now - worker.busy_since))
                left_s += (len(line) - 1) * self._estimate_s(line[-1])
            if left_s < ENOUGH_S and worker.ready:
                return True
        return not self._workers

    def _estimate_s(self, task: Assignment) -> float:
        return self._pace.estimate_s(task.tag) or 0.0

    def busy(self) -> bool:
        """Whether any task is here."""
        return bool(self.backlog) or any(w.line for w in self._workers.values())

    def usual_s(self, tasks: Iterable[Assignment]) -> float:
        """How long these tasks usually take, one after the other; without end if nobody knows."""
        known = [self._pace.estimate_s(task.tag) for task in tasks]
        return math.inf if None in known else sum(filter(None, known))

    def has_lines(self) -> bool:
        """Whether a worker has more than the task that it runs."""
        return any(len(worker.line) > 1 for worker in self._workers.values())

    def running(self, worker: int) -> Assignment | None:
        """The task that a worker runs."""
        state = self._workers.get(worker)
        return state.line[0] if state is not None and state.line else None

    def holds(self) -> list[tuple[str, int]]:
        """Task id and attempt of every task here."""
        return list(self._known)

    def untell(self) -> None:
        """The task manager has lost track: tell it again what has started."""
        self._announced.clear()
        self._cancelled.clear()  # another one may use these ids for other tasks

    def newly_started(self, before: float) -> list[str]:
        """Tasks that workers began before that time and whose start has not been told yet."""
        fresh: list[str] = []
        for worker in self._workers.values():
            if worker.line and worker.busy_since <= before:
                task_id = worker.line[0].task_id
                if task_id not in self._announced:
                    self._announced.add(task_id)
                    fresh.append(task_id)
        return fresh

    def next_deadline(self, now: float, tell_s: float) -> float | None:
        """Seconds until something is to be done by the clock alone; None: nothing.

        That is `tick`, or `newly_started` for tasks that have run for `tell_s` seconds.
        """
        waits = []
        for state in self._workers.values():
            if state.line and state.blame is None:
                age = now - state.busy_since
                if state.line[0].task_id not in self._announced:
                    waits.append(max(0.0, tell_s - age) + 0.001)
                timeout = state.line[0].timeout
                if timeout is not None:
                    waits.append(max(0.0, timeout - age) + 0.001)
                if (self.backlog or len(state.line) > 1) and age <= STALL_S:
                    waits.append(STALL_S - age + 0.001)
                elif len(state.line) > 1:
                    waits.append(_SURE_S)
        return min(waits, default=None)

    # --- moves ------------------------------------------------------------------------------

    def _feed(self, now: float) -> list[Action]:
        if self._ends_at is not None:
            self._give_back_the_too_long(self._ends_at - now)
        if not self.backlog:
            return []
        actions: list[Action] = []
        ready = [
            (number, worker)
            for number, worker in self._workers.items()
            if worker.ready and worker.blame is None and not worker.unread
        ]
        for number, state in ready:
            if self.backlog and not state.line:
                task = self.backlog.popleft()
                state.line.append(_slim(task))
                state.busy_since = now
                actions.append(Send(number, [task]))
        for number, state in ready:
            long = now - state.busy_since > STALL_S  # nothing is to wait behind its task
            if self.backlog and not long and len(state.line) <= state.refill_at:
                batch = self._ahead(state, len(ready))
                if batch:
                    state.line.extend(batch)
                    state.refill_at = max(1, len(state.line) // 2)
                    actions.append(Send(number, batch))
        return actions

    def _ahead(self, state: _Worker, workers: int) -> list[Assignment]:
        """Tasks that a busy worker gets in advance, so that it need not wait for more.

        Tiny ones, and one to three of some milliseconds. `workers`: that want some.
        """
        batch: list[Assignment] = []
        running_s = self._pace.estimate_s(state.line[0].tag)
        load_s = sum(self._pace.estimate_s(task.tag) or AHEAD_S for task in state.line)
        backlog, tag, size = self.backlog, "", 0
        estimate: float | None = None
        while backlog and state.line:
            if backlog[0].tag != tag or estimate is None:
                tag = backlog[0].tag
                estimate = self._pace.estimate_s(tag)
            if estimate is None:
                break
            if load_s + estimate > AHEAD_S:
                if len(state.line) > 1 or running_s is None:
                    break
                usual_s = max(load_s / (1 + len(batch)), estimate)
                if batch or usual_s > NEXT_S:
                    has_three = len(batch) >= _THREE or estimate <= AHEAD_S / _THREE
                    if has_three or len(backlog) <= workers or usual_s > _NEXT_THREE_S:
                        break
            load_s += estimate
            if len(backlog[0].frame) > 1:
                size += frame_bytes(backlog[0].frame)
                if size > _AHEAD_BYTES and batch:
                    break
            batch.append(backlog.popleft())
            if len(batch) >= 256:
                break
        return batch

    def _recall(self, number: int, state: _Worker, now: float) -> list[Action]:
        """Take back what stands behind a long task, and has not begun."""
        begun = self._begun(number)
        if begun is None:
            return []
        kept = begun - state.ended + (state.beside is not None)
        if kept > 1:  # some have ended, and are told of soon
            state.busy_since = now
        behind = list(state.line)[max(1, kept) :]
        for _ in behind:
            state.line.pop()
        self.backlog.extendleft(reversed(behind))
        state.unread += bool(behind)
        return [Skip(number, [task.task_id for task in behind])] if behind else []

    def _give_back_backlog(self) -> None:
        while self.backlog:
            self._give_back(self.backlog.popleft(), "not begun")

    def _give_back_the_too_long(self, left_s: float) -> None:
        kept: deque[Assignment] = deque()
        for task in self.backlog:
            if (self._pace.estimate_s(task.tag) or 0.0) <= left_s:
                kept.append(task)
            else:
                self._give_back(task, NO_TIME_LEFT)
        self.backlog = kept

    def _give_back(self, task: Assignment, why: str) -> None:
        self._end(Completion(task.task_id, task.attempt, _RETURNED, [], 0.0, why))

    def _end(self, done: Completion) -> None:
        self._known.pop((done.task_id, done.attempt), None)
        self._announced.discard(done.task_id)
        self.completions.append(done)

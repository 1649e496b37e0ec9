"""What slaves do with the tasks of a queue: they take them, and end them or are lost with them.

::

    peek --> hand_out_run --> (a slave has it: `holdings`) --> complete_all, complete
                 ^                      |
                 |                      +--> lose, release, reconcile --> in line again, or crashed
                 +---- due <-- a retry with back-off

At least once to run, exactly once to deliver: every hand-out has an attempt number. The first
result of any attempt wins, later ones are dropped and counted in `dropped`. As pure as `queue`,
whose tables it works on.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

from masterslave.holdings import Held
from masterslave.lines import head_of, pass_on, take_several
from masterslave.notes import TINY_BYTES
from masterslave.queue import TaskQueue
from masterslave.records import (
    AT_REST,
    LOST,
    Assignment,
    Completion,
    Outcome,
    frame_bytes,
    new_assignment,
)
from masterslave.states import (
    LIVE,
    NOBODY,
    OUTCOME_EVENTS,
    TRANSITIONS,
    Effect,
    Event,
    State,
    Task,
    is_open,
)

_RESULT = Outcome.RESULT.value

#: Longest back-off. Larger: a program that waits for a resource to come back notices it late.
#: Smaller: tasks that fail for hours fill the log.
MAX_BACKOFF_S = 60.0


class Leases:
    """The events of slaves. Not thread-safe: the shell locks."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.dropped = 0  # late or doubled completions that changed nothing
        self._deferred: list[tuple[float, int, Task]] = []  # a heap: due time, ticket, task
        self._tasks = queue.tasks
        self._lines = queue.lines
        self._clients = queue.clients
        self._tally = queue.tally
        self.held = queue.held

    # --- handing out ------------------------------------------------------------------------

    def peek(self, tags: Collection[str]) -> Task | None:
        """The task that `hand_out` would hand to a slave with these tags, or None."""
        while (task := self._lines.first(tags)) is not None:
            if task.state is State.WAITING:
                return task
            self._lines.leave(task.client, task.tag)  # finished or cancelled while it stood in line
        return None

    def _first_waiting(self, line: deque[Any]) -> Task | None:
        """As `peek`, of a line with nothing to be compared with."""
        while line:
            task: Task = head_of(line)
            if task.state is State.WAITING:
                return task
            pass_on(line)
        return None

    def hand_out(self, process: int, tags: Collection[str]) -> Assignment | None:
        """A slave takes the first waiting task of the highest priority among its tags."""
        task = self.peek(tags)
        return None if task is None else self.hand_out_next(process, task)

    def hand_out_next(self, process: int, task: Task) -> Assignment:
        """A slave takes what `peek` has just shown to it."""
        return self.hand_out_run(process, task, (task.tag,), 1)[0]

    def hand_out_run(
        self, process: int, first: Task, tags: Collection[str], count: int, limit_bytes: int = 0
    ) -> list[Assignment]:
        """A slave takes what `peek` has just shown to it, and what follows, if of the same tag.

        So many at most, of so many bytes (beyond the first).
        """
        tag, task = first.tag, first
        lines, running = self._lines, TRANSITIONS[first.state, Event.HAND_OUT]
        held = self.held.get(process)
        if held is None:
            held = self.held[process] = Held()
        holds = held.tasks
        run: list[Assignment] = []
        size = task.size
        alone = lines.only_line(tag)
        while True:
            if alone is None:
                lines.serve(task.client, tag)
            else:
                pass_on(alone)
            task.state = running
            task.attempt += 1
            task.started = False
            task.holder = process
            task_id = task.id
            holds[task_id] = task
            run.append(
                new_assignment((task_id, tag, task.attempt, task.frame, task.options.timeout))
            )
            if alone and len(run) < count:  # tiny ones in a row, where nothing is to be looked at
                room = min(count - len(run), (limit_bytes - size) // TINY_BYTES)
                several = take_several(alone, room) if room > 0 else []
                timeout = several[0].options.timeout if several else None
                for task in several:
                    task.state = running
                    task.attempt = 1
                    task.holder = process
                    task_id = task.id
                    holds[task_id] = task
                    run.append(new_assignment((task_id, tag, 1, task.frame, timeout)))
                    size += task.size
            if len(run) >= count:
                break
            following = self.peek(tags) if alone is None else self._first_waiting(alone)
            if following is None or following.tag != tag:
                break
            task = following
            size += task.size
            if size > limit_bytes:
                break
        if alone is not None and not alone:
            lines.emptied(first.client, tag)
        self._tally[State.WAITING][tag] -= len(run)
        self._tally[running][tag] += len(run)
        held.by_tag[tag] = held.by_tag.get(tag, 0) + len(run)
        return run

    def repeat(self, process: int, task_id: str) -> Assignment | None:
        """A slave begins a second attempt of a task that another one is at; the first result wins.

        None when the task does not run any more, or is that slave's already.
        """
        task = self._tasks.get(task_id)
        if task is None or task.state is not State.RUNNING or task.holder == process:
            return None
        former = task.holder
        self.held.unhold(task)
        task.former = former
        task.attempt += 1
        task.started = False
        self.held.hold(task, process)
        return Assignment(task.id, task.tag, task.attempt, task.frame, task.options.timeout)

    def pass_on(self, task: Task, process: int) -> None:
        """Its holder gives a running task to another process, as the same attempt."""
        self.held.unhold(task)
        self.held.hold(task, process)

    # --- slaves that come back --------------------------------------------------------------

    def adopt(self, process: int, task_id: str, attempt: int) -> bool:
        """A slave that came back says it still has that attempt; false: it should let go of it.

        True when the slave holds it on record already, or when the task waits again and no later
        attempt was made, in which case it counts as running there as before.
        """
        task = self._tasks.get(task_id)
        if task is None or attempt <= task.answered:
            return False
        if task.state is State.PARKED:
            return self._adopt_parked(process, task, attempt)
        if task.attempt != attempt:
            return False
        if task.state is State.RUNNING:
            return task.holder == process
        if task.state is not State.WAITING:
            return False
        self.queue.move(task, Event.ADOPT)
        self.held.hold(task, process)
        return True

    def _adopt_parked(self, process: int, task: Task, attempt: int) -> bool:
        if task.outcome or attempt < task.attempt:
            return False
        if attempt == task.attempt and task.holder not in (None, process):
            return False
        self.held.unhold(task)
        task.attempt = attempt
        self.held.hold(task, process)
        return True

    def reconcile(
        self, process: int, held: Collection[tuple[str, int]]
    ) -> tuple[list[Effect], list[tuple[str, int]]]:
        """A slave that came back says what it has: (task id, attempt) of each, oldest first.

        It was not dead, so the crashes that its loss was counted as are taken back. What is on
        record for it and not among these goes back to the head of the line. Gives the effects of
        that, and those that it should let go of.
        """
        self.take_back_blame(process)
        kept = set(held)
        missing = [task for task in self.held.of(process) if (task.id, task.attempt) not in kept]
        effects = [self._reschedule(task) for task in reversed(missing)]
        return effects, [one for one in held if not self.adopt(process, *one)]

    def take_back_blame(self, process: int) -> list[tuple[str, int]]:
        """A process that was lost lives. Gives the attempts that count no crash any more."""
        absolved = []
        for task_id, attempt, story in self.held.blamed.pop(process, ()):
            task = self._tasks.get(task_id)
            if task is not None and (task.state in LIVE or is_open(task)):
                task.crashes -= 1
                task.history = tuple(one for one in task.history if one != story)
                absolved.append((task_id, attempt))
        return absolved

    def started(self, process: int, task_ids: Iterable[str]) -> None:
        """A slave says which of its tasks a worker has begun; only those can cost a crash."""
        held = self.held.get(process)
        for task_id in task_ids:
            if held is not None and task_id in held.tasks:
                held.tasks[task_id].started = True

    # --- ends -------------------------------------------------------------------------------

    def complete_all(
        self, process: int, batch: Iterable[Completion], now: float = 0.0
    ) -> tuple[list[tuple[Task, Completion]], list[tuple[Effect, Completion]]]:
        """`complete` for each of these, in their order and in one pass.

        Nearly all are results of tasks that run there and nowhere else: those come first in the
        answer, the others with their effects.
        """
        plain: list[tuple[Task, Completion]] = []
        others: list[tuple[Effect, Completion]] = []
        find, tasks, clients = dict.get, self._tasks, self._clients
        held = self.held.get(process)
        freed: dict[str, int] = {}  # by tag
        finished: list[Task] = []  # of one client and tag, not in its line yet
        client, tag = NOBODY, ""
        running, result = State.RUNNING, State.RESULT
        lighter = heavier = 0  # parameters and results, in bytes
        for done in batch:
            task_id, attempt, outcome, frame, _, detail = done
            task = find(tasks, task_id)  # what is only noted was not handed out
            if (
                outcome != _RESULT
                or task is None
                or task.state is not running
                or task.holder != process
                or task.attempt != attempt
                or task.former is not None
                or held is None
            ):
                if finished:  # results come in this order
                    clients[client].finished.add_all(tag, finished)
                    finished = []
                others.append((self.complete(process, done, now), done))
                held = self.held.get(process)
                continue
            if task.tag != tag or task.client != client:
                if finished:
                    clients[client].finished.add_all(tag, finished)
                    finished = []
                client, tag = task.client, task.tag
                freed[tag] = freed.get(tag, 0)
            del held.tasks[task_id]
            task.holder = None
            if task.frame is not AT_REST:
                lighter += task.size
            task.frame = frame
            task.size = size = len(frame[0]) if len(frame) == 1 else frame_bytes(frame)
            heavier += size
            task.detail = detail
            task.state = result
            task.outcome = _RESULT
            freed[tag] += 1
            finished.append(task)
            plain.append((task, done))
        if finished:
            clients[client].finished.add_all(tag, finished)
        self.queue.parameter_bytes -= lighter
        self.queue.result_bytes += heavier
        for tag, count in freed.items():
            self._tally[State.RUNNING][tag] -= count
            self._tally[State.RESULT][tag] += count
            if held is not None:
                held.by_tag[tag] -= count
        if held is not None and not held.tasks:
            self.held.pop(process, None)
        return plain, others

    def complete(self, process: int, done: Completion, now: float = 0.0) -> Effect:
        """A slave hands in the end of an attempt, perhaps late, perhaps twice.

        `now`: the back-off of a retry counts from then.
        """
        event = OUTCOME_EVENTS[done.outcome]
        task = self._tasks.get(done.task_id)
        if task is None or not (task.state in LIVE or is_open(task)):
            return self._drop()
        if not 0 < done.attempt <= task.attempt and task.state is not State.PARKED:
            return self._drop()  # of an attempt that never was
        stop_on = task.former
        if task.attempt != done.attempt or task.holder != process or task.holder is None:
            # Of an attempt that was given up only what its handler did is worth having, and not
            # an exception that another attempt answers or would have answered.
            if event is Event.EXCEPTION and (
                self._may_retry(task) or done.attempt <= task.answered
            ):
                return self._drop()
            if event is not Event.RESULT and event is not Event.EXCEPTION:
                return self._drop()
            stop_on = task.holder
        elif event is Event.RESCHEDULE:
            return self._reschedule(task)
        elif event in (Event.CRASH, Event.OUT_OF_MEMORY):
            task.answered = done.attempt
            return self._crash(task, done.detail, Outcome(done.outcome))
        elif event is Event.EXCEPTION and self._may_retry(task):
            task.failures += 1
            task.answered = done.attempt
            task.history += (f"attempt {done.attempt}: {done.detail}",)
            return self._retry(task, now)
        self.queue.finish(task, event, done.frame, done.detail)
        return Effect("finished", task, stop_on)

    def lose(self, process: int, story: str, could_run: int) -> list[Effect]:
        """A slave is gone. What it had started counts a crash, what it had prefetched does not.

        `could_run` is its number of workers: when it was lost before it said what it had started,
        that many of its oldest tasks may have run, and one of them may have been the cause.
        """
        held = self.held.let_go(process)
        guilty = {task.id for task in held if task.started}
        if not guilty:
            guilty = {task.id for task in held[:could_run]}
        effects = []
        blamed = self.held.blamed[process] = []
        for task in reversed(held):  # each goes to the head of its line: keep their order
            if task.id in guilty:
                effects.append(self._crash(task, story, setback=LOST))
                blamed.append((task.id, task.attempt, task.history[-1]))
            else:
                effects.append(self._reschedule(task))
        return effects

    def release(self, process: int) -> list[Effect]:
        """A slave leaves in good order: whatever it still holds goes back, at no task's cost."""
        self.held.blamed.pop(process, None)
        held = self.held.let_go(process)
        return [self._reschedule(task) for task in reversed(held)]

    # --- retries ----------------------------------------------------------------------------

    def due(self, now: float) -> list[Effect]:
        """Time has come to `now`: retries that are due go to the head of their line."""
        tasks = []
        while (at := self.next_due()) is not None and at <= now:
            tasks.append(heapq.heappop(self._deferred)[2])
            self.queue.move(tasks[-1], Event.FALL_DUE)
        for task in reversed(tasks):  # each goes to the head: who was due first stands first
            self._lines.join_at_head(task, task.client, task.tag, task.options.priority)
        return [Effect("due", task) for task in tasks]

    def next_due(self) -> float | None:
        """When the next retry is due; None when none is deferred."""
        while self._deferred:
            at, _, task = self._deferred[0]
            if task.state is State.DEFERRED:
                return at
            heapq.heappop(self._deferred)  # finished or cancelled in the meantime
        return None

    # --- inside -----------------------------------------------------------------------------

    def _reschedule(self, task: Task, setback: str = "") -> Effect:
        self.held.unhold(task)
        task.started = False
        if task.state is not State.PARKED:
            self.queue.move(task, Event.RESCHEDULE)
            self._lines.join_at_head(task, task.client, task.tag, task.options.priority)
        return Effect("rescheduled", task, None, setback)

    def _retry(self, task: Task, now: float) -> Effect:
        setback = Outcome.EXCEPTION.value
        doubled = min(task.failures - 1, 64)  # more than enough for the longest back-off
        delay_s = min(MAX_BACKOFF_S, task.options.backoff * 2.0**doubled)
        if delay_s == 0 or task.state is State.PARKED:
            return self._reschedule(task, setback)
        self.queue.move(task, Event.DEFER)
        self.held.unhold(task)
        task.started = False
        heapq.heappush(self._deferred, (now + delay_s, task.ticket, task))
        return Effect("deferred", task, None, setback)

    def _crash(
        self, task: Task, story: str, outcome: Outcome = Outcome.CRASHED, setback: str = ""
    ) -> Effect:
        task.crashes += 1
        task.history += (f"attempt {task.attempt}: {story}",)
        if task.crashes < task.options.crash_limit:
            return self._reschedule(task, setback or outcome.value)
        former = task.former
        self.queue.finish(task, OUTCOME_EVENTS[outcome.value], [], "\n".join(task.history))
        return Effect("finished", task, former)

    def _drop(self) -> Effect:
        self.dropped += 1
        return Effect("dropped", None)

    def _may_retry(self, task: Task) -> bool:
        return task.failures < task.options.retries

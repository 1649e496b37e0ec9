"""The task queue as a pure state machine: every event is a method, the answer is its effect.

::

    request --> WAITING --hand_out--> RUNNING --complete--> RESULT | EXCEPTION --deliver--> (gone)
                   ^  |                  |
                   |  +--late result     +--crash_limit----> CRASHED | OUT_OF_MEMORY ----> (gone)
                   |                     +--time limit-----> TIMED_OUT ----------deliver--> (gone)
                   +------reschedule-----+
                   +--due-- DEFERRED <---+  (a retry with back-off; a late result ends it as well)
    WAITING | DEFERRED | RUNNING --cancel--> CANCELLED (gone: it is never delivered)
    RESULT | ... --drop--> CANCELLED  (its client is gone for good)

    from the journal of an earlier run:
    PARKED --claim--> WAITING | RUNNING | RESULT | ..., as far as the task had come

`TRANSITIONS` is the whole truth about what may follow what; any other event raises
`IllegalTransition` and changes nothing. There is no clock, thread or file here (time is an
argument, in seconds of any steady clock), and each event costs O(log n) at most in the number of
tasks, so the same code serves live events, random tests and replay.

At least once to run, exactly once to deliver: every hand-out has an attempt number. The first
result of any attempt wins, later ones are dropped and counted in `dropped`.

A parked task has a place in the journal, and no client yet. What happens to it meanwhile (a slave
that outlived the earlier run still has it, hands its result in, or is lost) is noted in the task;
when a request with its identity claims it, it enters the state that this amounts to. One whose
request says by its `TaskOptions.origin` which client it came from is kept for that client first.

The module is longer than others as all its events keep one set of invariants over the same few
tables; what could be told apart is in `lines` (order), `notes` (tiny tasks) and `sharing` (turns).
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from masterslave.errors import IllegalTransition, UnknownTask
from masterslave.lines import FinishedLine, head_of, pass_on
from masterslave.notes import TINY_BYTES, Tasks
from masterslave.records import (
    AT_REST,
    LOST,
    Assignment,
    Completion,
    Delivery,
    Frame,
    Outcome,
    TaskOptions,
    frame_bytes,
    new_assignment,
    new_delivery,
)
from masterslave.sharing import SharedLines


class State(str, Enum):
    """Where a task is in its life."""

    PARKED = "parked"  # known from the journal, not yet requested by this run
    WAITING = "waiting"  # for a slave that handles its tag
    DEFERRED = "deferred"  # out of line until its retry is due; counts as waiting
    RUNNING = "running"  # handed to a slave: prefetched there, or started
    RESULT = "result"  # finished: the handler returned
    EXCEPTION = "exception"  # finished: the handler raised
    CRASHED = "crashed"  # finished: ended its worker `crash_limit` times
    OUT_OF_MEMORY = "out_of_memory"  # finished: the same, and the last time for want of memory
    TIMED_OUT = "timed_out"  # finished: killed at its time limit
    CANCELLED = "cancelled"  # taken back by its client; forgotten at once
    DELIVERED = "delivered"  # its client has it; forgotten


class Event(str, Enum):
    """What can happen to a task."""

    CLAIM = "claim"  # a request of this run takes up a task of an earlier one
    HAND_OUT = "hand_out"
    ADOPT = "adopt"  # a slave that came back still runs the last attempt
    RESCHEDULE = "reschedule"
    DEFER = "defer"  # it is to run again, but not yet
    FALL_DUE = "fall_due"
    RESULT = "result"
    EXCEPTION = "exception"
    CRASH = "crash"
    OUT_OF_MEMORY = "out_of_memory"
    TIME_OUT = "time_out"
    CANCEL = "cancel"
    DROP = "drop"  # nobody will take it any more
    DELIVER = "deliver"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.PARKED, Event.CLAIM): State.WAITING,
    (State.PARKED, Event.ADOPT): State.RUNNING,  # claimed while a slave has it
    (State.PARKED, Event.RESULT): State.RESULT,  # claimed after it had finished; so below
    (State.PARKED, Event.EXCEPTION): State.EXCEPTION,
    (State.PARKED, Event.CRASH): State.CRASHED,
    (State.PARKED, Event.OUT_OF_MEMORY): State.OUT_OF_MEMORY,
    (State.PARKED, Event.TIME_OUT): State.TIMED_OUT,
    (State.WAITING, Event.HAND_OUT): State.RUNNING,
    (State.WAITING, Event.ADOPT): State.RUNNING,
    (State.WAITING, Event.RESULT): State.RESULT,  # late, of an attempt that was given up
    (State.WAITING, Event.EXCEPTION): State.EXCEPTION,  # late
    (State.WAITING, Event.CANCEL): State.CANCELLED,
    (State.DEFERRED, Event.FALL_DUE): State.WAITING,
    (State.DEFERRED, Event.RESULT): State.RESULT,  # late
    (State.DEFERRED, Event.CANCEL): State.CANCELLED,
    (State.RUNNING, Event.RESCHEDULE): State.WAITING,
    (State.RUNNING, Event.DEFER): State.DEFERRED,
    (State.RUNNING, Event.RESULT): State.RESULT,
    (State.RUNNING, Event.EXCEPTION): State.EXCEPTION,
    (State.RUNNING, Event.CRASH): State.CRASHED,
    (State.RUNNING, Event.OUT_OF_MEMORY): State.OUT_OF_MEMORY,
    (State.RUNNING, Event.TIME_OUT): State.TIMED_OUT,
    (State.RUNNING, Event.CANCEL): State.CANCELLED,
    (State.RESULT, Event.DELIVER): State.DELIVERED,
    (State.EXCEPTION, Event.DELIVER): State.DELIVERED,
    (State.CRASHED, Event.DELIVER): State.DELIVERED,
    (State.OUT_OF_MEMORY, Event.DELIVER): State.DELIVERED,
    (State.TIMED_OUT, Event.DELIVER): State.DELIVERED,
    (State.PARKED, Event.DROP): State.CANCELLED,  # its client has had it from the run before
    (State.RESULT, Event.DROP): State.CANCELLED,
    (State.EXCEPTION, Event.DROP): State.CANCELLED,
    (State.CRASHED, Event.DROP): State.CANCELLED,
    (State.OUT_OF_MEMORY, Event.DROP): State.CANCELLED,
    (State.TIMED_OUT, Event.DROP): State.CANCELLED,
}

FINISHED = frozenset(
    (State.RESULT, State.EXCEPTION, State.CRASHED, State.OUT_OF_MEMORY, State.TIMED_OUT)
)
_RESULT = Outcome.RESULT.value
_LIVE = frozenset((State.WAITING, State.DEFERRED, State.RUNNING))
_NOBODY = -1  # the client of a parked task
_OUTCOME_EVENTS = {
    Outcome.RESULT.value: Event.RESULT,
    Outcome.EXCEPTION.value: Event.EXCEPTION,
    Outcome.CRASHED.value: Event.CRASH,
    Outcome.OUT_OF_MEMORY.value: Event.OUT_OF_MEMORY,
    Outcome.TIMED_OUT.value: Event.TIME_OUT,
    Outcome.RETURNED.value: Event.RESCHEDULE,
}


#: Longest back-off. Larger: a program that waits for a resource to come back notices it late.
#: Smaller: tasks that fail for hours fill the log.
MAX_BACKOFF_S = 60.0


class Task:
    """One task inside the queue; only the queue writes to it."""

    __slots__ = (
        "answered",
        "attempt",
        "client",
        "crashes",
        "detail",
        "failures",
        "former",
        "frame",
        "history",
        "holder",
        "id",
        "options",
        "outcome",
        "size",
        "started",
        "state",
        "tag",
        "ticket",
    )

    def __init__(
        self, task_id: str, ticket: int, client: int, tag: str, frame: Frame, options: TaskOptions
    ) -> None:
        self.id = task_id
        self.ticket = ticket  # order of request
        self.client = client  # process id of who gets the result
        self.tag = tag
        self.frame = frame  # parameters while live, then result or exception; or AT_REST
        self.size = frame_bytes(frame)  # of the frame, in memory or at rest
        self.options = options
        self.state = State.WAITING
        self.attempt = 0  # number of the last hand-out
        self.answered = 0  # the last attempt that failed and is answered by another one
        self.holder: int | None = None  # process id of the slave that runs it
        self.former: int | None = None  # a slave that runs an earlier attempt at the same time
        self.started = False  # whether the holder has said that a worker began it
        self.crashes = 0
        self.failures = 0  # exceptions so far
        self.history: tuple[str, ...] = ()  # story of each attempt that went wrong
        self.outcome = ""  # a State's value once finished
        self.detail = ""  # remote traceback or the story of all attempts


class Effect(NamedTuple):
    """What a completion or a loss came to, for the shell to act upon."""

    kind: str  # "finished", "rescheduled", "deferred", "due" or "dropped"
    task: Task | None
    stop_on: int | None = None  # a slave that runs another attempt in vain
    setback: str = ""  # an Outcome's value, or LOST: the attempt failed and another one follows


def _is_delivered(task: Task) -> bool:
    return task.state is State.DELIVERED


class _Client:
    """What a client has in the queue."""

    __slots__ = ("finished", "outstanding")

    def __init__(self) -> None:
        self.finished = FinishedLine[Task](_is_delivered)
        self.outstanding: Counter[str] = Counter()  # tag -> requested, not yet delivered


class _Held:
    """What a slave has."""

    __slots__ = ("by_tag", "tasks")

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}  # oldest first
        self.by_tag: dict[str, int] = {}  # how many


class TaskQueue:
    """All tasks that were requested and not yet delivered. Not thread-safe: the shell locks."""

    def __init__(self) -> None:
        self.tasks = Tasks[Task](Task)
        self.dropped = 0  # late or doubled completions that changed nothing
        self.delivered = 0
        self.cancelled = 0
        self.parameter_bytes = 0  # in memory, of tasks that have not finished
        self.result_bytes = 0  # in memory, of tasks that have
        self._parked: dict[bytes, deque[Task]] = {}  # identity -> tasks in order of request
        self._owned: dict[str, deque[tuple[bytes, Task]]] = {}  # client's token -> identity, task
        self._lines = SharedLines[Task]()
        self._deferred: list[tuple[float, int, Task]] = []  # a heap: due time, ticket, task
        self._held: dict[int, _Held] = {}  # by process id
        # Of each lost process: tasks that count it as a crash, with attempt and story.
        self._blamed: dict[int, list[tuple[str, int, str]]] = {}
        self._clients: dict[int, _Client] = {}
        self._counts: dict[State, Counter[str]] = {state: Counter() for state in State}
        self._next_id = 0

    # --- events -----------------------------------------------------------------------------

    def request(self, client: int, tag: str, frame: Frame, options: TaskOptions) -> Task:
        """A client states a task. Its id is the tag and a running number: ``sqrt_0``."""
        number = self._next_id
        self._next_id = number + 1
        task = Task(f"{tag}_{number}", number, client, tag, frame, options)
        self.tasks[task.id] = task
        self.parameter_bytes += task.size
        self._counts[State.WAITING][tag] += 1
        mine = self._clients.get(client) or self._client(client)
        mine.outstanding[tag] += 1
        self._lines.join(task, client, tag, options.priority)
        return task

    def request_all(
        self, client: int, tag: str, frames: Iterable[Frame], options: TaskOptions
    ) -> list[str]:
        """`request` for each of these frames, in one pass; gives the ids."""
        first = number = self._next_id
        tiny: list[bytes] = []
        size = 0
        for frame in frames:
            if len(frame) == 1 and type(frame[0]) is bytes and len(frame[0]) <= TINY_BYTES:
                tiny.append(frame[0])
                size += len(frame[0])
            else:
                self._note(client, tag, options, number - len(tiny), tiny)
                tiny = []
                task = Task(f"{tag}_{number}", number, client, tag, frame, options)
                self.tasks[task.id] = task
                self._lines.join(task, client, tag, options.priority)
                size += task.size
            number += 1
        self._note(client, tag, options, number - len(tiny), tiny)
        self._next_id = number
        self.parameter_bytes += size
        self._counts[State.WAITING][tag] += number - first
        self._client(client).outstanding[tag] += number - first
        return [f"{tag}_{one}" for one in range(first, number)]

    def _note(
        self, client: int, tag: str, options: TaskOptions, number: int, data: list[bytes]
    ) -> None:
        for block in self.tasks.note(client, tag, options, number, data):
            self._lines.join_several(block, client, tag, options.priority)

    def park(self, number: int, tag: str, identity: bytes, options: TaskOptions) -> Task:
        """A task that an earlier run has requested, as its journal says.

        Then tell of its attempts by `adopt` and `failed_before`, and of its end, if it had come to
        one, by `finished_before`: it stands as that run left it.
        """
        task = Task(f"{tag}_{number}", number, _NOBODY, tag, AT_REST, options)
        task.state = State.PARKED
        self._next_id = max(self._next_id, number + 1)
        self.tasks[task.id] = task
        self._counts[State.PARKED][tag] += 1
        self._counts[State.WAITING][tag] += 0  # the tag is known
        if options.origin is None:
            self._parked.setdefault(identity, deque()).append(task)
        else:
            self._owned.setdefault(options.origin[0], deque()).append((identity, task))
        return task

    @property
    def next_number(self) -> int:
        """Of the next task that is requested."""
        return self._next_id

    def number_used(self, number: int) -> None:
        """An earlier run has given that number to a task that is forgotten."""
        self._next_id = max(self._next_id, number + 1)

    def failed_before(
        self, process: int, task_id: str, attempt: int, outcome: str, story: str
    ) -> None:
        """An attempt of a parked task has failed in an earlier run, and was to be answered.

        No limit is asked about it: those of its request of that time may not be those of the next.
        If its slave was only `LOST`, that may come back with it, and then it has not failed.
        """
        task = self.tasks[task_id]
        if not self._is_open(task):
            return
        if outcome == Outcome.EXCEPTION:
            task.failures += 1
        else:
            task.crashes += 1
        task.history += (f"attempt {attempt}: {story}",)
        if outcome == LOST:
            blamed = self._blamed.setdefault(process, [])
            blamed.append((task_id, attempt, task.history[-1]))
        else:
            task.answered = max(task.answered, attempt)
        if attempt >= task.attempt:
            task.attempt = attempt
            self._unhold(task)

    def absolved_before(self, task_id: str, attempt: int) -> None:
        """A failed attempt of a parked task was none, as its slave came back; if it has failed."""
        task = self.tasks[task_id]
        stories = [story for story in task.history if story.startswith(f"attempt {attempt}: ")]
        if stories and self._is_open(task):
            task.crashes -= 1
            task.history = tuple(one for one in task.history if one != stories[-1])
            for blamed in self._blamed.values():
                blamed[:] = [one for one in blamed if one[:2] != (task_id, attempt)]

    def finished_before(self, task_id: str, outcome: str, detail: str) -> None:
        """A parked task has come to its end in an earlier run; its result is at rest."""
        task = self.tasks[task_id]
        if self._is_open(task):
            self._finish(task, _OUTCOME_EVENTS[outcome], AT_REST, detail)

    def claim(
        self, client: int, identity: bytes, frame: Frame, options: TaskOptions
    ) -> Task | None:
        """A client states a task. The first parked one of that identity takes its place, if any.

        Gives that task, with the id that it has had all along; None: it is a new one.
        """
        task = self._next_parked(identity, options)
        if task is not None:
            self._claim(client, task, frame, options)
        return task

    def _next_parked(self, identity: bytes, options: TaskOptions) -> Task | None:
        """The parked task that a request takes up: the one that came of it, or an equal one."""
        if options.origin is not None:
            # Those of one request stand in its order, but for what its client has had before it
            # knew their ids.
            owned = self._owned.get(options.origin[0])
            if owned and owned[0][0] == identity and owned[0][1].options.origin == options.origin:
                return owned.popleft()[1]
        line = self._parked.get(identity)
        if not line:
            return None
        task = line.popleft()
        if not line:
            del self._parked[identity]
        return task

    def _claim(self, client: int, task: Task, frame: Frame, options: TaskOptions) -> None:
        task.client = client
        task.options = options
        self._client(client).outstanding[task.tag] += 1
        if task.outcome:
            self._move(task, _OUTCOME_EVENTS[task.outcome])
            self._enqueue_finished(task)
            return
        task.frame = frame
        task.size = frame_bytes(frame)
        self.parameter_bytes += _in_memory(task)
        if task.holder is not None:
            self._move(task, Event.ADOPT)
        else:
            self._move(task, Event.CLAIM)
            self._lines.join(task, client, task.tag, options.priority)

    def reclaim(
        self, client: int, token: str, outstanding: Collection[str], answered: int
    ) -> tuple[list[str], list[Task]]:
        """A client of an earlier run is back: its tasks of that run are its own again.

        `token`: by which its requests are known. `outstanding`: the ids of the tasks that it waits
        for. `answered`: the number of the last of its requests of which it knows the ids. What came
        of earlier ones and is not outstanding it has had. Gives the ids that are unknown here, and
        the tasks that it has had, which are forgotten.
        """
        had = []
        wanted = set(outstanding)
        left: deque[tuple[bytes, Task]] = deque()
        for identity, task in self._owned.pop(token, ()):
            origin = task.options.origin
            if task.id in wanted:
                self._claim(client, task, AT_REST, task.options)
            elif origin is not None and origin[1] > answered:
                left.append((identity, task))  # to be claimed by that request, made again
            else:
                self._drop_parked(task)
                had.append(task)
        if left:
            self._owned[token] = left
        tasks = self.tasks
        missing = [one for one in outstanding if one not in tasks or tasks[one].client != client]
        return missing, had

    def owners(self) -> list[str]:
        """The tokens of the clients of an earlier run that have not come back."""
        return list(self._owned)

    def disown(self, token: str) -> None:
        """A client of an earlier run does not come back: an equal request takes up its tasks."""
        for identity, task in self._owned.pop(token, ()):
            self._parked.setdefault(identity, deque()).append(task)

    def drop_owned(self, token: str) -> list[tuple[Task, list[int]]]:
        """A client of an earlier run does not come back, and nobody will take its results.

        Gives its tasks, each with the slaves that run it, to be told.
        """
        dropped = []
        for _, task in self._owned.pop(token, ()):
            dropped.append((task, [task.holder] if task.holder is not None else []))
            self._drop_parked(task)
        return dropped

    def _drop_parked(self, task: Task) -> None:
        self._unhold(task)
        self._move(task, Event.DROP)
        del self.tasks[task.id]
        self._counts[task.state][task.tag] -= 1

    def drop_client(self, client: int) -> tuple[list[tuple[Task, list[int]]], list[Task]]:
        """A client is gone for good, and nobody will take its results.

        Gives its tasks that had not finished, each with the slaves that run it, to be told; and
        those that had.
        """
        cancelled = []
        finished = []
        for task in [task for task in self.tasks.values() if task.client == client]:
            if task.state in _LIVE:
                cancelled.append((task, self.cancel(task.id)[1]))
            elif task.state in FINISHED:
                self._move(task, Event.DROP)
                self._forget(task)
                self.result_bytes -= _in_memory(task)
                task.frame = AT_REST
                finished.append(task)
        self._clients.pop(client, None)
        self._lines.forget(client)
        self.tasks.forget(client)
        return cancelled, finished

    def weigh(self, client: int, weight: float) -> None:
        """The client's share of the slaves, where that of others is 1."""
        self._lines.weigh(client, weight)

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
        held = self._held.get(process)
        if held is None:
            held = self._held[process] = _Held()
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
        self._counts[State.WAITING][tag] -= len(run)
        self._counts[running][tag] += len(run)
        held.by_tag[tag] = held.by_tag.get(tag, 0) + len(run)
        return run

    def repeat(self, process: int, task_id: str) -> Assignment | None:
        """A slave begins a second attempt of a task that another one is at; the first result wins.

        None when the task does not run any more, or is that slave's already.
        """
        task = self.tasks.get(task_id)
        if task is None or task.state is not State.RUNNING or task.holder == process:
            return None
        former = task.holder
        self._unhold(task)
        task.former = former
        task.attempt += 1
        task.started = False
        self._hold(task, process)
        return Assignment(task.id, task.tag, task.attempt, task.frame, task.options.timeout)

    def pass_on(self, task: Task, process: int) -> None:
        """Its holder gives a running task to another process, as the same attempt."""
        self._unhold(task)
        self._hold(task, process)

    def adopt(self, process: int, task_id: str, attempt: int) -> bool:
        """A slave that came back says it still has that attempt; false: it should let go of it.

        True when the slave holds it on record already, or when the task waits again and no later
        attempt was made, in which case it counts as running there as before.
        """
        task = self.tasks.get(task_id)
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
        self._move(task, Event.ADOPT)
        self._hold(task, process)
        return True

    def _adopt_parked(self, process: int, task: Task, attempt: int) -> bool:
        if task.outcome or attempt < task.attempt:
            return False
        if attempt == task.attempt and task.holder not in (None, process):
            return False
        self._unhold(task)
        task.attempt = attempt
        self._hold(task, process)
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
        missing = [task for task in self.held_by(process) if (task.id, task.attempt) not in kept]
        effects = [self._reschedule(task) for task in reversed(missing)]
        return effects, [one for one in held if not self.adopt(process, *one)]

    def take_back_blame(self, process: int) -> list[tuple[str, int]]:
        """A process that was lost lives. Gives the attempts that count no crash any more."""
        absolved = []
        for task_id, attempt, story in self._blamed.pop(process, ()):
            task = self.tasks.get(task_id)
            if task is not None and (task.state in _LIVE or self._is_open(task)):
                task.crashes -= 1
                task.history = tuple(one for one in task.history if one != story)
                absolved.append((task_id, attempt))
        return absolved

    def started(self, process: int, task_ids: Iterable[str]) -> None:
        """A slave says which of its tasks a worker has begun; only those can cost a crash."""
        held = self._held.get(process)
        for task_id in task_ids:
            if held is not None and task_id in held.tasks:
                held.tasks[task_id].started = True

    def complete_all(
        self, process: int, batch: Iterable[Completion], now: float = 0.0
    ) -> tuple[list[tuple[Task, Completion]], list[tuple[Effect, Completion]]]:
        """`complete` for each of these, in their order and in one pass.

        Nearly all are results of tasks that run there and nowhere else: those come first in the
        answer, the others with their effects.
        """
        plain: list[tuple[Task, Completion]] = []
        others: list[tuple[Effect, Completion]] = []
        find, tasks, clients = dict.get, self.tasks, self._clients
        held = self._held.get(process)
        freed: dict[str, int] = {}  # by tag
        finished: list[Task] = []  # of one client, not in its line yet
        client = _NOBODY
        result = State.RESULT
        lighter = heavier = 0  # parameters and results, in bytes
        for done in batch:
            task = find(tasks, done.task_id)  # what is only noted was not handed out
            if (
                done.outcome != _RESULT
                or task is None
                or task.state is not State.RUNNING
                or task.holder != process
                or task.attempt != done.attempt
                or task.former is not None
                or held is None
            ):
                if finished:  # results come in this order
                    clients[client].finished.add_all(finished)
                    finished = []
                others.append((self.complete(process, done, now), done))
                held = self._held.get(process)
                continue
            if task.client != client:
                if finished:
                    clients[client].finished.add_all(finished)
                    finished = []
                client = task.client
            del held.tasks[task.id]
            task.holder = None
            if task.frame is not AT_REST:
                lighter += task.size
            task.frame = frame = done.frame
            task.size = size = len(frame[0]) if len(frame) == 1 else frame_bytes(frame)
            heavier += size
            task.detail = done.detail
            task.state = result
            task.outcome = _RESULT
            tag = task.tag
            freed[tag] = freed.get(tag, 0) + 1
            finished.append(task)
            plain.append((task, done))
        if finished:
            clients[client].finished.add_all(finished)
        self.parameter_bytes -= lighter
        self.result_bytes += heavier
        for tag, count in freed.items():
            self._counts[State.RUNNING][tag] -= count
            self._counts[State.RESULT][tag] += count
            if held is not None:
                held.by_tag[tag] -= count
        if held is not None and not held.tasks:
            self._held.pop(process, None)
        return plain, others

    def complete(self, process: int, done: Completion, now: float = 0.0) -> Effect:
        """A slave hands in the end of an attempt, perhaps late, perhaps twice.

        `now`: the back-off of a retry counts from then.
        """
        event = _OUTCOME_EVENTS[done.outcome]
        task = self.tasks.get(done.task_id)
        if task is None or not (task.state in _LIVE or self._is_open(task)):
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
        self._finish(task, event, done.frame, done.detail)
        return Effect("finished", task, stop_on)

    def due(self, now: float) -> list[Effect]:
        """Time has come to `now`: retries that are due go to the head of their line."""
        tasks = []
        while (at := self.next_due()) is not None and at <= now:
            tasks.append(heapq.heappop(self._deferred)[2])
            self._move(tasks[-1], Event.FALL_DUE)
        for task in reversed(tasks):  # each goes to the head: who was due first stands first
            self._lines.join_at_head(task, task.client, task.tag, task.options.priority)
        return [Effect("due", task) for task in tasks]

    def lose(self, process: int, story: str, could_run: int) -> list[Effect]:
        """A slave is gone. What it had started counts a crash, what it had prefetched does not.

        `could_run` is its number of workers: when it was lost before it said what it had started,
        that many of its oldest tasks may have run, and one of them may have been the cause.
        """
        held = self._let_go(process)
        guilty = {task.id for task in held if task.started}
        if not guilty:
            guilty = {task.id for task in held[:could_run]}
        effects = []
        blamed = self._blamed[process] = []
        for task in reversed(held):  # each goes to the head of its line: keep their order
            if task.id in guilty:
                effects.append(self._crash(task, story, setback=LOST))
                blamed.append((task.id, task.attempt, task.history[-1]))
            else:
                effects.append(self._reschedule(task))
        return effects

    def release(self, process: int) -> list[Effect]:
        """A slave leaves in good order: whatever it still holds goes back, at no task's cost."""
        self._blamed.pop(process, None)
        held = self._let_go(process)
        return [self._reschedule(task) for task in reversed(held)]

    def cancel(self, task_id: str, waiting_only: bool = False) -> tuple[bool, list[int]]:
        """The client takes a task back; with `waiting_only` none that a slave has.

        Gives whether it could (it had not finished), and the slaves that run it, to be told.
        Raises `UnknownTask` for an id that was never given out.
        """
        task = self.tasks.get(task_id)
        if task is None:
            if not self._was_given_out(task_id):
                raise UnknownTask(f"no task {task_id!r} was ever requested here")
            return False, []
        if task.state not in _LIVE or (waiting_only and task.state is State.RUNNING):
            return False, []
        holders = [task.holder, task.former] if task.state is State.RUNNING else []
        self._move(task, Event.CANCEL)
        self._unhold(task)
        self._forget(task)
        self.rest(task)  # its place in line may stay for a while
        self.cancelled += 1
        return True, [holder for holder in holders if holder is not None]

    def deliver(self, client: int, tag: str | None = None) -> Delivery | None:
        """The client takes its oldest finished task, of that tag if given; None: there is none."""
        got = self.deliver_all(client, tag, 1)
        return got[0] if got else None

    def deliver_all(
        self, client: int, tag: str | None, limit: int, limit_bytes: int = 0
    ) -> list[Delivery]:
        """The client takes so many finished tasks at most, oldest first, of that tag if given.

        No more once their frames have `limit_bytes` together.
        """
        got: list[Delivery] = []
        mine = self._clients.get(client)
        if mine is None:
            return got
        take, tasks = mine.finished.take, self.tasks
        given: dict[tuple[State, str], int] = {}  # by state and tag
        size = 0
        while (task := take(tag)) is not None:
            what = task.state, task.tag
            given[what] = given.get(what, 0) + 1
            task.state = TRANSITIONS[task.state, Event.DELIVER]
            task_id, frame = task.id, task.frame
            del tasks[task_id]
            if frame is not AT_REST:
                size += task.size
                task.frame = AT_REST  # who still has the task, to let it rest, finds that done
            got.append(new_delivery((task_id, what[1], task.outcome, frame, task.detail)))
            if len(got) >= limit or size >= limit_bytes > 0:
                break
        for (state, of_tag), count in given.items():  # forgotten: they are counted nowhere
            self._counts[state][of_tag] -= count
            mine.outstanding[of_tag] -= count
        self.result_bytes -= size
        self.delivered += len(got)
        return got

    def rest(self, task: Task) -> None:
        """Forget a task's frame: it is kept elsewhere, or not needed any more."""
        if task.state in FINISHED:
            self.result_bytes -= _in_memory(task)
        elif task.state is not State.PARKED:
            self.parameter_bytes -= _in_memory(task)
        task.frame = AT_REST

    # --- questions --------------------------------------------------------------------------

    def held_by(self, process: int) -> Collection[Task]:
        """The tasks that a slave has, oldest first."""
        held = self._held.get(process)
        return () if held is None else held.tasks.values()

    def load_of(self, process: int) -> Mapping[str, int]:
        """How many tasks of each tag a slave has."""
        held = self._held.get(process)
        return {} if held is None else held.by_tag

    def holders(self) -> list[int]:
        """The slaves that have tasks."""
        return list(self._held)

    def blamed(self) -> list[int]:
        """The lost slaves whose loss counts as a crash of a task, until they come back."""
        return [process for process, tasks in self._blamed.items() if tasks]

    def outstanding(self, client: int, tag: str | None = None) -> int:
        """How many tasks the client has requested and neither received nor cancelled."""
        mine = self._clients.get(client)
        if mine is None:
            return 0
        return mine.outstanding[tag] if tag is not None else mine.outstanding.total()

    def by_client(self) -> dict[int, tuple[int, int, int]]:
        """Of each client that has tasks: how many wait, run, and have finished.

        Costs as much as there are running tasks.
        """
        running = Counter(
            task.client for held in self._held.values() for task in held.tasks.values()
        )
        rows = {}
        for client, mine in self._clients.items():
            outstanding, finished = mine.outstanding.total(), len(mine.finished)
            if outstanding:
                runs = running[client]
                rows[client] = max(0, outstanding - finished - runs), runs, finished
        return rows

    def next_due(self) -> float | None:
        """When the next retry is due; None when none is deferred."""
        while self._deferred:
            at, _, task = self._deferred[0]
            if task.state is State.DEFERRED:
                return at
            heapq.heappop(self._deferred)  # finished or cancelled in the meantime
        return None

    def counts(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """Three dictionaries tag -> number of tasks: waiting, running, finished."""
        finished: Counter[str] = Counter()
        for state in FINISHED:
            finished.update(self._counts[state])
        waiting = self._counts[State.WAITING] + self._counts[State.DEFERRED]
        return waiting, +self._counts[State.RUNNING], +finished

    def parked(self) -> int:
        """How many tasks of earlier runs this run has not requested."""
        return self._counts[State.PARKED].total()

    def waiting(self, tag: str) -> int:
        """How many tasks of that tag wait for a slave."""
        return self._counts[State.WAITING][tag]

    def has_parked(self) -> bool:
        """Whether there may be tasks of earlier runs that this run has not requested."""
        return bool(self._parked or self._owned)

    def waiting_tags(self) -> Iterator[str]:
        """The tags that have waiting tasks."""
        return iter(self._counts[State.WAITING] + self._counts[State.DEFERRED])

    # --- moves ------------------------------------------------------------------------------

    def _move(self, task: Task, event: Event) -> None:
        state = TRANSITIONS.get((task.state, event))
        if state is None:
            raise IllegalTransition(
                f"task {task.id} is {task.state.value}: {event.value} cannot happen to it"
            )
        tag = task.tag
        self._counts[task.state][tag] -= 1
        self._counts[state][tag] += 1
        task.state = state

    def _is_open(self, task: Task) -> bool:
        return task.state is State.PARKED and not task.outcome

    def _reschedule(self, task: Task, setback: str = "") -> Effect:
        self._unhold(task)
        task.started = False
        if task.state is not State.PARKED:
            self._move(task, Event.RESCHEDULE)
            self._lines.join_at_head(task, task.client, task.tag, task.options.priority)
        return Effect("rescheduled", task, None, setback)

    def _retry(self, task: Task, now: float) -> Effect:
        setback = Outcome.EXCEPTION.value
        doubled = min(task.failures - 1, 64)  # more than enough for the longest back-off
        delay_s = min(MAX_BACKOFF_S, task.options.backoff * 2.0**doubled)
        if delay_s == 0 or task.state is State.PARKED:
            return self._reschedule(task, setback)
        self._move(task, Event.DEFER)
        self._unhold(task)
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
        self._finish(task, _OUTCOME_EVENTS[outcome.value], [], "\n".join(task.history))
        return Effect("finished", task, former)

    def _finish(self, task: Task, event: Event, frame: Frame, detail: str) -> None:
        self._unhold(task)
        task.former = None
        task.detail = detail
        if task.state is State.PARKED:
            task.outcome = TRANSITIONS[State.PARKED, event].value
            task.frame = frame
            task.size = frame_bytes(frame)
            return
        self.parameter_bytes -= _in_memory(task)
        task.frame = frame
        task.size = frame_bytes(frame)
        self._move(task, event)
        self._enqueue_finished(task)

    def _enqueue_finished(self, task: Task) -> None:
        """It waits for its client."""
        task.outcome = task.state.value
        self.result_bytes += _in_memory(task)
        self._clients[task.client].finished.add(task)

    def _hold(self, task: Task, process: int) -> None:
        task.holder = process
        held = self._held.get(process)
        if held is None:
            held = self._held[process] = _Held()
        if task.id not in held.tasks:
            held.by_tag[task.tag] = held.by_tag.get(task.tag, 0) + 1
        held.tasks[task.id] = task

    def _let_go(self, process: int) -> list[Task]:
        """A slave has nothing any more; gives what it had."""
        held = self._held.pop(process, None)
        return [] if held is None else list(held.tasks.values())

    def _unhold(self, task: Task) -> None:
        if task.holder is not None:
            held = self._held.get(task.holder)
            if held is not None:
                if held.tasks.pop(task.id, None) is not None:
                    held.by_tag[task.tag] -= 1
                if not held.tasks:
                    del self._held[task.holder]
            task.holder = None

    def _forget(self, task: Task) -> None:
        counts = self._counts[task.state]
        counts[task.tag] -= 1
        del self.tasks[task.id]
        self._client(task.client).outstanding[task.tag] -= 1

    def _drop(self) -> Effect:
        self.dropped += 1
        return Effect("dropped", None)

    def _may_retry(self, task: Task) -> bool:
        return task.failures < task.options.retries

    def _client(self, client: int) -> _Client:
        mine = self._clients.get(client)
        if mine is None:
            mine = self._clients[client] = _Client()
        return mine

    def _was_given_out(self, task_id: str) -> bool:
        tag, _, number = task_id.rpartition("_")
        known = tag in self._counts[State.WAITING]  # keeps every tag that it has seen
        is_number = number.isdecimal() and len(number) < 20  # Python reads no endless ones
        return known and is_number and int(number) < self._next_id


def _in_memory(task: Task) -> int:
    return 0 if task.frame is AT_REST else task.size

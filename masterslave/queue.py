"""The task queue as a pure state machine: every event is a method, the answer is its effect.

Here are all tasks that were requested and not yet delivered, and the events of clients: requests,
cancellations, deliveries. Those of slaves are in `leases`, what an earlier run has left in
`earlier`; both work on the queue that they are given. The states are in `states`, drawn there.

Any event that `TRANSITIONS` does not know raises `IllegalTransition` and changes nothing; what is
delivered has finished, which it always lets be. There is no clock, thread or file here (time is an
argument, in seconds of any steady clock), and each event costs O(log n) at most in the number of
tasks, so the same code serves live events, random tests and replay.

What could be told apart from it is in `lines` (order), `notes` (tiny tasks) and `sharing` (turns).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from masterslave.errors import IllegalTransition, UnknownTask
from masterslave.holdings import Holdings
from masterslave.lines import FinishedLine
from masterslave.notes import TINY_BYTES, Tasks
from masterslave.records import AT_REST, Delivery, Frame, TaskOptions, frame_bytes, new_delivery
from masterslave.sharing import SharedLines
from masterslave.states import (
    FINISHED,
    LIVE,
    NOBODY,
    OUTCOME_EVENTS,
    TRANSITIONS,
    Event,
    State,
    Task,
    in_memory,
)


class _Client:
    """What a client has in the queue."""

    __slots__ = ("finished", "outstanding")

    def __init__(self) -> None:
        self.finished = FinishedLine[Task]()
        self.outstanding: Counter[str] = Counter()  # tag -> requested, not yet delivered


class TaskQueue:
    """All tasks that were requested and not yet delivered. Not thread-safe: the shell locks.

    What has no underscore is also for `leases` and `earlier`, which keep the same books.
    """

    def __init__(self) -> None:
        self.tasks = Tasks[Task](Task)
        self.delivered = 0
        self.cancelled = 0
        self.parameter_bytes = 0  # in memory, of tasks that have not finished
        self.result_bytes = 0  # in memory, of tasks that have
        self.lines = SharedLines[Task]()
        self.held = Holdings()
        self.clients: dict[int, _Client] = {}
        self.tally: dict[State, Counter[str]] = {state: Counter() for state in State}
        self._next_id = 0

    # --- events -----------------------------------------------------------------------------

    def request(self, client: int, tag: str, frame: Frame, options: TaskOptions) -> Task:
        """A client states a task. Its id is the tag and a running number: ``sqrt_0``."""
        number = self._next_id
        self._next_id = number + 1
        task = Task(f"{tag}_{number}", number, client, tag, frame, options)
        self.tasks[task.id] = task
        self.parameter_bytes += task.size
        self.tally[State.WAITING][tag] += 1
        mine = self.clients.get(client) or self._client(client)
        mine.outstanding[tag] += 1
        self.lines.join(task, client, tag, options.priority)
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
                self.lines.join(task, client, tag, options.priority)
                size += task.size
            number += 1
        self._note(client, tag, options, number - len(tiny), tiny)
        self._next_id = number
        self.parameter_bytes += size
        self.tally[State.WAITING][tag] += number - first
        self._client(client).outstanding[tag] += number - first
        return [f"{tag}_{one}" for one in range(first, number)]

    def _note(
        self, client: int, tag: str, options: TaskOptions, number: int, data: list[bytes]
    ) -> None:
        for block in self.tasks.note(client, tag, options, number, data):
            self.lines.join_several(block, client, tag, options.priority)

    def park(self, number: int, tag: str, options: TaskOptions) -> Task:
        """A task that an earlier run has requested; see `earlier`."""
        task = Task(f"{tag}_{number}", number, NOBODY, tag, AT_REST, options)
        task.state = State.PARKED
        self._next_id = max(self._next_id, number + 1)
        self.tasks[task.id] = task
        self.tally[State.PARKED][tag] += 1
        self.tally[State.WAITING][tag] += 0  # the tag is known
        return task

    @property
    def next_number(self) -> int:
        """Of the next task that is requested."""
        return self._next_id

    def number_used(self, number: int) -> None:
        """An earlier run has given that number to a task that is forgotten."""
        self._next_id = max(self._next_id, number + 1)

    def claim(self, client: int, task: Task, frame: Frame, options: TaskOptions) -> None:
        """A client's request takes up a parked task, with its own frame and options."""
        task.client = client
        task.options = options
        self._client(client).outstanding[task.tag] += 1
        if task.outcome:
            self.move(task, OUTCOME_EVENTS[task.outcome])
            self._enqueue_finished(task)
            return
        task.frame = frame
        task.size = frame_bytes(frame)
        self.parameter_bytes += in_memory(task)
        if task.holder is not None:
            self.move(task, Event.ADOPT)
        else:
            self.move(task, Event.CLAIM)
            self.lines.join(task, client, task.tag, options.priority)

    def drop_parked(self, task: Task) -> None:
        """Nobody will ask for a parked task any more."""
        self.held.unhold(task)
        self.move(task, Event.DROP)
        del self.tasks[task.id]
        self.tally[task.state][task.tag] -= 1

    def drop_client(self, client: int) -> tuple[list[tuple[Task, list[int]]], list[Task]]:
        """A client is gone for good, and nobody will take its results.

        Gives its tasks that had not finished, each with the slaves that run it, to be told; and
        those that had.
        """
        cancelled = []
        finished = []
        for task in [task for task in self.tasks.values() if task.client == client]:
            if task.state in LIVE:
                cancelled.append((task, self.cancel(task.id)[1]))
            elif task.state in FINISHED:
                self.move(task, Event.DROP)
                self._forget(task)
                self.result_bytes -= in_memory(task)
                task.frame = AT_REST
                finished.append(task)
        self.clients.pop(client, None)
        self.lines.forget(client)
        self.tasks.forget(client)
        return cancelled, finished

    def weigh(self, client: int, weight: float) -> None:
        """The client's share of the slaves, where that of others is 1."""
        self.lines.weigh(client, weight)

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
        if task.state not in LIVE or (waiting_only and task.state is State.RUNNING):
            return False, []
        holders = [task.holder, task.former] if task.state is State.RUNNING else []
        self.move(task, Event.CANCEL)
        self.held.unhold(task)
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
        mine = self.clients.get(client)
        if mine is None:
            return got
        tasks, tally, result, delivered = self.tasks, self.tally, State.RESULT, State.DELIVERED
        size = 0
        all_at_once = not limit_bytes or self.result_bytes <= limit_bytes
        while len(got) < limit and (not limit_bytes or size < limit_bytes):
            run = mine.finished.take_run(tag, limit - len(got) if all_at_once else 1)
            if not run:
                break
            of_tag = run[0].tag
            mine.outstanding[of_tag] -= len(run)  # they are counted nowhere from now on
            tally[result][of_tag] -= len(run)
            for task in run:
                if task.state is not result:  # few fail
                    tally[result][of_tag] += 1
                    tally[task.state][of_tag] -= 1
                task.state = delivered
                task_id, frame = task.id, task.frame
                del tasks[task_id]
                if frame is not AT_REST:
                    size += task.size
                    task.frame = AT_REST  # who still has the task, to let it rest, finds that done
                got.append(new_delivery((task_id, of_tag, task.outcome, frame, task.detail)))
        self.result_bytes -= size
        self.delivered += len(got)
        return got

    def rest(self, task: Task) -> None:
        """Forget a task's frame: it is kept elsewhere, or not needed any more."""
        if task.state in FINISHED:
            self.result_bytes -= in_memory(task)
        elif task.state is not State.PARKED:
            self.parameter_bytes -= in_memory(task)
        task.frame = AT_REST

    # --- questions --------------------------------------------------------------------------

    def outstanding(self, client: int, tag: str | None = None) -> int:
        """How many tasks the client has requested and neither received nor cancelled."""
        mine = self.clients.get(client)
        if mine is None:
            return 0
        return mine.outstanding[tag] if tag is not None else mine.outstanding.total()

    def by_client(self) -> dict[int, tuple[int, int, int]]:
        """Of each client that has tasks: how many wait, run, and have finished.

        Costs as much as there are running tasks.
        """
        running = Counter(
            task.client for held in self.held.values() for task in held.tasks.values()
        )
        rows = {}
        for client, mine in self.clients.items():
            outstanding, finished = mine.outstanding.total(), len(mine.finished)
            if outstanding:
                runs = running[client]
                rows[client] = max(0, outstanding - finished - runs), runs, finished
        return rows

    def counts(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """Three dictionaries tag -> number of tasks: waiting, running, finished."""
        finished: Counter[str] = Counter()
        for state in FINISHED:
            finished.update(self.tally[state])
        waiting = self.tally[State.WAITING] + self.tally[State.DEFERRED]
        return waiting, +self.tally[State.RUNNING], +finished

    def parked(self) -> int:
        """How many tasks of earlier runs this run has not requested."""
        return self.tally[State.PARKED].total()

    def waiting(self, tag: str) -> int:
        """How many tasks of that tag wait for a slave."""
        return self.tally[State.WAITING][tag]

    def waiting_tags(self) -> Iterator[str]:
        """The tags that have waiting tasks."""
        return iter(self.tally[State.WAITING] + self.tally[State.DEFERRED])

    # --- moves ------------------------------------------------------------------------------

    def move(self, task: Task, event: Event) -> None:
        """Have a task enter the state that follows. Raises `IllegalTransition`."""
        state = TRANSITIONS.get((task.state, event))
        if state is None:
            raise IllegalTransition(
                f"task {task.id} is {task.state.value}: {event.value} cannot happen to it"
            )
        tag = task.tag
        self.tally[task.state][tag] -= 1
        self.tally[state][tag] += 1
        task.state = state

    def finish(self, task: Task, event: Event, frame: Frame, detail: str) -> None:
        """A task has come to its end, with that result or exception."""
        self.held.unhold(task)
        task.former = None
        task.detail = detail
        if task.state is State.PARKED:
            task.outcome = TRANSITIONS[State.PARKED, event].value
            task.frame = frame
            task.size = frame_bytes(frame)
            return
        self.parameter_bytes -= in_memory(task)
        task.frame = frame
        task.size = frame_bytes(frame)
        self.move(task, event)
        self._enqueue_finished(task)

    def _enqueue_finished(self, task: Task) -> None:
        """It waits for its client."""
        task.outcome = task.state.value
        self.result_bytes += in_memory(task)
        self.clients[task.client].finished.add(task)

    def _forget(self, task: Task) -> None:
        counts = self.tally[task.state]
        counts[task.tag] -= 1
        del self.tasks[task.id]
        self._client(task.client).outstanding[task.tag] -= 1

    def _client(self, client: int) -> _Client:
        mine = self.clients.get(client)
        if mine is None:
            mine = self.clients[client] = _Client()
        return mine

    def _was_given_out(self, task_id: str) -> bool:
        tag, _, number = task_id.rpartition("_")
        known = tag in self.tally[State.WAITING]  # keeps every tag that it has seen
        is_number = number.isdecimal() and len(number) < 20  # Python reads no endless ones
        return known and is_number and int(number) < self._next_id

"""Between the queue and its journal: what is written when something happens, what is read again.

Keeps the books of memory, too: when frames in memory exceed the budget, those written last go to
rest in the journal and come back when they are needed. All methods are called with the task
manager's lock held, but for `sync`, `filled` and `delivered`, which may block on the disk.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from masterslave.attempts import Attempt, FailureLog, own_story
from masterslave.earlier import EarlierRuns
from masterslave.entries import (
    TINY_BYTES,
    Cancelled,
    Dropped,
    Ended,
    Forgotten,
    HandedOut,
    Joined,
    Left,
    Requested,
    Requests,
    Results,
    Setback,
    Stored,
    identity,
)
from masterslave.errors import JournalError
from masterslave.journal import Journal
from masterslave.leases import Leases
from masterslave.records import (
    AT_REST,
    Assignment,
    Completion,
    Delivery,
    Frame,
    Outcome,
    ProcessInfo,
    TaskOptions,
    frame_bytes,
)
from masterslave.states import Effect, Task


class Ledger:
    """Keeps a queue's journal."""

    def __init__(
        self, journal: Journal, leases: Leases, earlier: EarlierRuns, memory_bytes: int
    ) -> None:
        self._journal = journal
        self._queue = leases.queue
        self._leases = leases
        self._earlier = earlier
        self._memory_bytes = memory_bytes
        # Frames that are to rest once they are written: what must be written first, whose, which.
        self._heavy: deque[tuple[int, Task, Frame]] = deque()
        self._ends: dict[str, int] = {}  # task id -> what must be written before it is delivered

    # --- at the start -----------------------------------------------------------------------

    def restore(self, failures: FailureLog) -> dict[int, ProcessInfo]:
        """Park the tasks of earlier runs; gives the slaves that may come back with some of them.

        `failures` is told of what failed then.
        """
        processes: dict[int, ProcessInfo] = {}
        tags: dict[int, str] = {}
        told: set[int] = set()  # slaves of which the ends of attempts tell
        forgotten: dict[int, str] = {}  # failures that are kept to be looked at: their tags
        queue, earlier = self._queue, self._earlier
        for entry in self._journal.entries():
            if isinstance(entry, Joined):
                processes[entry.process] = entry.info
            elif isinstance(entry, Forgotten):
                queue.number_used(entry.number)
                if entry.failed:
                    forgotten[entry.number] = ""
            elif isinstance(entry, Requested) and entry.number in forgotten:
                forgotten[entry.number] = entry.tag
            elif isinstance(entry, Requested):
                earlier.park(entry.number, entry.tag, entry.identity, entry.options)
                tags[entry.number] = entry.tag
            elif isinstance(entry, HandedOut):
                for number, attempt in entry.tasks:
                    if number in tags:
                        task_id = f"{tags[number]}_{number}"
                        earlier.absolved_before(task_id, attempt)  # see `absolved`
                        self._leases.adopt(entry.process, task_id, attempt)
                    else:  # cancelled: a slave may still hand it in, so nobody gets its number
                        queue.number_used(number)
            elif isinstance(entry, (Setback, Ended)):
                tag = tags.get(entry.number) or forgotten.get(entry.number)
                if tag is None:
                    queue.number_used(entry.number)
                    continue
                told.add(entry.process)
                info = processes.get(entry.process)
                unknown = f"slave {entry.process} of an earlier run"
                self._ended_before(entry, tag, info.machine if info else unknown, failures)
        known = {*queue.held, *queue.held.to_blame()}
        for process in known - processes.keys():  # it has left, or was never a slave of ours
            self._leases.release(process)
        for process in processes.keys() - known - told:  # lost in earlier runs: nobody asks for it
            self._journal.add(Left(process))
        return {process: processes[process] for process in sorted(known & processes.keys())}

    def _ended_before(
        self, entry: Setback | Ended, tag: str, where: str, failures: FailureLog
    ) -> None:
        """Take up the end of an attempt of an earlier run."""
        task_id, story = f"{tag}_{entry.number}", entry.story
        parked = task_id in self._queue.tasks
        if isinstance(entry, Setback):
            if parked:
                self._earlier.failed_before(
                    entry.process, task_id, entry.attempt, entry.outcome, story
                )
            tell = failures.setback
        else:
            if parked:
                self._earlier.finished_before(task_id, entry.outcome, story)
            if entry.outcome == Outcome.RESULT:
                failures.ended_well(task_id)
                return
            story = own_story(entry.attempt, entry.outcome, story)
            tell = failures.failed
        tell(task_id, tag, Attempt(entry.attempt, where, entry.outcome, entry.at, story))

    # --- what happens -----------------------------------------------------------------------

    def knows(self) -> bool:
        """Whether a request may take the place of one of an earlier run."""
        return bool(self._earlier)

    def request_all(
        self, client: int, tag: str, frames: Sequence[Frame], options: TaskOptions
    ) -> list[str] | None:
        """A client states tiny new tasks; gives their ids.

        None: nothing has happened, each is to be looked at by itself (see `request`).
        """
        queue = self._queue
        if options.origin is not None or self._earlier or not frames:
            return None
        data: list[Any] = []
        size = 0
        for frame in frames:
            if len(frame) != 1 or type(frame[0]) is not bytes or len(frame[0]) > TINY_BYTES:
                return None
            data.append(frame[0])
            size += len(frame[0])
        if queue.parameter_bytes + queue.result_bytes + size > self._memory_bytes:
            return None
        first = queue.next_number
        ids = queue.request_all(client, tag, frames, options)
        self._journal.add(Requests(first, tag, options, data), size)
        return ids

    def request(
        self, client: int, tag: str, frame: Frame, options: TaskOptions, name: bytes
    ) -> Task:
        """A client states a task of this identity: an earlier one of that, or a new one."""
        task = self._earlier.claim(client, name, frame, options)
        if task is None:
            task = self._queue.request(client, tag, frame, options)
            self._journal.add(Requested(task.ticket, tag, name, options, frame), task.size)
            self._weigh(task)
        elif task.frame is frame and options.key is None:
            self._weigh(task)  # with a key, the parameters on record may be others than these
        return task

    def handed_out(self, process: int, tasks: Collection[Assignment]) -> None:
        """A slave is about to get tasks."""
        if tasks:
            pairs = tuple((_number(task.task_id), task.attempt) for task in tasks)
            self._journal.add(HandedOut(process, pairs))

    def absolved(self, process: int, attempts: Iterable[tuple[str, int]]) -> None:
        """A slave that was lost with these attempts is back: on record, it gets them once more."""
        pairs = tuple((_number(task_id), attempt) for task_id, attempt in attempts)
        if pairs:
            self._journal.add(HandedOut(process, pairs))

    def settled(self, effect: Effect, process: int, attempt: int, duration_s: float) -> None:
        """An attempt has ended, or its slave was lost."""
        task = effect.task
        if task is None:
            return
        if effect.kind == "finished":
            self._journal.add(
                Ended(
                    task.ticket, attempt, process, task.outcome, duration_s, task.detail,
                    task.frame, time.time(),
                ),
                task.size,
            )  # fmt: skip
            self._ends[task.id] = self._journal.added
            self._weigh(task)
        elif effect.setback:
            story = task.history[-1].partition(": ")[2]
            now = time.time()
            self._journal.add(Setback(task.ticket, attempt, process, effect.setback, story, now))

    def finished(self, tasks: Iterable[tuple[Task, Completion]], process: int) -> None:
        """Results have come in; as `settled`."""
        now, add = time.time(), self._journal.add
        tasks = list(tasks)
        queue = self._queue
        if queue.parameter_bytes + queue.result_bytes > self._memory_bytes:
            others = tasks  # they are to rest
        else:
            tiny: list[Any] = []
            others = []
            size = 0
            for pair in tasks:
                task, done = pair
                frame = task.frame
                if (
                    len(frame) == 1
                    and type(frame[0]) is bytes
                    and len(frame[0]) <= TINY_BYTES
                    and not task.detail
                    and task.options.origin is None  # else it will be removed by itself
                ):
                    tiny.append((task.ticket, done.attempt, done.duration_s, frame[0]))
                    size += task.size
                else:
                    others.append(pair)
            if tiny:
                add(Results(process, now, tiny), size)
        for task, done in others:
            add(
                Ended(
                    task.ticket, done.attempt, process, task.outcome, done.duration_s, task.detail,
                    task.frame, now,
                ),
                task.size,
            )  # fmt: skip
            self._weigh(task)
        added = self._journal.added
        for task, _ in tasks:
            self._ends[task.id] = added

    def cancelled(self, task_id: str) -> None:
        """A client has taken a task back."""
        self._journal.add(Cancelled(_number(task_id)))

    def forgotten(self, task_id: str, outcome: str) -> None:
        """A task's client has its result, or has gone for good; `outcome`: empty if it has none."""
        self._ends.pop(task_id, None)
        failed = outcome not in ("", Outcome.RESULT.value)
        self._journal.add(Forgotten(_number(task_id), failed))

    def joined(self, process: int, info: ProcessInfo) -> None:
        """A slave has registered."""
        self._journal.add(Joined(process, info))

    def left(self, process: int) -> None:
        """A slave has left in good order."""
        self._journal.add(Left(process))

    def stored(self, values: Mapping[str, Any]) -> None:
        """Data items were stored."""
        for name, value in values.items():
            size = 0
            if isinstance(value, list) and all(hasattr(part, "__len__") for part in value):
                size = frame_bytes(value)  # other values are small
            self._journal.add(Stored(name, value), size)

    def dropped(self, name: str) -> None:
        """A data item was deleted."""
        self._journal.add(Dropped(name))

    # --- memory -----------------------------------------------------------------------------

    def _weigh(self, task: Task) -> None:
        """Note a frame that has come into memory, if it is to rest."""
        if self._queue.parameter_bytes + self._queue.result_bytes > self._memory_bytes:
            self._heavy.append((self._journal.added, task, task.frame))

    def rest(self) -> None:
        """Let go of the frames that are written and too much for the memory."""
        while self._heavy and self._heavy[0][0] <= self._journal.written:
            _, task, frame = self._heavy.popleft()
            if task.frame is frame:
                self._queue.rest(task)

    # --- the journal itself (without the lock) ----------------------------------------------

    @property
    def trouble(self) -> str:
        """Why the journal cannot be written at present; empty when it can."""
        return self._journal.trouble

    @property
    def added(self) -> int:
        """How many entries there were so far, written or not."""
        return self._journal.added

    def has_written(self, count: int) -> bool:
        """Whether the first so many entries are on record."""
        return self._journal.written >= count

    def is_due(self) -> bool:
        """See `Journal.is_due`."""
        return self._journal.is_due()

    def has_heavy(self) -> bool:
        """Whether `rest` has something to do, now or after a `sync`."""
        return bool(self._heavy)

    def sync(self) -> None:
        """See `Journal.sync`."""
        self._journal.sync()

    def filled(self, tasks: Iterable[Assignment]) -> tuple[list[Assignment], list[Completion]]:
        """The tasks with their parameters; and the end of those that cannot be read any more."""
        good, bad = [], []
        for task in tasks:
            if task.frame is not AT_REST:
                good.append(task)
                continue
            try:
                good.append(task._replace(frame=self._journal.parameters(_number(task.task_id))))
            except JournalError as error:
                kind = Outcome.EXCEPTION.value
                text = f"{type(error).__name__}: its parameters cannot be read: {error}"
                bad.append(Completion(task.task_id, task.attempt, kind, [], 0.0, text))
        return good, bad

    def delivered(self, delivery: Delivery) -> Delivery:
        """The delivery with its result; a failure, where that cannot be read any more.

        Its end is on record by then, or a client might act on what the next run does not know and
        runs again. While the journal cannot be written, work goes on without that.
        """
        if self._ends.pop(delivery.task_id, 0) > self._journal.written and not self.trouble:
            with contextlib.suppress(JournalError):
                self._journal.sync()
        if delivery.frame is not AT_REST:
            return delivery
        try:
            return delivery._replace(frame=self._journal.result(_number(delivery.task_id)))
        except JournalError as error:
            text = f"{type(error).__name__}: the result cannot be read: {error}"
            return delivery._replace(outcome=Outcome.EXCEPTION.value, frame=[], detail=text)


def names(tag: str, frames: Iterable[Frame], options: TaskOptions) -> list[bytes]:
    """The identities of requests."""
    return [identity(tag, frame, options.key) for frame in frames]


def _number(task_id: str) -> int:
    return int(task_id.rpartition("_")[2])

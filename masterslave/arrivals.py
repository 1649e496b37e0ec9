"""Finished tasks on their way from the task manager to the program that a master is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from masterslave.errors import (
    PayloadError,
    ResultTimeout,
    TaskLost,
    TaskManagerTermination,
    TaskOutOfMemory,
    TaskRaisedException,
    TaskTimedOut,
    WorkerCrashed,
)
from masterslave.interrupts import uninterrupted
from masterslave.payload import Codec
from masterslave.records import LOST, Delivery, Outcome

if TYPE_CHECKING:  # every slave's program imports the master, and needs none of these
    from masterslave.attached import RemoteManager
    from masterslave.manager import TaskManager

_RESULT = Outcome.RESULT.value

#: What stands for the failure of a task that has no exception object of its own.
_FAILURES: dict[str, type[WorkerCrashed | TaskOutOfMemory | TaskTimedOut | TaskLost]] = {
    LOST: TaskLost,
    Outcome.CRASHED.value: WorkerCrashed,
    Outcome.OUT_OF_MEMORY.value: TaskOutOfMemory,
    Outcome.TIMED_OUT.value: TaskTimedOut,
}

#: Results that are taken from the task manager at once when so many are there: at first, and, twice
#: as many each time, at most. Larger: slaves wait for the task manager's lock. Smaller: it is taken
#: for a few, and while slaves are quicker, results pile up for the garbage collector to visit.
_RESULT_BATCH, _LARGEST_BATCH = 64, 2048


@uninterrupted
class Arrivals:
    """The finished tasks of one client, for any number of its threads.

    Many are taken at once, and kept for whoever comes next: a failure, or leaving a loop, loses
    none. While another thread waits in the task manager, each takes one at a time, or what that
    thread waits for might lie here.
    """

    def __init__(
        self,
        manager: TaskManager | RemoteManager,
        process_id: int,
        codec: Codec,
        *,
        owned: bool,
    ) -> None:
        """`codec`: reads results; may be replaced. `owned`: their frames are nobody else's."""
        self.codec = codec
        self._manager = manager
        self._process_id = process_id
        self._owned = owned
        self._taken: deque[Delivery] = deque()  # and not given away yet, of any tag, oldest first
        self._waiting_calls = 0  # that wait in the task manager for a result
        self._batch = _RESULT_BATCH  # to be taken at once
        self._taking = threading.Lock()  # of both

    def next(
        self, tag: str | None, timeout: float | None, *, while_outstanding: bool = False
    ) -> Delivery | None:
        """The oldest finished task; waits, answers and raises as `TaskManager.getResults`."""
        manager = self._manager
        with self._taking:
            kept = self._taken
            if kept:
                if tag is None:
                    return kept.popleft()
                for place, one in enumerate(kept):
                    if one.tag == tag:
                        del kept[place]
                        return one
            if not self._waiting_calls and manager.is_here:
                got = manager.getResults(self._process_id, tag, self._batch, 0.0)
                is_full = len(got) == self._batch
                self._batch = min(2 * self._batch, _LARGEST_BATCH) if is_full else _RESULT_BATCH
                if got:
                    kept.extend(got)  # behind those of other tags, which are older
                    del kept[len(kept) - len(got)]
                    return got[0]
            self._waiting_calls += 1
        try:
            got = manager.getResults(self._process_id, tag, 1, timeout, while_outstanding)
        finally:
            with self._taking:
                self._waiting_calls -= 1
        return got[0] if got else None

    def each(self, tag: str | None, timeout: float | None) -> Iterator[tuple[str, str, Any]]:
        """Task id, tag and value of each, until none is outstanding; raises as `results`."""
        kept, taking = self._taken, self._taking
        while True:
            delivery: Delivery | None = None
            with taking:  # as `next` does, which takes twice as long
                if kept and (tag is None or kept[0].tag == tag):
                    delivery = kept.popleft()
            if delivery is None:
                try:
                    delivery = self.next(tag, timeout, while_outstanding=True)
                except TaskManagerTermination:
                    return
            if delivery is None:
                if self._manager.outstandingTasks(self._process_id, tag):
                    raise ResultTimeout(f"no result within {timeout:g} s")
                return
            yield delivery.task_id, delivery.tag, self.value(delivery)

    def value(self, delivery: Delivery) -> Any:
        """The result of a finished task; raises `TaskRaisedException` with what it raised."""
        if delivery.outcome == _RESULT:
            try:
                return self.codec.decode(delivery.frame, owned=self._owned)
            except PayloadError as error:
                raise TaskRaisedException(
                    delivery.task_id, delivery.tag, error, f"the result arrived, but {error}"
                ) from error
        exception = failure_of(self.codec, delivery)
        raise TaskRaisedException(delivery.task_id, delivery.tag, exception, delivery.detail)


def failure_of(codec: Codec, delivery: Delivery) -> BaseException:
    """Why a task failed: the handler's exception, or what stands for it."""
    if delivery.outcome == Outcome.EXCEPTION:
        return codec.decode_exception(delivery.frame, delivery.detail)
    return _FAILURES[delivery.outcome](delivery.detail)

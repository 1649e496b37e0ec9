"""A task manager that runs elsewhere, as one of its clients sees it.

`RemoteManager` has the methods of `TaskManager` that a master needs, over two connections::

    any thread --lane 0: submitTasks--+                        consumers wait for what is here
    any thread --lane 1: all else-----+--> task manager              ^
                 receiver: attachClient, collectResults, ping <------+

The client hangs on the receiver's connection. When that breaks, or the task manager was started
again, the receiver attaches the client anew under its token; calls that were under way are then
made again under their numbers, so nothing is requested twice, and no result is lost or doubled.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from masterslave.errors import (
    ConnectionFailed,
    MasterSlaveError,
    TaskManagerTermination,
    UnknownProcess,
    UnknownTask,
)
from masterslave.interrupts import interruptible, uninterrupted
from masterslave.lanes import RETRY_FROM_S, RETRY_TO_S, Lane
from masterslave.lines import FinishedLine
from masterslave.payload import own_versions
from masterslave.records import (
    DEFAULT_OPTIONS,
    LOST,
    Delivery,
    Frame,
    ProcessInfo,
    TaskOptions,
    getMachineInfo,
)
from masterslave.settings import Settings
from masterslave.transports.base import Link

log = logging.getLogger(__name__)

#: Between two signs of life, of which four may be missing, in seconds. Larger: that a client has
#: died without a word is noticed later. Smaller: calls for nothing.
_PING_S = 10.0

#: Pause of a client that has nothing to wait for, in seconds, after which it asks whether the task
#: manager is still there. Larger: it may not hear of a planned end (`service._TELL_S`). Smaller:
#: calls for nothing.
_LOOK_S = 2.0

#: Results in one parcel. Larger: more that is here and not yet wanted. Smaller: more calls.
_PARCEL = 200

_REQUESTS, _REST = 0, 1  # lanes

_GONE = "the task manager was started again or gave this client up, and has no record of the task"


@interruptible
class RemoteManager:
    """A served task manager. All methods may be called from any thread.

    They raise `ConnectionFailed` when it has been gone for `master_gone_s` seconds.
    """

    is_here = False  # each question is a message

    def __init__(
        self,
        label: str,
        connect: Callable[[], Link],
        settings: Settings,
        weight: float = 1.0,
    ) -> None:
        """Attach this process. Raises `ConnectionFailed` and its kin as `connect` does."""
        self.label = label
        self._connect = connect
        self._settings = settings
        self._weight = weight
        self._info = ProcessInfo(
            getMachineInfo(),
            os.getpid(),
            platform.node(),
            0,
            secrets.token_hex(16),
            versions=own_versions(),
        )
        self._changed = threading.Condition()
        self._process_id: int | None = None
        self._generation = 0  # number of the registration; 0: not attached at present
        self._trouble: MasterSlaveError | None = None  # why nothing will come any more
        self._closing = False
        self._ended = (
            False  # the task manager has said so: what has finished is taken, no more comes
        )
        self._look = False  # whether the receiver is to try its connection at once
        self._answered = 0  # the last request whose tasks are known
        self._tags: dict[str, str] = {}  # of the tasks that are outstanding there, by id
        self._submitting = 0  # threads whose requests are under way
        self._early: dict[str, Delivery] = {}  # results of their tasks, whose ids are not known yet
        self._outstanding: Counter[str] = Counter()  # by tag: not yet taken by our caller
        self._withdrawn: dict[str, bool] = {}  # tasks that are being taken back: whether lost there
        self._arrived = FinishedLine[Delivery]()
        self._waiting = 0  # threads that wait for a result
        self._parcel = 0  # number of the last parcel of results
        self._items: dict[str, Any] = {}  # data items of ours, for a task manager that starts anew
        self._link: Link | None = connect()
        try:
            self._attach()
        except BaseException:
            self._link.close()
            raise
        self._lanes = [Lane(self, number) for number in (_REQUESTS, _REST)]
        self._receiver = threading.Thread(target=self._receive, name="client-receiver", daemon=True)
        self._receiver.start()

    @property
    def process_id(self) -> int:
        """The number of this client; another one when the task manager was started again."""
        with self._changed:
            return self._process_id or 0

    def close(self) -> None:
        """Let go of all tasks, and of the task manager. A second call does nothing."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            attached = self._trouble is None and self._generation != 0
            self._changed.notify_all()
        if attached:
            # By a connection of its own: those of the lanes may be in the middle of a call.
            try:
                link = self._connect()
                try:
                    link.call("detachClient", self.process_id)
                finally:
                    link.close()
            except MasterSlaveError as error:
                log.debug("not detached from the task manager: %s", error)
        self._receiver.join()
        for lane in self._lanes:
            lane.close()

    # --- the task manager's methods ---------------------------------------------------------

    def addTaskRequest(
        self,
        tag: str,
        parameters: Frame,
        process_id: int = 0,
        options: Sequence[Any] = DEFAULT_OPTIONS,
    ) -> str:
        """See `TaskManager.addTaskRequest`."""
        return self.addTaskRequests(tag, [parameters], process_id, options)[0]

    def addTaskRequests(
        self,
        tag: str,
        frames: Sequence[Frame],
        process_id: int = 0,
        options: Sequence[Any] = DEFAULT_OPTIONS,
    ) -> list[str]:
        """See `TaskManager.addTaskRequests`. Answers when the requests are on record there."""
        checked = TaskOptions(*options).checked()

        @uninterrupted
        def note(serial: int, ids: list[str]) -> None:
            self._answered = serial
            self._outstanding[tag] += len(ids)
            for task_id in ids:
                delivery = self._early.pop(task_id, None)
                if delivery is None:
                    self._tags[task_id] = tag
                else:
                    self._arrived.add(delivery)

        with self._changed:
            self._submitting += 1
        try:
            ids: list[str] = self._lanes[_REQUESTS].once(
                "submitTasks", note, tag, list(frames), list(checked)
            )
        finally:
            with self._changed:
                self._submitting -= 1
                if not self._submitting:
                    self._early.clear()  # of tasks that were taken back meanwhile
        return ids

    @uninterrupted
    def getResults(
        self,
        process_id: int = 0,
        tag: str | None = None,
        limit: int = 1,
        timeout: float | None = None,
        while_outstanding: bool = False,
    ) -> list[Delivery]:
        """See `TaskManager.getResults`; raises `ConnectionFailed`, too."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                got: list[Delivery] = []
                while len(got) < limit and (run := self._arrived.take_run(tag, limit - len(got))):
                    self._outstanding[run[0].tag] -= len(run)
                    got += run
                if got:
                    self._changed.notify_all()  # others may wait while any is outstanding
                    return got
                if self._closing:
                    raise TaskManagerTermination("this client has let go of the task manager")
                if while_outstanding and not self._count(tag):
                    return []
                if self._trouble is not None:
                    raise self._trouble
                wait_s = None if deadline is None else deadline - time.monotonic()
                if wait_s is not None and wait_s <= 0:
                    return []
                self._waiting += 1
                self._changed.notify_all()  # the receiver
                try:
                    self._changed.wait(wait_s)
                finally:
                    self._waiting -= 1

    def outstandingTasks(self, process_id: int = 0, tag: str | None = None) -> int:
        """See `TaskManager.outstandingTasks`."""
        with self._changed:
            return self._count(tag)

    def taskIsRunning(self, task_id: str) -> bool:
        """See `TaskManager.taskIsRunning`."""
        return bool(self._lanes[_REST].call("taskIsRunning", task_id))

    def cancelTask(self, task_id: str, waiting_only: bool = False) -> bool:
        """See `TaskManager.cancelTask`."""

        @uninterrupted
        def note(serial: int, done: bool) -> None:
            tag = self._tags.pop(task_id, None) if done else None
            if tag is not None:
                self._outstanding[tag] -= 1

        done = lost = False
        with self._changed:
            self._withdrawn[task_id] = False
        try:
            done = self._lanes[_REST].once("withdrawTask", note, task_id, waiting_only)
        except UnknownTask:
            if not self._withdrawn.get(task_id):  # another thread may withdraw it, too
                raise
        finally:
            with self._changed:
                lost = self._withdrawn.pop(task_id, False)
        return done or lost  # carried out by the task manager that was there before

    def repeatStragglers(self, tag: str, factor: float | None) -> None:
        """See `TaskManager.repeatStragglers`; for all clients of the task manager."""
        self._lanes[_REST].call("repeatStragglers", tag, factor)

    def status(self) -> dict[str, Any]:
        """See `TaskManager.status`."""
        found: dict[str, Any] = self._lanes[_REST].call("status")
        return found

    def numberOfTasks(self) -> list[dict[str, int]]:
        """See `TaskManager.numberOfTasks`."""
        counts: list[dict[str, int]] = self._lanes[_REST].call("numberOfTasks")
        return counts

    def numberOfActiveProcesses(self) -> int:
        """See `TaskManager.numberOfActiveProcesses`."""
        return int(self._lanes[_REST].call("numberOfActiveProcesses"))

    def storeData(self, **values: Any) -> None:
        """See `TaskManager.storeData`; kept while a client that has stored them uses them."""
        with self._changed:
            self._items.update(values)
        self._lanes[_REST].identified("storeItems", values)

    def retrieveData(self, name: str) -> Any:
        """See `TaskManager.retrieveData`."""
        return self._lanes[_REST].call("retrieveData", name)

    def deleteData(self, name: str) -> None:
        """This client does not use the data item any more; the last one that did deletes it."""
        with self._changed:
            self._items.pop(name, None)
        self._lanes[_REST].identified("deleteItem", name)

    # --- for the lanes ----------------------------------------------------------------------

    def connect(self) -> Link:
        """A new connection."""
        return self._connect()

    def identity(self) -> tuple[int, int]:
        """Process id and registration of this client; blocks until it is attached.

        Raises why it is not and will not be.
        """
        with self._changed:
            while not self._generation or self._trouble is not None or self._closing:
                if self._closing:
                    raise TaskManagerTermination("this client has let go of the task manager")
                if self._trouble is not None:
                    raise self._trouble
                self._changed.wait()
            assert self._process_id is not None
            return self._process_id, self._generation

    def take_note(
        self, generation: int, serial: int, answer: Any, note: Callable[[int, Any], None]
    ) -> bool:
        """Use the answer of a call; false if this client was attached anew since it was made.

        Then the task manager may be another one, to which the client has not yet told of this.
        """
        with self._changed:
            if generation != self._generation:
                return False
            note(serial, answer)
            self._changed.notify_all()
            return True

    def detached(self, generation: int) -> None:
        """The task manager does not know that registration: attach anew."""
        with self._changed:
            if self._generation == generation:
                self._generation = 0
                self._changed.notify_all()

    def raises_when_full(self) -> bool:
        """Whether a request that finds no room there is to fail instead of waiting."""
        return self._settings.when_full == "raise"

    def wait_for_news(self, generation: int, timeout_s: float) -> None:
        """A call's connection broke: wait until the client was attached anew, but not for long.

        The receiver is to look whether its own is still there.
        """
        with self._changed:
            self._look = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._closing or self._generation != generation, timeout_s
            )

    # --- the receiver -----------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            while self._receive_once():
                pass
        except MasterSlaveError as error:
            self._give_up(error)
        except Exception as error:
            log.exception("the connection to the task manager failed")
            self._give_up(ConnectionFailed(f"{type(error).__name__}: {error}"))
        finally:
            if self._link is not None:
                self._link.close()

    def _give_up(self, error: MasterSlaveError) -> None:
        with self._changed:
            self._trouble = error
            self._changed.notify_all()

    def _receive_once(self) -> bool:
        """One call; false when this client has left."""
        with self._changed:
            if not self._is_wanted():
                self._changed.wait_for(self._is_wanted, _LOOK_S)
            if self._closing:
                return False
            wanted = (self._waiting or self._ended) and not self._look
            self._look = False
            process_id, generation = self._process_id, self._generation
        try:
            if self._link is None:
                self._link = self._connect()
            if not generation:
                self._attach()
            elif wanted:
                wait_s = min(_PING_S, self._settings.poll_s)
                parcel, contents = self._link.call(
                    "collectResults", process_id, generation, self._parcel, _PARCEL, wait_s
                )
                self._unpack(parcel, contents)
            else:
                self._link.call("ping", process_id)
        except TaskManagerTermination:
            if wanted:
                raise
            with self._changed:
                self._ended = True
        except UnknownProcess:
            self.detached(generation)
        except ConnectionFailed as error:
            if self._closing:
                return False
            self.detached(generation)
            self._find_again(error)
        return True

    def _is_wanted(self) -> bool:
        return bool(
            self._waiting or self._closing or self._look or self._ended or not self._generation
        )

    def _unpack(self, parcel: int, contents: Sequence[Any]) -> None:
        """Results have come; the same parcel may come twice."""
        with self._changed:
            if parcel == self._parcel:
                return
            self._parcel = parcel
            for item in contents:
                delivery = Delivery(*item)
                if self._tags.pop(delivery.task_id, None) is not None:
                    self._arrived.add(delivery)
                elif self._submitting:  # the answer that names the task is still on its way
                    self._early[delivery.task_id] = delivery
            self._changed.notify_all()

    def _attach(self) -> None:
        """(In the receiver's thread, or before it runs.) Register, and tell what is expected."""
        assert self._link is not None
        with self._changed:
            outstanding, answered = list(self._tags), self._answered
            items = dict(self._items)
        process_id, generation, missing = self._link.call(
            "attachClient", list(self._info), _PING_S, self._process_id, outstanding, answered,
            self._weight,
        )  # fmt: skip
        if items:
            self._link.call("storeItems", process_id, generation, items)
        with self._changed:
            if self._process_id != process_id:
                self._parcel = 0  # this task manager counts anew
                self._early.clear()
            self._process_id = process_id
            for task_id in missing:
                tag = self._tags.pop(task_id, None)
                if tag is not None and task_id in self._withdrawn:
                    self._outstanding[tag] -= 1
                    self._withdrawn[task_id] = True
                elif tag is not None:
                    self._arrived.add(Delivery(task_id, tag, LOST, [], _GONE))
            self._generation = generation
            self._changed.notify_all()

    def _find_again(self, error: ConnectionFailed) -> None:
        """The connection broke: wait until the task manager is there again.

        Raises the last error when it has been gone for too long.
        """
        log.warning("lost the task manager: %s", error, extra={"action": "manager_lost"})
        deadline = time.monotonic() + self._settings.master_gone_s
        pause_s = RETRY_FROM_S
        while True:
            if self._link is not None:
                self._link.close()
                self._link = None
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, pause_s):
                    return
            pause_s = min(RETRY_TO_S, 2 * pause_s)
            try:
                self._link = self._connect()
                self._attach()
            except ConnectionFailed as again:
                if time.monotonic() >= deadline:
                    raise ConnectionFailed(
                        f"the task manager has been gone for {self._settings.master_gone_s:g} s: "
                        f"{again}"
                    ) from again
            else:
                log.info("found the task manager again", extra={"action": "manager_found"})
                return

    def _count(self, tag: str | None) -> int:
        return self._outstanding[tag] if tag is not None else self._outstanding.total()

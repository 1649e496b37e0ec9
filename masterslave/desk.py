"""The task manager's methods for clients in other processes, which share it and come and go.

Half of `manager.TaskManager`, in a module of its own. A client attaches itself, numbers its calls,
so that none is carried out twice when an answer is lost (see `clients`), and is given its results
in parcels that are kept until it has them. When it disappears, its tasks go on for a time of grace,
in which it may come back.

    attachClient --> submitTasks, collectResults, ... --> detachClient
         ^                    |
         +---- comes back ----+-- connection closed or silent --> (grace) --> its tasks are dropped
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from masterslave import ledger
from masterslave.clients import Client, Clients, same_code
from masterslave.earlier import EarlierRuns
from masterslave.errors import (
    JournalError,
    JournalFull,
    SettingsError,
    TaskManagerTermination,
    UnknownProcess,
)
from masterslave.handout import HandOut
from masterslave.intake import Intake
from masterslave.interrupts import uninterrupted
from masterslave.ledger import Ledger
from masterslave.outbox import Outbox
from masterslave.overview import Overview
from masterslave.queue import TaskQueue
from masterslave.records import (
    BATCH_BYTES,
    DEFAULT_OPTIONS,
    SLAVE_CODE,
    Delivery,
    Frame,
    TaskOptions,
    as_process_info,
    frame_bytes,
)
from masterslave.room import Room
from masterslave.roster import Member, Roster
from masterslave.settling import Settling
from masterslave.states import State
from masterslave.waiters import Monitor, ResultWaiters

log = logging.getLogger(__name__)

#: How long a request of an attached client waits for room here before the client is told. Larger:
#: it hangs for longer before it can say why. Smaller: more calls while it waits.
_ROOM_S = 2.0


@uninterrupted
class ClientDesk:
    """Where attached clients are served. What is declared here is made by `TaskManager`."""

    _lock: Monitor
    _clock: Callable[[], float]
    _queue: TaskQueue
    _earlier: EarlierRuns
    _roster: Roster
    _clients: Clients
    _ledger: Ledger | None
    _room: Room
    _outbox: Outbox
    _handout: HandOut
    _results: ResultWaiters
    _settling: Settling
    _intake: Intake
    _overview: Overview
    _data: dict[str, Any]
    _terminated: bool
    label: str

    def attachClient(
        self,
        info: Sequence[Any] | str,
        watchdog_period: float | None = None,
        resume: int | None = None,
        outstanding: Sequence[str] = (),
        answered: int = 0,
        weight: float = 1.0,
    ) -> list[Any]:
        """A client joins, or comes back after it or this task manager was gone.

        `info`: a `ProcessInfo`, whose token is the client's own secret. `watchdog_period`: seconds
        between its signs of life. `resume`: the process id it had. `outstanding`: ids of the tasks
        that it waits for. `answered`: number of the last of its requests that was answered.
        `weight`: its share of the slaves, where that of others is 1. Gives its process id, the
        number of this registration, and the ids of those tasks that are not known here, of which no
        result will come.
        """
        record = as_process_info(info)
        with self._lock:
            if self._terminated:
                raise TaskManagerTermination("the task manager has ended")
            member = self._roster.join(record, watchdog_period, resume, self._clock())
            client = self._clients.enter(member.id, record.machine)
            self._overview.compare_versions(member)
            self._queue.weigh(member.id, weight)
            missing, had = self._earlier.reclaim(member.id, record.token, outstanding, answered)
            self._forget((task.id, task.outcome) for task in had)
            on_their_way = {delivery.task_id for delivery in client.contents}
            missing = [task_id for task_id in missing if task_id not in on_their_way]
            for task_id in outstanding:
                task = self._queue.tasks.get(task_id)
                if task is not None and task.state is State.WAITING:
                    self._handout.waiters.wake(task.tag)
            self._results.notify(member.id)  # its calls from before are void
            self._outbox.note("process_joined", member.id, record.machine)
            generation = member.generation
        self._outbox.tell()
        log.info("client %s is here", record.machine, extra={"action": "client_attached"})
        return [member.id, generation, missing]

    def detachClient(self, process_id: int) -> None:
        """A client leaves: what it has not taken back or received is dropped."""
        with self._lock:
            member = self._roster.leave(process_id)
            if member is not None:
                self._drop_client(process_id)
                self._outbox.note("process_left", process_id, member.info.machine, "unregistered")
        self._outbox.tell()

    def submitTasks(
        self,
        process_id: int,
        generation: int,
        lane: int,
        serial: int,
        tag: str,
        frames: Sequence[Frame],
        options: Sequence[Any] = DEFAULT_OPTIONS,
    ) -> list[str]:
        """As `addTaskRequests`, once for each `serial` of an attached client.

        Raises `UnknownProcess` when the client must attach itself again before; `QueueFull` or
        `JournalFull` when there is no room for some seconds: it is for the client to ask again.
        """
        checked = DEFAULT_OPTIONS
        if tuple(options) != DEFAULT_OPTIONS:
            checked = TaskOptions(*options).checked()
        books = self._ledger
        names = ledger.names(tag, frames, checked) if books is not None else []
        with self._lock:
            client, _ = self._attached(process_id, generation)
            done, ids = client.answered(lane, serial)
        if not done:  # else it is answered whether or not there is room now
            self._room.take(sum(map(frame_bytes, frames)), _ROOM_S)
            with self._lock:
                client, member = self._attached(process_id, generation)
                done, ids = client.answered(lane, serial)
                if not done:
                    if self._terminated:
                        raise TaskManagerTermination(
                            "the task manager has ended and takes no tasks"
                        )
                    if books is not None:
                        checked = checked._replace(origin=(member.info.token, serial))
                    ids = self._intake.add(process_id, tag, frames, checked, names)
                    client.answer(lane, serial, ids)
                    client.requested = 0 if books is None else books.added
        if books is not None:
            self._record(books, client, lane, ids)
        self._outbox.tell()
        return list(ids)

    def _record(self, books: Ledger, client: Client, lane: int, ids: Sequence[str]) -> None:
        """(Not locked.) Have the journal hold a request before it is answered.

        Where it cannot be written the request is taken back, for its client to ask again, and why
        not is raised: what was answered must outlive this process.
        """
        try:
            self._intake.record(books)
        except JournalError:
            with self._lock:
                # The same call may be here twice, after its connection broke.
                if client.has_answer(lane, ids):
                    if books.has_written(client.requested) or not self._are_waiting(ids):
                        return
                    for task_id in ids:
                        _, holders = self._queue.cancel(task_id, True)
                        self._settling.has_cancelled(task_id, holders)
                    self._forget((task_id, "") for task_id in ids)
                    client.take_back(lane)
            raise
        with self._lock:
            if not client.has_answer(lane, ids):
                raise JournalFull("the journal could not be written, and the request is taken back")

    def _are_waiting(self, ids: Iterable[str]) -> bool:
        tasks = [self._queue.tasks.get(task_id) for task_id in ids]
        return all(task is not None and task.state is State.WAITING for task in tasks)

    def withdrawTask(
        self,
        process_id: int,
        generation: int,
        lane: int,
        serial: int,
        task_id: str,
        waiting_only: bool = False,
    ) -> bool:
        """As `cancelTask`, once for each `serial` of an attached client."""
        with self._lock:
            client, _ = self._attached(process_id, generation)
            done, answer = client.answered(lane, serial)
        if not done:
            answer = self.cancelTask(task_id, waiting_only)
            with self._lock:
                if answer:
                    self._forget([(task_id, "")])
                client.answer(lane, serial, answer)
        return bool(answer)

    def collectResults(
        self, process_id: int, generation: int, parcel: int, limit: int, timeout: float
    ) -> list[Any]:
        """Take up to `limit` finished tasks of an attached client, in order of completion.

        `parcel`: number of the last parcel of results that it has received, 0 for none. Blocks for
        `timeout` seconds at most until there is a result. Gives the number of this parcel and what
        is in it; a parcel that was not received comes again. Raises `TaskManagerTermination` when
        no result is there and none will come, `UnknownProcess` as `submitTasks`.
        """
        deadline = self._clock() + timeout
        got: list[Delivery]
        with self._lock:
            while True:
                client, _ = self._attached(process_id, generation)
                sent = client.contents
                if not client.received(parcel):
                    got = list(sent)
                    break
                self._forget((one.task_id, one.outcome) for one in sent)
                got = []
                size = 0
                while len(got) < limit and size < BATCH_BYTES:
                    delivery = self._queue.deliver(process_id, None)
                    if delivery is None:
                        break
                    got.append(delivery)
                    size += frame_bytes(delivery.frame)
                if got:
                    client.pack(got)
                    break
                if self._terminated:
                    raise TaskManagerTermination("the task manager has ended")
                wait_s = deadline - self._clock()
                if wait_s <= 0:
                    return [client.parcel, []]
                self._results.wait(process_id, wait_s)
            number = client.parcel
        if self._ledger is not None:
            filled = [self._ledger.delivered(one) for one in got]
            with self._lock:
                if client.parcel == number and client.contents:
                    client.contents = filled
            got = filled
        return [number, got]

    def storeItems(self, process_id: int, generation: int, items: Mapping[str, Any]) -> None:
        """As `storeData`, for as long as one of the clients that have stored an item uses it.

        Slaves' code among them is loaded by all slaves from now on. Raises `SettingsError` while
        another client has brought other code.
        """
        with self._lock:
            client, _ = self._attached(process_id, generation)
            kept = self._data.get(SLAVE_CODE)
            code = items.get(SLAVE_CODE)
            is_new = code is not None and self._is_new_code(client, code)
            if code is not None and not is_new:
                items = {**items, SLAVE_CODE: kept}
            client.items.update(items)
            self._store(items)  # before another client may look whose code it is
        self._sync_stored()
        if is_new:
            with self._lock:
                self._slaves_load_anew()

    def deleteItem(self, process_id: int, generation: int, name: str) -> None:
        """An attached client does not use a data item any more; the last one deletes it."""
        with self._lock:
            client, _ = self._attached(process_id, generation)
            client.items.discard(name)
            self._delete_unused([name])

    # --- inside (all with the lock held) ----------------------------------------------------

    def _attached(self, process_id: int, generation: int) -> tuple[Client, Member]:
        client = self._clients.find(process_id)
        member = self._roster.present.get(process_id)
        if client is None or member is None or member.generation != generation:
            raise UnknownProcess(f"client {process_id} is not attached, or was taken for dead")
        self._roster.liveness.heard(process_id, self._clock())
        return client, member

    def _drop_client(self, process_id: int) -> int:
        """A client is gone for good; gives how many unfinished tasks it has left behind."""
        client = self._clients.leave(process_id)
        dropped, finished = self._queue.drop_client(process_id)
        for task, holders in dropped:
            self._settling.has_cancelled(task.id, holders)
            self._forget([(task.id, "")])
        self._forget((task.id, task.outcome) for task in finished)
        if client is not None:
            self._forget((one.task_id, one.outcome) for one in client.contents)
            self._delete_unused(client.items)
        self._room.found()
        self._results.notify(process_id)
        return len(dropped)

    def _forget(self, tasks: Iterable[tuple[str, str]]) -> None:
        """Clients have these tasks, or will never ask for them; ids and outcomes."""
        if self._ledger is not None:
            for task_id, outcome in tasks:
                self._ledger.forgotten(task_id, outcome)

    def _drop_absent(self) -> None:
        """Clients of an earlier run that have not come back in their time of grace do not."""
        for token in self._earlier.owners():
            if self._clients.are_kept:
                self._earlier.disown(token)
                continue
            dropped = self._earlier.drop_owned(token)
            for task, holders in dropped:
                if not task.outcome:
                    self._settling.has_cancelled(task.id, holders)
                self._forget([(task.id, task.outcome)])
            log.warning(
                "a client of an earlier run has not come back; %d tasks of it are dropped",
                len(dropped),
                extra={"action": "client_dropped"},
            )

    def _drop_overdue(self, now: float) -> None:
        """Clients whose time of grace is over do not come back."""
        for process_id in self._clients.overdue(now):
            member = self._roster.leave(process_id)
            count = self._drop_client(process_id)
            log.warning(
                "client %s has not come back; %d unfinished tasks of it are dropped",
                member.info.machine if member is not None else process_id,
                count,
                extra={"action": "client_dropped"},
            )

    def _is_new_code(self, client: Client, code: Any) -> bool:
        """A client brings slaves' code: whether that is other code than they load so far."""
        kept = self._data.get(SLAVE_CODE)
        if same_code(kept, code):
            return False
        if others := self._clients.users(SLAVE_CODE, client):
            raise SettingsError(
                f"the slaves of {self.label!r} work with the code of {others[0].machine}: wait "
                "until that client has left, let it run the very same script in the same "
                "directory, send functions (ClusterExecutor), or serve another label"
            )
        return True

    def _slaves_load_anew(self) -> None:
        for member in self._roster.all_known():
            if member.is_slave:
                member.has_new_code = True
                self._handout.rouse(member)

    def _delete_unused(self, names: Iterable[str]) -> None:
        for name in self._clients.unused(names):
            # Slaves keep the code that they have loaded until another client brings other code.
            if name in self._data:
                self._delete_item(name)

    # --- made by `TaskManager` --------------------------------------------------------------

    def cancelTask(self, task_id: str, waiting_only: bool = False) -> bool:
        """See `TaskManager.cancelTask`."""
        raise NotImplementedError

    def _store(self, values: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _sync_stored(self) -> None:
        raise NotImplementedError

    def _delete_item(self, name: str) -> None:
        raise NotImplementedError

"""The task manager: owns the queue, hands out tasks, watches over slaves, keeps data items.

The shell around `queue.TaskQueue`: a lock, threads that wait, a watchdog's view of time, observers
and the log. Payloads are opaque bytes here. Every public method may be called from any thread and
from other processes through a transport, and takes and gives plain types only. What blocks says
so; what blocks is always bounded by its time-out argument, so that a transport's thread is never
lost to a peer that has gone.

The module is longer than others because all of it shares one lock: what can do without the lock is
in `queue`, `roster`, `pace`, `waiters` and `watchdog`.

    client --addTaskRequest--> TaskQueue --exchange--> slave
    client <---getResults----- TaskQueue <--exchange-- slave
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from masterslave import ledger
from masterslave.attempts import Attempt, FailureLog, own_story
from masterslave.clients import Clients
from masterslave.desk import ClientDesk
from masterslave.earlier import EarlierRuns
from masterslave.errors import (
    DataNotFound,
    JournalError,
    TaskManagerTermination,
)
from masterslave.hooks import Observer
from masterslave.journal import Journal
from masterslave.leases import Leases
from masterslave.ledger import Ledger
from masterslave.outbox import Outbox
from masterslave.queue import TaskQueue
from masterslave.records import (
    BATCH_BYTES,
    DEFAULT_OPTIONS,
    SLAVE_CODE,
    Assignment,
    Completion,
    Delivery,
    Frame,
    Outcome,
    TaskOptions,
    as_completion,
    as_process_info,
    frame_bytes,
)
from masterslave.room import Room
from masterslave.roster import Member, Roster
from masterslave.scheduler import Scheduler
from masterslave.settings import Settings
from masterslave.states import Effect, State, Task
from masterslave.versions import mismatch
from masterslave.waiters import Monitor, Parked, Waiter, Waiters

log = logging.getLogger(__name__)

#: Longest single wait of a thread that waits for results, so that it can log a stand-still.
_SLICE_S = 3600.0

#: Failure messages of slaves that are kept for `status`, and how much of each.
_KEPT_FAILURES = 20
_FAILURE_CHARACTERS = 20_000


class TaskManager(ClientDesk):
    """The remote object of a master-slave job; see the module's text.

    `clock` gives seconds that never go back; tests pass their own.
    """

    def __init__(
        self,
        label: str = "",
        settings: Settings | None = None,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """`journal`: where everything is kept that must outlive this process; see `Ledger`.

        `keep`: keep the tasks of clients that disappeared until they come back.

        What earlier runs have left in it is taken up here. Raises `JournalDamaged`.
        """
        self.label = label
        self._settings = settings or Settings.from_environment()
        self._clock = clock
        self._lock = Monitor()
        self._lock.decide = self._decide
        self._queue = TaskQueue()
        self._leases = Leases(self._queue)
        self._earlier = EarlierRuns(self._queue)
        self._scheduler = Scheduler(self._leases)
        self._slaves_wait = Waiters()
        self._waiter_of: dict[int, Waiter] = {}  # process id -> its exchange that waits
        self._single_calls: set[Waiter] = set()  # of `getAnyTask` and `getTaskWithTag`
        self._clients_wait: dict[int, threading.Condition] = {}
        self._client_waits: Counter[int] = Counter()  # process id -> its calls that wait
        self._gone = self._lock.condition()  # told when a process leaves
        # Numbers of registrations are not those of an earlier task manager with our label.
        self._roster = Roster(first_generation=secrets.randbits(48))
        self._clients = Clients(None if keep else self._settings.client_grace_s)
        self._disown_at: float | None = None  # when clients of an earlier run are given up
        self._embedded: int | None = None  # the client that lives and dies with this process
        self._awaited: dict[int, float] = {}  # slaves of an earlier run -> until when
        self._data: dict[str, Any] = {}
        self._terminated = False
        self._told: list[int] = []  # attached clients that were there at the end
        self._failures: list[str] = []
        self._mismatches: list[str] = []  # versions that do not go together, in words
        self._failure_log = FailureLog()
        self._outbox = Outbox(self._lock, observers)
        self._alarm: Callable[[], None] = lambda: None
        self._alarm_due: float | None = None  # the next back-off's end that the watchdog knows of
        self._ledger: Ledger | None = None
        if journal is not None:
            self._ledger = Ledger(journal, self._leases, self._earlier, self._settings.memory_bytes)
        self._room = Room(self._lock, self._queue, self._ledger, self._settings, self._has_ended)
        if self._ledger is not None:
            self._restore(self._ledger)

    # --- processes --------------------------------------------------------------------------

    def registerProcess(
        self,
        watchdog_period: float | None = None,
        info: Sequence[Any] | str = "",
        resume: int | None = None,
        held: Iterable[Sequence[Any]] = (),
    ) -> list[Any]:
        """A process joins, or comes back after it was cut off.

        `watchdog_period`: seconds between the signs of life that it promises, None for none.
        `info`: a `ProcessInfo`, or a line of text. `resume`: the process id it had before, taken
        up again when its token is the same. `held`: (task id, attempt) of the tasks it still has.
        Gives the process id, those of these attempts that it should let go of, and the number of
        this registration, which it names in `exchange`.
        """
        record = as_process_info(info)
        had = [(str(task_id), int(attempt)) for task_id, attempt in held]
        with self._lock:
            member = self._roster.join(record, watchdog_period, resume, self._clock())
            self._awaited.pop(member.id, None)
            absolved = self._leases.take_back_blame(member.id)
            if self._ledger is not None:
                self._ledger.absolved(member.id, absolved)
            effects, obsolete = self._leases.reconcile(member.id, had)
            for effect in effects:
                self._act(effect, member, "not begun")
            self._rouse(member)  # its calls from before are void
            self._outbox.note("process_joined", member.id, record.machine)
            generation = member.generation
        self._outbox.tell()
        return [member.id, obsolete, generation]

    def announceSlave(self, process_id: int) -> None:
        """A registered process is a slave whose workers are starting."""
        with self._lock:
            member = self._roster.get(process_id)
            member.is_slave = True
            self._compare_versions(member)
            if self._ledger is not None:
                self._ledger.joined(process_id, member.info)

    def announceTags(self, process_id: int, tags: Iterable[str]) -> None:
        """A slave's workers are ready, and handle tasks of these tags."""
        with self._lock:
            member = self._roster.get(process_id)
            member.tags = frozenset(tags)
            member.is_slave = True
            self._line_up(member)
        log.info("slave %s is ready", member.info.machine, extra={"action": "slave_ready"})

    def reportFailure(self, process_id: int, text: str) -> None:
        """A slave tells why it cannot start its workers; shown by ``task_manager LABEL``."""
        text = text.strip()[:_FAILURE_CHARACTERS]
        with self._lock:
            member = self._roster.known(process_id)
            machine = member.info.machine if member is not None else f"process {process_id}"
            self._failures.append(f"{machine}: {text.partition(chr(10))[0]}")
            del self._failures[:-_KEPT_FAILURES]
        log.error("slave %s: %s", machine, text, extra={"action": "slave_failed"})

    def unregisterProcess(self, process_id: int) -> None:
        """A process leaves in good order; tasks it still holds go back at no cost to them."""
        with self._lock:
            member = self._roster.leave(process_id)
            if member is None:
                return
            self._release(member)
            if self._ledger is not None and member.is_slave:
                self._ledger.left(process_id)
            self._rouse(member)
            self._gone.notify_all()
            self._outbox.note("process_left", process_id, member.info.machine, "unregistered")
        self._outbox.tell()

    def lostProcess(self, process_id: int, reason: str, generation: int | None = None) -> None:
        """A process is taken for dead: what it held is run elsewhere. It may come back.

        `generation`: the number of the registration that this is about; nothing happens when the
        process has registered again since.
        """
        with self._lock:
            known = self._roster.known(process_id)
            if known is not None and generation not in (None, known.generation):
                return
            member = self._roster.lose(process_id)
            if member is None:
                return
            for forgotten in self._roster.take_crowded_out():
                if self._ledger is not None and forgotten.is_slave:
                    self._ledger.left(forgotten.id)  # nor does a journal grow with each loss
            story = f"{member.info.machine} was lost: {reason}"
            effects = self._leases.lose(process_id, story, max(1, member.info.workers))
            is_client = self._clients.lose(process_id, self._clock())
            self._notify_client(process_id)
            self._rouse(member)
            for effect in effects:
                self._write(effect, process_id)
                self._act(effect, member, "its slave was lost")
            self._gone.notify_all()
            self._outbox.note("process_left", process_id, member.info.machine, reason)
        self._outbox.tell()
        if is_client:
            log.warning(
                "client %s was lost (%s)",
                member.info.machine,
                reason,
                extra={"action": "client_lost"},
            )
            return
        log.warning(
            "%s was lost (%s); %d of its tasks are run elsewhere",
            member.info.machine,
            reason,
            len(effects),
            extra={"action": "process_lost"},
        )

    def ping(self, process_id: int) -> None:
        """A sign of life. Raises `UnknownProcess` for one that was taken for dead or never was.

        An attached client that had nothing to wait for learns of the end by it, by
        `TaskManagerTermination`.
        """
        with self._lock:
            if self._terminated and self._clients.find(process_id):
                raise TaskManagerTermination("the task manager has ended")
            self._roster.get(process_id)
            self._roster.liveness.heard(process_id, self._clock())

    def checkLiveness(self) -> None:
        """Take for dead who has been silent too long; called by the watchdog."""
        with self._lock:
            now = self._clock()
            silent = [
                (process_id, age_s, self._roster.get(process_id).generation)
                for process_id, age_s in self._roster.liveness.silent(now)
            ]
            for process_id in [p for p, until in self._awaited.items() if until <= now]:
                self._give_up(process_id, f"did not come back within {self._settings.resume_s:g} s")
            self._drop_overdue(now)
            if self._disown_at is not None and self._disown_at <= now:
                self._disown_at = None
                self._drop_absent()
            for tag in self._scheduler.late_tags(now):
                self._slaves_wait.wake(tag)
        for process_id, age_s, generation in silent:
            self.lostProcess(process_id, f"silent for {age_s:.1f} s", generation)

    def putDueInLine(self) -> None:
        """Have retries run whose back-off is over; called by the watchdog."""
        with self._lock:
            for effect in self._leases.due(self._clock()):
                self._act(effect, None, "")

    def secondsUntilDue(self) -> float | None:
        """Seconds until a back-off is over; None when there is none."""
        with self._lock:
            at = self._alarm_due = self._leases.next_due()
            return None if at is None else max(0.0, at - self._clock())

    def setAlarm(self, alarm: Callable[[], None]) -> None:
        """Have `alarm` called when `secondsUntilDue` has become less; it must not block."""
        self._alarm = alarm

    def livenessInterval(self) -> float | None:
        """The shortest watchdog period promised by any process, in seconds; None if none."""
        with self._lock:
            return self._roster.liveness.ping_interval_s()

    def numberOfActiveProcesses(self) -> int:
        """The number of registered processes: the master, other clients, and slaves."""
        with self._lock:
            return len(self._roster.present)

    def activeProcesses(self) -> list[int]:
        """The ids of the registered processes."""
        with self._lock:
            return list(self._roster.present)

    def activeProcessInfo(self, pid: int) -> str:
        """One line on the registered process with that id; `UnknownProcess` if there is none."""
        with self._lock:
            return self._roster.get(pid).info.machine

    # --- clients ----------------------------------------------------------------------------

    def addTaskRequest(
        self,
        tag: str,
        parameters: Frame,
        process_id: int = 0,
        options: Sequence[Any] = DEFAULT_OPTIONS,
    ) -> str:
        """Put one task into the queue; gives its id. `parameters` is a frame of bytes."""
        return self.addTaskRequests(tag, [parameters], process_id, options)[0]

    def addTaskRequests(
        self,
        tag: str,
        frames: Sequence[Frame],
        process_id: int = 0,
        options: Sequence[Any] = DEFAULT_OPTIONS,
    ) -> list[str]:
        """Put many tasks of one tag into the queue; gives their ids in order.

        With a journal, a request that equals one of an earlier run takes that one's place, and a
        client of another process is answered when its requests are on record. Blocks while the
        parameters of unfinished tasks exceed the memory budget (without a journal) or the journal
        cannot be written, or raises `QueueFull` or `JournalFull` then, as the settings say.
        """
        checked = DEFAULT_OPTIONS
        if options is not DEFAULT_OPTIONS:
            checked = TaskOptions(*options).checked()
        books = self._ledger
        names: list[bytes] = []
        if books is not None and books.knows():  # else nobody asks for them, and it takes time
            names = ledger.names(tag, frames, checked)
        self._room.take(sum(map(frame_bytes, frames)))
        with self._lock:
            if self._terminated:
                raise TaskManagerTermination("the task manager has ended and takes no tasks")
            ids = self._add_requests(process_id, tag, frames, checked, names)
        if books is not None and (process_id != self._embedded or books.is_due()):
            self._sync_requests(books)
        self._outbox.tell()
        return ids

    def embedClient(self, process_id: int) -> None:
        """State which client is in this very process: what it requests is lost with the queue, and
        asked for again by its next run. So it need not wait until its requests are on record.
        """
        self._embedded = process_id

    def getResults(
        self,
        process_id: int = 0,
        tag: str | None = None,
        limit: int = 1,
        timeout: float | None = None,
        while_outstanding: bool = False,
    ) -> list[Delivery]:
        """Take up to `limit` finished tasks of this client, in order of completion.

        Fewer when these make up a message. Blocks until there is at least one, for `timeout`
        seconds at most (None: without end); an empty list means that the time is over, or, with
        `while_outstanding`, that no task of the client is outstanding. Raises
        `TaskManagerTermination` when no result is there and none will come.
        """
        deadline = None if timeout is None else self._clock() + timeout
        with self._lock:
            while True:
                got = self._queue.deliver_all(process_id, tag, limit, BATCH_BYTES)
                if got:
                    break
                if self._terminated:
                    raise TaskManagerTermination("the task manager has ended")
                if while_outstanding and not self._queue.outstanding(process_id, tag):
                    return []
                wait_s = _SLICE_S if deadline is None else deadline - self._clock()
                if wait_s <= 0:
                    return []
                self._wait_for_result(process_id, wait_s)
        return got if self._ledger is None else [self._ledger.delivered(one) for one in got]

    def getAnyResult(self, process_id: int = 0, timeout: float | None = None) -> Delivery | None:
        """Take the oldest finished task of this client; blocks like `getResults`."""
        got = self.getResults(process_id, None, 1, timeout)
        return got[0] if got else None

    def getResultWithTag(
        self, tag: str, process_id: int = 0, timeout: float | None = None
    ) -> Delivery | None:
        """Take the oldest finished task of that tag; blocks like `getResults`."""
        got = self.getResults(process_id, tag, 1, timeout)
        return got[0] if got else None

    def repeatStragglers(self, tag: str, factor: float | None) -> None:
        """Run tasks of that tag a second time elsewhere that take longer than `factor` averages.

        Only when nothing of the tag waits and a worker is idle. None: do not (the default).
        """
        with self._lock:
            self._scheduler.repeat_stragglers(tag, factor)

    def outstandingTasks(self, process_id: int = 0, tag: str | None = None) -> int:
        """How many tasks the client has requested and neither received nor cancelled."""
        with self._lock:
            return self._queue.outstanding(process_id, tag)

    def taskIsRunning(self, task_id: str) -> bool:
        """Whether a slave has the task at present."""
        with self._lock:
            task = self._queue.tasks.get(task_id)
            return task is not None and task.state is State.RUNNING

    def cancelTask(self, task_id: str, waiting_only: bool = False) -> bool:
        """Take a task back; true if it had not finished. It will give no result.

        `waiting_only`: not if a slave has it.
        """
        with self._lock:
            done, holders = self._queue.cancel(task_id, waiting_only)
            if done:
                self._has_cancelled(task_id, holders)
                self._room.found()
                for waiting in self._clients_wait.values():
                    waiting.notify_all()  # one may have waited for this very task
        self._outbox.tell()
        return done

    # --- slaves -----------------------------------------------------------------------------

    def exchange(
        self,
        process_id: int,
        completions: Iterable[Sequence[Any]] = (),
        started: Iterable[str] = (),
        room: int | None = None,
        timeout: float = 0.0,
        generation: int | None = None,
    ) -> list[Any]:
        """A slave hands in what ended and takes what it may hold: many tasks in one call.

        `started`: tasks that workers have begun since the last call. `room`: how many of
        its workers are ready for tasks, idle or busy; 0: it wants no tasks, -1: as it said last,
        None: as many as it registered. `generation`: the number of its registration; a call from an
        earlier one, whose answer might go to a dead connection, gets nothing.

        Blocks for `timeout` seconds at most until there is a task or a notice, or the slave makes
        another call that waits. Gives the list of
        assignments, and a dictionary of notices: "stop" (task ids), "forget" (data items), "leave"
        (finish what runs, then leave), "terminate" (the job is over), "register" (this process is
        not known, or was taken for dead: what it handed in was used, now it must register again).

        With a journal, all that is answered is on record. Raises `JournalError` when that cannot be
        done: nothing is acknowledged then, and what was handed in is to be handed in again.
        """
        answer = self._exchange(process_id, completions, started, room, timeout, generation, None)
        assert isinstance(answer, list)
        return answer

    def exchangeOrPark(
        self,
        answer: Callable[[list[Any]], None],
        process_id: int,
        completions: Iterable[Sequence[Any]] = (),
        started: Iterable[str] = (),
        room: int | None = None,
        timeout: float = 0.0,
        generation: int | None = None,
    ) -> list[Any] | Parked:
        """As `exchange`, but instead of waiting it gives the call that is parked.

        `answer` is called with what `exchange` would give then, from any thread; it must not block.
        The caller ends it in time, by `endParked`. With a journal it blocks as `exchange` does.
        """
        parks = answer if self._ledger is None else None
        return self._exchange(process_id, completions, started, room, timeout, generation, parks)

    def endParked(self, parked: Parked) -> None:
        """The time of a parked call is over: it is answered, if it was not yet."""
        with self._lock:
            parked.is_over = True
            self._slaves_wait.rouse(parked)

    def _exchange(
        self,
        process_id: int,
        completions: Iterable[Sequence[Any]],
        started: Iterable[str],
        room: int | None,
        timeout: float,
        generation: int | None,
        answer: Callable[[list[Any]], None] | None,
    ) -> list[Any] | Parked:
        ended = [as_completion(item) for item in completions]
        if ended and self._ledger is not None:
            timeout = 0.0  # they are to be put on record, and acknowledged, at once
        with self._lock:
            member = self._roster.known(process_id)
            now = self._clock() if ended else 0.0
            if ended:
                self._settle_all(process_id, member, ended, now)
            tasks: list[Assignment] = []
            if member is not None and generation is None:
                generation = member.generation
            if member is not None and self._is_current(member, generation):
                self._roster.liveness.heard(process_id, self._clock())
                self._leases.started(process_id, started)
                if room is None:
                    member.room = max(1, member.info.workers)
                elif room >= 0:
                    member.room = room
                taken = self._take(member, timeout, answer)
                if isinstance(taken, Parked):
                    return taken
                tasks = taken
                if self._ledger is not None:
                    self._ledger.handed_out(process_id, tasks)
            notices = self._notices(member, generation)
        if self._ledger is not None:
            tasks = self._put_on_record(self._ledger, member, tasks, notices)
        self._outbox.tell()
        return [tasks, notices]

    def getAnyTask(self, process_id: int, timeout: float = 0.0) -> Assignment | None:
        """Take one task of any tag; waits for `timeout` seconds at most, then gives None."""
        return self._one_task(process_id, None, timeout)

    def getTaskWithTag(self, tag: str, process_id: int, timeout: float = 0.0) -> Assignment | None:
        """Take one task of that tag; waits for `timeout` seconds at most, then gives None."""
        return self._one_task(process_id, tag, timeout)

    def storeResult(self, task_id: str, result: Frame, process_id: int, attempt: int) -> None:
        """Hand in one result; `exchange` does this for many at once."""
        self.exchange(
            process_id, [(task_id, attempt, Outcome.RESULT.value, result, 0.0, "")], (), False
        )

    def storeException(
        self, task_id: str, exception: Frame, traceback: str, process_id: int, attempt: int
    ) -> None:
        """Hand in one exception with its traceback as text."""
        done = (task_id, attempt, Outcome.EXCEPTION.value, exception, 0.0, traceback)
        self.exchange(process_id, [done], (), 0)

    def returnTask(self, task_id: str, process_id: int, attempt: int) -> None:
        """Give one task back unrun, to the head of the queue."""
        done = Completion(task_id, attempt, Outcome.RETURNED.value, [], 0.0, "returned")
        self.exchange(process_id, [done], (), 0)

    # --- data items -------------------------------------------------------------------------

    def storeData(self, **values: Any) -> None:
        """Keep data items under these names until they are deleted."""
        with self._lock:
            self._data.update(values)
            if self._ledger is not None:
                self._ledger.stored(values)
        if self._ledger is not None and self._ledger.is_due():
            self._sync_requests(self._ledger)

    def retrieveData(self, name: str) -> Any:
        """The data item of that name; `DataNotFound` if there is none."""
        with self._lock:
            try:
                return self._data[name]
            except KeyError:
                raise DataNotFound(f"no data item {name!r}: never stored, or deleted") from None

    def deleteData(self, name: str) -> None:
        """Delete a data item here and in the slaves' caches; `DataNotFound` if there is none."""
        with self._lock:
            if name not in self._data:
                raise DataNotFound(f"no data item {name!r}: never stored, or deleted")
            self._delete_item(name)

    # --- the end, and questions -------------------------------------------------------------

    def terminate(self) -> None:
        """End the job: no more tasks are taken or handed out; slaves are told to leave."""
        with self._lock:
            if not self._terminated:
                self._told = [one for one in self._roster.present if self._clients.find(one)]
            self._terminated = True
            for member in self._roster.all_known():
                self._rouse(member)
            for waiter in list(self._single_calls):
                self._slaves_wait.rouse(waiter)
            for waiting in self._clients_wait.values():
                waiting.notify_all()
            self._gone.notify_all()
            self._room.found()

    def dismissSlaves(self, process_ids: Iterable[int]) -> int:
        """Tell these slaves to finish what runs, within their grace time, and to leave.

        Gives how many of them are present. Those that were lost are told when they come back.
        """
        wanted = set(process_ids)
        with self._lock:
            chosen = [m for m in self._roster.all_known() if m.is_slave and m.id in wanted]
            for member in chosen:
                member.dismissed = True
                self._rouse(member)
            return sum(1 for member in chosen if member.id in self._roster.present)

    def waitForSlavesToLeave(self, timeout: float) -> bool:
        """Block until no slave is registered, for `timeout` seconds at most; true if so."""
        deadline = self._clock() + timeout
        with self._lock:
            while self._roster.slaves():
                wait_s = deadline - self._clock()
                if wait_s <= 0:
                    return False
                self._gone.wait(wait_s)
            return True

    def waitForClientsToKnow(self, timeout: float) -> bool:
        """Block until attached clients that were there at the end have let go; true if so.

        For `timeout` seconds at most. They learn of it by the call that waits, or by the next ping.
        """
        deadline = self._clock() + timeout
        with self._lock:
            while any(client in self._roster.present for client in self._told):
                wait_s = deadline - self._clock()
                if wait_s <= 0:
                    return False
                self._gone.wait(wait_s)
            return True

    def numberOfTasks(self) -> list[dict[str, int]]:
        """Three dictionaries tag -> count: waiting, running, finished but not yet retrieved."""
        with self._lock:
            return list(self._queue.counts())

    def status(self) -> dict[str, Any]:
        """All that ``task_manager LABEL`` shows, as plain types."""
        with self._lock:
            waiting, running, finished = self._queue.counts()
            slaves: list[dict[str, Any]] = []
            others: list[dict[str, Any]] = []
            now = self._clock()
            for member in self._roster.present.values():
                row = member.as_status(self._scheduler.held_by(member))
                if member.is_slave and member.ends_at is not None:
                    timely = self._scheduler.tags_for(member, now)
                    row["left_s"] = member.left_s(now)
                    row["no_time_for"] = sorted((member.tags or frozenset()) - timely)
                (slaves if member.is_slave else others).append(row)
            clients = []
            if self._clients:
                clients = self._clients.rows(self._queue.by_client(), now)
            return {
                "label": self.label,
                "clients": clients,
                "active_processes": len(self._roster.present),
                "masters": others,
                "slaves": slaves,
                "workers": sum(slave["workers"] for slave in slaves),
                "waiting": waiting,
                "running": running,
                "finished": finished,
                "delivered": self._queue.delivered,
                "cancelled": self._queue.cancelled,
                "dropped": self._leases.dropped,
                "parked": self._queue.parked(),
                "awaited_slaves": len(self._awaited),
                "journal_trouble": self._ledger.trouble if self._ledger is not None else "",
                "blocked_requests": self._room.waiting,
                "client_waits": self._awaits_results(),
                "terminated": self._terminated,
                "failures": list(self._failures),
                "mismatches": list(self._mismatches),
            }

    def failedTasks(self) -> dict[str, Any]:
        """What ``task_manager failures LABEL`` shows, as plain types.

        "failed": the newest tasks that failed, each with its failed attempts; "under_way": those of
        which an attempt failed and another one is made; "forgotten": how many older ones failed.
        """
        with self._lock:
            return self._failure_log.rows()

    # --- inside (all with the lock held) ----------------------------------------------------

    def _awaits_results(self) -> bool:
        """Whether a client waits; an attached one that has nothing outstanding only looks."""
        return any(
            self._clients.find(process_id) is None or self._queue.outstanding(process_id)
            for process_id in self._client_waits
        )

    def _add_requests(
        self,
        process_id: int,
        tag: str,
        frames: Sequence[Frame],
        options: TaskOptions,
        names: Sequence[bytes],
    ) -> list[str]:
        """Put tasks into the queue; `names`: their identities, where those are known already."""
        books = self._ledger
        together: list[str] | None
        if books is None and len(frames) == 1 and self._slaves_wait:  # it is handed out at once
            together = [self._queue.request(process_id, tag, frames[0], options).id]
        elif books is None:
            together = self._queue.request_all(process_id, tag, frames, options)
        else:
            together = books.request_all(process_id, tag, frames, options)
        if together is not None:
            for _ in together if self._slaves_wait else ():
                if not self._slaves_wait:
                    break
                self._slaves_wait.wake(tag)
            if self._outbox.is_read:
                for task_id in together:
                    self._outbox.note("task_requested", task_id, tag)
            return together
        assert books is not None
        ids: list[str] = []
        names = names or ledger.names(tag, frames, options)
        for index, frame in enumerate(frames):
            task = books.request(process_id, tag, frame, options, names[index])
            ids.append(task.id)
            if task.state is State.WAITING:
                if self._slaves_wait:
                    self._slaves_wait.wake(tag)
            elif task.state is not State.RUNNING:
                self._notify_client(process_id)
            if self._outbox.is_read:
                self._outbox.note("task_requested", task.id, tag)
        return ids

    def _has_cancelled(self, task_id: str, holders: Iterable[int]) -> None:
        """A task was taken back; those who run it are to be told."""
        for holder in holders:
            self._order_stop(holder, task_id)
        self._failure_log.ended_well(task_id)
        if self._ledger is not None:
            self._ledger.cancelled(task_id)
        self._outbox.note("task_finished", task_id, task_id.rpartition("_")[0], "cancelled", 0.0)

    def _delete_item(self, name: str) -> None:
        del self._data[name]
        if self._ledger is not None and name != SLAVE_CODE:  # failures are replayed with that
            self._ledger.dropped(name)
        for member in self._roster.all_known():
            if member.is_slave:
                member.dropped_data.append(name)
                self._rouse(member)

    def _has_ended(self) -> bool:
        return self._terminated

    def _is_current(self, member: Member, generation: int | None) -> bool:
        present = self._roster.present.get(member.id) is member
        return present and member.generation == generation

    def _notices(self, member: Member | None, generation: int | None) -> dict[str, Any]:
        """What a slave is told at the end of an exchange, once."""
        notices = {}
        if member is not None and member.generation == generation:
            notices = member.notices()
        if self._terminated:
            notices["terminate"] = True
        elif member is None or member.id not in self._roster.present:
            notices["register"] = True
        return notices

    def _take(
        self, member: Member, timeout: float, answer: Callable[[list[Any]], None] | None = None
    ) -> list[Assignment] | Parked:
        """Hand out what the slave may hold, waiting for the first task or notice if asked to.

        `answer`: have the call parked instead.
        """
        tasks = [] if self._terminated else self._hand_out(member)
        if tasks or timeout <= 0 or self._must_answer(member):
            self._line_up(member)  # what this call freed and did not take is the waiting one's
            return tasks
        self._rouse(member)  # an earlier call that waits would be forgotten
        if answer is not None:
            parked = Parked(self._lock, member.id, member.generation, answer)
            self._waiter_of[member.id] = parked
            self._line_up(member)
            return parked
        waiter = self._waiter_of[member.id] = Waiter(self._lock)
        generation = member.generation
        deadline = self._clock() + timeout
        while not tasks and (wait_s := deadline - self._clock()) > 0:
            self._line_up(member)
            self._slaves_wait.wait(waiter, wait_s)
            current = self._waiter_of.get(member.id) is waiter
            if current and not self._terminated and self._is_current(member, generation):
                tasks = self._hand_out(member)
            self._pass_on(waiter, tasks)
            if not current or not self._is_current(member, generation):
                return tasks
            if self._must_answer(member):
                break
        del self._waiter_of[member.id]
        self._roster.liveness.heard(member.id, self._clock())
        return tasks

    def _decide(self, parked: Parked) -> Callable[[], None] | None:
        """A parked call was woken: what its answer is, if it is to be answered now."""
        if parked.is_answered:
            return None
        member = self._roster.known(parked.process_id)
        current = self._waiter_of.get(parked.process_id) is parked
        tasks: list[Assignment] = []
        if member is not None and current and self._is_current(member, parked.generation):
            if not self._terminated:
                tasks = self._hand_out(member)
            self._pass_on(parked, tasks)
            if not (tasks or parked.is_over or self._must_answer(member)):
                self._line_up(member)
                return None
            self._roster.liveness.heard(member.id, self._clock())
        else:
            self._pass_on(parked, tasks)
        if current:
            del self._waiter_of[parked.process_id]
        parked.is_answered = True
        reply = [tasks, self._notices(member, parked.generation)]
        return lambda: parked.answer(reply)

    def _must_answer(self, member: Member) -> bool:
        """Whether there is something to tell a slave even if there is no task for it.

        While the journal cannot be written nothing is handed out, so waiting would be in vain;
        the call that answers is the one that tries the journal again.
        """
        if self._terminated or member.has_notices():
            return True
        return self._ledger is not None and bool(self._ledger.trouble)

    def _pass_on(self, waiter: Waiter, taken: Iterable[Assignment]) -> None:
        """What a call was woken for and did not take is another one's.

        It may have been woken for a tag that it has no time left for, or found a task of another
        tag. Who is woken in vain no longer stands in line for that tag, so this comes to an end.
        """
        tag, waiter.called_for = waiter.called_for, None
        if tag is None or tag in {task.tag for task in taken}:
            return
        if self._leases.peek((tag,)) is not None:
            self._slaves_wait.wake(tag)

    def _line_up(self, member: Member) -> None:
        """Have a member's waiting call stand in line for tasks while a worker of it is idle."""
        waiter = self._waiter_of.get(member.id)
        if waiter is None or waiter.tags:
            return
        if self._scheduler.is_idle(member):
            tags = self._scheduler.tags_for(member, self._clock())
            self._slaves_wait.line_up(waiter, tags)
            if self._leases.peek(tags) is not None:
                self._slaves_wait.rouse(waiter)  # there is something for it already

    def _rouse(self, member: Member) -> None:
        """End a member's waiting call, if there is one."""
        waiter = self._waiter_of.pop(member.id, None)
        if waiter is not None:
            self._slaves_wait.rouse(waiter)

    def _hand_out(self, member: Member) -> list[Assignment]:
        if self._ledger is not None and self._ledger.trouble:
            return []  # nothing can be put on record, so nothing is begun
        now = self._clock()
        tasks = self._scheduler.hand_out(member, now)
        if not tasks and (tasks := self._scheduler.repeat(member, now)):
            repeated = tasks[0].task_id
            log.info("task %s is run a second time", repeated, extra={"action": "task_repeated"})
        return tasks

    def _settle_all(
        self, process_id: int, member: Member | None, ended: list[Completion], now: float
    ) -> None:
        """Use the completions of one call: what each costs is paid for every task."""
        plain, others = self._scheduler.complete_all(process_id, member, ended, now)
        if plain:
            if self._ledger is not None:
                self._ledger.finished(plain, process_id)
            if self._failure_log.is_under_way:
                for task, _ in plain:
                    self._failure_log.ended_well(task.id)
            if self._outbox.is_read:
                for task, done in plain:
                    self._outbox.note(
                        "task_finished", task.id, task.tag, task.outcome, done.duration_s
                    )
            for client in {task.client for task, _ in plain} if self._clients_wait else ():
                self._notify_client(client)
            self._room.found()
        for effect, done in others:
            self._write(effect, process_id, done.attempt, done.duration_s)
            self._act(effect, member, done.detail, done.duration_s)

    def _settle(self, process_id: int, member: Member | None, done: Completion, now: float) -> None:
        """Use one completion."""
        effect = self._scheduler.complete(process_id, member, done, now)
        self._write(effect, process_id, done.attempt, done.duration_s)
        self._act(effect, member, done.detail, done.duration_s)

    def _act(
        self, effect: Effect, member: Member | None, reason: str, duration_s: float = 0.0
    ) -> None:
        """Carry out what an event in the queue came to."""
        task = effect.task
        if task is None:
            return
        self._scheduler.ended(task.id)
        if effect.stop_on is not None:
            self._order_stop(effect.stop_on, task.id)
        if effect.kind == "finished":
            self._notify_client(task.client)
            self._room.found()
            if self._outbox.is_read:
                self._outbox.note("task_finished", task.id, task.tag, task.outcome, duration_s)
            if task.outcome in ("crashed", "out_of_memory", "timed_out"):
                log.error("task %s: %s", task.id, task.detail, extra={"action": "task_failed"})
        elif effect.kind == "rescheduled":
            self._slaves_wait.wake(task.tag)
            self._rescheduled(task, member, reason)
        elif effect.kind == "deferred":
            at = self._leases.next_due()
            if at is not None and (self._alarm_due is None or at < self._alarm_due):
                self._alarm_due = at
                self._alarm()
            self._rescheduled(task, member, reason)
        elif effect.kind == "due":
            self._slaves_wait.wake(task.tag)

    def _rescheduled(self, task: Task, member: Member | None, reason: str) -> None:
        if reason != "not begun":
            where = member.info.machine if member is not None else "a slave"
            log.log(
                logging.WARNING if task.crashes else logging.INFO,
                "task %s is run again (attempt %d on %s: %s)",
                task.id,
                task.attempt,
                where,
                reason.strip().rpartition("\n")[2],
                extra={"action": "task_rescheduled"},
            )
        self._outbox.note("task_rescheduled", task.id, task.tag, reason)

    def _compare_versions(self, member: Member) -> None:
        """Say it where a slave and a client do not go together, one of which has just come."""
        for other in self._roster.present.values():
            if other.is_slave == member.is_slave:
                continue
            slave, client = (member, other) if member.is_slave else (other, member)
            problem = mismatch(client.info.versions, slave.info.versions)
            if problem:
                text = f"slave {slave.info.machine} {problem}"
                log.warning("%s", text, extra={"action": "version_mismatch"})
                self._mismatches = [*self._mismatches, text][-_KEPT_FAILURES:]

    def _release(self, member: Member) -> None:
        for effect in self._leases.release(member.id):
            self._act(effect, member, "not begun")

    def _order_stop(self, process_id: int, task_id: str) -> None:
        member = self._roster.present.get(process_id)
        if member is not None:
            member.cancelled.append(task_id)
            self._rouse(member)

    def _notify_client(self, process_id: int) -> None:
        waiting = self._clients_wait.get(process_id)
        if waiting is not None:
            waiting.notify_all()

    def _wait_for_result(self, process_id: int, wait_s: float) -> None:
        waiting = self._clients_wait.get(process_id)
        if waiting is None:
            waiting = self._clients_wait[process_id] = self._lock.condition()
        self._client_waits[process_id] += 1
        try:
            waiting.wait(wait_s)
        finally:
            self._client_waits[process_id] -= 1
            if not self._client_waits[process_id]:
                del self._client_waits[process_id], self._clients_wait[process_id]

    def _one_task(self, process_id: int, tag: str | None, timeout: float) -> Assignment | None:
        deadline = self._clock() + timeout
        with self._lock:
            member = self._roster.get(process_id)
            tags = frozenset((tag,)) if tag is not None else member.tags or frozenset()
            waiter = Waiter(self._lock)
            while True:
                if self._terminated:
                    raise TaskManagerTermination("the task manager has ended")
                self._roster.get(process_id)  # it may have been lost while it waited
                assignment = self._leases.hand_out(member.id, tags)
                wait_s = deadline - self._clock()
                if assignment is not None or wait_s <= 0:
                    break
                self._single_calls.add(waiter)
                self._slaves_wait.line_up(waiter, tags)
                self._slaves_wait.wait(waiter, wait_s)
                self._single_calls.discard(waiter)
            taken = [assignment] if assignment is not None else []
            if self._ledger is not None:
                self._ledger.handed_out(process_id, taken)
        if self._ledger is not None:
            taken = self._put_on_record(self._ledger, member, taken, {})
        return taken[0] if taken else None

    # --- the journal and the memory budget --------------------------------------------------

    def _restore(self, books: Ledger) -> None:
        """Take up what earlier runs have left; wait for those of their slaves that may live."""
        for process_id, info in books.restore(self._failure_log).items():
            self._roster.remember(process_id, info)
            if not self._queue.held.of(process_id):
                continue  # it was lost before; nothing waits for it
            self._awaited[process_id] = self._clock() + self._settings.resume_s
            if info.host == platform.node() and not _is_running(info.pid):
                self._give_up(process_id, "has ended")
        if self._earlier.owners():
            self._disown_at = self._clock() + self._settings.client_grace_s
        if self._queue.parked():
            log.info(
                "the journal has %d tasks of earlier runs; %d slaves are awaited",
                self._queue.parked(),
                len(self._awaited),
                extra={"action": "journal_restored"},
            )

    def _give_up(self, process_id: int, reason: str) -> None:
        """(Locked.) A slave of an earlier run is awaited no more: others may run its tasks."""
        del self._awaited[process_id]
        member = self._roster.known(process_id)
        log.info("a slave of an earlier run %s", reason, extra={"action": "slave_given_up"})
        for effect in self._leases.release(process_id):
            self._act(effect, member, "not begun")

    def _write(
        self, effect: Effect, process_id: int, attempt: int | None = None, duration_s: float = 0.0
    ) -> None:
        """(Locked.) Put on record what an event in the queue came to."""
        task = effect.task
        if task is None:
            return
        if attempt is None:
            attempt = task.attempt
        if self._ledger is not None:
            self._ledger.settled(effect, process_id, attempt, duration_s)
        outcome = effect.setback or (task.outcome if effect.kind == "finished" else "")
        if outcome == Outcome.RESULT:
            self._failure_log.ended_well(task.id)
        elif outcome:
            if effect.setback:
                story = task.history[-1].partition(": ")[2]
            else:
                story = own_story(attempt, outcome, task.detail)
            member = self._roster.known(process_id)
            where = member.info.machine if member is not None else f"process {process_id}"
            failed = Attempt(attempt, where, outcome, time.time(), story)
            tell = self._failure_log.setback if effect.setback else self._failure_log.failed
            tell(task.id, task.tag, failed)

    def _put_on_record(
        self,
        books: Ledger,
        member: Member | None,
        tasks: list[Assignment],
        notices: dict[str, Any],
    ) -> list[Assignment]:
        """Have the journal hold all that this call did; gives its tasks, with their parameters.

        Raises `JournalError` when that fails; the tasks and notices wait for another call then.
        """
        try:
            books.sync()
        except JournalError:
            with self._lock:
                if member is not None:
                    member.take_back(notices)
                    self._return_unsent(member, tasks)
            raise
        filled, unreadable = books.filled(tasks)
        if unreadable or books.has_heavy():
            with self._lock:
                for done in unreadable:
                    assert member is not None
                    self._settle(member.id, member, done, self._clock())
                books.rest()
        return filled

    def _return_unsent(self, member: Member, tasks: list[Assignment]) -> None:
        for task in reversed(tasks):
            returned = Outcome.RETURNED.value
            done = Completion(task.task_id, task.attempt, returned, [], 0.0, "not begun")
            self._settle(member.id, member, done, self._clock())

    def _sync_requests(self, books: Ledger) -> None:
        """Have the journal hold the requests; a failure holds up the next ones, see `Room`.

        They stand in the queue already, so an error here would have them asked for twice.
        """
        try:
            books.sync()
        except JournalError as error:
            log.debug("requests are not on record yet: %s", error)
            return
        if books.has_heavy():
            with self._lock:
                books.rest()


def _is_running(pid: int) -> bool:
    """Whether there is a process of that id on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there is, and it is somebody else's
        return True
    return True

"""The task manager: owns the queue, hands out tasks, watches over slaves, keeps data items.

The shell around `queue.TaskQueue`: a lock, threads that wait, a watchdog's view of time, observers
and the log. Payloads are opaque bytes here. Every public method may be called from any thread and
from other processes through a transport, and takes and gives plain types only. What blocks says
so; what blocks is always bounded by its time-out argument, so that a transport's thread is never
lost to a peer that has gone.

Each method takes the one lock and asks the part whose business it is:

| part         | its business                                                                    |
|--------------|---------------------------------------------------------------------------------|
| `attendance` | who is here: joins, leaves, is lost, is awaited after a restart                 |
| `intake`     | requests on their way into the queue                                            |
| `handout`    | slaves' calls that take tasks, at once or after a wait                          |
| `settling`   | what comes of ends and losses: on record, told, logged, run again               |
| `shortcuts`  | tasks that go to an idle worker of this machine directly                        |
| `overview`   | what is shown of the job                                                        |
| `desk`       | the methods for clients of other processes                                      |

The module is longer than others as it is the list of all that may be called, with what each call
promises; what is more than a few lines is in the parts.

    client --addTaskRequest--> TaskQueue --exchange--> slave
    client <---getResults----- TaskQueue <--exchange-- slave
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from masterslave import ledger
from masterslave.attendance import Attendance
from masterslave.clients import Clients
from masterslave.desk import ClientDesk
from masterslave.earlier import EarlierRuns
from masterslave.errors import DataNotFound, JournalError, TaskManagerTermination
from masterslave.handout import HandOut
from masterslave.hooks import Observer
from masterslave.intake import Intake
from masterslave.interrupts import uninterrupted
from masterslave.journal import Journal
from masterslave.leases import Leases
from masterslave.ledger import Ledger
from masterslave.outbox import Outbox
from masterslave.overview import Overview
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
from masterslave.settling import Settling
from masterslave.shortcuts import Opener, Shortcuts
from masterslave.states import State
from masterslave.waiters import Monitor, Parked, ResultWaiters

log = logging.getLogger(__name__)

#: Longest single wait of a thread that waits for results, so that it can log a stand-still.
_SLICE_S = 3600.0

#: A client that takes so many results at once is not as quick as its slaves; more than a master
#: takes (`arrivals`) it must not be. Larger: they pile up, and Python's collector visits each of
#: them again and again. Smaller: slaves are slowed down in vain.
_MANY = 2048

#: Then the thread that books results by shortcuts leaves the interpreter to the client for so long.
#: Larger: workers run dry. Smaller: the client does not catch up.
_CATCH_UP_S = 0.002


@uninterrupted
class TaskManager(ClientDesk):
    """The remote object of a master-slave job; see the module's text.

    `clock` gives seconds that never go back; tests pass their own.
    """

    is_here = True  # in this process: to ask it costs no more than a lock

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
        self._queue = TaskQueue()
        self._leases = Leases(self._queue)
        self._earlier = EarlierRuns(self._queue)
        self._scheduler = Scheduler(self._leases)
        # Numbers of registrations are not those of an earlier task manager with our label.
        self._roster = Roster(first_generation=secrets.randbits(48))
        self._clients = Clients(None if keep else self._settings.client_grace_s)
        self._disown_at: float | None = None  # when clients of an earlier run are given up
        self._embedded: int | None = None  # the client that lives and dies with this process
        self._data: dict[str, Any] = {}
        self._terminated = False
        self._client_is_behind = False  # with taking results; as seen since that was looked at
        self._told: list[int] = []  # attached clients that were there at the end
        self._ledger: Ledger | None = None
        if journal is not None:
            self._ledger = Ledger(journal, self._leases, self._earlier, self._settings.memory_bytes)
        self._outbox = Outbox(self._lock, observers)
        self._room = Room(self._lock, self._queue, self._ledger, self._settings, self._has_ended)
        self._results = ResultWaiters(self._lock)
        self._handout = HandOut(
            self._lock, clock, self._roster, self._leases, self._scheduler, self._ledger
        )
        self._settling = Settling(
            self._lock, clock, self._roster, self._leases, self._scheduler, self._ledger,
            self._room, self._outbox, self._handout, self._results,
        )  # fmt: skip
        self._shortcuts = Shortcuts(clock, self._leases, self._scheduler.pace, self._settling)
        self._shortcuts.is_held_up = self._cannot_record
        self._handout.direct = self._shortcuts.take
        self._intake = Intake(
            self._lock, self._queue, self._ledger, self._outbox, self._handout.waiters,
            self._results,
        )  # fmt: skip
        self._attendance = Attendance(
            self._lock, clock, self._roster, self._leases, self._ledger, self._outbox,
            self._handout, self._settling, self._shortcuts,
        )  # fmt: skip
        self._overview = Overview(
            self._roster, self._queue, self._leases, self._scheduler, self._clients, self._results
        )
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
            member, obsolete = self._attendance.join(record, watchdog_period, resume, had)
            generation = member.generation
        self._outbox.tell()
        return [member.id, obsolete, generation]

    def announceSlave(self, process_id: int) -> None:
        """A registered process is a slave whose workers are starting."""
        with self._lock:
            member = self._roster.get(process_id)
            member.is_slave = True
            self._overview.compare_versions(member)
            if self._ledger is not None:
                self._ledger.joined(process_id, member.info)

    def announceTags(self, process_id: int, tags: Iterable[str]) -> None:
        """A slave's workers are ready, and handle tasks of these tags."""
        with self._lock:
            member = self._roster.get(process_id)
            member.tags = frozenset(tags)
            member.is_slave = True
            self._handout.line_up(member)
        log.info("slave %s is ready", member.info.machine, extra={"action": "slave_ready"})

    def allowShortcuts(self, opener: Opener) -> None:
        """From now on, give tasks to idle workers of this machine directly, see `Shortcuts`."""
        self._shortcuts.opener = opener

    def forbidShortcuts(self) -> None:
        """Let go of all shortcuts, and open none any more."""
        with self._lock:
            self._shortcuts.opener = None
            for member in self._roster.all_known():
                self._shortcuts.let_go(member)
        self._outbox.tell()

    def openShortcut(
        self, process_id: int, generation: int, worker: int, names: Sequence[Any]
    ) -> bool:
        """A slave offers a shortcut to a worker of its own; `names`: see `shortcut.PipeNames`.

        False when it is not used: it cannot be from here, or the registration is not the last.
        """

        def heard() -> None:
            self._heard(process_id, generation, worker)

        with self._lock:
            member = self._roster.known(process_id)
            if member is None or not self._handout.is_current(member, generation):
                return False
            is_open = self._shortcuts.open(member, worker, names, heard)
            self._handout.line_up(member)
            return is_open

    def closeShortcuts(self, process_id: int, generation: int, workers: Iterable[int]) -> None:
        """Workers of a slave have ended, and all that it knows of their tasks is handed in."""
        with self._lock:
            member = self._roster.known(process_id)
            if member is not None and self._handout.is_current(member, generation):
                self._shortcuts.close(member, workers)
                self._handout.line_up(member)  # others of its workers may run what is given back
        self._outbox.tell()

    def _heard(self, process_id: int, generation: int, worker: int) -> None:
        """There may be something on the shortcut to a worker."""
        tasks: list[Assignment] = []
        books = self._ledger
        try:
            with self._lock:
                member = self._roster.known(process_id)
                if member is None or not self._handout.is_current(member, generation):
                    return
                heard = self._shortcuts.hear(member, worker)
                if heard:
                    self._roster.liveness.heard(process_id, self._clock())
                    if books is not None:
                        tasks = self._more_tiny_tasks(books, member)
                if not tasks:
                    self._handout.refill(member)  # also when tasks were taken back
            if heard and books is not None:
                self._put_on_record(books, member, generation, worker, tasks)
        except ValueError as error:
            self.lostProcess(process_id, f"a shortcut to it is damaged: {error}", generation)
        self._outbox.tell()
        self._lock.step_aside()
        if self._client_is_behind:
            self._client_is_behind = False
            time.sleep(_CATCH_UP_S)

    def _more_tiny_tasks(self, books: Ledger, member: Member) -> list[Assignment]:
        """(Locked.) Tasks for a slave that has handed in some; others are for its waiting call."""
        first = self._leases.peek(member.tags or ())
        tasks: list[Assignment] = []
        if first is not None and self._shortcuts.wants(member, first.tag):
            tasks = self._handout.more(member)
            books.handed_out(member.id, tasks)
        return tasks

    def _put_on_record(
        self,
        books: Ledger,
        member: Member,
        generation: int,
        worker: int,
        tasks: list[Assignment],
    ) -> None:
        """Have the journal hold what a worker has done and is to do, before either side knows."""
        try:
            tasks = self._settling.put_on_record(books, member, tasks, {})
        except JournalError as error:  # the results stay where they are; the user is told already
            log.debug("results by a shortcut are not on record yet: %s", error)
            return
        with self._lock:
            if self._handout.is_current(member, generation):
                self._shortcuts.acknowledge(member, worker)
                if tasks and not self._shortcuts.take(member, tasks):
                    self._settling.return_unsent(member, tasks)
                    self._handout.refill(member)

    def reportFailure(self, process_id: int, text: str) -> None:
        """A slave tells why it cannot start its workers; shown by ``task_manager LABEL``."""
        with self._lock:
            member = self._roster.known(process_id)
            machine = member.info.machine if member is not None else f"process {process_id}"
            text = self._overview.failed(machine, text)
        log.error("slave %s: %s", machine, text, extra={"action": "slave_failed"})

    def unregisterProcess(self, process_id: int) -> None:
        """A process leaves in good order; tasks it still holds go back at no cost to them."""
        with self._lock:
            self._attendance.leave(process_id)
        self._outbox.tell()

    def lostProcess(self, process_id: int, reason: str, generation: int | None = None) -> None:
        """A process is taken for dead: what it held is run elsewhere. It may come back.

        `generation`: the number of the registration that this is about; nothing happens when the
        process has registered again since.
        """
        with self._lock:
            lost = self._attendance.lose(process_id, reason, generation)
            if lost is None:
                return
            member, tasks = lost
            is_client = self._clients.lose(process_id, self._clock())
            self._results.notify(process_id)
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
            tasks,
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
            silent = self._attendance.silent(now)
            self._attendance.give_up_late_ones(now, self._settings.resume_s)
            self._drop_overdue(now)
            if self._disown_at is not None and self._disown_at <= now:
                self._disown_at = None
                self._drop_absent()
            for tag in self._scheduler.late_tags(now):
                self._handout.waiters.wake(tag)
        for process_id, age_s, generation in silent:
            self.lostProcess(process_id, f"silent for {age_s:.1f} s", generation)

    def putDueInLine(self) -> None:
        """Have retries run whose back-off is over; called by the watchdog."""
        with self._lock:
            self._settling.put_due_in_line()

    def secondsUntilDue(self) -> float | None:
        """Seconds until a back-off is over; None when there is none."""
        with self._lock:
            return self._settling.seconds_until_due()

    def setAlarm(self, alarm: Callable[[], None]) -> None:
        """Have `alarm` called when `secondsUntilDue` has become less; it must not block."""
        self._settling.alarm = alarm

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
            ids = self._intake.add(process_id, tag, frames, checked, names)
        if books is not None and (process_id != self._embedded or books.is_due()):
            self._intake.sync(books)
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
        with self._lock.first:
            while True:
                got = self._queue.deliver_all(process_id, tag, limit, BATCH_BYTES)
                if got:
                    self._client_is_behind |= len(got) >= _MANY
                    break
                if self._terminated:
                    raise TaskManagerTermination("the task manager has ended")
                if while_outstanding and not self._queue.outstanding(process_id, tag):
                    return []
                wait_s = _SLICE_S if deadline is None else deadline - self._clock()
                if wait_s <= 0:
                    return []
                self._client_is_behind, ear = False, None
                if self._ledger is None and process_id not in self._results.calls:
                    ear = self._shortcuts.ear()
                self._results.wait(process_id, wait_s, ear)
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
                self._settling.has_cancelled(task_id, holders)
                self._room.found()
                self._results.notify_all()  # one may have waited for this very task
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
            self._handout.waiters.rouse(parked)

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
                if member is not None and self._shortcuts.is_busy(member):
                    self._shortcuts.freed(member, ended)
                self._settling.settle_all(process_id, member, ended, now)
            tasks: list[Assignment] = []
            if member is not None and generation is None:
                generation = member.generation
            if member is not None and self._handout.is_current(member, generation):
                self._roster.liveness.heard(process_id, self._clock())
                self._leases.started(process_id, started)
                if room is None:
                    member.room = max(1, member.info.workers)
                elif room >= 0:
                    member.room = room
                taken = self._handout.take(member, timeout, answer)
                if isinstance(taken, Parked):
                    return taken
                tasks = taken
                if self._ledger is not None:
                    self._ledger.handed_out(process_id, tasks)
            notices = self._handout.notices(member, generation)
        if self._ledger is not None:
            tasks = self._settling.put_on_record(self._ledger, member, tasks, notices)
            if tasks and member is not None and not notices:
                with self._lock:
                    is_current = self._handout.is_current(member, generation)
                    if is_current and self._shortcuts.take(member, tasks):
                        tasks = []
        self._outbox.tell()
        return [tasks, notices]

    def getAnyTask(self, process_id: int, timeout: float = 0.0) -> Assignment | None:
        """Take one task of any tag; waits for `timeout` seconds at most, then gives None."""
        return self._one_task(process_id, None, timeout)

    def getTaskWithTag(self, tag: str, process_id: int, timeout: float = 0.0) -> Assignment | None:
        """Take one task of that tag; waits for `timeout` seconds at most, then gives None."""
        return self._one_task(process_id, tag, timeout)

    def _one_task(self, process_id: int, tag: str | None, timeout: float) -> Assignment | None:
        with self._lock:
            member, taken = self._handout.take_one(process_id, tag, timeout)
            if self._ledger is not None:
                self._ledger.handed_out(process_id, taken)
        if self._ledger is not None:
            taken = self._settling.put_on_record(self._ledger, member, taken, {})
        return taken[0] if taken else None

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
            self._store(values)
        self._sync_stored()

    def _sync_stored(self) -> None:
        """(Without the lock.) Put on disk what was stored, when it is time to."""
        if self._ledger is not None and self._ledger.is_due():
            self._intake.sync(self._ledger)

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
            self._handout.close()
            self._results.notify_all()
            self._attendance.gone.notify_all()
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
                self._handout.rouse(member)
            return sum(1 for member in chosen if member.id in self._roster.present)

    def waitForSlavesToLeave(self, timeout: float) -> bool:
        """Block until no slave is registered, for `timeout` seconds at most; true if so."""
        deadline = self._clock() + timeout
        with self._lock:
            while self._roster.slaves():
                wait_s = deadline - self._clock()
                if wait_s <= 0:
                    return False
                self._attendance.gone.wait(wait_s)
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
                self._attendance.gone.wait(wait_s)
            return True

    def numberOfTasks(self) -> list[dict[str, int]]:
        """Three dictionaries tag -> count: waiting, running, finished but not yet retrieved."""
        with self._lock:
            return list(self._queue.counts())

    def status(self) -> dict[str, Any]:
        """All that ``task_manager LABEL`` shows, as plain types."""
        with self._lock:
            return {
                "label": self.label,
                **self._overview.rows(self._clock()),
                "awaited_slaves": len(self._attendance.awaited),
                "journal_trouble": self._ledger.trouble if self._ledger is not None else "",
                "blocked_requests": self._room.waiting,
                "terminated": self._terminated,
            }

    def failedTasks(self) -> dict[str, Any]:
        """What ``task_manager failures LABEL`` shows, as plain types.

        "failed": the newest tasks that failed, each with its failed attempts; "under_way": those of
        which an attempt failed and another one is made; "forgotten": how many older ones failed.
        """
        with self._lock:
            return self._settling.failure_log.rows()

    # --- inside (all with the lock held) ----------------------------------------------------

    def _store(self, values: Mapping[str, Any]) -> None:
        self._data.update(values)
        if self._ledger is not None:
            self._ledger.stored(values)

    def _delete_item(self, name: str) -> None:
        del self._data[name]
        if self._ledger is not None and name != SLAVE_CODE:  # failures are replayed with that
            self._ledger.dropped(name)
        for member in self._roster.all_known():
            if member.is_slave:
                member.dropped_data.append(name)
                member.dropped_lately.append(name)
                self._shortcuts.forget(member, name)
                self._handout.rouse(member)

    def _has_ended(self) -> bool:
        return self._terminated

    def _cannot_record(self) -> bool:
        return self._ledger is not None and bool(self._ledger.trouble)

    # --- the journal and the memory budget --------------------------------------------------

    def _restore(self, books: Ledger) -> None:
        """Take up what earlier runs have left; wait for those of their slaves that may live."""
        earlier = books.restore(self._settling.failure_log)
        self._attendance.await_those(earlier, self._settings.resume_s)
        if self._earlier.owners():
            self._disown_at = self._clock() + self._settings.client_grace_s
        if self._queue.parked():
            log.info(
                "the journal has %d tasks of earlier runs; %d slaves are awaited",
                self._queue.parked(),
                len(self._attendance.awaited),
                extra={"action": "journal_restored"},
            )

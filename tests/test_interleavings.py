"""All interleavings of a small job: two tasks, two slaves, and every fault at every place.

A search, breadth first, through the states of a real `TaskManager` with a journal in memory; the
client and the slaves are played by `Job`, which behaves as a master and `Uplink` do. Each state is
visited once, whichever way leads to it, so what is asserted holds for all orders of events with so
many faults, and the trace in a failure's message is a shortest one.

At each state: the books add up, no result is delivered twice or is another task's, what has ended
stays ended, through restarts as well, and is not handed out. In the end, from each state: whatever
happens next without more faults, in any order, leads to all results (or reported failures).
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import pickle
import random
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from managing import Clock
from queueing import check_books

from masterslave.entries import Entry, HandedOut, Setback, Written
from masterslave.errors import JournalError, JournalFull
from masterslave.journal import Journal
from masterslave.ledger import Ledger
from masterslave.manager import TaskManager
from masterslave.notes import Block
from masterslave.records import AT_REST, Completion, Outcome, ProcessInfo, TaskOptions
from masterslave.settings import Settings
from masterslave.states import Event, State, Task
from masterslave.stores.memory import MemoryStore
from masterslave.waiters import Monitor

# What a search visits, other tests cover; looked at line by line it takes twice as long.
# On a machine that others keep busy, it takes minutes.
pytestmark = [pytest.mark.no_cover, pytest.mark.timeout(600)]

#: What the client asks for: parameter -> options. Limits are low, so that few faults reach them.
WANTED = {
    "x": TaskOptions(retries=1, crash_limit=2, backoff=1.0),
    "y": TaskOptions(retries=0, crash_limit=1),
    "z": TaskOptions(priority=1, retries=3, crash_limit=9, backoff=0.5),  # in long histories only
}
NAMES = ("A", "B")  # of the slaves
WALKS = 150  # long histories for each seed

DEATHS = ("dies", "worker dies", "is taken for dead")  # faults that may count as crashes

Move = tuple[str, Callable[[], None]]


class Slave:
    """What a slave knows."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.process: int | None = None
        self.generation = 0
        self.before = 0  # number of its registration before the last one, with the same master
        self.cut = True  # it must register before it can do anything else
        self.held: list[tuple[str, int, str]] = []  # task id, attempt, parameter; oldest first
        self.done: list[tuple[Completion, str]] = []  # not acknowledged; with the parameter
        self.answer: list[Any] | None = None  # of a fetch, on its way


class Disk(MemoryStore):
    """A store that may be full."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def write(self, entries: Sequence[Written]) -> None:
        if self.full:
            raise JournalFull("the disk is full")
        super().write(entries)


class Job:
    """A state: the task manager, its journal, its client, its slaves, and what must be true."""

    def __init__(self, wanted: str, memory_bytes: int, quick: bool) -> None:
        self.wanted = wanted
        self.quick = quick
        self.memory_bytes = memory_bytes
        self.clock = Clock()
        self.disk = Disk()
        self.faults: Counter[str] = Counter()
        self.tokens = 0
        self.corpses: list[int] = []  # processes of dead slaves that nobody has noticed
        self.kept: dict[str, tuple[str, str]] = {}  # parameter -> how it ended, on record
        self.kept_failures: Counter[tuple[str, str]] = Counter()
        self.taken_back: frozenset[str] = frozenset()  # task ids cancelled, on record
        self.slaves = {name: self.new_slave() for name in NAMES}
        self.start_master()
        for name in NAMES:
            self.register(name)

    def start_master(self) -> None:
        settings = Settings(key_file=Path("unused"), memory_bytes=self.memory_bytes)
        journal = Journal(self.disk)
        self.manager = TaskManager("job", settings, clock=self.clock, journal=journal)
        share(self.manager, self.manager._lock, self.manager._settling, journal)
        if self.quick:  # as if many such tasks had been run
            self.manager._scheduler.pace.record("t", 0.0)
        self.queue = self.manager._queue
        assert self.manager._ledger is not None
        self.books = self.manager._ledger
        self.client = int(self.manager.registerProcess(None, "the master")[0])
        self.manager.embedClient(self.client)
        self.asked: dict[str, str] = {}  # parameter -> task id
        self.got: set[str] = set()  # delivered in this life of the master
        self.cancelled: set[str] = set()
        self.settled = dict(self.kept)  # parameter -> how it ended
        # (parameter, how) -> attempts that ended so, not counting those that were given up
        self.failures = Counter(self.kept_failures)
        self.owner = {
            f"{entry.tag}_{number}": text(entry.frame)
            for number, entry in self.disk._requested.items()
        }  # task id -> parameter

    def new_slave(self) -> Slave:
        self.tokens += 1
        return Slave(f"slave {self.tokens}")

    # --- what may happen next ---------------------------------------------------------------

    def steps(self) -> Iterator[Move]:
        """What goes on by itself."""
        for parameter in self.wanted:
            if parameter not in self.asked and not (self.disk.full and self.books.trouble):
                yield f"the client requests {parameter}", lambda p=parameter: self.ask(p)
                break  # it would block while nothing can be written
        mine = self.queue.clients.get(self.client)
        if mine is not None and len(mine.finished):
            yield "the client takes a result", self.retrieve
        for name, slave in self.slaves.items():
            if slave.cut:
                yield f"{name} registers", lambda n=name: self.register(n)
            elif slave.done or slave.held:
                yield f"{name} hands in", lambda n=name: self.hand_in(n, Outcome.RESULT)
            if not slave.cut and slave.answer is None:
                yield f"{name} fetches", lambda n=name: self.fetch(n)
            if slave.answer is not None:
                yield f"{name} receives", lambda n=name: self.receive(n)
            if slave.held and (slave.cut or slave.process not in self.manager._roster.present):
                # Else nobody can tell this from finishing when it hands in.
                yield f"{name} finishes", lambda n=name: self.finish(n, Outcome.RESULT)
        for number in range(len(self.corpses)):
            yield "a death is noticed", lambda n=number: self.notice(n)
        if self.manager._attendance.awaited:
            yield "slaves are given up", self.give_up
        if self.manager._leases.next_due() is not None:
            yield "a retry is due", self.fall_due
        if self.disk.full:
            yield "the disk has room", lambda: setattr(self.disk, "full", False)

    def blows(self) -> Iterator[Move]:
        """What goes wrong."""
        yield "the master is killed and started", self.start_master_again
        if not self.disk.full:
            yield "the disk is full", lambda: setattr(self.disk, "full", True)
        for name, slave in self.slaves.items():
            if slave.held and not slave.done:
                yield f"{name} raises", lambda n=name: self.finish(n, Outcome.EXCEPTION)
                yield f"{name}'s worker dies", lambda n=name: self.finish(n, Outcome.CRASHED)
            if not slave.cut and slave.answer is None:
                yield f"{name} fetches, slowly", lambda n=name: self.fetch(n, slowly=True)
            if slave.before and not slave.cut:
                yield f"an old call of {name} comes", lambda n=name: self.old_call(n)
            if slave.process is not None:
                yield f"{name} dies", lambda n=name: self.die(n)
                if slave.process in self.manager._roster.present and not slave.cut:
                    yield f"{name} is taken for dead", lambda n=name: self.silence(n)
            if slave.answer is not None:
                yield f"{name} does not receive", lambda n=name: self.cut(n)
            if not slave.cut and slave.answer is None:
                yield f"{name} fetches, unanswered", lambda n=name: self.fetch(n, unanswered=True)
            if (slave.done or slave.held) and not slave.cut:
                yield (
                    f"{name} hands in, unanswered",
                    lambda n=name: self.hand_in(n, Outcome.RESULT, unanswered=True),
                )
        for parameter in self.asked:
            if parameter not in self.got and parameter not in self.cancelled:
                yield f"the client cancels {parameter}", lambda p=parameter: self.cancel(p)

    # --- the client -------------------------------------------------------------------------

    def ask(self, parameter: str) -> None:
        options = WANTED[parameter]
        frame = [parameter.encode()]
        parked = set(self.queue.tasks)
        (task_id,) = self.manager.addTaskRequests("t", [frame], self.client, options)
        assert self.owner.get(task_id, parameter) == parameter, "it got another one's place"
        # The number of a task that nobody had may be given again; its place may not.
        assert task_id not in parked & self.taken_back, "it got a cancelled one's place"
        self.taken_back -= {task_id}
        self.asked[parameter] = task_id
        self.owner[task_id] = parameter

    def retrieve(self) -> None:
        (got,) = self.manager.getResults(self.client, timeout=0.0)
        parameter = self.owner[got.task_id]
        assert parameter not in self.got, "delivered twice"
        assert parameter not in self.cancelled, "delivered although it was cancelled"
        assert (got.outcome, text(got.frame)) == self.settled[parameter], "another end"
        self.got.add(parameter)

    def cancel(self, parameter: str) -> None:
        if self.manager.cancelTask(self.asked[parameter]):
            assert parameter not in self.settled, "what has ended was cancelled"
            self.cancelled.add(parameter)
            for outcome in Outcome:  # whoever asks for it again asks for another task
                del self.failures[parameter, outcome.value]

    def is_complete(self) -> bool:
        """Whether the client has all that it wants."""
        return self.asked.keys() == self.got | self.cancelled == set(self.wanted)

    # --- the slaves -------------------------------------------------------------------------

    def register(self, name: str) -> None:
        slave = self.slaves[name]
        info = ProcessInfo(slave.token, 1, "elsewhere", 1, slave.token)
        had = [(task_id, attempt) for task_id, attempt, _ in slave.held]
        unsent = [(done.task_id, done.attempt) for done, _ in slave.done]
        slave.before = slave.generation
        process, obsolete, slave.generation = self.manager.registerProcess(
            None, info, slave.process, had + unsent
        )
        slave.process, slave.cut = int(process), False
        slave.held = [one for one in slave.held if one[:2] not in obsolete]
        self.manager.announceSlave(slave.process)
        self.manager.announceTags(slave.process, ["t"])

    def exchange(self, slave: Slave, done: list[tuple[Completion, str]]) -> list[Any]:
        """Raises `JournalError`."""
        assert slave.process is not None
        results = [
            (parameter, (end.outcome, text(end.frame)))
            for end, parameter in done
            if end.outcome == Outcome.RESULT
            and self.owner.get(end.task_id) == parameter
            and parameter not in self.cancelled
        ]
        before = set(self.settled)
        for end, parameter in done:
            task = self.queue.tasks.get(end.task_id)
            current = task is not None and (task.holder, task.attempt) == (
                slave.process,
                end.attempt,
            )
            if current and parameter not in before and end.outcome != Outcome.RESULT:
                self.failures[parameter, end.outcome] += 1
        try:
            answer = self.manager.exchange(
                slave.process, [end for end, _ in done], (), 1, 0.0, slave.generation
            )
            journal = self.books._journal
            assert journal.written == journal.added, "acknowledged, and not on record"
        finally:
            self.settle()
            for parameter, end in results:
                assert parameter in self.settled, "a result was lost"
                assert parameter in before or self.settled[parameter] == end, "another end"
                before.add(parameter)
            for (parameter, outcome), number in self.failures.items():
                options = WANTED[parameter]
                limit = options.retries + 1 if outcome == Outcome.EXCEPTION else options.crash_limit
                if number >= limit and parameter in self.asked:
                    ended = parameter in self.settled or parameter in self.cancelled
                    assert ended, "too many failures"
        for task in answer[0]:
            assert text(task.frame) == self.owner[task.task_id], "handed out with other parameters"
            assert text(task.frame) not in self.settled, "handed out although it has ended"
            assert text(task.frame) not in self.cancelled, "handed out although it was cancelled"
        return answer

    def fetch(self, name: str, *, slowly: bool = False, unanswered: bool = False) -> None:
        slave = self.slaves[name]
        try:
            answer = self.exchange(slave, [])
        except JournalError:
            return
        if unanswered:
            slave.cut = True
        elif slowly:
            slave.answer = answer
        else:
            self.digest(slave, answer)

    def old_call(self, name: str) -> None:
        """It was on its way while the slave registered again; nobody reads its answer."""
        slave = self.slaves[name]
        assert slave.process is not None
        before, slave.before = slave.before, 0
        with contextlib.suppress(JournalError):
            self.manager.exchange(slave.process, (), (), 1, 0.0, before)

    def receive(self, name: str) -> None:
        slave = self.slaves[name]
        answer, slave.answer = slave.answer, None
        self.digest(slave, answer)

    def digest(self, slave: Slave, answer: list[Any] | None) -> None:
        assert answer is not None
        tasks, notices = answer
        stop = notices.get("stop", ())
        slave.held += [(task.task_id, task.attempt, text(task.frame)) for task in tasks]
        slave.held = [one for one in slave.held if one[0] not in stop]
        slave.cut = slave.cut or "register" in notices

    def finish(self, name: str, outcome: Outcome) -> None:
        slave = self.slaves[name]
        task_id, attempt, parameter = slave.held.pop(0)
        frame: list[bytes] = []
        if outcome is not Outcome.CRASHED:
            frame = [f"{outcome.value} {parameter} {attempt}".encode()]
        done = Completion(task_id, attempt, outcome.value, frame, 0.0, outcome.value)
        slave.done.append((done, parameter))

    def hand_in(self, name: str, outcome: Outcome, *, unanswered: bool = False) -> None:
        slave = self.slaves[name]
        if not slave.done:
            self.finish(name, outcome)
        try:
            answer = self.exchange(slave, slave.done)
        except JournalError:
            return
        if unanswered:
            slave.cut = True
            return
        slave.done = []
        self.digest(slave, answer)

    def cut(self, name: str) -> None:
        self.slaves[name].answer = None
        self.slaves[name].cut = True

    def die(self, name: str) -> None:
        process = self.slaves[name].process
        assert process is not None
        if not self.slaves[name].cut or process in self.manager._roster.present:
            self.corpses.append(process)
        self.slaves[name] = self.new_slave()

    # --- the master -------------------------------------------------------------------------

    def silence(self, name: str) -> None:
        process = self.slaves[name].process
        assert process is not None
        self.manager.lostProcess(process, "silent")

    def notice(self, number: int) -> None:
        self.manager.lostProcess(self.corpses.pop(number), "dead")

    def give_up(self) -> None:
        self.clock.now += self.manager._settings.resume_s
        self.manager.checkLiveness()

    def fall_due(self) -> None:
        seconds = self.manager.secondsUntilDue()
        assert seconds is not None
        self.clock.now += seconds
        self.manager.putDueInLine()

    def start_master_again(self) -> None:
        """What was not on record is lost, with the client that has asked for it."""
        self.start_master()
        self.corpses = []  # nobody has a connection to them
        for slave in self.slaves.values():
            slave.cut, slave.answer, slave.generation, slave.before = True, None, 0, 0

    # --- what must be true ------------------------------------------------------------------

    def settle(self) -> None:
        """Note what has ended; it must not change."""
        for task in self.queue.tasks.values():
            if not task.outcome:
                continue
            parameter = self.owner[task.id]
            frame = task.frame
            if frame is AT_REST:
                frame = self.disk._ended[task.ticket].frame
            end = (task.outcome, text(frame))
            assert self.settled.setdefault(parameter, end) == end, "another end"
        journal = self.books._journal
        if journal.written == journal.added:
            self.kept = dict(self.settled)
            self.kept_failures = Counter(self.failures)
            self.taken_back |= {self.asked[parameter] for parameter in self.cancelled}

    def check(self) -> None:
        check_books(self.queue)
        assert self.queue.outstanding(self.client) == len(
            self.asked.keys() - self.got - self.cancelled
        ), "a task is lost"
        for parameter, task_id in self.asked.items():
            assert (task_id in self.queue.tasks) == (parameter not in self.got | self.cancelled)
        in_line = [task for task in line(self.manager) if task.state is State.WAITING]
        waiting = [task for task in self.queue.tasks.values() if task.state is State.WAITING]
        assert set(in_line) == set(waiting), "waits, and stands in no line"
        for parameter, (outcome, value) in self.settled.items():
            if outcome == Outcome.RESULT:
                assert value.split()[1] == parameter, "the result of another task"
            elif outcome == Outcome.EXCEPTION:
                assert value.split()[1] == parameter, "the exception of another task"
                assert self.faults["raises"] > WANTED[parameter].retries, "a retry is due"
            else:
                deaths = sum(self.faults[kind] for kind in DEATHS)
                assert deaths >= WANTED[parameter].crash_limit, "taken for poison"

    # --- as a value -------------------------------------------------------------------------

    def looks(self, slave: Slave) -> Any:
        """A slave's state without its name."""
        present = self.manager._roster.present.get(slave.process)
        return (
            slave.process is None, slave.cut, slave.before > 0, tuple(slave.held),
            tuple((tuple(done)[:3], parameter) for done, parameter in slave.done),
            answer_key(slave.answer),
            present is not None and present.generation == slave.generation
        )  # fmt: skip

    def key(self) -> Any:
        """Two states with the same key have the same future."""
        roster, queue, leases = self.manager._roster, self.queue, self.manager._leases
        slaves = sorted(self.slaves.values(), key=self.looks)  # which is which does not matter
        by_token = {slave.token: name for name, slave in zip(NAMES, slaves, strict=True)}
        members = {**roster.present, **roster._lost}
        name = {process: by_token.get(one.info.token, "?") for process, one in members.items()}
        name[self.client] = "client"
        journal = self.books._journal
        return (
            tuple(
                (
                    key, task.state, task.attempt, task.answered, name.get(task.holder),
                    task.started, task.crashes, task.failures, task.outcome, task.frame is AT_REST,
                    task.client,
                )
                for key, task in sorted(queue.tasks.items())
            ),
            tuple(task.id for task in line(self.manager)),
            tuple(task.id for _, _, task in sorted(leases._deferred, key=lambda one: one[:2])),
            tuple(sorted((name.get(p, "?"), tuple(held.tasks)) for p, held in queue.held.items())),
            tuple(
                sorted(
                    (name.get(p, "?"), tuple(task_id for task_id, _, _ in tasks))
                    for p, tasks in queue.held.blamed.items()
                    if tasks and name.get(p, "?") != "?"  # a dead one takes nothing back
                )
            ),
            tuple(
                task.id
                for mine in queue.clients.values()
                for task in by_rank(mine.finished._lines)
            ),
            queue._next_id,
            tuple(
                sorted(
                    (name[process], process in roster.present, tuple(one.cancelled))
                    for process, one in members.items()
                    if name[process] != "?" or process in roster.present
                )
            ),
            tuple(sorted(name.get(process, "?") for process in self.manager._attendance.awaited)),
            bool(self.manager._scheduler.pace._mean_s),
            (tuple(sorted(self.disk._requested)), tuple(sorted(self.disk._ended))),
            entries_key(self.disk._attempts, name),
            entries_key(journal._waiting, name),
            (self.disk.full, bool(journal.trouble)),
            tuple(
                (
                    slave.process in members and members[slave.process].info.token == slave.token,
                    self.looks(slave),
                )
                for slave in slaves
            ),
            len(self.corpses),
            tuple(self.asked.items()),
            frozenset(self.got),
            frozenset(self.cancelled),
            tuple(sorted(self.settled.items())),
            tuple(sorted(self.kept.items())),
            tuple(sorted(self.failures.items())),
            tuple(sorted(self.kept_failures.items())),
            self.taken_back,
            self.faults["raises"],
            sum(self.faults[kind] for kind in DEATHS),
            self.faults.total(),
        )  # fmt: skip


def answer_key(answer: list[Any] | None) -> Any:
    if answer is None:
        return ()
    tasks, notices = answer
    return tuple((task.task_id, task.attempt) for task in tasks), repr(notices)


def entries_key(entries: Sequence[Entry] | deque[Entry], name: dict[int, str]) -> Any:
    """By task, and of each only the order in which things happened to it."""
    found: dict[Any, list[Any]] = {}
    for entry in entries:
        if isinstance(entry, HandedOut):
            for number, attempt in entry.tasks:
                found.setdefault(number, []).append((name.get(entry.process, "?"), attempt))
        elif isinstance(entry, Setback):
            found.setdefault(entry.number, []).append((entry.attempt, entry.outcome))
        else:
            what: Any = getattr(entry, "number", None)
            if what is None:
                what = name.get(getattr(entry, "process", -1), "?")
            found.setdefault(what, []).append(type(entry).__name__)
    return tuple(sorted((str(key), tuple(parts)) for key, parts in found.items()))


def by_rank(lines: dict[str, Any]) -> list[Task]:
    """The tasks of lines in which a rank stands before each."""
    pairs = [(line[at], line[at + 1]) for line in lines.values() for at in range(0, len(line), 2)]
    return [task for _, task in sorted(pairs)]


def line(manager: TaskManager) -> list[Task]:
    """All that stands in line, what has ended meanwhile as well."""
    manager._queue.tasks.values()  # none is only noted
    items = [
        item
        for share in manager._queue.lines._waiting.values()
        for tag_line in share.lines._lines.values()
        for queue in tag_line.by_priority.values()
        for item in list(queue)[1::2]
    ]
    return [
        task
        for item in items
        for task in (
            [item.taken[place] for place in sorted(item.taken)]
            if isinstance(item, Block)
            else [item]
        )
    ]


def text(frame: Any) -> str:
    return b"".join(map(bytes, frame)).decode()


# --- states as bytes ------------------------------------------------------------------------

#: What all states have in common, in place of copies: nothing runs beside anything else here.
_SHARED = {id(value): value for value in (AT_REST, *State, *Event, *Outcome, *WANTED.values())}
_SHARED_TYPES = (
    type(threading.Lock()), Monitor, threading.Condition, Settings, type(lambda: None)
)  # fmt: skip


def share(*owners: object) -> None:
    """Have the states share what cannot be copied of these objects."""
    for owner in owners:
        for value in vars(owner).values():
            if isinstance(value, _SHARED_TYPES):
                _SHARED[id(value)] = value


def _counter() -> Counter[Any]:
    return Counter.__new__(Counter)


class _Pickler(pickle.Pickler):
    dispatch_table: ClassVar = {
        Counter: lambda counts: (_counter, (), None, None, iter(counts.items()))
    }

    def persistent_id(self, value: Any) -> int | None:
        number = id(value)
        return number if number in _SHARED else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, number: int) -> Any:
        return _SHARED[number]


def packed(job: Job) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(job)
    return file.getvalue()


def unpacked(data: bytes) -> Job:
    job: Job = _Unpickler(io.BytesIO(data)).load()
    return job


# --- the search -----------------------------------------------------------------------------


class Found(NamedTuple):
    """What a search has come to."""

    states: int
    moves: int
    complete: int
    most_faults: int


class Search:
    """Visits all states that can be reached with so many faults."""

    def __init__(
        self,
        wanted: str,
        faults: int,
        kinds: Sequence[str] = ("",),
        memory_bytes: int = 1 << 30,
        quick: bool = False,
    ) -> None:
        """`wanted`: parameters of the tasks. `kinds`: parts of the names of the faults."""
        self._faults = faults
        self._kinds = kinds
        self._first = Job(wanted, memory_bytes, quick)
        self._came: list[tuple[int, str]] = []  # state -> the one before, and what happened
        self._after: list[list[int]] = []  # state -> those that follow without a fault
        self._complete: list[bool] = []
        self._known: dict[Any, int] = {}

    def run(self) -> Found:
        waiting: deque[tuple[int, bytes]] = deque()
        moves = most = 0
        self._enter(self._first, -1, "", waiting)
        while waiting:
            here, data = waiting.popleft()
            job = unpacked(data)
            steps = [name for name, _ in job.steps()]
            blows = []
            if job.faults.total() < self._faults:
                blows = [name for name, _ in job.blows() if any(k in name for k in self._kinds)]
            for name in steps + blows:
                moves += 1
                job = unpacked(data)
                move = dict(job.blows() if name in blows else job.steps())[name]
                if name in blows:
                    job.faults[kind_of(name)] += 1
                try:
                    move()
                    job.settle()
                    there = self._enter(job, here, name, waiting)
                except Exception as error:
                    raise AssertionError(self._story(here, name, error)) from error
                if name not in blows and there != here:
                    self._after[here].append(there)
                most = max(most, job.faults.total())
        self._comes_to_an_end()
        return Found(len(self._came), moves, sum(self._complete), most)

    def _enter(self, job: Job, before: int, how: str, waiting: deque[tuple[int, bytes]]) -> int:
        key = job.key()
        number = self._known.get(key)
        if number is None:
            job.check()
            number = self._known[key] = len(self._came)
            self._came.append((before, how))
            self._after.append([])
            self._complete.append(job.is_complete())
            waiting.append((number, packed(job)))
        return number

    def _comes_to_an_end(self) -> None:
        """From each state, all ways without a fault are finite and lead to a complete job."""
        before: list[list[int]] = [[] for _ in self._came]
        for here, following in enumerate(self._after):
            for there in following:
                before[there].append(here)
        open_ways = [len(following) for following in self._after]
        good = [number for number, complete in enumerate(self._complete) if complete]
        is_good = list(self._complete)
        while good:
            for number in before[good.pop()]:
                open_ways[number] -= 1
                if not open_ways[number] and not is_good[number]:
                    is_good[number] = True
                    good.append(number)
        if not all(is_good):
            number = is_good.index(False)
            what = "nothing can happen any more" if not self._after[number] else "no end"
            raise AssertionError(self._story(number, "", AssertionError(what)))

    def _story(self, number: int, last: str, error: Exception) -> str:
        trace = [last] if last else []
        while number > 0:
            number, how = self._came[number]
            trace.append(how)
        lines = [f"{index}. {how}" for index, how in enumerate(reversed(trace), 1)]
        reason = str(error).partition("\n")[0] or repr(error)
        return "\n".join([f"{type(error).__name__}: {reason}", *lines])


def kind_of(name: str) -> str:
    if "worker dies" in name:
        return "worker dies"
    return name.partition(" ")[2] if name[0] in NAMES else name


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No log, and no search for garbage among the keys of all states, which takes long."""
    logging.disable(logging.CRITICAL)
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "two tasks": (3500, {"wanted": "xy", "faults": 1}),
    "prefetched": (
        1000,
        {"wanted": "xy", "faults": 1, "kinds": ["dead", "dies", "raises"], "quick": True},
    ),
    "retries": (
        1000,
        {"wanted": "x", "faults": 2, "kinds": ["killed", "raises", "unanswered"]},
    ),
    "poison": (
        1000,
        {"wanted": "y", "faults": 2, "kinds": ["killed", "dead", "worker", "old call"]},
    ),
    "at rest": (350, {"wanted": "x", "faults": 1, "memory_bytes": 1}),
}


@pytest.mark.parametrize("name", RUNS)
def test_in_any_order_each_task_comes_to_one_end(name: str) -> None:
    """Were there fewer states than these, the search would have lost something to search."""
    states, arguments = RUNS[name]
    found = Search(**arguments).run()
    assert found.most_faults == arguments["faults"]
    assert found.states >= states
    assert found.complete >= states // 20


def test_the_search_finds_what_is_wrong_and_tells_the_shortest_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Ledger, "finished", lambda *_: None)  # results do not come on record
    with pytest.raises(AssertionError) as caught:
        Search("x", 1).run()
    assert str(caught.value).splitlines() == [
        "AssertionError: handed out although it has ended",
        "1. the client requests x",
        "2. A fetches",
        "3. A hands in",
        "4. the master is killed and started",
        "5. the client requests x",
        "6. A registers",
        "7. A fetches",
    ]


@pytest.mark.parametrize("seed", range(8))
def test_long_histories_with_many_faults(seed: int) -> None:
    """At random, as far as no search goes: many restarts, each with requests in another order."""
    chance = random.Random(seed)
    lives = 0
    for _ in range(WALKS):
        job = Job("".join(chance.sample("xyz", 3)), 1 << 30, chance.random() < 0.5)
        trace: list[str] = []

        def go(moves: list[Move], job: Job = job, trace: list[str] = trace) -> None:
            name, move = chance.choice(moves)
            trace.append(name)
            if move == job.start_master_again:
                job.wanted = "".join(chance.sample("xyz", 3))
            try:
                move()
                job.settle()
                job.check()
            except Exception as error:
                raise AssertionError("\n".join([repr(error), *trace])) from error

        for _ in range(50):
            blows = list(job.blows())
            if chance.random() < 0.25:
                name, move = chance.choice(blows)
                job.faults[kind_of(name)] += 1
                go([(name, move)])
            else:
                go(list(job.steps()))
        lives += 1 + job.faults["the master is killed and started"]
        for _ in range(1000):  # a random way may go round; not for so long
            if job.is_complete():
                break
            go(list(job.steps()))
        assert job.is_complete(), "\n".join(trace)
    assert lives > WALKS


if __name__ == "__main__":  # larger bounds: python test_interleavings.py xy 2
    import time

    logging.disable(logging.CRITICAL)
    gc.disable()
    for run in RUNS.values() if len(sys.argv) < 2 else [(0, eval(f"dict({sys.argv[1]})"))]:
        start = time.monotonic()
        print(run, Search(**run[1]).run(), time.monotonic() - start)

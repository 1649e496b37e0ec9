"""A slave: one process that supervises N workers and holds the connection to the task manager.

The shell around `dispatch.Dispatch`. The main thread waits for everything at once: messages of
workers, their deaths, news from the uplink, signals, deadlines. It starts and ends worker
processes, feeds them, and never runs a handler itself, so that pings go on whatever a handler does.

| what ends it                  | then                                                           |
|-------------------------------|----------------------------------------------------------------|
| the job is over               | workers are asked to leave, then killed                        |
| SIGTERM, SIGINT, SIGUSR2      | takes no more, finishes what runs within `grace_s`, leaves     |
| a second SIGTERM or SIGINT    | kills what runs, gives it back, leaves                         |
| `terminationTest` was true    | as SIGTERM, without a limit of time                            |
| its time is nearly up         | as SIGTERM, see `lifetime.py`                                  |
| the manager dismisses it      | as SIGTERM                                                     |
| it is idle for `idle_s`       | as SIGTERM, with nothing to finish                             |
| the master is gone for long   | kills its workers, ends with status 1                          |
| the slave's code does not load| tells the master and the terminal why, ends with status 1      |

The module is longer than others as all of it is one thread's loop over the same workers: what it
decides is in `dispatch`, what it knows of a worker in `workerprocess`, its connections in `uplink`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import platform
import secrets
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from masterslave import shared, slavecode
from masterslave.board import LOOKED_AT_S
from masterslave.clients import same_code
from masterslave.dispatch import Action, Dispatch, Kill, Send, Skip
from masterslave.disturbance import Blow, Disturbance
from masterslave.errors import SlaveError
from masterslave.lifetime import Idleness, Lifetime
from masterslave.memory import check_supported
from masterslave.payload import own_versions
from masterslave.pipe import PipeClosed
from masterslave.records import (
    CALL_TAG,
    Completion,
    Outcome,
    ProcessInfo,
    as_completion,
    getMachineInfo,
)
from masterslave.settings import Settings
from masterslave.shortcut import Shortcut
from masterslave.transports.base import Link, PostingLink
from masterslave.transports.disturbed import Disturbed
from masterslave.uplink import News, Uplink
from masterslave.workerprocess import WorkerProcess

log = logging.getLogger(__name__)

#: Workers that die one after the other before any is ready, until the slave gives up.
_FAILED_STARTS = 3

#: Time that idle workers get to leave by themselves at the end of the job.
_LEAVE_S = 2.0

#: A started task is told to the task manager when it has run for so long; shorter ones would
#: double the messages. Larger: a task that kills its whole slave early is blamed late.
_TELL_STARTED_S = 0.05

#: Between two looks at the memory of busy workers that have a limit. Larger: a worker that dies is
#: less surely known to have died of it. Smaller: the supervisor takes time from its workers.
_MEMORY_LOOK_S = 0.1

#: Tasks that take less are waited for, so long, before anything else. Larger: the supervisor wakes
#: up once more for tasks that take longer. Smaller: the rest of what it has to do holds them up.
_TINY_S = 0.0005

#: Between two looks for dead workers where the system does not tell of them by itself.
_POLL_S = 0.02

#: SIGUSR2 is Grid Engine's warning before it kills (``qsub -notify``).
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

#: When a worker dies of SIGTERM, its supervisor waits so long for one of its own. Larger: the slave
#: stands still for that time when only the worker was meant. Smaller: a busy node's batch system
#: ends its jobs and tasks are blamed for it.
_SIGNALS_APART_S = 0.3

#: New containers until Python's collector looks for cycles among them. Larger: a cycle, which next
#: to nothing here makes, takes memory for longer. Smaller: it goes through the tasks on their way
#: again and again: with Python's own 700 a fifth of this process's time for tiny ones.
_LOOK_FOR_CYCLES_AT = 50_000

#: A slave that is to end waits so long at most until the task manager gives its workers no more
#: tasks directly. Larger: it is late when that one is silent. Smaller: more tasks are given back.
_REFUSED_S = 2.0

#: After tasks were cancelled, those that begin by a shortcut are looked at for so long. Larger: the
#: supervisor wakes up in vain. Smaller: a task that was on its way then may run to its end.
_CANCELLED_S = 1.0

#: After the task manager was to let go of shortcuts, it may still take what tells of a result for
#: so long, so that they are looked at. Larger: the supervisor wakes up in vain. Smaller: on a busy
#: machine a result might lie there.
_TAKEN_BACK_S = 1.0

#: Bytes of data items kept for workers to come; the least recently used goes first.
_CACHE_BYTES = 1 << 30


class Supervisor:
    """Runs one slave from its registration to its end."""

    def __init__(
        self,
        label: str,
        connect: Callable[[], Link],
        workers: int,
        settings: Settings,
        record: slavecode.Record | None = None,
        *,
        memory: int | None = None,
        lifetime_s: float | None = None,
        idle_s: float | None = None,
        registered: Callable[[], None] = lambda: None,
    ) -> None:
        """`record`: the slave's code; None takes what the master keeps.

        `memory`: bytes that each worker may have, None for no limit; `SettingsError` where the
        system cannot keep to it. `lifetime_s`: seconds in which the slave must have left. `idle_s`:
        seconds without a task after which it ends. `registered` is called when the task manager
        has accepted it.
        """
        check_supported(memory)
        now = time.monotonic()
        self._lifetime: Lifetime | None = None
        if lifetime_s is not None:
            self._lifetime = Lifetime.until(now + lifetime_s, now, settings.grace_s)
        self._time_is_up = False
        self._idleness = None if idle_s is None else Idleness(idle_s)
        self._registered = registered
        self._label = label
        self._settings = settings
        self._count = workers
        self._record = record
        self._memory = memory
        # Times: of a look at memory; when the task manager should know that no tasks are wanted
        # here; until when cancelled tasks may begin; until when results may lie in shortcuts.
        self._memory_look_at = self._refused_by = self._cancelled_by = self._results_by = 0.0
        self._dispatch = Dispatch(
            None if self._lifetime is None else self._lifetime.drain_at, self._begun
        )
        self._workers: dict[int, WorkerProcess] = {}
        self._writing: set[int] = set()  # workers to whom not all could be sent yet
        self._next_worker = 0
        self._ended: set[WorkerProcess] = set()  # reported dead, not yet buried
        self._is_blind = False  # whether the system does not report deaths by itself
        self._failed_starts = 0
        self._tags: list[str] | None = None
        self._inbox: deque[News] = deque()
        self._thread = 0  # the one that `run` is in
        self._answers_on: PostingLink | None = None  # whose answers the selector tells of
        self._answers_from = -1  # a descriptor of our own, as the sender may close the link's
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._signals = 0
        self._told_to_end = False
        self._deadline: float | None = None  # of a drain
        self._follows_code = record is None
        self._has_new_code = False
        self._ending = ""  # why the loop ends
        self._failure = ""  # more lines of that
        self._data: dict[str, Any] = {}  # data items by name, oldest use first
        self._askers: dict[str, list[int]] = {}  # workers that wait for a data item
        # Whether tasks may go to workers without us: not where we are to look at each.
        self._may_cut = settings.shared_memory and memory is None and settings.chaos is None
        self._turns = 0  # of workers by their shortcuts, at the last look
        self._disturbance: Disturbance | None = None
        if settings.chaos is not None:
            chaos = settings.chaos.seeded(secrets.randbits(32))
            log.warning("chaos is on: %s", chaos, extra={"action": "chaos"})
            self._disturbance = Disturbance(chaos)
            connect = Disturbed(connect, chaos)
        info = ProcessInfo(
            getMachineInfo(),
            os.getpid(),
            platform.node(),
            workers,
            secrets.token_hex(8),
            versions=own_versions(),
        )
        self._uplink = Uplink(
            connect, info, settings, self._news, self._held, self._left_s, self._wake
        )

    # --- the life of a slave ----------------------------------------------------------------

    def run(self) -> bool:
        """Be the slave until it ends; true if it is to start anew, with other code. Blocks.

        Raises `ConnectionFailed` when the master cannot be reached, `SlaveError` when the slave's
        code does not load or the master has gone.
        """
        try:
            kept = self._uplink.register()
            self._registered()
            self._record = self._record or kept
            if self._record is None:
                self._uplink.stop(1.0)
                raise SlaveError(
                    f"the master of {self._label!r} keeps no slave code: start a slave script by "
                    "hand, or use runJob, slave_script= or slave_module= in the master"
                )
        except BaseException:
            self._close()
            raise
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._drain_wake)
        self._thread = threading.get_ident()
        with self._signal_handlers(), _few_collections():
            for _ in range(self._count):
                self._start_worker()
            self._uplink.start()
            try:
                self._loop()
            finally:
                self._finish()
        if self._ending not in ("terminated", "drained"):
            raise SlaveError(self._ending)
        return self._has_new_code and self._ending == "drained" and not self._signals

    def _loop(self) -> None:
        while not self._ending:
            now = time.monotonic()
            actions = self._dispatch.tick(now)
            self._carry_out(actions)
            for worker in self._workers.values():
                worker.pipe.go_on()
            if self._dispatch.completions or not self._are_tiny(actions):
                self._disturb(now)
                self._tell(now)
                self._look_at_memory(now)
                self._look_at_lifetime(now)
                self._look_at_idleness(now)
                self._look_at_uplink(now)
                if self._dispatch.draining and self._has_finished(now):
                    self._ending = "drained"
                    return
                wait_s = self._wait_s(now)
            else:  # before all that was looked at, they have run
                wait_s = _TINY_S
            for key, mask in self._selector.select(wait_s):
                key.data(mask)
            self._look_at_boards()
            self._look_at_shortcuts()
            self._read_inbox()
            self._look_at_signals()
            self._reap()

    def _has_finished(self, now: float) -> bool:
        """Whether a slave that is to end has nothing to do, and gets nothing any more."""
        if self._dispatch.busy():
            return False
        if not self._may_cut:
            return True
        shortcuts = [worker.shortcut for worker in self._workers.values()]
        on_their_way = any(one is not None and one.has_tasks() for one in shortcuts)
        nothing_comes = self._uplink.gets_nothing() and not on_their_way
        self._look_at_shortcuts()  # one may have begun since
        return not self._dispatch.busy() and (nothing_comes or now >= self._refused_by)

    def _are_tiny(self, actions: list[Action]) -> bool:
        """Whether these tasks, and nothing else, were given to workers, and will have run soon."""
        return (
            bool(actions)
            and self._disturbance is None
            and all(
                isinstance(a, Send) and self._dispatch.usual_s(a.tasks) < _TINY_S for a in actions
            )
        )

    def _finish(self) -> None:
        """Leave in order: results first, then the workers."""
        if self._ending != "terminated":
            self._look_at_shortcuts()
            self._carry_out(self._dispatch.interrupt("its slave was stopped"))
        for worker in list(self._workers.values()):
            if self._disturbance is not None:
                worker.pause(False)
            worker.ask_to_leave()
        deadline = time.monotonic() + (_LEAVE_S if not self._dispatch.busy() else 0.2)
        for worker in list(self._workers.values()):
            was_killed = worker.wait_or_kill(max(0.0, deadline - time.monotonic()))
            self._buried(worker, Outcome.RETURNED if was_killed else Outcome.CRASHED)
        self._dispatch.drain()
        if self._ending != "terminated":
            self._tell(time.monotonic(), everything=True)
        failed = self._ending not in ("terminated", "drained", "")
        failure = f"{self._ending}\n{self._failure}" if failed else ""
        if not self._uplink.stop(self._settings.grace_s, failure) and self._ending == "drained":
            log.warning("the master did not take the last results")
        self._close()

    def _close(self) -> None:
        self._leave_answers()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    # --- workers ----------------------------------------------------------------------------

    def _start_worker(self) -> None:
        number = self._next_worker
        self._next_worker += 1
        assert self._record is not None
        share = self._settings.shared_memory
        worker = WorkerProcess(
            number, self._label, self._record, self._memory, share=share, shortcut=self._may_cut
        )
        self._workers[number] = worker
        self._is_blind = worker.exit_descriptor is None
        self._watch(worker)

    def _watch(self, worker: WorkerProcess) -> None:
        def on_pipe(mask: int) -> None:
            if mask & selectors.EVENT_WRITE:
                worker.pipe.flush()
            if mask & selectors.EVENT_READ:
                try:
                    self._hear(worker, worker.pipe.receive())
                except PipeClosed:
                    self._selector.unregister(worker.pipe)
                    worker.pipe_closed = True
                    worker.kill()  # it is dead, or of no use any more
                    return
            self._update_mask(worker)

        self._selector.register(worker.pipe, selectors.EVENT_READ, on_pipe)
        self._selector.register(worker.stderr, selectors.EVENT_READ, lambda _: self._relay(worker))
        if worker.exit_descriptor is not None:
            self._selector.register(
                worker.exit_descriptor, selectors.EVENT_READ, lambda _: self._ended.add(worker)
            )

    def _look_at_boards(self) -> None:
        """Hear of what workers have posted and not told."""
        for worker in self._workers.values():
            if not worker.pipe_closed and worker.pipe.has_posts():
                try:
                    self._hear(worker, worker.pipe.posts())
                except PipeClosed:
                    worker.kill()  # it is of no use any more

    def _look_at_shortcuts(self) -> None:
        """See what workers do for the task manager directly, and hear of what it has not heard."""
        now = time.monotonic()
        for worker in self._workers.values():
            if worker.shortcut is None:
                continue
            is_ours = not worker.shortcut.is_lent  # the uplink's thread may change that now
            turns = worker.shortcut.turns
            if turns == worker.turns and not is_ours and not worker.shortcut_is_watched:
                continue  # as at the last look
            worker.turns = turns  # may be an older number than that of the task, never a newer one
            task = worker.shortcut.under_way()
            if is_ours != worker.shortcut_is_watched:
                self._watch_shortcut(worker, worker.shortcut, is_ours)
            self._carry_out(self._dispatch.beside(worker.number, task, now))
            if is_ours and task is not None:
                self._results_by = now + _TAKEN_BACK_S
            if is_ours and now < self._results_by:
                self._hear_beside(worker, worker.shortcut)

    def _watch_shortcut(self, worker: WorkerProcess, shortcut: Shortcut, watch: bool) -> None:
        """Read the results that come by it if the task manager does not, and only then."""
        if watch:
            self._results_by = time.monotonic() + _TAKEN_BACK_S
            self._selector.register(
                shortcut, selectors.EVENT_READ, lambda _: self._hear_beside(worker, shortcut)
            )
        else:
            self._selector.unregister(shortcut)
        worker.shortcut_is_watched = watch

    def _hear_beside(
        self, worker: WorkerProcess, shortcut: Shortcut, *, last: bool = False
    ) -> None:
        try:
            for done in shortcut.read(last=last):
                self._dispatch.finished_beside(worker.number, done, time.monotonic())
        except ValueError as error:
            log.warning("worker %d has written what is no result: %s", worker.number, error)
            worker.kill()

    def _update_mask(self, worker: WorkerProcess) -> None:
        writes = worker.pipe.wants_to_write
        if writes == (worker.number in self._writing) or worker.pipe_closed:
            return
        key = self._selector.get_key(worker.pipe)
        self._selector.modify(
            worker.pipe, selectors.EVENT_READ | (selectors.EVENT_WRITE * writes), key.data
        )
        if writes:
            self._writing.add(worker.number)
        else:
            self._writing.discard(worker.number)

    def _relay(self, worker: WorkerProcess) -> None:
        worker.relay_stderr()
        if worker.stderr_ended:
            self._selector.unregister(worker.stderr)

    def _hear(self, worker: WorkerProcess, messages: list[list[Any]]) -> None:
        now = time.monotonic()
        for message in messages:
            kind = message[0]
            if kind == "posted":
                ends = [as_completion(post[1:]) for post in message[1]]
                self._dispatch.finished_all(worker.number, ends, now)
            elif kind == "done":
                self._dispatch.finished(worker.number, as_completion(message[1]), now)
            elif kind == "beside":
                self._dispatch.finished_beside(worker.number, as_completion(message[1]), now)
            elif kind == "skipped":
                self._dispatch.skipped(worker.number)
            elif kind == "ready":
                self._ready(worker, message[1], message[2])
            elif kind in ("need", "need_anew"):
                if kind == "need_anew":
                    self._data.pop(message[1], None)
                self._need(worker, message[1])
            elif kind == "leaving":
                log.info("terminationTest is true: the slave ends")
                self._dispatch.leaving(worker.number)
                self._start_drain(None)
            elif kind == "failed":
                log.info("%s", message[2])
                self._ending = self._ending or message[1]
                self._failure = message[2]

    def _ready(self, worker: WorkerProcess, tags: list[str], period_s: float | None) -> None:
        worker.ready = True
        if worker.shortcut is not None:
            self._uplink.offer(worker.number, worker.shortcut)
        self._failed_starts = 0
        self._dispatch.worker_ready(worker.number)
        if self._tags is None:
            self._tags = tags
            self._uplink.announce([*tags, CALL_TAG], period_s)

    def _reap(self) -> None:
        if not self._ended and not self._is_blind:
            return
        suspects, self._ended = self._ended, set()
        suspects.update(w for w in self._workers.values() if w.exit_descriptor is None)
        for worker in suspects:
            if worker.has_ended():
                self._buried(worker)
                if self._ending:
                    return
                if not worker.ready:
                    self._failed_starts += 1
                    if self._failed_starts >= _FAILED_STARTS:
                        self._ending = f"workers die while they start: {worker.story()}"
                        return
                if not self._dispatch.draining:
                    self._start_worker()

    def _buried(self, worker: WorkerProcess, outcome: Outcome = Outcome.CRASHED) -> None:
        """A worker has ended: account for its tasks, free what it used.

        `outcome`: of the task that it was at.
        """
        if self._workers.pop(worker.number, None) is None:
            return
        self._writing.discard(worker.number)
        self._hear(worker, worker.pipe.receive_all())  # what it had still sent
        now = time.monotonic()
        self._carry_out(self._dispatch.beside(worker.number, worker.beside(), now))
        if worker.shortcut is not None:
            # A result counts more than a death after it.
            self._hear_beside(worker, worker.shortcut, last=True)
            if worker.shortcut_is_watched:
                self._selector.unregister(worker.shortcut)
            self._uplink.withdraw(worker.number)
        if not worker.pipe_closed:
            self._selector.unregister(worker.pipe)
        if not worker.stderr_ended:
            self._selector.unregister(worker.stderr)
        if worker.exit_descriptor is not None:
            self._selector.unregister(worker.exit_descriptor)
        worker.close()
        story = worker.story()
        if self._dispatch.running(worker.number) is not None or not worker.left_by_itself():
            log.info("a worker has ended: %s", story, extra={"action": "worker_ended"})
        if worker.ran_out_of_memory():
            outcome = Outcome.OUT_OF_MEMORY
        elif worker.was_told_to_end() and self._is_told_to_end():
            outcome = Outcome.RETURNED
        self._dispatch.died(worker.number, story, outcome)

    def _is_told_to_end(self) -> bool:
        """Whether the slave as a whole gets SIGTERM, as batch systems send it: to all processes."""
        deadline = time.monotonic() + _SIGNALS_APART_S
        while not self._signals and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self._look_at_signals()
        return self._signals > 0

    def _look_at_memory(self, now: float) -> None:
        """Once a worker is dead, nobody can tell how much memory it had."""
        if self._memory is None or now < self._memory_look_at:
            return
        self._memory_look_at = now + _MEMORY_LOOK_S
        for worker in self._workers.values():
            if self._dispatch.running(worker.number) is not None:
                worker.look_at_memory()

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            worker = self._workers.get(action.worker)
            if worker is None:
                continue
            if isinstance(action, Send):
                if self._disturbance is not None:
                    self._disturbance.gave(worker.number, len(action.tasks), time.monotonic())
                worker.pipe.send(["tasks", action.tasks])
                self._update_mask(worker)
            elif isinstance(action, Skip):
                worker.pipe.send(["skip", action.task_ids])
                self._update_mask(worker)
            elif isinstance(action, Kill):
                worker.kill()

    def _begun(self, number: int) -> int | None:
        """Called by `tick`, see `Dispatch`."""
        return self._workers[number].pipe.begun(time.monotonic())

    def _disturb(self, now: float) -> None:
        """Have go wrong among the workers what is to go wrong on purpose by now."""
        if self._disturbance is None:
            return
        for number, blow in self._disturbance.blows(now):
            worker = self._workers.get(number)
            if worker is None:
                continue
            log.debug("chaos: %s for worker %d", blow.value, number)
            if blow is Blow.KILL:
                worker.kill()
            else:
                worker.pause(blow is Blow.STOP)

    # --- data items -------------------------------------------------------------------------

    def _need(self, worker: WorkerProcess, name: str) -> None:
        if name in self._data:
            self._data[name] = self._data.pop(name)  # used last
            worker.pipe.send(["data", name, self._data[name], ""])
            self._update_mask(worker)
            return
        first = name not in self._askers
        self._askers.setdefault(name, []).append(worker.number)
        if first:
            self._uplink.need(name)

    def _got_data(self, name: str, value: Any, error: str) -> None:
        if value is not None:
            if self._settings.shared_memory:
                value = shared.lend_large(value)  # once for all workers
            self._data[name] = value
            self._trim_data()
        for number in self._askers.pop(name, ()):
            worker = self._workers.get(number)
            if worker is not None:
                worker.pipe.send(["data", name, value, error])
                self._update_mask(worker)

    def _trim_data(self) -> None:
        sizes = {name: sum(map(len, value)) for name, value in self._data.items()}
        total = sum(sizes.values())
        for name in list(self._data)[:-1]:
            if total <= _CACHE_BYTES:
                break
            total -= sizes[name]
            del self._data[name]

    def _forget(self, names: list[str]) -> None:
        for name in names:
            self._data.pop(name, None)
        for worker in self._workers.values():
            worker.pipe.send(["forget", names])
            self._update_mask(worker)

    # --- the uplink -------------------------------------------------------------------------

    def _news(self, news: News) -> None:
        """Called by the uplink's threads, or by ours in `take_answer`."""
        self._inbox.append(news)
        if threading.get_ident() != self._thread:
            self._wake()

    def _held(self) -> list[tuple[str, int]]:
        """Called by the uplink's threads. What came in but was not read yet is held, too."""
        waiting = [(t.task_id, t.attempt) for news in list(self._inbox) for t in news.tasks]
        self._dispatch.untell()
        for worker in list(self._workers.values()):
            if (task := worker.beside()) is not None:
                waiting.append(task)
        self._wake()
        if self._disturbance is not None:
            waiting += [(done.task_id, done.attempt) for done in self._disturbance.held_back()]
        holds = self._dispatch.holds()
        holds += [(done.task_id, done.attempt) for done in list(self._dispatch.completions)]
        return holds + waiting

    def _read_inbox(self) -> None:
        while self._inbox:
            news = self._inbox[0]
            self._dispatch.arrived(news.tasks)
            self._inbox.popleft()
            if news.stop:
                self._cancelled(news.stop)
            if news.outdated:
                self._carry_out(self._dispatch.outdated(news.outdated))
            if news.leave:
                log.info("dismissed: finishing what runs, for %g s", self._settings.grace_s)
                self._start_drain(self._settings.grace_s)
            if news.forget:
                self._forget(news.forget)
            if news.data is not None and news.data[0] == slavecode.DATA_NAME:
                self._look_at_code(news.data[1])
            elif news.data is not None:
                self._got_data(*news.data)
            if news.end:
                self._ending = self._ending or news.end

    def _cancelled(self, task_ids: list[str]) -> None:
        """The task manager wants nothing more of these; they may be on their way by shortcuts."""
        self._carry_out(self._dispatch.cancelled(task_ids))
        if self._may_cut:
            self._cancelled_by = time.monotonic() + _CANCELLED_S
        for worker in self._workers.values():
            if worker.shortcut is not None:
                self._take_back(worker, worker.shortcut)

    def _take_back(self, worker: WorkerProcess, shortcut: Shortcut) -> None:
        """Give back what a worker has not read of its shortcut."""
        try:
            tasks, skipped = shortcut.take_back()
        except ValueError as error:
            log.warning("worker %d was sent what is no task: %s", worker.number, error)
            return
        for task in tasks:
            unrun = Outcome.RETURNED.value
            done = Completion(task.task_id, task.attempt, unrun, [], 0.0, "not begun")
            self._dispatch.finished_beside(worker.number, done, time.monotonic())
        if skipped:
            worker.pipe.send(["skip_beside", skipped])

    def _tell(self, now: float, *, everything: bool = False) -> None:
        """Hand in what has ended, and what runs for long enough to be worth telling."""
        completions = self._dispatch.completions
        if self._disturbance is not None:
            completions = self._disturbance.hold_back(completions, now, none=everything)
        started = self._dispatch.newly_started(now - (0.0 if everything else _TELL_STARTED_S))
        idle = not self._dispatch.busy()
        room, low = self._dispatch.room(now), self._dispatch.runs_low(now)
        self._uplink.hand_in(completions, started, room=room, idle=idle, low=low or everything)
        self._dispatch.completions = []  # not before: each is known here or there, see `_held`

    def _look_at_uplink(self, now: float) -> None:
        """Have the selector tell of the answer to a posted call."""
        self._uplink.look(now)
        link = self._uplink.posted_on
        if link is None or link is self._answers_on:
            return
        self._leave_answers()
        descriptor = link.fileno()
        if descriptor is not None:
            self._answers_on, self._answers_from = link, os.dup(descriptor)
            self._selector.register(self._answers_from, selectors.EVENT_READ, self._on_answer)

    def _on_answer(self, mask: int) -> None:
        if not self._uplink.take_answer():
            self._leave_answers()

    def _leave_answers(self) -> None:
        if self._answers_on is not None:
            self._selector.unregister(self._answers_from)
            os.close(self._answers_from)
            self._answers_on = None

    # --- waiting, signals -------------------------------------------------------------------

    def _wait_s(self, now: float) -> float | None:
        waits = [self._dispatch.next_deadline(now, _TELL_STARTED_S)]
        if self._disturbance is not None:
            waits.append(self._disturbance.wait_s(now))
        if self._deadline is not None:
            waits.append(max(0.0, self._deadline - now))
        if self._lifetime is not None and not self._time_is_up:
            waits.append(max(0.0, self._lifetime.drain_at - now))
        if self._idleness is not None and not self._dispatch.draining:
            waits.append(self._idleness.wait_s(now))
        looks = self._dispatch.draining or now < max(self._cancelled_by, self._results_by)
        if self._is_blind or (looks and self._may_cut):
            waits.append(_POLL_S)  # nobody tells of what begins by shortcuts
        if self._memory is not None and self._dispatch.busy():
            waits.append(max(0.0, self._memory_look_at - now))
        waits.append(self._uplink.wait_s(now))
        if self._inbox:
            waits.append(0.0)
        if self._dispatch.has_lines():
            waits.append(LOOKED_AT_S)
        return min((wait for wait in waits if wait is not None), default=None)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: it has ended
            self._wake_in.send(b"\0")

    def _drain_wake(self, mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_out.recv(4096):
                pass

    @contextlib.contextmanager
    def _signal_handlers(self) -> Any:
        """What ends the slave in order. Only the main thread may say so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            self._signals += 1
            self._wake()

        before = {n: signal.signal(n, on_signal) for n in _END_SIGNALS}
        # Whichever thread gets it, this one wakes up, and runs the handler.
        woken = signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _look_at_signals(self) -> None:
        if self._signals and not self._told_to_end:
            self._told_to_end = True
            log.info("told to end: finishing what runs, for %g s", self._settings.grace_s)
            self._start_drain(self._settings.grace_s)
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self._dispatch.draining and (self._signals > 1 or late):
            why = "its slave was stopped" if self._signals else "its slave's time was up"
            self._carry_out(self._dispatch.interrupt(why))
            self._deadline = None

    def _look_at_lifetime(self, now: float) -> None:
        if self._lifetime is None or self._time_is_up or now < self._lifetime.drain_at:
            return
        self._time_is_up = True
        limit_s = self._lifetime.kill_at - now
        log.info("its time is nearly up: finishing what runs, for %.3g s", limit_s)
        self._start_drain(limit_s)

    def _look_at_idleness(self, now: float) -> None:
        if self._idleness is None or self._dispatch.draining:
            return
        turns = sum(worker.turns for worker in self._workers.values())
        if turns != self._turns:  # tasks have come and gone since the last look
            self._turns = turns
            self._idleness.is_over(True, now)
        busy = self._dispatch.busy() or not self._dispatch.room(now)
        if self._idleness.is_over(busy, now):
            log.info("idle for %g s: the slave ends", self._idleness.limit_s)
            self._start_drain(None)

    def _left_s(self) -> float | None:
        """Called by the uplink's threads."""
        return None if self._lifetime is None else self._lifetime.left_s(time.monotonic())

    def _look_at_code(self, code: slavecode.Record | None) -> None:
        """A client has brought code to the task manager; None: it is gone again.

        Workers that have other code finish what runs; then the slave starts anew.
        """
        if code is not None and self._follows_code and not same_code(code, self._record):
            log.info("the slaves' code is another one by now", extra={"action": "new_code"})
            self._has_new_code = True
            self._start_drain(None)

    def _start_drain(self, limit_s: float | None) -> None:
        self._uplink.refuse_tasks()
        self._dispatch.drain()
        self._refused_by = self._refused_by or time.monotonic() + _REFUSED_S
        if limit_s is not None:
            deadline = time.monotonic() + limit_s
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Python looks for cycles less often, if this process is a slave and nothing else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = gc.get_threshold()
    gc.set_threshold(_LOOK_FOR_CYCLES_AT, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)

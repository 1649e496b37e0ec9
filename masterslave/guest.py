"""Our part in somebody else's worker: what a task becomes on a `concurrent.futures.Executor`.

`run` is what the pump submits. The executor's worker imports this module by its name, and nothing
else of ours is there: no connection, no supervisor, no key. The slave object is made once in each
worker process, when the first task comes; its code and the values of the global state are kept by
their content. What a worker lacks is not fetched, as there is nobody to ask: the tasks go back
with a list of it, and come again with it attached.

::

    pump --run(ticket, tasks, attached)--> executor --> worker: code, values, do_<tag>
    pump <----------- Reply -------------- executor <-- completions, or what is missing

All that is handed over is of plain types, frames included, so the executor's own pickling never
meets an object of the user's. In the master's own process (threads), and in what was forked from
it since, the slave class is there already and nothing is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from masterslave import payload, slavecode, versions, worker
from masterslave.errors import DataNotFound, PayloadError, SlaveError
from masterslave.flights import HELD_S
from masterslave.records import (
    Assignment,
    Completion,
    Frame,
    GlobalStateValue,
    Outcome,
    as_assignment,
    getMachineInfo,
)

#: Jobs whose slave object is kept in one process. Larger: a worker that serves for weeks keeps the
#: memory of jobs that are over. Smaller: jobs that share an executor load their code again and
#: again.
_KEPT = 4

#: Name under which the slave's code is attached.
CODE = slavecode.DATA_NAME


class Ticket(NamedTuple):
    """What each submission says of its job."""

    token: str  # of the job: random
    label: str
    forget: tuple[str, ...] = ()  # data items that are deleted


class Reply(NamedTuple):
    """What came of a submission; a plain tuple of plain types."""

    done: list[Completion]
    unrun: list[str]  # ids of the tasks that were not run, for want of something or of time
    missing: list[str]  # names of the data items to attach
    tags: list[str]  # what the slave's code handles, once it is loaded
    problem: str = ""  # why the code does not load


class AtHome(NamedTuple):
    """What need not be loaded in the master's own process, nor in what is forked from it."""

    pid: int
    record: slavecode.Record
    slave: tuple[type, float | None] | None  # the class itself, and its watchdog period


#: The jobs of masters in this very process, by token.
_at_home: dict[str, AtHome] = {}

_lock = threading.RLock()
_guests: OrderedDict[str, _Guest] = OrderedDict()


def _begin_anew() -> None:
    """A fork has none of the threads that may have held the lock, and its own slave."""
    global _lock
    _lock = threading.RLock()
    _guests.clear()


os.register_at_fork(after_in_child=_begin_anew)


def settle(token: str, record: slavecode.Record, slave: tuple[type, float | None] | None) -> None:
    """A master begins in this process; `slave`: its slave class and watchdog period, if any."""
    _at_home[token] = AtHome(os.getpid(), record, slave)


def unsettle(token: str) -> None:
    """That master has ended."""
    _at_home.pop(token, None)
    with _lock:
        _guests.pop(token, None)


def run(ticket: tuple[Any, ...], tasks: Sequence[Any], attached: Mapping[str, Any]) -> Reply:
    """Run these tasks one after another in this worker; what they raise becomes their outcome.

    `attached`: what an earlier worker lacked: the code's record, and frames of data items, each
    with why there is none.
    """
    mine = Ticket(*ticket)
    given = [as_assignment(task) for task in tasks]
    try:
        guest = _guest(mine, attached.get(CODE, (None, ""))[0])
    except BaseException as error:  # whatever the user's code does while it is loaded
        return Reply([], [], [], [], worker.format_error(error, __file__))
    if guest is None:
        return Reply([], [task.task_id for task in given], [CODE], [])
    guest.forget(mine.forget)
    try:
        return guest.run(given, attached)
    finally:
        _flush()


def _guest(ticket: Ticket, record: slavecode.Record | None) -> _Guest | None:
    """The job's slave in this process; None when its code is not here."""
    with _lock:  # threads of one worker process have one slave
        guest = _guests.get(ticket.token)
        if guest is None:
            home = _at_home.get(ticket.token)
            if home is not None:
                record = home.record
            elif record is None:
                return None
            guest = _Guest(ticket, record)
            guest.load(home)
            _guests[ticket.token] = guest
            while len(_guests) > _KEPT:
                _guests.popitem(last=False)
        _guests.move_to_end(ticket.token)
        return guest


class _Guest(worker.Role):
    """One job's slave in this process."""

    def __init__(self, ticket: Ticket, record: slavecode.Record) -> None:
        super().__init__(ticket.label, record)
        self._record = record
        # What this process pickles of its own script by name must be that of the master's.
        main_id = record.get("main_id")
        self.codec = payload.Codec(main_id if payload.is_main(main_id) else None)
        self._handlers: Mapping[str, Callable[..., Any]] = {}
        self._is_over: Callable[[], bool] = lambda: False
        self._make: Callable[[], Any] = lambda: None
        self._attached: Mapping[str, Any] = {}

    def prepare(self) -> None:
        """See `Role.prepare`; nothing is limited here: the process is somebody else's."""

    def fetch(self, name: str) -> Frame:
        """See `Role.fetch`; `run` has looked before whether it is here."""
        frame, problem = self._attached[name]
        if frame is None:
            raise DataNotFound(f"global state: {problem}")
        return list(frame)

    def forget(self, names: Sequence[str]) -> None:
        """These data items are deleted."""
        with _lock:
            for name in names:
                self._values.pop(name, None)

    # --- the code ---------------------------------------------------------------------------

    def load(self, home: AtHome | None) -> None:
        """Make the slave object, or whatever else has the handlers."""
        if home is not None and home.slave is not None:
            self._enter(*home.slave)
            return
        if home is None:
            self._check_versions()
            slavecode.take_over(self._record)
        if self._record["kind"] == "script":
            self._run_script()
        elif self._record["kind"] == "module":
            module = importlib.import_module(self._record["module"])
            self._handlers = worker.handlers_in(vars(module))
        else:
            loaded = payload.Codec().decode(list(self._record["frame"]))
            slave_class, period_s, named = loaded
            payload.keep_named(self._record.get("main_id", ""), named)
            self._named = named  # as long as this job is kept, its classes are
            self._enter(slave_class, period_s)
        if not self._handlers:
            raise SlaveError("the slave's code handles no tasks: define do_<tag> in it")

    def _check_versions(self) -> None:
        """Raise `SlaveError` when what comes from the master may not be understood here."""
        ours = payload.own_versions()
        if problem := versions.mismatch(self._record.get("versions", ""), ours):
            text = problem.replace("client", "master")
            raise SlaveError(f"the executor's worker {getMachineInfo()} {text}")

    def _enter(self, slave_class: Any, period_s: float | None) -> None:
        def make() -> None:
            slave = slave_class(self.label, watchdog_period=period_s)
            self._handlers = worker.handlers_of(slave)
            self._is_over = slave.terminationTest

        self._make = make
        make()

    def _run_script(self) -> None:
        namespace: dict[str, Any] = {}
        self.namespace = namespace
        with worker.acting(self):
            try:
                slavecode.run_script(self._record, namespace)
            except SystemExit:  # so `worker.serve` ends
                if not self.started:
                    raise
        if not self.started:
            raise SlaveError("the script ended without starting a slave")

    def loop(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        watchdog_period: float | None,
        termination_test: Callable[[], bool],
    ) -> None:
        """See `Role.loop`: tasks come one by one, later."""
        self.started = True
        self._handlers = handlers
        self._is_over = termination_test

    # --- tasks ------------------------------------------------------------------------------

    def run(self, tasks: Sequence[Assignment], attached: Mapping[str, Any]) -> Reply:
        """See `run`."""
        reply = Reply([], [], [], sorted(self._handlers))
        with _lock:
            self._attached = attached
            for name in attached:
                if name != CODE and name not in self._values:
                    with contextlib.suppress(DataNotFound, PayloadError):  # raised for each task
                        self._global_value(name)
        begin = time.perf_counter()
        for place, task in enumerate(tasks):
            if place and time.perf_counter() - begin > HELD_S:  # what is done is not held back
                reply.unrun.extend(one.task_id for one in tasks[place:])
                break
            missing = self._one(task, attached, reply.done)
            if missing:
                reply.unrun.append(task.task_id)
                reply.missing.extend(missing)
        return reply

    def _one(
        self, task: Assignment, attached: Mapping[str, Any], done: list[Completion]
    ) -> list[str]:
        """Run one task, and put what came of it into `done`; or give what it lacks."""
        begin = time.perf_counter()
        try:
            values = self.codec.decode(list(task.frame), owned=True)
            wanted = [value.label for value in values if type(value) is GlobalStateValue]
            with _lock:
                missing = [n for n in wanted if n not in self._values and n not in attached]
                if missing:
                    return missing
                self._attached = attached
                values = [
                    self._global_value(value.label) if type(value) is GlobalStateValue else value
                    for value in values
                ]
            handler = self._handlers.get(task.tag)
            if handler is None:
                raise DataNotFound(f"the slave's code has no handler do_{task.tag}")
            begin = time.perf_counter()
            result = handler(*values)
            duration_s = time.perf_counter() - begin
            try:
                frame = self.codec.encode(result, "result")
            except PayloadError as error:
                raise PayloadError(f"the result of task {task.task_id}: {error}") from error
        except BaseException as error:  # SystemExit and KeyboardInterrupt are the task's too
            duration_s = time.perf_counter() - begin
            text = worker.format_error(error, __file__)
            frame = self.codec.encode_exception(error)
            outcome = Outcome.EXCEPTION.value
        else:
            text, outcome = "", Outcome.RESULT.value
        frame = plain(frame)
        done.append(Completion(task.task_id, task.attempt, outcome, frame, duration_s, text))
        if self._is_over():  # a slave of ours would end here, and its worker be a fresh one
            self._make()
        return []


def plain(frame: Frame) -> Frame:
    """The frame in bytes: an executor's pickling knows no views."""
    return [piece if isinstance(piece, bytes) else bytes(piece) for piece in frame]


def _flush() -> None:
    """What handlers have printed is to be seen now: the worker may wait for long, or be killed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # whatever the user's code put there
            stream.flush()

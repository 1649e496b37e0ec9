"""A task manager's only slave where an executor runs the handlers: takes tasks, submits them.

::

    TaskManager --exchange--> fetcher thread --+
                                               +--> inbox --> pump thread --> submitter --> executor
                 done-callbacks of futures ----+                  |
    TaskManager <--exchange, completions--------------------------+

`flights` decides, `engines` knows the executor, `submitter` calls it, `guest` is the other end. The
fetcher always waits in the task manager, for tasks or orders; a done-callback only leaves its
future in the inbox, as it runs in a thread that is not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import platform
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from masterslave import guest, payload, slavecode
from masterslave.engines import CLOSED, MOST_BREAKS, Engine
from masterslave.errors import DataNotFound, JournalError
from masterslave.flights import Flight, Flights
from masterslave.manager import TaskManager
from masterslave.records import (
    Completion,
    Outcome,
    ProcessInfo,
    as_assignment,
    as_completion,
    getMachineInfo,
)
from masterslave.settings import Settings
from masterslave.submitter import Submitter

log = logging.getLogger(__name__)

#: Deleted data items that workers are told of. Larger: longer submissions. Smaller: workers keep
#: what nobody needs.
_FORGOTTEN = 256

#: Pause before handing in again what the task manager could not put on record, and between two
#: looks for tasks of an executor that does not work.
_PAUSE_S = 0.2

#: After so many seconds in which nothing has come back, of an executor that neither says how many
#: workers it has nor that it runs anything, this is told. Larger: one that is dead is noticed late.
#: Smaller: it is told where all is well but tasks are long.
_SILENT_S = 60.0


class Pump:
    """Moves tasks from a task manager to an executor, and results back."""

    def __init__(
        self, manager: TaskManager, engine: Engine, label: str, record: slavecode.Record,
        slave: tuple[type, float | None] | None, settings: Settings,
    ) -> None:  # fmt: skip
        """`slave`: slave class and watchdog period, as `runJob` got them."""
        self._manager = manager
        self._engine = engine
        self._record = {**record, "versions": payload.own_versions()}
        self._settings = settings
        self._ticket = guest.Ticket(secrets.token_hex(16), label)
        self._flights = Flights(engine.capacity)
        self._futures: dict[int, Future[Any]] = {}
        self._unwanted: set[int] = set()  # flights that need not be submitted any more
        self._forgotten: dict[str, None] = {}
        self._breaks = 0  # in a row
        self._told: set[str] = set()  # what was warned of
        self._look_at = math.inf  # when to ask a silent executor for its state
        self._changed = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._ending = False
        self._broken = ""  # why the executor runs nothing any more
        self._tags: list[str] | None = None
        machine = f"{getMachineInfo()}: {engine.name}"
        info = ProcessInfo(machine, os.getpid(), platform.node(), self._flights.capacity, "")
        self._process_id, _, self._generation = manager.registerProcess(None, info)
        manager.announceSlave(self._process_id)
        guest.settle(self._ticket.token, record, slave)
        self._threads = [
            threading.Thread(target=self._run, name="pump", daemon=True),
            threading.Thread(target=self._fetch, name="pump-fetcher", daemon=True),
        ]
        self._submitter = Submitter(lambda error: self._post(partial(_reraise, error)))
        self._since = time.monotonic()
        if engine.forks:
            self._hello()  # before there are threads
        else:
            self._submitter.order("submit", self._hello)

    def start(self) -> None:
        """Begin to move tasks."""
        self._submitter.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; what still runs in the executor is not waited for, and its results are dropped."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._manager.unregisterProcess(self._process_id)
        hangs = self._submitter.stop(self._leave, self._settings.shutdown_s)
        if hangs:
            log.warning(
                "%s: its %s does not return; a thread that waits for it is left behind",
                self._engine.name,
                hangs,
                extra={"action": "executor_hangs"},
            )
        guest.unsettle(self._ticket.token)

    def _leave(self) -> None:
        for future in list(self._futures.values()):
            self._engine.cancel(future)
        self._engine.close()

    def repeat(self, tag: str, factor: float | None) -> None:
        """See `TaskManager.repeatStragglers`."""
        self._post(partial(self._flights.repeat, tag, factor))

    # --- the threads ------------------------------------------------------------------------

    def _fetch(self) -> None:
        """Wait in the task manager for tasks and orders."""
        while not self._ending and not self._broken:
            try:
                reply = self._manager.exchange(
                    self._process_id, (), (), -1, self._settings.poll_s, self._generation
                )
            except JournalError:  # the pump's own calls say so, and try again
                self._pause()
                continue
            if reply[1].get("terminate"):
                self._end()
            elif any(reply):
                self._post(partial(self._digest, reply))

    def _run(self) -> None:
        try:
            while not self._ending:
                self._step()
                if self._broken:
                    self._refuse()
        except BaseException as error:  # whatever somebody else's future raises
            log.exception("the pump failed")
            self._give_up(f"the pump failed: {type(error).__name__}: {error}")
            while not self._ending:
                for happened in self._news():  # there may be tasks among it
                    try:
                        happened()
                    except BaseException:
                        log.exception("the pump failed again")
                self._refuse()

    def _step(self) -> None:
        """One round: take in what has happened, hand it in, submit what there is."""
        self._look(time.monotonic())
        with self._changed:
            if not self._inbox and not self._ending and not self._broken:
                now = time.monotonic()
                by_clock_s = self._flights.next_deadline(now)
                look_s = max(0.0, self._look_at - now)
                wait_s = look_s if by_clock_s is None else min(by_clock_s, look_s)
                self._changed.wait(None if wait_s == math.inf else wait_s)
        for happened in self._news():
            happened()
        late = self._flights.tick(time.monotonic())
        for number in {*late, *self._flights.unwanted}:
            self._drop(number)
        self._flights.unwanted.clear()
        self._hand_in()
        while not self._broken and not self._ending:
            flight = self._flights.take_off(time.monotonic())
            if flight is None:
                break
            self._submit(flight)

    def _news(self) -> deque[Callable[[], None]]:
        with self._changed:
            news, self._inbox = self._inbox, deque()
        return news

    def _hand_in(self) -> None:
        """Hand in what has ended, and take what there is to do."""
        done, self._flights.completions = self._flights.completions, []
        if not done and self._flights.room() == self._flights.capacity and self._tags is None:
            return
        room = 0 if self._broken else self._flights.room()
        try:
            reply = self._manager.exchange(self._process_id, done, (), room, 0.0, self._generation)
        except JournalError as error:
            log.info("results cannot be put on record, they are kept here: %s", error)
            self._flights.completions[:0] = done
            self._pause()
            self._post(lambda: None)
            return
        if reply[1].get("terminate"):
            self._end()
        else:
            self._digest(reply)

    def _digest(self, reply: Sequence[Any]) -> None:
        tasks, notices = reply
        for name in notices.get("forget", ()):
            self._forgotten[name] = None
            if len(self._forgotten) > _FORGOTTEN:
                del self._forgotten[next(iter(self._forgotten))]
        self._flights.arrived([as_assignment(task) for task in tasks])
        for number in self._flights.cancelled(notices.get("stop", ())):
            self._drop(number)

    def _refuse(self) -> None:
        """The executor runs nothing any more: tell so of every task that is there or comes."""
        if self._engine.is_closed and self._flights.wanted():
            self._flights.broke(self._broken)  # what is in the air will never land
        self._flights.give_back_all("not begun")
        self._hand_in()
        tags = self._manager.numberOfTasks()[0]
        if tags:
            self._manager.announceTags(self._process_id, tags)
        room = self._flights.capacity
        reply = self._manager.exchange(self._process_id, (), (), room, 0.0, self._generation)
        if reply[1].get("terminate"):
            self._end()
        failed = [
            Completion(t.task_id, t.attempt, Outcome.CRASHED.value, [], 0.0, self._broken)
            for t in map(as_assignment, reply[0])
        ]
        if failed:
            self._manager.exchange(self._process_id, failed, (), 0, 0.0, self._generation)
        else:
            self._pause()

    # --- the executor -----------------------------------------------------------------------

    def _hello(self) -> None:
        """Have one worker load the code: it says which tags it handles."""
        attached = {guest.CODE: (self._record, "")}
        try:
            future = self._engine.submit(guest.run, tuple(self._ticket), [], attached)
        except Exception as error:  # of somebody else's executor
            self._post(partial(self._give_up, _story(self._engine, error)))
            return
        future.add_done_callback(lambda done: self._post(partial(self._greeted, done)))

    def _greeted(self, future: Future[Any]) -> None:
        try:
            reply = guest.Reply(*future.result())
        except BaseException as error:  # whatever somebody puts into a future
            self._give_up(_story(self._engine, error))
            return
        if reply.problem:
            self._manager.reportFailure(self._process_id, reply.problem)
            last = reply.problem.strip().rpartition("\n")[2]
            self._give_up(f"the slave's code does not load: {last}\n{reply.problem}")
            return
        self._tags = list(reply.tags)
        self._manager.announceTags(self._process_id, self._tags)

    def _submit(self, flight: Flight) -> None:
        if flight.again:
            task_id = flight.tasks[0].task_id
            log.info("task %s is run a second time", task_id, extra={"action": "task_repeated"})
        attached = {name: self._item(name) for name in flight.attach}
        tasks = [tuple(t._replace(frame=guest.plain(t.frame))) for t in flight.tasks]
        ticket = tuple(self._ticket._replace(forget=tuple(self._forgotten)))
        arguments = (ticket, tasks, attached)
        self._submitter.order("submit", partial(self._hand_over, flight, arguments))

    def _hand_over(self, flight: Flight, arguments: tuple[Any, ...]) -> None:
        """In the submitter's thread: the submission itself."""
        if flight.pool != self._flights.pool:
            return  # it fell with that pool
        if flight.number in self._unwanted:  # while it stood in line
            self._post(partial(self._flights.given_back, flight.number, "not begun"))
            return
        try:
            future = self._engine.submit(guest.run, *arguments)
        except Exception as error:  # of somebody else's executor
            self._post(partial(self._failed, flight, error, refused=True))
            return
        self._futures[flight.number] = future
        future.add_done_callback(lambda done: self._post(partial(self._landed, flight, done)))

    def _item(self, name: str) -> tuple[Any, str]:
        if name == guest.CODE:
            return self._record, ""
        try:
            frame = self._manager.retrieveData(name)
        except DataNotFound as error:
            return None, str(error)
        self._forgotten.pop(name, None)  # it has been set again
        return guest.plain(frame), ""

    def _landed(self, flight: Flight, future: Future[Any]) -> None:
        self._futures.pop(flight.number, None)
        try:
            reply = guest.Reply(*future.result())
            done = [as_completion(one) for one in reply.done]
        except (CancelledError, asyncio.CancelledError):
            if flight.number not in self._unwanted:
                self._warn(
                    "somebody else than this library has cancelled a submission; it is made again",
                    "executor_cancelled",
                )
            self._unwanted.discard(flight.number)
            self._flights.given_back(flight.number, "not begun")
            return
        except BaseException as error:  # whatever somebody puts into a future
            self._failed(flight, error)
            return
        self._unwanted.discard(flight.number)
        self._told.discard("executor_empty")
        if reply.problem:
            self._flights.failed(flight.number, f"the slave's code does not load: {reply.problem}")
            return
        if done:
            self._breaks = 0
        missing = sorted(set(reply.missing))
        self._flights.landed(flight.number, done, reply.unrun, missing, time.monotonic())

    def _failed(self, flight: Flight, error: BaseException, *, refused: bool = False) -> None:
        """The executor has lost a submission, or not taken it."""
        self._unwanted.discard(flight.number)
        story = _story(self._engine, error)
        if flight.pool != self._flights.pool:
            return  # its pool has broken, and all that was in it is accounted for
        is_shut = self._engine.is_shut_by(error)
        if is_shut and not self._engine.is_made_here:  # its owner wants it so
            self._flights.failed(flight.number, story)
            self._give_up(story)
        elif is_shut or self._engine.is_broken_by(error):
            log.warning("%s", story, extra={"action": "executor_broke"})
            self._flights.broke(story)
            self._futures.clear()
            self._renew(story)
        elif refused:
            self._flights.refused(flight.number, story, time.monotonic())
        else:
            self._flights.failed(flight.number, story)

    def _renew(self, story: str) -> None:
        self._breaks += 1
        if self._breaks > MOST_BREAKS:
            self._give_up(f"{story}; {self._breaks} times in a row")
        else:
            self._submitter.order("factory", partial(self._make_again, story))

    def _make_again(self, story: str) -> None:
        """In the submitter's thread: a pool in place of the broken one."""
        try:
            renewed = self._engine.renew()
        except Exception as error:  # of the user's factory
            why = f"{story}, and cannot be made again: {type(error).__name__}: {error}"
            self._post(partial(self._give_up, why))
            return
        if not renewed:
            why = (
                f"{story}, and nobody knows how to make it again: give a function that makes "
                f"one, such as executor=lambda: {self._engine.name}(...)"
            )
            self._post(partial(self._give_up, why))

    def _drop(self, number: int) -> None:
        """Nothing is wanted of a submission any more; if it has begun, it is let run."""
        self._unwanted.add(number)
        self._submitter.order("cancel", partial(self._cancel, number))

    def _cancel(self, number: int) -> None:
        future = self._futures.get(number)
        if future is not None:
            self._engine.cancel(future)

    # --- an executor that says nothing ------------------------------------------------------

    def _look(self, now: float) -> None:
        """When nothing has come back for long, have its state looked at, and told."""
        if self._broken:
            self._look_at = math.inf
            return
        quiet_s = now - self._since if self._tags is None else self._flights.quiet_s(now)
        stall_s = self._settings.stall_s
        if quiet_s < stall_s:
            waits = self._tags is None or quiet_s > 0
            self._look_at = now + stall_s - quiet_s if waits else math.inf
            return
        if now < self._look_at:
            return
        self._look_at = now + max(stall_s, quiet_s)  # less and less often
        tasks = _some(self._flights.wanted())
        call, since_s = self._submitter.hangs_in(now)
        if since_s >= stall_s:
            what = f"its {call} has not returned for {since_s:.0f} s; {tasks}"
            self._warn(what, "executor_hangs")
            return
        self._submitter.order("state", partial(self._ask, quiet_s, tasks))

    def _ask(self, quiet_s: float, tasks: str) -> None:
        """In the submitter's thread: whether the executor is at its end, or without workers."""
        if self._engine.is_closed:
            self._post(self._is_over)
            return
        workers = self._engine.workers()
        silent = (
            workers is None
            and quiet_s >= _SILENT_S
            and not any(map(_runs, list(self._futures.values())))
        )
        if workers == 0:
            self._warn(
                f"has had no workers for some {quiet_s:.0f} s; {tasks}; {self._engine.advice}",
                "executor_empty",
            )
        elif workers:
            self._told.discard("executor_empty")
        elif silent:
            self._warn(
                f"has said nothing for {quiet_s:.0f} s, not even that it runs something; {tasks}; "
                "see whether it has workers",
                "executor_silent",
            )

    def _is_over(self) -> None:
        """Nothing that is in the air will ever land."""
        story = _story(self._engine, RuntimeError(CLOSED))
        self._flights.broke(story)
        self._give_up(story)

    def _warn(self, what: str, action: str) -> None:
        """Tell it once."""
        if action not in self._told:
            self._told.add(action)
            log.warning("%s: %s", self._engine.name, what, extra={"action": action})

    # --- odds -------------------------------------------------------------------------------

    def _give_up(self, why: str) -> None:
        if self._broken:
            return  # each submission that was on its way says so
        self._broken = why
        log.error("no task can be run: %s", why, extra={"action": "executor_given_up"})
        with self._changed:
            self._changed.notify_all()

    def _post(self, happened: Callable[[], None]) -> None:
        with self._changed:
            self._inbox.append(happened)
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def _pause(self) -> None:
        with self._changed:
            if not self._ending:
                self._changed.wait(_PAUSE_S)


def _runs(future: Future[Any]) -> bool:
    with contextlib.suppress(Exception):  # of somebody else's
        return future.running()
    return False


def _reraise(error: Exception) -> None:
    raise error


def _some(task_ids: list[str]) -> str:
    """How many tasks it has, with the names of a few."""
    if not task_ids:
        return "it is still to load the slave's code"
    shown = ", ".join(task_ids[:3]) + (", ..." if len(task_ids) > 3 else "")
    return f"tasks that it has got: {len(task_ids)} ({shown})"


def _story(engine: Engine, error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip(": ")
    return f"{engine.name} on {platform.node()} has lost it: {text}"

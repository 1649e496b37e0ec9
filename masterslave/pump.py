"""A task manager's only slave where an executor runs the handlers: takes tasks, submits them.

::

    TaskManager --exchange--> fetcher thread --+
                                               +--> inbox --> pump thread --submit--> executor
                 done-callbacks of futures ----+                  |
    TaskManager <--exchange, completions--------------------------+

`flights` decides, `engines` knows the executor, `guest` is the other end. The fetcher always waits
in the task manager, for tasks or orders; a done-callback only leaves its future in the inbox, as
it runs in a thread that is not ours.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future
from functools import partial
from typing import Any

from masterslave import guest, slavecode
from masterslave.engines import MOST_BREAKS, Engine
from masterslave.errors import DataNotFound, JournalError, SettingsError
from masterslave.flights import Flight, Flights
from masterslave.hooks import Observer
from masterslave.keyfile import load_key
from masterslave.manager import TaskManager
from masterslave.records import (
    Completion,
    Outcome,
    ProcessInfo,
    as_assignment,
    as_completion,
    getMachineInfo,
)
from masterslave.service import Service, open_journal
from masterslave.settings import Settings
from masterslave.watchdog import Watchdog

log = logging.getLogger(__name__)

#: Deleted data items that workers are told of. Larger: longer submissions. Smaller: workers keep
#: what nobody needs.
_FORGOTTEN = 256

#: Pause before handing in again what the task manager could not put on record, and between two
#: looks for tasks of an executor that does not work.
_PAUSE_S = 0.2

_HELLO = -1  # in place of a flight's number: the submission that loads the code


class Pump:
    """Moves tasks from a task manager to an executor, and results back."""

    def __init__(
        self, manager: TaskManager, engine: Engine, label: str, record: slavecode.Record,
        slave: tuple[type, float | None] | None, settings: Settings,
    ) -> None:  # fmt: skip
        """`slave`: slave class and watchdog period, as `runJob` got them."""
        self._manager = manager
        self._engine = engine
        self._record = record
        self._settings = settings
        self._ticket = guest.Ticket(secrets.token_hex(16), label)
        self._flights = Flights(engine.capacity)
        self._futures: dict[int, Future[Any]] = {}
        self._forgotten: dict[str, None] = {}
        self._breaks = 0  # in a row
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
        # Before there are threads: a pool that forks its processes does it now.
        self._hello()

    def start(self) -> None:
        """Begin to move tasks."""
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
        for future in self._futures.values():
            self._engine.cancel(future)
        self._engine.close()
        guest.unsettle(self._ticket.token)

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
        except Exception as error:
            log.exception("the pump failed")
            self._give_up(f"the pump failed: {type(error).__name__}: {error}")
            while not self._ending:
                for happened in self._news():  # there may be tasks among it
                    try:
                        happened()
                    except Exception:
                        log.exception("the pump failed again")
                self._refuse()

    def _step(self) -> None:
        """One round: take in what has happened, hand it in, submit what there is."""
        with self._changed:
            if not self._inbox and not self._ending and not self._broken:
                self._changed.wait(self._flights.next_deadline(time.monotonic()))
        for happened in self._news():
            happened()
        for number in self._flights.tick(time.monotonic()):
            self._drop(number)
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
        except (Exception, CancelledError) as error:
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
        attached = {name: self._item(name) for name in flight.attach}
        tasks = [tuple(t._replace(frame=guest.plain(t.frame))) for t in flight.tasks]
        ticket = tuple(self._ticket._replace(forget=tuple(self._forgotten)))
        try:
            future = self._engine.submit(guest.run, ticket, tasks, attached)
        except Exception as error:  # of somebody else's executor
            self._failed(flight, error)
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
        except CancelledError:
            self._flights.given_back(flight.number, "not begun")
            return
        except Exception as error:
            self._failed(flight, error)
            return
        if reply.problem:
            self._flights.failed(flight.number, f"the slave's code does not load: {reply.problem}")
            return
        if done:
            self._breaks = 0
        self._flights.landed(flight.number, done, reply.unrun, sorted(set(reply.missing)))

    def _failed(self, flight: Flight, error: BaseException) -> None:
        """The executor has lost a submission."""
        story = _story(self._engine, error)
        if flight.pool != self._flights.pool:
            return  # its pool has broken, and all that was in it is accounted for
        if isinstance(error, RuntimeError) and "shutdown" in str(error):
            self._flights.failed(flight.number, story)
            self._give_up(story)
        elif not self._engine.is_broken_by(error):
            self._flights.failed(flight.number, story)
        else:
            log.warning("%s", story, extra={"action": "executor_broke"})
            self._flights.broke(story)
            self._futures.clear()
            self._renew(story)

    def _renew(self, story: str) -> None:
        self._breaks += 1
        if self._breaks > MOST_BREAKS:
            self._give_up(f"{story}; {self._breaks} times in a row")
            return
        try:
            renewed = self._engine.renew()
        except Exception as error:  # of the user's factory
            self._give_up(f"{story}, and cannot be made again: {type(error).__name__}: {error}")
            return
        if not renewed:
            self._give_up(
                f"{story}, and nobody knows how to make it again: give a function that makes "
                f"one, such as executor=lambda: {self._engine.name}(...)"
            )

    def _drop(self, number: int) -> None:
        """Nothing is wanted of a submission any more; if it has begun, it is let run."""
        future = self._futures.get(number)
        if future is not None:
            self._engine.cancel(future)

    # --- odds -------------------------------------------------------------------------------

    def _give_up(self, why: str) -> None:
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


def _story(engine: Engine, error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip(": ")
    return f"{engine.name} on {platform.node()} has lost it: {text}"


class ExecutorService(Service):
    """A task manager whose handlers run on an executor: no server, no label, no slaves."""

    def __init__(
        self,
        label: str,
        settings: Settings,
        executor: Executor | Callable[[], Executor],
        code: slavecode.Record | None,
        slave: tuple[type, float | None] | None,
        *,
        observers: Sequence[Observer] = (),
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the journal, load the code in the executor, watch. Raises as `Service`."""
        if code is None:
            raise SettingsError(
                "executor=: no slave code is known; use runJob, or give slave_script= or "
                "slave_module= to initializeMasterProcess"
            )
        engine = Engine(executor)
        self._journal = None
        if journal is not None:
            self._journal = open_journal(journal, load_key(settings.key_file), label)
        self.manager = TaskManager(label, settings, observers, journal=self._journal)
        self.manager.storeData(**{slavecode.DATA_NAME: code})
        self._pump = Pump(self.manager, engine, label, code, slave, settings)
        self._watchdog = Watchdog(self.manager, settings.stall_s)
        self._watchdog.start()
        self._pump.start()

    @property
    def address(self) -> str:
        """There is none. Raises `SettingsError`."""
        raise SettingsError("a master with executor= has no address: no slave connects to it")

    @property
    def is_named(self) -> bool:
        """Nobody looks for it."""
        return False

    def end_job(self, wait_s: float) -> None:
        """Take no more results; what still runs in the executor is not waited for."""
        self.manager.terminate()
        self._watchdog.stop()
        self._pump.stop()

    def stop(self) -> None:
        """Close the journal."""
        self._watchdog.stop()
        self._close_journal()

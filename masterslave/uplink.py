"""A slave's connections to its task manager, and the two threads that use them.

::

    supervisor --hand_in--> [completions] --sender thread--> exchange --+
                                                                        +--> inbox --> supervisor
    supervisor --hungry---> [fetcher thread] --exchange, waiting------- +

The sender hands in results and takes what the slave may hold in the same call; it also pings. Only
when workers are idle and nothing is waiting does the fetcher stand in the task manager's line.
The process hangs on the sender's connection: when that closes, the task manager knows at once.

When the connection breaks, the sender looks for the task manager again for `master_gone_s`
seconds, registers under its old process id, says what it holds, and hands in what was not
acknowledged; handing in twice is harmless.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

from masterslave.errors import ConnectionFailed, MasterSlaveError, TaskManagerTermination
from masterslave.records import (
    BATCH_BYTES,
    Assignment,
    Completion,
    ProcessInfo,
    as_assignment,
    frame_bytes,
)
from masterslave.settings import Settings
from masterslave.transports.base import Link

log = logging.getLogger(__name__)

#: Pause between two attempts to find the master again, growing from the first to the second.
_RETRY_FROM_S, _RETRY_TO_S = 0.05, 1.0


class News(NamedTuple):
    """What the uplink brings to the supervisor; fields that do not apply are empty."""

    tasks: list[Assignment]
    stop: list[str]  # task ids
    forget: list[str]  # names of data items
    data: tuple[str, Any, str] | None = None  # name, value or None, why there is none
    end: str = ""  # why the slave is to end: "terminated", or an error


class Uplink:
    """Keeps a slave registered with its task manager and moves tasks and results."""

    def __init__(
        self,
        connect: Callable[[], Link],
        info: ProcessInfo,
        settings: Settings,
        deliver: Callable[[News], None],
        holds: Callable[[], list[tuple[str, int]]],
    ) -> None:
        """`deliver` and `holds` are called from the uplink's threads."""
        self._connect = connect
        self._info = info
        self._settings = settings
        self._deliver = deliver
        self._holds = holds
        self._changed = threading.Condition()
        self._completions: deque[Completion] = deque()
        self._started: list[str] = []
        self._needed: deque[str] = deque()
        self._wanted = True  # whether new tasks are welcome
        self._hungry = False
        self._stalled = False
        self._stopping = False
        self._tags: list[str] | None = None
        self._tags_told = False
        self._period_s: float | None = None
        self._link: Link | None = None
        self._generation = 0  # number of the last registration
        self.process_id = -1
        self._sender = threading.Thread(target=self._send, name="uplink-sender", daemon=True)
        self._fetcher = threading.Thread(target=self._fetch, name="uplink-fetcher", daemon=True)

    # --- called by the supervisor -----------------------------------------------------------

    def register(self) -> Any:
        """Connect and register; gives the slave's code record, None if the master keeps none.

        Raises `ConnectionFailed` as `connect` does.
        """
        link = self._link = self._connect()
        self.process_id, _, self._generation = link.call("registerProcess", None, list(self._info))
        link.call("announceSlave", self.process_id)
        try:
            return link.call("retrieveData", "slave_code")
        except KeyError:
            return None

    def start(self) -> None:
        """Start to move tasks; `announce` may come later."""
        self._sender.start()
        self._fetcher.start()

    def announce(self, tags: list[str], period_s: float | None) -> None:
        """The workers are ready and handle these tags; pings are due every `period_s` seconds."""
        with self._changed:
            self._tags, self._period_s, self._tags_told = tags, period_s, False
            self._changed.notify_all()

    def hand_in(
        self, completions: list[Completion], started: list[str], *, hungry: bool, stalled: bool
    ) -> None:
        """Queue results and starts for the task manager.

        `hungry`: workers are idle, so the fetcher is to wait for tasks. `stalled`: all are at long
        tasks, so that more in advance would only be given back.
        """
        with self._changed:
            self._stalled = stalled
            self._completions.extend(completions)
            self._started += started
            if completions or started or hungry != self._hungry:
                self._hungry = hungry
                self._changed.notify_all()

    def need(self, name: str) -> None:
        """Ask for a data item; it comes as news."""
        with self._changed:
            self._needed.append(name)
            self._changed.notify_all()

    def refuse_tasks(self) -> None:
        """From now on, take no new tasks."""
        with self._changed:
            self._wanted = False
            self._hungry = False
            self._changed.notify_all()

    def stop(self, wait_s: float, failure: str = "") -> bool:
        """Hand in what is left, unregister, close; true if all was acknowledged in `wait_s`.

        `failure`: why this slave could not work, for the master.
        """
        with self._changed:
            self._wanted = False
            self._stopping = True
            self._changed.notify_all()
        if self._sender.ident is not None:
            self._sender.join(wait_s)
        clean = not self._sender.is_alive() and not self._completions
        if self._link is not None and not self._sender.is_alive():
            try:
                if failure:
                    self._link.call("reportFailure", self.process_id, failure)
                self._link.call("unregisterProcess", self.process_id)
            except MasterSlaveError as error:
                log.debug("not unregistered: %s", error)
            self._link.close()
        return clean

    # --- the sender -------------------------------------------------------------------------

    def _send(self) -> None:
        try:
            while self._send_once():
                pass
        except TaskManagerTermination:
            self._deliver(News([], [], [], end="terminated"))
        except MasterSlaveError as error:
            self._deliver(News([], [], [], end=str(error)))
        except Exception as error:
            log.exception("the uplink failed")
            self._deliver(News([], [], [], end=f"{type(error).__name__}: {error}"))

    def _send_once(self) -> bool:
        """One exchange; false when it was the last."""
        with self._changed:
            self._changed.wait_for(self._due, self._period_s)  # past that, it is time to ping
            completions = self._batch()
            started, self._started = self._started, []
            needed, self._needed = list(self._needed), deque()
            stopping = self._stopping
        try:
            link = self._live_link()
            if self._tags is not None and not self._tags_told:
                self._announce(link)
            for name in needed:
                self._retrieve(link, name)
            want = self._wanted and self._tags is not None and not self._stalled
            reply = self._exchange(link, completions, started, want, 0.0)
        except ConnectionFailed as error:
            with self._changed:
                self._started = started + self._started
                self._needed.extendleft(reversed(needed))
            self._lost(error)
            return True
        with self._changed:
            for _ in completions:
                self._completions.popleft()
        self._digest(reply)
        return not (stopping and not self._completions)

    def _exchange(
        self,
        link: Link,
        completions: list[Completion],
        started: list[str],
        want: bool,
        wait_s: float,
    ) -> Any:
        return link.call(
            "exchange", self.process_id, completions, started, want, wait_s, self._generation
        )

    def _batch(self) -> list[Completion]:
        """The oldest completions, as many as make up one message."""
        size = 0
        for count, done in enumerate(self._completions):
            size += frame_bytes(done.frame)
            if size > BATCH_BYTES and count:
                return list(islice(self._completions, count))
        return list(self._completions)

    def _due(self) -> bool:
        return bool(
            self._completions
            or self._started
            or self._needed
            or self._stopping
            or (self._tags is not None and not self._tags_told)
        )

    def _announce(self, link: Link) -> None:
        tags = self._tags
        self._register(link)
        link.call("announceTags", self.process_id, tags)
        with self._changed:
            self._tags_told = tags == self._tags
            self._changed.notify_all()

    def _retrieve(self, link: Link, name: str) -> None:
        try:
            news = (name, link.call("retrieveData", name), "")
        except KeyError as error:
            news = (name, None, str(error))
        self._deliver(News([], [], [], data=news))

    def _digest(self, reply: list[Any]) -> None:
        tasks, notices = reply
        if notices.get("terminate"):
            raise TaskManagerTermination("the job is over")
        if notices.get("register"):
            self._tags_told = False  # this thread registers again before its next exchange
        stop, forget = notices.get("stop", []), notices.get("forget", [])
        if tasks or stop or forget:
            self._deliver(News([as_assignment(task) for task in tasks], stop, forget))

    # --- losing and finding the master ------------------------------------------------------

    def _live_link(self) -> Link:
        if self._link is None:
            self._link = self._connect()
            self._register(self._link)
            link = self._link
            link.call("announceSlave", self.process_id)
            with self._changed:
                self._tags_told = False
            log.info("found the master again", extra={"action": "master_found"})
        return self._link

    def _register(self, link: Link) -> None:
        """Register under the process id held so far, and let go of what others run by now."""
        holds = self._holds() + [(c.task_id, c.attempt) for c in list(self._completions)]
        self.process_id, obsolete, self._generation = link.call(
            "registerProcess", self._period_s, list(self._info), self.process_id, holds
        )
        link.call("announceSlave", self.process_id)
        unsent = {completion.task_id for completion in list(self._completions)}
        stop = [task_id for task_id in obsolete if task_id not in unsent]
        if stop:
            self._deliver(News([], stop, []))

    def _lost(self, error: ConnectionFailed) -> None:
        """The connection broke: wait until the master is there again.

        Raises the last error when it has been gone for too long.
        """
        log.warning("lost the master: %s", error, extra={"action": "master_lost"})
        if self._link is not None:
            self._link.close()
            self._link = None
        deadline = time.monotonic() + self._settings.master_gone_s
        pause_s = _RETRY_FROM_S
        while True:
            try:
                self._live_link()
                return
            except ConnectionFailed as again:
                if self._link is not None:
                    self._link.close()
                    self._link = None
                if time.monotonic() >= deadline:
                    raise ConnectionFailed(
                        f"the master has been gone for {self._settings.master_gone_s:g} s: {again}"
                    ) from again
            with self._changed:
                if self._stopping:
                    raise ConnectionFailed("the master has gone, and this slave is to end")
                self._changed.wait_for(lambda: self._stopping, pause_s)
            pause_s = min(_RETRY_TO_S, 2 * pause_s)

    # --- the fetcher ------------------------------------------------------------------------

    def _fetch(self) -> None:
        """Stand in line for tasks while workers are idle. Its troubles are the sender's to mend."""
        link: Link | None = None
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or (self._hungry and self._wanted and self._tags_told)
                )
                if self._stopping or not self._wanted:
                    break
                self._hungry = False  # until the supervisor says so again
            try:
                if link is None:
                    link = self._connect()
                tasks, notices = self._exchange(link, [], [], True, self._poll_s())
                if notices.get("terminate"):
                    raise TaskManagerTermination("the job is over")
                if notices.get("register"):
                    self._have_registered_again()
                stop, forget = notices.get("stop", []), notices.get("forget", [])
                self._deliver(News([as_assignment(task) for task in tasks], stop, forget))
            except TaskManagerTermination:
                self._deliver(News([], [], [], end="terminated"))
                break
            except MasterSlaveError as error:
                # Tasks may have been in the answer that did not come: registering again tells the
                # task manager what is really held here, and the rest is run elsewhere.
                log.debug("the fetcher lost its connection: %s", error)
                link = None
                self._have_registered_again()
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, _RETRY_FROM_S)
                    self._hungry = True
        if link is not None:
            link.close()

    def _have_registered_again(self) -> None:
        with self._changed:
            self._tags_told = False
            self._changed.notify_all()

    def _poll_s(self) -> float:
        period_s = self._period_s
        return self._settings.poll_s if period_s is None else min(period_s, self._settings.poll_s)

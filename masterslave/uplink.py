"""A slave's connections to its task manager, and the two threads that use them.

::

    supervisor --hand_in--> [completions] --sender thread--> exchange --+
                                                                        +--> inbox --> supervisor
                            [fetcher thread] --exchange, waiting--------+

The sender hands in results and takes what the slave may hold in the same call; it also pings. The
fetcher waits in the task manager, for tasks while workers are idle, and for orders at all times.
The process hangs on the sender's connection: when that closes, the task manager knows at once.

One call costs more than a short task, so a slave that hands in its last results waits for the next
tasks in that very call, and the fetcher rests meanwhile. When there is something else to be sent,
the fetcher asks for tasks after all: the task manager then answers the sender's call at once.

Waking a thread costs more than a short task, so the supervisor makes the sender's calls itself as
long as they are small and nothing else is to be done: it posts them, and takes the answer when its
selector tells that it is there. What is large, slow or goes wrong is left to the sender's thread.

When the connection breaks, the sender looks for the task manager again for `master_gone_s`
seconds, registers under its old process id, says what it holds, and hands in what was not
acknowledged; handing in twice is harmless.

The module is longer than others as its threads and the supervisor share one state and one lock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from masterslave.errors import (
    ConnectionFailed,
    JournalError,
    MasterSlaveError,
    TaskManagerTermination,
    UnknownProcess,
)
from masterslave.offers import Offers
from masterslave.records import (
    BATCH_BYTES,
    Assignment,
    Completion,
    ProcessInfo,
    as_assignment,
    frame_bytes,
)
from masterslave.settings import Settings
from masterslave.shortcut import Shortcut
from masterslave.slavecode import DATA_NAME, DEFAULT_NAME
from masterslave.transports.base import Link, PostingLink

log = logging.getLogger(__name__)

#: Pause between two attempts to find the master again, growing from the first to the second.
_RETRY_FROM_S, _RETRY_TO_S = 0.05, 1.0

#: The fetcher rests so long after tasks came for all workers. Larger: orders reach a slave later.
#: Smaller: short tasks cost two calls each, not one.
_REST_S = 0.002

#: What the fetcher waits in the task manager if it only wants the sender's call to be answered.
_A_MOMENT_S = 0.001

#: Results are gathered for so long while the slave has enough to do. Larger: the master waits for
#: them. Smaller: tasks of a millisecond cost a call each, which takes as long as a third of one.
_GATHER_S = 0.005

#: Pause before handing in again what the task manager could not put on record, growing from the
#: first to the second. Larger: the end of a task manager is not seen until it is over. Smaller: a
#: task manager whose disk is full is kept busy.
_JOURNAL_FROM_S, _JOURNAL_TO_S = 0.05, 1.0

#: Results up to this size are posted by the supervisor. Larger: it stands still while they are
#: sent. Smaller: a thread is woken for them.
_POSTED_BYTES = 1 << 15

#: Says in an exchange that there is room for as many tasks as the sender has said. Only the sender
#: says a number: two threads that did might overtake each other.
_AS_TOLD = -1


class News(NamedTuple):
    """What the uplink brings to the supervisor; fields that do not apply are empty."""

    tasks: list[Assignment]
    stop: list[str]  # task ids
    forget: list[str]  # names of data items
    data: tuple[str, Any, str] | None = None  # name, value or None, why there is none
    end: str = ""  # why the slave is to end: "terminated", or an error
    outdated: Sequence[tuple[str, int]] = ()  # task id and attempt of what others run by now
    leave: bool = False  # the slave is to finish what runs, and to leave


class _Call(NamedTuple):
    """One exchange of the sender's."""

    completions: int  # how many of the oldest are handed in
    started: list[str]
    needed: list[str]
    closed: list[int]  # numbers of workers whose shortcuts are to be closed afterwards
    room: int
    wait_s: float
    stopping: bool


class Uplink:
    """Keeps a slave registered with its task manager and moves tasks and results."""

    def __init__(
        self,
        connect: Callable[[], Link],
        info: ProcessInfo,
        settings: Settings,
        deliver: Callable[[News], None],
        holds: Callable[[], list[tuple[str, int]]],
        left_s: Callable[[], float | None] = lambda: None,
        lent: Callable[[], None] = lambda: None,
    ) -> None:
        """`deliver`, `holds`, `left_s` and `lent` are called from the uplink's threads.

        `left_s`: seconds for which the slave takes tasks, None for no end. `lent`: shortcuts were
        lent to the task manager, or are not any more.
        """
        self._connect = connect
        self._info = info
        self._settings = settings
        self._deliver = deliver
        self._holds = holds
        self._left_s = left_s
        self._lent = lent
        self._changed = threading.Condition()
        self._completions: deque[Completion] = deque()
        self._started: list[str] = []
        self._needed: deque[str] = deque()
        self._wanted = True  # whether new tasks are welcome
        self._room = 0  # for tasks; the task manager is told whenever it changes
        self._room_told = 0
        self._room_known = -1  # as said in the last call that was answered
        self._stopping = False
        self._idle = False  # nothing runs or waits here
        self._low = True  # a worker may soon want a task that is not here
        self._gathered_at = 0.0  # when completions are to be handed in at the latest
        self._fetching = False  # whether the fetcher waits in the task manager, or is about to
        self._sender_waits = False  # whether the sender does so
        self._on_their_way = 0  # completions in the sender's call
        self._rest_until = 0.0  # of the fetcher
        self._poster: PostingLink | None = None  # the link, if calls can be posted on it
        self._offers = Offers()  # shortcuts to the workers
        self._posted: tuple[PostingLink, _Call] | None = None  # its answer is not there yet
        self._left_to_sender = False  # that answer
        self._mishap: tuple[_Call, Exception] | None = None  # of a posted call, for the sender
        self._journal_pause_s = _JOURNAL_FROM_S  # the sender's next one
        self._sender_rests = False  # its thread has nothing to do
        self._look_at = 0.0  # when the fetcher is to be woken; 0: it wakes by itself
        self._called_at = 0.0  # the sender's last call ended then
        self._tags: list[str] | None = None
        self._registration_due = False
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
        link = self._new_link()
        self.process_id, _, self._generation = link.call(
            "registerProcess", None, self._current_info()
        )
        link.call("announceSlave", self.process_id)
        for name in (DATA_NAME, DEFAULT_NAME):
            with contextlib.suppress(KeyError):
                return link.call("retrieveData", name)
        return None

    def start(self) -> None:
        """Start to move tasks; `announce` may come later."""
        self._sender.start()
        self._fetcher.start()

    def announce(self, tags: list[str], period_s: float | None) -> None:
        """The workers are ready and handle these tags; pings are due every `period_s` seconds."""
        with self._changed:
            self._tags, self._period_s, self._registration_due = tags, period_s, True
            self._changed.notify_all()

    def offer(self, worker: int, shortcut: Shortcut) -> None:
        """A worker is ready: have the task manager use this shortcut to it, if it can."""
        with self._changed:
            self._offers.add(worker, shortcut)
            self._changed.notify_all()

    def withdraw(self, worker: int) -> None:
        """A worker has ended, and its shortcut is about to be closed.

        The task manager is told when it has what is handed in with the next call.
        """
        with self._changed:
            self._offers.remove(worker)

    def hand_in(
        self,
        completions: list[Completion],
        started: list[str],
        *,
        room: int,
        idle: bool = False,
        low: bool = True,
    ) -> None:
        """Queue results and starts for the task manager.

        `room`: for how many tasks of any length there are ready workers, idle or busy. `idle`:
        nothing runs or waits here any more. `low`: a worker may soon want a task that is not here;
        else results may be gathered for a few milliseconds.
        """
        with self._changed:
            if completions and not self._has_more():
                self._gathered_at = time.monotonic() + _GATHER_S
            self._completions.extend(completions)
            self._started += started
            are_closed = self._offers.settle()
            self._idle, self._low = idle, low
            changed = completions or started or are_closed or room != self._room
            self._room = room
            link = self._may_post()
            if link is None:
                if changed:
                    self._changed.notify_all()
                return
            call = self._next_call()
            self._posted = link, call
            batch = self._oldest(call.completions)
        try:
            self._begin(link, call, batch)
        except Exception as error:
            self._went_wrong(call, error)

    @property
    def posted_on(self) -> PostingLink | None:
        """The link on which the answer to a posted call will come, None if there is none."""
        posted = self._posted
        return None if posted is None or self._left_to_sender else posted[0]

    def take_answer(self) -> bool:
        """Something has come on the link of a posted call; false when it is to be left alone.

        To be called by the thread that hands in. Does not block. The news are delivered.
        """
        posted = self._posted
        if posted is None or self._left_to_sender:
            return False
        link, call = posted
        try:
            reply = link.answer_at_hand()
        except Exception as error:
            self._went_wrong(call, error)
            return False
        with self._changed:
            if reply is None:
                self._left_to_sender = True  # it may be gigabytes
                self._changed.notify_all()
                return False
            self._posted = None
            self._ended(call, reply)
            if not self._rest_until or self._due():
                self._changed.notify_all()
        try:
            self._digest(reply)
        except Exception as error:
            self._went_wrong(call._replace(completions=0, started=[]), error)
            return False
        return True

    def wait_s(self, now: float) -> float | None:
        """Seconds until `look` is to be called; None: it need not be."""
        return max(0.0, self._look_at - now) if self._look_at else None

    def look(self, now: float) -> None:
        """Have the fetcher wait for tasks again if its rest is over: nobody else wakes it."""
        if self._look_at and now >= self._look_at:
            with self._changed:
                self._look_at = 0.0
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
            self._room = 0
            self._changed.notify_all()

    def gets_nothing(self) -> bool:
        """Whether the task manager gives no worker a task by a shortcut, as it knows it may not."""
        with self._changed:
            is_told = not self._wanted and self._room_known == 0
            return is_told or not self._offers.any_lent()

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
            self._wait_until_due()
            posted, self._posted = self._posted, None
            mishap, self._mishap = self._mishap, None
            self._left_to_sender = False
            if posted is not None:
                call = posted[1]
            else:
                call = mishap[0] if mishap is not None else self._next_call()
        reply: list[Any] = [[], {}]
        try:
            if mishap is not None:
                raise mishap[1]
            reply = self._exchange_now(call) if posted is None else posted[0].end_exchange()
        except (ConnectionFailed, JournalError) as error:
            with self._changed:
                self._started = call.started + self._started
                self._needed.extendleft(reversed(call.needed))
                self._offers.put_back(call.closed)
                self._ended(call, None)
                self._changed.notify_all()
            if isinstance(error, ConnectionFailed):
                self._lost(error)
            else:
                log.info("the master cannot put results on record, they are kept here: %s", error)
                time.sleep(self._journal_pause_s)
                self._journal_pause_s = min(_JOURNAL_TO_S, 2 * self._journal_pause_s)
            return True
        self._journal_pause_s = _JOURNAL_FROM_S
        with self._changed:
            self._ended(call, reply)
            self._changed.notify_all()
        self._digest(reply)
        return not (call.stopping and not self._completions)

    def _exchange_now(self, call: _Call) -> Any:
        """Make a call, and whatever is to be done before it."""
        link = self._live_link()
        if self._registration_due:
            self._register(link)
        for name in call.needed:
            self._retrieve(link, name)
        self._open_shortcuts(link)
        room = self._room_told = self._current_room()
        completions = self._oldest(call.completions)
        reply = self._exchange(link, completions, call.started, room, call.wait_s)
        if call.closed:  # all that is known of their tasks came before
            link.call("closeShortcuts", self.process_id, self._generation, call.closed)
        return reply

    # --- calls of the sender, whoever makes them --------------------------------------------

    def _next_call(self) -> _Call:
        """(Locked.) Everything that is to be sent now."""
        count = self._batch()
        wait_s = self._sender_may_wait(count)
        self._sender_waits = wait_s > 0
        self._on_their_way = count
        started, self._started = self._started, []
        needed, self._needed = list(self._needed), deque()
        closed: list[int] = []
        if count == len(self._completions):
            closed = self._offers.take_closed()
        room = self._current_room()
        return _Call(count, started, needed, closed, room, wait_s, self._stopping)

    def _ended(self, call: _Call, reply: list[Any] | None) -> None:
        """(Locked.) A call has ended; `reply`: None when it came to nothing."""
        self._rest_if_busy(reply[0] if reply is not None else [])
        self._sender_waits = False
        self._on_their_way = 0
        self._called_at = time.monotonic()
        if reply is not None:
            self._room_known = call.room
            for _ in range(call.completions):
                self._completions.popleft()

    def _may_post(self) -> PostingLink | None:
        """(Locked.) The link for a call that the supervisor may post now, if there is any."""
        if (
            not self._sender_rests
            or self._posted is not None
            or self._mishap is not None
            or self._offers.are_due
            or self._needed
            or self._stopping
            or self._registration_due
            or not self._due()
        ):
            return None
        size = sum(frame_bytes(done.frame) for done in self._completions)
        return self._poster if size <= _POSTED_BYTES else None

    def _begin(self, link: PostingLink, call: _Call, batch: list[Completion]) -> None:
        self._room_told = call.room
        link.begin_exchange(
            self.process_id, batch, call.started, call.room, call.wait_s, self._generation
        )

    def _went_wrong(self, call: _Call, error: Exception) -> None:
        """The sender is to mend what has become of a posted call."""
        with self._changed:
            self._posted = None
            self._mishap = call, error
            self._changed.notify_all()

    def _sender_may_wait(self, completions: int) -> float:
        """(Locked.) For how long the sender may wait for tasks in its call, in seconds; 0: not."""
        others = (
            self._fetching
            or self._needed
            or self._offers.are_due
            or self._stopping
            or self._registration_due
        )
        if others or not completions or not self._idle or not self._current_room():
            return 0.0
        return 0.0 if completions < len(self._completions) else self._poll_s()

    def _exchange(
        self,
        link: Link,
        completions: list[Completion],
        started: list[str],
        room: int,
        wait_s: float,
    ) -> Any:
        return link.call(
            "exchange", self.process_id, completions, started, room, wait_s, self._generation
        )

    def _current_room(self) -> int:
        return self._room if self._wanted else 0

    def _batch(self) -> int:
        """How many of the oldest completions make up one message."""
        size = 0
        for count, done in enumerate(self._completions):
            size += frame_bytes(done.frame)
            if size > BATCH_BYTES and count:
                return count
        return len(self._completions)

    def _oldest(self, count: int) -> list[Completion]:
        with self._changed:  # a garbage collection between two steps may let others add some
            return list(islice(self._completions, count))

    def _wait_until_due(self) -> None:
        """(Locked.) Wait for something to send, or until it is time to ping."""
        self._called_at = time.monotonic()
        self._sender_rests = True
        while not self._is_needed():
            until = math.inf
            if self._posted is None and self._period_s is not None:
                until = self._called_at + self._period_s
                if time.monotonic() >= until:
                    break
            if self._posted is None and self._has_more():
                until = min(until, self._gathered_at)
            wait_s = None if until == math.inf else max(0.0, until - time.monotonic())
            self._changed.wait(wait_s)
        self._sender_rests = False

    def _is_needed(self) -> bool:
        """(Locked.) Whether the sender's thread has something to do."""
        if self._posted is not None:
            return self._stopping or self._left_to_sender
        return self._mishap is not None or self._due()

    def _has_more(self) -> bool:
        """Whether there are completions that are not on their way."""
        return len(self._completions) > self._on_their_way

    def _due(self) -> bool:
        return bool(
            (self._has_more() and (self._low or time.monotonic() >= self._gathered_at))
            or self._started
            or self._offers.are_due
            or self._needed
            or self._stopping
            or self._registration_due
            or self._current_room() != self._room_told
        )

    def _retrieve(self, link: Link, name: str) -> None:
        try:
            news = (name, link.call("retrieveData", name), "")
        except KeyError as error:
            news = (name, None, str(error))
        self._deliver(News([], [], [], data=news))

    def _open_shortcuts(self, link: Link) -> None:
        """Offer the task manager what it has not been offered since the last registration."""
        with self._changed:
            offers = self._offers.take_offers()
        if not offers or not self._wanted:
            return
        for worker, shortcut in offers.items():
            with self._changed:
                if not self._offers.lend(worker):
                    continue
            is_open = link.call(
                "openShortcut", self.process_id, self._generation, worker, list(shortcut.names)
            )
            if not is_open:
                with self._changed:
                    self._offers.refused(worker, shortcut)
        self._lent()

    def _take_shortcuts_back(self) -> None:
        """Have the supervisor read what comes by them, until they are opened again."""
        with self._changed:
            self._offers.take_back()
        self._lent()

    def _digest(self, reply: list[Any]) -> None:
        tasks, notices = reply
        if notices.get("terminate"):
            raise TaskManagerTermination("the job is over")
        if notices.get("register"):
            self._registration_due = True  # before the next exchange
        if notices.get("code"):
            self.need(DATA_NAME)
        stop, forget = notices.get("stop", []), notices.get("forget", [])
        leave = notices.get("leave", False)
        if tasks or stop or forget or leave:
            assigned = [as_assignment(task) for task in tasks]
            self._deliver(News(assigned, stop, forget, leave=leave))

    def _current_info(self) -> list[Any]:
        """As time left, not as a time of day: clocks differ."""
        return list(self._info._replace(left_s=self._left_s()))

    # --- losing and finding the master ------------------------------------------------------

    def _live_link(self) -> Link:
        link = self._link
        if link is None:
            link = self._new_link()
            self._register(link)
            log.info("found the master again", extra={"action": "master_found"})
        return link

    def _new_link(self) -> Link:
        link = self._link = self._connect()
        self._poster = None
        if isinstance(link, PostingLink) and link.fileno() is not None:
            self._poster = link
        return link

    def _register(self, link: Link) -> None:
        """Register under the process id held so far, and let go of what others run by now."""
        self._registration_due = False  # what makes it due from now on needs another one
        self._take_shortcuts_back()
        self._room_told = self._room_known = _AS_TOLD  # to be told again
        with self._changed:
            self._offers.empty()
        holds = self._holds()
        with self._changed:  # after that: what has ended since was under way before
            self._completions.extend(self._offers.read())
            holds += [(done.task_id, done.attempt) for done in self._completions]
        process_id, obsolete, generation = link.call(
            "registerProcess", self._period_s, self._current_info(), self.process_id, holds
        )
        with self._changed:
            self._offers.empty()  # until then, something more may have come
            self.process_id, self._generation = process_id, generation
            self._changed.notify_all()
        try:
            link.call("announceSlave", process_id)
            if self._tags is not None:
                link.call("announceTags", process_id, self._tags)
        except UnknownProcess:  # taken for dead since, if this process was stopped for so long
            self._registration_due = True
        with self._changed:
            unsent = {(done.task_id, done.attempt) for done in self._completions}
        outdated = [(task_id, attempt) for task_id, attempt in obsolete]
        outdated = [one for one in outdated if one not in unsent]
        if outdated:
            self._deliver(News([], [], [], outdated=outdated))

    def _lost(self, error: ConnectionFailed) -> None:
        """The connection broke: wait until the master is there again.

        Raises the last error when it has been gone for too long.
        """
        log.warning("lost the master: %s", error, extra={"action": "master_lost"})
        self._take_shortcuts_back()
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
        """Wait in the task manager for tasks and orders. Its troubles are the sender's to mend."""
        link: Link | None = None
        journal_pause_s = _JOURNAL_FROM_S
        while self._rests_no_more():
            generation = self._generation
            wait_s = _A_MOMENT_S if self._stopping else self._poll_s()
            try:
                if link is None:
                    link = self._connect()
                tasks, notices = self._exchange(link, [], [], _AS_TOLD, wait_s)
            except JournalError:
                time.sleep(journal_pause_s)
                journal_pause_s = min(_JOURNAL_TO_S, 2 * journal_pause_s)
                continue
            except MasterSlaveError as error:
                # Tasks may have been in the answer that did not come: registering again tells the
                # task manager what is really held here, and the rest is run elsewhere.
                log.debug("the fetcher lost its connection: %s", error)
                if link is not None:
                    link.close()
                    link = None
                self._have_registered(generation)
                continue
            journal_pause_s = _JOURNAL_FROM_S
            with self._changed:
                self._fetching = False
                self._rest_if_busy(tasks)
            if notices.get("code"):
                self.need(DATA_NAME)
            stop, forget = notices.get("stop", []), notices.get("forget", [])
            leave = notices.get("leave", False)
            self._deliver(News([as_assignment(task) for task in tasks], stop, forget, leave=leave))
            tasks = []  # may be gigabytes, and the next call waits
            if notices.get("terminate"):
                self._deliver(News([], [], [], end="terminated"))
                break
            if notices.get("register"):
                self._have_registered(generation)
        if link is not None:
            link.close()

    def _rests_no_more(self) -> bool:
        """Wait until the fetcher has something to do; false when it is to end."""
        with self._changed:
            self._fetching = False
            while not self._fetching:
                if self._stopping and not self._sender_waits:
                    return False
                rest_s: float | None = self._rest_until - time.monotonic()
                if self._sender_waits:
                    self._fetching = self._due()
                else:
                    self._fetching = time.monotonic() >= self._rest_until
                if self._sender_waits and self._has_more():
                    rest_s = max(0.0, self._gathered_at - time.monotonic())
                elif self._sender_waits:
                    rest_s = None
                if not self._fetching:
                    self._changed.wait(rest_s)
            return True

    def _rest_if_busy(self, tasks: list[Any]) -> None:
        """(Locked.) An answer has come; with work for all, the next call is likely the sender's."""
        is_busy = tasks and len(tasks) >= self._room
        self._rest_until = self._look_at = time.monotonic() + _REST_S if is_busy else 0.0

    def _have_registered(self, generation: int) -> None:
        """Have the sender register again, unless it has done so since `generation`; wait for it."""
        with self._changed:
            if self._generation == generation:
                self._registration_due = True
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._stopping or self._generation != generation, _RETRY_TO_S
                )

    def _poll_s(self) -> float:
        period_s = self._period_s
        return self._settings.poll_s if period_s is None else min(period_s, self._settings.poll_s)

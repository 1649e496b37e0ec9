"""Who waits in the task manager, woken one by one and only for what concerns them.

A `threading.Condition` for all would wake a herd for each task; here each waiting thread has its
own. While its slave may take tasks, it stands in the line of each tag that the slave handles. A
task wakes the one that came last, as that slave has in its caches what a task needs; who stands
there for long is idle, and may be about to leave for that. While a slave may take nothing it waits
beside the lines, for orders only, so that tasks do not wake the busy. All methods are called with
the task manager's lock held.

Waking a thread takes longer than a tiny task does. So a call whose connection can be answered from
any thread waits without one (`Parked`): whoever has something for it answers it, when it lets go
of the lock (`Monitor`), so nobody who wakes need think of that.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from masterslave.interrupts import interruptible, uninterrupted

#: How long a thread that takes the lock again and again steps aside. Larger: it does nothing
#: meanwhile. Smaller: a thread that was kept waiting has not woken by then.
_ASIDE_S = 2e-5


@uninterrupted
class Monitor:
    """A lock, and what is still to be done for parked calls when it is let go of.

    Python's locks know no turns: one that is let go of and taken again soon is never there for a
    thread that must wake first. So a thread that must not starve takes it as `first`, and one that
    takes it without a pause between steps aside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire
        self.first = _First(self)
        self._kept_waiting: deque[None] = deque()  # one for each thread; its steps are atomic
        self.woken: list[Parked] = []
        #: Called, with the lock held, for each parked call that was woken; gives what is to be
        #: called without the lock, None for nothing.
        self.decide: Callable[[Parked], Callable[[], None] | None] = lambda parked: None

    def release(self) -> None:
        """Let go of the lock; then answer the parked calls that were woken meanwhile."""
        answers = []
        try:
            while self.woken:  # deciding may wake more
                answer = self.decide(self.woken.pop(0))
                if answer is not None:
                    answers.append(answer)
        finally:
            self._lock.release()
        for answer in answers:
            answer()

    def acquire_first(self) -> None:
        """As `acquire`, of a thread that others step aside for."""
        if not self.acquire(False):
            self._kept_waiting.append(None)
            self.acquire()
            self._kept_waiting.pop()

    def step_aside(self) -> None:
        """Called without the lock, before it is taken again: others may have it first."""
        if self._kept_waiting:
            time.sleep(_ASIDE_S)

    def condition(self) -> threading.Condition:
        """A new condition on this lock."""
        lock: Any = self  # all that it needs of a lock
        return threading.Condition(lock)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        if self.woken:
            self.release()
        else:
            self._lock.release()


class _First:
    """A `Monitor` whose other threads step aside, for ``with``."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> None:
        self._monitor.acquire_first()

    def __exit__(self, *exc: object) -> None:
        self._monitor.__exit__()


class Waiter:
    """One waiting thread."""

    def __init__(self, monitor: Monitor) -> None:
        self.tags: frozenset[str] = frozenset()  # in whose lines it stands
        self._condition = monitor.condition()
        self.called_for: str | None = None  # tag of the task that it was woken for

    def wait(self, timeout_s: float) -> None:
        """Block, the lock released meanwhile, until woken or for `timeout_s` seconds."""
        self._condition.wait(timeout_s)

    def wake(self) -> None:
        """It need not wait any more."""
        self._condition.notify()


class Parked(Waiter):
    """One call that waits without a thread."""

    def __init__(
        self,
        monitor: Monitor,
        process_id: int,
        generation: int | None,
        answer: Callable[[list[Any]], None],
    ) -> None:
        """`answer` sends the answer; called once at most, from any thread, without the lock."""
        self.tags = frozenset()
        self.called_for = None
        self._monitor = monitor
        self.process_id = process_id
        self.generation = generation
        self.answer = answer
        self.is_over = False  # its time is
        self.is_answered = False

    def wake(self) -> None:
        """See `Waiter.wake`: what comes of it is decided when the lock is released."""
        self._monitor.woken.append(self)


class Waiters:
    """Those who wait, by tag, in the order in which they came."""

    def __init__(self) -> None:
        self._by_tag: dict[str, OrderedDict[Waiter, None]] = {}

    def line_up(self, waiter: Waiter, tags: Iterable[str]) -> None:
        """A waiter stands in the lines of these tags from now on, and in no others."""
        self.leave(waiter)
        waiter.tags = frozenset(tags)
        for tag in waiter.tags:
            self._by_tag.setdefault(tag, OrderedDict())[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """A waiter stands in no line any more."""
        for tag in waiter.tags:
            line = self._by_tag.get(tag)
            if line is not None:
                line.pop(waiter, None)
                if not line:
                    del self._by_tag[tag]
        waiter.tags = frozenset()

    def wait(self, waiter: Waiter, timeout_s: float) -> None:
        """Block, the lock released meanwhile, until woken or for `timeout_s` seconds."""
        try:
            waiter.wait(timeout_s)
        finally:
            self.leave(waiter)

    def wake(self, tag: str) -> None:
        """Wake one waiter that handles `tag`, if there is one; it leaves all its lines."""
        line = self._by_tag.get(tag)
        if line:
            waiter = next(reversed(line))
            waiter.called_for = tag
            self.rouse(waiter)

    def rouse(self, waiter: Waiter) -> None:
        """Wake this waiter."""
        self.leave(waiter)
        waiter.wake()

    def __bool__(self) -> bool:
        return bool(self._by_tag)

    def __len__(self) -> int:
        return len({waiter for line in self._by_tag.values() for waiter in line})


class Waiting(Protocol):
    """What a client's call waits with: a lock that is held, or a `listener.Ear`."""

    def acquire(self, *, timeout: float) -> object:
        """Block until `release`, for `timeout` seconds at most, or less."""

    def release(self) -> None:
        """End the wait."""


@interruptible
def _block(waiting: Waiting, timeout_s: float) -> None:
    waiting.acquire(timeout=timeout_s)


class ResultWaiters:
    """Clients' calls that wait for results."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        #: Process id -> what each of its calls that wait waits with. Not conditions: making one and
        #: waiting in it takes 5 us more.
        self.calls: dict[int, list[Waiting]] = {}

    def wait(self, process_id: int, timeout_s: float, waiting: Waiting | None = None) -> None:
        """Block, the lock released meanwhile, until notified or for `timeout_s` seconds.

        `waiting`: what to wait with, a new lock by default. Whoever waits looks again afterwards.
        """
        if waiting is None:
            waiting = threading.Lock()
            waiting.acquire()
        self.calls.setdefault(process_id, []).append(waiting)
        self._monitor.release()
        try:
            _block(waiting, min(timeout_s, threading.TIMEOUT_MAX))
        finally:
            self._monitor.acquire()
            others = self.calls.get(process_id, [])
            if waiting in others:  # not notified
                others.remove(waiting)
                if not others:
                    del self.calls[process_id]

    def notify(self, process_id: int) -> None:
        """There may be something for that client."""
        for waiting in self.calls.pop(process_id, ()):
            waiting.release()

    def notify_all(self) -> None:
        """There may be something for any client, or never again."""
        for process_id in list(self.calls):
            self.notify(process_id)

"""One thread that waits for what comes by the shortcuts of a task manager.

And an `Ear`: a thread that waits for a result listens itself to the shortcut by which that comes,
so one thread is woken for it, not two one after the other.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

from masterslave.board import LOOKED_AT_S
from masterslave.interrupts import interruptible, uninterrupted

#: Longest single wait, as the system counts it in milliseconds.
_LONGEST_S = 1e6


class Listener:
    """Waits for the results of all shortcuts of a task manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: dict[int, Callable[[], None]] = {}
        self._close: set[int] = set()  # descriptors whose boards are looked at often
        self._epoll: select.epoll | None = None
        self._thread: threading.Thread | None = None
        self._wake_out, self._wake_in = -1, -1
        self._stopped = False
        self._bells: list[_Bell] = []  # that nobody uses

    def listen(self, descriptor: int, heard: Callable[[], None]) -> None:
        """Have `heard` called whenever something can be read there. It must not block.

        Raises `OSError`, also when it was stopped.
        """
        with self._lock:
            if self._stopped:
                raise OSError("nobody listens any more")
            epoll = self._epoll or self._begin()
            epoll.register(descriptor, select.EPOLLIN)
            self._heard[descriptor] = heard

    def _begin(self) -> select.epoll:
        thread = threading.Thread(target=self._run, name="shortcuts", daemon=True)
        with contextlib.ExitStack() as undo:
            epoll = select.epoll()
            undo.callback(epoll.close)
            undo.callback(setattr, self, "_epoll", None)
            self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, self._wake_out)
            undo.callback(os.close, self._wake_in)
            epoll.register(self._wake_out, select.EPOLLIN)
            self._epoll = epoll
            try:
                thread.start()
            except RuntimeError as error:  # Python 3.12 and later: the interpreter ends
                raise OSError(str(error)) from error
            undo.pop_all()
        self._thread = thread
        return epoll

    def watch(self, descriptor: int, closely: bool) -> None:
        """Have `heard` called also when nothing can be read there, every few milliseconds."""
        with self._lock:
            if not closely or descriptor not in self._heard:
                self._close.discard(descriptor)
                return
            waits_without_end = not self._close
            self._close.add(descriptor)
            if waits_without_end:  # afterwards, or it might look before there is anything
                os.write(self._wake_in, b"\0")

    def forget(self, descriptor: int) -> None:
        """Listen no more; the descriptor is open still."""
        with self._lock:
            self._close.discard(descriptor)
            if self._heard.pop(descriptor, None) is not None and self._epoll is not None:
                self._epoll.unregister(descriptor)

    def ear(self, descriptor: int, heard: Callable[[], None]) -> Ear:
        """For a thread that waits itself for what comes there. Raises `OSError`."""
        return Ear(self, descriptor, heard, self._bells.pop() if self._bells else _Bell())

    def lend(self, descriptor: int) -> bool:
        """Somebody else listens there until `give_back`; false if there is nothing to hear."""
        with self._lock:
            if descriptor not in self._heard or self._epoll is None:
                return False
            self._epoll.modify(descriptor, 0)
            return True

    def give_back(self, descriptor: int, bell: _Bell) -> None:
        """Nobody else listens there any more."""
        with self._lock:
            if descriptor in self._heard and self._epoll is not None:
                self._epoll.modify(descriptor, select.EPOLLIN)
            if not self._stopped:
                self._bells.append(bell)

    def stop(self) -> None:
        """End the thread. Blocks until it has ended."""
        with self._lock:
            self._stopped = True
            self._bells.clear()
            if self._thread is None:
                return
            os.write(self._wake_in, b"\0")
        self._thread.join()
        with self._lock:
            assert self._epoll is not None
            self._epoll.close()
            self._epoll = self._thread = None
            os.close(self._wake_out)
            os.close(self._wake_in)

    def _run(self) -> None:
        epoll, heard, close = self._epoll, self._heard, self._close
        assert epoll is not None
        looked_at = time.monotonic()
        while not self._stopped:
            events = dict(epoll.poll(LOOKED_AT_S if close else None))
            if events.pop(self._wake_out, 0):
                os.read(self._wake_out, 4096)
            if close and (now := time.monotonic()) - looked_at >= LOOKED_AT_S:
                looked_at = now
                with self._lock:
                    for descriptor in close:
                        events.setdefault(descriptor, 0)
            for descriptor, event in events.items():
                call = heard.get(descriptor)
                if call is not None:
                    call()
                if event & select.EPOLLHUP:
                    self._forget_if_ended(descriptor)

    def _forget_if_ended(self, descriptor: int) -> None:
        """Listen no more where nothing can come: else one would be told of it without end."""
        with self._lock:
            if descriptor not in self._heard or self._epoll is None:
                return
            poll = select.poll()  # it may have been closed, and be another one's now
            poll.register(descriptor, select.POLLIN)
            events = dict(poll.poll(0)).get(descriptor, 0)
            if events & select.POLLHUP and not events & select.POLLIN:
                del self._heard[descriptor]
                self._close.discard(descriptor)
                self._epoll.unregister(descriptor)


class _Bell:
    """A descriptor that can be read when it was rung; open as long as anybody knows of it."""

    def __init__(self) -> None:
        """Raises `OSError`."""
        self._descriptor = -1
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def silence(self) -> None:
        os.eventfd_read(self._descriptor)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


@interruptible
def _poll(poll: select.poll, timeout_s: float) -> dict[int, int]:
    return dict(poll.poll(timeout_s * 1000))


class Ear:
    """Listens to one shortcut in the thread that waits; used like a lock that is held.

    Whoever waits has to look afterwards whether there is what it waits for, and may have waited for
    nothing.
    """

    def __init__(
        self, listener: Listener, descriptor: int, heard: Callable[[], None], bell: _Bell
    ) -> None:
        self._listener = listener
        self._descriptor = descriptor
        self._heard = heard
        self._bell = bell
        self._is_deaf = False  # to the bell
        self._is_over = False

    @uninterrupted
    def acquire(self, timeout: float) -> None:
        """Block until `release` or until something was heard, for `timeout` seconds at most."""
        bell, descriptor = self._bell, self._descriptor
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        try:
            if self._listener.lend(descriptor):
                poll.register(descriptor, select.POLLIN)
            if self._is_over:
                return
            events = _poll(poll, min(timeout, _LONGEST_S))
            self._is_deaf = True  # before it is heard, which ends the wait in most cases
            if bell.fileno() in events:
                bell.silence()
            if descriptor in events:
                self._heard()
        finally:
            self._is_deaf = True
            self._listener.give_back(descriptor, bell)

    def release(self) -> None:
        """End the wait. Called by any thread."""
        self._is_over = True
        if not self._is_deaf:  # else it waits no more
            self._bell.ring()

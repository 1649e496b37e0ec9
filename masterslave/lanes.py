"""A client's connections for calls: each call is made until it is answered, however often that is.

What breaks is connected again, once the client is attached anew (`attached.RemoteManager`, the home
of the lanes). Calls that must not be carried out twice have numbers; the task manager knows the
last one of each lane and its answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from masterslave.errors import ConnectionFailed, JournalError, QueueFull, UnknownProcess
from masterslave.transports.base import Link

log = logging.getLogger(__name__)

#: Pause between two attempts to find the task manager again, growing from the first to the second.
RETRY_FROM_S, RETRY_TO_S = 0.05, 1.0


class Home(Protocol):
    """What a lane needs to know of the client."""

    def connect(self) -> Link:
        """A new connection."""

    def identity(self) -> tuple[int, int]:
        """Process id and registration of the client; blocks until it is attached."""

    def take_note(
        self, generation: int, serial: int, answer: Any, note: Callable[[int, Any], None]
    ) -> bool:
        """Use an answer; false if the client was attached anew since the call was made."""

    def detached(self, generation: int) -> None:
        """The task manager does not know that registration."""

    def raises_when_full(self) -> bool:
        """Whether a request that finds no room is to fail instead of waiting."""

    def wait_for_news(self, generation: int, timeout_s: float) -> None:
        """Wait until the client was attached anew, but not for long."""


class Lane:
    """A connection for calls that are made one after the other, each until it is answered."""

    def __init__(self, home: Home, number: int) -> None:
        self._home = home
        self._number = number
        self._lock = threading.Lock()
        self._serial = 0
        self._pause_s = RETRY_FROM_S
        self._link: Link | None = None

    def call(self, method: str, *args: Any) -> Any:
        """A call that may be carried out twice without harm."""
        with self._lock:
            self._pause_s = RETRY_FROM_S
            while True:
                _, generation = self._home.identity()
                try:
                    return self._connection().call(method, *args)
                except ConnectionFailed as error:
                    self._broke(error, generation)

    def identified(self, method: str, *args: Any) -> Any:
        """The same, with the client's identity before the arguments."""
        with self._lock:
            self._pause_s = RETRY_FROM_S
            while True:
                process_id, generation = self._home.identity()
                try:
                    return self._connection().call(method, process_id, generation, *args)
                except UnknownProcess:
                    self._home.detached(generation)
                except ConnectionFailed as error:
                    self._broke(error, generation)

    def once(self, method: str, note: Callable[[int, Any], None], *args: Any) -> Any:
        """A call that is carried out once, however often it must be made.

        `note`: is called with its number and its answer before anything else can happen. Where the
        task manager has no room for it, it waits and says so, or raises, as the settings say.
        """
        with self._lock:
            self._serial += 1
            numbers = self._number, self._serial
            self._pause_s = RETRY_FROM_S
            full = False
            while True:
                process_id, generation = self._home.identity()
                try:
                    link = self._connection()
                    answer = link.call(method, process_id, generation, *numbers, *args)
                except UnknownProcess:
                    self._home.detached(generation)
                except ConnectionFailed as error:
                    self._broke(error, generation)
                except (QueueFull, JournalError) as error:
                    if self._home.raises_when_full():
                        raise
                    if not full:
                        log.warning("requests wait: %s", error, extra={"action": "requests_wait"})
                    full = True
                    self._pause(generation)
                else:
                    if full:
                        full = False
                        log.warning("requests go on", extra={"action": "requests_go_on"})
                    if self._home.take_note(generation, self._serial, answer, note):
                        return answer

    def close(self) -> None:
        """Close the connection, and so end the call that uses it."""
        link = self._link
        if link is not None:
            link.close()

    def _connection(self) -> Link:
        if self._link is None:
            self._link = self._home.connect()
        return self._link

    def _broke(self, error: ConnectionFailed, generation: int) -> None:
        log.debug("a call's connection broke: %s", error)
        self._drop()
        self._pause(generation)

    def _pause(self, generation: int) -> None:
        self._home.wait_for_news(generation, self._pause_s)
        self._pause_s = min(RETRY_TO_S, 2 * self._pause_s)

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

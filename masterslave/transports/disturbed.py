"""A link that breaks, repeats and keeps silent on purpose, around any other link.

| what        | how it looks from both ends                                                     |
|-------------|---------------------------------------------------------------------------------|
| `cut`       | the connection closes before the call was sent, or when its answer is on the way |
| `duplicate` | the results of a call come in a second time, now or at some later call           |
| `drop`      | a call that hands in nothing and says nothing new is not made                    |

A second time: as a call of an earlier registration, such as one whose answer was never seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

from masterslave.chaos import Chaos
from masterslave.errors import ConnectionFailed
from masterslave.transports.base import Link

log = logging.getLogger(__name__)

#: Longest time that a dropped call which waits for tasks keeps its caller waiting. Larger: a slave
#: hears late of work and of the end. Smaller: it makes up for what was dropped too soon.
_DEAF_S = 0.5

_NO_REGISTRATION = 0  # the first one has the number 1
_ROOM_AS_TOLD = -1


class Disturbed:
    """Connects as another function does, with a `DisturbedLink` around each link."""

    def __init__(self, connect: Callable[[], Link], chaos: Chaos) -> None:
        self._connect = connect
        self._chaos = chaos
        self._numbers = count()
        self._lock = threading.Lock()
        self._unrepeated: list[tuple[int, list[Any]]] = []  # process id, results to come again
        self.begun = False  # whether the slave has come so far that losing its master is mended

    def __call__(self) -> Link:
        """A new link. Raises what the other function raises."""
        with self._lock:
            number = next(self._numbers)
        random = Random(f"{self._chaos.seed} link {number}")  # noqa: S311 - no secret
        return DisturbedLink(self._connect(), self, random)

    @property
    def chaos(self) -> Chaos:
        """What may go wrong."""
        return self._chaos

    def repeat_later(self, process_id: int, completions: list[Any]) -> None:
        """These results are to be handed in again, over whichever link is used next."""
        with self._lock:
            self._unrepeated.append((process_id, completions))

    def to_be_repeated(self) -> list[tuple[int, list[Any]]]:
        """What was put off, once."""
        with self._lock:
            due, self._unrepeated = self._unrepeated, []
        return due


class DisturbedLink:
    """A `Link` with chaos on it."""

    def __init__(self, link: Link, origin: Disturbed, random: Random) -> None:
        self._link = link
        self._origin = origin
        self._chaos = origin.chaos
        self._random = random
        self._room: int | None = None  # as last told over this link

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Link.call`."""
        if method == "exchange":
            self._origin.begun = True
            if self._is_dropped(*args):
                return [[], {}]
            self._repeat()
            self._plan_repetition(*args)
        if not (self._origin.begun and self._random.random() < self._chaos.cut):
            return self._link.call(method, *args, **kwargs)
        when = "before it was made"
        if self._random.random() < 0.5:
            self._link.call(method, *args, **kwargs)
            when = "before its answer came"
        log.debug("chaos: the connection of %s breaks %s", method, when)
        self._link.close()
        raise ConnectionFailed(f"chaos cut the connection of {method} {when}")

    def close(self) -> None:
        """See `Link.close`."""
        self._link.close()

    def _is_dropped(
        self, process_id: int, completions: Any, started: Any, room: int, wait_s: float, *_: Any
    ) -> bool:
        """Whether a call is a mere sign of life, and is not made; blocks as it would."""
        told, self._room = self._room, (self._room if room == _ROOM_AS_TOLD else room)
        if completions or started or self._room != told:
            return False
        if self._random.random() >= self._chaos.drop:
            return False
        time.sleep(min(wait_s, _DEAF_S))
        return True

    def _plan_repetition(self, process_id: int, completions: list[Any], *_: Any) -> None:
        if not completions or self._random.random() >= self._chaos.duplicate:
            return
        self._origin.repeat_later(process_id, completions)
        if self._random.random() < 0.5:  # then the real ones are those that come too late
            self._repeat()

    def _repeat(self) -> None:
        for process_id, completions in self._origin.to_be_repeated():
            self._link.call(
                "exchange", process_id, completions, [], _ROOM_AS_TOLD, 0.0, _NO_REGISTRATION
            )

"""What those may cost who have not proved who they are: so many connections, so much of the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

#: Log lines that strangers can cause in one period. Larger: more for a disk, which has a day of
#: 1,440 periods. Smaller: a misconfigured cluster's refusals are not all to be seen.
LINES = 50

PERIOD_S = 60.0

#: Part of this process's files that may be connections of strangers, and their largest number.
#: Larger: too few files or threads are left for slaves. Smaller: slaves that start all at once turn
#: each other out.
_SHARE = 0.25
_MOST = 1024


def _most_strangers() -> int:
    try:
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError):  # another system
        return _MOST
    return _MOST if files < 0 else max(64, min(int(files * _SHARE), _MOST))


class Strangers:
    """The open connections of those who have not proved themselves. For any threads.

    Without a bound, silent ones would use up the files and threads of this process.
    """

    def __init__(self, end: Callable[[Any], None], most: int | None = None) -> None:
        """`end` is called with the oldest connection when there are too many."""
        self._end = end
        self._most = _most_strangers() if most is None else most
        self._lock = threading.Lock()
        self._connections: dict[Any, None] = {}  # oldest first

    def enter(self, connection: Any) -> None:
        """A connection was opened."""
        with self._lock:
            self._connections[connection] = None
            if len(self._connections) <= self._most:
                return
            oldest = next(iter(self._connections))
            del self._connections[oldest]
        self._end(oldest)

    def leave(self, connection: Any) -> None:
        """A connection has been closed, or proved."""
        with self._lock:
            self._connections.pop(connection, None)


class Throttle:
    """Lets some lines pass in each period and counts the rest. For any threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._passed = 0
        self._held_back = 0

    def admit(self) -> int | None:
        """How many lines were held back before this one; None: it is held back itself."""
        with self._lock:
            now = self._clock()
            if now - self._since >= PERIOD_S:
                self._since, self._passed = now, 0
            if self._passed >= LINES:
                self._held_back += 1
                return None
            self._passed += 1
            before, self._held_back = self._held_back, 0
            return before

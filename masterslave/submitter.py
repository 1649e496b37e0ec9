"""The one thread that calls somebody else's executor, as any method of it may block.

::

    pump --order--> line --> submitter thread --> executor
     ^                              |
     +---- what came of it ---------+

So the pump goes on with time limits, results and the end of the job, whatever a call does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class Submitter:
    """Makes calls one after the other."""

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        """`failed` is called, in the thread, with what a call raises."""
        self._failed = failed
        self._line: deque[tuple[str, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._present: tuple[str, float] | None = None  # the call that is made, since when
        self._thread = threading.Thread(target=self._run, name="pump-submitter", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def order(self, what: str, call: Callable[[], None]) -> None:
        """Have this call made after those that were ordered before. `what`: for `hangs_in`."""
        with self._changed:
            self._line.append((what, call))
            self._changed.notify_all()

    def hangs_in(self, now: float) -> tuple[str, float]:
        """The call that is being made, and for how many seconds; ("", 0) for none."""
        present = self._present
        return ("", 0.0) if present is None else (present[0], now - present[1])

    def stop(self, last: Callable[[], None], wait_s: float) -> str:
        """Drop what is in line, make a last call, and end. Gives the call that does not return.

        Then the thread is left behind, as nobody can end it.
        """
        with self._changed:
            self._line.clear()
            self._line.append(("shutdown", last))
            self._ending = True
            self._changed.notify_all()
        self._thread.join(wait_s)
        return self.hangs_in(time.monotonic())[0] if self._thread.is_alive() else ""

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._line:
                    if self._ending:
                        return
                    self._changed.wait()
                what, call = self._line.popleft()
                self._present = what, time.monotonic()
            try:
                call()
            except Exception as error:
                self._failed(error)
            self._present = None

"""The watchdog: a thread that looks at the clock for a task manager.

It takes silent slaves for dead, puts retries in line when they are due, and says in the log why a
job stands still. The decisions are made by `liveness`, `queue` and `diagnosis`; here is only the
waiting.
"""

from __future__ import annotations

import logging
import threading
import time

from masterslave.diagnosis import explain, situation
from masterslave.manager import TaskManager

log = logging.getLogger(__name__)

#: Seconds between two looks when no slave promised a shorter period. Larger: silence is noticed
#: later. Smaller: the master's process wakes up for nothing.
LOOK_S = 1.0


class Watchdog:
    """Runs what a `TaskManager` has to do by the clock, and the stand-still report."""

    def __init__(self, manager: TaskManager, stall_s: float) -> None:
        self._manager = manager
        self._stall_s = stall_s
        self._stopped = False
        self._wake = threading.Event()  # to look at the clock anew, or to stop
        manager.setAlarm(self._wake.set)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; returns when the thread has ended. A second call does nothing."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        stall = Stall(self._stall_s)
        while self._wait():
            self._manager.checkLiveness()
            reasons = explain(situation(self._manager.status()))
            for reason in stall.look(reasons, time.monotonic()):
                log.warning("%s: %s", self._manager.label, reason, extra={"action": "stand_still"})

    def _wait(self) -> bool:
        """Wait until it is time to look, putting in line what falls due; false: stopped."""
        period_s = self._manager.livenessInterval()
        look_at = time.monotonic() + (LOOK_S if period_s is None else min(LOOK_S, period_s))
        while (wait_s := look_at - time.monotonic()) > 0:
            due_s = self._manager.secondsUntilDue()
            self._wake.wait(wait_s if due_s is None else min(wait_s, due_s))
            self._wake.clear()
            if self._stopped:
                return False
            self._manager.putDueInLine()
        return not self._stopped


class Stall:
    """Decides when a reason for a stand-still has lasted long enough to be told, once."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._since_s: dict[str, float] = {}
        self._told: set[str] = set()

    def look(self, reasons: list[str], now_s: float) -> list[str]:
        """The reasons to tell now, of those that hold at `now_s`; counts in them do not matter."""
        shapes = {"".join(c for c in reason if not c.isdigit()): reason for reason in reasons}
        self._since_s = {shape: self._since_s.get(shape, now_s) for shape in shapes}
        self._told &= set(shapes)
        due = [
            shape
            for shape in shapes
            if shape not in self._told and now_s - self._since_s[shape] >= self._stall_s
        ]
        self._told.update(due)
        return [shapes[shape] for shape in due]

"""The watchdog: a thread that looks at the clock for a task manager.

It takes silent slaves for dead, and says in the log why a job stands still. The decisions are
made by `liveness` and `diagnosis`; here is only the waiting.
"""

from __future__ import annotations

import logging
import threading

from masterslave.diagnosis import explain, situation
from masterslave.manager import TaskManager

log = logging.getLogger(__name__)

#: Seconds between two looks when no slave promised a shorter period. Larger: silence is noticed
#: later. Smaller: the master's process wakes up for nothing.
LOOK_S = 1.0


class Watchdog:
    """Runs `TaskManager.checkLiveness` and the stand-still report until stopped."""

    def __init__(self, manager: TaskManager, stall_s: float) -> None:
        self._manager = manager
        self._stall_s = stall_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; returns when the thread has ended. A second call does nothing."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stall = Stall(self._stall_s)
        elapsed_s = 0.0
        while True:
            period_s = self._manager.livenessInterval()
            wait_s = LOOK_S if period_s is None else min(LOOK_S, period_s)
            if self._stop.wait(wait_s):
                return
            elapsed_s += wait_s
            self._manager.checkLiveness()
            for reason in stall.look(explain(situation(self._manager.status())), elapsed_s):
                log.warning("%s: %s", self._manager.label, reason, extra={"action": "stand_still"})


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

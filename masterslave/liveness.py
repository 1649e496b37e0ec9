"""Who is alive: deadlines from pings. Time is an argument, in seconds of any steady clock."""

from __future__ import annotations

#: A process that has been silent for so many of its own periods is taken for dead. Larger: lost
#: work is noticed later. Smaller: a busy network or a paused machine costs living slaves.
SILENT_PERIODS = 4


class Liveness:
    """Deadlines of the processes that promised to ping."""

    def __init__(self) -> None:
        self._period_s: dict[int, float] = {}
        self._heard_at: dict[int, float] = {}

    def register(self, process: int, period_s: float | None, now: float) -> None:
        """A process promises a sign of life every `period_s` seconds; None: it promises none."""
        if period_s is None:
            self.forget(process)
        else:
            self._period_s[process] = period_s
            self._heard_at[process] = now

    def heard(self, process: int, now: float) -> None:
        """A sign of life; of no consequence for a process that promised none."""
        if process in self._heard_at:
            self._heard_at[process] = now

    def forget(self, process: int) -> None:
        """The process has left."""
        self._period_s.pop(process, None)
        self._heard_at.pop(process, None)

    def silent(self, now: float) -> list[tuple[int, float]]:
        """The processes past their deadline, each with the seconds since it was heard."""
        return [
            (process, now - self._heard_at[process])
            for process, period_s in self._period_s.items()
            if now - self._heard_at[process] > SILENT_PERIODS * period_s
        ]

    def ping_interval_s(self) -> float | None:
        """The shortest promised period; None when no process promised any."""
        return min(self._period_s.values(), default=None)

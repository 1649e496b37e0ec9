"""How much work a slave may hold: learnt from how long the tasks of each tag take.

For tiny tasks the way to the task manager costs more than the work, so a slave holds some
milliseconds of it; a long task is held only when a worker can begin it, so that prefetch never
keeps back what another slave could run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Work in hand per worker. Larger: a slave may sit on tasks while another one is idle at the end
#: of a job. Smaller: workers run dry between two exchanges, which take about a millisecond on one
#: host and several across a network.
HORIZON_S = 0.02

#: Usual duration up to which a slave has some more in reserve for each worker, beside the one that
#: runs and the next one, whatever `HORIZON_S` says. Larger: as there. Smaller: on a busy machine
#: the way to the task manager and back takes as long as one task, and many workers wait for it.
RESERVE_S = 0.015

#: So many of them. Larger: as for `HORIZON_S`. Smaller: there are seldom enough for workers to get
#: their next ones in threes, see `dispatch`.
_IN_RESERVE = 4

#: Tasks in hand per worker, whatever they take. Larger: more is run again when a slave is lost,
#: and messages get long. Smaller: tasks below HORIZON_S / MAX_IN_HAND run dry between exchanges.
MAX_IN_HAND = 2048

#: Tasks in hand per worker beyond which a slave gets no more than a quarter of what there is of a
#: tag; also beyond what `HORIZON_S` allows. Larger: of a few thousand tiny tasks a few slaves of
#: many get all. Smaller: as above.
_FAIR_IN_HAND = 512

#: Bytes of parameters in hand per worker beyond which a slave gets no more than three tasks for
#: each. The way of a megabyte takes about a millisecond, which no duration tells. Larger: one slave
#: gets what others could run. Smaller: workers run dry between two exchanges.
BYTES_IN_HAND = 1 << 24

#: Weight of the newest duration in the average. Larger: one stray task upsets the pace.
#: Smaller: a program whose tasks get longer is noticed late.
WEIGHT = 0.2


class Pace:
    """Running average of task durations, per tag, and what follows from it."""

    def __init__(self) -> None:
        self._mean_s: dict[str, float] = {}

    def record(self, tag: str, duration_s: float) -> None:
        """A task of that tag took so long."""
        mean = self._mean_s.get(tag)
        self._mean_s[tag] = duration_s if mean is None else mean + WEIGHT * (duration_s - mean)

    def estimate_s(self, tag: str) -> float | None:
        """Expected duration of a task of that tag; None when none has finished yet."""
        return self._mean_s.get(tag)

    def record_all(self, tag: str, durations_s: Sequence[float]) -> None:
        """Tasks of that tag took so long, in this order."""
        mean = self._mean_s.get(tag)
        if mean is None:
            mean = durations_s[0]
        for duration_s in durations_s:
            mean += WEIGHT * (duration_s - mean)
        self._mean_s[tag] = mean

    def more_to_hold(self, tag: str, held: int, load_s: float, workers: int) -> int:
        """How many more tasks of that tag a slave may get that holds `held`, `load_s` in all."""
        idle = workers - held
        estimate = self._mean_s.get(tag)
        if estimate is None:
            return max(0, idle)
        by_time = MAX_IN_HAND * workers
        if estimate > 0:
            left_s = HORIZON_S * workers - load_s
            by_time = min(by_time, int(left_s / estimate + 1e-9))
            if estimate <= HORIZON_S and left_s > 0:  # the next one of each worker is here in time
                by_time = max(by_time, 2 * workers - held)
            if estimate <= RESERVE_S and left_s + _IN_RESERVE * RESERVE_S * workers > 0:
                by_time = max(by_time, (2 + _IN_RESERVE) * workers - held)
        return max(0, idle, min(by_time, MAX_IN_HAND * workers - held))

    def fair_to_hold(self, tag: str, workers: int) -> int:
        """How many tasks of that tag a slave may hold if that is more than its part of them."""
        estimate, each = self._mean_s.get(tag) or 0.0, _FAIR_IN_HAND
        if estimate * _FAIR_IN_HAND > HORIZON_S:
            each = max(2, int(HORIZON_S / estimate + 1e-9))
        return each * workers

    def more_bytes_to_hold(self, size: int, held_of_tag: int, held: int, workers: int) -> int:
        """How many more tasks with parameters of so many bytes a slave may get, for their size."""
        by_size = BYTES_IN_HAND * workers // max(1, size) - held_of_tag
        return max(by_size, 3 * workers - held)

    def load_s(self, held: Mapping[str, int]) -> float:
        """How long so many tasks of each tag will take."""
        mean = self._mean_s.get
        # Enough not to put known work behind what nobody knows the length of.
        unknown_s = HORIZON_S + _IN_RESERVE * RESERVE_S
        return sum(count * mean(tag, unknown_s) for tag, count in held.items())

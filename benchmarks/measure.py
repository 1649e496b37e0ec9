"""The measurements that ours and the peers have in common, and how a session reports them.

A session is one process that runs one system. What it measures it prints, one line each:
`MARK`, then a JSON object. Whatever else the system prints is passed over.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

MARK = "@figure "

#: Of each system. Two, as the machines that we have.
WORKERS = 2

#: Seconds of work for all workers together at each point of the efficiency curve.
_CURVE_WORK_S = 0.6
_CURVE_S = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

#: Size of an array in bytes -> how many are sent there and back.
_ARRAYS = {10_000: 400, 100_000: 200, 1_000_000: 100, 10_000_000: 16, 64_000_000: 4}

STATE_BYTES = 100_000_000
STATE_TASKS = 50


class Farm(Protocol):
    """A system with its workers started; functions are those of `work`."""

    name: str
    tasks: int  # how many empty tasks it is given at once: about a second's worth
    trips: int  # how many single tasks are timed
    state_tasks: int  # how many of the `STATE_TASKS` are run; the time is scaled

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        """Run a task for each item and give the results, in any order."""

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        """Run one task and give its result."""

    def share(self, array: Any, count: int) -> Sequence[float]:
        """Run `use(array, i)` for i < count; the array is new to the workers."""


def report(figure: str, value: float, note: str = "") -> None:
    """One line for the process that collects the figures."""
    line = json.dumps({"figure": figure, "value": value, "note": note})
    sys.stdout.write(f"\n{MARK}{line}\n")  # what is before it may not have ended its line
    sys.stdout.flush()


def trouble(figure: str, error: BaseException) -> None:
    """It could not be measured."""
    traceback.print_exception(error)
    reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    sys.stdout.write(f"\n{MARK}{json.dumps({'figure': figure, 'error': reason})}\n")
    sys.stdout.flush()


def run_cases(farm: Farm, cases: Iterable[str], scale: float) -> None:
    """Measure these cases, each whether or not the others fail."""
    warm_up(farm)
    for case in cases:
        try:
            CASES[case](farm, scale)
        except Exception as error:
            trouble(case, error)


def warm_up(farm: Farm) -> None:
    """Every worker has run something when this returns, as far as that can be had."""
    farm.many(nothing_of(), range(20 * WORKERS))


def nothing_of() -> Callable[[int], int]:
    from work import nothing

    return nothing


def empty(farm: Farm, scale: float) -> None:
    count = max(20, int(farm.tasks * scale))
    begin = time.perf_counter()
    got = farm.many(nothing_of(), range(count))
    report("empty", count / (time.perf_counter() - begin))
    _check(sorted(got) == list(range(count)), "other results than expected")


def trip(farm: Farm, scale: float) -> None:
    function = nothing_of()
    times = []
    for i in range(max(10, int(farm.trips * scale))):
        begin = time.perf_counter()
        got = farm.one(function, i)
        times.append(time.perf_counter() - begin)
        _check(got == i, "another result than expected")
    report("trip", statistics.median(times))


def arrays(farm: Farm, scale: float) -> None:
    import numpy as np
    from work import echo

    random = np.random.default_rng(1)
    for size, full in _ARRAYS.items():
        count = max(2, int(full * scale))
        sent = [random.random(size // 8) for _ in range(count)]
        begin = time.perf_counter()
        got = farm.many(echo, sent)
        rate = count * size / (time.perf_counter() - begin) / 1e6
        _check(
            sorted(a[-1] for a in got) == sorted(a[-1] for a in sent),
            "other arrays than were sent",
        )
        writable = all(array.flags.writeable for array in got)
        _check(writable or farm.name != "masterslave", "results are read-only")
        del sent, got
        report(f"arrays/{size}", rate, "" if writable else "results are read-only")


def state(farm: Farm, scale: float) -> None:
    import numpy as np

    array = np.random.default_rng(2).random(STATE_BYTES // 8)
    count = max(2, int(farm.state_tasks * scale))
    begin = time.perf_counter()
    got = farm.share(array, count)
    seconds = time.perf_counter() - begin
    _check(sorted(got) == sorted(array[:count].tolist()), "other results than expected")
    note = "" if count == STATE_TASKS else f"scaled from {count} tasks"
    # What does not grow with the number of tasks is not scaled where the array is shared.
    scaled = seconds if farm.state_tasks == STATE_TASKS else seconds * STATE_TASKS / count
    report("state", scaled, note)


def efficiency(farm: Farm, scale: float) -> None:
    """Share of the ideal throughput at tasks of growing length."""
    from work import spin

    for length_s in _CURVE_S:
        if length_s * 10 > _CURVE_S[-1] and scale < 0.1:
            break  # a second of waiting tells nothing in a trial run
        ideal = int(_CURVE_WORK_S * WORKERS * max(scale, 0.2) / length_s)
        count = max(WORKERS, min(ideal, farm.tasks))
        begin = time.perf_counter()
        farm.many(spin, [length_s] * count)
        seconds = time.perf_counter() - begin
        report(f"efficiency/{length_s:g}", count * length_s / WORKERS / seconds)


CASES: dict[str, Callable[[Farm, float], None]] = {
    "empty": empty,
    "trip": trip,
    "arrays": arrays,
    "state": state,
    "efficiency": efficiency,
}


def _check(good: bool, what: str) -> None:
    if not good:
        raise AssertionError(what)

"""What is measured, and what is to be reached: the table of figures and targets. Pure.

A run is a dictionary, kept as JSON. ``run["figures"][figure][system]`` is a list of values, one
per round; a figure's name may end in the point of a curve, as in ``arrays/1000000``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

OURS = "masterslave"
POOL = "ProcessPoolExecutor"
MPI = "mpi4py.futures"
RAY = "Ray"
DASK = "Dask"
PYTHON = "python -c pass"  # a bare interpreter

Run = dict[str, Any]


class Figure(NamedTuple):
    """One row of the table."""

    name: str
    title: str
    unit: str  # "/s", "s", "MB/s", "B" or "" for a share
    more_is_better: bool = True
    peers_as: str = ""  # the figure of the peers that it stands beside; "": of the same name


FIGURES = (
    Figure("one_by_one", "empty tasks, one by one", "/s", peers_as="empty"),
    Figure("empty", "empty tasks, many at once", "/s"),
    Figure("trip", "one task, request to result", "s", False),
    Figure("arrays/1000000", "1 MB arrays there and back", "MB/s"),
    Figure("arrays/64000000", "64 MB arrays there and back", "MB/s"),
    Figure("state", "100 MB shared by 50 tasks", "s", False),
    Figure("start", "import to first result", "s", False),
    Figure("journal/one_by_one", "with a journal, one by one", "/s"),
    Figure("journal/empty", "with a journal, many at once", "/s"),
    Figure("crowd/rate/1000", "1,000 slaves, empty tasks", "/s"),
    Figure("crowd/single/1000", "1,000 slaves, one task per message", "/s"),
    Figure("crowd/bytes/1000", "1,000 slaves, memory of the manager", "B", False),
    Figure("queue/request/1000000", "1,000,000 requests", "/s"),
    Figure("queue/drain/1000000", "1,000,000 queued tasks drain", "/s"),
    Figure("queue/bytes/1000000", "1,000,000 queued tasks, each takes", "B", False),
    Figure("sleepers", "10 ms tasks on 64 workers, of the ideal", ""),
    Figure("mixed", "1 ms to 2 s mixed, of a greedy makespan", "", False),
)

#: What `run.py --only` takes; the first ones are those in which peers take part.
FARM_CASES = ("empty", "trip", "arrays", "state", "efficiency")
OWN_CASES = ("journal", "queue", "sleepers", "mixed", "crowd")
CASES = ("start", *FARM_CASES, *OWN_CASES)


class Check(NamedTuple):
    """One target: a value and its bound. `value` is None where something was not measured."""

    text: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        assert self.value is not None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if self.met else "missed"


def values_of(run: Run, figure: str, system: str = OURS) -> Sequence[float]:
    found: Sequence[float] = run["figures"].get(figure, {}).get(system, ())
    return found


def median_of(run: Run, figure: str, system: str = OURS) -> float | None:
    values = values_of(run, figure, system)
    return statistics.median(values) if values else None


def ratio(
    run: Run, figure: str, system: str = OURS, *, to: str = "", other: str = OURS
) -> float | None:
    """The median of one figure over that of another one, of another system perhaps."""
    above, below = median_of(run, figure, system), median_of(run, to or figure, other)
    return above / below if above is not None and below else None


def spread_of_ratio(run: Run, figure: str, to: str, other: str) -> tuple[float, float] | None:
    """The smallest and the largest ratio in one and the same round."""
    pairs = zip(values_of(run, figure), values_of(run, to, other), strict=False)
    ratios = [above / below for above, below in pairs if below]
    return (min(ratios), max(ratios)) if ratios else None


def _against(
    text: str, figure: str, other: str, bound: float, at_least: bool, to: str = ""
) -> Callable[[Run], Check]:
    def check(run: Run) -> Check:
        return Check(text, ratio(run, figure, to=to, other=other), bound, at_least)

    return check


def _plain(text: str, figure: str, bound: float, at_least: bool) -> Callable[[Run], Check]:
    def check(run: Run) -> Check:
        return Check(text, median_of(run, figure), bound, at_least)

    return check


#: Figure -> its targets, in the order in which they are shown.
TARGETS: dict[str, tuple[Callable[[Run], Check], ...]] = {
    "one_by_one": (
        _against("5 x process pool", "one_by_one", POOL, 5, True, "empty"),
        _against("20 x Ray", "one_by_one", RAY, 20, True, "empty"),
        _against("50 x Dask", "one_by_one", DASK, 50, True, "empty"),
    ),
    "empty": (_against("8 x process pool", "empty", POOL, 8, True),),
    "trip": (
        _against("1.5 x process pool", "trip", POOL, 1.5, False),
        _against("0.125 x Ray", "trip", RAY, 0.125, False),
    ),
    "arrays/1000000": (_against("1 x mpi4py.futures", "arrays/1000000", MPI, 1, True),),
    "arrays/64000000": (_against("1 x Ray", "arrays/64000000", RAY, 1, True),),
    "state": (
        _against("2 x Ray", "state", RAY, 2, False),
        _against("0.25 x Dask", "state", DASK, 0.25, False),
    ),
    "start": (_against("25 x python -c pass", "start", PYTHON, 25, False, "pass"),),
    "journal/one_by_one": (
        _against("0.6 x without", "journal/one_by_one", OURS, 0.6, True, "one_by_one"),
    ),
    "journal/empty": (_against("0.6 x without", "journal/empty", OURS, 0.6, True, "empty"),),
    "crowd/rate/1000": (_plain("4,000/s", "crowd/rate/1000", 4000, True),),
    "crowd/bytes/1000": (_plain("150 MB", "crowd/bytes/1000", 150e6, False),),
    "queue/request/1000000": (
        _against(
            "0.8 x that of 10,000",
            "queue/request/1000000",
            OURS,
            0.8,
            True,
            "queue/request/10000",
        ),
    ),
    "queue/drain/1000000": (
        _against(
            "0.8 x that of 10,000", "queue/drain/1000000", OURS, 0.8, True, "queue/drain/10000"
        ),
    ),
    "queue/bytes/1000000": (_plain("1 KB", "queue/bytes/1000000", 1024, False),),
    "sleepers": (_plain("95 %", "sleepers", 0.95, True),),
    "mixed": (_plain("105 %", "mixed", 1.05, False),),
}


def checks(run: Run, figure: str) -> list[Check]:
    """The targets of a figure, as this run meets or misses them."""
    return [target(run) for target in TARGETS.get(figure, ())]


def show(value: float | None, unit: str) -> str:
    """A value with its unit, in three figures or so."""
    if value is None:
        return ""
    if unit == "":
        return f"{100 * value:.1f} %"
    if unit == "s":
        if value >= 0.1:
            return f"{value:.2f} s"
        return f"{1e3 * value:.0f} ms" if value >= 0.01 else f"{1e6 * value:,.0f} us"
    if unit == "B":
        return f"{value / 1e6:.0f} MB" if value >= 1e6 else f"{value:.0f} B"
    digits = 0 if value >= 10 else 1
    return f"{value:,.{digits}f}" + (" MB/s" if unit == "MB/s" else "/s")


def systems_of(run: Run) -> list[str]:
    """The peers of a run, in the order of the table."""
    return list(run["systems"])


def table(run: Run, systems: Sequence[str], *, targets: bool = True) -> str:
    """The figures in Markdown: one row each, a column for us and for each of these systems."""
    head = ["", OURS, *systems, *(["target: measured"] if targets else [])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for figure in FIGURES:
        mine = median_of(run, figure.name)
        others = [median_of(run, figure.peers_as or figure.name, system) for system in systems]
        if mine is None and not any(other is not None for other in others):
            continue
        cells = [figure.title, *(show(value, figure.unit) for value in (mine, *others))]
        if targets:
            cells.append("; ".join(_said(check) for check in checks(run, figure.name)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _said(check: Check) -> str:
    kind = "at least" if check.at_least else "at most"
    said = f"{kind} {check.text}"
    if check.value is None:
        return f"{said}: not measured"
    if " x " in check.text:
        said += f": {check.value:.3g}"
    return said if check.met else f"{said}, **missed**"


def describe(run: Run) -> str:
    """When and where a run was made, in one paragraph."""
    rounds = f"{run['rounds']} round{'s' * (run['rounds'] != 1)}"
    quick = ", shortened" if run.get("quick") else ""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    skipped = "".join(f" {name}: {why}." for name, why in run.get("skipped", {}).items())
    return (
        f"{run['date']}, {run['machine']}; Python {run['python']}; medians of {rounds}{quick}, all "
        f"in one run, by turns, with two workers each. {versions}.{skipped}"
    )

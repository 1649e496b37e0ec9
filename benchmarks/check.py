"""Compares a run with the committed figures and says what got slower; exit status 1 then.

    python benchmarks/run.py --output new.json && python benchmarks/check.py new.json

Seconds of two runs, let alone of two machines, cannot be compared. So each of our figures is
divided by the same figure of each peer in the same run, or where no peer has it, by what stands
for the machine's speed; what is compared is how these ratios have changed, and of the peers the
middle one decides. Shares and bytes are compared as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from cases import FIGURES, POOL, PYTHON, Figure, Run, median_of, ratio, systems_of

COMMITTED = Path(__file__).resolve().parent / "results" / "latest.json"

#: Changes by less are not told from noise. Larger: real losses pass. Smaller: so do rumours.
TOLERANCE = 0.25


class Change(NamedTuple):
    """How one of our figures has changed; `gain` above 1 is better than before."""

    figure: Figure
    gain: float
    against: str  # what it was measured by


def compare(new: Run, old: Run) -> tuple[list[Change], list[Figure]]:
    """The change of each figure that both runs have, and the figures that only the old one has."""
    changes, lost = [], []
    for figure in FIGURES:
        if median_of(old, figure.name) is None:
            continue
        if median_of(new, figure.name) is None:
            lost.append(figure)
            continue
        change = _change(figure, new, old)
        if change is not None:
            changes.append(change)
    return changes, lost


def _change(figure: Figure, new: Run, old: Run) -> Change | None:
    if figure.unit in ("", "B"):
        before, now = median_of(old, figure.name), median_of(new, figure.name)
        assert before and now
        return _judged(figure, [now / before], "itself")
    yardsticks = [
        (figure.peers_as or figure.name, system)
        for system in systems_of(new)
        if system in systems_of(old)
    ]
    quotients = _quotients(figure, new, old, yardsticks)
    against = "the peers"
    if not quotients:
        against = "the machine's speed"
        other = (("empty", POOL),) if figure.unit == "/s" else (("pass", PYTHON),)
        quotients = _quotients(figure, new, old, list(other))
    return _judged(figure, quotients, against) if quotients else None


def _quotients(
    figure: Figure, new: Run, old: Run, yardsticks: list[tuple[str, str]]
) -> list[float]:
    """Our figure in units of each yardstick: the new run's over the old one's."""
    quotients = []
    for name, system in yardsticks:
        now = ratio(new, figure.name, to=name, other=system)
        before = ratio(old, figure.name, to=name, other=system)
        if now and before:
            quotients.append(now / before)
    return quotients


def _judged(figure: Figure, quotients: list[float], against: str) -> Change:
    middle = statistics.median(quotients)
    return Change(figure, middle if figure.more_is_better else 1 / middle, against)


def slower(changes: list[Change], tolerance: float = TOLERANCE) -> list[Change]:
    """Those that have lost more than the tolerance."""
    return [change for change in changes if change.gain < 1 / (1 + tolerance)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("new", type=Path, help="JSON file of a run")
    parser.add_argument("old", type=Path, nargs="?", default=COMMITTED, help="committed figures")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="default: %(default)s")
    options = parser.parse_args()
    runs = []
    for path in (options.new, options.old):
        try:
            runs.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
    changes, lost = compare(*runs)
    bad = slower(changes, options.tolerance)
    for change in sorted(changes, key=lambda change: change.gain):
        mark = "SLOWER" if change in bad else ""
        title = change.figure.title
        print(f"{title:40} {change.gain:6.2f} x as good, by {change.against:20} {mark}".rstrip())
    for figure in lost:
        print(f"{figure.title:40} not measured in this run")
    if not changes:
        print("the runs have nothing in common")
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

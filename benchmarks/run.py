"""All benchmarks, ours and the peers', by turns in one run.

    python benchmarks/run.py [--rounds 5] [--quick] [--only CASE] [--peer NAME] [--output FILE]
    python benchmarks/run.py --readme

In each round every system is started, measured and ended, one after the other, so that no two
run at the same time and what else the machine does meets all of them. Prints medians with their
spread and whether the targets are met; writes a JSON file and beside it plots. A peer that is not
installed is skipped and named, one that fails or takes too long is named. `--readme` measures
nothing: it puts the tables of the last run into README.md and benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import peers
import sessions
from cases import (
    CASES,
    DASK,
    FARM_CASES,
    FIGURES,
    MPI,
    OURS,
    OWN_CASES,
    POOL,
    PYTHON,
    RAY,
    Run,
    checks,
    describe,
    show,
    systems_of,
    table,
    values_of,
)

HERE = Path(__file__).resolve().parent
LATEST = HERE / "results" / "latest.json"

BEGIN, END = "<!-- benchmark table -->", "<!-- end of the benchmark table -->"

#: Longest time of a session, in seconds, and of one of ours with a million tasks.
_LIMIT_S, _LONG_LIMIT_S = 120.0, 400.0

_QUICK = 0.05  # of the numbers of tasks
_STARTS, _PASSES = 3, 5  # per round: of ours, and of a bare interpreter


class Session(NamedTuple):
    """One process to be run in each round."""

    system: str
    command: list[str]
    environment: dict[str, str]
    limit_s: float


def plan(cases: list[str], scale: float, names: list[str], number: int) -> list[Session]:
    """The sessions of one round; each round begins with another one."""
    planned: list[Session] = []
    python, size = sys.executable, ["--scale", str(scale)]
    ours = [python, str(HERE / "ours.py")]
    shared = [case for case in FARM_CASES if case in cases]
    if "journal" in cases and not shared:
        planned.append(Session(OURS, [*ours, "farm", "empty", *size], {}, _LIMIT_S))
    if shared:
        planned.append(Session(OURS, [*ours, "farm", *shared, *size], {}, _LIMIT_S))
    if "journal" in cases:  # is compared with the one above
        planned.append(Session(OURS, [*ours, "journal", *size], {}, _LIMIT_S))
    if shared or "start" in cases:
        for name in names:
            command = [*peers.PEERS[name]().command(), str(HERE / "peers.py"), name]
            command += [*shared, *size]
            planned.append(Session(name, command, dict(peers.ENVIRONMENT), _LIMIT_S))
    if "start" in cases:
        planned += [Session(OURS, [*ours, "start"], {}, _LIMIT_S)] * _STARTS
    for case in OWN_CASES:
        if case in cases and case != "journal":
            limit_s = _LONG_LIMIT_S if case == "queue" else _LIMIT_S
            command = [*ours, case, *size, "--seed", str(number)]
            planned.append(Session(OURS, command, {}, limit_s))
    turn = number % len(planned) if planned else 0
    return planned[turn:] + planned[:turn]


def measure(options: argparse.Namespace) -> Run:
    """Run all rounds."""
    sessions.adopt_orphans()
    cases = options.only or list(CASES)
    scale = _QUICK if options.quick else 1.0
    skipped = {name: why for name, peer in peers.PEERS.items() if (why := peers.missing(peer))}
    wanted = options.peer or list(peers.PEERS)
    skipped = {name: why for name, why in skipped.items() if name in wanted}
    names = [name for name in peers.PEERS if name in wanted and name not in skipped]
    for name, why in skipped.items():
        print(f"{name} is skipped: {why}", flush=True)
    figures: dict[str, dict[str, list[float]]] = {}
    notes: dict[str, dict[str, str]] = {}
    troubles: dict[str, str] = {}
    begin = time.monotonic()
    for number in range(options.rounds):
        found: dict[tuple[str, str], list[float]] = {}
        for session in plan(cases, scale, names, number):
            started = time.monotonic()
            outcome = sessions.run(
                session.command, session.environment, session.limit_s, options.log
            )
            if options.verbose:
                what = " ".join(map(os.path.basename, session.command[1:]))
                left = f", {outcome.left_over} processes left over" * bool(outcome.left_over)
                print(f"  {time.monotonic() - started:6.1f} s{left}: {what}", flush=True)
            for figure, value, note in outcome.figures:
                found.setdefault((figure, session.system), []).append(value)
                if note:
                    notes.setdefault(figure, {})[session.system] = note
            for error in outcome.errors:
                troubles.setdefault(session.system, error)
                print(f"  {session.system}: {error}", flush=True)
        if "start" in cases:
            found["pass", PYTHON] = [_pass_s() for _ in range(_PASSES)]
        for (figure, system), values in found.items():
            figures.setdefault(figure, {}).setdefault(system, []).append(statistics.median(values))
        minutes = (time.monotonic() - begin) / 60
        print(f"round {number + 1} of {options.rounds}: {minutes:.1f} minutes", flush=True)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {"masterslave": _version(), **peers.versions()},
        "rounds": options.rounds,
        "quick": options.quick,
        "systems": names,
        "skipped": skipped,
        "troubles": troubles,
        "notes": notes,
        "figures": figures,
    }


def _pass_s() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begin


def _version() -> str:
    from masterslave import __version__

    return __version__


def machine() -> str:
    """This machine in words."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GB, {platform.system()}"


# --- what is said of a run ------------------------------------------------------------------


def print_report(run: Run) -> None:
    """All figures with their spread, then the targets."""
    print(f"\n{describe(run)}\n")
    for figure in FIGURES:
        name = figure.peers_as or figure.name
        rows = [(OURS, figure.name), *((system, name) for system in systems_of(run))]
        if figure.name == "start":
            rows.append((PYTHON, "pass"))
        rows = [(system, of) for system, of in rows if values_of(run, of, system)]
        if not values_of(run, figure.name) and len(rows) < 2:
            continue
        print(figure.title)
        for system, of in rows:
            values = values_of(run, of, system)
            median = show(statistics.median(values), figure.unit)
            low, high = show(min(values), figure.unit), show(max(values), figure.unit)
            note = run["notes"].get(of, {}).get(system, "")
            print(f"    {system:22} {median:>12}  ({low} to {high})  {note}".rstrip())
        for check in checks(run, figure.name):
            kind = "at least" if check.at_least else "at most"
            value = "" if check.value is None else f", measured {check.value:.3g}"
            print(f"    target {check.verdict}: {kind} {check.text}{value}")
    for system, why in run["skipped"].items():
        print(f"{system} was skipped: {why}")
    for system, why in run["troubles"].items():
        print(f"{system} had trouble: {why}")
    verdicts = [check.verdict for figure in FIGURES for check in checks(run, figure.name)]
    counts = {verdict: verdicts.count(verdict) for verdict in ("met", "missed", "not measured")}
    print("\ntargets: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def put_table(text: str, content: str) -> str:
    """A document with new content between its marks. Raises `ValueError` when it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END} in it")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def fill_readmes(run: Run, root: Path) -> None:
    """Put the tables of a run into the two documents."""
    here = [name for name in (POOL, MPI, RAY, DASK) if name in systems_of(run)]
    for path, names in (
        (root / "README.md", here),
        (root / "benchmarks" / "README.md", systems_of(run)),
    ):
        content = (
            f"{textwrap.fill(describe(run), 127)}\n\n{table(run, names, targets=names is here)}"
        )
        path.write_text(put_table(path.read_text(encoding="utf-8"), content), encoding="utf-8")
        print(f"{path.relative_to(root)} has the figures of {run['date']}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", action="append", choices=CASES, help="may be given repeatedly")
    parser.add_argument(
        "--peer", action="append", choices=list(peers.PEERS), metavar="NAME",
        help="these systems only beside ours, each named as benchmarks/peers.py does",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few tasks: does everything run?")
    parser.add_argument("--output", type=Path, default=LATEST, help="default: %(default)s")
    parser.add_argument("--log", type=Path, help="file for all that the systems print")
    parser.add_argument("-v", "--verbose", action="store_true", help="name each session")
    parser.add_argument("--no-plots", action="store_true")
    parser.add_argument("--readme", action="store_true", help="only fill in the READMEs")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.readme:
        fill_readmes(json.loads(options.output.read_text(encoding="utf-8")), HERE.parent)
        return
    run = measure(options)
    print_report(run)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    print(f"\n{options.output}")
    if options.no_plots or importlib.util.find_spec("matplotlib") is None:
        return
    import plots

    for path in plots.draw(run, options.output.parent):
        print(path)


if __name__ == "__main__":
    main()

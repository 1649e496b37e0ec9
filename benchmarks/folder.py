"""A job in a shared folder: rate, pick-up time, operations on files, and slaves that are killed.

    python benchmarks/folder.py [--seed N] [--quick] [--only CASE]

Each case is a job of its own, in a process of its own, first on a local disk and then below a
`bindfs` mount of it, which stands in for a network file system: each operation goes through FUSE,
and what it says of itself is kept by the kernel for a second. Operations are those that `files.py`
counts, divided by the number of tasks: of the master from the first request to the last result, of
slaves from their start to their end. A slave that has nothing to do and finds nothing polls; those
operations are told beside the others. What SQLite does on the journal are system calls on its
files, counted by `strace` in a smaller job.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sessions import environment

from masterslave import MasterProcess, initializeMasterProcess

CASES = (
    "rate", "pickup", "tiny", "0.1 s", "1 s", "1 s, one worker", "3 s, one worker",
    "files of its own", "journal", "kill", "crowd",
)  # fmt: skip

#: Figure -> what it is to be: at most, or where it is a rate, at least.
TARGETS = {
    "rate": (500.0, "at least"), "pickup": (0.1, "at most"),
    "once it is there, worst": (0.1, "at most"), "tiny": (6.0, "at most"),
    "0.1 s": (6.0, "at most"), "1 s": (6.0, "at most"), "1 s, one worker": (6.0, "at most"),
    "3 s, one worker": (6.0, "at most"),
    "lost": (0, "at most"), "doubled": (0, "at most"),
}  # fmt: skip

_STORY = re.compile(r"operations on files of the folder: (.*); of them (in vain \d+)")
_LEAVE_S = 30.0  # for all slaves together, when the job is over
_LONG_S = 600.0  # no case takes so long


# --- the slaves' side -----------------------------------------------------------------------


def do_nothing(x: int) -> int:
    return x


def do_when(x: int) -> float:
    """The time at which it began; master and slaves are on one machine here."""
    return time.time()


def do_sleep(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x


# --- one job --------------------------------------------------------------------------------


class Crew:
    """Slaves of the folder, whose logs are kept beside it."""

    def __init__(self, folder: str, logs: Path) -> None:
        self._folder, self._logs = folder, logs
        self.slaves: list[subprocess.Popen[bytes]] = []
        self._started = 0

    def start(self, count: int, workers: int) -> None:
        for _ in range(count):
            self._started += 1
            command = [sys.executable, "-m", "masterslave", "slave", "--folder", self._folder]
            with (self._logs / f"slave-{self._started}").open("wb") as log:
                self.slaves.append(
                    subprocess.Popen(
                        [*command, "-w", "-v", "-n", str(workers)], stdout=log, stderr=log
                    )
                )

    def finish(self) -> None:
        deadline = time.monotonic() + _LEAVE_S
        for slave in self.slaves:
            try:
                slave.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:  # it came too late, and waits for a master
                slave.kill()
                slave.wait()

    def operations(self) -> Counter[str]:
        """What all slaves that ended in order say that they have done."""
        return sum(map(operations_in, self._logs.glob("slave-*")), Counter())


def operations_in(log: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for kinds, in_vain in _STORY.findall(log.read_text(errors="replace")):
        for part in [*kinds.split(", "), in_vain]:
            kind, count = part.rsplit(" ", 1)
            counts[kind] += int(count)
    return counts


@contextlib.contextmanager
def job(folder: str, logs: Path, slaves: int, workers: int) -> Iterator[tuple[MasterProcess, Crew]]:
    """A master in this process and its slaves, all of which have their workers."""
    master = initializeMasterProcess("folder", slave_module="folder", folder=folder)
    crew = Crew(folder, logs)
    try:
        crew.start(slaves, workers)
        while sum(s["tags"] is not None for s in master.task_manager.status()["slaves"]) < slaves:
            time.sleep(0.05)
        yield master, crew
    finally:
        master.shutdown()
        crew.finish()


def rate(folder: str, logs: Path, chance: random.Random, quick: bool) -> dict[str, Any]:
    count = 2000 if quick else 20_000
    with job(folder, logs, 2, 1) as (master, _):
        master.requestTasks("nothing", ((x,) for x in range(200)))
        list(master.results(timeout=_LONG_S))
        begin = time.perf_counter()
        master.requestTasks("nothing", ((x,) for x in range(count)))
        got = [result for _, _, result in master.results(timeout=_LONG_S)]
        seconds = time.perf_counter() - begin
    check(sorted(got) == list(range(count)))
    return {"rate": count / seconds}


def pickup(folder: str, logs: Path, chance: random.Random, quick: bool) -> dict[str, Any]:
    """From before the request of a single task to its beginning, after pauses of random length.

    And how much of it is after the input was there, as the disk decides when that is.
    """
    times, by_slaves, there = [], [], []

    def note(kind: str, path: str) -> None:
        if kind == "rename" and path.endswith(".in"):
            there.append(time.time())

    with job(folder, logs, 2, 1) as (master, _):
        master._service._place.files.before = note  # type: ignore[union-attr]
        for number in range(10 if quick else 100):
            time.sleep(chance.uniform(0.3, 2.0))
            begin = time.time()
            master.requestTask("when", number)
            began = master.retrieveResult(timeout=_LONG_S)[2]
            times.append(began - begin)
            by_slaves.append(began - there[-1])
        check(len(there) == len(times))
    times.sort()
    by_slaves.sort()
    return {
        "pickup": statistics.median(times),
        "pickup, 95 of 100": times[int(0.95 * len(times))],
        "pickup, worst": times[-1],
        "once it is there": statistics.median(by_slaves),
        "once it is there, 95 of 100": by_slaves[int(0.95 * len(by_slaves))],
        "once it is there, worst": by_slaves[-1],
    }


class Counts(NamedTuple):
    """Operations of a job."""

    master: int  # from the first request to the last result
    at_work: int  # of slaves, from their start to their end
    in_vain: int  # of slaves with nothing to do


def counted_job(
    folder: str, logs: Path, slaves: int, workers: int, tasks: list[tuple[Any, ...]], tag: str,
    own_files: bool = False,
) -> Counts:  # fmt: skip
    """One job. `own_files`: no two tasks share a file, as each has another priority."""
    logs.mkdir(exist_ok=True)
    with job(folder, logs, slaves, workers) as (master, crew):
        counts = master._service._place.files.counts  # type: ignore[union-attr]
        before = counts.total()
        if own_files:
            for number, task in enumerate(tasks):
                master.requestTask(tag, *task, priority=-number)
        else:
            master.requestTasks(tag, tasks)
        got = [result for _, _, result in master.results(timeout=_LONG_S)]
        ours = counts.total() - before
    check(sorted(got) == list(range(len(tasks))))
    theirs = crew.operations()
    check(theirs["write"] > 0)
    in_vain = theirs.pop("in vain")
    return Counts(ours, theirs.total() - in_vain, in_vain)


def counted(tag: str, count: int, workers: int, *more: float) -> Callable[..., dict[str, Any]]:
    """Operations per task of jobs of `count` tasks on two slaves."""

    def case(folder: str, logs: Path, chance: random.Random, quick: bool) -> dict[str, Any]:
        tasks = max(20, count // 10) if quick else count
        counts = counted_job(folder, logs, 2, workers, [(x, *more) for x in range(tasks)], tag)
        return per_task(counts, tasks)

    return case


def steady(
    tag: str, few: int, many: int, *more: float, own_files: bool = False
) -> Callable[..., dict[str, Any]]:
    """Operations per task on eight slaves of one worker, beginning and end of the job left out.

    That is what a job of `many` tasks costs more than one of `few`, for each task it has more.
    """

    def case(folder: str, logs: Path, chance: random.Random, quick: bool) -> dict[str, Any]:
        jobs = []
        for tasks in (few // 5, many // 5) if quick else (few, many):
            where = f"{folder}{tasks}", logs / str(tasks)
            job = counted_job(*where, 8, 1, [(x, *more) for x in range(tasks)], tag, own_files)
            jobs.append((tasks, job))
        (fewer, small), (tasks, large) = jobs
        grown = Counts(*(b - a for a, b in zip(small, large, strict=True)))
        figures = per_task(grown, tasks - fewer)
        del figures["of idle slaves"]  # they poll before the first task and after the last one
        figures["with beginning and end"] = (large.master + large.at_work) / tasks
        return figures

    return case


def per_task(counts: Counts, tasks: int) -> dict[str, Any]:
    return {
        "operations": (counts.master + counts.at_work) / tasks,
        "of the master": counts.master / tasks,
        "of slaves at work": counts.at_work / tasks,
        "of idle slaves": counts.in_vain / tasks,
    }


def killed(
    slaves: int, count: int, kills: int, mean_s: float
) -> Callable[[str, Path, random.Random, bool], dict[str, Any]]:
    """Tasks of random length, `mean_s` seconds on average, while slaves are killed at random."""

    def case(folder: str, logs: Path, chance: random.Random, quick: bool) -> dict[str, Any]:
        crowd, tasks, often = (6, count // 12, 5) if quick else (slaves, count, kills)
        every = tasks // often
        got: Counter[int] = Counter()
        with job(folder, logs, crowd, 1) as (master, crew):
            lengths = ((x, chance.expovariate(1 / mean_s) if mean_s else 0.0) for x in range(tasks))
            master.requestTasks("sleep", lengths, crash_limit=1000)
            for number in range(tasks):
                if number % every == every // 2:
                    victim = crew.slaves.pop(chance.randrange(len(crew.slaves)))
                    victim.kill()
                    victim.wait()
                    crew.start(1, 1)
                got[master.retrieveResult(timeout=_LONG_S)[2]] += 1
            more = sum(master.task_manager.numberOfTasks()[2].values())  # that nobody awaits
        return {
            "slaves": crowd,
            "tasks": tasks,
            "kills": often,
            "lost": tasks - len(got),
            "doubled": sum(got.values()) - len(got) + more,
            "refused files": len(os.listdir(Path(folder, "refused"))),
        }

    return case


JOBS: dict[str, Callable[[str, Path, random.Random, bool], dict[str, Any]]] = {
    "rate": rate,
    "pickup": pickup,
    "tiny": counted("nothing", 20_000, 1),
    "0.1 s": counted("sleep", 1000, 4, 0.1),
    "1 s": counted("sleep", 320, 4, 1.0),
    "1 s, one worker": steady("sleep", 240, 480, 1.0),
    "3 s, one worker": steady("sleep", 160, 320, 3.0),
    "files of its own": steady("sleep", 160, 320, 1.0, own_files=True),
    "journal": counted("nothing", 5000, 1),
    "kill": killed(50, 5000, 40, 0.05),
    "crowd": killed(50, 100_000, 100, 0.0),
}


def check(good: bool) -> None:
    if not good:
        raise AssertionError("other results than expected")


# --- all of them ----------------------------------------------------------------------------


def run_case(case: str, parent: Path, seed: int, quick: bool) -> dict[str, Any]:
    """One case in a process of its own; its folder is made in `parent`."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        logs = Path(home, "logs")
        logs.mkdir()
        folder = parent / re.sub(r"\W", "", case)
        command = [sys.executable, __file__, "--seed", str(seed), "--job", case]
        command += ["--folder", str(folder), "--logs", str(logs), *(["--quick"] if quick else [])]
        trace = Path(home, "trace")
        if case == "journal":
            files = [f"{folder}/journal{end}" for end in ("", "-wal", "-shm", "-journal")]
            paths = [word for file in files for word in ("-P", file)]
            command = ["strace", "-f", "-c", "-o", str(trace), *paths, *command]
        done = subprocess.run(
            command, env=environment(Path(home), {}), capture_output=True, text=True, check=False,
            timeout=2 * _LONG_S,
        )  # fmt: skip
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            return {"failed": lines[-1]}
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if case == "journal":
            calls = calls_in(trace.read_text())
            tasks = 500 if quick else 5000
            return {"calls of SQLite": calls.total() / tasks}
        return figures


def calls_in(summary: str) -> Counter[str]:
    """System call -> how often, of the table that ``strace -c`` prints."""
    rows = (line.split() for line in summary.splitlines())
    return Counter(
        {row[-1]: int(row[3]) for row in rows if len(row) in (5, 6) and row[3].isdigit()}
    ) - Counter({"total": 1 << 62})


@contextlib.contextmanager
def mounted(source: Path, target: Path) -> Iterator[str]:
    """`source` at `target` through FUSE; gives why that cannot be, or an empty text."""
    if shutil.which("bindfs") is None:
        yield "there is no bindfs here"
        return
    for path in (source, target):
        path.mkdir()
    done = subprocess.run(
        ["bindfs", str(source), str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        yield f"bindfs: {done.stderr.strip() or done.returncode}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", str(target)], check=True)


def verdict(name: str, value: float) -> str:
    if name not in TARGETS:
        return ""
    target, how = TARGETS[name]
    met = value >= target if how == "at least" else value <= target
    return f"{how} {target:g}: {'met' if met else 'MISSED'}"


def row(place: str, case: str, figures: dict[str, Any]) -> Iterator[str]:
    for name, value in figures.items():
        figure = case if name == "operations" else name
        text = (
            value if isinstance(value, str) else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
        )
        what = name if case == name or name.startswith(case) else f"{case}: {name}"
        wanted = "" if isinstance(value, str) else verdict(figure, value)
        yield f"| {place} | {what} | {text} | {wanted} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="does everything run?")
    parser.add_argument("--only", action="append", choices=CASES, metavar="CASE")
    parser.add_argument("--directory", help="in which the folders are made (default: of TMPDIR)")
    parser.add_argument("--job", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        chance = random.Random(options.seed)
        figures = JOBS[options.job](options.folder, options.logs, chance, options.quick)
        print(json.dumps(figures))
        return
    print("| where | what | figure | target |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        top = Path(directory)
        with mounted(top / "source", top / "mount") as why_not:
            for place, parent in (("local disk", top / "local"), ("bindfs", top / "mount")):
                if place == "bindfs" and why_not:
                    print(f"| bindfs | skipped: {why_not} | | |", flush=True)
                    continue
                for case in options.only or CASES:
                    if case == "journal" and shutil.which("strace") is None:
                        print(f"| {place} | journal: not counted, no strace | | |", flush=True)
                        continue
                    figures = run_case(case, parent, options.seed, options.quick)
                    print(*row(place, case, figures), sep="\n", flush=True)


if __name__ == "__main__":
    main()

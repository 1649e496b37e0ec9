"""Where the time of one task goes, request to result: hop by hop through all processes.

    python benchmarks/profile_trip.py [--trips 1000]

A job with two slaves; empty tasks are requested one at a time. The table has the way of each, as
times between places in the code of the client, of the worker, and of the task manager again, all on
the clock that processes share. Stamps take about a microsecond each. Where a row crosses from one
process to another, it contains the sending, the waking of the other process, and the receiving.
Last comes the same trip with a `ProcessPoolExecutor`, without stamps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from masterslave import MasterProcess, SlaveProcess, runJob

HERE = Path(__file__).resolve().parent
LABEL = "benchmark-profile-trip"

sys.path.append(str(HERE / "stamps"))
import sitecustomize as stamps  # noqa: E402

if not hasattr(stamps, "PLACES"):  # Python has one of its own: take ours by its path
    import importlib.util

    spec = importlib.util.spec_from_file_location("stamps", HERE / "stamps" / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    stamps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stamps)

#: The way of a task: method and whether its end counts, and what the time since the last one was
#: spent on.
WAY: tuple[tuple[str, bool, str], ...] = (
    ("requestTask", False, ""),
    ("ManagerShortcut.send", False, "client: pickled, in the queue, handed out, packed"),
    ("WorkerShortcut.receive", True, "to the worker: sent; it wakes; unpacked"),
    ("WorkerShortcut.send", False, "worker: unpickled, run, pickled"),
    ("hear", False, "to the client: packed, sent; its thread wakes"),
    ("hear", True, "manager, in that thread: unpacked, checked, booked"),
    ("getResults", True, "client: looks for results, finds it"),
    ("retrieveResult", True, "client: unpickled"),
)


class Slave(SlaveProcess):
    def do_nothing(self, x: int) -> int:
        return x


class Master(MasterProcess):
    def run(self) -> None:
        self.requestTasks("nothing", ((i,) for i in range(500)))
        for _ in self.results():
            pass
        for i in range(arguments().trips):
            self.requestTask("nothing", i)
            assert self.retrieveResult()[2] == i


def places() -> list[int]:
    """The numbers of the places on the way."""
    found = []
    for name, at_end, _ in WAY:
        (index,) = [
            i for i, (_, *names) in enumerate(stamps.PLACES) if ".".join(names).endswith(name)
        ]
        found.append(2 * index + at_end)
    return found


def trips(events: Iterable[tuple[int, int]], way: Sequence[int]) -> list[list[int]]:
    """Of stamps in order, the times at which each task came by the places; those that lack none."""
    found: list[list[int]] = []
    current: list[int] = []
    for at, place in events:
        if place == way[0]:
            current = [at]
        elif current and place == way[len(current)]:
            current.append(at)
            if len(current) == len(way):
                found.append(current)
                current = []
    return found


def nothing(x: int) -> int:
    return x


def pool_us(count: int) -> float:
    """The median of so many trips through a process pool with two workers."""
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(nothing, range(200)))
        times = []
        for i in range(count):
            begin = time.perf_counter()
            assert pool.submit(nothing, i).result() == i
            times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times)


def report(found: Sequence[Sequence[int]], pool: float) -> None:
    print("| one task, request to result | us, median | us, quarter |\n|---|---|---|")
    for index, (_, _, title) in enumerate(WAY[1:], start=1):
        print(f"| {title} | {' | '.join(_two([t[index] - t[index - 1] for t in found]))} |")
    print(f"| all | {' | '.join(_two([t[-1] - t[0] for t in found]))} |")
    print(f"| a process pool, beside it | {pool:.0f} | |")


def _two(times_ns: Sequence[int]) -> tuple[str, str]:
    ordered = sorted(times_ns)
    return f"{statistics.median(ordered) / 1e3:.0f}", f"{ordered[len(ordered) // 4] / 1e3:.0f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trips", type=int, default=1000, help="default: %(default)s")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(HERE / "stamps"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, stamps.STAMPS: folder, "PYTHONPATH": path}
        subprocess.run([sys.executable, *sys.argv], env=environment, check=True)
        files = sorted(Path(folder).iterdir())
        events = sorted(stamp for file in files for stamp in stamps.read(file))
    found = trips(events, places())
    found = found[len(found) // 20 :]  # the first ones wake everything up
    if not found:
        sys.exit("no task came by all places: the library has changed")
    report(found, pool_us(options.trips))


if __name__ == "__main__" and stamps.STAMPS not in os.environ:
    main()
elif __name__ != "profile_trip":  # in a process of the job
    runJob(LABEL, Master, Slave, launch_slaves=2)

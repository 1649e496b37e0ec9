"""Our own sessions, as `run.py` starts them: a job like any other, two slaves on this machine.

    python benchmarks/ours.py MODE [--scale X] [--seed N] [CASE...]

| MODE       | measures                                                                           |
|------------|------------------------------------------------------------------------------------|
| `start`    | from before the import of the library to the first result                          |
| `farm`     | the cases that the peers are given as well, and tasks requested one by one         |
| `journal`  | empty tasks with a journal; run by turns with `farm`                               |
| `queue`    | long queues: requests while no worker is free, memory, then how fast they drain    |
| `sleepers` | tasks of 10 ms on 64 workers that sleep: share of the ideal throughput             |
| `mixed`    | tasks from 1 ms to 2 s: makespan, as a multiple of a greedy scheduler's            |
| `crowd`    | up to 1,000 connected slaves, simulated by `crowd.py`; memory of the manager       |
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before the library is imported

import argparse  # noqa: E402
import contextlib  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from masterslave import GlobalStateValue, MasterProcess, SlaveProcess, runJob  # noqa: E402

LABEL = "benchmark"

#: Slaves and workers of each, by mode; otherwise two slaves with one each.
_SLAVES = {"sleepers": (2, 32), "mixed": (2, 4), "crowd": (0, 0)}

_QUEUES = (1_000, 10_000, 100_000, 1_000_000)
_CROWDS = (1, 10, 100, 1_000)
_CROWD_S = 1.5  # about so long each of its measurements takes
_SLEEP_S = 0.01
_MIXED_TASKS = 1600
_SHORTEST_S, _LONGEST_S, _TAIL = 0.001, 2.0, 0.7  # of the mixed tasks; exponent of their tail


class Slave(SlaveProcess):
    def do_nothing(self, x: int) -> int:
        return x

    def do_echo(self, array: Any) -> Any:
        return array

    def do_use(self, array: Any, index: int) -> float:
        return float(array[index])

    def do_spin(self, seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    def do_sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def do_wait(self, file: str) -> int:
        """Say so in a file of one's own, and be busy until there is such a file."""
        Path(f"{file}-{os.getpid()}").touch()
        while not os.path.exists(file):
            time.sleep(0.001)
        return os.getpid()


class Master(MasterProcess):
    """Also a `measure.Farm`."""

    name = "masterslave"
    tasks = 40_000
    trips = 300
    state_tasks = 50

    def run(self) -> None:
        options = arguments()
        slaves, workers = _SLAVES.get(options.mode, (2, 1))
        if slaves:
            self.launchSlaveJobs(slaves, workers=workers)
        if options.mode == "start":
            self.first_result()
            return
        import measure  # imports what a program would not, so the time of the first goes without

        if slaves:
            self.wait_for_workers(slaves * workers)
        self.report = measure.report
        try:
            getattr(self, f"measure_{options.mode}")(options)
        except Exception as error:
            measure.trouble(options.mode, error)
            raise SystemExit(1) from None

    def first_result(self) -> None:
        self.requestTask("nothing", 0)
        assert self.retrieveResult()[2] == 0
        seconds = time.perf_counter() - STARTED
        import measure

        measure.report("start", seconds)

    def wait_for_workers(self, count: int) -> None:
        """All workers have run something when this returns."""
        seen: set[int] = set()
        while len(seen) < count:
            self.requestTasks("sleep", [(_SLEEP_S,)] * (2 * count))
            seen.update(result for _, _, result in self.results("sleep"))
        self.requestTasks("nothing", ((i,) for i in range(1000)))
        for _ in self.results("nothing"):
            pass

    # --- a farm as others -------------------------------------------------------------------

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        self.requestTasks(function.__name__, ((item,) for item in items))
        return [result for _, _, result in self.results()]

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        self.requestTask(function.__name__, item)
        return self.retrieveResult(function.__name__)[2]

    def share(self, array: Any, count: int) -> Sequence[float]:
        state = self.setGlobalState(array=array)
        value = GlobalStateValue(state, "array")
        self.requestTasks("use", ((value, i) for i in range(count)))
        got = [result for _, _, result in self.results()]
        self.deleteGlobalState(state)
        return got

    def one_by_one(self, count: int) -> float:
        """Empty tasks per second by `requestTask` and `retrieveResult`."""
        begin = time.perf_counter()
        for i in range(count):
            self.requestTask("nothing", i)
        got = {self.retrieveResult("nothing")[2] for _ in range(count)}
        seconds = time.perf_counter() - begin
        assert got == set(range(count)), "other results than expected"
        return count / seconds

    def batched(self, count: int) -> float:
        """Empty tasks per second by `requestTasks` and `results`."""
        begin = time.perf_counter()
        self.requestTasks("nothing", ((i,) for i in range(count)))
        got = {result for _, _, result in self.results()}
        seconds = time.perf_counter() - begin
        assert got == set(range(count)), "other results than expected"
        return count / seconds

    # --- modes ------------------------------------------------------------------------------

    def measure_farm(self, options: argparse.Namespace) -> None:
        import measure

        if "empty" in options.cases:
            self.report("one_by_one", self.one_by_one(self.scaled(options)))
        measure.run_cases(self, options.cases, options.scale)

    def measure_journal(self, options: argparse.Namespace) -> None:
        count = self.scaled(options)
        self.report("journal/one_by_one", self.one_by_one(count))
        self.report("journal/empty", self.batched(count))

    def scaled(self, options: argparse.Namespace) -> int:
        return max(1000, int(self.tasks * options.scale))

    def measure_queue(self, options: argparse.Namespace) -> None:
        for length in _QUEUES:
            if length > 1_000_000 * options.scale and length > 10_000:
                continue
            repeat = max(1, 20_000 // length)
            for _ in range(repeat):
                self.queue(length)

    def queue(self, length: int) -> None:
        gate = f"gate-{length}-{time.monotonic_ns()}"
        self.requestTasks("wait", [(os.path.abspath(gate),)] * 2)
        while len(list(Path.cwd().glob(f"{gate}-*"))) < 2:  # no worker is free
            time.sleep(0.001)
        before = resident_bytes()
        begin = time.perf_counter()
        ids = self.requestTasks("nothing", ((i,) for i in range(length)))
        self.report(f"queue/request/{length}", length / (time.perf_counter() - begin))
        if length >= 100_000:  # below, what Python has in reserve is more
            self.report(f"queue/bytes/{length}", (resident_bytes() - before) / length)
        del ids
        Path(gate).touch()
        begin = time.perf_counter()
        count = sum(1 for _ in self.results("nothing"))
        self.report(f"queue/drain/{length}", length / (time.perf_counter() - begin))
        assert count == length, "other results than expected"
        for _ in self.results("wait"):
            pass

    def measure_sleepers(self, options: argparse.Namespace) -> None:
        workers = 64
        count = workers * max(20, int(250 * options.scale))
        begin = time.perf_counter()
        self.requestTasks("sleep", ((_SLEEP_S,) for _ in range(count)))
        seen = {result for _, _, result in self.results()}
        seconds = time.perf_counter() - begin
        assert len(seen) == workers, f"{len(seen)} workers took part"
        self.report("sleepers", count * _SLEEP_S / workers / seconds)

    def measure_mixed(self, options: argparse.Namespace) -> None:
        lengths = heavy_tailed(max(100, int(_MIXED_TASKS * options.scale)), options.seed)
        begin = time.perf_counter()
        self.requestTasks("sleep", ((length_s,) for length_s in lengths))
        for _ in self.results():
            pass
        seconds = time.perf_counter() - begin
        self.report("mixed", seconds / greedy_makespan_s(lengths, 8))

    def measure_crowd(self, options: argparse.Namespace) -> None:
        raise_file_limit()
        here = Path(__file__).resolve().parent
        command = [sys.executable, str(here / "crowd.py"), self.address, LABEL]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as crowd:
            try:
                for size in _CROWDS:
                    if size <= max(100, 1000 * options.scale):
                        self.crowd(crowd, size)
                assert crowd.stdin is not None
                crowd.stdin.close()  # they leave
                crowd.wait(60)
            finally:
                crowd.kill()

    def crowd(self, crowd: subprocess.Popen[str], size: int) -> None:
        assert crowd.stdin is not None and crowd.stdout is not None
        crowd.stdin.write(f"{size}\n")
        crowd.stdin.flush()
        assert crowd.stdout.readline().split() == [str(size)], "the simulated slaves ended"
        for tag, name in (("nothing", "rate"), ("long", "single")):
            rate = self.crowd_rate(tag, 2000)  # learns how long they take
            count = int(min(50_000, max(2000, rate * _CROWD_S)))
            self.report(f"crowd/{name}/{size}", self.crowd_rate(tag, count))
        self.report(f"crowd/bytes/{size}", resident_bytes())

    def crowd_rate(self, tag: str, count: int) -> float:
        begin = time.perf_counter()
        self.requestTasks(tag, ((i,) for i in range(count)))
        got = {result[0] for _, _, result in self.results(timeout=60)}
        seconds = time.perf_counter() - begin
        assert got == set(range(count)), "other results than expected"
        return count / seconds


def heavy_tailed(count: int, seed: int) -> list[float]:
    """Durations in seconds, most of them short, some very long, in no order."""
    draw = random.Random(seed)
    return [
        min(_LONGEST_S, _SHORTEST_S * (1.0 - draw.random()) ** (-1.0 / _TAIL)) for _ in range(count)
    ]


def greedy_makespan_s(lengths: Iterable[float], workers: int) -> float:
    """When all is done if each task goes, in the order given, to the first worker that is free."""
    import heapq

    free_at = [0.0] * workers
    for length_s in lengths:
        heapq.heapreplace(free_at, free_at[0] + length_s)
    return max(free_at)


def resident_bytes() -> int:
    """Memory of this process: the master, and the task manager in it."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def raise_file_limit() -> None:
    """As many open connections as the system allows."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    modes = ["start", "farm", "journal", "queue", "sleepers", "mixed", "crowd"]
    parser.add_argument("mode", choices=modes)
    parser.add_argument("cases", nargs="*", help="of the mode farm")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of tasks")
    parser.add_argument("--seed", type=int, default=0, help="of the mixed durations")
    return parser.parse_args()


if __name__ == "__main__":
    if not {"-h", "--help"}.isdisjoint(sys.argv):
        arguments()
    runJob(LABEL, Master, Slave, journal="journal.db" if "journal" in sys.argv[1:2] else None)

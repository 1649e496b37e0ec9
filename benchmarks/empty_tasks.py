"""Empty tasks per second and the time of one task, beside `ProcessPoolExecutor`, in one run.

    python benchmarks/empty_tasks.py [--tasks 20000] [--rounds 5]

Ours: two slaves on this machine, requested and retrieved one by one. The peer: a pool of two
processes, `map` with chunks of one, and `submit` of one. The two take turns; medians and their
ratio are printed. Absolute figures depend on the machine and on what else it does.
"""

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

from masterslave import MasterProcess, SlaveProcess, runJob

ROUND_TRIPS = 300


def nothing(x: int) -> int:
    return x


class Slave(SlaveProcess):
    def do_nothing(self, x: int) -> int:
        return x


class Master(MasterProcess):
    def run(self) -> None:
        options = arguments()
        rates: dict[str, list[float]] = {"one by one": [], "requestTasks": [], "process pool": []}
        trips: dict[str, list[float]] = {"ours": [], "process pool": []}
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(nothing, range(100)))
            self.one_by_one(1000)
            for _ in range(options.rounds):
                for name, run in (
                    ("one by one", self.one_by_one),
                    ("requestTasks", self.batched),
                    ("process pool", lambda n: sum(1 for _ in pool.map(nothing, range(n)))),
                ):
                    begin = time.perf_counter()
                    run(options.tasks)
                    rates[name].append(options.tasks / (time.perf_counter() - begin))
                trips["ours"].append(self.round_trip())
                begin = time.perf_counter()
                for i in range(ROUND_TRIPS):
                    pool.submit(nothing, i).result()
                trips["process pool"].append((time.perf_counter() - begin) / ROUND_TRIPS)
        report(rates, trips)

    def one_by_one(self, count: int) -> None:
        for i in range(count):
            self.requestTask("nothing", i)
        got = {self.retrieveResult("nothing")[2] for _ in range(count)}
        assert got == set(range(count))

    def batched(self, count: int) -> None:
        self.requestTasks("nothing", ((i,) for i in range(count)))
        assert {result for _, _, result in self.results()} == set(range(count))

    def round_trip(self) -> float:
        begin = time.perf_counter()
        for i in range(ROUND_TRIPS):
            self.requestTask("nothing", i)
            self.retrieveResult("nothing")
        return (time.perf_counter() - begin) / ROUND_TRIPS


def report(rates: dict[str, list[float]], trips: dict[str, list[float]]) -> None:
    pool_rate = statistics.median(rates["process pool"])
    for name, values in rates.items():
        rate = statistics.median(values)
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"empty tasks/s, {name:13} {rate:9,.0f}  ({spread})  {rate / pool_rate:5.2f} x pool")
    pool_trip = statistics.median(trips["process pool"])
    for name, values in trips.items():
        trip = statistics.median(values)
        print(f"one task, {name:13} {trip * 1e6:9,.0f} us  {trip / pool_trip:5.2f} x pool")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    runJob("benchmark-empty-tasks", Master, Slave, launch_slaves=2)

"""How long a killed worker's, and a killed slave's, task takes to run again.

Two slaves on this machine; one task that tells when it begins and then waits. Its worker, or its
slave, is killed with signal 9, and the time until the same task has begun again is taken, on the
same clock. Prints medians and the worst of some rounds.

    python benchmarks/recovery.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from masterslave import MasterProcess, SlaveProcess, runJob


class Master(MasterProcess):
    def run(self) -> None:
        options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
        options.add_argument("--rounds", type=int, default=20)
        rounds = options.parse_args().rounds
        print("| kill -9 of | median | worst |")
        print("|---|---|---|")
        for victim in ("worker", "slave"):
            times = sorted(self.recovery_s(victim) for _ in range(rounds))
            median, worst = statistics.median(times), times[-1]
            print(f"| a {victim} | {1000 * median:.0f} ms | {1000 * worst:.0f} ms |", flush=True)

    def recovery_s(self, victim: str) -> float:
        """One round: seconds from the kill to the task's second beginning."""
        while sum(slave["tags"] is not None for slave in self.task_manager.status()["slaves"]) < 2:
            time.sleep(0.01)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            self.requestTask("begin", str(log), crash_limit=100)
            worker, slave, _ = begun(log, 1)[0]
            killed = time.time()
            os.kill(worker if victim == "worker" else slave, signal.SIGKILL)
            again = begun(log, 2)[1][2]
            Path(folder, "end").touch()
            self.retrieveResult()
        if victim == "slave":
            self.launchSlaveJobs(1)
        return again - killed


def begun(log: Path, count: int) -> list[tuple[int, int, float]]:
    """The first `count` beginnings: worker, slave, when."""
    while True:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= count:
            fields = [line.split() for line in lines]
            return [(int(worker), int(slave), float(when)) for worker, slave, when in fields]
        time.sleep(0.001)


class Slave(SlaveProcess):
    def do_begin(self, log: str) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {os.getppid()} {time.time()}\n")
        end = Path(log).with_name("end")
        while not end.exists():
            time.sleep(0.005)


runJob("recovery", Master, Slave, launch_slaves=2)

"""A long job to which as much as possible happens; counts what is lost, delivered twice, or wrong.

    python benchmarks/chaos.py [--tasks 10000] [--minutes 0] [--seed 1] [--only kill-slave,cut]

Several slaves run with chaos of their own (see the README); meanwhile this program kills, stops
and continues slaves and workers, pauses the master, and starts new slaves for those that are gone.
One round is one job; with --minutes, rounds follow each other until the time is over, each with
the next seed. Exit status 1 when a round was not clean. The seed decides what is done in which
order; when it falls depends on the machine.

To add a disturbance: write a function that takes the `Field`, does one thing, and says in a word
what it hit (None: nothing was there to be hit), and enter it in `DISTURBANCES`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import heapq
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import psutil

from masterslave import (
    GlobalStateValue,
    MasterProcess,
    SlaveProcess,
    TaskRaisedException,
    WorkerCrashed,
    runJob,
)

LABEL = "benchmark-chaos"
SHARED_MEMORY = Path("/dev/shm")
STANDSTILL_S = 120.0  # without any new result, the round is given up
WATCHDOG_S = 0.5  # a slave that was stopped for four of these is taken for dead

#: What goes wrong inside slaves, each with its probability and longest time.
INSIDE = {
    "kill": "kill=0.005",
    "stop": "stop=0.01",
    "delay": "delay=0.05",
    "duplicate": "duplicate=0.1",
    "drop": "drop=0.3",
    "cut": "cut=0.02",
}


# --- the job --------------------------------------------------------------------------------


def parameters(number: int) -> tuple[str, tuple[object, ...]]:
    """Tag and parameters of a task: most are tiny, some take time, some are large, some raise."""
    if number % 997 == 3:
        return "rest", (number, 1.5)
    if number % 50 == 7:
        return "fail", (number,)
    if number % 40 == 5:
        return "digest", (number, number.to_bytes(4, "big") * 50_000)
    if number % 3 == 0:
        return "rest", (number, (number % 20) / 1000)
    return "triple", (number,)


def expected(number: int) -> str:
    """What comes of the task, as the master writes it down."""
    tag, arguments = parameters(number)
    if tag == "fail":
        return f"ValueError({number})"
    if tag == "digest":
        return hashlib.sha256(arguments[1]).hexdigest()  # type: ignore[arg-type]
    return str(3 * number)


class Slave(SlaveProcess):
    def do_triple(self, number: int, factors: list[int]) -> int:
        return factors[number % len(factors)] * number

    def do_rest(self, number: int, seconds: float, factors: list[int]) -> int:
        time.sleep(seconds)
        return factors[0] * number

    def do_digest(self, number: int, data: bytes, factors: list[int]) -> str:
        return hashlib.sha256(data).hexdigest()

    def do_fail(self, number: int, factors: list[int]) -> None:
        raise ValueError(number)


class Master(MasterProcess):
    """Writes one line per delivery: number of the task, kind, what came."""

    def run(self) -> None:
        path, tasks = Path(sys.argv[2]), int(sys.argv[3])
        path.touch()
        state = self.setGlobalState(factors=[3] * 1000)
        numbers: dict[str, int] = {}
        for number in range(tasks):
            tag, arguments = parameters(number)
            task_id = self.requestTask(tag, *arguments, GlobalStateValue(state, "factors"))
            numbers[task_id] = number
        with path.open("a", buffering=1) as out:
            for _ in range(tasks):
                try:
                    task_id, _, result = self.retrieveResult()
                    line = f"{numbers[task_id or '']}\tresult\t{result}"
                except TaskRaisedException as error:
                    failed = isinstance(error.exception, WorkerCrashed)
                    kind, text = ("failed", error.traceback) if failed else ("result", "")
                    line = f"{numbers[error.task_id]}\t{kind}\t{text or repr(error.exception)}"
                out.write(line.replace("\n", " ") + "\n")
            left = sum(sum(tags.values()) for tags in self.task_manager.numberOfTasks())
            out.write(f"end\t{left}\t{self.task_manager.status()['dropped']}\n")


# --- what is on the field -------------------------------------------------------------------


class Field:
    """The processes of one round, and the means to disturb them."""

    def __init__(self, options: argparse.Namespace, seed: int, chaos: str) -> None:
        self.options = options
        self.random = random.Random(seed)
        self.chaos = chaos
        self.path = Path(tempfile.mkdtemp(prefix="masterslave-chaos-"))
        self.results = self.path / "results"  # made by the master when it can be reached
        self.log = (self.path / "log").open("wb")
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYRO_")},
            "HOME": str(self.path),
            "PYRO_NS_PORT": str(free_port()),
            "MASTERSLAVE_BROADCAST": "0",
            "MASTERSLAVE_MASTER_GONE": "20",
            "PYTHONFAULTHANDLER": "1",
        }
        self.slaves: list[subprocess.Popen[bytes]] = []
        self.started = 0
        self._look_at = 0.0
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self.shared_before = shared_memory()
        self.master = self.start_master()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a Python program of this round."""
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=self.env,
            cwd=self.path,
            start_new_session=True,
        )

    def start_master(self) -> subprocess.Popen[bytes]:
        """Start the master; it goes on writing to `results`."""
        return self.start(__file__, "--master", str(self.results), str(self.options.tasks))

    def replace_slaves(self) -> None:
        """Every half second, see to it that there are as many slaves as there should be."""
        if time.monotonic() < self._look_at or not self.results.exists():
            return
        self._look_at = time.monotonic() + 0.5
        self.slaves = [slave for slave in self.slaves if slave.poll() is None]
        while len(self.slaves) < self.options.slaves:
            command = ["-m", "masterslave", "slave", "-n", str(self.options.workers), LABEL]
            if self.chaos:
                seed = self.random.randrange(1 << 32)
                command[3:3] = ["--chaos", f"{self.chaos},seed={seed}"]
            self.slaves.append(self.start(*command))
            self.started += 1

    def slave(self) -> subprocess.Popen[bytes] | None:
        """Any slave that lives."""
        alive = [slave for slave in self.slaves if slave.poll() is None]
        return self.random.choice(alive) if alive else None

    def worker(self) -> psutil.Process | None:
        """Any worker of any slave."""
        slave = self.slave()
        with contextlib.suppress(psutil.Error):
            workers = psutil.Process(slave.pid).children() if slave is not None else []
            return self.random.choice(workers) if workers else None
        return None

    def later(self, after_s: float, action: Callable[[], object]) -> None:
        """Do something, such as to mend what was disturbed, after so many seconds."""
        when = time.monotonic() + after_s
        heapq.heappush(self._later, (when, next(self._numbers), action))

    def do_what_is_due(self, *, everything: bool = False) -> None:
        """Do what was put off until now."""
        while self._later and (everything or self._later[0][0] <= time.monotonic()):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                heapq.heappop(self._later)[2]()

    def pause(self, pid: int, longest_s: float) -> None:
        """Stop a process, and have it go on within so many seconds."""
        os.kill(pid, signal.SIGSTOP)
        process = psutil.Process(pid)  # knows when the number belongs to another one
        self.later(self.random.uniform(0.0, longest_s), process.resume)

    def processes(self) -> list[psutil.Process]:
        """All processes of this round that live; they know each other by their home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ended = process.status() == psutil.STATUS_ZOMBIE
                if not ended and process.environ().get("HOME") == str(self.path):
                    found.append(process)
        return found

    def close(self) -> None:
        """End whatever is left."""
        self.do_what_is_due(everything=True)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for child in [*self.slaves, self.master]:
            child.wait()
        self.log.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def shared_memory() -> set[str]:
    """The library's files in shared memory; others may come and go."""
    names = os.listdir(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else []
    return {name for name in names if name.startswith("masterslave")}


# --- disturbances ---------------------------------------------------------------------------


def kill_slave(field: Field) -> str | None:
    slave = field.slave()
    if slave is None:
        return None
    slave.kill()
    return f"slave {slave.pid}"


def kill_worker(field: Field) -> str | None:
    worker = field.worker()
    if worker is None:
        return None
    worker.kill()
    return f"worker {worker.pid}"


def stop_slave(field: Field) -> str | None:
    """For up to eight watchdog periods: half of them are taken for dead, and come back."""
    slave = field.slave()
    if slave is None:
        return None
    field.pause(slave.pid, 8 * WATCHDOG_S)
    return f"slave {slave.pid}"


def stop_worker(field: Field) -> str | None:
    worker = field.worker()
    if worker is None:
        return None
    field.pause(worker.pid, 2.0)
    return f"worker {worker.pid}"


def end_slave(field: Field) -> str | None:
    slave = field.slave()
    if slave is None:
        return None
    slave.terminate()
    return f"slave {slave.pid}"


def stop_master(field: Field) -> str | None:
    if field.master.poll() is not None:
        return None
    field.pause(field.master.pid, 8 * WATCHDOG_S)
    return "master"


#: What is done, and how often compared with the others.
DISTURBANCES: dict[str, tuple[int, Callable[[Field], str | None]]] = {
    "kill-slave": (3, kill_slave),
    "kill-worker": (4, kill_worker),
    "stop-slave": (3, stop_slave),
    "stop-worker": (3, stop_worker),
    "end-slave": (2, end_slave),
    "stop-master": (1, stop_master),
}


# --- a round --------------------------------------------------------------------------------


class Round:
    """One job from its start to its end, and what came of it."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.seed = seed
        self.blows: Counter[str] = Counter()
        self.problems: list[str] = []
        self.seconds = 0.0
        self.row: dict[str, object] = {}

    def run(self) -> bool:
        """Play it; true if it was clean."""
        inside = [spec for name, spec in INSIDE.items() if name in self.options.only]
        field = Field(self.options, self.seed, ",".join(inside))
        begin = time.monotonic()
        try:
            self._disturb(field)
            self.seconds = time.monotonic() - begin
            self._wait_for_all_to_leave(field)
        finally:
            field.close()
        self._count(field)
        clean = not self.problems
        if clean and not self.options.keep:
            shutil.rmtree(field.path)
        else:
            self.problems.append(f"seed {self.seed}: see {field.path}")
        return clean

    def _disturb(self, field: Field) -> None:
        chosen = [name for name in DISTURBANCES if name in self.options.only]
        weights = [DISTURBANCES[name][0] for name in chosen]
        next_blow = time.monotonic() + 1.0
        size, moved = 0, time.monotonic()
        while field.master.poll() is None:
            now = time.monotonic()
            field.replace_slaves()
            field.do_what_is_due()
            if chosen and now >= next_blow:
                name = field.random.choices(chosen, weights)[0]
                with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                    if DISTURBANCES[name][1](field) is not None:
                        self.blows[name] += 1
                next_blow = now + field.random.expovariate(1 / self.options.pause)
            grown = field.results.stat().st_size if field.results.exists() else 0
            if grown != size:
                size, moved = grown, now
            elif now - moved > STANDSTILL_S:
                self._report_standstill(field)
                return
            time.sleep(0.02)

    def _report_standstill(self, field: Field) -> None:
        self.problems.append(f"seed {self.seed}: no result for {STANDSTILL_S:g} s")
        field.do_what_is_due(everything=True)
        field.start("-m", "masterslave", "-v", LABEL).wait()
        for process in field.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGABRT)  # faulthandler shows where it is
        time.sleep(1.0)

    def _wait_for_all_to_leave(self, field: Field) -> None:
        if field.master.returncode:
            self.problems.append(f"seed {self.seed}: the master ended with {field.master.poll()}")
        deadline = time.monotonic() + 60.0
        field.do_what_is_due(everything=True)
        while field.processes() and time.monotonic() < deadline:
            for slave in field.slaves:
                slave.poll()
            time.sleep(0.05)
        for process in field.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.problems.append(f"seed {self.seed}: left running: {process.cmdline()}")
        left = shared_memory() - field.shared_before
        self.problems += [f"seed {self.seed}: left in shared memory: {name}" for name in left]

    def _count(self, field: Field) -> None:
        got: Counter[int] = Counter()
        tally = Counter(wrong=0, failed=0, end=0, left=0, dropped=0)
        for line in field.results.read_text().splitlines():
            what, kind, text = line.split("\t", 2)
            if what == "end":
                tally.update(end=1, left=int(kind), dropped=int(text))
                continue
            got[int(what)] += 1
            if kind == "failed":
                tally["failed"] += 1
            elif text != expected(int(what)):
                tally["wrong"] += 1
                self.problems.append(f"seed {self.seed}: task {what} gave {text}")
        tracebacks = (field.path / "log").read_text(errors="replace").count("Traceback")
        if tracebacks:
            self.problems.append(f"seed {self.seed}: tracebacks in the log: {tracebacks}")
        lost = sum(1 for number in range(self.options.tasks) if number not in got)
        twice = sum(1 for times in got.values() if times > 1)
        for name, number in (("lost", lost), ("twice", twice), ("left", tally["left"])):
            if number:
                self.problems.append(f"seed {self.seed}: {name}: {number}")
        self.row = {
            "seed": self.seed,
            "tasks": self.options.tasks,
            "seconds": f"{self.seconds:.1f}",
            "slaves": field.started,
            **{name: self.blows[name] for name in DISTURBANCES if name in self.options.only},
            "dropped": tally["dropped"],
            "failed": tally["failed"],
            "lost": lost,
            "twice": twice,
            "wrong": tally["wrong"],
        }


def arguments() -> argparse.Namespace:
    known = [*DISTURBANCES, *INSIDE]
    parser = argparse.ArgumentParser(
        description="A job to which as much as possible happens.",
        epilog="dropped: late and doubled results, as it should be; failed: reported to the master "
        "because the task's worker had died five times, as it should be.",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first round (1)")
    parser.add_argument("--tasks", type=int, default=10_000, help="per round (10000)")
    parser.add_argument("--minutes", type=float, default=0.0, help="play rounds for so long (one)")
    parser.add_argument("--slaves", type=int, default=4, help="that there always are (4)")
    parser.add_argument("--workers", type=int, default=2, help="per slave (2)")
    parser.add_argument("--pause", type=float, default=0.4, help="mean seconds between blows (0.4)")
    parser.add_argument("--only", default=",".join(known), help=f"some of {', '.join(known)}")
    parser.add_argument("--keep", action="store_true", help="keep logs and results in any case")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]
    for name in options.only:
        if name not in known:
            parser.error(f"--only: {name!r} is none of {', '.join(known)}")
    return options


def main() -> int:
    options = arguments()
    # What is stopped would stay so for ever if this program ended without letting it go on.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    end = time.monotonic() + 60 * options.minutes
    clean = True
    for seed in count(options.seed):
        played = Round(options, seed)
        clean &= played.run()
        if seed == options.seed:
            print("  ".join(played.row))
        widths = [len(name) for name in played.row]
        cells = zip(played.row.values(), widths, strict=True)
        print("  ".join(str(value).rjust(width) for value, width in cells))
        print(*played.problems, sep="\n", end="\n" if played.problems else "", flush=True)
        if time.monotonic() >= end:
            break
    return 0 if clean else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--master"]:
        runJob(LABEL, Master, Slave, watchdog_period=WATCHDOG_S)
    else:
        sys.exit(main())

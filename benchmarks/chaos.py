"""A long job to which as much as possible happens; counts what is lost, delivered twice, or wrong.

    python benchmarks/chaos.py [--tasks 10000] [--minutes 0] [--seed 1] [--only kill-slave,cut]

Several slaves run with chaos of their own (see the README); meanwhile this program kills, stops
and continues slaves and workers, pauses the master, cuts and heals the cables of their hosts
(network namespaces: as root only, else it says so), kills the name server and starts another, kills
the master and starts it again with its journal, and starts new slaves for those that are gone.
One round is one job; with --minutes, rounds follow each other until the time is over, each with
the next seed. Exit status 1 when a round was not clean. The seed decides what is done in which
order; when it falls depends on the machine.

A round is clean when each life of the master received nothing twice, the last one everything,
no task ran again that had finished, the journal is sound, and no process and no file is left.

To add a disturbance: write a function that takes the `Field`, does one thing, and says in a word
what it hit (None: nothing was there to be hit), and enter it in `DISTURBANCES`, or
in `MILESTONES` what is done so many times in a round.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import heapq
import math
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
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import psutil

from masterslave import (
    GlobalStateValue,
    MasterProcess,
    SlaveProcess,
    TaskRaisedException,
    WorkerCrashed,
    runJob,
)
from masterslave.keyfile import load_key
from masterslave.stores.reader import reading

if TYPE_CHECKING:
    from clusters.namespaces import Namespaces

LABEL = "benchmark-chaos"
JOURNAL = "run.db"
SHARED_MEMORY = Path("/dev/shm")
TESTS = Path(__file__).resolve().parent.parent / "tests"
SLAVE_HOSTS = 2
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
    """Leaves a line each time that a task runs: when, in which slave, its number."""

    def note(self, number: int) -> None:
        append(Path("ran"), f"{time.monotonic()}\t{os.getppid()}\t{number}")

    def do_triple(self, number: int, factors: list[int]) -> int:
        self.note(number)
        return factors[number % len(factors)] * number

    def do_rest(self, number: int, seconds: float, factors: list[int]) -> int:
        self.note(number)
        time.sleep(seconds)
        return factors[0] * number

    def do_digest(self, number: int, data: bytes, factors: list[int]) -> str:
        self.note(number)
        return hashlib.sha256(data).hexdigest()

    def do_fail(self, number: int, factors: list[int]) -> None:
        self.note(number)
        raise ValueError(number)


class Master(MasterProcess):
    """Writes a line at its beginning, and one per delivery: see `Line`."""

    def run(self) -> None:
        path, tasks = Path(sys.argv[2]), int(sys.argv[3])
        append(path, "begin\t\t\t\t")
        state = self.setGlobalState(factors=[3] * 1000)
        numbers: dict[str, int] = {}
        for number in range(tasks):
            tag, arguments = parameters(number)
            task_id = self.requestTask(tag, *arguments, GlobalStateValue(state, "factors"))
            numbers[task_id] = number
        for _ in range(tasks):
            try:
                task_id, _, result = self.retrieveResult()
                kind, text = "result", str(result)
            except TaskRaisedException as error:
                task_id = error.task_id
                failed = isinstance(error.exception, WorkerCrashed)
                kind = "failed" if failed else "result"
                text = error.traceback if failed else repr(error.exception)
            append(path, f"{numbers[task_id or '']}\t{time.monotonic()}\t{task_id}\t{kind}\t{text}")
        left = sum(sum(tags.values()) for tags in self.task_manager.numberOfTasks())
        append(path, f"end\t\t{left}\t{self.task_manager.status()['dropped']}\t")


def append(path: Path, line: str) -> None:
    """Add a line as a whole, whatever becomes of this process."""
    with path.open("ab", buffering=0) as file:
        file.write(line.replace("\n", " ").encode() + b"\n")


# --- what is on the field -------------------------------------------------------------------


class Field:
    """The processes of one round, and the means to disturb them."""

    def __init__(
        self, options: argparse.Namespace, seed: int, chaos: str, hosts: Namespaces | None
    ) -> None:
        """`hosts`: the first is the master's, the others are its slaves'; None: all run here."""
        self.options = options
        self.hosts = hosts
        self.random = random.Random(seed)
        self.chaos = chaos
        self.path = Path(tempfile.mkdtemp(prefix="masterslave-chaos-"))
        self.results = self.path / "results"  # made by the master when it can be reached
        self.log = (self.path / "log").open("ab")
        # Where no master starts a name server of its own: it could not be told to come back.
        address = "0.0.0.0" if hosts is None else hosts.address(1)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYRO_")},
            "HOME": str(self.path),
            "PYRO_NS_HOST": address,
            "PYRO_NS_PORT": str(free_port()),
            "MASTERSLAVE_HOST": "127.0.0.1" if hosts is None else "0.0.0.0",
            "MASTERSLAVE_BROADCAST": "0",
            "MASTERSLAVE_MASTER_GONE": "8",  # twice the longest pause
            "PYTHONFAULTHANDLER": "1",
        }
        self.slaves: list[subprocess.Popen[bytes]] = []
        self.started = 0
        self.began: dict[int, float] = {}  # when each slave was started, by process id
        self._look_at = 0.0
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self.names_log = self.path / "names"
        self._begun = False  # whether the master has come to its work
        self._read = 0  # bytes of the results
        self._received: set[bytes] = set()
        self.shared_before = shared_memory()
        self.name_server = self.start_name_server()
        self.master = self.start_master()

    def start(
        self, *command: str, host: int = 1, log: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a Python program of this round."""
        line = [sys.executable, *command]
        return subprocess.Popen(
            line if self.hosts is None else self.hosts.command(host, *line),
            stdin=subprocess.DEVNULL,
            stdout=log or self.log,
            stderr=log or self.log,
            env=self.env,
            cwd=self.path,
            start_new_session=True,
        )

    def start_master(self) -> subprocess.Popen[bytes]:
        """Start the master once there is a name server; it goes on writing to `results`."""
        self.wait_for(self.is_named)
        self.progress()
        self._begun = False
        return self.start(__file__, "--master", str(self.results), str(self.options.tasks))

    def start_name_server(self) -> subprocess.Popen[bytes]:
        """Start Pyro's own; `is_named` when it is there."""
        where = ("-n", self.env["PYRO_NS_HOST"], "-p", self.env["PYRO_NS_PORT"])
        self.names_log.write_bytes(b"")
        with self.names_log.open("ab") as log:
            return self.start("-u", "-m", "Pyro5.nameserver", *where, "-x", log=log)

    def is_named(self) -> bool:
        """Whether the name server has been started and listens."""
        return self.name_server.poll() is None and b"NS running" in self.names_log.read_bytes()

    def has_begun(self) -> bool:
        """Whether the last life of the master has come to its work, or ended before."""
        self.progress()
        return self._begun or self.master.poll() is not None

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when it is true; what is due is done meanwhile."""
        while not condition():
            self.do_what_is_due()
            time.sleep(0.02)

    def progress(self) -> float:
        """The part of the tasks of which a result has been received, by any life of the master."""
        if self.results.exists():
            with self.results.open("rb") as file:
                file.seek(self._read)
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._read += len(text)
            for line in text.splitlines():
                what = line.partition(b"\t")[0]
                self._begun |= what == b"begin"
                if what.isdigit():
                    self._received.add(what)
        return len(self._received) / self.options.tasks

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
            self.slaves.append(self.start(*command, host=2 + self.started % SLAVE_HOSTS))
            self.began[self.slaves[-1].pid] = time.monotonic()
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
        for child in [*self.slaves, self.master, self.name_server]:
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


def cut_host(field: Field) -> str | None:
    """For up to eight watchdog periods; packets vanish, or connections are reset."""
    if field.hosts is None:
        return None
    hosts, host = field.hosts, field.random.randrange(SLAVE_HOSTS) + 2
    hosts.cut(host, silently=field.random.random() < 0.5)
    field.later(field.random.uniform(0.0, 8 * WATCHDOG_S), lambda: hosts.heal(host))
    return f"host {host}"


def kill_master(field: Field) -> str | None:
    if field.master.poll() is not None:
        return None
    field.master.kill()
    field.master.wait()
    field.master = field.start_master()
    return "master"


def restart_name_server(field: Field) -> str | None:
    """For up to two seconds there is none; a master that starts meanwhile would be refused."""
    field.wait_for(field.has_begun)
    field.name_server.kill()
    field.name_server.wait()

    def again() -> None:
        if field.name_server.poll() is not None:
            field.name_server = field.start_name_server()

    field.later(field.random.uniform(0.0, 2.0), again)
    return "name server"


#: What is done, and how often compared with the others.
DISTURBANCES: dict[str, tuple[int, Callable[[Field], str | None]]] = {
    "kill-slave": (3, kill_slave),
    "kill-worker": (4, kill_worker),
    "stop-slave": (3, stop_slave),
    "stop-worker": (3, stop_worker),
    "end-slave": (2, end_slave),
    "stop-master": (1, stop_master),
    "cut-host": (2, cut_host),
}

#: What is done so many times in a round, at any state of the work.
MILESTONES: dict[str, tuple[int, Callable[[Field], str | None]]] = {
    "kill-master": (5, kill_master),
    "restart-names": (3, restart_name_server),
}


# --- a round --------------------------------------------------------------------------------


class Round:
    """One job from its start to its end, and what came of it."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.seed = seed
        self.blows: Counter[str] = Counter()
        self.problems: list[str] = []
        self.numbers: dict[str, int] = {}  # of task ids
        self.failed: set[int] = set()
        self.received: dict[int, float] = {}  # when the result of a task first came
        self.seconds = 0.0
        self.row: dict[str, object] = {}

    def run(self) -> bool:
        """Play it; true if it was clean."""
        inside = [spec for name, spec in INSIDE.items() if name in self.options.only]
        with contextlib.ExitStack() as stack:
            hosts = None
            if "cut-host" in self.options.only:
                from clusters.namespaces import namespaces

                hosts = stack.enter_context(namespaces(1 + SLAVE_HOSTS))
            field = Field(self.options, self.seed, ",".join(inside), hosts)
            self._play(field)
        self._count(field)
        self._read_journal(field)
        clean = not self.problems
        if clean and not self.options.keep:
            shutil.rmtree(field.path)
        else:
            self._problem(f"see {field.path}")
        return clean

    def _play(self, field: Field) -> None:
        begin = time.monotonic()
        try:
            self._disturb(field)
            self.seconds = time.monotonic() - begin
            self._wait_for_all_to_leave(field)
        finally:
            field.close()

    def _disturb(self, field: Field) -> None:
        chosen = [name for name in DISTURBANCES if name in self.options.only]
        weights = [DISTURBANCES[name][0] for name in chosen]
        next_blow = time.monotonic() + 1.0
        milestones = self._milestones(field.random)
        next_milestone = 0.0
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
                next_blow = time.monotonic() + field.random.expovariate(1 / self.options.pause)
            if milestones and now >= next_milestone and field.progress() >= milestones[0][0]:
                name = milestones.pop(0)[1]
                self.blows[name] += MILESTONES[name][1](field) is not None
                next_milestone = now + field.random.uniform(0.0, 2.0)  # it may be about to ask
            grown = field.results.stat().st_size if field.results.exists() else 0
            if grown != size:
                size, moved = grown, now
            elif now - moved > STANDSTILL_S:
                self._report_standstill(field)
                return
            time.sleep(0.02)

    def _milestones(self, chance: random.Random) -> list[tuple[float, str]]:
        """What is done when which part of the work is done; below 0: while tasks are requested."""
        return sorted(
            (chance.uniform(-0.1, 0.9), name)
            for name, (times, _) in MILESTONES.items()
            if name in self.options.only
            for _ in range(times)
        )

    def _report_standstill(self, field: Field) -> None:
        self._problem(f"no result for {STANDSTILL_S:g} s")
        field.do_what_is_due(everything=True)
        field.start("-m", "masterslave", "-v", LABEL).wait()
        for process in field.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGABRT)  # faulthandler shows where it is
        time.sleep(1.0)

    def _wait_for_all_to_leave(self, field: Field) -> None:
        if field.master.returncode:
            self._problem(f"the master ended with {field.master.poll()}")
        deadline = time.monotonic() + 60.0
        field.do_what_is_due(everything=True)
        field.name_server.kill()
        field.name_server.wait()
        while field.processes() and time.monotonic() < deadline:
            for slave in field.slaves:
                slave.poll()
            time.sleep(0.05)
        for process in field.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._problem(f"left running: {process.cmdline()}")
        left = shared_memory() - field.shared_before
        for name in left:
            self._problem(f"left in shared memory: {name}")

    def _count(self, field: Field) -> None:
        """Look at what the master's lives have received."""
        got: Counter[int] = Counter()  # by the last life
        tally = Counter(wrong=0, failed=0, end=0, left=0, dropped=0, twice=0)
        for what, when, task_id, kind, text in lines(field.results):
            if what == "begin":
                got.clear()
                continue
            if what == "end":
                tally.update(end=1, left=int(task_id), dropped=int(kind))
                continue
            number = int(what)
            got[number] += 1
            self.received.setdefault(number, float(when))
            tally["twice"] += got[number] == 2
            if self.numbers.setdefault(task_id, number) != number:
                self._problem(f"{task_id} was task {self.numbers[task_id]} and task {number}")
            if kind == "failed":
                tally["failed"] += got[number] == 1 and number not in self.failed
                self.failed.add(number)
            elif text != expected(number):
                tally["wrong"] += 1
                self._problem(f"task {what} gave {text}")
        tracebacks = (field.path / "log").read_text(errors="replace").count("Traceback")
        if tracebacks:
            self._problem(f"tracebacks in the log: {tracebacks}")
        lost = self.options.tasks - len(got)
        for name in ("twice", "left"):
            if tally[name]:
                self._problem(f"{name}: {tally[name]}")
        if lost or not tally["end"]:
            self._problem(f"lost: {lost}")
        names = [*DISTURBANCES, *MILESTONES]
        self.row = {
            "seed": self.seed,
            "tasks": self.options.tasks,
            "seconds": f"{self.seconds:.1f}",
            "slaves": field.started,
            **{name: self.blows[name] for name in names if name in self.options.only},
            "dropped": tally["dropped"],
            "failed": tally["failed"],
            "lost": lost,
            "twice": tally["twice"],
            "wrong": tally["wrong"],
        }

    def _read_journal(self, field: Field) -> None:
        """Look for tasks that ran again though they had finished.

        One may run twice by right: in slaves that were cut off, or stopped, with it in their hands.
        Not so when it was handed out after its end was on record, or when it ran in a slave that
        was not even started when its result had come.
        """
        again = set()
        runs = [line.split("\t") for line in (field.path / "ran").read_text().splitlines()]
        for _, slave, text in runs:
            if field.began[int(slave)] > self.received.get(int(text), math.inf):
                again.add(f"task {text} in slave PID {slave}")
        with reading(
            field.path / JOURNAL, load_key(field.path / ".masterslave" / "key")
        ) as journal:
            tasks = [entry.number for _, entry in journal.read("task")]
            ends = {entry.number: seq for seq, entry in journal.read("ending")}
            for seq, entry in journal.read("hand_out"):
                ended = [number for number, _ in entry.tasks if ends.get(number, math.inf) < seq]
                again.update(f"number {number} of the journal" for number in ended)
            for problem in journal.problems:
                self._problem(f"journal: {problem}")
        if again:
            self._problem(f"run again: {sorted(again)[:20]}")
        if open_ones := sorted(set(tasks) - set(ends)):
            self._problem(f"without an end in the journal: {open_ones[:20]}")
        self.row.update(runs=len(runs), again=len(again))
        known = {"log", "names", "ran", "results", JOURNAL, ".masterslave"}
        for path in field.path.iterdir():
            if path.name not in known:
                self._problem(f"left behind: {path.name}")

    def _problem(self, text: str) -> None:
        self.problems.append(f"seed {self.seed}: {text}")


class Line(NamedTuple):
    """What the master writes: number of a task or a word, when, task id, kind, what came."""

    what: str
    when: str
    task_id: str
    kind: str
    text: str


def lines(results: Path) -> Iterator[Line]:
    for line in results.read_text().splitlines():
        yield Line(*line.split("\t", 4))


def arguments() -> argparse.Namespace:
    known = [*DISTURBANCES, *MILESTONES, *INSIDE]
    parser = argparse.ArgumentParser(
        description="A job to which as much as possible happens.",
        epilog="dropped: late and doubled results of the last life, as it should be; failed: "
        "reported to the master because the task's worker had died five times, as it should be; "
        "runs: how often a handler was called; again: tasks that ran after they had finished.",
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
    if "cut-host" in options.only and (reason := why_no_hosts()):
        print(f"without cut-host: {reason}", file=sys.stderr)
        options.only.remove("cut-host")
    return options


def why_no_hosts() -> str:
    """Why no cable can be cut here; empty when it can."""
    sys.path.append(str(TESTS))
    try:
        from clusters.namespaces import why_not
    except ImportError:
        return f"{TESTS} is not here"
    return why_not()


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
        runJob(LABEL, Master, Slave, watchdog_period=WATCHDOG_S, journal=JOURNAL)
    else:
        sys.exit(main())

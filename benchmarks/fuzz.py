"""A running job under a hundred thousand mutated and random messages, and what came of them.

    python benchmarks/fuzz.py [--messages 100000] [--seed 1]

Starts a master with two slaves, a journal and a name server of its own in a temporary directory,
fires the messages of ``tests/fuzzing.py`` at both ports, and watches the master's memory, threads
and open files. Then the job must end with the right results. Prints what was sent by kind; ends
with status 1 and the reasons if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import psutil
from conftest import World, family, wait_until
from fuzzing import JOB, LABEL, Tally, Target, faults, fire

from masterslave.keyfile import load_key
from masterslave.settings import Settings, split_address

#: What the master may grow by after the warming up, in bytes: less for each message than the
#: smallest thing that could be kept of one, and what its allocator and the journal's cache do not
#: give back.
GROWTH = 16 << 20
GROWTH_PER_MESSAGE = 160

SAMPLE_S = 1.0


class Watch(threading.Thread):
    """Samples a process."""

    def __init__(self, pid: int, tally: Tally) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self._tally = tally
        self._stop_it = threading.Event()
        self.samples: list[tuple[int, int, int, int]] = []  # sent, bytes, threads, files

    def run(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not self._stop_it.wait(SAMPLE_S):
                self.sample()

    def sample(self) -> tuple[int, int, int, int]:
        process = self._process
        row = (
            self._tally.sent(),
            process.memory_info().rss,
            process.num_threads(),
            process.num_fds(),
        )
        self.samples.append(row)
        return row

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


def run(path: Path, messages: int, seed: int) -> list[str]:
    """Do it all; gives what was not as it must be."""
    world = World(path)
    os.environ.update({name: world.env[name] for name in ("HOME", "MASTERSLAVE_BROADCAST")})
    # Else the C library keeps a heap per thread, of which it gives little back (some 90 MiB here),
    # and what the program keeps could not be told from that.
    world.env["MALLOC_ARENA_MAX"] = "1"
    problems: list[str] = []
    try:
        master = world.script(JOB, name="job.py")
        file = path / "address"
        wait_until(lambda: file.exists() or master.poll() is not None, "the master is there")
        if not file.exists():
            return [master.err]
        target = Target(
            split_address(file.read_text()),
            ("127.0.0.1", world.ns_port),
            load_key(Settings.from_environment().key_file),
            path / "mark",
        )
        tally = Tally()
        watch = Watch(master.pid, tally)
        fire(target, messages // 10, seed, tally)  # until all that is made once has been made
        before = watch.sample()
        watch.start()
        begin = time.monotonic()
        fire(target, messages - messages // 10, seed + 1, tally)
        took_s = time.monotonic() - begin
        print(tally.table())
        print(f"{tally.sent():,} messages, the last 90 % in {took_s:.0f} s")

        wait_until(lambda: watch.sample()[2:] <= before[2:], "threads and files as before")
        watch.stop()
        after = watch.sample()
        show("before", before)
        show("most", tuple(max(column) for column in zip(*watch.samples, strict=True)))
        show("after", after)
        steps = watch.samples[:: max(1, len(watch.samples) // 12)]
        print("memory: " + ", ".join(f"{size / (1 << 20):.0f}" for _, size, *_ in steps), "MiB")
        bound = GROWTH + GROWTH_PER_MESSAGE * messages
        if after[1] - before[1] > bound:
            problems.append(f"memory grew by {after[1] - before[1]} bytes, more than {bound}")
        status = json.loads(world.task_manager("show", LABEL, "--json", "-w").finish())
        if len(status["slaves"]) != 2:
            problems.append(f"slaves: {status['slaves']}")
        everyone = family(master.pid)
        world.write("stop", "")
        report = json.loads(master.finish())
        problems += faults(target, tally, report, master.err)
        wait_until(lambda: not any(map(psutil.Process.is_running, everyone)), "all have ended")
        print(f"{report['tasks']:,} tasks of the job, results right: {report['right']}")
        print("decoded in the master, by whose connection it came:")
        for name, count in sorted(report["decoded"].items()):
            print(f"  {count:8,d}  {name}")
        print(f"{len(master.err):,} bytes in the master's log")
    finally:
        world.end()
    return problems


def show(when: str, row: tuple[int, ...]) -> None:
    _, size, threads, files = row
    print(f"{when:7} {size / (1 << 20):7.1f} MiB, {threads} threads, {files} open files")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        problems = run(Path(name), options.messages, options.seed)
    for problem in problems:
        print(f"NOT AS IT MUST BE: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

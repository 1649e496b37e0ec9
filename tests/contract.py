"""The contract that every substrate keeps: handlers, programs, and where substrates differ.

The programs are functions of a master; `test_contract.py` runs each over each substrate. As a
module, this is the slaves' code as well. `DIFFERENCES` stands in the README, word by word.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

SUBSTRATES = ("memory", "network", "unshared", "attached", "folder", "threads", "processes")

#: The columns of the README's table.
COLUMNS = (
    "slaves, over the network, a folder or in a process",
    "processes of an executor",
    "threads",
)

#: What differs, and how: one entry for each of `COLUMNS`.
DIFFERENCES: dict[str, tuple[str, str, str]] = {
    "a handler ends its process": (
        "its task alone counts a crash, with host, signal and last words",
        "all that ran in the pool runs again; who crashes alone counts a crash "
        "(MPI: the job ends; Dask tries `allowed-failures` times more itself, and may lose all its "
        "workers: see below)",
        "the master ends with it",
    ),
    "a time limit": (
        "the worker is killed",
        "the task is reported, a late result dropped; its worker is busy until it ends",
        "the task is reported, a late result dropped; its thread is busy until it ends",
    ),
    "`cancelTask` of a running task": (
        "the worker is killed",
        "it runs to its end, unseen",
        "it runs to its end, unseen",
    ),
    "the end of the job": (
        "handlers that run are killed",
        "handlers that run go on to their end",
        "handlers that run go on to their end",
    ),
    "the slave object": (
        "one per worker",
        "one per worker process",
        "one for all threads",
    ),
    "priorities": (
        "among all that wait",
        "among those that the executor has not got yet",
        "among those that the executor has not got yet",
    ),
    "a value of the global state": (
        "sent once per slave",
        "sent once per worker process, or a few times when several lack it",
        "one for all threads",
    ),
    "tiny tasks": (
        "what has ended has ended, whatever becomes of the others",
        "share a submission (64 at most, 10 ms by what is known of their tag, ended after 0.25 s): "
        "while one of them hangs, results of those before it wait with it, and they run again when "
        "its worker is killed",
        "share a submission, too",
    ),
    "`repeatStragglers`": (
        "the first result wins, the other attempt is stopped",
        "the first result wins, the other attempt goes on to its end, unseen",
        "the first result wins, the other attempt goes on to its end, unseen",
    ),
    "`terminationTest` is true": (
        "the slave ends",
        "the slave object is made anew",
        "the slave object is made anew",
    ),
    "memory limit, lifetime, chaos": (
        "yes",
        "refused: the executor's own means",
        "refused",
    ),
    "`watchdog_period`": (
        "signs of life, by which a silent slave is given up",
        "only handed to the slave class: the executor's own means",
        "only handed to the slave class",
    ),
    "`task_manager LABEL`": (
        "yes",
        "no: nothing listens; `printStatistics` in the master",
        "no: nothing listens; `printStatistics` in the master",
    ),
}

#: Capabilities that programs need, and the substrates without them.
WITHOUT = {
    "crash": {"threads", "mpi"},
    "kill": {"threads", "processes"},
}


# --- handlers -------------------------------------------------------------------------------


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("stays where it is")


def do_square(x: Any) -> Any:
    return x * x


def do_raise(text: str) -> None:
    raise KeyError(text)


def do_leave() -> None:
    sys.exit("leaves")


def do_raise_unpicklable() -> None:
    raise Unpicklable("one")


def do_lock() -> Any:
    import threading

    return threading.Lock()


def do_die() -> None:
    os._exit(3)


def do_sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def do_touch(path: str, gate: str) -> str:
    """Say in a file that it runs, and go on when the gate is there."""
    with open(path, "a") as file:
        file.write(".")
    deadline = time.monotonic() + 60
    while not os.path.exists(gate) and time.monotonic() < deadline:
        time.sleep(0.01)
    return "done"


def do_sleep_first(gate: str) -> str:
    """Say that it is the second attempt, or wait as the first one; without a gate, do not."""
    if not gate:
        time.sleep(0.01)
        return "short"
    try:
        os.close(os.open(f"{gate}.first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "second"
    return do_touch(f"{gate}.runs", gate)


def do_third_time(path: str) -> str:
    with open(path, "a") as file:
        file.write(".")
    if os.path.getsize(path) < 3:
        raise ValueError("not yet")
    return "done"


def do_note(path: str, text: str) -> str:
    with open(path, "a") as file:
        file.write(text)
    return text


def do_sum(values: Any, more: int = 0) -> int:
    return sum(values) + more


def do_reverse(data: Any) -> Any:
    data[0] = 7  # arrays are writable on arrival
    return data[::-1].copy()

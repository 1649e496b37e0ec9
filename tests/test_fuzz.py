"""Seeded messages against a job that runs, a short version of ``benchmarks/fuzz.py``."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import psutil
from conftest import World, wait_until
from fuzzing import (
    ANSWERED,
    CALLS,
    ERROR,
    JOB,
    LABEL,
    NAMES,
    RECORDS,
    REFUSED,
    SHARES,
    STRANGERS,
    Mark,
    Tally,
    Target,
    faults,
    fire,
)
from Pyro5 import config

from masterslave.keyfile import load_key
from masterslave.settings import Settings, split_address

MESSAGES = 2500

#: Threads that the task manager's and the name server's pools keep for the next connections.
IDLE = 2 * config.THREADPOOL_SIZE_MIN


def test_a_job_survives_thousands_of_hostile_messages(world: World) -> None:
    master = world.script(JOB, name="job.py")
    path = world.path / "address"
    wait_until(lambda: path.exists() or master.poll() is not None, "the master is there")
    assert path.exists(), master.err
    key = load_key(Settings.from_environment().key_file)
    names = "127.0.0.1", world.ns_port
    target = Target(split_address(path.read_text()), names, key, world.path / "mark")

    process = psutil.Process(master.pid)
    wait_until(
        lambda: [slave["finished"] > 0 for slave in status(world)["slaves"]] == [True] * 2,
        "both slaves are at work, so their shortcuts are open",
    )
    threads, files = process.num_threads(), process.num_fds()
    tally = Tally()
    fire(target, MESSAGES, 1, tally)
    wait_until(
        lambda: process.num_threads() <= threads + IDLE and process.num_fds() <= files,
        "threads and files are as before",
    )
    assert len(status(world)["slaves"]) == 2
    world.write("stop", "")
    report = json.loads(master.finish())

    assert faults(target, tally, report, master.err) == []
    assert report["tasks"] > 8
    assert tally.sent() >= MESSAGES - 2
    # All kinds got as far as they should; else the messages were no test.
    for kind, outcome in (
        (STRANGERS, REFUSED), (NAMES, ERROR), (NAMES, ANSWERED), (RECORDS, REFUSED),
        (RECORDS, ERROR), (RECORDS, ANSWERED), (CALLS, ERROR), (CALLS, ANSWERED),
    ):  # fmt: skip
        assert tally.counts[kind, outcome] > SHARES[kind], tally.table()


def status(world: World) -> dict[str, list[dict[str, Any]]]:
    shown: dict[str, list[dict[str, Any]]] = json.loads(
        world.task_manager("show", LABEL, "--json", "-w").finish()
    )
    return shown


def test_the_mark_would_be_seen(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Mark(tmp_path / "mark"))).close()
    assert (tmp_path / "mark").exists()

"""``task_manager failures``: the same stories of a living job and of its journal."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from command import Run, StartMaster
from conftest import PATIENCE_S, World, wait_until

from masterslave import TaskManager, TaskRaisedException
from masterslave.commands.failures import is_journal
from masterslave.journal import Journal
from masterslave.keyfile import load_key
from masterslave.settings import Settings
from masterslave.slavecode import script_record
from masterslave.stores.sqlite import SqliteStore
from masterslave.transports.remote import REMOTE_METHODS

JOB = """
    import os, signal, sys, time
    from masterslave import MasterProcess, SlaveProcess, TaskRaisedException, runJob

    class Master(MasterProcess):
        def run(self):
            self.requestTask("fail", 3, retries=1)
            self.requestTask("die", crash_limit=2)
            self.requestTask("hang", timeout=0.2)
            self.requestTask("fine")
            for _ in range(4):
                try:
                    self.retrieveResult()
                except TaskRaisedException:
                    pass
            self.requestTask("again", retries=1)
            print("waits", flush=True)
            while True:
                time.sleep(0.01)

    class Slave(SlaveProcess):
        def do_fail(self, x):
            helper(x)
        def do_die(self):
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        def do_hang(self):
            while True:
                time.sleep(0.01)
        def do_fine(self):
            pass
        def do_again(self):
            if not os.path.exists("again"):
                open("again", "w").close()
                raise KeyError("once")
            while True:
                time.sleep(0.01)

    def helper(x):
        raise ValueError(f"no {x}")

    runJob("job", Master, Slave, launch_slaves=1, journal="job.db")
"""


@pytest.fixture
def path(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world.path)
    return world.path / "job.db"


def stories(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, str, str]]]:
    return {
        row["task_id"]: [(one["attempt"], one["outcome"], one["story"]) for one in row["attempts"]]
        for row in rows
    }


def test_failures_of_a_living_job_and_of_its_journal(world: World, path: Path, run: Run) -> None:
    master = world.script(JOB)
    wait_until(lambda: "waits" in master.out or master.poll() is not None)

    def again_failed_once() -> bool:
        found = json.loads(run("failures", "job", "--json")[1])
        return bool(found["under_way"])

    wait_until(again_failed_once)
    status, text, err = run("failures", "job")
    assert (status, err) == (0, "")
    found = json.loads(run("failures", "job", "--json")[1])
    told = stories(found["failed"])
    assert set(told) == {"fail_0", "die_1", "hang_2"}
    assert [(n, outcome) for n, outcome, _ in told["fail_0"]] == [
        (1, "exception"),
        (2, "exception"),
    ]
    assert all(story.startswith("Traceback") for _, _, story in told["fail_0"])
    assert [(n, outcome) for n, outcome, _ in told["die_1"]] == [(1, "crashed"), (2, "crashed")]
    for _, _, story in told["die_1"]:
        assert "SIGKILL" in story.splitlines()[0]
        assert story.count("last words") == 1
    assert [(n, outcome) for n, outcome, _ in told["hang_2"]] == [(1, "timed_out")]
    assert [(n, outcome) for n, outcome, _ in stories(found["under_way"])["again_4"]] == [
        (1, "exception")
    ]
    places = {one["where"] for row in found["failed"] for one in row["attempts"]}
    (place,) = places
    assert re.fullmatch(r"PID \d+ on \S+ \(\w+\)", place)

    lines = text.splitlines()
    head = lines.index("fail_0: exception")
    assert re.fullmatch(
        rf"  attempt 1 on {re.escape(place)}, [-\d]+ [:\d]+, exception", lines[head + 1]
    )
    assert lines[head + 2] == "    ValueError: no 3"
    assert "Traceback" not in text
    assert "last words" not in text
    assert "again_4: under way" in lines
    whole = run("failures", "job", "-v")[1]
    assert whole.count("in helper") == 2
    assert whole.count("last words") == 2

    status, out, err = run("failures", path)
    assert (status, out) == (1, "")
    assert "task_manager failures LABEL" in err
    master.send_signal(signal.SIGKILL)
    master.wait()
    kept = json.loads(run("failures", path, "--json")[1])
    assert stories(kept["failed"]) == told
    assert stories(kept["under_way"]) == stories(found["under_way"])
    assert {one["where"] for row in kept["failed"] for one in row["attempts"]} == places


def test_the_next_run_knows_the_failures_of_the_one_before(world: World, path: Path) -> None:
    key = load_key(Settings.from_environment().key_file)

    def manager() -> tuple[TaskManager, Journal]:
        journal = Journal(SqliteStore(path, key))
        return TaskManager("job", journal=journal), journal

    first, journal = manager()
    slave = first.registerProcess(None, ["PID 7 on node", 7, "node", 1, "token"])[0]
    first.announceSlave(slave)
    first.announceTags(slave, ["f"])
    first.addTaskRequests("f", [[b"0"], [b"1"], [b"2"]], 5, (0, None, 1))
    for index in range(3):
        (task,), _ = first.exchange(slave)
        good = index == 2
        outcome, story = ("result", "") if good else ("exception", f"Error {index}")
        first.exchange(slave, [(*task[:1], task[2], "exception", [], 0.1, "first")], (), 0)
        ((again,), _) = first.exchange(slave)
        first.exchange(slave, [(again[0], again[2], outcome, [], 0.1, story)], (), 0)
    before = first.failedTasks()
    assert [row["task_id"] for row in before["failed"]] == ["f_0", "f_1"]
    journal.close()
    second, journal = manager()
    after = second.failedTasks()
    journal.close()
    assert stories(after["failed"]) == stories(before["failed"])
    assert after["under_way"] == before["under_way"] == []


def test_where_nothing_has_failed(start_master: StartMaster, run: Run) -> None:
    start_master()
    assert run("failures", "job") == (0, "no task has failed\n", "")
    assert json.loads(run("failures", "job", "--json")[1]) == {
        "failed": [], "under_way": [], "forgotten": 0,
    }  # fmt: skip


def test_by_the_host_of_the_master(world: World, start_master: StartMaster, run: Run) -> None:
    master = start_master(named=False)
    master.keep_slave_code(
        script_record(
            world.write(
                "slave.py",
                """
                from masterslave import startSlaveProcess
                def do_fail():
                    raise OSError("no such thing")
                startSlaveProcess()
                """,
            )
        )
    )
    master.launchSlaveJobs(1)
    master.requestTask("fail")
    with pytest.raises(TaskRaisedException):
        master.retrieveResult(timeout=PATIENCE_S)
    status, out, err = run("failures", "job", "-m", master.address)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "    OSError: no such thing"


def test_a_cancelled_task_has_not_failed(world: World) -> None:
    manager = TaskManager("job")
    slave = manager.registerProcess()[0]
    manager.announceTags(slave, ["f"])
    task_id = manager.addTaskRequest("f", [b""], 0, (0, None, 1))
    (task,), _ = manager.exchange(slave)
    manager.exchange(slave, [(task_id, task[2], "exception", [], 0.0, "no")], (), 0)
    assert manager.failedTasks()["under_way"]
    manager.cancelTask(task_id)
    assert manager.failedTasks() == {"failed": [], "under_way": [], "forgotten": 0}


def test_it_may_be_asked_from_elsewhere() -> None:
    assert "failedTasks" in REMOTE_METHODS


@pytest.mark.parametrize(
    ("where", "answer"),
    [("job", False), ("a/b", True), ("job.db", True), ("plain", True), (".", False)],
)
def test_a_file_or_a_label(world: World, path: Path, where: str, answer: bool) -> None:
    (world.path / "plain").touch()
    assert is_journal(where) == answer


@pytest.mark.parametrize(
    ("where", "words"), [("nothing.db", "no such file"), ("a/b", "no such file"), ("job", "label")]
)
def test_where_there_is_nothing(
    world: World, path: Path, run: Run, start_master: StartMaster, where: str, words: str
) -> None:
    start_master("other")
    status, out, err = run("failures", where)
    assert (status, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_damaged_journal_is_read_as_far_as_it_goes(world: World, path: Path, run: Run) -> None:
    import sqlite3

    from masterslave.entries import Ended, Requested, identity
    from masterslave.records import TaskOptions

    store = SqliteStore(path, load_key(Settings.from_environment().key_file))
    for number in range(3):
        frame = [b"%d" % number]
        name = identity("f", frame, None)
        store.write([Requested(number, "f", name, TaskOptions(), frame)])
        store.write([Ended(number, 1, 1, "exception", 0.1, "ValueError: no", [], 1e9 + number)])
    store.close()
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("UPDATE ending SET story = 'all is well' WHERE number = 1")
    db.close()
    status, out, err = run("failures", path)
    assert (status, err) == (0, "")
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "f_0: exception",
        "f_2: exception",
        "! ending 1 is not what was written",
    ]

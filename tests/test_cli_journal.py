"""``task_manager journal``: what it says of a journal, what it saves of a damaged one."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import World, wait_until

from masterslave import cli
from masterslave.entries import (
    Ended,
    Entry,
    Forgotten,
    HandedOut,
    Joined,
    Left,
    Requested,
    Setback,
    Stored,
    identity,
)
from masterslave.errors import JournalDamaged
from masterslave.keyfile import load_key
from masterslave.records import ProcessInfo, TaskOptions
from masterslave.settings import Settings
from masterslave.stores.frames import PIECE_BYTES
from masterslave.stores.reader import reading
from masterslave.stores.sqlite import SqliteStore

Run = Callable[..., tuple[int, str, str]]

ACTIONS = ["check", "show", "export", "retry"]


def task(number: int, tag: str = "sqrt", size: int = 100) -> Requested:
    frame = [str(number).encode() * size]
    return Requested(number, tag, identity(tag, frame, None), TaskOptions(), frame)


def end(number: int, outcome: str = "result", story: str = "", process: int = 1) -> Ended:
    frame = [f"result {number}".encode()] if outcome == "result" else []
    return Ended(number, 1, process, outcome, 0.25, story, frame, 1e9 + number)


def slave(process: int, pid: int) -> Joined:
    machine = f"PID {pid} on node (x86_64)"
    return Joined(process, ProcessInfo(machine, pid, "node", 1, f"token {pid}"))


STORY = [
    slave(1, 11),
    *(task(number) for number in range(4)),
    task(4, "tan"),
    HandedOut(1, ((0, 1), (1, 1), (2, 1), (4, 1))),
    end(0),
    Setback(1, 1, 1, "crashed", "PID 12 on node was killed", 1e9),
    Ended(1, 2, 1, "crashed", 0.0, "attempt 1: x\nattempt 2: PID 13 ended", [], 1e9 + 1),
    end(2, "exception", "Traceback\nValueError: no"),
    end(4, "timed_out", "killed at its time limit"),
    Stored("slave_code", {"kind": "module", "module": "math"}),
    slave(2, 22),
    Left(2),
]


@pytest.fixture
def key(world: World) -> bytes:
    return load_key(Settings.from_environment().key_file)


@pytest.fixture
def path(world: World, key: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal with five tasks."""
    monkeypatch.chdir(world.path)
    return write(world.path / "job.db", key, STORY)


@pytest.fixture
def run(world: World, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``task_manager journal`` in this process; gives status, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["journal", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return run


def write(path: Path, key: bytes, entries: Sequence[Entry]) -> Path:
    store = SqliteStore(path, key)
    store.set_note("label", "job")
    store.write(entries)
    store.close()
    return path


def change(path: Path, statement: str, *values: object) -> None:
    """Change a journal as somebody without the key would."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("DROP TRIGGER process_replaced")
        assert db.execute(statement, values).rowcount == 1
    finally:
        db.close()


def damage_tasks(path: Path, first: int = 1) -> None:
    """Overwrite pages of the table of tasks, from the page `first` of them on, two of them."""
    db = sqlite3.connect(path)
    root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'task'").fetchone()[0]
    size = db.execute("PRAGMA page_size").fetchone()[0]
    db.close()
    data = bytearray(path.read_bytes())
    page = memoryview(data)[(root - 1) * size : root * size]
    assert page[0] == 5, "the table fills more than a page"
    cells = int.from_bytes(page[3:5], "big")
    children = []
    for cell in range(cells):
        place = int.from_bytes(page[12 + 2 * cell : 14 + 2 * cell], "big")
        children.append(int.from_bytes(page[place : place + 4], "big"))
    for child in children[first : first + 2]:
        data[(child - 1) * size : child * size] = b"\xa5" * size
    del page
    path.write_bytes(data)


def everything(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith("job.db")}


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


# --- a sound journal ------------------------------------------------------------------------


def test_check_of_a_sound_journal(path: Path, run: Run) -> None:
    status, out, err = run("check", path)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"journal {path} of job"
    counts = dict(line.split() for line in out.splitlines()[2:-1])
    assert counts == {
        "process": "1", "former_process": "1", "task": "5", "hand_out": "1", "setback": "1",
        "ending": "4", "item": "1", "forgotten": "0",
    }  # fmt: skip
    assert out.splitlines()[-1] == "everything is what was written"
    found = json.loads(run("check", path, "--json")[1])
    assert found["problems"] == []
    assert {name: str(count) for name, count in found["rows"].items()} == counts


def test_show(path: Path, run: Run) -> None:
    status, out, err = run("show", path)
    assert (status, err) == (0, "")
    assert re.search(r"^sqrt +1 +1 +1 +1 +0 +0$", out, re.MULTILINE)
    assert re.search(r"^tan +0 +0 +0 +0 +0 +1$", out, re.MULTILINE)
    assert "slave PID 11 on node (x86_64)\n" in out
    assert "slave PID 22 on node (x86_64)\n" in out
    assert "replayed" not in out
    found = json.loads(run("show", path, "--json")[1])
    assert found["label"] == "job"
    assert found["size_bytes"] == path.stat().st_size
    assert found["tasks"]["sqrt"] == {"unfinished": 1, "result": 1, "crashed": 1, "exception": 1}


def test_export_as_json_lines(path: Path, run: Run) -> None:
    status, out, err = run("export", path)
    assert (status, err) == (0, "")
    rows = {row["task_id"]: row for row in lines(out)}
    assert list(rows) == ["sqrt_0", "sqrt_1", "sqrt_2", "sqrt_3", "tan_4"]
    first = rows["sqrt_0"]
    assert [base64.b64decode(text) for text in first["parameters"]] == [b"0" * 100]
    assert [base64.b64decode(text) for text in first["result"]] == [b"result 0"]
    assert (first["outcome"], first["duration_s"], first["tag"]) == ("result", 0.25, "sqrt")
    assert first["options"]["crash_limit"] == 5
    assert first["where"] == "PID 11 on node (x86_64)"
    assert (rows["sqrt_3"]["outcome"], rows["sqrt_3"]["result"]) == (None, None)
    assert [attempt["story"] for attempt in rows["sqrt_1"]["failed_attempts"]] == [
        "PID 12 on node was killed",
        "PID 13 ended",
    ]


def test_what_is_saved_of_a_sound_journal_is_the_same(path: Path, run: Run, key: bytes) -> None:
    status, out, err = run("export", path, "--to", "new.db")
    assert (status, err) == (0, "")
    assert "5 tasks, 4 of them finished" in out
    assert run("check", "new.db")[0] == 0
    assert run("export", "new.db") == run("export", path)
    stores = [SqliteStore(name, key, create=False) for name in (path, "new.db")]
    try:
        old, new = (list(store.entries()) for store in stores)
        assert old == new
        assert stores[1].note("label") == "job"
        assert stores[1].item("slave_code") == stores[0].item("slave_code")
    finally:
        for store in stores:
            store.close()


def test_a_file_that_is_there_is_not_written_over(path: Path, run: Run) -> None:
    Path("new.db").write_text("precious")
    status, out, err = run("export", path, "--to", "new.db")
    assert (status, out) == (1, "")
    assert "is there already" in err
    assert Path("new.db").read_text() == "precious"


def test_a_save_that_fails_leaves_nothing(path: Path, run: Run) -> None:
    status, _, err = run("export", path, "--to", "nowhere/new.db")
    assert status == 1
    assert err.count("\n") == 1
    assert not Path("nowhere").exists()


def test_an_attempt_is_that_of_the_slave_which_had_the_number_then(
    world: World, key: bytes, run: Run
) -> None:
    """Process ids begin again with each run."""
    path = write(world.path / "job.db", key, [slave(1, 11), task(0), end(0), task(1)])
    store = SqliteStore(path, key)
    store.write([slave(1, 22), end(1)])
    store.close()
    for file in [path, world.path / "new.db"]:
        assert [row["where"] for row in lines(run("export", file)[1])] == [
            "PID 11 on node (x86_64)",
            "PID 22 on node (x86_64)",
        ]
        run("export", path, "--to", world.path / "new.db")


# --- damage ---------------------------------------------------------------------------------

CHANGES = {
    "process": "UPDATE process SET info = replace(info, '11', '99')",
    "former_process": "UPDATE former_process SET info = replace(info, '22', '99')",
    "task": "UPDATE task SET options = replace(options, '5', '1') WHERE number = 3",
    "hand_out": "UPDATE hand_out SET process = 7",
    "setback": "UPDATE setback SET story = 'all is well'",
    "ending": "UPDATE ending SET outcome = 'result' WHERE number = 2",
    "item": "UPDATE item SET name = 'other'",
    "note": "UPDATE note SET value = 'theirs' WHERE name = 'label'",
}


@pytest.mark.parametrize("table", CHANGES)
def test_check_finds_a_change_in_any_table(path: Path, run: Run, table: str) -> None:
    before = json.loads(run("check", path, "--json")[1])["rows"]
    change(path, CHANGES[table])
    status, out, err = run("check", path)
    assert (status, err) == (1, "")
    (problem,) = [line for line in out.splitlines() if line.startswith("! ")]
    assert "is not what was written" in problem
    assert table.removeprefix("former_") in problem
    after = json.loads(run("check", path, "--json")[1])["rows"]
    assert {name for name in before if before[name] != after[name]} == {table} - {"note"}


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("UPDATE task SET parameters = ? WHERE number = 2", b"\x91\xc4\x01x"),
        ("UPDATE task SET parameters = ? WHERE number = 2", "text"),
        ("UPDATE task SET parameters = ? WHERE number = 2", None),
        ("UPDATE task SET mac = ? WHERE number = 2", 5),
        ("UPDATE task SET tag = CAST(? AS TEXT) WHERE number = 2", b"\xff\xfe"),
        ("UPDATE task SET options = ? WHERE number = 2", b"{}"),
    ],
)
def test_a_value_of_any_kind_is_only_one_problem(
    path: Path, run: Run, statement: str, value: object
) -> None:
    change(path, statement, value)
    status, out, _ = run("check", path)
    assert status == 1
    assert [s for s in out.splitlines() if s.startswith("! ")] == [
        "! task 2 is not what was written"
    ]
    left = [row["task_id"] for row in lines(run("export", path)[1])]
    assert left == ["sqrt_0", "sqrt_1", "sqrt_3", "tan_4"]


def test_a_piece_of_a_large_result_that_is_missing(world: World, key: bytes, run: Run) -> None:
    large = end(0)._replace(frame=[b"head", bytes(PIECE_BYTES + 1)])
    path = write(world.path / "job.db", key, [task(0), large, task(1)])
    assert run("check", path)[0] == 0
    change(path, "DELETE FROM piece WHERE kind = 'result' AND buffer = 1 AND position = 1")
    status, out, _ = run("check", path)
    assert status == 1
    assert "ending 0 is not what was written" in out
    assert [row["outcome"] for row in lines(run("export", path)[1])] == [None, None]


def test_where_the_note_on_the_key_is_damaged_the_rest_is_read(path: Path, run: Run) -> None:
    change(path, "UPDATE note SET mac = zeroblob(32) WHERE name = 'key'")
    status, out, _ = run("check", path)
    assert status == 1
    assert "! the note on its key is not what was written\n" in out
    assert len(lines(run("export", path)[1])) == 5


@pytest.fixture
def broken(world: World, key: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal of 300 tasks, all finished, in which two pages are overwritten."""
    monkeypatch.chdir(world.path)
    path = world.path / "job.db"
    write(path, key, [slave(1, 11), *map(task, range(300)), *map(end, range(300))])
    damage_tasks(path, first=3)
    with pytest.raises(JournalDamaged):
        SqliteStore(path, key)
    return path


def test_what_is_not_damaged_is_saved(broken: Path, run: Run, key: bytes) -> None:
    before = everything(broken.parent)
    status, out, _ = run("check", broken)
    assert status == 1
    assert (
        out.splitlines()[-1] == f"save what is sound: task_manager journal export {broken} --to NEW"
    )
    kept = [row["task_id"] for row in lines(run("export", broken)[1])]
    missing = [number for number in range(300) if f"sqrt_{number}" not in kept]
    assert 0 < len(missing) < 100
    assert missing == list(range(missing[0], missing[-1] + 1))  # and all behind the gap is there
    status, out, err = run("export", broken, "--to", "new.db")
    assert status == 0
    assert f"{len(kept)} tasks, {len(kept)} of them finished" in out
    assert "task_manager: left out: " in err
    assert run("check", "new.db")[0] == 0
    assert [row["task_id"] for row in lines(run("export", "new.db")[1])] == kept
    assert f"! {len(err.splitlines())} problems" in run("show", broken)[1]
    assert everything(broken.parent) == before


def test_a_file_without_its_end(broken: Path, run: Run) -> None:
    size = broken.stat().st_size
    os.truncate(broken, size // 2)
    before = everything(broken.parent)
    assert run("check", broken)[0] == 1
    run("export", broken, "--to", "new.db")
    assert run("check", "new.db")[0] == 0
    assert everything(broken.parent) == before


@pytest.mark.parametrize("seed", range(6))
def test_no_damage_leads_to_a_traceback_or_to_a_wrong_entry(
    path: Path, run: Run, key: bytes, seed: int
) -> None:
    """Any page but the first, which says what file it is, full of the bytes of another one."""
    good = {row["task_id"]: row for row in lines(run("export", path)[1])}
    data = bytearray(path.read_bytes())
    pages = len(data) // 4096
    target, source = 1 + seed * (pages - 1) // 6, (seed * 7 + 1) % pages
    data[target * 4096 : target * 4096 + 4096] = data[source * 4096 : source * 4096 + 4096]
    path.write_bytes(data)
    assert run("check", path)[2] == ""
    status, out, err = run("export", path)
    assert (status, "Traceback" in err) == (0, False)
    for row in lines(out):
        known = good[row["task_id"]]
        assert row["parameters"] == known["parameters"]
        assert row["result"] in (known["result"], None)
    assert run("export", path, "--to", "new.db")[0] == 0
    assert run("check", "new.db")[0] == 0


# --- with real masters ----------------------------------------------------------------------

JOB = """
    import os, sys, time
    from masterslave import MasterProcess, SlaveProcess, TaskRaisedException, runJob

    class Master(MasterProcess):
        def run(self):
            self.requestTasks("work", [(i, bytes(5000)) for i in range(60)])
            self.requestTask("fail", retries=1)
            got = []
            for _ in range(61):
                try:
                    got.append(self.retrieveResult()[2])
                except TaskRaisedException as error:
                    print("failed", error.task_id)
            print(sorted(got), flush=True)
            while os.path.exists("wait"):
                time.sleep(0.01)

    class Slave(SlaveProcess):
        def do_work(self, i, data):
            with open("ran", "a") as file:
                print(i, file=file)
            return i
        def do_fail(self):
            with open("failed", "a") as file:
                print(os.path.exists("mended"), file=file)
            if not os.path.exists("mended"):
                raise ValueError("not yet")
            return 60

    runJob("job", Master, Slave, launch_slaves=1, journal=sys.argv[1])
"""


def ran(world: World) -> list[int]:
    path = world.path / "ran"
    numbers = sorted(map(int, path.read_text().split())) if path.exists() else []
    path.unlink(missing_ok=True)
    return numbers


def test_a_master_goes_on_with_what_was_saved(world: World, run: Run) -> None:
    assert world.script(JOB, "job.db").finish().startswith("failed fail_60\n")
    assert ran(world) == list(range(60))
    path = world.path / "job.db"
    damage_tasks(path)
    refused = world.start("script.py", "job.db")
    refused.finish(1)
    assert "task_manager journal export" in refused.err
    assert ran(world) == []
    new = world.path / "new.db"
    assert run("export", path, "--to", new)[0] == 0
    kept = {row["task_id"] for row in lines(run("export", new)[1]) if row["outcome"]}
    missing = [number for number in range(60) if f"work_{number}" not in kept]
    assert 0 < len(missing) < 60
    out = world.start("script.py", "new.db").finish()
    assert str(list(range(60))) in out
    assert ran(world) == missing


def test_failed_tasks_are_run_again(world: World, run: Run) -> None:
    world.script(JOB, "job.db").finish()
    ran(world)
    (world.path / "mended").touch()
    path = world.path / "job.db"
    assert world.start("script.py", "job.db").finish().startswith("failed fail_60\n")
    assert run("retry", path) == (0, "1 task will be run again by the next run\n", "")
    assert run("retry", path)[1] == "0 tasks will be run again by the next run\n"
    assert world.start("script.py", "job.db").finish() == f"{list(range(61))}\n"
    assert ran(world) == []
    assert (world.path / "failed").read_text() == "False\nFalse\nTrue\n"


def test_a_journal_in_use(world: World, run: Run) -> None:
    (world.path / "wait").touch()
    master = world.script(JOB, "job.db")
    wait_until(lambda: "]" in master.out or master.poll() is not None)
    path = world.path / "job.db"
    for action in ACTIONS:
        status, out, err = run(action, path)
        assert (status, out) == (1, "")
        assert re.fullmatch(r"task_manager: journal .* another process has it open.*\n", err)
    master.send_signal(signal.SIGKILL)
    master.wait()
    before = everything(world.path)
    assert before["job.db-wal"]
    assert run("check", path)[0] == 0
    assert re.search(r"^work +0 +60 ", run("show", path)[1], re.MULTILINE)
    assert len(lines(run("export", path)[1])) == 61
    assert everything(world.path) == before


# --- what cannot be read --------------------------------------------------------------------


def foreign(path: Path, key: bytes) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.close()


def newer(path: Path, key: bytes) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


UNFIT: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "missing": (lambda path, key: path.unlink(), "there is no such file"),
    "text": (lambda path, key: path.write_text("hello " * 100), "is not a journal"),
    "folder": (lambda path, key: (path.unlink(), path.mkdir()), "is not a regular file"),
    "foreign": (foreign, "of another program"),
    "newer": (newer, "newer masterslave"),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("what", UNFIT)
def test_a_file_that_is_no_journal_of_ours(
    path: Path, key: bytes, run: Run, what: str, action: str
) -> None:
    spoil, words = UNFIT[what]
    spoil(path, key)
    before = path.read_bytes() if path.is_file() else None
    status, out, err = run(action, path)
    assert (status, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("action", ACTIONS)
def test_another_key(
    world: World, path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setenv("MASTERSLAVE_KEY_FILE", str(world.path / "other"))
    status, out, err = run(action, path)
    assert (status, out) == (1, "")
    assert "another key" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("action", ["check", "show", "export"])
def test_an_empty_file(world: World, run: Run, action: str) -> None:
    path = world.write("empty.db", "")
    status, out, err = run(action, path)
    assert (status, out) == (1, "")
    assert "is empty" in err
    assert path.read_bytes() == b""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_journal_in_a_folder_that_cannot_be_written(path: Path, run: Run) -> None:
    folder = path.parent / "archive"
    folder.mkdir()
    shutil.move(path, folder / "job.db")
    folder.chmod(0o500)
    try:
        assert run("check", folder / "job.db")[0] == 0
    finally:
        folder.chmod(0o700)


def test_a_copy_finds_no_room(path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    damage = sqlite3.connect(path)
    damage.execute("PRAGMA user_version = 1")
    damage.close()
    monkeypatch.setattr(tempfile, "tempdir", str(path.parent / "nowhere"))
    status, out, err = run("check", path)
    assert (status, out) == (1, "")
    assert "TMPDIR" in err


# --- retry ----------------------------------------------------------------------------------


def failed_tasks(path: Path, key: bytes) -> set[str]:
    with reading(path, key) as journal:
        return {one.task_id for one in journal.tasks() if one.has_failed}


def test_retry_forgets_how_failed_tasks_ended(path: Path, run: Run, key: bytes) -> None:
    assert failed_tasks(path, key) == {"sqrt_1", "sqrt_2", "tan_4"}
    assert run("retry", path, "sqrt_2")[:2] == (0, "1 task will be run again by the next run\n")
    assert failed_tasks(path, key) == {"sqrt_1", "tan_4"}
    assert run("retry", path)[1] == "2 tasks will be run again by the next run\n"
    assert failed_tasks(path, key) == set()
    rows = {row["task_id"]: row for row in lines(run("export", path)[1])}
    assert rows["sqrt_1"]["failed_attempts"] == []
    assert rows["sqrt_0"]["outcome"] == "result"
    assert run("check", path)[0] == 0


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (["sqrt_1", "sqrt_9"], "no task 'sqrt_9'"),
        (["sqrt_1", "tan_1"], "no task 'tan_1'"),
        (["sqrt_1", "sqrt_0"], "sqrt_0 has not failed"),
        (["sqrt_1", "sqrt_3"], "sqrt_3 has not failed"),
    ],
)
def test_retry_of_what_has_not_failed_changes_nothing(
    path: Path, run: Run, key: bytes, chosen: list[str], words: str
) -> None:
    status, out, err = run("retry", path, *chosen)
    assert (status, out) == (1, "")
    assert words in err
    assert failed_tasks(path, key) == {"sqrt_1", "sqrt_2", "tan_4"}


def test_a_failure_whose_client_knows_is_shown_and_saved_but_not_retried(
    path: Path, run: Run, key: bytes
) -> None:
    store = SqliteStore(path, key)
    store.write([Forgotten(1, True)])
    store.close()
    assert "sqrt_1" in {row["task_id"] for row in lines(run("export", path)[1])}
    status, out, err = run("retry", path, "sqrt_1")
    assert (status, out) == (1, "")
    assert "sqrt_1 has failed and its client was told" in err
    assert run("export", path, "--to", "saved.db")[0] == 0
    saved = SqliteStore("saved.db", key)
    forgotten = [entry for entry in saved.entries() if isinstance(entry, Forgotten)]
    saved.close()
    assert forgotten == [Forgotten(1, False), Forgotten(1, True)]
    assert run("retry", path)[1] == "2 tasks will be run again by the next run\n"


def test_retry_of_a_damaged_journal_is_refused(broken: Path, run: Run) -> None:
    before = everything(broken.parent)
    status, out, err = run("retry", broken)
    assert (status, out) == (1, "")
    assert "task_manager journal export" in err
    assert everything(broken.parent) == before


# --- usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["check"], ["mend", "job.db"], ["show", "a", "b"]])
def test_wrong_usage(run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end_of_it:
        run(*arguments)
    assert end_of_it.value.code == 2
    assert "usage: task_manager" in capsys.readouterr().err


def test_as_a_program(path: Path, world: World) -> None:
    program = world.task_manager("-v", "journal", "check", path)
    assert "everything is what was written" in program.finish()
    assert program.err == ""

"""``task_manager replay``: one task of a journal again, as a worker would run it."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
from conftest import PATIENCE_S, World, wait_until

from masterslave.keyfile import load_key
from masterslave.settings import Settings
from masterslave.stores.sqlite import SqliteStore

JOB = """
    import os, sys, time
    from masterslave import (
        GlobalStateValue, MasterProcess, SlaveProcess, TaskRaisedException, runJob
    )

    class Point:
        def __init__(self, x):
            self.x = x

    class Master(MasterProcess):
        def run(self):
            state = self.setGlobalState(scale=10, table=bytes(range(256)) * 80000)
            gone = self.setGlobalState(other=1)
            self.requestTask("scale", Point(4), GlobalStateValue(state, "scale"))  # 0
            self.requestTask("fail", 3)  # 1
            self.requestTask("look")  # 2
            self.requestTask("table", GlobalStateValue(state, "table"))  # 3
            self.requestTask("scale", Point(4), GlobalStateValue(gone, "other"))  # 4
            self.requestTask("leave")  # 5
            self.requestTask("long")  # 6
            self.requestTask("count", 1, 2)  # 7
            for _ in range(8):
                try:
                    self.retrieveResult()
                except TaskRaisedException:
                    pass
            self.deleteGlobalState(gone)
            self.requestTask("nobody")  # 8
            if os.path.exists("wait"):
                print("waits", flush=True)
            while os.path.exists("wait"):
                time.sleep(0.01)

    class Slave(SlaveProcess):
        def do_scale(self, point, factor):
            print("scaling")
            return type(point) is Point, point.x * factor
        def do_fail(self, x):
            local = x + 1
            raise ValueError(f"no {local}")
        def do_look(self):
            return os.getcwd(), sys.argv[1:], os.environ["OMP_NUM_THREADS"], __name__
        def do_table(self, table):
            return len(table), table[-1]
        def do_leave(self):
            sys.exit(3)
        def do_long(self):
            return "x" * 100_000
        def do_count(self, a):
            return a

    if __name__ == "__main__":
        runJob("job", Master, Slave, launch_slaves=1, journal="job.db")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the job has run once."""
    world = World(tmp_path_factory.mktemp("made"))
    try:
        world.script(JOB, "argument").finish()
    finally:
        world.end()
    return world.path


@pytest.fixture
def journal(world: World, made: Path) -> Path:
    """The job's journal, in a world that has the job's key, but not its script."""
    shutil.copytree(made / ".masterslave", world.path / ".masterslave")
    return Path(shutil.copy(made / "job.db", world.path / "kept.db"))


def test_a_result(world: World, journal: Path) -> None:
    before = journal.read_bytes()
    program = world.task_manager("replay", journal, "scale_0")
    assert program.finish() == "scaling\nscale_0: tuple (True, 40)\n"
    assert program.err == ""
    assert journal.read_bytes() == before


def test_an_exception(world: World, journal: Path, made: Path) -> None:
    program = world.task_manager("replay", journal, "fail_1")
    assert program.finish(1) == ""
    assert program.err.splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{made}/script.py", line {line_of("raise ValueError")}, in do_fail',
        '    raise ValueError(f"no {local}")',
        *([] if "    ^^^^" not in program.err else [program.err.splitlines()[3]]),
        "ValueError: no 4",
    ]


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(JOB.splitlines(), 1) if text in line)


def test_the_surroundings_of_a_worker(world: World, journal: Path, made: Path) -> None:
    out = world.task_manager("replay", journal, "look_2").finish()
    assert out == f"look_2: tuple {(str(made), ['argument'], '1', '__main__')!r}\n"


def test_a_relative_path(world: World, journal: Path) -> None:
    assert world.task_manager("replay", "kept.db", "look_2").finish().startswith("look_2: tuple")


def test_a_large_global_state_value(world: World, journal: Path) -> None:
    """Larger than a piece."""
    out = world.task_manager("replay", journal, "table_3").finish()
    assert out == f"table_3: tuple {(256 * 80000, 255)}\n"


def test_a_global_state_value_that_was_deleted(world: World, journal: Path) -> None:
    program = world.task_manager("replay", journal, "scale_4")
    assert program.finish(1) == ""
    assert re.fullmatch(
        r"task_manager: .*state_\d+_other is not in the journal: it was deleted\n", program.err
    )


@pytest.mark.parametrize(
    ("task", "error"), [("leave_5", "SystemExit: 3"), ("count_7", "TypeError")]
)
def test_whatever_a_task_raises_is_shown(
    world: World, journal: Path, task: str, error: str
) -> None:
    program = world.task_manager("replay", journal, task)
    program.finish(1)
    assert program.err.startswith("Traceback")
    assert program.err.splitlines()[-1].startswith(error)


def test_a_long_result_is_shortened(world: World, journal: Path) -> None:
    out = world.task_manager("replay", journal, "long_6").finish()
    assert out.startswith("long_6: str 'xxx")
    assert len(out) < 3000


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("nobody_8", "handles no tag 'nobody'; it handles count, fail, "),
        ("scale_1", "no task 'scale_1'"),
        ("scale_99", "no task 'scale_99'"),
        ("scale", "no task 'scale'"),
        ("scale_" + 40 * "9", "no task"),
    ],
)
def test_a_task_that_cannot_be_run(world: World, journal: Path, task: str, words: str) -> None:
    program = world.task_manager("replay", journal, task)
    assert program.finish(1) == ""
    assert words in program.err
    assert program.err.count("\n") == 1


def test_nothing_of_a_changed_journal_is_unpickled_or_run(
    world: World, journal: Path, made: Path
) -> None:
    def change(statement: str, *values: object) -> None:
        db = sqlite3.connect(journal, isolation_level=None)
        assert db.execute(statement, values).rowcount == 1
        db.close()

    def refused(task: str) -> str:
        program = world.task_manager("replay", journal, task)
        assert program.finish(1) == ""
        assert program.err.count("\n") == 1
        return program.err

    evil = msgpack.packb([b"cos\nsystem\n(S'touch evil'\ntR."])
    change("UPDATE page SET body = ? WHERE kind = 'task' AND first = 0", evil)
    assert re.search(r"page \d+ is not what was written", refused("scale_0"))
    world.task_manager("replay", journal, "look_2").finish()  # this one is sound
    code = msgpack.packb([msgpack.packb({"kind": "module", "module": "antigravity"})])
    change("UPDATE item SET value = ? WHERE name = 'slave_code'", code)
    assert re.search(r"item \d+ is not what was written", refused("look_2"))
    assert not any((path / "evil").exists() for path in (world.path, made))


def test_a_journal_without_slave_code(world: World) -> None:
    master = """
        from masterslave import initializeMasterProcess
        initializeMasterProcess("job", journal="job.db").requestTask("f")
    """
    world.script(master).finish()
    program = world.task_manager("replay", "job.db", "f_0")
    assert program.finish(1) == ""
    assert "keeps no slave code" in program.err
    assert "replayed" in world.task_manager("journal", "show", "job.db").finish()


def test_slave_code_that_does_not_load(world: World) -> None:
    world.write("slave.py", "import os\nos.stat('nowhere')\n")
    master = """
        from masterslave import initializeMasterProcess
        initializeMasterProcess("job", slave_script="slave.py", journal="job.db").requestTask("f")
    """
    world.script(master).finish()
    program = world.task_manager("replay", "job.db", "f_0")
    assert program.finish(1) == ""
    assert "in <module>" in program.err
    assert re.search(r"task_manager: .* does not load: FileNotFoundError: .*\n$", program.err)


SLAVES = {
    "script": (
        'slave_script="slave.py"',
        "from masterslave import startSlaveProcess\n{handler}\nstartSlaveProcess()\n",
    ),
    "module": ('slave_module="slave"', "{handler}\n"),
}


@pytest.mark.parametrize("kind", SLAVES)
def test_slaves_that_are_separate(world: World, kind: str) -> None:
    option, text = SLAVES[kind]
    world.write("slave.py", text.format(handler="def do_twice(x):\n    return 2 * x"))
    master = f"""
        from masterslave import initializeMasterProcess
        initializeMasterProcess("job", {option}, journal="job.db").requestTask("twice", 4)
    """
    world.script(master).finish()
    assert world.task_manager("replay", "job.db", "twice_0").finish() == "twice_0: int 8\n"


def test_a_slave_class_of_an_interactive_session(world: World) -> None:
    text = """if True:
        from masterslave import MasterProcess, SlaveProcess, runJob
        class Master(MasterProcess):
            def run(self):
                self.requestTask("thrice", 5)
        class Slave(SlaveProcess):
            def do_thrice(self, x):
                return 3 * x
        runJob("job", Master, Slave, journal="job.db")
    """
    world.start("-c", text).finish()
    assert world.task_manager("replay", "job.db", "thrice_0").finish() == "thrice_0: int 15\n"


def test_a_journal_whose_master_was_killed(world: World) -> None:
    (world.path / "wait").touch()
    master = world.script(JOB)
    wait_until(lambda: "waits" in master.out or master.poll() is not None)
    refused = world.task_manager("replay", "job.db", "scale_0")
    refused.finish(1)
    assert re.fullmatch(r"task_manager: journal .* another process has it open.*\n", refused.err)
    master.send_signal(signal.SIGKILL)
    master.wait()
    assert (world.path / "job.db-wal").stat().st_size
    assert "(True, 40)" in world.task_manager("replay", "job.db", "scale_0").finish()
    assert (world.path / "job.db-wal").stat().st_size


def test_deleted_state_is_not_kept(journal: Path, world: World) -> None:
    store = SqliteStore(journal, load_key(Settings.from_environment().key_file), create=False)
    try:
        names = [entry.name for _, entry in store.numbered("item")]
    finally:
        store.close()
    assert sorted(name.rpartition("_")[2] for name in names) == ["code", "scale", "table"]


# --- the debugger ---------------------------------------------------------------------------


def test_the_debugger_needs_a_terminal(world: World, journal: Path) -> None:
    program = world.task_manager("replay", journal, "fail_1", "--pdb")
    assert program.finish(1) == ""
    assert "terminal" in program.err
    assert program.err.count("\n") == 1


def in_terminal(world: World, *arguments: object, typed: str) -> tuple[int, str]:
    """Run the command on a terminal of its own; gives exit status and all that it showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "masterslave", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=world.path,
        env={**world.env, "TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        os.write(ours, typed.encode())
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side has gone
                break
            if not data:
                break
            shown += data
        return process.wait(PATIENCE_S), shown.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_the_debugger_stands_where_the_exception_was_raised(world: World, journal: Path) -> None:
    status, shown = in_terminal(
        world, "replay", journal, "fail_1", "--pdb", typed="p local * 1000\nquit\n"
    )
    assert status == 1
    assert "ValueError: no 4" in shown
    assert "(Pdb)" in shown
    assert re.search(r"^4000\r?$", shown, re.MULTILINE)


def test_the_debugger_does_not_come_after_a_result(world: World, journal: Path) -> None:
    status, shown = in_terminal(world, "replay", "--pdb", journal, "scale_0", typed="")
    assert (status, "(Pdb)" in shown) == (0, False)
    assert "scale_0: tuple (True, 40)" in shown


def test_a_call_of_a_clients_function(world: World) -> None:
    """It has failed, or it would not be in the journal any more."""
    world.start_name_server()
    served = world.task_manager("serve", "lab", "--journal", "lab.journal")
    world.task_manager("slave", "lab", "-w")
    client = world.script(
        """
        import os, time
        from masterslave import ClusterExecutor, LabelUnknown

        scale = 10
        while True:
            try:
                executor = ClusterExecutor("lab")
                break
            except LabelUnknown:
                time.sleep(0.05)

        def compute(x, by=1):
            open("mended").close()
            return os.getcwd(), scale * x + by

        executor.submit(compute, 4, by=2).exception()
        print((os.getcwd(), 42))
        executor.submit(divmod, 1, 0).exception()
        os._exit(0)  # so it drops nothing
        """
    )
    printed = client.finish()
    served.send_signal(signal.SIGTERM)
    served.finish()
    world.write("mended", "")
    again = world.task_manager("replay", "lab.journal", "function-call_0")
    assert f"function-call_0: tuple {printed}" == again.finish()
    failing = world.task_manager("replay", "lab.journal", "function-call_1")
    failing.finish(1)
    assert "ZeroDivisionError" in failing.err

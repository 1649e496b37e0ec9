"""The command `task_manager`: what it prints, where its errors go, how slaves are started."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import PATIENCE_S, ROOT, Program, World, free_port, is_running, wait_until

from masterslave import MasterProcess, Settings, cli, tables
from masterslave.slavecode import script_record

ECHO = """
    import os
    from masterslave import startSlaveProcess
    def do_echo(x):
        return x
    def do_pid():
        return os.getpid()
    startSlaveProcess()
"""
#: What a line that says what to do has in it.
ADVICE = re.compile(r"\b(start|use|set|run|give|check|choose|name its host|make sure|copy|look)\b")

Run = Callable[..., tuple[int, str, str]]
StartMaster = Callable[..., MasterProcess]


@pytest.fixture
def start_master(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartMaster]:
    """Start a master in this process: label, whether the name server knows it."""
    monkeypatch.chdir(world.path)
    masters: list[MasterProcess] = []

    def start(label: str = "job", *, named: bool = True) -> MasterProcess:
        settings = replace(Settings.from_environment(), port=0, renewal_s=0.1)
        masters.append(MasterProcess(label, named, settings=settings))
        masters[-1].keep_slave_code(script_record(world.write("echo.py", ECHO)))
        return masters[-1]

    yield start
    for master in reversed(masters):  # the first one has the name server
        master.shutdown()


@pytest.fixture
def run(world: World, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command, in this process unless it is a slave; gives status, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        if "slave" in arguments:
            world.env.update({n: v for n, v in os.environ.items() if n.startswith("MASTERSLAVE_")})
            program = world.task_manager(*arguments)
            return (program.wait(PATIENCE_S), program.out, program.err)
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:  # of argparse
            assert isinstance(end.code, int)
            status = end.code
        return (status, *capsys.readouterr())

    return run


def wait_for_slaves(master: MasterProcess, count: int = 1) -> None:
    def ready() -> bool:
        slaves = master.task_manager.status()["slaves"]
        return sum(slave["tags"] is not None for slave in slaves) == count

    wait_until(ready, f"{count} slaves are ready")


def start_slave(world: World, master: MasterProcess, *arguments: object) -> Program:
    slave = world.task_manager("slave", master.label, "-m", master.address, *arguments)
    wait_for_slaves(master)
    return slave


# --- what is shown --------------------------------------------------------------------------


def test_a_label_alone_shows_the_job(start_master: StartMaster, run: Run) -> None:
    start_master()
    status, out, err = run("job")
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["task", "manager", "job"],
        ["active", "processes", "1", "1", "master,", "0", "slaves", "with", "0", "workers"],
        ["waiting", "tasks", "0"],
        ["running", "tasks", "0"],
        ["results", "to", "retrieve", "0"],
        ["results", "retrieved", "0"],
    ]
    assert run("show", "job") == (0, out, "")


def test_counts(world: World, start_master: StartMaster, run: Run) -> None:
    master = start_master()
    master.requestTasks("nobody", [()] * 3)
    master.requestTask("echo", 1)
    start_slave(world, master, "-n", 2)
    wait_until(lambda: master.task_manager.numberOfTasks()[2] == {"echo": 1})
    out = run("job")[1]
    assert re.search(r"active processes +2 +1 master, 1 slaves with 2 workers", out)
    assert re.search(r"waiting tasks +3\b", out)
    assert re.search(r"results to retrieve +1\b", out)


def test_verbose_adds_machines_and_tags(world: World, start_master: StartMaster, run: Run) -> None:
    master = start_master()
    slave = start_slave(world, master)
    master.requestTasks("nobody", [()] * 3)
    status, out, _ = run("-v", "job")
    assert status == 0
    assert re.search(r"^tag +waiting +running +finished$", out, re.MULTILINE)
    assert re.search(r"^nobody +3 +0 +0$", out, re.MULTILINE)
    assert re.search(rf"^master +PID {os.getpid()} on ", out, re.MULTILINE)
    assert re.search(rf"^slave +PID {slave.pid} on .* +1 +0 +0 +echo, pid$", out, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [["job", "--json"], ["show", "job", "--json"], ["--json", "job"]]
)
def test_json_for_programs(start_master: StartMaster, run: Run, arguments: list[str]) -> None:
    master = start_master()
    master.requestTask("echo", 1)
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert shown["label"] == "job"
    assert shown["waiting"] == {"echo": 1}
    assert shown["active_processes"] == 1


@pytest.mark.parametrize(
    "form",
    [
        "-m A job",
        "job -m A",
        "-m A show job",
        "show -m A job",
        "show job -m A",
        "--master A job",
        "--master=A job",
        "-mA job",
        "-v -m A job",
        "job -v -m A",
        "-w -m A job",
        "job -w -m A",
        "-wv job -m A",
        "-m A -- job",
    ],
)
def test_options_stand_before_or_after_the_command(
    start_master: StartMaster, run: Run, form: str
) -> None:
    master = start_master(named=False)
    status, out, err = run(*form.replace("A", master.address).split())
    assert (status, err) == (0, "")
    assert out.startswith("task manager job\n")
    assert ("handles" in out) == ("v" in form)


@pytest.mark.parametrize(
    "command", [["-m", "masterslave"], [str(ROOT / "bin" / "task_manager")]], ids=["module", "bin"]
)
def test_both_ways_to_call_it_are_the_same(
    world: World, start_master: StartMaster, run: Run, command: list[str]
) -> None:
    start_master()
    here = run("job")[1]
    program = world.start(*command, "job")
    assert program.finish() == here
    assert program.err == ""


def test_no_colours_where_there_is_no_terminal(world: World, start_master: StartMaster) -> None:
    master = start_master()
    master.requestTask("echo", 1)  # so that there is a warning to be coloured
    for arguments in (["-v", "job"], ["list", "-v"], ["-h"], ["unknown"]):
        program = world.task_manager(*arguments)
        program.finish(None)
        assert "\x1b" not in program.out + program.err


def test_no_line_is_folded_for_programs(start_master: StartMaster, run: Run) -> None:
    label = "long " * 50 + "label"
    master = start_master(label)
    master.requestTask("t" * 250)
    out = run("list")[1]
    assert label in out
    out = run("-v", label)[1]
    assert f"task manager {label}\n" in out
    assert re.search(f"^{'t' * 250} +1 +0 +0$", out, re.MULTILINE)


def test_a_label_that_looks_like_markup_is_shown_as_it_is(
    start_master: StartMaster, run: Run
) -> None:
    start_master("[bold]x[/bold] :smile:")
    assert "task manager [bold]x[/bold] :smile:\n" in run("[bold]x[/bold] :smile:")[1]
    assert "[bold]x[/bold] :smile: " in run("list")[1]


@pytest.mark.parametrize("label", ["-dash", "show", "list", "two words", "--"])
def test_any_label_can_be_shown(start_master: StartMaster, run: Run, label: str) -> None:
    start_master(label)
    status, out, _ = run("show", "--", label)
    assert status == 0
    assert out.startswith(f"task manager {label}\n")


def test_a_reader_that_has_enough_is_no_trouble(world: World, start_master: StartMaster) -> None:
    start_master()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "masterslave", "-v", "job"],
            stdout=out, stderr=subprocess.PIPE, env=world.env, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert done.stderr == b""


# --- why nothing moves ----------------------------------------------------------------------


def test_it_says_that_there_are_no_slaves(start_master: StartMaster, run: Run) -> None:
    start_master().requestTasks("echo", [(1,), (2,)])
    assert "! 2 tasks wait, but there are no slaves\n" in run("job")[1]


def test_it_says_that_no_slave_handles_a_tag(
    world: World, start_master: StartMaster, run: Run
) -> None:
    master = start_master()
    start_slave(world, master)
    master.requestTask("sqrt", 1)
    assert "! 1 task waits, but no slave handles tag 'sqrt'\n" in run("job")[1]


def test_it_says_that_results_wait_for_the_master(
    world: World, start_master: StartMaster, run: Run
) -> None:
    master = start_master()
    master.requestTasks("echo", [(1,), (2,), (3,)])
    start_slave(world, master)
    wait_until(lambda: master.task_manager.numberOfTasks()[2] == {"echo": 3})
    assert "! everything waits for the master to retrieve 3 results\n" in run("job")[1]


def test_it_says_why_slaves_could_not_start(
    world: World, start_master: StartMaster, run: Run
) -> None:
    master = start_master()
    master.keep_slave_code(script_record(world.write("broken.py", "import no_such_module\n")))
    master.requestTask("echo", 1)
    slave = world.task_manager("slave", "job", "-m", master.address)
    slave.finish(1)
    out = run("job")[1]
    assert "! 1 task waits, but there are no slaves\n" in out
    assert re.search(rf"! a slave could not start: PID {slave.pid} on .*no_such_module", out)


def test_it_complains_of_nothing_when_all_is_well(start_master: StartMaster, run: Run) -> None:
    start_master()
    assert "!" not in run("-v", "job")[1]


# --- the list of labels ---------------------------------------------------------------------


def test_the_list_names_all_labels(world: World, start_master: StartMaster, run: Run) -> None:
    first, second = start_master("first"), start_master("second one")
    start_slave(world, first, "-n", 2)
    status, out, err = run("list")
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["label", "address", "state"]
    assert re.search(rf"^first +{first.address} +alive$", out, re.MULTILINE)
    assert re.search(rf"^second one +{second.address} +alive$", out, re.MULTILINE)
    out = run("list", "-v")[1]
    assert re.search(rf"^first +{first.address} +alive +2 +2$", out, re.MULTILINE)
    assert re.search(rf"^second one +{second.address} +alive +1 +0$", out, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["list", "--json"], ["--json", "list"]])
def test_the_list_for_programs(start_master: StartMaster, run: Run, arguments: list[str]) -> None:
    master = start_master()
    status, out, _ = run(*arguments)
    assert status == 0
    assert json.loads(out) == [{"label": "job", "address": master.address, "state": "alive"}]


def test_the_list_marks_and_removes_the_dead(
    world: World, start_master: StartMaster, run: Run
) -> None:
    start_master("alive")
    dead = world.script(
        """
        import time
        from masterslave import MasterProcess
        master = MasterProcess("dead")
        print("there", flush=True)
        time.sleep(1000)
        """
    )
    wait_until(lambda: "there" in dead.out)
    dead.kill()
    dead.wait()
    out = run("list")[1]
    assert re.search("^dead +.* gone", out, re.MULTILINE)
    assert re.search("^alive +.* alive *$", out, re.MULTILINE)
    out = run("list")[1]
    assert "dead" not in out
    assert "alive" in out


def test_the_list_tells_who_refuses_our_key(
    start_master: StartMaster, run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_master()
    monkeypatch.setenv("MASTERSLAVE_KEY_FILE", str(world.path / "other"))
    status, out, err = run("list")
    assert (status, err) == (0, "")
    assert re.search("^job +.* refuses our key *$", out, re.MULTILINE)


# --- errors ---------------------------------------------------------------------------------

COMMANDS = [[], ["slave"], ["show"]]


def check_error(outcome: tuple[int, str, str], *parts: str) -> None:
    """Status 1, nothing printed, one line of errors that has these parts and an advice."""
    status, out, err = outcome
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert err.startswith("task_manager: ")
    for part in parts:
        assert part in err
    assert ADVICE.search(err), f"does not say what to do: {err}"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_label(start_master: StartMaster, run: Run, command: list[str]) -> None:
    start_master()
    check_error(run(*command, "unknown"), "'unknown'")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_server(run: Run, command: list[str]) -> None:
    check_error(run(*command, "job"), "no name server answers", "-m HOST")


def test_no_name_server_to_list(run: Run, world: World) -> None:
    check_error(run("list"), "no name server answers", str(world.ns_port))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unreachable_host(run: Run, command: list[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    check_error(run(*command, "job", "-m", address), address)


def test_a_host_without_an_address(run: Run) -> None:
    check_error(run("job", "-m", "no-such-host.invalid"), "no-such-host.invalid:7766")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refused_key(
    start_master: StartMaster,
    run: Run,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    master = start_master()
    monkeypatch.setenv("MASTERSLAVE_KEY_FILE", str(world.path / "other"))
    check_error(run(*command, "job"), master.address, "key", "MASTERSLAVE_KEY_FILE")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_host_with_another_label(start_master: StartMaster, run: Run, command: list[str]) -> None:
    master = start_master(named=False)
    check_error(run(*command, "other", "-m", master.address), master.address, "'other'")


def test_a_host_that_is_no_task_manager(start_master: StartMaster, run: Run, world: World) -> None:
    start_master()
    check_error(run("job", "-m", f"127.0.0.1:{world.ns_port}"), str(world.ns_port))


def test_a_key_file_that_is_open_to_others(run: Run, world: World) -> None:
    key = world.write("key", secrets.token_hex(32))
    key.chmod(0o644)
    (world.path / ".masterslave").mkdir()
    key.rename(world.path / ".masterslave" / "key")
    check_error(run("job"), "open to others", "chmod 600")


def test_an_environment_that_cannot_be_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTERSLAVE_PORT", "many")
    status, out, err = run("job")
    assert (status, out) == (1, "")
    assert err.startswith("task_manager: MASTERSLAVE_PORT='many': must be a")
    assert err.count("\n") == 1


def test_errors_of_the_program_itself(world: World) -> None:
    program = world.task_manager("job", "-m", f"127.0.0.1:{free_port()}")
    assert program.finish(1) == ""
    assert program.err.count("\n") == 1


def test_a_slave_whose_code_does_not_load_ends_with_one_line(
    world: World, start_master: StartMaster
) -> None:
    master = start_master()
    master.keep_slave_code(script_record(world.write("broken.py", "def do_x(:\n")))
    slave = world.task_manager("slave", "job")
    slave.finish(1)
    (line,) = slave.err.splitlines()
    assert line.startswith("task_manager: ")
    assert "SyntaxError" in line


def test_a_slave_without_code_says_so(start_master: StartMaster, run: Run) -> None:
    master = start_master()
    master.task_manager.deleteData("slave_code")
    check_error(run("slave", "job"), "keeps no slave code")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["show"],
        ["slave"],
        ["-v"],
        ["job", "-m"],
        ["job", "extra"],
        ["job", "--bogus"],
        ["slave", "job", "-n", "0"],
        ["slave", "job", "-n", "-1"],
        ["slave", "job", "-n", "many"],
        ["slave", "job", "-n", "1.5"],
        ["slave", "job", "--json"],
        ["list", "extra"],
        ["job", "-n", "2"],
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: task_manager")


@pytest.mark.parametrize("address", [":7766", "host:", "host:0", "host:99999", "[::1", "host:x"])
def test_an_address_that_is_none(run: Run, address: str) -> None:
    status, out, err = run("job", "-m", address)
    assert status in (1, 2)
    assert out == ""
    assert address in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["slave", "-h"], ["-h", "slave"]])
def test_help(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    for word in ["usage: task_manager", "--master HOST[:PORT]", "--wait", "--verbose"]:
        assert word in out
    if "slave" not in arguments:
        for word in ["show", "list", "slave", "LABEL"]:
            assert word in out


# --- slaves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "slave job -n 2",
        "slave -n 2 job",
        "slave job --workers=2",
        "-v slave job -n2",
        "-n 2 slave job",
    ],
)
def test_a_slave_with_two_workers(world: World, start_master: StartMaster, form: str) -> None:
    master = start_master()
    slave = world.task_manager(*form.split())
    wait_until(lambda: slave.poll() is not None or master.task_manager.status()["slaves"])
    assert slave.poll() is None, slave.err
    wait_for_slaves(master)
    (row,) = master.task_manager.status()["slaves"]
    assert row["workers"] == 2
    assert row["pid"] == slave.pid
    wait_until(lambda: len(psutil.Process(slave.pid).children()) == 2)
    master.requestTask("echo", "through it")
    assert master.retrieveResult(timeout=PATIENCE_S)[2] == "through it"


def test_a_slave_ends_well_with_its_job(world: World, start_master: StartMaster) -> None:
    master = start_master()
    slave = start_slave(world, master)
    master.shutdown()
    assert slave.finish(0) == ""
    assert slave.err == ""


def test_a_slave_that_is_interrupted_leaves_without_a_traceback(
    world: World, start_master: StartMaster
) -> None:
    master = start_master()
    slave = start_slave(world, master)
    master.requestTask("pid")
    worker = master.retrieveResult(timeout=PATIENCE_S)[2]
    slave.send_signal(signal.SIGINT)
    slave.finish(0)
    assert slave.err == ""
    assert not is_running(worker)


# --- waiting for the master -----------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["by label", "by host"])
def test_show_waits_for_a_master_that_is_started_later(
    world: World, start_master: StartMaster, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    port = free_port()
    where = [] if named else ["-m", f"127.0.0.1:{port}"]
    program = world.task_manager("-w", "-v", "job", *where)
    wait_until(lambda: "waiting for the master of job" in program.err)
    if named:
        start_master()
        assert program.finish().startswith("task manager job\n")
    else:
        settings = replace(Settings.from_environment(), port=port)
        master = MasterProcess("job", use_name_server=False, settings=settings)
        try:
            assert program.finish().startswith("task manager job\n")
        finally:
            master.shutdown()


def test_a_slave_waits_for_a_master_that_is_started_later(
    world: World, start_master: StartMaster
) -> None:
    slave = world.task_manager("slave", "-w", "-v", "job")
    wait_until(lambda: "waiting for the master of job" in slave.err)
    master = start_master()
    master.requestTask("echo", "late")
    assert master.retrieveResult(timeout=PATIENCE_S)[2] == "late"
    assert slave.poll() is None


def test_waiting_can_be_interrupted(world: World) -> None:
    script = world.write(
        "wait.py",
        """
        import signal, sys
        from masterslave.cli import main
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
        sys.exit(main())
        """,
    )
    program = world.start(script, "-w", "-v", "job")
    wait_until(lambda: "waiting for the master of job" in program.err)
    program.send_signal(signal.SIGINT)
    program.finish(130)
    assert "Traceback" not in program.err


def test_waiting_does_not_help_against_a_refused_key(
    start_master: StartMaster, run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_master()
    monkeypatch.setenv("MASTERSLAVE_KEY_FILE", str(world.path / "other"))
    check_error(run("-w", "job"), "key")


# --- tables by themselves -------------------------------------------------------------------


def test_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_labels([], verbose=True)
    assert capsys.readouterr().out == "no task managers are known to the name server\n"


def test_a_slave_whose_workers_start_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    slave = {"info": "PID 2 on node", "workers": 4, "tags": None, "holds": 0, "finished": 0}
    status = {
        "label": "job",
        "active_processes": 2,
        "masters": [{"info": "PID 1 on node"}],
        "slaves": [slave],
        "workers": 4,
        "waiting": {"a": 1},
        "running": {"b": 2},
        "finished": {"a": 3},
        "client_waits": True,
        "failures": [],
        "delivered": 0,
    }
    tables.print_status(status, verbose=True)
    out = capsys.readouterr().out
    assert re.search(r"^slave +PID 2 on node +4 +0 +0 +\(starting\)$", out, re.MULTILINE)
    assert re.search("^a +1 +0 +3$", out, re.MULTILINE)
    assert re.search("^b +0 +2 +0$", out, re.MULTILINE)
    assert "! 1 task waits, but no slave has its workers ready yet\n" in out


def test_the_script_in_bin_can_be_executed() -> None:
    path = Path(ROOT) / "bin" / "task_manager"
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env python3\n")

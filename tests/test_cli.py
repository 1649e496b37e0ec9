"""The command `task_manager`: what it prints, and how it is called."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import Run, StartMaster, start_slave
from conftest import PATIENCE_S, ROOT, World, wait_until

from masterslave.slavecode import script_record

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
    assert re.search(r"active processes +2 +1 master, 1 slave with 2 workers", out)
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
    assert re.search(rf"^slave +PID {slave.pid} on .* +1 +0 +0 +echo, nap, pid$", out, re.MULTILINE)


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


def test_the_script_in_bin_can_be_executed() -> None:
    path = Path(ROOT) / "bin" / "task_manager"
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env python3\n")


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

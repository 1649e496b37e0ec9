"""What goes wrong for `task_manager` is one line that says what to do."""

from __future__ import annotations

import re
import secrets

import pytest
from command import Run, StartMaster
from conftest import World, free_port

from masterslave.slavecode import script_record

#: What a line that says what to do has in it.
ADVICE = re.compile(r"\b(start|use|set|run|give|check|choose|name its host|make sure|copy|look)\b")

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


@pytest.mark.parametrize("command", [*COMMANDS, ["serve"], ["start"], ["stop"], ["status"]])
def test_a_label_that_is_too_long(run: Run, command: list[str]) -> None:
    status, out, err = run(*command, "x" * 2000)
    assert (status, out) == (1, "")
    assert "label 'xxxxxxxxxxxxxxxxxxxx'...: must be of 1000 characters at most" in err
    assert err.count("\n") == 1


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


def test_waiting_does_not_help_against_a_refused_key(
    start_master: StartMaster, run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_master()
    monkeypatch.setenv("MASTERSLAVE_KEY_FILE", str(world.path / "other"))
    check_error(run("-w", "job"), "key")

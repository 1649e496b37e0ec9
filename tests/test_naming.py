"""Labels: one living master each, found by name through whatever name server there is."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PATIENCE_S, Impostor, Program, World, free_port, wait_until

from masterslave.errors import ConnectionFailed, LabelInUse, LabelUnknown, SettingsError
from masterslave.keyfile import load_key
from masterslave.master import MasterProcess
from masterslave.naming import connect, is_alive, survey
from masterslave.settings import Settings, split_address
from masterslave.transports.pyro import NameServerGone

# A master on its own: says where it is, and ends when it is told to by a file.
MASTER = """
    import os, sys, time
    from dataclasses import replace
    from masterslave import MasterProcess, Settings

    label, port = sys.argv[1], int(sys.argv[2])
    settings = replace(Settings.from_environment(), renewal_s=0.1, port=port)
    master = MasterProcess(label, settings=settings)
    print(master.address, flush=True)
    while not os.path.exists("end " + label):
        time.sleep(0.01)
    master.shutdown()
"""


def start_master(world: World, label: str, port: int = 0) -> Program:
    program = world.script(MASTER, label, port, name="master.py")
    wait_until(lambda: "\n" in program.out or program.poll() is not None, "the master is there")
    return program


def end_master(world: World, program: Program, label: str) -> None:
    world.write(f"end {label}", "")
    program.finish()


def settings_here(**changes: Any) -> Settings:
    return replace(Settings.from_environment(), renewal_s=0.1, **changes)


@contextlib.contextmanager
def master(label: str, *, use_name_server: bool = True, **changes: Any) -> Iterator[MasterProcess]:
    """A master in this process."""
    process = MasterProcess(label, use_name_server, settings=settings_here(**changes))
    try:
        yield process
    finally:
        process.shutdown()


def find(label: str, master_host: str | None = None) -> str:
    """Look a label up as a slave does; gives the label that the task manager says it has."""
    settings = Settings.from_environment()
    link = connect(label, master_host, settings, load_key(settings.key_file))
    try:
        return str(link.call("status")["label"])
    finally:
        link.close()


def can_be_found(label: str) -> bool:
    try:
        return find(label) == label
    except ConnectionFailed:
        return False


def wait_for_end(sock: socket.socket) -> None:
    while sock.recv(1000):
        pass


def speak_http(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 100)
    wait_for_end(sock)


def speak_at_once_and_leave(sock: socket.socket) -> None:
    sock.sendall(b"220 ready\r\n")


def leave(sock: socket.socket) -> None:
    pass


def speak_the_next_version(sock: socket.socket) -> None:
    sock.sendall(b"MSL\x02" + b"x" * 64)
    wait_for_end(sock)


# --- one label, one master ------------------------------------------------------------------


def test_a_second_master_with_the_label_is_refused(world: World) -> None:
    with master("job") as first:
        with pytest.raises(LabelInUse) as raised:
            MasterProcess("job", settings=settings_here())
        text = str(raised.value)
        assert "'job'" in text and first.address in text and "choose another label" in text
        assert find("job") == "job"
        with master("another job"):
            assert find("another job") == "another job"


def test_a_program_that_is_refused_says_why(world: World) -> None:
    with master("job"):
        second = start_master(world, "job")
        second.finish(1)
        assert "LabelInUse: a master with label 'job' is running at" in second.err


def test_the_label_is_free_when_its_master_has_ended(world: World) -> None:
    with master("keeps the name server"):
        for _ in range(2):
            with master("job"):
                assert find("job") == "job"
            with pytest.raises(LabelUnknown, match="'job'"):
                find("job")


def test_the_entry_of_a_killed_master_is_replaced(world: World) -> None:
    with master("keeps the name server"):
        killed = start_master(world, "job")
        assert find("job") == "job"
        killed.kill()
        killed.wait()
        with world.names() as proxy:
            before = str(proxy.lookup("TaskManager.job"))
        with master("job") as second:
            with world.names() as proxy:
                after = str(proxy.lookup("TaskManager.job"))
            assert before != after and after.endswith(second.address)
            assert find("job") == "job"


def test_the_label_and_the_name_server_of_a_killed_master_are_taken_over(world: World) -> None:
    killed = start_master(world, "job")
    killed.kill()
    killed.wait()
    with master("job"):
        assert find("job") == "job"


def test_a_master_with_another_key_keeps_its_label(world: World, tmp_path: Path) -> None:
    key_file = tmp_path / "other-key"
    key_file.write_text("ab" * 32)
    key_file.chmod(0o600)
    with master("job", key_file=key_file) as first:
        with pytest.raises(LabelInUse, match=re.escape(first.address)):
            MasterProcess("job", settings=settings_here())
        with world.names() as proxy:
            assert str(proxy.lookup("TaskManager.job")).endswith(first.address)


@pytest.mark.parametrize("answer", [speak_http, speak_at_once_and_leave, leave])
def test_an_entry_whose_port_some_other_program_has_is_replaced(
    world: World, answer: Callable[[socket.socket], object]
) -> None:
    with master("keeps the name server"), Impostor(answer) as other:
        world.enter("job", other.address)
        with master("job"):
            assert find("job") == "job"


def test_an_entry_whose_port_is_silent_is_replaced(world: World) -> None:
    with master("keeps the name server"), Impostor(wait_for_end) as other:
        world.enter("job", other.address)
        with master("job", handshake_s=0.3):
            assert find("job") == "job"


def test_an_entry_whose_port_another_master_has_is_replaced(world: World) -> None:
    with master("another") as other:
        world.enter("job", other.address)
        with pytest.raises(LabelUnknown, match="another label"):
            find("job")
        with master("job"):
            assert find("job") == "job"


def test_a_master_of_another_version_keeps_its_label(world: World) -> None:
    with master("keeps the name server"), Impostor(speak_the_next_version) as other:
        world.enter("job", other.address)
        with pytest.raises(LabelInUse):
            MasterProcess("job", settings=settings_here()).shutdown()


@pytest.mark.parametrize("address", ["./u:no-socket", "127.0.0.1:99999", "no.such.invalid:7"])
def test_a_nonsense_entry_is_replaced(world: World, address: str) -> None:
    with master("keeps the name server"):
        world.enter("job", address)
        with master("job"):
            assert find("job") == "job"


def test_a_stopped_master_does_not_remove_the_entry_of_another(world: World) -> None:
    with master("keeps the name server"):
        with master("job"):
            world.enter("job", "127.0.0.1:7")  # someone has taken it over meanwhile
        with world.names() as proxy:
            assert str(proxy.lookup("TaskManager.job")).endswith("@127.0.0.1:7")


@pytest.mark.parametrize(
    "label", ["two words", "größe ☃", "a@b:7", "100%", "slash/and\\", "list", "'quoted'", "%41"]
)
def test_labels_of_every_kind(world: World, label: str) -> None:
    with master(label) as process:
        assert find(label) == label
        assert find(label, process.address) == label
        shown = world.task_manager("show", "--json", label).finish()
        assert json.loads(shown)["label"] == label
        assert label in world.task_manager("list").finish()


def test_similar_labels_are_different_labels(world: World) -> None:
    with master("a b"), master("a%20b"), master("A b"):
        for label in ("a b", "a%20b", "A b"):
            assert find(label) == label


@pytest.mark.parametrize("label", ["", "  ", "two\nlines", "bell\a", None, 7])
def test_labels_that_cannot_be(world: World, label: Any) -> None:
    with pytest.raises(SettingsError, match="label"):
        MasterProcess(label)


# --- without a name server ------------------------------------------------------------------


def test_a_master_without_a_name_server_is_found_by_its_address(world: World) -> None:
    port = free_port()
    with master("job", use_name_server=False, port=port) as process:
        assert process.address == f"127.0.0.1:{port}"
        assert find("job", f"127.0.0.1:{port}") == "job"
        with pytest.raises(NameServerGone):
            find("job")
        shown = world.task_manager("-m", f"127.0.0.1:{port}", "job").finish()
        assert "job" in shown


def test_the_port_can_be_chosen_by_environment(world: World) -> None:
    port = free_port()
    world.env["MASTERSLAVE_PORT"] = str(port)
    world.write(
        "slave.py",
        f"""
        from masterslave import startSlaveProcess
        def do_double(x):
            return 2 * x
        startSlaveProcess("job", "127.0.0.1:{port}")
        """,
    )
    program = world.script(
        """
        from masterslave import initializeMasterProcess
        master = initializeMasterProcess("job", slave_script="slave.py", use_name_server=False)
        print(master.address, flush=True)
        master.requestTask("double", 21)
        print(*master.retrieveResult())
        """
    )
    wait_until(lambda: program.out or program.poll() is not None)
    slave = world.start("slave.py")
    assert program.finish().splitlines() == [f"127.0.0.1:{port}", "double_0 double 42"]
    slave.finish()


# Pyro leaves the socket that it could not bind to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("use_name_server", [False, True])
def test_a_busy_port_is_a_clear_error(world: World, use_name_server: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(ConnectionFailed, match=f"127.0.0.1:{port}.*MASTERSLAVE_PORT"):
            MasterProcess("job", use_name_server, settings=settings_here(port=port))


# --- the name server ------------------------------------------------------------------------


def test_without_a_name_server_there_is_a_clear_error(world: World) -> None:
    with pytest.raises(NameServerGone, match=f"localhost:{world.ns_port}"):
        find("job")


def test_a_name_server_that_runs_is_used(world: World) -> None:
    world.start_name_server()
    with master("job"):
        with world.names() as proxy:
            assert "TaskManager.job" in proxy.list()
        assert find("job") == "job"
    with world.names() as proxy:  # it has outlived the master, the label has not
        assert "TaskManager.job" not in proxy.list()


def test_the_label_is_entered_again_when_the_name_server_has_restarted(world: World) -> None:
    server = world.start_name_server()
    process = start_master(world, "job")
    assert find("job") == "job"
    process.send_signal(signal.SIGSTOP)  # or it would start a name server itself
    server.kill()
    server.wait()
    world.start_name_server()
    assert not can_be_found("job")
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: can_be_found("job"), "the label is entered again")
    end_master(world, process, "job")


def test_a_name_server_that_has_gone_is_replaced_by_a_master(world: World) -> None:
    server = world.start_name_server()
    with master("job"):
        server.kill()
        server.wait()
        wait_until(lambda: can_be_found("job"), "the label can be looked up again")
        listening = [s.laddr.port for s in psutil.Process().net_connections("tcp") if not s.raddr]
        assert world.ns_port in listening


@pytest.mark.parametrize("end", ["in order", "killed"])
def test_the_name_server_of_one_master_is_taken_over_by_another(world: World, end: str) -> None:
    first = start_master(world, "first")
    with master("second"):
        assert find("second") == "second"
        if end == "killed":
            first.kill()
            first.wait()
        else:
            end_master(world, first, "first")
        wait_until(lambda: can_be_found("second"), "the label can be looked up again")


def test_several_masters_take_over_from_one(world: World) -> None:
    first = start_master(world, "first")
    with master("second"), master("third"), master("fourth"):
        first.kill()
        first.wait()
        labels = ("second", "third", "fourth")
        for label in labels:
            wait_until(lambda label=label: can_be_found(label), f"{label} can be looked up")
        with world.names() as proxy:
            assert {f"TaskManager.{label}" for label in labels} <= set(proxy.list())
            assert "TaskManager.first" not in proxy.list()


def test_masters_that_start_at_the_same_time_share_one_name_server(world: World) -> None:
    script = world.write("master.py", MASTER)
    programs = [world.start(script, f"m{i}", 0) for i in range(4)]
    for number, program in enumerate(programs):
        wait_until(lambda p=program: "\n" in p.out or p.poll() is not None)
        assert program.poll() is None, program.err
        assert find(f"m{number}") == f"m{number}"
    for number, program in enumerate(programs):
        end_master(world, program, f"m{number}")


def test_an_entry_that_was_removed_or_leads_astray_is_made_again(world: World) -> None:
    with master("keeps the name server"), master("job") as first:
        with world.names() as proxy:
            proxy.remove("TaskManager.job")
        wait_until(lambda: can_be_found("job"), "an entry that was removed comes back")
        world.enter("job", "127.0.0.1:7")  # leads nowhere
        wait_until(lambda: can_be_found("job"), "an entry that leads astray is replaced")
        assert find("job", first.address) == "job"


def test_the_registration_survives_nonsense_in_the_name_server(world: World) -> None:
    with master("keeps the name server"), master("job") as process:
        for address in ("./u:no-socket", "127.0.0.1:99999"):
            world.enter("job", address)
            wait_until(lambda: can_be_found_or_nonsense("job"), "it is replaced")
            with world.names() as proxy:
                assert str(proxy.lookup("TaskManager.job")).endswith(process.address)


def can_be_found_or_nonsense(label: str) -> bool:
    try:
        return can_be_found(label)
    except SettingsError:
        return False


def test_a_foreign_program_at_the_name_servers_port_is_a_clear_error(world: World) -> None:
    with Impostor(speak_http) as other:
        port = split_address(other.address)[1]
        world.env["PYRO_NS_PORT"] = str(port)
        program = world.task_manager("list")
        program.finish(1)
        (line,) = program.err.strip().splitlines()
        assert f"localhost:{port}" in line


# --- task_manager list ----------------------------------------------------------------------


def test_dead_entries_are_marked_and_removed(world: World) -> None:
    with master("alive"):
        killed = start_master(world, "dead")
        killed.kill()
        killed.wait()
        first = world.task_manager("list").finish()
        assert re.search(r"^dead .*gone", first, re.MULTILINE)
        assert re.search(r"^alive .*alive", first, re.MULTILINE)
        second = world.task_manager("list").finish()
        assert "dead" not in second and re.search(r"^alive .*alive", second, re.MULTILINE)


def test_an_entry_whose_port_some_other_program_has_is_dead(world: World) -> None:
    with master("alive"), Impostor(speak_http) as other:
        world.enter("dead", other.address)
        settings = Settings.from_environment()
        rows = survey(settings, load_key(settings.key_file), with_counts=False)
        assert {row["label"]: str(row["state"]).split()[0] for row in rows} == {
            "alive": "alive",
            "dead": "gone",
        }


def test_list_counts_processes(world: World) -> None:
    with master("job") as process:
        rows = json.loads(world.task_manager("list", "-v", "--json").finish())
        assert rows == [
            {
                "label": "job", "address": process.address, "state": "alive",
                "processes": 1, "workers": 0,
            }
        ]  # fmt: skip


def test_list_without_a_name_server_is_an_error_of_one_line(world: World) -> None:
    program = world.task_manager("list")
    assert program.finish(1) == ""
    assert f"localhost:{world.ns_port}" in program.err and len(program.err.splitlines()) == 1


def test_list_with_nothing_to_list(world: World) -> None:
    world.start_name_server()
    assert "no task managers" in world.task_manager("list").finish()


def test_entries_of_other_programs_are_left_alone(world: World) -> None:
    world.start_name_server()
    with world.names() as proxy:
        proxy.register("Some.Other.object", "PYRO:x@127.0.0.1:7")
        world.task_manager("list").finish()
        assert "Some.Other.object" in proxy.list()


# --- looking for who is alive ---------------------------------------------------------------


def test_is_alive_tries_every_address(world: World) -> None:
    settings = settings_here(handshake_s=PATIENCE_S)
    key = load_key(settings.key_file)
    dead = f"127.0.0.1:{free_port()}"
    with master("job") as process:
        assert is_alive("job", [dead, process.address], key, settings)
        assert not is_alive("other", [dead, process.address], key, settings)
    assert not is_alive("job", [dead], key, settings)


def test_a_slave_can_wait_for_its_master(world: World) -> None:
    waiting = world.task_manager("show", "job", "--wait", "--json")
    with master("job"):
        assert json.loads(waiting.finish())["label"] == "job"


def test_nothing_is_left_of_a_master_in_this_process(world: World) -> None:
    def descriptors() -> int:
        gc.collect()  # Pyro leaves its selectors to the garbage collector
        return len(os.listdir("/proc/self/fd"))

    threads, open_before = set(threading.enumerate()), descriptors()
    with master("job") as process:
        assert find("job") == "job"
    for address in (split_address(process.address), ("127.0.0.1", world.ns_port)):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    wait_until(lambda: set(threading.enumerate()) <= threads, "its threads end")
    wait_until(lambda: descriptors() <= open_before, "its files are closed")

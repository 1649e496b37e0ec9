"""Labels: one living master each, and how it is found."""

from __future__ import annotations

import gc
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Impostor, World, free_port, wait_until
from labels import (
    find,
    leave,
    master,
    settings_here,
    speak_at_once_and_leave,
    speak_http,
    speak_the_next_version,
    start_master,
    wait_for_end,
)

from masterslave.errors import ConnectionFailed, LabelInUse, LabelUnknown, SettingsError
from masterslave.keyfile import load_key
from masterslave.master import MasterProcess
from masterslave.naming import connect_or_follow, is_alive
from masterslave.settings import split_address
from masterslave.transports.pyro import NameServerGone

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
        with pytest.raises(LabelUnknown, match=r"another label"):
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


# --- where the address was ------------------------------------------------------------------


def follow(label: str, known: str, handshake_s: float = PATIENCE_S) -> str:
    """The label of the task manager that a launched slave finds."""
    settings = settings_here(handshake_s=handshake_s)
    link = connect_or_follow(label, known, settings, load_key(settings.key_file))
    try:
        return str(link.call("status")["label"])
    finally:
        link.close()


def test_a_known_address_needs_no_name_server(world: World) -> None:
    with master("job", use_name_server=False, port=free_port()) as process:
        assert follow("job", process.address) == "job"


@pytest.mark.parametrize("answer", [None, leave, speak_http, speak_the_next_version, wait_for_end])
def test_where_the_known_address_is_no_longer_the_masters_the_label_leads_on(
    world: World, answer: Callable[[socket.socket], object] | None
) -> None:
    with master("job"):
        if answer is None:
            assert follow("job", f"127.0.0.1:{free_port()}") == "job"
        else:
            with Impostor(answer) as other:
                assert follow("job", other.address, handshake_s=0.5) == "job"


def test_a_known_address_of_another_job_is_not_ours(world: World) -> None:
    with master("job"), master("other") as other:
        assert follow("job", other.address) == "job"
        with pytest.raises(
            ConnectionFailed, match=r"another label than 'gone'.*'gone' is known to"
        ):
            follow("gone", other.address)


def test_neither_the_address_nor_the_label_is_there(world: World) -> None:
    with pytest.raises(ConnectionFailed, match=r"127.0.0.1:1: .*; by its label: no name server"):
        follow("job", "127.0.0.1:1")


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


def test_a_master_on_one_address_of_several_has_its_name_server_there(world: World) -> None:
    world.env["MASTERSLAVE_HOST"] = "127.0.0.2"
    job = world.script("""
        from masterslave import MasterProcess
        master = MasterProcess("job")
        print(master.address)
        master.shutdown()
    """)
    assert job.finish().startswith("127.0.0.2:")


def test_pyro_must_serve_each_connection_with_a_thread(world: World) -> None:
    world.env["PYRO_SERVERTYPE"] = "multiplex"
    job = world.script("from masterslave import MasterProcess; MasterProcess('job')")
    job.finish(1)
    assert "PYRO_SERVERTYPE='multiplex': must be 'thread'" in job.err

"""Labels in the name server, whichever there is; the list of them."""

from __future__ import annotations

import json
import re
import signal
import threading
from dataclasses import replace
from typing import Any

import psutil
import pytest
from conftest import Impostor, World, wait_until
from labels import (
    MASTER,
    can_be_found,
    end_master,
    find,
    master,
    settings_here,
    speak_http,
    start_master,
)

from masterslave import naming
from masterslave.errors import LabelInUse, SettingsError
from masterslave.keyfile import load_key
from masterslave.master import MasterProcess
from masterslave.naming import survey
from masterslave.settings import Settings, split_address
from masterslave.transports.nameserver import EmbeddedNameServer, NameServerGone

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


def test_the_name_server_is_closed_where_no_thread_can_be_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of the interpreter, from Python 3.12 on."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "name-server-end":
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with master("job"):
        assert find("job") == "job"
    with pytest.raises(NameServerGone):
        find("job")


def test_who_starts_the_name_server_has_its_label_before_anyone_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[LabelInUse] = []

    def start(*args: Any) -> EmbeddedNameServer:
        server = EmbeddedNameServer(*args)
        monkeypatch.setattr(naming, "EmbeddedNameServer", EmbeddedNameServer)
        try:  # another one, as soon as the name server answers
            MasterProcess("job", settings=settings_here()).shutdown()
        except LabelInUse as error:
            refused.append(error)
        return server

    monkeypatch.setattr(naming, "EmbeddedNameServer", start)
    with master("job") as first:
        assert find("job") == "job"
        assert len(refused) == 1 and first.address in str(refused[0])


def test_a_living_master_keeps_its_label_while_there_is_no_name_server(world: World) -> None:
    first = start_master(world, "first")
    second = MasterProcess("second", settings=replace(settings_here(), renewal_s=1e6))
    try:
        end_master(world, first, "first")  # and the name server
        assert not can_be_found("second")
        third = start_master(world, "second")
        third.finish(1)
        assert f"label 'second' is running at {second.address}" in third.err
    finally:
        second.shutdown()


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

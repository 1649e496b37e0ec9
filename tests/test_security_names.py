"""Attacks through the name server: forged entries, forged servers, noise."""

from __future__ import annotations

import contextlib
import marshal
import re
import socket
import struct
import threading
from collections.abc import Callable

import psutil
import pytest
from attacks import LABEL, Job, bare, messages_of_strangers, one_line, receive, rest
from conftest import Impostor, World
from Pyro5 import protocol
from Pyro5.client import Proxy
from Pyro5.errors import NamingError, PyroError
from Pyro5.serializers import serializers

from masterslave.proofs import HELLO_BYTES, NONCE_BYTES, PROOF_BYTES
from masterslave.settings import split_address
from masterslave.transports import nameserver

# --- forged entries in the name server ------------------------------------------------------


def guess_proof(sock: socket.socket) -> None:
    receive(sock, HELLO_BYTES)
    sock.sendall(b"MSL\x02" + b"s" * NONCE_BYTES + b"p" * PROOF_BYTES)
    rest(sock)


def reflect(sock: socket.socket) -> None:
    hello = receive(sock, HELLO_BYTES)
    sock.sendall(hello + hello[-PROOF_BYTES:])
    rest(sock)


def accept_like_pyro(sock: socket.socket) -> None:
    receive(sock, HELLO_BYTES)
    data = marshal.dumps({"handshake": "hello", "meta": {"methods": [], "attrs": [], "oneway": []}})
    sock.sendall(protocol.SendingMessage(protocol.MSG_CONNECTOK, 0, 0, 2, data).data)
    rest(sock)


def hang_up(sock: socket.socket) -> None:
    receive(sock, 1)


@pytest.mark.parametrize("answer", [guess_proof, reflect, accept_like_pyro, hang_up])
def test_a_forged_entry_leads_nobody_astray(job: Job, answer: Callable[..., object]) -> None:
    with Impostor(answer) as impostor:
        job.world.enter("forged", impostor.address)
        programs = [job.world.task_manager(command, "forged") for command in ("show", "slave")]
        for program in programs:
            assert program.finish(1) == ""
            assert impostor.address in one_line(program.err)


def test_a_forged_entry_that_leads_through_a_relay_to_another_job_is_refused(job: Job) -> None:
    job.world.enter("forged", job.address)
    program = job.world.task_manager("slave", "forged")
    program.finish(1)
    assert "another label" in one_line(program.err)


@pytest.mark.parametrize(
    "address", ["./u:no-such-socket", "127.0.0.1:1", "no.such.host.invalid:7", "127.0.0.1:99999"]
)
def test_a_nonsense_entry_is_one_line_of_error(job: Job, address: str) -> None:
    job.world.enter("forged", address)
    for command in ("show", "slave"):
        program = job.world.task_manager(command, "forged")
        assert program.finish(1) == ""
        line = one_line(program.err)
        assert "forged" in line or address in line


def test_a_nonsense_entry_does_not_hide_the_others(job: Job) -> None:
    job.world.enter("forged", "./u:no-such-socket")
    listed = job.world.task_manager("list").finish()
    assert re.search(rf"{LABEL} .*alive", listed)


def test_a_forged_name_server_cannot_choose_the_serializer(world: World) -> None:
    """Who answers where the name server is looked for must not have marshal decode its bytes."""
    went_on = threading.Event()
    meta = {"methods": ["lookup", "ping"], "attrs": [], "oneway": []}
    data = marshal.dumps({"handshake": "hello", "meta": meta})

    def answer(sock: socket.socket) -> None:
        stub = receive(sock, 40)
        sizes = struct.unpack_from("!II", stub, 12)
        receive(sock, sum(sizes))
        sock.sendall(protocol.SendingMessage(protocol.MSG_CONNECTOK, 0, 0, 2, data).data)
        if receive(sock, 1):
            went_on.set()

    with Impostor(answer) as impostor:
        world.env["PYRO_NS_PORT"] = str(split_address(impostor.address)[1])
        program = world.task_manager("show", "anything")
        program.finish(1)
        one_line(program.err)
    assert not went_on.is_set(), "the answer in marshal was decoded and believed"


# --- the name server inside the master ------------------------------------------------------


def test_the_name_server_refuses_what_is_not_serpent(job: Job) -> None:
    for name, sent in messages_of_strangers().items():
        if name.startswith(("serpent", "ping")):
            continue
        with bare(f"127.0.0.1:{job.world.ns_port}") as sock:
            sock.sendall(sent)
            assert b"".join(re.findall(b"PYRO..\x02", rest(sock))) == b"", name  # no CONNECTOK
    assert LABEL in job.world.task_manager("list").finish()


def test_the_name_server_refuses_another_serializer_later(job: Job) -> None:
    serpent = serializers["serpent"]
    hello = serpent.dumps({"handshake": "hello", "object": "Pyro.NameServer"})
    remove = ("Pyro.NameServer", "remove", (f"TaskManager.{LABEL}",), {})
    for name, flags in (("marshal", 0), ("json", 0), ("serpent", protocol.FLAGS_BATCH)):
        with bare(f"127.0.0.1:{job.world.ns_port}") as sock:
            sock.sendall(protocol.SendingMessage(protocol.MSG_CONNECT, 0, 0, 1, hello).data)
            assert receive(sock, 7)[-1] == protocol.MSG_CONNECTOK
            data = serializers[name].dumpsCall(*remove)
            number = serializers[name].serializer_id
            sock.sendall(protocol.SendingMessage(protocol.MSG_INVOKE, flags, 1, number, data).data)
            rest(sock)
    assert LABEL in job.world.task_manager("list").finish()


def test_the_name_server_takes_no_regular_expressions(job: Job) -> None:
    """They can keep the interpreter busy for ever."""
    with job.world.names() as names:
        names.register("a" * 40 + "!", "PYRO:x@127.0.0.1:1")
        for method in (names.list, names.remove):
            with pytest.raises(NamingError, match="regular expressions"):
                method(regex="(a+)+$")
        assert "a" * 40 + "!" in names.list(prefix="a")


def test_the_name_server_makes_no_objects_of_what_it_is_sent(job: Job) -> None:
    """A proxy among the arguments would connect to wherever the sender says."""
    with Impostor(lambda sock: None) as impostor, job.world.names() as names:
        names._pyroBind()
        spy = Proxy(f"PYRO:x@{impostor.address}")
        for call in (lambda: names.lookup(spy), lambda: names.register("x", spy)):
            with pytest.raises((NamingError, TypeError, ValueError, PyroError)):
                call()
        assert impostor.visits == 0


def test_the_name_server_has_a_largest_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "_NAMES", 3)
    server = nameserver.EmbeddedNameServer("127.0.0.1", 0)
    try:
        port = server._daemon.sock.getsockname()[1]
        with Proxy(f"PYRO:Pyro.NameServer@127.0.0.1:{port}") as names:
            count = names.count()
            for number in range(3 - count):
                names.register(f"name{number}", "PYRO:x@127.0.0.1:1")
            with pytest.raises(NamingError, match="no room"):
                names.register("one more", "PYRO:x@127.0.0.1:1")
            names.register("name0", "PYRO:y@127.0.0.1:1")  # a known one may change
    finally:
        server.stop()


def test_the_name_server_reserves_nothing_for_huge_lengths(job: Job) -> None:
    memory = psutil.Process(job.master.pid).memory_info().rss
    for sizes in ((0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (1 << 30, 0), ((1 << 20) + 1, 0)):
        head = ("!4sHBBHHII16sHH", b"PYRO", 502, 1, 1, 0, 0, *sizes, b"", 0, 0x4DC5)
        with bare(f"127.0.0.1:{job.world.ns_port}") as sock:
            sock.sendall(struct.pack(*head) + b"x" * 1000)
            assert re.findall(b"PYRO..\x02", rest(sock)) == []
    assert psutil.Process(job.master.pid).memory_info().rss < memory + (100 << 20)
    assert LABEL in job.world.task_manager("list").finish()


def test_the_name_server_is_not_held_up_by_silence(job: Job) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(bare(f"127.0.0.1:{job.world.ns_port}"))
            sock.sendall(b"PYRO"[: number % 5])
        assert LABEL in job.world.task_manager("list").finish()

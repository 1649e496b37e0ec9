"""Attacks on a running job and on who looks for one: refused, nothing decoded, the job goes on.

Most tests run a real master with a real slave, attack while tasks run, and then see the job end
with all its results.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import re
import secrets
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import Pyro5.client
import pytest
from conftest import PATIENCE_S, Impostor, World, wait_until
from Pyro5 import protocol
from Pyro5.serializers import serializers

from masterslave.errors import AuthenticationError
from masterslave.keyfile import load_key
from masterslave.proofs import HELLO_BYTES, NONCE_BYTES, PROOF_BYTES, RECORD_HEADER, REPLY_BYTES
from masterslave.settings import Settings, join_address, split_address
from masterslave.transports.channel import client_handshake
from masterslave.transports.pyro import PyroLink

LABEL = "target"
JOB = """
    import os, time
    from dataclasses import replace
    from masterslave import MasterProcess, Settings, SlaveProcess, runJob

    class Master(MasterProcess):
        def __init__(self, label):
            settings = replace(Settings.from_environment(), handshake_s=HANDSHAKE_S)
            super().__init__(label, settings=settings)

        def run(self):
            with open("address.new", "w") as file:
                file.write(self.address)
            os.rename("address.new", "address")
            self.requestTasks("double", [(i,) for i in range(20)])
            print(sorted(result for _, _, result in self.results()))

    class Slave(SlaveProcess):
        def do_double(self, x):
            while x % 4 == 3 and not os.path.exists("go"):
                time.sleep(0.005)
            return 2 * x

    runJob("target", Master, Slave, launch_slaves=LAUNCH)
"""
RESULTS = str([2 * x for x in range(20)])


class Job:
    """A running job: some of its tasks wait until `finish` is called."""

    def __init__(self, world: World, launch_slaves: int = 1, handshake_s: float = 10.0) -> None:
        self.world = world
        text = JOB.replace("LAUNCH", str(launch_slaves)).replace("HANDSHAKE_S", str(handshake_s))
        self.master = world.script(text, name="job.py")
        path = world.path / "address"
        wait_until(lambda: path.exists() or self.master.poll() is not None, "the master is there")
        assert path.exists(), self.master.err
        self.address = path.read_text()
        self.key = load_key(Settings.from_environment().key_file)
        if launch_slaves:
            wait_until(lambda: self.status()["running"], "tasks run")

    def connect(self) -> socket.socket:
        """A bare connection to the task manager."""
        return bare(self.address)

    def link(self) -> PyroLink:
        return PyroLink(split_address(self.address), LABEL, self.key, PATIENCE_S)

    def status(self) -> dict[str, Any]:
        with contextlib.closing(self.link()) as link:
            status: dict[str, Any] = link.call("status")
        return status

    def finish(self) -> None:
        """The rest of the tasks runs, and the job ends with all its results."""
        self.world.write("go", "")
        assert self.master.finish().strip() == RESULTS


@pytest.fixture
def job(world: World) -> Iterator[Job]:
    """A job under attack, which must end well after the test."""
    job = Job(world)
    slaves = job.status()["slaves"]
    yield job
    assert [s["id"] for s in job.status()["slaves"]] == [s["id"] for s in slaves]  # none was lost
    job.finish()
    assert "Traceback" not in job.master.err


def bare(address: str) -> socket.socket:
    return socket.create_connection(split_address(address), timeout=PATIENCE_S)


def rest(sock: socket.socket) -> bytes:
    """All that still comes until the peer closes; fails when it does not close."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, fewer when the peer has closed."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < size and (piece := sock.recv(size - len(data))):
            data += piece
    return data


def one_line(text: str) -> str:
    """The only line of a program's standard error."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


def messages_of_strangers() -> dict[str, bytes]:
    """Pyro's own first messages, with each of its serializers, and worse."""
    hello = {"handshake": "hello", "object": "Pyro.Daemon"}
    found = {}
    for name in ("serpent", "marshal", "json", "msgpack"):
        serializer = serializers[name]
        data = serializer.dumps(hello)
        for kind in (protocol.MSG_CONNECT, protocol.MSG_INVOKE):
            found[f"{name} {kind}"] = protocol.SendingMessage(
                kind, 0, 0, serializer.serializer_id, data
            ).data
    # What marshal makes of these bytes would be built, at any depth, before anyone is asked.
    nested = b"(\x01\x00\x00\x00" * 100 + b"N"
    found["marshal nested"] = protocol.SendingMessage(protocol.MSG_CONNECT, 0, 0, 2, nested).data
    found["ping"] = protocol.SendingMessage(protocol.MSG_PING, 0, 0, 42, b"ping").data
    return found


# --- without the key ------------------------------------------------------------------------


def test_pyros_own_messages_get_no_answer(job: Job) -> None:
    for name, sent in messages_of_strangers().items():
        with job.connect() as sock:
            sock.sendall(sent)
            assert rest(sock) == b"", name


def test_a_pyro_client_gets_nowhere(job: Job) -> None:
    proxy = Pyro5.client.Proxy(f"PYRO:TaskManager.{LABEL}@{job.address}")
    proxy._pyroTimeout = PATIENCE_S
    with proxy, pytest.raises(Pyro5.errors.CommunicationError):
        proxy.numberOfActiveProcesses()


def test_other_protocols_and_noise_get_no_answer(job: Job) -> None:
    openings = [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",  # TLS
        b"\0" * 100,
        b"\xff" * 100_000,
        b"MSL\x02" + b"n" * NONCE_BYTES,
        struct.pack("!Q", 4 << 30) + b"m" * 32,
        protocol.SendingMessage(protocol.MSG_CONNECT, 0, 0, 4, b"").data[:20] + b"\xff" * 20,
        *(secrets.token_bytes(200) for _ in range(20)),
    ]
    for opening in openings:
        with job.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(opening)
            assert rest(sock) == b"", opening[:20]


def test_a_length_of_4_gib_costs_nothing(job: Job) -> None:
    memory = psutil.Process(job.master.pid).memory_info().rss
    huge = struct.pack("!4sHBBHHII16sHH", b"PYRO", 502, 1, 4, 0, 0, 0xFFFFFFFF, 0, b"", 0, 0x4DC5)
    with job.connect() as plain, job.connect() as authenticated:
        plain.sendall(huge)
        client_handshake(authenticated, job.key, PATIENCE_S)
        authenticated.sendall(RECORD_HEADER.pack(4 << 30, b"m" * 32))
        authenticated.settimeout(PATIENCE_S)
        assert rest(plain) == rest(authenticated) == b""
    assert psutil.Process(job.master.pid).memory_info().rss < memory + (100 << 20)


def test_a_client_with_another_key_is_refused(job: Job) -> None:
    with job.connect() as sock, pytest.raises(AuthenticationError):
        client_handshake(sock, b"o" * 32, PATIENCE_S)
    # One that skips the check of the server's proof must not get further either.
    with job.connect() as sock:
        sock.sendall(b"MSL\x01" + b"n" * NONCE_BYTES)
        assert len(receive(sock, REPLY_BYTES)) == REPLY_BYTES
        sock.sendall(b"p" * PROOF_BYTES)
        assert rest(sock) == b""


@pytest.mark.parametrize("command", [("show", LABEL), ("slave", LABEL), ("list",)])
def test_the_command_line_with_another_key(job: Job, command: tuple[str, ...]) -> None:
    other = job.world.path / "other-key"
    other.write_text("ab" * 32)
    other.chmod(0o600)
    kept = dict(job.world.env)
    job.world.env["MASTERSLAVE_KEY_FILE"] = str(other)
    program = job.world.task_manager(*command)
    job.world.env = kept
    if command[0] == "list":
        assert "refuses our key" in program.finish()
        assert job.world.task_manager("show", LABEL).finish()  # its entry has not been removed
    else:
        assert program.finish(1) == ""
        assert "MASTERSLAVE_KEY_FILE" in one_line(program.err)


def test_a_hundred_silent_connections_hold_up_nobody(world: World) -> None:
    job = Job(world, handshake_s=3.0)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(job.connect()) for _ in range(100)]
        for number, sock in enumerate(silent):
            sock.sendall((b"MSL\x01" + b"n" * NONCE_BYTES)[: number % HELLO_BYTES])
        (slave,) = job.status()["slaves"]
        job.finish()
    assert slave["workers"] == 1
    assert "Traceback" not in job.master.err


def test_silent_connections_are_closed(world: World) -> None:
    job = Job(world, handshake_s=1.0)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(job.connect()) for _ in range(100)]
        for sock in silent:
            assert rest(sock) == b""
    job.finish()


# --- on the way -----------------------------------------------------------------------------

UP, DOWN = "up", "down"  # to the task manager, from the task manager
Tamper = Callable[[str, bytes], list[bytes]]


class Connection:
    """One connection through a relay, and what has passed."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.sockets = client, server
        self.units: dict[str, list[bytes]] = {UP: [], DOWN: []}  # handshake messages, records
        self.ended = threading.Event()

    def end(self) -> None:
        self.ended.set()
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Relay:
    """Stands between slave and master; passes on handshake messages and records as units.

    `tamper(direction, unit)` gives the pieces that are passed on in the place of a unit.
    """

    def __init__(self, target: str, tamper: Tamper = lambda direction, unit: [unit]) -> None:
        self._target = split_address(target)
        self._tamper = tamper
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = join_address(*self._server.getsockname()[:2])
        self.connections: list[Connection] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join()
        for connection in self.connections:
            connection.end()
        for thread in self._threads:
            thread.join()
        for connection in self.connections:
            for sock in connection.sockets:
                sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            connection = Connection(client, server)
            self.connections.append(connection)
            for direction in (UP, DOWN):
                thread = threading.Thread(
                    target=self._pass_on, args=(connection, direction), daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def _pass_on(self, connection: Connection, direction: str) -> None:
        source, sink = connection.sockets if direction == UP else connection.sockets[::-1]
        with contextlib.suppress(OSError):
            for unit in self._units(source, direction):
                connection.units[direction].append(unit)
                for piece in self._tamper(direction, unit):
                    sink.sendall(piece)
        connection.end()

    def _units(self, source: socket.socket, direction: str) -> Iterator[bytes]:
        for size in (HELLO_BYTES, PROOF_BYTES) if direction == UP else (REPLY_BYTES,):
            yield receive(source, size)
        while len(header := receive(source, RECORD_HEADER.size)) == RECORD_HEADER.size:
            yield header + receive(source, RECORD_HEADER.unpack(header)[0])


class Once:
    """Tampers with the first unit of a direction that contains all the marks."""

    def __init__(
        self, direction: str, marks: list[bytes], change: Callable[[bytes], list[bytes]]
    ) -> None:
        self.happened = threading.Event()
        self._direction, self._marks, self._change = direction, marks, change
        self._lock = threading.Lock()

    def __call__(self, direction: str, unit: bytes) -> list[bytes]:
        with self._lock:
            if (
                self.happened.is_set()
                or direction != self._direction
                or not all(mark in unit for mark in self._marks)
            ):
                return [unit]
            self.happened.set()
            return self._change(unit)


def flip_middle(unit: bytes) -> list[bytes]:
    """One bit changed, in the middle of the data of a record."""
    damaged = bytearray(unit)
    damaged[RECORD_HEADER.size + (len(unit) - RECORD_HEADER.size) // 2] ^= 4
    return [bytes(damaged)]


def twice(unit: bytes) -> list[bytes]:
    return [unit, unit]


# The wire is not secret, only signed: records can be chosen by what they hold.
REGISTRATION = (UP, [b"registerProcess"])
TAGS = (UP, [b"announceTags"])
RESULT_HANDED_IN = (UP, [b"exchange", b"result"])
TASKS_HANDED_OUT = (DOWN, [b"double_"])


@pytest.mark.parametrize(
    ("place", "change"),
    [
        pytest.param(TAGS, flip_middle, id="flip-tags"),
        pytest.param(RESULT_HANDED_IN, flip_middle, id="flip-result"),
        pytest.param(TASKS_HANDED_OUT, flip_middle, id="flip-tasks"),
        pytest.param(TAGS, twice, id="replay-tags"),
        pytest.param(RESULT_HANDED_IN, twice, id="replay-result"),
        pytest.param(TASKS_HANDED_OUT, twice, id="replay-tasks"),
    ],
)
def test_what_is_tampered_with_ends_the_connection_and_the_slave_comes_back(
    world: World, place: tuple[str, list[bytes]], change: Callable[[bytes], list[bytes]]
) -> None:
    job = Job(world, launch_slaves=0)
    tamper = Once(*place, change)
    with Relay(job.address, tamper) as relay:
        slave = world.task_manager("slave", LABEL, "-m", relay.address)
        wait_until(tamper.happened.is_set, "the relay has tampered")
        wait_until(lambda: any(c.ended.is_set() for c in relay.connections), "it was noticed")
        (damaged, *_) = [c for c in relay.connections if c.ended.is_set()]
        job.finish()
        slave.finish()
        assert len(relay.connections) > 2  # the sender's and the fetcher's, and at least one more
    assert damaged.units[UP]


def test_a_tampered_result_is_not_applied(world: World) -> None:
    job = Job(world, launch_slaves=0)
    seen: list[dict[str, Any]] = []

    def change(unit: bytes) -> list[bytes]:
        seen.append(job.status())  # before the damaged record is passed on
        return flip_middle(unit)

    tamper = Once(*RESULT_HANDED_IN, change)
    with Relay(job.address, tamper) as relay:
        slave = world.task_manager("slave", LABEL, "-m", relay.address)
        wait_until(tamper.happened.is_set, "the relay has tampered")
        wait_until(lambda: any(c.ended.is_set() for c in relay.connections), "it was noticed")
        job.finish()
        slave.finish()
    (before,) = seen
    assert before["slaves"][0]["finished"] == 0
    assert "tampered" in job.master.err or "was lost" in job.master.err


def test_a_recorded_conversation_proves_nothing(world: World) -> None:
    job = Job(world, launch_slaves=0)
    with Relay(job.address) as relay:
        slave = world.task_manager("slave", LABEL, "-m", relay.address)
        wait_until(lambda: job.status()["running"], "tasks run")
        recorded = [list(connection.units[UP]) for connection in relay.connections]
        before = job.status()
        for units in recorded:
            assert len(units) > 2
            with job.connect() as sock:  # with everything the server says in between
                sock.sendall(units[0])
                assert len(receive(sock, REPLY_BYTES)) == REPLY_BYTES
                sock.sendall(units[1])
                assert rest(sock) == b""
            with job.connect() as sock:  # all in one go
                with contextlib.suppress(ConnectionError):
                    sock.sendall(b"".join(units))
                assert len(rest(sock)) in (0, REPLY_BYTES)
        after = job.status()
        assert [s["id"] for s in after["slaves"]] == [s["id"] for s in before["slaves"]]
        job.finish()
        slave.finish()


def test_a_session_cannot_be_taken_over_with_ones_own_handshake(world: World) -> None:
    job = Job(world, launch_slaves=0)
    with Relay(job.address) as relay:
        slave = world.task_manager("slave", LABEL, "-m", relay.address)
        wait_until(lambda: job.status()["running"], "tasks run")
        records = [unit for c in relay.connections for unit in c.units[UP][2:]]
        with job.connect() as sock:  # a member, but with records of another session
            client_handshake(sock, job.key, PATIENCE_S)
            sock.settimeout(PATIENCE_S)
            sock.sendall(records[0])
            assert rest(sock) == b""
        job.finish()
        slave.finish()


# --- with the key, but against the rules ----------------------------------------------------


def unruly() -> dict[str, bytes]:
    """Messages that Pyro would take, and that nobody here has a use for."""
    call = (f"TaskManager.{LABEL}", "terminate", (), {})
    msgpack, found = serializers["msgpack"], {}
    for name in ("serpent", "marshal", "json"):
        data = serializers[name].dumpsCall(*call)
        number = serializers[name].serializer_id
        found[name] = protocol.SendingMessage(protocol.MSG_INVOKE, 0, 0, number, data).data
    data = msgpack.dumpsCall(*call)
    for name in ("ONEWAY", "BATCH", "KEEPSERIALIZED", "ITEMSTREAMRESULT", "COMPRESSED"):
        flag = getattr(protocol, f"FLAGS_{name}")
        body = zlib.compress(data) if name == "COMPRESSED" else data
        sent = bytearray(protocol.SendingMessage(protocol.MSG_INVOKE, 0, 0, 4, body).data)
        sent[8:10] = struct.pack("!H", flag)  # Pyro clears the flag of compression
        found[name] = bytes(sent)
    found["KEEPSERIALIZED"] = protocol.SendingMessage(
        protocol.MSG_INVOKE, protocol.FLAGS_KEEPSERIALIZED, 0, 4, marshal.dumps(b"x"),
        {"BLBI": marshal.dumps(call)},
    ).data  # fmt: skip
    found["CONNECT"] = protocol.SendingMessage(
        protocol.MSG_CONNECT, 0, 0, 4, msgpack.dumps({"handshake": "", "object": "Pyro.Daemon"})
    ).data
    found["RESULT"] = protocol.SendingMessage(protocol.MSG_RESULT, 0, 0, 4, data).data
    return found


def test_unruly_members_are_cut_off(job: Job) -> None:
    for name, sent in unruly().items():
        with job.connect() as sock:
            client_handshake(sock, job.key, PATIENCE_S).sendall(sent)
            sock.settimeout(PATIENCE_S)
            assert rest(sock) == b"", name
    assert job.status()["terminated"] is False


@pytest.mark.parametrize(
    "method", ["__init__", "__class__", "_roster", "lostProcess", "__getattr__", "__setattr__"]
)
def test_members_can_call_remote_methods_only(job: Job, method: str) -> None:
    with contextlib.closing(job.link()) as link, pytest.raises(AttributeError):
        link._proxy._pyroClaimOwnership()
        link._proxy._pyroInvoke(method, ("label", "other"), {})
    assert job.status()["label"] == LABEL


# --- forged entries in the name server ------------------------------------------------------


def guess_proof(sock: socket.socket) -> None:
    receive(sock, HELLO_BYTES)
    sock.sendall(b"MSL\x01" + b"s" * NONCE_BYTES + b"p" * PROOF_BYTES)
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


# --- the key file ---------------------------------------------------------------------------


def test_the_key_is_made_for_its_owner_only(job: Job) -> None:
    path = Settings.from_environment().key_file
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_key_appears_in_no_command_line_or_environment(job: Job) -> None:
    text = job.key.hex().encode()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid():
                continue
            proc = Path("/proc") / str(process.pid)
            assert text not in (proc / "cmdline").read_bytes()
            assert text not in (proc / "environ").read_bytes()

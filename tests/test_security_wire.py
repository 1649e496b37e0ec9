"""Attacks on the way between slave and master: what is tampered with or replayed has no effect."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attacks import LABEL, Job, receive, rest
from conftest import PATIENCE_S, World, wait_until

from masterslave.proofs import HELLO_BYTES, PROOF_BYTES, RECORD_HEADER, REPLY_BYTES
from masterslave.settings import join_address, split_address
from masterslave.transports.channel import EXCHANGE, client_handshake

UP, DOWN = "up", "down"  # to the task manager, from the task manager
Tamper = Callable[[str, bytes], list[bytes]]


@pytest.fixture(autouse=True)
def all_by_the_wire(world: World) -> None:
    """Tasks and results go by the connections, as between hosts."""
    world.env["MASTERSLAVE_SHARED_MEMORY"] = "0"


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
RESULT_HANDED_IN = (UP, [EXCHANGE, b"result"])
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

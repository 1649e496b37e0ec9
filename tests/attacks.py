"""A running job to be attacked, and what attackers need."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import PATIENCE_S, World, wait_until
from Pyro5 import protocol
from Pyro5.serializers import serializers

from masterslave.keyfile import load_key
from masterslave.settings import Settings, split_address
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

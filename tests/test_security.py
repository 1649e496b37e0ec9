"""Attacks on a running job: refused, nothing decoded, the job goes on.

Most tests run a real master with a real slave, attack while tasks run, and then see the job end
with all its results.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import secrets
import struct
import zlib
from pathlib import Path

import psutil
import Pyro5.client
import pytest
from attacks import LABEL, Job, messages_of_strangers, one_line, receive, rest
from conftest import PATIENCE_S, World
from Pyro5 import protocol
from Pyro5.serializers import serializers

from masterslave.errors import AuthenticationError
from masterslave.proofs import HELLO_BYTES, NONCE_BYTES, PROOF_BYTES, RECORD_HEADER, REPLY_BYTES
from masterslave.settings import Settings
from masterslave.transports.channel import client_handshake

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
        b"MSL\x63" + b"n" * NONCE_BYTES,
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
        sock.sendall(b"MSL\x02" + b"n" * NONCE_BYTES)
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
            sock.sendall((b"MSL\x02" + b"n" * NONCE_BYTES)[: number % HELLO_BYTES])
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

"""The handshake of a channel: only who proves the key to the other is spoken to."""

from __future__ import annotations

import socket
import threading

import pytest
from channels import KEY, OTHER_KEY, Pair, Server, message, read, sealed, take
from conftest import PATIENCE_S
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from Pyro5 import protocol

from masterslave.errors import AuthenticationError, ConnectionFailed
from masterslave.proofs import (
    GREETING,
    HELLO_BYTES,
    NONCE_BYTES,
    client_proof,
    server_proof,
)
from masterslave.transports.channel import (
    ChannelError,
    client_handshake,
    server_handshake,
)

# --- the handshake --------------------------------------------------------------------------


def test_both_with_the_key_understand_each_other(pair: Pair) -> None:
    client, server = sealed(pair)
    question, answer = message(b"question"), message(b"answer", protocol.MSG_RESULT)
    client.sendall(question)
    assert read(server, len(question)) == question
    assert server.send(answer) == len(answer)
    assert read(client, len(answer)) == answer


def test_the_client_refuses_a_server_with_another_key_and_proves_nothing(pair: Pair) -> None:
    server = Server(pair[1], OTHER_KEY)
    with pytest.raises(AuthenticationError, match="same key"):
        client_handshake(pair[0], KEY, PATIENCE_S)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(OSError):
        server.outcome()


def test_the_server_refuses_a_client_with_another_key(pair: Pair) -> None:
    server = Server(pair[1])
    nonce = b"n" * NONCE_BYTES
    pair[0].sendall(GREETING + nonce)
    reply = take(pair[0], HELLO_BYTES + 32)
    server_nonce = reply[len(GREETING) : HELLO_BYTES]
    assert reply[HELLO_BYTES:] == server_proof(KEY, nonce, server_nonce)
    pair[0].sendall(client_proof(OTHER_KEY, nonce, server_nonce))
    with pytest.raises(AuthenticationError):
        server.outcome()


def test_the_servers_own_proof_is_no_clients_proof(pair: Pair) -> None:
    server = Server(pair[1])
    pair[0].sendall(GREETING + b"n" * NONCE_BYTES)
    reply = take(pair[0], HELLO_BYTES + 32)
    pair[0].sendall(reply[HELLO_BYTES:])
    with pytest.raises(AuthenticationError):
        server.outcome()


def test_a_server_that_reflects_is_refused(pair: Pair) -> None:
    def reflect() -> None:
        hello = take(pair[1], HELLO_BYTES)
        pair[1].sendall(hello + hello[len(GREETING) :])

    thread = threading.Thread(target=reflect)
    thread.start()
    with pytest.raises(AuthenticationError):
        client_handshake(pair[0], KEY, PATIENCE_S)
    thread.join()


def test_each_handshake_has_fresh_nonces() -> None:
    seen = set()
    for _ in range(2):
        with_client, with_server = socket.socketpair()
        with with_client, with_server:
            server = Server(with_server)
            with_client.sendall(GREETING + b"n" * NONCE_BYTES)
            seen.add(take(with_client, HELLO_BYTES + 32))
            with_client.shutdown(socket.SHUT_WR)
            with pytest.raises(OSError):
                server.outcome()
    assert len(seen) == 2


@pytest.mark.parametrize("start", [b"PYRO", b"GET ", b"\0\0\0\0", b"MSL\x63"])
def test_another_protocol_is_refused_by_its_first_bytes(pair: Pair, start: bytes) -> None:
    server = Server(pair[1])
    pair[0].sendall(start)  # and no more: it waits for an answer
    with pytest.raises(ConnectionFailed, match="protocol"):
        server.outcome()


def test_silence_ends_a_handshake_on_either_side(pair: Pair) -> None:
    for handshake in (server_handshake, client_handshake):
        with pytest.raises(TimeoutError):
            handshake(pair[0], KEY, 0.02)


def test_bytes_that_trickle_in_do_not_prolong_a_handshake(pair: Pair) -> None:
    server = Server(pair[1], timeout_s=0.2)
    for byte in GREETING + b"n" * NONCE_BYTES:  # takes 36 times 0.02 s
        if not server.is_alive():
            break
        pair[0].sendall(bytes([byte]))
        server.join(0.02)
    pair[0].settimeout(0.5)
    with pytest.raises(TimeoutError):
        pair[0].recv(1)  # no answer, long after its time
    with pytest.raises(TimeoutError):
        server.outcome()


def test_a_client_that_ends_early_is_refused(pair: Pair) -> None:
    server = Server(pair[1])
    pair[0].sendall(GREETING)
    pair[0].close()
    with pytest.raises(ChannelError):
        server.outcome()


@given(noise=st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_noise_is_refused(noise: bytes) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.sendall(noise)
        mine.shutdown(socket.SHUT_WR)
        with pytest.raises((ConnectionFailed, OSError)):
            server_handshake(theirs, KEY, PATIENCE_S)

"""Proofs and signatures: what an attacker without the key could try."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave import proofs
from masterslave.errors import AuthenticationError, ForeignProtocol
from masterslave.proofs import (
    GREETING,
    RECORD_HEADER,
    Signer,
    check_greeting,
    client_proof,
    same,
    server_proof,
    signers,
)

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
CLIENT, SERVER = b"c" * 32, b"s" * 32  # nonces
LARGE = bytes(range(256)) * 256  # signed by another way than small data


def pair(key: bytes = KEY, client: bytes = CLIENT, server: bytes = SERVER) -> tuple[Signer, Signer]:
    """What a client sends with, and what its server verifies with."""
    return signers(key, client, server, server=False)[0], signers(key, client, server, server=True)[
        1
    ]


def mac_of(header: bytes) -> bytes:
    return RECORD_HEADER.unpack(header)[1]


def verified(incoming: Signer, mac: bytes, data: bytes) -> bool:
    try:
        incoming.verify(mac, data)
    except AuthenticationError:
        return False
    return True


def test_both_sides_compute_the_same_proofs() -> None:
    assert same(server_proof(KEY, CLIENT, SERVER), server_proof(bytes(KEY), CLIENT, SERVER))
    assert same(client_proof(KEY, CLIENT, SERVER), client_proof(bytes(KEY), CLIENT, SERVER))


def test_a_proof_depends_on_everything() -> None:
    arguments = [(KEY, CLIENT, SERVER), (OTHER_KEY, CLIENT, SERVER), (KEY, SERVER, CLIENT)]
    arguments += [(KEY, CLIENT, CLIENT), (KEY, SERVER, SERVER)]
    made = {proof(*args) for args in arguments for proof in (client_proof, server_proof)}
    assert len(made) == 2 * len(arguments)


def test_proof_and_record_are_what_the_table_says() -> None:
    expected = hmac.new(KEY, b"masterslave server" + CLIENT + SERVER, hashlib.sha256).digest()
    assert server_proof(KEY, CLIENT, SERVER) == expected
    session = hmac.new(KEY, b"masterslave to server" + CLIENT + SERVER, hashlib.sha256).digest()
    outgoing, _ = pair()
    for counter, data in enumerate((b"first", LARGE)):
        signed = struct.pack("!QQ", counter, len(data)) + data
        mac = hmac.new(session, signed, hashlib.sha256).digest()
        assert outgoing.header(data) == struct.pack("!Q", len(data)) + mac


def test_the_greeting_is_taken_off() -> None:
    assert check_greeting(GREETING + CLIENT) == CLIENT
    assert len(GREETING + CLIENT) == proofs.HELLO_BYTES
    assert len(GREETING + SERVER + server_proof(KEY, CLIENT, SERVER)) == proofs.REPLY_BYTES


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1", b"PYRO\x01", b"msl\x01", b"\x00" * 36])
def test_another_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(ForeignProtocol, match="does not speak"):
        check_greeting(data)


def test_another_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(AuthenticationError, match="version 9, this one 2"):
        check_greeting(b"MSL\x09" + CLIENT)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_records_in_order_are_accepted(kind: type) -> None:
    outgoing, incoming = pair()
    for data in (b"", b"small", LARGE, b"x" * 32767, b"x" * 32768, b"last"):
        length, mac = RECORD_HEADER.unpack(outgoing.header(kind(data)))
        assert length == len(data)
        assert verified(incoming, mac, kind(data))


def test_each_direction_has_a_key_of_its_own() -> None:
    client_out, client_in = signers(KEY, CLIENT, SERVER, server=False)
    server_out, server_in = signers(KEY, CLIENT, SERVER, server=True)
    assert verified(server_in, mac_of(client_out.header(b"up")), b"up")
    assert verified(client_in, mac_of(server_out.header(b"down")), b"down")


@pytest.mark.parametrize("data", [b"data", LARGE], ids=["small", "large"])
def test_a_record_cannot_be_replayed_moved_or_reflected(data: bytes) -> None:
    outgoing, incoming = pair()
    first, second = mac_of(outgoing.header(data)), mac_of(outgoing.header(data))
    assert not verified(pair()[1], second, data), "moved to the front"
    assert verified(incoming, first, data)
    assert not verified(incoming, first, data), "replayed"
    own_incoming = signers(KEY, CLIENT, SERVER, server=False)[1]
    assert not verified(own_incoming, first, data), "sent back to who signed it"


def test_a_record_of_another_key_or_conversation_is_refused() -> None:
    for foreign in (pair(OTHER_KEY), pair(client=SERVER), pair(server=CLIENT)):
        assert not verified(pair()[1], mac_of(foreign[0].header(b"data")), b"data")


@settings(deadline=None, database=None)
@given(st.sampled_from([b"d", b"data" * 9, LARGE]), st.data())
def test_no_changed_bit_goes_unnoticed(data: bytes, draw: st.DataObject) -> None:
    mac = mac_of(pair()[0].header(data))
    whole = bytearray(mac + data)
    bit = draw.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    assert not verified(pair()[1], bytes(whole[:32]), bytes(whole[32:]))


@settings(deadline=None, database=None)
@given(st.binary(max_size=64), st.binary(max_size=64))
def test_no_other_data_fits_a_signature(data: bytes, other: bytes) -> None:
    mac = mac_of(pair()[0].header(data))
    assert verified(pair()[1], mac, other) == (data == other)

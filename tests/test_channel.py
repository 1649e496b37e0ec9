"""The signed channel: nothing passes that was not signed, nothing is decoded that is not plain."""

from __future__ import annotations

import socket
import threading
import zlib
from collections.abc import Callable

import pytest
from channels import KEY, PLAIN, Pair, message, read, sealed
from conftest import PATIENCE_S
from hypothesis import given, settings
from hypothesis import strategies as st
from Pyro5 import config, protocol

from masterslave.proofs import (
    RECORD_HEADER,
    signers,
)
from masterslave.transports import channel
from masterslave.transports.channel import (
    EXCHANGE,
    MAX_RECORD_BYTES,
    MSGPACK_ID,
    SERPENT_ID,
    ChannelError,
    SealedSocket,
    check_message,
    keep_alive,
)
from masterslave.transports.guarded import GuardedSocket

# --- records --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65535 - 40, 65536, 3_000_000])
def test_messages_of_every_size_arrive_whole(pair: Pair, size: int) -> None:
    client, server = sealed(pair)
    sent = message(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    thread = threading.Thread(target=client.sendall, args=(sent,))
    thread.start()
    assert read(server, len(sent)) == sent
    thread.join()


@given(pieces=st.lists(st.integers(1, 50), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_record_can_be_taken_in_any_pieces(pieces: list[int]) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        client, server = sealed((mine, theirs))
        sent = message(bytes(range(100)))
        client.sendall(sent)
        client.sendall(sent)
        got = b""
        while len(got) < 2 * len(sent):
            piece = server.recv(pieces[len(got) % len(pieces)])
            assert piece
            got += piece
        assert got == sent + sent


def test_the_end_between_records_is_the_end(pair: Pair) -> None:
    client, server = sealed(pair)
    client.sendall(message())
    pair[0].close()
    assert read(server, len(message())) == message()
    assert server.recv(1) == b""


def test_the_end_within_a_record_is_an_error(pair: Pair) -> None:
    client, server = sealed(pair)
    record = capture(lambda sock: sock.sendall(message()))
    pair[0].sendall(record[:-1])
    pair[0].close()
    with pytest.raises(ChannelError, match="middle"):
        server.recv(1)
    assert client is not None


def capture(send: Callable[[SealedSocket], object]) -> bytes:
    """What a client with fixed nonces puts on the wire."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        outgoing, incoming = signers(KEY, b"c" * 32, b"s" * 32, server=False)
        send(SealedSocket(mine, outgoing, incoming, PLAIN))
        mine.shutdown(socket.SHUT_WR)
        data = b""
        while piece := theirs.recv(65536):
            data += piece
        return data


def receiver(sock: socket.socket, *, server: bool = True) -> SealedSocket:
    """The other end for what `capture` has captured."""
    outgoing, incoming = signers(KEY, b"c" * 32, b"s" * 32, server=server)
    return SealedSocket(sock, outgoing, incoming, PLAIN)


def test_a_captured_record_is_accepted_by_its_own_connection(pair: Pair) -> None:
    pair[0].sendall(capture(lambda sock: sock.sendall(message())))
    assert read(receiver(pair[1]), len(message())) == message()


@pytest.mark.parametrize("where", ["length", "signature", "header", "data"])
def test_a_flipped_bit_is_noticed_and_nothing_passes(pair: Pair, where: str) -> None:
    record = bytearray(capture(lambda sock: sock.sendall(message(b"data" * 10))))
    position = {"length": 7, "signature": 20, "header": 47, "data": -1}[where]
    record[position] ^= 1
    pair[0].sendall(record)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelError):
        receiver(pair[1]).recv(1)


def test_every_single_bit_counts() -> None:
    record = capture(lambda sock: sock.sendall(message(b"d")))
    for bit in range(8 * len(record)):
        mine, theirs = socket.socketpair()
        with mine, theirs:
            damaged = bytearray(record)
            damaged[bit // 8] ^= 1 << bit % 8
            mine.sendall(damaged)
            mine.shutdown(socket.SHUT_WR)
            if bit < 32:  # would announce more than any record may hold
                with pytest.raises(ChannelError, match="too long"):
                    receiver(theirs).recv(1)
            elif bit >= 8 * 7:
                with pytest.raises(ChannelError):
                    receiver(theirs).recv(1)


def test_a_record_cannot_be_replayed(pair: Pair) -> None:
    record = capture(lambda sock: sock.sendall(message()))
    pair[0].sendall(record + record)
    server = receiver(pair[1])
    assert read(server, len(message())) == message()
    with pytest.raises(ChannelError, match="tampered"):
        server.recv(1)


def test_records_cannot_change_places(pair: Pair) -> None:
    first, second = message(b"1"), message(b"2")
    both = capture(lambda sock: (sock.sendall(first), sock.sendall(second)))
    half = len(both) // 2
    pair[0].sendall(both[half:] + both[:half])
    with pytest.raises(ChannelError, match="tampered"):
        receiver(pair[1]).recv(1)


def test_a_record_cannot_be_sent_back_to_its_sender(pair: Pair) -> None:
    pair[0].sendall(capture(lambda sock: sock.sendall(message())))
    with pytest.raises(ChannelError, match="tampered"):
        receiver(pair[1], server=False).recv(1)


@pytest.mark.parametrize("length", [MAX_RECORD_BYTES + 1, 4 << 30, (1 << 64) - 1])
def test_a_huge_length_is_refused_before_anything_is_reserved(pair: Pair, length: int) -> None:
    pair[0].sendall(RECORD_HEADER.pack(length, b"m" * 32))
    with pytest.raises(ChannelError, match="too long"):
        receiver(pair[1]).recv(1)


def test_a_signed_record_that_is_no_message_is_refused(pair: Pair) -> None:
    for data in (b"", b"PYRO", b"x" * 100):
        mine, theirs = socket.socketpair()
        with mine, theirs:
            mine.sendall(capture(lambda sock, data=data: sock.sendall(data)))
            with pytest.raises(ChannelError):
                receiver(theirs).recv(1)


# --- what a message may be ------------------------------------------------------------------

REFUSED = {
    "serpent": message(serializer=1),
    "marshal": message(serializer=2),
    "json": message(serializer=3),
    "unknown serializer": message(serializer=77),
    "compressed": message(zlib.compress(b"x"), flags=protocol.FLAGS_COMPRESSED),
    "one-way": message(flags=protocol.FLAGS_ONEWAY),
    "batch": message(flags=protocol.FLAGS_BATCH),
    "stream": message(flags=protocol.FLAGS_ITEMSTREAMRESULT),
    "blob": message(flags=protocol.FLAGS_KEEPSERIALIZED),
    "all flags": message(flags=0xFFFF),
    "connect": message(kind=protocol.MSG_CONNECT),
    "result": message(kind=protocol.MSG_RESULT),
    "unknown type": message(kind=99),
    "another protocol": b"HTTP" + message()[4:],
    "too long": message(sizes=(MAX_RECORD_BYTES, 1)),
    "too many annotations": message(sizes=(0, 0xFFFFFFFF)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_signed_message_must_be_plain(pair: Pair, name: str) -> None:
    client, server = sealed(pair)
    client.sendall(REFUSED[name])
    with pytest.raises(ChannelError):
        server.recv(1)


@pytest.mark.parametrize("name", REFUSED)
def test_the_rule_itself(name: str) -> None:
    with pytest.raises(ChannelError):
        check_message(REFUSED[name][:40], MSGPACK_ID, PLAIN, MAX_RECORD_BYTES)


@pytest.mark.parametrize(
    "good",
    [
        message(),
        message(flags=protocol.FLAGS_CORR_ID),
        message(kind=protocol.MSG_PING, serializer=42),
        message(sizes=(MAX_RECORD_BYTES, 0)),
    ],
)
def test_plain_messages_pass_the_rule(good: bytes) -> None:
    check_message(good[:40], MSGPACK_ID, PLAIN, MAX_RECORD_BYTES)


@pytest.mark.parametrize("more", [message(serializer=SERPENT_ID), message(), b"x"])
def test_a_record_is_one_message_and_no_more(pair: Pair, more: bytes) -> None:
    client, server = sealed(pair)
    client.sendall(message() + more)
    with pytest.raises(ChannelError, match="one whole message"):
        server.recv(1)


def test_memory_for_a_long_message_is_reserved_as_it_comes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_TRUSTED_BYTES", 1000)
    client, server = sealed(pair)
    sent = message(bytes(range(256)) * 400)
    thread = threading.Thread(target=client.sendall, args=(sent,))
    thread.start()
    assert read(server, len(sent)) == sent
    thread.join()


def test_the_client_takes_exceptions_but_no_calls(pair: Pair) -> None:
    client, server = sealed(pair)
    raised = message(kind=protocol.MSG_RESULT, flags=protocol.FLAGS_EXCEPTION)
    server.sendall(raised)
    assert read(client, len(raised)) == raised
    server.sendall(message(kind=protocol.MSG_INVOKE))
    with pytest.raises(ChannelError, match="type"):
        client.recv(1)


def test_the_serializers_have_the_numbers_that_pyro_gives_them() -> None:
    from Pyro5.serializers import serializers

    assert serializers["msgpack"].serializer_id == MSGPACK_ID
    assert serializers["serpent"].serializer_id == SERPENT_ID


def test_the_limit_is_pyros_own() -> None:
    assert config.MAX_MESSAGE_SIZE == MAX_RECORD_BYTES


def test_pyros_header_is_what_it_is_taken_for() -> None:
    sent = protocol.SendingMessage(
        protocol.MSG_INVOKE, protocol.FLAGS_ONEWAY, 7, SERPENT_ID, b"12345", {"ANNO": b"123"}
    ).data
    fields = channel._PYRO_HEADER.unpack_from(sent)
    assert fields[0] == b"PYRO" and fields[2:5] == (4, SERPENT_ID, protocol.FLAGS_ONEWAY)
    assert fields[6:] == (5, 11)
    assert len(sent) == channel.PYRO_HEADER_BYTES + 5 + 11


# --- the guard of the name server -----------------------------------------------------------

SERPENT = message(b"serpent's data", serializer=SERPENT_ID)


def guarded_read(guarded: GuardedSocket, size: int, step: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = guarded.recv(min(step, size - len(data)))
        assert piece
        data += piece
    return data


@pytest.mark.parametrize("step", [1, 6, 1000])
def test_the_guard_lets_plain_messages_through(pair: Pair, step: int) -> None:
    empty = message(b"", serializer=SERPENT_ID)
    pair[0].sendall(SERPENT + empty + SERPENT)
    guarded = GuardedSocket(pair[1], server=True)
    for sent in (SERPENT, empty, SERPENT):
        # as Pyro reads: never beyond the header, never beyond the message
        assert guarded_read(guarded, 40, step) == sent[:40]
        assert guarded_read(guarded, len(sent) - 40, step) == sent[40:]


@pytest.mark.parametrize("flags", [protocol.FLAGS_KEEPSERIALIZED, protocol.FLAGS_COMPRESSED])
@pytest.mark.parametrize("before", [b"", SERPENT])
def test_the_guard_refuses_what_is_not_plain(pair: Pair, flags: int, before: bytes) -> None:
    pair[0].sendall(before + message(serializer=SERPENT_ID, flags=flags))
    guarded = GuardedSocket(pair[1], server=True)
    if before:
        guarded_read(guarded, 40, 40)
        guarded_read(guarded, len(before) - 40, 1000)
    with pytest.raises(ChannelError, match="flags"):
        guarded_read(guarded, 40, 6)


@pytest.mark.parametrize(
    "bad",
    [
        message(serializer=2),
        message(serializer=MSGPACK_ID),
        message(serializer=SERPENT_ID, sizes=((1 << 20) + 1, 0)),
        message(serializer=SERPENT_ID, sizes=(0xFFFFFFFF, 0xFFFFFFFF)),
        message(serializer=SERPENT_ID, kind=protocol.MSG_RESULT),
        b"GET / HTTP/1.1\r\n" + b" " * 40,
    ],
)
def test_the_guard_refuses_other_serializers_lengths_and_types(pair: Pair, bad: bytes) -> None:
    pair[0].sendall(bad)
    with pytest.raises(ChannelError):
        guarded_read(GuardedSocket(pair[1], server=True), 40, 6)


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the system has no such options")
def test_the_system_finds_out_within_a_minute_that_a_host_has_gone() -> None:
    with socket.socket() as sock:
        keep_alive(sock)
        options = {
            name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        }
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    silence_s = options["TCP_KEEPIDLE"] + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"]
    assert 0 < silence_s < 60
    assert 0 < options["TCP_USER_TIMEOUT"] < 60_000


# --- exchanges ------------------------------------------------------------------------------


def test_exchanges_and_pyros_messages_by_turns(pair: Pair) -> None:
    client, server = sealed(pair)
    sent = [EXCHANGE + b"one", message(b"two"), EXCHANGE + b"three" * 20_000, message(b"four")]
    thread = threading.Thread(target=lambda: [client.sendall(one) for one in sent])
    thread.start()
    for one in sent:
        got = server.next_exchange()
        if one.startswith(EXCHANGE):
            assert got == one
        else:
            assert got is None
            assert read(server, len(one)) == one
    thread.join()
    client.close()
    assert server.next_exchange() is None
    assert server.recv(1) == b""


def test_pyro_sees_no_exchange(pair: Pair) -> None:
    client, server = sealed(pair)
    client.sendall(EXCHANGE + b"x" * 60)
    with pytest.raises(ChannelError, match="not a Pyro message"):
        server.recv(40)


def test_pieces_before_an_exchange(pair: Pair) -> None:
    client, server = sealed(pair)
    client.attach([b"p" * 100_000, b"q"])
    thread = threading.Thread(target=client.sendall, args=(EXCHANGE + b"one",))
    thread.start()
    assert server.wait(PATIENCE_S)
    assert server.exchange_at_hand() is None, "they are to be waited for"
    assert server.next_exchange() == EXCHANGE + b"one"
    assert server.take_pieces() == [b"p" * 100_000, b"q"]
    thread.join()


def test_an_exchange_that_is_there_is_taken_without_waiting(pair: Pair) -> None:
    client, server = sealed(pair)
    for end in pair:
        end.setblocking(True)
    assert server.exchange_at_hand() is None
    client.send_now(EXCHANGE + b"one")
    client.send_now(EXCHANGE + b"two")
    assert server.wait(PATIENCE_S)
    assert server.exchange_at_hand() == EXCHANGE + b"one"
    assert server.wait(0.0), "what was received already counts"
    assert server.exchange_at_hand() == EXCHANGE + b"two"
    assert server.wait(0.0) is False
    record = client._outgoing.header(EXCHANGE + b"three") + EXCHANGE + b"three"
    for start, end in ((0, 7), (7, 42), (42, len(record) - 1)):
        pair[0].sendall(record[start:end])
        assert server.exchange_at_hand() is None
    pair[0].sendall(record[-1:])
    assert server.exchange_at_hand() == EXCHANGE + b"three"
    pair[0].sendall(record[:9])
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelError, match="in the middle"):
        server.exchange_at_hand()


def test_the_end_instead_of_an_exchange(pair: Pair) -> None:
    client, server = sealed(pair)
    client.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ChannelError, match="closed"):
        server.exchange_at_hand()


def test_what_is_no_exchange_is_not_taken(pair: Pair) -> None:
    client, server = sealed(pair)
    client.sendall(message(b"two"))
    assert server.wait(PATIENCE_S)
    assert server.exchange_at_hand() is None
    assert server.next_exchange() is None
    assert read(server, len(message(b"two"))) == message(b"two")


def test_an_exchange_that_is_there_is_verified(pair: Pair) -> None:
    client, server = sealed(pair)
    record = client._outgoing.header(EXCHANGE + b"one") + EXCHANGE + b"two"
    pair[0].sendall(record)
    with pytest.raises(ChannelError, match="tampered"):
        server.exchange_at_hand()


def test_who_does_not_read_is_not_waited_for(pair: Pair) -> None:
    client, server = sealed(pair)

    def send_for_ever() -> None:
        while True:
            server.send_now(EXCHANGE + b"x" * 8000)

    with pytest.raises(OSError):  # BlockingIOError, or ours where a part of it was sent
        send_for_ever()
    assert client.next_exchange() == EXCHANGE + b"x" * 8000

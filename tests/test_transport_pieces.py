"""Large buffers on a connection: beside the messages, signed, announced, freed."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, wait_until
from Pyro5 import protocol

from masterslave import pieces
from masterslave.errors import ConnectionFailed, DataNotFound, SettingsError
from masterslave.manager import TaskManager
from masterslave.proofs import RECORD_HEADER, signers
from masterslave.records import ProcessInfo, as_assignment
from masterslave.settings import Settings, split_address
from masterslave.transports import channel
from masterslave.transports.base import Link
from masterslave.transports.channel import MAX_RECORD_BYTES, ChannelError, SealedSocket
from masterslave.transports.memory import MemoryLink
from masterslave.transports.pyro import PyroLink, PyroServer

KEY = b"k" * 32
PIECE = 1 << 12
LARGE = os.urandom(10 * PIECE + 1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 4 KiB; buffers of 100 bytes are large."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(pieces, "LIFT_BYTES", 100)


# --- the channel ----------------------------------------------------------------------------

Pair = tuple[socket.socket, SealedSocket]


def message(data: bytes = b"data", kind: int = protocol.MSG_INVOKE) -> bytes:
    header = struct.pack(
        "!4sHBBHHII16sHH", b"PYRO", protocol.PROTOCOL_VERSION, kind, channel.MSGPACK_ID, 0, 0,
        len(data), 0, b"\0" * 16, 0, 0x4DC5,
    )  # fmt: skip
    return header + data


def sealed(sock: socket.socket, *, server: bool) -> SealedSocket:
    outgoing, incoming = signers(KEY, b"c" * 32, b"s" * 32, server=server)
    return SealedSocket(sock, outgoing, incoming, (protocol.MSG_INVOKE, protocol.MSG_RESULT))


def captured(send: Callable[[SealedSocket], object]) -> bytes:
    """What a client puts on the wire."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        send(sealed(mine, server=False))
        mine.shutdown(socket.SHUT_WR)
        data = b""
        while part := theirs.recv(1 << 16):
            data += part
        return data


@pytest.fixture
def wire() -> Iterator[Pair]:
    """A socket on which to put what was captured, and the server that reads it."""
    mine, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    with mine, theirs:
        yield mine, sealed(theirs, server=True)


def with_pieces(*parts: bytes, data: bytes = b"data") -> Callable[[SealedSocket], None]:
    def send(sock: SealedSocket) -> None:
        sock.attach(parts)
        sock.sendall(message(data))

    return send


def announce(*lengths: int) -> bytes:
    return b"MSLP" + struct.pack(f"!{len(lengths)}Q", *lengths)


def read(sock: SealedSocket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def test_pieces_arrive_with_their_message_and_are_given_once(wire: Pair) -> None:
    put, server = wire
    parts = [LARGE[:PIECE], b"", b"x", memoryview(LARGE)[1:3]]
    put.sendall(captured(with_pieces(*parts)))
    assert read(server, len(message())) == message()
    assert server.take_pieces() == [bytes(part) for part in parts]
    assert server.take_pieces() == []


def test_pieces_are_on_the_wire_as_the_table_says() -> None:
    data = captured(with_pieces(b"one", b"three"))
    for expected in (announce(3, 5), b"one", b"three", message()):
        length, _ = RECORD_HEADER.unpack_from(data)
        record = data[RECORD_HEADER.size : RECORD_HEADER.size + length]
        assert record == expected
        data = data[RECORD_HEADER.size + length :]
    assert data == b""


def test_pieces_go_with_one_message_only(wire: Pair) -> None:
    put, server = wire

    def send(sock: SealedSocket) -> None:
        with_pieces(b"first")(sock)
        sock.sendall(message(b"second"))
        sock.attach([b"never sent"])
        sock.attach([])
        sock.sendall(message(b"third!"))

    put.sendall(captured(send))
    read(server, len(message()))
    for data in (b"second", b"third!"):  # the first one's were not taken, and are dropped
        assert read(server, len(message(data))) == message(data)
        assert server.take_pieces() == []


def test_each_piece_that_moves_is_told(wire: Pair) -> None:
    put, server = wire
    sent: list[None] = []
    received: list[None] = []

    def send(sock: SealedSocket) -> None:
        sock.on_piece = lambda: sent.append(None)
        with_pieces(b"1", b"2", b"3")(sock)

    server.on_piece = lambda: received.append(None)
    put.sendall(captured(send))
    read(server, len(message()))
    assert len(sent) == len(received) == 3


def test_every_bit_of_announcement_and_pieces_counts() -> None:
    record = captured(with_pieces(b"one", b"two"))
    pieces_end = len(record) - len(message()) - RECORD_HEADER.size
    for bit in range(0, 8 * pieces_end, 3):
        mine, theirs = socket.socketpair()
        with mine, theirs:
            damaged = bytearray(record)
            damaged[bit // 8] ^= 1 << bit % 8
            mine.sendall(damaged)
            mine.shutdown(socket.SHUT_WR)
            server = sealed(theirs, server=True)
            with pytest.raises(ChannelError):
                server.recv(1)
            assert server.take_pieces() == []


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([b"a piece without an announcement, as long as a header is"], "not a Pyro message"),
        ([b"MSLP"], "damaged"),
        ([announce(3)[:-1], b"one"], "damaged"),
        ([announce(3, 3), b"one", b"four"], "not the announced one"),
        ([announce(3, 3), b"one", message()], "not the announced one"),
        ([announce(3), b"one", announce(3), b"two"], "shorter|not a Pyro message"),
        ([announce(3), b"one", b"two"], "shorter"),
        ([announce(3, 3), b"one"], "before a message's end"),
        ([announce(3), b"one"], "before a message's end"),
        ([announce(3)], "before a message's end"),
    ],
)
def test_signed_records_out_of_order_are_refused(
    wire: Pair, records: list[bytes], words: str
) -> None:
    put, server = wire
    put.sendall(captured(lambda sock: [sock._send_record(record) for record in records]))
    put.shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelError, match=words):
        server.recv(1)
    assert server._record == b""


def test_a_huge_announced_piece_is_refused_before_anything_is_reserved(wire: Pair) -> None:
    put, server = wire
    put.sendall(captured(lambda sock: sock.sendall(announce(1 << 40))))
    put.sendall(RECORD_HEADER.pack(1 << 40, b"m" * 32))
    with pytest.raises(ChannelError, match="too long"):
        server.recv(1)
    assert MAX_RECORD_BYTES < 1 << 40


def test_what_came_of_a_broken_message_is_freed(wire: Pair) -> None:
    put, server = wire
    record = captured(with_pieces(LARGE, LARGE))
    put.sendall(record[: len(record) // 2])
    put.shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelError):
        server.recv(1)
    assert server.take_pieces() == []


# --- the contract of links ------------------------------------------------------------------


class Hub:
    """A task manager and the links to it."""

    def __init__(self, over_network: bool) -> None:
        self.manager = TaskManager("job", Settings(key_file=Path("unused")))
        self.links: list[Link] = []
        self.server: PyroServer | None = None
        if over_network:
            self.server = PyroServer(self.manager, "127.0.0.1", 0, KEY, PATIENCE_S)
            self.server.start()

    def link(self) -> Any:
        if self.server is None:
            link: Link = MemoryLink(self.manager)
        else:
            link = PyroLink(split_address(self.server.addresses[0]), "job", KEY, PATIENCE_S)
        self.links.append(link)
        return link

    def close(self) -> None:
        self.manager.terminate()
        for link in self.links:
            link.close()
        if self.server is not None:
            self.server.stop()


@pytest.fixture(params=["memory", "pyro"])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    hub = Hub(request.param == "pyro")
    yield hub
    hub.close()


@pytest.fixture
def network() -> Iterator[Hub]:
    hub = Hub(over_network=True)
    yield hub
    hub.close()


def join(link: Link, token: str = "") -> int:
    info = list(ProcessInfo(f"slave {token}", 1, "host", 1, token))
    process_id: int = link.call("registerProcess", None, info)[0]
    link.call("announceTags", process_id, ["sqrt"])
    return process_id


@pytest.mark.parametrize("size", [99, 100, PIECE - 1, PIECE, PIECE + 1, len(LARGE)])
def test_a_task_of_any_size_goes_there_and_back(hub: Hub, size: int) -> None:
    client, slave = hub.link(), hub.link()
    process_id = join(slave)
    frames = [[b"head", LARGE[:size]], [LARGE[-size:]], [], [b"", LARGE[:size], b"tail"]]
    ids = client.call("addTaskRequests", "sqrt", frames)
    for task_id, frame in zip(ids, frames, strict=True):
        ((task,), _) = slave.call("exchange", process_id)
        assert as_assignment(task)[:4] == (task_id, "sqrt", 1, frame)
        done = [task_id, 1, "result", [*frame, LARGE], 0.1, ""]
        slave.call("exchange", process_id, [done], [task_id], 0)
    got = client.call("getResults", 0, None, 10, 0.0)
    assert [list(delivery[3]) for delivery in got] == [[*frame, LARGE] for frame in frames]


def test_data_items_of_any_size_and_shape(hub: Hub) -> None:
    values: dict[str, Any] = {
        "plain": LARGE,
        "frame": [b"head", LARGE, b"x" * PIECE],
        "nested": {"a": {"b": [[LARGE], {"c": LARGE[:150]}]}, "größe": [1, None, "x"]},
        "views": [bytearray(LARGE), memoryview(LARGE)[:200]],
    }
    hub.link().call("storeData", **values)
    link = hub.link()
    for name, value in values.items():
        assert link.call("retrieveData", name=name) == value
    assert link.call("retrieveData", "nested")["größe"] == [1, None, "x"]


def test_a_result_that_is_one_large_buffer_by_itself(hub: Hub) -> None:
    link = hub.link()
    link.call("storeData", item=LARGE)
    assert link.call("retrieveData", "item") == LARGE
    assert link.call("numberOfActiveProcesses") == 0


def test_an_error_in_a_large_call_is_an_error_of_that_call_only(hub: Hub) -> None:
    link = hub.link()
    with pytest.raises(SettingsError):
        link.call("addTaskRequest", "fit", [LARGE], 0, [0, None, -1])
    with pytest.raises(ValueError, match="process_id"):
        link.call("ping", LARGE, LARGE)
    with pytest.raises(AttributeError):
        link.call("nonsense", LARGE)
    link.call("storeData", item=[LARGE])
    assert link.call("retrieveData", "item") == [LARGE]


def test_a_call_that_cannot_be_packed_leaves_nothing_for_the_next(network: Hub) -> None:
    link = network.link()
    with pytest.raises(UnicodeEncodeError):
        link.call("storeData", item=[LARGE, "\udcff"])
    assert link.call("numberOfActiveProcesses") == 0
    assert link.call("getResults", 0, None, 1, 0.0) == []


def test_no_record_is_longer_than_a_piece_needs(
    network: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MAX_RECORD_BYTES", PIECE)
    link = network.link()
    link.call("storeData", item=[b"head", LARGE])
    assert link.call("retrieveData", "item") == [b"head", LARGE]


def test_the_parts_of_a_frame_are_not_joined_on_the_way(network: Hub) -> None:
    frame = [LARGE[:PIECE], LARGE[PIECE : 2 * PIECE]]
    network.link().call("addTaskRequest", "sqrt", frame)
    slave = network.link()
    ((task,), _) = slave.call("exchange", join(slave))
    assert [len(part) for part in task[3]] == [PIECE, PIECE]


# --- the network ----------------------------------------------------------------------------


def test_a_message_that_takes_long_is_a_sign_of_life(network: Hub) -> None:
    assert network.server is not None
    heard: list[int] = []
    network.server._daemon.on_sign_of_life = heard.append
    link, other = network.link(), network.link()
    process_id = join(link)
    join(other, "other")
    link.call("storeData", item=[LARGE])
    assert heard == [process_id] * 11
    heard.clear()
    link.call("retrieveData", "item")
    assert heard == [process_id] * 11


def test_a_sign_of_life_of_one_that_was_taken_for_dead_does_no_harm(network: Hub) -> None:
    link = network.link()
    process_id = join(link)
    network.manager.lostProcess(process_id, "silence")
    link.call("storeData", item=[LARGE])
    assert link.call("retrieveData", "item") == [LARGE]
    assert network.manager.activeProcesses() == []


def test_a_connection_that_breaks_within_a_large_call_loses_its_process_and_no_other(
    network: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, other = network.link(), network.link()
    join(link)
    other_id = join(other, "other")
    moved: list[None] = []

    def cut_off() -> None:
        moved.append(None)
        if len(moved) == 5:
            link._sock.shutdown(socket.SHUT_RDWR)

    link._sealed.on_piece = cut_off
    with pytest.raises(ConnectionFailed, match="broke"):
        link.call("storeData", item=[LARGE])
    assert len(moved) < 11
    wait_until(lambda: network.manager.activeProcesses() == [other_id])
    with pytest.raises(DataNotFound):
        other.call("retrieveData", "item")
    with pytest.raises(ConnectionFailed):
        link.call("storeData", item=[LARGE])


def test_a_large_answer_to_one_that_has_gone_is_freed(network: Hub) -> None:
    class Watched(bytearray):
        pass

    link = network.link()
    network.manager.storeData(item=[Watched(64 << 20)])
    assert exists(Watched)
    link._sealed._sock = Deaf(link._sock)  # asks and does not listen
    with pytest.raises(ConnectionFailed):
        link.call("retrieveData", "item")
    network.manager.deleteData("item")

    wait_until(lambda: not exists(Watched))
    assert network.link().call("numberOfActiveProcesses") == 0


def exists(kind: type) -> bool:
    gc.collect()
    return any(type(one) is kind for one in gc.get_objects())


class Deaf:
    """A socket that closes instead of receiving."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recv_into(self, *args: Any) -> int:
        self._sock.shutdown(socket.SHUT_RDWR)
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

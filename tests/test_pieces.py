"""Values of any size: cut, lifted out of messages, put back, and what it costs to move them.

The sizes of pieces are made small here, so that kilobytes behave like gigabytes.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from conftest import PATIENCE_S, ROOT, World, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave import payload, pieces
from masterslave.dispatch import Dispatch, Send
from masterslave.errors import PayloadError
from masterslave.payload import Codec
from masterslave.pipe import SupervisorEnd, WorkerEnd
from masterslave.records import Assignment, Completion, Delivery, as_assignment
from masterslave.stream import pack

PIECE = 1 << 16
CODECS = [Codec(), Codec("script"), Codec("script", shared_main=True)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 64 KiB; buffers of 1 KiB are large; bytes objects of 4 KiB stay as they are."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(pieces, "LIFT_BYTES", 1 << 10)
    monkeypatch.setattr(payload, "_KEPT_BYTES", 1 << 12)


# --- lifting and restoring ------------------------------------------------------------------

sizes = st.integers(0, 70)
nests = st.recursive(
    st.none() | st.integers(-5, 5) | st.text(max_size=3) | sizes.map(lambda n: b"x" * n),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)


def as_lists(value: Any) -> Any:
    """As it comes out of msgpack."""
    if isinstance(value, (list, tuple)):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value


@settings(deadline=None, database=None)
@given(value=st.lists(nests, max_size=4))
def test_what_was_lifted_is_put_back_where_it_was(value: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "LIFT_BYTES", 10)
        patch.setattr(pieces, "PIECE_BYTES", 25)
        before = as_lists(value)
        left, places, parts = pieces.lift(value)
        assert all(0 < len(part) <= 25 for part in parts)
        assert as_lists(value) == before, "the value itself is not changed"
        sent = msgpack.unpackb(msgpack.packb([left, places]))
        assert pieces.restore(*sent, [bytes(part) for part in parts]) == before
        assert b"x" * 10 not in msgpack.packb(left)


def test_without_large_buffers_nothing_is_rebuilt(small: None) -> None:
    value = ["done", ("a_0", 1, "result", [b"x" * 1000], 0.5, ""), {"k": [b"y"]}]
    left, places, parts = pieces.lift(value)
    assert left is value
    assert places == parts == []


def test_lifting_copies_nothing(small: None) -> None:
    data, array = b"x" * 200_000, bytearray(5000)
    _, places, parts = pieces.lift([{"a": [data]}, array])
    assert places == [[[0, "a", 0], 4], [[1], 1]]
    assert all(memoryview(part).obj is data for part in parts[:4])
    assert parts[4] is array
    assert [len(part) for part in parts[:4]] == [PIECE, PIECE, PIECE, 200_000 - 3 * PIECE]


def test_other_kinds_of_lists_and_dictionaries_are_looked_into(small: None) -> None:
    data = b"x" * 2000
    value = [OrderedDict(a=data, b=1), Assignment("a_0", "a", 1, [data], None)]
    left, places, parts = pieces.lift(value)
    assert left == [{"a": None, "b": 1}, ["a_0", "a", 1, [None], None]]
    assert (places, parts) == ([[[0, "a"], 1], [[1, 3, 0], 1]], [data, data])


@pytest.mark.parametrize(
    "message",
    [
        Assignment("a_0", "a", 1, [b"pickle", b"x" * 2000], None),
        Completion("a_0", 1, "result", [b"x" * 2000], 0.1, ""),
        Delivery("a_0", "a", "result", [bytearray(2000)], ""),
    ],
)
def test_what_travels_most_is_looked_into_by_its_frame(message: Any, small: None) -> None:
    assert len(pieces.lift([message])[2]) == 1
    assert pieces.lift([message._replace(frame=[b"x"])])[1:] == ([], [])
    assert pieces.lift([message._replace(frame=[])])[1:] == ([], [])


@pytest.mark.parametrize(
    ("places", "parts"),
    [
        ([[[0], 1]], []),
        ([[[0], 2]], [b"x"]),
        ([[[0], 1]], [b"x", b"y"]),
        ([[[0], 0]], []),
        ([], [b"x"]),
    ],
)
def test_pieces_that_are_not_those_of_the_places_are_refused(
    places: list[Any], parts: list[bytes]
) -> None:
    with pytest.raises(ValueError, match="pieces"):
        pieces.restore([None], places, parts)


# --- frames ---------------------------------------------------------------------------------


def moved(frame: list[Any]) -> list[Any]:
    """A frame as it arrives from a wire."""
    return [bytearray(part) for part in frame]


VALUES: dict[str, Callable[[], Any]] = {
    "array": lambda: np.arange(100_000, dtype=float),
    "array of one piece": lambda: np.arange(PIECE // 8, dtype=float),
    "array one byte longer": lambda: np.arange(PIECE + 1, dtype=np.uint8),
    "many arrays": lambda: [np.full(n, n) for n in (10, 10_000, 20_000, 5, 30_000)],
    "bytes": lambda: bytes(range(256)) * 2000,
    "many bytes": lambda: [b"a" * 5000, b"b" * 300_000, "between", b"c" * 70_000, b"d" * 4095],
    "bytearray": lambda: bytearray(range(256)) * 1000,
    "text": lambda: "größe ☃ __main__" * 20_000,
    "many small things": lambda: [str(i) for i in range(20_000)],
    "one bytes object, twice": lambda: [b"x" * 100_000] * 2,
    "all": lambda: {"a": np.ones(50_000), "b": b"b" * 100_000, "s": "s" * 100_000, "i": 10**5000},
}


@pytest.mark.parametrize("codec", CODECS, ids=["nothing known", "own script", "same script"])
@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_values_of_many_pieces_arrive(name: str, owned: bool, codec: Codec, small: None) -> None:
    value = VALUES[name]()
    for by_value in (False, True):
        function = (lambda: 5) if by_value else None
        frame = codec.encode((value, function))
        assert max(map(len, frame)) <= PIECE
        got, got_function = codec.decode(moved(frame), owned=owned)
        assert type(got) is type(value)
        if name == "many small things":
            assert got == value  # numpy would take a second for it
        else:
            np.testing.assert_equal(got, value)
        assert not by_value or got_function() == 5


def test_a_cut_frame_is_as_the_table_says(small: None) -> None:
    head, array = b"h" * (PIECE + 1), np.arange(PIECE, dtype=np.uint16)
    index, *parts = Codec().encode((head, array))
    assert index[:4] == b"MSCF"
    lengths = [n for (n,) in struct.iter_unpack("!Q", index[4:])]
    assert lengths[1:] == [array.nbytes]
    pickled = b"".join(parts[:-2])
    assert len(pickled) == lengths[0]
    assert pickled[:2] == b"\x80\x05"
    assert head in pickled
    assert b"".join(parts[-2:]) == array.tobytes(), "a buffer begins a new piece"


def test_what_fits_is_not_cut(small: None) -> None:
    first, *buffers = Codec().encode((b"x" * 1000, np.arange(PIECE, dtype=np.uint8)))
    assert first[:2] == b"\x80\x05"
    assert [len(buffer) for buffer in buffers] == [PIECE]


def test_a_receiver_takes_pieces_of_any_length(small: None) -> None:
    value = VALUES["all"]()
    index, *parts = Codec().encode(value)
    shorter = [part[i : i + 999] for part in parts for i in range(0, len(part), 999)]
    np.testing.assert_equal(Codec().decode([index, *shorter]), value)


def test_large_bytes_objects_become_pieces_without_a_copy(small: None) -> None:
    value = b"x" * 300_000
    frame = Codec().encode([value])
    assert sum(len(part) for part in frame if memoryview(part).obj is value) == len(value)


@pytest.mark.parametrize("make", [bytearray, lambda n: np.zeros(n, np.uint8)])
@pytest.mark.parametrize("size", [5000, 300_000])
def test_what_may_change_is_copied_when_it_is_requested(
    make: Callable[[int], Any], size: int, small: None
) -> None:
    value = make(size)
    frame = Codec().encode([value])
    value[:] = b"\1" * size if isinstance(value, bytearray) else 1
    assert not any(Codec().decode(frame)[0])


@pytest.mark.parametrize("size", [PIECE // 8, PIECE])
def test_a_frame_that_is_used_up_at_once_is_not_copied(size: int, small: None) -> None:
    array = np.zeros(size)
    frame = Codec().encode([array], copy=False)
    array += 1.0
    np.testing.assert_array_equal(Codec().decode(frame)[0], array)


def test_an_array_takes_over_the_buffer_of_an_owned_frame(small: None) -> None:
    frame = moved(Codec().encode(np.zeros(PIECE // 8)))
    buffer = frame[1]
    Codec().decode(frame, owned=True)[:] = 1.0
    assert any(buffer)


def test_an_array_leaves_a_frame_alone_that_others_need(small: None) -> None:
    for size in (PIECE // 8, PIECE):
        frame = moved(Codec().encode(np.zeros(size)))
        for _ in range(2):
            got = Codec().decode(frame)
            assert not got.any()
            got += 1.0


@pytest.mark.parametrize(
    "damage",
    [
        lambda frame: frame[:-1],
        lambda frame: [frame[0], *frame[2:]],
        lambda frame: frame[:1],
        lambda frame: [frame[0][:-8], *frame[1:]],
        lambda frame: [frame[0][:-1], *frame[1:]],
        lambda frame: [frame[0][:4], *frame[1:]],
        lambda frame: [*frame[:-1], frame[-1] + b"x"],
    ],
    ids=["end", "beginning", "all", "a length", "a byte of a length", "lengths", "too much"],
)
def test_a_damaged_frame_is_said_to_be_so(damage: Callable[[Any], Any], small: None) -> None:
    frame = [bytes(part) for part in Codec().encode([b"x" * 100_000, np.zeros(PIECE)])]
    for owned in (False, True):
        with pytest.raises(PayloadError, match="cannot be unpickled here"):
            Codec().decode(damage(frame), owned=owned)


# --- memory: multiples of the value's own size ----------------------------------------------

SIZE = 1 << 23


def peak_of(function: Callable[[], object]) -> float:
    """Most memory in use while it runs, beyond what was in use before, in units of SIZE."""
    tracemalloc.start()
    try:
        result = function()
        peak = tracemalloc.get_traced_memory()[1] / SIZE
        assert result is not None
    finally:
        tracemalloc.stop()
    return peak


def test_bytes_are_encoded_without_a_copy(small: None) -> None:
    value = bytes(SIZE)
    assert peak_of(lambda: Codec().encode((value,))) < 0.1


def test_arrays_are_encoded_with_one_copy_and_results_with_none(small: None) -> None:
    value = np.zeros(SIZE, np.uint8)
    assert 0.9 < peak_of(lambda: Codec().encode((value,))) < 1.1
    assert peak_of(lambda: Codec().encode(value, copy=False)) < 0.1


def test_a_pickle_of_small_things_is_joined_in_pieces(small: None) -> None:
    value = [bytes(2000) for _ in range(SIZE // 2000)]
    assert peak_of(lambda: Codec().encode(value)) < 1.3


@pytest.mark.parametrize("make", [bytes, lambda n: np.zeros(n, np.uint8)])
def test_pieces_are_let_go_of_as_they_are_joined(make: Callable[[int], Any], small: None) -> None:
    def arrive() -> Any:
        frame = moved(Codec().encode(make(SIZE), copy=False))
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        got = Codec().decode(frame, owned=True)
        beyond.append((tracemalloc.get_traced_memory()[1] - base) / SIZE)
        return got

    beyond: list[float] = []
    peak_of(arrive)
    assert beyond[0] < (1.1 if make is bytes else 0.4)


# --- the pipe -------------------------------------------------------------------------------


class Pipe:
    """Both ends of a pipe between a supervisor and a worker."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE_S)
        self.theirs = theirs
        self.supervisor, self.worker = SupervisorEnd(ours), WorkerEnd(theirs)

    def at_supervisor(self, count: int) -> list[Any]:
        got: list[Any] = []

        def complete() -> bool:
            got.extend(self.supervisor.receive())
            return len(got) >= count

        wait_until(complete)
        return got


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.supervisor.close()
    pipe.theirs.close()


def test_a_message_in_the_pipe_is_as_the_table_says(small: None) -> None:
    assert pack(["end"]) == [msgpack.packb(["end"])]
    data = b"x" * (PIECE + 5)
    left = ["data", "name", [b"small", None]]
    packed = msgpack.packb([None, left, [[[2, 1], 2]], [PIECE, 5]])
    assert b"".join(pack(["data", "name", [b"small", data]])) == packed + data


def test_large_and_small_messages_cross_in_turn(pipe: Pipe, small: None) -> None:
    data = [os.urandom(n) for n in (1, 1023, 1024, PIECE - 1, PIECE, 3 * PIECE + 1)]
    messages = [["data", str(i), data[: i + 1], ""] for i in range(len(data))]
    messages = [one for message in messages for one in (message, ["forget", ["x"]])]
    sender = threading.Thread(target=lambda: [pipe.worker.send(one) for one in messages])
    sender.start()
    assert pipe.at_supervisor(len(messages)) == messages
    sender.join(PATIENCE_S)


def test_large_messages_come_byte_by_byte(pipe: Pipe, small: None) -> None:
    message = ["done", ["a_0", 1, "result", [b"head", b"x" * 1024, b"y" * 1025], 0.5, ""]]
    packed = b"".join(pack(message))
    for i in range(len(packed) - 1):
        pipe.theirs.sendall(packed[i : i + 1])
        assert pipe.supervisor.receive() == []
    pipe.theirs.sendall(packed[-1:] + packed + packed[:-1])
    assert pipe.at_supervisor(2) == [message] * 2
    assert pipe.supervisor.receive() == []


def test_tasks_with_large_parameters_cross(pipe: Pipe, small: None) -> None:
    tasks = [Assignment(f"a_{i}", "a", 1, [b"head", b"x" * 2000], None) for i in range(3)]
    pipe.supervisor.send(["tasks", tasks])
    assert [as_assignment(item) for item in pipe.worker.receive()[1]] == tasks


def test_a_supervisor_keeps_no_copy_of_what_it_has_to_send(pipe: Pipe) -> None:
    data = bytes(20 << 20)
    for _ in range(10):
        pipe.supervisor.send(["data", "name", [data], ""])
    unsent = [part for message in pipe.supervisor._unsent for part in message.parts]
    kept = [part for part in unsent if len(part) > 1 << 16]
    assert len(kept) == 10
    assert all(part.obj is data for part in kept)


def test_large_buffers_are_received_into_their_place(pipe: Pipe) -> None:
    reader = pipe.worker._reader
    header, body = pack(["data", "name", [b"x" * (1 << 20)], ""])
    reader.space()[: len(header)] = header
    assert reader.got(len(header)) == []
    space = reader.space()
    assert len(space) == 1 << 20
    space[:] = body
    ((_, _, (arrived,), _),) = reader.got(1 << 20)
    assert arrived is space.obj
    space.release()
    arrived += b"more"  # nobody else holds it


# --- what a slave keeps ---------------------------------------------------------------------


def with_large_task() -> Dispatch:
    dispatch = Dispatch()
    for worker in (1, 2):
        dispatch.worker_ready(worker)
    task = Assignment("a_0", "a", 1, [b"head", bytes(1 << 20)], None)
    dispatch.arrived([task])
    assert dispatch.tick(0.0) == [Send(1, [task])]
    return dispatch


def test_a_slave_lets_go_of_large_parameters_that_a_worker_has() -> None:
    dispatch = with_large_task()
    running = dispatch.running(1)
    assert running is not None
    assert running.task_id == "a_0"
    assert running.frame == []
    dispatch.died(1, "killed")
    (done,) = dispatch.completions
    assert (done.task_id, done.outcome) == ("a_0", "crashed")


def test_what_a_leaving_worker_has_not_begun_goes_back_where_its_parameters_are() -> None:
    dispatch = with_large_task()
    dispatch.leaving(1)
    assert dispatch.tick(0.0) == []
    (done,) = dispatch.completions
    assert (done.task_id, done.attempt, done.outcome) == ("a_0", 1, "returned")
    assert not dispatch.holds()


# --- the whole way --------------------------------------------------------------------------

JOB = """
    import hashlib
    import os
    import numpy as np
    from masterslave import GlobalStateValue, MasterProcess, SlaveProcess, runJob

    def digest(value):
        return hashlib.sha256(value).hexdigest()

    class Master(MasterProcess):
        def run(self):
            array = np.random.default_rng(1).random(400_000)
            data = array.tobytes()[:3_000_001]
            nested = {"a": [array, data], "s": "x" * 1_000_000, "n": list(range(200_000))}
            state = self.setGlobalState(array=array, data=data)
            tasks = {
                self.requestTask("digests", array, data, nested["s"]): "there",
                self.requestTask("digests", *(GlobalStateValue(state, name)
                                 for name in ("array", "data")), "x" * 1_000_000): "state",
                self.requestTask("echo", nested): "both",
                self.requestTask("make", 1): "back",
                self.requestTask("fail", data): "failure",
                self.requestTask("crash", data): "again",
            }
            digests = [digest(array), digest(data), digest(b"x" * 1_000_000)]
            while tasks:
                try:
                    task_id, tag, result = self.retrieveResult()
                except Exception as error:
                    assert error.exception.args == (data,), error
                    task_id, result = error.task_id, None
                what = tasks.pop(task_id)
                if what in ("there", "state"):
                    assert result == digests, what
                elif what == "both":
                    assert digest(result["a"][0]) == digests[0]
                    assert result["a"][1] == data
                    assert (result["s"], result["n"]) == (nested["s"], nested["n"])
                    result["a"][0] += 1.0
                elif what == "again":
                    assert result == digests[1]
                elif what == "back":
                    assert digest(result) == digests[0]
                print(what)

    class Slave(SlaveProcess):
        def do_digests(self, array, data, text):
            array[:0] = 0.0
            return [digest(array), digest(data), digest(text.encode())]

        def do_echo(self, value):
            return value

        def do_make(self, seed):
            return np.random.default_rng(seed).random(400_000)

        def do_crash(self, data):
            if not os.path.exists("crashed"):
                open("crashed", "w").close()
                os._exit(1)
            return digest(data)

        def do_fail(self, data):
            raise ValueError(data)

    runJob("pieces", Master, Slave, launch_slaves=1)
"""

#: No record may be longer than some pieces, so whatever is not cut does not arrive.
SITE = """
    import masterslave.pieces, masterslave.transports.channel
    masterslave.pieces.PIECE_BYTES = 1 << 16
    masterslave.transports.channel.MAX_RECORD_BYTES = 1 << 18
"""


def test_a_job_moves_three_megabytes_in_pieces_of_64_kib(world: World) -> None:
    place = world.path / "site"
    place.mkdir()
    world.write("site/sitecustomize.py", SITE)
    world.env["PYTHONPATH"] = os.pathsep.join(map(str, (place, ROOT)))
    out = world.script(JOB).finish()
    assert sorted(out.split()) == ["again", "back", "both", "failure", "state", "there"]

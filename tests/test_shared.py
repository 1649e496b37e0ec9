"""Shared memory between processes of a host: segments, who may have them, using them again."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import mmap
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from conftest import PATIENCE_S, World, wait_until

from masterslave import pieces, shared
from masterslave.payload import Codec
from masterslave.pipe import PipeClosed, SupervisorEnd, WorkerEnd
from masterslave.shared import Loan, LoanError, Name, borrow, borrow_from, lend, loan_of

SIZE = 1 << 18
DATA = os.urandom(SIZE)

pytestmark = pytest.mark.skipif(not shared.available(), reason="the system has no such memory")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """No test uses what another one has left, and none leaves a descriptor."""
    shared.trim()
    before = len(shared._open_here)
    yield
    shared.trim()
    gc.collect()  # a test that failed keeps its own in its traceback
    assert len(shared._open_here) <= before


def lent(data: bytes = DATA) -> memoryview:
    view = lend(data)
    assert view is not None
    return view


def loan(view: memoryview) -> Loan:
    found = loan_of(view)
    assert found is not None
    return found[0]


def opened(view: memoryview, flags: int = os.O_RDONLY) -> int:
    return os.open(f"/proc/self/fd/{loan(view).descriptor}", flags | os.O_CLOEXEC)


# --- lending and borrowing ------------------------------------------------------------------


def test_a_loan_is_a_copy_of_what_was_lent() -> None:
    source = bytearray(DATA)
    view = lent(source)
    source[:] = bytes(SIZE)
    there = borrow_from(os.getpid(), loan(view).name)
    assert view == there == DATA
    assert view.format == there.format == "B"


def test_small_buffers_are_not_lent() -> None:
    assert lend(bytes(shared.LEND_BYTES - 1)) is None


def test_what_a_borrower_writes_it_alone_sees() -> None:
    view = lent()
    one, other = (borrow_from(os.getpid(), loan(view).name) for _ in range(2))
    one[:4] = b"mine"
    assert one[:4] == b"mine"
    assert view == other == DATA


def test_a_loan_outlives_its_lender() -> None:
    view = lent()
    there = borrow_from(os.getpid(), loan(view).name)
    del view
    shared.trim()
    assert there == DATA


def test_a_part_knows_where_it_is() -> None:
    view = lent()
    found = loan_of(view[1000:2000])
    assert found is not None
    assert found[1] == 1000
    assert loan_of(memoryview(DATA)) is None
    assert loan_of(DATA) is None
    assert loan_of(view[5:5]) is None


def test_nobody_else_can_write_to_a_segment_or_change_its_size() -> None:
    view = lent()
    descriptor = opened(view, os.O_RDWR)
    try:
        for forbidden in (
            lambda: os.pwrite(descriptor, b"x", 0),
            lambda: os.ftruncate(descriptor, 10),
            lambda: os.ftruncate(descriptor, 1 << 30),
            lambda: mmap.mmap(descriptor, SIZE),
        ):
            with pytest.raises(PermissionError):
                forbidden()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"inode": 1}, "inode"),
        ({"size": SIZE}, "size"),
        ({"used": 1 << 40}, "length"),
        ({"used": 0}, "length"),
        ({"stamp": 1}, "contents"),
    ],
)
def test_a_segment_must_be_the_one_that_was_named(change: dict[str, int], what: str) -> None:
    view = lent()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LoanError, match=what):
        borrow_from(os.getpid(), loan(view).name._replace(**change))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_segment_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    view = lent()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(LoanError, match="owner"):
        borrow_from(os.getpid(), loan(view).name)


def test_memory_that_can_change_is_refused() -> None:
    descriptor = os.memfd_create("other", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SIZE)
    name = Name(descriptor, os.fstat(descriptor).st_ino, SIZE, 0, 100)
    with pytest.raises(LoanError, match="seals"):
        borrow_from(os.getpid(), name)
    fcntl.fcntl(descriptor, 1033, 2 | 4)  # its size is fixed, its contents are not
    with pytest.raises(LoanError, match="seals"):
        borrow(descriptor, name)  # and has closed it
    with pytest.raises(LoanError):
        borrow_from(os.getpid(), name)


def test_other_files_are_refused(world: World) -> None:
    read, write = os.pipe()
    path = world.write("file", "x" * 10_000)
    with path.open("rb") as file:
        for descriptor in (read, file.fileno()):
            status = os.fstat(descriptor)
            with pytest.raises(LoanError):
                borrow_from(os.getpid(), Name(descriptor, status.st_ino, status.st_size, 0, 100))
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("pid", [0, 1 << 30])
def test_a_process_that_is_not_there_lends_nothing(pid: int) -> None:
    with pytest.raises(LoanError, match=f"process {pid}"):
        borrow_from(pid, loan(lent()).name)


def test_what_cannot_be_mapped_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(12, "no more mappings")

    view = lent()
    monkeypatch.setattr(shared, "_map", full)
    there = borrow_from(os.getpid(), loan(view).name)
    assert there == DATA
    there[0] ^= 1
    assert view == DATA


# --- using a segment again ------------------------------------------------------------------


def test_a_segment_is_used_again_when_nobody_has_it() -> None:
    if not shared._can_use_again():
        pytest.skip("the system does not tell who has a file open")
    view = lent()
    inode = loan(view).name.inode
    there = borrow_from(os.getpid(), loan(view).name)
    del view
    second = lent(bytes(SIZE))
    assert loan(second).name.inode != inode
    assert there == DATA
    del there
    third = lent(DATA[::-1])
    assert loan(third).name.inode == inode
    assert third == DATA[::-1]


class Libc:
    """The C library of a system whose `madvise` always fails with one number."""

    def __init__(self, number: int) -> None:
        self._libc, self._number = shared._libc(), number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._libc, name)

    def madvise(self, *arguments: int) -> int:
        ctypes.set_errno(self._number)
        return -1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EFAULT])
def test_a_segment_whose_pages_cannot_be_had_at_once(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    if not shared._can_use_again():
        pytest.skip("the system does not tell who has a file open")
    libc = Libc(number)
    view = lent()
    name = loan(view).name
    del view
    monkeypatch.setattr(shared, "_libc", lambda: libc)
    second = lent(DATA[::-1])
    assert second == DATA[::-1]
    if number == errno.EINVAL:  # an older system, which has them one by one
        assert loan(second).name.inode == name.inode
    else:  # no memory: what is there stays as it is
        assert loan(second).name.inode != name.inode
        assert borrow_from(os.getpid(), name) == DATA


def test_longer_data_in_a_segment_that_is_used_again() -> None:
    lengths = (SIZE // 2 + 1, SIZE // 2 + 9, SIZE, SIZE // 2 + 5)
    names = set()
    for length in lengths:
        view = lent(DATA[:length])
        assert view == DATA[:length]
        assert borrow_from(os.getpid(), loan(view).name) == DATA[:length]
        names.add(loan(view).name.inode)
        del view
    assert len(names) == 1 or not shared._can_use_again()


def test_a_descriptor_on_its_way_counts() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        view = lent()
        inode = loan(view).name.inode
        descriptor = shared.for_another(loan(view))
        socket.send_fds(ours, [b"x"], [descriptor])
        os.close(descriptor)
        del view
        assert loan(lent(bytes(SIZE))).name.inode != inode
        _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
        with open(descriptors[0], "rb") as file:
            assert file.read(SIZE) == DATA


def test_a_borrower_that_is_killed_has_nothing_any_more(world: World) -> None:
    if not shared._can_use_again():
        pytest.skip("the system does not tell who has a file open")
    view = lent()
    name = loan(view).name
    borrower = world.script(
        f"""
        import time
        from masterslave.shared import Name, borrow_from
        view = borrow_from({os.getpid()}, Name{tuple(name)})
        print(bytes(view[:8]).hex(), flush=True)
        time.sleep(1000)
        """
    )
    wait_until(lambda: borrower.out == DATA[:8].hex() + "\n", "it has borrowed")
    del view
    other = lent()
    assert loan(other).name.inode != name.inode
    borrower.kill()
    borrower.wait()
    assert loan(lent()).name.inode == name.inode


def test_who_comes_late_finds_other_contents_and_is_told() -> None:
    view = lent()
    name = loan(view).name
    del view
    second = lent(bytes(SIZE))
    assert loan(second).name.inode == name.inode or not shared._can_use_again()
    with pytest.raises(LoanError):
        borrow_from(os.getpid(), name)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_KEPT_BYTES", 10 * SIZE)
    views = [lent() for _ in range(50)]
    before = len(shared._open_here)
    views.clear()
    assert len(shared._open_here) <= before - 40
    monkeypatch.setattr(shared, "_KEPT", 3)
    views = [lent() for _ in range(5)]
    views.clear()
    assert len(shared._kept) == 3


def test_a_forked_child_leaves_its_parents_segments_alone(world: World) -> None:
    program = world.script(
        """
        import os
        from masterslave import shared
        view = shared.lend(bytes(1 << 20))
        name = shared.loan_of(view)[0].name
        kept = shared.lend(bytes(1 << 20))
        del kept
        if not (child := os.fork()):
            del view
            others = [shared.lend(b"x" * (1 << 20)) for _ in range(3)]
            os._exit(0)
        os.waitpid(child, 0)
        assert view == bytes(1 << 20)
        assert shared.borrow_from(os.getpid(), name) == view
        """
    )
    program.finish()


def test_lending_is_bounded_by_the_files_that_may_be_open(world: World) -> None:
    program = world.script(
        """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        from masterslave import shared
        views = [shared.lend(bytes(1 << 17)) for _ in range(200)]
        extra = [shared.lend_for_a_message(bytes(1 << 17)) for _ in range(200)]
        print(sum(view is not None for view in views), sum(view is not None for view in extra))
        name = shared.loan_of(views[0])[0].name
        there = [shared.borrow_from(os.getpid(), name) for _ in range(100)]
        print(any(map(shared.loan_of, there)), all(one == views[0] for one in there))
        """
    )
    first, second = program.finish().splitlines()
    lasting, extra = map(int, first.split())
    assert 15 <= lasting <= 25
    assert 40 <= lasting + extra <= 50
    assert second == "False True"


# --- frames ---------------------------------------------------------------------------------


def borrowed(frame: list[Any], keep: bool = True) -> list[Any]:
    """A frame as another process has it."""
    whole: dict[Name, memoryview] = {}
    got = []
    for piece in frame:
        found = loan_of(piece)
        if found is None:
            got.append(bytes(piece))
            continue
        name, start = found[0].name, found[1]
        if name not in whole:
            whole[name] = borrow(shared.for_another(found[0]), name, keep=keep)
        got.append(whole[name][start : start + len(piece)])
    return got


def is_mapped(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array's memory is that of a loan."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(memoryview(base).obj, shared._Bytes)


@pytest.mark.parametrize("keep", [True, False])
def test_an_array_arrives_without_a_copy_and_writable(keep: bool) -> None:
    codec = Codec(memory=shared)
    array = np.arange(SIZE, dtype=np.float64)
    frame = codec.encode((array, "text"))
    array[:] = 0  # after the request
    there = borrowed(frame, keep)
    one, text = codec.decode(there, owned=True)
    assert is_mapped(one)
    np.testing.assert_array_equal(one, np.arange(SIZE, dtype=np.float64))
    one += 1
    np.testing.assert_array_equal(Codec().decode(frame)[0], np.arange(SIZE, dtype=np.float64))
    assert text == "text"


def test_what_others_may_still_need_is_mapped_anew() -> None:
    codec = Codec(memory=shared)
    there = borrowed(codec.encode(np.zeros(SIZE)), keep=True)
    codec.decode(list(there), owned=True)[:] = 1.0
    codec.decode(list(there))[:] = 1.0
    assert not any(codec.decode(list(there), owned=True))


def test_what_is_not_ours_alone_and_cannot_be_mapped_anew_is_copied() -> None:
    codec = Codec(memory=shared)
    there = borrowed(codec.encode(np.zeros(SIZE)), keep=False)
    codec.decode(list(there))[:] = 1.0
    assert not any(codec.decode(list(there), owned=True))


def test_an_array_that_was_cut_is_one_again_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * SIZE)
    codec = Codec(memory=shared)
    arrays = [np.random.default_rng(i).random(7 * SIZE // 8 + i) for i in range(2)]
    there = borrowed(codec.encode(arrays))
    assert len(there) == 17, "index, pickle and seven and eight parts"
    assert max(map(len, there)) <= SIZE
    got = codec.decode(there, owned=True)
    for array, one in zip(arrays, got, strict=True):
        np.testing.assert_array_equal(one, array)
        assert is_mapped(one)


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_lent_in_parts_is_one_again_without_a_copy(
    monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 16 * SIZE)
    codec = Codec(memory=shared)
    array = np.random.default_rng(1).random(SIZE + 3)
    before = len(os.listdir("/proc/self/fd"))
    frame = codec.encode(array)
    assert len(frame) == 5, "index, pickle and three parts"
    there = borrowed(frame, keep)
    one, other = codec.decode(list(there)), codec.decode(list(there), owned=True)
    assert is_mapped(one)
    assert is_mapped(other)
    one[:] = 0.0
    np.testing.assert_array_equal(other, array)
    np.testing.assert_array_equal(Codec().decode(frame), array)
    del there, frame
    np.testing.assert_array_equal(other, array)
    del one, other
    shared.trim()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_parts_in_another_order_or_incomplete_are_not_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * SIZE)
    parts = shared.lend_parts(DATA * 2 + b"end")
    assert parts is not None
    loans = borrowed([b"", *parts])[1:]
    assert len(loans) == 3
    assert shared.take(loans) == DATA * 2 + b"end"
    assert shared.take([loans[2], loans[0]]) is None, "not in whole pages"
    assert shared.take([loans[0], loans[1][:-1]]) is None
    assert shared.take([*loans, DATA]) is None
    assert shared.take(parts) is None, "they are our own"


def test_parts_that_cannot_be_mapped_together_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * SIZE)
    codec = Codec(memory=shared)
    there = borrowed(codec.encode(np.arange(SIZE)))

    def no_room(size: int) -> int:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(shared, "_reserve", no_room)
    np.testing.assert_array_equal(codec.decode(there, owned=True), np.arange(SIZE))


def test_without_a_thread_more_the_parts_are_lent_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * SIZE)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    parts = shared.lend_parts(DATA * 3)
    assert parts is not None
    assert b"".join(parts) == DATA * 3


def test_parts_are_not_lent_when_one_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * SIZE)
    answers = iter([memoryview(DATA), None, memoryview(DATA)])
    monkeypatch.setattr(shared, "lend", lambda data: next(answers))
    assert shared.lend_parts(DATA * 3) is None


def test_large_arrays_of_any_size_use_segments_of_one_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * SIZE)
    codec = Codec(memory=shared)
    frame = codec.encode(np.zeros(5 * SIZE // 8))
    assert [len(piece) > SIZE for piece in frame] == [False] * 7, "index, pickle and five parts"
    opened = set(shared._open_here)
    del frame
    frame = codec.encode(np.ones(4 * SIZE // 8 - 1))
    assert len(frame) == 6
    assert set(shared._open_here) == opened
    assert len(codec.encode(np.ones(2 * SIZE // 8))) == 2, "pickle and a whole array"


def test_parts_are_longer_where_few_files_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * SIZE)
    monkeypatch.setattr(shared, "_has_files", lambda part: part <= shared._PART_OF_FILES)
    parts = shared.lend_parts(DATA * 8)
    assert parts is not None
    assert [len(part) for part in parts] == [4 * SIZE] * 2


def test_huge_arrays_have_longer_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * SIZE)
    for count, parts in ((8, 8), (9, 3)):
        lent = shared.lend_parts(DATA * count)
        assert lent is not None
        assert len(lent) == parts
        assert b"".join(lent) == DATA * count


def test_a_process_does_not_write_to_what_it_lends() -> None:
    codec = Codec(memory=shared)
    frame = codec.encode(np.zeros(SIZE))
    codec.decode(list(frame), owned=True)[:] = 1.0
    assert not any(codec.decode(frame))


def test_only_neighbours_are_taken_as_one() -> None:
    there = borrow_from(os.getpid(), loan(lent()).name)
    other = borrow_from(os.getpid(), loan(lent()).name)
    whole = shared.take([there[:1000], there[1000:1500], there[1500:]])
    assert whole is not None
    assert whole == DATA
    assert shared.take([there[:1000], there[1001:]]) is None
    assert shared.take([there[:1000], other[1000:]]) is None
    assert shared.take([there[:1000], DATA[1000:]]) is None
    assert shared.take([DATA]) is None


# --- the pipe -------------------------------------------------------------------------------


class Pipe:
    """Both ends of a pipe."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(PATIENCE_S)
        self.supervisor, self.worker = SupervisorEnd(ours), WorkerEnd(self.theirs)
        self.worker.share = True

    def at_supervisor(self) -> list[Any]:
        got: list[list[Any]] = []

        def complete() -> bool:
            got.extend(self.supervisor.receive())
            return bool(got)

        wait_until(complete)
        return got[0]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.supervisor.close()
    pipe.theirs.close()


def test_loans_cross_the_pipe_as_descriptors(pipe: Pipe) -> None:
    view, plain = lent(), DATA[:70_000]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        pipe.supervisor.send(["data", "name", [b"head", view[:70_000], view[70_000:], plain], ""])
        _, _, frame, _ = pipe.worker.receive()
        assert frame == [b"head", DATA[:70_000], DATA[70_000:], plain]
    assert frame[2].obj.loan.name.inode == loan(view).name.inode
    assert isinstance(frame[3], bytearray)  # what is not lent comes as it is
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_worker_lends_its_results(pipe: Pipe) -> None:
    pipe.worker.send(["done", ["a_0", 1, "result", [b"head", DATA], 0.5, ""]])
    frame = pipe.at_supervisor()[1][3]
    assert frame == [b"head", DATA]
    assert loan_of(frame[1]) is not None  # the supervisor hands it on


def test_more_loans_than_go_with_a_message_cross_it(pipe: Pipe) -> None:
    views = [lent(DATA[i:]) for i in range(100)]
    pipe.supervisor.send(["data", "name", views, ""])
    pipe.supervisor.send(["end"])
    while pipe.supervisor.wants_to_write:
        pipe.supervisor.flush()
        pipe.worker._messages.extend(pipe.worker.receive_available())
    assert pipe.worker.receive()[2] == views
    assert pipe.worker.receive() == ["end"]


def test_descriptors_of_a_message_that_is_cut_off_are_closed() -> None:
    pipe = Pipe()
    before = len(os.listdir("/proc/self/fd"))
    pipe.worker.send(["done", ["a_0", 1, "result", [b"head", DATA], 0.5, ""]])
    data, descriptors, _, _ = socket.recv_fds(pipe.supervisor._sock, 20, 8)  # not all of it
    pipe.supervisor._reader.descriptors.extend(descriptors)
    pipe.supervisor._reader.space()[: len(data)] = data
    assert pipe.supervisor._reader.got(len(data)) == []
    pipe.supervisor.close()
    pipe.theirs.close()
    shared.trim()
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_a_descriptor_that_does_not_come_ends_the_pipe(pipe: Pipe) -> None:
    places = [[0, 1, 2, 3, 4, 0, 100]]
    pipe.theirs.sendall(msgpack.packb([None, ["done", None], [[[1], 1]], places]))
    with pytest.raises(PipeClosed):
        pipe.at_supervisor()

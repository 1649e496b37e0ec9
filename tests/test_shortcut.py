"""The two pipes between a task manager and a worker: what goes through, who may open them."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import msgpack
import pytest
from conftest import wait_until

from masterslave import shortcut
from masterslave.records import Assignment, Completion
from masterslave.shortcut import (
    LONGEST_BYTES,
    Listener,
    ManagerShortcut,
    PipeNames,
    Shortcut,
    ShortcutClosed,
    WorkerShortcut,
    as_names,
    can_have_shortcuts,
)

pytestmark = pytest.mark.skipif(not can_have_shortcuts(), reason="no shortcuts on this system")

TASK = Assignment("square_0", "square", 1, [b"parameters"], None)
DONE = Completion("square_0", 1, "result", [b"result"], 0.5, "")


class Ends:
    """All ends of a shortcut, in this process."""

    def __init__(self, listener: Listener) -> None:
        self.heard = threading.Semaphore(0)
        self.owner = Shortcut()
        self.worker = WorkerShortcut(*(os.dup(end) for end in self.owner.worker_ends))
        self.manager = ManagerShortcut(self.owner.names, listener, self.heard.release)

    def close(self) -> None:
        for end in (self.manager, self.worker, self.owner):
            with contextlib.suppress(OSError):  # a test has closed it
                end.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.stop()


@pytest.fixture
def ends(listener: Listener) -> Iterator[Ends]:
    ends = Ends(listener)
    yield ends
    ends.close()


def descriptors() -> dict[str, str]:
    """The files that this process has open."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # of the directory itself
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


# --- tasks there, results back ------------------------------------------------------------------


def test_a_task_goes_there_and_its_result_comes_back(ends: Ends) -> None:
    assert ends.worker.receive() is None
    data = ends.manager.pack(TASK)
    assert data is not None
    ends.manager.send(data)
    assert ends.owner.has_tasks()
    assert ends.worker.receive() == TASK
    assert not ends.owner.has_tasks()
    assert ends.manager.read() == []
    assert ends.worker.send(DONE)
    assert ends.heard.acquire(timeout=60)
    assert ends.manager.read() == [DONE]
    assert ends.manager.read() == []


def test_the_supervisor_reads_the_results_that_nobody_has_read(ends: Ends) -> None:
    assert ends.owner.read() == []
    ends.worker.send(DONE)
    ends.worker.send(DONE._replace(attempt=2))
    assert is_readable(ends.owner.fileno())
    assert ends.owner.read() == [DONE, DONE._replace(attempt=2)]
    assert ends.manager.read() == []


def test_the_supervisor_takes_back_what_the_worker_has_not_read(ends: Ends) -> None:
    second = TASK._replace(task_id="square_1")
    for task in (TASK, second):
        data = ends.manager.pack(task)
        assert data is not None
        ends.manager.send(data)
    assert ends.owner.take_back() == [TASK, second]
    assert ends.owner.take_back() == []
    assert ends.worker.receive() is None, "it does not wait for what is not there any more"


def of_size(size: int) -> Assignment:
    """A task whose message has that length."""
    task = TASK._replace(frame=[b"x" * (size - 100)])
    missing = size - len(msgpack.packb(task))
    return task._replace(frame=[b"x" * (size - 100 + missing)])


def test_the_longest_messages_go_through_in_one_piece(ends: Ends) -> None:
    task = of_size(LONGEST_BYTES)
    data = ends.manager.pack(task)
    assert data is not None
    assert len(data) == LONGEST_BYTES
    ends.manager.send(data)
    assert ends.worker.receive() == task
    done = DONE._replace(frame=[b"x" * (LONGEST_BYTES - 100)])
    done = done._replace(frame=[b"x" * (2 * LONGEST_BYTES - 100 - len(msgpack.packb(done)))])
    assert len(msgpack.packb(done)) == LONGEST_BYTES
    assert ends.worker.send(done)
    assert ends.manager.read() == [done]


def test_what_is_longer_by_a_byte_does_not_go_this_way(ends: Ends) -> None:
    assert ends.manager.pack(of_size(LONGEST_BYTES + 1)) is None
    done = DONE._replace(frame=[b"x" * LONGEST_BYTES])
    assert not ends.worker.send(done)
    assert ends.manager.read() == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xc1", "no message"),
        (msgpack.packb(1), "a completion must be"),
        (msgpack.packb([1, 2]), "a completion must be"),
        (msgpack.packb(DONE)[:-1], "ends in its midst"),
        (msgpack.packb(DONE) + b"\x93", "ends in its midst"),
    ],
)
def test_what_is_no_result_is_refused(ends: Ends, data: bytes, why: str) -> None:
    os.write(ends.worker._back, data)
    with pytest.raises(ValueError, match=why):
        ends.manager.read()
    os.write(ends.worker._back, data)
    with pytest.raises(ValueError, match=why):
        ends.owner.read()


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"\xc1", "no message"), (msgpack.packb(1), "no task"), (msgpack.packb([1, 2]), "no task")],
)
def test_what_is_no_task_is_not_taken_back(ends: Ends, data: bytes, why: str) -> None:
    os.write(ends.manager._to, data)
    with pytest.raises(ValueError, match=why):
        ends.owner.take_back()


# --- their ends ---------------------------------------------------------------------------------


def test_the_worker_sees_that_the_others_are_gone(ends: Ends) -> None:
    ends.manager.close()
    ends.owner.close()
    with pytest.raises(ShortcutClosed):
        ends.worker.receive()
    with pytest.raises(BrokenPipeError):
        ends.worker.send(DONE)


def test_a_worker_that_is_gone_is_no_error_for_the_task_manager(ends: Ends) -> None:
    ends.worker.close()
    ends.owner.close()
    ends.manager.send(b"a task")
    assert ends.manager.read() == []


def test_nothing_is_written_to_another_file_after_the_end(ends: Ends) -> None:
    number = ends.manager._to
    ends.manager.close()
    there, here = socket.socketpair()
    with there, here:
        if here.fileno() != number != there.fileno():
            os.dup2(here.fileno(), number)
        ends.manager.send(b"a task")
        assert not is_readable(there.fileno())
        assert not is_readable(here.fileno())
        if here.fileno() != number != there.fileno():
            os.close(number)


def test_a_result_is_not_written_to_a_file_that_has_the_number_of_the_pipe(ends: Ends) -> None:
    there, here = socket.socketpair()
    with there, here:
        os.dup2(here.fileno(), ends.worker._back)
        with pytest.raises(OSError, match="was closed"):
            ends.worker.send(DONE)
        assert not is_readable(there.fileno())


def test_the_ends_of_a_worker_are_not_inherited_by_what_it_starts(ends: Ends) -> None:
    owner = Shortcut()
    to, back = owner.worker_ends
    os.set_inheritable(to, True)
    os.set_inheritable(back, True)
    worker = WorkerShortcut(to, back)
    assert not os.get_inheritable(to)
    assert not os.get_inheritable(back)
    worker.close()
    owner._ends = owner._ends[1:3]
    owner.close()


# --- who may open them --------------------------------------------------------------------------


def refuses(names: PipeNames, listener: Listener) -> bool:
    """Whether the pipes are not opened, and nothing stays open."""
    before = descriptors()
    try:
        ManagerShortcut(names, listener, lambda: None).close()
    except OSError:
        return descriptors() == before
    return False


def test_other_pipes_than_those_named_are_refused(ends: Ends, listener: Listener) -> None:
    names, other = ends.owner.names, Shortcut()
    assert refuses(names._replace(to_inode=names.to_inode + 1), listener)
    assert refuses(names._replace(back_inode=names.back_inode + 1), listener)
    assert refuses(names._replace(to_descriptor=other.names.to_descriptor), listener)
    assert refuses(names._replace(back_descriptor=other.names.back_descriptor), listener)
    assert refuses(names._replace(system=names.system ^ 4), listener), "another host"
    other.close()


def test_what_is_no_pipe_is_refused(ends: Ends, listener: Listener) -> None:
    names = ends.owner.names
    there, here = socket.socketpair()
    with there, here, open(__file__) as file:
        for number in (here.fileno(), file.fileno()):
            inode = os.fstat(number).st_ino
            assert refuses(names._replace(to_descriptor=number, to_inode=inode), listener)
            assert refuses(names._replace(back_descriptor=number, back_inode=inode), listener)
    assert refuses(names._replace(to_descriptor=1 << 20), listener)


def test_a_process_that_has_ended_is_refused(ends: Ends, listener: Listener) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert refuses(ends.owner.names._replace(pid=ended.pid), listener)


def test_another_process_with_other_files_is_refused(ends: Ends, listener: Listener) -> None:
    names = ends.owner.names
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert refuses(names._replace(pid=other.pid), listener)
        assert refuses(names._replace(pid=other.pid, to_descriptor=0), listener)
        other.communicate(b"\n")


def test_pipes_that_are_closed_are_refused(listener: Listener) -> None:
    owner = Shortcut()
    owner.close()
    assert refuses(owner.names, listener)


def test_nothing_stays_open_when_nobody_can_listen(ends: Ends) -> None:
    listener = Listener()
    listener.stop()
    assert refuses(ends.owner.names, listener)


def test_names_go_over_a_wire(ends: Ends) -> None:
    names = ends.owner.names
    assert as_names(msgpack.unpackb(msgpack.packb(names))) == names


@pytest.mark.parametrize(
    "wrong",
    [
        [], [1] * 5, [1] * 7, [1, 2, 3, 4, 5, -1], [1, 2, 3, 4, 5, 1 << 63],
        [1, 2, 3, 4, 5, "6"], [1, 2, 3, 4, True, 6], [1.0] * 6,
    ],
)  # fmt: skip
def test_names_that_cannot_be(wrong: list[object]) -> None:
    with pytest.raises(ValueError, match="six integers"):
        as_names(wrong)


def test_a_system_without_a_number_of_its_own_has_no_shortcuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shortcut, "_system", lambda: 0)
    assert not can_have_shortcuts()


# --- the listener -------------------------------------------------------------------------------


def test_one_thread_listens_to_all(listener: Listener) -> None:
    threads = threading.active_count()
    all_ends = [Ends(listener) for _ in range(3)]
    assert threading.active_count() == threads + 1
    for ends in reversed(all_ends):
        ends.worker.send(DONE)
        assert ends.heard.acquire(timeout=60)
    for ends in all_ends:
        ends.close()


def test_what_was_not_read_is_told_again(ends: Ends) -> None:
    ends.worker.send(DONE)
    for _ in range(3):
        assert ends.heard.acquire(timeout=60)


def test_who_has_let_go_hears_nothing_more(ends: Ends, listener: Listener) -> None:
    ends.manager.close()
    while ends.heard.acquire(blocking=False):
        pass
    ends.worker.send(DONE)
    other = Ends(listener)
    other.worker.send(DONE)
    assert other.heard.acquire(timeout=60), "the thread is awake"
    assert not ends.heard.acquire(blocking=False)
    other.close()


def test_pipes_that_have_ended_do_not_keep_the_thread_busy(listener: Listener) -> None:
    ends = Ends(listener)
    ends.worker.send(DONE)
    ends.worker.close()
    ends.owner.close()
    assert ends.heard.acquire(timeout=60)
    assert ends.manager.read() == [DONE], "what was written before comes all the same"
    wait_until(lambda: not listener._heard, "it is not listened to any more")
    ends.manager.close()


def test_a_new_pipe_with_the_number_of_one_that_has_ended_is_heard(listener: Listener) -> None:
    for _ in range(20):
        ends = Ends(listener)
        ends.worker.close()
        ends.owner.close()
        ends.manager.close()  # the thread may be about to forget it
        ends = Ends(listener)
        ends.worker.send(DONE)
        assert ends.heard.acquire(timeout=60)
        ends.close()


def test_nothing_is_left_open() -> None:
    before = descriptors()
    listener = Listener()
    for _ in range(5):
        ends = Ends(listener)
        ends.worker.send(DONE)
        ends.close()
    listener.stop()
    assert descriptors() == before
    assert "shortcuts" not in [thread.name for thread in threading.enumerate()]


def test_a_listener_that_has_never_listened_is_stopped() -> None:
    before = descriptors()
    listener = Listener()
    listener.stop()
    assert descriptors() == before


def test_a_pipe_that_cannot_be_made_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def pipe2(flags: int) -> tuple[int, int]:
        if made:
            raise OSError("too many open files")
        made.append(real(flags))
        return made[0]

    real = os.pipe2
    before = descriptors()
    monkeypatch.setattr(os, "pipe2", pipe2)
    with pytest.raises(OSError, match="too many"):
        Shortcut()
    assert descriptors() == before
    listener = Listener()
    with pytest.raises(OSError, match="too many"):
        listener.listen(0, lambda: None)
    assert descriptors() == before
    listener.stop()

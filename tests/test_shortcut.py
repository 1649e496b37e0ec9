"""Pipes and board between task manager and worker: what goes through, who may open them."""

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
from conftest import PATIENCE_S, wait_until

from masterslave import board, shortcut
from masterslave.listener import Listener
from masterslave.records import Assignment, Completion
from masterslave.shortcut import (
    LONGEST_BYTES,
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

    def __init__(self, listener: Listener, *, keeps: bool = False) -> None:
        self.heard = threading.Semaphore(0)
        self.owner = Shortcut()
        self.worker = WorkerShortcut(*(os.dup(end) for end in self.owner.worker_ends))
        self.manager = ManagerShortcut(self.owner.names, listener, self.heard.release, keeps=keeps)

    def sends(self, *tasks: Assignment) -> None:
        """The task manager gives the worker these, in one message."""
        self.manager.send(self.manager.pack(tasks))

    def gets(self) -> list[Assignment]:
        """What has come to the worker."""
        self.worker.receive()
        tasks = list(self.worker.tasks)
        self.worker.tasks.clear()
        return tasks

    def close(self) -> None:
        for end in (self.manager, self.worker, self.owner):
            with contextlib.suppress(OSError):  # a test has closed it
                end.close()


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
    assert ends.gets() == []
    ends.sends(TASK)
    assert ends.owner.has_tasks()
    assert ends.gets() == [TASK]
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
    third = TASK._replace(task_id="square_2")
    ends.sends(TASK)
    ends.manager.send(ends.manager.pack_skip([("square_0", 1)]))
    ends.sends(second, third)
    ends.manager.send(ends.manager.pack_forget(["state_0_x"]))
    assert ends.owner.take_back() == ([TASK, second, third], [("square_0", 1)])
    assert ends.owner.take_back() == ([], [])
    assert ends.gets() == [], "it does not wait for what is not there any more"


def of_size(size: int) -> Completion:
    """A result whose message has that length."""
    done = DONE._replace(frame=[b"x" * (size - 200)])
    missing = size - len(msgpack.packb(done))
    return done._replace(frame=[b"x" * (size - 200 + missing)])


def test_the_longest_result_goes_through_the_pipe_in_one_piece(ends: Ends) -> None:
    done = of_size(LONGEST_BYTES)
    assert len(msgpack.packb(done)) == LONGEST_BYTES
    assert ends.worker.send(done)
    assert ends.manager.read() == [done]


def test_what_is_too_long_for_the_board_does_not_go_this_way(ends: Ends) -> None:
    ends.sends(TASK)
    ends.gets()
    assert not ends.worker.send(DONE._replace(frame=[b"x" * (board.LONGEST_BYTES + 1)]))
    assert not ends.worker.send(DONE._replace(frame=[b"x", b"y" * LONGEST_BYTES]))
    assert ends.manager.read() == []


# --- many at once -------------------------------------------------------------------------------


def many(count: int) -> list[Assignment]:
    return [TASK._replace(task_id=f"square_{number}") for number in range(count)]


def ends_of(tasks: list[Assignment]) -> list[Completion]:
    return [DONE._replace(task_id=task.task_id, duration_s=1e-6) for task in tasks]


def test_many_tasks_go_at_once_and_the_worker_says_when_to_look(ends: Ends) -> None:
    tasks = many(100)
    ends.sends(*tasks)
    ends.worker.receive()
    assert list(ends.worker.tasks) == tasks
    told = 0
    for done in ends_of(tasks):
        ends.worker.tasks.popleft()
        assert ends.worker.send(done)
        if is_readable(ends.owner.fileno()):
            told += 1
            os.read(ends.owner.fileno(), 100)
    assert told == 2, "when half of them are over, and when all are"
    assert ends.manager.read() == ends_of(tasks)
    assert ends.manager.read() == []


def test_some_are_not_to_be_run_after_all(ends: Ends) -> None:
    ends.sends(*many(5))
    ends.worker.receive()
    ends.worker.tasks.popleft()
    ends.manager.send(ends.manager.pack_skip([("square_0", 1), ("square_2", 1), ("square_3", 1)]))
    ends.sends(TASK._replace(task_id="square_2", attempt=2))
    ends.worker.receive()
    held = [(task.task_id, task.attempt) for task in ends.worker.tasks]
    assert held == [("square_1", 1), ("square_4", 1), ("square_2", 2)]


def test_the_task_manager_forbids_the_worker_to_begin_tasks_for_a_moment(ends: Ends) -> None:
    ends.sends(*many(3))
    ends.worker.receive()
    begun = ends.worker.begin()
    assert begun is not None
    assert ends.manager.begun() == (False, ("square_0", 1))
    assert ends.manager.hold()
    assert ends.manager.begun() == (True, ("square_0", 1))
    assert ends.worker.begin() is None
    assert not ends.worker.may_begin()
    assert ends.manager.begun() == (True, ("square_1", 1)), "it may have ended, too"
    ends.manager.release()
    assert ends.worker.begin() is None, "it does not know yet"
    assert ends.worker.may_begin()
    assert [task.task_id for task in ends.worker.tasks] == ["square_1", "square_2"]
    assert ends.worker.begin() is not None


@pytest.mark.parametrize("who", ["supervisor", "task manager"])
def test_a_ban_ends_with_the_task_managers_end(ends: Ends, who: str) -> None:
    """Also when the task manager dies, and the supervisor comes to read the board."""
    ends.sends(*many(3))
    ends.worker.receive()
    ends.manager.hold()
    assert not ends.worker.may_begin()
    if who == "supervisor":
        assert ends.owner.read() == []
        assert ends.manager.begun() == (False, None), "it cannot be sure any more"
        ends.manager.release()
    else:
        ends.manager.close()
    assert ends.worker.may_begin()


def test_data_that_was_deleted_is_told_in_order(ends: Ends) -> None:
    ends.manager.send(ends.manager.pack_forget(["state_0_x"]))
    ends.sends(TASK)
    assert ends.gets() == [TASK]
    assert ends.worker.forgotten == ["state_0_x"]


def test_when_the_supervisor_reads_the_board_the_task_manager_does_not(ends: Ends) -> None:
    tasks = many(6)
    ends.sends(*tasks)
    ends.worker.receive()
    all_done = ends_of(tasks)
    for place, reader in ((0, ends.manager), (2, ends.owner), (4, ends.owner)):
        for done in all_done[place : place + 2]:
            ends.worker.tasks.popleft()
            assert ends.worker.send(done)
        assert reader.read() == all_done[place : place + 2]
        assert ends.manager.read() == []
    assert ends.owner.read() == []


def test_a_result_that_is_not_acknowledged_is_there_for_the_supervisor(listener: Listener) -> None:
    ends = Ends(listener, keeps=True)
    ends.sends(TASK)
    ends.gets()
    ends.worker.send(DONE)
    assert ends.manager.read() == [DONE], "not by the pipe, where it would be gone"
    assert ends.manager.read() == []
    ends.manager.acknowledge()
    second = DONE._replace(task_id="square_1")
    ends.worker.send(second)
    assert ends.manager.read() == [second]
    assert ends.owner.read() == [second]
    ends.close()


def test_what_the_task_manager_was_told_of_too_late_lies_there_for_the_supervisor(
    listener: Listener,
) -> None:
    ends = Ends(listener, keeps=True)
    ends.sends(TASK)
    ends.gets()
    assert ends.owner.read() == [], "it has taken the shortcut back"
    ends.worker.send(DONE)
    assert ends.manager.read() == []
    assert not is_readable(ends.owner.fileno()), "nobody tells of it"
    assert ends.owner.read() == [DONE]
    ends.close()


def test_a_board_that_is_full_does_not_hold_the_worker_up(ends: Ends) -> None:
    tasks = many(200)
    ends.sends(*tasks)
    ends.worker.receive()
    took = 0
    for done in ends_of(tasks):
        ends.worker.tasks.popleft()
        took += ends.worker.send(done._replace(frame=[b"x" * 5000]))
    assert board.BOARD_BYTES // 5300 <= took < 200
    assert len(ends.manager.read()) == took


def test_as_many_bytes_as_are_said_to_fit_do_fit(ends: Ends) -> None:
    sent = 0
    message = ends.manager.pack([TASK._replace(frame=[b"x" * 2000])])
    while sent + len(message) <= ends.manager.room_bytes:
        assert os.write(ends.manager._to, message) == len(message)
        sent += len(message)
    assert sent > board.LONGEST_BYTES


def test_a_look_without_a_result_is_no_result(ends: Ends) -> None:
    os.write(ends.worker._back, b"\xc0\xc0")
    assert ends.manager.read() == []
    os.write(ends.worker._back, b"\xc0")
    assert ends.owner.read() == []


def test_what_is_no_result_on_the_board_is_refused(ends: Ends) -> None:
    ends.worker._poster.post([0, "square_0", 1])
    with pytest.raises(ValueError, match="a completion must be"):
        ends.manager.read()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xc1", "no message"),
        (msgpack.packb(1), "no message"),
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
    [(b"\xc1", "no message"), (msgpack.packb(1), "no message"), (msgpack.packb([1, 2]), "no task")],
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


def test_a_result_is_not_written_to_a_file_that_has_the_number_of_the_pipe(ends: Ends) -> None:
    there, here = socket.socketpair()
    with there, here:
        os.dup2(here.fileno(), ends.worker._back)
        with pytest.raises(OSError, match="was closed"):
            ends.worker.send(DONE)
        assert not is_readable(there.fileno())


def test_the_ends_of_a_worker_are_not_inherited_by_what_it_starts(ends: Ends) -> None:
    owner = Shortcut()
    to, back, posts = owner.worker_ends
    os.set_inheritable(to, True)
    os.set_inheritable(back, True)
    worker = WorkerShortcut(to, back, posts)
    assert not os.get_inheritable(to)
    assert not os.get_inheritable(back)
    worker.close()
    owner._ends = owner._ends[1:3]  # the others are the worker's
    owner.close()


def test_others_have_their_part_of_the_files(
    ends: Ends, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    monkeypatch.setattr(shortcut.resource, "getrlimit", lambda which: (10, 10))
    with pytest.raises(OSError, match="too many"):
        Shortcut()
    with pytest.raises(OSError, match="too many"):
        ManagerShortcut(ends.owner.names, listener, lambda: None)
    assert descriptors() == before


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
    assert refuses(names._replace(board_inode=names.board_inode + 1), listener)
    assert refuses(names._replace(board_descriptor=other.names.board_descriptor), listener)
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
            assert refuses(names._replace(board_descriptor=number, board_inode=inode), listener)
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


def test_where_no_thread_can_be_started_there_is_no_shortcut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As at the end of the interpreter, from Python 3.12 on."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    listener, ends = Listener(), os.pipe()
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="can't create new thread"):
            listener.listen(ends[0], int)
    assert descriptors() == before
    heard = threading.Event()
    listener.listen(ends[0], heard.set)
    os.write(ends[1], b"x")
    assert heard.wait(PATIENCE_S)
    listener.forget(ends[0])
    listener.stop()
    for end in ends:
        os.close(end)


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
        [], [1] * 7, [1] * 9, [1] * 7 + [-1], [1] * 7 + [1 << 63], [1] * 7 + ["6"],
        [1, 2, 3, 4, True, 6, 7, 8], [1.0] * 8,
    ],
)  # fmt: skip
def test_names_that_cannot_be(wrong: list[object]) -> None:
    with pytest.raises(ValueError, match="eight integers"):
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


def test_a_board_is_looked_at_before_the_listener_is_told(
    listener: Listener, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it may look whether it is to look, and wait without an end."""
    told: list[set[int]] = []
    write = os.write

    def tell(descriptor: int, data: bytes) -> int:
        told.append(set(listener._close))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", tell)
    ends.manager.look_closely(True)
    assert [len(descriptors) for descriptors in told] == [1]
    assert ends.heard.acquire(timeout=60)

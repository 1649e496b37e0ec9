"""The pipe between supervisor and worker, over real sockets."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from conftest import PATIENCE_S, wait_until

from masterslave import pipe as pipe_module
from masterslave import shared
from masterslave.board import LONGEST_BYTES as LONGEST_POST
from masterslave.board import Board, Poster, create
from masterslave.listener import Listener
from masterslave.pipe import PipeClosed, SupervisorEnd, WorkerEnd
from masterslave.records import Assignment, Completion, Outcome, as_assignment
from masterslave.shortcut import ManagerShortcut, Shortcut, WorkerShortcut, can_have_shortcuts
from masterslave.stream import pack

LARGE = bytes(range(256)) * 20_000  # more than any socket's buffer


class Pipe:
    """Both ends, and the worker's socket underneath."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(PATIENCE_S)  # a safety net
        self.supervisor, self.worker = SupervisorEnd(ours), WorkerEnd(self.theirs)

    def at_supervisor(self, count: int = 1) -> list[list[Any]]:
        """So many messages, as they come in."""
        messages: list[list[Any]] = []

        def complete() -> bool:
            messages.extend(self.supervisor.receive())
            return len(messages) >= count

        wait_until(complete, "messages for the supervisor")
        return messages


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.supervisor.close()
    pipe.theirs.close()


def test_messages_cross_in_order(pipe: Pipe) -> None:
    messages = [["ready", ["a", "b"], 120.0], ["need", "state_0_x"], ["leaving"]]
    for message in messages:
        pipe.supervisor.send(message)
        pipe.worker.send(message)
    assert [pipe.worker.receive() for _ in messages] == messages
    assert pipe.at_supervisor(3) == messages


def test_records_cross(pipe: Pipe) -> None:
    assignment = Assignment("a_0", "a", 1, [b"head", b"", LARGE[:1000]], None)
    pipe.supervisor.send(["tasks", [assignment]])
    kind, items = pipe.worker.receive()
    assert (kind, [as_assignment(item) for item in items]) == ("tasks", [assignment])


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 2**63, 0.1, "", "żółw", b"\x00\xff", {"a": [1]}, {1: 2}],
    ids=repr,
)
def test_plain_values_cross_as_they_are(pipe: Pipe, value: Any) -> None:
    pipe.supervisor.send(["data", value])
    assert pipe.worker.receive() == ["data", value]


def test_text_that_is_not_utf_8_crosses(pipe: Pipe) -> None:
    """Names of files may have such characters, and so may the text of an exception."""
    message = ["failed", "cannot read \udcff.txt", "Traceback\n\ud800 \udfff"]
    pipe.worker.send(message)
    assert pipe.at_supervisor() == [message]
    pipe.supervisor.send(message)
    assert pipe.worker.receive() == message


def test_the_supervisor_does_not_wait_for_a_worker_that_does_not_read(pipe: Pipe) -> None:
    pipe.supervisor.send(["tasks", LARGE])
    assert pipe.supervisor.wants_to_write
    pipe.supervisor.send(["end"])
    got: list[list[Any]] = []
    reader = threading.Thread(target=lambda: got.extend(pipe.worker.receive() for _ in range(2)))
    reader.start()

    def flushed() -> bool:
        pipe.supervisor.flush()
        return not pipe.supervisor.wants_to_write

    wait_until(flushed, "all is sent")
    reader.join(PATIENCE_S)
    assert got == [["tasks", LARGE], ["end"]]


def test_a_worker_waits_until_the_supervisor_has_taken_all(pipe: Pipe) -> None:
    sender = threading.Thread(target=pipe.worker.send, args=(["done", LARGE],))
    sender.start()
    assert pipe.at_supervisor() == [["done", LARGE]]
    sender.join(PATIENCE_S)
    assert not sender.is_alive()


def test_receiving_does_not_wait(pipe: Pipe) -> None:
    assert pipe.supervisor.receive() == []


def test_a_worker_takes_what_is_there_without_waiting(pipe: Pipe) -> None:
    pipe.theirs.settimeout(None)  # as in a worker; with a time-out Python itself waits
    assert pipe.worker.receive_available() == []
    messages = [["tasks", []], ["skip", ["a_1", "a_2"]], ["forget", ["x"]]]
    for message in messages:
        pipe.supervisor.send(message)
    assert pipe.worker.receive() == messages[0]
    assert pipe.worker.receive_available() == messages[1:]
    assert pipe.worker.receive_available() == []


def test_the_beginning_of_a_message_is_kept_until_the_rest_is_there(pipe: Pipe) -> None:
    packed = b"".join(pack(["skip", ["a_1"]]))
    ours = pipe.supervisor._sock
    ours.sendall(packed[:-1])
    assert pipe.worker.receive_available() == []
    ours.sendall(packed[-1:])
    assert pipe.worker.receive_available() == [["skip", ["a_1"]]]


def test_a_worker_that_looks_for_more_sees_the_end(pipe: Pipe) -> None:
    pipe.supervisor.send(["end"])
    pipe.supervisor.close()
    assert pipe.worker.receive_available() == [["end"]]
    with pytest.raises(PipeClosed):
        pipe.worker.receive_available()


def test_a_message_may_come_in_pieces(pipe: Pipe) -> None:
    message = ["done", ["a_0", 1, "result", [b"frame"], 0.5, ""]]
    packed = b"".join(pack(message))
    for i in range(len(packed) - 1):
        pipe.theirs.sendall(packed[i : i + 1])
        assert pipe.supervisor.receive() == []
    pipe.theirs.sendall(packed[-1:] + packed)
    assert pipe.at_supervisor(2) == [message, message]


def test_each_end_sees_that_the_other_is_gone() -> None:
    pipe = Pipe()
    pipe.theirs.close()
    with pytest.raises(PipeClosed):
        pipe.supervisor.receive()
    pipe.supervisor.close()
    pipe = Pipe()
    pipe.supervisor.close()
    with pytest.raises(PipeClosed):
        pipe.worker.receive()
    with pytest.raises(PipeClosed):
        pipe.worker.send(["done", LARGE])
    pipe.theirs.close()


def test_what_was_sent_before_the_end_is_received_first(pipe: Pipe) -> None:
    pipe.supervisor.send(["tasks", []])
    pipe.supervisor.send(["end"])
    pipe.supervisor.close()
    assert [pipe.worker.receive() for _ in range(2)] == [["tasks", []], ["end"]]
    with pytest.raises(PipeClosed):
        pipe.worker.receive()


def test_sending_to_a_dead_worker_is_no_error_and_keeps_nothing(pipe: Pipe) -> None:
    pipe.supervisor.send(["tasks", LARGE])
    assert pipe.supervisor.wants_to_write
    pipe.theirs.close()
    pipe.supervisor.send(["end"])
    assert not pipe.supervisor.wants_to_write


@pytest.mark.parametrize("tasks_unread", [False, True])
def test_what_a_dead_worker_had_still_sent_is_found(pipe: Pipe, tasks_unread: bool) -> None:
    if tasks_unread:
        pipe.supervisor.send(["tasks", ["never read"]])
    for i in range(3):
        pipe.worker.send(["done", i])
    pipe.theirs.close()
    assert pipe.supervisor.receive_all() == [["done", i] for i in range(3)]


def test_half_a_message_of_a_dead_worker_is_dropped(pipe: Pipe) -> None:
    pipe.worker.send(["done", 1])
    pipe.theirs.sendall(b"".join(pack(["done", LARGE[:1000]]))[:-1])
    pipe.theirs.close()
    assert pipe.supervisor.receive_all() == [["done", 1]]


def test_nothing_more_from_a_worker_that_lives_is_no_reason_to_wait(pipe: Pipe) -> None:
    pipe.worker.send(["leaving"])
    assert pipe.supervisor.receive_all() == [["leaving"]]


def test_a_selector_can_watch_the_supervisors_end(pipe: Pipe) -> None:
    assert pipe.supervisor.fileno() >= 0


# --- the shortcut beside it -----------------------------------------------------------------

TASK = Assignment("square_0", "square", 1, [b"parameters"], None)
shortcuts = pytest.mark.skipif(not can_have_shortcuts(), reason="no shortcuts on this system")


class Beside(Pipe):
    """A pipe with a board and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.theirs.settimeout(None)  # with one, Python waits where the worker does not
        descriptor = create()
        self.shortcut, self.poster = Shortcut(), Poster(descriptor)
        self.supervisor._board = Board(descriptor)
        os.close(descriptor)
        ends = (os.dup(end) for end in self.shortcut.worker_ends)
        self.worker_shortcut = WorkerShortcut(*ends)
        self.worker = WorkerEnd(self.theirs, self.poster, self.worker_shortcut)

    def give(self, task: Assignment) -> None:
        os.write(self.shortcut.names.to_descriptor, msgpack.packb(task))

    def skips(self, tasks: list[Assignment]) -> None:
        keys = [part for task in tasks for part in (task.task_id, task.attempt)]
        os.write(self.shortcut.names.to_descriptor, msgpack.packb([None, *keys]))

    def begins(self) -> Assignment | None:
        """The worker waits, and begins what has come by the shortcut."""
        assert self.worker.receive_or_tasks() is None
        return self.worker.next_task()

    def close(self) -> None:
        self.supervisor.close()
        self.theirs.close()
        self.poster.close()
        self.worker_shortcut.close()
        self.shortcut.close()


@pytest.fixture
def beside() -> Iterator[Beside]:
    beside = Beside()
    yield beside
    beside.close()


def end(outcome: Outcome, frame: bytes = b"r") -> Completion:
    return Completion(TASK.task_id, 1, outcome.value, [frame], 0.0, "")


@shortcuts
def test_a_task_that_comes_beside_stands_on_the_board_until_its_end(beside: Beside) -> None:
    beside.give(TASK)
    assert beside.shortcut.under_way() is None
    assert beside.begins() == TASK
    assert beside.shortcut.under_way() == ("square_0", 1)
    beside.worker.hand_in(end(Outcome.RESULT))
    assert beside.shortcut.under_way() is None
    assert beside.shortcut.turns == 2
    assert beside.shortcut.read() == [end(Outcome.RESULT)]


@shortcuts
@pytest.mark.parametrize(
    "done",
    [
        end(Outcome.RESULT, b"x" * (LONGEST_POST + 1)),
        end(Outcome.OUT_OF_MEMORY),
        end(Outcome.RETURNED),
    ],
    ids=["large", "out of memory", "given back"],
)
def test_what_goes_back_by_the_pipe(beside: Beside, done: Completion) -> None:
    beside.give(TASK)
    beside.begins()
    beside.worker.hand_in(done)
    (message,) = beside.at_supervisor()
    assert message == ["beside", list(done)]
    assert beside.shortcut.under_way() is None
    assert beside.shortcut.read() == []


@shortcuts
def test_a_task_comes_before_what_the_supervisor_says_at_the_same_time(beside: Beside) -> None:
    beside.supervisor.send(["end"])
    beside.give(TASK)
    assert beside.begins() == TASK
    beside.worker.hand_in(end(Outcome.RESULT))
    assert beside.worker.receive_or_tasks() == ["end"]


@shortcuts
def test_a_task_that_was_taken_back_meanwhile_is_not_waited_for(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is told that something is there, and another one reads it first."""
    receive = beside.worker_shortcut.receive
    seen: list[Assignment] = []

    def late() -> None:
        if not seen:
            seen.extend(beside.shortcut.take_back()[0])
            beside.supervisor.send(["end"])
        receive()

    monkeypatch.setattr(beside.worker_shortcut, "receive", late)
    beside.give(TASK)
    assert beside.worker.receive_or_tasks() == ["end"]
    assert seen == [TASK]
    assert beside.shortcut.turns == 0


@shortcuts
def test_without_the_other_ends_the_pipe_goes_on(beside: Beside) -> None:
    beside.shortcut.close()
    beside.supervisor.send(["forget", []])
    assert beside.worker.receive_or_tasks() == ["forget", []]
    beside.supervisor.send(["end"])
    assert beside.worker.receive_or_tasks() == ["end"]


@shortcuts
def test_ends_that_a_handler_has_closed_are_an_end_of_the_pipe(beside: Beside) -> None:
    beside.give(TASK)
    beside.begins()
    os.dup2(beside.theirs.fileno(), beside.worker_shortcut._back)
    with pytest.raises(PipeClosed):
        beside.worker.hand_in(end(Outcome.RESULT))
    assert beside.shortcut.under_way() == ("square_0", 1), "it is to blame"


@shortcuts
@pytest.mark.parametrize("told_s", [-1.0, PATIENCE_S], ids=["long", "short"])
def test_the_supervisor_is_told_of_the_end_of_a_long_task(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, told_s: float
) -> None:
    monkeypatch.setattr(pipe_module, "_TOLD_S", told_s)
    beside.give(TASK)
    beside.begins()
    beside.worker.hand_in(end(Outcome.RESULT))
    wakes = bool(select.select([beside.supervisor], [], [], 0)[0])
    assert wakes == (told_s < 0)
    assert beside.supervisor.receive() == []
    assert beside.shortcut.under_way() is None


@shortcuts
def test_a_board_that_is_being_closed_shows_nothing(beside: Beside) -> None:
    beside.give(TASK)
    beside.begins()
    beside.shortcut.close()
    assert beside.shortcut.under_way() is None
    assert beside.shortcut.turns == 0


@shortcuts
def test_tasks_of_one_message_run_in_order_and_each_is_on_the_board(beside: Beside) -> None:
    batch = [TASK._replace(task_id=f"square_{number}") for number in range(3)]
    os.write(beside.shortcut.names.to_descriptor, msgpack.packb(batch))
    assert beside.worker.receive_or_tasks() is None
    for number, task in enumerate(batch):
        assert beside.worker.has_task()
        assert beside.worker.next_task() == task
        assert beside.shortcut.under_way() == (task.task_id, 1)
        beside.worker.hand_in(end(Outcome.RESULT)._replace(task_id=task.task_id))
        assert (beside.shortcut.under_way() is None) == (number == 2)
    assert beside.worker.next_task() is None
    assert [done.task_id for done in beside.shortcut.read()] == [one.task_id for one in batch]


@shortcuts
def test_data_that_was_deleted_is_told_before_the_tasks_that_come_later(beside: Beside) -> None:
    os.write(beside.shortcut.names.to_descriptor, msgpack.packb([False, "state_0_x"]))
    beside.give(TASK)
    assert beside.worker.receive_or_tasks() == ["forget_beside", ["state_0_x"]]
    assert beside.worker.next_task() == TASK


@shortcuts
def test_a_worker_that_was_sent_nothing_makes_no_system_call(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    receive, readv = pipe_module.receive, os.readv

    def counted_receive(*arguments: Any) -> int:
        calls.append("pipe")
        return receive(*arguments)

    def counted_readv(*arguments: Any) -> int:
        calls.append("shortcut")
        return readv(*arguments)

    def news() -> tuple[list[list[Any]], list[str]]:
        calls.clear()
        return beside.worker.receive_news(), list(calls)

    monkeypatch.setattr(pipe_module, "receive", counted_receive)
    monkeypatch.setattr(os, "readv", counted_readv)
    assert news() == ([], ["shortcut", "pipe"]), "something may have come before"
    assert news() == ([], [])
    beside.supervisor.send(["skip", ["a_1"]])
    assert news() == ([["skip", ["a_1"]]], ["pipe"])
    assert news() == ([], [])
    beside.supervisor.send(["tasks", []])
    beside.supervisor.send(["skip", ["a_2"]])
    assert beside.worker.receive() == ["tasks", []]
    assert news() == ([["skip", ["a_2"]]], []), "it came with the other one"
    listener = Listener()
    manager = ManagerShortcut(beside.shortcut.names, listener, lambda: None)
    try:
        manager.send(manager.pack([TASK]))
        assert news() == ([], ["shortcut"])
        assert beside.worker.next_task() == TASK
        assert news() == ([], [])
    finally:
        manager.close()
        listener.stop()


@shortcuts
@pytest.mark.parametrize("share", [False, True])
def test_all_of_what_was_sent_is_received_however_large(beside: Beside, share: bool) -> None:
    """Also what the system gives in several parts, as descriptors come with some."""
    beside.supervisor._share = beside.worker.share = share
    messages: list[list[Any]] = []
    for number in range(12):
        frame = [b"head", bytes([number]) * (1 << 20)] if number % 3 else [b"small"]
        messages.append(["tasks", [[f"a_{number}", "a", 1, shared.lend_large(frame), None]]])
    got: list[list[Any]] = []
    for message in messages:
        beside.supervisor.send(message)

    def complete() -> bool:
        beside.supervisor.flush()
        got.extend(beside.worker.receive_news())
        return len(got) == len(messages)

    wait_until(complete, "all messages")
    for sent, received in zip(messages, got, strict=True):
        (one,), (other,) = sent[1], received[1]
        assert [bytes(part) for part in one[3]] == [bytes(part) for part in other[3]]
    assert beside.worker.receive_news() == []


@shortcuts
def test_a_result_that_waits_for_those_of_tasks_that_are_taken_back_is_told_of(
    beside: Beside,
) -> None:
    """Else the task manager would wait for it, and its supervisor for the end of the task."""
    batch = [TASK._replace(task_id=f"square_{number}") for number in range(5)]
    os.write(beside.shortcut.names.to_descriptor, msgpack.packb(batch))
    beside.begins()
    beside.worker.hand_in(end(Outcome.RESULT))
    assert not select.select([beside.shortcut], [], [], 0)[0], "it is told with those to come"
    beside.skips(batch)
    beside.worker.receive_available()
    assert select.select([beside.shortcut], [], [], 0)[0]
    assert beside.shortcut.under_way() is None
    assert beside.shortcut.read() == [end(Outcome.RESULT)]
    assert beside.worker.next_task() is None


@shortcuts
def test_while_a_task_runs_its_end_tells_that_others_were_taken_back(beside: Beside) -> None:
    batch = [TASK._replace(task_id=f"square_{number}") for number in range(5)]
    os.write(beside.shortcut.names.to_descriptor, msgpack.packb(batch))
    beside.begins()
    beside.skips(batch)
    beside.worker.receive_available()
    assert beside.shortcut.under_way() == ("square_0", 1)
    assert not select.select([beside.shortcut], [], [], 0)[0]
    beside.worker.hand_in(end(Outcome.RESULT))
    assert select.select([beside.shortcut], [], [], 0)[0]
    assert beside.shortcut.under_way() is None


# --- a worker that is forbidden to begin tasks ----------------------------------------------------


@pytest.fixture
def board(beside: Beside) -> Iterator[Board]:
    """The board of the shortcut, as its reader has it."""
    board = Board(beside.shortcut.worker_ends[2], 7)
    board.claim()
    yield board
    board.close()


def batch(count: int) -> list[Assignment]:
    return [TASK._replace(task_id=f"square_{number}") for number in range(count)]


def gives(beside: Beside, tasks: list[Assignment]) -> None:
    os.write(beside.shortcut.names.to_descriptor, msgpack.packb(tasks))
    assert beside.worker.receive_or_tasks() is None


@shortcuts
def test_who_is_forbidden_to_begin_asks_again_until_it_may(beside: Beside, board: Board) -> None:
    tasks = batch(3)
    gives(beside, tasks)
    assert board.hold()
    for _ in range(3):
        assert beside.worker.next_task() is None
        assert board.under_way() is None
        assert beside.worker.receive_or_tasks() is None, "it does not wait for a message"
    board.release()
    assert beside.worker.next_task() == tasks[0]
    assert board.under_way() == ("square_0", 1)


@shortcuts
def test_meanwhile_it_hears_its_supervisor(beside: Beside, board: Board) -> None:
    gives(beside, batch(3))
    board.hold()
    assert beside.worker.next_task() is None
    beside.supervisor.send(["forget", ["x"]])
    assert beside.worker.receive_or_tasks() == ["forget", ["x"]]


@shortcuts
def test_what_is_taken_back_is_not_begun_afterwards(beside: Beside, board: Board) -> None:
    """Whether it was forbidden while a task ran or while the worker looked."""
    tasks = batch(4)
    gives(beside, tasks)
    assert beside.worker.next_task() == tasks[0]
    board.hold()
    assert board.under_way() == ("square_0", 1)
    beside.skips(tasks[1:3])
    board.release()
    beside.worker.hand_in(end(Outcome.RESULT))
    assert beside.worker.next_task() == tasks[3]


@shortcuts
def test_all_that_is_left_may_be_taken_back(beside: Beside, board: Board) -> None:
    tasks = batch(4)
    gives(beside, tasks)
    beside.worker.next_task()
    board.hold()
    beside.skips(tasks[1:])
    beside.worker.hand_in(end(Outcome.RESULT))
    assert beside.worker.next_task() is None
    board.release()
    assert beside.worker.next_task() is None
    assert not beside.worker.has_task()
    assert board.under_way() is None
    assert select.select([beside.shortcut], [], [], 0)[0], "the result is told of"


@shortcuts
def test_the_same_task_in_a_later_attempt_is_run(beside: Beside, board: Board) -> None:
    tasks = batch(2)
    again = tasks[1]._replace(attempt=2)
    gives(beside, tasks)
    beside.worker.next_task()
    beside.skips(tasks[1:])
    beside.give(again)
    beside.worker.receive_available()
    beside.worker.hand_in(end(Outcome.RESULT))
    assert beside.worker.next_task() == again


@shortcuts
def test_who_reads_the_board_next_lifts_the_ban(beside: Beside, board: Board) -> None:
    """The task manager that forbade it may be gone."""
    tasks = batch(2)
    gives(beside, tasks)
    board.hold()
    assert beside.worker.next_task() is None
    assert beside.shortcut.read() == []
    assert not board.holds()
    assert not board.hold(), "it is not its board any more"
    assert beside.worker.next_task() == tasks[0]


@shortcuts
def test_a_worker_begins_no_task_while_its_supervisor_takes_some_back(beside: Beside) -> None:
    worker, supervisor = beside.worker, beside.supervisor
    assert worker.begin()
    assert supervisor.begun(0.0) is None
    assert supervisor.begun(1.0) == 1
    assert not worker.begin()
    supervisor.send(["skip", ["b"]])
    assert worker.receive_held() == [["skip", ["b"]]]
    assert not worker.begin()
    assert supervisor.begun(1.0) == 1
    supervisor.go_on()
    assert not worker.begin(), "it may have more to receive"
    assert worker.receive_held() == []
    assert worker.begin()
    assert supervisor.begun(2.0) is None, "it is forbidden anew"
    assert supervisor.begun(3.0) == 2


@shortcuts
def test_it_goes_on_when_nobody_asks_any_more(beside: Beside) -> None:
    assert beside.supervisor.begun(0.0) is None
    beside.supervisor.go_on()
    assert not beside.worker.begin()
    beside.supervisor.go_on()
    assert beside.worker.receive_held() == []
    assert beside.worker.begin()


@shortcuts
def test_it_does_not_go_on_before_all_was_sent(beside: Beside) -> None:
    large = ["skip", ["x" * 1000] * 2000]
    assert beside.supervisor.begun(0.0) is None
    assert beside.supervisor.begun(1.0) == 0
    beside.supervisor.send(large)
    assert beside.supervisor.wants_to_write
    beside.supervisor.go_on()
    assert beside.worker.receive_held() == []
    assert not beside.worker.begin()
    got: list[list[Any]] = []
    while not got:
        beside.supervisor.flush()
        beside.supervisor.go_on()
        got = beside.worker.receive_held()
    assert got == [large]
    beside.supervisor.go_on()
    beside.worker.receive_held()
    assert beside.worker.begin()


def test_without_a_board_all_may_be_begun(pipe: Pipe) -> None:
    assert pipe.supervisor.begun(0.0) == 0
    assert pipe.worker.begin()
    pipe.supervisor.go_on()
    assert pipe.worker.begin()


@shortcuts
def test_the_supervisor_passes_on_what_it_finds_of_tasks_that_are_not_to_be_run(
    beside: Beside,
) -> None:
    """It takes out what the worker has not read, which a worker at a long task has not."""
    tasks = batch(4)
    gives(beside, tasks)
    beside.worker.next_task()
    beside.skips(tasks[1:3])
    beside.give(TASK._replace(task_id="square_9"))
    taken, skipped = beside.shortcut.take_back()
    assert [one.task_id for one in taken] == ["square_9"]
    assert skipped == [("square_1", 1), ("square_2", 1)]
    beside.worker.skip(skipped)
    beside.worker.hand_in(end(Outcome.RESULT))
    assert beside.worker.next_task() == tasks[3]
    assert beside.worker.next_task() is None

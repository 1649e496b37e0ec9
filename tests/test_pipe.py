"""The pipe between supervisor and worker, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave.pipe import PipeClosed, SupervisorEnd, WorkerEnd
from masterslave.records import Assignment, as_assignment
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

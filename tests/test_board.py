"""The board between a worker and its supervisor: what is posted is read whole, in order, or not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave.board import (
    BOARD_BYTES,
    LONGEST_BYTES,
    Board,
    BoardDamaged,
    Poster,
    can_have_boards,
    create,
)
from masterslave.pipe import SupervisorEnd, WorkerEnd
from masterslave.records import Completion

pytestmark = pytest.mark.skipif(not can_have_boards(), reason="no boards on this system")


class Pair:
    """Both sides of a board."""

    def __init__(self) -> None:
        self.descriptor = create()
        self.board, self.poster = Board(self.descriptor), Poster(self.descriptor)

    def close(self) -> None:
        self.board.close()
        self.poster.close()
        os.close(self.descriptor)


@pytest.fixture
def pair() -> Iterator[Pair]:
    one = Pair()
    yield one
    one.close()


def test_what_was_posted_is_taken_once_and_in_order(pair: Pair) -> None:
    assert not pair.board.has_news()
    assert all(pair.poster.post([0, number]) for number in range(3))
    assert pair.board.has_news()
    assert pair.board.take(0) == [[0, 0], [0, 1], [0, 2]]
    assert not pair.board.has_news()
    assert pair.board.take(0) == []


def test_what_comes_after_a_message_of_the_pipe_waits_for_that(pair: Pair) -> None:
    assert pair.board.is_empty()
    for sent in (0, 1, 1, 3):
        pair.poster.post([sent])
    assert not pair.board.is_empty()
    assert pair.board.take(0) == [[0]]
    assert not pair.board.has_news()
    assert not pair.board.is_empty(), "some were read and not given"
    assert pair.board.take(2) == [[1], [1]]
    assert pair.board.take(3) == [[3]]
    assert pair.board.is_empty()


def test_too_long_a_message_is_not_posted(pair: Pair) -> None:
    assert not pair.poster.post([0, b"x" * LONGEST_BYTES])
    assert not pair.board.has_news()


def test_a_full_board_takes_nothing_until_it_is_read(pair: Pair) -> None:
    message = [0, b"x" * 1000]
    count = 0
    while pair.poster.post(message):
        count += 1
    assert BOARD_BYTES - 4000 < 1000 * count < BOARD_BYTES
    assert pair.board.take(0) == [message] * count
    assert pair.poster.post(message)


@settings(deadline=None, database=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, LONGEST_BYTES - 100), st.booleans()), min_size=80))
def test_nothing_is_lost_or_changed_on_the_way_round(sizes: list[tuple[int, bool]]) -> None:
    one = Pair()
    try:
        posted: list[list[Any]] = []
        taken: list[list[Any]] = []
        for number, (size, read) in enumerate(sizes):
            message = [0, number, bytes([number % 256]) * size]
            if not one.poster.post(message):
                taken += one.board.take(0)
                assert one.poster.post(message), "there is room when all was read"
            posted.append(message)
            if read:
                taken += one.board.take(0)
        taken += one.board.take(0)
        assert taken == posted
    finally:
        one.close()


def test_a_message_that_was_not_finished_is_not_seen(pair: Pair) -> None:
    """A worker that dies while it posts has written bytes, and not that they are there."""
    pair.poster.post([0, 1])
    pair.poster._ring[pair.poster._posted : pair.poster._posted + 2] = b"\x92\x00"
    assert pair.board.take(0) == [[0, 1]]
    assert not pair.board.has_news()


@pytest.mark.parametrize(
    ("data", "posted"),
    [(b"", BOARD_BYTES + 1), (b"\xc1", 1), (b"\x05", 1), (b"\x90", 1), (b"\x91\xa1x", 3)],
)
def test_a_scribble_is_not_taken_for_messages(pair: Pair, data: bytes, posted: int) -> None:
    pair.poster._ring[: len(data)] = data
    pair.poster._header[0] = posted
    with pytest.raises(BoardDamaged):
        pair.board.take(0)


def test_the_memory_has_no_name_and_cannot_shrink(pair: Pair) -> None:
    assert os.fstat(pair.descriptor).st_nlink == 0
    with pytest.raises(OSError):
        os.ftruncate(pair.descriptor, 0)


def done(number: int, frame: list[bytes] | None = None) -> Completion:
    return Completion(f"a_{number}", 1, "result", frame or [b"x"], 0.0, "")


def ids(messages: list[list[Any]]) -> list[str]:
    """Of the tasks that have ended, in order."""
    found = []
    for message in messages:
        if message[0] == "done":
            found.append(message[1][0])
        elif message[0] == "posted":
            found += [post[1] for post in message[1]]
    return found


def test_board_and_pipe_are_merged_in_the_order_of_writing(pair: Pair) -> None:
    near, far = socket.socketpair()
    with near, far:
        supervisor = SupervisorEnd(near, board=pair.board)
        worker = WorkerEnd(far, pair.poster)
        assert worker.post(done(0))
        worker.send(["done", done(1)])
        assert worker.post(done(2))
        worker.send(["look"])
        worker.send(["skipped"])
        assert worker.post(done(3))
        assert ids(supervisor.posts()) == ["a_0"]
        got = supervisor.receive()
        assert ids(got) == ["a_1", "a_2", "a_3"]
        assert [message[0] for message in got] == ["done", "posted", "skipped", "posted"]
        assert worker.post(done(4))
        worker.send(["done", done(5)])
        far.close()
        got = supervisor.receive_all()
        assert ids(got) == ["a_4", "a_5"], "all that a dead worker wrote"


def test_large_results_and_those_in_pieces_go_by_the_pipe(pair: Pair) -> None:
    near, far = socket.socketpair()
    with near, far:
        worker = WorkerEnd(far, pair.poster)
        assert not worker.post(done(0, [b"x" * (LONGEST_BYTES + 1)]))
        assert not worker.post(done(0, [b"x", b"y"]))
        assert not WorkerEnd(far).post(done(0))

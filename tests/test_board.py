"""The board between a worker and its supervisor: what is posted is read whole, in order, or not."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave import shortcuts
from masterslave.board import (
    BOARD_BYTES,
    LONGEST_BYTES,
    LONGEST_ID,
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
    pair.poster.words[0] = posted
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


# --- tasks that came by the shortcut --------------------------------------------------------


def test_what_is_under_way_is_seen_until_it_has_ended(pair: Pair) -> None:
    assert pair.board.under_way() is None
    for number in range(3):
        pair.poster.begins(f"square_{number}", number + 1)
        assert pair.board.under_way() == (f"square_{number}", number + 1)
        assert pair.board.turns == 2 * number + 1
        pair.poster.has_ended()
        assert pair.board.under_way() is None
        assert pair.board.turns == 2 * number + 2


def test_what_began_and_ended_between_two_looks_was_a_turn(pair: Pair) -> None:
    pair.poster.begins("square_0", 1)
    pair.poster.has_ended()
    pair.poster.begins("square_1", 1)
    assert pair.board.under_way() == ("square_1", 1)
    assert pair.board.turns == 3


def test_a_beginning_is_one_and_an_end_is_one_however_often_it_is_said(pair: Pair) -> None:
    """A handler that forks, and whose child returns as well, says so twice."""
    pair.poster.begins("square_0", 1)
    pair.poster.begins("square_1", 1)
    assert pair.board.under_way() == ("square_1", 1)
    pair.poster.has_ended()
    pair.poster.has_ended()
    assert pair.board.under_way() is None
    pair.poster.begins("square_2", 1)
    assert pair.board.under_way() == ("square_2", 1)


@pytest.mark.parametrize("letter", ["x", "ł", "\U0001f40d", "\udcff"])
def test_the_longest_id_has_room(pair: Pair, letter: str) -> None:
    pair.poster.begins(letter * LONGEST_ID, (1 << 63) - 1)
    assert pair.board.under_way() == (letter * LONGEST_ID, (1 << 63) - 1)
    assert not pair.board.has_news(), "what is posted is not touched"


@pytest.mark.parametrize(
    "text", [b"\xc1", b"\x01", b"\x92\x01\x01", b"\x93\xa1a\x01\x01", b"\xa2ab"]
)
def test_a_damaged_board_shows_no_task(pair: Pair, text: bytes) -> None:
    pair.poster.begins("square_0", 1)
    pair.poster._task[: len(text)] = text
    for _ in range(2):
        with pytest.raises(BoardDamaged, match="a task on a board is none"):
            pair.board.under_way()


def test_a_task_is_read_whole_while_others_are_written(pair: Pair) -> None:
    """Ids of different lengths, each with its own attempt, so that a mixture would be seen."""
    over = threading.Event()

    def write() -> None:
        for number in itertools.cycle(range(50)):
            pair.poster.begins(chr(65 + number) * (2 * number + 1), number)
            pair.poster.has_ended()
            if over.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = 0
        while seen < 200:
            found = pair.board.under_way()
            if found is not None:
                seen += 1
                assert found[0] == chr(65 + found[1]) * (2 * found[1] + 1)
    finally:
        over.set()
        writer.join()


def test_the_task_manager_sends_no_longer_ids_than_a_board_takes() -> None:
    """It must not know of boards, so the number stands there, too."""
    assert shortcuts._LONGEST_ID == LONGEST_ID

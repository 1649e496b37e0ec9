"""Threads that wait for tasks: woken one by one, longest waiting first, only for their tags."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave.waiters import Waiters


class Room:
    """Waiters, and threads that stand among them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiters = Waiters(self.lock)
        self.woken: list[str] = []  # names of the threads that wait no longer
        self.threads: list[threading.Thread] = []

    def enter(self, name: str, *tags: str) -> None:
        """A thread comes and waits; returns when it does."""
        before = self.count()
        thread = threading.Thread(target=self._stand, args=(name, frozenset(tags)), daemon=True)
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: self.count() > before, f"{name} waits")

    def _stand(self, name: str, tags: frozenset[str]) -> None:
        with self.lock:
            self.waiters.wait(tags, PATIENCE_S)
            self.woken.append(name)

    def wake(self, *tags: str) -> None:
        with self.lock:
            for tag in tags:
                self.waiters.wake(tag)

    def count(self) -> int:
        with self.lock:
            return len(self.waiters)

    def leaves(self, *names: str) -> None:
        """These are woken, and nobody else by the same call."""
        wait_until(lambda: len(self.woken) >= len(names), f"{names} are woken")
        assert sorted(self.woken) == sorted(names)
        self.woken.clear()


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    with room.lock:
        room.waiters.wake_everybody()
    for thread in room.threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert room.waiters._by_tag == {}, "nothing is left of those who have left"


def test_one_is_woken_at_a_time_longest_waiting_first(room: Room) -> None:
    for name in ("first", "second", "third"):
        room.enter(name, "a")
    for left, name in ((2, "first"), (1, "second"), (0, "third")):
        room.wake("a")
        room.leaves(name)
        assert room.count() == left


def test_each_task_wakes_another_one(room: Room) -> None:
    for name in ("first", "second", "third"):
        room.enter(name, "a", "b")
    room.wake("a", "b")
    room.leaves("first", "second")
    assert room.count() == 1


def test_only_who_handles_the_tag_is_woken(room: Room) -> None:
    room.enter("of a", "a")
    room.enter("of b", "b")
    room.enter("of both", "a", "b")
    room.wake("b")
    room.leaves("of b")
    room.wake("b")
    room.leaves("of both")
    room.wake("b")
    assert room.count() == 1


def test_a_tag_that_nobody_handles_wakes_nobody(room: Room) -> None:
    room.wake("a")
    room.enter("waits", "a")
    room.wake("unknown")
    assert room.count() == 1
    assert room.woken == []


def test_all_can_be_woken(room: Room) -> None:
    room.enter("of a", "a")
    room.enter("of b", "b")
    room.enter("of both", "a", "b")
    with room.lock:
        room.waiters.wake_everybody()
    room.leaves("of a", "of b", "of both")
    assert room.count() == 0


def test_all_of_some_tags_can_be_woken(room: Room) -> None:
    room.enter("of a", "a")
    room.enter("of b", "b")
    room.enter("of both", "a", "b")
    with room.lock:
        room.waiters.wake_all(["b", "unknown"])
    room.leaves("of b", "of both")
    assert room.count() == 1


@pytest.mark.parametrize("tags", [frozenset[str](), frozenset("ab")])
def test_waiting_ends_with_the_time_out(tags: frozenset[str]) -> None:
    lock = threading.Lock()
    waiters = Waiters(lock)
    with lock:
        waiters.wait(tags, 0.001)
        assert lock.locked()
        assert len(waiters) == 0


def test_who_gave_up_waiting_is_not_woken_in_place_of_another(room: Room) -> None:
    with room.lock:
        room.waiters.wait(frozenset("a"), 0.001)
    room.enter("waits", "a")
    room.wake("a")
    room.leaves("waits")


def test_the_lock_is_free_while_they_wait(room: Room) -> None:
    room.enter("waits", "a")
    assert room.lock.acquire(timeout=PATIENCE_S)
    room.lock.release()

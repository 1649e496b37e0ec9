"""Waiting threads: one is woken for one task, and only if it handles the task's tag."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave.waiters import Monitor, Waiter, Waiters


class Room:
    """Waiters, and threads that wait in it."""

    def __init__(self) -> None:
        self.lock = Monitor()
        self.waiters = Waiters()
        self.woken: list[str] = []
        self.threads: list[threading.Thread] = []
        self.known: dict[str, Waiter] = {}

    def enter(self, name: str, *tags: str, timeout_s: float = PATIENCE_S) -> Waiter:
        """A thread begins to wait, in the lines of these tags."""
        waiter = self.known[name] = Waiter(self.lock)
        waits = threading.Event()

        def wait() -> None:
            with self.lock:
                self.waiters.line_up(waiter, tags)
                waits.set()
                self.waiters.wait(waiter, timeout_s)
                self.woken.append(name)

        thread = threading.Thread(target=wait)
        thread.start()
        self.threads.append(thread)
        assert waits.wait(PATIENCE_S)
        with self.lock:  # it is free again only when the thread waits
            return waiter

    def wake(self, *tags: str) -> None:
        with self.lock:
            for tag in tags:
                self.waiters.wake(tag)

    def heard(self, *names: str) -> None:
        """Exactly these were woken, whatever the order in which they then ran."""
        wait_until(lambda: len(self.woken) >= len(names))
        assert sorted(self.woken) == sorted(names)


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    with room.lock:
        for waiter in room.known.values():
            room.waiters.rouse(waiter)
    for thread in room.threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_one_is_woken_at_a_time_the_last_to_come_first(room: Room) -> None:
    for name in "abc":
        room.enter(name, "sqrt")
    room.wake("sqrt")
    room.heard("c")
    assert len(room.waiters) == 2
    room.wake("sqrt")
    room.heard("c", "b")


def test_each_task_wakes_another_one(room: Room) -> None:
    for name in "abc":
        room.enter(name, "sqrt")
    room.wake("sqrt", "sqrt")  # before the first one has run
    room.heard("c", "b")
    assert len(room.waiters) == 1


def test_only_who_handles_the_tag_is_woken(room: Room) -> None:
    room.enter("a", "sqrt")
    room.enter("b", "sqrt", "cube")
    room.wake("cube")
    room.heard("b")
    room.wake("tan")  # nobody's
    assert room.woken == ["b"]
    assert len(room.waiters) == 1


def test_who_is_woken_for_one_tag_waits_for_none(room: Room) -> None:
    room.enter("a", "sqrt", "cube")
    room.enter("b", "cube")
    room.wake("sqrt", "cube")
    room.heard("a", "b")
    assert len(room.waiters) == 0


def test_who_stands_in_no_line_is_woken_by_name_only(room: Room) -> None:
    waiter = room.enter("a")
    room.wake("sqrt")
    assert room.woken == []
    with room.lock:
        room.waiters.rouse(waiter)
    room.heard("a")


def test_a_waiting_thread_can_be_put_into_a_line(room: Room) -> None:
    waiter = room.enter("a")
    with room.lock:
        room.waiters.line_up(waiter, ["sqrt"])
    assert len(room.waiters) == 1
    room.wake("sqrt")
    room.heard("a")


def test_lining_up_again_changes_the_lines(room: Room) -> None:
    waiter = room.enter("a", "sqrt")
    with room.lock:
        room.waiters.line_up(waiter, ["cube"])
    room.wake("sqrt")
    assert room.woken == []
    room.wake("cube")
    room.heard("a")


@pytest.mark.parametrize("tags", [(), ("sqrt",)])
def test_waiting_ends_with_the_time_out(room: Room, tags: tuple[str, ...]) -> None:
    room.enter("a", *tags, timeout_s=0.01)
    room.heard("a")
    assert len(room.waiters) == 0


def test_who_gave_up_waiting_is_not_woken_in_place_of_another(room: Room) -> None:
    room.enter("a", "sqrt", timeout_s=0.01)
    room.heard("a")
    room.enter("b", "sqrt")
    room.wake("sqrt")
    room.heard("a", "b")
    assert room.woken == ["a", "b"]
    assert len(room.waiters) == 0


def test_who_takes_the_lock_again_and_again_steps_aside_for_who_must_not_starve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = Monitor()
    pauses: list[float] = []
    monkeypatch.setattr("masterslave.waiters.time", SimpleNamespace(sleep=pauses.append))

    def wait_first() -> None:
        with monitor.first:
            pass

    def steps_aside() -> bool:
        monitor.step_aside()
        return bool(pauses)

    with monitor:
        assert not steps_aside()
        thread = threading.Thread(target=wait_first)
        thread.start()
        wait_until(steps_aside, "the other one is kept waiting")
    thread.join()
    pauses.clear()
    assert not steps_aside()
    with monitor.first:
        assert not steps_aside()
    assert monitor.acquire(False)
    monitor.release()

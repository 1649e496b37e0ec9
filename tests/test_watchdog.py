"""The watchdog: silent slaves are noticed by its thread; a stand-still is told once."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from conftest import wait_until

from masterslave.manager import TaskManager
from masterslave.settings import Settings
from masterslave.watchdog import Stall, Watchdog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_manager(clock: Clock) -> TaskManager:
    return TaskManager("watched", Settings(key_file=Path("unused")), clock=clock)


def test_a_reason_is_told_when_it_has_lasted_long_enough() -> None:
    stall = Stall(5.0)
    assert stall.look(["no slaves"], 10.0) == []
    assert stall.look(["no slaves"], 14.9) == []
    assert stall.look(["no slaves"], 15.0) == ["no slaves"]


def test_a_reason_is_told_once_while_it_lasts() -> None:
    stall = Stall(5.0)
    told = [stall.look(["no slaves"], now) for now in (0.0, 5.0, 6.0, 100.0)]
    assert told == [[], ["no slaves"], [], []]


def test_changing_counts_do_not_make_another_reason() -> None:
    stall = Stall(5.0)
    stall.look(["3 tasks wait"], 0.0)
    assert stall.look(["4 tasks wait"], 5.0) == ["4 tasks wait"]
    assert stall.look(["12 tasks wait"], 20.0) == []


def test_a_reason_that_has_gone_and_returned_must_last_again() -> None:
    stall = Stall(5.0)
    stall.look(["no slaves"], 0.0)
    assert stall.look(["no slaves"], 5.0) == ["no slaves"]
    assert stall.look([], 6.0) == []
    assert stall.look(["no slaves"], 7.0) == []
    assert stall.look(["no slaves"], 11.9) == []
    assert stall.look(["no slaves"], 12.0) == ["no slaves"]


def test_a_short_interruption_starts_the_count_anew() -> None:
    stall = Stall(5.0)
    stall.look(["no slaves"], 0.0)
    stall.look([], 4.0)
    assert stall.look(["no slaves"], 5.0) == []


def test_each_reason_has_its_own_time() -> None:
    stall = Stall(5.0)
    stall.look(["a"], 0.0)
    stall.look(["a", "b"], 3.0)
    assert stall.look(["a", "b"], 5.0) == ["a"]
    assert stall.look(["a", "b"], 8.0) == ["b"]


def test_the_thread_takes_a_silent_slave_for_dead() -> None:
    clock = Clock()
    manager = make_manager(clock)
    silent, *_ = manager.registerProcess(0.01, "silent")
    patient, *_ = manager.registerProcess(1000.0, "patient")
    watchdog = Watchdog(manager, 5.0)
    watchdog.start()
    try:
        clock.now = 1.0
        wait_until(lambda: silent not in manager.activeProcesses(), "silence is noticed")
        assert manager.activeProcesses() == [patient]
    finally:
        watchdog.stop()


def test_the_thread_logs_a_stand_still(caplog: pytest.LogCaptureFixture) -> None:
    manager = make_manager(Clock())
    manager.registerProcess(0.01, "makes the watchdog look often")
    manager.addTaskRequests("sqrt", [[b"x"], [b"y"]])
    watchdog = Watchdog(manager, 0.0)
    with caplog.at_level(logging.WARNING, "masterslave.watchdog"):
        watchdog.start()
        try:
            wait_until(lambda: caplog.records, "the stand-still is told")
        finally:
            watchdog.stop()
    (record,) = caplog.records
    assert "watched: 2 tasks wait, but there are no slaves" in record.getMessage()
    assert record.action == "stand_still"


def test_stopping_ends_the_thread() -> None:
    watchdog = Watchdog(make_manager(Clock()), 5.0)
    watchdog.start()
    assert "watchdog" in {thread.name for thread in threading.enumerate()}
    watchdog.stop()
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}

"""The thread that calls an executor: in order, and left behind when it is blocked for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave.submitter import Submitter


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def submitter(failures: list[Exception]) -> Iterator[Submitter]:
    submitter = Submitter(failures.append)
    submitter.start()
    yield submitter
    submitter.stop(lambda: None, PATIENCE_S)


def test_calls_are_made_in_order_by_one_thread_that_is_not_the_callers(
    submitter: Submitter,
) -> None:
    made: list[tuple[int, int]] = []
    for number in range(50):
        submitter.order(
            "submit", lambda number=number: made.append((number, threading.get_ident()))
        )
    wait_until(lambda: len(made) == 50, "all are made")
    assert [number for number, _ in made] == list(range(50))
    (thread,) = {ident for _, ident in made}
    assert thread != threading.get_ident()


def test_what_a_call_raises_is_told_and_the_next_one_is_made(
    submitter: Submitter, failures: list[Exception]
) -> None:
    done = threading.Event()
    error = OSError("no network")

    def fails() -> None:
        raise error

    submitter.order("submit", fails)
    submitter.order("submit", done.set)
    assert done.wait(PATIENCE_S)
    assert failures == [error]


def test_a_call_that_does_not_return_is_named_and_what_stands_behind_it_is_dropped() -> None:
    submitter = Submitter(lambda error: None)
    gate, dropped, last = threading.Event(), threading.Event(), threading.Event()
    submitter.start()
    assert submitter.hangs_in(time.monotonic()) == ("", 0.0)
    submitter.order("cancel", lambda: gate.wait(PATIENCE_S) and None)
    submitter.order("submit", dropped.set)
    wait_until(lambda: submitter.hangs_in(time.monotonic())[0], "it is in the call")
    now = time.monotonic()
    what, since_s = submitter.hangs_in(now)
    assert (what, submitter.hangs_in(now + 3)[1] - since_s) == ("cancel", pytest.approx(3))
    assert submitter.stop(last.set, 0.01) == "cancel"
    gate.set()
    assert last.wait(PATIENCE_S)
    assert not dropped.is_set()
    assert submitter.stop(lambda: None, PATIENCE_S) == ""


def test_the_last_call_is_made_before_the_end(submitter: Submitter) -> None:
    last = threading.Event()
    assert submitter.stop(last.set, PATIENCE_S) == ""
    assert last.is_set()

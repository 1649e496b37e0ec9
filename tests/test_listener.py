"""Who hears what comes by a shortcut: one thread for all, or the one that waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from conftest import PATIENCE_S, wait_until
from managing import LONG_S, Call

from masterslave import listener as listener_module
from masterslave.listener import Ear, Listener

pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="no shortcuts on this system")


class Pipe:
    """A pipe that is listened to; says in which thread it was heard."""

    def __init__(self, listener: Listener) -> None:
        self.out, self.into = os.pipe()
        os.set_blocking(self.out, False)
        self.heard_by: list[threading.Thread] = []
        self.heard = threading.Semaphore(0)
        self.problem: BaseException | None = None
        listener.listen(self.out, self._hear)
        self._listener = listener

    def _hear(self) -> None:
        try:
            if not os.read(self.out, 100):
                return
        except OSError:  # there is nothing, or a test has closed it
            return
        self.heard_by.append(threading.current_thread())
        self.heard.release()
        if self.problem is not None:
            raise self.problem

    def ear(self) -> Ear:
        return self._listener.ear(self.out, self._hear)

    def says(self) -> None:
        os.write(self.into, b"x")

    def is_heard_by_the_listener(self) -> bool:
        del self.heard_by[:]
        while self.heard.acquire(blocking=False):
            pass
        self.says()
        assert self.heard.acquire(timeout=PATIENCE_S)
        return [thread.name for thread in self.heard_by] == ["shortcuts"]

    def close(self) -> None:
        self._listener.forget(self.out)
        os.close(self.out)
        self.is_silent_for_ever()

    def is_silent_for_ever(self) -> None:
        if self.into >= 0:
            os.close(self.into)
            self.into = -1


@pytest.fixture
def pipe(listener: Listener) -> Iterator[Pipe]:
    pipe = Pipe(listener)
    yield pipe
    pipe.close()


def waiting(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, timeout_s: float = LONG_S
) -> tuple[threading.Thread, list[str]]:
    """A thread that waits, and has begun to; in the list is said when it has ended."""
    begun, said = threading.Event(), list[str]()

    class Poll:
        def __init__(self) -> None:
            self._poll = poll()
            self.register, self.unregister = self._poll.register, self._poll.unregister

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            begun.set()
            return self._poll.poll(timeout)

    def wait() -> None:
        ear.acquire(timeout=timeout_s)
        said.append("over")

    poll = listener_module.select.poll
    with monkeypatch.context() as patch:
        patch.setattr(listener_module.select, "poll", Poll)
        thread = threading.Thread(target=wait)
        thread.start()
        assert begun.wait(PATIENCE_S)
    return thread, said


def test_while_somebody_waits_only_that_thread_is_woken(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, said = waiting(pipe.ear(), monkeypatch)
    pipe.says()
    thread.join(PATIENCE_S)
    assert said == ["over"]
    assert pipe.heard_by == [thread]
    assert pipe.is_heard_by_the_listener(), "afterwards"


def test_others_are_heard_by_the_listener_meanwhile(
    listener: Listener, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Pipe(listener)
    ear = pipe.ear()
    thread, said = waiting(ear, monkeypatch)
    assert other.is_heard_by_the_listener()
    assert said == []
    ear.release()
    thread.join(PATIENCE_S)
    assert said == ["over"]
    other.close()


def test_a_wait_ends_when_somebody_says_so(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = pipe.ear()
    thread, said = waiting(ear, monkeypatch)
    ear.release()
    thread.join(PATIENCE_S)
    assert said == ["over"]
    assert pipe.heard_by == []
    assert pipe.is_heard_by_the_listener()


def test_it_does_not_begin_when_somebody_has_said_so_before(pipe: Pipe) -> None:
    ear = pipe.ear()
    ear.release()
    Call(ear.acquire, timeout=LONG_S).outcome()
    assert pipe.heard_by == []
    assert pipe.is_heard_by_the_listener()


def test_a_bell_that_was_rung_too_late_disturbs_once(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next ear has it."""
    late = pipe.ear()
    late.release()
    Call(late.acquire, timeout=LONG_S).outcome()
    late.release()
    Call(pipe.ear().acquire, timeout=LONG_S).outcome()
    thread, said = waiting(pipe.ear(), monkeypatch)
    assert said == []
    pipe.says()
    thread.join(PATIENCE_S)
    assert said == ["over"]


def test_a_wait_ends_when_its_time_is_over(pipe: Pipe) -> None:
    pipe.ear().acquire(timeout=0.001)
    assert pipe.heard_by == []
    assert pipe.is_heard_by_the_listener()


def test_the_longest_time_is_one_that_the_system_can_count(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = pipe.ear()
    thread, said = waiting(ear, monkeypatch, timeout_s=1e300)
    ear.release()
    thread.join(PATIENCE_S)
    assert said == ["over"]


def test_an_interrupted_wait_leaves_the_listener_where_it_was(pipe: Pipe) -> None:
    """Ctrl-C comes at whatever point."""
    ear = pipe.ear()
    pipe.problem = KeyboardInterrupt()
    lent = pipe._listener.lend(pipe.out)  # so that the listener does not hear it
    assert lent
    pipe.says()
    with pytest.raises(KeyboardInterrupt):
        ear.acquire(timeout=PATIENCE_S)
    pipe.problem = None
    assert pipe.is_heard_by_the_listener()


def test_where_nothing_can_come_any_more_it_waits_for_the_bell(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other ends of the pipe are closed: whoever polls it is told so at once, without end."""
    pipe.is_silent_for_ever()
    wait_until(lambda: pipe.out not in pipe._listener._heard, "the listener has noticed")
    ear = pipe.ear()
    thread, said = waiting(ear, monkeypatch)
    assert said == []
    ear.release()
    thread.join(PATIENCE_S)
    assert said == ["over"]


def test_a_pipe_that_is_closed_meanwhile_hurts_nobody(
    listener: Listener, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Pipe(listener)
    ear = other.ear()
    thread, said = waiting(ear, monkeypatch)
    other.close()
    ear.release()
    thread.join(PATIENCE_S)
    assert said == ["over"]
    assert pipe.is_heard_by_the_listener()


def test_the_listener_may_stop_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    pipe = Pipe(listener)
    ear = pipe.ear()
    before = set(os.listdir("/proc/self/fd"))
    thread, said = waiting(ear, monkeypatch)
    listener.stop()
    ear.release()
    thread.join(PATIENCE_S)
    assert said == ["over"]
    ear.release()  # late
    bell = str(ear._bell.fileno())
    assert bell in before
    del ear, thread
    pipe.close()
    assert bell not in os.listdir("/proc/self/fd")


def test_bells_are_used_again_and_end_with_the_listener() -> None:
    listener = Listener()
    pipe = Pipe(listener)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        pipe.ear().acquire(timeout=0.0)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1
    pipe.close()
    listener.stop()
    assert not set(os.listdir("/proc/self/fd")) - before


def test_without_room_for_a_bell_there_is_no_ear(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        pipe.ear()

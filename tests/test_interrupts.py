"""Ctrl-C and SIGTERM, where the main thread is in the midst of something."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import PATIENCE_S, World, wait_until

from masterslave import interrupts
from masterslave.attached import RemoteManager
from masterslave.interrupts import interruptible, uninterrupted
from masterslave.settings import Settings

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As a program finds them; and as they were, afterwards."""
    before = [signal.getsignal(number) for number in NUMBERS]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def master() -> Iterator[None]:
    interrupts.begin()
    yield
    interrupts.end()


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def idle() -> None:
    """Until the interrupt comes that is still to come."""
    threading.Event().wait(PATIENCE_S)


@uninterrupted
def keeps_books(steps: list[str], call: Callable[[], None] = interrupt) -> None:
    call()
    steps.append("done")


@interruptible
def waits() -> None:
    interrupt()


@pytest.mark.usefixtures("master")
def test_bookkeeping_comes_to_its_end_first() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        keeps_books(steps)
        idle()
    assert steps == ["done"]


@pytest.mark.usefixtures("master")
def test_what_it_calls_is_part_of_it() -> None:
    steps: list[str] = []

    def inner() -> None:
        interrupt()
        steps.append("inner")

    with pytest.raises(KeyboardInterrupt):
        keeps_books(steps, inner)
        idle()
    assert steps == ["inner", "done"]


@pytest.mark.usefixtures("master")
def test_the_users_own_code_is_interrupted_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt()
        pytest.fail("it went on")


class Link:
    """To a task manager that has run all tasks by the time that somebody asks."""

    address = "elsewhere"

    def __init__(self) -> None:
        self.parcel = 0

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "attachClient":
            return 1, 1, []
        if method == "submitTasks":
            return [f"a_{number}" for number in range(len(arguments[5]))]
        if method == "collectResults":
            self.parcel += 1
            return self.parcel, [[f"a_{n}", "a", "result", [b"r"], ""] for n in range(3)]
        return None

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("master")
def test_an_attached_master_has_what_it_was_taking(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = RemoteManager("demo", Link, Settings.from_environment())
    got = []

    @uninterrupted
    def take() -> None:
        got.extend(manager.getResults(limit=2, timeout=PATIENCE_S))

    try:
        assert len(manager.addTaskRequests("a", [[b"x"]] * 3)) == 3
        assert len(manager.getResults(timeout=PATIENCE_S)) == 1  # the others have come with it
        take_run = manager._arrived.take_run
        monkeypatch.setattr(
            manager._arrived, "take_run", lambda *args: (interrupt(), take_run(*args))[1]
        )
        with pytest.raises(KeyboardInterrupt):
            take()
            idle()
        assert [one.task_id for one in got] == ["a_1", "a_2"]
        assert manager.outstandingTasks() == 0
    finally:
        manager.close()


@pytest.mark.usefixtures("master")
def test_an_attached_master_that_waits_is_interrupted_at_once() -> None:
    manager = RemoteManager("demo", Link, Settings.from_environment())
    main = threading.get_ident()

    def strike() -> None:
        wait_until(lambda: manager._waiting, "it waits")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=strike)
    try:
        manager.addTaskRequests("a", [[b"x"]])
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            manager.getResults(tag="b")
        assert not manager._waiting, "it waits no more"
        assert len(manager.getResults(timeout=PATIENCE_S)) == 1
    finally:
        thread.join()
        manager.close()


@pytest.mark.usefixtures("master")
def test_a_wait_amid_bookkeeping_is_interrupted_at_once() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        keeps_books(steps, waits)
    assert steps == []


@pytest.mark.usefixtures("master")
def test_so_is_a_wait_for_a_condition() -> None:
    steps: list[str] = []
    found = threading.Condition()

    def wait() -> None:
        main = threading.main_thread().ident
        assert main is not None

        def send() -> None:
            with found:  # so it waits
                signal.pthread_kill(main, signal.SIGINT)

        with found:
            threading.Thread(target=send).start()
            found.wait(PATIENCE_S)

    with pytest.raises(KeyboardInterrupt):
        keeps_books(steps, wait)
    assert steps == []
    with found:
        pass


@pytest.mark.usefixtures("master")
def test_bookkeeping_within_a_wait_is_not() -> None:
    steps: list[str] = []

    @interruptible
    def wait() -> None:
        keeps_books(steps)

    with pytest.raises(KeyboardInterrupt):
        wait()
        idle()
    assert steps == ["done"]


@pytest.mark.usefixtures("master")
def test_bookkeeping_that_hangs_is_interrupted_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_PATIENCE_S", 0.01)
    steps: list[str] = []
    over = threading.Event()

    def hang() -> None:
        interrupt()
        while not over.is_set():  # nobody sets it
            pass

    with pytest.raises(KeyboardInterrupt):
        keeps_books(steps, hang)
    assert steps == []


@pytest.mark.usefixtures("master")
def test_two_interrupts_amid_bookkeeping_are_one() -> None:
    steps: list[str] = []

    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        keeps_books(steps, twice)
        idle()
    wait_until(lambda: not interrupts._SIGINT._looks_again, "nobody looks again")
    with pytest.raises(KeyboardInterrupt):  # the next one counts
        interrupt()


@pytest.mark.usefixtures("master")
def test_one_that_was_raised_meanwhile_is_not_raised_again() -> None:
    steps: list[str] = []
    with contextlib.suppress(KeyboardInterrupt):
        keeps_books(steps)
        interrupt()  # may come before somebody looks again, and is raised here
    wait_until(lambda: not interrupts._SIGINT._looks_again, "nobody looks again")
    assert interrupts._SIGINT._since is None


@pytest.mark.usefixtures("master")
def test_where_no_thread_can_be_started_it_is_raised_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As at the end of the interpreter, from Python 3.12 on."""

    def refuse(*_: object) -> int:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(interrupts._thread, "start_new_thread", refuse)
    with pytest.raises(KeyboardInterrupt):
        keeps_books([])


def test_a_program_that_handles_it_itself_is_left_alone() -> None:
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    mine = signal.getsignal(signal.SIGINT)
    interrupts.begin()
    assert signal.getsignal(signal.SIGINT) is mine
    keeps_books([])
    interrupts.end()
    assert came == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is mine


def test_one_that_is_set_meanwhile_stays() -> None:
    interrupts.begin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.end()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_last_master_gives_it_back() -> None:
    interrupts.begin()
    interrupts.begin()
    interrupts.end()
    assert signal.getsignal(signal.SIGINT) is interrupts._SIGINT
    interrupts.end()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_it_alone() -> None:
    for call in (interrupts.begin, interrupts.end):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(PATIENCE_S)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_lets_bookkeeping_come_to_its_end_as_well() -> None:
    steps: list[str] = []
    with pytest.raises(SystemExit) as caught, interrupts.sigterm_raises():
        keeps_books(steps, lambda: signal.raise_signal(signal.SIGTERM))
        idle()
    assert caught.value.code == 128 + signal.SIGTERM
    assert steps == ["done"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_program_that_handles_sigterm_itself_is_left_alone() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with interrupts.sigterm_raises():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


MASTER = """
    import os, random, signal, threading, time
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Slave(SlaveProcess):
        def do_double(self, x):
            return 2 * x

    class Master(MasterProcess):
        armed = over = False

        def run(self):
            self.requestTask("double", 0)
            self.retrieveResult()
            threading.Thread(target=self.disturb).start()
            requested, got, interrupts = [], {}, 0
            while interrupts < 100:
                try:
                    self.armed = True
                    while True:
                        STEP
                except KeyboardInterrupt:
                    interrupts += 1
            self.over = True
            for task_id, _, value in self.results():
                got[task_id] = value
            print(len(requested), len(set(requested) - set(got)), flush=True)

        def disturb(self):
            chance = random.Random(1)
            while not self.over:
                time.sleep(chance.random() / 500)
                if self.armed:
                    self.armed = False
                    os.kill(os.getpid(), signal.SIGINT)

    # As in a terminal: a test runner in the background may have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runJob("job", Master, Slave, launch_slaves=1)
"""
ONE_BY_ONE = """requested.append(self.requestTask("double", 1))
                        task_id, _, value = self.retrieveResult()
                        got[task_id] = value"""
MANY = """requested += self.requestTasks("double", [(1,)] * 20)
                        for task_id, _, value in self.results():
                            got[task_id] = value"""


@pytest.mark.parametrize("step", [ONE_BY_ONE, MANY], ids=["one by one", "many"])
def test_a_master_that_is_interrupted_again_and_again_goes_on_and_has_all_results(
    world: World, step: str
) -> None:
    program = world.script(MASTER.replace("STEP", step))
    program.finish(0)
    requested, missing = map(int, program.out.split())
    assert requested > 0
    if sys.version_info >= (3, 11):  # before, between any two of the program's own instructions
        assert missing == 0

"""`ClientThread`: results come to the callback, are kept, and are not asked for twice."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, World

from masterslave import (
    BrokenCluster,
    ClientThread,
    ConnectionFailed,
    PayloadError,
    SettingsError,
    TaskTimedOut,
)
from masterslave.errors import JournalDamaged, JournalError, JournalInUse
from masterslave.identities import call_identity
from masterslave.stores.results import ResultStore, StoredResult


@pytest.fixture
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(world.path)
    return world


class Got:
    """A callback that keeps what it was called with."""

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}
        self.threads: set[threading.Thread] = set()

    def __call__(self, job: int, result: Any) -> None:
        assert job not in self.results
        self.results[job] = result
        self.threads.add(threading.current_thread())


def noted(x: int) -> int:
    """Leaves a line where it ran."""
    with open("ran", "a") as file:
        file.write(f"{x}\n")
    return x * x


def ran(world: World) -> list[str]:
    path = world.path / "ran"
    return path.read_text().split() if path.exists() else []


# --- jobs -----------------------------------------------------------------------------------


def test_results_come_to_the_callback(here: World) -> None:
    got, special = Got(), Got()
    client = ClientThread(got, workers=2)
    assert client.start() is client
    squares = {client.submit(noted, x): x * x for x in range(20)}
    job = client.submit(pow, 2, 5, then=special)
    client.wait(PATIENCE_S)
    assert got.results == squares and special.results == {job: 32}
    assert len(got.threads | special.threads) == 1 != {threading.current_thread()}
    client.stop()
    client.stop()
    with pytest.raises(RuntimeError, match="after shutdown"):
        client.submit(pow, 2, 2)


def test_then_may_submit_the_next_step(here: World) -> None:
    got = Got()
    with ClientThread(got, workers=1) as client:
        client.submit(pow, 2, 2, then=lambda job, four: client.submit(pow, four, 2))
    assert list(got.results.values()) == [16]


def test_wait_raises_the_first_failure_and_the_others_go_on(here: World) -> None:
    got = Got()
    client = ClientThread(got, workers=1).start()
    try:
        client.submit(divmod, 1, 0)
        job = client.submit(pow, 2, 2)
        with pytest.raises(ZeroDivisionError) as caught:
            client.wait(PATIENCE_S)
        assert "Traceback" in str(caught.value.__cause__)
        client.wait(PATIENCE_S)
        assert got.results == {job: 4}
    finally:
        client.stop()


def test_the_block_raises_the_first_failure(here: World) -> None:
    with pytest.raises(ZeroDivisionError), ClientThread(workers=1) as client:
        client.submit(divmod, 1, 0)


def test_what_the_callback_raises_is_raised_by_wait(here: World) -> None:
    def refuse(job: int, result: Any) -> None:
        raise LookupError("not this one")

    with pytest.raises(LookupError), ClientThread(refuse, workers=1) as client:
        client.submit(pow, 2, 2)


def test_a_failure_that_nobody_waited_for_is_in_the_log(
    here: World, caplog: pytest.LogCaptureFixture
) -> None:
    asked = threading.Event()

    def callback(job: int, result: Any) -> None:
        asked.set()
        raise ZeroDivisionError("of the callback")

    client = ClientThread(callback, workers=1).start()
    client.submit(pow, 2, 2)
    assert asked.wait(PATIENCE_S)
    client.stop()
    assert "a job failed: ZeroDivisionError: of the callback" in caplog.text


def test_an_error_in_the_block_ends_it_at_once(here: World) -> None:
    with pytest.raises(KeyError), ClientThread(workers=1) as client:
        for x in range(100):
            client.submit(noted, x)
        raise KeyError
    assert len(ran(here)) < 100


def test_options_and_time_limits(here: World) -> None:
    client = ClientThread(workers=1, timeout=0.1).start()
    try:
        client.submit(_wait)
        with pytest.raises(TaskTimedOut):
            client.wait(PATIENCE_S)
    finally:
        client.stop()


def _wait() -> None:
    import time

    time.sleep(1000)


def _wait_for_file(name: str) -> None:
    import os
    import time

    while not os.path.exists(name):
        time.sleep(0.01)


def test_waiting_has_a_time_limit(here: World) -> None:
    with ClientThread(workers=1) as client:
        client.submit(_wait_for_file, "go")
        with pytest.raises(TimeoutError, match="1 jobs are not done"):
            client.wait(0.01)
        (here.path / "go").touch()


def test_an_executor_that_breaks_is_a_failure(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.path / "sitecustomize.py").write_text("import os\nos._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(here.path))
    with pytest.raises(BrokenCluster), ClientThread(workers=1) as client:
        client.submit(pow, 2, 2)


def test_a_program_that_does_not_stop_it_ends_when_all_is_done(here: World) -> None:
    program = here.script(
        """
        from masterslave import ClientThread

        client = ClientThread(lambda job, result: print(job, result), workers=1).start()
        client.submit(pow, 2, 3)
        """
    )
    assert program.finish() == "1 8\n"
    assert program.err == ""


def test_what_makes_no_sense_is_refused(here: World) -> None:
    client = ClientThread(workers=1)
    with pytest.raises(SettingsError, match="start"):
        client.submit(pow, 2, 2)
    with pytest.raises(SettingsError, match="callback=int 3"):
        ClientThread(3)  # type: ignore[arg-type]
    for path in (5, "", "a\0b"):
        with pytest.raises(SettingsError, match=r"store=.*must be a path"):
            ClientThread(store=path)  # type: ignore[arg-type]
    with client:
        with pytest.raises(SettingsError, match="then=int 3"):
            client.submit(pow, 2, 2, then=3)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="function=int 3"):
            client.submit(3)  # type: ignore[arg-type]
        with pytest.raises(PayloadError, match="lock"):
            client.submit(id, threading.Lock())
        client.wait(PATIENCE_S)
    with pytest.raises(SettingsError, match="started before"):
        client.start()


def test_a_host_without_a_label_has_the_usual_one(here: World) -> None:
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"):
        ClientThread(host="127.0.0.1:9").start()


# --- the store ------------------------------------------------------------------------------


def test_a_call_whose_result_is_kept_is_not_made_again(here: World) -> None:
    for times in (1, 2):
        got = Got()
        with ClientThread(got, workers=1, store="results.db") as client:
            for x in (3, 4, 4):
                client.submit(noted, x)
        assert got.results == {1: 9, 2: 16, 3: 16}
        assert sorted(ran(here)) == ["3", "4", "4"], times
    with ClientThread(got := Got(), workers=1, store="results.db") as client:
        client.submit(noted, 4)
        client.submit(noted, 5)
    assert got.results == {1: 16, 2: 25}
    assert sorted(ran(here)) == ["3", "4", "4", "5"]


def test_after_a_crash_what_had_come_is_taken_from_the_store(here: World) -> None:
    text = """
        import os, sys
        from masterslave import ClientThread

        class Square:
            def __init__(self, x):
                self.x = x

        def square(x):
            with open("ran", "a") as file:
                file.write(f"{x}\\n")
            return Square(x * x)

        def show(job, square):
            print(type(square) is Square, square.x, flush=True)
            if len(sys.argv) > 1 and job == 5:
                os.kill(os.getpid(), 9)

        with ClientThread(show, workers=1, store="results.db") as client:
            for x in range(10):
                client.submit(square, x)
    """
    first = here.script(text, "crash")
    first.finish(-signal.SIGKILL)
    shown = first.out.count("True")
    assert shown >= 1
    before = ran(here)
    second = here.script(text)
    assert sorted(second.finish().split("\n")[:-1]) == sorted(f"True {x * x}" for x in range(10))
    again = ran(here)[len(before) :]
    assert len(again) <= 10 - shown  # what was handed over was on disk before


def test_failures_are_not_kept(here: World) -> None:
    for _ in range(2):
        client = ClientThread(workers=1, store="results.db").start()
        client.submit(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError):
            client.wait(PATIENCE_S)
        client.stop()


class Unreadable:
    """Can be pickled, and not be read back."""

    def __setstate__(self, state: object) -> None:
        raise ValueError("cannot be read back")


def unreadable() -> Unreadable:
    value = Unreadable()
    value.__dict__["x"] = 1
    return value


def test_a_result_that_cannot_be_read_is_a_failure_and_not_kept(here: World) -> None:
    got = Got()
    with ClientThread(got, workers=1, store="results.db", modules=[__name__]) as client:
        client.submit(unreadable)
        with pytest.raises(PayloadError, match="cannot be read back"):
            client.wait(PATIENCE_S)
        job = client.submit(pow, 2, 5)  # the thread goes on
        client.wait(PATIENCE_S)  # and what failed is said once
        assert got.results == {job: 32}
    with contextlib.closing(sqlite3.connect("results.db")) as file:
        assert file.execute("SELECT name FROM result").fetchall() == [("pow",)]


def test_a_forked_process_has_no_part_in_it(here: World) -> None:
    program = here.script(
        """
        import os, time
        from masterslave import ClientThread

        if __name__ == "__main__":
            with ClientThread(workers=1, store="results.db") as client:
                client.submit(time.sleep, 0.1)
                child = os.fork()
                if not child:
                    for call in (client.wait, lambda: client.submit(pow, 2, 2)):
                        try:
                            call()
                        except RuntimeError as error:
                            print(error, flush=True)
                    client.stop()
                    os._exit(0)
                os.waitpid(child, 0)
                client.wait()
                print("ended", flush=True)
        """
    )
    said = "this ClientThread belongs to the process that forked; make another one\n"
    assert program.finish() == 2 * said + "ended\n"


def test_a_store_is_one_programs(here: World) -> None:
    with ClientThread(workers=1, store="results.db"), pytest.raises(JournalInUse):
        ClientThread(workers=1, store="results.db").start()


KEY = b"k" * 32


def kept(store: ResultStore) -> None:
    store.keep([StoredResult(b"one", "f", [b"abc", memoryview(b"def")])])


def test_what_is_kept_is_found(here: World) -> None:
    store = ResultStore("results.db", KEY)
    kept(store)
    store.keep([StoredResult(b"two", "g", [])])
    assert store.find(b"one") == [b"abc", b"def"]
    assert store.find(b"two") == []
    assert store.find(b"three") is None
    store.close()
    store = ResultStore("results.db", KEY)
    assert store.find(b"one") == [b"abc", b"def"]
    store.close()
    assert os.stat("results.db").st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE piece SET data = x'00' WHERE number = 1",
        "DELETE FROM piece WHERE number = 1",
        "UPDATE result SET name = 'g'",
        "UPDATE result SET identity = x'00'; UPDATE piece SET identity = x'00'",
        "UPDATE result SET mac = x'00'",
        "UPDATE result SET mac = NULL",
    ],
)
def test_nothing_changed_is_given_out(here: World, change: str) -> None:
    store = ResultStore("results.db", KEY)
    kept(store)
    store.close()
    with sqlite3.connect("results.db") as db:
        db.executescript(change)
    db.close()
    store = ResultStore("results.db", KEY)
    identity = b"\0" if "identity" in change else b"one"
    with pytest.raises(JournalDamaged, match="not what was written with this key"):
        store.find(identity)
    store.close()


def test_nothing_of_another_key_is_given_out(here: World) -> None:
    store = ResultStore("results.db", KEY)
    kept(store)
    store.close()
    store = ResultStore("results.db", b"o" * 32)
    with pytest.raises(JournalDamaged, match="MASTERSLAVE_KEY_FILE"):
        store.find(b"one")
    store.close()


def test_files_of_others_are_refused_and_left_alone(here: World) -> None:
    here.write("text", "not a database, by no means at all " * 100)
    with sqlite3.connect("other.db") as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    os.mkdir("folder")
    for name in ("text", "other.db", "folder", "missing/results.db"):
        before = None if "/" in name or name == "folder" else (here.path / name).read_bytes()
        with pytest.raises(JournalError):
            ResultStore(name, KEY)
        if before is not None:
            assert (here.path / name).read_bytes() == before


# --- identities -----------------------------------------------------------------------------


def adder(number: Any) -> Callable[[int], Any]:
    return lambda x: x + number


def identity(function: Any, *args: Any, **kwargs: Any) -> bytes:
    return call_identity(function, args, kwargs)


def test_equal_calls_are_the_same_and_others_are_not() -> None:
    calls = [
        (noted, 1), (noted, 2), (noted, "1"), (adder, 1), (adder(1), 1), (adder(2), 1),
        (adder(np.arange(3)), 1), (adder(np.arange(4)), 1), (max, 1, 2), (max, (1, 2)),
        (Got,), (Got().__call__, 1),
    ]  # fmt: skip
    assert len({identity(*call) for call in calls}) == len(calls)
    assert identity(adder(np.arange(3)), 1) == identity(adder(np.arange(3)), 1)
    assert identity(noted, x=1) != identity(noted, y=1)
    assert identity(noted, x=1, y=2) == identity(noted, y=2, x=1)


def test_what_is_shared_within_a_value_makes_no_difference() -> None:
    text = "a b"
    assert identity(noted, [text, text]) == identity(noted, ["a b", "".join(["a ", "b"])])
    endless: list[Any] = []
    endless.append(endless)
    assert identity(noted, endless) == identity(noted, endless)


def test_identities_are_the_same_in_every_run(here: World) -> None:
    text = """
        import math
        from masterslave.identities import call_identity

        SCALE = 3

        class Point:
            def __init__(self, x):
                self.x = x

        def helper(x):
            return SCALE * x

        def work(p, kind=frozenset("abc")):
            return helper(p.x) if kind in {"a", "b", "c"} else math.sqrt(SCALE)

        print(call_identity(work, (Point(1), lambda x: SCALE), {"kind": "a"}).hex())
    """
    one, two = (here.script(text).finish() for _ in range(2))
    assert len(one) == 65
    assert one == two
    assert here.script(text.replace("SCALE = 3", "SCALE = 4")).finish() != one
    assert here.script(text.replace("return SCALE * x", "return x * SCALE")).finish() != one

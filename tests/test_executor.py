"""`ClusterExecutor` beyond the contract of executors, for which see test_executor_cpython."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, World, family, free_port, is_running, wait_until

from masterslave import (
    BrokenCluster,
    ClusterExecutor,
    FunctionError,
    PayloadError,
    SettingsError,
    TaskOutOfMemory,
    TaskTimedOut,
    WorkerCrashed,
)


@pytest.fixture
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(world.path)
    return world


@pytest.fixture
def executor(here: World) -> Iterator[ClusterExecutor]:
    with ClusterExecutor(workers=2) as executor:
        yield executor


def patient(future: concurrent.futures.Future[Any]) -> Any:
    return future.result(PATIENCE_S)


def wait_for_file(name: str) -> None:
    while not os.path.exists(name):
        time.sleep(0.01)


# --- functions ------------------------------------------------------------------------------


def test_closures_lambdas_and_local_classes_travel(executor: ClusterExecutor) -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

        def moved(self, by: int) -> Point:
            return Point(self.x + by)

    offset = 7
    point = patient(executor.submit(lambda p: p.moved(offset), Point(1)))
    assert type(point) is Point and point.x == 8
    assert patient(executor.submit(Point(3).moved, 1)).x == 4
    assert patient(executor.submit(Point, 5)).x == 5


def test_functions_of_a_script_travel(here: World) -> None:
    program = here.script(
        """
        from masterslave import ClusterExecutor

        FACTOR = 3

        class Number:
            def __init__(self, value):
                self.value = value

        def triple(number):
            return Number(FACTOR * number.value)

        with ClusterExecutor(workers=1) as executor:
            got = executor.submit(triple, Number(5)).result()
            print(type(got) is Number, got.value)
            FACTOR = 4
            print(executor.submit(triple, Number(5)).result().value)
        """
    )
    assert program.finish() == "True 15\n20\n"
    assert program.err == ""


def test_ten_thousand_calls_of_a_large_closure_send_it_once_per_slave(here: World) -> None:
    array = np.random.default_rng(1).random(2_500_000)  # 20 MB
    text = array.tobytes()
    with ClusterExecutor(workers=1) as executor:
        master = executor._core._master
        master.launchSlaveJobs()
        manager = master.task_manager
        wait_until(lambda: sum(s["tags"] is not None for s in manager.status()["slaves"]) == 2)
        fetched: Counter[str] = Counter()
        stored: Counter[str] = Counter()

        class Counting(dict[str, Any]):
            def __getitem__(self, name: str) -> Any:
                fetched[name] += 1
                return super().__getitem__(name)

            def update(self, values: Any) -> None:  # type: ignore[override]
                stored.update(values.keys())
                super().update(values)

        manager._data = Counting(manager._data)
        got = executor.map(lambda i: array[i], range(10_000))
        assert list(got) == array[:10_000].tolist()
        byte = lambda i: text[i]  # noqa: E731  # one function, many calls
        futures = [executor.submit(byte, i) for i in range(10_000)]
        assert [patient(f) for f in futures] == [*text[:10_000]]
        assert set(fetched) == set(stored) and len(stored) == 2
        assert all(1 <= count <= 2 for count in fetched.values()), fetched  # slaves
        assert set(stored.values()) == {1}


def test_a_change_of_what_it_closes_over_is_seen(executor: ClusterExecutor) -> None:
    array = np.zeros(100_000)
    get = lambda: array[0]  # noqa: E731
    assert patient(executor.submit(get)) == 0
    array[0] = 1
    assert patient(executor.submit(get)) == 1


def test_modules_travel_by_value_on_request(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here.path / "lib"
    folder.mkdir()
    (folder / "only_here.py").write_text("class Thing:\n    x = 4\ndef f():\n    return Thing()\n")
    monkeypatch.syspath_prepend(folder)
    import only_here

    folder.rename(here.path / "gone")  # so that no worker finds it
    host = os.uname().nodename
    try:
        with ClusterExecutor(workers=1) as executor, pytest.raises(FunctionError) as caught:
            patient(executor.submit(only_here.f))
        text = str(caught.value)
        assert f"f cannot be unpickled on {host}: No module named 'only_here'" in text
        assert str(folder) in text and "modules=['only_here']" in text
        with ClusterExecutor(workers=1, modules=["only_here"]) as executor:
            assert patient(executor.submit(only_here.f)).x == 4
            assert patient(executor.submit(lambda thing: thing.x, only_here.Thing())) == 4
    finally:
        del sys.modules["only_here"]


def test_calls_find_the_directory_of_their_client(executor: ClusterExecutor, here: World) -> None:
    for name in ("one", "two"):
        (here.path / name).mkdir()
        os.chdir(here.path / name)
        assert patient(executor.submit(os.getcwd)) == str(here.path / name)
    os.chdir(here.path)


def test_a_directory_that_is_not_there_is_named(here: World) -> None:
    missing = here.path / "missing"
    with ClusterExecutor(workers=1, cwd=missing) as executor:
        error = executor.submit(os.getcwd).exception(PATIENCE_S)
    assert isinstance(error, FunctionError)
    assert str(missing) in str(error) and os.uname().nodename in str(error)
    assert "cwd=None" in str(error)
    with ClusterExecutor(workers=1, cwd=None) as executor:
        assert patient(executor.submit(os.getcwd)) == str(here.path)


def test_what_cannot_be_pickled_is_refused_at_once(executor: ClusterExecutor) -> None:
    with pytest.raises(PayloadError, match="lock"):
        executor.submit(id, threading.Lock())
    with pytest.raises(PayloadError, match="lock"):
        executor.map(id, [1, threading.Lock()])
    with pytest.raises(PayloadError, match="generator"):
        patient(executor.submit(lambda: (x for x in ())))
    with pytest.raises(TypeError, match="must be callable, not int 3"):
        executor.submit(3)  # type: ignore[arg-type]


# --- futures --------------------------------------------------------------------------------


def test_an_exception_has_the_remote_traceback_as_its_cause(executor: ClusterExecutor) -> None:
    def fails() -> None:
        raise KeyError("nothing")  # this very line

    error = executor.submit(fails).exception(PATIENCE_S)
    assert isinstance(error, KeyError) and error.args == ("nothing",)
    assert "# this very line" in str(error.__cause__)
    assert "worker.py" not in str(error.__cause__)


def test_futures_are_arguments(executor: ClusterExecutor) -> None:
    two = executor.submit(pow, 2, 1)
    total = executor.submit(lambda *args, **named: sum(args) + sum(named.values()), two, 3, x=two)
    assert patient(total) == 7
    assert patient(executor.submit(pow, total, two)) == 49


def test_a_future_that_fails_fails_what_needs_it(executor: ClusterExecutor) -> None:
    failed = executor.submit(divmod, 1, 0)
    dependent = executor.submit(pow, 2, failed)
    assert dependent.exception(PATIENCE_S) is failed.exception(PATIENCE_S)
    never: concurrent.futures.Future[int] = concurrent.futures.Future()
    dependent = executor.submit(pow, 2, never)
    never.cancel()
    assert isinstance(dependent.exception(PATIENCE_S), concurrent.futures.CancelledError)


def test_a_call_that_waits_for_a_future_can_be_cancelled(executor: ClusterExecutor) -> None:
    never: concurrent.futures.Future[int] = concurrent.futures.Future()
    dependent = executor.submit(pow, 2, never)
    assert dependent.cancel() and dependent.cancelled()
    never.set_result(1)


def test_a_cancelled_call_that_waits_lets_go_of_its_function(executor: ClusterExecutor) -> None:
    never: concurrent.futures.Future[int] = concurrent.futures.Future()
    core = executor._core
    released: list[bytes] = []
    release = core.functions.release

    def noted(digest: bytes, count: int = 1) -> None:
        released.append(digest)
        release(digest, count)

    core.functions.release = noted  # type: ignore[method-assign]
    assert executor.submit(pow, 2, never).cancel()
    assert len(released) == 1
    never.set_result(1)
    assert len(released) == 1 and core.pending() == 0


def test_a_forked_process_is_told_to_make_its_own(executor: ClusterExecutor) -> None:
    assert patient(executor.submit(pow, 2, 3)) == 8
    waiting = executor.submit(pow, 2, concurrent.futures.Future())
    read, write = os.pipe()
    child = os.fork()
    if not child:
        said = "nothing"
        try:
            executor._core._changed.acquire()  # as another thread may have had it
            executor.shutdown(cancel_futures=True)
            waiting.cancel()
            executor.submit(pow, 2, 4)
        except RuntimeError as error:
            said = str(error)
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    try:
        with open(read, "rb") as pipe:
            assert select.select([pipe], [], [], PATIENCE_S)[0]
            assert b"belongs to the process that forked" in pipe.read()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert patient(executor.submit(pow, 2, 4)) == 16
    assert waiting.cancel()


def test_what_waits_is_cancelled_and_what_runs_is_not(here: World) -> None:
    with ClusterExecutor(workers=1) as executor:
        running = executor.submit(wait_for_file, "go")
        wait_until(running.running)
        waiting = executor.submit(pow, 2, 2)
        try:
            assert not waiting.running()
            assert not running.cancel()
            assert waiting.cancel() and waiting.cancel()
            done, _ = concurrent.futures.wait([waiting], PATIENCE_S)
            assert done == {waiting}
        finally:
            (here.path / "go").touch()
        assert patient(running) is None
        assert not running.cancel()


def test_callbacks_may_submit(executor: ClusterExecutor) -> None:
    second: list[Any] = []
    first = executor.submit(pow, 2, 2)
    first.add_done_callback(lambda f: second.append(executor.submit(pow, f.result(), 2)))
    wait_until(lambda: second)
    assert patient(second[0]) == 16


def test_asyncio(executor: ClusterExecutor) -> None:
    async def program() -> list[Any]:
        loop = asyncio.get_running_loop()
        one = loop.run_in_executor(executor, pow, 2, 3)
        two = asyncio.wrap_future(executor.submit(pow, 3, 2))
        return list(await asyncio.gather(one, two))

    assert asyncio.run(program()) == [8, 9]


def test_many_threads(executor: ClusterExecutor) -> None:
    def work(number: int) -> int:
        futures = [executor.submit(lambda x: x + number, i) for i in range(50)]
        return sum(patient(future) for future in futures)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        got = list(threads.map(work, range(8)))
    assert got == [sum(range(50)) + 50 * n for n in range(8)]


# --- map ------------------------------------------------------------------------------------


def test_map_takes_arguments_as_results_are_taken(executor: ClusterExecutor) -> None:
    taken = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = executor.map(lambda x: x * x, endless(), buffersize=6, chunksize=2)
    assert list(itertools.islice(results, 10)) == [x * x for x in range(10)]
    assert len(taken) <= 10 + 2 * 6
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_map_in_chunks_keeps_the_order(executor: ClusterExecutor, chunksize: int) -> None:
    got = executor.map(lambda x, y: x - y, range(500), range(1, 501), chunksize=chunksize)
    assert list(got) == [-1] * 500


def test_map_refuses_what_makes_no_sense(executor: ClusterExecutor) -> None:
    for options in ({"chunksize": 0}, {"buffersize": 0}):
        with pytest.raises(ValueError, match="must be"):
            executor.map(abs, [1], **options)  # type: ignore[arg-type]
    assert list(executor.map(abs, [])) == []


# --- options --------------------------------------------------------------------------------


def test_options_of_calls(executor: ClusterExecutor, here: World) -> None:
    def third_time() -> str:
        with open("tries", "a") as file:
            file.write(".")
        if os.path.getsize("tries") < 3:
            raise ValueError("not yet")
        return "done"

    retrying = executor.options(retries=5)
    assert patient(retrying.submit(third_time)) == "done"
    hasty = executor.options(timeout=0.2)
    with pytest.raises(TaskTimedOut):
        patient(hasty.submit(time.sleep, 1000))
    once = hasty.options(crash_limit=1, timeout=None)
    with pytest.raises(WorkerCrashed, match="SIGSEGV"):
        patient(once.submit(lambda: os.kill(os.getpid(), signal.SIGSEGV)))
    with pytest.raises(SettingsError, match="priority='high'"):
        executor.options(priority="high")  # type: ignore[arg-type]
    assert patient(executor.submit(pow, 2, 2)) == 4


# --- losses and ends ------------------------------------------------------------------------


def test_a_killed_worker_breaks_nothing(executor: ClusterExecutor, here: World) -> None:
    def work(number: int) -> int:
        if number == 5 and not os.path.exists("killed"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert sorted(executor.map(work, range(20))) == list(range(20))


def test_a_killed_slave_is_replaced(executor: ClusterExecutor, here: World) -> None:
    parent = patient(executor.submit(os.getppid))
    running = executor.submit(wait_for_file, "go")
    wait_until(running.running)
    os.kill(parent, signal.SIGKILL)
    (here.path / "go").touch()
    assert patient(running) is None
    assert patient(executor.submit(os.getppid)) != parent


def test_workers_that_cannot_start_break_it(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.path / "sitecustomize.py").write_text("import os, sys\nos._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(here.path))
    executor = ClusterExecutor(workers=1)
    with pytest.raises(BrokenCluster, match="end again and again"):
        patient(executor.submit(pow, 2, 2))
    with pytest.raises(BrokenCluster):
        executor.submit(pow, 2, 2)
    executor.shutdown()


def test_a_dropped_executor_ends_when_its_calls_have(here: World) -> None:
    executor = ClusterExecutor(workers=1)
    core = executor._core
    results = executor.map(abs, range(-3, 0))
    del executor
    gc.collect()
    wait_until(lambda: core.join(0.01), "it has ended")
    assert list(results) == [3, 2, 1]


def test_views_keep_their_executor(here: World) -> None:
    view = ClusterExecutor(workers=1).options(retries=1)
    gc.collect()
    assert patient(view.submit(pow, 2, 2)) == 4
    view.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        view.submit(pow, 2, 2)


def test_shutdown_from_a_callback(here: World) -> None:
    executor = ClusterExecutor(workers=1)
    core = executor._core
    executor.submit(pow, 2, 2).add_done_callback(lambda _: executor.shutdown())
    wait_until(lambda: core.join(0.01), "it has ended")


def test_a_program_that_is_killed_leaves_nothing(here: World) -> None:
    program = here.script(
        """
        import time
        from masterslave import ClusterExecutor

        executor = ClusterExecutor(workers=2)
        print(executor.submit(pow, 2, 2).result(), flush=True)
        executor.submit(time.sleep, 1000)
        time.sleep(1000)
        """
    )
    wait_until(lambda: program.out == "4\n")
    processes = [process.pid for process in family(program.pid)]
    assert len(processes) == 4
    program.kill()
    wait_until(lambda: not any(map(is_running, processes)), "its workers have gone")


def test_the_end_of_the_program_waits_for_calls(here: World) -> None:
    program = here.script(
        """
        import time
        from masterslave import ClusterExecutor

        def late():
            time.sleep(0.2)
            print("done", flush=True)

        executor = ClusterExecutor(workers=1)
        executor.submit(late)
        """
    )
    assert program.finish() == "done\n"
    assert program.err == ""


# --- served task managers -------------------------------------------------------------------


@pytest.fixture
def served(here: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ClusterExecutor]:
    """A served task manager with a slave that knows functions only; makes executors on it."""
    port = free_port()
    monkeypatch.setenv("MASTERSLAVE_MASTER_GONE", "1")
    here.env["MASTERSLAVE_MASTER_GONE"] = "60"
    here.start_name_server()
    here.manager = here.task_manager("serve", "lab", "--port", port)  # type: ignore[attr-defined]
    here.task_manager("slave", "lab", "-w")
    return lambda **options: ClusterExecutor("lab", f"127.0.0.1:{port}", **options)


def joined(make: Callable[..., ClusterExecutor]) -> ClusterExecutor:
    from masterslave import ConnectionFailed

    made: list[ClusterExecutor] = []

    def there() -> bool:
        try:
            made.append(make())
        except ConnectionFailed:
            return False
        return True

    wait_until(there, "the task manager is there")
    return made[0]


def test_a_served_task_manager(served: Callable[..., ClusterExecutor], here: World) -> None:
    with joined(served) as one, served() as two:
        number = 3
        first = [one.submit(lambda x: x * number, i) for i in range(100)]
        second = list(two.map(pow, range(100), [2] * 100, chunksize=9))
        assert [patient(f) for f in first] == [3 * i for i in range(100)]
        assert second == [i * i for i in range(100)]
        manager = one._core._manager
        name = next(iter(one._core.functions._items))
        assert manager.retrieveData(f"function_{name.hex()}")
        running = one.submit(wait_for_file, "go")
        wait_until(running.running)
        waiting = one.submit(pow, 2, 2)
        try:
            wait_until(waiting.cancel, "its slave has not got it, or gives it back")
            assert not running.cancel()
        finally:
            (here.path / "go").touch()
        assert patient(running) is None
    with served() as third, pytest.raises(KeyError):  # the item went with its owner
        third._core._manager.retrieveData(f"function_{name.hex()}")


def test_a_task_manager_that_is_gone_for_good_breaks_it(
    served: Callable[..., ClusterExecutor], here: World
) -> None:
    executor = joined(served)
    future = executor.submit(time.sleep, 1000)
    here.manager.kill()  # type: ignore[attr-defined]
    with pytest.raises(BrokenCluster, match="gone"):
        patient(future)
    with pytest.raises(BrokenCluster):
        executor.submit(pow, 2, 2)
    executor.shutdown()


# --- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": "2"}, "workers='2' must be an integer"),
        ({"label": "lab", "workers": 2}, "the task manager 'lab' has its own"),
        ({"master_host": "node3"}, "needs the label"),
        ({"label": ""}, "label ''"),
        ({"modules": ["no_such_module"]}, "modules='no_such_module': cannot be imported"),
    ],
)
def test_settings_that_cannot_be(world: World, options: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        ClusterExecutor(**options)


def test_a_number_is_that_of_workers(here: World) -> None:
    with ClusterExecutor(1) as executor:
        assert patient(executor.submit(pow, 2, 2)) == 4
        assert executor._core._workers == 1


def test_the_errors_of_the_library_come_as_they_are(executor: ClusterExecutor) -> None:
    def fails() -> None:
        raise TaskOutOfMemory("story")

    with pytest.raises(TaskOutOfMemory):
        patient(executor.submit(fails))


def test_paths_are_taken_over(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder: Path = here.path / "more"
    folder.mkdir()
    (folder / "beside.py").write_text("def f():\n    return 'beside'\n")
    monkeypatch.syspath_prepend(folder)
    import beside

    try:
        with ClusterExecutor(workers=1) as executor:
            assert patient(executor.submit(beside.f)) == "beside"
    finally:
        del sys.modules["beside"]

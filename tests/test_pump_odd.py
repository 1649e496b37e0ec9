"""Executors that are hostile, broken or odd: every task is told of, nothing hangs in silence."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import logging
import pickle
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, World, wait_until

from masterslave import (
    GlobalStateValue,
    MasterProcess,
    Observer,
    Settings,
    SettingsError,
    TaskRaisedException,
    TaskTimedOut,
    WorkerCrashed,
    slavecode,
)
from masterslave.chaos import Chaos
from masterslave.engines import Engine
from masterslave.flights import HELD_S
from masterslave.ways import Circumstances, circumstances

Make = Callable[..., MasterProcess]


@pytest.fixture
def make(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Masters on an executor that is given, which complain early."""
    monkeypatch.syspath_prepend(Path(__file__).parent)  # `contract` is the slaves' code
    masters = []

    def made(executor: Any, **options: Any) -> MasterProcess:
        settings = {"stall_s": 0.1, "shutdown_s": 2.0, **options}
        code = {**slavecode.module_record("contract"), "shared_main": False}
        with circumstances(Circumstances(code, executor=executor)):
            master = MasterProcess(
                "demo", settings=dataclasses.replace(Settings.from_environment(), **settings)
            )
        masters.append(master)
        return master

    yield made
    for master in masters:
        master.shutdown()


def value(master: MasterProcess) -> Any:
    return master.retrieveResult(timeout=PATIENCE_S)[2]


def failure(master: MasterProcess) -> TaskRaisedException:
    with pytest.raises(TaskRaisedException) as caught:
        master.retrieveResult(timeout=PATIENCE_S)
    return caught.value


def said(caplog: pytest.LogCaptureFixture, action: str) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if getattr(record, "action", "") == action and record.levelno >= logging.WARNING
    ]


class Odd(ThreadPoolExecutor):
    """Threads, with something wrong that a test switches on."""

    def __init__(self) -> None:
        super().__init__(2)
        self.wrong: Callable[[Callable[[], Future[Any]]], Future[Any]] | None = None

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        def usual() -> Future[Any]:
            return super(Odd, self).submit(*args, **kwargs)

        return usual() if self.wrong is None else self.wrong(usual)


@pytest.fixture
def odd() -> Iterator[Odd]:
    with Odd() as pool:
        yield pool


def test_a_submit_that_blocks_holds_up_neither_time_limits_nor_results_nor_the_end(
    make: Make, odd: Odd, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    gate = threading.Event()
    master = make(odd, shutdown_s=0.2)
    master.requestTask("square", 3)
    assert value(master) == 9

    def blocks(usual: Callable[[], Future[Any]]) -> Future[Any]:
        gate.wait(PATIENCE_S)
        return usual()

    master.requestTask("touch", str(tmp_path / "runs"), str(tmp_path / "gate"))
    wait_until((tmp_path / "runs").exists, "one runs")
    odd.wrong = blocks
    late = master.requestTask("square", 4, timeout=0.1)
    failed = failure(master)
    assert (failed.task_id, type(failed.exception)) == (late, TaskTimedOut)
    master.requestTask("square", 5)
    wait_until(lambda: said(caplog, "executor_hangs"), "it is told")
    assert "its submit has not returned for" in said(caplog, "executor_hangs")[0]
    (tmp_path / "gate").touch()  # of the one that runs
    assert value(master) == "done"
    caplog.clear()
    master.shutdown()  # returns
    assert ["its submit does not return" in line for line in said(caplog, "executor_hangs")] == [
        True
    ]
    gate.set()


def test_a_submit_that_blocks_for_a_while_loses_nothing(make: Make) -> None:
    """As of executors whose queue is bounded."""
    slots = threading.Semaphore(1)

    class Bounded(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            slots.acquire()
            future = super().submit(*args, **kwargs)
            future.add_done_callback(lambda _: slots.release())
            return future

    with Bounded(4) as pool:
        master = make(pool)
        master.requestTasks("square", [(i,) for i in range(50)])
        results = sorted(result for _, _, result in master.results(timeout=PATIENCE_S))
        assert results == [i * i for i in range(50)]
        master.shutdown()


def test_futures_that_never_end_are_told_of_and_hold_up_neither_limits_nor_the_end(
    make: Make, odd: Odd, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masterslave.pump._SILENT_S", 0.3)
    master = make(odd)
    master.requestTask("square", 3)
    assert value(master) == 9
    odd.wrong = lambda usual: Future()
    master.requestTask("square", 4)
    wait_until(lambda: said(caplog, "executor_silent"), "it is told")
    assert "(square_1)" in said(caplog, "executor_silent")[0]
    master.requestTask("square", 5, timeout=0.1)
    assert isinstance(failure(master).exception, TaskTimedOut)


def test_an_executor_without_workers_is_told_of_once(
    make: Make, odd: Odd, caplog: pytest.LogCaptureFixture
) -> None:
    """As a cluster of Dask may be; its client says how many there are."""
    threads = {"tcp://one": 1}
    odd._client = SimpleNamespace(nthreads=lambda: dict(threads))  # type: ignore[attr-defined]
    held: list[Future[Any]] = []

    def holds(usual: Callable[[], Future[Any]]) -> Future[Any]:
        held.append(Future())
        return held[-1]

    master = make(odd)
    master.requestTask("square", 3)
    assert value(master) == 9
    odd.wrong = holds
    threads.clear()
    master.requestTask("square", 4)
    wait_until(lambda: said(caplog, "executor_empty"), "it is told")
    assert "ThreadPool" not in said(caplog, "executor_empty")[0]
    assert "Odd: has had no workers for" in said(caplog, "executor_empty")[0]
    odd.wrong = None
    threads["tcp://one"] = 1
    held[0].cancel()  # it is submitted again
    assert value(master) == 16
    assert len(said(caplog, "executor_empty")) == 1


def test_an_executor_that_is_shut_down_in_mid_run_fails_all_its_tasks(
    make: Make, odd: Odd, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    master = make(odd)
    running = [
        master.requestTask("touch", str(tmp_path / f"runs-{i}"), str(gate)) for i in range(2)
    ]
    wait_until(lambda: all((tmp_path / f"runs-{i}").exists() for i in range(2)), "both run")
    waiting = master.requestTasks("square", [(i,) for i in range(20)])
    odd.shutdown(wait=False, cancel_futures=True)
    gate.touch()
    done, failed = [], []
    for _ in range(22):
        try:
            done.append(master.retrieveResult(timeout=PATIENCE_S)[0])
        except TaskRaisedException as error:
            failed.append(error)
    assert sorted(done) == running
    assert sorted(error.task_id for error in failed) == sorted(waiting)
    assert all("after shutdown" in error.traceback for error in failed)


def test_a_pool_of_a_factory_that_others_shut_down_is_made_again(make: Make) -> None:
    """As loky's, which is shared by all of a program."""
    pools: list[Odd] = []

    def factory() -> Odd:
        pools.append(Odd())
        return pools[-1]

    master = make(factory)
    master.requestTask("square", 3)
    assert value(master) == 9
    pools[0].shutdown()
    master.requestTasks("square", [(i,) for i in range(20)], crash_limit=2)
    results = sorted(result for _, _, result in master.results(timeout=PATIENCE_S))
    assert results == [i * i for i in range(20)]
    assert len(pools) == 2
    master.shutdown()


def test_what_an_executor_has_forgotten_at_its_end_is_told_of(make: Make) -> None:
    """As Parsl does with what it runs."""

    class Forgetful(Odd):
        __module__ = "parsl.concurrent"
        _dfk = SimpleNamespace(executors={}, cleanup_called=False)

    with Forgetful() as pool:
        master = make(pool)
        master.requestTask("square", 3)
        assert value(master) == 9
        pool.wrong = lambda usual: Future()
        ids = master.requestTasks("square", [(i,) for i in range(6)], crash_limit=1)
        pool._dfk.cleanup_called = True
        told = [failure(master) for _ in ids]
        assert sorted(one.task_id for one in told) == sorted(ids)
        assert all("after the shutdown of what stands behind" in one.traceback for one in told)
        master.shutdown()


def test_what_was_in_the_air_at_its_end_is_told_of_when_another_submission_was_refused(
    make: Make,
) -> None:
    """As by Dask, when a client is closed while one task runs and the next one is submitted."""

    class Forgetful(Odd):
        __module__ = "parsl.concurrent"
        _dfk = SimpleNamespace(executors={}, cleanup_called=False)

    with Forgetful() as pool:
        master = make(pool, stall_s=PATIENCE_S)  # nobody looks by the clock
        master.requestTask("square", 3)
        assert value(master) == 9
        lost = threading.Event()

        def loses(usual: Callable[[], Future[Any]]) -> Future[Any]:
            lost.set()
            return Future()

        pool.wrong = loses
        ids = [master.requestTask("square", 4, crash_limit=1)]
        wait_until(lost.is_set, "it has got one")
        pool._dfk.cleanup_called = True
        ids.append(master.requestTask("square", 5, crash_limit=1))
        told = [failure(master) for _ in ids]
        assert sorted(one.task_id for one in told) == sorted(ids)
        master.shutdown()


def test_a_submit_that_raises_for_a_while_costs_no_task(make: Make, odd: Odd) -> None:
    """A moment's trouble: there is a pause between two attempts."""
    master = make(odd)
    master.requestTask("square", 3)
    assert value(master) == 9
    refusals = iter(range(3))

    def raises(usual: Callable[[], Future[Any]]) -> Future[Any]:
        if next(refusals, None) is not None:
            raise OSError("the network is down")
        return usual()

    odd.wrong = raises
    master.requestTask("square", 4)
    assert value(master) == 16


def test_a_submit_that_raises_for_good_fails_its_tasks_with_the_reason(
    make: Make, odd: Odd
) -> None:
    master = make(odd)
    master.requestTask("square", 3)
    assert value(master) == 9

    def raises(usual: Callable[[], Future[Any]]) -> Future[Any]:
        raise OSError("the network is down")

    odd.wrong = raises
    ids = master.requestTasks("square", [(i,) for i in range(20)], crash_limit=2)
    told = [failure(master) for _ in ids]
    assert sorted(one.task_id for one in told) == sorted(ids)
    assert all(isinstance(one.exception, WorkerCrashed) for one in told)
    assert all("OSError: the network is down" in one.traceback for one in told)


def test_futures_that_others_cancel_are_submitted_again(
    make: Make, odd: Odd, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = iter(range(3))

    def cancels(usual: Callable[[], Future[Any]]) -> Future[Any]:
        if next(cancelled, None) is None:
            return usual()
        future: Future[Any] = Future()
        future.cancel()
        return future

    master = make(odd)
    master.requestTask("square", 3)
    assert value(master) == 9
    odd.wrong = cancels
    master.requestTask("square", 4)
    assert value(master) == 16
    assert len(said(caplog, "executor_cancelled")) == 1


@pytest.mark.parametrize("how", ["cancel", "asyncio"])
def test_futures_that_are_always_cancelled_fail_their_task(make: Make, odd: Odd, how: str) -> None:
    """Not for ever; also by a cancellation that is no `Exception`."""
    master = make(odd)
    master.requestTask("square", 3)
    assert value(master) == 9

    def cancels(usual: Callable[[], Future[Any]]) -> Future[Any]:
        future: Future[Any] = Future()
        if how == "cancel":
            future.cancel()
        else:
            future.set_exception(asyncio.CancelledError())
        return future

    odd.wrong = cancels
    master.requestTask("square", 4, crash_limit=1)
    failed = failure(master)
    assert isinstance(failed.exception, WorkerCrashed)
    assert "were cancelled by others" in failed.traceback
    odd.wrong = None
    master.requestTask("square", 5)
    assert value(master) == 25


@pytest.mark.parametrize("what", [SystemExit("leaves"), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_a_future_raises_costs_its_task_alone(
    make: Make, odd: Odd, what: BaseException
) -> None:
    master = make(odd)
    master.requestTask("square", 3)
    assert value(master) == 9

    def raises(usual: Callable[[], Future[Any]]) -> Future[Any]:
        odd.wrong = None
        future: Future[Any] = Future()
        future.set_exception(what)
        return future

    odd.wrong = raises
    master.requestTask("square", 4, crash_limit=1)
    assert f"Odd on {platform.node()} has lost it" in failure(master).traceback
    master.requestTask("square", 5)
    assert value(master) == 25


@pytest.mark.parametrize("brought", [None, 7, ("x",), ([1], [], [], [])])
def test_a_future_that_brings_nonsense_fails_its_task(make: Make, odd: Odd, brought: Any) -> None:
    master = make(odd)
    master.requestTask("square", 3)
    assert value(master) == 9

    def brings(usual: Callable[[], Future[Any]]) -> Future[Any]:
        odd.wrong = None
        future: Future[Any] = Future()
        future.set_result(brought)
        return future

    odd.wrong = brings
    master.requestTask("square", 4, crash_limit=1)
    assert isinstance(failure(master).exception, WorkerCrashed)
    master.requestTask("square", 5)
    assert value(master) == 25


def test_an_executor_that_can_only_map_is_refused(world: World) -> None:
    class OnlyMap(Executor):
        def map(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("is not called")

    with pytest.raises(SettingsError, match=r"has no submit\(\) of its own"):
        Engine(OnlyMap())
    with pytest.raises(SettingsError, match=r"has no submit\(\) of its own"):
        Engine(OnlyMap)


#: What every pickling knows; named tuples of this library are among it.
PLAIN = (str, bytes, int, float, bool, type(None), tuple, list, dict)


class Strict(pickle.Pickler):
    """A pickling of an executor's own: plain types, and functions by name."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) or callable(value):
            return NotImplemented  # by name
        assert isinstance(value, PLAIN), f"{type(value)} is handed over"
        return NotImplemented


class Pickling(ThreadPoolExecutor):
    """Hands over bytes, as an executor of processes does, and refuses what is not plain."""

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        return super().submit(self._call, dumped((function, args, kwargs)))

    @staticmethod
    def _call(data: bytes) -> Any:
        function, args, kwargs = pickle.loads(data)
        return pickle.loads(dumped(function(*args, **kwargs)))


def dumped(value: Any) -> bytes:
    file = io.BytesIO()
    Strict(file).dump(value)
    return file.getvalue()


def test_an_executor_with_a_pickling_of_its_own_meets_plain_types_alone(make: Make) -> None:
    with Pickling(2) as pool:
        master = make(pool)
        state = master.setGlobalState(values=np.arange(4), more=4)
        master.requestTask(
            "sum", GlobalStateValue(state, "values"), GlobalStateValue(state, "more")
        )
        assert value(master) == 10
        master.requestTask("reverse", np.arange(100_000))
        assert value(master)[-1] == 7
        master.requestTask("raise", "gone")
        assert isinstance(failure(master).exception, KeyError)
        master.shutdown()


def test_a_task_that_turns_out_long_does_not_keep_its_result_for_those_behind_it(
    make: Make, tmp_path: Path
) -> None:
    """They are tiny by what is known of their tag, and so share a submission."""
    open_gate = tmp_path / "open"
    open_gate.touch()
    runs, gates = [tmp_path / "runs-a", tmp_path / "runs-b"], [tmp_path / "a", tmp_path / "b"]
    with ThreadPoolExecutor(1) as pool:
        master = make(pool)
        master.requestTasks("touch", [(str(tmp_path / "tiny"), str(open_gate))] * 20)
        assert len(list(master.results(timeout=PATIENCE_S))) == 20
        master.requestTask("sleep_first", str(tmp_path / "blocks"))
        wait_until((tmp_path / "blocks.runs").exists, "the worker is busy")
        ids = master.requestTasks("touch", [(str(runs[i]), str(gates[i])) for i in range(2)])
        (tmp_path / "blocks").touch()
        assert value(master) == "done"
        wait_until(runs[0].exists, "the first runs")
        since = time.monotonic()
        wait_until(lambda: time.monotonic() > since + HELD_S, "it has run for long")
        gates[0].touch()
        assert master.retrieveResult(timeout=PATIENCE_S)[0] == ids[0]
        wait_until(runs[1].exists, "the second runs, by itself")
        gates[1].touch()
        assert master.retrieveResult(timeout=PATIENCE_S)[0] == ids[1]


def test_late_tasks_are_repeated_by_an_executor_and_the_first_result_wins(
    make: Make, tmp_path: Path
) -> None:
    """The gate of the first attempt stays shut until the second has brought the result."""
    with ThreadPoolExecutor(2) as pool:
        master = make(pool)
        master.repeatStragglers("sleep_first", 2.0)
        master.requestTasks("sleep_first", [("",)] * 3)
        assert len(list(master.results(timeout=PATIENCE_S))) == 3
        gate = tmp_path / "gate"
        master.requestTask("sleep_first", str(gate))
        assert value(master) == "second"
        gate.touch()
        master.shutdown()


def test_observers_are_told_of_what_an_executor_does(world: World, odd: Odd) -> None:
    seen: list[tuple[str, ...]] = []

    class Watcher(Observer):
        def task_requested(self, task_id: str, tag: str) -> None:
            seen.append(("requested", task_id))

        def task_finished(self, task_id: str, tag: str, outcome: str, duration_s: float) -> None:
            seen.append(("finished", task_id, outcome))

        def process_joined(self, process_id: int, info: str) -> None:
            seen.append(("joined", info.rpartition(": ")[2]))

    code = {**slavecode.module_record("contract"), "shared_main": False}
    with circumstances(Circumstances(code, executor=odd)):
        master = MasterProcess("demo", observers=[Watcher()])
    master.requestTask("square", 3)
    assert value(master) == 9
    master.shutdown()
    assert ("joined", "Odd") in seen
    assert seen[-2:] == [("requested", "square_0"), ("finished", "square_0", "result")]


def test_what_an_executor_cannot_do_is_refused_in_words(
    world: World, make: Make, odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = make(odd)
    for options in ({"memory": "1G"}, {"lifetime": 60}, {"chaos": "kill=0.1"}, {}):
        with pytest.raises(SettingsError, match=r"executor= has no slaves.*own workers"):
            master.launchSlaveJobs(1, **options)  # type: ignore[arg-type]
    assert master.numberOfLaunchedSlaves() == 0
    with pytest.raises(SettingsError, match="CHAOS does nothing with executor="):
        make(odd, chaos=Chaos(kill=0.1))
    with pytest.raises(SettingsError, match=r"weight=2\.0: is for clients of a served"):
        MasterProcess("demo", executor=odd, weight=2.0)
    with pytest.raises(SettingsError, match=r"straggler_fraction=0\.5: is for folder="):
        MasterProcess("demo", executor=odd, straggler_fraction=0.5)
    for options in ({"folder": "f"}, {"failover_folder": "f"}):
        with pytest.raises(SettingsError, match="give a folder, executor= or attach="):
            MasterProcess("demo", executor=odd, **options)  # type: ignore[arg-type]
    for options in ({"attach": True}, {"master_host": "there"}):
        with pytest.raises(SettingsError, match="give executor= or attach="):
            MasterProcess("demo", executor=odd, **options)  # type: ignore[arg-type]

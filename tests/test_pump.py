"""An executor that runs nothing any more: every task is told of, and nobody waits in silence."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from conftest import World

from masterslave import TaskRaisedException, TaskTimedOut, WorkerCrashed, initializeMasterProcess


def fail() -> None:
    raise OSError("no such device")


def test_a_pool_that_was_shut_down_fails_its_tasks(world: World) -> None:
    world.write("work.py", "def do_square(x):\n    return x * x\n")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.syspath_prepend(world.path)
        master = initializeMasterProcess("demo", slave_module="work", executor=pool)
        master.requestTask("square", 3)
        assert master.retrieveResult(timeout=60)[2] == 9
        pool.shutdown()
        master.requestTask("square", 3)
        with pytest.raises(TaskRaisedException) as caught:
            master.retrieveResult(timeout=60)
        master.shutdown()
    assert isinstance(caught.value.exception, WorkerCrashed)
    assert "cannot schedule new futures after shutdown" in caught.value.traceback


def test_code_that_does_not_load_fails_its_tasks(world: World) -> None:
    with ThreadPoolExecutor(1) as pool:
        master = initializeMasterProcess("demo", slave_module="no_such_module", executor=pool)
        master.requestTask("square", 3)
        with pytest.raises(TaskRaisedException) as caught:
            master.retrieveResult(timeout=60)
        master.shutdown()
    assert "No module named 'no_such_module'" in caught.value.traceback


def test_a_broken_pool_that_nobody_can_make_again_says_what_to_do(world: World) -> None:
    with ThreadPoolExecutor(1, initializer=fail) as pool:
        master = initializeMasterProcess("demo", slave_module="no_such_module", executor=pool)
        master.requestTask("square", 3)
        with pytest.raises(TaskRaisedException) as caught:
            master.retrieveResult(timeout=60)
        master.shutdown()
    assert "BrokenThreadPool" in caught.value.traceback


class Uncancellable(Future):  # type: ignore[type-arg]
    """As Parsl's."""

    def cancel(self) -> bool:
        raise NotImplementedError("Cancel not implemented")


class Pool(ThreadPoolExecutor):
    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        outer = Uncancellable()
        inner = super().submit(function, *args, **kwargs)
        inner.add_done_callback(lambda done: outer.set_result(done.result()))
        return outer


def test_an_executor_that_cannot_cancel_keeps_time_limits(world: World) -> None:
    gate = threading.Event()
    patience = 60
    world.write("gates.py", "gate = None\n")
    world.write(
        "waits.py",
        """
        import gates
        def do_wait():
            return gates.gate.wait(60)
        def do_one():
            return 1
        """,
    )
    with pytest.MonkeyPatch.context() as patch, Pool(2) as pool:
        patch.syspath_prepend(world.path)
        import gates  # type: ignore[import-not-found]

        gates.gate = gate
        master = initializeMasterProcess("demo", slave_module="waits", executor=pool)
        master.requestTask("wait", timeout=0.1)
        with pytest.raises(TaskRaisedException) as caught:
            master.retrieveResult(timeout=patience)
        assert isinstance(caught.value.exception, TaskTimedOut)
        unwanted = master.requestTask("wait")
        master.cancelTask(unwanted)
        gate.set()
        master.requestTask("one")
        assert master.retrieveResult(timeout=patience)[2] == 1
        master.shutdown()

"""An executor that runs nothing any more: every task is told of, and nobody waits in silence."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from conftest import World

from masterslave import TaskRaisedException, TaskTimedOut, WorkerCrashed, initializeMasterProcess
from masterslave.engines import Engine


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


class Stubborn(ThreadPoolExecutor):
    """Its futures cannot be cancelled, as Parsl's cannot."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(*args, **kwargs)

        def cancel() -> bool:
            raise NotImplementedError("Cancel not implemented")

        future.cancel = cancel  # type: ignore[method-assign]
        return future


def test_an_executor_that_cannot_cancel_goes_on(world: World) -> None:
    gate = world.path / "gate"
    world.write(
        "stubborn_work.py",
        """
        import os, time
        def do_wait(path):
            while not os.path.exists(path):
                time.sleep(0.01)
        """,
    )
    with pytest.MonkeyPatch.context() as patch, Stubborn(1) as pool:
        patch.syspath_prepend(world.path)
        master = initializeMasterProcess("demo", slave_module="stubborn_work", executor=pool)
        master.requestTask("wait", str(gate), timeout=0.1)
        with pytest.raises(TaskRaisedException) as caught:
            master.retrieveResult(timeout=60)
        assert isinstance(caught.value.exception, TaskTimedOut)
        gate.touch()
        master.requestTasks("wait", [(str(gate),)] * 3)
        assert len(list(master.results(timeout=60))) == 3
        master.shutdown()


def test_a_pump_that_fails_tells_so_of_every_task(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an executor of others does to us, nobody waits in silence."""

    def fails(self: Engine, future: Future[Any]) -> None:
        raise OSError("out of order")

    monkeypatch.setattr(Engine, "cancel", fails)
    monkeypatch.syspath_prepend(world.path)
    world.write("failing_work.py", "import time\ndef do_rest():\n    time.sleep(0.5)\n")
    with ThreadPoolExecutor(1) as pool:
        master = initializeMasterProcess("demo", slave_module="failing_work", executor=pool)
        ids = master.requestTasks("rest", [()] * 6, timeout=0.1)
        told = []
        for _ in ids:
            with pytest.raises(TaskRaisedException) as caught:
                master.retrieveResult(timeout=60)
            told.append(caught.value)
        assert sorted(one.task_id for one in told) == ids
        assert any("the pump failed: OSError: out of order" in one.traceback for one in told)
        monkeypatch.undo()
        master.shutdown()

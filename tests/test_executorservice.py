"""Options of a master whose tasks an executor runs: those that need the whole way."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import PATIENCE_S, ROOT, World

from masterslave import MasterProcess, TaskRaisedException, initializeMasterProcess

GIB = 1 << 30


def limit_memory() -> None:
    """In a worker of a process pool, as its initializer: the executor's own means."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (2 * GIB, 2 * GIB))


@pytest.fixture
def workers_find_modules(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(world.path)  # handed on by `spawn`
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    world.write(
        "greedy_work.py",
        """
        def do_allocate(size):
            return len(bytearray(size))
        """,
    )


def value(master: MasterProcess) -> object:
    return master.retrieveResult(timeout=PATIENCE_S)[2]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere RLIMIT_DATA limits nothing")
@pytest.mark.usefixtures("workers_find_modules")
def test_a_memory_limit_of_the_executors_own_raises_in_the_handler_and_its_pool_goes_on() -> None:
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=limit_memory) as pool:
        master = initializeMasterProcess("demo", slave_module="greedy_work", executor=pool)
        master.requestTask("allocate", 4 * GIB)
        with pytest.raises(TaskRaisedException) as caught:
            master.retrieveResult(timeout=PATIENCE_S)
        assert isinstance(caught.value.exception, MemoryError)
        master.requestTask("allocate", 1000)
        assert value(master) == 1000
        master.shutdown()


@pytest.mark.usefixtures("workers_find_modules")
def test_a_key_of_the_users_own_is_heeded_with_an_executor(tmp_path: Path) -> None:
    """What the first run has finished is not run again, whatever its parameters."""
    for size in (7, 8):
        with ThreadPoolExecutor(1) as pool:
            master = initializeMasterProcess(
                "demo", slave_module="greedy_work", executor=pool, journal=tmp_path / "journal.db"
            )
            master.requestTask("allocate", size, key="the one")
            assert value(master) == 7
            master.shutdown()

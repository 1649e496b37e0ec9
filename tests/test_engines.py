"""Executors of others: each runs a whole program, with its own workers."""

from __future__ import annotations

import math
import textwrap
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import PATIENCE_S, ROOT, World
from contract import WITHOUT
from foreign import POOLS, require_engine, start_on

from masterslave import (
    MasterProcess,
    SettingsError,
    SlaveProcess,
    TaskRaisedException,
    initializeMasterProcess,
    runJob,
)
from masterslave.engines import Engine

PROGRAM = """
    from masterslave import GlobalStateValue, MasterProcess, SlaveProcess, runJob
    from masterslave import TaskRaisedException

    class Point:
        def __init__(self, x):
            self.x = x

    class Master(MasterProcess):
        def run(self):
            state = self.setGlobalState(offset=Point(100))
            offset = GlobalStateValue(state, "offset")
            self.requestTasks("move", ((Point(i), offset) for i in range(9)))
            moved = [result for _, _, result in self.results()]
            print(sorted(p.x for p in moved), all(type(p) is Point for p in moved))
            self.requestTask("fail")
            try:
                self.retrieveResult()
            except TaskRaisedException as error:
                print(type(error.exception).__name__, "in do_fail" in error.traceback)

    class Slave(SlaveProcess):
        def do_move(self, point, offset):
            assert type(point) is type(offset) is Point
            return Point(point.x + offset.x)

        def do_fail(self):
            return 1 / 0

    if __name__ == "__main__":
        {lines}
"""
OUTPUT = "[100, 101, 102, 103, 104, 105, 106, 107, 108] True\nZeroDivisionError True\n"

#: Module that must be installed -> how a program uses it.
ENGINES = {
    "loky": """
        import loky
        with loky.get_reusable_executor(2) as pool:
            runJob("demo", Master, Slave, executor=pool)
    """,
    "distributed": """
        from distributed import Client
        with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
            runJob("demo", Master, Slave, executor=client.get_executor())
    """,
    "parsl": """
        import os
        from parsl import Config
        from parsl.concurrent import ParslPoolExecutor
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider
        htex = HighThroughputExecutor(
            address="127.0.0.1", loopback_address="127.0.0.1", max_workers_per_node=2,
            encrypted=False, provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        with ParslPoolExecutor(Config(executors=[htex], usage_tracking=0)) as pool:
            runJob("demo", Master, Slave, executor=pool)
    """,
    "mpi4py": """
        from mpi4py.futures import MPIPoolExecutor
        with MPIPoolExecutor() as pool:
            runJob("demo", Master, Slave, executor=pool)
    """,
    "concurrent": """
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            runJob("demo", Master, Slave, executor=pool)
    """,
}


@pytest.mark.parametrize("module", ENGINES)
def test_a_program_on_an_engine(world: World, module: str) -> None:
    require_engine(module)
    lines = textwrap.indent(textwrap.dedent(ENGINES[module]).strip(), " " * 4)
    path = world.write("script.py", textwrap.dedent(PROGRAM).replace("    {lines}", lines))
    program = start_on(world, module, path)
    assert program.finish() == OUTPUT


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", POOLS)
def test_an_engine_keeps_the_contract(world: World, module: str) -> None:
    """`test_contract.py` with one pool of the engine, in a process of its own."""
    require_engine(module)
    world.env |= {"CONTRACT_SUBSTRATE": module, "PYTHONDONTWRITEBYTECODE": "1"}
    # Warnings of the engine are its own affair. What is left behind is looked for by this session:
    # the inner one would count what others do on this machine, and processes of the engine.
    report = world.path / "report.xml"
    options = ["-W", "ignore", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    program = start_on(
        world, module, "-m", "pytest", *options, f"--junitxml={report}",
        ROOT / "tests" / "test_contract.py",
    )  # fmt: skip
    program.wait(4 * PATIENCE_S)
    assert report.exists(), f"{program.out}\n{program.err}"
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, "-1")) for name in ("failures", "errors", "skipped")}
    lacks = module in WITHOUT["crash"]
    assert counts == {"failures": 0, "errors": 0, "skipped": int(lacks)}, program.out
    assert int(suite.get("tests", "0")) > 15


def test_the_capacity_is_what_the_executor_says() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert Engine(pool).capacity == 3
    with ProcessPoolExecutor(4) as pool:
        assert Engine(pool).capacity == 4


def test_the_capacity_of_parsl_is_that_of_all_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = SimpleNamespace(nodes_per_block=2, max_blocks=5)
    there = {
        "htex": SimpleNamespace(max_workers_per_node=8, provider=blocks),
        "threads": SimpleNamespace(max_threads=3),
        "_parsl_internal": SimpleNamespace(max_threads=10),
    }
    with Uncancellable() as pool:
        pool._dfk = SimpleNamespace(executors=there)
        assert Engine(pool).capacity == 83
        there["htex"].max_workers_per_node = math.inf  # as many as each node has processors
        monkeypatch.setattr("os.cpu_count", lambda: 4)
        assert Engine(pool).capacity == 43


class Uncancellable(Executor):
    """As Parsl's: nothing is taken back, and nothing is known of its workers."""

    _dfk: Any = None

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._pool.submit(function, *args, **kwargs)

        def cancel() -> bool:
            raise NotImplementedError("cancel")

        future.cancel = cancel  # type: ignore[method-assign]
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait)


def test_a_submission_that_cannot_be_cancelled_runs_to_its_end(world: World) -> None:
    gate, runs = world.path / "gate", world.path / "runs"
    with Uncancellable() as pool:
        master = initializeMasterProcess("demo", slave_module="contract", executor=pool)
        try:
            late = master.requestTask("touch", str(runs), str(gate), timeout=0.1)
            with pytest.raises(TaskRaisedException) as caught:
                master.retrieveResult(timeout=PATIENCE_S)
            assert caught.value.task_id == late
            master.requestTask("square", 3)
            assert master.retrieveResult(timeout=PATIENCE_S)[2] == 9
        finally:
            master.shutdown()
            gate.touch()


def test_a_pool_of_a_factory_is_made_again_and_shut_down() -> None:
    made: list[Executor] = []

    def make() -> Executor:
        made.append(ThreadPoolExecutor(1))
        return made[-1]

    engine = Engine(make)
    assert engine.renew()
    assert len(made) == 2
    engine.close()
    for pool in made:
        with pytest.raises(RuntimeError):
            pool.submit(print)


def test_the_users_own_pool_is_not_shut_down() -> None:
    with ThreadPoolExecutor(1) as pool:
        engine = Engine(pool)
        assert not engine.renew()
        engine.close()
        assert pool.submit(int, "3").result() == 3


class Master(MasterProcess):
    def run(self) -> None:
        raise AssertionError("is not to be run")


class Slave(SlaveProcess):
    def do_square(self, x: int) -> int:
        return x * x


def test_wrong_arguments_are_refused_by_name(world: World) -> None:
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(SettingsError, match="executor= or launch_slaves="):
            runJob("demo", Master, Slave, launch_slaves=1, executor=pool)
        with pytest.raises(SettingsError, match="no slave code is known"):
            Master("demo", executor=pool)
    with pytest.raises(SettingsError, match="executor=3: must be"):
        runJob("demo", Master, Slave, executor=3)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="which is no Executor"):
        runJob("demo", Master, Slave, executor=lambda: 3)  # type: ignore[arg-type,return-value]

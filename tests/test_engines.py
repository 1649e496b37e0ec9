"""Executors of others: each runs a whole program, with its own workers."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import sys
import textwrap
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT, World, wait_until
from engines import ENGINES, MODULES

from masterslave import MasterProcess, SettingsError, SlaveProcess, runJob
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
PROGRAMS = {
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


def demand(module: str) -> None:
    """It must be installed in CI; elsewhere, the test is skipped without it."""
    if importlib.util.find_spec(module) is None:
        if os.environ.get("MASTERSLAVE_CI") == "1":
            pytest.fail(f"{module} is not installed, and CI installs it")
        pytest.skip(f"{module} is not installed: pip install masterslave[engines]")


def before(world: World, module: str) -> list[str]:
    """What stands before a program on the command line of the interpreter."""
    # Programs of the environment, such as mpiexec and Parsl's, need not be on the path.
    world.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{world.env['PATH']}"
    if module != "mpi4py":
        return []
    world.env |= {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    start = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    command = ["mpiexec", "--oversubscribe", "-n", "3", sys.executable, "-m", "mpi4py.futures"]
    return ["-c", start, *command]


@pytest.mark.parametrize("module", PROGRAMS)
def test_a_program_on_an_engine(world: World, module: str) -> None:
    demand(module)
    lines = textwrap.indent(textwrap.dedent(PROGRAMS[module]).strip(), " " * 4)
    path = world.write("script.py", textwrap.dedent(PROGRAM).replace("    {lines}", lines))
    program = world.start(*before(world, module), path)
    assert program.finish() == OUTPUT


@pytest.mark.long
@pytest.mark.timeout(300)  # many tests, and slow starters among them
@pytest.mark.parametrize("name", ENGINES)
def test_the_contract_on_an_engine(world: World, name: str) -> None:
    """All of `test_contract`, in a session of its own, whose leftovers are those of the engine."""
    demand(MODULES[name])
    command = [*before(world, MODULES[name]), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # What engines warn of is not ours.
    options = ["-o", "filterwarnings=default", "-p", "no:xdist", "--color=no", "--timeout", "60"]
    options += ["-o", "leftovers_patience_s=0"]  # nor what they leave, which `world` ends
    world.env["CONTRACT_ENGINE"] = name
    program = world.start(*command, *options, ROOT / "tests" / "test_contract.py")
    program.wait(240)
    printed = program.finish(None)  # not 0 when the engine has left something behind
    assert re.search(r"^\d\d passed(, \d skipped)?(, \d+ warnings?)? in ", printed, re.MULTILINE), (
        printed
    )


RESTARTED = """
    import time
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def run(self):
            self.requestTasks("work", ((i,) for i in range(40)))
            print(sorted(r for _, _, r in self.results(timeout=100)) == list(range(40)))

    class Slave(SlaveProcess):
        def do_work(self, i):
            time.sleep(0.1)
            with open("ran", "a") as file:
                file.write(f"{i}\\n")
            return i

    if __name__ == "__main__":
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            runJob("demo", Master, Slave, executor=pool, journal="journal.db")
"""


def test_a_killed_master_with_a_process_pool_goes_on_from_its_journal(world: World) -> None:
    """What had ended is not run again, but for what the journal had not got yet."""

    def ran() -> list[int]:
        file = world.path / "ran"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    job = world.script(RESTARTED)
    wait_until(lambda: len(ran()) >= 10, "some tasks have run")
    job.kill()
    job.wait()
    for process in world.processes():  # Python's own pool outlives a master that was killed
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("spawn_main" in word for word in process.cmdline()):
                process.kill()
    wait_until(lambda: not world.processes(), "Python's resource tracker has ended by itself")
    assert len(ran()) < 40  # else it would show nothing
    assert world.start(world.path / "script.py").finish() == "True\n"
    assert set(ran()) == set(range(40))
    assert len(ran()) <= 40 + 8  # what ran, or was on its way to the journal


def test_the_capacity_is_what_the_executor_says() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert Engine(pool).capacity == 3
    with ProcessPoolExecutor(4) as pool:
        assert Engine(pool).capacity == 4


def test_the_capacity_of_parsl_is_that_of_all_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = SimpleNamespace(nodes_per_block=2, max_blocks=5)
    htex = SimpleNamespace(max_workers_per_node=8, provider=blocks)
    there = {
        "htex": htex,
        "threads": SimpleNamespace(max_threads=3),
        "_parsl_internal": SimpleNamespace(max_threads=10),
    }

    class Parsl(Executor):
        _dfk = SimpleNamespace(executors=there)
        submit = ThreadPoolExecutor.submit

    assert Engine(Parsl()).capacity == 83
    htex.max_workers_per_node = math.inf  # as many as a node has processors
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert Engine(Parsl()).capacity == 43


def test_the_workers_of_this_moment_are_those_that_have_come() -> None:
    blocks = [{"worker_count": 3}, {"worker_count": 4}]
    htex = SimpleNamespace(connected_managers=lambda: blocks)

    class Parsl(Executor):
        _dfk = SimpleNamespace(executors={"htex": htex, "_parsl_internal": SimpleNamespace()})
        submit = ThreadPoolExecutor.submit

    class Dask(Executor):
        _client = SimpleNamespace(nthreads=lambda: {"tcp://one": 2, "tcp://two": 1})
        submit = ThreadPoolExecutor.submit

    assert Engine(Parsl()).workers() == 7
    assert Engine(Dask()).workers() == 3
    blocks.clear()
    assert Engine(Parsl()).workers() == 0
    htex.connected_managers = None  # another version of Parsl
    assert Engine(Parsl()).workers() is None
    with ThreadPoolExecutor(1) as pool:
        assert Engine(pool).workers() is None


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


WITHOUT_WORKERS = """
    import logging, os, sys
    from dask import config
    from distributed import Client
    from masterslave import MasterProcess, ResultTimeout, SlaveProcess, runJob

    class Warned(logging.Handler):
        lines = []
        def emit(self, record):
            if getattr(record, "action", "") == "executor_empty":
                self.lines.append(record.getMessage())

    logging.getLogger("masterslave").addHandler(Warned())

    class Master(MasterProcess):
        def run(self):
            self.requestTask("square", 2)
            print(self.retrieveResult(timeout=60)[2])
            self.requestTask("die")
            while not Warned.lines:
                try:
                    self.retrieveResult(timeout=0.1)
                except ResultTimeout:
                    pass
            print(len(Warned.lines), Warned.lines[0])
            open("alive", "w").close()
            client.cluster.scale(1)
            print(self.retrieveResult(timeout=60)[2])

    class Slave(SlaveProcess):
        def do_square(self, x):
            return x * x

        def do_die(self):
            if not os.path.exists("{alive}"):
                os._exit(3)
            return "lives"

    if __name__ == "__main__":
        # At once, so that it is certain to find the worker away.
        config.set({{"distributed.deploy.lost-worker-timeout": "1ms"}})
        with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
            runJob("demo", Master, Slave, executor=client.get_executor())
"""


def test_a_cluster_of_dask_that_gives_up_its_workers_is_told_of_and_can_be_mended(
    world: World,
) -> None:
    """Dask's own doing, see ARCHITECTURE.md: without this setting, it takes 15 s and bad luck."""
    demand("distributed")
    program = world.script(WITHOUT_WORKERS.format(alive=world.path / "alive"))
    lines = program.finish().splitlines()
    assert lines[0] == "4"
    assert "1 ClientExecutor: has had no workers for some" in lines[1]
    assert "tasks that it has got: 1 (die_1); a cluster of Dask gives up each worker" in lines[1]
    assert "scale it up again" in lines[1]
    assert lines[2:] == ["lives"]


CLIENT_ENDS = """
    import os, time
    from distributed import Client
    from masterslave import MasterProcess, SlaveProcess, TaskRaisedException, runJob

    class Master(MasterProcess):
        def run(self):
            self.requestTasks("wait", [("gate",)] * 6)
            while not os.path.exists("gate.runs"):
                time.sleep(0.01)
            client.{end}()
            open("gate", "w").close()
            for _ in range(6):
                try:
                    print(self.retrieveResult(timeout=60)[2])
                except TaskRaisedException as error:
                    print(error.traceback.splitlines()[-1].partition("RuntimeError: ")[2])

    class Slave(SlaveProcess):
        def do_wait(self, path):
            open(path + ".runs", "w").close()
            while not os.path.exists(path):
                time.sleep(0.01)
            return "done"

    if __name__ == "__main__":
        with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
            runJob("demo", Master, Slave, executor=client.get_executor())
"""


@pytest.mark.parametrize(
    ("end", "what"),
    [
        # It takes submissions for ever, whose futures never end.
        ("close", "cannot schedule new futures after the shutdown of what stands behind it"),
        (
            "cluster.close",
            "cannot schedule new futures after the shutdown of what stands behind it",
        ),
        ("restart", "done"),  # its futures are cancelled, and submitted again by us
    ],
)
def test_tasks_are_told_of_a_client_of_dask_that_ends_in_mid_run(
    world: World, end: str, what: str
) -> None:
    demand("distributed")
    program = world.script(CLIENT_ENDS.format(end=end))
    assert program.finish().splitlines() == [what] * 6


GATHERING_FAILS = """
    from concurrent.futures import CancelledError
    from distributed import Client
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def run(self):
            for value in range(3):
                self.requestTask("square", value)
                print(self.retrieveResult(timeout=30)[2])

    class Slave(SlaveProcess):
        def do_square(self, x):
            return x * x

    errors = [None, CancelledError("scheduler-restart"), None, OSError("cut off")]

    class Client(Client):
        async def _gather(self, futures, *args, **kwargs):
            error = errors.pop(0) if errors else None
            if error is not None:
                raise error  # as where the cluster is restarted or lost meanwhile
            return await super()._gather(futures, *args, **kwargs)

    if __name__ == "__main__":
        with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
            runJob("demo", Master, Slave, executor=client.get_executor())
"""


def test_what_dask_loses_on_its_way_to_the_client_ends_all_the_same(world: World) -> None:
    """Dask's own futures wait for ever then, see `daskfutures`."""
    demand("distributed")
    assert world.script(GATHERING_FAILS).finish().splitlines() == ["0", "1", "4"]

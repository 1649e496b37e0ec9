"""Executors of others as substrates of the contract suite: one pool of each, with two workers.

Each gives what a program hands over as ``executor=``, and takes the engine down again. mpi4py's is
there only in a program that `mpiexec` has started; `command` says how each is started.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from conftest import World

Given = Executor | Callable[[], Executor]


@contextlib.contextmanager
def loky_pool() -> Iterator[Given]:
    import loky

    # A function: when a worker has died, loky's pool is broken, and the next call makes another.
    yield lambda: loky.get_reusable_executor(2)
    loky.get_reusable_executor(2).shutdown(wait=True)


@contextlib.contextmanager
def dask_pool() -> Iterator[Given]:
    import dask
    from distributed import Client

    # Else a task that ends its worker is begun four times before Dask says so.
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        yield client.get_executor()


@contextlib.contextmanager
def parsl_pool() -> Iterator[Given]:
    from parsl import Config
    from parsl.concurrent import ParslPoolExecutor
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    htex = HighThroughputExecutor(
        address="127.0.0.1", loopback_address="127.0.0.1", max_workers_per_node=2,
        encrypted=False, heartbeat_period=2, provider=LocalProvider(init_blocks=1, max_blocks=1),
    )  # fmt: skip
    with ParslPoolExecutor(Config(executors=[htex], usage_tracking=0)) as pool:
        yield pool


@contextlib.contextmanager
def mpi_pool() -> Iterator[Given]:
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor() as pool:
        yield pool


#: By the module that must be installed.
POOLS: dict[str, Callable[[], contextlib.AbstractContextManager[Given]]] = {
    "loky": loky_pool,
    "distributed": dask_pool,
    "parsl": parsl_pool,
    "mpi4py": mpi_pool,
}


def require_engine(module: str) -> None:
    """Skip where it is not installed; inside CI that is a failure."""
    if importlib.util.find_spec(module) is None:
        if os.environ.get("MASTERSLAVE_CI") == "1":
            pytest.fail(f"{module} is not installed, and CI installs it")
        pytest.skip(f"{module} is not installed: pip install masterslave[engines]")


def start_on(world: World, module: str, *arguments: Any) -> Any:
    """Start a program that uses this engine: `arguments` are those of the Python interpreter."""
    # Programs of the environment, such as mpiexec and Parsl's, need not be on the path.
    world.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{world.env['PATH']}"
    if module != "mpi4py":
        return world.start(*arguments)
    world.env |= {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    start = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    command = ["mpiexec", "--oversubscribe", "-n", "3", sys.executable, "-m", "mpi4py.futures"]
    return world.start("-c", start, *command, *arguments)

"""Executors of others, opened as a program of theirs would."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

#: Module that must be installed, of each.
MODULES = {"loky": "loky", "dask": "distributed", "parsl": "parsl", "mpi": "mpi4py"}

Opened = Executor | Callable[[], Executor]


@contextlib.contextmanager
def loky() -> Iterator[Opened]:
    from loky import get_reusable_executor

    yield lambda: get_reusable_executor(2)  # which makes a new one where the last is broken
    get_reusable_executor().shutdown(kill_workers=True)


@contextlib.contextmanager
def dask() -> Iterator[Opened]:
    from dask import config as dask_config
    from distributed import Client

    # A cluster gives up each worker that happens to be away 15 s after a death, and has none at
    # last: see ARCHITECTURE.md. And with 3 failures allowed, as is usual, a task that kills its
    # worker costs eight starts of an interpreter in place of two: 33 s, 46 s and more than 60 s
    # were seen on a machine that others kept busy.
    settings = {
        "distributed.deploy.lost-worker-timeout": "1h",
        "distributed.scheduler.allowed-failures": 0,
    }
    with (
        dask_config.set(settings),
        tempfile.TemporaryDirectory() as folder,
        Client(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=folder
        ) as client,
    ):
        yield client.get_executor()


@contextlib.contextmanager
def parsl() -> Iterator[Opened]:
    from parsl import Config
    from parsl.concurrent import ParslPoolExecutor
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    # Its programs need not be on the path.
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        executor: Any = HighThroughputExecutor(
            address="127.0.0.1", loopback_address="127.0.0.1", max_workers_per_node=2,
            encrypted=False, provider=LocalProvider(init_blocks=1, max_blocks=1),
            heartbeat_period=2,  # its processes end sooner
        )  # fmt: skip
        config = Config(executors=[executor], usage_tracking=0, run_dir=folder)
        with ParslPoolExecutor(config) as pool:
            yield pool


@contextlib.contextmanager
def mpi() -> Iterator[Opened]:
    """In a program that was started with ``python -m mpi4py.futures``."""
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor() as pool:
        yield pool


ENGINES = {"loky": loky, "dask": dask, "parsl": parsl, "mpi": mpi}

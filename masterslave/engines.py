"""What is known of executors: how many workers they have, and how a broken one is made again.

| executor                                | workers                 | made again                  |
|-----------------------------------------|-------------------------|-----------------------------|
| `ProcessPoolExecutor`                   | its `max_workers`       | yes, with its own arguments |
| `ThreadPoolExecutor`, loky, any other   | its `max_workers`       | by a factory                |
| mpi4py's `MPIPoolExecutor`              | its `num_workers`       | by a factory                |
| Dask's `client.get_executor()`          | threads of its cluster  | Dask does so itself         |
| Parsl's `ParslPoolExecutor`             | of all its blocks       | Parsl does so itself        |
| any that says nothing                   | processors of this host | by a factory                |

A factory is given in place of an executor: a function without arguments that makes one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from typing import Any

from masterslave import daskfutures
from masterslave.errors import SettingsError

log = logging.getLogger(__name__)

#: An executor that breaks so often in a row, without one result between, is given up. Larger: what
#: can never work is tried for long. Smaller: a task that kills its worker takes the job along.
MOST_BREAKS = 50

#: Parsl's own executor, which moves files.
_PARSL_FILES = "_parsl_internal"

#: What is said of an executor whose other half has ended.
CLOSED = "cannot schedule new futures after the shutdown of what stands behind it"

#: Why a cluster of Dask may be without workers for ever.
DASK_LOSES = (
    "a cluster of Dask gives up each worker that happens to be away 15 s after a death: set its "
    "distributed.deploy.lost-worker-timeout to an hour, or scale it up again"
)


class Engine:
    """An executor, or a factory of them, and the pool that is in use."""

    def __init__(self, given: Executor | Callable[[], Executor]) -> None:
        """Raises `SettingsError` for what is neither."""
        self._factory: Callable[[], Executor] | None = None
        self._ours = False  # whether the pool is to be shut down by us
        self.is_made_here = False  # whether there is a factory of the user's
        if isinstance(given, Executor):
            self._pool = _checked(given)
            self._factory = _factory_of(given)
        elif callable(given):
            self._factory = given
            self.is_made_here = True
            self._pool = _made(given)
            self._ours = True
        else:
            raise SettingsError(
                f"executor={given!r}: must be a concurrent.futures.Executor, or a function "
                "without arguments that makes one"
            )

    @property
    def name(self) -> str:
        """The kind of executor."""
        return type(self._pool).__name__

    @property
    def is_closed(self) -> bool:
        """Whether what stands behind it is at its end, and what it has got will never end.

        Dask takes submissions after that, and Parsl forgets those that run.
        """
        pool: Any = self._pool
        if _is_dask(pool):
            return getattr(pool._client, "status", "") in ("closing", "closed")
        if _is_parsl(pool):
            return pool._dfk is None or bool(getattr(pool._dfk, "cleanup_called", False))
        return False

    @property
    def capacity(self) -> int:
        """How many tasks it runs at a time, as far as it says so; at least 1."""
        return max(1, _capacity(self._pool))

    @property
    def forks(self) -> bool:
        """Whether a submission may fork this process: better before it has threads of ours."""
        return isinstance(self._pool, ProcessPoolExecutor)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """As `Executor.submit`; raises whatever that raises, and may block as long as that does."""
        if _is_dask(self._pool):
            future = daskfutures.submit(self._pool, function, *args)
        else:
            future = self._pool.submit(function, *args)
        if self.is_closed:  # asked afterwards: one that closes later cancels its futures
            raise RuntimeError(CLOSED)
        return future

    def workers(self) -> int | None:
        """How many workers it has at this moment, if it says so. May block, as it may ask them."""
        with contextlib.suppress(Exception):  # of somebody else's, and little of it promised
            client = getattr(self._pool, "_client", None)
            if client is not None:
                return int(sum(client.nthreads().values()))
            kernel = getattr(self._pool, "_dfk", None)
            if kernel is not None:
                executors = [e for name, e in kernel.executors.items() if name != _PARSL_FILES]
                return int(
                    sum(m["worker_count"] for e in executors for m in e.connected_managers())
                )
        return None

    @property
    def advice(self) -> str:
        """What to look at when it has no workers."""
        return DASK_LOSES if _is_dask(self._pool) else "see to it that workers are started"

    def cancel(self, future: Future[Any]) -> None:
        """Have it not run, if it has not begun and the executor can do that."""
        if self.is_closed:
            return
        try:
            future.cancel()
        except Exception as error:  # Parsl's raise NotImplementedError
            log.debug("%s does not cancel: %r", self.name, error)

    def is_shut_by(self, error: BaseException) -> bool:
        """Whether the error says that somebody has shut it down."""
        text = str(error)
        return isinstance(error, RuntimeError) and ("shutdown" in text or "shut down" in text)

    def is_broken_by(self, error: BaseException) -> bool:
        """Whether the error says that nothing more can be run by the present pool."""
        return isinstance(error, BrokenExecutor)

    def renew(self) -> bool:
        """Make a new pool in place of a broken one; False when nobody knows how."""
        if self._factory is None:
            return False
        self._shut_down()
        self._pool = _made(self._factory)
        self._ours = True
        return True

    def close(self) -> None:
        """Shut down the pool if it was made here; the user's own stays."""
        self._shut_down()
        self._ours = False

    def _shut_down(self) -> None:
        if self._ours:
            with contextlib.suppress(TypeError):  # an executor that cannot cancel what waits
                self._pool.shutdown(wait=False, cancel_futures=True)
                return
            self._pool.shutdown(wait=False)


def _made(factory: Callable[[], Executor]) -> Executor:
    pool = factory()
    if not isinstance(pool, Executor):
        raise SettingsError(f"executor: {factory!r} has made {pool!r}, which is no Executor")
    return _checked(pool)


def _checked(pool: Executor) -> Executor:
    if type(pool).submit is Executor.submit:
        raise SettingsError(f"executor={pool!r}: has no submit() of its own, so it can run nothing")
    return pool


def _is_dask(pool: Any) -> bool:
    return hasattr(pool, "_client") and _package(pool) == "distributed"


def _is_parsl(pool: Any) -> bool:
    return hasattr(pool, "_dfk") and _package(pool) == "parsl"


def _package(pool: Any) -> str:
    return type(pool).__module__.partition(".")[0]


def _factory_of(pool: Executor) -> Callable[[], Executor] | None:
    """What makes another pool like this one; None when nobody knows."""
    if type(pool) is not ProcessPoolExecutor:
        return None
    names = {
        "max_workers": "_max_workers",
        "mp_context": "_mp_context",
        "initializer": "_initializer",
        "initargs": "_initargs",
        "max_tasks_per_child": "_max_tasks_per_child",
    }
    # Not public, and gone some day: then a broken pool is not made again, and says so.
    given: dict[str, Any] = {n: getattr(pool, a) for n, a in names.items() if hasattr(pool, a)}
    if "max_workers" not in given:
        return None
    return lambda: ProcessPoolExecutor(**given)


def _capacity(pool: Any) -> int:
    for name in ("num_workers", "max_workers", "_max_workers"):
        with contextlib.suppress(Exception):  # a property of somebody else's
            value = getattr(pool, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    client = getattr(pool, "_client", None)
    if client is not None:
        with contextlib.suppress(Exception):  # Dask's; its cluster may be on its way
            return sum(client.nthreads().values()) or (os.cpu_count() or 1)
    kernel = getattr(pool, "_dfk", None)
    if kernel is not None:
        with contextlib.suppress(Exception):  # Parsl's, and none of it promised
            return _parsl_workers(kernel.executors) or (os.cpu_count() or 1)
    return os.cpu_count() or 1


def _parsl_workers(executors: dict[str, Any]) -> int:
    """Workers in all blocks that Parsl may start: it starts them only for what was submitted."""
    count = 0
    for name, executor in executors.items():
        if name == _PARSL_FILES:
            continue
        provider = getattr(executor, "provider", None)
        if provider is None:
            count += int(getattr(executor, "max_threads", 0))
            continue
        each = executor.max_workers_per_node
        workers = (os.cpu_count() or 1) if math.isinf(each) else int(each)
        count += workers * provider.nodes_per_block * provider.max_blocks
    return count

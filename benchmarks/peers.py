"""The peers, each in the form that its own documentation recommends, behind one small interface.

    python benchmarks/peers.py                 which of them are installed
    python benchmarks/peers.py NAME CASE...    one session, as `run.py` starts it

Each has two workers on this machine, is kept to the loopback interface, and has its telemetry and
its dashboard switched off. What has no way to give an array to workers that run already gets it
as a parameter of each task.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before any peer is imported

import argparse  # noqa: E402
import importlib.metadata  # noqa: E402
import importlib.util  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterable, Sequence  # noqa: E402
from typing import Any  # noqa: E402

import measure  # noqa: E402
import work  # noqa: E402

#: Set for every session, before it starts.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "DASK_DISTRIBUTED__DIAGNOSTICS__NVML": "False",
    "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__STATUS__TASK_STREAM_LENGTH": "0",
    "PARSL_USAGE_TRACKING": "0",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl": "self,vader",
    "OMPI_MCA_oob_tcp_if_include": "lo",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_plm_rsh_agent": "false",
    # Since version 5 Open MPI starts processes by PRRTE, which reads variables of its own. Three
    # ranks on two cores are one more than it allows.
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_plm_ssh_agent": "false",
    "OMP_NUM_THREADS": "1",
}


class Peer:
    """A `measure.Farm`; subclasses import what they need in `start`."""

    name = ""
    module = ""  # what must be there
    package = ""  # whose version is given
    tasks = 10_000
    trips = 300
    state_tasks = 5

    def command(self) -> list[str]:
        """What runs a script of a session."""
        return [sys.executable]

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        raise NotImplementedError

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        raise NotImplementedError

    def share(self, array: Any, count: int) -> Sequence[float]:
        raise NotImplementedError


class _Pool(Peer):
    """An executor in the sense of `concurrent.futures`."""

    executor: Any

    def stop(self) -> None:
        self.executor.shutdown()

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        return list(self.executor.map(function, items))

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        return self.executor.submit(function, item).result()

    def share(self, array: Any, count: int) -> Sequence[float]:
        futures = [self.executor.submit(work.use, array, i) for i in range(count)]
        return [future.result() for future in futures]


class ProcessPool(_Pool):
    name = "ProcessPoolExecutor"
    module = "concurrent.futures"

    def start(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.executor = ProcessPoolExecutor(measure.WORKERS)


class Multiprocessing(Peer):
    name = "multiprocessing.Pool"
    module = "multiprocessing"

    def start(self) -> None:
        import multiprocessing

        self.pool = multiprocessing.Pool(measure.WORKERS)

    def stop(self) -> None:
        self.pool.close()
        self.pool.join()

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        return list(self.pool.imap_unordered(function, items))

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        return self.pool.apply(function, (item,))

    def share(self, array: Any, count: int) -> Sequence[float]:
        got = [self.pool.apply_async(work.use, (array, i)) for i in range(count)]
        return [one.get() for one in got]


class Loky(_Pool):
    name = "loky"
    module = package = "loky"

    def start(self) -> None:
        from loky import get_reusable_executor

        self.executor = get_reusable_executor(max_workers=measure.WORKERS)


class Mpi(_Pool):
    name = "mpi4py.futures"
    module = package = "mpi4py"
    tasks = 8_000
    trips = 100

    def command(self) -> list[str]:
        ranks = str(measure.WORKERS + 1)
        return ["mpiexec", "-n", ranks, sys.executable, "-m", "mpi4py.futures"]

    def start(self) -> None:
        from mpi4py.futures import MPIPoolExecutor

        self.executor = MPIPoolExecutor(max_workers=measure.WORKERS)


class Dask(Peer):
    name = "Dask"
    module = package = "distributed"
    tasks = 1_500
    trips = 60
    state_tasks = measure.STATE_TASKS

    def start(self) -> None:
        import dask
        from distributed import Client, LocalCluster

        dask.config.set({"distributed.logging.distributed": "error"})
        self.cluster = LocalCluster(
            n_workers=measure.WORKERS,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
        self.client = Client(self.cluster)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        items = list(items)
        if hasattr(items[0], "nbytes"):  # as it says itself when large arrays are parameters
            items = self.client.scatter(items, hash=False)
        return list(self.client.gather(self.client.map(function, items, pure=False)))

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        return self.client.submit(function, item, pure=False).result()

    def share(self, array: Any, count: int) -> Sequence[float]:
        shared = self.client.scatter(array, broadcast=True, hash=False)
        futures = [self.client.submit(work.use, shared, i, pure=False) for i in range(count)]
        return list(self.client.gather(futures))


class Ray(Peer):
    name = "Ray"
    module = package = "ray"
    tasks = 3_000
    trips = 200
    state_tasks = measure.STATE_TASKS

    def start(self) -> None:
        import ray

        self.ray = ray
        ray.init(
            address="local",
            num_cpus=measure.WORKERS,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=os.path.join(os.getcwd(), "ray"),
            object_store_memory=2_000_000_000,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        self.remotes: dict[Callable[..., Any], Any] = {}

    def stop(self) -> None:
        self.ray.shutdown()

    def _remote(self, function: Callable[..., Any]) -> Any:
        if function not in self.remotes:
            self.remotes[function] = self.ray.remote(function)
        return self.remotes[function]

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        remote = self._remote(function)
        return list(self.ray.get([remote.remote(item) for item in items]))

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        return self.ray.get(self._remote(function).remote(item))

    def share(self, array: Any, count: int) -> Sequence[float]:
        shared, remote = self.ray.put(array), self._remote(work.use)
        return list(self.ray.get([remote.remote(shared, i) for i in range(count)]))


class Executorlib(_Pool):
    name = "executorlib"
    module = package = "executorlib"
    tasks = 4_000
    trips = 60

    def start(self) -> None:
        from executorlib import SingleNodeExecutor

        self.executor = SingleNodeExecutor(
            max_workers=measure.WORKERS, block_allocation=True, hostname_localhost=True
        )

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        futures = [self.executor.submit(function, item) for item in items]
        return [future.result() for future in futures]


class IpyParallel(Peer):
    name = "ipyparallel"
    module = package = "ipyparallel"
    tasks = 800
    trips = 100
    state_tasks = measure.STATE_TASKS

    def start(self) -> None:
        import ipyparallel

        self.ipyparallel = ipyparallel
        self.cluster = ipyparallel.Cluster(
            n=measure.WORKERS,
            controller_ip="127.0.0.1",
            location="127.0.0.1",
            log_level=logging.ERROR,
        )
        self.client = self.cluster.start_and_connect_sync(activate=False)
        self.view = self.client.load_balanced_view()

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        return list(self.view.map_async(function, list(items), ordered=False, chunksize=1))

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        return self.view.apply_sync(function, item)

    def share(self, array: Any, count: int) -> Sequence[float]:
        self.client[:].push({"shared": array}, block=True)
        shared = self.ipyparallel.Reference("shared")
        got = [self.view.apply_async(work.use, shared, i) for i in range(count)]
        return [one.get() for one in got]


class Parsl(Peer):
    name = "Parsl"
    module = package = "parsl"
    tasks = 1_500
    trips = 100
    state_tasks = 2

    def start(self) -> None:
        import parsl
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        self.parsl = parsl
        executor = HighThroughputExecutor(
            label="benchmark",
            encrypted=False,  # others do not encrypt either, and it takes nearly all the time
            address="127.0.0.1",
            loopback_address="127.0.0.1",
            max_workers_per_node=measure.WORKERS,
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
        )
        config = Config(
            executors=[executor], run_dir=os.path.join(os.getcwd(), "parsl"), usage_tracking=0
        )
        parsl.load(config)
        self.apps: dict[Callable[..., Any], Any] = {}

    def stop(self) -> None:
        self.parsl.dfk().cleanup()
        self.parsl.clear()

    def _app(self, function: Callable[..., Any]) -> Any:
        if function not in self.apps:
            self.apps[function] = self.parsl.python_app(function)
        return self.apps[function]

    def many(self, function: Callable[..., Any], items: Iterable[Any]) -> Sequence[Any]:
        app = self._app(function)
        futures = [app(item) for item in items]
        return [future.result() for future in futures]

    def one(self, function: Callable[..., Any], item: Any) -> Any:
        return self._app(function)(item).result()

    def share(self, array: Any, count: int) -> Sequence[float]:
        app = self._app(work.use)
        futures = [app(array, i) for i in range(count)]
        return [future.result() for future in futures]


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        ProcessPool,
        Multiprocessing,
        Loky,
        Mpi,
        Executorlib,
        Ray,
        Dask,
        IpyParallel,
        Parsl,
    )
}


def missing(peer: type[Peer]) -> str:
    """Why a peer cannot be run here; empty when it can."""
    import shutil

    if importlib.util.find_spec(peer.module.partition(".")[0]) is None:
        return "not installed"
    program = peer().command()[0]
    # Sessions find those of the environment too (`sessions`).
    where = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    if shutil.which(program, path=where) is None:
        return f"there is no {program}"
    return ""


def versions() -> dict[str, str]:
    """Package -> version, of the peers that are here."""
    found = {}
    for peer in PEERS.values():
        if peer.package and not missing(peer):
            found[peer.package] = importlib.metadata.version(peer.package)
    return found


def session(name: str, cases: Sequence[str], scale: float) -> None:
    """Start a peer, measure, end it."""
    peer = PEERS[name]()
    try:
        peer.start()
        peer.one(work.nothing, 0)
    except Exception as error:
        measure.trouble("start", error)
        raise SystemExit(1) from None
    measure.report("start", time.perf_counter() - STARTED)
    try:
        measure.run_cases(peer, cases, scale)
    finally:
        peer.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="?", choices=list(PEERS), metavar="NAME", help="of a peer")
    parser.add_argument("cases", nargs="*", choices=[*measure.CASES, []], metavar="CASE")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of tasks")
    options = parser.parse_args()
    if options.name is None:
        for name, peer in PEERS.items():
            print(f"{name:20} {missing(peer) or 'here'}")
    else:
        session(options.name, options.cases, options.scale)


if __name__ == "__main__":
    main()

"""The same program on any engine: one word chooses which one.

    python examples/any_executor.py processes      (or: threads, loky, dask, mpi)

For MPI start it as ``mpiexec -n 4 python -m mpi4py.futures any_executor.py mpi``.
"""

import random
import sys
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

from masterslave import MasterProcess, SlaveProcess, runJob


class Master(MasterProcess):
    def run(self):
        self.requestTasks("throw", ((seed, 20_000) for seed in range(16)))
        inside = sum(result for task_id, tag, result in self.results())
        print(f"pi is about {4 * inside / (16 * 20_000):.2f}")
        self.printStatistics()


class Slave(SlaveProcess):
    def do_throw(self, seed, n):
        """How many of n random points of the unit square are in the circle."""
        rng = random.Random(seed)
        return sum(rng.random() ** 2 + rng.random() ** 2 < 1 for _ in range(n))


def engine(name: str) -> Executor:
    if name == "threads":
        return ThreadPoolExecutor(2)
    if name == "loky":
        import loky

        return loky.get_reusable_executor(2)
    if name == "dask":
        from distributed import Client

        return Client(n_workers=2, threads_per_worker=1).get_executor()
    if name == "mpi":
        from mpi4py.futures import MPIPoolExecutor

        return MPIPoolExecutor()
    return ProcessPoolExecutor(2)


if __name__ == "__main__":
    with engine(sys.argv[1] if len(sys.argv) > 1 else "processes") as executor:
        runJob("any_executor", Master, Slave, executor=executor)

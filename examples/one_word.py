"""The same program on a process pool and on a cluster, by changing one word.

It estimates pi from random points, in tasks that are functions of this very script. Run it with

    python examples/one_word.py

with a word as its argument, if it is not to be `local`: `pool` is the standard
library's process pool, `local` are workers of this library on this machine, and any other word is a
label, of a task manager that was started with `task_manager serve WORD` and of slaves started with
`task_manager slave WORD`, wherever they are.
"""

import random
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from masterslave import ClusterExecutor

POINTS = 20_000


def inside(seed):
    """How many of so many random points of the unit square are within the circle."""
    generator = random.Random(seed)
    return sum(generator.random() ** 2 + generator.random() ** 2 < 1 for _ in range(POINTS))


def executor(word):
    """Where the work is done."""
    if word == "pool":
        return ProcessPoolExecutor(2)
    return ClusterExecutor(2) if word == "local" else ClusterExecutor(word)


def main():
    word = sys.argv[1] if len(sys.argv) > 1 else "local"
    with executor(word) as workers:
        futures = [workers.submit(inside, seed) for seed in range(40)]
        hits = sum(future.result() for future in as_completed(futures))
    print(f"pi is about {4 * hits / POINTS / len(futures):.3f}")


if __name__ == "__main__":
    main()

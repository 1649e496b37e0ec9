"""Workers for as long as a block lasts: pi by throwing darts.

    python examples/allocate.py                 on this machine
    python examples/allocate.py --on slurm      the same as batch jobs; or sge, pbs, htcondor
    python examples/allocate.py --on auto       whatever batch system answers, else this machine

Nothing else changes: the functions of this program travel to the workers by themselves.
"""

import argparse
import random

from masterslave import allocate


def hits(seed, throws):
    """How many of so many darts fall into the quarter of a circle."""
    draw = random.Random(seed).random
    return sum(draw() ** 2 + draw() ** 2 < 1.0 for _ in range(throws))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", default="local", help="local, slurm, sge, pbs, htcondor or auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    on = None if arguments.on == "auto" else arguments.on

    throws, rounds = 20_000, 20
    with allocate(arguments.workers, on) as workers, workers.executor() as executor:
        found = sum(executor.map(hits, range(rounds), [throws] * rounds))
        where = workers.started.on
    print(
        f"pi is about {4 * found / (throws * rounds):.3f}, by {arguments.workers} workers ({where})"
    )


if __name__ == "__main__":
    main()

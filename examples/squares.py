"""Any function, with a callback: results come as they are ready, and are kept in a file.

The program submits a function of its own; nothing has to be prepared for it. Run it with

    python examples/squares.py

It starts two workers on this machine. `--host node3` uses those of a task manager that somebody has
started there with `task_manager serve cluster`, `--store results.db` keeps results as they arrive:
run it a second time, after a crash or not, and nothing is computed twice.
"""

import argparse
import time

from masterslave import ClientThread


def square(x):
    """What a worker does."""
    time.sleep(0.01)
    return x * x


class Total:
    """What the program does with each result, in the order in which they come."""

    def __init__(self):
        self.sum = 0

    def __call__(self, job_id, result):
        self.sum += result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--numbers", type=int, default=100)
    parser.add_argument("--host", help="where a task manager is served")
    parser.add_argument("--store", help="a file that keeps the results")
    options = parser.parse_args()

    total = Total()
    workers = None if options.host else 2
    with ClientThread(total, options.host, workers=workers, store=options.store) as client:
        for x in range(options.numbers):
            client.submit(square, x)
        # The call and what follows it may stand together, too:
        client.submit(max, 3, 4, then=lambda job_id, result: print(f"job {job_id}: {result}"))
        client.wait()  # raises what a call has raised
    print(f"the sum of {options.numbers} squares is {total.sum}")


if __name__ == "__main__":
    main()

"""A parameter sweep: scipy's differential evolution finds what a damped wave is made of.

Each generation's candidates are evaluated by workers, in chunks: all that it takes is
`workers=executor.map`. The measured wave, which the function refers to, is sent to each slave
once, not with each of the thousands of calls. Run it with

    python examples/sweep.py

which starts two workers on this machine. Needs scipy.
"""

import functools
import sys

import numpy as np
from scipy.optimize import differential_evolution

from masterslave import ClusterExecutor

RIGHT = 1.5, 0.8, 3.0  # amplitude, damping, frequency
TIMES = np.linspace(0.0, 5.0, 2000)


def wave(parameters, times):
    """A damped oscillation."""
    amplitude, damping, frequency = parameters
    return amplitude * np.exp(-damping * times) * np.cos(frequency * times)


MEASURED = wave(RIGHT, TIMES) + np.random.default_rng(1).normal(0.0, 0.05, TIMES.size)


def misfit(parameters):
    """How far a wave of these parameters is from the measured one."""
    return float(np.sum((wave(parameters, TIMES) - MEASURED) ** 2))


def main():
    label = sys.argv[1] if len(sys.argv) > 1 else None
    with ClusterExecutor(label) if label else ClusterExecutor(workers=2) as executor:
        found = differential_evolution(
            misfit,
            bounds=[(0.1, 5.0), (0.0, 3.0), (0.5, 10.0)],
            workers=functools.partial(executor.map, chunksize=12),
            updating="deferred",  # a generation at a time, so that it can be shared out
            maxiter=40,
            seed=2,
        )
    names = "amplitude", "damping", "frequency"
    for name, value, right in zip(names, found.x, RIGHT, strict=True):
        print(f"{name:10} {value:6.3f}  (is {right})")
    print(f"{found.nfev} evaluations")


if __name__ == "__main__":
    main()

"""Arrays as parameters, results and global state; random numbers that can be repeated.

How sure is a straight line through noisy points? The bootstrap answers by fitting it again and
again to points drawn from the data with replacement. Each task draws from a random generator of
its own, spawned from one seed: streams are independent, and the answer is the same every time,
whatever slave runs which task in whatever order. Needs numpy:

    python examples/numpy_arrays.py
"""

import numpy as np

from masterslave import GlobalStateValue, MasterProcess, SlaveProcess, runJob

SLOPE, INTERCEPT = 2.0, -1.0  # of the line that the bootstrap should find
POINTS, TASKS, SAMPLES_PER_TASK = 2000, 20, 50
SEED = 20100401


class Master(MasterProcess):
    def run(self):
        data_seed, *task_seeds = np.random.SeedSequence(SEED).spawn(1 + TASKS)

        random = np.random.default_rng(data_seed)
        x = random.uniform(0, 10, POINTS)
        y = SLOPE * x + INTERCEPT + random.normal(0, 1, POINTS)

        # The data are fetched once per slave; a task's own parameters are its seed and a number.
        state = self.setGlobalState(x=x, y=y)
        data = GlobalStateValue(state, "x"), GlobalStateValue(state, "y")
        ids = self.requestTasks("fit", [(*data, seed, SAMPLES_PER_TASK) for seed in task_seeds])

        fits = {task_id: fit for task_id, _, fit in self.results("fit")}
        fits = np.concatenate([fits[task_id] for task_id in ids])  # in order of request
        (slope, intercept), (d_slope, d_intercept) = fits.mean(axis=0), fits.std(axis=0)
        print(f"{len(fits)} fits to {POINTS} points")
        print(f"slope     {slope:8.4f} +- {d_slope:.4f}")
        print(f"intercept {intercept:8.4f} +- {d_intercept:.4f}")


class Bootstrap(SlaveProcess):
    def do_fit(self, x, y, seed, samples):
        """Slope and intercept for each of so many samples, shape (samples, 2)."""
        random = np.random.default_rng(seed)
        fits = np.empty((samples, 2))
        for fit in fits:
            chosen = random.integers(len(x), size=len(x))
            fit[:] = np.polyfit(x[chosen], y[chosen], 1)
        return fits


if __name__ == "__main__":
    runJob("bootstrap", Master, Bootstrap, launch_slaves=2)

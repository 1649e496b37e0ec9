"""Master and slave in one script: the shortest complete program.

The master requests square roots, one of which has no real value, and prints the results as they
come. Run it with

    python examples/master_slave_demo.py

It starts two slaves on this machine. While a job runs, `task_manager demo` shows what goes on in
it, and `task_manager slave demo` starts another slave, here or on any machine that finds the same
name server and has the same home directory.
"""

import math

from masterslave import MasterProcess, SlaveProcess, TaskRaisedException, runJob


class Master(MasterProcess):
    """States the tasks and collects the results."""

    def run(self):
        numbers = [-1.0, 0.0, 1.0, 2.0, 3.0]
        for x in numbers:
            self.requestTask("sqrt", x)  # some slave calls its do_sqrt(x)

        for _ in numbers:  # results come in order of completion, not of request
            try:
                task_id, tag, (x, root) = self.retrieveResult("sqrt")
                print(f"{task_id}: the {tag} of {x} is {root:.4f}")
            except TaskRaisedException as error:
                print(f"{error.task_id}: {type(error.exception).__name__}: {error.exception}")

        self.printStatistics()  # what `task_manager demo` would show at this moment


class SquareRoot(SlaveProcess):
    """Carries out the tasks: one method do_<tag> for each kind of them."""

    def do_sqrt(self, x):
        return x, math.sqrt(x)


# Slaves run this script, too: there this call starts SquareRoot instead of Master.
if __name__ == "__main__":
    runJob("demo", Master, SquareRoot, launch_slaves=2)

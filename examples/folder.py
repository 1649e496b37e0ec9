"""A job without a network: master and slaves meet in a directory that they share.

Run it with

    python examples/folder.py DIRECTORY

and while it runs, look into DIRECTORY/tasks with `ls`. Further slaves are started, on any machine
that has the directory, with `task_manager slave --folder DIRECTORY`; `folder.sub` does it all
with HTCondor. If it is killed, start it again: what had finished is not run again.
"""

import sys
import time

from masterslave import MasterProcess, SlaveProcess, runJob


class Master(MasterProcess):
    """States the tasks and adds up their results."""

    def run(self):
        self.requestTasks("square", [(n,) for n in range(20)])
        print("the sum of squares is", sum(square for _, _, square in self.results()))


class Square(SlaveProcess):
    """Carries out the tasks."""

    def do_square(self, n):
        time.sleep(0.05)
        return n * n


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "run1"
    slaves = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    runJob("squares", Master, Square, launch_slaves=slaves, folder=folder)

"""Programs that tests of several modules start."""

from __future__ import annotations

import textwrap

from conftest import World

SEPARATE_MASTER = """
    from masterslave import initializeMasterProcess

    master = initializeMasterProcess("demo"{options})
    {launch}
    for i in range(3):
        master.requestTask("square", i)
    print(sorted(master.retrieveResult("square")[2] for i in range(3)))
"""


SEPARATE_SLAVE = """
    from masterslave import startSlaveProcess

    def do_square(x):
        return x * x

    startSlaveProcess({arguments})
"""


def job(run: str, slave: str, *, launch: int = 1, before: str = "", after: str = "") -> str:
    """A script whose master's `run` and whose slave class have these bodies."""

    def indented(text: str, by: int) -> str:
        return textwrap.indent(textwrap.dedent(text).strip("\n"), " " * by)

    return "\n".join(
        [
            "import os, sys, time",
            "from masterslave import *",
            indented(before, 0),
            "class Master(MasterProcess):",
            "    def run(self):",
            indented(run, 8),
            "class Slave(SlaveProcess):",
            indented(slave, 4),
            f'runJob("demo", Master, Slave, launch_slaves={launch})',
            indented(after, 0),
            "",
        ]
    )


def await_master(world: World, *options: str) -> None:
    """Return when the master of "demo" answers."""
    world.task_manager("-w", *options, "demo").finish()

"""Texts of programs that tests of several modules start."""

from __future__ import annotations

import textwrap


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

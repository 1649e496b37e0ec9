"""The scripts that batch systems run, and numbers as they read them. Pure.

A script ends with ``exec``: the process takes the place of the shell, so that the signals of the
batch system reach it. A shell would die of SIGTERM and leave its child behind.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable

from masterslave.launchers.base import Job, check, safe_name
from masterslave.launchers.containers import process_command


def script(job: Job, *, log_id: str | None = None, first: Iterable[str] = ()) -> str:
    """The script of one copy.

    `first`: lines before all others. `log_id`: the copy's id as the shell finds it, for a system
    that cannot be told where the output belongs; it is put in double quotes.
    """
    check(job)
    lines = ["#!/bin/sh", *first]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    lines.append(f"cd {shlex.quote(job.directory)} || exit 1")
    output = ""
    if log_id is not None:
        prefix = os.path.join(job.log_folder, safe_name(job.name))
        output = f' >> {shlex.quote(prefix)}."{log_id}".log 2>&1'
    # A shell may have been given this text as its standard input.
    lines.append(f"exec {shlex.join(process_command(job))} < /dev/null{output}")
    return "\n".join(lines) + "\n"


def clock(seconds: float) -> str:
    """Whole seconds, as batch systems read them: ``HH:MM:SS``."""
    whole = max(1, math.floor(seconds))
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def kibibytes(size_bytes: int) -> int:
    """Not less than that size."""
    return max(1, math.ceil(size_bytes / 1024))

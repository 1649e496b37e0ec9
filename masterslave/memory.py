"""The memory limit of workers: set by the worker itself, watched by its supervisor.

The limit is the system's RLIMIT_DATA: private writable memory, that is the heap, arrays, stacks of
threads. An allocation beyond it fails at once, where Python raises `MemoryError` and C code mostly
aborts. Not counted are program text, shared memory and files mapped for reading. Rejected: the
limit of address space (RLIMIT_AS), as many programs reserve far more than they use, and the limit
of resident memory (RLIMIT_RSS), which Linux ignores.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from masterslave.errors import SettingsError
from masterslave.units import format_bytes

#: A worker that dies of a signal while it uses this part of its limit has died for want of memory.
#: Larger: one that grows fast between two looks is taken for crashed. Smaller: a program error in a
#: large process is taken for want of memory.
CLOSE = 0.9

#: What a failed allocation ends with: abort, a null pointer used, or the kernel's own judgement.
_DEADLY = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL)

#: The first Linux whose RLIMIT_DATA counts more than the program break.
_FIRST_LINUX = (4, 7)


def check_supported(limit: int | None) -> None:
    """Raise `SettingsError` when there is a limit and this system cannot keep to it."""
    if limit is not None and not _is_supported(sys.platform, platform.release()):
        raise SettingsError(
            f"a memory limit needs Linux 4.7 or newer (RLIMIT_DATA), and this is "
            f"{platform.system()} {platform.release()}: start the slave without it"
        )


def _is_supported(system: str, release: str) -> bool:
    if system != "linux":
        return False
    match = re.match(r"(\d+)\.(\d+)", release)
    return match is not None and (int(match[1]), int(match[2])) >= _FIRST_LINUX


def limit_memory(limit: int) -> Callable[[], None]:
    """Limit this process's private memory, in bytes, or to what the system sets if that is less.

    Gives what lifts the limit again, so that the process can tell of its failure; that call needs
    no memory itself. Raises `SettingsError` when the process has more already.
    """
    import resource  # not on every system

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    used = private_bytes(os.getpid())
    if used >= limit:
        raise SettingsError(
            f"memory limit {format_bytes(limit)}: a worker uses {format_bytes(used)} before it "
            "loads anything"
        )
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return partial(resource.setrlimit, resource.RLIMIT_DATA, (hard, hard))


def private_bytes(pid: int) -> int:
    """Private writable memory of a process, as the limit counts it; 0 if it has gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
        return int(fields[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def died_of_memory(status: int, used: int, limit: int, last_lines: Sequence[str]) -> bool:
    """Whether a process with a memory limit died of it, as far as can be told from outside.

    `status`: as `subprocess` gives it. `used`: bytes when it was last looked at. `last_lines`: of
    its standard error.
    """
    if -status in _DEADLY and used >= CLOSE * limit:
        return True
    if status == -signal.SIGABRT:
        return any("std::bad_alloc" in line for line in last_lines)
    # The interpreter ended, or was on its way there when its supervisor missed it.
    ended = status in (1, -signal.SIGKILL)
    return ended and bool(last_lines) and last_lines[-1].startswith("MemoryError")

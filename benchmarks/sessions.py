"""Sessions: one process each that runs one system, ended with all that it has started.

A session gets a folder, a home and a session of the terminal of its own. When it is over, or has
taken too long, whatever is left of it is ended: this process adopts what loses its parent
(Linux), so all that a session has started are our descendants.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
from measure import MARK

HERE = Path(__file__).resolve().parent

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

#: What a system that was told to end gets to do so.
_LEAVE_S = 3.0


class Outcome(NamedTuple):
    """What came of a session."""

    figures: list[tuple[str, float, str]]  # figure, value, note
    errors: list[str]
    left_over: int  # processes that it had not ended itself


def adopt_orphans() -> None:
    """Have the processes of sessions stay our descendants, whatever becomes of their parents."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def environment(folder: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Of a session: nothing of ours or the peers' that the user may have set."""
    prefixes = ("MASTERSLAVE_", "PYRO_", "RAY_", "DASK_", "PARSL_", "OMPI_", "IPP_", "SLURM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    path = [str(HERE), str(HERE.parent), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "PYRO_NS_PORT": str(_free_port()),
        "MASTERSLAVE_BROADCAST": "0",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
        **extra,
    }


def run(
    command: list[str], extra: Mapping[str, str], limit_s: float, log: Path | None = None
) -> Outcome:
    """Run a session. Blocks, for `limit_s` and some seconds at most.

    `log`: the file that what it prints is added to.
    """
    # Short, as it becomes part of the names of sockets, which may not be long.
    folder = Path(tempfile.mkdtemp(prefix="msb", dir="/tmp" if os.path.isdir("/tmp") else None))
    output = folder / "output"
    errors = []
    try:
        with output.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment(folder, extra),
                start_new_session=True,
            )
            family = {process.pid: psutil.Process(process.pid)}
            deadline = time.monotonic() + limit_s
            while process.poll() is None:
                if time.monotonic() > deadline:
                    errors.append(f"took more than {limit_s:g} s")
                    break
                if sys.platform != "linux":  # where we adopt nobody
                    _look(family)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
            _look(family)
            left_over = _end(family)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_S)
        text = output.read_text(errors="replace")
        if log is not None:
            with log.open("a") as file:
                file.write(f"\n=== {' '.join(command)}\n{text}")
        figures, failures = parse(text)
        errors += failures
        if process.returncode and not errors:
            last = text.strip().rpartition("\n")[2][:300]
            errors.append(f"ended with status {process.returncode}: {last}")
        return Outcome(figures, errors, left_over)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse(text: str) -> tuple[list[tuple[str, float, str]], list[str]]:
    """The figures and the errors in what a session has printed."""
    figures, errors = [], []
    for line in text.splitlines():
        if not line.startswith(MARK):
            continue
        item = json.loads(line[len(MARK) :])
        if "error" in item:
            errors.append(f"{item['figure']}: {item['error']}")
        else:
            figures.append((item["figure"], float(item["value"]), item["note"]))
    return figures, errors


def _look(family: dict[int, psutil.Process]) -> None:
    """Take note of the descendants of what is in the family, and of those that we have adopted."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            family.setdefault(child.pid, child)


def _end(family: dict[int, psutil.Process]) -> int:
    """End all that lives; gives how many that were."""
    living = [process for process in family.values() if _lives(process)]
    for process in living:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(living, _LEAVE_S)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _look(family)
    for process in family.values():
        if _lives(process):
            with contextlib.suppress(psutil.Error):
                process.kill()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # those that we have adopted
            pass
    return len(living)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

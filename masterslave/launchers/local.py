"""Starts slaves as child processes on this machine, and sees to their end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from masterslave.chaos import Chaos
from masterslave.launchers.base import Job

log = logging.getLogger(__name__)

_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent.parent)


class SlaveOptions(NamedTuple):
    """What a slave is started with."""

    workers: int = 1
    memory: int | None = None  # bytes that each of its workers may have; None: no limit
    lifetime_s: float | None = None  # it must have left by then; None: as the batch system says
    chaos: Chaos | None = None  # what goes wrong on purpose; None leaves it to the environment
    follow: bool = False  # whether the name server knows where its master is started again
    folder: str | None = None  # shared with its master; without an address, the only way
    gone_s: float | None = None  # how long it looks for its master; None: as the environment says

    def arguments(self) -> list[str]:
        """As arguments of ``task_manager slave``."""
        arguments = ["-n", str(self.workers)]
        if self.memory is not None:
            arguments += ["--memory", str(self.memory)]
        if self.lifetime_s is not None:
            arguments += ["--lifetime", str(self.lifetime_s)]
        if self.chaos is not None:
            arguments.append(f"--chaos={self.chaos}")
        if self.follow:
            arguments.append("--follow")
        if self.folder is not None:
            arguments += ["--folder", self.folder]
        return arguments

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of a slave."""
        own = {} if self.gone_s is None else {"MASTERSLAVE_MASTER_GONE": str(self.gone_s)}
        return {**environ, **own}


_PLAIN = SlaveOptions()


def slave_command(
    label: str, address: str, options: SlaveOptions = _PLAIN, python: str | None = None
) -> list[str]:
    """The command that starts a slave for the master of `label` at ``host:port``.

    An empty address: the master is met in `options.folder` only. `python`: an interpreter that has
    this library, such as that of a container or of another host; None: this one, with the library
    where it is here.
    """
    where = ["-m", address] if address else []
    rest = ["slave", *where, *options.arguments(), *(["--", label] if address else [])]
    if python is not None:
        return [python, "-m", "masterslave", *rest]
    boot = (
        f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); "
        f"from masterslave.cli import main; sys.path.remove({_PACKAGE_PARENT!r}); sys.exit(main())"
    )
    return [sys.executable, "-c", boot, *rest]


def slave_job(
    label: str,
    address: str,
    job: Job,
    options: SlaveOptions = _PLAIN,
    python: str | None = None,
) -> Job:
    """`job` with the command of a slave, which is told the walltime as its lifetime."""
    if options.lifetime_s is None and job.walltime_s is not None:
        options = options._replace(lifetime_s=job.walltime_s)
    return job._replace(command=tuple(slave_command(label, address, options, python)))


class LocalSlaves:
    """The slaves that a master has started on its own machine."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()  # any thread of the program may ask or launch
        self._launched = 0

    def launch(
        self, label: str, address: str, count: int, options: SlaveOptions = _PLAIN
    ) -> list[int]:
        """Start `count` slaves; gives their process ids.

        They get a session of their own: a terminal's ^C reaches the master only, which ends them
        in order. With chaos, each has a share of its own.
        """
        started = []
        for _ in range(count):
            chaos = options.chaos
            own = options._replace(chaos=chaos.of_slave(self._launched) if chaos else None)
            command = slave_command(label, address, own)
            started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env=options.environment(os.environ),
                )
            )
            self._launched += 1
        with self._lock:
            self._processes += started
        return [process.pid for process in started]

    def reap(self) -> None:
        """Take note of those that have ended, and say so if it was not in order."""
        with self._lock:
            ended = [process for process in self._processes if process.poll() is not None]
            self._processes = [process for process in self._processes if process not in ended]
        for process in ended:
            if process.returncode != 0:
                log.warning(
                    "slave PID %d ended with status %d",
                    process.pid,
                    process.returncode,
                    extra={"action": "slave_ended"},
                )

    def living(self) -> int:
        """How many have not ended."""
        self.reap()
        return len(self._processes)

    def end(self, timeout_s: float) -> None:
        """Wait for all to end, ask those that are late with SIGTERM, kill at last. Blocks."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            ending = list(self._processes)
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            for process in ending:
                if number is not None and process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, number)
            for process in ending:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
            deadline = time.monotonic() + 2.0
        with self._lock:
            self._processes = [process for process in self._processes if process not in ending]

"""Starts slaves as child processes on this machine, and sees to their end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

log = logging.getLogger(__name__)

_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent.parent)


def slave_command(
    label: str, address: str, workers: int = 1, memory: int | None = None
) -> list[str]:
    """The command that starts a slave for the master of `label` at ``host:port``.

    `memory`: bytes that each of its workers may have, None for no limit.
    """
    boot = (
        f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); "
        f"from masterslave.cli import main; sys.path.remove({_PACKAGE_PARENT!r}); sys.exit(main())"
    )
    limits = [] if memory is None else ["--memory", str(memory)]
    return [
        sys.executable, "-c", boot,
        "slave", "-m", address, "-n", str(workers), *limits, "--", label,
    ]  # fmt: skip


class LocalSlaves:
    """The slaves that a master has started on its own machine."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def launch(
        self,
        label: str,
        address: str,
        count: int,
        workers: int = 1,
        memory: int | None = None,
    ) -> list[int]:
        """Start `count` slaves; gives their process ids. Options as for `slave_command`.

        They get a session of their own: a terminal's ^C reaches the master only, which ends them
        in order.
        """
        started = [
            subprocess.Popen(
                slave_command(label, address, workers, memory),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            for _ in range(count)
        ]
        self._processes += started
        return [process.pid for process in started]

    def reap(self) -> None:
        """Take note of those that have ended, and say so if it was not in order."""
        for process in list(self._processes):
            if process.poll() is not None:
                self._processes.remove(process)
                if process.returncode != 0:
                    log.warning(
                        "slave PID %d ended with status %d",
                        process.pid,
                        process.returncode,
                        extra={"action": "slave_ended"},
                    )

    def end(self, timeout_s: float) -> None:
        """Wait for all to end, ask those that are late with SIGTERM, kill at last. Blocks."""
        deadline = time.monotonic() + timeout_s
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                if number is not None and process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, number)
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
            deadline = time.monotonic() + 2.0
        self._processes.clear()

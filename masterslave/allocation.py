"""Workers for as long as a ``with`` block lasts, and the host of a task manager in a batch job."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from masterslave import naming, slavecode
from masterslave.errors import AuthenticationError, ConnectionFailed, StartError
from masterslave.keyfile import load_key
from masterslave.runfolder import RunFolder, last_lines
from masterslave.settings import Settings, check_label, home_directory, split_address
from masterslave.starting import Started, choose, start
from masterslave.stopping import Overview, log_of, overview, stop, views

if TYPE_CHECKING:
    from masterslave.executor import ClusterExecutor

#: Between two looks for a task manager. Smaller: a burden for name server and batch system.
_LOOK_S = 0.5


class Allocation:
    """What `allocate` gives: a task manager in this process and its workers."""

    def __init__(self, started: Started, address: str) -> None:
        self.started = started
        self.label = started.label
        self.address = address  # ``host:port`` of the task manager
        self.host = split_address(address)[0]

    def executor(self, **options: Any) -> ClusterExecutor:
        """A `ClusterExecutor` on these workers; `options` are its own. Shut it down, or use it as a
        context manager.
        """
        from masterslave.executor import ClusterExecutor

        return ClusterExecutor(self.label, self.address, **options)

    def status(self) -> Overview:
        """Jobs and slaves side by side, as ``task_manager status`` shows them."""
        return overview(self.label)


@contextmanager
def allocate(
    n: int, on: str | None = None, *, label: str | None = None, **options: Any
) -> Iterator[Allocation]:
    """A task manager in this process and `n` workers, started on entry and ended on exit.

    `on`: "local", "ssh", "slurm", "sge", "pbs" or "htcondor"; None takes the batch system that
    answers, else this machine. `label`: default is a new one. `options`: those of `start`.
    Does not wait for the workers: what is submitted waits for the first of them. When this program
    dies, its slaves end a minute later. Blocks on entry until all is submitted, on exit until
    nothing is left. Raises as `start` and `stop`.
    """
    from masterslave.service import Service  # takes time to load

    label = label or f"allocation-{os.getpid()}-{secrets.token_hex(4)}"
    check_label(label)
    chosen = choose(on, options.get("launcher_settings"))
    settings = Settings.from_environment()
    if chosen.name != "local" and "MASTERSLAVE_HOST" not in os.environ:
        settings = replace(settings, host="0.0.0.0")
    code = {**slavecode.functions_record(), "shared_main": False}
    service = Service(label, settings, data={slavecode.DATA_NAME: code})
    try:
        if chosen.name == "local":
            options.setdefault("master", service.address)
        started = start(label, n, chosen.name, **options)
        assert isinstance(started, Started)
        try:
            yield Allocation(started, service.address)
        finally:
            stop(label)
    finally:
        service.end_job(0.0)
        service.stop()


def masterHost(label: str, timeout: float = 600.0) -> str:
    """``host:port`` of a task manager, such as one that runs inside a batch job.

    Waits until it answers, for `timeout` seconds at most. Raises `ConnectionFailed` then, and
    `StartError` as soon as its job has ended instead, with the last lines of its log.
    """
    check_label(label)
    settings = Settings.from_environment()
    key = load_key(settings.key_file)
    deadline = time.monotonic() + timeout
    while True:
        try:
            link = naming.connect(label, None, settings, key)
            try:
                link.call("numberOfActiveProcesses")
                return link.address
            finally:
                link.close()
        except AuthenticationError:
            raise
        except ConnectionFailed as error:
            _check_job(label)
            if time.monotonic() >= deadline:
                raise ConnectionFailed(f"no task manager in {timeout:g} s: {error}") from error
        time.sleep(_LOOK_S)


def _check_job(label: str) -> None:
    """Raise `StartError` when the task manager's job is known to have ended."""
    folder = RunFolder.of(label, home_directory())
    if not folder.exists():
        return
    plan = folder.plan()
    own = [one for one in folder.submissions() if one.role == "manager" and one.ids]
    for submission, view in zip(own, views(plan, own), strict=False):
        if view.over:
            words = last_lines(log_of(folder, plan, submission, view.id))
            raise StartError(
                f"the task manager of {label!r} (job {view.id} on {submission.on}) has ended: "
                f"{words or 'its log is empty'}"
            )

"""The slave's public face: `SlaveProcess` to subclass, `startSlaveProcess` for scripts.

A program that starts a slave becomes its supervisor. The workers it starts run the same program
again, reach the same call, and stay in it to run tasks. Where there is no script to run again (an
interactive session), the slave object itself is sent to the workers by value.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from masterslave import slavecode, worker
from masterslave.errors import (
    SettingsError,
    SlaveError,
)
from masterslave.settings import check_label, checked_path, split_address

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

DEFAULT_WATCHDOG_PERIOD = 120.0


class SlaveProcess:
    """A slave. Subclass it and add a method ``do_<tag>`` for each kind of task.

    One object is made in each worker process, so what `__init__` or a task puts into `self` stays
    for the following tasks of that worker. `print`, subprocesses and threads may be used freely.
    """

    def __init__(
        self,
        label: str,
        master_host: str | None = None,
        watchdog_period: float | None = DEFAULT_WATCHDOG_PERIOD,
        *,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """`label`: of the task manager to work for.

        `master_host`: ``host`` or ``host:port`` of the master, port 7766 by default; None asks the
        Pyro name server. `watchdog_period`: seconds between the slave's signs of life, of which
        four may be missing; None promises none, and a slave that is cut off without its connection
        closing cannot be recognised as dead. `folder`: shared with the master, used when the
        network does not lead to it; None: the one that the master names once it is reached.
        """
        check_label(label)
        check_watchdog_period(watchdog_period)
        if master_host is not None:
            if not isinstance(master_host, str):
                raise SettingsError(f"master_host={master_host!r}: must be 'HOST' or 'HOST:PORT'")
            split_address(master_host)
        self.label = label
        self.master_host = master_host
        self.watchdog_period = watchdog_period
        self.folder = folder_path(folder)

    def terminationTest(self) -> bool:
        """Override: true ends the slave after its current task. Called after each task."""
        return False

    def start(self, namespace: Mapping[str, Any] | None = None) -> None:
        """Work for the master until it has ended. Blocks.

        `namespace`: take the functions named ``do_<tag>`` in it as handlers instead of this
        object's methods. Raises `ConnectionFailed` when the master cannot be found and `SlaveError`
        when the slave's code does not load. In a worker process this call does not return.
        """
        if worker.active() is not None:
            self._work(namespace)
        record = slavecode.running_script()
        if record is None:
            handlers = None if namespace is None else worker.handlers_in(namespace)
            record = slavecode.object_record((self, handlers))
        from masterslave.slaverun import run_slave  # workers import this module and need none of it

        run_slave(self.label, self.master_host, record=record, folder=self.folder)

    def _work(self, namespace: Mapping[str, Any] | None) -> None:
        """Become the loop of this worker process; does not return."""
        if namespace is None:
            handlers = worker.handlers_of(self)
            where = f"class {type(self).__name__}"
        else:
            handlers = worker.handlers_in(namespace)
            where = "the slave's script"
        if not handlers:
            raise SlaveError(f"{where} handles no tasks: define do_<tag> in it")
        worker.serve(handlers, self.watchdog_period, self.terminationTest)


def check_watchdog_period(period_s: float | None) -> None:
    """Raise `SettingsError` unless it is None or a positive number of seconds."""
    good = period_s is None or (
        isinstance(period_s, (int, float)) and not isinstance(period_s, bool) and period_s > 0
    )
    if not good:
        raise SettingsError(
            f"watchdog_period={period_s!r}: must be a positive number of seconds or None"
        )


def folder_path(folder: Any) -> str | None:
    """A slave's argument of that name, as a path. Raises `SettingsError`."""
    if folder is None:
        return None
    return os.path.abspath(checked_path("folder", folder))


def startSlaveProcess(
    label: str | None = None,
    master_host: str | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
) -> None:
    """Work for a master with the functions named ``do_<tag>`` of the calling script. Blocks.

    The last line of a slave script. `label` may be left out when the script was started by
    ``task_manager slave LABEL``. `master_host`, `folder`: as for `SlaveProcess`. Raises as
    `SlaveProcess.start` does, and `SlaveError` when the label is missing.
    """
    active = worker.active()
    if label is None:
        if active is None:
            raise SlaveError(
                "startSlaveProcess needs a label unless started by: task_manager slave LABEL"
            )
        label = active.label
    namespace = None if active is None else active.namespace
    if namespace is None:
        namespace = vars(sys.modules["__main__"])
    SlaveProcess(label, master_host, folder=folder).start(namespace)


def start_loaded(loaded: Any) -> None:
    """Start what a worker has loaded that is not a script; see `slavecode.load`."""
    active = worker.active()
    assert active is not None
    if loaded is None:
        worker.serve({}, DEFAULT_WATCHDOG_PERIOD, lambda: False)
    elif isinstance(loaded, Mapping):  # a module's namespace
        SlaveProcess(active.label).start(loaded)
    elif isinstance(loaded[0], SlaveProcess):
        process, handlers = loaded
        process.start(None if handlers is None else {f"do_{tag}": f for tag, f in handlers.items()})
    else:
        slave_class, watchdog_period = loaded[:2]
        slave_class(active.label, watchdog_period=watchdog_period).start()

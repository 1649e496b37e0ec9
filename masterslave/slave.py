"""The slave's public face: `SlaveProcess` to subclass, `startSlaveProcess` for scripts.

A program that starts a slave becomes its supervisor. The workers it starts run the same program
again, reach the same call, and stay in it to run tasks. Where there is no script to run again (an
interactive session), the slave object itself is sent to the workers by value.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from masterslave import slavecode, worker
from masterslave.errors import (
    AuthenticationError,
    ConnectionFailed,
    SettingsError,
    SlaveError,
)
from masterslave.keyfile import load_key
from masterslave.memory import check_supported
from masterslave.settings import Settings, check_label, split_address
from masterslave.transports.base import Link

if TYPE_CHECKING:
    from masterslave.runfolder import SlaveNote

log = logging.getLogger(__name__)

DEFAULT_WATCHDOG_PERIOD = 120.0

_WAIT_STEP_S = 0.25  # between two looks for a master that is to come into a folder

#: Longest time that a slave of a batch job waits for its manager, in seconds. Larger: nodes are
#: held for nothing when it never comes. Smaller: its own job may wait in the queue for longer.
_MANAGER_MAY_TAKE_S = 3600.0


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
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise SettingsError(f"folder={folder!r}: must be a directory's path")
    return os.path.abspath(os.fsdecode(folder))


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


def run_slave(
    label: str | None,
    master_host: str | None,
    *,
    workers: int = 1,
    record: slavecode.Record | None = None,
    settings: Settings | None = None,
    wait: bool = False,
    memory: int | None = None,
    lifetime_s: float | None = None,
    follow: bool = False,
    folder: str | None = None,
    idle_s: float | None = None,
    note: SlaveNote | None = None,
) -> None:
    """Be a slave of `workers` worker processes until the master has ended. Blocks.

    `record`: the slave's code, None takes what the master keeps. `wait`: wait for the master to
    come. `memory`: bytes of private memory that each worker may have, None for no limit.
    `lifetime_s`: seconds in which the slave must have left, None for what the batch system allows.
    `follow`: ask the name server where the master is when it does not answer at `master_host`.
    `idle_s`: seconds without a task after which it ends. `note`: where it says how it fares; such a
    slave does not wait for its manager without end. `folder`: the directory shared with the master:
    with a label it is used when the network does not lead to the master, without one there is no
    network.
    Raises as `SlaveProcess.start`, and `SettingsError` where the system cannot limit memory.
    """
    began = time.monotonic()
    # Workers import this module too, and need neither: they take time to load.
    from masterslave import naming
    from masterslave.supervisor import Supervisor

    check_supported(memory)
    chosen = settings or Settings.from_environment()
    if lifetime_s is None:
        lifetime_s = chosen.lifetime_s
    key = load_key(chosen.key_file)
    if label is None:
        _work_in_folder(
            folder, key, wait, workers, chosen, record,
            idle_s, memory=memory, lifetime_s=lifetime_s,
        )  # fmt: skip
        return
    known = label

    def look(error: ConnectionFailed | None = None) -> None:
        """Tell where the manager is looked for, and why it was not found; end a vain wait."""
        if note is None:
            return
        if not note.note.tries:
            with contextlib.suppress(ConnectionFailed):
                note.tries(naming.locate(known, master_host, chosen))
        if error is None:
            return
        note.failed_for_now(str(error))
        if note.is_unwanted():
            raise SlaveError(f"{known} was stopped while this slave waited for its manager")
        if time.monotonic() - began > _MANAGER_MAY_TAKE_S:
            raise SlaveError(f"no manager in {_MANAGER_MAY_TAKE_S:g} s: {error}") from error

    def connect() -> Link:
        if follow and master_host is not None:
            link = naming.connect_or_follow(known, master_host, chosen, key)
        else:
            link = naming.connect(known, master_host, chosen, key)
        if chosen.shared_memory:
            link.share_memory()
        return link

    way = _with_failover(connect, folder, key, known)

    def work() -> None:
        look()
        if wait:
            naming.wait_and_connect(known, master_host, chosen, key, look).close()
        again = True
        while again:
            left_s = None if lifetime_s is None else lifetime_s - (time.monotonic() - began)
            supervisor = Supervisor(
                known, way, workers, chosen, record, memory=memory, lifetime_s=left_s,
                idle_s=idle_s, registered=note.registered if note is not None else lambda: None,
            )  # fmt: skip
            again = supervisor.run()

    if note is None:
        work()
        return
    try:
        work()
    except Exception as error:
        note.ended(str(error) or type(error).__name__)
        raise
    note.ended("")


def _with_failover(
    connect: Callable[[], Link], folder: str | None, key: bytes, label: str
) -> Callable[[], Link]:
    """By the network, or where that does not lead to the master, by the folder.

    None: by the one that the master names when it is first reached, if it names one.
    """
    asked = folder is not None
    met: Callable[[], Link] | None = None

    def either() -> Link:
        nonlocal folder, asked, met
        try:
            link = connect()
            if not asked:
                with contextlib.suppress(KeyError):  # most masters have none
                    folder = str(link.call("retrieveData", slavecode.FAILOVER_NAME))
                asked = True
            return link
        except AuthenticationError:
            raise
        except ConnectionFailed as error:
            if folder is None:
                raise
            from masterslave.folder.links import FolderConnector  # few slaves need it

            met = met or FolderConnector(folder, key, label)
            try:
                link = met()
            except ConnectionFailed as other:
                raise ConnectionFailed(f"{error}; {other}") from error
            log.warning("no way by the network (%s): using folder %s", error, folder)
            return link

    return either


def _work_in_folder(
    folder: str | None,
    key: bytes,
    wait: bool,
    workers: int,
    settings: Settings,
    record: slavecode.Record | None,
    idle_s: float | None,
    *,
    lifetime_s: float | None,
    **options: Any,
) -> None:
    """Be a slave of whichever master is at work in a folder. Blocks; raises as `run_slave`."""
    from masterslave.folder.links import FolderConnector
    from masterslave.supervisor import Supervisor

    if folder is None:
        raise SettingsError("a slave needs the label of its master, or its folder")
    began = time.monotonic()
    met = FolderConnector(folder, key)
    while met.label is None:
        try:
            met().close()
        except ConnectionFailed:
            if not wait:
                raise
            if idle_s is not None and time.monotonic() - began > idle_s:
                log.warning("no master in %s s in folder %s: leaving", f"{idle_s:g}", folder)
                return
            time.sleep(_WAIT_STEP_S)
    again = True
    while again:
        left_s = None if lifetime_s is None else lifetime_s - (time.monotonic() - began)
        supervisor = Supervisor(
            met.label,
            met,
            workers,
            settings,
            record,
            lifetime_s=left_s,
            idle_s=idle_s,
            **options,
        )
        again = supervisor.run()

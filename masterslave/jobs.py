"""`runJob` and `initializeMasterProcess`: a whole program in one call."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from masterslave import slavecode, worker
from masterslave.errors import SettingsError
from masterslave.master import MasterProcess
from masterslave.slave import DEFAULT_WATCHDOG_PERIOD, SlaveProcess, check_watchdog_period
from masterslave.ways import Circumstances, circumstances, folder_way

if TYPE_CHECKING:
    from concurrent.futures import Executor


def runJob(
    label: str,
    master_class: type[MasterProcess],
    slave_class: type[SlaveProcess],
    watchdog_period: float | None = DEFAULT_WATCHDOG_PERIOD,
    launch_slaves: int = 0,
    *,
    journal: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    failover_folder: str | os.PathLike[str] | None = None,
    straggler_fraction: float = 0.05,
    attach: bool = False,
    master_host: str | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
) -> None:
    """Run a master, and the slaves that work for it, from one script. Blocks until `run` ends.

    Creates ``master_class(label)``, keeps a copy of the running script and the working directory
    in its task manager so that ``task_manager slave LABEL`` can start slaves anywhere, starts
    `launch_slaves` slaves on this machine, and runs the master to its end. When the same script
    runs as a slave, the same call starts ``slave_class(label, watchdog_period=...)`` instead and
    does not return; a call for another label is passed over there.

    `watchdog_period`: seconds between the slaves' signs of life, see `SlaveProcess`. `journal`: a
    file from which this job goes on when its master was killed and is started again, see
    `MasterProcess`; a master class with a constructor of its own must take this keyword then.
    `folder`: a directory in which master and slaves meet, without a network; slaves are started
    with ``task_manager slave --folder DIR``. `failover_folder`, `straggler_fraction`: see
    `MasterProcess`. `attach`: join the task manager that ``task_manager serve LABEL`` runs at
    `master_host`, or wherever the label leads; its slaves load this script.
    `executor`: a `concurrent.futures.Executor`, or a function without arguments that makes one;
    its workers run the handlers, there are no slaves, and nothing listens.
    Raises what the master's `run` raises, `LabelInUse` when a living master has the label,
    `SettingsError` for an argument that cannot be used, `JournalError` for such a file.
    """
    _check_class("master_class", master_class, MasterProcess)
    _check_class("slave_class", slave_class, SlaveProcess)
    check_watchdog_period(watchdog_period)
    if isinstance(launch_slaves, bool) or not isinstance(launch_slaves, int) or launch_slaves < 0:
        raise SettingsError(f"launch_slaves={launch_slaves!r}: must be an integer of at least 0")
    active = worker.active()
    if active is not None:
        if active.label == label:
            slave_class(label, watchdog_period=watchdog_period).start()
        return
    way = folder_way(folder, failover_folder, straggler_fraction)
    if executor is not None:
        if launch_slaves:
            raise SettingsError("give executor= or launch_slaves=: the executor has the workers")
        if slave_class.__module__ in ("__mp_main__", "__worker__"):
            return  # a worker of the executor loads the script; the job is the master's
        code = {**slavecode.guest_record(slave_class, watchdog_period), "shared_main": False}
        slave = (slave_class, watchdog_period)
        of_next = Circumstances(code, way, executor, slave, attach=attach, master_host=master_host)
        with circumstances(of_next):
            master = (
                master_class(label) if journal is None else master_class(label, journal=journal)
            )
        master.start()
        return
    record = slavecode.running_script()
    # A class of an interactive console inside a program is in no module, and in no script.
    shared_main = record is not None and slave_class.__module__ in sys.modules
    if record is None or not shared_main:
        record = slavecode.object_record((slave_class, watchdog_period))
    code = {**record, "shared_main": shared_main}
    with circumstances(Circumstances(code, way, attach=attach, master_host=master_host)):
        master = master_class(label) if journal is None else master_class(label, journal=journal)
    try:
        if launch_slaves:
            master.launchSlaveJobs(launch_slaves)
    except BaseException:
        master.shutdown()
        raise
    master.start()


def initializeMasterProcess(
    label: str,
    slave_script: str | os.PathLike[str] | None = None,
    slave_module: str | None = None,
    use_name_server: bool = True,
    *,
    journal: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    failover_folder: str | os.PathLike[str] | None = None,
    straggler_fraction: float = 0.05,
    attach: bool = False,
    master_host: str | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
) -> MasterProcess:
    """Make this program a master; for programs whose master and slave are separate.

    Gives a `MasterProcess` whose `requestTask` and `retrieveResult` may be called from anywhere;
    it is shut down at interpreter exit. `slave_script`: file of a script that ends with
    `startSlaveProcess()`; `slave_module`: name of a module that defines ``do_<tag>`` functions.
    With either, ``task_manager slave LABEL`` and `launchSlaveJobs` start slaves. `journal`: a file
    from which a master that was killed goes on, see `MasterProcess`, and there also for `folder`,
    `failover_folder` and `straggler_fraction`. `attach`, `master_host`: join a task manager that is
    served, see `MasterProcess`. `executor`: what runs the handlers instead of slaves, see `runJob`.
    Raises as `MasterProcess`, and `SlaveError` when the script cannot be read.
    """
    if slave_script is not None and slave_module is not None:
        raise SettingsError("give slave_script= or slave_module=, not both")
    if slave_module is not None and not isinstance(slave_module, str):
        raise SettingsError(f"slave_module={slave_module!r}: must be a module's name")
    record = None
    if slave_script is not None:
        record = slavecode.script_record(slave_script)
    elif slave_module is not None:
        record = slavecode.module_record(slave_module)
    code = None if record is None else {**record, "shared_main": False}
    way = folder_way(folder, failover_folder, straggler_fraction)
    of_next = Circumstances(
        code, folder=way, attach=attach, master_host=master_host, executor=executor
    )
    with circumstances(of_next):
        master = MasterProcess(label, use_name_server, journal=journal)
    atexit.register(master.shutdown)
    return master


def _check_class(name: str, value: Any, base: type) -> None:
    if not (isinstance(value, type) and issubclass(value, base)):
        raise SettingsError(f"{name}={value!r}: must be a subclass of {base.__name__}")

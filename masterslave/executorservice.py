"""A task manager whose tasks are run by an executor of somebody else's: no server, no slaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from masterslave import slavecode
from masterslave.chaos import Chaos
from masterslave.engines import Engine
from masterslave.errors import SettingsError
from masterslave.hooks import Observer
from masterslave.keyfile import load_key
from masterslave.manager import TaskManager
from masterslave.pump import Pump
from masterslave.service import Service, open_journal
from masterslave.settings import Settings
from masterslave.watchdog import Watchdog


class ExecutorManager(TaskManager):
    """One whose only slave, the pump, repeats late tasks by itself: there is no other for that."""

    pump: Pump

    def repeatStragglers(self, tag: str, factor: float | None) -> None:
        """See `TaskManager.repeatStragglers`."""
        self.pump.repeat(tag, factor)


class ExecutorService(Service):
    """A task manager whose handlers run on an executor: no server, no label, no slaves."""

    def __init__(
        self,
        label: str,
        settings: Settings,
        executor: Executor | Callable[[], Executor],
        code: slavecode.Record | None,
        slave: tuple[type, float | None] | None,
        *,
        observers: Sequence[Observer] = (),
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the journal, load the code in the executor, watch. Raises as `Service`."""
        if code is None:
            raise SettingsError(
                "executor=: no slave code is known; use runJob, or give slave_script= or "
                "slave_module= to initializeMasterProcess"
            )
        if settings.chaos is not None and settings.chaos != Chaos():
            raise SettingsError(
                "MASTERSLAVE_CHAOS does nothing with executor=, whose workers are no slaves: unset "
                "it, or try the program with launch_slaves="
            )
        engine = Engine(executor)
        self._journal = None
        if journal is not None:
            self._journal = open_journal(journal, load_key(settings.key_file), label)
        self.manager = manager = ExecutorManager(label, settings, observers, journal=self._journal)
        self.manager.storeData(**{slavecode.DATA_NAME: code})
        self._pump = Pump(self.manager, engine, label, code, slave, settings)
        manager.pump = self._pump
        self._watchdog = Watchdog(self.manager, settings.stall_s)
        self._watchdog.start()
        self._pump.start()

    @property
    def address(self) -> str:
        """There is none. Raises `SettingsError`."""
        raise SettingsError(
            "a master with executor= has no slaves, and no address for them; what slaves are told "
            "of memory, lifetime or chaos is to be told to the executor's own workers"
        )

    @property
    def is_named(self) -> bool:
        """Nobody looks for it."""
        return False

    def end_job(self, wait_s: float) -> None:
        """Take no more results; what still runs in the executor is not waited for."""
        self.manager.terminate()
        self._watchdog.stop()
        self._pump.stop()

    def stop(self) -> None:
        """Close the journal."""
        self._watchdog.stop()
        self._close_journal()

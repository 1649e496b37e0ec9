"""The way between a master and those who carry out its tasks: which one, and opening it.

::

    the network (Service), a shared folder (FolderService), an executor (ExecutorService),
    or a task manager that is served elsewhere (Attachment)

Told by `MasterProcess`'s arguments, or by who makes the master for somebody (`circumstances`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from masterslave import slavecode
from masterslave.clients import MAX_WEIGHT, MIN_WEIGHT
from masterslave.errors import SettingsError
from masterslave.settings import Settings, checked_path, split_address

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from masterslave.attachment import Attachment
    from masterslave.hooks import Observer
    from masterslave.service import Service


#: See `MasterProcess`.
STRAGGLER_FRACTION = 0.05


class FolderWay(NamedTuple):
    """A shared folder as the way between master and slaves."""

    path: str
    network: bool = False  # whether the task manager listens as well
    straggler_fraction: float = (
        STRAGGLER_FRACTION  # when so few tasks are left, slow ones are run twice; 0: none
    )


class Circumstances(NamedTuple):
    """What `runJob` and its kin know of the next master that its class's constructor need not."""

    code: slavecode.Record | None = None  # what slaves load; "shared_main": it is this very script
    folder: FolderWay | None = None  # where master and slaves meet, instead of a network or beside
    executor: Executor | Callable[[], Executor] | None = None  # runs the handlers, no slaves
    slave: tuple[type, float | None] | None = None  # the class itself, and its watchdog period
    attach: bool = False  # whether a task manager that is served elsewhere is joined
    master_host: str | None = None  # where that is

    def also(
        self,
        folder: FolderWay | None,
        executor: Executor | Callable[[], Executor] | None,
        attach: bool,
        master_host: str | None,
    ) -> Circumstances:
        """These, and what the constructor was told itself, which is the stronger."""
        return self._replace(
            folder=folder or self.folder,
            executor=self.executor if executor is None else executor,
            attach=attach or self.attach,
            master_host=master_host or self.master_host,
        )


_USUAL = Circumstances()
_circumstances: ContextVar[Circumstances] = ContextVar("circumstances", default=_USUAL)


@contextlib.contextmanager
def circumstances(of_next: Circumstances) -> Iterator[None]:
    """Within it, the next master is made under these circumstances.

    A master can be reached from its constructor on, which may be a subclass's and take long: what
    slaves ask for must be there before.
    """
    token = _circumstances.set(of_next)
    try:
        yield
    finally:
        _circumstances.reset(token)


def taken() -> Circumstances:
    """Those of the master that is being made; the next one's are the usual ones."""
    given = _circumstances.get()
    _circumstances.set(_USUAL)
    return given


def folder_way(
    folder: str | PathLike[str] | None,
    failover_folder: str | PathLike[str] | None,
    straggler_fraction: float,
) -> FolderWay | None:
    """What these arguments say of a shared folder; None: nothing. Raises `SettingsError`."""
    if folder is not None and failover_folder is not None:
        raise SettingsError(
            "give folder= (no network) or failover_folder= (beside the network), not both"
        )
    fraction = straggler_fraction
    if (
        isinstance(fraction, bool)
        or not isinstance(fraction, (int, float))
        or not 0 <= fraction <= 1
    ):
        raise SettingsError(f"straggler_fraction={fraction!r}: must be a number from 0 to 1")
    name, path = ("failover_folder", failover_folder) if folder is None else ("folder", folder)
    if path is None and fraction != STRAGGLER_FRACTION:
        raise SettingsError(
            f"straggler_fraction={fraction!r}: is for folder= and failover_folder=; elsewhere, "
            "repeatStragglers(tag) has late tasks run twice"
        )
    return None if path is None else FolderWay(checked_path(name, path), folder is None, fraction)


def open_service(
    label: str,
    settings: Settings,
    given: Circumstances,
    *,
    use_name_server: bool,
    observers: Sequence[Observer],
    journal: str | PathLike[str] | None,
    weight: float,
) -> Service | Attachment:
    """What the circumstances ask for, and open for slaves or joined when this returns.

    Raises `SettingsError` for what does not go together, and what the one that is chosen raises.
    """
    if journal is not None:
        journal = checked_path("journal", journal)
    joins = given.attach or given.master_host is not None
    if given.folder is not None and (given.executor is not None or joins):
        raise SettingsError("give a folder, executor= or attach=, not two of them")
    if not joins and weight != 1:
        raise SettingsError(
            f"weight={weight!r}: is for clients of a served task manager; give attach=True as well"
        )
    if given.executor is not None:
        if joins:
            raise SettingsError("give executor= or attach=, not both: nobody is joined there")
        from masterslave.executorservice import ExecutorService  # few masters need it

        return ExecutorService(
            label, settings, given.executor, given.code, given.slave,
            observers=observers, journal=journal,
        )  # fmt: skip
    if joins:
        return _join(label, settings, given, journal, weight)
    options: dict[str, Any] = {
        "use_name_server": use_name_server,
        "observers": observers,
        "journal": journal,
        "data": None if given.code is None else {slavecode.DATA_NAME: given.code},
    }
    if given.folder is not None:
        from masterslave.folderservice import FolderService  # few masters need it

        return FolderService(label, settings, **given.folder._asdict(), **options)
    from masterslave.service import Service  # slaves import this module and need none

    return Service(label, settings, **options)


def _join(
    label: str,
    settings: Settings,
    given: Circumstances,
    journal: str | None,
    weight: float,
) -> Attachment:
    """A task manager that is there already."""
    master_host = given.master_host
    if not given.attach:
        raise SettingsError(
            f"master_host={master_host!r}: says where a task manager is to be joined; "
            "give attach=True as well"
        )
    if master_host is not None:
        if not isinstance(master_host, str):
            raise SettingsError(f"master_host={master_host!r}: must be 'HOST' or 'HOST:PORT'")
        split_address(master_host)
    if journal is not None:
        raise SettingsError(
            f"journal={journal!r}: is kept by the task manager that is joined: "
            "task_manager serve LABEL --journal FILE"
        )
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not (MIN_WEIGHT <= weight <= MAX_WEIGHT)
    ):
        raise SettingsError(
            f"weight={weight!r}: must be a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}"
        )
    from masterslave.attachment import Attachment  # few masters need it

    return Attachment(label, settings, master_host, given.code, weight)

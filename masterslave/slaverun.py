"""Being a slave: find the master, supervise workers for it, find it again, until the end.

::

    label            network (name server, connection file, HOST:PORT), or the failover folder
    folder alone     whichever master is at work in it
       |
       v
    Supervisor, again and again: one run of it lasts until its master has gone
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from masterslave import naming, slavecode
from masterslave.errors import AuthenticationError, ConnectionFailed, SettingsError, SlaveError
from masterslave.keyfile import load_key
from masterslave.memory import check_supported
from masterslave.settings import Settings
from masterslave.supervisor import Supervisor
from masterslave.transports.base import Link

if TYPE_CHECKING:
    from masterslave.folder.links import FolderConnector
    from masterslave.runfolder import SlaveNote

log = logging.getLogger(__name__)

_WAIT_STEP_S = 0.25  # between two looks for a master that is to come into a folder

#: Longest time that a slave of a batch job waits for its manager, in seconds. Larger: nodes are
#: held for nothing when it never comes. Smaller: its own job may wait in the queue for longer.
_MANAGER_MAY_TAKE_S = 3600.0


class _Terms(NamedTuple):
    """Under which a slave works, whichever master it is for."""

    settings: Settings
    workers: int
    record: slavecode.Record | None
    memory: int | None
    lifetime_s: float | None  # from `began` on
    idle_s: float | None
    began: float


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
    check_supported(memory)
    chosen = settings or Settings.from_environment()
    if lifetime_s is None:
        lifetime_s = chosen.lifetime_s
    key = load_key(chosen.key_file)
    terms = _Terms(chosen, workers, record, memory, lifetime_s, idle_s, began)
    if label is None:
        if folder is None:
            raise SettingsError("a slave needs the label of its master, or its folder")
        found = _find_in_folder(folder, key, terms, wait)
        if found is not None:
            _supervise(*found, terms)
        return
    search = _Search(label, master_host, terms, note)
    way = _with_failover(_by_network(label, master_host, chosen, key, follow), folder, key, label)
    with search.reported():
        search.look()
        if wait:
            naming.wait_and_connect(label, master_host, chosen, key, search.look).close()
        _supervise(label, way, terms, search.succeeded)


def _supervise(
    label: str,
    way: Callable[[], Link],
    terms: _Terms,
    registered: Callable[[], None] = lambda: None,
) -> None:
    """Work for one master after the other, until the slave is to end."""
    again = True
    while again:
        left_s = terms.lifetime_s
        if left_s is not None:
            left_s -= time.monotonic() - terms.began
        supervisor = Supervisor(
            label, way, terms.workers, terms.settings, terms.record, memory=terms.memory,
            lifetime_s=left_s, idle_s=terms.idle_s, registered=registered,
        )  # fmt: skip
        again = supervisor.run()


class _Search:
    """Says in a slave's note where its manager is looked for, and ends a vain wait."""

    def __init__(
        self, label: str, master_host: str | None, terms: _Terms, note: SlaveNote | None
    ) -> None:
        self._label, self._master_host, self._terms = label, master_host, terms
        self._note = note

    def look(self, error: ConnectionFailed | None = None) -> None:
        """Tell where the manager is looked for, and why it was not found this time.

        Raises `SlaveError` when nobody is to look any longer.
        """
        note = self._note
        if note is None:
            return
        if not note.note.tries:
            with contextlib.suppress(ConnectionFailed):
                settings = self._terms.settings
                note.tries(naming.locate(self._label, self._master_host, settings))
        if error is None:
            return
        note.failed_for_now(str(error))
        if note.is_unwanted():
            raise SlaveError(f"{self._label} was stopped while this slave waited for its manager")
        if time.monotonic() - self._terms.began > _MANAGER_MAY_TAKE_S:
            raise SlaveError(f"no manager in {_MANAGER_MAY_TAKE_S:g} s: {error}") from error

    def succeeded(self) -> None:
        """The manager has accepted the slave."""
        if self._note is not None:
            self._note.registered()

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Within it, the slave lives; how it ends is told."""
        try:
            yield
        except Exception as error:
            if self._note is not None:
                self._note.ended(str(error) or type(error).__name__)
            raise
        if self._note is not None:
            self._note.ended("")


def _by_network(
    label: str, master_host: str | None, settings: Settings, key: bytes, follow: bool
) -> Callable[[], Link]:
    def connect() -> Link:
        if follow and master_host is not None:
            link = naming.connect_or_follow(label, master_host, settings, key)
        else:
            link = naming.connect(label, master_host, settings, key)
        if settings.shared_memory:
            link.share_memory()
        return link

    return connect


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


def _find_in_folder(
    folder: str, key: bytes, terms: _Terms, wait: bool
) -> tuple[str, FolderConnector] | None:
    """The label of the master that is at work there, and the way to it; None: nobody came."""
    from masterslave.folder.links import FolderConnector, JobOver  # few slaves need them
    from masterslave.folder.place import no_parent

    mistyped = no_parent(folder)
    if mistyped:  # no master will ever come there
        raise SettingsError(mistyped)
    met = FolderConnector(folder, key)
    while met.label is None:
        try:
            met().close()
        except ConnectionFailed as error:
            if not wait:
                raise
            if isinstance(error, JobOver):  # nobody is to wait for a job that has ended
                log.warning("%s: leaving", error)
                return None
            if terms.idle_s is not None and time.monotonic() - terms.began > terms.idle_s:
                log.warning("no master in %s s in folder %s: leaving", f"{terms.idle_s:g}", folder)
                return None
            time.sleep(_WAIT_STEP_S)
    return met.label, met

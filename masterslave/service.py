"""A task manager and all that keeps it within reach: journal, server, label, watchdog.

Inside a master, or on its own (``task_manager serve``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from masterslave.errors import ConnectionFailed, JournalError
from masterslave.hooks import Observer
from masterslave.keyfile import load_key
from masterslave.listener import Listener
from masterslave.manager import TaskManager
from masterslave.payload import own_versions
from masterslave.records import ProcessInfo, getMachineInfo
from masterslave.settings import DEFAULT_PORT, Settings, join_address, split_address
from masterslave.shortcut import ManagerShortcut, as_names, can_have_shortcuts
from masterslave.watchdog import Watchdog

if TYPE_CHECKING:
    from masterslave.connectionfile import ConnectionFile
    from masterslave.journal import Journal
    from masterslave.naming import Registration
    from masterslave.transports.pyro import PyroServer

log = logging.getLogger(__name__)


#: Longest wait for clients to hear of the end. Larger: a client that hangs holds the end up.
#: Smaller: on a busy machine, clients look for a task manager that has ended.
_TELL_S = 5.0


class Service:
    """Serves a task manager from its creation until `stop`."""

    ends_slaves = True  # when the job ends, they are told to leave

    def __init__(
        self,
        label: str,
        settings: Settings,
        *,
        use_name_server: bool = True,
        observers: Sequence[Observer] = (),
        journal: str | os.PathLike[str] | None = None,
        data: Mapping[str, Any] | None = None,
        keep: bool = False,
    ) -> None:
        """Open the journal, listen, make the label known, watch.

        `use_name_server`: False listens on port 7766 instead. `data`: data items that are there
        before anybody can ask for them. `keep`: see `TaskManager`. With a journal the port of the
        run before is taken again where it is free, so that slaves that outlived it find this one.
        Raises `LabelInUse`, `SettingsError`, `ConnectionFailed`, `JournalError`.
        """
        self._label = label
        self._settings = settings
        self._keep = keep
        self._server: PyroServer | None = None
        self._registration: Registration | None = None
        self._file: ConnectionFile | None = None
        self._listener: Listener | None = None
        key = load_key(settings.key_file)
        with contextlib.ExitStack() as undo:
            self._journal: Journal | None = None
            if journal is not None:
                self._journal = self._open_journal(journal, key, label)
                undo.callback(self._journal.close)
            self.manager = self._make_manager(label, settings, observers)
            self.manager.storeData(**(data or {}))
            self._open(key, use_name_server, undo)
            undo.pop_all()
        self._watchdog = Watchdog(self.manager, settings.stall_s)
        self._watchdog.start()

    # --- what another kind of service does in another way -----------------------------------

    def _open_journal(self, path: str | os.PathLike[str], key: bytes, label: str) -> Journal:
        return open_journal(path, key, label)

    def _make_manager(
        self, label: str, settings: Settings, observers: Sequence[Observer]
    ) -> TaskManager:
        return TaskManager(label, settings, observers, journal=self._journal, keep=self._keep)

    def _open(self, key: bytes, use_name_server: bool, undo: contextlib.ExitStack) -> None:
        """Let slaves in; `undo` is told how to shut them out again."""
        # Only masters need these, but every worker imports the master: they take time to load.
        from masterslave.connectionfile import ConnectionFile
        from masterslave.naming import Registration

        if self._settings.shared_memory and can_have_shortcuts():
            self._listener = listener = Listener()
            undo.callback(listener.stop)
            keeps = self._journal is not None
            self.manager.allowShortcuts(
                lambda names, heard: ManagerShortcut(as_names(names), listener, heard, keeps=keeps)
            )
        self._server = self._listen(self._settings, key, use_name_server)
        self._server.start()
        undo.callback(self._server.stop)
        if use_name_server:
            registration = Registration(self._server, self._label, self._settings, key)
            registration.start()
            undo.callback(registration.stop)
            self._registration = registration
        if self._settings.connections is not None:
            file = ConnectionFile(self._settings.connections, self._label, self._server.addresses)
            file.write()
            self._file = file

    def _close(self) -> None:
        """Let nobody in any more. Blocks until all threads of it have ended."""
        if self._file is not None:
            self._file.remove()
        if self._registration is not None:
            self._registration.leave()
        if self._server is not None:
            self._server.stop()
        if self._registration is not None:
            self._registration.stop()
        self.manager.forbidShortcuts()
        if self._listener is not None:
            self._listener.stop()

    # --- the network ------------------------------------------------------------------------

    def _listen(self, settings: Settings, key: bytes, use_name_server: bool) -> PyroServer:
        from masterslave.transports.pyro import PyroServer

        port = settings.port
        if port is None:
            port = 0 if use_name_server else DEFAULT_PORT
        before = self._journal.note("port") if self._journal is not None else ""
        ports = [int(before), port] if before and not port else [port]
        while True:
            try:
                server = PyroServer(
                    self.manager, settings.host, ports.pop(0), key, settings.handshake_s,
                    share=settings.shared_memory,
                )  # fmt: skip
                break
            except ConnectionFailed as error:
                if not ports:
                    raise
                log.info("not on the port of the run before: %s", error)
        if self._journal is not None:
            try:
                self._journal.set_note("port", str(server.port))
            except JournalError:
                server.stop()
                raise
        return server

    @property
    def address(self) -> str:
        """``host:port`` at which a slave on this machine reaches the task manager.

        Empty when it cannot be reached over the network.
        """
        if self._server is None:
            return ""
        host = split_address(self._server.addresses[-1])[0]
        return join_address(host, self._server.port)

    @property
    def folder(self) -> str | None:
        """The shared folder in which slaves reach it, if they can do so."""
        return None

    @property
    def is_named(self) -> bool:
        """Whether the label is kept in the name server."""
        return self._registration is not None

    def enter(self) -> int:
        """Register the client that is in this very process; gives its process id."""
        info = ProcessInfo(
            getMachineInfo(), os.getpid(), platform.node(), 0, "", versions=own_versions()
        )
        process_id = int(self.manager.registerProcess(None, info)[0])
        self.manager.embedClient(process_id)
        return process_id

    def end_job(self, wait_s: float) -> None:
        """Tell all slaves to leave, and wait until they have, for `wait_s` seconds at most."""
        self.manager.terminate()
        self._watchdog.stop()
        if not self.manager.waitForSlavesToLeave(wait_s):
            log.warning("some slaves did not leave in time", extra={"action": "slaves_stayed"})
        self.manager.waitForClientsToKnow(min(wait_s, _TELL_S))

    def stop(self) -> None:
        """Free the label and the port, close the journal. Blocks until all threads have ended."""
        self._watchdog.stop()
        try:
            self._close()
        finally:  # whatever goes wrong there, what has ended is kept
            self._close_journal()

    def _close_journal(self) -> None:
        if self._journal is not None:
            try:
                self._journal.close()
            except JournalError as error:
                log.error("the last entries are not in the journal: %s", error)


def open_journal(
    path: str | os.PathLike[str], key: bytes, label: str, *, guarded: bool = False
) -> Journal:
    """The journal of that label at `path`. Raises `JournalError`; `guarded`: see `SqliteStore`."""
    from masterslave.journal import Journal
    from masterslave.stores.sqlite import SqliteStore

    store = SqliteStore(path, key, guarded=guarded)
    try:
        owner = store.note("label")
        if not owner:
            store.set_note("label", label)
        elif owner != label:
            raise JournalError(
                f"journal {store.path}: is that of label {owner!r}, not of {label!r}; "
                "name another file"
            )
    except BaseException:
        store.close()
        raise
    return Journal(store)

"""A task manager that slaves reach through a shared folder, with or without a network beside it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from masterslave.errors import FolderInUse, SettingsError
from masterslave.folder.clerk import Clerk
from masterslave.folder.passing import PassingManager
from masterslave.folder.place import SILENT_S, Place, Who, lives
from masterslave.folder.seal import Refused
from masterslave.hooks import Observer
from masterslave.keyfile import load_key
from masterslave.manager import TaskManager
from masterslave.service import Service, open_journal
from masterslave.settings import Settings
from masterslave.slavecode import FAILOVER_NAME

if TYPE_CHECKING:
    from masterslave.journal import Journal

log = logging.getLogger(__name__)


class FolderService(Service):
    """See `Service`; the journal is in the folder unless another one is named."""

    def __init__(
        self,
        label: str,
        settings: Settings,
        *,
        path: str | os.PathLike[str],
        network: bool,
        straggler_fraction: float,
        journal: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        """Raises `FolderInUse` while another master lives in it, and what `Service` raises."""
        self._network = network
        self._fraction = straggler_fraction
        self._place = Place(path, load_key(settings.key_file), make=True)
        self._own_journal = self._place.at("journal")
        if network:
            data = options.get("data") or {}
            options["data"] = {**data, FAILOVER_NAME: self._place.path}
        self._enter(label)
        try:
            super().__init__(label, settings, journal=journal or self._own_journal, **options)
        except BaseException:
            self._leave()
            raise

    @property
    def folder(self) -> str:
        """See `Service.folder`."""
        return self._place.path

    def end_job(self, wait_s: float) -> None:
        """See `Service.end_job`."""
        self._clerk.announce_end()
        super().end_job(wait_s)

    def _open_journal(self, path: str | os.PathLike[str], key: bytes, label: str) -> Journal:
        guarded = os.path.abspath(path) == self._own_journal
        return open_journal(path, key, label, guarded=guarded)

    def _make_manager(
        self, label: str, settings: Settings, observers: Sequence[Observer]
    ) -> TaskManager:
        return PassingManager(label, settings, observers, journal=self._journal)

    def _open(self, key: bytes, use_name_server: bool, undo: contextlib.ExitStack) -> None:
        assert isinstance(self.manager, PassingManager)
        self._clerk = Clerk(
            self._place,
            self.manager,
            alone=not self._network,
            straggler_fraction=self._fraction,
            gone_s=self._settings.master_gone_s,
        )
        undo.callback(self._clerk.stop)
        if self._network:
            super()._open(key, use_name_server, undo)
        self._clerk.start()
        # From now on slaves may come: all that they ask for is there.
        self._place.write({**self._head, "ready": True}, "master")

    def _close(self) -> None:
        super()._close()
        self._clerk.stop()
        self._leave()

    def _leave(self) -> None:
        try:
            self._place.files.remove(self._place.at("master"))
        except OSError as error:
            log.error("folder %s: %s", self._place.path, error.strerror or error)

    def _enter(self, label: str) -> None:
        """Be the folder's only master."""
        place = self._place
        self._head = head = {"label": label, "who": list(place.me), "ready": False}
        for _ in range(3):
            try:
                place.files.create(place.at("master"), place.pack("master", head))
                return
            except FileExistsError:
                pass
            except OSError as error:
                raise SettingsError(f"folder {place.path}: {error.strerror or error}") from error
            stamp = place.files.look(place.at("master"))
            try:
                there = place.read("master")[0]
            except FileNotFoundError:
                continue
            except Refused as error:
                raise SettingsError(f"folder {place.path}: its file master {error}") from None
            who = Who.of(there["who"])
            if lives(place, who, SILENT_S):
                raise FolderInUse(
                    f"folder {place.path}: the master of {there['label']!r}, process {who.pid} on "
                    f"{who.machine.host}, is at work in it; end that one, or name another folder"
                )
            # Others may have seen the same: only one of them has the dead one's file then.
            dead = place.at("aside", f"{place.owner}-dead-master")
            if stamp is not None and place.files.move(place.at("master"), dead):
                moved = place.files.look(dead)
                if moved is None or moved.inode != stamp.inode:  # a living one's: back with it
                    with contextlib.suppress(FileExistsError):
                        place.files.link(dead, place.at("master"))
                place.files.remove(dead)
        raise FolderInUse(f"folder {place.path}: another master has just begun to work in it")

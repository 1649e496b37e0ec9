"""A served task manager in the place of a `service`: a master joins it, and does not own it."""

from __future__ import annotations

from typing import Any

from masterslave.attached import RemoteManager
from masterslave.keyfile import load_key
from masterslave.settings import Settings
from masterslave.slavecode import DATA_NAME
from masterslave.transports.base import Link


class Attachment:
    """A served task manager in the place of a `Service`: joined, not owned."""

    folder = None  # shared with slaves
    is_named = True  # slaves that are launched here may ask for it by its label
    ends_slaves = False  # it goes on, and nobody tells its slaves to leave

    def __init__(
        self,
        label: str,
        settings: Settings,
        master_host: str | None,
        code: Any = None,
        weight: float = 1.0,
    ) -> None:
        """Join it. Raises `ConnectionFailed` when it cannot be found or reached.

        `code`: what slaves are to load for this client's tasks. `SettingsError` when they work with
        the code of another client.
        """
        from masterslave import naming  # every worker imports the master: it takes time to load

        key = load_key(settings.key_file)

        def connect() -> Link:
            link = naming.connect(label, master_host, settings, key)
            if settings.shared_memory:
                link.share_memory()
            self.address = link.address
            return link

        self.address = ""
        self.manager = RemoteManager(label, connect, settings, weight)
        if code is not None:
            try:
                self.manager.storeData(**{DATA_NAME: code})
            except BaseException:
                self.manager.close()
                raise

    def enter(self) -> int:
        """Register this process as a client; gives its process id."""
        return self.manager.process_id

    def end_job(self, wait_s: float) -> None:
        """Let go of this client's tasks; the job of others goes on."""
        self.manager.close()

    def stop(self) -> None:
        """Nothing is left to be closed."""

"""The data items of a task manager as files that slaves of a shared folder read."""

from __future__ import annotations

import threading
from typing import Any

from masterslave.folder import names
from masterslave.folder.passing import PassingManager
from masterslave.folder.place import Place


class Items:
    """Keeps ``data`` as the task manager's items are. Safe in several threads."""

    def __init__(self, place: Place, manager: PassingManager) -> None:
        self._place, self._manager = place, manager
        self._lock = threading.Lock()
        self._written: dict[str, Any] = {}
        self._changes = 0  # items that were deleted or replaced

    def sync(self) -> int:
        """Data items are there before the tasks that need them; gives how often one was changed.

        Each bundle says that number: a slave to which it is news looks at what it has read.
        """
        with self._lock:
            items = self._manager.data_items()
            for name, value in items.items():
                if self._written.get(name) is not value:
                    file = names.data_text(name)
                    if isinstance(value, list):
                        self._place.write(None, "data", file, frames=[value])
                    else:
                        self._place.write(value, "data", file)
                    self._changes += name in self._written
                    self._written[name] = value
            for name in [name for name in self._written if name not in items]:
                self._place.files.remove(self._place.at("data", names.data_text(name)))
                self._changes += 1
                del self._written[name]
            return self._changes

"""What the master of a shared folder tells: small files that all slaves, or people, read."""

from __future__ import annotations

import threading
from typing import Any

from masterslave.folder.place import Place

#: Orders that are kept. Fewer: a slave that looks late misses some, and works in vain.
_KEPT = 200


class Orders:
    """The file ``orders``. Safe in several threads."""

    def __init__(self, place: Place) -> None:
        """Writes it; what an earlier master has ordered is gone."""
        self._place = place
        self._lock = threading.Lock()
        self._content: dict[str, Any] = {"run": place.owner, "seq": 0, "end": False, "to": []}
        self._write()

    @property
    def has_ended(self) -> bool:
        """Whether the end of the job was told."""
        return bool(self._content["end"])

    def end(self) -> None:
        """Tell all slaves that the job is over. Raises `OSError`."""
        with self._lock:
            self._content["end"] = True
            self._write()

    def tell(self, owner: str, notices: dict[str, Any]) -> None:
        """Tell one slave what a task manager says in an exchange. Raises `OSError`."""
        theirs = ("terminate", "register")  # each slave sees to that by itself here
        kept = {name: value for name, value in notices.items() if name not in theirs}
        if not kept:
            return
        with self._lock:
            self._content["seq"] += 1
            self._content["to"].append([self._content["seq"], owner, kept])
            del self._content["to"][:-_KEPT]
            self._write()

    def _write(self) -> None:
        self._place.write(self._content, "orders")


class Status:
    """The file ``status``, for ``task_manager show --folder``."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._written: Any = None

    def write(self, status: dict[str, Any]) -> None:
        """Write it, if it is another one than before. Raises `OSError`."""
        if status != self._written:
            self._place.write(status, "status")
            self._written = status

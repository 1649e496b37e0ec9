"""The data items that a slave of a shared folder has read, and which of them are others by now."""

from __future__ import annotations

import threading
from typing import Any

from masterslave.errors import DataNotFound
from masterslave.folder import names
from masterslave.folder.files import Stamp
from masterslave.folder.place import Place
from masterslave.folder.seal import Refused


class KnownData:
    """Reads data items. Safe in several threads."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._read: dict[str, Stamp] = {}  # data item -> its file as it was read

    def __contains__(self, name: object) -> bool:
        return name in self._read

    def read(self, name: str) -> Any:
        """A data item. Raises `DataNotFound`."""
        file = names.data_text(name)
        try:
            stamp = self._place.files.look(self._place.at("data", file))  # before it is read
            head, frames = self._place.read("data", file)
            if stamp is not None:
                with self._lock:
                    self._read[name] = stamp
        except FileNotFoundError:
            raise DataNotFound(f"no data item {name!r}: never stored, or deleted") from None
        except (Refused, OSError) as error:
            raise DataNotFound(
                f"data item {name!r} in folder {self._place.path}: {error}"
            ) from None
        return frames[0] if frames else head

    def changed(self) -> list[str]:
        """Items that were read, and whose files have gone or were written anew since: forgotten."""
        with self._lock:
            known = dict(self._read)
        changed = [
            name
            for name, stamp in known.items()
            if self._place.files.look(self._place.at("data", names.data_text(name))) != stamp
        ]
        with self._lock:
            for name in changed:
                if self._read.get(name) == known[name]:
                    del self._read[name]
        return changed

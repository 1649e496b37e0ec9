"""How a slave, or ``task_manager show``, finds the living master of a shared folder."""

from __future__ import annotations

import threading
from typing import Any

from masterslave.errors import ConnectionFailed
from masterslave.folder.place import Place, Who, lives
from masterslave.folder.seal import Refused
from masterslave.folder.session import Session


class JobOver(ConnectionFailed):
    """The folder's master has ended its job in order, and no other one has come since."""


class FolderLink:
    """A `Link` to the task manager of a folder."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._closed = False

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Link.call`."""
        if self._closed:
            raise ConnectionFailed("the link was closed")
        if method == "announceSlave":  # its file says so
            return None
        if method in ("openShortcut", "closeShortcuts"):  # files are the only way to its tasks
            return False
        return getattr(self._session, method)(*args, **kwargs)

    def close(self) -> None:
        """See `Link.close`. The slave's file stays: the master judges by its process and time."""
        self._closed = True


class FolderConnector:
    """Connects a slave to the master in a folder; all its links share one `Session`."""

    def __init__(self, path: str, key: bytes, label: str | None = None) -> None:
        """`label`: of the master that must be there; None: any."""
        self._path, self._key = path, key
        self._label = label
        self._lock = threading.Lock()
        self._session: Session | None = None
        self.label: str | None = label  # of the master that was found

    def __call__(self) -> FolderLink:
        """A link. Raises `ConnectionFailed` when no master lives there.

        `SettingsError` when this process may not write there, or what is there is of no use.
        """
        with self._lock:
            if self._session is None:
                place = Place(self._path, self._key)
                place.check_writable()
                self.label = self.find_master(place)
                self._session = Session(place)
            else:
                self.find_master(self._session._place)
            return FolderLink(self._session)

    def find_master(self, place: Place) -> str:
        """The label of the folder's living master. Raises `ConnectionFailed`, or `JobOver`."""
        try:
            head = place.read("master")[0]
        except FileNotFoundError:
            if not place.is_there():
                raise ConnectionFailed(
                    f"folder {place.path} has gone: removed, or not mounted here"
                ) from None
            self._check_over(place)
            raise ConnectionFailed(
                f"folder {place.path}: no master is at work in it; start it first, or wait with -w"
            ) from None
        except (Refused, OSError) as error:
            raise ConnectionFailed(f"folder {place.path}: its file master {error}") from None
        label: str = head["label"]
        if self._label is not None and label != self._label:
            raise ConnectionFailed(
                f"folder {place.path}: is that of {label!r}, not {self._label!r}"
            )
        if not lives(place, Who.of(head["who"]), 2.0):
            self._check_over(place)
            raise ConnectionFailed(f"folder {place.path}: the master of {label!r} has gone")
        if not head["ready"]:
            raise ConnectionFailed(f"folder {place.path}: the master of {label!r} has just begun")
        return label

    @staticmethod
    def _check_over(place: Place) -> None:
        """Raise `JobOver` if the master has said so; one that begins takes that back."""
        try:
            place.read("stop")
        except (Refused, OSError):
            return
        raise JobOver(f"folder {place.path}: its job is over; start the master to go on")


def read_status(path: str, key: bytes) -> dict[str, Any]:
    """What the master in a folder says of its job, at most some seconds old.

    Raises `ConnectionFailed` when no master lives there.
    """
    place = Place(path, key)
    FolderConnector(path, key).find_master(place)
    try:
        status: dict[str, Any] = place.read("status")[0]
    except FileNotFoundError:
        raise ConnectionFailed(f"folder {place.path}: its master has just begun") from None
    except (Refused, OSError) as error:
        raise ConnectionFailed(f"folder {place.path}: its file status {error}") from None
    return status

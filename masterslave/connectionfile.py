"""Connection files: where the task managers of this user are, for all who share the home directory.

One file per label, ``~/.masterslave/managers/LABEL.json``, owner-only, written when a task manager
starts and removed when it ends. So slaves and clients on a cluster with a shared home need no name
server. The file is a hint and no proof: who answers must hold the key as ever.

| field       | is                                                                    |
|-------------|-----------------------------------------------------------------------|
| `label`     | the label, as the file's name may be an abbreviation                  |
| `addresses` | ``host:port`` of each, most useful first                              |
| `host`      | name of the host; what listens on loopback only is of use there alone |
| `pid`       | its process id there: a file whose process has ended is stale         |
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import stat
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from masterslave.errors import SettingsError
from masterslave.settings import split_address

log = logging.getLogger(__name__)

#: Longest file name made of a label; file systems take 255 bytes.
_NAME_BYTES = 200

#: Largest file that is read. A task manager has a few addresses.
_FILE_BYTES = 1 << 16

#: Files that make no sense of which the log has been told.
_told: set[Path] = set()
_telling = threading.Lock()

#: Addresses of a file that are tried.
_ADDRESSES = 16


class Connection(NamedTuple):
    """What a connection file says."""

    path: Path
    label: str
    addresses: list[str]  # that can be reached from this host
    host: str
    pid: int


def path_of(directory: Path, label: str) -> Path:
    """The file of a label."""
    name = quote(label, safe="")
    if len(name) > _NAME_BYTES:
        name = f"{name[:100]}-{hashlib.sha256(label.encode('utf-8', 'replace')).hexdigest()}"
    return directory / f"{name}.json"


class ConnectionFile:
    """The file of a task manager of this process, from `write` until `remove`."""

    def __init__(self, directory: Path, label: str, addresses: Sequence[str]) -> None:
        self.path = path_of(directory, label)
        self._fields = {
            "label": label,
            "addresses": list(addresses),
            "host": platform.node(),
            "pid": os.getpid(),
        }
        self._text = json.dumps(self._fields, indent=2, sort_keys=True) + "\n"

    def write(self) -> None:
        """Write it, in the place of one that is there. What prevents that is said in the log."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".new-", dir=self.path.parent)  # owner-only
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(self._text)
                os.replace(name, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            log.warning(
                "no connection file %s: %s; slaves need the name server or -m",
                self.path,
                error.strerror or error,
                extra={"action": "no_connection_file"},
            )

    def remove(self) -> None:
        """Remove it, unless it is another task manager's by now.

        What makes no sense there is removed as well, as it is of use to nobody; what is not a file
        of this user's is left. Both are in the log.
        """
        try:
            data = _contents(self.path)
            if data != self._text.encode():
                if _parse(self.path, data) is not None:
                    return
                log.warning("connection file %s made no sense at the end; removed", self.path)
            self.path.unlink()
        except FileNotFoundError:
            pass
        except (OSError, SettingsError) as error:
            log.warning("connection file %s is left at the end: %s", self.path, error)


def read(directory: Path | None, label: str) -> Connection | None:
    """What the file of a label says; None if there is none that is of use here.

    A file whose process has ended on this host is removed. Raises `SettingsError` for one that is
    not this user's own, or that others may write to.
    """
    return None if directory is None else _read(path_of(directory, label), label)


def read_all(directory: Path | None) -> list[Connection]:
    """All connection files that are of use here, by label. What cannot be read is in the log."""
    found = []
    names: list[str] = []
    if directory is not None:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("connection files in %s: %s", directory, error.strerror or error)
        for name in names:
            if name.startswith(".") or not name.endswith(".json"):
                continue
            with contextlib.suppress(SettingsError):
                if (connection := _read(directory / name)) is not None:
                    found.append(connection)
    return sorted(found, key=lambda connection: connection.label)


def problem(directory: Path | None, label: str) -> str:
    """What is wrong with the file of a label and what to do; empty where nothing is."""
    if directory is None:
        return ""
    path = path_of(directory, label)
    try:
        found = _parse(path, _contents(path))
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"connection file {path}: {error.strerror or error}"
    if found is not None and found.label == label:
        return ""
    return f"connection file {path} makes no sense; remove it"


def _contents(path: Path) -> bytes:
    """The bytes of a file of this user's, never waiting for any. Raises `SettingsError`."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe would wait for a writer
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError(f"connection file {path}: is not a regular file; remove it")
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise SettingsError(
                f"connection file {path}: is another user's, or others may write to it; remove it"
            )
        return os.read(descriptor, _FILE_BYTES)
    finally:
        os.close(descriptor)


def _read(path: Path, label: str | None = None) -> Connection | None:
    try:
        data = _contents(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("connection file %s: %s", path, error.strerror or error)
        return None
    connection = _parse(path, data)
    if connection is None or label not in (None, connection.label):
        with _telling:
            is_new = path not in _told
            _told.add(path)
        if is_new:  # who waits for a task manager looks again and again
            log.warning("connection file %s makes no sense; remove it", path)
        return None
    if connection.host == platform.node() and not _is_running(connection.pid):
        log.info("connection file %s is stale: its process has ended", path)
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:
                path.unlink()
        return None
    return connection


def _parse(path: Path, data: bytes) -> Connection | None:
    try:
        fields: Any = json.loads(data)
        label, host, pid = fields["label"], fields["host"], fields["pid"]
        addresses = fields["addresses"]
        good = isinstance(label, str) and isinstance(host, str) and type(pid) is int
        if not good or not all(isinstance(text, str) for text in addresses):
            return None
        here = host == platform.node()
        usable = [text for text in addresses[:_ADDRESSES] if here or not _is_loopback(text)]
        return Connection(path, label, usable, host, pid)
    except (ValueError, KeyError, TypeError, RecursionError, SettingsError):
        return None


def _is_loopback(address: str) -> bool:
    host = split_address(address)[0]
    return host.startswith("127.") or host in ("localhost", "::1")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True

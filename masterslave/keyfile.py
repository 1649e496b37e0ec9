"""The key that proves membership: 32 random bytes in a file that only its owner can read."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from masterslave.errors import SettingsError
from masterslave.proofs import KEY_BYTES


def load_key(path: Path) -> bytes:
    """The key in the file at `path`; a new one is made there if there is no file.

    Raises `SettingsError` when the file cannot be read or made, does not hold a key, belongs to
    someone else, or is open to others.
    """
    try:
        try:
            return _read(path)
        except FileNotFoundError:
            _make(path)
            return _read(path)
    except OSError as error:
        raise SettingsError(
            f"key file {path}: {error.strerror or error}; "
            "set MASTERSLAVE_KEY_FILE to a file that you can read and write"
        ) from error


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe would wait for a writer
    with open(os.open(path, flags), encoding="ascii", errors="replace") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError(f"key file {path}: is not a regular file")
        if status.st_uid != os.geteuid():
            raise SettingsError(f"key file {path}: belongs to user {status.st_uid}, not to you")
        if status.st_mode & 0o077:
            raise SettingsError(f"key file {path}: is open to others; run: chmod 600 {path}")
        text = file.read(4 * KEY_BYTES).strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsError(
            f"key file {path}: must hold {2 * KEY_BYTES} hexadecimal digits; "
            "delete it to have a new key made, then copy that to your other machines"
        )
    return key


def _make(path: Path) -> None:
    """Make a key file. When two processes do so at once, the first one's stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".key-", dir=path.parent)  # owner-only by itself
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)

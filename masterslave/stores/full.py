"""A file that cannot be written at present: which, why, and what to do about it, on one line.

SQLite says "disk I/O error" to a full quota, to a limit on the size of files and to a broken disk
alike, and "full" without saying how full. So the system is asked.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import NamedTuple

from masterslave.errors import JournalFull
from masterslave.units import format_bytes

#: What SQLite says when it is not the file's contents that are wrong.
CANNOT_WRITE = ("full", "disk I/O error", "readonly", "unable to open", "out of memory")

#: With less than this a disk is full, whatever else is wrong. Larger: it is said of a disk that has
#: room for what was to be written. Smaller: a quota is looked for where the disk is full.
_LITTLE_BYTES = 1 << 20


class Disk(NamedTuple):
    """What the system says of the place of a file."""

    folder: str
    free_bytes: int
    has_names: bool = True  # whether there may be more files
    read_only: bool = False
    file_limit: int | None = None  # bytes that a file of this process may have


def cannot_write(what: str, path: str, problem: str) -> JournalFull:
    """The error for a file that SQLite cannot write; `what`: it is in words, `problem`: SQLite's.

    Does not raise.
    """
    todo = remedy(problem, _ask(path))
    return JournalFull(f"{what} {path} cannot be written: {problem} ({todo})")


def remedy(problem: str, disk: Disk | None) -> str:
    """What to do about a file that cannot be written. `disk`: None if nothing is known of it."""
    if "out of memory" in problem:
        return "this process has no memory left; give it more"
    if disk is None:
        return "its folder cannot be looked at; is it still there and mounted?"
    folder = disk.folder
    if disk.read_only:
        return f"the file system of {folder} is read-only; make it writable, or name another file"
    free = f"{format_bytes(disk.free_bytes)} is free in {folder}"
    if not disk.has_names:
        return f"no more files can be made in {folder}; remove some there"
    if "readonly" in problem or "unable to open" in problem:
        return f"{free}; may you write there? see to that, or name another file"
    if "full" in problem or disk.free_bytes < _LITTLE_BYTES:
        return f"{free}; make room there"
    if disk.file_limit is not None:
        limit = format_bytes(disk.file_limit)
        return f"{free}, but files of this process may have {limit} only; raise ulimit -f"
    return f"{free}, so see to your quota there, or to the disk itself"


def _ask(path: str) -> Disk | None:
    folder = os.path.dirname(path)
    with contextlib.suppress(OSError):
        found = os.statvfs(folder)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return Disk(
            folder,
            found.f_bavail * found.f_frsize,
            # Some file systems make as many as are needed, and say 0 of 0.
            found.f_favail > 0 or found.f_files == 0,
            bool(found.f_flag & os.ST_RDONLY),
            None if limit == resource.RLIM_INFINITY else limit,
        )
    return None

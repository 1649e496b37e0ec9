"""The names of files in a shared folder: what a person reads with `ls`.

::

    tasks/square_17.1.in                 task square_17, its first attempt, waits
    tasks/square_17.1+31.in              a bundle: it and 31 more tasks of its tag
    tasks/square_17.1p5.in               it has priority 5 (p-5: -5)
    tasks/square_17.1.lock-node3-4711    process 4711 on node3 runs it
    tasks/square_17.1.out                it has ended
    tasks/square_17.1+31.part2-node3-4711  some of the bundle have ended
    tasks/0002/square_17.1.in            the same in the second sub-directory
    tasks/0003p5/square_17.1p5.in        and in one of priority 5

A tag is written as it is, but for characters that have no place in a name (``%2E`` for a dot); a
long one is cut, with some of its digest. Pure.
"""

from __future__ import annotations

import hashlib
import re
import string
from typing import NamedTuple

_PLAIN = frozenset(string.ascii_letters + string.digits + "-_")
_LONGEST = 64  # of a part of a name; the whole may have 255 bytes

_ENTRY = re.compile(
    r"(?P<bundle>(?P<tag>[\w%~-]+)_(?P<number>\d+)\.\d+(?:\+(?P<more>\d+))?(?:p(?P<priority>-?\d+))?)"
    r"\.(?:(?P<kind>in|out)|(?P<owned>lock|part\d+)-(?P<owner>[\w%~.-]+-\d+))",
    re.ASCII,
)


_DIRECTORY = re.compile(r"(?P<number>\d{4,18})(?:p(?P<priority>-?\d{1,19}))?", re.ASCII)


class Directory(NamedTuple):
    """What the name of a sub-directory of ``tasks`` says."""

    name: str
    number: int
    priority: int  # of all that is in it


class Entry(NamedTuple):
    """What a name in ``tasks`` says."""

    bundle: str  # "square_17.1+31"
    tag: str  # as `tag_text` gives it
    kind: str  # "in", "lock", "out" or "part"
    owner: str  # of a lock or part: "node3-4711"; else empty
    priority: int
    number: int  # of its first task
    tasks: int


def _text(value: str, also: str = "") -> str:
    allowed = _PLAIN | frozenset(also)
    quoted = "".join(
        char if char in allowed else "".join(f"%{byte:02X}" for byte in char.encode())
        for char in value
    )
    if len(quoted) <= _LONGEST:
        return quoted
    digest = hashlib.sha256(value.encode()).hexdigest()[:16]
    return f"{quoted[: _LONGEST - 17]}~{digest}"


def tag_text(tag: str) -> str:
    """A tag as it stands in names; different for different tags."""
    return _text(tag)


def data_text(name: str) -> str:
    """The name of a data item as that of a file."""
    return _text(name)


def owner_name(host: str, pid: int) -> str:
    """A process as it stands in names."""
    return f"{_text(host, '.')}-{pid}"


def bundle_name(task_id: str, tag: str, attempt: int, count: int, priority: int = 0) -> str:
    """The name of a bundle of `count` tasks, of which this attempt is the first."""
    number = task_id.rpartition("_")[2]
    more = f"+{count - 1}" if count > 1 else ""
    urgent = f"p{priority}" if priority else ""
    return f"{tag_text(tag)}_{number}.{attempt}{more}{urgent}"


def directory_name(number: int, priority: int) -> str:
    """The name of a sub-directory, the `number`-th of its folder."""
    return f"{number:04}" + (f"p{priority}" if priority else "")


def parse_directory(name: str) -> Directory | None:
    """What the name of a sub-directory says; None if it is none of ours."""
    found = _DIRECTORY.fullmatch(name)
    if found is None:
        return None
    return Directory(name, int(found["number"]), int(found["priority"] or 0))


def parse(name: str) -> Entry | None:
    """What a name says; None if it is none of ours."""
    found = _ENTRY.fullmatch(name)
    if found is None:
        return None
    kind = found["kind"] or found["owned"].rstrip(string.digits)
    return Entry(
        found["bundle"], found["tag"], kind, found["owner"] or "",
        int(found["priority"] or 0), int(found["number"]), int(found["more"] or 0) + 1,
    )  # fmt: skip

"""Disks that are full, really: a small file system, or a limit on the size of files.

The first needs the right to mount; the second is had by anyone, and stands for quotas as well.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from conftest import Program


class Place(Protocol):
    """Where a journal is."""

    path: Path

    def fill(self, master: Program) -> None:
        """From now on that master cannot write more to it."""

    def make_room(self, master: Program) -> None:
        """It can again."""


class SmallDisk:
    """A file system of its own, of four megabytes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal"
        self._ballast = folder / "ballast"

    def fill(self, master: Program | None = None) -> None:
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def make_room(self, master: Program | None) -> None:
        self._ballast.unlink()


class Limit:
    """No file of the master may grow."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal"

    def fill(self, master: Program) -> None:
        size = self.path.with_name("journal-wal").stat().st_size
        resource.prlimit(master.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def make_room(self, master: Program) -> None:
        limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(master.pid, resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A small file system in that place; skips the test where nobody lets us mount it."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "masterslave-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: a process that is still about to end must not keep it mounted for ever.
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted(tmp_path / "disk") as folder:
        yield SmallDisk(folder)


@pytest.fixture(params=["small disk", "limit"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "small disk":
        disk: SmallDisk = request.getfixturevalue("small_disk")
        return disk
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system does not let us limit another process")
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the size of files is limited here already")
    return Limit(tmp_path)

"""All that is done with files in a shared folder, in one place: counted, and made to fail by tests.

The only primitives that others may rely on are exclusive creation (`link`) and `rename`, which
network file systems keep since NFS version 3. There are no locks on files. What is written is
written aside, synced, and renamed, so that nobody sees a part of it. A file that fits into one call
is opened to be synced by that call (`O_SYNC`), which costs an operation less than `fsync`.

A directory or file is always opened before it is looked at: network file systems keep attributes in
a cache for many seconds, and ask the server again when something is opened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

from masterslave.records import Piece

#: Pieces given to the system in one call; it takes 1024 at most.
_AT_ONCE = 512


class Stamp(NamedTuple):
    """Tells whether a file or directory is as it was."""

    inode: int
    mtime_ns: int


class Listing(NamedTuple):
    """What is in a directory, and the directory's stamp from before that was read."""

    stamp: Stamp
    names: list[str]


class Files:
    """File-system operations. May be used by several threads at a time.

    `before` is called with the kind and the path of each operation before it is done: tests have it
    raise. `counts` says how many of each kind were done; `in_vain`, which its owner sets, how many
    of them by one with nothing to do that found nothing to do.
    """

    def __init__(self, aside: str, owner: str) -> None:
        """`aside`: the directory in which files are written; `owner`: begins their names there."""
        self.counts: Counter[str] = Counter()
        self.in_vain = 0
        self.before: Callable[[str, str], None] = lambda kind, path: None
        self._aside = aside
        self._owner = owner
        self._numbers = count()

    def story(self) -> str:
        """What was done, in words: read by people, and by the benchmark of folders."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.counts.items()))
        return f"operations on files of the folder: {kinds}; of them in vain {self.in_vain}"

    def _begin(self, kind: str, path: str) -> None:
        self.before(kind, path)
        self.counts[kind] += 1

    # --- writing ----------------------------------------------------------------------------

    def replace(self, path: str, pieces: Sequence[Piece]) -> None:
        """Write a file, in the place of one that may be there. Raises `OSError`."""
        aside = self._write_aside(pieces)
        try:
            self._rename(aside, path)
        except BaseException:
            self.remove(aside)
            raise

    def create(self, path: str, pieces: Sequence[Piece]) -> None:
        """Write a file that is not there yet. Raises `FileExistsError`, or another `OSError`."""
        aside = self._write_aside(pieces)
        try:
            self._begin("link", path)
            os.link(aside, path)
        finally:
            self.remove(aside)

    def finish(self, path: str, end: str, pieces: Sequence[Piece]) -> None:
        """Write over a file that is this process's own, and rename it when it is complete.

        Raises `FileNotFoundError` when somebody has removed it, or another `OSError`; then the file
        holds nothing that is of use.
        """
        self._begin("write", path)
        self._fill(path, os.O_TRUNC, pieces)
        self._rename(path, end)

    def _write_aside(self, pieces: Sequence[Piece]) -> str:
        aside = os.path.join(self._aside, f"{self._owner}-{next(self._numbers)}")
        self._begin("create", aside)
        try:
            self._fill(aside, os.O_CREAT | os.O_EXCL, pieces)
        except BaseException:
            self.remove(aside)
            raise
        return aside

    def _fill(self, path: str, flags: int, pieces: Sequence[Piece]) -> None:
        in_one = len(pieces) <= _AT_ONCE
        flags |= os.O_WRONLY | os.O_CLOEXEC | (os.O_SYNC if in_one else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            for start in range(0, len(pieces), _AT_ONCE):
                self._write_all(descriptor, pieces[start : start + _AT_ONCE])
            if not in_one:
                self._begin("sync", path)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)  # some file systems say only here that they are full

    @staticmethod
    def _write_all(descriptor: int, pieces: Sequence[Piece]) -> None:
        left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        while left:
            done = os.writev(descriptor, left)
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if left:
                left[0] = left[0][done:]

    def _rename(self, path: str, end: str) -> None:
        self._begin("rename", end)
        os.rename(path, end)

    # --- moving and removing ----------------------------------------------------------------

    def move(self, path: str, end: str) -> bool:
        """Rename a file that others want to rename as well; true for the one who has it then.

        `end` must be a name that nobody else uses.
        """
        self._begin("rename", end)
        try:
            os.rename(path, end)
        except FileNotFoundError:
            # A server may have done it, and its answer was lost: then it was asked again.
            self._begin("stat", end)
            return os.path.exists(end)
        return True

    def link(self, path: str, end: str) -> None:
        """A second name for a file. Raises `FileExistsError`, or another `OSError`."""
        self._begin("link", end)
        os.link(path, end)

    def remove(self, path: str) -> bool:
        """Remove a file; true if it was there."""
        self._begin("remove", path)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        return True

    def make_directory(self, path: str) -> None:
        """Make a directory, unless it is there. Raises `OSError`."""
        self._begin("mkdir", path)
        os.makedirs(path, mode=0o700, exist_ok=True)

    def remove_directory(self, path: str) -> None:
        """Remove a directory. Raises `OSError` when it is not empty."""
        self._begin("rmdir", path)
        os.rmdir(path)

    # --- looking ----------------------------------------------------------------------------

    def touch(self, path: str) -> bool:
        """Set a file's time to the file server's; false if it is not there."""
        self._begin("touch", path)
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def look(self, path: str) -> Stamp | None:
        """The stamp of a file or directory; None if it is not there."""
        self._begin("look", path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            return Stamp(status.st_ino, status.st_mtime_ns)
        finally:
            os.close(descriptor)

    def list(self, path: str) -> Listing:
        """What is in a directory. Raises `FileNotFoundError`, or another `OSError`."""
        self._begin("list", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            return Listing(Stamp(status.st_ino, status.st_mtime_ns), os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def open_to_read(self, path: str) -> int:
        """A descriptor of a file, for `seal.read`. Raises `OSError`."""
        self._begin("read", path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)

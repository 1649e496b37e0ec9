"""What is said of a file that cannot be written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from masterslave.errors import JournalFull
from masterslave.stores.full import CANNOT_WRITE, Disk, cannot_write, remedy

MUCH = 80 << 30
IO_ERROR = "disk I/O error"  # what SQLite says to a quota, a limit and a broken disk


@pytest.mark.parametrize(
    ("problem", "disk", "text"),
    [
        ("database or disk is full", Disk("/d", 4096), "4K is free in /d; make room there"),
        ("database or disk is full", Disk("/d", 3 << 20), "3M is free in /d; make room there"),
        (IO_ERROR, Disk("/d", 0), "0 is free in /d; make room there"),
        (IO_ERROR, Disk("/d", MUCH, has_names=False), "no more files can be made in /d; .*"),
        (IO_ERROR, Disk("/d", MUCH), "80G is free in /d, so see to your quota there, or .*"),
        (IO_ERROR, Disk("/d", MUCH, file_limit=1 << 20), ".*, but files .* 1M only; .*ulimit -f.*"),
        (IO_ERROR, Disk("/d", 0, file_limit=1 << 20), "0 is free in /d; make room there"),
        ("attempt to write a readonly database", Disk("/d", MUCH), ".*may you write there\\?.*"),
        ("unable to open database file", Disk("/d", MUCH), ".*may you write there\\?.*"),
        (IO_ERROR, Disk("/d", MUCH, read_only=True), "the file system of /d is read-only; .*"),
        ("out of memory", Disk("/d", MUCH), ".*no memory left.*"),
        (IO_ERROR, None, "its folder cannot be looked at.*"),
    ],
)
def test_each_cause_has_its_remedy(problem: str, disk: Disk | None, text: str) -> None:
    assert any(known in problem for known in CANNOT_WRITE)
    assert re.fullmatch(text, remedy(problem, disk))


def test_the_error_names_file_free_space_and_remedy_on_one_line(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    error = cannot_write("journal", path, "database or disk is full")
    assert isinstance(error, JournalFull)
    assert re.fullmatch(
        rf"journal {path} cannot be written: database or disk is full "
        rf"\([\d.]+[KMGT]? is free in {tmp_path}; make room there\)",
        str(error),
    )


def test_a_folder_that_has_gone(tmp_path: Path) -> None:
    error = cannot_write("results", str(tmp_path / "no" / "file"), "disk I/O error")
    assert "is it still there and mounted?" in str(error)

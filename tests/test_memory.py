"""The memory limit of workers: what is accepted, how a death for want of memory is recognised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from masterslave import SettingsError, memory
from masterslave.memory import check_supported, died_of_memory, private_bytes
from masterslave.units import format_bytes, parse_bytes

LIMIT = 100 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("1K", 1024),
        ("300M", 300 << 20),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("2GiB", 2 << 30),
        ("2 GB", 2 << 30),
        ("1.5G", 3 << 29),
        ("1T", 1 << 40),
        ("17B", 17),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", 0, -5, "0.1", "1.G", "2 gigs", "1e9", True, None])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(SettingsError, match="must be a number of bytes, such as 2147483648 or 2G"):
        parse_bytes(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (999, "999"), (1024, "1K"), (300 << 20, "300M"), (3 << 29, "1.5G"), (5 << 40, "5T")],
)  # fmt: skip
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize("status", [-signal.SIGABRT, -signal.SIGKILL, -signal.SIGSEGV])
def test_a_death_close_to_the_limit_is_for_want_of_memory(status: int) -> None:
    assert died_of_memory(status, int(0.95 * LIMIT), LIMIT, [])
    assert not died_of_memory(status, int(0.5 * LIMIT), LIMIT, [])


@pytest.mark.parametrize("status", [0, 1, 7, -signal.SIGTERM, -signal.SIGFPE])
def test_another_end_close_to_the_limit_is_not(status: int) -> None:
    assert not died_of_memory(status, LIMIT, LIMIT, ["some text"])


def test_one_large_allocation_is_recognised_by_what_it_said() -> None:
    lines = ["terminate called after throwing an instance of 'std::bad_alloc'", "  what():  ..."]
    assert died_of_memory(-signal.SIGABRT, LIMIT // 10, LIMIT, lines)
    assert not died_of_memory(-signal.SIGSEGV, LIMIT // 10, LIMIT, lines)
    assert died_of_memory(1, LIMIT // 10, LIMIT, ["Traceback...", "MemoryError"])
    assert died_of_memory(-signal.SIGKILL, LIMIT // 10, LIMIT, ["Traceback...", "MemoryError"])
    assert not died_of_memory(1, LIMIT // 10, LIMIT, ["MemoryError", "but that was long ago"])


@pytest.mark.parametrize(
    ("system", "release", "good"),
    [
        ("linux", "6.1.0-13-amd64", True),
        ("linux", "4.7", True),
        ("linux", "4.18.0-513.el8.x86_64", True),
        ("linux", "4.6.7", False),
        ("linux", "3.10.0-1160.el7.x86_64", False),
        ("linux", "unknown", False),
        ("darwin", "23.1.0", False),
        ("win32", "10", False),
    ],
)
def test_where_the_system_keeps_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, system: str, release: str, good: bool
) -> None:
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.platform, "release", lambda: release)
    check_supported(None)
    if good:
        check_supported(LIMIT)
    else:
        with pytest.raises(SettingsError, match="a memory limit needs Linux"):
            check_supported(LIMIT)


def test_the_memory_of_a_process() -> None:
    before = private_bytes(os.getpid())
    block = bytearray(64 << 20)
    assert before + len(block) <= private_bytes(os.getpid()) <= before + 2 * len(block)
    assert private_bytes(2**22 + 1) == 0, "there is no such process"


PROGRAM = """
from masterslave.memory import limit_memory, private_bytes
import mmap, os
LIMIT = private_bytes(os.getpid()) + (64 << 20)
lift_limit = limit_memory(LIMIT)
small = bytearray(32 << 20)
try:
    bytearray(64 << 20)
except MemoryError:
    print("no more")
shared = mmap.mmap(-1, 256 << 20)  # is not private
lift_limit()
print(len(bytearray(64 << 20)) >> 20)
try:
    limit_memory(1 << 20)
except Exception as error:
    print(error)
"""


def test_an_allocation_beyond_the_limit_fails_at_once() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    no_more, size, refused = run.stdout.splitlines()
    assert (no_more, size) == ("no more", "64")
    assert refused.startswith("memory limit 1M: a worker uses ")

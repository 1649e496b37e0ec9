"""A shared folder under odd conditions: wrong clocks, no folder, read-only, full, hostile files."""

from __future__ import annotations

import os
import pickle
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Program, World, wait_until
from disks import SmallDisk, mounted

from masterslave.folder import seal

JOB = """
    import os, sys, time
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def run(self):
            self.requestTasks("work", [(i,) for i in range(24)])
            got = [(i, len(data)) for _, _, (i, data) in self.results()]
            print(sorted(got) == [(i, 20000) for i in range(24)], flush=True)

    class Slave(SlaveProcess):
        def do_work(self, i):
            while i >= 4 and not os.path.exists("go"):
                time.sleep(0.01)
            with open("ran", "a") as file:
                file.write(f"{i}\\n")
            return i, os.urandom(20000)

    runJob("demo", Master, Slave, 1.0, folder="shared")
"""


@pytest.fixture
def folder(world: World) -> Path:
    return world.path / "shared"


def slave(
    world: World, *, command: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> Program:
    """One that comes by the folder; `command`: what it is started by, `env`: more variables."""
    before = world.env
    world.env = {**before, **(env or {})}
    try:
        words = [
            sys.executable,
            "-m",
            "masterslave",
            "slave",
            "--folder",
            "shared",
            "-w",
            "-n",
            "2",
        ]
        program = Program([*command, *words], world)
    finally:
        world.env = before
    world.programs.append(program)
    return program


def ran(world: World) -> list[str]:
    file = world.path / "ran"
    return file.read_text().split() if file.exists() else []


def locks(folder: Path, program: Program) -> list[Path]:
    return list((folder / "tasks").glob(f"*.lock-*-{program.pid}"))


CLOCK = """
import os, time

shift_s, now, now_ns = float(os.environ["SHIFT"]), time.time, time.time_ns
time.time = lambda: now() + shift_s
time.time_ns = lambda: now_ns() + int(shift_s * 1e9)
"""


def test_clocks_of_hosts_may_differ_by_hours(world: World, folder: Path) -> None:
    """Times of files come from the file server, and so are true for everybody."""
    (world.path / "wrong").mkdir()
    (world.path / "wrong" / "sitecustomize.py").write_text(CLOCK)
    path = f"{world.path / 'wrong'}:{world.env['PYTHONPATH']}"

    def clock(shift_s: int) -> dict[str, str]:
        return {"PYTHONPATH": path, "SHIFT": str(shift_s)}

    job = world.script(JOB)
    slaves = [slave(world, env=clock(shift)) for shift in (3600, -3600)]
    for one in slaves:
        wait_until(lambda p=one: locks(folder, p), "it has tasks")
    held = {lock for one in slaves for lock in locks(folder, one)}
    held |= {folder / "slaves" / lock.name.partition("lock-")[2] for lock in held}
    seen: dict[Path, set[int]] = {}

    def all_have_lived_for_long() -> bool:
        for file in held:
            if file.exists():  # what does not wait for "go" may end
                seen.setdefault(file, set()).add(file.stat().st_mtime_ns)
            else:
                seen.pop(file, None)
        return min(map(len, seen.values())) > 5  # a silence of four periods is death

    wait_until(all_have_lived_for_long, "they set the times of their files and locks")
    for one in slaves:
        assert locks(folder, one)  # nobody took it for dead
    (world.path / "go").touch()
    assert job.finish() == "True\n"
    for one in slaves:
        one.finish()
    assert "lost" not in job.err
    assert len(ran(world)) == 24


def test_everybody_gives_up_a_folder_that_was_removed(world: World, folder: Path) -> None:
    world.env["MASTERSLAVE_MASTER_GONE"] = "2"
    job = world.script(JOB)
    one = slave(world)
    wait_until(lambda: locks(folder, one), "it works")
    folder.rename(world.path / "gone")  # at once; to remove it file by file races with who writes
    (world.path / "go").touch()
    job.finish(1)
    said = f"folder {folder} has been gone for 2 s: removed, or not mounted"
    assert job.err.splitlines()[-1].endswith(said)
    assert job.err.count(f"folder {folder} has gone: removed, or not mounted; the job is") == 1
    one.finish(1)
    assert one.err.splitlines()[-1].endswith(
        f"the master has been gone for 2 s: folder {folder} has gone: removed, or not mounted here"
    )
    assert "Traceback" not in one.err
    assert not folder.exists()


def test_a_folder_that_comes_back_in_time_is_used_again(world: World, folder: Path) -> None:
    job = world.script(JOB)
    one = slave(world)
    wait_until(lambda: locks(folder, one), "it works")
    folder.rename(world.path / "elsewhere")
    wait_until(lambda: "has gone: removed, or not mounted" in job.err, "it is said")
    (world.path / "go").touch()
    (world.path / "elsewhere").rename(folder)
    assert job.finish() == "True\n"
    one.finish()


def test_a_slave_that_may_not_write_says_so_in_one_line(world: World, folder: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs the right to mount, and unshare")
    job = world.script(JOB)
    wait_until((folder / "status").exists, "the master is there")
    script = (
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && "
        f'cd {world.path} && exec "$@"'
    )
    one = slave(world, command=("unshare", "-m", "sh", "-c", script, "sh"))
    one.finish(1)
    assert len(one.err.splitlines()) == 1
    assert f"folder {folder}: Read-only file system: a slave must be able to write" in one.err
    (world.path / "go").touch()
    other = slave(world)
    assert job.finish() == "True\n"
    other.finish()


class Bomb:
    """Shows that it was unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


def test_files_signed_with_another_key_are_never_unpickled(world: World, folder: Path) -> None:
    job = world.script(JOB)
    one = slave(world)
    wait_until(lambda: locks(folder, one), "the job is under way")
    key, frame = seal.derive(secrets.token_bytes(32), b"files"), [pickle.dumps(Bomb())]
    owner = next(iter(locks(folder, one))).name.partition("lock-")[2]
    heads = {
        "work_900.1.in": {"tasks": [["work_900", "work", 1, None]], "estimate_s": None, "data": 0},
        "work_901.1p9.in": {"tasks": [["work_901", "work", 1, None]], "estimate_s": 1, "data": 0},
        "work_902.1.out": {"owner": owner, "done": [["work_902", 1, "result", 0.1, ""]]},
        f"work_23.1.part7-{owner}": {"owner": owner, "done": [["work_23", 1, "result", 0.1, ""]]},
    }
    for name, head in heads.items():
        (folder / "aside" / name).write_bytes(b"".join(seal.pack(key, name, head, [frame])))
        (folder / "aside" / name).rename(folder / "tasks" / name)
    (world.path / "go").touch()
    assert job.finish() == "True\n"
    one.finish()
    assert not (world.path / "owned").exists()
    assert len(ran(world)) == 24
    said = job.err + one.err
    refused = os.listdir(folder / "refused")
    for name in heads:
        text = name.replace(".in", ".") if name.endswith(".in") else name
        lines = [line for line in said.splitlines() if "refused: " in line and text in line]
        assert len(lines) == 1
        assert "is signed with another key" in lines[0]
        assert len([one for one in refused if one.startswith(text)]) == 1
    assert len(refused) == 4


@pytest.fixture
def disk(world: World, folder: Path) -> Iterator[SmallDisk]:
    with mounted(folder) as place:
        yield SmallDisk(place)


def test_a_full_disk_is_waited_for_by_all(world: World, folder: Path, disk: SmallDisk) -> None:
    job = world.script(JOB)
    one = slave(world)
    wait_until(lambda: locks(folder, one), "it works")
    disk.fill(None)
    (world.path / "go").touch()
    wait_until(lambda: "No space left" in one.err and "kept" in one.err, "the slave says so")
    wait_until(lambda: re.search("cannot be written|at present", job.err), "the master says so")
    assert job.poll() is one.poll() is None
    disk.make_room(None)
    assert job.finish() == "True\n"
    one.finish()
    assert os.listdir(folder / "aside") == []

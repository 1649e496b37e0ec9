"""The README's programs, run as they stand; what they leave to the reader stands before them."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT, World

SNIPPETS: list[str] = re.findall(
    r"^```python\n(.*?)^```$",
    (ROOT / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)
SQUARES = {f"square_{x} {x * x}" for x in range(10)}
CALL = 'runJob("squares", Master, Slave, launch_slaves=2)\n'


def snippet(mark: str) -> str:
    """The one snippet with that text in it."""
    (found,) = [text for text in SNIPPETS if mark in text]
    return found


def program(mark: str) -> str:
    """The classes of the first snippet, with another one's call."""
    first = snippet(CALL)
    assert first.endswith(CALL)
    return first.removesuffix(CALL) + snippet(mark)


def changed(text: str, old: str, new: str) -> str:
    """The text with one thing of its writer's site replaced."""
    assert text.count(old) == 1
    return text.replace(old, new)


def test_no_snippet_is_left_out() -> None:
    marks = (
        CALL,
        ", folder=",
        "import ClusterExecutor",
        "import ClientThread",
        "import allocate",
        "import launcher",
        "executor=ProcessPoolExecutor",
        "journal=",
    )
    assert sorted(snippet(mark) for mark in marks) == sorted(SNIPPETS)


@pytest.mark.parametrize("mark", [CALL, "journal="])
def test_a_whole_program(world: World, mark: str) -> None:
    text = snippet(mark) if mark == CALL else program(mark)
    assert set(world.script(text).finish().splitlines()) == SQUARES


def test_on_a_process_pool(world: World) -> None:
    text = changed(program("executor=ProcessPoolExecutor"), "PoolExecutor(8)", "PoolExecutor(2)")
    assert set(world.script(text).finish().splitlines()) == SQUARES


def test_in_a_shared_folder(world: World) -> None:
    master = world.script(changed(program(", folder="), "/shared/run1", "run1"))
    slave = world.task_manager("slave", "--folder", world.path / "run1", "-w", "--idle", "10m")
    assert set(master.finish().splitlines()) == SQUARES
    slave.finish()


def test_an_executor(world: World) -> None:
    text = changed(snippet("import ClusterExecutor"), "workers=4", "workers=2")
    before = """
offset, cases = 4, range(20)

def simulate(case):
    return -case

def summarize(value):
    return f"summary of {value}"

"""
    after = "    print(result, later.result(), careful.submit(pow, 2, 5).result())\n"
    assert world.script(before + text + after).finish() == "-19 summary of 7 32\n"


def test_a_client_thread(world: World) -> None:
    before = """
cases = range(3)

def show(job_id, result):
    print("shown", job_id, result)

def simulate(case):
    return -case

def check(case):
    return f"{case} checked"

"""
    printed = world.script(before + snippet("import ClientThread")).finish().splitlines()
    assert set(printed) == {"shown 1 0", "shown 2 -1", "shown 3 -2", "4 0 checked"}


def test_workers_for_a_block(world: World) -> None:
    text = changed(snippet("import allocate"), '8, on="slurm"', '2, on="local"')
    before = "function, values = abs, [-1, -2, -3]\n"
    assert world.script(before + text).finish() == "6\n"


def test_a_job_is_shown_before_it_is_submitted(world: World) -> None:
    shown, submits, _ = snippet("import launcher").partition("ids = slurm.submit(job)\n")
    assert submits
    printed = world.script(shown).finish()
    for said in ("sbatch", "--partition=short", "apptainer", "image.sif", "login1:7766"):
        assert said in printed

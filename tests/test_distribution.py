"""How tests are shared out among processes: long ones first, those of one system together."""

from __future__ import annotations

import pytest
from conftest import ROOT, World
from distribution import group_of, uses_pool

MODULE = """
    import pathlib, pytest

    @pytest.mark.parametrize("number", range(40))
    def test_short(number, request):
        note(request)

    @pytest.mark.long
    @pytest.mark.parametrize("number", range(2))
    def test_long(number, request):
        note(request)

    @pytest.mark.parametrize("name", ["condor"] * 6)
    def test_system(name, request):
        note(request)

    def note(request):
        worker = getattr(request.config, "workerinput", {"workerid": "alone"})["workerid"]
        with open("ran", "a") as file:
            print(worker, request.node.name.partition("[")[0], file=file)
"""


def ran(world: World, *arguments: str) -> list[list[str]]:
    """The process and the name of each test of that module, in the order in which they ran."""
    test = world.write("test_starting_systems.py", MODULE)
    world.write("pytest.ini", "[pytest]\nmarkers = long\n")
    world.env["PYTHONPATH"] = str(ROOT / "tests")
    own = ("-q", "-p", "distribution", "-p", "no:cacheprovider", f"--rootdir={world.path}")
    printed = world.start("-m", "pytest", test, *own, *arguments).finish()
    assert "48 passed" in printed
    return [line.split() for line in (world.path / "ran").read_text().splitlines()]


def test_long_tests_begin_first_and_those_of_a_system_share_a_process(world: World) -> None:
    lines = ran(world, "-n", "2")
    for worker in ("gw0", "gw1"):
        own = [name for process, name in lines if process == worker]
        assert own[0] == "test_long"
        assert own == sorted(own, key=["test_long", "test_system", "test_short"].index)
    assert len({process for process, name in lines if name == "test_system"}) == 1
    assert {process for process, name in lines if name == "test_short"} == {"gw0", "gw1"}


def test_alone_they_run_as_they_are_written(world: World) -> None:
    names = [name for _, name in ran(world)]
    assert names == ["test_short"] * 40 + ["test_long"] * 2 + ["test_system"] * 6


DEADLY = """
    import os, pytest

    @pytest.mark.parametrize("number", range(40))
    def test_one(number):
        with open("ran", "a") as file:
            print(number, file=file)
        if number in (0, 1, 9, 39):
            os._exit(1)

    @pytest.mark.parametrize("name", ["condor"] * 6)
    def test_system(name, request):
        with open("ran", "a") as file:
            print(request.node.name, file=file)
        if request.node.name == "test_system[condor2]":
            os._exit(1)
"""


def test_what_a_process_dies_of_is_not_run_again_and_all_else_is(world: World) -> None:
    test = world.write("test_starting_systems.py", DEADLY)
    world.write("pytest.ini", "[pytest]\nmarkers = long\n")
    world.env["PYTHONPATH"] = str(ROOT / "tests")
    own = ("-q", "-p", "distribution", "-p", "no:cacheprovider", f"--rootdir={world.path}")
    printed = world.start("-m", "pytest", test, *own, "-n", "2").finish(1)
    assert "5 failed, 41 passed" in printed
    assert "INTERNALERROR" not in printed
    lines = (world.path / "ran").read_text().split()
    assert len(lines) == len(set(lines)) == 46


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/test_starting_systems.py::test_an_allocation_of_htcondor", "condor"),
        ("tests/test_launchers_systems.py::test_ids_that_nobody_knows[htcondor]", "condor"),
        ("tests/test_starting_containers.py::test_x[apptainer --userns]", "apptainer"),
        ("tests/test_contract.py::test_x[unshared]", "test_contract.py"),
    ],
)
def test_what_a_test_shares_with_others(test: str, group: str) -> None:
    assert group_of(test) == group
    assert uses_pool(test) == (group == "condor")


def test_others_share_nothing() -> None:
    for test in ("tests/test_queue.py::test_x", "tests/test_launchers_render.py::test_x[htcondor]"):
        assert group_of(test) == test


def test_the_modules_that_are_named_are_there() -> None:
    """One that was renamed would be shared out as any other."""
    names = [path.name for path in (ROOT / "tests").glob("test_*.py")]
    grouped = {name for name in names if group_of(f"{name}::test_x[condor]") in ("condor", name)}
    assert len(grouped) == 5

"""The examples, run as a reader would run them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import ROOT, World
from PIL import Image

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def run(world: World, name: str, *arguments: object) -> str:
    return world.start(EXAMPLES / name, *arguments).finish()


def test_master_slave_demo(world: World) -> None:
    printed = run(world, "master_slave_demo.py").splitlines()
    assert set(printed[:5]) == {
        "sqrt_0: ValueError: math domain error",
        "sqrt_1: the sqrt of 0.0 is 0.0000",
        "sqrt_2: the sqrt of 1.0 is 1.0000",
        "sqrt_3: the sqrt of 2.0 is 1.4142",
        "sqrt_4: the sqrt of 3.0 is 1.7321",
    }
    statistics = [" ".join(line.split()) for line in printed[5:]]
    assert statistics[0] == "task manager demo"
    assert re.match("active processes [23] ", statistics[1])  # one slave may come late
    for line in ("waiting tasks 0", "running tasks 0", "results retrieved 5"):
        assert line in statistics


def test_master_and_slave_in_two_scripts(world: World) -> None:
    assert set(run(world, "master.py").splitlines()) == {
        "8 words, 3 different: a rose is a rose is a rose",
        "6 words, 4 different: to be or not to be",
        "9 words, 8 different: the quick brown fox jumps over the lazy dog",
        "failed: there are no words in this text",
    }


def test_mandelbrot(world: World) -> None:
    printed = run(world, "mandelbrot.py", "--width", 120)
    assert "wrote mandelbrot.png: 120 x 90 pixels in 12 bands" in printed
    with Image.open(world.path / "mandelbrot.png") as image:
        picture = np.asarray(image).astype(int)
    assert picture.shape == (90, 120, 3)
    assert (picture == picture[::-1]).all()  # the set is symmetric about the real axis
    black = (picture == 0).all(axis=2)
    inside = black.mean() * 3.0 * 2.25  # of the plane's part that is shown
    assert inside == pytest.approx(1.5066, abs=0.1)  # the area of the set
    assert black[45, 88]  # the origin
    assert not black[:, :8].any()  # left of -2 there is nothing


def test_mandelbrot_writes_where_it_is_told(world: World) -> None:
    run(world, "mandelbrot.py", "--width", 32, "--slaves", 1, "small.png")
    with Image.open(world.path / "small.png") as image:
        assert image.size == (32, 24)


def test_identifiers(world: World) -> None:
    printed = run(world, "identifiers.py", "--files", 40, "--top", 5)
    assert re.search(r"\d+ names in 40 files", printed)
    rows = re.findall(r"│ (\w+) +│ +(\d+) │ +(\d+) │", printed)
    names, uses, files = zip(*rows, strict=True)
    assert len(names) == 5
    assert "self" in names
    assert not {"def", "return", "len", "print"} & set(names)
    assert [int(n) for n in uses] == sorted((int(n) for n in uses), reverse=True)
    assert all(0 < int(n) <= 40 for n in files)


def test_two_clients_of_one_task_manager(world: World) -> None:
    assert set(run(world, "two_clients.py").splitlines()) == {
        "the second client: 50 words in 10 texts",
        "the first client: 25000 words in 5000 texts",
    }


def test_numpy_arrays_gives_the_same_every_time(world: World) -> None:
    printed = run(world, "numpy_arrays.py")
    slope, error = map(float, re.findall(r"slope +(\S+) \+- (\S+)", printed)[0])
    assert slope == pytest.approx(2.0, abs=4 * error)
    assert 0 < error < 0.05
    assert run(world, "numpy_arrays.py") == printed


def test_squares_with_a_callback_and_a_store(world: World) -> None:
    arguments = ("squares.py", "--numbers", 30, "--store", "results.db")
    printed = run(world, *arguments)
    assert printed == "job 31: 4\nthe sum of 30 squares is 8555\n"
    assert run(world, *arguments) == printed  # from the store


@pytest.mark.parametrize("word", ["pool", "local"])
def test_one_word_makes_the_difference(world: World, word: str) -> None:
    assert run(world, "one_word.py", word) == "pi is about 3.144\n"


def test_sweep(world: World) -> None:
    printed = run(world, "sweep.py")
    found = {name: float(value) for name, value in re.findall(r"(\w+) +([\d.]+)  \(is", printed)}
    right = {"amplitude": 1.5, "damping": 0.8, "frequency": 3.0}
    assert found == pytest.approx(right, abs=0.05)
    assert re.search(r"\d{3,} evaluations", printed)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) <= 90
    assert text.startswith('"""')
    if name != "slave.py":
        assert f"python examples/{name}" in text.split('"""')[1]


def test_allocate(world: World) -> None:
    printed = run(world, "allocate.py")
    found = re.fullmatch(r"pi is about (\d\.\d+), by 2 workers \(local\)\n", printed)
    assert found is not None
    assert float(found[1]) == pytest.approx(3.1416, abs=0.02)  # six times the standard deviation
    assert not world.processes()

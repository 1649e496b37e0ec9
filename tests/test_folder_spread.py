"""Where bundles lie when there are too many for one directory: pure, by slaves, and in a job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Program, World, wait_until

from masterslave import initializeMasterProcess
from masterslave.folder import names
from masterslave.folder.finder import Finder
from masterslave.folder.place import Place
from masterslave.folder.shelves import Shelves
from masterslave.folder.spread import Spread
from masterslave.master import MasterProcess

KEY = b"k" * 32
SLAVE = """
    import os, time

    def do_twice(x):
        return 2 * x

    def do_gate(x, gate):
        while not os.path.exists(os.path.join(os.path.dirname(__file__), gate)):
            time.sleep(0.01)
        with open(os.path.join(os.path.dirname(__file__), "order"), "a") as file:
            file.write(f"{x}\\n")
        return x
"""


def put(spread: Spread, *bundles: str, priority: int = 0) -> list[str]:
    """Where these bundles go, once they are written."""
    places = []
    for bundle in bundles:
        where, is_missing = spread.place(bundle, priority)
        if is_missing:
            spread.made(where)
        spread.written(where)
        places.append(where)
    return places


def see(spread: Spread, where: str, files: int) -> bool:
    """A look at a directory while nothing is being written."""
    return spread.seen(where, files, spread.before_look(where))


def test_names_of_directories_are_read_again() -> None:
    for number, priority in ((1, 0), (12345, 7), (3, -(2**63))):
        name = names.directory_name(number, priority)
        assert names.parse_directory(name) == (name, number, priority)
        assert names.parse(name) is None
    assert names.directory_name(7, 0) == "0007"
    for name in ("1", "0001.in", "p5", "0001px", "square_1.1.in", "9" * 5000):
        assert names.parse_directory(name) is None


def test_few_bundles_need_no_directory_and_each_one_has_no_more_than_the_bound() -> None:
    spread = Spread(2, Counter({"": 0}))
    assert put(spread, "a", "b", "c", "d", "e") == ["", "", "0001", "0001", "0002"]
    assert put(spread, "f", priority=5) == ["0003p5"]
    assert spread.where("a") == ""
    assert spread.where("e") == "0002"
    assert spread.directories() == ["0001", "0002", "0003p5"]


def test_a_directory_that_has_served_is_removed_and_never_used_again() -> None:
    spread = Spread(2, Counter({"": 0}))
    put(spread, "a", "b", "c", "d", "e")
    assert not see(spread, "0001", 1)
    assert see(spread, "0001", 0)
    spread.removed("0001")
    assert spread.where("c") == ""
    assert not see(spread, "0002", 0)  # there is room in it, and none elsewhere
    assert not see(spread, "", 0)
    assert see(spread, "0002", 0)  # now there is
    spread.removed("0002")
    assert put(spread, "g", "h", "i") == ["", "", "0003"]


def test_a_directory_into_which_something_is_being_written_stays() -> None:
    spread = Spread(1, Counter({"": 1}))
    where, is_missing = spread.place("a", 0)
    assert is_missing
    assert spread.directories() == []  # who looked for it now would not find it
    spread.made(where)
    assert spread.directories() == [where]
    see(spread, "", 0)
    assert not see(spread, where, 0)
    before = spread.before_look(where)
    spread.written(where)
    assert not spread.seen(where, 0, before)  # it came just after the look
    assert see(spread, where, 0)


def test_what_comes_while_a_directory_is_listed_counts() -> None:
    spread = Spread(2, Counter({"": 0}))
    assert put(spread, "a") == [""]
    before = spread.before_look("")
    assert put(spread, "b") == [""]
    assert not spread.seen("", 1, before)
    assert put(spread, "c") == ["0001"]
    assert not see(spread, "", 1)  # one was taken and has ended
    assert put(spread, "d") == [""]


def test_a_directory_that_could_not_be_made_is_made_the_next_time() -> None:
    spread = Spread(1, Counter({"": 1}))
    for _ in range(2):
        where, is_missing = spread.place("a", 0)
        assert is_missing
        spread.written(where)
    spread.made(where)
    assert spread.directories() == [where]


def test_what_an_earlier_master_has_left_is_not_filled_again() -> None:
    spread = Spread(2, Counter({"": 2, "0004": 1}))
    assert put(spread, "a") == ["0005"]
    assert see(spread, "0004", 0)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "shared", KEY, make=True)


def lay_out(place: Place, where: str, *bundles: str) -> None:
    os.makedirs(place.at("tasks", where), exist_ok=True)
    for bundle in bundles:
        Path(place.at("tasks", where, f"{bundle}.in")).touch()


def test_the_most_urgent_is_taken_first_wherever_it_lies(place: Place) -> None:
    lay_out(place, "", "a_1.1", "a_2.1p3", "other_1.1p9")
    lay_out(place, "0001", "a_3.1")
    lay_out(place, "0002p5", "a_4.1p5")
    lay_out(place, "0003p-1", "a_5.1p-1")
    finder, tags = Finder(place), frozenset({"a"})
    claims = [finder.claim(float(now), tags) for now in range(5)]
    taken = [claim.bundle for claim in claims if claim]
    assert (taken[0], taken[1], taken[4]) == ("a_4.1p5", "a_2.1p3", "a_5.1p-1")
    assert set(taken[2:4]) == {"a_1.1", "a_3.1"}
    assert claims[0] is not None
    assert os.path.exists(place.at("tasks", "0002p5", claims[0].lock))
    assert finder.claim(9.0, tags) is None
    assert os.path.exists(place.at("tasks", "other_1.1p9.in"))


def test_two_slaves_take_all_that_lies_in_many_directories_once(place: Place) -> None:
    expected = set()
    for number in range(1, 6):
        bundles = [f"a_{number * 100 + i}.1" for i in range(20)]
        lay_out(place, names.directory_name(number, 0), *bundles)
        expected.update(bundles)
    other = Place(place.path, KEY)
    other.owner = "other-1"  # as another process would be called
    finders, tags = [Finder(place), Finder(other)], frozenset({"a"})
    taken: list[str] = []
    now = 0.0
    while len(taken) < len(expected):
        now += 0.06  # so a listing is used for some claims, and then is too old
        found = [finder.claim(now, tags) for finder in finders]
        assert any(found)
        taken += [claim.bundle for claim in found if claim]
    assert sorted(taken) == sorted(expected)
    assert [finder.claim(now + 1, tags) for finder in finders] == [None, None]


def test_a_directory_that_has_served_costs_no_more_looks_and_one_may_vanish(place: Place) -> None:
    lay_out(place, "0001", "other_1.1")
    lay_out(place, "0002", "a_2.1")
    finder, tags = Finder(place), frozenset({"a"})
    assert finder.claim(0.0, tags) is not None
    assert finder.claim(1.0, tags) is None
    looks: list[str] = []
    place.files.before = lambda kind, path: looks.append(path)
    assert finder.claim(2.0, tags) is None
    assert not [path for path in looks if path.endswith("0001")]
    lay_out(place, "0003", "a_3.1")
    for name in os.listdir(place.at("tasks", "0002")):
        os.unlink(place.at("tasks", "0002", name))
    os.rmdir(place.at("tasks", "0002"))
    claim = finder.claim(3.0, tags)
    assert claim is not None
    assert claim.bundle == "a_3.1"


def test_a_look_while_a_directory_is_made_forgets_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masterslave.folder.shelves.DIRECTORY_MOST", 1)
    shelves = Shelves(place)

    def look(kind: str, path: str) -> None:
        if kind == "mkdir":
            shelves.collect(0.0)

    place.files.before = look
    bundles = [f"a_{number}.1" for number in range(3)]
    for bundle in bundles:
        shelves.write(bundle, 0, {}, [])
    found = {found.entry.bundle: found.where for found in shelves.collect(1.0)}
    assert found == {"a_0.1": "", "a_1.1": "0001", "a_2.1": "0002"}
    assert all(map(shelves.take_back, bundles))


# --- jobs -----------------------------------------------------------------------------------


@pytest.fixture
def master(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[MasterProcess]:
    """A master in this process, with three files in a directory."""
    monkeypatch.setattr("masterslave.folder.shelves.DIRECTORY_MOST", 3)
    world.write("slave.py", SLAVE)
    monkeypatch.chdir(world.path)
    monkeypatch.syspath_prepend(str(world.path))
    made = initializeMasterProcess("demo", slave_module="slave", folder="shared")
    yield made
    made.shutdown()
    assert os.listdir(world.path / "shared" / "tasks") == []


def laid_out(world: World) -> dict[str, list[str]]:
    """Directory -> files in it."""
    tasks = world.path / "shared" / "tasks"
    found: dict[str, list[str]] = {}
    for path in tasks.rglob("*_*"):
        found.setdefault(path.parent.name, []).append(path.name)
    return found


def slave(world: World, workers: int = 1) -> Program:
    return world.task_manager("slave", "--folder", "shared", "-w", "-n", workers)


def test_a_job_in_many_directories(world: World, master: MasterProcess) -> None:
    slaves = [slave(world, 2) for _ in range(3)]
    master.requestTasks("gate", [(x, "open") for x in range(60)])
    wait_until(lambda: len(laid_out(world)) > 3, "it lies in several directories")
    assert all(len(files) <= 3 for name, files in laid_out(world).items() if name != "tasks")
    (world.path / "open").touch()
    got = sorted(result for _, _, result in master.results(timeout=100))
    assert got == list(range(60))
    master.requestTask("twice", 4)  # and where they were, there is room again
    assert master.retrieveResult(timeout=100)[2] == 8
    master.shutdown()
    for one in slaves:
        one.finish()
    assert os.listdir(world.path / "shared" / "refused") == []


def test_what_is_urgent_comes_first_also_in_a_directory_of_its_own(
    world: World, master: MasterProcess
) -> None:
    (world.path / "open").touch()
    master.requestTasks("gate", [(x, "open") for x in range(6)])
    wait_until(lambda: "0001" in laid_out(world), "the first directory is full")
    master.requestTask("gate", 100, "open", priority=5)
    wait_until(lambda: any(name.endswith("p5") for name in laid_out(world)), "it lies there")
    slave(world)
    got = sorted(result for _, _, result in master.results(timeout=100))
    assert got == [*range(6), 100]
    assert (world.path / "order").read_text().split()[0] == "100"


def test_what_is_cancelled_in_a_directory_is_taken_away(
    world: World, master: MasterProcess
) -> None:
    ids = master.requestTasks("gate", [(x, "never") for x in range(7)])
    wait_until(lambda: sum(map(len, laid_out(world).values())) == 7, "all lie there")
    assert {len(files) for files in laid_out(world).values()} <= {1, 2, 3}
    for task_id in ids:
        assert master.cancelTask(task_id)
    wait_until(lambda: os.listdir(world.path / "shared" / "tasks") == [], "nothing is left")


JOB = """
    import sys, time
    from masterslave import MasterProcess, SlaveProcess, runJob
    from masterslave.folder import shelves

    shelves.DIRECTORY_MOST = 3

    class Master(MasterProcess):
        def run(self):
            self.requestTasks("work", [(i,) for i in range(40)])
            print(sorted(i for _, _, i in self.results(timeout=100)) == list(range(40)), flush=True)

    class Slave(SlaveProcess):
        def do_work(self, i):
            with open("ran", "a") as file:
                file.write(f"{i}\\n")
            time.sleep(0.1)
            return i

    runJob("demo", Master, Slave, 1.0, folder="shared")
"""


def test_a_killed_master_goes_on_from_its_directories_and_killed_slaves_lose_nothing(
    world: World,
) -> None:
    job = world.script(JOB)
    first = [slave(world, 3) for _ in range(3)]
    wait_until(lambda: len(laid_out(world)) > 3, "it lies in several directories")
    wait_until(lambda: (world.path / "ran").exists(), "some tasks have run")
    job.kill()
    job.wait()
    first[0].kill()
    again = world.start(world.path / "script.py")
    assert again.finish() == "True\n"
    for one in first[1:]:
        one.finish()
    ran = [int(line) for line in (world.path / "ran").read_text().split()]
    assert set(ran) == set(range(40))
    assert os.listdir(world.path / "shared" / "tasks") == []

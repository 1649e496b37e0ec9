"""The benchmarks: their figures, targets and comparisons, and that every script can be asked."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, World

BENCHMARKS = ROOT / "benchmarks"
MODULES = ("work", "measure", "sessions", "peers", "cases", "check", "plots", "run", "ours")
SCRIPTS = sorted(
    path.name for path in BENCHMARKS.glob("*.py") if "ArgumentParser" in path.read_text()
)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules, imported as the scripts do; none of their names stays behind."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def run_of(**figures: dict[str, list[float]]) -> dict[str, Any]:
    """A run as `run.py` keeps it; "/" in a figure's name is written "__"."""
    return {
        "date": "2026-01-02",
        "machine": "2 cores",
        "python": "3.11.7",
        "versions": {"masterslave": "1.0"},
        "rounds": 3,
        "quick": False,
        "systems": ["ProcessPoolExecutor", "Ray"],
        "skipped": {"Dask": "not installed"},
        "troubles": {},
        "notes": {},
        "figures": {name.replace("__", "/"): values for name, values in figures.items()},
    }


POOL, RAY, OURS = "ProcessPoolExecutor", "Ray", "masterslave"


# --- targets --------------------------------------------------------------------------------


def verdicts(cases: ModuleType, run: dict[str, Any], figure: str) -> list[str]:
    return [check.verdict for check in cases.checks(run, figure)]


def test_a_target_is_a_ratio_of_medians(benchmarks: dict[str, ModuleType]) -> None:
    cases = benchmarks["cases"]
    run = run_of(
        one_by_one={OURS: [50.0, 900.0, 51.0]}, empty={POOL: [10.0, 1.0, 10.0], RAY: [3.0] * 3}
    )
    checks = cases.checks(run, "one_by_one")
    assert [check.value for check in checks] == [5.1, 17.0, None]
    assert [check.verdict for check in checks] == ["met", "missed", "not measured"]


def test_less_is_better_where_it_is_time(benchmarks: dict[str, ModuleType]) -> None:
    cases = benchmarks["cases"]
    run = run_of(trip={OURS: [0.002], POOL: [0.001], RAY: [0.1]})
    assert verdicts(cases, run, "trip") == ["missed", "met"]


def test_start_is_measured_by_a_bare_interpreter(benchmarks: dict[str, ModuleType]) -> None:
    cases = benchmarks["cases"]
    run = run_of(start={OURS: [0.4]}, **{"pass": {cases.PYTHON: [0.02]}})
    assert verdicts(cases, run, "start") == ["met"]


def test_a_journal_and_a_long_queue_are_compared_with_ourselves(
    benchmarks: dict[str, ModuleType],
) -> None:
    cases = benchmarks["cases"]
    run = run_of(
        empty={OURS: [1000.0]},
        journal__empty={OURS: [590.0]},
        queue__drain__10000={OURS: [100.0]},
        queue__drain__1000000={OURS: [81.0]},
    )
    assert verdicts(cases, run, "journal/empty") == ["missed"]
    assert verdicts(cases, run, "queue/drain/1000000") == ["met"]


def test_every_target_belongs_to_a_row(benchmarks: dict[str, ModuleType]) -> None:
    cases = benchmarks["cases"]
    assert set(cases.TARGETS) <= {figure.name for figure in cases.FIGURES}
    assert all(cases.checks(run_of(), figure) for figure in cases.TARGETS)


def test_the_table_has_what_was_measured(benchmarks: dict[str, ModuleType]) -> None:
    cases = benchmarks["cases"]
    run = run_of(one_by_one={OURS: [40.0]}, empty={POOL: [10.0]}, sleepers={OURS: [0.5]})
    lines = cases.table(run, [POOL]).splitlines()
    assert lines[0] == f"| | {OURS} | {POOL} | target: measured |".replace("| |", "|  |")
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [
        ["40/s", "10/s"],
        ["", "10/s"],
        ["50.0 %", ""],
    ]
    assert "at least 5 x process pool: 4, **missed**" in lines[2]
    assert "at least 95 %, **missed**" in lines[4]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12345.6, "/s", "12,346/s"),
        (4.25, "MB/s", "4.2 MB/s"),
        (0.0001234, "s", "123 us"),
        (0.0426, "s", "43 ms"),
        (1.5, "s", "1.50 s"),
        (734.2, "B", "734 B"),
        (81.5e6, "B", "82 MB"),
        (1.012, "", "101.2 %"),
        (None, "s", ""),
    ],
)
def test_values_are_shown_with_their_unit(
    benchmarks: dict[str, ModuleType], value: float | None, unit: str, text: str
) -> None:
    assert benchmarks["cases"].show(value, unit) == text


def test_a_run_says_what_it_skipped(benchmarks: dict[str, ModuleType]) -> None:
    text = benchmarks["cases"].describe(run_of())
    assert "Dask: not installed" in text
    assert "medians of 3 rounds" in text


# --- comparisons ----------------------------------------------------------------------------


def gains(check: ModuleType, new: dict[str, Any], old: dict[str, Any]) -> dict[str, float]:
    changes, _ = check.compare(new, old)
    return {change.figure.name: round(change.gain, 3) for change in changes}


def test_a_slower_machine_is_not_a_slower_library(benchmarks: dict[str, ModuleType]) -> None:
    check = benchmarks["check"]
    old = run_of(empty={OURS: [100.0], POOL: [10.0]}, trip={OURS: [0.1], POOL: [0.2]})
    new = run_of(empty={OURS: [50.0], POOL: [5.0]}, trip={OURS: [0.3], POOL: [0.6]})
    assert gains(check, new, old) == {"empty": 1.0, "trip": 1.0}


def test_what_lost_against_the_peers_is_slower(benchmarks: dict[str, ModuleType]) -> None:
    check = benchmarks["check"]
    old = run_of(empty={OURS: [100.0], POOL: [10.0]}, trip={OURS: [0.1], POOL: [0.2]})
    new = run_of(empty={OURS: [100.0], POOL: [10.0]}, trip={OURS: [0.2], POOL: [0.2]})
    changes, _ = check.compare(new, old)
    assert [change.figure.name for change in check.slower(changes)] == ["trip"]
    assert check.slower(changes, tolerance=1.5) == []


def test_one_peer_that_got_faster_does_not_decide(benchmarks: dict[str, ModuleType]) -> None:
    check = benchmarks["check"]
    third = {"systems": [POOL, RAY, "Dask"]}
    old = run_of(empty={OURS: [100.0], POOL: [10.0], RAY: [2.0], "Dask": [1.0]}) | third
    new = run_of(empty={OURS: [100.0], POOL: [10.0], RAY: [2.0], "Dask": [9.0]}) | third
    assert gains(check, new, old) == {"empty": 1.0}


def test_our_own_figures_are_measured_by_the_machines_speed(
    benchmarks: dict[str, ModuleType],
) -> None:
    check = benchmarks["check"]
    old = run_of(journal__empty={OURS: [60.0]}, empty={POOL: [10.0]})
    new = run_of(journal__empty={OURS: [30.0]}, empty={POOL: [10.0]})
    assert gains(check, new, old) == {"journal/empty": 0.5}


def test_shares_and_bytes_are_compared_as_they_are(benchmarks: dict[str, ModuleType]) -> None:
    check = benchmarks["check"]
    old = run_of(sleepers={OURS: [0.8]}, mixed={OURS: [1.0]}, crowd__bytes__1000={OURS: [100.0]})
    new = run_of(sleepers={OURS: [0.4]}, mixed={OURS: [2.0]}, crowd__bytes__1000={OURS: [50.0]})
    assert gains(check, new, old) == {"sleepers": 0.5, "mixed": 0.5, "crowd/bytes/1000": 2.0}


def test_what_is_no_longer_measured_is_named(benchmarks: dict[str, ModuleType]) -> None:
    check = benchmarks["check"]
    _, lost = check.compare(run_of(), run_of(sleepers={OURS: [0.8]}))
    assert [figure.name for figure in lost] == ["sleepers"]


def check_files(tmp_path: Path, new: dict[str, Any], old: dict[str, Any]) -> tuple[int, str]:
    for name, run in (("new", new), ("old", old)):
        (tmp_path / name).write_text(json.dumps(run))
    command = [sys.executable, str(BENCHMARKS / "check.py"), "new", "old"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_exit_status_of_check_tells(tmp_path: Path) -> None:
    old = run_of(empty={OURS: [100.0], POOL: [10.0]})
    assert check_files(tmp_path, old, old)[0] == 0
    new = run_of(empty={OURS: [10.0], POOL: [10.0]})
    status, text = check_files(tmp_path, new, old)
    assert (status, "SLOWER" in text) == (1, True)
    status, text = check_files(tmp_path, run_of(), old)
    assert (status, "nothing in common" in text) == (1, True)


# --- sessions -------------------------------------------------------------------------------


def test_figures_are_found_in_whatever_a_session_prints(
    benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    measure = benchmarks["measure"]
    print("some system says\nsomething without an end", end="")
    measure.report("empty", 12.5, "a note")
    measure.trouble("trip", ValueError("no\nway"))
    text = capsys.readouterr().out
    assert benchmarks["sessions"].parse(text) == (
        [("empty", 12.5, "a note")],
        ["trip: ValueError: no"],
    )


def test_a_session_that_hangs_is_ended_with_its_children(
    benchmarks: dict[str, ModuleType], tmp_path: Path
) -> None:
    import psutil

    script = tmp_path / "hang.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "                         start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    # Of its own process, which adopts orphans: the test's has other children.
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import sessions; sessions.adopt_orphans()\n"
        "outcome = sessions.run([sys.executable, *sys.argv[2:]], {}, 2.0)\n"
        "print(outcome.errors, outcome.left_over)\n"
    )
    child = tmp_path / "child"
    command = [sys.executable, str(driver), str(BENCHMARKS), str(script), str(child)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "['took more than 2 s'] 2", done.stderr
    assert not psutil.pid_exists(int(child.read_text()))


def test_the_tables_go_between_their_marks(benchmarks: dict[str, ModuleType]) -> None:
    run = benchmarks["run"]
    text = f"above\n{run.BEGIN}\nold\n{run.END}\nbelow\n"
    assert run.put_table(text, "new") == f"above\n{run.BEGIN}\nnew\n{run.END}\nbelow\n"
    with pytest.raises(ValueError, match="benchmark table"):
        run.put_table("no marks", "new")


@pytest.mark.parametrize("document", ["README.md", "benchmarks/README.md"])
def test_both_documents_have_the_marks(benchmarks: dict[str, ModuleType], document: str) -> None:
    text = (ROOT / document).read_text()
    assert benchmarks["run"].put_table(text, "new") != text


def test_each_round_begins_with_another_session(benchmarks: dict[str, ModuleType]) -> None:
    run, cases = benchmarks["run"], benchmarks["cases"]
    rounds = [run.plan(list(cases.CASES), 1.0, [POOL, RAY], number) for number in range(3)]
    assert len({tuple(plan[0].command) for plan in rounds}) == 3
    assert len({len(plan) for plan in rounds}) == 1
    assert {session.system for session in rounds[0]} == {OURS, POOL, RAY}


def test_only_our_own_cases_need_no_peers(benchmarks: dict[str, ModuleType]) -> None:
    plan = benchmarks["run"].plan(["mixed"], 1.0, [POOL, RAY], 0)
    assert [session.system for session in plan] == [OURS]


# --- plots ----------------------------------------------------------------------------------


def test_plots_are_drawn_of_what_was_measured(
    benchmarks: dict[str, ModuleType], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    run = run_of(
        efficiency__0__00001={OURS: [0.2, 0.3], POOL: [0.1]},
        efficiency__1={OURS: [0.9], POOL: [0.9], RAY: [0.8]},
        crowd__rate__1={OURS: [60000.0]},
        crowd__rate__1000={OURS: [9000.0]},
    )
    run["figures"]["efficiency/0.00001"] = run["figures"].pop("efficiency/0/00001")
    drawn = benchmarks["plots"].draw(run, tmp_path)
    assert [path.name for path in drawn] == ["efficiency.png", "slaves.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("seconds", 1e-5, "10 us"),
        ("seconds", 1e-3, "1 ms"),
        ("seconds", 0.1, "100 ms"),
        ("seconds", 1.0, "1 s"),
        ("bytes", 10_000, "10 KB"),
        ("bytes", 64_000_000, "64 MB"),
        ("bytes", 10, "10 B"),
        ("count", 1_000_000, "1,000,000"),
        ("count", 0.5, "0.5"),
        ("share", 0.2, "20 %"),
    ],
)
def test_axes_are_labelled_as_people_write(
    benchmarks: dict[str, ModuleType], kind: str, value: float, text: str
) -> None:
    assert getattr(benchmarks["plots"], f"{kind}_text")(value) == text


# --- what the mixed case is measured by -------------------------------------------------------


def test_mpi_starts_three_ranks_on_two_cores_for_root(
    benchmarks: dict[str, ModuleType], tmp_path: Path
) -> None:
    peers, sessions = benchmarks["peers"], benchmarks["sessions"]
    why = peers.missing(peers.PEERS["mpi4py.futures"])
    if why:
        pytest.skip(f"mpi4py.futures: {why}")
    command = peers.PEERS["mpi4py.futures"]().command()
    script = [str(BENCHMARKS / "peers.py"), "mpi4py.futures", "empty", "--scale", "0.02"]
    outcome = sessions.run([*command, *script], peers.ENVIRONMENT, 60, tmp_path / "log")
    assert outcome.errors == [], (tmp_path / "log").read_text()
    assert [figure for figure, _, _ in outcome.figures] == ["start", "empty"]


def test_only_chosen_peers_are_run(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = benchmarks["run"]
    monkeypatch.setattr(benchmarks["sessions"], "adopt_orphans", lambda: None)
    monkeypatch.setattr(
        sys, "argv", ["run.py", "--peer", "ProcessPoolExecutor", "--only", "trip", "--rounds", "0"]
    )
    assert run.measure(run.arguments())["systems"] == ["ProcessPoolExecutor"]


def test_a_greedy_scheduler_gives_each_task_to_the_first_free_worker(
    benchmarks: dict[str, ModuleType],
) -> None:
    makespan_s = benchmarks["ours"].greedy_makespan_s
    assert makespan_s([3.0, 1.0, 1.0, 2.0], 2) == 4.0
    assert makespan_s([1.0] * 6, 3) == 2.0
    assert makespan_s([], 2) == 0.0


def test_mixed_durations_have_a_heavy_tail_and_are_the_same_again(
    benchmarks: dict[str, ModuleType],
) -> None:
    lengths = benchmarks["ours"].heavy_tailed(1600, 3)
    assert lengths == benchmarks["ours"].heavy_tailed(1600, 3)
    assert min(lengths) >= 0.001
    assert max(lengths) == 2.0
    assert sorted(lengths)[800] < 0.005


# --- scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_answers_help(world: World, script: str) -> None:
    program = world.start(BENCHMARKS / script, "--help")
    assert "usage:" in program.finish()


def test_the_peers_are_named_with_what_is_missing(world: World) -> None:
    lines = world.start(BENCHMARKS / "peers.py").finish().splitlines()
    assert len(lines) == 9
    assert any(line.split() == [POOL, "here"] for line in lines)
    for line in lines:
        assert line.endswith(("here", "not installed")) or "there is no" in line


def test_a_profile_of_the_layers_can_be_made(world: World) -> None:
    program = world.start(BENCHMARKS / "profile_task.py", "--no-job")
    out = program.finish()
    assert "?" not in out, program.err
    assert out.count("\n|") > len(("client", "manager", "queue", "wire", "slave", "pipe"))


def test_a_profile_of_a_trip_has_all_its_hops(world: World) -> None:
    out = world.start(BENCHMARKS / "profile_trip.py", "--trips", "30").finish()
    rows = [line.split("|")[1:4] for line in out.splitlines() if line.startswith("|")][2:]
    assert [row[0].strip() for row in rows][-2:] == ["all", "a process pool, beside it"]
    hops, total = [float(row[1]) for row in rows[:-2]], float(rows[-2][1])
    assert len(hops) == 7
    assert all(0 < hop < total for hop in hops)

"""The same programs over every substrate: the same results, the same exceptions."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, free_port, wait_until
from contract import COLUMNS, DIFFERENCES, SUBSTRATES, WITHOUT
from engines import ENGINES
from leftovers import library_threads

from masterslave import (
    DataNotFound,
    GlobalStateValue,
    MasterProcess,
    PayloadError,
    RemoteException,
    ResultTimeout,
    Settings,
    SettingsError,
    TaskRaisedException,
    TaskTimedOut,
    UnknownTask,
    WorkerCrashed,
    initializeMasterProcess,
    slavecode,
)
from masterslave.service import Service
from masterslave.supervisor import Supervisor
from masterslave.transports.memory import MemoryLink
from masterslave.ways import Circumstances, circumstances

ENOUGH_S = 60.0  # for whatever must come


def processes() -> Executor:
    """Not forked: this process has threads."""
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


@contextlib.contextmanager
def over_memory() -> Iterator[MasterProcess]:
    """Slaves in this very process, whose workers are processes as ever."""
    with over_network(launch=False) as master:
        manager = master.task_manager
        settings = Settings.from_environment()
        supervisor = Supervisor("demo", lambda: MemoryLink(manager), 2, settings, None)
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        try:
            yield master
        finally:
            manager.terminate()
            thread.join()


@contextlib.contextmanager
def over_network(*, launch: bool = True) -> Iterator[MasterProcess]:
    master = initializeMasterProcess("demo", slave_module="contract", use_name_server=False)
    try:
        if launch:
            master.launchSlaveJobs(1, workers=2)
        yield master
    finally:
        master.shutdown()


@contextlib.contextmanager
def attached() -> Iterator[MasterProcess]:
    """A client of a task manager that is served elsewhere."""
    settings = Settings.from_environment()
    service = Service("demo", settings, use_name_server=False, keep=True)
    code = {**slavecode.module_record("contract"), "shared_main": False}
    try:
        with circumstances(Circumstances(code)):
            master = MasterProcess("demo", attach=True, master_host=service.address)
        try:
            master.launchSlaveJobs(1, workers=2)
            yield master
        finally:
            master.shutdown()
    finally:
        service.end_job(ENOUGH_S)
        service.stop()


@contextlib.contextmanager
def in_a_folder() -> Iterator[MasterProcess]:
    """No network: slaves and their master meet in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        master = initializeMasterProcess("demo", slave_module="contract", folder=folder)
        try:
            master.launchSlaveJobs(1, workers=2)
            yield master
        finally:
            master.shutdown()


@contextlib.contextmanager
def on_executor(make: Callable[[], Executor]) -> Iterator[MasterProcess]:
    with make() as pool:
        master = initializeMasterProcess("demo", slave_module="contract", executor=pool)
        try:
            yield master
        finally:
            master.shutdown()


@contextlib.contextmanager
def on_engine(name: str) -> Iterator[MasterProcess]:
    with ENGINES[name]() as executor:
        master = initializeMasterProcess("demo", slave_module="contract", executor=executor)
        try:
            yield master
        finally:
            master.shutdown()


OPEN: dict[str, Callable[[], contextlib.AbstractContextManager[MasterProcess]]] = {
    "memory": over_memory,
    "network": over_network,
    "unshared": over_network,
    "attached": attached,
    "folder": in_a_folder,
    "threads": lambda: on_executor(lambda: ThreadPoolExecutor(2)),
    "processes": lambda: on_executor(processes),
    **{name: functools.partial(on_engine, name) for name in ENGINES},
}

#: What is tested in this session: `test_engines` starts one for each engine.
TESTED = [os.environ["CONTRACT_ENGINE"]] if "CONTRACT_ENGINE" in os.environ else SUBSTRATES


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("MASTERSLAVE_PORT", "0")
        patch.setenv("MASTERSLAVE_BROADCAST", "0")
        patch.setenv("PYRO_NS_PORT", str(free_port()))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield patch


@pytest.fixture(scope="module", params=TESTED)
def substrate(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def master(home: pytest.MonkeyPatch, substrate: str) -> Iterator[MasterProcess]:
    home.setenv("MASTERSLAVE_SHARED_MEMORY", "0" if substrate == "unshared" else "1")
    with OPEN[substrate]() as master:
        yield master
    wait_until(lambda: not library_threads(), "the threads have ended")


def needs(substrate: str, capability: str) -> None:
    if substrate in WITHOUT[capability]:
        pytest.skip(f"{substrate} cannot: see DIFFERENCES")


def failure(master: MasterProcess) -> TaskRaisedException:
    with pytest.raises(TaskRaisedException) as caught:
        master.retrieveResult(timeout=ENOUGH_S)
    return caught.value


def value(master: MasterProcess) -> object:
    return master.retrieveResult(timeout=ENOUGH_S)[2]


def test_results_of_many_tasks(master: MasterProcess) -> None:
    ids = master.requestTasks("square", [(i,) for i in range(500)])
    got = {task_id: result for task_id, _, result in master.results(timeout=ENOUGH_S)}
    assert got == dict(zip(ids, (i * i for i in range(500)), strict=True))


def test_results_by_tag(master: MasterProcess) -> None:
    master.requestTask("square", 3)
    master.requestTask("sum", [1, 2])
    assert master.retrieveResult("sum", timeout=ENOUGH_S)[1:] == ("sum", 3)
    assert master.retrieveResult("square", timeout=ENOUGH_S)[1:] == ("square", 9)


def test_results_by_tag_and_then_of_any(master: MasterProcess) -> None:
    ids = master.requestTasks("square", [(i,) for i in range(300)])
    got = [master.retrieveResult("square", timeout=ENOUGH_S)[0] for _ in range(160)]
    got += [task_id for task_id, _, _ in master.results(timeout=ENOUGH_S)]
    assert sorted(map(str, got)) == sorted(ids)


def test_large_arrays_are_writable_there_and_here(master: MasterProcess) -> None:
    master.requestTask("reverse", np.arange(500_000))
    back = value(master)
    assert isinstance(back, np.ndarray)
    assert (back[-1], back[0]) == (7, 499_999)
    back[0] = 1


def test_the_handlers_exception_with_its_traceback(master: MasterProcess) -> None:
    task_id = master.requestTask("raise", "gone")
    failed = failure(master)
    assert (failed.task_id, failed.tag) == (task_id, "raise")
    assert isinstance(failed.exception, KeyError)
    assert failed.exception.args == ("gone",)
    assert failed.traceback.startswith("Traceback")
    assert "in do_raise" in failed.traceback
    assert "guest.py" not in failed.traceback


def test_system_exit_is_the_tasks_failure(master: MasterProcess) -> None:
    master.requestTask("leave")
    assert isinstance(failure(master).exception, SystemExit)
    master.requestTask("square", 2)
    assert value(master) == 4


def test_what_cannot_be_pickled(master: MasterProcess) -> None:
    master.requestTask("lock")
    failed = failure(master)
    assert isinstance(failed.exception, PayloadError)
    assert "result (a _thread.lock) cannot be pickled" in str(failed.exception)
    master.requestTask("raise_unpicklable")
    failed = failure(master)
    assert isinstance(failed.exception, RemoteException)
    assert failed.exception.type_name == "contract.Unpicklable"
    with pytest.raises(PayloadError, match=r"parameters\[0\]"):
        master.requestTask("square", threading.Lock())


def test_retries(master: MasterProcess, tmp_path: Path) -> None:
    master.requestTask("third_time", str(tmp_path / "enough"), retries=2)
    assert value(master) == "done"
    master.requestTask("third_time", str(tmp_path / "too-few"), retries=1, backoff=0.01)
    assert isinstance(failure(master).exception, ValueError)


def test_priorities(master: MasterProcess, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    for number in range(2):  # all workers are busy; one of them stays so
        master.requestTask(
            "touch", str(tmp_path / f"runs-{number}"), str(tmp_path / f"gate-{number}")
        )
    wait_until(lambda: all((tmp_path / f"runs-{n}").exists() for n in range(2)), "both run")
    for number, priority in enumerate((0, 2, 1)):
        master.requestTask("note", str(notes), str(number), priority=priority)
    (tmp_path / "gate-0").touch()
    for _ in range(3):
        master.retrieveResult("note", timeout=ENOUGH_S)
    assert notes.read_text() == "120"
    (tmp_path / "gate-1").touch()
    assert len(list(master.results(timeout=ENOUGH_S))) == 2


def test_global_state(master: MasterProcess) -> None:
    state = master.setGlobalState(values=[1, 2, 3], more=4)
    parameters = GlobalStateValue(state, "values"), GlobalStateValue(state, "more")
    master.requestTasks("sum", [parameters] * 6)
    assert [result for _, _, result in master.results(timeout=ENOUGH_S)] == [10] * 6
    master.deleteGlobalState(state)
    with pytest.raises(DataNotFound):
        master.deleteGlobalState(state)
    master.requestTask("sum", GlobalStateValue(state, "values"))
    assert isinstance(failure(master).exception, DataNotFound)
    again = master.setGlobalState(values=[1, 2, 3], more=4)
    assert again == state
    master.requestTask("sum", *parameters)
    assert value(master) == 10


def test_a_result_that_does_not_come_in_time(master: MasterProcess, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    master.requestTask("touch", str(tmp_path / "runs"), str(gate))
    with pytest.raises(ResultTimeout, match=r"within 0\.01 s"):
        master.retrieveResult(timeout=0.01)
    gate.touch()
    assert value(master) == "done"


def test_a_time_limit(master: MasterProcess, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task_id = master.requestTask("touch", str(tmp_path / "runs"), str(gate), timeout=0.3)
    failed = failure(master)
    assert failed.task_id == task_id
    assert isinstance(failed.exception, TaskTimedOut)
    assert "time limit of 0.3 s" in failed.traceback
    gate.touch()  # whoever cannot be killed ends now, and its late result is nobody's
    master.requestTasks("square", [(i,) for i in range(4)])
    assert sum(result for _, _, result in master.results(timeout=ENOUGH_S)) == 14


def test_cancelled_tasks_give_no_result(master: MasterProcess, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task_id = master.requestTask("touch", str(tmp_path / "runs"), str(gate))
    wait_until((tmp_path / "runs").exists, "it runs")
    assert master.cancelTask(task_id)
    gate.touch()
    master.requestTask("square", 5)
    assert [result for _, _, result in master.results(timeout=ENOUGH_S)] == [25]
    with pytest.raises((UnknownTask, SettingsError)):
        master.cancelTask("no_such_7")


def test_a_handler_that_ends_its_process(master: MasterProcess, substrate: str) -> None:
    needs(substrate, "crash")
    guilty = master.requestTask("die", crash_limit=2)
    others = master.requestTasks("square", [(i,) for i in range(10)], crash_limit=2)
    failed, done = [], []
    for _ in range(11):
        try:
            done.append(master.retrieveResult(timeout=ENOUGH_S)[0])
        except TaskRaisedException as error:
            failed.append(error)
    assert sorted(done) == sorted(others)
    assert [error.task_id for error in failed] == [guilty]
    assert isinstance(failed[0].exception, WorkerCrashed)
    told = re.findall(r"^attempt \d+: ", failed[0].traceback, re.MULTILINE)
    assert len(told) == 2  # there may be one between them that never began


def test_statistics(master: MasterProcess, capsys: pytest.CaptureFixture[str]) -> None:
    master.requestTask("square", 2)
    assert value(master) == 4
    master.printStatistics()
    shown = capsys.readouterr().out
    assert "waiting tasks" in shown
    assert "square" in shown  # what the slave handles


def test_the_programs_run_on_every_substrate_that_is_declared() -> None:
    assert set(OPEN) == {*SUBSTRATES, *ENGINES}
    assert set().union(*WITHOUT.values()) <= set(OPEN)


def test_the_readme_has_the_table_of_differences() -> None:
    lines = ["|  | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {what} | {' | '.join(how)} |" for what, how in DIFFERENCES.items()]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in text, "put this into the README:\n" + "\n".join(lines)


def test_a_journal_and_an_executor(
    home: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had finished is not run again by the next run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    notes = tmp_path / "notes"
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            master = initializeMasterProcess(
                "demo", slave_module="contract", executor=pool, journal=tmp_path / "journal.db"
            )
            master.requestTask("note", str(notes), "x")
            assert value(master) == "x"
            master.shutdown()
    assert notes.read_text() == "x"

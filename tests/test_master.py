"""The master's methods, in this process, with real slaves where a task has to be run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import PATIENCE_S, World, wait_until
from mastering import failure, running_worker

from masterslave import (
    MasterProcess,
    Observer,
    ResultTimeout,
    SettingsError,
    TaskRaisedException,
    TaskTimedOut,
    UnknownTask,
    WorkerCrashed,
    getMachineInfo,
    payload,
)
from masterslave import master as master_module

# --- results ----------------------------------------------------------------------------------


def test_task_ids_are_tag_and_number(master: MasterProcess) -> None:
    assert master.requestTask("sqrt", 1.0) == "sqrt_0"
    assert master.requestTask("sum", 1, 2) == "sum_1"
    assert master.requestTasks("sqrt", [(2.0,), (3.0,)]) == ["sqrt_2", "sqrt_3"]
    assert master.requestTasks("sqrt", []) == []


@pytest.mark.parametrize("large", [np.zeros(1 << 14), "x" * 4000], ids=["array", "text"])
def test_large_parameters_are_handed_over_as_they_come(
    master: MasterProcess, monkeypatch: pytest.MonkeyPatch, large: Any
) -> None:
    """So slaves begin while the next ones are pickled."""
    two = 2 * sum(map(len, payload.Codec().encode((0, large))))
    monkeypatch.setattr(master_module, "_REQUEST_BYTES", two)
    waiting = []

    def parameters() -> Iterator[tuple[Any, ...]]:
        for number in range(6):
            waiting.append(master.task_manager.numberOfTasks()[0].get("sqrt", 0))
            yield number, large

    assert len(master.requestTasks("sqrt", parameters())) == 6
    assert waiting == [0, 0, 2, 2, 4, 4]


def test_many_tasks_come_back_each_once(served: MasterProcess) -> None:
    ids = served.requestTasks("square", ([x] for x in range(500)))
    got = {task_id: (tag, result) for task_id, tag, result in served.results()}
    assert got == {task_id: ("square", x * x) for x, task_id in enumerate(ids)}


def test_results_of_one_tag_are_taken_among_others(served: MasterProcess) -> None:
    served.requestTask("square", 3)
    served.requestTask("divide", 6, 4)
    assert served.retrieveResult("divide") == ("divide_1", "divide", 1.5)
    assert served.retrieveResult("square") == ("square_0", "square", 9)


def test_results_ends_when_nothing_is_outstanding(served: MasterProcess) -> None:
    assert list(served.results()) == []
    served.requestTasks("square", [(1,), (2,)])
    left = served.requestTask("divide", 6, 4)
    assert sorted(result for _, _, result in served.results("square")) == [1, 4]
    assert list(served.results()) == [(left, "divide", 1.5)]


def test_results_includes_tasks_requested_meanwhile(served: MasterProcess) -> None:
    served.requestTask("square", 2)
    seen = []
    for _, _, result in served.results():
        seen.append(result)
        if result < 1000:
            served.requestTask("square", result)
    assert seen == [4, 16, 256, 65536]


def test_leaving_a_loop_loses_no_result(served: MasterProcess) -> None:
    served.requestTasks("square", ((x,) for x in range(200)))
    left = served.requestTask("divide", 6, 4)
    wait_until(lambda: served.task_manager.numberOfTasks()[2].get("square", 0) == 200)
    loop = served.results()
    got = {next(loop)[2], next(loop)[2]}  # more of them were taken at once
    assert served.retrieveResult("divide") == (left, "divide", 1.5)
    got.add(served.retrieveResult("square")[2])
    for _, _, result in served.results("square"):
        got.add(result)
        break
    got.update(result for _, _, result in served.results())
    assert got == {x * x for x in range(200)}
    assert next(loop, None) is None


def test_a_waiting_thread_gets_its_result_though_others_take_many(served: MasterProcess) -> None:
    """What it waits for must not lie in what another thread has taken and left."""
    got: list[object] = []
    threads = [
        threading.Thread(target=lambda: got.append(served.retrieveResult("square")[2]))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    served.requestTasks("square", ((x,) for x in range(100)))
    loop = served.results("square")
    first = next(loop)[2]  # and then this thread takes no more
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    rest = [result for _, _, result in served.results()]
    assert sorted([first, *got, *rest], key=int) == [x * x for x in range(100)]


def test_results_goes_on_after_a_failure(served: MasterProcess) -> None:
    served.requestTasks("divide", [(1, 0), (1, 1), (2, 0), (2, 1)])
    got, failed = [], []
    while len(got) + len(failed) < 4:
        try:
            for _, _, result in served.results():
                got.append(result)
        except TaskRaisedException as error:
            failed.append(error.task_id)
    assert sorted(got) == [1, 2]
    assert sorted(failed) == ["divide_0", "divide_2"]


def test_leaving_results_early_loses_nothing(served: MasterProcess) -> None:
    served.requestTasks("square", [(x,) for x in range(10)])
    got = []
    for _, _, result in served.results():
        got.append(result)
        if len(got) == 3:
            break
    got += [result for _, _, result in served.results()]
    assert sorted(got) == [x * x for x in range(10)]


def test_retrieve_result_gives_up_after_its_timeout(master: MasterProcess) -> None:
    master.requestTask("square", 2)
    for timeout in (0, 0.01):
        with pytest.raises(ResultTimeout) as caught:
            master.retrieveResult(timeout=timeout)
        assert isinstance(caught.value, TimeoutError)
    with pytest.raises(ResultTimeout, match=r"of tag 'square' within 0.01 s"):
        master.retrieveResult("square", timeout=0.01)
    with pytest.raises(ResultTimeout, match=r"within 0.01 s"):
        list(master.results(timeout=0.01))
    master.launchSlaveJobs()
    assert master.retrieveResult() == ("square_0", "square", 4)  # nothing was lost by waiting


def test_results_are_retrieved_from_several_threads(served: MasterProcess) -> None:
    got: list[int] = []

    def collect() -> None:
        got.extend(served.retrieveResult()[2] for _ in range(20))

    threads = [threading.Thread(target=collect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for x in range(80):
        served.requestTask("square", x)
    for thread in threads:
        thread.join()
    assert sorted(got) == [x * x for x in range(80)]


# --- priority, retries, limits, cancelling ----------------------------------------------------


def test_tasks_run_by_priority_then_in_order_of_request(master: MasterProcess) -> None:
    for priority in (0, 2, -1, 2, 0):
        master.requestTask("order", priority, priority=priority)
    master.launchSlaveJobs()
    assert [result for _, _, result in master.results()] == [2, 2, 0, 0, -1]
    assert Path("order").read_text().split() == ["2", "2", "0", "0", "-1"]


def test_an_exception_is_answered_by_retries(served: MasterProcess) -> None:
    served.requestTask("third_time", "a", retries=2)
    assert served.retrieveResult()[2] == "done"
    served.requestTask("third_time", "b", retries=1)
    error = failure(served)
    assert str(error.exception) == "not yet"
    assert Path("b").read_text() == ".."
    served.requestTask("third_time", "c")
    assert failure(served).tag == "third_time"
    assert Path("c").read_text() == "."


def test_a_task_is_killed_at_its_time_limit(served: MasterProcess, world: World) -> None:
    served.requestTask("wait", timeout=0.3)
    served.requestTask("square", 5)
    error = failure(served)
    assert type(error.exception) is TaskTimedOut
    assert "time limit of 0.3 s" in error.traceback
    assert not psutil.pid_exists(running_worker(world.path))
    assert served.retrieveResult() == ("square_1", "square", 25)


def test_a_task_that_kills_its_worker_is_given_up_at_its_crash_limit(
    served: MasterProcess,
) -> None:
    served.requestTask("die", crash_limit=2)
    served.requestTask("square", 5)
    assert served.retrieveResult("square")[2] == 25
    error = failure(served)
    assert type(error.exception) is WorkerCrashed
    assert error.traceback.count("SIGSEGV") == 2
    assert "the last words" in error.traceback


def test_a_waiting_task_is_cancelled(master: MasterProcess) -> None:
    first, second = master.requestTasks("count", [("first",), ("second",)])
    assert master.cancelTask(first)
    assert not master.cancelTask(first)
    master.launchSlaveJobs()
    assert [task_id for task_id, _, _ in master.results()] == [second]
    assert not Path("first").exists()
    assert not master.cancelTask(second)


def test_a_running_task_is_cancelled_and_its_worker_replaced(
    served: MasterProcess, world: World
) -> None:
    task_id = served.requestTask("wait")
    pid = running_worker(world.path)
    assert served.cancelTask(task_id)
    wait_until(lambda: not psutil.pid_exists(pid), "the worker ends")
    served.requestTask("square", 5)
    assert [result for _, _, result in served.results()] == [25]


def test_cancelling_ends_the_wait_of_results(master: MasterProcess) -> None:
    task_id = master.requestTask("square", 2)
    collected: list[list[object]] = []
    thread = threading.Thread(target=lambda: collected.append(list(master.results())))
    thread.start()
    wait_until(lambda: master.task_manager.status()["client_waits"], "the thread waits")
    master.cancelTask(task_id)
    thread.join()
    assert collected == [[]]


def test_an_unknown_task_cannot_be_cancelled(master: MasterProcess) -> None:
    for wrong in ("square_0", "nonsense", ""):
        with pytest.raises(UnknownTask, match="was ever requested"):
            master.cancelTask(wrong)


# --- wrong use --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.requestTask("t", priority="high"), "priority='high': must be an integer"),
        (lambda m: m.requestTask("t", priority=1.5), "priority=1.5: must be an integer"),
        (lambda m: m.requestTask("t", timeout=0), "timeout=0: must be a positive number"),
        (lambda m: m.requestTask("t", timeout="1"), "timeout='1': must be a positive number"),
        (lambda m: m.requestTask("t", retries=-1), "retries=-1: must be"),
        (lambda m: m.requestTask("t", crash_limit=0), "crash_limit=0: must be"),
        (lambda m: m.requestTask("t", key=1), "key=1: must be a string"),
        (lambda m: m.requestTasks("t", [(1,)], retries=None), "retries=None: must be"),
        (lambda m: m.requestTasks("t", [], retries=None), "retries=None: must be"),
        (lambda m: m.requestTask(5), "tag=5: must be"),
        (lambda m: m.requestTask(""), "tag='': must be"),
        (lambda m: m.requestTasks("t", [1, 2]), "must be a tuple of parameters, not int 1"),
        (lambda m: m.requestTasks("t", ["ab"]), "must be a tuple of parameters, not str 'ab'"),
        (lambda m: m.requestTasks("t", 5), "parameter_tuples=5 must be"),
        (lambda m: m.retrieveResult(timeout="1"), "timeout='1': must be"),
        (lambda m: m.retrieveResult(3, timeout=0), "tag=3: must be"),
        (lambda m: list(m.results(timeout="1")), "timeout='1': must be"),
        (lambda m: m.launchSlaveJobs("2"), "n='2' must be"),
        (lambda m: m.launchSlaveJobs(-1), "n=-1 must be"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    master: MasterProcess, call: Callable[[MasterProcess], object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        call(master)
    assert master.task_manager.numberOfTasks() == [{}, {}, {}]


def test_slaves_cannot_be_launched_without_code(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTERSLAVE_PORT", "0")
    master = MasterProcess("demo", use_name_server=False)
    try:
        with pytest.raises(SettingsError, match="no slave code is known; use runJob"):
            master.launchSlaveJobs()
    finally:
        master.shutdown()


# --- what can be seen -------------------------------------------------------------------------


def test_numbers_of_tasks_and_processes(master: MasterProcess, world: World) -> None:
    master.requestTasks("wait", [()] * 2)
    assert master.task_manager.numberOfTasks() == [{"wait": 2}, {}, {}]
    assert master.task_manager.numberOfActiveProcesses() == 1
    master.launchSlaveJobs()
    running_worker(world.path)
    assert master.task_manager.numberOfTasks() == [{"wait": 1}, {"wait": 1}, {}]
    assert master.task_manager.numberOfActiveProcesses() == 2
    infos = [
        master.task_manager.activeProcessInfo(process_id)
        for process_id in master.task_manager.activeProcesses()
    ]
    assert infos[0] == getMachineInfo()
    assert infos[1] != infos[0]


def test_machine_info_identifies_the_process() -> None:
    info = getMachineInfo()
    assert info == f"PID {os.getpid()} on {os.uname().nodename} ({os.uname().machine})"


def test_observers_are_told_and_may_fail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.path)
    monkeypatch.setenv("MASTERSLAVE_PORT", "0")
    world.write("handlers.py", "def do_square(x):\n    return x * x\n")
    told: list[tuple[str, ...]] = []

    class Recorder(Observer):
        def task_requested(self, task_id: str, tag: str) -> None:
            told.append(("requested", task_id, tag))
            raise RuntimeError("is logged and goes no further")

        def task_finished(self, task_id: str, tag: str, outcome: str, duration_s: float) -> None:
            told.append(("finished", task_id, tag, outcome))
            assert duration_s >= 0

        def process_joined(self, process_id: int, info: str) -> None:
            told.append(("joined", info))

        def process_left(self, process_id: int, info: str, reason: str) -> None:
            told.append(("left", reason))

    from masterslave.slavecode import module_record

    master = MasterProcess("demo", use_name_server=False, observers=[Recorder()])
    try:
        monkeypatch.syspath_prepend(world.path)
        master.keep_slave_code(module_record("handlers"))
        master.launchSlaveJobs()
        master.requestTask("square", 3)
        master.requestTask("square", "x")
        assert master.retrieveResult()[2] == 9
        failure(master)
    finally:
        master.shutdown()
    assert told[0] == ("joined", getMachineInfo())
    assert [one for one in told if one[0] == "requested"] == [
        ("requested", "square_0", "square"),
        ("requested", "square_1", "square"),
    ]
    assert [one for one in told if one[0] == "finished"] == [
        ("finished", "square_0", "square", "result"),
        ("finished", "square_1", "square", "exception"),
    ]
    assert ("left", "unregistered") in told

"""The master's methods, in this process, with real slaves where a task has to be run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import World, wait_until

from masterslave import (
    MasterProcess,
    Observer,
    PayloadError,
    RemoteException,
    ResultTimeout,
    SettingsError,
    TaskManagerTermination,
    TaskRaisedException,
    TaskTimedOut,
    UnknownTask,
    WorkerCrashed,
    getMachineInfo,
    initializeMasterProcess,
)

HANDLERS = """
    import os
    import signal
    import sys
    import time
    from masterslave import startSlaveProcess

    class Unpicklable(Exception):
        def __reduce__(self):
            raise TypeError("stays where it is")

    class TwoArguments(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")

    class Silent(Exception):
        def __str__(self):
            raise RuntimeError("has no text")

    def do_square(x):
        return x * x

    def do_order(x):
        with open("order", "a") as file:
            file.write(f"{x}\\n")
        return x

    def do_divide(a, b):
        return a / b

    def do_raise(name):
        if name == "SystemExit":
            sys.exit("leaves")
        if name == "KeyboardInterrupt":
            raise KeyboardInterrupt("interrupted")
        if name == "Silent":
            raise Silent("one")
        raise {"Unpicklable": Unpicklable, "TwoArguments": TwoArguments}[name]("one", "two")

    def do_lock():
        import threading
        return threading.Lock()

    def do_wait():
        with open("pid", "w") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(1000)

    def do_die():
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def do_count(name):
        with open(name, "a") as file:
            file.write(".")
        return os.path.getsize(name)

    def do_third_time(name):
        if do_count(name) < 3:
            raise ValueError("not yet")
        return "done"

    startSlaveProcess()
"""


@pytest.fixture
def master(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[MasterProcess]:
    """A master on a free port, without slaves; it knows code for them."""
    monkeypatch.chdir(world.path)
    monkeypatch.setenv("MASTERSLAVE_PORT", "0")
    world.write("slave.py", HANDLERS)
    master = initializeMasterProcess("demo", slave_script="slave.py", use_name_server=False)
    try:
        yield master
    finally:
        master.shutdown()


@pytest.fixture
def served(master: MasterProcess) -> MasterProcess:
    """The same with a slave of one worker."""
    master.launchSlaveJobs()
    return master


def failure(master: MasterProcess) -> TaskRaisedException:
    """The next result, which must be a failure."""
    with pytest.raises(TaskRaisedException) as caught:
        master.retrieveResult()
    return caught.value


def running_worker(folder: Path) -> int:
    """Wait until ``do_wait`` runs; the id of its process."""
    file = folder / "pid"
    wait_until(lambda: file.exists() and file.read_text().endswith(" "), "the task runs")
    return int(file.read_text())


# --- results ----------------------------------------------------------------------------------


def test_task_ids_are_tag_and_number(master: MasterProcess) -> None:
    assert master.requestTask("sqrt", 1.0) == "sqrt_0"
    assert master.requestTask("sum", 1, 2) == "sum_1"
    assert master.requestTasks("sqrt", [(2.0,), (3.0,)]) == ["sqrt_2", "sqrt_3"]
    assert master.requestTasks("sqrt", []) == []


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


# --- failures ---------------------------------------------------------------------------------


def test_what_a_handler_raises_arrives_with_its_remote_traceback(served: MasterProcess) -> None:
    task_id = served.requestTask("divide", 1, 0)
    error = failure(served)
    assert (error.task_id, error.tag) == (task_id, "divide")
    assert type(error.exception) is ZeroDivisionError
    assert str(error) == f"task {task_id} raised ZeroDivisionError: division by zero"
    assert "in do_divide" in error.traceback
    assert "return a / b" in error.traceback  # the line of the script, not only its number
    assert "masterslave" not in error.traceback.partition("do_divide")[0]
    assert error.traceback in str(error.__cause__)


def test_leaving_the_interpreter_is_an_exception_like_others(served: MasterProcess) -> None:
    served.requestTasks("raise", [("SystemExit",), ("KeyboardInterrupt",)])
    assert isinstance(failure(served).exception, SystemExit)
    assert isinstance(failure(served).exception, KeyboardInterrupt)
    served.requestTask("square", 2)
    assert served.retrieveResult()[2] == 4


def test_exceptions_that_cannot_travel_arrive_as_text(served: MasterProcess) -> None:
    served.requestTasks("raise", [("Unpicklable",), ("TwoArguments",), ("Silent",)])
    first, second, third = (failure(served).exception for _ in range(3))
    assert isinstance(first, RemoteException)
    assert first.type_name.endswith("Unpicklable")
    assert first.text == "('one', 'two')"
    assert isinstance(second, RemoteException)
    assert str(second).endswith("TwoArguments: one and two")
    assert "Silent" in repr(third)


def test_a_result_that_cannot_be_pickled_is_a_failure_of_its_task(served: MasterProcess) -> None:
    task_id = served.requestTask("lock")
    error = failure(served)
    assert isinstance(error.exception, PayloadError)
    assert f"the result of task {task_id}: lock" in str(error.exception)
    assert "cannot pickle" in error.traceback


def test_wrong_parameters_for_a_handler_are_a_failure_of_the_task(served: MasterProcess) -> None:
    served.requestTask("square", 1, 2)
    error = failure(served)
    assert isinstance(error.exception, TypeError)
    assert "do_square() takes 1 positional argument" in str(error.exception)


def test_a_parameter_that_cannot_be_pickled_fails_at_the_request(master: MasterProcess) -> None:
    with pytest.raises(PayloadError, match=r"parameters of a task 'square': .*lock") as caught:
        master.requestTask("square", threading.Lock())
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(PayloadError, match="parameters of a task 'square'"):
        master.requestTasks("square", [(1,), (threading.Lock(),)])
    assert master.task_manager.outstandingTasks(master.process_id) == 0


# --- the end ----------------------------------------------------------------------------------


def test_after_shutdown_no_results_and_no_requests(master: MasterProcess) -> None:
    master.requestTask("square", 2)
    master.shutdown()
    master.shutdown()
    assert master.retrieveResult() == (None, None, None)
    assert master.retrieveResult("square", timeout=1) == (None, None, None)
    assert list(master.results()) == []
    with pytest.raises(TaskManagerTermination):
        master.requestTask("square", 2)
    with pytest.raises(TaskManagerTermination):
        master.requestTasks("square", [(2,)])


def test_results_that_came_before_shutdown_can_be_retrieved_after_it(
    served: MasterProcess,
) -> None:
    served.requestTask("square", 3)
    wait_until(lambda: served.task_manager.numberOfTasks()[2], "the task has finished")
    served.shutdown()
    assert served.retrieveResult() == ("square_0", "square", 9)
    assert served.retrieveResult() == (None, None, None)


def test_shutdown_ends_a_wait_in_another_thread(master: MasterProcess) -> None:
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(master.retrieveResult()))
    thread.start()
    wait_until(lambda: master.task_manager.status()["client_waits"], "the thread waits")
    master.shutdown()
    thread.join()
    assert got == [(None, None, None)]


def test_shutdown_ends_slaves_and_a_running_task(served: MasterProcess, world: World) -> None:
    served.requestTask("wait")
    pid = running_worker(world.path)
    slaves = [slave["pid"] for slave in served.task_manager.status()["slaves"]]
    served.shutdown()
    assert len(slaves) == 1
    assert not psutil.pid_exists(slaves[0])
    wait_until(lambda: not psutil.pid_exists(pid), "the worker has ended")


def test_start_runs_and_shuts_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTERSLAVE_PORT", "0")
    ran = []

    class Master(MasterProcess):
        def run(self) -> None:
            ran.append(self.requestTask("square", 1))

    master = Master("demo", use_name_server=False)
    master.start()
    assert ran == ["square_0"]
    assert master.retrieveResult() == (None, None, None)
    bare = MasterProcess("demo", use_name_server=False)
    with pytest.raises(NotImplementedError, match="must override run"):
        bare.start()


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

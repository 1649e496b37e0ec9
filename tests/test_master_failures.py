"""What a master hears of tasks that fail, and what its end does."""

from __future__ import annotations

import threading

import psutil
import pytest
from conftest import World, wait_until
from mastering import failure, running_worker

from masterslave import (
    MasterProcess,
    PayloadError,
    RemoteException,
    TaskManagerTermination,
)

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
    assert f"the result of task {task_id}: result (a _thread.lock)" in str(error.exception)
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

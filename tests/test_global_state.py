"""Global state: fetched once per slave, shared by its workers, gone when it is deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import World, wait_until

from masterslave import (
    DataNotFound,
    GlobalStateValue,
    MasterProcess,
    PayloadError,
    TaskManager,
    TaskRaisedException,
    initializeMasterProcess,
)

HANDLERS = """
    import os
    import time
    from masterslave import startSlaveProcess

    kept = []

    def do_add(a, b):
        return a + b

    def do_meet(number, of, table):
        open(f"here{number}", "w").close()
        while not all(os.path.exists(f"here{i}") for i in range(of)):
            time.sleep(0.01)
        return os.getpid(), sum(table)

    def do_same(value):
        kept.append(value)
        return all(one is value for one in kept)

    def do_type(value):
        return type(value).__name__

    startSlaveProcess()
"""


def test_a_large_state_has_an_id_of_its_own_without_a_journal(master: MasterProcess) -> None:
    """Its content is not digested, which would take as long as sending it."""
    large = bytes(1 << 24)
    first, second = master.setGlobalState(x=large), master.setGlobalState(x=large)
    assert first != second
    master.deleteGlobalState(first)
    assert master.task_manager.retrieveData(f"state_{second}_x")
    master.deleteGlobalState(second)
    small = master.setGlobalState(x=1)
    assert master.setGlobalState(x=1) == small


@pytest.fixture
def fetches() -> Counter[str]:
    """How often each data item was asked for."""
    return Counter()


@pytest.fixture
def master(
    world: World, monkeypatch: pytest.MonkeyPatch, fetches: Counter[str]
) -> Iterator[MasterProcess]:
    """A master on a free port, without slaves, which counts what is fetched from it."""
    monkeypatch.chdir(world.path)
    monkeypatch.setenv("MASTERSLAVE_PORT", "0")
    world.write("slave.py", HANDLERS)
    retrieve = TaskManager.retrieveData

    def counted(manager: TaskManager, name: str) -> Any:
        fetches[name] += 1
        return retrieve(manager, name)

    monkeypatch.setattr(TaskManager, "retrieveData", counted)
    master = initializeMasterProcess("demo", slave_script="slave.py", use_name_server=False)
    try:
        yield master
    finally:
        master.shutdown()


def result(master: MasterProcess, tag: str, *parameters: Any) -> Any:
    master.requestTask(tag, *parameters)
    return master.retrieveResult()[2]


def failure(master: MasterProcess, tag: str, *parameters: Any) -> BaseException:
    with pytest.raises(TaskRaisedException) as caught:
        result(master, tag, *parameters)
    return caught.value.exception


def test_a_value_takes_the_place_of_its_name(master: MasterProcess) -> None:
    state = master.setGlobalState(base=100, name="x")
    other = master.setGlobalState(base=200)
    assert state != other
    master.launchSlaveJobs()
    assert result(master, "add", GlobalStateValue(state, "base"), 1) == 101
    assert result(master, "add", 1, GlobalStateValue(other, "base")) == 201
    name = GlobalStateValue(state, "name")
    assert result(master, "add", name, name) == "xx"


def test_a_value_may_be_none_or_false(master: MasterProcess) -> None:
    state = master.setGlobalState(nothing=None, false=False, empty=[])
    master.launchSlaveJobs()
    types = [
        result(master, "type", GlobalStateValue(state, name))
        for name in ("nothing", "false", "empty")
    ]
    assert types == ["NoneType", "bool", "list"]


def test_a_slave_fetches_a_value_once_for_all_its_workers(
    master: MasterProcess, world: World, fetches: Counter[str]
) -> None:
    state = master.setGlobalState(table=list(range(1000)), unused=1)
    value = GlobalStateValue(state, "table")
    master.requestTasks("meet", [(number, 3, value) for number in range(3)])
    slave = world.task_manager("slave", "-n", 3, "-m", master.address, "demo")
    got = [value for _, _, value in master.results()]
    assert len({pid for pid, _ in got}) == 3  # three workers ran at the same time
    assert {total for _, total in got} == {499500}
    assert [result(master, "same", value) for _ in range(6)] == [True] * 6
    assert {name: n for name, n in fetches.items() if name.startswith("state")} == {value.label: 1}
    master.shutdown()
    slave.finish()


def test_each_slave_fetches_a_value_once(master: MasterProcess, fetches: Counter[str]) -> None:
    state = master.setGlobalState(table=[1, 2, 3])
    value = GlobalStateValue(state, "table")
    master.requestTasks("meet", [(number, 2, value) for number in range(2)])
    master.launchSlaveJobs(2)
    assert len({pid for _, _, (pid, _) in master.results()}) == 2
    assert fetches[value.label] == 2


def test_a_replaced_worker_takes_the_value_from_its_slave(
    master: MasterProcess, fetches: Counter[str]
) -> None:
    state = master.setGlobalState(base=1)
    value = GlobalStateValue(state, "base")
    master.launchSlaveJobs()
    assert result(master, "add", value, 1) == 2
    master.requestTask("meet", 0, 2, value, timeout=0.2)  # waits for one that does not come
    with pytest.raises(TaskRaisedException, match="time limit"):
        master.retrieveResult()
    assert result(master, "add", value, 2) == 3
    assert fetches[value.label] == 1


def test_a_deleted_state_is_a_clear_error_in_the_task(master: MasterProcess) -> None:
    state = master.setGlobalState(base=1)
    value = GlobalStateValue(state, "base")
    master.launchSlaveJobs()
    assert result(master, "add", value, 1) == 2
    master.deleteGlobalState(state)
    errors: list[BaseException] = []

    def refused() -> bool:  # the slave is told at its next exchange
        try:
            result(master, "add", value, 1)
        except TaskRaisedException as error:
            errors.append(error.exception)
        return bool(errors)

    wait_until(refused, "the slave has forgotten the state")
    assert isinstance(errors[0], DataNotFound)
    assert "global state" in str(errors[0])
    assert "never stored, or deleted" in str(errors[0])
    later = master.setGlobalState(base=5)
    assert later != state  # an id is not used again: a slave might still hold the old value
    assert result(master, "add", GlobalStateValue(later, "base"), 1) == 6


def test_a_name_that_was_never_set_is_a_clear_error_in_the_task(master: MasterProcess) -> None:
    state = master.setGlobalState(base=1)
    master.launchSlaveJobs()
    for wrong in (GlobalStateValue(state, "bass"), GlobalStateValue(state + 1, "base")):
        error = failure(master, "add", wrong, 1)
        assert isinstance(error, DataNotFound)
        assert wrong.label in str(error)
    assert result(master, "add", GlobalStateValue(state, "base"), 1) == 2


def test_a_state_is_deleted_once(master: MasterProcess) -> None:
    state = master.setGlobalState(base=1)
    master.deleteGlobalState(state)
    for wrong in (state, 4711):
        with pytest.raises(DataNotFound, match=f"no global state {wrong}: never set, or deleted"):
            master.deleteGlobalState(wrong)


def test_a_value_that_cannot_be_pickled_sets_nothing(master: MasterProcess) -> None:
    import threading

    with pytest.raises(PayloadError, match="lock"):
        master.setGlobalState(good=1, bad=threading.Lock())
    first = master.setGlobalState(good=1)
    master.launchSlaveJobs()
    assert result(master, "add", GlobalStateValue(first, "good"), 1) == 2


def test_state_may_be_an_array_a_function_or_a_class_of_the_script(world: World) -> None:
    text = """
        import numpy
        from masterslave import GlobalStateValue, MasterProcess, SlaveProcess, runJob

        class Shift:
            def __init__(self, by):
                self.by = by

        class Master(MasterProcess):
            def run(self):
                state = self.setGlobalState(
                    array=numpy.arange(1_000_000.0), function=lambda x: 2 * x, shift=Shift(3)
                )
                self.requestTask("all", *(GlobalStateValue(state, name)
                                          for name in ("array", "function", "shift")))
                print(self.retrieveResult()[2])

        class Slave(SlaveProcess):
            def do_all(self, array, function, shift):
                assert isinstance(shift, Shift)
                return function(float(array[-1])) + shift.by

        runJob("demo", Master, Slave, launch_slaves=1)
    """
    assert world.script(text).finish() == "2000001.0\n"

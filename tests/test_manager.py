"""The task manager in one process: data items, questions, single tasks, the end."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from managing import (
    LONG_S,
    Call,
    X,
    give,
    ids,
    in_line,
    join,
    take,
    wait_for_clients,
    wait_for_line,
)

from masterslave.errors import (
    DataNotFound,
    TaskManagerTermination,
    UnknownProcess,
)
from masterslave.manager import TaskManager
from masterslave.records import Delivery, ProcessInfo

# --- data items -----------------------------------------------------------------------------


def test_data_items_are_kept_replaced_and_deleted(manager: TaskManager) -> None:
    manager.storeData(a=[b"1"], b=[b"2"])
    manager.storeData(a=[b"3"])
    assert (manager.retrieveData("a"), manager.retrieveData("b")) == ([b"3"], [b"2"])
    manager.deleteData("a")
    with pytest.raises(DataNotFound, match="'a'"):
        manager.retrieveData("a")
    with pytest.raises(KeyError):
        manager.deleteData("a")


@pytest.mark.parametrize("value", [None, 0, "", [], {}])
def test_an_empty_data_item_is_a_data_item(manager: TaskManager, value: Any) -> None:
    manager.storeData(empty=value)
    assert manager.retrieveData("empty") == value
    manager.deleteData("empty")
    with pytest.raises(DataNotFound):
        manager.retrieveData("empty")


def test_slaves_are_told_once_to_forget_a_deleted_item(manager: TaskManager) -> None:
    one, two = join(manager), join(manager)
    client = manager.registerProcess(None, "a client")[0]
    manager.storeData(state=X)
    manager.deleteData("state")
    for slave in (one, two):
        assert manager.exchange(slave)[1] == {"forget": ["state"]}
        assert manager.exchange(slave)[1] == {}
    assert manager.exchange(client)[1] == {}


def test_a_slave_that_was_away_is_told_to_forget_as_well(manager: TaskManager) -> None:
    slave = join(manager, token="t")
    manager.storeData(state=X)
    manager.lostProcess(slave, "its connection closed")
    manager.deleteData("state")
    manager.registerProcess(None, ProcessInfo("slave", 1, "host", 1, "t"), slave)
    assert manager.exchange(slave)[1].get("forget") == ["state"]


# --- questions ------------------------------------------------------------------------------


def test_a_failure_message_without_end_is_cut(manager: TaskManager) -> None:
    manager.reportFailure(0, "x" * 10**6)
    assert len(manager.status()["failures"][0]) < 30_000


def test_status_tells_everything_in_plain_types(manager: TaskManager) -> None:
    manager.registerProcess(None, "the master")
    slave = join(manager, "sqrt cube", workers=2, token="secret")
    manager.addTaskRequests("sqrt", [X] * 4)
    first, second = take(manager, slave)
    give(manager, slave, first)
    manager.addTaskRequest("tan", X)
    manager.reportFailure(slave, "ValueError: no good\nTraceback...\n")
    status = json.loads(json.dumps(manager.status()))
    assert status == {
        "label": "job",
        "active_processes": 2,
        "masters": [{"id": 0, "info": "the master"}],
        "slaves": [
            {
                "id": slave, "info": "slave secret", "host": "host", "pid": 1, "workers": 2,
                "tags": ["cube", "sqrt"], "holds": 1, "finished": 1,
            }
        ],
        "workers": 2,
        "waiting": {"sqrt": 2, "tan": 1},
        "running": {"sqrt": 1},
        "finished": {"sqrt": 1},
        "delivered": 0,
        "cancelled": 0,
        "dropped": 0,
            "parked": 0,
            "awaited_slaves": 0,
            "journal_trouble": "",
            "blocked_requests": 0,
        "client_waits": False,
        "clients": [],
        "terminated": False,
        "failures": ["slave secret: ValueError: no good"],
        "mismatches": [],
    }  # fmt: skip
    assert second.task_id == "sqrt_1"


def test_status_names_a_slave_whose_workers_are_not_ready(manager: TaskManager) -> None:
    slave = manager.registerProcess(None, ProcessInfo("slave", 1, "host", 2, ""))[0]
    manager.announceSlave(slave)
    (row,) = manager.status()["slaves"]
    assert row["tags"] is None and row["workers"] == 2


def test_only_the_last_failures_are_kept(manager: TaskManager) -> None:
    for i in range(100):
        manager.reportFailure(i, f"failure {i}")
    failures = manager.status()["failures"]
    assert failures[-1] == "process 99: failure 99"
    assert len(failures) == 20


def test_processes_can_be_asked_for(manager: TaskManager) -> None:
    one, two = (manager.registerProcess(None, f"PID {i}")[0] for i in (1, 2))
    assert manager.numberOfActiveProcesses() == 2
    assert [manager.activeProcessInfo(pid) for pid in (one, two)] == ["PID 1", "PID 2"]
    manager.unregisterProcess(one)
    assert manager.activeProcesses() == [two]
    with pytest.raises(UnknownProcess):
        manager.activeProcessInfo(one)


# --- the calls for one task at a time -------------------------------------------------------


def test_one_task_at_a_time(manager: TaskManager) -> None:
    slave = join(manager, "sqrt cube")
    manager.addTaskRequest("sqrt", [b"2"])
    manager.addTaskRequest("cube", [b"3"])
    cube = manager.getTaskWithTag("cube", slave)
    assert (cube.task_id, cube.tag, cube.attempt, cube.frame) == ("cube_1", "cube", 1, [b"3"])
    sqrt = manager.getAnyTask(slave)
    assert sqrt.task_id == "sqrt_0"
    assert manager.getAnyTask(slave) is None
    manager.storeResult(cube.task_id, [b"27"], slave, cube.attempt)
    manager.storeException(sqrt.task_id, [b"error"], "Traceback: why", slave, sqrt.attempt)
    assert manager.getAnyResult() == Delivery("cube_1", "cube", "result", [b"27"], "")
    assert manager.getResultWithTag("sqrt") == Delivery(
        "sqrt_0", "sqrt", "exception", [b"error"], "Traceback: why"
    )


def test_a_returned_task_is_the_next(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequests("sqrt", [X, X])
    task = manager.getAnyTask(slave)
    manager.returnTask(task.task_id, slave, task.attempt)
    assert manager.numberOfTasks() == [{"sqrt": 2}, {}, {}]
    again = manager.getAnyTask(slave)
    assert (again.task_id, again.attempt) == (task.task_id, 2)


def test_waiting_for_one_task_ends_when_it_comes(live: TaskManager) -> None:
    slave = join(live)
    any_task = Call(live.getAnyTask, slave, LONG_S)
    wait_for_line(live, 1)
    tagged = Call(live.getTaskWithTag, "special", slave, LONG_S)
    wait_for_line(live, 2)
    special = live.addTaskRequest("special", X)
    assert tagged.outcome().task_id == special
    assert not any_task.done
    plain = live.addTaskRequest("sqrt", X)
    assert any_task.outcome().task_id == plain


@pytest.mark.parametrize("call", ["getAnyTask", "getTaskWithTag"])
def test_an_unregistered_process_gets_no_task(manager: TaskManager, call: str) -> None:
    arguments = ("sqrt", 99) if call == "getTaskWithTag" else (99,)
    with pytest.raises(UnknownProcess):
        getattr(manager, call)(*arguments)


# --- the end --------------------------------------------------------------------------------


def test_the_end_wakes_everyone(live: TaskManager) -> None:
    slaves = [join(live), join(live, "cube")]
    live.addTaskRequest("unhandled", X)
    with in_line(live, slaves) as calls:
        single = Call(live.getAnyTask, slaves[0], LONG_S)
        clients = [
            Call(live.getResults, 0, None, 1, None),
            Call(live.getResults, 1, "sqrt", 1, LONG_S),
            Call(live.getAnyResult, 0),
        ]
        wait_for_clients(live, 3)
        wait_for_line(live, 3)
        live.terminate()
        for call in calls:
            assert call.outcome() == [[], {"terminate": True}]
        for call in [single, *clients]:
            with pytest.raises(TaskManagerTermination):
                call.outcome()


def test_after_the_end_nothing_begins_but_results_can_be_had(manager: TaskManager) -> None:
    slave = join(manager, workers=2)
    manager.addTaskRequests("sqrt", [X, X, X])
    first, second = take(manager, slave)
    give(manager, slave, first)
    manager.terminate()
    with pytest.raises(TaskManagerTermination):
        manager.addTaskRequest("sqrt", X)
    with pytest.raises(TaskManagerTermination):
        manager.getAnyTask(slave)
    assert manager.exchange(slave) == [[], {"terminate": True}]
    give(manager, slave, second)
    assert ids(manager.getResults(0, limit=5)) == [first.task_id, second.task_id]
    with pytest.raises(TaskManagerTermination):
        manager.getResults(0)


# --- all together ---------------------------------------------------------------------------


def test_many_slaves_and_clients_lose_and_double_nothing(live: TaskManager) -> None:
    clients, slaves, each = 3, 6, 300
    ran: list[str] = []

    def be_client(number: int) -> list[str]:
        requested = live.addTaskRequests("sqrt", [X] * (each - 50), number)
        requested += [live.addTaskRequest("cube", X, number) for _ in range(50)]
        got: list[str] = []
        while len(got) < each:
            got += ids(live.getResults(number, None, 7, LONG_S))
        assert sorted(got) == sorted(requested)
        return got

    def be_slave(number: int) -> None:
        slave = join(live, "sqrt cube", workers=number % 2 + 1)
        done: list[Any] = []
        while True:
            tasks, notices = live.exchange(slave, done, (), True, 0.0 if done else LONG_S)
            if notices.get("terminate"):
                return
            ran.extend(ids(tasks))
            done = [(t.task_id, t.attempt, "result", t.frame, 1e-4, "") for t in tasks]

    workers = [Call(be_slave, number) for number in range(slaves)]
    delivered = [Call(be_client, number) for number in range(clients)]
    total = sum(len(call.outcome()) for call in delivered)
    live.terminate()
    for worker in workers:
        worker.outcome()
    assert total == clients * each
    assert max(Counter(ran).values()) == 1
    assert live.status()["delivered"] == clients * each
    assert live.numberOfTasks() == [{}, {}, {}]


def test_results_are_given_in_messages_of_bounded_size(
    manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masterslave.manager.BATCH_BYTES", 1000)
    slave = join(manager, workers=4)
    manager.addTaskRequests("sqrt", [X] * 4)
    for task in take(manager, slave):
        give(manager, slave, task, frame=[bytes(600)])
    assert [len(manager.getResults(0, limit=100)) for _ in range(2)] == [2, 2]


def test_a_client_that_waited_is_not_remembered(live: TaskManager) -> None:
    for client in range(1000, 1010):
        live.getResults(client, timeout=0.0001)
    assert live._results.calls == {}

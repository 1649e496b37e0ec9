"""Why nothing moves: each standstill has its sentence, a job that moves has none."""

from __future__ import annotations

import pytest

from masterslave.diagnosis import Situation, explain, situation
from masterslave.manager import TaskManager
from masterslave.records import ProcessInfo
from masterslave.settings import Settings

NOTHING = Situation(
    waiting={},
    running={},
    finished={},
    slaves=0,
    ready_slaves=0,
    handled_tags=frozenset(),
    client_waits=False,
    failures=[],
)
AT_WORK = NOTHING._replace(
    waiting={"a": 3}, running={"a": 1}, slaves=2, ready_slaves=2, handled_tags=frozenset("ab")
)


@pytest.mark.parametrize(
    "now",
    [
        NOTHING,
        AT_WORK,
        AT_WORK._replace(client_waits=True),
        AT_WORK._replace(ready_slaves=1, failures=["node: once"]),
        AT_WORK._replace(finished={"a": 5}),
        AT_WORK._replace(waiting={}, finished={"a": 5}),
        NOTHING._replace(finished={"a": 5}, client_waits=True),
        NOTHING._replace(slaves=2, ready_slaves=2),
    ],
    ids=range(8),
)
def test_a_job_that_moves_or_has_nothing_to_do_needs_no_reason(now: Situation) -> None:
    assert explain(now) == []


def test_there_are_no_slaves() -> None:
    now = NOTHING._replace(waiting={"a": 3, "b": 2})
    assert explain(now) == ["5 tasks wait, but there are no slaves"]


def test_no_slave_is_ready() -> None:
    now = AT_WORK._replace(ready_slaves=0, handled_tags=frozenset())
    assert explain(now) == ["3 tasks wait, but no slave has its workers ready yet"]


def test_a_tag_is_handled_by_nobody() -> None:
    now = AT_WORK._replace(waiting={"x": 1, "a": 3, "c": 2})
    assert explain(now) == [
        "2 tasks wait, but no slave handles tag 'c'",
        "1 task waits, but no slave handles tag 'x'",
    ]


def test_the_master_does_not_take_its_results() -> None:
    now = NOTHING._replace(finished={"a": 2, "b": 2}, slaves=1, ready_slaves=1)
    assert explain(now) == ["everything waits for the master to retrieve 4 results"]


def test_the_master_waits_for_nothing() -> None:
    now = NOTHING._replace(client_waits=True)
    assert explain(now) == ["the master waits for a result, but has no task outstanding"]


@pytest.mark.parametrize("slaves", [0, 1])
def test_slaves_that_could_not_start_are_named_newest_three(slaves: int) -> None:
    now = NOTHING._replace(waiting={"a": 1}, slaves=slaves, failures=["1", "2", "3", "4"])
    assert explain(now)[1:] == [f"a slave could not start: {number}" for number in "234"]


def test_old_failures_are_no_reason_when_a_slave_is_ready() -> None:
    now = AT_WORK._replace(waiting={"x": 1}, failures=["node: syntax error"])
    assert explain(now) == ["1 task waits, but no slave handles tag 'x'"]


def test_the_situation_is_read_from_a_task_managers_status() -> None:
    manager = TaskManager("label", Settings.from_environment({}))
    info = ProcessInfo("PID 1 on node (arch)", 1, "node", 1, "")
    client, slave, starting = (manager.registerProcess(None, info)[0] for _ in range(3))
    manager.announceTags(slave, ["a", "b"])
    manager.announceSlave(starting)
    for tag in ("a", "x"):
        manager.addTaskRequest(tag, [b""], client)
    manager.exchange(slave)
    manager.reportFailure(starting, "no such module\nTraceback\n...")
    now = situation(manager.status())
    assert now._replace(failures=[]) == Situation(
        waiting={"x": 1},
        running={"a": 1},
        finished={},
        slaves=2,
        ready_slaves=1,
        handled_tags=frozenset("ab"),
        client_waits=False,
        failures=[],
    )
    assert now.failures == ["PID 1 on node (arch): no such module"]
    assert explain(now) == ["1 task waits, but no slave handles tag 'x'"]

"""Tasks that are only noted: they are there for everybody, and cost next to nothing."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import pytest

from masterslave.notes import BLOCK_TASKS, Block, Tasks
from masterslave.records import TaskOptions
from masterslave.states import Task

OPTIONS = TaskOptions(priority=1)


def noted(*data: bytes, first: int = 0, tag: str = "a", client: int = 1) -> tuple[Any, Any]:
    tasks = Tasks(Task)
    return tasks, tasks.note(client, tag, OPTIONS, first, list(data))


def through(block: Block[Task]) -> list[str]:
    ids = []
    while True:
        ids.append(block.head().id)
        if block.pass_on():
            return ids


def test_a_noted_task_is_a_task_to_whoever_asks() -> None:
    tasks, _ = noted(b"x", b"y", first=7)
    assert len(tasks) == 2
    assert "a_7" in tasks
    task = tasks["a_8"]
    assert (task.id, task.ticket, task.client, task.tag) == ("a_8", 8, 1, "a")
    assert (task.frame, task.options) == ([b"y"], OPTIONS)
    assert tasks.get("a_8") is tasks["a_8"] is task
    assert len(tasks) == 2
    assert [one.id for one in tasks.values()] == list(tasks) == ["a_7", "a_8"]
    assert dict(tasks)["a_7"] is tasks["a_7"]


@pytest.mark.parametrize("task_id", ["a_6", "a_9", "b_7", "a_07", "a_", "a", "", "a_" + 30 * "9"])
def test_others_are_not_there(task_id: str) -> None:
    tasks, _ = noted(b"x", b"y", first=7)
    assert task_id not in tasks
    assert tasks.get(task_id) is None
    with pytest.raises(KeyError):
        tasks[task_id]


def test_a_task_that_was_removed_does_not_come_back() -> None:
    tasks, (block,) = noted(b"x", b"y", b"z")
    del tasks[tasks["a_1"].id]
    assert "a_1" not in tasks
    assert tasks.get("a_1") is None
    assert len(tasks) == 2
    assert through(block) == ["a_0", "a_1", "a_2"]  # it has its place in line, as any other
    assert sorted(tasks) == ["a_0", "a_2"]


def test_their_turn_comes_one_after_the_other() -> None:
    tasks, (block,) = noted(b"x", b"y")
    task = tasks["a_1"]
    assert block.head() is block.head() is tasks["a_0"]
    assert not block.pass_on()
    assert block.head() is task
    assert block.pass_on()
    del tasks["a_0"], tasks["a_1"]
    assert tasks == {}
    assert "a_0" not in tasks


def test_many_whose_turn_it_is_leave_at_once() -> None:
    tasks, (block,) = noted(*[b"%d" % n for n in range(5)], first=7)
    got, is_last = block.take(2)
    assert not is_last
    assert [(one.id, one.ticket, one.frame) for one in got] == [
        ("a_7", 7, [b"0"]),
        ("a_8", 8, [b"1"]),
    ]
    assert got == [tasks["a_7"], tasks["a_8"]]
    assert len(tasks) == 5
    assert block.head() is tasks["a_9"]  # an object from now on, so they go one by one
    assert block.take(9) == ([], False)
    assert not block.pass_on()
    got, is_last = block.take(9)
    assert is_last
    assert got == [tasks["a_10"], tasks["a_11"]]
    assert list(tasks) == ["a_7", "a_8", "a_9", "a_10", "a_11"]
    (other,) = tasks.note(1, "a", OPTIONS, 12, [b"5"])
    assert other.take(1) == ([tasks["a_12"]], True)


def test_single_requests_that_follow_each_other_share_a_block() -> None:
    tasks, (block,) = noted(b"x")
    assert tasks.note(1, "a", TaskOptions(priority=1), 1, [b"y"]) == []  # equal is enough
    for client, tag, options, number in (
        (1, "a", OPTIONS, 3),  # there was another request in between
        (2, "a", OPTIONS, 4),
        (2, "b", OPTIONS, 5),
        (2, "b", TaskOptions(), 6),
    ):
        assert len(tasks.note(client, tag, options, number, [b"z"])) == 1
    assert through(block) == ["a_0", "a_1"]
    assert len(tasks.note(1, "a", OPTIONS, 7, [b"z"])) == 1
    assert len(tasks) == 7


def test_nothing_is_added_to_a_block_that_is_over() -> None:
    tasks, (block,) = noted(b"x")
    assert through(block) == ["a_0"]
    (other,) = tasks.note(1, "a", OPTIONS, 1, [b"y"])
    assert through(other) == ["a_1"]


def test_many_make_several_blocks() -> None:
    tasks, blocks = noted(b"x", first=5)
    blocks += tasks.note(1, "a", OPTIONS, 6, [b"%d" % n for n in range(2 * BLOCK_TASKS)])
    assert [len(block.data) for block in blocks] == [BLOCK_TASKS, BLOCK_TASKS, 1]
    assert tasks["a_300"].frame == [b"294"]
    assert [one for block in blocks for one in through(block)] == [
        f"a_{5 + n}" for n in range(2 * BLOCK_TASKS + 1)
    ]
    assert [task.frame for task in tasks.values()][1:] == [
        [b"%d" % n] for n in range(2 * BLOCK_TASKS)
    ]


def test_what_a_client_has_noted_goes_with_it() -> None:
    tasks, _ = noted(b"x")
    tasks.note(2, "a", OPTIONS, 1, [b"y"])
    tasks.forget(1)
    assert "a_0" not in tasks
    assert "a_1" in tasks
    tasks.forget(2)
    assert len(tasks) == 0
    assert len(tasks.note(2, "a", OPTIONS, 2, [b"z"])) == 1


def test_the_garbage_collector_has_nothing_to_visit() -> None:
    tasks, _ = noted(*[b"x"] * (BLOCK_TASKS * 4))
    gc.collect()
    blocks = tasks._blocks
    assert len(blocks) == 4
    assert not any(gc.is_tracked(block.data) for block in blocks)


def test_a_copy_is_on_its_own() -> None:
    tasks, (block,) = noted(b"x", b"y")
    copy, other = pickle.loads(pickle.dumps((tasks, block)))
    assert through(other) == ["a_0", "a_1"]
    del copy["a_0"], copy["a_1"]
    assert copy == {}
    assert list(tasks) == ["a_0", "a_1"]

"""What is remembered of failures, in bounded memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from masterslave.attempts import Attempt, FailureLog, headline, own_story


def attempt(number: int, story: str = "story", outcome: str = "exception") -> Attempt:
    return Attempt(number, "PID 1 on node", outcome, 1e9 + number, story)


def names(rows: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    return [(row["task_id"], [one["attempt"] for one in row["attempts"]]) for row in rows]


def test_a_task_fails_after_setbacks() -> None:
    log = FailureLog()
    log.setback("a_0", "a", attempt(1))
    log.setback("a_0", "a", attempt(2))
    assert names(log.rows()["under_way"]) == [("a_0", [1, 2])]
    log.failed("a_0", "a", attempt(3, outcome="timed_out"))
    rows = json.loads(json.dumps(log.rows()))
    assert names(rows["failed"]) == [("a_0", [1, 2, 3])]
    assert rows["failed"][0]["outcome"] == "timed_out"
    assert rows["failed"][0]["attempts"][2] == {
        "attempt": 3, "where": "PID 1 on node", "outcome": "timed_out", "at": 1e9 + 3,
        "story": "story",
    }  # fmt: skip
    assert (rows["under_way"], rows["forgotten"]) == ([], 0)


def test_setbacks_of_a_task_that_ends_well_are_forgotten() -> None:
    log = FailureLog()
    log.setback("a_0", "a", attempt(1))
    log.ended_well("a_0")
    log.ended_well("a_1")
    assert log.rows() == {"failed": [], "under_way": [], "forgotten": 0}


def test_only_the_newest_are_kept() -> None:
    log = FailureLog(tasks=3)
    for number in range(5):
        log.failed(f"a_{number}", "a", attempt(1))
        log.setback(f"b_{number}", "b", attempt(1))
    rows = log.rows()
    assert [row["task_id"] for row in rows["failed"]] == ["a_2", "a_3", "a_4"]
    assert [row["task_id"] for row in rows["under_way"]] == ["b_2", "b_3", "b_4"]
    assert rows["forgotten"] == 2


def test_long_stories_push_older_ones_out() -> None:
    log = FailureLog(characters=100)
    log.setback("b_0", "b", attempt(1, "x" * 30))
    for number in range(3):
        log.failed(f"a_{number}", "a", attempt(1, "x" * 40))
    rows = log.rows()
    assert [row["task_id"] for row in rows["failed"]] == ["a_2"]
    assert [row["task_id"] for row in rows["under_way"]] == ["b_0"]
    log.setback("b_1", "b", attempt(1, "x" * 90))
    rows = log.rows()
    assert (rows["failed"], names(rows["under_way"])) == ([], [("b_1", [1])])
    for _ in range(100):  # what was forgotten does not count any more
        log.setback("c_0", "c", attempt(1, "x" * 9))
        log.ended_well("c_0")
    assert names(log.rows()["under_way"]) == [("b_1", [1])]


@pytest.mark.parametrize(
    ("number", "outcome", "story", "own"),
    [
        (1, "crashed", "attempt 1: it died", "it died"),
        (2, "crashed", "attempt 1: a\nattempt 2: b\n    c", "b\n    c"),
        (2, "out_of_memory", "attempt 1: a\nattempt 2: b", "b"),
        (1, "crashed", "of an older version", "of an older version"),
        (2, "exception", "ValueError: x\nattempt 2: y", "ValueError: x\nattempt 2: y"),
        (1, "timed_out", "killed", "killed"),
    ],
)
def test_the_story_of_the_last_attempt(number: int, outcome: str, story: str, own: str) -> None:
    assert own_story(number, outcome, story) == own


@pytest.mark.parametrize(
    ("outcome", "story", "line"),
    [
        ("exception", "Traceback\n  File\nValueError: no\n", "ValueError: no"),
        ("crashed", "PID 3 died; last lines of standard error:\n    x", "PID 3 died"),
        ("timed_out", "killed at its limit", "killed at its limit"),
        ("exception", "", ""),
    ],
)
def test_the_line_that_says_most(outcome: str, story: str, line: str) -> None:
    assert headline(outcome, story) == line

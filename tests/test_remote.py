"""Arguments of remote calls: what cannot be is refused by name, before anything happens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from masterslave.manager import TaskManager
from masterslave.records import ProcessInfo
from masterslave.settings import Settings
from masterslave.transports.memory import MemoryLink
from masterslave.transports.remote import check_call

INFO = ["a machine", 1, "host", 1, "token"]
DONE = ["sqrt_0", 1, "result", [b"x"], 0.5, ""]


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("registerProcess", [None, INFO, None, []]),
        ("registerProcess", [None, [*INFO, 60.0]]),
        ("registerProcess", [None, [*INFO, None]]),
        ("registerProcess", [0.5, "a line", 3, [["sqrt_0", 1]]]),
        ("addTaskRequest", ["sqrt", [b"x", bytearray(b"y")], 0, [0, None, 0, 5, None, 0.5]]),
        ("addTaskRequests", ["sqrt", [], 0]),
        ("exchange", [1, [DONE], ["sqrt_0"], None, 20.0, None]),
        ("exchange", [1, [], [], -1, 0, 5]),
        ("getResults", [0, None, 1, None, True]),
        ("getResultWithTag", ["sqrt", 0, 0.5]),
        ("announceTags", [1, ["sqrt"]]),
        ("outstandingTasks", [0, None]),
        ("openShortcut", [1, 2, 0, [1, 2, 3, 4, 5, 6]]),
        ("closeShortcuts", [1, 2, [0, 1]]),
        ("ping", []),  # too few: Python will say so
        ("ping", [1, 2, 3]),
    ],
)
def test_what_can_be_passes(method: str, args: list[Any]) -> None:
    check_call(method, args, {})


@pytest.mark.parametrize(
    ("method", "args", "name"),
    [
        ("registerProcess", [0], "watchdog_period"),
        ("registerProcess", [-1.0], "watchdog_period"),
        ("registerProcess", [math.nan], "watchdog_period"),
        ("registerProcess", ["1"], "watchdog_period"),
        ("registerProcess", [None, [b"bytes", 1, "host", 1, ""]], "info"),
        ("registerProcess", [None, INFO[:4]], "info"),
        ("registerProcess", [None, ["m", 1 << 63, "host", 1, ""]], "info"),
        ("registerProcess", [None, [*INFO, math.nan]], "info"),
        ("registerProcess", [None, INFO, []], "resume"),
        ("registerProcess", [None, INFO, None, [["sqrt_0", 1.5]]], "held"),
        ("openShortcut", [1, 2, "0", [1]], "worker"),
        ("openShortcut", [1, 2, 0, [1.5]], "names"),
        ("openShortcut", [1, 2, 0, "names"], "names"),
        ("openShortcut", [1, 2, 0, [1 << 63]], "names"),
        ("openShortcut", [1, None, 0, [1]], "generation"),
        ("closeShortcuts", [1, 2, [True]], "workers"),
        ("closeShortcuts", [1, 2, 3], "workers"),
        ("announceTags", [1, "sqrt"], "tags"),
        ("announceTags", [1, ["sqrt", 1]], "tags"),
        ("announceSlave", [True], "process_id"),
        ("unregisterProcess", [1.0], "process_id"),
        ("ping", [1 << 63], "process_id"),
        ("ping", [[]], "process_id"),
        ("addTaskRequest", [1, [b"x"]], "tag"),
        ("addTaskRequest", [None, [b"x"]], "tag"),
        ("addTaskRequest", ["x" * 70_000, [b"x"]], "tag"),
        ("addTaskRequest", ["sqrt", ["x"]], "parameters"),
        ("addTaskRequest", ["sqrt", b"x"], "parameters"),
        ("addTaskRequests", ["sqrt", [[b"x"], None]], "frames"),
        ("addTaskRequest", ["sqrt", [b"x"], 0, [0] * 8], "options"),
        ("exchange", [1, DONE[0]], "completions"),
        ("exchange", [1, [], [["sqrt_0"]]], "started"),
        ("exchange", [1, [], [], -2], "room"),
        ("exchange", [1, [], [], 1.5], "room"),
        ("exchange", [1, [], [], None, math.nan], "timeout"),
        ("exchange", [1, [], [], None, 1e300], "timeout"),
        ("exchange", [1, [], [], None, None], "timeout"),
        ("exchange", [1, [], [], None, 0.0, "1"], "generation"),
        ("getResults", [0, 1], "tag"),
        ("getResults", [0, None, 0], "limit"),
        ("getResults", [0, None, 1, -1], "timeout"),
        ("getResults", [0, None, 1, 0, 1], "while_outstanding"),
        ("storeResult", ["sqrt_0", "x", 1, 1], "result"),
        ("storeException", ["sqrt_0", [b"x"], None, 1, 1], "traceback"),
        ("returnTask", ["sqrt_0", 1, True], "attempt"),
        ("reportFailure", [1, b"text"], "text"),
        ("cancelTask", [None], "task_id"),
        ("retrieveData", [["a"]], "name"),
    ],
)
def test_what_cannot_be_is_refused_by_name(method: str, args: list[Any], name: str) -> None:
    manager = TaskManager("job", Settings(key_file=Path("unused")))
    link = MemoryLink(manager)
    link.call("registerProcess", None, list(ProcessInfo(*INFO)))
    before = manager.status()
    with pytest.raises(ValueError, match=f"{method}: {name} must be"):
        link.call(method, *args)
    assert manager.status() == before


def test_keyword_arguments_are_looked_at_too() -> None:
    check_call("ping", [], {"process_id": 1})
    check_call("ping", [], {"nothing": []})  # Python will say so
    check_call("storeData", [], {"a": [b"x", {"b": None}], "c": 1.5})
    with pytest.raises(ValueError, match="process_id"):
        check_call("ping", [], {"process_id": "1"})
    with pytest.raises(ValueError, match="values"):
        check_call("storeData", [], {"a": [{"b": object()}]})


def test_what_is_refused_does_not_show_in_full() -> None:
    with pytest.raises(ValueError) as caught:
        check_call("ping", ["x" * 10**6], {})
    assert len(str(caught.value)) < 100

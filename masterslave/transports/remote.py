"""Which methods of a task manager may be called from other processes, and with what.

A call with an argument that cannot be is refused before anything happens: later it might be found
out by another thread, half-way through a change, or by the journal, which could then not be
written any more.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from masterslave.clients import LANES, MAX_WEIGHT, MIN_WEIGHT
from masterslave.records import (
    MAX_COUNT,
    MAX_S,
    MAX_STORY,
    ProcessInfo,
    TaskOptions,
    is_count,
    is_frame,
    is_name,
)

REMOTE_METHODS = frozenset(
    (
        "activeProcessInfo",
        "activeProcesses",
        "addTaskRequest",
        "addTaskRequests",
        "announceSlave",
        "announceTags",
        "attachClient",
        "cancelTask",
        "closeShortcuts",
        "collectResults",
        "deleteData",
        "dismissSlaves",
        "deleteItem",
        "detachClient",
        "exchange",
        "failedTasks",
        "getAnyResult",
        "getAnyTask",
        "getResultWithTag",
        "getResults",
        "getTaskWithTag",
        "numberOfActiveProcesses",
        "numberOfTasks",
        "openShortcut",
        "outstandingTasks",
        "ping",
        "repeatStragglers",
        "registerProcess",
        "reportFailure",
        "retrieveData",
        "returnTask",
        "status",
        "storeData",
        "storeException",
        "storeItems",
        "storeResult",
        "submitTasks",
        "taskIsRunning",
        "terminate",
        "unregisterProcess",
        "withdrawTask",
    )
)

#: Shortest watchdog period, in seconds. Smaller: the task manager does nothing but look.
_SHORTEST_PERIOD_S = 0.001


_BYTES = (bytes, bytearray, memoryview)


class _Rule(NamedTuple):
    name: str  # of the parameter
    good: Callable[[Any], bool]
    text: str  # what it must be


def _is_list(value: Any, good: Callable[[Any], bool] = lambda item: True) -> bool:
    return isinstance(value, (list, tuple)) and all(map(good, value))


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_held(value: Any) -> bool:
    return _is_list(value) and len(value) == 2 and is_name(value[0]) and is_count(value[1])


def _is_info(value: Any) -> bool:
    if is_name(value):
        return True
    if not _is_list(value) or not 5 <= len(value) <= 7:  # the last may be missing
        return False
    info = ProcessInfo(*value)
    texts = (info.machine, info.host, info.token, info.versions)
    counts = (info.pid, info.workers)
    timely = info.left_s is None or _is_number(info.left_s, -MAX_S, MAX_S)
    return all(map(is_name, texts)) and all(map(is_count, counts)) and timely


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(is_name(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, *_BYTES))


_COUNT = is_count, "an integer"
_NAME = is_name, "a string that is not too long"
_NAMES = (lambda value: _is_list(value, is_name)), "a list of strings"
_FRAME = is_frame, "a list of bytes"

#: What each parameter must be, by its name, which means the same in all methods.
_GOOD: dict[str, tuple[Callable[[Any], bool], str]] = {
    "answered": _COUNT,
    "attempt": _COUNT,
    "completions": (_is_list, "a list"),  # each of them: see `as_completion`
    "exception": _FRAME,
    "factor": ((lambda value: _is_number(value, 1, MAX_S)), "a number of at least 1"),
    "frames": ((lambda value: _is_list(value, is_frame)), "a list of lists of bytes"),
    "generation": _COUNT,
    "held": ((lambda value: _is_list(value, _is_held)), "a list of pairs"),
    "info": (_is_info, "a line of text or a list as ProcessInfo"),
    "limit": ((lambda value: is_count(value) and value > 0), "an integer of at least 1"),
    "items": (
        (lambda value: isinstance(value, dict) and _is_plain(value)),
        "a dictionary of plain types",
    ),
    "lane": ((lambda value: is_count(value) and 0 <= value < LANES), "the number of a lane"),
    "name": _NAME,
    "names": ((lambda value: _is_list(value, is_count)), "a list of integers"),
    "options": (
        (lambda value: _is_list(value) and len(value) <= len(TaskOptions._fields)),
        "a list as TaskOptions",  # each of them: see `TaskOptions.checked`
    ),
    "outstanding": _NAMES,
    "parameters": _FRAME,
    "parcel": _COUNT,
    "pid": _COUNT,
    "process_id": _COUNT,
    "process_ids": ((lambda value: _is_list(value, is_count)), "a list of integers"),
    "result": _FRAME,
    "resume": _COUNT,
    "serial": ((lambda value: is_count(value) and value > 0), "an integer of at least 1"),
    "room": ((lambda value: isinstance(value, int) and -1 <= value <= MAX_COUNT), "an integer"),
    "started": _NAMES,
    "tag": _NAME,
    "tags": _NAMES,
    "task_id": _NAME,
    "text": (
        (lambda value: isinstance(value, str) and len(value) <= MAX_STORY),
        "a string that is not too long",
    ),
    "timeout": ((lambda value: _is_number(value, 0, MAX_S)), "a number of seconds"),
    "traceback": (
        (lambda value: isinstance(value, str) and len(value) <= MAX_STORY),
        "a string that is not too long",
    ),
    "values": (_is_plain, "of plain types"),
    "watchdog_period": (
        (lambda value: _is_number(value, _SHORTEST_PERIOD_S, MAX_S)),
        "a positive number of seconds",
    ),
    "weight": (
        (lambda value: _is_number(value, MIN_WEIGHT, MAX_WEIGHT)),
        f"a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}",
    ),
    "waiting_only": ((lambda value: isinstance(value, bool)), "True or False"),
    "worker": _COUNT,
    "workers": ((lambda value: _is_list(value, is_count)), "a list of integers"),
    "while_outstanding": ((lambda value: isinstance(value, bool)), "True or False"),
}


def _or_none(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or good(value)


@functools.cache
def _rules(method: str) -> tuple[list[_Rule], _Rule | None]:
    """The rules of a method's parameters in order; and that of all others, if it takes any."""
    from masterslave.manager import TaskManager  # who only calls it need not load it

    rules: list[_Rule] = []
    others = None
    for parameter in list(inspect.signature(getattr(TaskManager, method)).parameters.values())[1:]:
        good, text = _GOOD[parameter.name]
        if parameter.kind is parameter.VAR_KEYWORD:
            others = _Rule(parameter.name, good, text)
        elif parameter.default is None:
            rules.append(_Rule(parameter.name, _or_none(good), f"{text}, or None"))
        else:
            rules.append(_Rule(parameter.name, good, text))
    return rules, others


def check_call(method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `ValueError` for an argument of a remote method that cannot be, naming it.

    Missing, surplus and unknown ones are left to the call itself.
    """
    rules, others = _rules(method)
    # Too many or too few are for Python to complain of.
    for rule, value in zip(rules, args, strict=False):
        if not rule.good(value):
            raise _refusal(method, rule, value)
    if not kwargs:
        return
    by_name = {rule.name: rule for rule in rules}
    for name, value in kwargs.items():
        found = by_name.get(name, others)
        if found is not None and not (is_name(name) and found.good(value)):
            raise _refusal(method, found, value)


def _refusal(method: str, rule: _Rule, value: Any) -> ValueError:
    kind = type(value).__name__  # no more of it: it may be long, and its repr may be anything
    return ValueError(f"{method}: {rule.name} must be {rule.text}; it is a {kind}")

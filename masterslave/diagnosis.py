"""Why nothing moves, in words: the same sentences for the log and for ``task_manager LABEL``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Situation(NamedTuple):
    """What is known of a job at one moment."""

    waiting: Mapping[str, int]  # tag -> number of tasks
    running: Mapping[str, int]
    finished: Mapping[str, int]
    slaves: int  # connected
    ready_slaves: int  # ... whose workers have loaded the slave's code
    handled_tags: frozenset[str]  # by any slave
    client_waits: bool  # whether a client stands in a call for a result
    failures: list[str]  # of slaves that could not start their workers, newest last
    too_long_tags: frozenset[str] = frozenset()  # handled, but longer than any slave has time left


def explain(now: Situation) -> list[str]:
    """The reasons why waiting tasks are not run or results not used; empty when all is well."""
    reasons = []
    waiting, running, finished = (sum(c.values()) for c in (now.waiting, now.running, now.finished))
    if waiting and not now.slaves:
        reasons.append(f"{_tasks_wait(waiting)}, but there are no slaves")
    elif waiting and not now.ready_slaves:
        reasons.append(f"{_tasks_wait(waiting)}, but no slave has its workers ready yet")
    elif waiting:
        for tag, count in sorted(now.waiting.items()):
            if tag not in now.handled_tags:
                reasons.append(f"{_tasks_wait(count)}, but no slave handles tag {tag!r}")
            elif tag in now.too_long_tags:
                reasons.append(
                    f"{_tasks_wait(count)}, but no slave has enough time left for tag {tag!r}"
                )
    if finished and not waiting and not running and not now.client_waits:
        reasons.append(f"everything waits for the master to retrieve {_results(finished)}")
    if now.client_waits and not waiting and not running and not finished:
        reasons.append("the master waits for a result, but has no task outstanding")
    if reasons and not now.ready_slaves:
        reasons += [f"a slave could not start: {failure}" for failure in now.failures[-3:]]
    return reasons


def _tasks_wait(count: int) -> str:
    return "1 task waits" if count == 1 else f"{count} tasks wait"


def _results(count: int) -> str:
    return "1 result" if count == 1 else f"{count} results"


def situation(status: Mapping[str, Any]) -> Situation:
    """Read the situation out of what `TaskManager.status` gives."""
    slaves = status["slaves"]
    handled = frozenset(tag for slave in slaves for tag in slave["tags"] or ())
    timely = {
        tag
        for slave in slaves
        for tag in slave["tags"] or ()
        if tag not in slave.get("no_time_for", ())
    }
    return Situation(
        waiting=status["waiting"],
        running=status["running"],
        finished=status["finished"],
        slaves=len(slaves),
        ready_slaves=sum(1 for slave in slaves if slave["tags"] is not None),
        handled_tags=handled,
        client_waits=status["client_waits"],
        failures=status["failures"],
        too_long_tags=handled - timely,
    )

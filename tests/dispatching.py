"""Short forms for what a slave's dispatch is given and gives."""

from __future__ import annotations

from typing import Any

from masterslave.dispatch import AHEAD_S, STALL_S, Action, Dispatch, Send
from masterslave.records import Assignment, Completion, Outcome

TINY_S = AHEAD_S / 20
LONG_S = 60.0
TELL_S = 0.05
STALLED_S = 1.01 * STALL_S


def task(name: str, tag: str = "new", attempt: int = 1, timeout: float | None = None) -> Assignment:
    return Assignment(name, tag, attempt, [b"parameters"], timeout)


def tasks(names: str, tag: str = "new", **kwargs: Any) -> list[Assignment]:
    return [task(name, tag, **kwargs) for name in names]


def result(of: Assignment, duration_s: float = LONG_S) -> Completion:
    return Completion(of.task_id, of.attempt, Outcome.RESULT.value, [b"result"], duration_s, "")


def slave(*workers: int, knows: dict[str, float] | None = None) -> Dispatch:
    """A slave with these workers, all idle, that knows how long tasks of some tags take."""
    dispatch = Dispatch()
    dispatch.worker_ready(-1)
    for tag, duration_s in (knows or {}).items():
        dispatch.arrived([task(f"learn {tag}", tag)])
        dispatch.tick(0.0)
        dispatch.finished(-1, result(task(f"learn {tag}", tag), duration_s), 0.0)
    dispatch.died(-1, "no more to learn")
    dispatch.completions.clear()
    for worker in workers:
        dispatch.worker_ready(worker)
    return dispatch


def sent(actions: list[Action]) -> dict[int, str]:
    """Worker -> names of the tasks it got."""
    got: dict[int, str] = {}
    for action in actions:
        assert isinstance(action, Send)
        got[action.worker] = got.get(action.worker, "") + "".join(t.task_id for t in action.tasks)
    return got


def ended(dispatch: Dispatch) -> dict[str, str]:
    """Task -> outcome, of what is to be handed in; the shell takes it."""
    completions, dispatch.completions = dispatch.completions, []
    return {done.task_id: done.outcome for done in completions}


def waiting(dispatch: Dispatch) -> str:
    return "".join(task.task_id for task in dispatch.backlog)


def with_full_line() -> Dispatch:
    """Worker 1 runs task A and has B and C, tiny ones, in advance; D waits for it to have room."""
    dispatch = slave(1, knows={"tiny": AHEAD_S / 3})
    dispatch.arrived(tasks("ABCD", "tiny"))
    assert sent(dispatch.tick(0.0)) == {1: "ABC"}
    assert waiting(dispatch) == "D"
    return dispatch

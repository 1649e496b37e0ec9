"""The values that travel, one type for each hop of a task's way.

::

    client  --TaskOptions + Frame-->  task manager  --Assignment-->  slave  --Assignment-->  worker
    client  <-----Delivery----------  task manager  <--Completion--  slave  <--Completion--  worker

All are tuples of plain types, so that they cross a wire as they are; a `Frame` is opaque to all
but the client and the worker.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

from masterslave.errors import SettingsError

#: Part of a frame; a view is one of bytes.
Piece = bytes | bytearray | memoryview

#: A pickled value, in pieces; `payload` says how. Of any size.
Frame = list[Piece]

#: The tag of tasks that call a client's function; every slave handles it. No handler's name.
CALL_TAG = "function-call"

#: Stands for a frame that is not in memory: it rests in the journal. Compared with ``is``.
AT_REST: Frame = []

#: Name of the data item that is the slaves' code, see `slavecode`.
SLAVE_CODE = "slave_code"

#: Longest tag, id or name, in characters. Larger: names that no table or log can show. Smaller:
#: a client's own `key` of a task may be long.
MAX_NAME = 1 << 16

#: Longest story of a task's failure, in characters; slaves keep theirs far below.
MAX_STORY = 1 << 24

#: Counts and numbers beyond this have no place in a journal, whose integers have 64 bits.
MAX_COUNT = (1 << 63) - 1

#: No task runs for longer, in seconds (30 years), and nobody waits for longer.
MAX_S = 1e9

#: Frames are put into one message until they have this size together. Larger: a message takes long
#: and much memory on its way. Smaller: more messages for arrays.
BATCH_BYTES = 1 << 26


def frame_bytes(frame: Frame) -> int:
    """Size of a frame."""
    return len(frame[0]) if len(frame) == 1 else sum(map(len, frame))


class Outcome(str, Enum):
    """How an attempt to run a task ended, as a slave reports it."""

    RESULT = "result"  # the handler returned; the frame holds the value
    EXCEPTION = "exception"  # the handler raised; the frame holds the exception if picklable
    CRASHED = "crashed"  # the worker process died while the task ran
    TIMED_OUT = "timed_out"  # the worker was killed at the task's time limit
    OUT_OF_MEMORY = "out_of_memory"  # the task needed more than its worker's memory limit
    RETURNED = "returned"  # not started, or stopped on purpose: no fault of the task


_OUTCOMES = frozenset(outcome.value for outcome in Outcome)

#: In place of an `Outcome`, of an attempt whose slave was lost: it counts as a crash for as long as
#: the slave does not come back.
LOST = "lost"

#: `Completion.detail` of a task that a slave gives back unrun as it would not end in time there.
NO_TIME_LEFT = "not enough time left"


class TaskOptions(NamedTuple):
    """Options of one request; see `MasterProcess.requestTask`."""

    priority: int = 0  # higher first
    timeout: float | None = None  # seconds a single attempt may run
    retries: int = 0  # how many exceptions of the handler are answered by another attempt
    crash_limit: int = 5  # how many worker deaths before the task is given up
    key: str | None = None  # the caller's own identity of the task
    backoff: float = 0.0  # seconds before the first retry, doubled each time; 0: at once
    origin: tuple[str, int] | None = None  # attached client's token, number of its request

    def checked(self) -> TaskOptions:
        """Return self; raise `SettingsError` naming the option that cannot be used."""
        priority = self.priority
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise SettingsError(f"priority={priority!r}: must be an integer")
        if not -MAX_COUNT <= priority <= MAX_COUNT:
            raise SettingsError("priority: must be an integer of 64 bits")
        timeout = self.timeout
        if timeout is not None and (
            isinstance(timeout, bool)
            or not isinstance(timeout, (int, float))
            or not 0 < timeout <= MAX_S
        ):
            raise SettingsError(
                f"timeout={timeout!r}: must be a positive number of seconds or None"
            )
        for name, low in (("retries", 0), ("crash_limit", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise SettingsError(f"{name}={value!r}: must be an integer of at least {low}")
            if value > MAX_COUNT:
                raise SettingsError(f"{name}: must be an integer of 64 bits")
        backoff = self.backoff
        if (
            isinstance(backoff, bool)
            or not isinstance(backoff, (int, float))
            or not 0 <= backoff <= MAX_S
        ):
            raise SettingsError(f"backoff={backoff!r}: must be a number of seconds of at least 0")
        if self.origin is not None:
            raise SettingsError("origin: is for the task manager to state")
        if self.key is not None and not isinstance(self.key, str):
            raise SettingsError(f"key={self.key!r}: must be a string or None")
        if self.key is not None and len(self.key) > MAX_NAME:
            raise SettingsError(f"key: must be a string of at most {MAX_NAME} characters")
        return self


#: As they are unless the client says otherwise; nearly all tasks have this very object.
DEFAULT_OPTIONS = TaskOptions()


class Assignment(NamedTuple):
    """A task as it is handed to a slave."""

    task_id: str
    tag: str
    attempt: int  # counts hand-outs of this task, from 1
    frame: Frame  # the pickled tuple of parameters
    timeout: float | None  # seconds


class Completion(NamedTuple):
    """The end of one attempt, as a slave hands it in."""

    task_id: str
    attempt: int
    outcome: str  # an Outcome's value
    frame: Frame  # result or exception, may be empty
    duration_s: float  # time in the handler; 0 when it did not end by itself
    detail: str  # remote traceback or the story of the worker's death


class Delivery(NamedTuple):
    """A finished task, as its client receives it."""

    task_id: str
    tag: str
    outcome: str
    frame: Frame
    detail: str


# Of exactly their fields, in order; unchecked. Calling the class itself takes twice as long, as
# that is a function of Python's, and it is done several times for each task.
new_assignment: Callable[[Iterable[Any]], Assignment] = partial(tuple.__new__, Assignment)
new_completion: Callable[[Iterable[Any]], Completion] = partial(tuple.__new__, Completion)
new_delivery: Callable[[Iterable[Any]], Delivery] = partial(tuple.__new__, Delivery)

_ASSIGNED = len(Assignment._fields)


class ProcessInfo(NamedTuple):
    """What a slave says of itself when it registers."""

    machine: str  # as getMachineInfo() gives it
    pid: int
    host: str
    workers: int  # worker processes it runs
    token: str  # random; lets a slave that was cut off be recognised
    left_s: float | None = None  # seconds for which it takes tasks, from now; None: no end known
    versions: str = ""  # of Python and packages, see `versions`; "": not told


class GlobalStateValue:
    """Stands for a global state value among a task's parameters.

    The worker puts the value in its place before the handler is called. It is fetched once per
    slave and kept by its workers until the state is deleted.
    """

    def __init__(self, state_id: int, name: str) -> None:
        """`state_id` is what `MasterProcess.setGlobalState` gave, `name` one of its keywords."""
        self.state_id = state_id
        self.name = name

    @property
    def label(self) -> str:
        """Name of the data item in the task manager."""
        return f"state_{self.state_id}_{self.name}"


def getMachineInfo(pid: int | None = None) -> str:
    """One line that identifies process, host and architecture: ``PID 4711 on node3 (x86_64)``."""
    return f"PID {os.getpid() if pid is None else pid} on {platform.node()} ({platform.machine()})"


def as_process_info(info: Any) -> ProcessInfo:
    """Rebuild a `ProcessInfo` from the list that came over a wire, or from a line of text."""
    return ProcessInfo(info, 0, "", 0, "") if isinstance(info, str) else ProcessInfo(*info)


def as_assignment(item: Any) -> Assignment:
    """Rebuild an `Assignment` from the list that came over a wire; `TypeError` if it is none."""
    return new_assignment(item) if len(item) == _ASSIGNED else Assignment(*item)


def as_completion(item: Any) -> Completion:
    """Rebuild a `Completion` from the list that came over a wire; `ValueError` if it is none.

    What is let through here goes into averages, onto the disk and to the client as it is.
    """
    try:
        task_id, attempt, outcome, frame, duration_s, detail = item
    except (TypeError, ValueError):
        raise ValueError("a completion must be a list of its fields") from None
    if (
        outcome == "result"  # the result of a tiny task: there are many of them
        and detail == ""
        and type(frame) is list
        and len(frame) == 1
        and type(frame[0]) is bytes
        and type(task_id) is str
        and len(task_id) <= MAX_NAME
        and type(attempt) is int
        and -MAX_COUNT <= attempt <= MAX_COUNT
        and type(duration_s) is float
        and 0 <= duration_s <= MAX_S
    ):
        return new_completion(item)
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        raise ValueError(f"{str(outcome)[:99]!r} is not a valid Outcome")
    wrong = ""
    if not is_name(task_id):
        wrong = "task id"
    elif not is_count(attempt):
        wrong = "attempt"
    elif not is_frame(frame):
        wrong = "frame"
    elif not isinstance(duration_s, (int, float)) or not 0 <= duration_s <= MAX_S:
        wrong = "duration"
    elif not isinstance(detail, str) or len(detail) > MAX_STORY:
        wrong = "detail"
    if wrong:
        raise ValueError(f"a completion has a {wrong} that cannot be")
    return Completion(task_id, attempt, outcome, frame, duration_s, detail)


def is_name(value: Any) -> bool:
    """Whether it can be a tag, the id of a task or the name of a data item."""
    return isinstance(value, str) and len(value) <= MAX_NAME


def is_count(value: Any) -> bool:
    """Whether it can be an id of a process or a number of an attempt."""
    return type(value) is int and -MAX_COUNT <= value <= MAX_COUNT


def is_frame(value: Any) -> bool:
    """Whether it can be a `Frame`."""
    if not isinstance(value, (list, tuple)):
        return False
    if len(value) == 1 and type(value[0]) is bytes:
        return True  # nearly all are, and there are many
    return all(isinstance(piece, (bytes, bytearray, memoryview)) for piece in value)

"""The states of a task, what may follow what, and the task itself.

::

    request --> WAITING --hand_out--> RUNNING --complete--> RESULT | EXCEPTION --deliver--> (gone)
                   ^  |                  |
                   |  +--late result     +--crash_limit----> CRASHED | OUT_OF_MEMORY ----> (gone)
                   |                     +--time limit-----> TIMED_OUT ----------deliver--> (gone)
                   +------reschedule-----+
                   +--due-- DEFERRED <---+  (a retry with back-off; a late result ends it as well)
    WAITING | DEFERRED | RUNNING --cancel--> CANCELLED (gone: it is never delivered)
    RESULT | ... --drop--> CANCELLED  (its client is gone for good)

    from the journal of an earlier run:
    PARKED --claim--> WAITING | RUNNING | RESULT | ..., as far as the task had come

`TRANSITIONS` is the whole truth about what may follow what; see `queue` for the events of clients,
`leases` for those of slaves and `earlier` for what the journal tells of an earlier run.

A parked task has a place in the journal, and no client yet. What happens to it meanwhile (a slave
that outlived the earlier run still has it, hands its result in, or is lost) is noted in the task;
when a request with its identity claims it, it enters the state that this amounts to.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from masterslave.records import AT_REST, Frame, Outcome, TaskOptions, frame_bytes


class State(str, Enum):
    """Where a task is in its life."""

    PARKED = "parked"  # known from the journal, not yet requested by this run
    WAITING = "waiting"  # for a slave that handles its tag
    DEFERRED = "deferred"  # out of line until its retry is due; counts as waiting
    RUNNING = "running"  # handed to a slave: prefetched there, or started
    RESULT = "result"  # finished: the handler returned
    EXCEPTION = "exception"  # finished: the handler raised
    CRASHED = "crashed"  # finished: ended its worker `crash_limit` times
    OUT_OF_MEMORY = "out_of_memory"  # finished: the same, and the last time for want of memory
    TIMED_OUT = "timed_out"  # finished: killed at its time limit
    CANCELLED = "cancelled"  # taken back by its client; forgotten at once
    DELIVERED = "delivered"  # its client has it; forgotten


class Event(str, Enum):
    """What can happen to a task."""

    CLAIM = "claim"  # a request of this run takes up a task of an earlier one
    HAND_OUT = "hand_out"
    ADOPT = "adopt"  # a slave that came back still runs the last attempt
    RESCHEDULE = "reschedule"
    DEFER = "defer"  # it is to run again, but not yet
    FALL_DUE = "fall_due"
    RESULT = "result"
    EXCEPTION = "exception"
    CRASH = "crash"
    OUT_OF_MEMORY = "out_of_memory"
    TIME_OUT = "time_out"
    CANCEL = "cancel"
    DROP = "drop"  # nobody will take it any more
    DELIVER = "deliver"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.PARKED, Event.CLAIM): State.WAITING,
    (State.PARKED, Event.ADOPT): State.RUNNING,  # claimed while a slave has it
    (State.PARKED, Event.RESULT): State.RESULT,  # claimed after it had finished; so below
    (State.PARKED, Event.EXCEPTION): State.EXCEPTION,
    (State.PARKED, Event.CRASH): State.CRASHED,
    (State.PARKED, Event.OUT_OF_MEMORY): State.OUT_OF_MEMORY,
    (State.PARKED, Event.TIME_OUT): State.TIMED_OUT,
    (State.WAITING, Event.HAND_OUT): State.RUNNING,
    (State.WAITING, Event.ADOPT): State.RUNNING,
    (State.WAITING, Event.RESULT): State.RESULT,  # late, of an attempt that was given up
    (State.WAITING, Event.EXCEPTION): State.EXCEPTION,  # late
    (State.WAITING, Event.CANCEL): State.CANCELLED,
    (State.DEFERRED, Event.FALL_DUE): State.WAITING,
    (State.DEFERRED, Event.RESULT): State.RESULT,  # late
    (State.DEFERRED, Event.CANCEL): State.CANCELLED,
    (State.RUNNING, Event.RESCHEDULE): State.WAITING,
    (State.RUNNING, Event.DEFER): State.DEFERRED,
    (State.RUNNING, Event.RESULT): State.RESULT,
    (State.RUNNING, Event.EXCEPTION): State.EXCEPTION,
    (State.RUNNING, Event.CRASH): State.CRASHED,
    (State.RUNNING, Event.OUT_OF_MEMORY): State.OUT_OF_MEMORY,
    (State.RUNNING, Event.TIME_OUT): State.TIMED_OUT,
    (State.RUNNING, Event.CANCEL): State.CANCELLED,
    (State.RESULT, Event.DELIVER): State.DELIVERED,
    (State.EXCEPTION, Event.DELIVER): State.DELIVERED,
    (State.CRASHED, Event.DELIVER): State.DELIVERED,
    (State.OUT_OF_MEMORY, Event.DELIVER): State.DELIVERED,
    (State.TIMED_OUT, Event.DELIVER): State.DELIVERED,
    (State.PARKED, Event.DROP): State.CANCELLED,  # its client has had it from the run before
    (State.RESULT, Event.DROP): State.CANCELLED,
    (State.EXCEPTION, Event.DROP): State.CANCELLED,
    (State.CRASHED, Event.DROP): State.CANCELLED,
    (State.OUT_OF_MEMORY, Event.DROP): State.CANCELLED,
    (State.TIMED_OUT, Event.DROP): State.CANCELLED,
}

FINISHED = frozenset(
    (State.RESULT, State.EXCEPTION, State.CRASHED, State.OUT_OF_MEMORY, State.TIMED_OUT)
)
LIVE = frozenset((State.WAITING, State.DEFERRED, State.RUNNING))
NOBODY = -1  # the client of a parked task
OUTCOME_EVENTS = {
    Outcome.RESULT.value: Event.RESULT,
    Outcome.EXCEPTION.value: Event.EXCEPTION,
    Outcome.CRASHED.value: Event.CRASH,
    Outcome.OUT_OF_MEMORY.value: Event.OUT_OF_MEMORY,
    Outcome.TIMED_OUT.value: Event.TIME_OUT,
    Outcome.RETURNED.value: Event.RESCHEDULE,
}


_WAITING = State.WAITING  # to look it up there takes a third of the time that a task takes


class Task:
    """One task inside the queue; only the queue writes to it."""

    __slots__ = (
        "answered",
        "attempt",
        "client",
        "crashes",
        "detail",
        "failures",
        "former",
        "frame",
        "history",
        "holder",
        "id",
        "options",
        "outcome",
        "size",
        "started",
        "state",
        "tag",
        "ticket",
    )

    def __init__(
        self, task_id: str, ticket: int, client: int, tag: str, frame: Frame, options: TaskOptions
    ) -> None:
        self.id = task_id
        self.ticket = ticket  # order of request
        self.client = client  # process id of who gets the result
        self.tag = tag
        self.frame = frame  # parameters while live, then result or exception; or AT_REST
        # Of the frame, in memory or at rest, in bytes.
        self.size = len(frame[0]) if len(frame) == 1 else frame_bytes(frame)
        self.options = options
        self.state = _WAITING
        self.attempt = 0  # number of the last hand-out
        self.answered = 0  # the last attempt that failed and is answered by another one
        self.holder: int | None = None  # process id of the slave that runs it
        self.former: int | None = None  # a slave that runs an earlier attempt at the same time
        self.started = False  # whether the holder has said that a worker began it
        self.crashes = 0
        self.failures = 0  # exceptions so far
        self.history: tuple[str, ...] = ()  # story of each attempt that went wrong
        self.outcome = ""  # a State's value once finished
        self.detail = ""  # remote traceback or the story of all attempts


class Effect(NamedTuple):
    """What a completion or a loss came to, for the shell to act upon."""

    kind: str  # "finished", "rescheduled", "deferred", "due" or "dropped"
    task: Task | None
    stop_on: int | None = None  # a slave that runs another attempt in vain
    setback: str = ""  # an Outcome's value, or LOST: the attempt failed and another one follows


def is_open(task: Task) -> bool:
    """Whether a task is of an earlier run, not claimed yet, and not finished."""
    return task.state is State.PARKED and not task.outcome


def in_memory(task: Task) -> int:
    """Bytes of its frame, as far as that is in memory."""
    return 0 if task.frame is AT_REST else task.size

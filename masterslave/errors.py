"""Every error that this library raises, in one tree.

::

    MasterSlaveError
    |-- TaskManagerTermination      no more tasks or results will come
    |-- TaskRaisedException         a task failed; says which, why and where
    |-- TaskFailure                 what stands in `TaskRaisedException.exception` when there
    |   |                           is no original exception object
    |   |-- RemoteException         the original could not be brought over: its type and text
    |   |-- WorkerCrashed           the task ended its worker process, `crash_limit` times
    |   |-- TaskOutOfMemory         the task needed more than its worker's memory limit
    |   |-- TaskTimedOut            the task ran past its time limit and was stopped
    |   `-- TaskLost                a task manager that was started again does not know the task
    |-- PayloadError                something cannot be pickled or unpickled
    |-- FunctionError               a client's function cannot be called on a worker
    |   `-- InitializerFailed       ... because what was to be called before it has failed
    |-- ResultTimeout               no result within the given time (also a TimeoutError)
    |-- DataNotFound                no stored data item of that name (also a KeyError)
    |-- UnknownProcess              the task manager does not know that process
    |-- UnknownTask                 the task manager does not know that task
    |-- IllegalTransition           an event that a task's state does not allow
    |-- SettingsError               an option, environment variable or key file that cannot be used
    |-- QueueFull                   a request finds no room, and was not to wait
    |-- JournalError                a journal file cannot be used
    |   |-- JournalInUse            ... because a living master writes to it
    |   |-- JournalDamaged          ... because what it holds is not what was written
    |   `-- JournalFull             ... because nothing can be written now: the disk is full
    |-- ConnectionFailed            a task manager cannot be reached
    |   |-- LabelUnknown            ... because nothing is registered under its label
    |   |-- ForeignProtocol         ... because something else answers at its address
    |   `-- AuthenticationError     ... because one side could not prove that it holds the key
    |-- LabelInUse                  a living task manager has that label already
    |-- LauncherError               a batch system, or another way to start slaves, refuses or fails
    |-- StartError                  what was kept of a start cannot be used, or there is none
    `-- SlaveError                  a slave cannot go on: its code does not load, its master is gone

Foreign errors (Pyro's, the operating system's) are translated at the edge where they arise.
"""

from __future__ import annotations

from typing import Any


class MasterSlaveError(Exception):
    """Base of all errors of this library."""


class TaskManagerTermination(MasterSlaveError):
    """The task manager has ended: no more tasks or results will come."""


class RemoteTraceback(Exception):
    """Carries a traceback of another process as text; stands as the cause of an exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


class TaskRaisedException(MasterSlaveError):
    """A task failed.

    Attributes: `task_id`; `tag`; `exception`, the handler's exception object, or a `TaskFailure`
    that stands for it; `traceback`, text of the remote traceback or the story of each attempt.
    The same text is shown as the cause, below the line "The above exception was the direct cause".
    """

    def __init__(self, task_id: str, tag: str, exception: BaseException, traceback: str) -> None:
        super().__init__(task_id, tag, exception, traceback)
        self.task_id = task_id
        self.tag = tag
        self.exception = exception
        self.traceback = traceback
        self.__cause__ = RemoteTraceback(f'\n"""\n{traceback}"""')

    def __str__(self) -> str:
        kind = type(self.exception).__name__
        return f"task {self.task_id} raised {kind}: {self.exception}"


class TaskFailure(MasterSlaveError):
    """Stands for a failure of a task that has no exception object of its own."""


class RemoteException(TaskFailure):
    """Stands for an exception that cannot be pickled, or whose class is not importable here.

    Attributes: `type_name`, the qualified name of the original's class; `text`, its `str()`.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(type_name, text)
        self.type_name = type_name
        self.text = text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


class WorkerCrashed(TaskFailure):
    """A task's worker process died while the task ran, as often as its `crash_limit` allows.

    `story` tells of each attempt: process, host, signal or exit code, last lines of stderr.
    """

    def __init__(self, story: str) -> None:
        super().__init__(story)
        self.story = story

    def __str__(self) -> str:
        attempts = [line for line in self.story.splitlines() if line.startswith("attempt ")]
        last = attempts[-1].partition(";")[0] if attempts else self.story.partition("\n")[0]
        return f"its worker died each time; {last}"


class TaskOutOfMemory(TaskFailure):
    """A task needed more memory than its workers may have, in the last of its attempts.

    It was tried as often as its `crash_limit` allows, each time in a fresh worker. `story` tells of
    each attempt: process, host, memory limit, and the traceback where there is one.
    """

    def __init__(self, story: str) -> None:
        super().__init__(story)
        self.story = story

    def __str__(self) -> str:
        attempts = [line for line in self.story.splitlines() if line.startswith("attempt ")]
        return attempts[-1] if attempts else self.story.partition("\n")[0]


class TaskTimedOut(TaskFailure):
    """A task ran past its `timeout` and its worker was killed. `story` says where and when."""

    def __init__(self, story: str) -> None:
        super().__init__(story)
        self.story = story


class TaskLost(TaskFailure):
    """The task manager that this program is attached to has no record of the task any more.

    It was started again without its journal, or this program was away for longer than its time of
    grace. Whether the task has run is not known. `story` says so.
    """

    def __init__(self, story: str) -> None:
        super().__init__(story)
        self.story = story


class PayloadError(MasterSlaveError):
    """Parameters or a result cannot be pickled or unpickled; the text says what and why."""


class FunctionError(MasterSlaveError):
    """A worker cannot call a client's function; the text says what is missing there."""


class InitializerFailed(FunctionError):
    """An executor's initializer raised in a worker."""


class ResultTimeout(MasterSlaveError, TimeoutError):
    """No result came within the time given to `retrieveResult` or `results`."""


class DataNotFound(MasterSlaveError, KeyError):
    """The task manager stores no data item of that name (never set, or deleted)."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnknownProcess(MasterSlaveError):
    """The task manager does not know that process id."""


class UnknownTask(MasterSlaveError):
    """The task manager does not know that task id (never requested, or delivered already)."""


class IllegalTransition(MasterSlaveError):
    """An event reached a task in a state that does not allow it. Nothing was changed."""


class SettingsError(MasterSlaveError):
    """An option, an environment variable or the key file cannot be used as it is."""


class QueueFull(MasterSlaveError):
    """The memory budget has no room for a request, and the settings say not to wait."""


class JournalError(MasterSlaveError):
    """A journal file cannot be used: of another program, key or label, or by a newer version."""


class JournalInUse(JournalError):
    """A living master writes to the journal."""


class JournalDamaged(JournalError):
    """The journal does not hold what was written to it."""


class JournalFull(JournalError):
    """The journal cannot be written at present. What it was to keep waits in memory."""


class ConnectionFailed(MasterSlaveError):
    """A task manager cannot be reached, or the connection to it broke."""


class LabelUnknown(ConnectionFailed):
    """No task manager is registered under the label."""


class ForeignProtocol(ConnectionFailed):
    """The other side is not a task manager, nor a client of one."""


class AuthenticationError(ConnectionFailed):
    """The other side speaks this library's protocol, but did not prove that it holds the key."""


class LabelInUse(MasterSlaveError):
    """Another living task manager has the label."""


class LauncherError(MasterSlaveError):
    """A command that starts, asks for or ends processes failed: which, how, and what it said."""


class StartError(MasterSlaveError):
    """What ``task_manager start`` keeps of a label is missing, there already or not usable."""


class SlaveError(MasterSlaveError):
    """A slave cannot go on: its code does not load, or its master has gone."""


#: Errors that a task manager may raise in a remote call and that arrive there as the same class.
REMOTE_ERRORS: dict[str, type[MasterSlaveError]] = {
    cls.__name__: cls
    for cls in (
        TaskManagerTermination,
        DataNotFound,
        UnknownProcess,
        UnknownTask,
        IllegalTransition,
        SettingsError,
        LabelInUse,
        QueueFull,
        JournalError,
        JournalFull,
    )
}


def remote_error(name: str, *args: Any) -> MasterSlaveError:
    """The error that a remote task manager raised, by class name; the base class if not known."""
    cls = REMOTE_ERRORS.get(name)
    return cls(*args) if cls is not None else MasterSlaveError(f"{name}: {args}")

"""A worker: a child process of a slave that runs one task at a time in its main thread.

It may crash, hang, leak or hold the interpreter's lock without harm to anything else. It loads
the slave's code; the call in there that starts a slave (`runJob`, `startSlaveProcess`,
`SlaveProcess.start`) becomes its loop. Nothing here imports Pyro: a worker starts quickly.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import inspect
import io
import os
import signal
import socket
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from masterslave import calls, shared, slavecode
from masterslave.board import LOOKED_AT_S, SHORT_S, Poster
from masterslave.calls import Calls
from masterslave.errors import DataNotFound, PayloadError
from masterslave.memory import limit_memory
from masterslave.payload import Codec, Memory, clean
from masterslave.pipe import PipeClosed, WorkerEnd
from masterslave.records import (
    CALL_TAG,
    Assignment,
    Completion,
    Frame,
    GlobalStateValue,
    Outcome,
    as_assignment,
    getMachineInfo,
    new_completion,
)
from masterslave.shortcut import WorkerShortcut
from masterslave.units import format_bytes

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

#: Longest traceback that travels as text.
_TRACEBACK_CHARACTERS = 100_000


#: A worker with tasks in line looks no more often than this for what its supervisor has to say.
#: Larger: it runs tasks that others run by now. Smaller: a system call for each tiny task.
_LOOK_S = 0.001

_RESULT = Outcome.RESULT.value
_OUT_OF_MEMORY = Outcome.OUT_OF_MEMORY.value


class _Leave(BaseException):
    """The supervisor says that it is enough, while a task waits for a value."""


class Role(ABC):
    """What this process runs the slave's code for; there is one at most.

    The code is loaded, and the call in it that starts a slave becomes `loop`.
    """

    #: Where a script's handlers are if it is not this process's ``__main__``.
    namespace: Mapping[str, Any] | None = None

    def __init__(self, label: str, record: slavecode.Record, memory: Memory | None = None) -> None:
        """`memory`: where large buffers of results are to be, None for this process's own."""
        self.label = label
        self.codec = Codec(
            record.get("main_id"), shared_main=record.get("shared_main", False), memory=memory
        )
        self.started = False  # whether the code has come to that call
        self._values: dict[str, Any] = {}  # global state, unpickled
        self.calls = Calls(self.fetch, memory)

    @abstractmethod
    def prepare(self) -> None:
        """Called before the code is loaded; what it raises keeps the code from being loaded."""

    @abstractmethod
    def loop(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        watchdog_period: float | None,
        termination_test: Callable[[], bool],
    ) -> None:
        """Do what this process is for; sets `started` first."""

    @abstractmethod
    def fetch(self, name: str) -> Frame:
        """The data item of that name. Raises `DataNotFound`."""

    def parameters(self, frame: Frame) -> Sequence[Any]:
        """What a handler is called with: global state values in their place."""
        values: Sequence[Any] = self.codec.decode(frame, owned=True)
        if GlobalStateValue not in map(type, values):
            return values
        return [
            self._global_value(value.label) if type(value) is GlobalStateValue else value
            for value in values
        ]

    def _global_value(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self.codec.decode(self.fetch(name), owned=True)
        return self._values[name]


class _Worker(Role):
    """A worker of a supervisor."""

    def __init__(
        self, pipe: WorkerEnd, label: str, record: slavecode.Record, memory: int | None = None
    ) -> None:
        super().__init__(label, record, shared if pipe.share else None)
        self.pipe = pipe
        self.memory = memory  # bytes that this process may have
        self.lift_limit: Callable[[], None] = lambda: None
        self._tasks: deque[Assignment] = deque()
        self._deleted: set[str] = set()  # data items, as the shortcut tells before the supervisor
        self._tell_at = 0  # length of the line at which the supervisor may want to send more

    def prepare(self) -> None:
        """See `Role.prepare`."""
        if self.memory is not None:
            self.lift_limit = limit_memory(self.memory)

    def loop(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        watchdog_period: float | None,
        termination_test: Callable[[], bool],
    ) -> None:
        """Run tasks until the supervisor says that it is enough."""
        self.started = True
        self.pipe.send(["ready", sorted(handlers), watchdog_period])
        pipe, tasks = self.pipe, self._tasks
        looked_at = 0.0
        while True:
            now = time.perf_counter()
            if (tasks or pipe.has_task()) and now - looked_at > _LOOK_S:
                looked_at = now  # some may be others' by now
                if not all(map(self._handle, pipe.receive_news())):
                    return
                tasks = self._tasks
            beside: Assignment | None = None  # came by the shortcut
            while not tasks and (beside := pipe.next_task()) is None:
                if not self._handle(pipe.receive_or_tasks()):
                    return
                tasks = self._tasks
                looked_at = time.perf_counter()
            if beside is None and not pipe.begin():  # some are being taken back
                if not all(map(self._handle, pipe.receive_held())):
                    return
                tasks = self._tasks
                continue
            task = beside or tasks.popleft()
            done = self._run(task, None if task.tag == CALL_TAG else handlers[task.tag])
            goes_on = True
            if done.duration_s > _LOOK_S and not self._tasks:  # perhaps there is a next one by now
                goes_on = all(map(self._handle, pipe.receive_news()))
                looked_at = time.perf_counter()
            if beside is None:
                self._hand_in(done)
            else:
                self.pipe.hand_in(done)
            if not goes_on:
                return
            outcome = done.outcome
            del task, beside, done  # may be gigabytes, and the next task may be late
            if outcome == _OUT_OF_MEMORY:
                self._end_now()  # what tasks have left behind here may be what took the memory
            tasks = self._tasks  # replaced when the handler has waited for a value
            if termination_test():
                self.pipe.send(["leaving"])  # what it has not begun is given to others
                self._wait_for_end()
                return

    def _wait_for_end(self) -> None:
        """Run nothing more; the task manager may send tasks until it knows of that."""
        while True:
            while (task := self.pipe.next_task()) is not None:
                unrun = Outcome.RETURNED.value
                self.pipe.hand_in(
                    Completion(task.task_id, task.attempt, unrun, [], 0.0, "not begun")
                )
            if not self._handle(self.pipe.receive_or_tasks()):
                return

    def _hand_in(self, done: Completion) -> None:
        """Have the supervisor get the end of a task, before the next one begins.

        It is told at once when the line is empty, or will be before it looks by itself, and of tiny
        ones when half of the line has been run. Else it finds the end on the board.
        """
        left, duration_s = len(self._tasks), done.duration_s
        if not left or done.outcome != _RESULT or not self.pipe.post(done):
            self.pipe.send(["done", done])
        elif left * duration_s < LOOKED_AT_S if duration_s > SHORT_S else left == self._tell_at:
            self.pipe.send(["look"])

    def _handle(self, message: list[Any] | None) -> bool:
        """Take in one message, if it is one; false when it is the last.

        Callers keep no reference to it: it holds the parameters of tasks.
        """
        if message is None:
            return True
        kind = message[0]
        if kind == "tasks":
            self._tasks.extend(map(as_assignment, message[1]))
            self._tell_at = len(self._tasks) // 2
        elif kind == "skip":
            self._tasks = deque(task for task in self._tasks if task.task_id not in message[1])
            self.pipe.send(["skipped"])
        elif kind == "skip_beside":
            self.pipe.skip(message[1])
        elif kind in ("forget", "forget_beside"):
            for name in message[1]:
                self._values.pop(name, None)
            self.calls.forget(message[1])
            if kind == "forget":
                self._deleted.difference_update(message[1])
            else:
                self._deleted.update(message[1])
        elif kind == "end":
            return False
        return True

    def _run(self, task: Assignment, handler: Callable[..., Any] | None) -> Completion:
        """Run one task; whatever it raises becomes its outcome. `handler`: None for a call."""
        is_call = handler is None
        codec = self.calls.codec if is_call else self.codec
        values: Iterable[Any]
        named: Mapping[str, Any] = {}
        begin = time.perf_counter()
        try:
            if handler is None:
                handler, values, named = self.calls.prepare(task.frame)
            else:
                values = self.parameters(task.frame)
            begin = time.perf_counter()
            result = handler(*values, **named)
            duration_s = time.perf_counter() - begin
            try:
                frame = codec.encode(result, "result", copy=False)  # is sent at once
            except PayloadError as error:
                raise PayloadError(f"the result of task {task.task_id}: {error}") from error
        except (_Leave, PipeClosed):
            raise
        except MemoryError as error:
            self.lift_limit()  # before anything that needs memory, of which there may be none
            return self._failed(task, error, begin, codec)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are the task's too
            return self._failed(task, error, begin, codec)
        finally:
            if is_call:
                self.calls.leave()
        return new_completion((task.task_id, task.attempt, _RESULT, frame, duration_s, ""))

    def fetch(self, name: str) -> Frame:
        """See `Role.fetch`."""
        self.pipe.send(["need_anew" if name in self._deleted else "need", name])
        while True:
            message = self.pipe.receive()
            if message[0] == "data" and message[1] == name:
                break
            if not self._handle(message):
                raise _Leave
        frame: Frame | None = message[2]
        if frame is None:
            raise DataNotFound(f"global state: {message[3]}")
        self._deleted.discard(name)
        return frame

    def _failed(
        self, task: Assignment, error: BaseException, begin: float, codec: Codec
    ) -> Completion:
        duration_s = time.perf_counter() - begin
        if self.memory is not None and _is_out_of_memory(error):
            self.lift_limit()
            limit = format_bytes(self.memory)
            text = f"{getMachineInfo()} ran out of the {limit} of memory that it may have"
            text += f":\n{format_error(error)}"
            outcome = Outcome.OUT_OF_MEMORY.value
            return Completion(task.task_id, task.attempt, outcome, [], 0.0, text)
        text = format_error(error)
        frame = codec.encode_exception(error)
        return Completion(
            task.task_id, task.attempt, Outcome.EXCEPTION.value, frame, duration_s, text
        )

    def _end_now(self) -> None:
        """End without the interpreter's clearing up, for which there may be no memory."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # whatever the user's code put there
                stream.flush()
        os._exit(0)


_active: Role | None = None
_active_here: ContextVar[Role | None] = ContextVar("active_here", default=None)


def active() -> Role | None:
    """What this process, or this thread just now, runs the slave's code for; None: nothing."""
    return _active_here.get() or _active


@contextlib.contextmanager
def acting(role: Role) -> Iterator[None]:
    """Within it, this thread loads the slave's code for `role`; others of the process do not."""
    token = _active_here.set(role)
    try:
        yield
    finally:
        _active_here.reset(token)


def serve(
    handlers: Mapping[str, Callable[..., Any]],
    watchdog_period: float | None,
    termination_test: Callable[[], bool],
) -> None:
    """Be the slave that the code asks for. Does not return: the process ends with the job."""
    role = active()
    assert role is not None
    try:
        role.loop(handlers, watchdog_period, termination_test)
    except PipeClosed:
        os._exit(0)  # the supervisor has gone; there is nobody to tell
    except _Leave:
        pass
    raise SystemExit(0)


def handlers_in(namespace: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The task handlers of a namespace: its callables named ``do_<tag>``, by tag."""
    return {
        name[3:]: value
        for name, value in dict(namespace).items()  # a thread of the script may add to it
        if name.startswith("do_") and len(name) > 3 and callable(value)
    }


def handlers_of(process: object) -> dict[str, Callable[..., Any]]:
    """The task handlers of a slave object: its methods named ``do_<tag>``, by tag."""
    return handlers_in(dict(inspect.getmembers(process, callable)))


def main(
    descriptor: int,
    supervisor_pid: int,
    board: int | None = None,
    shortcut: tuple[int, int, int] | None = None,
) -> None:
    """Entry of a worker process: take the code from the pipe, load it, work, end."""
    os.set_inheritable(descriptor, False)  # what a handler starts must not keep the pipe open
    poster = None
    if board is not None:
        poster = Poster(board)
        os.close(board)
    _die_with(supervisor_pid)
    faulthandler.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a handler's prints show when they are made
    ends = None if shortcut is None else WorkerShortcut(*shortcut)
    pipe = WorkerEnd(socket.socket(fileno=descriptor), poster, ends)
    try:
        _, label, record, memory, pipe.share = pipe.receive()
        problem = load(_Worker(pipe, label, record, memory), record)
        if problem:
            pipe.send(["failed", does_not_load(record, problem), problem])
    except PipeClosed:
        os._exit(0)


def load(role: Role, record: slavecode.Record) -> str:
    """Load the slave's code for `role`. Raises what comes out of its `loop`, `SystemExit` mostly.

    Gives why the code has not started a slave when that is so; then `loop` was not called.
    """
    global _active
    from masterslave.slave import start_loaded  # the surface users subclass; loads when needed

    _active = role
    problem = "it ended without starting a slave: call runJob or startSlaveProcess in it"
    try:
        role.prepare()
        slavecode.load(record, start_loaded)
    except SystemExit as error:
        if role.started:
            raise
        problem = f"it left with exit status {error.code!r} before it started a slave"
    except PipeClosed:
        raise
    except BaseException as error:
        if role.started:
            raise
        problem = format_error(error)
    return "" if role.started else problem


def does_not_load(record: slavecode.Record, problem: str) -> str:
    """In one line that the slave's code does not load, and why."""
    summary = problem.strip().rpartition("\n")[2]
    return f"the slave's code ({_name(record)}) does not load: {summary}"


def _name(record: slavecode.Record) -> str:
    return str(record.get("path") or record.get("module") or "a class of an interactive session")


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether it is a `MemoryError`, of the handler or of packing and unpacking its values."""
    while isinstance(error, PayloadError):
        error = error.__cause__
    return isinstance(error, MemoryError)


def format_error(error: BaseException, here: str = __file__) -> str:
    """The traceback of an exception, beginning below the frames of the module in file `here`."""
    own = (here, calls.__file__)
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in own:
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace or error.__traceback__)
    return clean("".join(lines), _TRACEBACK_CHARACTERS)


def _die_with(parent_pid: int) -> None:
    """Have this process end when its supervisor does, even in the middle of a task."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:
        os._exit(0)  # it had gone before


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)

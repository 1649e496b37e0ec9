"""What is behind an executor: its calls under way, and the thread that takes their results.

It is not the object that a program holds, which may be dropped: this ends when the calls have.

| what ends it                        | then                                                      |
|-------------------------------------|-----------------------------------------------------------|
| `close`, and no call is under way   | workers of its own leave; its functions are dropped       |
| the executor is dropped, the        | as `close`                                                |
| interpreter ends                    |                                                           |
| the task manager is gone for good,  | calls under way and all further ones fail: `BrokenCluster`|
| workers cannot start, initializer   |                                                           |

The module is a little longer than others, as all of these ends go through the same few steps.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, PENDING
from types import ModuleType
from typing import Any

import cloudpickle

from masterslave import payload, shared
from masterslave.arrivals import failure_of
from masterslave.errors import (
    ConnectionFailed,
    DataNotFound,
    InitializerFailed,
    MasterSlaveError,
    PayloadError,
    RemoteTraceback,
    TaskManagerTermination,
)
from masterslave.functions import (
    ONE,
    Functions,
    Surroundings,
    call_frame,
    client_surroundings,
    item_name,
)
from masterslave.master import MasterProcess
from masterslave.records import CALL_TAG, Delivery, Outcome, TaskOptions

log = logging.getLogger(__name__)

#: Results that are taken in one call. Larger: the first of them waits for the others' arrival.
#: Smaller: more calls.
_BATCH = 100

#: Between two looks at the slaves of an executor of its own. Larger: their loss shows later.
_LOOK_S = 1.0

#: Slaves of its own that end one after the other without a result, until the executor gives up.
_FAILED_SLAVES = 3

#: What waits at the end of the interpreter is said to wait after this time.
_PATIENCE_S = 5.0

#: In place of an `Outcome`, of a call that no task manager knows any more.
_BROKEN = "broken"

#: Where an option's default cannot be a value.
UNSET: Any = object()


class BrokenCluster(MasterSlaveError, BrokenExecutor):
    """The executor cannot go on: its task manager is gone for good, or no worker can start."""


class ClusterFuture(Future[Any]):
    """A future that asks the task manager what has become of its call."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core: Core | None = core  # until it is done
        self.task_id = ""  # "" while it waits for other futures

    def cancel(self) -> bool:
        """Take the call back; true if no slave has it, or its slave has given it back unrun."""
        core = self._core
        if core is not None and self._state == PENDING and not core.withdraw(self):
            return self.cancelled()
        if not super().cancel():
            return False
        self._core = None
        with self._condition:
            unseen = self._state == CANCELLED
        if unseen and core is not None:  # as nobody will come to start it
            self.set_running_or_notify_cancel()
        return True

    def running(self) -> bool:
        """Whether a slave has the call."""
        core = self._core
        return core is not None and self._state == PENDING and core.is_running(self)

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Complete it, unless it was cancelled."""
        self._core = None
        if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
            return
        with contextlib.suppress(InvalidStateError):  # cancelled just now
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)


class Call:
    """A call under way."""

    __slots__ = ("digest", "future", "take")

    def __init__(
        self,
        digest: bytes,
        future: ClusterFuture,
        take: Callable[[Delivery], object] | None = None,
    ) -> None:
        """`take`: gets what is delivered as it is, and the future nothing of it."""
        self.digest = digest
        self.future = future
        self.take = take


class Core:
    """What belongs to all views of an executor, and to its calls."""

    def __init__(
        self,
        master: MasterProcess,
        workers: int,
        cwd: str | None,
        modules: Sequence[ModuleType],
        initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None,
    ) -> None:
        """`workers`: of a slave to be launched here, 0 for none. `cwd`: as `ClusterExecutor`."""
        self.pid = os.getpid()
        self._master = master
        self._manager = master.task_manager
        self._process_id = master.process_id
        self._workers = workers
        self._failed_slaves = 0
        self._modules = [m for m in modules if _register_by_value(m)]
        memory: payload.Memory | None = shared if master.settings.shared_memory else None
        self.codec = payload.Codec(memory=memory, modules_by_value=bool(modules))
        self._cwd = cwd
        self._initializer = ""
        self.functions = Functions(self.codec, self._store, self._drop, self._surroundings)
        self._changed = threading.Condition()
        self._calls: dict[str, Call] = {}  # by task id
        self._early: dict[str, Delivery] = {}  # that came before their id was known here
        self._dependent: dict[ClusterFuture, Call] = {}  # they wait for other futures
        self._pending = 0  # calls that are not done, wherever they are
        self._closing = False  # takes no new calls
        self.broken: BrokenCluster | None = None
        self._at_end: list[Callable[[], object]] = []
        self._ended = False
        self._collector = threading.Thread(target=self._collect, name="executor", daemon=True)
        if workers:
            master.launchSlaveJobs(workers=workers)
        if initializer is not None:
            function, args = initializer
            token = secrets.token_hex(8)

            def bring() -> tuple[Callable[..., Any], tuple[Any, ...], str]:
                return function, args, token  # so that each executor's is another function

            self._initializer = item_name(self.functions.use(bring))
        self._collector.start()
        with _cores_lock:
            _cores.add(self)

    def _surroundings(self) -> Surroundings:
        cwd = self._cwd if self._cwd is not UNSET else os.getcwd()
        return client_surroundings(cwd, self._initializer)

    def _store(self, name: str, pieces: Any) -> None:
        self._manager.storeData(**{name: pieces})

    def _drop(self, name: str) -> None:
        try:
            self._manager.deleteData(name)
        except DataNotFound:  # its manager was started anew
            pass
        except MasterSlaveError as error:
            log.debug("%s is not deleted: %s", name, error)

    # --- what callers do --------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise why no call can be made any more, if that is so."""
        if self.pid != os.getpid():
            raise RuntimeError("this executor belongs to the process that forked; make another one")
        if self.broken is not None:
            raise BrokenCluster(*self.broken.args)
        if _interpreter_ends:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    @contextlib.contextmanager
    def new_calls(self, count: int) -> Iterator[None]:
        """Within it, so many calls are stated; they count as pending from its beginning."""
        self.check_open()  # first of all: in a forked process nobody may ever give the lock back
        with self._changed:
            self.check_open()
            self._pending += count
        try:
            yield
        except BaseException:
            self.forget(count)
            raise

    def forget(self, count: int = 1) -> None:
        """So many calls are done, or were not stated after all."""
        with self._changed:
            self._pending -= count
            self._changed.notify_all()

    def send(
        self, calls: Sequence[Call], kind: bytes, arguments: Iterable[Any], options: TaskOptions
    ) -> None:
        """Have calls of one function run. Raises `PayloadError`, `BrokenCluster`."""
        frames = [
            call_frame(kind, call.digest, self.codec.encode(values, "arguments"))
            for call, values in zip(calls, arguments, strict=True)
        ]
        try:
            ids = self._manager.addTaskRequests(CALL_TAG, frames, self._process_id, options)
        except (ConnectionFailed, TaskManagerTermination) as error:
            self._break(error)
            assert self.broken is not None
            raise BrokenCluster(*self.broken.args) from error
        early = []
        with self._changed:
            for call, task_id in zip(calls, ids, strict=True):
                call.future.task_id = task_id
                delivery = self._early.pop(task_id, None)
                if delivery is None:
                    self._calls[task_id] = call
                else:
                    early.append((call, delivery))
            self._changed.notify_all()
        for call, delivery in early:
            self._complete(call, delivery)

    def send_when_done(
        self,
        call: Call,
        future: ClusterFuture,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
    ) -> None:
        """As `send`, when the futures among the arguments are done, with their values."""
        awaited = [v for v in (*args, *kwargs.values()) if isinstance(v, Future)]
        with self._changed:
            self._dependent[future] = call
        left = itertools.count(len(awaited) - 1, -1)

        def is_done(_: Future[Any]) -> None:
            if next(left) > 0:
                return
            with self._changed:
                if self._dependent.pop(future, None) is None:
                    return  # cancelled
            try:
                values = tuple(_value(v) for v in args)
                named = {name: _value(v) for name, v in kwargs.items()}
                self.send([call], ONE, [(values, named)], options)
            except BaseException as error:
                self.functions.release(call.digest)
                future.settle(None, error)
                self.forget()

        for one in awaited:
            one.add_done_callback(is_done)

    def withdraw(self, future: ClusterFuture) -> bool:
        """Take a call back that no slave has."""
        if self.pid != os.getpid():
            return False
        with self._changed:
            dependent = self._dependent.pop(future, None)
            task_id = future.task_id
            if dependent is None and task_id not in self._calls:
                return False
        if dependent is not None:
            self.functions.release(dependent.digest)
            self.forget()
            return True
        try:
            if not self._manager.cancelTask(task_id, True):
                return False
        except MasterSlaveError as error:
            log.debug("%s is not cancelled: %s", task_id, error)
            return False
        with self._changed:
            call = self._calls.pop(task_id, None)
            self._changed.notify_all()
        if call is not None:
            self.functions.release(call.digest)
            self.forget()
        return True

    def is_running(self, future: ClusterFuture) -> bool:
        """Whether a slave has the call."""
        try:
            return bool(future.task_id) and self._manager.taskIsRunning(future.task_id)
        except MasterSlaveError:
            return False

    def close(self, *, cancel: bool = False) -> None:
        """Take no new calls, and end when those under way have; `cancel` what no slave has."""
        if self.pid != os.getpid():
            return  # a forked process has neither the thread nor connections of its own
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            calls = [call.future for call in self._calls.values()] if cancel else []
            waiting = list(self._dependent) if cancel else []
        for future in [*waiting, *reversed(calls)]:
            future.cancel()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; true if it has come."""
        if threading.current_thread() is not self._collector:  # in a callback: it goes on after it
            self._collector.join(timeout_s)
        return not self._collector.is_alive()

    def call_at_end(self, tell: Callable[[], object]) -> None:
        """Have `tell` called when no result will come any more."""
        with self._changed:
            if not self._ended:
                self._at_end.append(tell)
                return
        tell()

    def pending(self) -> int:
        """How many calls are not done."""
        return self._pending

    # --- the collector ----------------------------------------------------------------------

    def _collect(self) -> None:
        try:
            while self._wait_for_calls():
                for delivery in self._deliveries():
                    with self._changed:
                        call = self._calls.pop(delivery.task_id, None)
                        if call is None:
                            self._early[delivery.task_id] = delivery
                    if call is not None:
                        self._complete(call, delivery)
                    call = None
                delivery = None  # type: ignore[assignment]  # may be gigabytes
        except MasterSlaveError as error:
            self._break(error)
        except Exception as error:
            log.exception("the executor failed")
            self._break(error)
        finally:
            self._end()

    def _wait_for_calls(self) -> bool:
        """Return when there is a call under way; false when none will come."""
        with self._changed:
            while not self._calls:
                if self.broken is not None or (self._closing and not self._pending):
                    return False
                self._changed.wait()
            return self.broken is None

    def _deliveries(self) -> list[Delivery]:
        got = self._manager.getResults(self._process_id, None, _BATCH, _LOOK_S, True)
        if got:
            self._failed_slaves = 0
        elif self._workers and not self._master.numberOfLaunchedSlaves():
            self._failed_slaves += 1
            if self._failed_slaves >= _FAILED_SLAVES:
                failures = self._manager.status()["failures"]
                why = failures[-1] if failures else "see what they wrote to standard error"
                raise MasterSlaveError(f"its workers end again and again: {why}")
            log.warning("the executor's workers have ended; others are started")
            self._master.launchSlaveJobs(workers=self._workers)
        return got

    def _complete(self, call: Call, delivery: Delivery) -> None:
        self.functions.release(call.digest)
        try:
            if call.take is None:
                call.future.settle(*self.outcome(delivery))
            else:
                call.take(delivery)
                call.future.settle(None, None)
        finally:
            self.forget()

    def outcome(self, delivery: Delivery) -> tuple[Any, BaseException | None]:
        """The value of a call, or what it raised, with the remote traceback as its cause."""
        if delivery.outcome == _BROKEN:
            return None, BrokenCluster(delivery.detail)
        if delivery.outcome == Outcome.RESULT:
            try:
                return self.codec.decode(delivery.frame, owned=True), None
            except PayloadError as unreadable:
                return None, unreadable
        error = failure_of(self.codec, delivery)
        if delivery.outcome == Outcome.EXCEPTION:
            error.__cause__ = RemoteTraceback(f'\n"""\n{delivery.detail}"""')
        if isinstance(error, InitializerFailed):
            self._break(error)
            return None, self.broken
        return None, error

    def _break(self, error: BaseException) -> None:
        """End everything with an error."""
        if isinstance(error, TaskManagerTermination):
            error = MasterSlaveError("its task manager has ended")
        with self._changed:
            if self.broken is not None:
                return
            self.broken = BrokenCluster(f"the executor cannot go on: {error}")
            self.broken.__cause__ = error
            self._closing = True
            self._changed.notify_all()
        log.critical("%s", self.broken, extra={"action": "executor_broken"})

    def _end(self) -> None:
        with self._changed:
            self._closing = True
            broken = self.broken
            calls, self._calls = self._calls, {}
            dependent, self._dependent = self._dependent, {}
        error = broken or BrokenCluster("the executor has ended")
        for call in calls.values():
            if call.take is not None:
                call.take(Delivery("", CALL_TAG, _BROKEN, [], str(error)))
        for future in [*(call.future for call in calls.values()), *dependent]:
            future.settle(None, error)
        if broken is None and not self._workers:  # else the task manager ends as well
            self.functions.close()
        try:
            self._master.shutdown()
        except MasterSlaveError as error:
            log.debug("not shut down in order: %s", error)
        for module in self._modules:
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)
        with _cores_lock:
            _cores.discard(self)
        with self._changed:
            self._ended = True
        for tell in self._at_end:
            tell()


def _value(argument: Any) -> Any:
    """An argument, or the value of the future that it is; raises what that raised."""
    return argument.result() if isinstance(argument, Future) else argument


def _register_by_value(module: ModuleType) -> bool:
    """Whether it was not registered before."""
    if module.__name__ in cloudpickle.list_registry_pickle_by_value():
        return False
    cloudpickle.register_pickle_by_value(module)
    return True


# --- the end of the interpreter ---------------------------------------------------------------

_cores: weakref.WeakSet[Core] = weakref.WeakSet()
_cores_lock = threading.Lock()
_interpreter_ends = False


def _at_exit() -> None:
    """What was submitted is finished, as by the standard library's executors."""
    global _interpreter_ends
    _interpreter_ends = True
    with _cores_lock:
        cores = [core for core in _cores if core.pid == os.getpid()]
    for core in cores:
        core.close()
    for core in cores:
        if not core.join(_PATIENCE_S):
            log.warning("the program ends when %d calls have ended", core.pending())
            core.join()


# Before the interpreter's own threads are waited for, as concurrent.futures does it.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]

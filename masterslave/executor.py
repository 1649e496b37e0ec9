"""`ClusterExecutor`: the standard library's executor, on workers anywhere.

::

    submit --> Functions (pickled once) --> [data item] -----+
       |                                                     v
       +-----> task "function-call" -----> task manager --> slave --> worker
    future <-- collector thread <--------- task manager <-- result

One thread takes results and completes futures, so callbacks run in it. What has to be known of a
call is in `_Core`, which outlives the executor object that a program has dropped, until the calls
have ended.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, PENDING
from dataclasses import replace
from types import ModuleType
from typing import Any, TypeVar

import cloudpickle

from masterslave import payload, shared, slavecode
from masterslave.errors import (
    ConnectionFailed,
    DataNotFound,
    InitializerFailed,
    MasterSlaveError,
    PayloadError,
    RemoteTraceback,
    SettingsError,
    TaskManagerTermination,
)
from masterslave.functions import (
    MANY,
    ONE,
    Functions,
    Surroundings,
    call_frame,
    client_surroundings,
    item_name,
)
from masterslave.master import Circumstances, MasterProcess, circumstances, failure_of
from masterslave.records import CALL_TAG, DEFAULT_OPTIONS, Delivery, Outcome, TaskOptions
from masterslave.settings import Settings, check_label

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Results that are taken in one call. Larger: the first of them waits for the others' arrival.
#: Smaller: more calls.
_BATCH = 100

#: Calls of `map` that are handed over together. Larger: workers begin later.
_MAP_BATCH = 200

#: Between two looks at the slaves of an executor of its own. Larger: their loss shows later.
_LOOK_S = 1.0

#: Workers of its own look so long for an executor whose program has died: it does not come back.
#: Larger: they are left behind for that time. Smaller: a machine that stands still ends them.
_GONE_S = 5.0

#: Slaves of its own that end one after the other without a result, until the executor gives up.
_FAILED_SLAVES = 3

#: What waits at the end of the interpreter is said to wait after this time.
_PATIENCE_S = 5.0

#: In place of an `Outcome`, of a call that no task manager knows any more.
_BROKEN = "broken"

#: Where an option's default cannot be a value.
_UNSET: Any = object()


class BrokenCluster(MasterSlaveError, BrokenExecutor):
    """The executor cannot go on: its task manager is gone for good, or no worker can start."""


class _ClusterFuture(Future[Any]):
    """A future that asks the task manager what has become of its call."""

    def __init__(self, core: _Core) -> None:
        super().__init__()
        self._core: _Core | None = core  # until it is done
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
        future: _ClusterFuture,
        take: Callable[[Delivery], object] | None = None,
    ) -> None:
        """`take`: gets what is delivered as it is, and the future nothing of it."""
        self.digest = digest
        self.future = future
        self.take = take


class _Core:
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
        self._dependent: set[_ClusterFuture] = set()  # they wait for other futures
        self._pending = 0  # calls that are not done, wherever they are
        self._closing = False  # takes no new calls
        self._broken: BrokenCluster | None = None
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
        _cores.add(self)

    def _surroundings(self) -> Surroundings:
        cwd = self._cwd if self._cwd is not _UNSET else os.getcwd()
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
        if self._broken is not None:
            raise BrokenCluster(*self._broken.args)
        if _interpreter_ends:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    @contextlib.contextmanager
    def new_calls(self, count: int) -> Iterator[None]:
        """Within it, so many calls are stated; they count as pending from its beginning."""
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
            assert self._broken is not None
            raise BrokenCluster(*self._broken.args) from error
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
        future: _ClusterFuture,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
    ) -> None:
        """As `send`, when the futures among the arguments are done, with their values."""
        awaited = [v for v in (*args, *kwargs.values()) if isinstance(v, Future)]
        with self._changed:
            self._dependent.add(future)
        left = itertools.count(len(awaited) - 1, -1)

        def is_done(_: Future[Any]) -> None:
            if next(left) > 0:
                return
            with self._changed:
                if future not in self._dependent:
                    return  # cancelled
                self._dependent.discard(future)
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

    def withdraw(self, future: _ClusterFuture) -> bool:
        """Take a call back that no slave has."""
        with self._changed:
            if future in self._dependent:
                self._dependent.discard(future)
                self._pending -= 1
                self._changed.notify_all()
                return True
            task_id = future.task_id
            if task_id not in self._calls:
                return False
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

    def is_running(self, future: _ClusterFuture) -> bool:
        try:
            return bool(future.task_id) and self._manager.taskIsRunning(future.task_id)
        except MasterSlaveError:
            return False

    def close(self, *, cancel: bool = False) -> None:
        """Take no new calls, and end when those under way have; `cancel` what no slave has."""
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
                if self._broken is not None or (self._closing and not self._pending):
                    return False
                self._changed.wait()
            return self._broken is None

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
            return None, self._broken
        return None, error

    def _break(self, error: BaseException) -> None:
        """End everything with an error."""
        if isinstance(error, TaskManagerTermination):
            error = MasterSlaveError("its task manager has ended")
        with self._changed:
            if self._broken is not None:
                return
            self._broken = BrokenCluster(f"the executor cannot go on: {error}")
            self._broken.__cause__ = error
            self._closing = True
            self._changed.notify_all()
        log.critical("%s", self._broken, extra={"action": "executor_broken"})

    def _end(self) -> None:
        with self._changed:
            self._closing = True
            broken = self._broken
            calls, self._calls = self._calls, {}
            dependent, self._dependent = self._dependent, set()
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
        _cores.discard(self)
        with self._changed:
            self._ended = True
        for tell in self._at_end:
            tell()


class _View(Executor):
    """Calls with certain options."""

    def __init__(self, core: _Core, options: TaskOptions, parent: _View | None = None) -> None:
        self._core = core
        self._options = options
        self._parent = parent  # an executor that is dropped ends

    # Positional only, as the function may have parameters of these names.
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` called by a worker; gives a future of what it returns.

        Futures among the arguments: the call is made when they are done, with their values; if one
        fails, so does this call. Raises `PayloadError` for what cannot be pickled, `RuntimeError`
        after `shutdown`, `BrokenCluster` when no call can be made any more. Blocks only while
        the task manager has no room.
        """
        return self.submit_call(fn, args, kwargs)

    def submit_call(
        self,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        take: Callable[[Delivery], object] | None = None,
    ) -> Future[T]:
        """As `submit`. `take`: gets what is delivered as it is; the future is done then."""
        _check_callable(fn)
        core = self._core
        with core.new_calls(1):
            digest = core.functions.use(fn)
            future = _ClusterFuture(core)
            call = Call(digest, future, take)
            try:
                if any(isinstance(value, Future) for value in (*args, *kwargs.values())):
                    core.send_when_done(call, future, args, kwargs, self._options)
                else:
                    core.send([call], ONE, [(args, kwargs)], self._options)
            except BaseException:
                core.functions.release(digest)
                raise
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As the built-in `map`, but by workers; results come in the order of the arguments.

        `timeout`: seconds from now, after which `TimeoutError` is raised instead of a result.
        `chunksize`: so many calls are one task. `buffersize`: arguments are taken from the
        iterables as results are taken, and so many calls are ahead at most; None: all at once.
        """
        _check_callable(fn)
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        self._core.check_open()
        until = None if timeout is None else time.monotonic() + timeout
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        ahead = None if buffersize is None else max(1, buffersize // chunksize)
        futures: deque[Future[Any]] = deque()
        while batch := list(itertools.islice(chunks, _share(ahead, len(futures)))):
            futures += self._send_chunks(fn, batch)
        if ahead is None:
            return _results(futures, lambda: [], until)  # the executor may be dropped meanwhile
        return _results(
            futures, lambda: self._send_chunks(fn, list(itertools.islice(chunks, 1))), until
        )

    def _send_chunks(self, fn: Callable[..., Any], chunks: list[Any]) -> list[_ClusterFuture]:
        core = self._core
        with core.new_calls(len(chunks)):
            digest = core.functions.use(fn, len(chunks))
            futures = [_ClusterFuture(core) for _ in chunks]
            try:
                calls = [Call(digest, future) for future in futures]
                core.send(calls, MANY, chunks, self._options)
            except BaseException:
                core.functions.release(digest, len(chunks))
                raise
        return futures

    def options(
        self,
        *,
        timeout: float | None = _UNSET,
        retries: int = _UNSET,
        priority: int = _UNSET,
        crash_limit: int = _UNSET,
        backoff: float = _UNSET,
    ) -> _View:
        """This executor, but with these options for the calls submitted by what this gives.

        They mean what they do in `MasterProcess.requestTask`; what is not given stays as it is.
        Raises `SettingsError` for a value that cannot be used.
        """
        given = {
            "timeout": timeout, "retries": retries, "priority": priority,
            "crash_limit": crash_limit, "backoff": backoff,
        }  # fmt: skip
        changed: dict[str, Any] = {k: v for k, v in given.items() if v is not _UNSET}
        return _View(self._core, self._options._replace(**changed).checked(), self)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those under way are finished, then workers of its own leave.

        `wait`: block until then. `cancel_futures`: cancel the calls that no slave has yet.
        """
        self._core.close(cancel=cancel_futures)
        if wait:
            self._core.join()


class ClusterExecutor(_View):
    """An executor of the standard library's kind, whose workers may be anywhere.

    Functions travel by value if they have to: lambdas, closures, what a notebook or a script
    defines. They are called with this program's working directory and find what it can import.
    """

    def __init__(
        self,
        label: str | int | None = None,
        master_host: str | None = None,
        *,
        workers: int | None = None,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        modules: Iterable[str | ModuleType] = (),
        cwd: str | os.PathLike[str] | None = _UNSET,
    ) -> None:
        """With a `label`: the workers of that task manager (``task_manager serve LABEL``).

        `master_host`: ``host`` or ``host:port`` of it; None asks the name server. Without a label:
        `workers` processes on this machine (default: one per processor), which end with this
        executor; `max_workers` is the same, as process pools have it, and so is a number in place
        of the label. `initializer`: called as ``initializer(*initargs)`` in each worker before its
        first call. `modules`: names of modules whose functions and classes are sent along, because
        workers cannot import them. `cwd`: directory that calls find themselves in (default: this
        program's when they are submitted; None: the worker's own). Raises `SettingsError` for what
        cannot be used, `ConnectionFailed` when the task manager cannot be reached.
        """
        if workers is None:
            workers = max_workers
        if type(label) is int:
            label, workers = None, label
        if label is not None:
            check_label(label)
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
            raise SettingsError(f"ClusterExecutor: workers={workers!r} must be an integer")
        if workers is not None and workers < 1:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None:
            _check_callable(initializer)
        if label is None and master_host is not None:
            raise SettingsError("ClusterExecutor: master_host= needs the label of its task manager")
        if label is not None and workers is not None:
            raise SettingsError(
                f"ClusterExecutor: workers={workers} are for an executor without a label; the task "
                f"manager {label!r} has its own"
            )
        if cwd is not _UNSET and cwd is not None:
            cwd = os.fspath(cwd)
        found = [_module(module) for module in modules]
        if label is None:
            workers = workers or _processors()
            master = _own_master()
        else:
            workers = 0
            assert isinstance(label, str)
            master = _joined_master(label, master_host)
        first = None if initializer is None else (initializer, tuple(initargs))
        try:
            core = _Core(master, workers, cwd, found, first)
        except BaseException:
            master.shutdown()
            raise
        super().__init__(core, DEFAULT_OPTIONS)
        # Dropped without `shutdown`: what was submitted is finished, then all ends.
        self._finalizer = weakref.finalize(self, core.close)
        self._finalizer.atexit = False  # `_at_exit` sees to it

    @property
    def _broken(self) -> str:
        """Why no more calls can be made; empty while they can. As process pools have it."""
        broken = self._core._broken
        return "" if broken is None else str(broken)


def _own_master() -> MasterProcess:
    """A master for local workers, that nobody else is to find."""
    settings = replace(
        Settings.from_environment(),
        host="127.0.0.1", port=0, master_gone_s=_GONE_S, connections=None,
    )  # fmt: skip
    label = f"executor-{os.getpid()}-{secrets.token_hex(4)}"
    code = {**slavecode.functions_record(), "shared_main": False}
    with circumstances(Circumstances(code)):
        return MasterProcess(label, use_name_server=False, settings=settings)


def _joined_master(label: str, master_host: str | None) -> MasterProcess:
    """A client of a task manager that is served."""
    return MasterProcess(label, attach=True, master_host=master_host)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _module(module: str | ModuleType) -> ModuleType:
    import importlib

    if isinstance(module, ModuleType):
        return module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(f"modules={module!r}: cannot be imported here: {error}") from error


def _register_by_value(module: ModuleType) -> bool:
    """Whether it was not registered before."""
    if module.__name__ in cloudpickle.list_registry_pickle_by_value():
        return False
    cloudpickle.register_pickle_by_value(module)
    return True


def _check_callable(fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"a function to call must be callable, not {payload.describe(fn)}")


def _value(argument: Any) -> Any:
    """An argument, or the value of the future that it is; raises what that raised."""
    return argument.result() if isinstance(argument, Future) else argument


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _share(ahead: int | None, there: int) -> int:
    """How many chunks are to be sent next."""
    return _MAP_BATCH if ahead is None else min(_MAP_BATCH, ahead - there)


def _results(
    futures: deque[Future[Any]], more: Callable[[], Iterable[Future[Any]]], until: float | None
) -> Iterator[Any]:
    try:
        while futures:
            values = _taken(futures, until)
            futures += more()
            values.reverse()
            while values:
                yield values.pop()  # not kept here
    finally:
        for future in futures:
            future.cancel()


def _taken(futures: deque[Future[Any]], until: float | None) -> list[Any]:
    """The value of the first future, which is let go of."""
    future = futures.popleft()
    try:
        values: list[Any] = future.result(None if until is None else until - time.monotonic())
        return values
    finally:
        future.cancel()  # if the time was over
        del future


# --- the end of the interpreter ---------------------------------------------------------------

_cores: weakref.WeakSet[_Core] = weakref.WeakSet()
_interpreter_ends = False


def _at_exit() -> None:
    """What was submitted is finished, as by the standard library's executors."""
    global _interpreter_ends
    _interpreter_ends = True
    cores = [core for core in list(_cores) if core.pid == os.getpid()]
    for core in cores:
        core.close()
    for core in cores:
        if not core.join(_PATIENCE_S):
            log.warning("the program ends when %d calls have ended", core.pending())
            core.join()


# Before the interpreter's own threads are waited for, as concurrent.futures does it.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]

"""`ClusterExecutor`: the standard library's executor, on workers anywhere.

::

    submit --> Functions (pickled once) --> [data item] -----+
       |                                                     v
       +-----> task "function-call" -----> task manager --> slave --> worker
    future <-- collector thread <--------- task manager <-- result

One thread takes results and completes futures, so callbacks run in it. What has to be known of a
call is in `callcore`.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from types import ModuleType
from typing import Any, TypeVar

from masterslave import payload, slavecode
from masterslave.callcore import UNSET, Call, ClusterFuture, Core
from masterslave.errors import SettingsError
from masterslave.functions import MANY, ONE
from masterslave.master import MasterProcess
from masterslave.records import DEFAULT_OPTIONS, Delivery, TaskOptions
from masterslave.settings import Settings, check_label
from masterslave.ways import Circumstances, circumstances

T = TypeVar("T")

#: Calls of `map` that are handed over together. Larger: workers begin later.
_MAP_BATCH = 200

#: Workers of its own look so long for an executor whose program has died: it does not come back.
#: Larger: they are left behind for that time. Smaller: a machine that stands still ends them.
_GONE_S = 5.0


class _View(Executor):
    """Calls with certain options."""

    def __init__(self, core: Core, options: TaskOptions, parent: _View | None = None) -> None:
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
            future = ClusterFuture(core)
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

    def _send_chunks(self, fn: Callable[..., Any], chunks: list[Any]) -> list[ClusterFuture]:
        core = self._core
        with core.new_calls(len(chunks)):
            digest = core.functions.use(fn, len(chunks))
            futures = [ClusterFuture(core) for _ in chunks]
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
        timeout: float | None = UNSET,
        retries: int = UNSET,
        priority: int = UNSET,
        crash_limit: int = UNSET,
        backoff: float = UNSET,
    ) -> _View:
        """This executor, but with these options for the calls submitted by what this gives.

        They mean what they do in `MasterProcess.requestTask`; what is not given stays as it is.
        Raises `SettingsError` for a value that cannot be used.
        """
        given = {
            "timeout": timeout, "retries": retries, "priority": priority,
            "crash_limit": crash_limit, "backoff": backoff,
        }  # fmt: skip
        changed: dict[str, Any] = {k: v for k, v in given.items() if v is not UNSET}
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

    `submit` and `map` block only while the task manager has no room, `result` of a future until it
    is there. All methods may be called from any thread. Leaving a ``with`` block waits until all
    calls have ended. When the task manager is gone for good, futures fail with `BrokenCluster`, and
    `submit` raises it.
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
        cwd: str | os.PathLike[str] | None = UNSET,
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
        if cwd is not UNSET and cwd is not None:
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
            core = Core(master, workers, cwd, found, first)
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
        broken = self._core.broken
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


def _check_callable(fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"a function to call must be callable, not {payload.describe(fn)}")


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

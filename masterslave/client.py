"""`ClientThread`: calls of functions whose results are brought to a callback.

::

    submit --> executor --> workers --> [deliveries] --client thread--> store, then the callback
       |                                     ^
       +-- known from an earlier run --------+
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from masterslave.errors import JournalError, PayloadError, SettingsError
from masterslave.executor import ClusterExecutor
from masterslave.identities import call_identity
from masterslave.keyfile import load_key
from masterslave.payload import Codec, describe
from masterslave.records import CALL_TAG, Delivery, Frame, Outcome
from masterslave.settings import Settings, checked_path
from masterslave.stores.results import ResultStore, StoredResult

log = logging.getLogger(__name__)

#: What a task manager is called when a host is given and no label.
DEFAULT_LABEL = "cluster"

#: Results that are put on disk together. Larger: the first of them waits for the others.
_GROUP = 200

#: Pause between two attempts to write results for which there was no room, should no others come.
_RETRY_S = 1.0

#: Pieces of a frame in which classes may be described, not data of arrays.
_SMALL_BYTES = 1 << 20

Callback = Callable[[int, Any], object]


class _Job(NamedTuple):
    number: int
    then: Callback | None
    identity: bytes  # b"" without a store
    name: str


class _Arrival(NamedTuple):
    job: _Job
    delivery: Delivery
    is_new: bool  # and not from the store


class ClientThread:
    """Submits functions to workers and hands their results to a callback, in a thread of its own.

    All methods may be called from any thread, and from the callback.
    """

    def __init__(
        self,
        callback: Callback | None = None,
        host: str | None = None,
        *,
        label: str | None = None,
        workers: int | None = None,
        store: str | os.PathLike[str] | None = None,
        modules: Iterable[str | ModuleType] = (),
        **options: Any,
    ) -> None:
        """`callback(job_id, result)` is called for each result, one at a time.

        `host`: ``host`` or ``host:port`` of the task manager, and `label` its label ("cluster" if
        only the host is given); with a label only, the name server is asked; without both,
        `workers` processes on this machine do the work. `store`: a file that keeps results as they
        arrive: a call that equals one whose result it has is not made again, also after a crash of
        this program. `modules` and further options: as for `ClusterExecutor` and its `options`.
        """
        if callback is not None and not callable(callback):
            raise SettingsError(f"ClientThread: callback={describe(callback)} cannot be called")
        if host is not None and label is None:
            label = DEFAULT_LABEL
        self._callback = callback
        self._where: dict[str, Any] = {
            "label": label, "master_host": host, "workers": workers, "modules": tuple(modules),
        }  # fmt: skip
        for name in ("cwd", "initializer", "initargs"):
            if name in options:
                self._where[name] = options.pop(name)
        self._options = options
        self._store_path = None if store is None else checked_path("store", store)
        self._store: ResultStore | None = None
        self._codec = Codec(shared_main=True)
        self._disk = threading.Lock()  # for the store, and what follows
        self._unkept: list[StoredResult] = []  # handed over, but the store cannot be written
        self._trouble: Exception | None = None  # why not
        self._executor: ClusterExecutor | None = None
        self._view: Any = None
        self._arrivals: queue.SimpleQueue[_Arrival | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._jobs = 0  # stated so far
        self._left = 0  # whose result was not handed over yet
        self._failure: BaseException | None = None  # the first that was not raised yet
        self._equal: Counter[bytes] = Counter()  # calls so far, by identity
        self._thread: threading.Thread | None = None

    def start(self) -> ClientThread:
        """Reach the task manager, or start workers here; gives this object.

        Raises as `ClusterExecutor`, and `JournalError` or a subclass when the store cannot be used.
        """
        if self._thread is not None:
            raise SettingsError("ClientThread: was started before; make another one")
        if self._store_path is not None:
            key = load_key(Settings.from_environment().key_file)
            self._store = ResultStore(self._store_path, key)
        try:
            self._executor = ClusterExecutor(**self._where)
            self._view = self._executor.options(**self._options)
        except BaseException:
            if self._executor is not None:
                self._executor.shutdown()
            if self._store is not None:
                self._store.close()
            raise
        self._executor._core.call_at_end(lambda: self._arrivals.put(None))
        # No daemon: at the end of the program, what comes is still stored and handed over.
        self._thread = threading.Thread(target=self._run, name="client", daemon=False)
        self._thread.start()
        return self

    def submit(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        then: Callback | None = None,
        **kwargs: Any,
    ) -> int:
        """Have ``function(*args, **kwargs)`` called by a worker; gives the job's id, a number.

        `then(job_id, result)` is called with the result, in place of the callback. Raises as
        `ClusterExecutor.submit`.
        """
        if self._view is None:
            raise SettingsError("ClientThread: call start() before submit()")
        for name, value in (("function", function), ("then", then)):
            if not callable(value) and (value is not None or name == "function"):
                raise SettingsError(f"ClientThread: {name}={describe(value)} cannot be called")
        self._check_process()
        identity = call_identity(function, args, kwargs) if self._store is not None else b""
        with self._changed:
            if identity:
                self._equal[identity] += 1
                identity += self._equal[identity].to_bytes(8, "big")
            self._jobs += 1
            self._left += 1
            job = _Job(self._jobs, then, identity, getattr(function, "__qualname__", "") or "call")
        try:
            frame = self._find(identity)
            if frame is not None:
                done = Delivery("", CALL_TAG, Outcome.RESULT.value, frame, "")
                self._arrivals.put(_Arrival(job, done, False))
            else:
                self._call(job, function, args, kwargs)
        except BaseException:
            self._done()
            raise
        return job.number

    def wait(self, timeout: float | None = None) -> None:
        """Block until all results were handed over. Raises the first failure that was not raised.

        That is what a call raised, with its remote traceback as the cause, or the callback. The
        other jobs go on then, and `wait` may be called again. `timeout`: seconds, after which
        `TimeoutError` is raised. In a forked process, where no result comes, `RuntimeError` is.
        When all were handed over, `JournalFull` is raised while the store has not all of them.
        """
        self._check_process()
        with self._changed:
            if not self._changed.wait_for(lambda: self._failure or not self._left, timeout):
                raise TimeoutError(f"{self._left} jobs are not done after {timeout:g} s")
            failure, self._failure = self._failure, None
        if failure is None:
            failure = self._write()
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """End: what no slave has yet is not run. What runs is finished, and handed over. Blocks."""
        if self._executor is None or self._thread is None:
            return
        if self._executor._core.pid != os.getpid():  # a forked process has no part in it
            return
        self._executor.shutdown(wait=True, cancel_futures=True)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> ClientThread:
        return self.start()

    def __exit__(self, kind: Any, *exc_info: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.stop()

    # --- inside -----------------------------------------------------------------------------

    def _call(
        self,
        job: _Job,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        def take(delivery: Delivery) -> None:
            self._arrivals.put(_Arrival(job, delivery, True))

        future = self._view.submit_call(function, args, kwargs, take)
        future.add_done_callback(lambda done: self._done() if done.cancelled() else None)

    def _check_process(self) -> None:
        """Raise in a forked process, where nobody gives locks back that were held at the time."""
        if self._executor is not None and self._executor._core.pid != os.getpid():
            raise RuntimeError(
                "this ClientThread belongs to the process that forked; make another one"
            )

    def _find(self, identity: bytes) -> Frame | None:
        with self._disk:
            return None if self._store is None else self._store.find(identity)

    def _done(self) -> None:
        with self._changed:
            self._left -= 1
            self._changed.notify_all()

    def _failed(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            else:
                log.error("another job failed: %s: %s", type(error).__name__, error)
            self._changed.notify_all()

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            group = self._next_group()
            goes_on = None not in group
            arrivals = [one for one in group if one is not None]
            self._keep(arrivals)
            for arrival in arrivals:
                self._hand_over(arrival)
        while not self._arrivals.empty():  # from the store, submitted at the last moment
            last = self._arrivals.get()
            if last is not None:
                self._hand_over(last)
        if self._store is not None:
            error = self._write()
            if error is not None:
                log.error("%s; the next run makes these calls again", error)
            with self._disk:
                store, self._store = self._store, None
                store.close()
        if self._failure is not None:  # nobody may ask any more
            log.error("a job failed: %s: %s", type(self._failure).__name__, self._failure)

    def _next_group(self) -> list[_Arrival | None]:
        """What has arrived; blocks until there is something, or it is time to write again."""
        try:
            group = [self._arrivals.get(timeout=_RETRY_S if self._unkept else None)]
        except queue.Empty:
            return []
        while len(group) < _GROUP and not self._arrivals.empty():
            group.append(self._arrivals.get())
        return group

    def _keep(self, arrivals: Iterable[_Arrival]) -> None:
        """Put new results on disk, before anybody is told of them.

        What finds no room there waits in memory: it is handed over all the same.
        """
        if self._store is None:
            return
        new: list[StoredResult] = []
        for job, delivery, is_new in arrivals:
            if is_new and delivery.outcome == Outcome.RESULT:
                try:
                    frame = self._lasting(delivery.frame)
                except PayloadError:  # cannot be read: who hands it over says so
                    pass
                except Exception as error:  # of no use to a later run
                    self._failed(error)
                else:
                    new.append(StoredResult(job.identity, job.name, frame))
        self._write(new)

    def _write(self, new: Sequence[StoredResult] = ()) -> Exception | None:
        """Have the store keep these results, and those that it could not before.

        Gives why it has not all of them, if so.
        """
        with self._disk:
            if self._store is not None and (new or self._unkept):
                left, trouble = self._written(self._store, [*self._unkept, *new])
                # As bytes: a large buffer may be another process's, lent for a moment.
                self._unkept = [
                    one._replace(frame=[bytes(part) for part in one.frame]) for one in left
                ]
                if trouble is not None and self._trouble is None:
                    log.error(
                        "%s; results are handed over, and wait in memory until it can be",
                        trouble,
                        extra={"action": "store_trouble"},
                    )
                elif trouble is None and self._trouble is not None:
                    log.warning("the store can be written again", extra={"action": "store_mended"})
                self._trouble = trouble
            if self._trouble is None:
                return None
            count = len(self._unkept)
            lacking = "1 result is" if count == 1 else f"{count} results are"
            return type(self._trouble)(f"{self._trouble}; {lacking} not in it")

    @staticmethod
    def _written(
        store: ResultStore, results: list[StoredResult]
    ) -> tuple[list[StoredResult], Exception | None]:
        """Keep as many results as there is room for; gives the others, and why."""
        try:
            store.keep(results)
        except Exception:  # which of them it is, is seen below
            pass
        else:
            return [], None
        results = sorted(results, key=lambda one: sum(map(len, one.frame)))
        for position, one in enumerate(results):
            try:
                store.keep([one])
            except Exception as error:  # they are handed over all the same
                return results[position:], error
        return [], None

    def _lasting(self, frame: Frame) -> Frame:
        """The result as the next run of this program understands it.

        By value, a class of the script would be another class then.
        """
        small = (bytes(piece) for piece in frame if len(piece) <= _SMALL_BYTES)
        if not any(b"cloudpickle" in piece for piece in small):
            return frame
        value = self._codec.decode(frame)
        try:
            return self._codec.encode(value, "result")
        except PayloadError as error:
            raise JournalError(f"results {self._store_path}: not kept: {error}") from error

    def _hand_over(self, arrival: _Arrival) -> None:
        assert self._executor is not None
        try:
            value, error = self._executor._core.outcome(arrival.delivery)
            if error is not None:
                self._failed(error)
            else:
                callback = arrival.job.then or self._callback
                if callback is not None:
                    callback(arrival.job.number, value)
        except BaseException as error:  # the callback's own
            self._failed(error)
        finally:
            self._done()

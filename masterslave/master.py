"""The master's public face: `MasterProcess` to subclass, and what it owns while it lives.

A master owns the task manager, its watchdog, the server through which slaves reach it, the
registration of its label, and the slaves it has launched. Tasks go straight into the task manager,
which is in the same process; only slaves come over the network. What comes back is taken by
`arrivals`.

Half of the module are the docstrings of the public methods, which are the manual.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from masterslave import globalstate, interrupts, payload, shared, slavecode, ways
from masterslave.arrivals import Arrivals
from masterslave.chaos import Chaos
from masterslave.errors import (
    DataNotFound,
    PayloadError,
    ResultTimeout,
    SettingsError,
    TaskManagerTermination,
)
from masterslave.launchers.local import LocalSlaves, SlaveOptions
from masterslave.memory import check_supported
from masterslave.records import (
    DEFAULT_OPTIONS,
    Frame,
    TaskOptions,
    frame_bytes,
)
from masterslave.settings import Settings, check_label
from masterslave.units import parse_bytes, parse_duration
from masterslave.ways import folder_way

if TYPE_CHECKING:  # every slave's program imports this module, and needs none of these
    from concurrent.futures import Executor

    from masterslave.attached import RemoteManager
    from masterslave.hooks import Observer
    from masterslave.manager import TaskManager

log = logging.getLogger(__name__)

#: How many requests `requestTasks` pickles before it hands them over. Larger: slaves start later.
_REQUEST_BATCH = 200

#: The same in bytes. Larger: as above. Smaller: more calls.
_REQUEST_BYTES = 1 << 21

#: Parameters of a task beyond this size bring a warning. Larger: programs that send the same array
#: with every task are slow and do not learn why. Smaller: a warning where there is nothing to gain.
_LARGE_PARAMETERS_BYTES = 10_000_000


class MasterProcess:
    """A master. Subclass it and override `run`, which requests tasks and retrieves results.

    May also be used without a subclass, from anywhere in a program; see `initializeMasterProcess`.
    All methods may be called from any thread.
    """

    def __init__(
        self,
        label: str,
        use_name_server: bool = True,
        *,
        settings: Settings | None = None,
        observers: Sequence[Observer] = (),
        journal: str | PathLike[str] | None = None,
        folder: str | PathLike[str] | None = None,
        failover_folder: str | PathLike[str] | None = None,
        straggler_fraction: float = 0.05,
        attach: bool = False,
        master_host: str | None = None,
        weight: float = 1.0,
        executor: Executor | Callable[[], Executor] | None = None,
    ) -> None:
        """Create the task manager and make it known; or, with `attach`, join one that is there.

        `label`: under which slaves and ``task_manager LABEL`` find it. `use_name_server`: register
        the label with the Pyro name server, starting one in this process if none answers; False:
        listen on port 7766, and slaves must know the host. `observers`: told of what happens in a
        task manager of this process, see `Observer`. `journal`: a file that keeps tasks and
        results, so that a master that was killed can be started again: a request that equals one of
        the run before (same tag and parameters, or same `key`) takes its place, and what had
        finished is not run again.

        `folder`: a directory that slaves share, in which they and this master meet; there is no
        network then, and the journal is in it. `failover_folder`: the same beside the network, for
        slaves that the network does not let through. `straggler_fraction`: when only this part of
        a tag's tasks is left, those that take long are begun a second time in the folder, and the
        first result wins; 0 for never.

        `attach`: join the task manager that ``task_manager serve LABEL`` runs, as one of its
        clients, instead of creating one. `master_host`: its ``host`` or ``host:port``; None finds
        it by its label. `weight`: how many tasks of this client are handed out for each one of a
        client with weight 1, while both have some waiting. All methods are the same; what concerns
        the task manager as a whole is the business of who serves it.

        `executor`: a `concurrent.futures.Executor`, or a function without arguments that makes one:
        it runs the handlers, there are no slaves, and nothing listens. What it is to run must be
        known: see `runJob` and `initializeMasterProcess`, which have the same argument.

        Raises `LabelInUse` when a living master has the label, `FolderInUse` when one has the
        folder, `SettingsError` and `ConnectionFailed` when it cannot be set up or is not there,
        `JournalError` or a subclass when the journal cannot be used.
        """
        check_label(label)
        self.label = label
        self.settings = settings or Settings.from_environment()
        way = folder_way(folder, failover_folder, straggler_fraction)
        given = ways.taken().also(way, executor, attach, master_host)
        self._service = ways.open_service(
            label,
            self.settings,
            given,
            use_name_server=use_name_server,
            observers=observers,
            journal=journal,
            weight=weight,
        )
        self.task_manager: TaskManager | RemoteManager = self._service.manager
        self.process_id: int = self._service.enter()
        lends = (
            self.settings.shared_memory and given.executor is None
        )  # its pickling knows no views
        self._memory: payload.Memory | None = shared if lends else None
        # A journal may still have to write what is delivered, and not what the program makes of it.
        self._has_journal = journal is not None or given.folder is not None
        code = given.code
        is_script = code is not None and code["shared_main"]
        self._use_script(code if is_script else slavecode.running_script(), shared=is_script)
        self._arrivals = Arrivals(
            self.task_manager, self.process_id, self._codec, owned=not self._has_journal
        )
        self._states: dict[int, list[str]] = {}  # names of each state's values
        self._state_uses: Counter[int] = Counter()  # how often each was set
        self._large_tags: set[str] = set()  # whose large parameters have been remarked on
        self._lock = threading.Lock()
        self._slaves = LocalSlaves()
        self._down = False
        interrupts.begin()

    # --- the program ------------------------------------------------------------------------

    def run(self) -> None:
        """The master's work; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override run()")

    def start(self) -> None:
        """Call `run`, and shut down when it has returned or raised. Blocks.

        SIGTERM ends the program in order, too, unless the program handles it itself.
        """
        try:
            with interrupts.sigterm_raises():
                self.run()
        finally:
            self.shutdown()

    def shutdown(self) -> None:
        """End the job: slaves leave, the label is free again. Blocks until they have left, for
        ten seconds at most; slaves launched from here are killed then. A second call does nothing.
        """
        with self._lock:
            if self._down:
                return
            self._down = True
        self._service.end_job(self.settings.shutdown_s)
        self._slaves.end(2.0 if self._service.ends_slaves else 0.0)
        self._service.stop()
        interrupts.end()

    def launchSlaveJobs(
        self,
        n: int = 1,
        *,
        workers: int = 1,
        memory: int | str | None = None,
        lifetime: float | str | None = None,
        chaos: str | None = None,
    ) -> list[int]:
        """Start `n` slaves on this machine, with the code kept in the task manager.

        Gives their process ids. They end with this master. `workers`: worker processes of each
        slave. `memory`: how much private memory each worker may have, in bytes or as ``"2G"``; a
        task that needs more fails with `TaskOutOfMemory`. `lifetime`: seconds, or a text such as
        ``"1:30:00"``, in which they must have left; None: what a batch system says, if any.
        `chaos`: what goes wrong in them on purpose, such as ``"kill=0.01,cut=0.02"``, see
        `masterslave.chaos`; "" for nothing, None for what `MASTERSLAVE_CHAOS` says. Raises
        `SettingsError` when no code is kept (see `runJob` and `initializeMasterProcess`), or for
        an argument that cannot be used.
        """
        self._service.address  # noqa: B018 - there is none where nobody can connect
        for name, value in (("n", n), ("workers", workers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(
                    f"launchSlaveJobs: {name}={value!r} must be an integer of at least 1"
                )
        if chaos is not None and not isinstance(chaos, str):
            raise SettingsError(f"launchSlaveJobs: chaos={chaos!r} must be text or None")
        options = SlaveOptions(
            workers,
            None if memory is None else parse_bytes(memory),
            None if lifetime is None else parse_duration(lifetime),
            self.settings.chaos if chaos is None else Chaos.parse(chaos) or Chaos(),
            follow=self._service.is_named,
            folder=self._service.folder,
            gone_s=self.settings.master_gone_s,
        )
        check_supported(options.memory)
        if not self._has_slave_code():
            raise SettingsError(
                "launchSlaveJobs: no slave code is known; use runJob, or give slave_script= or "
                "slave_module= to initializeMasterProcess"
            )
        self._slaves.reap()
        return self._slaves.launch(self.label, self.address, n, options)

    def _has_slave_code(self) -> bool:
        for name in (slavecode.DATA_NAME, slavecode.DEFAULT_NAME):
            with contextlib.suppress(DataNotFound):
                self.task_manager.retrieveData(name)
                return True
        return False

    def numberOfLaunchedSlaves(self) -> int:
        """How many of the slaves that `launchSlaveJobs` has started have not ended."""
        return self._slaves.living()

    @property
    def address(self) -> str:
        """``host:port`` at which a slave on this machine reaches the task manager.

        Empty where there is only a shared folder.
        """
        return self._service.address

    # --- tasks ------------------------------------------------------------------------------

    @interrupts.uninterrupted
    def requestTask(
        self,
        tag: str,
        *parameters: Any,
        priority: int = 0,
        timeout: float | None = None,
        retries: int = 0,
        crash_limit: int = 5,
        key: str | None = None,
        backoff: float = 0.0,
    ) -> str:
        """Request that some slave calls its handler ``do_<tag>`` with these parameters.

        Gives the task's id, such as ``sqrt_0``. Does not wait for the task. `priority`: higher
        first. `timeout`: seconds that one attempt may run before its worker is killed. `retries`:
        how often an exception of the handler is answered by another attempt; `backoff`: seconds
        before the first of them, doubled for each further one, at most 60 (0: all at once).
        `crash_limit`: how many deaths of its worker a task may cause before it is given up. `key`:
        your own identity of the task, kept with it. Raises `PayloadError` when a parameter cannot
        be pickled, `SettingsError` for an option that cannot be used, `TaskManagerTermination`
        after the end.
        """
        _check_tag(tag)
        options = DEFAULT_OPTIONS
        if (
            type(priority) is not int  # a bool is none
            or priority
            or timeout is not None
            or type(retries) is not int
            or retries
            or crash_limit != options.crash_limit
            or key is not None
            or type(backoff) is not float
            or backoff
        ):
            options = TaskOptions(priority, timeout, retries, crash_limit, key, backoff)
        frame = self._encode(tag, parameters)
        return self.task_manager.addTaskRequest(tag, frame, self.process_id, options)

    def requestTasks(
        self,
        tag: str,
        parameter_tuples: Iterable[Sequence[Any]],
        *,
        priority: int = 0,
        timeout: float | None = None,
        retries: int = 0,
        crash_limit: int = 5,
        key: str | None = None,
        backoff: float = 0.0,
    ) -> list[str]:
        """As `requestTask`, for many tasks of one tag: one tuple of parameters each.

        Gives their ids in order. The iterable is used up as it goes, so slaves begin before it has
        ended.
        """
        _check_tag(tag)
        options = TaskOptions(priority, timeout, retries, crash_limit, key, backoff).checked()
        if not isinstance(parameter_tuples, Iterable):
            raise SettingsError(
                f"requestTasks: parameter_tuples={parameter_tuples!r} must be an iterable of tuples"
            )
        plain = payload.plain_frame  # called for each
        ids: list[str] = []
        frames: list[Frame] = []
        size = 0
        for parameters in parameter_tuples:
            if type(parameters) is tuple:
                together = parameters
            elif isinstance(parameters, (str, bytes)) or not isinstance(parameters, Iterable):
                raise SettingsError(
                    f"requestTasks: each item must be a tuple of parameters, not "
                    f"{payload.describe(parameters)}; for one parameter write (x,)"
                )
            else:
                together = tuple(parameters)
            frame = plain(together)
            if frame is None or len(frame[0]) > _LARGE_PARAMETERS_BYTES:
                frame = self._encode(tag, together)
            size += len(frame[0]) if len(frame) == 1 else frame_bytes(frame)
            frames.append(frame)
            if len(frames) >= _REQUEST_BATCH or size >= _REQUEST_BYTES:
                ids += self.task_manager.addTaskRequests(tag, frames, self.process_id, options)
                frames, size = [], 0
        if frames:
            ids += self.task_manager.addTaskRequests(tag, frames, self.process_id, options)
        return ids

    @interrupts.uninterrupted
    def retrieveResult(
        self, tag: str | None = None, timeout: float | None = None
    ) -> tuple[str, str, Any] | tuple[None, None, None]:
        """Take the oldest result, of that tag if given, as (task id, tag, result).

        Blocks until there is one, for `timeout` seconds at most: then raises `ResultTimeout`.
        Raises `TaskRaisedException` when the task failed. After `shutdown`, when no result is
        left, gives (None, None, None).
        """
        _check_wait(tag, timeout)
        try:
            delivery = self._arrivals.next(tag, timeout)
        except TaskManagerTermination:
            return None, None, None
        if delivery is None:
            what = f"of tag {tag!r} " if tag is not None else ""
            raise ResultTimeout(f"no result {what}within {timeout:g} s")
        return delivery.task_id, delivery.tag, self._arrivals.value(delivery)

    def results(
        self, tag: str | None = None, timeout: float | None = None
    ) -> Iterator[tuple[str, str, Any]]:
        """Iterate over all outstanding results, in order of completion: (task id, tag, result).

        Ends when none is outstanding, so tasks requested meanwhile are included. Raises
        `TaskRaisedException` for a task that failed; a new iterator goes on with the rest.
        `timeout`: seconds to wait for each next result before `ResultTimeout` is raised.
        """
        _check_wait(tag, timeout)
        return self._arrivals.each(tag, timeout)

    def cancelTask(self, task_id: str) -> bool:
        """Take a task back; true if it had not finished, and then it gives no result.

        A running one is stopped: its worker is killed and replaced. Raises `UnknownTask` for an id
        that was never given out here.
        """
        if not isinstance(task_id, str):
            raise SettingsError(f"task_id={task_id!r}: must be a task id such as 'sqrt_0'")
        return self.task_manager.cancelTask(task_id)

    def repeatStragglers(self, tag: str, factor: float | None = 3.0) -> None:
        """From now on, run a task of that tag a second time elsewhere when it takes too long.

        That is when it has run for more than `factor` times the tag's average, no task of the tag
        waits, and a worker is idle: the end of a job is not held up by one slow machine. The first
        result wins, the other attempt is stopped. For tasks that may run twice without harm. None
        switches it off, as it is in the beginning.
        """
        _check_tag(tag)
        if factor is not None and (
            isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor >= 1
        ):
            raise SettingsError(f"factor={factor!r}: must be a number of at least 1, or None")
        self.task_manager.repeatStragglers(tag, factor)

    def printStatistics(self, verbose: bool = True) -> None:
        """Print what ``task_manager LABEL`` would show now: processes and tasks."""
        from masterslave import tables  # takes time to load, and few programs need it

        tables.print_status(self.task_manager.status(), verbose=verbose)

    # --- global state -----------------------------------------------------------------------

    def setGlobalState(self, **values: Any) -> int:
        """Keep values that many tasks use; gives the state's id.

        Tasks refer to them with `GlobalStateValue(state_id, name)` among their parameters. Each
        slave fetches a value once. Raises `PayloadError` when a value cannot be pickled.
        """
        frames = {name: self._codec.encode(value, name) for name, value in values.items()}
        if self._has_journal or sum(map(frame_bytes, frames.values())) < globalstate.DIGEST_BYTES:
            state_id = globalstate.state_id(frames)
        else:  # there is no next run to know it by its content, which takes as long as sending it
            state_id = secrets.randbits(63)
        with self._lock:
            self._states[state_id] = list(frames)
            self._state_uses[state_id] += 1
        self.task_manager.storeData(
            **{f"state_{state_id}_{name}": frame for name, frame in frames.items()}
        )
        return state_id

    def deleteGlobalState(self, state_id: int) -> None:
        """Forget a state here and in the slaves. Raises `DataNotFound` if there is none.

        One that was set several times, with equal values, must be deleted as often.
        """
        with self._lock:
            if state_id not in self._states:
                raise DataNotFound(f"no global state {state_id!r}: never set, or deleted")
            self._state_uses[state_id] -= 1
            if self._state_uses[state_id]:
                return
            names = self._states.pop(state_id)
        for name in names:
            self.task_manager.deleteData(f"state_{state_id}_{name}")

    # --- inside -----------------------------------------------------------------------------

    def keep_slave_code(self, record: slavecode.Record, *, shared_main: bool = False) -> None:
        """Keep the code that slaves load. `shared_main`: it is this very script."""
        self.task_manager.storeData(**{slavecode.DATA_NAME: {**record, "shared_main": shared_main}})
        if shared_main:
            self._use_script(record, shared=True)
            self._arrivals.codec = self._codec

    def _use_script(self, record: slavecode.Record | None, *, shared: bool) -> None:
        main_id = record["main_id"] if record is not None else None
        payload.set_main_id(main_id)
        self._codec = payload.Codec(main_id, shared_main=shared, memory=self._memory)

    def _encode(self, tag: str, parameters: tuple[Any, ...]) -> Frame:
        try:
            frame = self._codec.encode(parameters, "parameters")
        except PayloadError as error:
            raise PayloadError(f"the parameters of a task {tag!r}: {error}") from error.__cause__
        if len(frame) == 1 and len(frame[0]) <= _LARGE_PARAMETERS_BYTES:
            return frame  # most
        size = frame_bytes(frame)
        if size > _LARGE_PARAMETERS_BYTES and tag not in self._large_tags:
            self._large_tags.add(tag)
            log.warning(
                "the parameters of a task %r are %.0f MB, sent with every such task; what several "
                "tasks use is sent once per slave by setGlobalState, with GlobalStateValue in its "
                "place among the parameters",
                tag,
                size / 1e6,
                extra={"action": "large_parameters"},
            )
        return frame


def _check_tag(tag: Any) -> None:
    if not isinstance(tag, str) or not tag:
        raise SettingsError(f"tag={tag!r}: must be the name of a handler without its do_")


def _check_wait(tag: Any, timeout: Any) -> None:
    if tag is not None:
        _check_tag(tag)
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0
    ):
        raise SettingsError(f"timeout={timeout!r}: must be a number of seconds or None")

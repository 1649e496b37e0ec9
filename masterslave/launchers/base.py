"""What is started (`Job`), what a batch system is told (`Rendered`), what came of it (`JobState`).

::

    Job --render--> Rendered --submit--> ids --states--> JobState
         (pure)    script, argument     one per copy
                   lists                    |
                                            `--cancel

A launcher keeps nothing: whoever knows an id can ask for its state or cancel it, in another process
and after a restart as well. Job states are for people. They never decide what becomes of a slave:
a batch system may say that a job has ended, and start it again, while the first one still runs.
"""

from __future__ import annotations

import contextlib
import enum
import os
import platform
import re
import shlex
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from masterslave.errors import LauncherError

#: How long one command of a batch system may take. Larger: who asks a system that hangs waits in
#: silence. Smaller: a busy controller, which answers after many seconds, would be taken for broken.
COMMAND_LIMIT_S = 60.0

#: Commands that run at the same time, one per host. Larger: a burst of logins that a gateway may
#: refuse. Smaller: a hundred hosts take minutes.
_TOGETHER = 16

#: How long a system may take to say that it is there.
PROBE_LIMIT_S = 10.0

_NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


class Container(NamedTuple):
    """What the process runs in."""

    kind: str  # "docker", "podman" or "apptainer"
    image: str
    arguments: tuple[str, ...] = ()  # of the container system's own, before the image
    mounts: tuple[str, ...] = ()  # directories that are seen inside, or SOURCE:TARGET[:ro]


class Job(NamedTuple):
    """So many copies of a process, and what each of them needs."""

    name: str  # any text; systems see `safe_name` of it
    command: tuple[str, ...]  # arguments of the process, which replaces the script (exec)
    count: int = 1  # type: ignore[assignment]  # copies; hides a method of tuples nobody calls
    directory: str = "."  # working directory
    log_folder: str = "."  # where each copy's output goes: `Launcher.log_file`
    walltime_s: float | None = None  # None: the system's default
    environment: Mapping[str, str] = _NO_ENVIRONMENT  # what must be set, beside what is there
    options: tuple[str, ...] = ()  # passed to the batch system as they are
    container: Container | None = None
    memory_bytes: int | None = None  # of each copy
    cpus: int | None = None  # of each copy


class Rendered(NamedTuple):
    """What would be run. `str()` shows it to a person, who can run it."""

    commands: tuple[tuple[str, ...], ...]  # argument lists, run one after the other
    script: str | None = None  # what each of them reads from its standard input
    file: str | None = None  # the script is written there instead, before they run

    def __str__(self) -> str:
        lines = [shlex.join(command) for command in self.commands]
        if self.script is not None and self.file is not None:
            text = f"cat > {shlex.quote(self.file)} <<'END'\n{self.script.rstrip()}\nEND"
            return "\n".join([text, *lines])
        if self.script is None:
            return "\n".join(lines)
        return "\n".join(f"{line} <<'END'\n{self.script.rstrip()}\nEND" for line in lines)


class Phase(enum.Enum):
    """Where a job is."""

    PENDING = "pending"  # not started yet, or to be started again
    RUNNING = "running"  # has a node; also while it is held, stopped or about to end
    ENDED = "ended"  # in whatever way
    UNKNOWN = "unknown"  # the system does not know the id, or no longer: most forget what has ended


class JobState(NamedTuple):
    """Where a job is, and the system's own word for it."""

    phase: Phase
    word: str = ""  # such as "OUT_OF_MEMORY"; empty where the system does not know the id
    reason: str = ""  # why it waits, or how it ended, where the system says so

    @property
    def is_over(self) -> bool:
        """Whether it has ended, as far as the system can tell."""
        return self.phase in (Phase.ENDED, Phase.UNKNOWN)


class Output(NamedTuple):
    """What came of a command."""

    status: int
    out: str
    err: str


class CannotList(LauncherError):
    """This system's jobs cannot be looked for by name at all."""


class Launcher(ABC):
    """One way to start processes. All calls block, `COMMAND_LIMIT_S` per command at most."""

    name: str  # as in ``--on NAME``

    @abstractmethod
    def is_available(self) -> bool:
        """Whether the system is here and answers. Takes seconds at most, raises nothing."""

    def check_available(self) -> None:
        """Raise `LauncherError` where it is not, with what can be said of the reason."""
        if not self.is_available():
            raise LauncherError(
                f"{self.name} does not answer on {platform.node()}; look whether its commands are "
                "there and its server runs, or choose another system with --on"
            )

    @abstractmethod
    def render(self, job: Job) -> Rendered:
        """What `submit` would run. Pure. Raises `LauncherError` for what cannot be expressed."""

    def submit(self, job: Job) -> list[str]:
        """Start all copies; gives an id for each. Raises `LauncherError`, and none is left then."""
        rendered = self.render(job)
        try:
            os.makedirs(job.log_folder, exist_ok=True)
            if rendered.file is not None:
                Path(rendered.file).write_text(rendered.script or "", encoding="utf-8")
        except OSError as error:
            raise LauncherError(f"cannot write {error.filename}: {error.strerror}") from error
        stdin = rendered.script if rendered.file is None else None

        def start(command: Sequence[str]) -> list[str]:
            return self._submitted(job, run_command(command, stdin=stdin))

        ids, failures = together(start, rendered.commands)
        if failures:
            if ids:
                with contextlib.suppress(LauncherError):  # the first failure is what is told
                    self.cancel(ids)
            raise failures[0]
        return ids

    @abstractmethod
    def _submitted(self, job: Job, output: Output) -> list[str]:
        """The ids in the answer to one command of `render`."""

    @abstractmethod
    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each of `ids`. Raises `LauncherError` when the system does not answer."""

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> None:
        """See that these end: SIGTERM, later SIGKILL. Those that have ended are no error.

        Batch systems return before they have ended. Raises `LauncherError` when the system does not
        answer.
        """

    def find(self, name: str, log_folder: str) -> list[str]:
        """The ids of the copies that live of the jobs of that name, whose output goes there.

        Of arrays it may be those of the arrays as a whole, which can be asked for and cancelled.
        For a submission whose answer was lost. Raises `LauncherError` when the system does not
        answer, `CannotList` where they cannot be listed at all.
        """
        raise CannotList(
            f"{self.name} jobs cannot be looked for by name; look for {safe_name(name)!r} with "
            "the system's own commands"
        )

    def endings(self, ids: Sequence[str]) -> dict[str, str]:
        """How those ended that `states` does not know any longer, in the words of the system's
        records; those that it has none of are left out. Raises nothing.
        """
        return {}

    def log_file(self, job: Job, job_id: str) -> str:
        """Where the output of the copy with that id is."""
        return os.path.join(job.log_folder, f"{safe_name(job.name)}.{job_id}.log")


def safe_name(name: str) -> str:
    """A name that every batch system takes and that needs no quoting: begins with a letter."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:60]
    return plain if plain[:1].isascii() and plain[:1].isalpha() else f"j{plain}"


def check(job: Job) -> None:
    """Raise `LauncherError` for a job that no system could start."""
    if not job.command:
        raise LauncherError(f"job {job.name!r} has no command")
    if job.count < 1:
        raise LauncherError(f"job {job.name!r}: count={job.count} must be at least 1")
    for name in job.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise LauncherError(f"job {job.name!r}: {name!r} is not a name of a variable")
    texts = [*job.command, *job.environment.values(), *job.options, job.directory, job.log_folder]
    for text in texts:
        if "\0" in text:
            raise LauncherError(f"job {job.name!r}: {text!r} has a zero byte")


_T = TypeVar("_T")


def in_portions(ids: Sequence[str]) -> Iterator[list[str]]:
    """So many of them as fit into one command line."""
    for begin in range(0, len(ids), 500):
        yield list(ids[begin : begin + 500])


def together(
    act: Callable[[_T], Sequence[str]], items: Sequence[_T]
) -> tuple[list[str], list[LauncherError]]:
    """`act` on each item, some at the same time; all their results in order, and what failed."""
    with ThreadPoolExecutor(max(1, min(_TOGETHER, len(items)))) as pool:
        futures = [pool.submit(act, item) for item in items]
    results: list[str] = []
    failures = []
    for future in futures:
        try:
            results += future.result()
        except LauncherError as error:
            failures.append(error)
    return results, failures


def run_command(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    limit_s: float = COMMAND_LIMIT_S,
    statuses: Sequence[int] = (0,),
) -> Output:
    """Run a command of a batch system to its end. Blocks for `limit_s` seconds at most.

    Raises `LauncherError`, which names the command, its exit status and what it printed, when it
    does not exist, does not end in time, or ends with a status that is not among `statuses`.
    """
    shown = _shortened(" ".join(shlex.join(command).split()))
    environment = {**os.environ, "LC_ALL": "C"}  # answers are read
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise LauncherError(f"cannot run {command[0]}: {error.strerror} ({shown})") from error
    with process:
        try:
            given = None if stdin is None else stdin.encode()
            out, err = process.communicate(given, timeout=limit_s)
        except BaseException as error:
            # Its children as well: they would keep the pipes open, and us waiting.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise LauncherError(f"no answer of {command[0]} in {limit_s:g} s ({shown})") from None
    output = Output(process.returncode, _text(out), _text(err))
    if output.status not in statuses:
        said = " ".join((output.err.strip() or output.out.strip()).split())
        raise LauncherError(
            f"exit status {output.status} of {command[0]}: {said or 'no message'} ({shown})"
        )
    return output


def answers(command: Sequence[str], statuses: Sequence[int] = (0,)) -> bool:
    """Whether a command is there and ends within `PROBE_LIMIT_S`, with one of `statuses`."""
    try:
        run_command(command, limit_s=PROBE_LIMIT_S, statuses=statuses)
    except LauncherError:
        return False
    return True


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _shortened(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[:length]}..."

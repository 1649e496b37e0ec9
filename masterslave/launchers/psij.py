"""Whatever PSI/J can submit to, such as LSF, Cobalt or Flux: the optional package psij-python."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import secrets
import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from masterslave.errors import LauncherError
from masterslave.launchers.base import (
    Job,
    JobState,
    Launcher,
    Output,
    Phase,
    Rendered,
    check,
    safe_name,
)  # fmt: skip
from masterslave.launchers.containers import process_command
from masterslave.launchers.shell import start_of
from masterslave.launchers.ssh import KILL_AFTER_S, LocalLauncher

_PHASES = {
    "NEW": Phase.PENDING, "QUEUED": Phase.PENDING, "ACTIVE": Phase.RUNNING,
    "COMPLETED": Phase.ENDED, "FAILED": Phase.ENDED, "CANCELED": Phase.ENDED,
}  # fmt: skip

#: Until PSI/J has asked its batch system for the state of jobs that it was told of. Smaller: who
#: asks a busy system is told that it does not answer.
_ATTACH_S = 60.0

#: PSI/J asks its batch system so often, until the last job that it was told of has ended. Larger,
#: as its own 30 s: `stop` waits for half a minute at each look. Smaller: a burden for the system.
_ASK_S = 10.0

#: What PSI/J is given to run. Told of folder and output itself, it would put them into scripts
#: where shells and batch systems read them by rules of their own.
_RUN = 'exec >> "$1" 2>&1 < /dev/null; cd "$0" || exit 1; shift; exec "$@"'

#: How PSI/J begins to say that it could not ask: it takes all its jobs for failed then.
_NOT_ASKED = ("Failed to poll", "Failed to update", "Error updating")

#: Between two looks at processes that were told to end. Smaller: all of them are read more often.
_LOOK_S = 0.1


class PsijLauncher(Launcher):
    """One job per copy, as PSI/J has no arrays. `executor`: its name there, such as "lsf".

    `Job.options` are custom attributes, ``NAME=VALUE``. Ids are those of PSI/J's executors, but for
    "local", whose processes are told from others that have got their number since: ``PID:START``.
    A mark follows, ``#MARK``, by which the job knows itself: PSI/J's id is not known before.
    """

    name = "psij"

    def __init__(self, executor: str = "local") -> None:
        self._name = executor

    def is_available(self) -> bool:
        try:
            self._executor()
        except LauncherError:
            return False
        return True

    def check_available(self) -> None:
        self._executor()

    def render(self, job: Job) -> Rendered:
        check(job)
        return Rendered((tuple(process_command(job)),))

    def submit(self, job: Job) -> list[str]:
        command = self.render(job).commands[0]
        executor, psij = self._executor(), _module()
        attributes = psij.JobAttributes(
            custom_attributes=dict(_attribute(option) for option in job.options)
        )
        if job.walltime_s is not None:
            attributes.duration = timedelta(seconds=job.walltime_s)
        resources = psij.ResourceSpecV1(process_count=1, cpu_cores_per_process=job.cpus or 1)
        if job.memory_bytes is not None:
            resources.memory = job.memory_bytes
        name = safe_name(job.name)
        ids: list[str] = []
        try:
            os.makedirs(job.log_folder, exist_ok=True)
            for _ in range(job.count):
                mark = secrets.token_hex(6)
                spec = psij.JobSpec(
                    name=name, executable="sh",
                    arguments=["-c", _RUN, job.directory, self.log_file(job, f"#{mark}"), *command],
                    resources=resources, attributes=attributes,
                    environment={
                        **job.environment, "MASTERSLAVE_JOB_ID": mark, "MASTERSLAVE_JOB_NAME": name,
                    },
                )  # fmt: skip
                one = psij.Job(spec)
                executor.submit(one)
                ids.append(f"{self._own_id(str(one.native_id))}#{mark}")
                self._known[ids[-1]] = one
        except Exception as error:
            self.cancel(ids)
            raise LauncherError(f"psij {self._name}: {error}") from error
        return ids

    def _submitted(self, job: Job, output: Output) -> list[str]:
        raise AssertionError("submitted by a library, not by a command")

    def log_file(self, job: Job, job_id: str) -> str:
        own = job_id.partition("#")[2] or job_id
        return os.path.join(job.log_folder, f"{safe_name(job.name)}.{own}.log")

    def find(self, name: str, log_folder: str) -> list[str]:
        if self._name != "local":  # PSI/J has no names of jobs to look for, only to give
            return super().find(name, log_folder)
        first: dict[str, str] = {}  # of each mark: the others are started by it
        for number, mark in _marked(f"MASTERSLAVE_JOB_NAME={safe_name(name)}").items():
            other = first.get(mark)
            if other is None or int(start_of(number)) < int(start_of(other)):
                first[mark] = number
        return [f"{self._own_id(number)}#{mark}" for mark, number in first.items()]

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        if self._name == "local":
            native = {one: one.partition("#")[0] for one in ids}
            seen = LocalLauncher().states(list(native.values()))
            return {one: seen[own] for one, own in native.items()}
        jobs = {one: self._attach(one) for one in ids}  # all first: they are asked for together
        deadline = time.monotonic() + _ATTACH_S
        return {one: self._state(one, job, deadline) for one, job in jobs.items()}

    def _state(self, job_id: str, job: Any, deadline: float) -> JobState:
        """Of a batch system's job. Raises `LauncherError` when nothing was heard of it by then."""
        if job is None:
            return JobState(Phase.UNKNOWN)
        left_s = max(0.001, deadline - time.monotonic())  # PSI/J takes 0 for "without end"
        status = job.wait(timedelta(seconds=left_s), _told_states())
        if status is None:
            raise LauncherError(f"psij {self._name}: no state of job {job_id} in {_ATTACH_S:g} s")
        if str(status.message or "").startswith(_NOT_ASKED):
            del self._known[job_id]
            reason = str(status.message).strip().splitlines()[-1]
            raise LauncherError(f"psij {self._name}: no state of job {job_id}: {reason}")
        word = status.state.name
        return JobState(_PHASES.get(word, Phase.UNKNOWN), word)

    def cancel(self, ids: Sequence[str]) -> None:
        if self._name == "local":
            _end({one.partition("#")[2] for one in ids} - {""}, KILL_AFTER_S)
            return
        for one in ids:
            job = self._attach(one)
            if job is None or job.status.final:
                continue
            try:
                job.cancel()
            except Exception as error:
                if not job.status.final:
                    raise LauncherError(f"psij {self._name}: {error}") from error

    def _own_id(self, native: str) -> str:
        return f"{native}:{start_of(native)}" if self._name == "local" else native

    def _attach(self, job_id: str) -> Any:
        """PSI/J's job of that id; None where there is none, or no longer."""
        if job_id in self._known:
            return self._known[job_id]
        job = _module().Job()
        try:
            self._executor().attach(job, job_id.partition("#")[0])
        except Exception:  # it does not know the id: the job has ended
            return None
        self._known[job_id] = job
        return job

    def _executor(self) -> Any:
        return _executor(self._name, os.path.expanduser("~"))

    @property
    def _known(self) -> dict[str, Any]:
        """PSI/J's jobs by our ids."""
        return _jobs_of(self._name, os.path.expanduser("~"))


@functools.cache
def _executor(name: str, home: str) -> Any:
    """PSI/J's executor of that name, which keeps its files in `home`.

    One for a process: each has a thread, which goes on asking until its last job has ended.
    """
    psij = _module()
    try:
        made = psij.JobExecutor.get_instance(name)
    except Exception as error:
        known = ", ".join(sorted(psij.JobExecutor.get_executor_names()))
        raise LauncherError(f"psij has no {name!r}, only {known}: {error}") from error
    if hasattr(made.config, "queue_polling_interval"):  # its thread reads it each time
        made.config.queue_polling_interval = _ASK_S
    return made


@functools.cache
def _jobs_of(name: str, home: str) -> dict[str, Any]:
    """PSI/J's jobs by our ids. Told of twice, it would hold, and ask for, each of them twice."""
    return {}


def _marked(*wanted: str) -> dict[str, str]:
    """Processes here whose variables are so, ``NAME=VALUE`` each, and the mark of their job."""
    found = {}
    for number in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/environ", encoding="utf-8", errors="replace") as file:
                variables = file.read().split("\0")
        except OSError:  # not ours, or it has ended
            continue
        own = [one for one in variables if re.fullmatch("MASTERSLAVE_JOB_ID=[0-9a-f]{12}", one)]
        if own and all(one in variables for one in wanted):
            found[number] = own[0].partition("=")[2]
    return found


def _end(marks: set[str], limit_s: float) -> None:
    """End all processes of these jobs of PSI/J's local executor: SIGTERM, at last SIGKILL.

    Its own way kills at once, and not at all once one has ended in the same moment, which ends the
    thread that it asks for states.
    """

    def signal_all(number: int) -> bool:
        there = [one for one, mark in _marked().items() if mark in marks]
        for one in there:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(one), number)
        return bool(there)

    deadline = time.monotonic() + limit_s
    number = signal.SIGTERM.value
    while signal_all(number) and time.monotonic() < deadline + limit_s:
        number = signal.SIGKILL.value if time.monotonic() >= deadline else 0
        time.sleep(_LOOK_S)


def _module() -> Any:
    try:
        return importlib.import_module("psij")
    except ImportError as error:
        raise LauncherError("psij is not installed: pip install 'masterslave[psij]'") from error


def _told_states() -> list[Any]:
    states = _module().JobState
    return [states.QUEUED, states.ACTIVE, states.COMPLETED, states.FAILED, states.CANCELED]


def _attribute(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not equals or not name:
        raise LauncherError(f"psij: {option!r} must be NAME=VALUE")
    return name, value

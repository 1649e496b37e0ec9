"""Whatever PSI/J can submit to, such as LSF, Cobalt or Flux: the optional package psij-python."""

from __future__ import annotations

import importlib
import os
import secrets
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
from masterslave.launchers.ssh import LocalLauncher

_PHASES = {
    "NEW": Phase.PENDING, "QUEUED": Phase.PENDING, "ACTIVE": Phase.RUNNING,
    "COMPLETED": Phase.ENDED, "FAILED": Phase.ENDED, "CANCELED": Phase.ENDED,
}  # fmt: skip

#: Until PSI/J has asked its batch system for the state of a job that it was told of.
_ATTACH_S = 30.0


class PsijLauncher(Launcher):
    """One job per copy, as PSI/J has no arrays. `executor`: its name there, such as "lsf".

    `Job.options` are custom attributes, ``NAME=VALUE``. Ids are those of PSI/J's executors, but for
    "local", whose processes are told from others that have got their number since: ``PID:START``.
    """

    name = "psij"

    def __init__(self, executor: str = "local") -> None:
        self._name = executor
        self._instance: Any = None
        # PSI/J's jobs by our ids: attached to twice, one that ends stops its local executor.
        self._known: dict[str, Any] = {}

    def is_available(self) -> bool:
        try:
            self._executor()
        except LauncherError:
            return False
        return True

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
        environment = {"MASTERSLAVE_JOB_ID": "", **job.environment}  # not that of our own job
        os.makedirs(job.log_folder, exist_ok=True)
        ids: list[str] = []
        try:
            for _ in range(job.count):
                # The id, which `log_file` has in its name, is not known before.
                output = f"{safe_name(job.name)}.{secrets.token_hex(6)}.out"
                spec = psij.JobSpec(
                    executable="sh", arguments=["-c", 'exec "$@" 2>&1', "sh", *command],
                    directory=job.directory, environment=environment, resources=resources,
                    attributes=attributes, stdout_path=os.path.join(job.log_folder, output),
                )  # fmt: skip
                one = psij.Job(spec)
                executor.submit(one)
                ids.append(self._own_id(str(one.native_id)))
                self._known[ids[-1]] = one
                os.symlink(output, self.log_file(job, ids[-1]))
        except Exception as error:
            self.cancel(ids)
            raise LauncherError(f"psij {self._name}: {error}") from error
        return ids

    def _submitted(self, job: Job, output: Output) -> list[str]:
        raise AssertionError("submitted by a library, not by a command")

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        found = {}
        for one in ids:
            job = self._attach(one)
            word = ""
            if job is not None:
                status = job.wait(timedelta(seconds=_ATTACH_S), _told_states())
                word = (status or job.status).state.name
            found[one] = JobState(_PHASES.get(word, Phase.UNKNOWN), word)
        return found

    def cancel(self, ids: Sequence[str]) -> None:
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
        native = job_id
        if self._name == "local":
            native = job_id.partition(":")[0]
            if LocalLauncher().states([job_id])[job_id].is_over:
                return None
        job = _module().Job()
        try:
            self._executor().attach(job, native)
        except Exception:  # it does not know the id: the job has ended
            return None
        self._known[job_id] = job
        return job

    def _executor(self) -> Any:
        if self._instance is None:
            psij = _module()
            try:
                self._instance = psij.JobExecutor.get_instance(self._name)
            except Exception as error:
                known = ", ".join(sorted(psij.JobExecutor.get_executor_names()))
                raise LauncherError(f"psij has no {self._name!r}, only {known}: {error}") from error
        return self._instance


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

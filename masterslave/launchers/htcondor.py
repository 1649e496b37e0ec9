"""HTCondor: ``condor_submit``, ``condor_q``, ``condor_rm``.

What is submitted is a description, as text that a person can edit and submit: `description`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Sequence

from masterslave.errors import LauncherError
from masterslave.launchers.base import (
    Job,
    JobState,
    Launcher,
    Output,
    Phase,
    Rendered,
    answers,
    check,
    in_portions,
    run_command,
    safe_name,
)  # fmt: skip
from masterslave.launchers.containers import process_command

_STATES = {
    "1": JobState(Phase.PENDING, "IDLE"),
    "2": JobState(Phase.RUNNING, "RUNNING"),
    "3": JobState(Phase.RUNNING, "REMOVED"),  # is to end; it leaves the queue when it has
    "4": JobState(Phase.ENDED, "COMPLETED"),
    "5": JobState(Phase.PENDING, "HELD"),
    "6": JobState(Phase.RUNNING, "TRANSFERRING_OUTPUT"),
    "7": JobState(Phase.RUNNING, "SUSPENDED"),
}

#: A slave that is told to leave gets so long, in seconds, before it is killed.
_VACATE_S = 60


class HtcondorLauncher(Launcher):
    """Copies are the processes of one cluster.

    `description_file`: where the description is written and submitted from, to be edited and
    submitted again; None: it is kept nowhere.
    """

    name = "htcondor"

    def __init__(self, description_file: str | None = None) -> None:
        self._file = description_file

    def is_available(self) -> bool:
        return answers(["condor_q", "-totals"])

    def render(self, job: Job) -> Rendered:
        command = ("condor_submit", "-terse", self._file or "-")
        return Rendered((command,), description(job), self._file)

    def _submitted(self, job: Job, output: Output) -> list[str]:
        found = re.search(r"(\d+)\.(\d+) - (\d+)\.(\d+)", output.out)  # "12.0 - 12.3"
        if found is None:
            raise LauncherError(f"condor_submit gave no job ids but {output.out!r}")
        return [f"{found[1]}.{i}" for i in range(int(found[2]), int(found[4]) + 1)]

    def find(self, name: str, log_folder: str) -> list[str]:
        chosen = f'JobBatchName == "{safe_name(name)}"'
        columns = ("ClusterId", "ProcId")
        listed = run_command(["condor_q", "-constraint", chosen, "-autoformat", *columns]).out
        return [".".join(line.split()) for line in listed.splitlines() if line.strip()]

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        found: dict[str, JobState] = {}
        for part in in_portions(ids):
            columns = ("ClusterId", "ProcId", "JobStatus", "HoldReason")
            listed = run_command(["condor_q", *part, "-autoformat", *columns]).out
            for line in listed.splitlines():
                cluster, process, number, reason = (*line.split(None, 3), *[""] * 4)[:4]
                state = _STATES.get(number, JobState(Phase.UNKNOWN))
                if state.word == "HELD":
                    state = state._replace(reason=f"held: {reason.strip()}")
                found[f"{cluster}.{process}"] = state
        return {one: found.get(one, JobState(Phase.UNKNOWN)) for one in ids}

    def endings(self, ids: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in in_portions(ids):
            columns = ("ClusterId", "ProcId", "ExitCode", "ExitSignal", "RemoveReason")
            command = ["condor_history", *part, "-limit", str(len(part)), "-autoformat", *columns]
            with contextlib.suppress(LauncherError):  # not every site keeps one
                found.update(_kept(run_command(command).out))
        return {one: found[one] for one in ids if one in found}

    def cancel(self, ids: Sequence[str]) -> None:
        for part in in_portions(ids):
            done = run_command(["condor_rm", *part], statuses=(0, 1))
            known = ("marked for removal", "not found", "Couldn't find", "already")
            said = [line for line in (done.out + done.err).splitlines() if line.strip()]
            wrong = [line for line in said if not any(text in line for text in known)]
            if done.status and (wrong or not said):
                raise LauncherError(f"condor_rm: {' '.join(wrong) or 'no message'}")


def _kept(text: str) -> dict[str, str]:
    """How the jobs ended in lines of ``condor_history``: numbers, exit, signal, why removed."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        cluster, process, status, number, reason = (*line.split(None, 4), *[""] * 5)[:5]
        said = [] if status in ("", "undefined") else [f"exit status {status}"]
        said += [] if number in ("", "undefined") else [f"signal {number}"]
        said += [] if reason in ("", "undefined") else [reason.strip()]
        if said:
            found.setdefault(f"{cluster}.{process}", ", ".join(said))
    return found


def description(job: Job) -> str:
    """The submit description. `Job.options` are lines of it; a later line overrides an earlier."""
    check(job)
    command = process_command(job)
    if not command[0].startswith("/"):
        command = ["/usr/bin/env", *command]
    log = os.path.join(job.log_folder, safe_name(job.name))
    environment = _list([f"{name}={value}" for name, value in job.environment.items()])
    # HTCondor tells a process its id in a file only.
    environment = f'{environment[:-1]} MASTERSLAVE_JOB_ID=$(Cluster).$(Process)"'
    values = {
        "universe": "vanilla",
        "executable": _plain(command[0]),
        "arguments": _list(command[1:]),
        "environment": environment,
        "initialdir": _plain(os.path.abspath(job.directory)),
        "output": f"{_plain(log)}.$(Cluster).$(Process).log",
        "error": f"{_plain(log)}.$(Cluster).$(Process).log",
        "log": f"{_plain(log)}.$(Cluster).events",
        "batch_name": safe_name(job.name),
        # The files are where they are: on a shared file system, or the same on each machine.
        "transfer_executable": "false",
        "should_transfer_files": "no",
        "kill_sig": "SIGTERM",
        "job_max_vacate_time": str(_VACATE_S),
    }
    if job.cpus is not None:
        values["request_cpus"] = str(job.cpus)
    if job.memory_bytes is not None:
        values["request_memory"] = f"{math.ceil(job.memory_bytes / 2**20)}"  # MiB
    if job.walltime_s is not None:
        limit = max(1, math.floor(job.walltime_s))
        values["periodic_remove"] = f"JobStatus == 2 && time() - EnteredCurrentStatus > {limit}"
    lines = [f"{name} = {value}" for name, value in values.items()]
    return "\n".join([*lines, *job.options, f"queue {job.count}"]) + "\n"


def _plain(text: str) -> str:
    """A value as it is: no macros, one line."""
    if re.search(r"[\r\n]|^\s|\s$|\\$", text):
        raise LauncherError(f"HTCondor takes no line breaks and no blanks at the ends: {text!r}")
    return text.replace("$", "$(DOLLAR)")


def _list(words: Sequence[str]) -> str:
    """Words in the "new" syntax: all in double quotes, those with blanks in single ones."""
    quoted = []
    for word in words:
        if re.search(r"[\r\n]", word):
            raise LauncherError(f"HTCondor takes no line breaks in arguments: {word!r}")
        plain = word.replace('"', '""').replace("'", "''").replace("$", "$(DOLLAR)")
        quoted.append(f"'{plain}'" if not word or re.search(r"[\s']", word) else plain)
    return f'"{" ".join(quoted)}"'

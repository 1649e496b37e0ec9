"""PBS in its dialects, OpenPBS and Torque: ``qsub``, ``qstat``, ``qdel``."""

from __future__ import annotations

import hashlib
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
    in_portions,
    run_command,
    safe_name,
)  # fmt: skip
from masterslave.launchers.scripts import clock, kibibytes, script

DIALECTS = ("openpbs", "torque")

_PENDING = set("QHWTM")  # queued, held, waiting, moving to a server or between servers
_ENDED = set("CFX")  # completed (Torque), finished, finished part of an array (OpenPBS)

#: Longest name of a job.
_NAME_LENGTH = 15

#: Exit status of some, when there are no jobs at all.
_NO_JOBS = 153

#: `qstat` and `qdel` end so when there is no such job, or no longer.
_UNKNOWN_JOB = ("Unknown Job", "has finished", "Invalid job id", "invalid state", "completed")


class PbsLauncher(Launcher):
    """Copies are an array, a single one is a plain job.

    `dialect`: "openpbs" or "torque". `arrays`: False where there are none; each copy is a job then.
    """

    name = "pbs"

    def __init__(self, dialect: str = "openpbs", arrays: bool = True) -> None:
        if dialect not in DIALECTS:
            raise LauncherError(f"dialect {dialect!r}: must be one of {', '.join(DIALECTS)}")
        self._torque = dialect == "torque"
        self._arrays = arrays

    def is_available(self) -> bool:
        # Grid Engine has commands of the same names, and `qconf` beside them.
        return answers(["qstat"], (0, _NO_JOBS)) and not answers(["qconf", "-sql"])

    def render(self, job: Job) -> Rendered:
        name = _short_name(job.name)
        own_log = os.path.join(job.log_folder, f"{safe_name(job.name)}.pbs")
        command = ["qsub", "-N", name, "-S", "/bin/sh", "-j", "oe", "-o", own_log]
        if job.count > 1 and self._arrays:
            command += ["-t" if self._torque else "-J", f"0-{job.count - 1}"]
        if job.walltime_s is not None:
            command += ["-l", f"walltime={clock(job.walltime_s)}"]
        command += self._resources(job)
        file = os.path.join(job.log_folder, f"{safe_name(job.name)}.sh")  # not all read stdin
        commands = ((*command, *job.options, file),) * (1 if self._arrays else job.count)
        return Rendered(commands, script(job, log_id="$PBS_JOBID"), file)

    def _resources(self, job: Job) -> list[str]:
        memory = None if job.memory_bytes is None else f"mem={kibibytes(job.memory_bytes)}kb"
        if self._torque:
            words = [] if job.cpus is None else ["-l", f"nodes=1:ppn={job.cpus}"]
            return words if memory is None else [*words, "-l", memory]
        if job.cpus is None and memory is None:
            return []
        chunk = f"select=1:ncpus={job.cpus or 1}"
        return ["-l", chunk if memory is None else f"{chunk}:{memory}"]

    def _submitted(self, job: Job, output: Output) -> list[str]:
        words = output.out.split()
        found = re.fullmatch(r"(\d+)(\[\])?((?:\.\S+)?)", words[-1]) if words else None
        if found is None:
            raise LauncherError(f"qsub gave no job id but {output.out!r}")
        number, _, server = found.groups()
        if job.count == 1 or not self._arrays:
            return [f"{number}{server}"]
        return [f"{number}[{i}]{server}" for i in range(job.count)]

    def find(self, name: str, log_folder: str) -> list[str]:
        listed = run_command(["qstat", "-f"], statuses=(0, _NO_JOBS)).out
        return _named(listed, _short_name(name))

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        found: dict[str, JobState] = {}
        finished = [] if self._torque else ["-x"]
        for part in in_portions(ids):
            listed = run_command(["qstat", "-f", *finished, *part], statuses=range(256))
            wrong = _real_errors(listed.err)
            if listed.status and wrong:
                raise LauncherError(f"qstat: {' '.join(wrong)}")
            found.update(_read(listed.out))
        return {one: found.get(one, JobState(Phase.UNKNOWN)) for one in ids}

    def cancel(self, ids: Sequence[str]) -> None:
        for part in in_portions(ids):
            done = run_command(["qdel", *part], statuses=range(256))
            wrong = _real_errors(done.err or done.out)
            if done.status and wrong:
                raise LauncherError(f"qdel: {' '.join(wrong)}")


def _short_name(name: str) -> str:
    """What older ones take as a name, 15 characters; of different names, different ones."""
    whole = safe_name(name)
    if len(whole) <= _NAME_LENGTH:
        return whole
    return f"{whole[: _NAME_LENGTH - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _named(text: str, name: str) -> list[str]:
    """The ids in ``qstat -f`` of jobs with that name which have not ended; an array is one job."""
    names: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        head = re.match(r"Job Id:\s*(\S+)", line)
        given = re.match(r"\s+Job_Name = (\S+)", line)
        if head is not None:
            current = head[1]
        elif given is not None:
            names[current] = given[1]
    states = _read(text)
    return [
        one
        for one, given_name in names.items()
        if given_name == name and not (one in states and states[one].is_over)
    ]


def _real_errors(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    return [line for line in lines if not any(known in line for known in _UNKNOWN_JOB)]


def _read(text: str) -> dict[str, JobState]:
    """Of each ``Job Id: 12[3].server`` the lines ``job_state = R`` and ``Exit_status = 0``."""
    found: dict[str, JobState] = {}
    current = ""
    for line in text.splitlines():
        head = re.match(r"Job Id:\s*(\S+)", line)
        state = re.match(r"\s+job_state = (\S+)", line)
        status = re.match(r"\s+exit_status = (\S+)", line, re.IGNORECASE)
        if head is not None:
            current = head[1]
        elif state is not None and current:
            word = state[1]
            phase = Phase.PENDING if word in _PENDING else Phase.RUNNING
            reason = "it is held" if word == "H" else ""
            found[current] = JobState(Phase.ENDED if word in _ENDED else phase, word, reason)
        elif status is not None and current in found and found[current].is_over:
            found[current] = found[current]._replace(reason=f"exit status {status[1]}")
    return found

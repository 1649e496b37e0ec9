"""Grid Engine, any of its descendants: ``qsub``, ``qstat``, ``qdel``.

``qdel`` kills at once; with ``-notify`` SIGUSR2 comes first, some seconds before (a slave leaves in
order then), and SIGUSR1 before a job is stopped, which ends nothing here.
"""

from __future__ import annotations

import contextlib
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


class SgeLauncher(Launcher):
    """Copies are an array, a single one is a plain job.

    `parallel_environment`: which one gives a job several cores of one host; sites name it.
    `memory_resource`: which resource is memory per core.
    """

    name = "sge"

    def __init__(self, parallel_environment: str = "smp", memory_resource: str = "h_vmem") -> None:
        self._parallel_environment = parallel_environment
        self._memory_resource = memory_resource

    def is_available(self) -> bool:
        return answers(["qconf", "-sql"])

    def render(self, job: Job) -> Rendered:
        command = [
            "qsub", "-terse", "-N", safe_name(job.name), "-S", "/bin/sh", "-notify",
            "-o", "/dev/null", "-j", "y",  # the script sees to its output
        ]  # fmt: skip
        if job.count > 1:
            command += ["-t", f"1-{job.count}"]
        if job.walltime_s is not None:
            command += ["-l", f"h_rt={clock(job.walltime_s)}"]
        if job.cpus is not None and job.cpus > 1:
            command += ["-pe", self._parallel_environment, str(job.cpus)]
        if job.memory_bytes is not None:
            per_core = kibibytes(-(-job.memory_bytes // max(1, job.cpus or 1)))
            command += ["-l", f"{self._memory_resource}={per_core}K"]
        log_id = "$JOB_ID.$SGE_TASK_ID" if job.count > 1 else "$JOB_ID"
        text = script(job, log_id=log_id, first=["trap '' USR1"])
        return Rendered(((*command, *job.options),), text)

    def _submitted(self, job: Job, output: Output) -> list[str]:
        found = re.search(r"^(\d+)(?:\.\d+-\d+:\d+)?$", output.out.strip(), re.MULTILINE)
        if found is None:
            raise LauncherError(f"qsub gave no job id but {output.out!r}")
        number = found[1]
        return [number] if job.count == 1 else [f"{number}.{i + 1}" for i in range(job.count)]

    def find(self, name: str, log_folder: str) -> list[str]:
        return _named(run_command(["qstat", "-r", "-g", "d"]).out, safe_name(name))

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        listed = run_command(["qstat", "-g", "d"]).out if ids else ""
        found = _read(listed)
        return {one: found.get(one, JobState(Phase.UNKNOWN)) for one in ids}

    def endings(self, ids: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for number in dict.fromkeys(one.partition(".")[0] for one in ids):
            with contextlib.suppress(LauncherError):  # none is kept, or not yet
                found.update(_accounted(run_command(["qacct", "-j", number]).out))
        return {one: found[one] for one in ids if one in found}

    def cancel(self, ids: Sequence[str]) -> None:
        for part in in_portions(ids):
            done = run_command(["qdel", *part], statuses=(0, 1))
            said = [line for line in (done.out + done.err).splitlines() if line.strip()]
            known = ("does not exist", "do not exist", "already in deletion", "has deleted",
                     "has registered")  # fmt: skip
            wrong = [line for line in said if not any(text in line for text in known)]
            if done.status and (wrong or not said):
                raise LauncherError(f"qdel: {' '.join(wrong) or 'no message'}")


def _read(text: str) -> dict[str, JobState]:
    """The table of ``qstat -g d``: number, priority, name, user, state, ..., slots, task."""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].isdecimal():
            continue
        number, word, last = fields[0], fields[4], fields[-1]
        state = JobState(_phase(word), word, _reason(word))
        found[number] = state
        found[f"{number}.{last}"] = state  # of a plain job: never asked for
    return found


def _accounted(listed: str) -> dict[str, str]:
    """How the jobs, or the tasks of arrays, ended that ``qacct -j`` tells of."""
    found = {}
    for block in re.split(r"^=+$", listed, flags=re.MULTILINE):
        lines = [line.split(None, 1) for line in block.splitlines() if line.strip()]
        fields = {line[0]: line[1].strip() for line in lines if len(line) == 2}
        if "jobnumber" not in fields:
            continue
        job_id, task = fields["jobnumber"], fields.get("taskid", "")
        said = [f"exit status {fields.get('exit_status', '?')}"]
        if fields.get("failed", "0") != "0":
            said.append(f"failed {fields['failed']}")
        if fields.get("deleted_by", "NONE") != "NONE":
            said.append(f"deleted by {fields['deleted_by']}")
        # Of several runs of one, the last one stands at the end.
        text = " ".join(", ".join(said).split())
        found[f"{job_id}.{task}" if task.isdecimal() else job_id] = text
    return found


def _named(text: str, name: str) -> list[str]:
    """The ids in ``qstat -r -g d`` of copies with that name, which stands below each in full."""
    found = []
    current = ""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].isdecimal():
            # ..., date, time, queue (where there is one yet), slots, task (of an array)
            numbers = [word for word in fields[7:] if word.isdecimal()]
            current = ".".join([fields[0], *numbers[1:]])
        elif fields[:2] == ["Full", "jobname:"] and fields[2:] == [name]:
            found.append(current)
    return found


def _reason(word: str) -> str:
    if "E" in word:
        return "its start has failed; qstat -j tells why, qmod -cj has it tried again"
    return "it is held" if "h" in word else ""


def _phase(word: str) -> Phase:
    """Of letters such as ``qw``, ``Eqw`` (waits, as its start failed), ``r``, ``dr``, ``Rt``."""
    if "q" in word or "w" in word:
        return Phase.PENDING
    return Phase.ENDED if "z" in word else Phase.RUNNING

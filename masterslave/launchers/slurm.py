"""Slurm: ``sbatch``, ``squeue`` (``sacct`` for what that has forgotten), ``scancel``."""

from __future__ import annotations

import os
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

#: Words for a job that waits for a node, perhaps not for the first time.
_PENDING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


class SlurmLauncher(Launcher):
    """Copies are an array, a single one is a plain job."""

    name = "slurm"

    def is_available(self) -> bool:
        return answers(["sbatch", "--version"]) and answers(["scontrol", "ping"])

    def render(self, job: Job) -> Rendered:
        if "\\" in job.log_folder:  # with one, Slurm has no numbers in the name of a file
            raise LauncherError(f"Slurm takes no backslash in a folder of logs: {job.log_folder!r}")
        folder = job.log_folder.replace("%", "%%")
        number = "%A_%a" if job.count > 1 else "%j"
        output = os.path.join(folder, f"{safe_name(job.name)}.{number}.log")
        command = [
            "sbatch", "--parsable", f"--job-name={safe_name(job.name)}", f"--chdir={job.directory}",
            # A job that is started again goes on in the same file. Slurm itself writes there, too.
            f"--output={output}", "--open-mode=append",
        ]  # fmt: skip
        if job.count > 1:
            command.append(f"--array=0-{job.count - 1}")
        if job.walltime_s is not None:
            command.append(f"--time={clock(job.walltime_s)}")
        if job.memory_bytes is not None:
            command.append(f"--mem={kibibytes(job.memory_bytes)}K")
        if job.cpus is not None:
            command.append(f"--cpus-per-task={job.cpus}")
        return Rendered(((*command, *job.options),), script(job))

    def _submitted(self, job: Job, output: Output) -> list[str]:
        number = output.out.strip().partition(";")[0]  # then the name of the cluster
        if not number.isdecimal():
            raise LauncherError(f"sbatch gave no job id but {output.out!r}")
        return [number] if job.count == 1 else [f"{number}_{i}" for i in range(job.count)]

    def find(self, name: str, log_folder: str) -> list[str]:
        listed = run_command(
            ["squeue", "--noheader", "--array", "--me", f"--name={safe_name(name)}", "--format=%i"]
        )
        return listed.out.split()

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        found: dict[str, JobState] = {}
        for part in in_portions(list(dict.fromkeys(one.partition("_")[0] for one in ids))):
            listed = run_command(
                ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r",
                 f"--jobs={','.join(part)}"],
                statuses=(0, 1),
            )  # fmt: skip
            if listed.status and "Invalid job id" not in listed.err:
                raise LauncherError(f"squeue: {' '.join(listed.err.split()) or 'no answer'}")
            found.update(_read(listed.out))
        for part in in_portions([one for one in ids if one not in found]):
            found.update(_accounted(part))
        return {one: found.get(one, JobState(Phase.UNKNOWN)) for one in ids}

    def cancel(self, ids: Sequence[str]) -> None:
        for part in in_portions(ids):
            done = run_command(["scancel", *part], statuses=(0, 1))
            wrong = [
                line
                for line in done.err.splitlines()
                if not any(known in line for known in ("Invalid job id", "already complet"))
            ]
            if done.status and wrong:
                raise LauncherError(f"scancel: {' '.join(wrong)}")


def _accounted(ids: Sequence[str]) -> dict[str, JobState]:
    """What accounting knows of them; nothing where there is none."""
    command = ["sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(ids)]
    try:
        return _read(run_command(command).out)
    except LauncherError:
        return {}


def _read(text: str) -> dict[str, JobState]:
    """Lines such as ``12_3|PENDING|Resources``, or ``12_3|FAILED`` of accounting."""
    found = {}
    for line in text.splitlines():
        job_id, words, reason = (*line.split("|", 2), "", "")[:3]
        word = words.split()[0] if words.split() else ""  # "CANCELLED by 0"
        phase = Phase.PENDING if word in _PENDING else Phase.ENDED
        if word not in _PENDING or reason in ("None", "Priority", "Resources"):
            reason = ""  # those say that it waits for its turn
        found[job_id] = JobState(Phase.RUNNING if word in _RUNNING else phase, word, reason)
    return found

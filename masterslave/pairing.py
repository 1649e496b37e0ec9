"""Jobs and slaves side by side: which job brought which slave, and why another one brought none.

::

    Note, written by each slave that a job starts ---+
    job ids and phases, from the batch system -------+--> pair --> Row, one per job and per slave
    slaves, from the task manager -------------------+             (``task_manager status``)

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple


class Progress(str, Enum):
    """How far a slave got."""

    STARTING = "starting"  # looks for its manager
    REGISTERED = "registered"  # the manager has accepted it
    LEFT = "left"  # it has ended in order
    FAILED = "failed"  # it has ended with an error


class Note(NamedTuple):
    """What a slave writes about itself into the folder of its run, from its first moment on."""

    job: str  # name of the submission that started it
    job_id: str  # as its batch system tells it; empty where it does not
    host: str
    pid: int
    python: str  # version and path of the interpreter
    began_at: float  # Unix time
    progress: str = Progress.STARTING.value
    tries: tuple[str, ...] = ()  # addresses at which it looks for the manager
    error: str = ""  # the last one

    def story(self) -> str:
        """Why there is no slave of it, in a line; empty when nothing is wrong with it."""
        if self.progress == Progress.REGISTERED:
            return ""
        if self.progress == Progress.LEFT:
            return "left in order"
        where = f"on {self.host}, PID {self.pid}, Python {self.python}"
        if self.tries:
            where += f", tries {', '.join(self.tries)}"
        if self.progress == Progress.FAILED:
            return f"failed {where}: {self.error}"
        return f"looks for its manager {where}" + (f": {self.error}" if self.error else "")


class JobView(NamedTuple):
    """A copy of a job, as its batch system sees it."""

    id: str
    job: str  # name of its submission
    role: str  # "slave", "manager" or "scale"
    phase: str
    word: str = ""  # the system's own word for the phase
    over: bool = False  # whether it has ended, as far as the system can tell
    reason: str = ""  # why it waits, or how it ended


class Row(NamedTuple):
    """One line of ``task_manager status``; what does not apply is empty."""

    job: str = ""  # id
    role: str = "slave"
    phase: str = ""
    slave: str = ""  # machine info, where the manager knows it
    workers: int | None = None
    done: int | None = None  # tasks
    remark: str = ""
    missing: bool = False  # a job that has ended, or runs, without a slave

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return self._asdict()


def pair(
    jobs: Sequence[JobView],
    notes: Sequence[Note],
    slaves: Sequence[Mapping[str, Any]],
    last_words: Mapping[str, str] | None = None,
    *,
    answered: bool = True,
) -> list[Row]:
    """A row for each job, with its slave where there is one; then the slaves without a job of ours.

    `slaves`: rows of `TaskManager.status`. `last_words`: job id -> last lines of its log.
    `answered`: whether the manager did; if not, notes are all that is known.
    """
    words = last_words or {}
    by_process = {(slave["host"], slave["pid"]): slave for slave in slaves}
    rows = []
    for view in jobs:
        note = _note_of(view, notes)
        slave = by_process.pop((note.host, note.pid), None) if note is not None else None
        rows.append(_row(view, note, slave, words.get(view.id, ""), answered))
    rows += [_slave_row(slave) for slave in by_process.values()]
    return rows


def has_come(view: JobView, notes: Iterable[Note]) -> bool:
    """Whether a job's slave has been accepted by its manager at some time."""
    note = _note_of(view, list(notes))
    return note is not None and note.progress in (Progress.REGISTERED, Progress.LEFT)


def _note_of(view: JobView, notes: Sequence[Note]) -> Note | None:
    """The newest: a job that was requeued has more than one."""
    own = [note for note in notes if note.job == view.job and _is_id(note.job_id, view.id)]
    return max(own, key=lambda note: note.began_at, default=None)


def _is_id(noted: str, job_id: str) -> bool:
    # Started by ssh, a process does not know by which name of its host; by PSI/J, only its mark.
    if ":" in noted:
        return noted in (job_id, job_id.partition(":")[2])
    return noted == job_id or (noted != "" and job_id.partition("#")[2] == noted)


def _row(
    view: JobView, note: Note | None, slave: Mapping[str, Any] | None, words: str, answered: bool
) -> Row:
    phase = view.phase
    if view.word and view.word.lower() != phase:
        phase = f"{phase} ({view.word})"
    ended = f"ended ({view.reason})" if view.reason else "ended"
    if view.role != "slave":
        said = f"waits: {view.reason}" if view.reason else ""
        if view.over:
            said = f"{ended}; its log: {words or '(nothing)'}"
        return Row(view.id, view.role, phase, remark=said, missing=view.over)
    if slave is not None:
        return _slave_row(slave)._replace(job=view.id, phase=phase)
    remark = "" if note is None else note.story()
    missing = True
    if note is None and view.over:
        remark = f"{ended} before its slave said anything; its log: {words or '(nothing)'}"
    elif note is None:
        remark = f"waits: {view.reason}" if view.reason else "waits for its turn"
        if view.phase == "submitted":
            remark = "its system does not list it, not yet or no longer"
        elif view.phase == "running":
            remark = "no slave yet"
        missing = view.phase == "running"
    elif note.progress == Progress.REGISTERED:
        where = f"on {note.host}, PID {note.pid}"
        if view.over:
            lost = f"lost ({view.reason})" if view.reason else "lost"
            remark = f"{lost} {where}; its log: {words or '(nothing)'}"
        else:
            remark = f"not with the manager at present {where}" if answered else f"was {where}"
            missing = answered
    elif note.progress == Progress.STARTING and view.over:
        remark = f"{ended}; until then its slave {remark.replace('looks', 'looked', 1)}"
    elif note.progress == Progress.LEFT:
        missing = False
    return Row(view.id, view.role, phase, remark=remark, missing=missing)


def _slave_row(slave: Mapping[str, Any]) -> Row:
    remark = "its workers are starting" if slave["tags"] is None else ""
    return Row(slave=slave["info"], workers=slave["workers"], done=slave["finished"], remark=remark)


def own_job_id(system: str, environ: Mapping[str, str], process: str) -> str:
    """The id of the job that a process runs in, as the system's launcher gives it; "" if unknown.

    `process`: this one as ``PID:START``, which is what there is without a batch system.
    The system is named, for of several in one another the variables of all are set.
    """
    if system in ("local", "ssh"):
        # In a container its job is another process, which starts that.
        return environ.get("MASTERSLAVE_JOB_ID") or process
    if system == "pbs":
        # Slurm's own commands by the names of PBS set the first one only in some versions.
        return environ.get("PBS_JOBID") or environ.get("SLURM_JOB_ID", "")
    names = _ARRAYS.get(system)
    if names is None:
        return environ.get("MASTERSLAVE_JOB_ID", "")
    whole, part, single, separator = names
    if environ.get(whole) and environ.get(part, "").isdecimal():
        return f"{environ[whole]}{separator}{environ[part]}"
    return environ.get(single, "")


#: System -> variables with the id of an array and of its element, and of a single job.
_ARRAYS = {
    "slurm": ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "_"),
    "sge": ("JOB_ID", "SGE_TASK_ID", "JOB_ID", "."),
}

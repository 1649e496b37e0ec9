"""What became of a start, and its end: jobs and slaves side by side, and nothing left.

::

    stop:  mark --> slaves are dismissed by their manager --> bounded wait --> what is left is
           cancelled --> the manager is ended --> the record is removed

The order matters: a slave that is dismissed finishes what it runs and hands it in; one whose job is
cancelled has as much time as its batch system gives it.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from masterslave import naming
from masterslave.errors import ConnectionFailed, LauncherError, MasterSlaveError, StartError
from masterslave.keyfile import load_key
from masterslave.launchers.base import Job, Phase
from masterslave.pairing import JobView, Note, Row, pair
from masterslave.runfolder import Plan, RunFolder, Submission, last_lines
from masterslave.settings import Settings, check_label, home_directory
from masterslave.starting import FRESH_S, launcher_of

#: What slaves get beyond their grace time to leave, in seconds. Larger: `stop` waits for slaves
#: that hang. Smaller: one on a busy node is cancelled while it hands in its last results.
_LEAVE_S = 15.0

#: Until jobs that were cancelled have ended, in seconds. Larger: `stop` waits for a batch system
#: that does not do its work. Smaller: it complains of one that is slow.
_CANCEL_S = 120.0

#: Until the job of a slave that has left is seen to have ended, in seconds. Larger: `stop` waits
#: for slaves that hang at their very end. Smaller: jobs are cancelled that end by themselves.
_QUIET_S = 5.0

#: Pauses between two looks, from the first to the longest. Smaller: a burden for batch systems.
_LOOK_FROM_S, _LOOK_TO_S = 0.1, 2.0


class Overview(NamedTuple):
    """What ``task_manager status`` shows."""

    plan: Plan
    stopping: bool
    manager: str  # its address; empty if it does not answer
    why: str  # it does not
    tasks: dict[str, int]  # waiting, running, finished
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        plan = self.plan
        return {
            "label": plan.label, "on": plan.on, "host": plan.host, "began_at": plan.began_at,
            "name": plan.name, "stopping": self.stopping, "manager": self.manager, "why": self.why,
            "tasks": self.tasks, "rows": [row.as_dict() for row in self.rows],
        }  # fmt: skip


def find_start(label: str) -> tuple[RunFolder, Plan]:
    """The record of a label's start. Raises `StartError` when there is none."""
    check_label(label)
    folder = RunFolder.of(label, home_directory())
    if not folder.exists():
        raise StartError(
            f"nothing of label {label!r} was started from this home directory; "
            f"task_manager show {shlex.quote(label)} asks for its task manager"
        )
    return folder, folder.plan()


def views(plan: Plan, submissions: Sequence[Submission]) -> list[JobView]:
    """All jobs, as their systems see them. Raises `LauncherError` when one does not answer."""
    found = []
    for one in submissions:
        if one.ids is None:
            found.append(JobView("", one.name, one.role, "submitting"))
            continue
        fresh = time.time() - one.at < FRESH_S and one.on != "local"
        where = launcher_of(plan, one)
        states = where.states(one.ids)
        unknown = [job_id for job_id, state in states.items() if state.phase is Phase.UNKNOWN]
        # One that has failed at once is told from one that its system does not know yet.
        endings = where.endings(unknown) if fresh and unknown else {}
        for job_id, state in states.items():
            unsure = fresh and job_id in unknown and job_id not in endings
            phase = "submitted" if unsure else state.phase.value
            if job_id in unknown and not unsure:
                phase = Phase.ENDED.value
            over = state.is_over and not unsure
            reason = endings.get(job_id, state.reason)
            found.append(JobView(job_id, one.name, one.role, phase, state.word, over, reason))
    return found


def overview(label: str) -> Overview:
    """What there is of a label's start: jobs, slaves, and why a job has brought none. Blocks for
    as long as the batch system and the task manager take to answer.

    Raises `StartError` when nothing was started, `LauncherError` when a system does not answer.
    """
    folder, plan = find_start(label)
    submissions = folder.submissions()
    seen = _with_endings(plan, submissions, views(plan, submissions))
    notes = folder.notes()
    status, address, why = ask_manager(plan)
    if status is None:
        why = _why_silent(seen, time.time() - plan.began_at) or why
    slaves = status["slaves"] if status is not None else []
    by_name = {one.name: one for one in submissions}
    words = {
        view.id: last_lines(log_of(folder, plan, by_name[view.job], view.id))
        for view in seen
        if view.over
    }
    tasks = {}
    if status is not None:
        tasks = {name: sum(status[name].values()) for name in ("waiting", "running", "finished")}
    rows = pair(seen, notes, slaves, words, answered=status is not None)
    return Overview(plan, folder.is_stopping(), address, why, tasks, rows)


def _with_endings(
    plan: Plan, submissions: Sequence[Submission], seen: Sequence[JobView]
) -> list[JobView]:
    """With what their systems have on record of the end of those that have ended."""
    words: dict[tuple[str, str], str] = {}
    for one in submissions:
        ids = [view.id for view in seen if view.job == one.name and view.over and not view.reason]
        if ids:
            endings = launcher_of(plan, one).endings(ids)
            words.update({(one.name, job_id): said for job_id, said in endings.items()})
    return [view._replace(reason=words.get((view.job, view.id), view.reason)) for view in seen]


def _why_silent(seen: Sequence[JobView], age_s: float = math.inf) -> str:
    """What its job says of a task manager that does not answer; empty if nothing.

    `age_s`: since it was started, in seconds.
    """
    for view in seen:
        if view.role == "manager" and view.over:
            return f"its job {view.id} has ended"
        if view.role == "manager" and view.phase == "pending":
            return f"its job {view.id} waits: {view.reason or 'for its turn'}"
        if view.role == "manager" and age_s < FRESH_S:
            return f"its job {view.id} was started {age_s:.0f} s ago"
    return ""


def log_of(folder: RunFolder, plan: Plan, submission: Submission, job_id: str) -> str:
    """The path of a job's log."""
    job = Job(submission.name, ("-",), submission.count, log_folder=str(folder.logs))
    return launcher_of(plan, submission).log_file(job, job_id)


def ask_manager(plan: Plan) -> tuple[dict[str, Any] | None, str, str]:
    """The task manager's `status` and address; None and why not, when it does not answer."""
    settings = Settings.from_environment()
    try:
        link = naming.connect(
            plan.label, plan.master or None, settings, load_key(settings.key_file)
        )
    except ConnectionFailed as error:
        return None, "", str(error)
    try:
        return link.call("status"), link.address, ""
    except MasterSlaveError as error:
        return None, "", str(error)
    finally:
        link.close()


# --- the end --------------------------------------------------------------------------------


def stop(
    label: str, *, within: float | None = None, tell: Callable[[str], object] = lambda line: None
) -> list[str]:
    """End all that was started for a label: its slaves in order, then its task manager.

    `within`: seconds that slaves get to finish what they run (default: their grace time and
    some more). `tell` is called with a line on each thing done; all of them are given at the end,
    too. Blocks until nothing is left. Raises `StartError` when nothing was started, or when
    something could not be ended; what is on record stays then, and `stop` can be called again.
    """
    folder, plan = find_start(label)
    limit_s = Settings.from_environment().grace_s + _LEAVE_S if within is None else within
    stopping = _Stop(folder, plan, limit_s, tell)
    try:
        folder.mark_stopping()
    except StartError as error:  # a full disk keeps no job alive
        stopping.say(f"{error}; goes on, and cannot keep others from starting more")
    return stopping.run()


class _Stop:
    def __init__(
        self, folder: RunFolder, plan: Plan, limit_s: float, tell: Callable[[str], object]
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._limit_s = limit_s
        self._tell = tell
        self._lines: list[str] = []
        self._left: list[str] = []  # what could not be ended, and why

    def run(self) -> list[str]:
        for role in ("scale", "slave", "manager"):  # what scales has put its last jobs on record
            there = [one for one in self._folder.submissions() if one.role == role]
            own = [one for one in map(self._with_ids, there) if one.ids]
            # Slaves that have just left need a moment to end.
            quiet_s = _QUIET_S if role == "slave" and self._dismiss(own) else 0.0
            for on in dict.fromkeys(one.on for one in own):
                self._end(role, [one for one in own if one.on == on], quiet_s)
        if self._left:
            raise StartError(f"stop {self._plan.label}: {'; '.join(self._left)}")
        self._folder.remove()
        self.say("nothing is left")
        return self._lines

    def say(self, line: str) -> None:
        """Tell a line, and keep it."""
        self._lines.append(line)
        self._tell(line)

    def _with_ids(self, submission: Submission) -> Submission:
        """A start that was cut off has left the name of a job only: ask for it."""
        if submission.ids is not None:
            return submission
        try:
            where = launcher_of(self._plan, submission)
            ids = where.find(submission.name, str(self._folder.logs))
        except LauncherError as error:
            self._left.append(f"{submission.name} may have been submitted: {error}")
            return submission
        number = f"{len(ids)} jobs" if len(ids) != 1 else "1 job"
        self.say(f"{submission.name}: the start was cut off; {number} of that name found")
        found = submission._replace(ids=tuple(ids))
        with suppress(StartError):  # asked for again, if `stop` is
            self._folder.write(found)
        return found

    def _living(self, submissions: Sequence[Submission]) -> list[str]:
        """Of submissions to one system."""
        ids = [job_id for one in submissions for job_id in one.ids or ()]
        states = launcher_of(self._plan, submissions[0]).states(ids)
        return [one for one, state in states.items() if not state.is_over]

    def _dismiss(self, submissions: list[Submission]) -> bool:
        """Have the manager tell the slaves to leave, wait until they have; whether any was told."""
        status, _, why = ask_manager(self._plan)
        if status is None:
            if submissions:
                managers = [one for one in self._folder.submissions() if one.role == "manager"]
                with suppress(LauncherError):  # told where its jobs are to be ended
                    why = _why_silent(views(self._plan, managers)) or why
                self.say(f"the task manager does not answer, so slaves are cancelled: {why}")
            return False
        chosen = _own_slaves(status["slaves"], self._folder.notes(), everyone=self._plan.serves)
        if not chosen:
            return False
        settings = Settings.from_environment()
        try:
            link = naming.connect(
                self._plan.label, self._plan.master or None, settings, load_key(settings.key_file)
            )
            try:
                told = link.call("dismissSlaves", chosen)
            finally:
                link.close()
        except MasterSlaveError as error:
            self.say(f"slaves could not be told to leave, so they are cancelled: {error}")
            return False
        self.say(f"told {told} {'slave' if told == 1 else 'slaves'} to finish what runs and leave")
        gone = _wait(lambda: not self._present(chosen), self._limit_s)
        if not gone:
            self.say(f"some slaves have not left within {self._limit_s:g} s")
        return True

    def _present(self, chosen: list[int]) -> bool:
        status, _, _ = ask_manager(self._plan)
        return status is not None and any(row["id"] in chosen for row in status["slaves"])

    def _end(self, role: str, submissions: list[Submission], quiet_s: float) -> None:
        """See that jobs of one system end: by themselves within `quiet_s` seconds, or cancelled."""
        what, on = "task manager" if role == "manager" else role, submissions[0].on
        ids = ", ".join(job_id for one in submissions for job_id in one.ids or ())
        try:
            _wait(lambda: not self._living(submissions), quiet_s)
            living = self._living(submissions)
            if living:
                launcher_of(self._plan, submissions[0]).cancel(living)
                self.say(f"cancelled {what} {', '.join(living)} on {on}")
                if not _wait(lambda: not self._living(submissions), _CANCEL_S):
                    stay = ", ".join(self._living(submissions))
                    self._left.append(
                        f"{what} {stay} on {on} was cancelled and has not ended within "
                        f"{_CANCEL_S:g} s; look at it by the system's own commands, then try again"
                    )
                    return
            else:
                self.say(f"{what} {ids} on {on} has ended")
            for one in submissions:
                self._folder.forget(one)
        except (LauncherError, StartError) as error:  # the others are ended all the same
            self._left.append(f"{what} {ids}: {error}")


def _own_slaves(
    slaves: Sequence[dict[str, Any]], notes: Sequence[Note], *, everyone: bool
) -> list[int]:
    """Process ids of those that are to leave: all of a manager of ours, else those with notes."""
    ours = {(note.host, note.pid) for note in notes}
    return [row["id"] for row in slaves if everyone or (row["host"], row["pid"]) in ours]


def _wait(condition: Callable[[], bool], limit_s: float) -> bool:
    """Wait for it, for so many seconds at most; whether it came true."""
    deadline = time.monotonic() + limit_s
    pause_s = _LOOK_FROM_S
    while not condition():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(pause_s, left_s))
        pause_s = min(_LOOK_TO_S, 1.5 * pause_s)
    return True

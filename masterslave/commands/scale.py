"""``task_manager scale``: starts slaves while tasks wait, as ``task_manager start`` was told.

Runs where the batch system's commands are, in a process of its own: a task manager inside a batch
job cannot submit jobs on many sites. It ends when the run is stopped, and when the task manager has
been gone for as long as a slave would wait for it. There is one for a run (`claim`). Killed, it may
be started again by hand: it takes up what is on record of the killed one, and goes on record, too.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import secrets
import select
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from masterslave.claim import Claim, Taken
from masterslave.errors import LauncherError, SettingsError, StartError
from masterslave.launchers.base import CannotList
from masterslave.launchers.shell import start_of
from masterslave.pairing import has_come
from masterslave.runfolder import Plan, RunFolder, Submission
from masterslave.scaling import Growth, Limits, Scaler, View
from masterslave.settings import Settings
from masterslave.starting import choose, is_settled, launcher_of, slave_job, submit_on_record
from masterslave.stopping import ask_manager, find_start, views

log = logging.getLogger(__name__)

#: Between two looks, in seconds, at this machine and at a batch system. Larger: slow to grow.
#: Smaller: a burden for the batch system.
_LOOK_S, _LOOK_AT_QUEUE_S = 0.5, 5.0

#: A task manager in a batch job may take so long to start, in seconds; see `slave`.
_MANAGER_MAY_TAKE_S = 3600.0


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Start slaves until the run is stopped."""
    folder, plan = find_start(options.label)
    if plan.high is None or plan.low is None:
        raise SettingsError(f"{plan.label} was started without --min and --max")
    try:
        claim = Claim(folder.path / "scale")
    except Taken as other:
        raise StartError(
            f"slaves of {plan.label} are started on demand by process {other.pid} on {other.host} "
            f"already; that one ends with: task_manager stop {shlex.quote(plan.label)}"
        ) from None
    try:
        with _told_to_end() as told_within, _on_record(folder, plan):
            loop = _Loop(folder, plan, settings, claim)
            pause_s = _LOOK_S if plan.on == "local" else _LOOK_AT_QUEUE_S
            while not folder.is_stopping() and loop.look() and not told_within(pause_s):
                pass
    finally:
        claim.give_up()
    return 0


@contextmanager
def _told_to_end() -> Iterator[Callable[[float], bool]]:
    """Gives a function that waits for so many seconds at most; whether SIGTERM or SIGINT has come.

    So what is being submitted then is put on record first. The second signal ends it at once.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        os.write(writer, b"x")

    for number in handlers:
        signal.signal(number, note)
    try:
        yield lambda limit_s: bool(select.select([reader], [], [], limit_s)[0])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


@contextmanager
def _on_record(folder: RunFolder, plan: Plan) -> Iterator[None]:
    """This process where `stop` and `status` look, in place of one that was killed.

    The one of `task_manager start` is there already; one of another host is not, as its end cannot
    be seen from here: it ends by itself when the run is stopped.
    """
    own = f"{os.getpid()}:{start_of(str(os.getpid()))}"
    if os.environ.get("MASTERSLAVE_JOB_ID") == own or platform.node() != plan.host:
        yield
        return
    for old in folder.submissions():
        if old.role == "scale":
            folder.forget(old)
    name = f"{plan.name}-scale-{secrets.token_hex(3)}"
    record = Submission(name, "scale", "local", 1, time.time(), (own,))
    folder.write(record)
    try:
        yield
    finally:
        with suppress(StartError):  # the run has been stopped: there is no record any more
            folder.forget(record)


class _Loop:
    def __init__(self, folder: RunFolder, plan: Plan, settings: Settings, claim: Claim) -> None:
        assert plan.low is not None
        assert plan.high is not None
        self._folder = folder
        self._plan = plan
        self._scaler = Scaler(Limits(plan.low, plan.high, plan.workers))
        self._gone_at = time.monotonic() + _MANAGER_MAY_TAKE_S
        self._settings = settings
        self._claim = claim
        self._settled: set[str] = set()  # jobs whose slave has come, or never will

    def look(self) -> bool:
        """One look, and what follows from it; False when there will be nothing more to do."""
        now = time.monotonic()
        if not self._claim.is_ours():
            log.warning("another process starts slaves by now", extra={"action": "taken_over"})
            return False
        status, _, why = ask_manager(self._plan)
        if status is None:
            if now >= self._gone_at:
                log.warning("the task manager is gone: %s", why, extra={"action": "manager_gone"})
                return False
            return True
        self._gone_at = now + self._settings.master_gone_s
        try:
            pending = self._pending(now)
            growth = self._scaler.decide(View.of(status, pending), now)
            self._grow(growth)
        except LauncherError as error:
            pause_s = self._scaler.failed(now)
            log.error("%s; next attempt in %g s", error, pause_s, extra={"action": "start_failed"})
        except StartError as error:
            if self._folder.is_stopping():
                log.info("%s", error)
                return False
            pause_s = self._scaler.failed(now)  # such as on a disk that is full
            log.error("%s; next attempt in %g s", error, pause_s, extra={"action": "start_failed"})
        return True

    def _pending(self, now: float) -> int:
        """How many jobs may still bring a slave; takes note of those that did not."""
        notes = self._folder.notes()
        pending = failed = 0
        for submission in self._folder.submissions():
            if submission.role != "slave":
                continue
            known = submission if submission.ids is not None else self._with_ids(submission)
            if known is None:  # the command may still be at it, until the system must know of it
                pending += 0 if is_settled(submission) else submission.count
                continue
            own = views(self._plan, [known])
            for view in own:
                if view.id in self._settled:
                    continue
                if has_come(view, notes):
                    self._settled.add(view.id)
                    self._scaler.came()
                elif view.over:
                    self._settled.add(view.id)
                    failed += 1
                else:
                    pending += 1
            if all(view.over and has_come(view, notes) for view in own):
                self._folder.forget(submission)  # nothing more to tell of it
        if failed:
            pause_s = self._scaler.failed(now)
            log.warning(
                "%d jobs have ended without a slave; see task_manager status %s; next attempt in "
                "%g s", failed, self._plan.label, pause_s, extra={"action": "jobs_failed"},
            )  # fmt: skip
        return pending

    def _with_ids(self, submission: Submission) -> Submission | None:
        """The process before this one was killed while it submitted that: its ids are asked for.

        None: nothing is known to have come of it.
        """
        where = launcher_of(self._plan, submission)
        try:
            ids = where.find(submission.name, str(self._folder.logs))
        except CannotList as error:
            if is_settled(submission) and submission.name not in self._settled:
                self._settled.add(submission.name)
                log.warning("%s", error, extra={"action": "not_found"})
            return None
        if len(ids) < submission.count and not is_settled(submission):
            return None
        if not ids:
            self._folder.forget(submission)
            return None
        found = submission._replace(ids=tuple(ids))
        self._folder.write(found)
        log.info("found %s", ", ".join(ids), extra={"action": "slaves_found"})
        return found

    def _grow(self, growth: Growth) -> None:
        plan = self._plan
        for count, last in ((growth.lasting, True), (growth.passing, False)):
            if count and self._claim.is_ours():
                where = choose(plan.on, plan.launcher)
                name = f"{plan.name}-s{secrets.token_hex(3)}"
                job = slave_job(plan, self._folder.path, name, count, plan.workers, last=last)
                ids = submit_on_record(self._folder, "slave", where, job)
                log.info("started %s", ", ".join(ids), extra={"action": "slaves_started"})

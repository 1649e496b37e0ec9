"""``task_manager scale``: starts slaves while tasks wait, as ``task_manager start`` was told.

Runs where the batch system's commands are, in a process of its own: a task manager inside a batch
job cannot submit jobs on many sites. It ends when the run is stopped, and when the task manager has
been gone for as long as a slave would wait for it. Killed, it may be started again by hand.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import time

from masterslave.errors import LauncherError, SettingsError, StartError
from masterslave.pairing import has_come
from masterslave.runfolder import Plan, RunFolder
from masterslave.scaling import Growth, Limits, Scaler, View
from masterslave.settings import Settings
from masterslave.starting import choose, slave_job, submit_on_record
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
    loop = _Loop(folder, plan, settings)
    while not folder.is_stopping() and loop.look():
        time.sleep(_LOOK_S if plan.on == "local" else _LOOK_AT_QUEUE_S)
    return 0


class _Loop:
    def __init__(self, folder: RunFolder, plan: Plan, settings: Settings) -> None:
        assert plan.low is not None
        assert plan.high is not None
        self._folder = folder
        self._plan = plan
        self._scaler = Scaler(Limits(plan.low, plan.high, plan.workers))
        self._gone_at = time.monotonic() + _MANAGER_MAY_TAKE_S
        self._settings = settings
        self._settled: set[str] = set()  # jobs whose slave has come, or never will

    def look(self) -> bool:
        """One look, and what follows from it; False when the task manager is gone for good."""
        now = time.monotonic()
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
            own = views(self._plan, [submission])
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

    def _grow(self, growth: Growth) -> None:
        plan = self._plan
        for count, last in ((growth.lasting, True), (growth.passing, False)):
            if count:
                where = choose(plan.on, plan.launcher)
                name = f"{plan.name}-s{secrets.token_hex(3)}"
                job = slave_job(plan, self._folder.path, name, count, plan.workers, last=last)
                ids = submit_on_record(self._folder, "slave", where, job)
                log.info("started %s", ", ".join(ids), extra={"action": "slaves_started"})

"""A batch system in this process, for tests: jobs are only written down. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence

from masterslave.launchers.base import Job, JobState, Launcher, Output, Phase, Rendered, check


class MemoryLauncher(Launcher):
    """Keeps what was submitted in `jobs`; `set_state` moves it. Copies begin pending."""

    name = "memory"

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}  # by id, one entry per copy
        self._states: dict[str, JobState] = {}
        self._submissions = 0

    def is_available(self) -> bool:
        return True

    def render(self, job: Job) -> Rendered:
        check(job)
        return Rendered((tuple(job.command),))

    def submit(self, job: Job) -> list[str]:
        self.render(job)
        return self._submitted(job, Output(0, "", ""))

    def _submitted(self, job: Job, output: Output) -> list[str]:
        self._submissions += 1
        ids = [f"{self._submissions}.{i}" for i in range(job.count)]
        for one in ids:
            self.jobs[one] = job
            self._states[one] = JobState(Phase.PENDING, "waiting")
        return ids

    def set_state(self, job_id: str, phase: Phase, word: str = "") -> None:
        """What `states` says of it from now on."""
        self._states[job_id] = JobState(phase, word or phase.value)

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        return {one: self._states.get(one, JobState(Phase.UNKNOWN)) for one in ids}

    def cancel(self, ids: Sequence[str]) -> None:
        for one in ids:
            if one in self._states and not self._states[one].is_over:
                self._states[one] = JobState(Phase.ENDED, "cancelled")

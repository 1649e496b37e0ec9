"""What is shown of a job: its slaves, clients and tasks, and what slaves have to complain of.

All methods are called with the task manager's lock held.
"""

from __future__ import annotations

import logging
from typing import Any

from masterslave.clients import Clients
from masterslave.leases import Leases
from masterslave.queue import TaskQueue
from masterslave.roster import Member, Roster
from masterslave.scheduler import Scheduler
from masterslave.versions import mismatch
from masterslave.waiters import ResultWaiters

log = logging.getLogger(__name__)

#: Failure messages of slaves that are kept for `status`, and how much of each.
_KEPT_FAILURES = 20
_FAILURE_CHARACTERS = 20_000


class Overview:
    """Looks at the parts of a task manager, and keeps failures of slaves to be shown."""

    def __init__(
        self,
        roster: Roster,
        queue: TaskQueue,
        leases: Leases,
        scheduler: Scheduler,
        clients: Clients,
        clients_wait: ResultWaiters,
    ) -> None:
        self._roster = roster
        self._queue = queue
        self._leases = leases
        self._scheduler = scheduler
        self._clients = clients
        self._clients_wait = clients_wait
        self._failures: list[str] = []
        self._mismatches: list[str] = []  # versions that do not go together, in words

    def failed(self, machine: str, text: str) -> str:
        """A slave cannot start its workers; gives the text as it is to be logged."""
        text = text.strip()[:_FAILURE_CHARACTERS]
        self._failures.append(f"{machine}: {text.partition(chr(10))[0]}")
        del self._failures[:-_KEPT_FAILURES]
        return text

    def compare_versions(self, member: Member) -> None:
        """Say it where a slave and a client do not go together, one of which has just come."""
        for other in self._roster.present.values():
            if other.is_slave == member.is_slave:
                continue
            slave, client = (member, other) if member.is_slave else (other, member)
            problem = mismatch(client.info.versions, slave.info.versions)
            if problem:
                text = f"slave {slave.info.machine} {problem}"
                log.warning("%s", text, extra={"action": "version_mismatch"})
                self._mismatches = [*self._mismatches, text][-_KEPT_FAILURES:]

    def rows(self, now: float) -> dict[str, Any]:
        """The greater part of `TaskManager.status`."""
        waiting, running, finished = self._queue.counts()
        slaves: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for member in self._roster.present.values():
            row = member.as_status(self._scheduler.held_by(member))
            if member.is_slave and member.ends_at is not None:
                timely = self._scheduler.tags_for(member, now)
                row["left_s"] = member.left_s(now)
                row["no_time_for"] = sorted((member.tags or frozenset()) - timely)
            if member.is_slave:
                slaves.append(row)
            elif not member.info.workers:  # else a slave that is about to say so
                others.append(row)
        clients = []
        if self._clients:
            clients = self._clients.rows(self._queue.by_client(), now)
        return {
            "clients": clients,
            "active_processes": len(self._roster.present),
            "masters": others,
            "slaves": slaves,
            "workers": sum(slave["workers"] for slave in slaves),
            "waiting": waiting,
            "running": running,
            "finished": finished,
            "delivered": self._queue.delivered,
            "cancelled": self._queue.cancelled,
            "dropped": self._leases.dropped,
            "parked": self._queue.parked(),
            "client_waits": self._awaits_results(),
            "failures": list(self._failures),
            "mismatches": list(self._mismatches),
        }

    def _awaits_results(self) -> bool:
        """Whether a client waits; an attached one that has nothing outstanding only looks."""
        return any(
            self._clients.find(process_id) is None or self._queue.outstanding(process_id)
            for process_id in self._clients_wait.calls
        )

"""Processes on hosts that one can log in to, and on this one: no batch system.

`LocalLauncher` and `SshLauncher` tell a shell the same, here or there. No ``ssh`` stays: what was
started lives on, and its end needs another login. (An ``ssh`` that stays would keep a connection
per process, and leave its process behind when it is killed.)
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from masterslave.errors import LauncherError
from masterslave.launchers import shell
from masterslave.launchers.base import (
    COMMAND_LIMIT_S,
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
    together,
)  # fmt: skip

#: Until a process that was told to end is killed. Larger: who stops a job waits for one that does
#: not listen. Smaller: a slave could not finish what it runs (its time for that is 30 s).
KILL_AFTER_S = 40.0

_RUNNING = JobState(Phase.RUNNING, "running")
_GONE = JobState(Phase.UNKNOWN)


class LocalLauncher(Launcher):
    """Processes of this machine that outlive their starter. An id is ``PID:START``.

    `cancel` returns when they have ended, at the latest after `kill_after_s` seconds by SIGKILL.
    """

    name = "local"

    def __init__(self, kill_after_s: float = KILL_AFTER_S) -> None:
        self._kill_after_s = kill_after_s

    def is_available(self) -> bool:
        return answers(["setsid", "true"])

    def render(self, job: Job) -> Rendered:
        return Rendered((tuple(shell.start_command(job, job.count)),))

    def _submitted(self, job: Job, output: Output) -> list[str]:
        return shell.started(output.out)

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        running: set[str] = set()
        for part in in_portions(ids):
            running.update(run_command(shell.show_command(part)).out.split())
        return {one: _RUNNING if one in running else _GONE for one in ids}

    def cancel(self, ids: Sequence[str]) -> None:
        for part in in_portions(ids):
            command = shell.cancel_command(part, self._kill_after_s)
            run_command(command, limit_s=COMMAND_LIMIT_S + self._kill_after_s)

    def find(self, name: str, log_folder: str) -> list[str]:
        return run_command(shell.find_command(name, log_folder)).out.split()

    def log_file(self, job: Job, job_id: str) -> str:
        number = job_id.partition(":")[0]
        return os.path.join(job.log_folder, f"{safe_name(job.name)}.{number}.log")


class SshLauncher(Launcher):
    """Processes on a list of hosts. An id is ``HOST:PID:START``.

    `hosts`: names as ``ssh`` takes them, in turn one copy each; or a mapping from names to how many
    copies they have room for, filled in order. `options`: further arguments of ``ssh``. Log-ins
    need no password. `cancel`: as `LocalLauncher`.
    """

    name = "ssh"

    def __init__(
        self,
        hosts: Iterable[str] | Mapping[str, int],
        options: Sequence[str] = (),
        kill_after_s: float = KILL_AFTER_S,
    ) -> None:
        names = [hosts] if isinstance(hosts, str) else list(hosts)
        self._room = dict(hosts) if isinstance(hosts, Mapping) else None
        self._hosts = list(dict.fromkeys(names))
        self._options = list(options)
        self._kill_after_s = kill_after_s
        if not self._hosts:
            raise LauncherError("ssh needs hosts")
        for host in self._hosts:
            if not host or host.startswith("-") or re.search(r"[\s:]", host):
                raise LauncherError(f"{host!r} is not the name of a host")
        for host, room in (self._room or {}).items():
            if isinstance(room, bool) or not isinstance(room, int) or room < 1:
                raise LauncherError(f"host {host}: room for {room!r} must be a number from 1 on")

    def is_available(self) -> bool:
        return all(answers(self._there(host, ["true"])) for host in self._hosts[:1])

    def check_available(self) -> None:
        def log_in(host: str) -> list[str]:
            try:
                run_command(self._there(host, ["true"]))
            except LauncherError as error:
                raise LauncherError(f"cannot log in to {host}: {error}") from error
            return []

        _, failures = together(log_in, self._hosts)
        if failures:
            raise failures[0]

    def counts(self, copies: int) -> dict[str, int]:
        """How many copies each host gets. Raises `LauncherError` when there is no room."""
        if self._room is None:
            full, rest = divmod(copies, len(self._hosts))
            shares = {host: full + (i < rest) for i, host in enumerate(self._hosts)}
            return {host: share for host, share in shares.items() if share}
        shares = {}
        for host, room in self._room.items():
            share = min(room, copies - sum(shares.values()))
            if share:
                shares[host] = share
        if sum(shares.values()) < copies:
            raise LauncherError(f"{copies} copies: the hosts have room for {sum(shares.values())}")
        return shares

    def render(self, job: Job) -> Rendered:
        shares = self.counts(job.count).items()
        return Rendered(
            tuple(
                tuple(self._there(host, shell.start_command(job, share, f"{host}:")))
                for host, share in shares
            )
        )

    def _submitted(self, job: Job, output: Output) -> list[str]:
        return shell.started(output.out)

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        def ask(host: str) -> list[str]:
            own = by_host[host]
            command = self._there(host, shell.show_command(own))
            return [f"{host}:{one}" for one in run_command(command).out.split()]

        by_host = _by_host(ids)
        running, failures = together(ask, list(by_host))
        if failures:
            raise failures[0]
        return {one: _RUNNING if one in running else _GONE for one in ids}

    def cancel(self, ids: Sequence[str]) -> None:
        def end(host: str) -> list[str]:
            command = self._there(host, shell.cancel_command(by_host[host], self._kill_after_s))
            run_command(command, limit_s=COMMAND_LIMIT_S + self._kill_after_s)
            return []

        by_host = _by_host(ids)
        _, failures = together(end, list(by_host))
        if failures:  # the other hosts have been told
            raise failures[0]

    def find(self, name: str, log_folder: str) -> list[str]:
        command = shell.find_command(name, log_folder)

        def ask(host: str) -> list[str]:
            return [f"{host}:{one}" for one in run_command(self._there(host, command)).out.split()]

        found, failures = together(ask, self._hosts)
        if failures:
            raise failures[0]
        return found  # of a host with two names each one twice, which is cancelled all the same

    def log_file(self, job: Job, job_id: str) -> str:
        number = job_id.split(":")[-2]  # on the host where it ran, unless the folder is shared
        return os.path.join(job.log_folder, f"{safe_name(job.name)}.{number}.log")

    def _there(self, host: str, command: Sequence[str]) -> list[str]:
        # One argument: what runs there is a line for the shell of that user.
        return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *self._options, host,
                shlex.join(command)]  # fmt: skip


def _by_host(ids: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in ids:
        host, colon, rest = one.partition(":")
        if not colon or not host or host.startswith("-"):
            raise LauncherError(f"{one!r} is not the id of a process on a host")
        found.setdefault(host, []).append(rest)
    return found

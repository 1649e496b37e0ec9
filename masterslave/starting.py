"""Starts managers and slaves through a launcher, with a record of it; `stopping` ends them.

::

    start --> Plan, Submission (on record) --> launcher.submit --> ids (on record)
                                                   |
                                 slaves, each of which writes its Note

What a job runs is rendered by pure functions (`slave_job`, `manager_job`, `scale_job`), so that
``--dry-run`` shows just what would be submitted.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from masterslave import naming
from masterslave.errors import (
    AuthenticationError,
    ConnectionFailed,
    LabelInUse,
    LauncherError,
    SettingsError,
    StartError,
)
from masterslave.keyfile import load_key
from masterslave.launchers import available_launcher, launcher
from masterslave.launchers.base import Container, Job, Launcher, safe_name
from masterslave.runfolder import Plan, RunFolder, Submission
from masterslave.scaling import Limits
from masterslave.settings import Settings, check_label, home_directory, split_address
from masterslave.units import parse_bytes, parse_duration

#: What a slave that was started for a burst of tasks waits for the next one, in seconds. Larger:
#: nodes are held for nothing. Smaller: jobs come and go in the pauses of a program.
IDLE_S = 300.0

#: A system may not know a job yet that it was given so recently, in seconds. Larger: a job that has
#: failed at once is noticed late. Smaller: one that has just been submitted is taken for ended.
FRESH_S = 60.0

#: These systems tell a process how long it may run; of the others it is told by us.
_TELL_WALLTIME = ("slurm", "pbs")

#: What is passed on to jobs where it is set here: batch systems do not all hand the environment on.
_PASSED_ON = re.compile(
    r"MASTERSLAVE_(?!KEY_FILE|HOST|PORT|JOB)\w+|PYRO_NS_\w+|PYRO_SSL\w*(?<!PASSWD)"
)


class Started(NamedTuple):
    """What was started."""

    label: str
    on: str  # the launcher's name
    slaves: tuple[str, ...]  # job ids
    manager: str = ""  # job id of the task manager, where that was started, too
    scaling: str = ""  # process id of what starts more slaves on demand


def choose(
    on: str | None, settings: Mapping[str, Any] | None = None, *, ask: bool = True
) -> Launcher:
    """The launcher of that name, or the one whose system answers here.

    `ask`: whether a system that is named must answer; it need not, to see what would be run.
    Raises `LauncherError` when there is no such launcher, or its system does not answer.
    """
    if on is None:
        return available_launcher()
    chosen = launcher(on, **(settings or {}))
    if ask:
        chosen.check_available()
    return chosen


# --- what is run (pure, but for this process's own interpreter and environment) --------------


def own_command(python: str | None, *arguments: str) -> tuple[str, ...]:
    """``task_manager ARGUMENTS``, with the package where this process has it.

    `python`: another interpreter, which has the package installed, as in a container.
    """
    if python is not None:
        return (python, "-m", "masterslave", *arguments)
    parent = str(Path(__file__).resolve().parent.parent)
    boot = (
        f"import sys; sys.path.insert(0, {parent!r}); "
        f"from masterslave.cli import main; sys.path.remove({parent!r}); sys.exit(main())"
    )
    return (sys.executable, "-c", boot, *arguments)


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """What a job's processes must be told, wherever they run."""
    passed = {name: text for name, text in environ.items() if _PASSED_ON.fullmatch(name)}
    passed["MASTERSLAVE_KEY_FILE"] = str(settings.key_file.absolute())
    with suppress(KeyError):
        if environ.get("HOME", "") not in ("", pwd.getpwuid(os.getuid()).pw_dir):
            passed["HOME"] = environ["HOME"]
    return passed


def slave_job(plan: Plan, folder: Path, name: str, count: int, workers: int, *, last: bool) -> Job:
    """So many slaves. `last`: they stay when they are idle."""
    fields = dict(plan.job)
    python = fields.pop("python", None)
    arguments = ["slave", "-n", str(workers)]
    if plan.waits:
        arguments.append("-w")
    if plan.master:
        arguments += ["-m", plan.master]
    if plan.memory is not None:
        arguments += ["--memory", str(plan.memory)]
    if fields.get("walltime_s") is not None and plan.on not in _TELL_WALLTIME:
        arguments += ["--lifetime", str(fields["walltime_s"])]
    if plan.idle_s is not None and not last:
        arguments += ["--idle", str(plan.idle_s)]
    arguments += ["--record", str(folder), "--job", f"{plan.on}:{name}", "--", plan.label]
    container = fields.pop("container", None)
    if container is not None:
        kind, image, extra, mounts = container
        key_file = fields["environment"].get("MASTERSLAVE_KEY_FILE")
        own = [str(folder.parent.parent), fields["directory"]]
        if key_file is not None:
            own.append(str(Path(key_file).parent))
        mounts = [*mounts, *_missing_mounts(mounts, own)]
        container = Container(kind, image, tuple(extra), tuple(mounts))
        python = python or "python3"
    fields["options"] = tuple(fields.get("options", ()))
    return Job(
        name, own_command(python, *arguments), count, container=container,
        log_folder=str(folder / "logs"), cpus=workers if workers > 1 else None, **fields,
    )  # fmt: skip


def _missing_mounts(mounts: Sequence[str], folders: Sequence[str]) -> list[str]:
    there = {mount.partition(":")[0] for mount in mounts}
    return [one for one in dict.fromkeys(folders) if one not in there]


def manager_job(plan: Plan, folder: Path, name: str, journal: str | None) -> Job:
    """The task manager on its own. It listens to other hosts if there may be any."""
    arguments = ["serve", "-v"]
    if journal is not None:
        arguments += ["--journal", journal]
    told = dict(plan.job["environment"])
    alone = plan.on == plan.manager_on == "local"
    told["MASTERSLAVE_HOST"] = os.environ.get("MASTERSLAVE_HOST") or (
        "127.0.0.1" if alone else "0.0.0.0"
    )
    own = plan.manager_on == plan.on  # else it is another system's: options are not for it
    return Job(
        name, own_command(None, *arguments, "--", plan.label),
        directory=plan.job["directory"], log_folder=str(folder / "logs"), environment=told,
        walltime_s=plan.job.get("walltime_s") if own and plan.on != "local" else None,
        options=tuple(plan.job.get("options", ())) if own else (),
    )  # fmt: skip


def scale_job(plan: Plan, folder: Path, name: str) -> Job:
    """What starts slaves on demand, on this machine."""
    return Job(
        name, own_command(None, "-v", "scale", "--", plan.label),
        directory=plan.job["directory"], log_folder=str(folder / "logs"),
        environment=dict(plan.job["environment"]),
    )  # fmt: skip


# --- starting -------------------------------------------------------------------------------


def start(
    label: str,
    n: int = 1,
    on: str | None = None,
    *,
    serve: bool = False,
    here: bool = False,
    master: str | None = None,
    wait: bool = False,
    per_slave: int | None = None,
    walltime: float | str | None = None,
    memory: int | str | None = None,
    idle: float | str | None = None,
    low: int | None = None,
    high: int | None = None,
    container: Container | None = None,
    python: str | None = None,
    journal: str | None = None,
    options: Sequence[str] = (),
    launcher_settings: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Started | str:
    """Start `n` workers for the task manager of `label`, through a launcher.

    `on`: "local", "ssh", "slurm", "sge", "pbs" or "htcondor"; None takes the batch system that
    answers, else this machine. `serve`: start the task manager, too, through the same launcher, or
    with `here` on this machine. `master`: ``host:port`` of one that is there already. `wait`: it
    may come later. `per_slave`: workers of each slave, which is one copy of the job (default: all
    in one on this machine, else 1). `walltime`: seconds, or "1:30:00". `memory`: bytes of each
    worker, or "2G". `idle`: time without a task after which slaves end. `low`, `high`: start more
    slaves on demand, between so many; `n` is then `low` workers. `container`: what slaves run in.
    `python`: the interpreter there, which has this package. `journal`: of the task manager that is
    started. `options`: passed to the batch system as they are. `launcher_settings`: as its class
    takes them, `{"hosts": [...]}` for ssh. `dry_run`: do nothing, give the text of what would be
    run.

    Returns when all is submitted; blocks for as long as that takes. Raises `SettingsError`,
    `LauncherError`, `StartError` when the label was started already, `LabelInUse`, and
    `ConnectionFailed` when there is no such task manager.
    """
    check_label(label)
    check_request(
        n, serve=serve, here=here, master=master, per_slave=per_slave, low=low, high=high,
        journal=journal,
    )  # fmt: skip
    settings = Settings.from_environment()
    chosen = choose(on, launcher_settings, ask=not dry_run)
    workers = per_slave or (max(1, n) if chosen.name == "local" and high is None else 1)
    plan = Plan(
        label, f"ms-{safe_name(label)[:30]}-{secrets.token_hex(3)}", chosen.name,
        platform.node(), time.time(), serve,
        "" if not serve else ("local" if here else chosen.name), serve or wait, master or "",
        {
            "directory": _directory(),
            "walltime_s": None if walltime is None else parse_duration(walltime),
            "environment": environment(settings, os.environ),
            "options": list(options),
            "container": None if container is None else list(container),
            "python": python,
        },
        dict(launcher_settings or {}), workers,
        None if memory is None else parse_bytes(memory),
        None if idle is None else parse_duration(idle), low, high,
    )  # fmt: skip
    if high is not None and plan.idle_s is None:
        plan = plan._replace(idle_s=IDLE_S)
    folder = RunFolder.of(label, home_directory())
    run = _Run(plan, folder, chosen)
    if dry_run:
        return run.rendered(n, journal)
    _check_manager(plan, settings, wait)
    if not folder.create(plan):
        _clear_stale(folder)
        if not folder.create(plan):
            raise StartError(f"{label} is being started by another process at this moment")
    return run.submit_all(n, journal)


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise StartError(
            "the working directory has been removed; change to one that is there"
        ) from error


def check_request(
    n: int = 1, *, serve: bool = False, here: bool = False, master: str | None = None,
    per_slave: int | None = None, low: int | None = None, high: int | None = None,
    journal: str | None = None,
) -> None:  # fmt: skip
    """Raise `SettingsError` for what cannot be asked of `start`."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise SettingsError(f"n={n!r}: must be a number of workers of at least 1")
    if per_slave is not None and per_slave < 1:
        raise SettingsError(f"per_slave={per_slave!r}: must be a number of at least 1")
    if high is not None or low is not None:
        if high is None or low is None:
            raise SettingsError("--min and --max go together: both are needed to scale on demand")
        Limits(low, high).checked()
    if here and not serve:
        raise SettingsError("--here is for --serve: the task manager on this machine")
    if journal is not None and not serve:
        raise SettingsError("--journal is for --serve: the task manager that is started")
    if master is not None:
        if serve:
            raise SettingsError("--serve starts a task manager, -m names one that is there")
        split_address(master)


def _check_manager(plan: Plan, settings: Settings, wait: bool) -> None:
    """There must be one, or none."""
    key = load_key(settings.key_file)
    try:
        link = naming.connect(plan.label, plan.master or None, settings, key)
        try:
            link.call("numberOfActiveProcesses")
        finally:
            link.close()
    except AuthenticationError:
        raise
    except ConnectionFailed as error:
        if plan.serves or wait:
            return
        raise ConnectionFailed(
            f"{error}; --serve starts a task manager as well, -w lets slaves wait for it"
        ) from error
    if plan.serves:
        raise LabelInUse(
            f"a task manager {plan.label!r} is there already; leave out --serve, or choose another "
            "label"
        )


def _clear_stale(folder: RunFolder) -> None:
    """Make way for a new start where nothing of the last one is left. Raises `StartError`."""
    plan = folder.plan()
    remedy = f"end it with: task_manager stop {shlex.quote(plan.label)}"
    for submission in folder.submissions():
        if submission.ids is None:
            raise StartError(
                f"an earlier start of {plan.label} was cut off while it submitted; {remedy}"
            )
        states = launcher_of(plan, submission).states(submission.ids)
        living = [one for one, state in states.items() if not state.is_over]
        if living or (not is_settled(submission) and submission.on != "local"):
            raise StartError(
                f"{plan.label} was started already on {submission.on} (job "
                f"{', '.join(living or submission.ids)}); {remedy}"
            )
    folder.remove()


def is_settled(submission: Submission) -> bool:
    """Whether its system must know it by now, so that an unknown id means that it has ended."""
    return time.time() - submission.at > FRESH_S


def launcher_of(plan: Plan, submission: Submission) -> Launcher:
    """What has started it. Raises `LauncherError` on another host, if it was a process there."""
    if submission.on == "local" and plan.host != platform.node():
        raise LauncherError(f"{submission.name} runs on {plan.host}: do this there")
    return launcher(submission.on, **(plan.launcher if submission.on == plan.on else {}))


class _Run:
    """One start, as it is submitted."""

    def __init__(self, plan: Plan, folder: RunFolder, chosen: Launcher) -> None:
        self._plan = plan
        self._folder = folder
        self._launcher = chosen

    def jobs(self, n: int, journal: str | None) -> list[tuple[str, Launcher, Job]]:
        """Role, launcher and job of all that is to be submitted, in order."""
        plan, folder = self._plan, self._folder
        found: list[tuple[str, Launcher, Job]] = []
        if plan.serves:
            where = self._launcher if plan.manager_on == plan.on else launcher("local")
            job = manager_job(plan, folder.path, f"{plan.name}-manager", journal)
            found.append(("manager", where, job))
        if plan.high is not None:
            job = scale_job(plan, folder.path, f"{plan.name}-scale")
            found.append(("scale", launcher("local"), job))
            return found  # it starts the first slaves, too
        full, rest = divmod(n, plan.workers)
        for index, (count, workers) in enumerate(((full, plan.workers), (1 if rest else 0, rest))):
            if count:
                name = f"{plan.name}-s{index}"
                job = slave_job(plan, folder.path, name, count, workers, last=False)
                found.append(("slave", self._launcher, job))
        return found

    def rendered(self, n: int, journal: str | None) -> str:
        """What would be run, for people."""
        texts = []
        for role, where, job in self.jobs(n, journal):
            copies = f"{job.count} {role}s" if job.count > 1 else f"1 {role}"
            texts.append(f"# {copies} on {where.name}\n{where.render(job)}")
        return "\n\n".join(texts)

    def submit_all(self, n: int, journal: str | None) -> Started:
        """Submit all; nothing is left when that fails."""
        done: list[tuple[str, Launcher, list[str]]] = []
        try:
            for role, where, job in self.jobs(n, journal):
                done.append((role, where, submit_on_record(self._folder, role, where, job)))
        except (LauncherError, StartError) as error:
            failed = []
            for role, where, ids in reversed(done):
                try:
                    where.cancel(ids)
                except LauncherError as problem:
                    failed.append(f"{role} {', '.join(ids)}: {problem}")
            if failed:
                raise LauncherError(
                    f"{error}; could not be taken back: {'; '.join(failed)}"
                ) from error
            self._folder.remove()
            raise
        others = {role: own[0] for role, _, own in done if role != "slave"}
        slaves = tuple(one for role, _, own in done if role == "slave" for one in own)
        return Started(
            self._plan.label,
            self._plan.on,
            slaves,
            others.get("manager", ""),
            others.get("scale", ""),
        )


def submit_on_record(folder: RunFolder, role: str, where: Launcher, job: Job) -> list[str]:
    """Submit a job whose name is on record before, and whose ids are after it.

    Raises `LauncherError`, and `StartError` when the run is stopped or cannot be kept on record;
    nothing is left then.
    """
    stopped = StartError(f"{job.name}: the run is being stopped, nothing more is started")
    submission = Submission(job.name, role, where.name, job.count, time.time())
    if folder.is_stopping():
        raise stopped
    folder.write(submission)
    try:
        ids = where.submit(job)
    except LauncherError:
        folder.forget(submission)
        raise
    if folder.is_stopping():  # whoever stops it may not have found the name yet
        where.cancel(ids)
        raise stopped
    try:
        folder.write(submission._replace(ids=tuple(ids)))
    except StartError:  # such as on a disk that is full
        where.cancel(ids)
        folder.forget(submission)
        raise
    return ids

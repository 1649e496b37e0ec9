"""Processes inside containers: the command that starts one. Pure.

Process 1 of a container ignores SIGTERM unless it handles it: docker and podman get ``--init``,
which hands signals on. The network is the host's own: addresses are the same inside and outside.
"""

from __future__ import annotations

from masterslave.errors import LauncherError
from masterslave.launchers.base import Container, Job

KINDS = ("docker", "podman", "apptainer")


def process_command(job: Job) -> list[str]:
    """The command of a copy of the job; inside its container, where it has one."""
    if job.container is None:
        return list(job.command)
    return [*_start(job, job.container), *job.command]


def _start(job: Job, container: Container) -> list[str]:
    if container.kind not in KINDS:
        raise LauncherError(f"container {container.kind!r}: must be one of {', '.join(KINDS)}")
    if not container.image or container.image.startswith("-"):
        raise LauncherError(f"container image {container.image!r} is not the name of an image")
    mounts = [_mount(path) for path in (job.directory, *container.mounts)]
    mounts = list(dict.fromkeys(mounts))
    if container.kind == "apptainer":  # has the environment of the host, and is no process 1
        binds = [word for mount in mounts for word in ("--bind", mount)]
        return ["apptainer", "exec", "--pwd", job.directory, *binds, *container.arguments,
                container.image]  # fmt: skip
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    variables = [
        word for name, value in job.environment.items() for word in ("--env", f"{name}={value}")
    ]
    return [
        container.kind, "run", "--rm", "--init", "--network", "host",
        "--workdir", job.directory, *volumes, *variables, *container.arguments, container.image,
    ]  # fmt: skip


def _mount(text: str) -> str:
    """``SOURCE:TARGET[:OPTIONS]``; a path alone is the same inside and outside."""
    source, colon, rest = text.partition(":")
    if not source.startswith("/") or (colon and not rest.startswith("/")) or "," in text:
        raise LauncherError(
            f"mount {text!r}: must be an absolute path, or SOURCE:TARGET[:ro], without commas"
        )
    return text if colon else f"{source}:{source}"

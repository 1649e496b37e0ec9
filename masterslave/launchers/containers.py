"""Processes inside containers: the command that starts one. Pure.

Network and process ids are the host's own: addresses are the same inside and outside, two slaves on
a host are not both "PID 7", and whether one lives can be seen. So a process is not number 1 either,
which would ignore SIGTERM, and needs no init beside it.

docker and podman are clients: told to end while it starts its container, a client may leave it
behind. So a shell stands above it, hands signals on, and removes at the end what is left.

apptainer is the parent of the process: it hands signals on, gives its exit status, and does not
outlive it, nor is outlived. It replaces the shell above it, which only sees to the environment.
"""

from __future__ import annotations

from masterslave.errors import LauncherError
from masterslave.launchers.base import Container, Job, safe_name

KINDS = ("docker", "podman", "apptainer")

#: What a job's surroundings tell a slave in it: which job it is, and when that ends. Handed on
#: where it is set, for docker and podman hand on nothing by themselves, nor does apptainer when it
#: is told ``--cleanenv``.
_HANDED_ON = (
    "MASTERSLAVE_JOB_ID", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_END_TIME", "PBS_JOBID", "PBS_WALLTIME", "JOB_ID", "SGE_TASK_ID",
)  # fmt: skip

#: $1 begins the container's name, the rest is a ``run`` command. One line: HTCondor takes no more.
#: `told`: a signal that came before there was a client.
_SEE_TO_ITS_END = (
    'name="$1-$(uname -n)-$$"; engine=$2; shift 3; client= told=; '
    'for one in INT TERM USR1 USR2; do trap "told=$one; kill -s $one \\$client 2>/dev/null" $one; '
    "done; "
    '"$engine" run --name "$name" "$@" & client=$!; '
    '[ -z "$told" ] || kill -s $told $client; '
    "while wait $client; status=$?; [ $status -gt 128 ] && kill -0 $client 2>/dev/null; "
    "do :; done; "
    '"$engine" rm --force "$name" >/dev/null 2>&1; exit $status'
)

#: The rest is for apptainer. What it finds as APPTAINERENV_NAME is NAME inside in any case; but it
#: has a shell evaluate the value, so only what systems say may go this way. One line, as above.
_TELL_APPTAINER = (
    f"for name in {' '.join(_HANDED_ON)}; do "
    'eval "[ -z \\"\\${$name+set}\\" ] || export APPTAINERENV_$name=\\"\\${$name}\\""; done; '
    'exec apptainer "$@"'
)


def program(job: Job) -> str:
    """The program that must be there, where the job starts."""
    return job.command[0] if job.container is None else job.container.kind


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
    variables = [f"{name}={value}" for name, value in job.environment.items()]
    if container.kind == "apptainer":
        # `env` inside says what must be set: apptainer drops HOME, and all of it with --cleanenv,
        # and its own --env takes commas for the end of a value and has a shell evaluate the rest.
        binds = [word for mount in mounts for word in ("--bind", mount)]
        return [
            "sh", "-c", _TELL_APPTAINER, "sh", "exec", "--pwd", job.directory, *binds,
            *container.arguments, container.image, *(["env", *variables] if variables else []),
        ]  # fmt: skip
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    told = [word for one in (*_HANDED_ON, *variables) for word in ("--env", one)]
    return [
        "sh", "-c", _SEE_TO_ITS_END, "sh", safe_name(job.name),
        container.kind, "run", "--rm", "--network", "host", "--pid", "host",
        "--workdir", job.directory, *volumes, *told, *container.arguments, container.image,
    ]  # fmt: skip


def _mount(text: str) -> str:
    """``SOURCE:TARGET[:OPTIONS]``; a path alone is the same inside and outside."""
    source, colon, rest = text.partition(":")
    if not source.startswith("/") or (colon and not rest.startswith("/")) or "," in text:
        raise LauncherError(
            f"mount {text!r}: must be an absolute path, or SOURCE:TARGET[:ro], without commas"
        )
    return text if colon else f"{source}:{source}"

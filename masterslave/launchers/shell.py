"""Processes without a batch system: what a POSIX shell on their host is told. Pure.

Each process has a session of its own, so that it outlives the login that started it. Its id is
``PID:START``; START, the moment of its start in ticks of the kernel (field 22 of /proc/PID/stat),
tells it from another process that has got its number since.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from masterslave.errors import LauncherError
from masterslave.launchers.base import Job, check, safe_name
from masterslave.launchers.containers import process_command, program

#: Sets `state`, `session` and `start` of process $1; none of them, when there is no such process.
_LOOK = """
look() {
  state= session= start= line=
  { IFS= read -r line < "/proc/$1/stat"; } 2>/dev/null || return 0
  set -- ${line##*) }
  state=$1 session=$4 start=${20}
}
"""

#: What a copy does first: in a container, it would see another process id than its job's.
_OWN_ID = 'look $$; export MASTERSLAVE_JOB_ID="$$:$start"'

#: Starts $1 copies of the rest, whose output goes to $2.PID.log; prints their ids, $3 before each.
_START = f"""
count=$1 log=$2 where=$3
shift 3
while [ "$count" -gt 0 ]; do
  setsid sh -c '{_LOOK}{_OWN_ID}
    exec "$@" < /dev/null >> "$0.$$.log" 2>&1' "$log" "$@" &
  look $!
  echo "$where$!:$start"
  count=$((count - 1))
done
"""

#: Prints those of the ids in "$@" that run; one that waits to be reaped does not.
_SHOW = """
show() {
  for id; do
    look "${id%%:*}"
    if [ "$start" = "${id#*:}" ] && [ "$state" != Z ] && [ "$state" != X ]; then echo "$id"; fi
  done
}
"""

#: Prints those that write to a log whose name begins with $1: the number of each is in it. The
#: file is compared, not its path, which may lead over links.
_FIND = """
for log in "$1".*.log; do
  number=${log#"$1".}
  number=${number%.log}
  case $number in *[!0-9]*) continue ;; esac
  [ "/proc/$number/fd/1" -ef "$log" ] || continue
  look "$number"
  [ -z "$start" ] || show "$number:$start"
done
:
"""

#: SIGTERM to those of "$@" that run; when $limit tenths of a second are over, SIGKILL to what is
#: left of their sessions: to their groups at once, then to what has a group of its own, as the
#: process has that serves apptainer's image file.
_CANCEL = """
ids=$(show "$@")
for id in $ids; do kill -TERM "${id%%:*}" 2>/dev/null; done
while [ "$limit" -gt 0 ] && [ -n "$(show $ids)" ]; do sleep 0.1; limit=$((limit - 1)); done
sessions=' '
for id in $ids; do
  kill -KILL "-${id%%:*}" 2>/dev/null
  sessions="$sessions${id%%:*} "
done
for one in /proc/[0-9]*; do
  look "${one#/proc/}"
  case $sessions in *" $session "*) kill -KILL "${one#/proc/}" 2>/dev/null ;; esac
done
:
"""


def start_command(job: Job, count: int, where: str = "") -> list[str]:
    """Starts `count` copies, prints an id on a line for each: `where` and ``PID:START``."""
    check(job)
    if job.options:
        raise LauncherError(
            f"no batch system, so there is nothing to pass options to: {job.options}"
        )
    log = os.path.join(job.log_folder, safe_name(job.name))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    lines.append(f"mkdir -p {shlex.quote(job.log_folder)} || exit 1")
    lines.append(f"cd {shlex.quote(job.directory)} || exit 1")
    command, needed = process_command(job), shlex.quote(program(job))
    lines.append(
        f'command -v {needed} > /dev/null || {{ echo "no program" {needed} >&2; exit 1; }}'
    )
    text = _LOOK + "\n".join(lines) + _START
    return ["sh", "-c", text, "sh", str(count), log, where, *command]


def show_command(ids: Sequence[str]) -> list[str]:
    """Prints those ids whose processes run, a line each."""
    return ["sh", "-c", _LOOK + _SHOW + 'show "$@"', "sh", *map(_checked, ids)]


def find_command(job_name: str, log_folder: str) -> list[str]:
    """Prints the ids of the processes that run of jobs of that name with that folder of logs."""
    log = os.path.join(log_folder, safe_name(job_name))
    return ["sh", "-c", _LOOK + _SHOW + _FIND, "sh", log]


def cancel_command(ids: Sequence[str], limit_s: float) -> list[str]:
    """Ends those processes: SIGTERM, and SIGKILL when `limit_s` seconds are over."""
    limit = f"limit={round(limit_s * 10)}"
    return ["sh", "-c", _LOOK + _SHOW + limit + _CANCEL, "sh", *map(_checked, ids)]


def start_of(number: str) -> str:
    """START of the process of that number on this machine; 0 when there is none."""
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def started(text: str) -> list[str]:
    """The ids that a start command has printed."""
    ids = text.split()
    if not ids or not all(re.search(r"(^|:)[1-9]\d*:\d*$", one) for one in ids):
        raise LauncherError(f"the start of processes gave no ids but {text!r}")
    return ids


def _checked(job_id: str) -> str:
    if not re.fullmatch(r"[1-9]\d*:\d*", job_id):
        raise LauncherError(f"{job_id!r} is not the id of a process that was started here")
    return job_id

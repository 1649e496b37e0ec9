"""Arguments of the command line: what their texts mean, and those of ``start`` and its kin."""

from __future__ import annotations

import argparse
from typing import Any

from masterslave.chaos import Chaos
from masterslave.errors import SettingsError
from masterslave.units import parse_bytes, parse_duration

_SYSTEMS = ("local", "ssh", "slurm", "sge", "pbs", "htcondor", "psij")


def positive(text: str) -> int:
    """A number of at least 1."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return value


def port(text: str) -> int:
    """A port."""
    if not text.isdecimal() or not 0 <= int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def size(text: str) -> int:
    """A size in bytes."""
    try:
        return parse_bytes(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def chaos(text: str) -> Chaos:
    """What is to go wrong on purpose."""
    try:
        return Chaos.parse(text) or Chaos()  # which says that nothing is to go wrong
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def duration(text: str) -> float:
    """A duration in seconds."""
    try:
        return parse_duration(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """A number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return int(text)


def container(text: str) -> tuple[str, str]:
    """``KIND:IMAGE``."""
    kind, _, image = text.partition(":")
    if kind not in ("docker", "podman", "apptainer") or not image:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not KIND:IMAGE with KIND docker, podman or apptainer"
        )
    return kind, image


def host(text: str) -> tuple[str, int]:
    """``NAME`` or ``NAME*COUNT``: a host, and how many slaves there is room for."""
    name, star, room = text.partition("*")
    if not name or (star and (not room.isdecimal() or int(room) < 1)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST or HOST*COUNT")
    return name, int(room) if star else 1


def setting(text: str) -> tuple[str, str | bool]:
    """``NAME=VALUE``, where ``true`` and ``false`` are what they say."""
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, {"true": True, "false": False}.get(value, value)


def add_start(commands: Any, common: argparse.ArgumentParser) -> None:
    """The commands ``start``, ``stop``, ``status`` and ``scale``."""
    start = commands.add_parser(
        "start",
        parents=[common],
        help="start workers through a batch system, or here",
        epilog="What stands behind -- is passed to the batch system: -- --partition=long. "
        "A LABEL that begins with a dash stands between two of them: start -n 2 -- -LABEL --",
    )
    add = start.add_argument
    add("label", metavar="LABEL")
    add("-n", "--number", type=positive, default=1, metavar="N", help="workers in all (1)")
    add("--on", choices=_SYSTEMS, help="default: the batch system that answers, else local")
    add("--serve", action="store_true", help="start the task manager, too")
    add("--here", action="store_true", help="with --serve: on this machine, not in a job")
    add("--journal", metavar="FILE", help="with --serve: keep all tasks and results in this file")
    add("--per-slave", type=positive, metavar="N", help="workers of each job (local: all, else 1)")
    add("--walltime", type=duration, metavar="TIME", help="of each job: 3600, 90m or 1:30:00")
    add("--memory", type=size, metavar="SIZE", help="private memory of each worker: 2G")
    add(
        "--idle", type=duration, metavar="TIME", help="slaves end after so much time without a task"
    )
    add("--min", type=count, metavar="N", help="scale on demand: so many slaves at least")
    add("--max", type=positive, metavar="N", help="scale on demand: so many slaves at most")
    add("--container", type=container, metavar="KIND:IMAGE", help="what slaves run in")
    add("--container-option", action="append", default=[], metavar="OPTION")
    add("--mount", action="append", default=[], metavar="FOLDER", help="seen in the container")
    add("--python", metavar="FILE", help="interpreter of the slaves, which has this package")
    add("--host", action="append", type=host, metavar="HOST[*N]", help="with --on ssh; repeat it")
    add(
        "--set", action="append", type=setting, default=[], metavar="NAME=VALUE",
        help="a setting of the launcher: dialect=torque (pbs), parallel_environment=mpi (sge)",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="print what would be run, do nothing")
    add("--json", action="store_true", help="for programs")
    stop = commands.add_parser("stop", parents=[common], help="end what start has started")
    stop.add_argument("label", metavar="LABEL")
    stop.add_argument(
        "--within", type=duration, metavar="TIME", help="that slaves get to finish what they run"
    )
    status = commands.add_parser(
        "status", parents=[common], help="the jobs and slaves of a start, and why one is missing"
    )
    status.add_argument("label", metavar="LABEL")
    status.add_argument("--json", action="store_true", help="for programs")
    scale = commands.add_parser(
        "scale", parents=[common], help="start slaves on demand (start --min --max does this)"
    )
    scale.add_argument("label", metavar="LABEL")


def check_start(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with the usage where options of ``start`` do not go together."""
    from masterslave.starting import check_request  # takes time to load

    try:
        check_request(
            options.number, serve=options.serve, here=options.here,
            master=getattr(options, "master", None), per_slave=options.per_slave,
            low=options.min, high=options.max, journal=options.journal,
        )  # fmt: skip
    except SettingsError as error:
        parser.error(f"start: {error}")
    if (options.on == "ssh") != bool(options.host):
        parser.error("start: --on ssh and --host go together")

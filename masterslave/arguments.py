"""Arguments of the command line: what their texts mean, and which each command takes."""

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


def add_show(commands: Any, common: argparse.ArgumentParser) -> None:
    """The commands ``show`` and ``list``."""
    show = commands.add_parser("show", parents=[common], help="show what goes on in a job")
    show.add_argument("label", metavar="LABEL", nargs="?")
    show.add_argument("--folder", metavar="DIR", help="of the master in this shared folder")
    show.add_argument("--json", action="store_true", help="for programs")
    labels = commands.add_parser("list", parents=[common], help="list the known labels")
    labels.add_argument("--json", action="store_true", help="for programs")


def add_slave(commands: Any, common: argparse.ArgumentParser) -> None:
    """The command ``slave``."""
    slave = commands.add_parser("slave", parents=[common], help="start a slave here")
    slave.add_argument("label", metavar="LABEL", nargs="?")
    slave.add_argument(
        "--folder",
        metavar="DIR",
        help="directory shared with the master: without LABEL the only way to it, else in case "
        "the network does not lead there",
    )
    slave.add_argument(
        "-n",
        "--workers",
        type=positive,
        default=1,
        metavar="N",
        help="worker processes (1)",
    )
    slave.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="private memory that each worker may have: 2G",
    )
    slave.add_argument(
        "--lifetime",
        type=duration,
        metavar="TIME",
        help="leave in order before so much time is over: 3600, 90m or 1:30:00 "
        "(what Slurm or PBS say)",
    )
    slave.add_argument(
        "--chaos",
        type=chaos,
        metavar="SPEC",
        help="let things go wrong on purpose, such as kill=0.01,cut=0.02; see the README",
    )
    slave.add_argument(
        "--follow",
        action="store_true",
        help="with -m: ask the name server where the master is, should it be gone from there",
    )
    slave.add_argument(
        "--idle",
        type=duration,
        metavar="TIME",
        help="leave after so much time without a task",
    )
    slave.add_argument(
        "--record",
        metavar="FOLDER",
        help="the folder of a start, where it writes how it fares (task_manager start gives this)",
    )
    slave.add_argument("--job", metavar="SYSTEM:NAME", default=":", help="which job it is in")


def add_serve(commands: Any, common: argparse.ArgumentParser) -> None:
    """The command ``serve``."""
    serve = commands.add_parser("serve", parents=[common], help="be a task manager, until SIGTERM")
    serve.add_argument("label", metavar="LABEL")
    serve.add_argument("--journal", metavar="FILE", help="keep all tasks and results in this file")
    serve.add_argument("--port", type=port, metavar="N", help="listen on this port")
    serve.add_argument(
        "--keep",
        action="store_true",
        help="keep the tasks of clients that disappeared until they come back "
        "(else for MASTERSLAVE_CLIENT_GRACE seconds)",
    )


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


def add_failures(commands: Any, common: argparse.ArgumentParser) -> None:
    """The command ``failures``."""
    failures = commands.add_parser(
        "failures", parents=[common], help="list the tasks that failed; -v: with tracebacks"
    )
    failures.add_argument("where", metavar="LABEL|JOURNAL")
    failures.add_argument("--json", action="store_true", help="for programs")


def add_journal(commands: Any, common: argparse.ArgumentParser) -> None:
    """The commands ``journal`` and ``replay``."""
    journal = commands.add_parser(
        "journal", parents=[common], help="look at a journal, save it, mend it"
    )
    actions = journal.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("check", "verify everything, tell of each problem"),
        ("show", "show what it holds"),
        ("export", "print all tasks as JSON lines, or save what is sound"),
        ("retry", "have failed tasks run again by the next run"),
    ):
        action = actions.add_parser(name, parents=[common], help=text)
        action.add_argument("file", metavar="FILE")
        if name in ("check", "show"):
            action.add_argument("--json", action="store_true", help="for programs")
        elif name == "export":
            action.add_argument("--to", metavar="NEW", help="write a new journal instead")
        else:
            action.add_argument(
                "task_id", metavar="TASK_ID", nargs="*", help="these only; default: all failed ones"
            )
    replay = commands.add_parser(
        "replay", parents=[common], help="run one task of a journal again, in this process"
    )
    replay.add_argument("file", metavar="JOURNAL")
    replay.add_argument("task_id", metavar="TASK_ID")
    replay.add_argument("--pdb", action="store_true", help="debug the exception that it raises")

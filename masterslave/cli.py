"""The command ``task_manager``: look at jobs and journals, start slaves and task managers.

| command                | does                                                            |
|------------------------|-----------------------------------------------------------------|
| `LABEL`, `show LABEL`  | processes, waiting and running tasks, results to be retrieved   |
| `list`                 | the labels known to the name server                             |
| `slave LABEL`          | a slave on this machine, with the code kept by the master       |
| `serve LABEL`          | a task manager on its own                                       |
| `start LABEL`          | slaves, perhaps a task manager, through a batch system          |
| `stop`, `status LABEL` | ends what `start` has started; its jobs and slaves side by side |
| `failures LABEL`       | the tasks that failed, of a living job or (`FILE`) of a journal |
| `journal ... FILE`     | looks at a journal, saves it, mends it                          |
| `replay FILE TASK_ID`  | runs one task of a journal again, here                          |

Exit status: 0 when all is well, 1 with one line on standard error when a label, host or key is
refused, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from masterslave import arguments, naming
from masterslave.errors import MasterSlaveError
from masterslave.keyfile import load_key
from masterslave.settings import Settings, check_label, checked_path

_COMMANDS = (
    "show", "list", "slave", "serve", "start", "stop", "status", "scale", "failures", "journal",
    "replay",
)  # fmt: skip

#: Options that are followed by a value.
_WITH_VALUE = (
    "-m", "--master", "-n", "--number", "--workers", "--memory", "--lifetime", "--chaos",
    "--idle", "--record", "--job", "--folder",
    "--on", "--per-slave", "--walltime", "--min", "--max", "--mount", "--container",
    "--container-option", "--python", "--host", "--within", "--set",
    "--to", "--journal", "--port",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's); gives the exit status."""
    options = _parse(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("Pyro5").setLevel(logging.CRITICAL)  # says the same in more words
    run = _HERE.get(options.command) or _elsewhere(options.command)
    try:
        if getattr(options, "label", None) is not None:
            check_label(options.label)
        return run(options, Settings.from_environment())
    except MasterSlaveError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"task_manager: {lines[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has enough
        sys.stderr.close()
        return 1


def _elsewhere(command: str) -> Callable[[argparse.Namespace, Settings], int]:
    """A command of a module of its own, which is loaded only for that."""
    module = importlib.import_module(f"masterslave.commands.{command}")
    run: Callable[[argparse.Namespace, Settings], int] = module.run
    return run


def _parse(argv: list[str]) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "-m", "--master", metavar="HOST[:PORT]", help="where the master runs (no name server)"
    )
    common.add_argument("-w", "--wait", action="store_true", help="wait until the master is there")
    common.add_argument("-v", "--verbose", action="store_true", help="say more")
    parser = argparse.ArgumentParser(
        prog="task_manager",
        parents=[common],
        description="Look at master-slave jobs and their journals, start slaves for them.",
        epilog="task_manager LABEL is the same as task_manager show LABEL.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    arguments.add_show(commands, common)
    arguments.add_slave(commands, common)
    arguments.add_serve(commands, common)
    arguments.add_start(commands, common)
    arguments.add_failures(commands, common)
    arguments.add_journal(commands, common)
    words, passed = _without_passed_on(_with_command(argv))
    options = parser.parse_args(words)
    options.passed = passed
    if options.command == "start":
        arguments.check_start(parser, options)
    elif options.command in ("show", "slave") and options.label is None and options.folder is None:
        parser.error(f"{options.command}: name a LABEL, or a folder with --folder DIR")
    for name, default in (("master", None), ("wait", False), ("verbose", False)):
        if not hasattr(options, name):
            setattr(options, name, default)
    return options


def _with_command(argv: list[str]) -> list[str]:
    """Put the command first, whatever options stand before it; ``show`` where there is none."""
    position = 0
    while position < len(argv):
        word = argv[position]
        if word in _WITH_VALUE:
            position += 2
        elif word.startswith("-") and word != "--":
            position += 1
        else:
            break
    if position >= len(argv):
        return ["show", *argv] if "--folder" in argv else argv
    if argv[position] in _COMMANDS:
        return [argv[position], *argv[:position], *argv[position + 1 :]]
    return ["show", *argv]


def _without_passed_on(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split off what ``start`` passes on to the batch system: all behind ``--``.

    With two of them, a label alone may stand in between, as one that begins with a dash must. It
    may not behind a single one, where an option would be taken for it if the label was forgotten.
    """
    if argv[:1] != ["start"] or "--" not in argv:
        return argv, []
    at = argv.index("--")
    if argv[at + 2 : at + 3] == ["--"] and not _has_label(argv[1:at]):
        return argv[: at + 2], argv[at + 3 :]
    return argv[:at], argv[at + 1 :]


def _has_label(words: list[str]) -> bool:
    """Whether one of the arguments is neither an option nor its value."""
    before = ["", *words[:-1]]
    return any(
        not word.startswith("-") and last not in _WITH_VALUE
        for last, word in zip(before, words, strict=True)
    )


def _connect(options: argparse.Namespace, settings: Settings, label: str) -> Any:
    key = load_key(settings.key_file)
    find = naming.wait_and_connect if options.wait else naming.connect
    return find(label, options.master, settings, key)


def _show(options: argparse.Namespace, settings: Settings) -> int:
    if options.folder is not None:
        from masterslave.folder.links import read_status

        folder = checked_path("--folder", options.folder)
        status = read_status(folder, load_key(settings.key_file))
    else:
        link = _connect(options, settings, options.label)
        try:
            status = link.call("status")
        finally:
            link.close()
    if options.json:
        print(json.dumps(status, indent=2, sort_keys=True))
        return 0
    from masterslave import tables  # takes time to import

    tables.print_status(status, verbose=options.verbose)
    return 0


def _list(options: argparse.Namespace, settings: Settings) -> int:
    rows = naming.survey(settings, load_key(settings.key_file), with_counts=options.verbose)
    if options.json:
        print(json.dumps(rows, indent=2, sort_keys=True))
        return 0
    from masterslave import tables

    tables.print_labels(rows, verbose=options.verbose)
    return 0


def _slave(options: argparse.Namespace, settings: Settings) -> int:
    from masterslave.slaverun import run_slave

    if options.chaos is not None:
        settings = replace(settings, chaos=options.chaos if str(options.chaos) else None)
    note = None
    if options.record is not None:
        from masterslave.runfolder import note_here

        system, _, name = options.job.partition(":")
        note = note_here(options.record, name, system)
    run_slave(
        options.label,
        options.master,
        workers=options.workers,
        settings=settings,
        wait=options.wait,
        memory=options.memory,
        lifetime_s=options.lifetime,
        follow=options.follow,
        folder=None if options.folder is None else checked_path("--folder", options.folder),
        idle_s=options.idle,
        note=note,
    )
    return 0


_HERE: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
    "show": _show,
    "list": _list,
    "slave": _slave,
}

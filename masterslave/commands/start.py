"""``task_manager start``, ``stop``, ``status`` and ``scale``: slaves through a batch system."""

from __future__ import annotations

import argparse
import json
import sys

from masterslave.launchers.base import Container
from masterslave.settings import Settings
from masterslave.starting import Started, start


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Start, and say what was started."""
    container = None
    if options.container is not None:
        kind, image = options.container
        container = Container(kind, image, tuple(options.container_option), tuple(options.mount))
    where: dict[str, object] = dict(options.set)
    passed = options.passed
    if options.host:
        where["hosts"] = dict(options.host)
        where["options"], passed = passed, []  # of ssh itself
    started = start(
        options.label, options.number, options.on,
        serve=options.serve, here=options.here, master=options.master, wait=options.wait,
        per_slave=options.per_slave, walltime=options.walltime, memory=options.memory,
        idle=options.idle, low=options.min, high=options.max, container=container,
        python=options.python, journal=options.journal, options=passed,
        launcher_settings=where, dry_run=options.dry_run,
    )  # fmt: skip
    if not isinstance(started, Started):
        print(started)
        return 0
    if options.json:
        json.dump(started._asdict(), sys.stdout)
        print()
        return 0
    if started.manager:
        print(f"task manager {started.label}: job {started.manager}")
    if started.slaves:
        print(f"slaves on {started.on}: {', '.join(started.slaves)}")
    if started.scaling:
        print(f"starts slaves on {started.on} on demand: {started.scaling}")
    return 0

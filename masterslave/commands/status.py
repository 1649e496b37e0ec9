"""``task_manager status``: the jobs of a start and their slaves, side by side."""

from __future__ import annotations

import argparse
import json

from masterslave.settings import Settings
from masterslave.stopping import overview


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Print it."""
    found = overview(options.label)
    if options.json:
        print(json.dumps(found.as_dict(), indent=2, sort_keys=True))
        return 0
    from masterslave import tables  # takes time to import

    tables.print_start(found.as_dict())
    return 0

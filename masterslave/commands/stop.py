"""``task_manager stop``: ends what ``task_manager start`` has started."""

from __future__ import annotations

import argparse

from masterslave.settings import Settings
from masterslave.stopping import stop


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Stop, and say a line on each thing done."""
    stop(options.label, within=options.within, tell=lambda line: print(line, flush=True))
    return 0

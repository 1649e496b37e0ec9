"""``task_manager failures``: which tasks failed, with the story of each attempt."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from masterslave import naming
from masterslave.attempts import FailedTask
from masterslave.keyfile import load_key
from masterslave.settings import Settings
from masterslave.stores.reader import reading


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Print the failures of a living job, or those in a journal."""
    key = load_key(settings.key_file)
    if is_journal(options.where):
        found = _of_journal(options.where, key)
    else:
        find = naming.wait_and_connect if options.wait else naming.connect
        link = find(options.where, options.master, settings, key)
        try:
            found = link.call("failedTasks")
        finally:
            link.close()
    if options.json:
        print(json.dumps(found, indent=2, sort_keys=True))
        return 0
    from masterslave import tables  # takes time to import

    tables.print_failures(found, verbose=options.verbose)
    return 0


def is_journal(where: str) -> bool:
    """Whether an argument names a file and not a label."""
    return os.sep in where or where.endswith(".db") or os.path.isfile(where)


def _of_journal(path: str, key: bytes) -> dict[str, Any]:
    failed, under_way = [], []
    with reading(path, key) as journal:
        for task in journal.tasks():
            outcome = task.end.outcome if task.end is not None else ""
            row = FailedTask(task.task_id, task.request.tag, outcome, task.failures).as_row()
            if task.has_failed:
                failed.append((task.failures[-1].at, row))
            elif task.end is None and task.failures:
                under_way.append((task.failures[-1].at, row))
        problems = list(dict.fromkeys(journal.problems))
    parts = [[row for _, row in sorted(p, key=lambda pair: pair[0])] for p in (failed, under_way)]
    return {"failed": parts[0], "under_way": parts[1], "forgotten": 0, "problems": problems}

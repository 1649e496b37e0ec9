"""``task_manager journal``: look at the journal of a job that does not run, save it, mend it.

| command                   | does                                                              |
|---------------------------|-------------------------------------------------------------------|
| `check FILE`              | verifies every row, tells of each problem                         |
| `show FILE`               | tasks by tag and state, slaves                                    |
| `export FILE`             | all tasks as JSON lines; `--to NEW`: what is sound as a new file  |
| `retry FILE [TASK_ID...]` | has failed tasks run again by the next run                        |

All but `retry` leave the file as it is, and read damaged ones as far as possible.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections import Counter, defaultdict
from typing import Any

from masterslave import slavecode
from masterslave.entries import Ended, Entry, Forgotten, Left, Requested, Stored
from masterslave.errors import JournalError, MasterSlaveError
from masterslave.keyfile import load_key
from masterslave.records import Frame, Outcome, frame_bytes
from masterslave.settings import Settings
from masterslave.stores.reader import TABLES, JournalReader, Past, reading
from masterslave.stores.sqlite import SqliteStore

#: Entries and bytes of frames that go into a new journal at a time. Larger: more memory. Smaller:
#: slower.
_GROUP_ENTRIES, _GROUP_BYTES = 5000, 1 << 26

#: Written anew by every journal that is made.
_OWN_NOTES = {"key"}


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Carry out one of the commands above; gives the exit status."""
    key = load_key(settings.key_file)
    command = {"check": _check, "show": _show, "export": _export, "retry": _retry}[options.action]
    return command(options, key)


# --- check ----------------------------------------------------------------------------------


def _check(options: argparse.Namespace, key: bytes) -> int:
    with reading(options.file, key) as journal:
        label = journal.notes().get("label", "")
        rows = {table: sum(1 for _ in journal.read(table)) for table in TABLES}
        found = {"journal": journal.path, "label": label, "rows": rows}
        problems = journal.problems
    if options.json:
        print(json.dumps({**found, "problems": problems}, indent=2, sort_keys=True))
    else:
        from masterslave import tables  # takes time to import

        tables.print_check(found, problems)
        if problems:
            print(f"save what is sound: task_manager journal export {journal.path} --to NEW")
    return 1 if problems else 0


# --- show -----------------------------------------------------------------------------------


def _show(options: argparse.Namespace, key: bytes) -> int:
    with reading(options.file, key) as journal:
        found = _summary(journal)
    if options.json:
        print(json.dumps(found, indent=2, sort_keys=True))
    else:
        from masterslave import tables

        tables.print_journal(found)
    return 0


def _summary(journal: JournalReader) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task in journal.tasks():
        counts[task.request.tag][task.end.outcome if task.end is not None else "unfinished"] += 1
    items: list[str] = [entry.name for _, entry in journal.read("item")]
    return {
        "journal": journal.path,
        "label": journal.notes().get("label", ""),
        "size_bytes": journal.size_bytes,
        "tasks": {tag: dict(count) for tag, count in sorted(counts.items())},
        "slaves": [info.machine for info in journal.slaves().infos.values()],
        "items": sorted(set(items)),
        "has_slave_code": slavecode.DATA_NAME in items,
        "problems": len(set(journal.problems)),
    }


# --- export ---------------------------------------------------------------------------------


def _export(options: argparse.Namespace, key: bytes) -> int:
    with reading(options.file, key) as journal:
        if options.to is not None:
            _save(journal, options.to, key)
        else:
            for task in journal.tasks(frames=True):
                print(json.dumps(_as_json(task), sort_keys=True))
        for problem in dict.fromkeys(journal.problems):
            print(f"task_manager: left out: {problem}", file=sys.stderr)
    return 0


def _as_json(task: Past) -> dict[str, Any]:
    end = task.end
    return {
        "task_id": task.task_id,
        "tag": task.request.tag,
        "options": task.request.options._asdict(),
        "parameters": _as_text(task.request.frame),
        "failed_attempts": [attempt._asdict() for attempt in task.failures],
        "outcome": end.outcome if end is not None else None,
        "attempt": end.attempt if end is not None else None,
        "where": task.where,
        "story": end.story if end is not None else "",
        "duration_s": end.duration_s if end is not None else None,
        "ended_at": end.at if end is not None else None,
        "result": _as_text(end.frame) if end is not None else None,
    }


def _as_text(frame: Frame) -> list[str]:
    return [base64.b64encode(buffer).decode("ascii") for buffer in frame]


def _save(journal: JournalReader, to: str, key: bytes) -> None:
    """Make a new journal of all that is sound; the same entries in the same order."""
    if os.path.exists(to):
        raise JournalError(f"journal {os.path.abspath(to)}: is there already; name a new file")
    new = SqliteStore(to, key)
    try:
        for name, value in journal.notes().items():
            if name not in _OWN_NOTES:
                new.set_note(name, value)
        written = {table: _copy_rows(journal, table, new) for table in TABLES}
    except BaseException:
        new.close()
        for suffix in ("", "-wal"):
            if os.path.exists(to + suffix):
                os.unlink(to + suffix)
        raise
    new.close()
    tasks = written["task"]
    print(
        f"journal {new.path}: {len(tasks)} tasks, {len(tasks & written['ending'])} of them "
        "finished; go on with it"
    )


def _copy_rows(journal: JournalReader, table: str, new: SqliteStore) -> set[int]:
    """Copy the sound rows of a table, with their place in the story; gives the tasks' numbers.

    Rows of tasks that cannot be read are copied, too: so their numbers stay taken.
    """
    group: list[tuple[int, Entry]] = []
    numbers: set[int] = set()
    size = 0
    for seq, entry in journal.read(table, frames=True):
        group.append((seq, entry))
        if table == "former_process":
            group.append((seq, Left(entry.process)))
        elif isinstance(entry, (Requested, Ended)):
            numbers.add(entry.number)
            size += frame_bytes(entry.frame)
        elif isinstance(entry, Stored):
            size = _GROUP_BYTES  # few, and some are large
        if len(group) >= _GROUP_ENTRIES or size >= _GROUP_BYTES:
            new.write_numbered(group)
            group, size = [], 0
    new.write_numbered(group)
    return numbers


# --- retry ----------------------------------------------------------------------------------


def _retry(options: argparse.Namespace, key: bytes) -> int:
    store = SqliteStore(options.file, key, create=False)
    try:
        tags: dict[int, str] = {}
        outcomes: dict[int, str] = {}
        told: set[int] = set()
        for entry in store.entries():
            if isinstance(entry, Forgotten):
                told.add(entry.number)
            elif isinstance(entry, Requested):
                tags[entry.number] = entry.tag
            elif isinstance(entry, Ended):
                outcomes[entry.number] = entry.outcome
        ids = {number: f"{tag}_{number}" for number, tag in tags.items()}
        failed = {
            ids[number]: number
            for number, outcome in outcomes.items()
            if number in ids and number not in told and outcome != Outcome.RESULT
        }
        for task_id in options.task_id or ():
            if any(ids.get(number) == task_id for number in told):
                raise MasterSlaveError(
                    f"task {task_id} has failed and its client was told, so no run will ask for it "
                    "again: submit it anew; nothing was changed"
                )
        chosen = options.task_id or list(failed)
        _check_chosen(chosen, failed, set(ids.values()))
        for task_id in dict.fromkeys(chosen):
            store.forget_ending(failed[task_id])
    finally:
        store.close()
    count = len(set(chosen))
    print(f"{count} {'task' if count == 1 else 'tasks'} will be run again by the next run")
    return 0


def _check_chosen(chosen: list[str], failed: dict[str, int], known: set[str]) -> None:
    for task_id in chosen:
        if task_id not in known:
            raise MasterSlaveError(f"there is no task {task_id!r} in the journal")
        if task_id not in failed:
            raise MasterSlaveError(f"task {task_id} has not failed: nothing was changed")

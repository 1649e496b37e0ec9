"""What the command line prints, as tables; colours only on a terminal (rich sees to that)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from masterslave.attempts import headline
from masterslave.diagnosis import explain, situation
from masterslave.records import CALL_TAG, Outcome
from masterslave.units import format_duration

_ENDLESS = 100_000  # columns


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_ENDLESS)  # programs read it: no line is folded
    return console


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def print_status(status: Mapping[str, Any], *, verbose: bool) -> None:
    """Print what a task manager's `status` says: counts, and why nothing moves if so."""
    console = _console()
    totals = Table(box=None, pad_edge=False, show_header=False)
    totals.add_column()
    totals.add_column(justify="right")
    totals.add_column(style="dim")
    slaves, workers = len(status["slaves"]), status["workers"]
    masters = len(status["masters"])
    of_these = (
        f"{_counted(masters, 'master')}, {_counted(slaves, 'slave')} with "
        f"{_counted(workers, 'worker')}"
    )
    totals.add_row("active processes", str(status["active_processes"]), of_these)
    totals.add_row("waiting tasks", str(sum(status["waiting"].values())), "")
    totals.add_row("running tasks", str(sum(status["running"].values())), "")
    totals.add_row("results to retrieve", str(sum(status["finished"].values())), "")
    totals.add_row("results retrieved", str(status["delivered"]), "")
    console.print(Text(f"task manager {status['label']}", style="bold"))
    console.print(totals)
    if verbose:
        if any(status[part] for part in ("waiting", "running", "finished")):
            console.print()
            _print_tags(console, status)
        console.print()
        _print_processes(console, status)
        if clients := status.get("clients"):
            console.print()
            _print_clients(console, clients)
    if trouble := status.get("journal_trouble"):
        text = f"! requests wait, and results are not acknowledged: {trouble}"
        console.print(Text(text, style="yellow"))
    for problem in status.get("mismatches", ()):
        console.print(Text(f"! {problem}", style="yellow"))
    for reason in explain(situation(status)):
        console.print(Text(f"! {reason}", style="yellow"))


def _print_tags(console: Console, status: Mapping[str, Any]) -> None:
    table = _table(
        "tag", "waiting", "running", "finished", right=("waiting", "running", "finished")
    )
    parts = [status["waiting"], status["running"], status["finished"]]
    for tag in sorted(set().union(*parts)):
        table.add_row(Text(tag), *(str(part.get(tag, 0)) for part in parts))
    console.print(table)


def _print_processes(console: Console, status: Mapping[str, Any]) -> None:
    right = ("workers", "holds", "done", "time left")
    limited = any("left_s" in slave for slave in status["slaves"])
    left = ["time left"] if limited else []
    table = _table("role", "process", "workers", "holds", "done", *left, "handles", right=right)
    for master in status["masters"]:
        table.add_row("master", Text(master["info"]))
    for slave in status["slaves"]:
        own = [tag for tag in slave["tags"] or () if tag != CALL_TAG]  # which all handle
        tags = "(starting)" if slave["tags"] is None else ", ".join(own) or "clients' functions"
        cells = [str(slave[name]) for name in ("workers", "holds", "finished")]
        if limited:
            cells.append(format_duration(slave["left_s"]) if "left_s" in slave else "")
        table.add_row("slave", Text(slave["info"]), *cells, Text(tags))
    console.print(table)


def _print_clients(console: Console, clients: Sequence[Mapping[str, Any]]) -> None:
    numbers = ("waiting", "running", "finished")
    table = _table("client", *numbers, "", right=numbers)
    for client in clients:
        state = ""
        if "dropped_in_s" in client:
            state = f"lost; its tasks are dropped in {format_duration(client['dropped_in_s'])}"
        elif "lost_s" in client:
            state = f"lost {format_duration(client['lost_s'])} ago; its tasks are kept"
        cells = [str(client[name]) for name in numbers]
        table.add_row(Text(client["info"]), *cells, Text(state))
    console.print(table)


def print_labels(rows: Sequence[Mapping[str, Any]], *, verbose: bool) -> None:
    """Print the labels that the name server knows, and which of them are dead."""
    console = _console()
    if not rows:
        console.print("no task managers are known to the name server")
        return
    columns = ["label", "address", "state"] + (["processes", "workers"] if verbose else [])
    table = _table(*columns, right=("processes", "workers"))
    for row in rows:
        cells = [Text(row["label"]), Text(row["address"]), Text(row["state"])]
        if verbose:
            cells += [Text(str(row.get(name, ""))) for name in ("processes", "workers")]
        table.add_row(*cells)
    console.print(table)


def print_start(found: Mapping[str, Any]) -> None:
    """Print what `stopping.Overview.as_dict` gives: jobs and slaves side by side."""
    console = _console()
    state = ", is being stopped" if found["stopping"] else ""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["began_at"]))
    head = f"{found['label']} on {found['on']}, started {at} on {found['host']}{state}"
    console.print(Text(head, style="bold"))
    if found["manager"]:
        tasks = ", ".join(f"{count} {name}" for name, count in found["tasks"].items())
        console.print(Text(f"task manager at {found['manager']}; tasks: {tasks}"))
    else:
        console.print(Text(f"! the task manager does not answer: {found['why']}", style="yellow"))
    table = _table("job", "role", "state", "slave", "workers", "done", right=("workers", "done"))
    for row in found["rows"]:
        numbers = ["" if row[name] is None else str(row[name]) for name in ("workers", "done")]
        cells = [row["job"] or "-", row["role"], row["phase"], row["slave"], *numbers]
        table.add_row(*map(Text, cells))
    console.print(table)
    for row in found["rows"]:
        if row["remark"]:
            who = row["job"] or row["slave"]
            style = "yellow" if row["missing"] else "dim"
            console.print(
                Text(f"{'! ' if row['missing'] else ''}{who}: {row['remark']}", style=style)
            )


# --- journals -------------------------------------------------------------------------------

#: How a task of a journal stands -> heading.
_STATES = {
    "unfinished": "unfinished",
    Outcome.RESULT.value: "finished",
    Outcome.EXCEPTION.value: "raised",
    Outcome.CRASHED.value: "crashed",
    Outcome.OUT_OF_MEMORY.value: "out of memory",
    Outcome.TIMED_OUT.value: "timed out",
}


def print_check(found: Mapping[str, Any], problems: Sequence[str]) -> None:
    """Print how many rows of a journal are sound, and what is not."""
    console = _console()
    console.print(Text(f"journal {found['journal']} of {found['label'] or '(no label)'}"))
    table = _table("table", "sound rows", right=("sound rows",))
    for name, count in found["rows"].items():
        table.add_row(name, str(count))
    console.print(table)
    for problem in problems:
        console.print(Text(f"! {problem}", style="yellow"))
    if not problems:
        console.print("everything is what was written")


def print_journal(found: Mapping[str, Any]) -> None:
    """Print what a journal holds."""
    console = _console()
    console.print(Text(f"journal {found['journal']} of {found['label'] or '(no label)'}"))
    totals = Table(box=None, pad_edge=False, show_header=False)
    totals.add_column()
    totals.add_column(justify="right")
    totals.add_row("size in bytes", str(found["size_bytes"]))
    totals.add_row("tasks", str(sum(sum(counts.values()) for counts in found["tasks"].values())))
    totals.add_row("slaves", str(len(found["slaves"])))
    console.print(totals)
    if found["tasks"]:
        console.print()
        table = _table("tag", *_STATES.values(), right=tuple(_STATES.values()))
        for tag, counts in found["tasks"].items():
            table.add_row(Text(tag), *(str(counts.get(state, 0)) for state in _STATES))
        console.print(table)
    if found["slaves"]:
        console.print()
        for machine in found["slaves"]:
            console.print(Text(f"slave {machine}"))
    if not found["has_slave_code"]:
        console.print("it has no slave code: its tasks cannot be replayed")
    if found["problems"]:
        text = f"! {found['problems']} problems; see task_manager journal check"
        console.print(Text(text, style="yellow"))


# --- failures -------------------------------------------------------------------------------


def print_failures(found: Mapping[str, Any], *, verbose: bool) -> None:
    """Print what `TaskManager.failedTasks` gives; with `verbose` every story is whole."""
    console = _console()
    for task in found["failed"]:
        _print_failure(console, task, task["outcome"].replace("_", " "), verbose=verbose)
    for task in found["under_way"]:
        _print_failure(console, task, "under way", verbose=verbose)
    if found["forgotten"]:
        console.print(f"{found['forgotten']} older failures are not kept")
    if not found["failed"] and not found["under_way"]:
        console.print("no task has failed")
    for problem in found.get("problems", ()):
        console.print(Text(f"! {problem}", style="yellow"))


def _print_failure(console: Console, task: Mapping[str, Any], state: str, *, verbose: bool) -> None:
    console.print(Text(f"{task['task_id']}: {state}", style="bold"))
    for attempt in task["attempts"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt["at"]))
        outcome, story = attempt["outcome"], attempt["story"]
        head = f"  attempt {attempt['attempt']} on {attempt['where']}, {at}, "
        console.print(Text(head + outcome.replace("_", " ")))
        lines = story.rstrip().splitlines() if verbose else [headline(outcome, story)]
        for line in lines:
            console.print(Text(f"    {line}", style="dim"))

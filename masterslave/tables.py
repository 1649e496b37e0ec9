"""What the command line prints, as tables; colours only on a terminal (rich sees to that)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from masterslave.diagnosis import explain, situation
from masterslave.settings import format_duration

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


def print_status(status: Mapping[str, Any], *, verbose: bool) -> None:
    """Print what a task manager's `status` says: counts, and why nothing moves if so."""
    console = _console()
    totals = Table(box=None, pad_edge=False, show_header=False)
    totals.add_column()
    totals.add_column(justify="right")
    totals.add_column(style="dim")
    slaves, workers = len(status["slaves"]), status["workers"]
    masters = len(status["masters"])
    of_these = f"{masters} master, {slaves} slaves with {workers} workers"
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
        tags = "(starting)" if slave["tags"] is None else ", ".join(slave["tags"])
        cells = [str(slave[name]) for name in ("workers", "holds", "finished")]
        if limited:
            cells.append(format_duration(slave["left_s"]) if "left_s" in slave else "")
        table.add_row("slave", Text(slave["info"]), *cells, Text(tags))
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

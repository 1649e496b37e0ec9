"""What the command line prints, without a command line."""

from __future__ import annotations

import re

import pytest

from masterslave import tables


def test_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_labels([], verbose=True)
    assert capsys.readouterr().out == "no task managers are known to the name server\n"


def test_a_journal_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    status = {
        "label": "job", "active_processes": 0, "masters": [], "slaves": [], "workers": 0,
        "waiting": {}, "running": {}, "finished": {}, "client_waits": False, "failures": [],
        "delivered": 0, "journal_trouble": "journal /d/j cannot be written: [full] (make room)",
    }  # fmt: skip
    tables.print_status(status, verbose=False)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("!")]
    assert told == [
        "! requests wait, and results are not acknowledged: "
        "journal /d/j cannot be written: [full] (make room)"
    ]


def test_a_slave_whose_workers_start_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    slave = {"info": "PID 2 on node", "workers": 4, "tags": None, "holds": 0, "finished": 0}
    status = {
        "label": "job",
        "active_processes": 2,
        "masters": [{"info": "PID 1 on node"}],
        "slaves": [slave],
        "workers": 4,
        "waiting": {"a": 1},
        "running": {"b": 2},
        "finished": {"a": 3},
        "client_waits": True,
        "failures": [],
        "delivered": 0,
    }
    tables.print_status(status, verbose=True)
    out = capsys.readouterr().out
    assert re.search(r"^slave +PID 2 on node +4 +0 +0 +\(starting\)$", out, re.MULTILINE)
    assert re.search("^a +1 +0 +3$", out, re.MULTILINE)
    assert re.search("^b +0 +2 +0$", out, re.MULTILINE)
    assert "! 1 task waits, but no slave has its workers ready yet\n" in out

"""What is kept of a start."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from masterslave.errors import StartError
from masterslave.pairing import Note
from masterslave.runfolder import (
    Plan,
    RunFolder,
    SlaveNote,
    Submission,
    file_name,
    last_lines,
    note_here,
)

PLAN = Plan("job", "ms-job", "slurm", "here", 12.5, job={"directory": "/", "options": ["-x"]})
FIRST = Submission("ms-job-s0", "slave", "slurm", 2, 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.of("job", tmp_path)
    assert folder.create(PLAN)
    return folder


def test_what_was_written_is_read(folder: RunFolder) -> None:
    assert folder.plan() == PLAN
    later = Submission("ms-job-m", "manager", "local", 1, 2.0, ("7:8",))
    folder.write(later)
    folder.write(FIRST)
    assert folder.submissions() == [FIRST, later]
    folder.write(FIRST._replace(ids=("1_0", "1_1")))
    assert folder.submissions()[0].ids == ("1_0", "1_1")
    folder.forget(FIRST)
    folder.forget(FIRST)
    assert folder.submissions() == [later]


def test_all_is_for_the_owner_only(folder: RunFolder) -> None:
    folder.write(FIRST)
    folder.mark_stopping()
    note_here(str(folder.path), "ms-job-s0", "local")
    paths = [folder.path, *folder.path.rglob("*")]
    assert len(paths) == 8
    assert [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_of_two_starts_at_a_time_one_is_first(tmp_path: Path) -> None:
    barrier, won = threading.Barrier(8), []

    def create(number: int) -> None:
        barrier.wait()
        if RunFolder.of("job", tmp_path).create(PLAN._replace(name=str(number))):
            won.append(str(number))

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = RunFolder.of("job", tmp_path)
    assert won == [folder.plan().name]
    assert list(folder.path.parent.iterdir()) == [folder.path]


def test_it_is_stopping_when_it_is_told_to_or_has_gone(folder: RunFolder) -> None:
    assert not folder.is_stopping()
    folder.mark_stopping()
    folder.mark_stopping()
    assert folder.is_stopping()
    folder.remove()
    folder.remove()
    assert folder.is_stopping()
    assert not folder.exists()
    assert list(folder.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"label": "job"}',
        '{"version": 2}',
        '{"name": 1, "odd": 2}',
        '{"label": 3, "name": "n", "on": "local", "host": "h", "began_at": 1}',
        '{"label": "job", "name": "n", "on": "local", "host": "h", "began_at": "x"}',
        '{"label": "job", "name": "n", "on": "local", "host": "h", "began_at": 1, "job": []}',
    ],
    ids=range(10),
)
def test_a_record_that_cannot_be_used_is_named(folder: RunFolder, text: str) -> None:
    (folder.path / "start.json").write_text(text)
    with pytest.raises(StartError, match=r"start\.json: cannot be used: .*then delete"):
        folder.plan()


def test_a_record_that_has_gone_is_told_as_such(folder: RunFolder) -> None:
    folder.remove()
    with pytest.raises(StartError, match="the run has been stopped"):
        folder.plan()
    assert folder.submissions() == []
    assert folder.notes() == []


def test_labels_have_names_of_their_own() -> None:
    labels = ["a", "a/b", "a%2Fb", "a=2Fb", "..", ".", ".a", "%2Ea", "=2Ea", "ü", "a b", "a;b",
              "%j", "x" * 300, "x" * 301]  # fmt: skip
    names = [file_name(label) for label in labels]
    assert len(set(names)) == len(labels)
    assert all(re.fullmatch(r"[\w~=-][\w.~=-]{,199}", name, re.ASCII) for name in names)


def test_a_slave_keeps_its_note_up_to_date(folder: RunFolder) -> None:
    note = note_here(str(folder.path), "ms-job-s0", "local")
    (found,) = folder.notes()
    assert (found.job, found.pid, found.progress) == ("ms-job-s0", os.getpid(), "starting")
    assert found.job_id.startswith(f"{os.getpid()}:")
    note.tries(["a:1", "b:2"])
    note.failed_for_now("refused")
    assert folder.notes()[0].tries == ("a:1", "b:2")
    assert folder.notes()[0].error == "refused"
    note.registered()
    assert (folder.notes()[0].progress, folder.notes()[0].error) == ("registered", "")
    note.ended("bad")
    assert (folder.notes()[0].progress, folder.notes()[0].error) == ("failed", "bad")


def test_a_slave_where_the_folder_is_not_says_nothing_and_goes_on(tmp_path: Path) -> None:
    note = SlaveNote(RunFolder(tmp_path / "none"), Note("j", "1", "h", 1, "3", 1.0))
    note.registered()
    assert not note.is_unwanted()
    assert list(tmp_path.iterdir()) == []


def test_a_slave_is_unwanted_when_its_run_has_gone(folder: RunFolder) -> None:
    note = note_here(str(folder.path), "ms-job-s0", "local")
    assert not note.is_unwanted()
    folder.remove()
    assert note.is_unwanted()
    note.ended("")  # nowhere to say so


def test_the_last_words_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(str(log)) == ""
    log.write_bytes(b"x" * 99999 + b"\n1\n\n 2 \xff\n3\n4\n")
    assert last_lines(str(log), 2) == "3 | 4"


def test_files_are_replaced_as_a_whole(folder: RunFolder) -> None:
    before = folder.path / "start.json"
    inode = before.stat().st_ino
    folder.write(FIRST)
    path = folder.path / "jobs" / "ms-job-s0.json"
    inode = path.stat().st_ino
    folder.write(FIRST._replace(count=3))
    assert path.stat().st_ino != inode
    assert json.loads(path.read_text())["count"] == 3
    assert [one.name for one in path.parent.iterdir()] == ["ms-job-s0.json"]

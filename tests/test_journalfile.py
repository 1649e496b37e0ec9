"""A journal's file: which ones are opened, whose they are, who else may, and their versions."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import World, wait_until
from journals import (
    ENTRIES,
    KEY,
    expected,
    found,
    make,
    read,
    refused,
    requested,
)

from masterslave.errors import JournalError, JournalInUse
from masterslave.service import Service
from masterslave.settings import Settings
from masterslave.stores import journalfile, statements
from masterslave.stores.journalfile import APPLICATION_ID
from masterslave.stores.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


# --- what is opened -------------------------------------------------------------------------


def test_a_new_journal_is_its_owners_only_and_leaves_one_file(path: Path) -> None:
    store = SqliteStore(path, KEY)
    store.write(ENTRIES)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["journal"]
    assert read(path) == expected(ENTRIES)


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    make(path)
    assert read(path) == expected(ENTRIES)


def test_a_link_leads_to_the_journal(path: Path) -> None:
    make(path)
    link = path.with_name("link")
    link.symlink_to(path)
    assert read(link) == expected(ENTRIES)
    assert link.is_symlink()


@pytest.mark.parametrize("name", [":memory:", "a b", "caf\u00e9", "100%?mode=ro#x", "-n", "file:x"])
def test_any_name_is_a_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path(name))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert read(tmp_path / name) == expected(ENTRIES)


def test_a_journal_stays_where_it_is_when_the_program_changes_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("journal", KEY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    store.write(ENTRIES)
    store.close()
    assert read(tmp_path / "journal") == expected(ENTRIES)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"my thesis\n" * 1000,
        b"SQLite format 3\0",
        b"SQLite format 3\0" + bytes(83),
        b"\0" * 99,
    ],
)
def test_a_file_that_is_no_journal_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "is not a journal, or its beginning is damaged; name another file")


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("application_id", [0, APPLICATION_ID + 1])
def test_a_database_of_another_program_is_left_alone(
    path: Path, mode: str, application_id: int
) -> None:
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA journal_mode = {mode}")
    other.execute(f"PRAGMA application_id = {application_id}")
    other.execute("CREATE TABLE task (a)")
    other.commit()
    other.close()
    refused(path, "is a database of another program; name another file")


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    refused(path, "is not a regular file")


def test_a_pipe_is_refused_without_waiting_for_it(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(JournalError, match="is not a regular file"):
        SqliteStore(path, KEY)


def test_a_missing_folder_is_named(path: Path) -> None:
    refused(path.parent / "no" / "such" / "folder", "No such file or directory")


def test_a_journal_that_must_be_there_is_not_made(path: Path) -> None:
    with pytest.raises(JournalError, match="there is no such file"):
        SqliteStore(path, KEY, create=False)
    assert not path.exists()


def test_what_may_not_be_written_is_refused(
    path: Path, run_as_nobody: Callable[[Path, bool], str]
) -> None:
    make(path)
    path.parent.chmod(0o755)
    text = run_as_nobody(path, False)
    assert text.startswith("JournalError: journal ")
    assert text.endswith(": Permission denied")
    path.chmod(0o444)
    text = run_as_nobody(path, True)
    assert text.startswith(("JournalError: journal ", "JournalFull: journal "))
    assert text.endswith(("readonly database", "unable to open database file"))
    assert read(path) == expected(ENTRIES)


@pytest.fixture
def run_as_nobody(tmp_path: Path) -> Callable[[Path, bool], str]:
    """Opens a journal as a user who owns nothing here; gives the error."""

    def run(path: Path, readable: bool) -> str:
        # The directories above belong to this test's user alone, so the child gets there first.
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(path.parent)
                journalfile.os.path.abspath = os.fspath  # type: ignore[assignment]
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setresgid(65534, 65534, 65534)
                    os.setresuid(65534, 65534, 65534)
                else:
                    os.chmod(path, 0o444 if readable else 0)
                SqliteStore(path.name, KEY)
                text = "opened"
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
            os.write(writer, text.encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        with open(reader) as file:
            return file.read()

    return run


# --- whose it is ----------------------------------------------------------------------------


def test_a_journal_of_another_key_is_refused(path: Path) -> None:
    make(path, key=b"k" * 32)
    refused(path, "was signed with another key; name the key file")
    store = SqliteStore(path, b"k" * 32)
    assert found(store) == expected(ENTRIES)
    store.close()


def test_a_journal_of_a_newer_version_is_refused(path: Path) -> None:
    make(path)
    set_version(path, 9)
    refused(path, r"newer masterslave \(version 9 of the file, this one knows 4\)")


def test_a_journal_of_another_label_is_refused(path: Path, world: World) -> None:
    settings = Settings.from_environment()
    Service("one", settings, use_name_server=False, journal=path).stop()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="is that of label 'one', not of 'two'; name another"):
        Service("two", settings, use_name_server=False, journal=path)
    assert path.read_bytes() == before
    Service("one", settings, use_name_server=False, journal=path).stop()


def set_version(path: Path, version: int) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()


# --- who has it open ------------------------------------------------------------------------

HOLDER = """
    import sys, time
    from journals import KEY, requested
    from masterslave.stores.sqlite import SqliteStore
    from masterslave.errors import JournalInUse
    try:
        store = SqliteStore("journal", KEY)
    except JournalInUse as error:
        sys.exit(f"in use: {error}")
    store.write([requested(number) for number in range(3)])
    print("open", flush=True)
    time.sleep(1000)
"""


def test_two_processes_never_have_it_and_a_killed_one_gives_it_up(world: World) -> None:
    path = world.path / "journal"
    world.env["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)
    holder = world.script(HOLDER)
    wait_until(lambda: holder.out or holder.poll() is not None)
    for _ in range(2):
        refused(path, "another process has it open")
    second = world.script(HOLDER, name="second.py")
    second.finish(1)
    assert second.err.startswith("in use: journal ")
    assert "another process has it open" in second.err
    holder.kill()
    holder.wait()
    assert path.with_name("journal-wal").exists()
    kept = read(path)
    assert [task.number for task in kept.tasks] == [0, 1, 2]
    assert not path.with_name("journal-wal").exists()


def test_of_many_that_open_it_at_once_only_one_has_it(world: World) -> None:
    world.env["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)
    make(world.path / "journal", [])
    script = world.write("holder.py", HOLDER)
    holders = [world.start(script) for _ in range(4)]
    wait_until(lambda: all(h.out or h.poll() is not None for h in holders))
    assert sum("open" in h.out for h in holders) == 1, [h.err for h in holders]


def test_this_process_has_it_once_and_a_second_try_does_not_free_it(world: World) -> None:
    """The system frees all of a process's locks on a file as soon as it closes any part of it."""
    path = world.path / "journal"
    world.env["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)
    store = SqliteStore(path, KEY)
    with pytest.raises(JournalInUse, match="open"):
        SqliteStore(path, KEY)
    link = world.path / "link"
    link.symlink_to(path)
    with pytest.raises(JournalInUse, match="open"):
        SqliteStore(link, KEY)
    other = world.script(HOLDER)
    other.finish(1)
    assert other.err.startswith("in use: ")
    store.write(ENTRIES)
    store.close()
    assert read(path) == expected(ENTRIES)


# --- versions -------------------------------------------------------------------------------


@pytest.fixture
def version_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A masterslave whose journals have one table more."""
    folder = tmp_path / "sql"
    shutil.copytree(statements.SQL, folder)
    (folder / "005-colours.sql").write_text(
        "-- A second version; the semicolon in this comment; does not matter.\n"
        "CREATE TABLE colour (name TEXT PRIMARY KEY);\n"
        "INSERT INTO colour VALUES ('red'), ('green');\n"
        "ALTER TABLE task ADD COLUMN colour TEXT REFERENCES colour;\n"
    )
    real = journalfile.migrations
    assert len(real()) == 4
    monkeypatch.setattr(journalfile, "migrations", lambda: real(folder))


def version(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[60:64], "big")


def test_an_older_journal_is_brought_up_to_date(path: Path, request: pytest.FixtureRequest) -> None:
    make(path)
    assert version(path) == 4
    request.getfixturevalue("version_two")
    assert read(path) == expected(ENTRIES)
    assert version(path) == 5
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM colour").fetchone() == (2,)
    db.close()
    make(path, [requested(7)])  # opened once more, and written to
    assert [task.number for task in read(path).tasks] == [0, 1, 7]


def test_a_new_journal_is_of_the_newest_version(path: Path, version_two: None) -> None:
    make(path)
    assert version(path) == 5
    assert read(path) == expected(ENTRIES)


def test_an_older_journal_of_another_key_is_not_changed(
    path: Path, request: pytest.FixtureRequest
) -> None:
    make(path, key=b"k" * 32)
    request.getfixturevalue("version_two")
    refused(path, "another key")


def test_a_migration_that_fails_changes_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(path)
    scripts = [*journalfile.migrations(), "CREATE TABLE colour (name TEXT); CREATE TABLE task (a);"]
    with monkeypatch.context() as context:
        context.setattr(journalfile, "migrations", lambda: scripts)
        refused(path, "already exists")
    assert version(path) == 4
    assert read(path) == expected(ENTRIES)

"""The SQLite store: which files it opens, who else may, and what becomes of damaged ones."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import World, wait_until
from journals import INFO, KEY, Kept, ended, expected, found, requested, setback

from masterslave.entries import (
    Cancelled,
    Entry,
    Forgotten,
    HandedOut,
    Joined,
    Left,
    Requests,
    Results,
    Written,
)
from masterslave.errors import JournalDamaged, JournalError, JournalInUse
from masterslave.records import TaskOptions
from masterslave.service import Service
from masterslave.settings import Settings
from masterslave.stores import sqlite, statements
from masterslave.stores.sqlite import APPLICATION_ID, SqliteStore

ENTRIES: list[Entry] = [
    Joined(1, INFO),
    requested(0),
    requested(1),
    HandedOut(1, ((0, 1), (1, 1))),
    setback(1),
    ended(0),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def make(path: Path, entries: Sequence[Written] = ENTRIES, key: bytes = KEY) -> None:
    store = SqliteStore(path, key)
    store.write(entries)
    store.close()


def read(path: Path) -> Kept:
    store = SqliteStore(path, KEY)
    try:
        return found(store)
    finally:
        store.close()


def refused(path: Path, match: str, key: bytes = KEY) -> JournalError:
    """Opening it fails, in one line that names it, and changes nothing."""
    before = files(path.parent)
    with pytest.raises(JournalError, match=match) as caught:
        SqliteStore(path, key)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(path.parent) == before
    return caught.value


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}


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
                sqlite.os.path.abspath = os.fspath  # type: ignore[assignment]
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


# --- writing --------------------------------------------------------------------------------


def test_a_group_is_kept_as_a_whole_or_not_at_all(path: Path) -> None:
    make(path, [requested(0)])
    store = SqliteStore(path, KEY)
    with pytest.raises(JournalError):
        store.write([requested(1), Joined(5, INFO), requested(0), requested(2)])
    store.write([requested(3)])
    store.close()
    kept = read(path)
    assert [task.number for task in kept.tasks] == [0, 3]
    assert kept.processes == {}


def test_a_task_ends_once(path: Path) -> None:
    make(path)
    store = SqliteStore(path, KEY)
    with pytest.raises(JournalError):
        store.write([ended(0, frame=[b"another result"])])
    assert store.result(0) == ended(0).frame
    store.close()


def test_a_duration_that_is_no_number_does_not_stop_the_journal(path: Path) -> None:
    make(path, [requested(0), ended(0)._replace(duration_s=math.nan)])
    assert read(path).ends == {0: ended(0)._replace(duration_s=0.0)}


def test_what_was_written_survives_any_end_of_the_process(path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        store = SqliteStore(path, KEY)
        store.write(ENTRIES)
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.with_name("journal-wal").exists()
    assert read(path) == expected(ENTRIES)


def test_the_file_does_not_grow_with_what_was_cancelled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PIECE_BYTES", 1 << 12)
    store = SqliteStore(path, KEY)
    sizes = []
    for number in range(20):
        store.write([requested(number, frame=[bytes(1 << 16)])])
        store.write([Cancelled(number)])
        sizes.append(store._db.execute("PRAGMA page_count").fetchone()[0])
    store.close()
    assert sizes[-1] == sizes[1]


def test_the_file_does_not_grow_with_what_was_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(sqlite, "KEPT_ROWS", 4)
    store = SqliteStore(path, KEY)
    tables = ("task", "ending", "piece", "setback", "hand_out", "former_process", "forgotten")
    rows, sizes = [], []
    for number in range(60):
        frame = [bytes(1 << 16)]
        store.write([requested(number, frame=frame), Joined(1, INFO), setback(number)])
        store.write([HandedOut(1, ((number, 1),)), ended(number, frame=frame), Left(1)])
        store.write([Forgotten(number, False)])
        counts = [store._db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables]
        rows.append([count for (count,) in counts])
        sizes.append(store._db.execute("PRAGMA page_count").fetchone()[0])
    store.close()
    assert [max(column) for column in zip(*rows, strict=True)] == [0, 0, 0, 0, 3, 6, 0]
    assert max(sizes[20:]) == max(sizes[:20])


def test_hand_outs_of_what_is_left_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "KEPT_ROWS", 4)
    store = SqliteStore(path, KEY)
    store.write([requested(number) for number in range(40)])
    for number in range(0, 40, 2):
        store.write([HandedOut(1, ((number, 1), (number + 1, 1)))])
        store.write([Cancelled(number), Cancelled(number + 1)] if number % 8 else [])
        store.write([Forgotten(number, False)])
    kept = found(store)
    store.close()
    assert kept == read(path)
    assert kept.attempts == [HandedOut(1, ((n, 1), (n + 1, 1))) for n in range(0, 40, 8)]


def test_a_finished_task_may_be_forgotten_to_run_again(path: Path) -> None:
    make(path, [*ENTRIES, setback(0), ended(1)])
    store = SqliteStore(path, KEY)
    store.forget_ending(0)
    kept = found(store)
    assert list(kept.ends) == [1]
    assert kept.attempts == [HandedOut(1, ((0, 1), (1, 1))), setback(1)]
    assert store.parameters(0) == requested(0).frame
    store.write([ended(0, 2)])
    assert found(store).ends[0] == ended(0, 2)
    store.close()


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
    real = sqlite.migrations
    assert len(real()) == 4
    monkeypatch.setattr(sqlite, "migrations", lambda: real(folder))


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
    scripts = [*sqlite.migrations(), "CREATE TABLE colour (name TEXT); CREATE TABLE task (a);"]
    with monkeypatch.context() as context:
        context.setattr(sqlite, "migrations", lambda: scripts)
        refused(path, "already exists")
    assert version(path) == 4
    assert read(path) == expected(ENTRIES)


# --- damage ---------------------------------------------------------------------------------


class Original:
    """A journal with everything in it: one closed in order, and one whose master was killed."""

    def __init__(self, folder: Path) -> None:
        self.entries: list[Written] = []
        noise = random.Random(1)
        store = SqliteStore(folder / "open", KEY)
        store.set_note("label", "job")
        for number in range(24):
            large = 4 if number % 5 == 0 else 1  # in pieces
            frame = [b"ascii text " * 150 * large, noise.randbytes(30 * large)]
            tiny = [noise.randbytes(40) for _ in range(20)]
            ends = [(100 * number + 100 + i, 1, 0.5, data) for i, data in enumerate(tiny[::2])]
            group: list[Written] = [
                requested(number, frame=frame),
                Requests(100 * number + 100, "tiny", TaskOptions(), tiny),
                Results(1, 1.5e9, ends),
                Joined(number, INFO._replace(pid=number)),
                HandedOut(number, ((number, 1),)),
                setback(number, story=f"story {number}"),
                HandedOut(number, ((number, 2),)),
            ]
            if number % 2:
                group.append(ended(number, 2, frame=[b"r" * (20 if number % 3 else 4000)]))
            self.entries += group
            store.write(group)
            if number == 12:
                store.close()
                store = SqliteStore(folder / "open", KEY)
        self.open = (folder / "open").read_bytes()
        self.wal = (folder / "open-wal").read_bytes()
        store.close()
        self.closed = (folder / "open").read_bytes()
        kept = expected(self.entries)
        self.written = {repr(entry) for entry in self.all_of(kept)}

    @staticmethod
    def all_of(kept: Kept) -> list[Entry]:
        return [*kept.processes.values(), *kept.tasks, *kept.attempts, *kept.ends.values()]


def damage(data: bytes, chance: random.Random) -> bytes:
    """The bytes, damaged in one of the ways in which disks, cables and people do it."""
    broken = bytearray(data)
    at = chance.randrange(len(data))
    if chance.random() < 0.5:  # most of the structure is at the beginnings of pages
        at = min(len(data) - 1, at // 4096 * 4096 + chance.randrange(200))
    how = chance.choice(["bit", "byte", "bytes", "sector", "cut", "swap"])
    if how == "bit":
        broken[at] ^= 1 << chance.randrange(8)
    elif how == "byte":
        broken[at] = chance.randrange(256)
    elif how == "bytes":
        size = len(broken[at : at + chance.randrange(1, 600)])
        broken[at : at + size] = chance.randbytes(size)
    elif how == "sector":
        begin = at // 512 * 512
        broken[begin : begin + 512] = bytes(len(broken[begin : begin + 512]))
    elif how == "cut":
        del broken[at:]
    else:
        one, other = (chance.randrange(len(data) // 4096) * 4096 for _ in range(2))
        broken[one : one + 4096] = data[other : other + 4096]
        broken[other : other + 4096] = data[one : one + 4096]
    return bytes(broken)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "PIECE_BYTES", 3000)
        return Original(tmp_path_factory.mktemp("original"))


@pytest.mark.parametrize("part", ["closed", "open", "wal"])
def test_a_damaged_journal_gives_an_error_or_what_was_written(
    original: Original, part: str, path: Path
) -> None:
    outcomes = set()
    for seed in range(70):
        chance = random.Random(f"{part} {seed}")
        for file in path.parent.iterdir():
            file.unlink()
        path.write_bytes(original.closed if part == "closed" else original.open)
        if part != "closed":
            path.with_name("journal-wal").write_bytes(original.wal)
        place = path if part != "wal" else path.with_name("journal-wal")
        place.write_bytes(damage(place.read_bytes(), chance))
        try:
            store = SqliteStore(path, KEY)
        except JournalError as error:
            assert str(path) in str(error), seed
            outcomes.add("refused")
            continue
        try:
            read_all(store, original, outcomes)
            problems: list[str] = []
            for entry in store.readable(problems):
                if hasattr(entry, "frame"):
                    entry = entry._replace(frame=[*map(bytes, entry.frame)])
                assert repr(entry) in original.written, seed
            if "unreadable" in outcomes:
                assert problems
            outcomes.discard("unreadable")
        finally:
            store.close()
    assert outcomes >= ({"fewer"} if part == "wal" else {"refused", "all"})


def read_all(store: SqliteStore, original: Original, outcomes: set[str]) -> None:
    try:
        label = store.note("label")
        kept = found(store)
    except JournalDamaged as error:
        assert "is damaged: " in str(error)
        outcomes.add("unreadable")
        return
    assert label == "job"
    got = {repr(entry) for entry in original.all_of(kept)}
    assert got <= original.written
    outcomes.add("all" if got == original.written else "fewer")


def test_every_value_is_signed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes a value of any row, the database being sound, is found out."""
    monkeypatch.setattr(sqlite, "PIECE_BYTES", 100)
    entries: list[Written] = [
        *ENTRIES,
        requested(2, frame=[b"a" * 150, b"b" * 150]),
        ended(2),
        ended(1),
    ]
    entries += [
        Requests(3, "tiny", TaskOptions(), [b"x", b"y", b"z"]),
        Results(1, 1.5, [(3, 1, 0.5, b"r")]),
    ]
    entries.append(Cancelled(5))
    make(path, entries)
    whole = path.read_bytes()
    written = {repr(entry) for entry in Original.all_of(expected(entries))}
    keys = {
        "note": "name", "task": "number", "process": "id", "hand_out": "seq", "setback": "seq",
        "ending": "number", "piece": "number", "page": "seq", "struck": "seq",
    }  # fmt: skip
    tried = set()
    for table, key in keys.items():
        with contextlib.closing(sqlite3.connect(path)) as db:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        for column, value in itertools.product(columns, ("x", b"y", -7, 12345678, 2.5, None)):
            path.write_bytes(whole)
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA synchronous = OFF")
                if (table, column, value) == ("task", "parameters", None):
                    continue  # is so already: it is in pieces
                where = f"WHERE {key} = (SELECT max({key}) FROM {table})"
                try:
                    assert db.execute(f"UPDATE {table} SET {column} = ? {where}", (value,)).rowcount
                    db.commit()
                except sqlite3.IntegrityError:
                    continue  # the table itself does not take such a value
            tried.add((table, column))
            with contextlib.suppress(JournalError):
                got = {repr(entry) for entry in Original.all_of(read(path))}
                assert got <= written, (table, column, value)
                # Its order among the pieces is all that counts of a piece's numbers.
                assert got < written or table in ("note", "piece"), (table, column, value)
    assert len(tried) > 38

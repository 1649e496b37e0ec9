"""What the shared folder is made of: names, signed files, pauses, operations on files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from masterslave.folder import bundles, names, seal
from masterslave.folder.absence import Vanished
from masterslave.folder.enrolled import Crew, Enrolled
from masterslave.folder.files import Files, Stamp
from masterslave.folder.holders import Holders
from masterslave.folder.measure import Measure
from masterslave.folder.pauses import SETTLED_S, Pause, Watch
from masterslave.folder.place import Place
from masterslave.pace import Pace
from masterslave.records import Assignment

KEY = b"k" * 32


@pytest.mark.parametrize("tag", ["square", "a.b/c d", "é", "x" * 300, "with_under_2.3", "lock-"])
@pytest.mark.parametrize("count", [1, 32])
@pytest.mark.parametrize("priority", [0, 5, -(2**63)])
def test_what_a_name_says_is_read_again(tag: str, count: int, priority: int) -> None:
    bundle = names.bundle_name(f"{tag}_17", tag, 2, count, priority)
    owner = names.owner_name("node-3.site.org", 4711)
    for end, kind, whose in (
        ("in", "in", ""), ("out", "out", ""),
        (f"lock-{owner}", "lock", owner), (f"part12-{owner}", "part", owner),
    ):  # fmt: skip
        name = f"{bundle}.{end}"
        assert len(name.encode()) < 255
        assert names.parse(name) == (bundle, names.tag_text(tag), kind, whose, priority, 17, count)


def test_names_are_for_people() -> None:
    assert names.bundle_name("square_17", "square", 1, 1) == "square_17.1"
    assert names.bundle_name("square_17", "square", 1, 32) == "square_17.1+31"
    assert names.bundle_name("square_17", "square", 1, 1, 5) == "square_17.1p5"
    assert names.owner_name("node3", 4711) == "node3-4711"


@pytest.mark.parametrize(
    "name", ["notes.txt", "square.in", "square_1.1", "a/b_1.1.in", ".x_1.1.in"]
)
def test_foreign_names_say_nothing(name: str) -> None:
    assert names.parse(name) is None


def write(path: Path, name: str = "a.out", key: bytes = KEY) -> bytes:
    frames = [[b"small", memoryview(b"L" * 100_000)], [b""], []]
    content = b"".join(seal.pack(key, name, {"x": [1, "two", b"3"]}, frames))
    path.write_bytes(content)
    return content


def read(path: Path, name: str = "a.out") -> object:
    head, frames = seal.read(KEY, name, os.open(path, os.O_RDONLY))
    return head, [[bytes(piece) for piece in frame] for frame in frames]


def test_a_sealed_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "f")
    expected = {"x": [1, "two", b"3"]}, [[b"small", b"L" * 100_000], [b""], []]
    assert read(tmp_path / "f") == expected


def test_a_file_under_another_name_or_with_another_key_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "f")
    with pytest.raises(seal.Refused, match="another name"):
        read(tmp_path / "f", "b.out")
    write(tmp_path / "f", key=b"o" * 32)
    with pytest.raises(seal.Refused, match="another key"):
        read(tmp_path / "f")


def test_every_changed_or_missing_byte_is_noticed(tmp_path: Path) -> None:
    content = write(tmp_path / "f")
    for at in [*range(0, 200), 5000, len(content) - 1]:
        (tmp_path / "f").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(seal.Refused):
            read(tmp_path / "f")
        (tmp_path / "f").write_bytes(content[:at])
        with pytest.raises(seal.Refused):
            read(tmp_path / "f")
    (tmp_path / "f").write_bytes(content + b"x")
    with pytest.raises(seal.Refused, match="longer"):
        read(tmp_path / "f")


def test_a_directory_is_listed_when_its_time_changes_and_once_more_when_that_was_recent() -> None:
    watch, stamp = Watch(), Stamp(1, 123)
    assert watch.must_list(stamp, 0.0)
    watch.listed(stamp, 0.0)
    assert not watch.must_list(stamp, SETTLED_S / 2)
    assert watch.must_list(stamp, SETTLED_S)  # what happened in the same tick as the listing
    watch.listed(stamp, SETTLED_S)
    assert not watch.must_list(stamp, 100.0)
    assert watch.must_list(Stamp(1, 124), 100.0)
    assert not watch.must_list(None, 100.0)


def test_a_pause_grows_to_its_limit_and_begins_again() -> None:
    pause = Pause(0.01, 0.08, 0.5, late_at_s=60)
    pauses = [pause.next_s(0.0) for _ in range(20)]
    assert pauses[0] <= 0.01
    assert max(pauses) <= 0.08
    assert pauses[-1] > 0.06
    assert max(pause.next_s(61.0) for _ in range(20)) > 0.3
    pause.reset()
    assert pause.next_s(62.0) <= 0.01


def test_only_one_gets_a_file_that_several_move(tmp_path: Path) -> None:
    files = Files(str(tmp_path), "me")
    (tmp_path / "x.in").write_text("")
    got = [files.move(str(tmp_path / "x.in"), str(tmp_path / f"x.lock{i}")) for i in range(3)]
    assert got == [True, False, False]


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(str(tmp_path), "me")

    def full(kind: str, path: str) -> None:
        if kind == "sync":
            raise OSError(28, "No space left on device")

    def writev(descriptor: int, buffers: object) -> int:
        raise OSError(28, "No space left on device")

    files.before = full  # only what takes several calls is synced by one of its own
    with pytest.raises(OSError, match="No space"):
        files.replace(str(tmp_path / "f"), [b"x"] * 2000)
    with monkeypatch.context() as patched:
        patched.setattr(os, "writev", writev)
        with pytest.raises(OSError, match="No space"):
            files.replace(str(tmp_path / "f"), [b"x"])
    assert list(tmp_path.iterdir()) == []
    files.before = lambda kind, path: None
    files.create(str(tmp_path / "f"), [b"x", b"", memoryview(b"yz")])
    assert (tmp_path / "f").read_bytes() == b"xyz"
    with pytest.raises(FileExistsError):
        files.create(str(tmp_path / "f"), [b"other"])
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("count", [1, 512, 513, 2000])
def test_all_is_synced_by_the_call_that_writes_it_or_by_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    files, synced = Files(str(tmp_path), "me"), []
    opened, fsync = os.open, os.fsync

    def note_open(path: str, flags: int, *more: int) -> int:
        synced.append(bool(flags & os.O_SYNC))
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(True), fsync(descriptor)))
    files.replace(str(tmp_path / "f"), [b"x"] * count)
    assert (tmp_path / "f").read_bytes() == b"x" * count
    assert any(synced)
    assert files.counts == {"create": 1, "rename": 1} | ({"sync": 1} if count > 512 else {})


def test_bundles_hold_four_seconds_of_work_and_less_towards_the_end() -> None:
    assert bundles.bundle_size(None, 1000, 1) == 1  # nobody knows yet
    assert bundles.bundle_size(0.1, 1000, 1) == 40
    assert bundles.bundle_size(0.0, 10_000, 1) == bundles.BUNDLE_TASKS
    assert bundles.bundle_size(1.05, 1000, 1) == 4  # tasks of a second take a little longer
    assert bundles.bundle_size(1.05, 1000, 8, at_once=4) == 16 - 1
    assert bundles.bundle_size(0.01, 48, 8, at_once=4) == 12  # three for each worker
    assert bundles.bundle_size(1.05, 16, 8, at_once=4) == 1
    assert bundles.bundle_size(3600.0, 1000, 8, at_once=4) == 1
    assert bundles.bundle_size(0.001, 100, 50) == 1  # each worker gets some
    assert bundles.bundle_size(0.001, 100, 0) == 50


def test_two_tasks_of_some_seconds_share_a_file_when_many_wait() -> None:
    assert bundles.bundle_size(bundles.PAIR_S, 1000, 8) == 2
    assert bundles.bundle_size(bundles.PAIR_S, 1000, 8, at_once=4) == 8
    assert bundles.bundle_size(bundles.PAIR_S, 16, 8) == 1
    assert bundles.bundle_size(1.1 * bundles.PAIR_S, 1000, 8) == 1


def test_a_result_waits_for_as_long_as_the_next_task_of_its_bundle_takes() -> None:
    assert bundles.flush_s(None) == bundles.flush_s(1.0) == bundles.FLUSH_S
    assert 3.0 < bundles.flush_s(3.0) < 4.0
    assert bundles.flush_s(3600.0) == bundles.flush_s(bundles.PAIR_S)


def test_what_takes_far_longer_than_usual_is_overdue() -> None:
    assert not bundles.is_overdue(1000.0, None)  # nobody knows
    assert not bundles.is_overdue(1.5, 0.001)
    assert not bundles.is_overdue(10.0, 5.0)
    assert bundles.is_overdue(4.1, 1.0)


def test_orders_are_looked_for_less_often_when_tasks_are_longer() -> None:
    assert bundles.orders_at_work_s(0.0) == bundles.orders_at_work_s(0.5) == 2.0
    assert bundles.orders_at_work_s(1.0) == 4.0
    assert bundles.orders_at_work_s(4.0) == bundles.ORDERS_MOST_S
    assert bundles.orders_at_work_s(3600.0) == bundles.ORDERS_LONG_S


def test_the_end_of_what_takes_long_may_be_noticed_late() -> None:
    assert bundles.unhurried_s(None, 1) == bundles.unhurried_s(None, 0) == 0.0
    assert bundles.unhurried_s(0.001, 1) <= 0.001
    assert bundles.unhurried_s(3600.0, 1) == bundles.LOOK_S < 0.1
    assert bundles.unhurried_s(1.0, 2) > bundles.LOOK_S
    assert bundles.unhurried_s(0.1, 0) < 0.1  # its lock is seen before its output
    assert bundles.unhurried_s(3600.0, 0) == bundles.LOOK_AT_BUNDLES_S


def test_it_may_be_noticed_later_while_many_more_tasks_wait() -> None:
    amid_many_s = bundles.unhurried_amid_many_s
    assert amid_many_s(None, 1, 1, 0.0) == 0.0
    assert amid_many_s(1.0, 4, 2, 2.2) == pytest.approx(0.4)  # it is due
    assert 0.4 < amid_many_s(1.0, 4, 4, 0.0) < 1.0  # it is not
    assert amid_many_s(1.0, 4, 4, 2.0) == pytest.approx(0.4)
    assert amid_many_s(0.00002, 256, 256, 0.0) < 0.002
    assert amid_many_s(3600.0, 1, 1, 0.0) == bundles.LOOK_BEFORE_S
    assert amid_many_s(3600.0, 1, 1, 3600.0) == bundles.LOOK_AT_MANY_S


def test_results_are_due_when_the_bundle_ends_or_those_that_are_there_are_written() -> None:
    assert bundles.due_s(1.0, 4) == 1.0 + bundles.FLUSH_S
    assert bundles.due_s(1.0, 2) == 2.0
    assert bundles.due_s(3.0, 2) == 6.0


def task(number: int, tag: str = "a") -> Assignment:
    return Assignment(f"{tag}_{number}", tag, 1, [], None)


def crew(**workers: int) -> Crew:
    made = Crew()
    for owner, count in workers.items():
        head: dict[str, Any] = {"who": [["", "", ""], 1, ""], "period_s": 1.0, "tags": ["a"]}
        made[owner] = Enrolled({**head, "info": [0, 0, 0, count], "registration": ""})
    return made


def test_who_has_which_bundle_by_which_lock() -> None:
    holders = Holders()
    holders.take("a_1.1", "x", "tasks/a_1.1.lock-x", 1.0)
    holders.take("a_2.1", "x", "tasks/a_2.1.lock-x", 1.0)
    holders.take("a_3.1", "y", "tasks/a_3.1.lock-y", 2.0)
    assert len(holders) == 3
    assert "a_2.1" in holders
    assert holders.owner("a_2.1") == "x"
    assert holders.of("x") == ["a_1.1", "a_2.1"]
    assert holders.locks_of("y") == {"tasks/a_3.1.lock-y": "a_3.1"}
    holders.take("a_1.1", "y", "tasks/a_1.1.lock-y", 2.0)  # freed, and taken by another one
    assert holders.of("x") == ["a_2.1"]
    assert holders.since_s("a_2.1", 5.0) == 4.0
    holders.heard("a_2.1", 4.0)
    assert holders.since_s("a_2.1", 5.0) == 1.0
    assert holders.since_s("a_9.1", 5.0) == 0.0
    assert holders.release("a_1.1") == "y"
    assert holders.release("a_1.1") == ""
    assert holders.release("a_2.1") == "x"
    assert holders.of("x") == []
    assert holders.owner("a_2.1") == ""
    assert len(holders) == 1


def test_the_master_looks_seldom_while_slaves_lack_nothing() -> None:
    pace, holders = Pace(), Holders()
    measure = Measure(pace, crew(x=1, y=2))
    assert measure.pause_s({}, holders, {}, 0.0) == 0.0
    pace.record("a", 1.0)
    lying: dict[str, dict[tuple[str, int], Assignment]] = {
        f"a_{n}.1": {(f"a_{n}", 1): task(n)} for n in range(3)
    }
    holders.take("a_0.1", "x", "", 0.0)
    assert measure.pause_s(lying, holders, {"a": 100}, 9.0) == pytest.approx(0.4)
    assert measure.pause_s(lying, holders, {"b": 100}, 9.0) == bundles.LOOK_S
    holders.heard("a_0.1", 9.0)
    assert measure.pause_s(lying, holders, {"a": 100}, 9.0) == pytest.approx(0.4)
    assert measure.is_calm(lying, holders, {"a": 100})
    assert not measure.is_calm(lying, holders, {"b": 1})  # who comes may handle that
    assert measure.idle_workers(lying, holders) == 2
    for n in (1, 2):
        holders.take(f"a_{n}.1", "y", "", 0.0)
    assert not measure.is_calm(lying, holders, {"a": 100})  # who comes finds nothing
    assert measure.idle_workers(lying, holders) == 0
    assert measure.missing(["a", "b"], {"a": 30}) == {"a": 2, "b": 8}


def test_a_bundle_of_which_no_file_is_seen_for_long_has_vanished() -> None:
    vanished = Vanished()
    assert vanished.look(["a", "b"], {"a", "b"}, 0.0) == []
    assert not vanished.must_look(0.0)
    assert vanished.look(["a", "b"], {"b"}, 1.0) == []
    assert [vanished.must_look(now) for now in (1.0, 1.1, 1.5, 2.1)] == [True, False, False, True]
    assert vanished.look(["a", "b"], {"a"}, 5.0) == []  # it was only late
    assert vanished.look(["a", "b"], {"a"}, 10.5) == ["b"]
    vanished.forget("b")
    assert not vanished.must_look(20.0)


def test_a_lock_that_its_living_slave_does_not_renew_is_stale(tmp_path: Path) -> None:
    place = Place(tmp_path / "shared", KEY, make=True)
    paths = [tmp_path / name for name in ("renewed", "forgotten")]
    for path in paths:
        path.touch()
    slave, locks = crew(x=1)["x"], [str(path) for path in paths]
    for second in range(20):
        os.utime(paths[0], ns=(0, second))
        stale = slave.stale_lock(place, locks, float(second))
        assert stale in (("",) if second < 5 else ("", locks[1]))
    assert stale or slave.stale_lock(place, locks, 20.0)
    assert slave.stale_lock(place, [], 30.0) == ""
    paths[1].unlink()  # its output has just been written
    assert {slave.stale_lock(place, locks, 40.0) for _ in range(2)} == {""}


@pytest.mark.parametrize("workers", [0, 1, 50, 100_000])
@pytest.mark.parametrize("tags", [0, 1, 20, 5000])
def test_what_lies_in_the_folder_is_bounded(workers: int, tags: int) -> None:
    ahead = bundles.bundles_ahead(workers, tags)
    assert ahead >= 1
    assert ahead * min(tags, bundles.MOST) <= bundles.MOST
    if workers <= 50 and tags == 1:
        assert ahead == max(bundles.AT_LEAST, bundles.AHEAD * workers)


def test_a_bundle_has_one_tag_and_one_priority_and_the_most_urgent_comes_first() -> None:
    tasks = [
        Assignment(f"{tag}_{n}", tag, 1, [], None)
        for n, tag in enumerate(["a", "b", "a", "a", "b", "a"])
    ]
    sizes = {"a": 2, "b": 10}  # however many are left
    made = bundles.split(tasks, {"a_3": 7, "b_4": -1}, lambda tag, count: sizes[tag])
    assert [(priority, [task.task_id for task in line]) for priority, line in made] == [
        (7, ["a_3"]),
        (0, ["a_0", "a_2"]),
        (0, ["a_5"]),
        (0, ["b_1"]),
        (-1, ["b_4"]),
    ]


def test_bundles_get_smaller_as_fewer_tasks_are_left() -> None:
    tasks = [Assignment(f"a_{n}", "a", 1, [], None) for n in range(40)]
    made = bundles.split(tasks, {}, lambda tag, left: bundles.bundle_size(0.1, left, 2))
    sizes = [len(line) for _, line in made]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 10  # a quarter for each worker
    assert sizes[-3:] == [1, 1, 1]

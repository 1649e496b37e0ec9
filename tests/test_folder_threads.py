"""What several threads of a master or a slave do in a shared folder at the same moment."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from masterslave.folder.clerk import Clerk
from masterslave.folder.session import Session, _Bundle
from masterslave.records import Completion

Key = tuple[str, int]
FIRST, LAST = ("t_1", 1), ("t_2", 1)


def ended(key: Key) -> Completion:
    return Completion(*key, "result", [b"r"], 0.1, "")


class Files:
    """A place in a folder, which notes what is written there."""

    owner = "slave"

    def __init__(self) -> None:
        self.written: list[tuple[str, list[str]]] = []
        self.files = self

    def pack(self, name: str, head: dict[str, Any], frames: list[Any]) -> Any:
        return name, [done[0] for done in head["done"]]

    def finish(self, lock: str, end: str, pieces: Any) -> None:
        self.written.append(pieces)

    def replace(self, path: str, pieces: Any) -> None:
        self.written.append(pieces)


def test_what_ends_while_results_are_written_is_in_the_next_file() -> None:
    """The last task of a bundle does, so the bundle is complete by then and was not before."""
    place = Files()
    session = object.__new__(Session)
    session._place, session._cond, session._parts = place, threading.Condition(), 0  # type: ignore[assignment]

    class Pending(set[Key]):
        """Of which the last ends, in another thread, whenever it is asked whether there are any."""

        def __len__(self) -> int:
            other = threading.Thread(target=self.end_if_it_can_be)
            other.start()
            other.join()
            return super().__len__()

        def end_if_it_can_be(self) -> None:
            if session._cond.acquire(blocking=False):
                if LAST in self:
                    bundle.done.append(ended(LAST))
                    self.discard(LAST)
                session._cond.release()

    bundle = _Bundle("bundle", "t", "tasks/lock", Pending((LAST,)))
    bundle.done.append(ended(FIRST))
    assert session._write_out(bundle)
    assert not bundle.pending, "it has ended by now"
    assert session._write_out(bundle)
    assert [ids for _, ids in place.written if ids] == [["t_1"], ["t_2"]]
    assert place.written[-1][0] == "bundle.out"


@pytest.fixture
def clerk() -> Clerk:
    """One without threads and folder."""
    clerk = object.__new__(Clerk)
    clerk._lock = threading.Lock()
    clerk._unwritten = set()
    return clerk


class Watched(dict[str, Any]):
    """Bundles that may be changed with the lock only, as another thread loops over them with it."""

    lock: threading.Lock

    def pop(self, *args: Any) -> Any:
        assert self.lock.locked()
        return super().pop(*args)

    def __setitem__(self, key: str, value: Any) -> None:
        assert self.lock.locked()
        super().__setitem__(key, value)


def test_bundles_change_with_the_lock_only(clerk: Clerk, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = Watched(one={FIRST: "task"})
    bundles.lock = clerk._lock
    given_back: list[set[Key]] = []
    monkeypatch.setattr(
        Clerk, "_end_as", lambda _self, _how, _who, keys, _why: given_back.append(keys)
    )
    clerk._bundles = bundles
    clerk._late = SimpleNamespace(forget=lambda _: None)  # type: ignore[assignment]
    clerk._manager = SimpleNamespace(shelf=1)  # type: ignore[assignment]
    clerk._give_back("one", 2, "lost")
    assert given_back == [{FIRST}]
    lock = SimpleNamespace(entry=SimpleNamespace(bundle="two"), where="a", name="b")
    clerk._owners = SimpleNamespace(of=lambda _: [], take=lambda *_: None)  # type: ignore[assignment]
    clerk._shelves = SimpleNamespace(  # type: ignore[assignment]
        locks_of=lambda _: [lock], tasks_in=lambda _: {LAST: "task"}, at=lambda *_: "a/b"
    )
    assert clerk._locked_by("slave") == [LAST]
    assert dict(clerk._bundles) == {"two": {LAST: "task"}}


def test_a_bundle_that_is_being_written_has_not_vanished(clerk: Clerk) -> None:
    looked: list[list[str]] = []
    clerk._bundles = {}
    clerk._shelves = SimpleNamespace(collect=lambda _: [])  # type: ignore[assignment]
    clerk._vanished = SimpleNamespace(look=lambda names, *_: looked.append(names) or [])  # type: ignore[assignment]

    def write(_self: Clerk, bundle: str, *_: Any) -> None:
        clerk._collect(0.0)  # takes long

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clerk, "_write", write)
        clerk._lay_out([SimpleNamespace(task_id="t_1", tag="t", attempt=1)])  # type: ignore[list-item]
    clerk._collect(0.0)
    assert looked[0] == []
    assert len(looked[1]) == 1


def test_a_job_whose_tasks_cannot_be_laid_out_any_more_is_given_up(
    clerk: Clerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: deque[str] = deque()

    def fails(_self: Clerk) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Clerk, "_publish_all", fails)
    clerk._place = SimpleNamespace(path="/run1")  # type: ignore[assignment]
    clerk._manager = SimpleNamespace(give_up=told.append)  # type: ignore[assignment]
    clerk._publish()
    assert list(told) == ["folder /run1: nothing more can be laid out"]


def test_what_cannot_be_taken_back_is_tried_again(clerk: Clerk) -> None:
    answers: list[Any] = [OSError(5, "Input/output error"), True]

    def take_back(_bundle: str) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return bool(answer)

    clerk._bundles, clerk._cancelled = {"one": {FIRST: "task"}}, set()  # type: ignore[dict-item]
    clerk._owners = ()  # type: ignore[assignment]
    clerk._shelves = SimpleNamespace(take_back=take_back)  # type: ignore[assignment]
    clerk._withdraw(["t_1"])
    assert (list(clerk._bundles), clerk._cancelled) == (["one"], {"t_1"})
    clerk._withdraw(())
    assert (list(clerk._bundles), clerk._cancelled) == ([], set())

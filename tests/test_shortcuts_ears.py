"""Clients' threads that listen themselves to the shortcut by which the result comes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from conftest import PATIENCE_S, wait_until
from managing import Call, X, ids
from shortcutting import End, Scene, journaled_slave

from masterslave.errors import TaskManagerTermination


class Ear:
    """One whose wait is what the test says."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = wait
        self.is_used = self.is_released = False

    def acquire(self, *, timeout: float) -> None:
        assert timeout > 0
        self.is_used = True
        self._wait()

    def release(self) -> None:
        self.is_released = True


def results(scene: Scene) -> list[str]:
    """The results that a client gets who waits."""
    return [one.task_id for one in scene.manager.getResults(scene.client, None, 9, PATIENCE_S)]


def listens(end: End, wait: Callable[[], object]) -> Ear:
    ear = Ear(wait)
    end.ears.append(ear)
    return ear


def test_who_waits_for_the_result_of_a_shortcut_listens_itself(scene: Scene) -> None:
    scene.slave()
    task_id = scene.request()
    (end,) = scene.opened
    ear = listens(end, end.works)
    assert results(scene) == [task_id]
    assert ear.is_used
    assert ear.is_released, "what it has heard ends its own wait"


def test_who_waits_has_taken_all_there_was_and_need_not_be_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("masterslave.manager.time.sleep", pauses.append)
    monkeypatch.setattr("masterslave.manager._MANY", 1)
    scene.slave()
    scene.request()
    (end,) = scene.opened
    end.works()
    assert len(results(scene)) == 1
    scene.request()
    listens(end, end.works)
    assert len(results(scene)) == 1
    assert not pauses


def test_it_waits_again_when_what_it_has_heard_was_nothing(scene: Scene) -> None:
    scene.slave()
    task_id = scene.request()
    (end,) = scene.opened
    first, second = listens(end, end.heard), listens(end, end.works)
    assert results(scene) == [task_id]
    assert first.is_used
    assert second.is_used


def test_a_result_that_comes_another_way_ends_the_wait(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    (end,) = scene.opened

    def by_its_supervisor() -> None:
        done = end.ends()
        end.results.clear()
        scene.hand_in(slave, done)

    ear = listens(end, by_its_supervisor)
    assert results(scene) == [task_id]
    assert ear.is_released


def test_the_end_of_the_job_ends_the_wait(scene: Scene) -> None:
    scene.slave()
    scene.request()
    ear = listens(scene.opened[0], scene.manager.terminate)
    with pytest.raises(TaskManagerTermination):
        results(scene)
    assert ear.is_released


def test_a_slave_that_is_lost_meanwhile_has_nothing_to_be_listened_to(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    (end,) = scene.opened
    others: list[End] = []

    def lose() -> None:
        scene.manager.lostProcess(slave.id, "test")
        scene.slave(token="b")
        others.append(scene.opened[1])
        listens(others[0], others[0].works)

    listens(end, lose)
    assert results(scene) == [task_id]
    assert not end.is_open


def nobody(end: End) -> Ear:
    """An ear that nobody is to use."""
    return listens(end, lambda: pytest.fail("somebody listens"))


def test_nobody_listens_to_a_shortcut_without_a_task(scene: Scene) -> None:
    scene.slave()
    scene.request()
    (end,) = scene.opened
    end.works()
    assert len(results(scene)) == 1
    ear = nobody(end)
    call = Call(results, scene)
    wait_until(lambda: scene.manager._results.calls, "it waits")
    scene.request()
    end.works()
    assert len(call.outcome()) == 1
    assert not ear.is_used


def test_nobody_listens_where_many_are_on_their_way(scene: Scene) -> None:
    """Their results are looked for every few milliseconds."""
    scene.manager._scheduler.pace.record("sqrt", 0.0)
    scene.slave()
    scene.manager.addTaskRequests("sqrt", [X] * 3, scene.client)
    (end,) = scene.opened
    assert len(end.tasks) == 3
    ear = nobody(end)
    call = Call(results, scene)
    wait_until(lambda: scene.manager._results.calls, "it waits")
    end.works()
    assert len(call.outcome()) == 1
    assert not ear.is_used


def test_nobody_listens_to_a_slave_that_has_gone(scene: Scene) -> None:
    slave = scene.slave()
    scene.request()
    nobody(scene.opened[0])
    scene.manager.lostProcess(slave.id, "test")
    assert scene.manager._shortcuts.ear() is None


def test_only_one_of_a_clients_threads_listens(scene: Scene) -> None:
    scene.slave(workers=2)
    both = [scene.request(), scene.request()]
    end = next(end for end in scene.opened if ids(end.tasks) == both[1:])
    over = threading.Event()
    ear, other = listens(end, lambda: over.wait(PATIENCE_S)), nobody(end)

    def wait() -> list[str]:
        return ids(scene.manager.getResults(scene.client, None, 1, PATIENCE_S))

    first = Call(wait)
    wait_until(lambda: ear.is_used, "the first listens")
    second = Call(wait)
    wait_until(lambda: len(scene.manager._results.calls[scene.client]) == 2, "both wait")
    for one in scene.opened:
        one.works()
    over.set()
    assert sorted(first.outcome() + second.outcome()) == both
    assert not other.is_used


def test_without_an_ear_it_waits_all_the_same(scene: Scene) -> None:
    scene.slave()
    task_id = scene.request()
    (end,) = scene.opened
    assert scene.manager._shortcuts.ear() is None
    call = Call(results, scene)
    wait_until(lambda: scene.manager._results.calls, "it waits")
    end.works()
    assert call.outcome() == [task_id]


def test_with_a_journal_nobody_listens_but_the_thread_that_may_wait_for_the_disk(
    journaled: Scene,
) -> None:
    slave = journaled_slave(journaled)
    task_id = journaled.request()
    journaled.manager.exchange(slave, [], [], 1, 0.0, journaled.generation)
    (end,) = journaled.opened
    ear = nobody(end)
    call = Call(results, journaled)
    wait_until(lambda: journaled.manager._results.calls, "it waits")
    end.works()
    assert call.outcome() == [task_id]
    assert not ear.is_used

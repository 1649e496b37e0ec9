"""The task manager and its shortcuts, whose ends are played by the test."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import wait_until
from managing import X, ids
from shortcutting import Scene, journaled_slave
from test_manager_parked import Slave

from masterslave import arrivals
from masterslave import manager as manager_module
from masterslave.errors import JournalError
from masterslave.records import Assignment, Completion, Outcome

TINY = [0, None, 0, 5, None]


# --- which way a task goes ----------------------------------------------------------------------


def test_a_task_that_comes_alone_goes_to_a_worker_and_its_result_is_the_clients(
    scene: Scene,
) -> None:
    slave = scene.slave()
    task_id = scene.request()
    (end,) = scene.opened
    assert ids(end.tasks) == [task_id]
    assert slave.answers == [], "its supervisor is not woken"
    assert scene.held(slave) == [task_id]
    assert scene.manager.taskIsRunning(task_id)
    end.works()
    assert scene.results() == [(task_id, "result")]
    assert scene.held(slave) == []


def test_one_after_the_other_all_go_this_way(scene: Scene) -> None:
    slave = scene.slave()
    for _ in range(5):
        task_id = scene.request()
        scene.opened[0].works()
        assert scene.results() == [(task_id, "result")]
    assert slave.answers == []
    assert ids(scene.opened[0].tasks) == [f"sqrt_{number}" for number in range(5)]


def test_a_master_that_does_not_keep_up_takes_enough_at_once_to_be_seen() -> None:
    assert manager_module._MANY <= arrivals._LARGEST_BATCH


def test_the_booking_of_results_waits_for_a_client_that_does_not_keep_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("masterslave.manager.time.sleep", pauses.append)
    monkeypatch.setattr("masterslave.manager._MANY", 3)
    scene.slave(workers=4)
    for wanted, pause in ((2, 0), (3, 1), (2, 0)):
        for _ in range(3):
            scene.request()
        for end in scene.opened:
            if end.tasks:
                end.works()
        while scene.manager.getResults(scene.client, None, wanted, 0.0):
            pass
        pauses.clear()
        scene.opened[0].heard()
        assert len(pauses) == pause
        scene.opened[0].heard()
        assert len(pauses) == pause, "once for each time that it took so many"


def test_each_worker_gets_one(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    first, second, third = (scene.request() for _ in range(3))
    assert sorted(ids(scene.opened[0].tasks) + ids(scene.opened[1].tasks)) == [first, second]
    assert slave.answers == []
    scene.opened[1].works()
    assert [ids(end.tasks)[-1] for end in scene.opened] in ([first, third], [second, third])
    scene.opened[0].works()
    scene.opened[1].works()
    assert len(scene.results()) == 3


def test_what_waits_goes_on_when_a_result_comes(scene: Scene) -> None:
    slave = scene.slave()
    first, second = scene.request(), scene.request()
    end = scene.opened[0]
    assert ids(end.tasks) == [first], "one at a time"
    end.works()
    assert ids(end.tasks) == [first, second] or slave.answers == [([second], {})]


@pytest.mark.parametrize(
    "case",
    [{"timeout": 60.0}, {"tag": "x" * 120}, {"frame": [b"x" * 5000]}],
    ids=["a time limit", "a long id", "a large frame"],
)
def test_what_goes_the_long_way(scene: Scene, case: dict[str, Any]) -> None:
    slave = scene.slave()
    task_id = scene.request(**case)
    assert slave.answers == [([task_id], {})]
    assert scene.opened[0].tasks == []


def test_one_large_one_among_several_has_all_go_the_long_way(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    scene.manager.addTaskRequests("sqrt", [X, [b"x" * 5000]], scene.client)
    assert [end.tasks for end in scene.opened] == [[], []]
    assert len(slave.answers) == 1


def test_a_message_that_has_no_room_goes_the_long_way(scene: Scene) -> None:
    slave = scene.slave()
    scene.opened[0].room_bytes = 9
    task_id = scene.request()
    assert slave.answers == [([task_id], {})]
    assert scene.opened[0].tasks == []


def test_what_has_ended_makes_room_for_others(scene: Scene) -> None:
    scene.manager._scheduler.pace.record("sqrt", 0.0)  # as if many had been run
    slave = scene.slave()
    end = scene.opened[0]
    scene.manager.addTaskRequests("sqrt", [X] * 60, scene.client)  # 600 bytes, of 750
    assert len(end.tasks) == 60
    end.results = [
        Completion(task.task_id, 1, "result", [b"r"], 0.0, "") for task in end.tasks[:40]
    ]
    end.heard()
    scene.manager.addTaskRequests("sqrt", [X] * 40, scene.client)
    end.ends(place=40, duration_s=0.0)
    end.heard()
    assert len(end.tasks) == 100
    assert slave.answers == []


def test_each_idle_worker_gets_one_of_those_that_come_together(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    both = scene.manager.addTaskRequests("sqrt", [X] * 2, scene.client)
    assert [ids(end.tasks) for end in scene.opened] == [both[:1], both[1:]]
    assert slave.answers == []


def test_more_than_there_are_workers_go_the_long_way_if_nobody_knows_how_long_they_take(
    scene: Scene,
) -> None:
    slave = scene.slave()
    first, second = scene.manager.addTaskRequests("sqrt", [X] * 2, scene.client)
    scene.opened[0].works()  # which takes 0.1 s
    assert ids(scene.opened[0].tasks) == [first, second], "one at a time"
    scene.manager.addTaskRequests("sqrt", [X] * 2, scene.client, TINY)
    assert len(scene.opened[0].tasks) == 2
    assert slave.answers == []


def test_behind_a_task_that_went_the_long_way_so_do_others(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    first = scene.request(timeout=60.0)
    slave.park(generation=scene.generation)
    second = scene.request()
    assert slave.answers == [([first], {}), ([second], {})]


def test_without_a_parked_call_it_goes_this_way_when_the_slave_calls(scene: Scene) -> None:
    slave = scene.slave()
    assert slave.parked is not None
    scene.manager.endParked(slave.parked)
    task_id = scene.request()
    assert scene.opened[0].tasks == []
    assert scene.hand_in(slave)[0] == []
    assert ids(scene.opened[0].tasks) == [task_id]


def test_a_slave_that_is_to_be_told_something_gets_all_in_one_answer(scene: Scene) -> None:
    slave = scene.slave()
    with scene.manager._lock:  # as if another thread had the lock until now
        scene.manager._roster.known(slave.id).dropped_data.append("x")  # type: ignore[union-attr]
    task_id = scene.request()
    assert slave.answers == [([task_id], {"forget": ["x"]})]


def test_a_slave_that_wants_no_tasks_gets_none(scene: Scene) -> None:
    slave = scene.slave()
    scene.hand_in(slave, room=0)
    scene.request()
    assert scene.opened[0].tasks == []
    assert slave.answers == []


def test_a_job_that_is_over_sends_nothing_more(scene: Scene) -> None:
    slave = scene.slave()
    scene.manager.terminate()
    assert slave.answers == [([], {"terminate": True})]
    assert scene.opened[0].tasks == []


def test_with_a_journal_a_task_goes_when_it_is_on_record(journaled: Scene) -> None:
    slave = journaled_slave(journaled)
    task_id = journaled.request()
    assert journaled.opened[0].tasks == []
    assert journaled.manager.exchange(slave, [], [], 1, 0.0, journaled.generation)[0] == []
    (end,) = journaled.opened
    assert ids(end.tasks) == [task_id]
    end.works()
    assert journaled.results() == [(task_id, "result")]
    assert end.acknowledged == 1


def test_a_result_that_cannot_be_put_on_record_stays_where_its_supervisor_finds_it(
    journaled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    slave = journaled_slave(journaled)
    task_id = journaled.request()
    journaled.manager.exchange(slave, [], [], 1, 0.0, journaled.generation)
    (end,) = journaled.opened

    def sync() -> None:
        raise JournalError("the disk is full")

    books = journaled.manager._ledger
    assert books is not None
    with monkeypatch.context() as broken:
        broken.setattr(books, "sync", sync)
        end.works()
    assert end.acknowledged == 0
    assert journaled.results() == [(task_id, "result")], "it is told all the same"


def test_tiny_tasks_follow_each_other_on_record(journaled: Scene) -> None:
    slave = journaled_slave(journaled)
    journaled.request()
    manager, generation = journaled.manager, journaled.generation
    manager.exchange(slave, [], [], 1, 0.0, generation)
    (end,) = journaled.opened
    end.ends(duration_s=1e-5)
    end.heard()
    end.room_bytes = 1 << 20
    manager.addTaskRequests("sqrt", [X] * 5000, journaled.client, TINY)
    assert manager.exchange(slave, [], [], 1, 0.0, generation)[0] == []
    sent = len(end.tasks)
    assert 1 < sent < 5000, "as many as it may hold"
    waiting = threading.Thread(target=manager.exchange, args=(slave, [], [], 1, 60.0, generation))
    waiting.start()
    wait_until(lambda: slave in manager._handout._waiter_of, "its call waits")
    for place in range(1, sent):
        end.ends(duration_s=1e-5, place=place)
    end.heard()
    assert len(end.tasks) > sent
    assert end.acknowledged == 2
    assert waiting.is_alive()
    manager.terminate()
    waiting.join()


def test_nothing_is_taken_back_while_results_cannot_be_put_on_record(journaled: Scene) -> None:
    journaled.manager._scheduler.pace.record("sqrt", 0.0)
    slave = journaled_slave(journaled)
    journaled.manager.addTaskRequests("sqrt", [X] * 6, journaled.client)
    journaled.manager.exchange(slave, [], [], 1, 0.0, journaled.generation)
    (end,) = journaled.opened
    assert len(end.tasks) == 6
    journaled.manager._shortcuts.is_held_up = lambda: True

    def look(times: int) -> None:
        for _ in range(times):
            journaled.clock.now += 0.005
            end.heard()

    look(30)
    journaled.manager._shortcuts.is_held_up = lambda: False
    look(30)
    assert end.skipped == [], "slaves wait before they try again"
    look(600)
    assert len(end.skipped) == 5


# --- opening ------------------------------------------------------------------------------------


def test_what_cannot_be_opened_is_not_used(scene: Scene) -> None:
    scene.refuses = True
    slave = scene.slave()
    assert not scene.offer(slave.id, 0)
    task_id = scene.request()
    assert slave.answers == [([task_id], {})]


def test_who_is_not_known_or_has_registered_again_opens_nothing(scene: Scene) -> None:
    slave = scene.slave()
    assert not scene.manager.openShortcut(99, 1, 0, [1] * 6)
    assert not scene.manager.openShortcut(slave.id, scene.generation - 1, 0, [1] * 6)
    scene.manager.closeShortcuts(slave.id, scene.generation - 1, [0])
    scene.manager.closeShortcuts(99, 1, [0])
    assert scene.opened[0].is_open
    scene.closed(slave, 7)
    assert scene.opened[0].is_open, "it is another worker's"


def test_a_task_manager_that_forbids_them_lets_go_of_all(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    scene.opened[0].ends()
    scene.manager.forbidShortcuts()
    assert not scene.opened[0].is_open
    assert scene.results() == [(task_id, "result")]
    assert not scene.offer(slave.id, 1)


def test_an_offer_in_the_place_of_another_one_closes_that(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    assert scene.offer(slave.id, 0)
    assert [end.is_open for end in scene.opened] == [False, True]
    assert scene.crashes(task_id) == 0
    assert ids(scene.opened[1].tasks) == [task_id], "it had not begun"


# --- workers that die ---------------------------------------------------------------------------


def crashed(task: Assignment) -> Completion:
    return Completion(task.task_id, task.attempt, Outcome.CRASHED.value, [], 0.0, "died")


def test_a_task_that_had_not_begun_is_run_again_at_no_cost(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    task_id = scene.request()
    number = next(number for number, end in enumerate(scene.opened) if end.tasks)
    scene.closed(slave, number)
    assert not scene.opened[number].is_open
    assert scene.crashes(task_id) == 0
    other = scene.opened[1 - number]
    assert [(one.task_id, one.attempt) for one in other.tasks] == [(task_id, 2)]
    other.works()
    assert scene.results() == [(task_id, "result")]


def test_a_task_that_had_begun_counts_a_crash(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request(crash_limit=1)
    scene.hand_in(slave, crashed(scene.opened[0].tasks[0]))
    scene.closed(slave, 0)
    assert scene.results() == [(task_id, "crashed")]


def test_after_a_crash_it_is_tried_again_and_not_taken_back_twice(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    task_id = scene.request()
    number = next(number for number, end in enumerate(scene.opened) if end.tasks)
    assert scene.hand_in(slave, crashed(scene.opened[number].tasks[0]))[0] == []
    other = scene.opened[1 - number]
    assert [(one.task_id, one.attempt) for one in other.tasks] == [(task_id, 2)]
    scene.closed(slave, number)
    assert scene.crashes(task_id) == 1
    assert scene.held(slave) == [task_id]


def test_a_result_counts_more_than_what_is_said_of_its_workers_death(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request(crash_limit=1)
    end = scene.opened[0]
    end.works()
    scene.hand_in(slave, crashed(end.tasks[0]))
    scene.closed(slave, 0)
    assert scene.results() == [(task_id, "result")]


def test_a_result_that_is_there_when_it_is_closed_is_used(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request(crash_limit=1)
    scene.opened[0].ends()
    scene.closed(slave, 0)
    assert scene.results() == [(task_id, "result")]


def test_a_result_that_went_the_long_way_makes_the_worker_free_again(scene: Scene) -> None:
    slave = scene.slave()
    scene.request()
    end = scene.opened[0]
    done = end.ends()
    end.results.clear()
    scene.hand_in(slave, done)
    second = scene.request()
    slave.park(generation=scene.generation)
    assert ids(end.tasks)[1:] == [second] or slave.answers[-1][0] == [second]
    assert scene.results() == [(done.task_id, "result")]


def test_a_doubled_result_counts_once(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    end = scene.opened[0]
    done = end.ends()
    end.works()
    scene.hand_in(slave, done)
    assert scene.results() == [(task_id, "result")]
    assert scene.manager.status()["dropped"] == 2


def test_a_late_result_is_read_so_that_the_listener_comes_to_rest(scene: Scene) -> None:
    slave = scene.slave()
    scene.request()
    end = scene.opened[0]
    done = end.ends()
    scene.hand_in(slave, done)
    end.heard()
    assert end.results == []


def test_an_exception_is_tried_again_if_it_may_be(scene: Scene) -> None:
    scene.slave()
    task_id = scene.request(retries=1)
    end = scene.opened[0]
    end.works(Outcome.EXCEPTION)
    scene.clock.now += 1000.0
    scene.manager.putDueInLine()
    assert [(one.task_id, one.attempt) for one in end.tasks] == [(task_id, 1), (task_id, 2)]
    end.works(Outcome.EXCEPTION)
    assert scene.results() == [(task_id, "exception")]


# --- cancels ------------------------------------------------------------------------------------


def test_who_runs_a_cancelled_task_is_told_to_stop_it(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    assert scene.manager.cancelTask(task_id)
    assert slave.answers == [([], {"stop": [task_id]})]
    scene.closed(slave, 0)
    assert scene.results() == []
    assert scene.manager.status()["waiting"] == {}


def test_until_a_cancelled_task_has_ended_its_worker_gets_nothing_directly(scene: Scene) -> None:
    slave = scene.slave()
    scene.manager.cancelTask(scene.request())
    slave.park(generation=scene.generation)
    second = scene.request()
    end = scene.opened[0]
    assert slave.answers[1:] == [([second], {})]
    assert len(end.tasks) == 1
    unrun = Outcome.RETURNED.value
    scene.hand_in(slave, Completion(end.tasks[0].task_id, 1, unrun, [], 0.0, "cancelled"))
    scene.hand_in(slave, Completion(second, 1, "result", [b"r"], 0.1, ""))
    slave.park(generation=scene.generation)
    third = scene.request()
    assert ids(end.tasks)[1:] == [third], "it is free again"


# --- slaves that leave, are lost, come back -----------------------------------------------------


def again(scene: Scene, slave: Slave, held: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The slave registers again and says what it holds; gives what it is to let go of."""
    _, obsolete, scene.generation = scene.manager.registerProcess(
        None, scene.info, slave.id, list(held)
    )
    scene.manager.announceTags(slave.id, ["sqrt"])
    return [tuple(one) for one in obsolete]


def test_what_runs_goes_on_when_a_slave_registers_again(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    assert again(scene, slave, [(task_id, 1)]) == []
    assert not scene.opened[0].is_open
    assert scene.held(slave) == [task_id]
    scene.hand_in(slave, Completion(task_id, 1, "result", [b"r"], 0.1, ""))
    assert scene.results() == [(task_id, "result")]


def test_what_had_not_begun_then_is_run_again(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    assert again(scene, slave, []) == []
    assert scene.crashes(task_id) == 0
    (task,) = scene.hand_in(slave)[0]
    assert (task.task_id, task.attempt) == (task_id, 2)


def test_what_has_ended_by_then_is_no_ones(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    scene.opened[0].ends()
    assert again(scene, slave, [(task_id, 1)]) == [(task_id, 1)]
    assert scene.results() == [(task_id, "result")]


def test_nothing_goes_directly_while_it_runs_what_it_held(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    task_id = scene.request()
    again(scene, slave, [(task_id, 1)])
    for number in (0, 1):
        assert scene.offer(slave.id, number)
    slave.park(generation=scene.generation)
    second = scene.request()
    assert slave.answers[-1] == ([second], {})


def test_what_a_shortcut_of_an_earlier_registration_says_is_not_heard(scene: Scene) -> None:
    slave = scene.slave()
    scene.request()
    heard = scene.opened[0].heard
    again(scene, slave, [])
    heard()
    assert scene.results() == []


def test_the_task_of_a_lost_slave_is_run_elsewhere(scene: Scene) -> None:
    first = scene.slave()
    task_id = scene.request()
    second = scene.slave(token="b")
    scene.manager.lostProcess(first.id, "a test")
    assert not scene.opened[0].is_open
    assert scene.crashes(task_id) == 1
    assert [(one.task_id, one.attempt) for one in scene.opened[1].tasks] == [(task_id, 2)]
    assert scene.held(second) == [task_id]


def test_a_result_that_is_there_when_its_slave_is_lost_is_used(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request(crash_limit=1)
    scene.opened[0].ends()
    scene.manager.lostProcess(slave.id, "a test")
    assert scene.results() == [(task_id, "result")]


def test_a_slave_that_leaves_gives_its_task_back(scene: Scene) -> None:
    slave = scene.slave()
    done, task_id = scene.request(), ""
    scene.opened[0].works()
    task_id = scene.request()
    scene.manager.unregisterProcess(slave.id)
    assert not scene.opened[0].is_open
    assert scene.crashes(task_id) == 0
    assert scene.results() == [(done, "result")]
    scene.slave(token="b")
    assert ids(scene.opened[1].tasks) == [task_id]


def test_a_result_is_a_sign_of_life(scene: Scene) -> None:
    scene.slave(period=10.0)
    end = scene.opened[0]
    for _ in range(10):
        scene.request()
        scene.clock.now += 30.0
        end.works()
        scene.manager.checkLiveness()
    assert len(scene.results()) == 10
    scene.clock.now += 100.0
    scene.manager.checkLiveness()
    assert not end.is_open
    assert scene.manager.status()["slaves"] == []


def test_garbage_loses_the_slave_and_none_of_what_others_have_handed_in(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    first, second = scene.request(), scene.request()
    good, bad = scene.opened if scene.opened[0].tasks[0].task_id == first else scene.opened[::-1]
    good.ends()
    bad.is_damaged = True
    bad.heard()
    assert scene.results() == [(first, "result")]
    assert scene.crashes(second) == 1
    assert slave.answers == [([], {"register": True})]
    assert not (good.is_open or bad.is_open)


def test_garbage_of_a_worker_that_has_ended_costs_its_task_nothing(scene: Scene) -> None:
    slave = scene.slave()
    task_id = scene.request()
    scene.opened[0].is_damaged = True
    scene.closed(slave, 0)
    assert scene.crashes(task_id) == 0
    assert slave.answers == [([task_id], {})]


def test_a_shortcut_that_comes_after_data_was_deleted_is_told_before_any_task(scene: Scene) -> None:
    """The answer that tells its slave may be on its way still."""
    scene.refuses = True
    slave = scene.slave()
    scene.manager.storeData(x=[b"1"], y=[b"2"])
    scene.manager.deleteData("x")
    scene.manager.deleteData("y")
    slave.park(generation=scene.generation)
    scene.refuses = False
    assert scene.offer(slave.id, 0)
    assert scene.opened[0].forgotten == ["x", "y"]


# --- tiny tasks, many at once -------------------------------------------------------------------


class Stall:
    """Six tiny tasks on two workers, of which one has done its own and the other says nothing."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        scene.manager._scheduler.pace.record("sqrt", 0.0)  # as if many had been run
        self.slave = scene.slave(workers=2)
        batch = scene.manager.addTaskRequests("sqrt", [X] * 6, scene.client)
        self.slow, self.quick = scene.opened
        assert sorted(ids(self.slow.tasks) + ids(self.quick.tasks)) == batch
        assert self.slow.is_watched
        self.held = ids(self.slow.tasks)
        for task in list(self.quick.tasks):
            self.quick.results.append(Completion(task.task_id, 1, "result", [b"r"], 0.0, ""))
        self.quick.heard()
        scene.clock.now += 1.0
        self.slow.heard()  # nothing is there, but nobody has looked for long
        assert not self.slow.is_held

    def looks(self, seconds: float = 0.06) -> None:
        """It is looked at closely for so long."""
        for _ in range(round(seconds / 0.005)):
            self.scene.clock.now += 0.005
            self.slow.heard()

    def until_held(self) -> None:
        for _ in range(100):
            if self.slow.is_held:
                return
            self.looks(0.005)
        pytest.fail("it may begin what it likes")

    def again(self) -> list[tuple[str, int]]:
        """What the other worker was given afterwards."""
        return [(one.task_id, one.attempt) for one in self.quick.tasks if one.attempt == 2]


@pytest.fixture
def stall(scene: Scene) -> Stall:
    return Stall(scene)


def test_what_is_taken_back_from_a_long_task_goes_to_an_idle_worker_at_once(stall: Stall) -> None:
    stall.slow.last = (stall.held[0], 1)
    stall.looks()
    assert stall.slow.skipped == stall.held[1:]
    assert not stall.slow.is_held
    assert stall.slow.is_watched, "it may tell of no result before it reads that"
    assert stall.again()[:1] == [(stall.held[1], 2)]
    assert stall.slave.answers == []
    assert stall.scene.crashes(stall.held[1]) == 0


def test_nothing_is_taken_back_before_it_is_sure_what_has_begun(stall: Stall) -> None:
    stall.until_held()
    assert stall.slow.skipped == []
    stall.slow.heard()  # at the same time
    assert stall.slow.skipped == []
    assert stall.slow.is_held
    stall.looks(0.005)
    assert stall.slow.skipped == stall.held[1:]


def test_what_has_begun_meanwhile_is_not_taken_back(stall: Stall) -> None:
    """The worker was late only: it has ended the first, and begun the second."""
    stall.until_held()
    stall.slow.last = (stall.held[1], 1)
    stall.looks(0.01)
    assert stall.slow.skipped == stall.held[2:]
    assert stall.again()[:1] == [(stall.held[2], 2)]


def test_what_has_ended_and_is_to_come_the_long_way_is_not_taken_back(stall: Stall) -> None:
    """Large results do, one by one, and small ones of later tasks may come before them."""
    stall.scene.request()
    stall.until_held()
    stall.slow.last = (stall.held[2], 1)
    stall.slow.ends(place=2)
    stall.slow.heard()
    stall.until_held()
    stall.looks(0.01)
    assert stall.slow.skipped == []
    assert stall.scene.held(stall.slave)[:2] == stall.held[:2]


def test_what_ends_earlier_and_comes_later_says_nothing_of_what_has_begun(stall: Stall) -> None:
    for _ in range(2):
        stall.scene.request()
    stall.until_held()
    stall.slow.last = (stall.slow.tasks[3].task_id, 1)
    for place in (3, 0):
        stall.slow.ends(place=place)
    stall.slow.heard()
    stall.until_held()
    stall.looks(0.01)
    assert stall.slow.tasks[2].task_id not in stall.slow.skipped


def test_a_worker_that_is_heard_of_meanwhile_keeps_its_tasks(stall: Stall) -> None:
    stall.until_held()
    stall.slow.ends(place=0)
    stall.slow.heard()
    assert not stall.slow.is_held
    stall.looks(0.02)
    assert stall.slow.skipped == []
    stall.looks()
    assert stall.slow.skipped == stall.held[2:], "until it stalls again"


def test_a_result_that_comes_the_long_way_lifts_the_ban(stall: Stall) -> None:
    stall.until_held()
    done = Completion(stall.held[0], 1, "result", [b"r"], 0.0, "")
    stall.scene.hand_in(stall.slave, done)
    assert not stall.slow.is_held
    assert stall.slow.skipped == []


@pytest.mark.parametrize("why", ["may_hold", "is_sure"])
def test_a_worker_that_another_one_listens_to_keeps_its_tasks(stall: Stall, why: str) -> None:
    """Its supervisor, which has taken the shortcut back and will say so."""
    setattr(stall.slow, why, False)
    stall.looks(0.2)
    assert stall.slow.skipped == []
    assert stall.again() == []
    assert len(stall.scene.held(stall.slave)) == 3


def test_what_cannot_be_named_stays(stall: Stall) -> None:
    """There is not room for all of them in the message."""
    stall.slow.room_bytes = 30 + len(f"skip {stall.held[2]}")
    stall.looks()
    assert stall.slow.skipped == stall.held[2:]
    assert stall.again() == [(stall.held[2], 2)]


def test_a_worker_that_is_closed_meanwhile_gives_all_back(stall: Stall) -> None:
    stall.until_held()
    stall.scene.closed(stall.slave, 0)
    assert not stall.slow.is_open
    assert {task_id for task_id, _ in stall.again()} == set(stall.held)

"""The task manager in one process: deadlines with a clock of the test's, waiting with threads."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave.errors import (
    DataNotFound,
    SettingsError,
    TaskManagerTermination,
    UnknownProcess,
    UnknownTask,
)
from masterslave.manager import TaskManager
from masterslave.pace import MAX_IN_HAND
from masterslave.records import Assignment, Delivery, Outcome, ProcessInfo, TaskOptions
from masterslave.settings import Settings

X = [b"x"]
LONG_S = 4 * PATIENCE_S  # a wait that must be ended by something else than its time-out


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(clock: Clock) -> TaskManager:
    return TaskManager("job", Settings(key_file=Path("unused")), clock=clock)


@pytest.fixture
def live() -> Iterator[TaskManager]:
    """A task manager with the real clock, in which threads may wait."""
    manager = TaskManager("job", Settings(key_file=Path("unused")))
    yield manager
    manager.terminate()


def join(
    manager: TaskManager,
    tags: str = "sqrt",
    *,
    workers: int = 1,
    period: float | None = None,
    token: str = "",
) -> int:
    """A slave that handles these tags; gives its process id."""
    info = ProcessInfo(f"slave {token}", 1, "host", workers, token)
    process_id = manager.registerProcess(period, info)[0]
    manager.announceTags(process_id, tags.split())
    return int(process_id)


def take(manager: TaskManager, slave: int) -> list[Assignment]:
    return list(manager.exchange(slave)[0])


def give(
    manager: TaskManager,
    slave: int,
    task: Assignment,
    outcome: Outcome = Outcome.RESULT,
    *,
    duration_s: float = 0.0,
    detail: str = "",
    frame: list[bytes] | None = None,
) -> None:
    done = (task.task_id, task.attempt, outcome.value, frame or [b"r"], duration_s, detail)
    manager.exchange(slave, [done], (), False)


def ids(tasks: list[Assignment] | list[Delivery]) -> list[str]:
    return [task.task_id for task in tasks]


class Call:
    """A call in a thread of its own; `outcome()` gives its result or raises its error."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._result: Any = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._result = function(*args, **kwargs)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def outcome(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert self.done, "the call is still blocked"
        if self._error is not None:
            raise self._error
        return self._result


def waiting(manager: TaskManager) -> int:
    """How many threads stand in line for tasks."""
    with manager._lock:
        return len(manager._slaves_wait)


def wait_for_line(manager: TaskManager, length: int) -> None:
    wait_until(lambda: waiting(manager) == length, f"{length} slaves stand in line")


def wait_for_clients(manager: TaskManager, number: int) -> None:
    wait_until(lambda: manager._waiting_clients == number, f"{number} clients wait")


@contextmanager
def in_line(manager: TaskManager, slaves: list[int]) -> Iterator[list[Call]]:
    """These slaves wait for tasks, in this order."""
    calls = []
    for number, slave in enumerate(slaves, start=1):
        calls.append(Call(manager.exchange, slave, (), (), None, LONG_S))
        wait_for_line(manager, number)
    yield calls


# --- liveness -------------------------------------------------------------------------------


def test_silence_of_exactly_four_periods_is_not_death(manager: TaskManager, clock: Clock) -> None:
    slave = join(manager, period=10.0)
    clock.now += 40.0
    manager.checkLiveness()
    assert manager.activeProcesses() == [slave]
    clock.now += 0.001
    manager.checkLiveness()
    assert manager.activeProcesses() == []


def test_a_silent_slaves_tasks_run_elsewhere(manager: TaskManager, clock: Clock) -> None:
    silent, other = join(manager, period=10.0), join(manager)
    task_id = manager.addTaskRequest("sqrt", X)
    assert ids(take(manager, silent)) == [task_id]
    assert take(manager, other) == []
    clock.now += 41.0
    manager.checkLiveness()
    (again,) = take(manager, other)
    assert (again.task_id, again.attempt) == (task_id, 2)


@pytest.mark.parametrize("sign", ["ping", "exchange", "registerProcess"])
def test_every_sign_of_life_counts(manager: TaskManager, clock: Clock, sign: str) -> None:
    slave = join(manager, period=10.0, token="t")
    clock.now += 39.0
    if sign == "registerProcess":
        manager.registerProcess(10.0, ProcessInfo("slave", 1, "host", 1, "t"), slave)
    else:
        getattr(manager, sign)(slave)
    clock.now += 39.0
    manager.checkLiveness()
    assert manager.activeProcesses() == [slave]


def test_a_process_without_a_period_is_never_taken_for_dead(
    manager: TaskManager, clock: Clock
) -> None:
    slave = join(manager, period=None)
    clock.now += 1e9
    manager.checkLiveness()
    assert manager.activeProcesses() == [slave]
    assert manager.livenessInterval() is None


def test_a_ping_of_a_slave_taken_for_dead_is_refused(manager: TaskManager) -> None:
    slave = join(manager)
    manager.lostProcess(slave, "gone")
    for process_id in (slave, 99):
        with pytest.raises(UnknownProcess, match=f"process {process_id}"):
            manager.ping(process_id)


def test_the_shortest_period_sets_the_watchdogs_pace(manager: TaskManager) -> None:
    join(manager, period=30.0)
    short = join(manager, period=2.0)
    assert manager.livenessInterval() == 2.0
    manager.unregisterProcess(short)
    assert manager.livenessInterval() == 30.0


# --- losses ---------------------------------------------------------------------------------


def test_a_late_result_is_used_if_no_other_came(manager: TaskManager) -> None:
    lost = join(manager)
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, lost)
    manager.lostProcess(lost, "its connection closed")
    give(manager, lost, task, frame=[b"late"])
    assert manager.getAnyResult().frame == [b"late"]
    assert manager.numberOfTasks() == [{}, {}, {}]
    assert take(manager, join(manager)) == []


def test_a_late_result_stops_the_attempt_that_runs_in_vain(manager: TaskManager) -> None:
    lost, other = join(manager), join(manager)
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, lost)
    manager.lostProcess(lost, "its connection closed")
    take(manager, other)
    give(manager, lost, task, frame=[b"late"])
    assert manager.exchange(other)[1] == {"stop": [task.task_id]}
    assert manager.getAnyResult().frame == [b"late"]


def test_a_late_result_is_dropped_when_another_came_first(manager: TaskManager) -> None:
    lost, other = join(manager), join(manager)
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, lost)
    manager.lostProcess(lost, "its connection closed")
    (again,) = take(manager, other)
    give(manager, other, again, frame=[b"first"])
    give(manager, lost, task, frame=[b"second"])
    assert manager.getAnyResult().frame == [b"first"]
    assert manager.getResults(0, timeout=0.0) == []
    assert manager.status()["dropped"] == 1


def test_a_lost_slave_is_told_to_register_again(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X)
    manager.lostProcess(slave, "gone")
    assert manager.exchange(slave) == [[], {"register": True}]
    assert manager.exchange(99) == [[], {"register": True}]


def test_a_slave_that_comes_back_keeps_its_id_and_what_it_holds(manager: TaskManager) -> None:
    slave = join(manager, workers=2, token="t")
    manager.addTaskRequests("sqrt", [X, X])
    kept, taken = take(manager, slave)
    manager.lostProcess(slave, "its connection closed")
    other = join(manager)
    assert ids(take(manager, other)) == [kept.task_id]  # what was oldest goes first
    info = ProcessInfo("slave", 1, "host", 2, "t")
    held = [(kept.task_id, 1), (taken.task_id, 1)]
    assert manager.registerProcess(None, info, slave, held)[:2] == [slave, [kept.task_id]]
    give(manager, slave, taken)
    assert manager.getAnyResult().task_id == taken.task_id


def test_a_slave_with_another_token_is_another_process(manager: TaskManager) -> None:
    slave = join(manager, token="t")
    manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, slave)
    info = ProcessInfo("thief", 1, "host", 1, "another")
    process_id, obsolete, _ = manager.registerProcess(None, info, slave, [(task.task_id, 1)])
    assert process_id != slave
    assert obsolete == [task.task_id]
    assert sorted(manager.activeProcesses()) == sorted([slave, process_id])


def test_a_slave_that_registers_again_without_its_tasks_gives_them_back(
    manager: TaskManager,
) -> None:
    slave = join(manager, token="t")
    task_id = manager.addTaskRequest("sqrt", X)
    take(manager, slave)
    manager.registerProcess(None, ProcessInfo("slave", 1, "host", 1, "t"), slave, [])
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {}]
    assert take(manager, slave)[0].task_id == task_id


def test_only_started_tasks_are_blamed_for_a_loss(manager: TaskManager) -> None:
    slave = join(manager, workers=2)
    manager.addTaskRequests("sqrt", [X, X], 0, TaskOptions(crash_limit=1))
    _, second = take(manager, slave)
    manager.exchange(slave, (), [second.task_id], False)
    manager.lostProcess(slave, "killed by signal 9")
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {"sqrt": 1}]
    delivery = manager.getAnyResult()
    assert (delivery.task_id, delivery.outcome) == (second.task_id, "crashed")
    assert "killed by signal 9" in delivery.detail


def test_a_slave_that_leaves_in_order_costs_its_tasks_nothing(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X, 0, TaskOptions(crash_limit=1))
    (task,) = take(manager, slave)
    manager.exchange(slave, (), [task.task_id], False)
    manager.unregisterProcess(slave)
    manager.unregisterProcess(slave)  # no error
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {}]


def test_losing_twice_is_losing_once(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X, 0, TaskOptions(crash_limit=2))
    (task,) = take(manager, slave)
    manager.exchange(slave, (), [task.task_id], False)
    manager.lostProcess(slave, "its connection closed")
    manager.lostProcess(slave, "silent")
    assert manager.numberOfTasks() == [{"sqrt": 1}, {}, {}]


# --- waiting slaves -------------------------------------------------------------------------


def test_one_task_wakes_one_of_many(live: TaskManager) -> None:
    slaves = [join(live) for _ in range(5)]
    with in_line(live, slaves) as calls:
        task_id = live.addTaskRequest("sqrt", X)
        # The longest waiting gets it. The others were not even woken: they still stand in line.
        assert ids(calls[0].outcome()[0]) == [task_id]
        assert waiting(live) == 4
        assert [call.done for call in calls] == [True, False, False, False, False]
        live.terminate()
        assert [call.outcome() for call in calls[1:]] == [[[], {"terminate": True}]] * 4


def test_a_task_wakes_who_handles_its_tag(live: TaskManager) -> None:
    slaves = [join(live, "sqrt"), join(live, "cube"), join(live, "sqrt cube")]
    with in_line(live, slaves) as calls:
        task_id = live.addTaskRequest("cube", X)
        assert ids(calls[1].outcome()[0]) == [task_id]
        assert waiting(live) == 2
        task_id = live.addTaskRequest("cube", X)
        assert ids(calls[2].outcome()[0]) == [task_id]
        assert not calls[0].done


def test_a_batch_wakes_as_many_as_there_are_tasks(live: TaskManager) -> None:
    with in_line(live, [join(live) for _ in range(4)]) as calls:
        requested = live.addTaskRequests("sqrt", [X, X, X])
        wait_until(lambda: sum(call.done for call in calls) == 3, "each task has found a slave")
        wait_for_line(live, 1)
        live.terminate()
        got = [call.outcome()[0] for call in calls]
        assert sorted(ids([task for tasks in got for task in tasks])) == requested
        assert sorted(map(len, got)) == [0, 1, 1, 1]


def test_a_rescheduled_task_wakes_a_waiting_slave(live: TaskManager) -> None:
    first = join(live)
    task_id = live.addTaskRequest("sqrt", X)
    take(live, first)
    with in_line(live, [join(live)]) as calls:
        live.lostProcess(first, "gone")
        assert ids(calls[0].outcome()[0]) == [task_id]


def test_who_may_not_take_the_task_passes_the_call_on(live: TaskManager) -> None:
    full, idle = join(live, "sqrt cube"), join(live)
    with in_line(live, [full, idle]) as calls:
        # While it stands in line, its other connection takes what it can run. The queue is
        # filled unseen, as if another slave had just given the task back.
        with live._lock:
            live._queue.request(0, "cube", X, TaskOptions())
        assert len(take(live, full)) == 1
        task_id = live.addTaskRequest("sqrt", X)
        assert ids(calls[1].outcome()[0]) == [task_id]


def test_a_slave_lost_while_it_waits_gets_no_task(live: TaskManager) -> None:
    lost, other = join(live), join(live)
    with in_line(live, [lost]) as calls:
        live.lostProcess(lost, "its connection closed")
        task_id = live.addTaskRequest("sqrt", X)
        assert ids(take(live, other)) == [task_id]
        live.terminate()
        assert calls[0].outcome()[0] == []


def test_a_slave_lost_while_it_waits_for_one_task_gets_none(live: TaskManager) -> None:
    lost, other = join(live), join(live)
    call = Call(live.getAnyTask, lost, LONG_S)
    wait_for_line(live, 1)
    live.lostProcess(lost, "its connection closed")
    task_id = live.addTaskRequest("sqrt", X)
    with pytest.raises(UnknownProcess):
        call.outcome()
    assert ids(take(live, other)) == [task_id]


def test_a_slave_without_announced_tags_gets_nothing(live: TaskManager) -> None:
    slave = live.registerProcess(None, ProcessInfo("slave", 1, "host", 4, ""))[0]
    live.announceSlave(slave)
    live.addTaskRequest("sqrt", X)
    assert live.exchange(slave, timeout=0.02) == [[], {}]


def test_who_wants_nothing_gets_nothing(live: TaskManager) -> None:
    slave = join(live)
    live.addTaskRequest("sqrt", X)
    assert live.exchange(slave, room=0, timeout=0.02) == [[], {}]


@pytest.mark.parametrize(
    ("call", "empty"),
    [
        (lambda manager, slave: manager.exchange(slave, timeout=0.02), [[], {}]),
        (lambda manager, slave: manager.getAnyTask(slave, 0.02), None),
        (lambda manager, slave: manager.getTaskWithTag("sqrt", slave, 0.02), None),
        (lambda manager, slave: manager.getResults(0, timeout=0.02), []),
        (lambda manager, slave: manager.getAnyResult(0, 0.02), None),
        (lambda manager, slave: manager.getResultWithTag("sqrt", 0, 0.02), None),
        (lambda manager, slave: manager.waitForSlavesToLeave(0.02), False),
        (lambda manager, slave: manager.getResults(7, while_outstanding=True), []),
    ],
)
def test_every_wait_ends_with_its_time(
    live: TaskManager, call: Callable[[TaskManager, int], Any], empty: Any
) -> None:
    assert Call(call, live, join(live)).outcome() == empty
    assert waiting(live) == 0


def test_the_last_slave_to_leave_ends_the_wait(live: TaskManager) -> None:
    first, second = join(live), join(live)
    live.registerProcess(None, "a client does not count")
    call = Call(live.waitForSlavesToLeave, LONG_S)
    live.unregisterProcess(first)
    assert not call.done
    live.lostProcess(second, "gone")
    assert call.outcome() is True


# --- how much is handed out -----------------------------------------------------------------


def test_a_tag_never_seen_is_handed_out_one_per_worker(manager: TaskManager) -> None:
    slave = join(manager, workers=3)
    manager.addTaskRequests("sqrt", [X] * 10)
    assert len(take(manager, slave)) == 3
    assert take(manager, slave) == []


@pytest.mark.parametrize(
    ("duration_s", "least", "most"),
    [(0.0, MAX_IN_HAND, MAX_IN_HAND), (0.001, 10, 20), (0.1, 1, 1), (3600.0, 1, 1)],
)
def test_the_load_adapts_to_the_duration(
    manager: TaskManager, duration_s: float, least: int, most: int
) -> None:
    slave = join(manager)
    manager.addTaskRequests("sqrt", [X] * 2000)
    (first,) = take(manager, slave)
    give(manager, slave, first, duration_s=duration_s)
    assert least <= len(take(manager, slave)) <= most
    assert take(manager, slave) == []  # it has all that it may hold


def test_one_slave_leaves_long_tasks_to_the_others(manager: TaskManager) -> None:
    slaves = [join(manager) for _ in range(3)]
    manager.addTaskRequests("sqrt", [X] * 3)
    assert [len(take(manager, slave)) for slave in slaves] == [1, 1, 1]


def test_what_was_given_back_makes_room_again(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequests("sqrt", [X] * 3)
    (first,) = take(manager, slave)
    give(manager, slave, first, Outcome.RETURNED)
    assert ids(take(manager, slave)) == [first.task_id]


def test_higher_priority_goes_first(manager: TaskManager) -> None:
    slave = join(manager, "low high", workers=2)
    manager.addTaskRequest("low", X)
    manager.addTaskRequest("high", X, 0, TaskOptions(priority=1))
    assert [task.tag for task in take(manager, slave)] == ["high", "low"]


# --- clients --------------------------------------------------------------------------------


def test_each_client_gets_its_own_results(manager: TaskManager) -> None:
    one, two = (manager.registerProcess(None, f"client {i}")[0] for i in (1, 2))
    slave = join(manager, workers=4)
    mine = manager.addTaskRequests("sqrt", [X, X], one)
    others = manager.addTaskRequests("sqrt", [X, X], two)
    for task in take(manager, slave):
        give(manager, slave, task)
    assert ids(manager.getResults(two, limit=10)) == others
    assert manager.getResults(two, timeout=0.0) == []
    assert ids(manager.getResults(one, limit=10)) == mine


def test_results_come_in_order_of_completion_and_by_tag(manager: TaskManager) -> None:
    slave = join(manager, "sqrt cube", workers=3)
    manager.addTaskRequest("sqrt", X)
    manager.addTaskRequest("cube", X)
    manager.addTaskRequest("sqrt", X)
    for task in reversed(take(manager, slave)):
        give(manager, slave, task)
    assert manager.getResultWithTag("cube").task_id == "cube_1"
    assert [manager.getAnyResult().task_id for _ in range(2)] == ["sqrt_2", "sqrt_0"]


def test_a_result_wakes_its_client_and_no_other(live: TaskManager) -> None:
    slave = join(live)
    mine = Call(live.getResults, 1, None, 1, LONG_S)
    other = Call(live.getResults, 2, None, 1, LONG_S)
    wait_for_clients(live, 2)
    task_id = live.addTaskRequest("sqrt", X, 1)
    (task,) = take(live, slave)
    give(live, slave, task)
    assert ids(mine.outcome()) == [task_id]
    assert not other.done
    live.terminate()
    with pytest.raises(TaskManagerTermination):
        other.outcome()


def test_a_client_waits_for_one_tag_while_others_finish(live: TaskManager) -> None:
    slave = join(live, "sqrt cube", workers=2)
    live.addTaskRequest("sqrt", X)
    wanted = live.addTaskRequest("cube", X)
    sqrt, cube = take(live, slave)
    call = Call(live.getResultWithTag, "cube", 0, LONG_S)
    wait_for_clients(live, 1)
    give(live, slave, sqrt)
    give(live, slave, cube)
    assert call.outcome().task_id == wanted
    assert live.numberOfTasks()[2] == {"sqrt": 1}


def test_many_results_can_be_taken_at_once(manager: TaskManager) -> None:
    slave = join(manager, workers=5)
    requested = manager.addTaskRequests("sqrt", [X] * 5)
    for task in take(manager, slave):
        give(manager, slave, task)
    assert ids(manager.getResults(0, limit=3)) == requested[:3]
    assert ids(manager.getResults(0, limit=3)) == requested[3:]


def test_options_are_checked_before_anything_is_queued(manager: TaskManager) -> None:
    with pytest.raises(SettingsError, match="retries=-1"):
        manager.addTaskRequests("sqrt", [X, X], 0, TaskOptions(retries=-1))
    assert manager.numberOfTasks() == [{}, {}, {}]


def test_retries_answer_exceptions_with_other_attempts(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequest("sqrt", X, 0, TaskOptions(retries=1))
    (task,) = take(manager, slave)
    give(manager, slave, task, Outcome.EXCEPTION, detail="ValueError: once")
    (again,) = take(manager, slave)
    assert again.attempt == 2
    give(manager, slave, again, Outcome.EXCEPTION, detail="ValueError: twice")
    assert manager.getAnyResult().detail == "ValueError: twice"


# --- cancelling -----------------------------------------------------------------------------


def test_a_cancelled_waiting_task_is_never_handed_out(manager: TaskManager) -> None:
    first, second = manager.addTaskRequests("sqrt", [X, X])
    assert manager.cancelTask(first) is True
    slave = join(manager, workers=2)
    assert ids(take(manager, slave)) == [second]
    assert manager.status()["cancelled"] == 1


def test_the_slave_of_a_cancelled_task_is_told_once(manager: TaskManager) -> None:
    slave = join(manager)
    task_id = manager.addTaskRequest("sqrt", X)
    (task,) = take(manager, slave)
    assert manager.cancelTask(task_id) is True
    assert manager.exchange(slave)[1] == {"stop": [task_id]}
    assert manager.exchange(slave)[1] == {}
    give(manager, slave, task)  # too late
    assert manager.getResults(0, timeout=0.0) == []
    assert manager.numberOfTasks() == [{}, {}, {}]


def test_a_waiting_slave_is_told_of_a_cancelled_task_at_once(live: TaskManager) -> None:
    slave = join(live, workers=2)
    task_id = live.addTaskRequest("sqrt", X)
    take(live, slave)
    with in_line(live, [slave]) as calls:
        live.cancelTask(task_id)
        assert calls[0].outcome() == [[], {"stop": [task_id]}]


def test_cancelling_disturbs_no_other_slave(live: TaskManager) -> None:
    slave, bystander = join(live), join(live)
    task_id = live.addTaskRequest("sqrt", X)
    take(live, slave)
    with in_line(live, [bystander]) as calls:
        live.cancelTask(task_id)
        assert live.exchange(slave, timeout=LONG_S)[1] == {"stop": [task_id]}
        follower = live.addTaskRequest("sqrt", X)
        assert ids(calls[0].outcome()[0]) == [follower]


def test_cancelling_the_last_task_ends_the_wait_for_it(live: TaskManager) -> None:
    task_id = live.addTaskRequest("sqrt", X)
    call = Call(live.getResults, 0, None, 1, LONG_S, True)
    wait_for_clients(live, 1)
    assert live.cancelTask(task_id)
    assert call.outcome() == []


def test_a_finished_task_cannot_be_cancelled(manager: TaskManager) -> None:
    slave = join(manager)
    task_id = manager.addTaskRequest("sqrt", X)
    give(manager, slave, take(manager, slave)[0])
    assert manager.cancelTask(task_id) is False
    assert manager.getAnyResult().task_id == task_id
    assert manager.cancelTask(task_id) is False


@pytest.mark.parametrize("task_id", ["sqrt_1", "sqrt", "", "sqrt_-1"])
def test_a_task_that_never_was_cannot_be_cancelled(manager: TaskManager, task_id: str) -> None:
    manager.addTaskRequest("sqrt", X)
    with pytest.raises(UnknownTask):
        manager.cancelTask(task_id)


# --- data items -----------------------------------------------------------------------------


def test_data_items_are_kept_replaced_and_deleted(manager: TaskManager) -> None:
    manager.storeData(a=[b"1"], b=[b"2"])
    manager.storeData(a=[b"3"])
    assert (manager.retrieveData("a"), manager.retrieveData("b")) == ([b"3"], [b"2"])
    manager.deleteData("a")
    with pytest.raises(DataNotFound, match="'a'"):
        manager.retrieveData("a")
    with pytest.raises(KeyError):
        manager.deleteData("a")


@pytest.mark.parametrize("value", [None, 0, "", [], {}])
def test_an_empty_data_item_is_a_data_item(manager: TaskManager, value: Any) -> None:
    manager.storeData(empty=value)
    assert manager.retrieveData("empty") == value
    manager.deleteData("empty")
    with pytest.raises(DataNotFound):
        manager.retrieveData("empty")


def test_slaves_are_told_once_to_forget_a_deleted_item(manager: TaskManager) -> None:
    one, two = join(manager), join(manager)
    client = manager.registerProcess(None, "a client")[0]
    manager.storeData(state=X)
    manager.deleteData("state")
    for slave in (one, two):
        assert manager.exchange(slave)[1] == {"forget": ["state"]}
        assert manager.exchange(slave)[1] == {}
    assert manager.exchange(client)[1] == {}


def test_a_slave_that_was_away_is_told_to_forget_as_well(manager: TaskManager) -> None:
    slave = join(manager, token="t")
    manager.storeData(state=X)
    manager.lostProcess(slave, "its connection closed")
    manager.deleteData("state")
    manager.registerProcess(None, ProcessInfo("slave", 1, "host", 1, "t"), slave)
    assert manager.exchange(slave)[1].get("forget") == ["state"]


# --- the end --------------------------------------------------------------------------------


def test_the_end_wakes_everyone(live: TaskManager) -> None:
    slaves = [join(live), join(live, "cube")]
    live.addTaskRequest("unhandled", X)
    with in_line(live, slaves) as calls:
        single = Call(live.getAnyTask, slaves[0], LONG_S)
        clients = [
            Call(live.getResults, 0, None, 1, None),
            Call(live.getResults, 1, "sqrt", 1, LONG_S),
            Call(live.getAnyResult, 0),
        ]
        wait_for_clients(live, 3)
        wait_for_line(live, 3)
        live.terminate()
        for call in calls:
            assert call.outcome() == [[], {"terminate": True}]
        for call in [single, *clients]:
            with pytest.raises(TaskManagerTermination):
                call.outcome()


def test_after_the_end_nothing_begins_but_results_can_be_had(manager: TaskManager) -> None:
    slave = join(manager, workers=2)
    manager.addTaskRequests("sqrt", [X, X, X])
    first, second = take(manager, slave)
    give(manager, slave, first)
    manager.terminate()
    with pytest.raises(TaskManagerTermination):
        manager.addTaskRequest("sqrt", X)
    with pytest.raises(TaskManagerTermination):
        manager.getAnyTask(slave)
    assert manager.exchange(slave) == [[], {"terminate": True}]
    give(manager, slave, second)
    assert ids(manager.getResults(0, limit=5)) == [first.task_id, second.task_id]
    with pytest.raises(TaskManagerTermination):
        manager.getResults(0)


# --- questions ------------------------------------------------------------------------------


def test_status_tells_everything_in_plain_types(manager: TaskManager) -> None:
    manager.registerProcess(None, "the master")
    slave = join(manager, "sqrt cube", workers=2, token="secret")
    manager.addTaskRequests("sqrt", [X] * 4)
    first, second = take(manager, slave)
    give(manager, slave, first)
    manager.addTaskRequest("tan", X)
    manager.reportFailure(slave, "ValueError: no good\nTraceback...\n")
    status = json.loads(json.dumps(manager.status()))
    assert status == {
        "label": "job",
        "active_processes": 2,
        "masters": [{"id": 0, "info": "the master"}],
        "slaves": [
            {
                "id": slave, "info": "slave secret", "host": "host", "pid": 1, "workers": 2,
                "tags": ["cube", "sqrt"], "holds": 1, "finished": 1,
            }
        ],
        "workers": 2,
        "waiting": {"sqrt": 2, "tan": 1},
        "running": {"sqrt": 1},
        "finished": {"sqrt": 1},
        "delivered": 0,
        "cancelled": 0,
        "dropped": 0,
        "client_waits": False,
        "terminated": False,
        "failures": ["slave secret: ValueError: no good"],
    }  # fmt: skip
    assert second.task_id == "sqrt_1"


def test_status_names_a_slave_whose_workers_are_not_ready(manager: TaskManager) -> None:
    slave = manager.registerProcess(None, ProcessInfo("slave", 1, "host", 2, ""))[0]
    manager.announceSlave(slave)
    (row,) = manager.status()["slaves"]
    assert row["tags"] is None and row["workers"] == 2


def test_only_the_last_failures_are_kept(manager: TaskManager) -> None:
    for i in range(100):
        manager.reportFailure(i, f"failure {i}")
    failures = manager.status()["failures"]
    assert failures[-1] == "process 99: failure 99"
    assert len(failures) == 20


def test_processes_can_be_asked_for(manager: TaskManager) -> None:
    one, two = (manager.registerProcess(None, f"PID {i}")[0] for i in (1, 2))
    assert manager.numberOfActiveProcesses() == 2
    assert [manager.activeProcessInfo(pid) for pid in (one, two)] == ["PID 1", "PID 2"]
    manager.unregisterProcess(one)
    assert manager.activeProcesses() == [two]
    with pytest.raises(UnknownProcess):
        manager.activeProcessInfo(one)


# --- the calls for one task at a time -------------------------------------------------------


def test_one_task_at_a_time(manager: TaskManager) -> None:
    slave = join(manager, "sqrt cube")
    manager.addTaskRequest("sqrt", [b"2"])
    manager.addTaskRequest("cube", [b"3"])
    cube = manager.getTaskWithTag("cube", slave)
    assert (cube.task_id, cube.tag, cube.attempt, cube.frame) == ("cube_1", "cube", 1, [b"3"])
    sqrt = manager.getAnyTask(slave)
    assert sqrt.task_id == "sqrt_0"
    assert manager.getAnyTask(slave) is None
    manager.storeResult(cube.task_id, [b"27"], slave, cube.attempt)
    manager.storeException(sqrt.task_id, [b"error"], "Traceback: why", slave, sqrt.attempt)
    assert manager.getAnyResult() == Delivery("cube_1", "cube", "result", [b"27"], "")
    assert manager.getResultWithTag("sqrt") == Delivery(
        "sqrt_0", "sqrt", "exception", [b"error"], "Traceback: why"
    )


def test_a_returned_task_is_the_next(manager: TaskManager) -> None:
    slave = join(manager)
    manager.addTaskRequests("sqrt", [X, X])
    task = manager.getAnyTask(slave)
    manager.returnTask(task.task_id, slave, task.attempt)
    assert manager.numberOfTasks() == [{"sqrt": 2}, {}, {}]
    again = manager.getAnyTask(slave)
    assert (again.task_id, again.attempt) == (task.task_id, 2)


def test_waiting_for_one_task_ends_when_it_comes(live: TaskManager) -> None:
    slave = join(live)
    any_task = Call(live.getAnyTask, slave, LONG_S)
    wait_for_line(live, 1)
    tagged = Call(live.getTaskWithTag, "special", slave, LONG_S)
    wait_for_line(live, 2)
    special = live.addTaskRequest("special", X)
    assert tagged.outcome().task_id == special
    assert not any_task.done
    plain = live.addTaskRequest("sqrt", X)
    assert any_task.outcome().task_id == plain


@pytest.mark.parametrize("call", ["getAnyTask", "getTaskWithTag"])
def test_an_unregistered_process_gets_no_task(manager: TaskManager, call: str) -> None:
    arguments = ("sqrt", 99) if call == "getTaskWithTag" else (99,)
    with pytest.raises(UnknownProcess):
        getattr(manager, call)(*arguments)


# --- all together ---------------------------------------------------------------------------


def test_many_slaves_and_clients_lose_and_double_nothing(live: TaskManager) -> None:
    clients, slaves, each = 3, 6, 300
    ran: list[str] = []

    def be_client(number: int) -> list[str]:
        requested = live.addTaskRequests("sqrt", [X] * (each - 50), number)
        requested += [live.addTaskRequest("cube", X, number) for _ in range(50)]
        got: list[str] = []
        while len(got) < each:
            got += ids(live.getResults(number, None, 7, LONG_S))
        assert sorted(got) == sorted(requested)
        return got

    def be_slave(number: int) -> None:
        slave = join(live, "sqrt cube", workers=number % 2 + 1)
        done: list[Any] = []
        while True:
            tasks, notices = live.exchange(slave, done, (), True, 0.0 if done else LONG_S)
            if notices.get("terminate"):
                return
            ran.extend(ids(tasks))
            done = [(t.task_id, t.attempt, "result", t.frame, 1e-4, "") for t in tasks]

    workers = [Call(be_slave, number) for number in range(slaves)]
    delivered = [Call(be_client, number) for number in range(clients)]
    total = sum(len(call.outcome()) for call in delivered)
    live.terminate()
    for worker in workers:
        worker.outcome()
    assert total == clients * each
    assert max(Counter(ran).values()) == 1
    assert live.status()["delivered"] == clients * each
    assert live.numberOfTasks() == [{}, {}, {}]

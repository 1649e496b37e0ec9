"""A slave's uplink, on links of this process that break when the test wants it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave import ConnectionFailed, Settings, TaskManager, uplink
from masterslave.payload import Codec
from masterslave.records import Assignment, Completion, ProcessInfo
from masterslave.transports.memory import MemoryLink
from masterslave.uplink import News, Uplink

INFO = ProcessInfo("PID 1 on test", 1, "test", 2, "token")
SETTINGS = Settings(Path("unused"), master_gone_s=60.0, poll_s=0.2)


class Line:
    """Connects to a task manager; breaks where the test says, and remembers the calls."""

    def __init__(self, manager: TaskManager) -> None:
        self.manager = manager
        self.calls: list[str] = []
        self.refused = 0  # connections to be refused from now on
        self.plan: list[tuple[str, str]] = []  # breaks to come: in which call, before or after it,
        # or "lost": the slave is taken for dead just before it
        self._lock = threading.Lock()

    def connect(self) -> _BreakingLink:
        with self._lock:
            if self.refused:
                self.refused -= 1
                raise ConnectionFailed("nobody is there")
        return _BreakingLink(self)

    def breaks(self, method: str) -> str:
        """What is planned for this call; "" if nothing."""
        with self._lock:
            self.calls.append(method)
            if self.plan and self.plan[0][0] == method:
                return self.plan.pop(0)[1]
            return ""


class _BreakingLink:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._link = MemoryLink(line.manager)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        waits = method == "exchange" and args[4] > 0
        breaks = self._line.breaks("fetch" if waits else method)
        if breaks == "before":
            self.close()
            raise ConnectionFailed("it broke on the way there")
        if breaks == "lost":
            self._line.manager.lostProcess(args[0], "a test")
        answer = self._link.call(method, *args, **kwargs)
        if breaks == "after":
            self.close()
            raise ConnectionFailed("it broke on the way back")
        return answer

    def close(self) -> None:
        self._link.close()


class Slave:
    """What the uplink serves: takes its news, does the tasks at once if told to."""

    def __init__(self, line: Line, settings: Settings) -> None:
        self.news: list[News] = []
        self.tasks: list[Assignment] = []
        self.held: list[tuple[str, int]] = []
        self.works = False
        self.idle = False  # whether it says so when it hands in
        self.seen: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self.uplink = Uplink(line.connect, INFO, settings, self._take, lambda: list(self.held))

    def _take(self, news: News) -> None:
        self.news.append(news)
        self.tasks += news.tasks
        if self.works and not news.end:
            fresh = [t for t in news.tasks if (t.task_id, t.attempt) not in self.seen]
            self.seen += [(task.task_id, task.attempt) for task in fresh]
            self.uplink.hand_in([done(task) for task in fresh], [], room=1, idle=self.idle)

    def ends(self) -> list[str]:
        return [news.end for news in self.news if news.end]

    def data(self) -> list[tuple[str, Any, str]]:
        return [news.data for news in self.news if news.data is not None]


def done(task: Assignment) -> Completion:
    """The task's parameters are its result."""
    return Completion(task.task_id, task.attempt, "result", task.frame, 0.001, "")


@pytest.fixture
def manager() -> Iterator[TaskManager]:
    manager = TaskManager("job", SETTINGS)
    yield manager
    manager.terminate()


@pytest.fixture
def line(manager: TaskManager) -> Line:
    return Line(manager)


@pytest.fixture
def start(line: Line) -> Iterator[Callable[..., Slave]]:
    """A slave whose uplink has registered and runs."""
    slaves: list[Slave] = []

    def start(*, works: bool = False, announce: bool = True, **settings: Any) -> Slave:
        slave = Slave(line, replace(SETTINGS, **settings))
        slaves.append(slave)
        slave.works = works
        slave.uplink.register()
        slave.uplink.start()
        if announce:
            slave.uplink.announce(["echo"], None)
            slave.uplink.hand_in([], [], room=INFO.workers)
        return slave

    yield start
    for slave in slaves:
        slave.uplink.stop(10.0)
    wait_until(lambda: not any(t.name.startswith("uplink-") for t in threading.enumerate()))


def client_of(manager: TaskManager) -> int:
    """The process id of the only client, which registers when it is first needed."""
    known: list[int] = [member["id"] for member in manager.status()["masters"]]
    return known[0] if known else manager.registerProcess(None, "client")[0]


def request(manager: TaskManager, count: int) -> list[str]:
    client = client_of(manager)
    frames = [Codec().encode(i) for i in range(count)]
    return manager.addTaskRequests("echo", frames, client, [0, None, 0, 1000, None])


def results(manager: TaskManager, count: int) -> list[int]:
    """All results of the only client."""
    client = client_of(manager)
    got: list[Any] = []
    while len(got) < count:
        more = manager.getResults(client, None, count, PATIENCE_S)
        assert more, f"{len(got)} of {count} results have come: {manager.status()}"
        got += more
    assert manager.getResults(client, None, 1, 0.0) == []
    return [Codec().decode(delivery.frame) for delivery in got]


# --- joining and leaving --------------------------------------------------------------------


def test_a_slave_registers_and_gets_the_code_that_is_kept(manager: TaskManager, line: Line) -> None:
    manager.storeData(slave_code={"kind": "module"})
    slave = Slave(line, SETTINGS)
    assert slave.uplink.register() == {"kind": "module"}
    (row,) = manager.status()["slaves"]
    assert (row["pid"], row["workers"], row["tags"]) == (1, 2, None)
    slave.uplink.stop(0.0)
    assert manager.status()["slaves"] == []


def test_a_master_that_keeps_no_code(line: Line) -> None:
    slave = Slave(line, SETTINGS)
    assert slave.uplink.register() is None
    slave.uplink.stop(0.0)


def test_a_master_that_is_not_there(line: Line) -> None:
    line.refused = 1
    with pytest.raises(ConnectionFailed, match="nobody is there"):
        Slave(line, SETTINGS).uplink.register()


def test_tags_and_period_are_announced(manager: TaskManager, start: Callable[..., Slave]) -> None:
    slave = start(announce=False)
    slave.uplink.announce(["echo", "other"], 50.0)
    wait_until(lambda: manager.status()["slaves"][0]["tags"] == ["echo", "other"])
    assert manager.livenessInterval() == 50.0


def test_a_slave_pings_while_nothing_happens(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start(announce=False)
    slave.uplink.announce(["echo"], 0.05)
    before = len(line.calls)
    wait_until(lambda: line.calls[before:].count("exchange") >= 5)
    manager.checkLiveness()
    assert len(manager.status()["slaves"]) == 1


def test_stopping_hands_in_what_is_left_and_leaves(
    manager: TaskManager, start: Callable[..., Slave]
) -> None:
    slave = start()
    request(manager, 1)
    wait_until(lambda: slave.tasks)
    slave.uplink.hand_in([done(slave.tasks[0])], [], room=1)
    assert slave.uplink.stop(60.0) is True
    assert results(manager, 1) == [0]
    assert manager.status()["slaves"] == []


def test_stopping_gives_back_what_is_held(
    manager: TaskManager, start: Callable[..., Slave]
) -> None:
    slave = start()
    request(manager, 1)
    wait_until(lambda: slave.tasks)
    slave.uplink.stop(60.0)
    assert manager.numberOfTasks() == [{"echo": 1}, {}, {}]


# --- tasks and results ----------------------------------------------------------------------


def test_tasks_come_while_workers_are_idle_and_results_go(
    manager: TaskManager, start: Callable[..., Slave]
) -> None:
    slave = start(works=True)
    request(manager, 500)
    assert sorted(results(manager, 500)) == list(range(500))
    assert len(slave.tasks) == 500


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetcher that rests until it is needed."""
    monkeypatch.setattr(uplink, "_REST_S", 2 * PATIENCE_S)


def test_the_next_task_comes_with_the_answer_to_the_last_result(
    manager: TaskManager, line: Line, start: Callable[..., Slave], no_hurry: None
) -> None:
    slave = start(announce=False, works=True, poll_s=PATIENCE_S)
    slave.idle = True
    slave.uplink.announce(["echo"], None)
    slave.uplink.hand_in([], [], room=1)
    for i in range(20):
        wait_until(lambda: len(manager._handout.waiters), "the slave waits for a task")
        if i == 1:
            before = list(line.calls)
        request(manager, 1)
        assert results(manager, 1) == [0]
    wait_until(lambda: len(manager._handout.waiters))
    assert line.calls[len(before) :] == ["fetch"] * 19


def test_results_are_gathered_while_there_is_enough_to_do(
    manager: TaskManager, line: Line, start: Callable[..., Slave], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "_GATHER_S", 2 * PATIENCE_S)
    slave = start(poll_s=PATIENCE_S)
    request(manager, 2)
    wait_until(lambda: len(slave.tasks) == 2)
    before = line.calls.count("exchange")
    slave.uplink.hand_in([done(slave.tasks[0])], [], room=2, low=False)
    slave.uplink.hand_in([done(slave.tasks[1])], [], room=2, low=True)
    assert sorted(results(manager, 2)) == [0, 1]
    assert line.calls.count("exchange") <= before + 1


@pytest.mark.parametrize("waits", [False, True], ids=["", "while the sender waits"])
def test_results_are_not_gathered_for_ever(
    manager: TaskManager, line: Line, start: Callable[..., Slave], no_hurry: None, waits: bool
) -> None:
    slave = start(poll_s=PATIENCE_S)
    request(manager, 3)
    wait_until(lambda: len(slave.tasks) >= 2)
    first, second = slave.tasks[:2]
    slave.uplink.hand_in([done(first)], [], room=2, idle=waits)
    assert len(results(manager, 1)) == 1
    wait_until(lambda: len(slave.tasks) == 3)
    slave.uplink.hand_in([done(second)], [], room=2, low=False)
    assert len(results(manager, 1)) == 1


def test_what_is_to_be_sent_does_not_wait_for_tasks(
    manager: TaskManager, line: Line, start: Callable[..., Slave], no_hurry: None
) -> None:
    slave = start(poll_s=PATIENCE_S)
    request(manager, 2)
    wait_until(lambda: len(slave.tasks) == 2)
    first, second = slave.tasks
    slave.uplink.hand_in([done(first)], [], room=2, idle=True)
    assert results(manager, 1) == [0]
    wait_until(lambda: len(manager._handout.waiters), "the sender waits")
    slave.uplink.hand_in([], [second.task_id], room=2)
    wait_until(lambda: manager._queue.tasks[second.task_id].started)
    assert slave.uplink.stop(PATIENCE_S) is True


def test_a_slave_whose_sender_waits_can_be_stopped(
    manager: TaskManager, line: Line, start: Callable[..., Slave], no_hurry: None
) -> None:
    slave = start(works=True, poll_s=2 * PATIENCE_S)
    slave.idle = True
    request(manager, 2)
    assert sorted(results(manager, 2)) == [0, 1]
    wait_until(lambda: len(manager._handout.waiters), "the sender waits")
    assert slave.uplink.stop(PATIENCE_S) is True
    assert manager.status()["slaves"] == []


def test_no_tasks_come_before_the_workers_are_ready(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start(announce=False)
    slave.uplink.hand_in([], [], room=1)
    request(manager, 1)
    slave.uplink.need("nothing")  # an exchange that could bring the task
    wait_until(lambda: "exchange" in line.calls)
    assert slave.tasks == []


def test_no_tasks_come_after_they_were_refused(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start(announce=False)
    slave.uplink.announce(["echo"], None)
    wait_until(lambda: manager.status()["slaves"][0]["tags"])
    slave.uplink.hand_in([], [], room=1)
    wait_until(lambda: manager._roster.present[slave.uplink.process_id].room == 1)
    slave.uplink.refuse_tasks()
    wait_until(lambda: manager._roster.present[slave.uplink.process_id].room == 0)
    request(manager, 1)
    before = line.calls.count("exchange")
    slave.uplink.hand_in([], ["nothing_0"], room=1)
    wait_until(lambda: line.calls.count("exchange") > before)
    assert slave.tasks == []
    assert manager.numberOfTasks()[0] == {"echo": 1}


def test_no_tasks_come_in_advance_while_all_workers_are_at_long_tasks(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start(announce=False)
    slave.uplink.hand_in([], [], room=0)
    slave.uplink.announce(["echo"], None)
    wait_until(lambda: manager.status()["slaves"][0]["tags"])
    request(manager, 1)
    before = line.calls.count("exchange")
    slave.uplink.hand_in([], ["nothing_0"], room=0)
    wait_until(lambda: line.calls.count("exchange") > before)
    assert slave.tasks == []
    slave.uplink.hand_in([], [], room=1)
    wait_until(lambda: len(slave.tasks) == 1)


def test_started_tasks_are_told(manager: TaskManager, start: Callable[..., Slave]) -> None:
    """Only what was told as started costs a crash when the slave is lost."""
    slave = start()
    client = client_of(manager)
    frames = [Codec().encode(i) for i in range(2)]
    first, second = manager.addTaskRequests("echo", frames, client, [0, None, 0, 1, None])
    wait_until(lambda: len(slave.tasks) == 2)
    slave.uplink.hand_in([], [second], room=1)
    task = manager._queue.tasks[second]
    wait_until(lambda: task.started)
    manager.lostProcess(slave.uplink.process_id, "a test")
    (delivery,) = manager.getResults(client, None, 10, 0.0)
    assert (delivery.task_id, delivery.outcome) == (second, "crashed")
    assert list(manager._queue.tasks) == [first]  # waits, or runs again: the slave comes back


@pytest.mark.parametrize("method", ["announceSlave", "announceTags"])
def test_a_slave_taken_for_dead_while_it_registers_does_so_again(
    manager: TaskManager, line: Line, start: Callable[..., Slave], method: str
) -> None:
    slave = start(works=True)
    process_id = slave.uplink.process_id
    line.plan = [("exchange", "before"), (method, "lost")]
    request(manager, 3)
    assert sorted(results(manager, 3)) == [0, 1, 2]
    assert line.plan == []
    assert slave.ends() == []
    wait_until(lambda: process_id in manager.activeProcesses())


def test_cancelled_tasks_are_told(manager: TaskManager, start: Callable[..., Slave]) -> None:
    slave = start()
    (task_id,) = request(manager, 1)
    wait_until(lambda: slave.tasks)
    slave.uplink.hand_in([], [], room=1)  # one of two workers is idle: the slave listens
    assert manager.cancelTask(task_id)
    wait_until(lambda: any(news.stop for news in slave.news))
    assert [news.stop for news in slave.news if news.stop] == [[task_id]]


def test_data_items_come_as_news(manager: TaskManager, start: Callable[..., Slave]) -> None:
    manager.storeData(state_1_x=[b"value"])
    slave = start()
    slave.uplink.need("state_1_x")
    slave.uplink.need("state_1_y")
    wait_until(lambda: len(slave.data()) == 2)
    (first, second) = slave.data()
    assert first == ("state_1_x", [b"value"], "")
    assert second[:2] == ("state_1_y", None)
    assert "state_1_y" in second[2]


def test_deleted_data_items_are_told(manager: TaskManager, start: Callable[..., Slave]) -> None:
    manager.storeData(state_1_x=[b"value"])
    slave = start()
    wait_until(lambda: manager.status()["slaves"][0]["tags"])
    manager.deleteData("state_1_x")
    wait_until(lambda: any(news.forget for news in slave.news))
    assert [news.forget for news in slave.news if news.forget] == [["state_1_x"]]


def test_the_end_of_the_job_is_told(manager: TaskManager, start: Callable[..., Slave]) -> None:
    slave = start()
    wait_until(lambda: manager.status()["slaves"][0]["tags"])
    manager.terminate()
    wait_until(slave.ends)
    assert set(slave.ends()) == {"terminated"}


# --- connections that break -----------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "calls",
    [
        ["exchange"] * 5,
        ["exchange", "registerProcess", "registerProcess"],
        ["exchange", "announceSlave"],
        ["exchange", "announceTags"],
        ["fetch"] * 2,
    ],
    ids=" ".join,
)
def test_broken_connections_lose_and_double_nothing(
    manager: TaskManager, line: Line, start: Callable[..., Slave], calls: list[str], when: str
) -> None:
    slave = start(works=True)
    wait_until(lambda: manager.status()["slaves"] and manager.status()["slaves"][0]["tags"])
    got = []
    line.plan = [(call, when) for call in calls]
    for _ in range(10):
        request(manager, 20)
        got += results(manager, 20)
    assert sorted(got) == sorted(list(range(20)) * 10)
    assert line.plan == []  # all of it has happened
    assert slave.ends() == []
    assert manager.numberOfTasks() == [{}, {}, {}]


def test_tasks_that_were_lost_on_their_way_to_the_fetcher_are_run(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    """The fetcher's connection breaks, the sender's holds: nobody else tells of the loss."""
    start(works=True, poll_s=PATIENCE_S)
    wait_until(lambda: len(manager._handout.waiters), "the fetcher stands in line")
    line.plan = [("fetch", "after")]  # not that call, the next one
    request(manager, 1)
    assert results(manager, 1) == [0]
    wait_until(lambda: line.plan == [] and len(manager._handout.waiters))
    request(manager, 1)
    assert results(manager, 1) == [0]


def test_a_result_whose_answer_was_lost_is_handed_in_again_and_dropped(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start()
    request(manager, 1)
    wait_until(lambda: slave.tasks)
    line.plan = [("exchange", "after")] * 3
    slave.uplink.hand_in([done(slave.tasks[0])], [], room=1)
    wait_until(lambda: manager.status()["dropped"] == 3)
    assert results(manager, 1) == [0]


def test_a_slave_that_comes_back_is_the_same_and_keeps_its_tasks(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start()
    request(manager, 1)
    wait_until(lambda: slave.tasks)
    task = slave.tasks[0]
    slave.held = [(task.task_id, task.attempt)]
    before = slave.uplink.process_id
    line.plan = [("exchange", "before"), ("announceTags", "before")]
    slave.uplink.hand_in([], ["wake_0"], room=1)
    wait_until(lambda: line.plan == [])
    wait_until(lambda: [s["tags"] for s in manager.status()["slaves"]] == [["echo"]], "it is back")
    assert manager.numberOfTasks() == [{}, {"echo": 1}, {}]
    assert slave.uplink.process_id == before
    assert len(slave.tasks) == 1
    slave.uplink.hand_in([done(task)], [], room=1)
    assert results(manager, 1) == [0]


def test_a_slave_lets_go_of_what_others_run_by_now(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start()
    (task_id,) = request(manager, 1)
    wait_until(lambda: slave.tasks)
    slave.held = [(task_id, slave.tasks[0].attempt)]
    line.refused = 1_000_000
    line.plan = [("exchange", "before")]
    slave.uplink.hand_in([], ["wake_0"], room=1)
    wait_until(lambda: manager.numberOfTasks()[0] == {"echo": 1}, "the slave is missed")
    other = manager.registerProcess(None, "other")[0]
    manager.announceTags(other, ["echo"])
    assert manager.getAnyTask(other) is not None
    line.refused = 0
    wait_until(lambda: [(task_id, 1)] in [list(news.outdated) for news in slave.news])


def test_the_master_is_looked_for_again_and_again(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start(works=True)
    wait_until(lambda: manager.status()["slaves"][0]["tags"])
    line.refused = 4
    line.plan = [("exchange", "before")]
    request(manager, 10)
    assert sorted(results(manager, 10)) == list(range(10))
    assert line.refused == 0
    assert slave.ends() == []


def test_a_master_that_is_gone_for_too_long_ends_the_slave(
    line: Line, start: Callable[..., Slave]
) -> None:
    slave = start(master_gone_s=0.2)
    line.refused = 1_000_000
    line.plan = [("exchange", "before")]
    slave.uplink.hand_in([], ["wake_0"], room=1)
    wait_until(slave.ends)
    assert "the master has been gone for 0.2 s: nobody is there" in slave.ends()[0]


def test_stopping_while_the_master_is_gone_does_not_wait_for_it(
    manager: TaskManager, line: Line, start: Callable[..., Slave]
) -> None:
    slave = start()
    request(manager, 1)
    wait_until(lambda: slave.tasks)
    line.refused = 1_000_000
    line.plan = [("exchange", "before")]
    slave.uplink.hand_in([done(slave.tasks[0])], [], room=1)
    wait_until(lambda: line.refused < 999_998, "it looks for the master")
    assert slave.uplink.stop(50.0) is False  # what it had was not taken


# --- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [False, True], ids=["before it starts", "later"])
def test_a_failure_is_reported(
    manager: TaskManager, line: Line, start: Callable[..., Slave], started: bool
) -> None:
    if started:
        slave = start()
    else:
        slave = Slave(line, SETTINGS)
        slave.uplink.register()
    slave.uplink.stop(PATIENCE_S, failure="it is broken\nand here is more")
    assert manager.status()["failures"] == ["PID 1 on test: it is broken"]
    assert manager.status()["slaves"] == []


def test_an_error_of_the_uplink_itself_ends_the_slave(
    manager: TaskManager, start: Callable[..., Slave]
) -> None:
    slave = start()
    wait_until(lambda: manager.status()["slaves"][0]["tags"])
    slave.uplink.hand_in([Completion("x", 1, "no such outcome", [], 0.0, "")], [], room=1)
    wait_until(slave.ends)
    assert slave.ends()[0] not in ("", "terminated")


def test_results_are_added_by_another_thread_at_no_bad_moment(
    manager: TaskManager, start: Callable[..., Slave]
) -> None:
    """A garbage collection amid a loop over them may let the supervisor's thread add some."""
    slave = start()

    class Results(deque[Completion]):
        def __iter__(self) -> Iterator[Completion]:
            assert slave.uplink._changed._is_owned(), "others may change it"  # type: ignore[attr-defined]
            return super().__iter__()

    with slave.uplink._changed:
        slave.uplink._completions = Results(slave.uplink._completions)
    slave.works = True
    request(manager, 20)
    assert sorted(results(manager, 20)) == list(range(20))
    slave.uplink.register()
    assert slave.ends() == []

"""Clients of a served task manager, which is another process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Program, World, free_port, wait_until
from managing import Call

from masterslave import (
    MasterProcess,
    ResultTimeout,
    SettingsError,
    TaskLost,
    TaskManagerTermination,
    TaskRaisedException,
    UnknownTask,
)
from masterslave.attached import RemoteManager
from masterslave.errors import ConnectionFailed
from masterslave.stores.base import KEPT_ROWS
from masterslave.transports.channel import end_connection

SLAVE = """
    import os
    import time
    from masterslave import startSlaveProcess

    def do_square(x):
        return x * x

    def do_mark(name):
        # As many bytes as it has run.
        with open(name, "ab", buffering=0) as file:
            file.write(b".")
        return name

    def do_order(name):
        time.sleep(0.002)
        with open("order", "a") as file:
            file.write(name + chr(10))

    def do_until(path):
        while not os.path.exists(path):
            time.sleep(0.01)
        return path

    def do_fail():
        raise ValueError("no")

    startSlaveProcess("demo", "127.0.0.1:{port}")
"""


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Served:
    """A served task manager that can be killed and started again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.port = free_port()
        self.where = f"127.0.0.1:{self.port}"
        self.program: Program | None = None

    def serve(self, *arguments: object) -> Program:
        command = ("serve", "demo", "--port", self.port, *arguments)
        self.program = self.world.task_manager(*command)
        wait_until(lambda: answers(self.port), "it is there")
        return self.program

    def slave(self, label: str = "demo") -> Program:
        text = SLAVE.replace("{port}", str(self.port)).replace('"demo"', f'"{label}"')
        return self.world.script(text, name="slave.py")

    def attach(self, **options: Any) -> MasterProcess:
        return MasterProcess("demo", attach=True, master_host=self.where, **options)

    def kill(self) -> None:
        assert self.program is not None
        self.program.kill()
        self.program.wait()


@pytest.fixture
def served(world: World, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.chdir(world.path)
    return Served(world)


@pytest.fixture
def attach(served: Served) -> Iterator[Callable[[], MasterProcess]]:
    """Attaches clients, and has them leave at the end."""
    clients: list[MasterProcess] = []

    def attach(**options: Any) -> MasterProcess:
        clients.append(served.attach(**options))
        return clients[-1]

    yield attach
    for client in clients:
        client.shutdown()


Attach = Callable[..., MasterProcess]


def all_of(client: MasterProcess) -> dict[str, object]:
    return {task_id: value for task_id, _, value in client.results(timeout=PATIENCE_S)}


def test_a_client_has_the_methods_of_a_master(served: Served, attach: Attach) -> None:
    served.serve()
    served.slave()
    client = attach()
    ids = client.requestTasks("square", [(i,) for i in range(500)])
    assert all_of(client) == {task_id: i * i for i, task_id in enumerate(ids)}
    one = client.requestTask("fail")
    two = client.requestTask("square", 3)
    assert client.retrieveResult("square", PATIENCE_S) == (two, "square", 9)
    with pytest.raises(TaskRaisedException, match="ValueError: no") as caught:
        client.retrieveResult(timeout=PATIENCE_S)
    assert caught.value.task_id == one
    with pytest.raises(ResultTimeout):
        client.retrieveResult(timeout=0.0)
    waiting = client.requestTask("nobody")
    assert client.cancelTask(waiting)
    assert not client.cancelTask(waiting)
    with pytest.raises(UnknownTask):
        client.cancelTask("never_5")
    assert list(client.results()) == []
    state = client.setGlobalState(a=1)
    client.repeatStragglers("square")
    client.deleteGlobalState(state)
    client.shutdown()
    assert client.retrieveResult() == (None, None, None)
    with pytest.raises(TaskManagerTermination):
        client.requestTask("square", 1)


def test_a_result_that_overtakes_its_tasks_id_is_not_lost(
    served: Served, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.serve()
    served.slave()
    client = attach()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(client.retrieveResult(None, PATIENCE_S)))
    waiting.start()  # so that results are asked for
    manager = client.task_manager
    assert isinstance(manager, RemoteManager)
    take_note = manager.take_note

    def late(generation: int, serial: int, answer: Any, note: Any) -> bool:
        wait_until(lambda: manager._early, "the result is here")
        return take_note(generation, serial, answer, note)

    monkeypatch.setattr(manager, "take_note", late)
    task_id = client.requestTask("square", 7)
    waiting.join(PATIENCE_S)
    assert got == [(task_id, "square", 49)]
    assert list(client.results()) == [] and not manager._early


def test_many_threads_use_one_client(served: Served, attach: Attach) -> None:
    served.serve()
    served.slave()
    client = attach()
    received: Counter[str] = Counter()
    lock = threading.Lock()

    def work(number: int) -> None:
        for i in range(20):
            client.requestTask("square", number * 100 + i)
        for _ in range(20):
            task_id = client.retrieveResult(timeout=PATIENCE_S)[0]
            with lock:
                received[str(task_id)] += 1

    calls = [Call(work, number) for number in range(8)]
    for call in calls:
        call.outcome()
    assert len(received) == 160
    assert set(received.values()) == {1}


def test_a_waiting_thread_is_woken_by_cancelling_and_by_the_end(
    served: Served, attach: Attach
) -> None:
    served.serve()
    client = attach()
    task = client.requestTask("nobody")
    rest = Call(lambda: list(client.results()))
    wait_until(lambda: client.task_manager.status()["client_waits"], "it waits")
    assert client.cancelTask(task)
    assert rest.outcome() == []
    client.requestTask("nobody")
    waits = Call(client.retrieveResult)
    wait_until(lambda: client.task_manager.status()["client_waits"], "it waits")
    assert served.program is not None
    served.program.terminate()
    assert waits.outcome() == (None, None, None)
    served.program.finish()


def test_the_second_client_is_served_as_if_it_had_half_the_workers(
    served: Served, attach: Attach
) -> None:
    served.serve()
    served.slave()
    first, second = attach(), attach()
    first.requestTasks("order", [("first",) for _ in range(10_000)])
    for _ in range(20):
        first.retrieveResult(timeout=PATIENCE_S)
    second.requestTasks("order", [("second",) for _ in range(10)])
    for _ in range(10):
        second.retrieveResult(timeout=PATIENCE_S)
    order = Path("order").read_text().split()
    turns = [place for place, name in enumerate(order) if name == "second"]
    assert len(turns) == 10
    assert turns[-1] - turns[0] <= 20, "more of the other one's tasks ran between its ten"
    (row, _) = second.task_manager.status()["clients"]
    assert row["waiting"] + row["running"] + row["finished"] > 0


def test_one_client_ends_nothing_for_the_other(served: Served, attach: Attach) -> None:
    served.serve()
    served.slave()
    first, second = attach(), attach()
    first.requestTasks("nobody", [()] * 5)
    second.requestTasks("square", [(i,) for i in range(5)])
    first.shutdown()
    assert len(all_of(second)) == 5
    assert [sum(counts.values()) for counts in second.task_manager.numberOfTasks()] == [0, 0, 0]
    out = served.world.task_manager("show", "demo", "-m", served.where, "-v").finish()
    assert out.count("client") >= 1


def test_the_tasks_of_a_client_that_was_killed_are_dropped(
    world: World, served: Served, attach: Attach
) -> None:
    world.env["MASTERSLAVE_CLIENT_GRACE"] = "0.5"
    served.serve()
    witness = attach()
    program = world.script(
        f"""
        import time
        from masterslave import MasterProcess
        master = MasterProcess("demo", attach=True, master_host="{served.where}")
        master.requestTasks("nobody", [()] * 7)
        time.sleep(1000)
        """
    )
    counts = witness.task_manager.numberOfTasks
    wait_until(lambda: counts()[0].get("nobody") == 7, "the tasks are there")
    program.kill()
    wait_until(lambda: not counts()[0].get("nobody"), "they are dropped")


def test_with_keep_they_are_not(world: World, served: Served, attach: Attach) -> None:
    world.env["MASTERSLAVE_CLIENT_GRACE"] = "0"
    served.serve("--keep")
    witness = attach()
    program = world.script(
        f"""
        import time
        from masterslave import MasterProcess
        master = MasterProcess("demo", attach=True, master_host="{served.where}")
        master.requestTasks("nobody", [()] * 7)
        time.sleep(1000)
        """
    )
    status = witness.task_manager.status
    wait_until(lambda: status()["waiting"].get("nobody") == 7, "the tasks are there")
    program.kill()
    wait_until(lambda: any("lost_s" in row for row in status()["clients"]), "it is lost")
    (row,) = (row for row in status()["clients"] if "lost_s" in row)
    assert row["waiting"] == 7
    out = world.task_manager("show", "demo", "-m", served.where, "-v").finish()
    assert "its tasks are kept" in out


# --- what breaks ----------------------------------------------------------------------------


def cut(client: MasterProcess) -> None:
    """Break the connections of a client, as a network does."""
    manager = client.task_manager
    links = [manager._link, *(lane._link for lane in manager._lanes)]  # type: ignore[union-attr]
    for link in links:
        if link is not None:
            end_connection(link._sock)


def test_when_the_network_breaks_nothing_is_lost_or_done_twice(
    served: Served, attach: Attach
) -> None:
    served.serve()
    served.slave()
    client = attach()
    received: list[str] = []
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            seen = len(received)
            cut(client)
            wait_until(lambda seen=seen: stop.is_set() or len(received) > seen, "work goes on")  # type: ignore[misc]

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        requested = []
        for i in range(200):
            requested.append(client.requestTask("mark", f"mark-{i}"))
            if i % 3 == 2:
                received.append(str(client.retrieveResult(timeout=PATIENCE_S)[0]))
        for task_id, _, _ in client.results(timeout=PATIENCE_S):
            received.append(task_id)
    finally:
        stop.set()
        disturber.join()
    assert sorted(received) == sorted(requested)
    runs = [os.path.getsize(f"mark-{i}") for i in range(200)]
    assert runs == [1] * 200


def test_a_killed_task_manager_is_started_again_and_clients_get_each_result_once(
    world: World, served: Served, attach: Attach
) -> None:
    served.serve("--journal", "journal.db")
    served.slave()
    clients = attach(), attach()
    received: list[dict[str, object]] = [{}, {}]

    def work(index: int) -> list[str]:
        client, requested = clients[index], []
        for i in range(300):
            # Equal for both clients, and each number thrice.
            requested.append(client.requestTask("square", i // 3))
            if i % 2:
                task_id, _, value = client.retrieveResult(timeout=PATIENCE_S)
                assert task_id not in received[index]
                received[index][str(task_id)] = value
        for task_id, _, value in client.results(timeout=PATIENCE_S):
            assert task_id not in received[index]
            received[index][task_id] = value
        return requested

    calls = [Call(work, index) for index in range(2)]
    for limit in (40, 90, 140):
        wait_until(lambda limit=limit: len(received[0]) > limit, "results come")  # type: ignore[misc]
        served.kill()
        served.serve("--journal", "journal.db")
    requested = [call.outcome() for call in calls]
    for index in range(2):
        expected = {task_id: (i // 3) ** 2 for i, task_id in enumerate(requested[index])}
        assert received[index] == expected
    assert not set(requested[0]) & set(requested[1])


def rows(path: Path) -> dict[str, int]:
    """How many rows each table of a journal that nobody has open has."""
    tables = ("task", "ending", "setback", "hand_out", "piece", "forgotten")
    with contextlib.closing(sqlite3.connect(path)) as db:
        return {
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables
        }


def test_a_journal_is_not_larger_for_what_its_clients_have_received(
    world: World, served: Served, attach: Attach
) -> None:
    """Through kills at any moment: what is left is bounded by what is under way."""
    served.serve("--journal", "journal.db")
    served.slave()
    client = attach()
    received: list[str] = []

    def work() -> list[str]:
        requested = []
        for i in range(40):
            requested += client.requestTasks("square", [(j,) for j in range(100)])
            for _ in range(100):
                task_id, _, _ = client.retrieveResult(timeout=PATIENCE_S)
                received.append(str(task_id))
            if i % 10 == 0:
                requested.append(client.requestTask("fail"))
                with pytest.raises(TaskRaisedException) as caught:
                    client.retrieveResult(timeout=PATIENCE_S)
                received.append(caught.value.task_id)
        return requested

    call = Call(work)
    for limit in (500, 1500, 2500):
        wait_until(lambda limit=limit: len(received) > limit or call.done, "results come")  # type: ignore[misc]
        served.kill()
        left = rows(world.path / "journal.db")
        # One request of 100 and what was received of the one before; hand-outs have a slack.
        assert left["task"] <= 200 + left["forgotten"], left
        assert left["ending"] <= 200 + left["forgotten"], left
        assert left["hand_out"] <= 2 * KEPT_ROWS, left
        served.serve("--journal", "journal.db")
    requested = call.outcome()
    assert len(requested) == 4004
    assert sorted(received) == sorted(requested)  # each once
    client.shutdown()
    program = served.program
    assert program is not None
    program.send_signal(signal.SIGTERM)
    program.finish(0)
    left = rows(world.path / "journal.db")
    assert (left["task"], left["ending"], left["forgotten"]) == (4, 4, 4), left
    assert left["setback"] == left["piece"] == 0
    out = world.task_manager("failures", "journal.db").finish(0)
    assert out.count("ValueError: no") >= 4
    served.serve("--journal", "journal.db")
    status = attach().task_manager.status()
    assert (status["parked"], status["waiting"], status["finished"]) == (0, {}, {})


def test_an_idle_client_learns_of_a_planned_end(served: Served, attach: Attach) -> None:
    program = served.serve()
    served.slave()
    client = attach()
    client.requestTask("square", 3)
    assert client.retrieveResult(timeout=PATIENCE_S)[2] == 9
    manager = client.task_manager
    assert isinstance(manager, RemoteManager)
    program.send_signal(signal.SIGTERM)
    wait_until(lambda: manager._trouble is not None, "it has heard of the end")
    assert isinstance(manager._trouble, TaskManagerTermination)
    with pytest.raises(TaskManagerTermination, match="the task manager has ended"):
        client.requestTask("square", 4)
    program.finish(0)


def test_results_that_nobody_has_asked_for_yet_come_before_the_end(
    served: Served, attach: Attach
) -> None:
    program = served.serve()
    served.slave()
    client, other = attach(), attach()
    client.requestTask("square", 3)
    wait_until(lambda: other.task_manager.status()["finished"].get("square"), "it has run")
    program.send_signal(signal.SIGTERM)
    program.finish(0)
    assert client.retrieveResult(timeout=PATIENCE_S)[2] == 9


def test_a_task_runs_once_though_the_task_manager_was_killed_meanwhile(
    world: World, served: Served, attach: Attach
) -> None:
    served.serve("--journal", "journal.db")
    served.slave()
    client = attach()
    ids = client.requestTasks("mark", [(f"mark-{i}",) for i in range(50)])
    ids.append(client.requestTask("until", str(world.path / "go")))
    wait_until(lambda: Path("mark-49").exists(), "they have run")
    wait_until(lambda: client.task_manager.status()["running"].get("until"), "it runs")
    served.kill()
    served.serve("--journal", "journal.db")
    world.write("go", "")
    assert sorted(all_of(client)) == sorted(ids)
    assert [os.path.getsize(f"mark-{i}") for i in range(50)] == [1] * 50


def test_without_a_journal_the_tasks_are_lost_and_that_is_said(
    served: Served, attach: Attach
) -> None:
    served.serve()
    client = attach()
    task = client.requestTask("nobody")
    state = client.setGlobalState(a=1)
    served.kill()
    served.serve()
    with pytest.raises(TaskRaisedException, match="started again") as caught:
        client.retrieveResult(timeout=PATIENCE_S)
    assert caught.value.task_id == task
    assert isinstance(caught.value.exception, TaskLost)
    assert client.task_manager.retrieveData(f"state_{state}_a")  # given to the new one


def test_a_task_manager_that_stays_away_is_given_up(
    world: World, served: Served, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTERSLAVE_MASTER_GONE", "0.3")
    served.serve()
    client = attach()
    client.requestTask("nobody")
    waits = Call(client.retrieveResult)
    served.kill()
    with pytest.raises(ConnectionFailed, match=r"gone for 0\.3 s"):
        waits.outcome()
    with pytest.raises(ConnectionFailed, match=r"gone for 0\.3 s"):
        client.requestTask("nobody")


def test_a_client_that_was_stopped_for_long_learns_that_its_tasks_were_dropped(
    world: World, served: Served, attach: Attach
) -> None:
    world.env["MASTERSLAVE_CLIENT_GRACE"] = "0.2"
    served.serve()
    witness = attach()
    client = attach()
    client.requestTask("nobody")
    # Its connections break, and it finds the way back only when its time is over.
    manager = client.task_manager
    connect, manager._connect = manager._connect, _nowhere  # type: ignore[union-attr]
    cut(client)
    counts = witness.task_manager.numberOfTasks
    wait_until(lambda: not counts()[0].get("nobody"), "it is dropped")
    manager._connect = connect  # type: ignore[union-attr]
    with pytest.raises(TaskRaisedException) as caught:
        client.retrieveResult(timeout=PATIENCE_S)
    assert isinstance(caught.value.exception, TaskLost)


def _nowhere() -> object:
    raise ConnectionFailed("no way")


# --- slaves' code ---------------------------------------------------------------------------

JOB = """
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def run(self):
            self.requestTasks("WORD", [(i,) for i in range(5)])
            for _, _, value in self.results():
                print(value, flush=True)

    class Slave(SlaveProcess):
        def do_WORD(self, x):
            return f"WORD {x}"

    runJob("demo", Master, Slave, attach=True, master_host="WHERE")
"""


def job(served: Served, word: str) -> Program:
    text = JOB.replace("WORD", word).replace("WHERE", served.where)
    return served.world.script(text, name=f"{word}.py")


def test_clients_in_succession_bring_their_code_to_the_same_slave(
    world: World, served: Served
) -> None:
    served.serve()
    slave = world.task_manager("slave", "demo", "-m", served.where)
    for word in ("one", "two", "one"):
        out = job(served, word).finish()
        assert sorted(out.splitlines()) == [f"{word} {i}" for i in range(5)]
    assert slave.poll() is None
    assert served.program is not None
    served.program.terminate()
    served.program.finish()
    slave.finish()


def test_while_one_client_has_brought_its_code_another_ones_is_refused(
    world: World, served: Served, attach: Attach
) -> None:
    served.serve()
    first = job(served, "one")  # waits, as there is no slave
    client = attach()
    wait_until(lambda: client.task_manager.status()["waiting"].get("one"), "it is there")
    refused = job(served, "two")
    refused.finish(1)
    assert "work with the code of PID" in refused.err
    world.task_manager("slave", "demo", "-m", served.where)
    assert len(first.finish().splitlines()) == 5
    assert len(job(served, "two").finish().splitlines()) == 5


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"master_host": "127.0.0.1"}, "give attach=True"),
        ({"attach": True, "master_host": 5}, "master_host=5"),
        ({"attach": True, "journal": "file"}, "task_manager serve LABEL --journal FILE"),
        ({"attach": True, "weight": 0}, "weight=0: must be a number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    world: World, options: dict[str, object], text: str
) -> None:
    with pytest.raises(SettingsError, match=text):
        MasterProcess("demo", **options)  # type: ignore[arg-type]


def test_where_nothing_is_served_that_is_said(world: World) -> None:
    with pytest.raises(ConnectionFailed, match="cannot reach a task manager"):
        MasterProcess("demo", attach=True, master_host=f"127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionFailed, match="name server"):
        MasterProcess("demo", attach=True)

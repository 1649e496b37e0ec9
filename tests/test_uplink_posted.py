"""Calls that a slave's supervisor makes by itself: posted, answered later, mended by the sender."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, wait_until

from masterslave import Settings, TaskManager
from masterslave.payload import Codec
from masterslave.records import Assignment, Completion, ProcessInfo
from masterslave.settings import split_address
from masterslave.transports.channel import end_connection
from masterslave.transports.pyro import PyroLink, PyroServer
from masterslave.uplink import News, Uplink

KEY = b"k" * 32
INFO = ProcessInfo("PID 1 on test", 1, "test", 1, "token")
SETTINGS = Settings(Path("unused"), master_gone_s=60.0, poll_s=PATIENCE_S)


class Slave:
    """Plays the supervisor in a thread of its own: does each task at once."""

    def __init__(self, address: tuple[str, int], settings: Settings) -> None:
        self.links: list[PyroLink] = []
        self.news: list[News] = []
        self.by_sender = 0  # calls that the sender's thread made
        self._inbox: list[News] = []
        self._out, self._in = socket.socketpair()
        self._over = False

        def connect() -> PyroLink:
            link = PyroLink(address, "job", KEY, PATIENCE_S)
            self.links.append(link)
            return link

        self.uplink = Uplink(connect, INFO, settings, self._hear, list)
        make = self.uplink._exchange_now

        def counted(call: Any) -> Any:
            self.by_sender += 1
            return make(call)

        self.uplink._exchange_now = counted  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Slave:
        self.uplink.register()
        self.uplink.start()
        self.uplink.announce(["echo"], None)
        self._thread.start()
        return self

    def leave(self) -> bool:
        """Stop; whether all was acknowledged."""
        self._over = True
        self._in.send(b"\0")
        self._thread.join(PATIENCE_S)
        clean = self.uplink.stop(PATIENCE_S)
        for end in (self._out, self._in):
            end.close()
        return clean

    def _hear(self, news: News) -> None:
        self._inbox.append(news)
        with contextlib.suppress(OSError):  # it has left
            self._in.send(b"\0")

    def _run(self) -> None:
        self.uplink.hand_in([], [], room=1, idle=True)
        while not self._over:
            link = self.uplink.posted_on
            files = [self._out.fileno()]
            if link is not None:
                files.append(os.dup(link.fileno() or 0))
            ready, _, _ = select.select(files, [], [], self.uplink.wait_s(time.monotonic()))
            if files[0] in ready:
                self._out.recv(100)
            for file in files[1:]:
                os.close(file)
                if file in ready:
                    self.uplink.take_answer()
            self.uplink.look(time.monotonic())
            while self._inbox:
                news = self._inbox.pop(0)
                self.news.append(news)
                ended = [done(task) for task in news.tasks]
                if ended:
                    self.uplink.hand_in(ended, [], room=1, idle=True)


def done(task: Assignment) -> Completion:
    """The task's parameters are its result."""
    return Completion(task.task_id, task.attempt, "result", task.frame, 0.001, "")


@pytest.fixture
def manager() -> Iterator[TaskManager]:
    manager = TaskManager("job", SETTINGS)
    yield manager
    manager.terminate()


@pytest.fixture
def server(manager: TaskManager) -> Iterator[PyroServer]:
    server = PyroServer(manager, "127.0.0.1", 0, KEY, PATIENCE_S)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def start(server: PyroServer) -> Iterator[Callable[..., Slave]]:
    slaves: list[Slave] = []

    def start(**settings: Any) -> Slave:
        address = split_address(server.addresses[0])
        slaves.append(Slave(address, replace(SETTINGS, **settings)).start())
        return slaves[-1]

    yield start
    for slave in slaves:
        if not slave._over:
            slave.leave()
    wait_until(lambda: not any(t.name.startswith("uplink-") for t in threading.enumerate()))


class Client:
    def __init__(self, manager: TaskManager) -> None:
        self.manager = manager
        self.id = manager.registerProcess(None, "client")[0]

    def one(self, value: Any) -> Any:
        """The result of one task."""
        self.manager.addTaskRequest("echo", Codec().encode(value), self.id)
        got = self.manager.getResults(self.id, None, 1, PATIENCE_S)
        assert got, self.manager.status()
        return Codec().decode(got[0].frame)


@pytest.fixture
def client(manager: TaskManager) -> Client:
    return Client(manager)


def posts(slave: Slave) -> bool:
    """Whether the supervisor waits for the answer to a call that waits for tasks."""
    return slave.uplink._posted is not None and slave.uplink._sender_waits


def begin_to_post(client: Client, slave: Slave) -> None:
    """Until then it may be the fetcher that waits for tasks, as in the beginning."""

    def does() -> bool:
        assert client.one("first") == "first"
        return posts(slave)

    wait_until(does, "a call that waits for tasks is posted")


def test_one_task_after_the_other_wakes_no_thread(
    client: Client, start: Callable[..., Slave]
) -> None:
    slave = start()
    begin_to_post(client, slave)
    before = slave.by_sender
    for i in range(50):
        assert client.one(i) == i
    # Some may be made by the thread where the machine is slow: it had not begun to rest.
    assert slave.by_sender - before <= 25


@pytest.mark.parametrize("size", [10_000, 100_000, 3_000_000])
def test_large_tasks_and_results(client: Client, start: Callable[..., Slave], size: int) -> None:
    slave = start()
    begin_to_post(client, slave)
    for value in (os.urandom(size), 1, os.urandom(size)):
        assert client.one(value) == value


def test_a_connection_that_breaks_under_a_posted_call_is_mended(
    manager: TaskManager, client: Client, start: Callable[..., Slave]
) -> None:
    slave = start()
    for _ in range(5):
        begin_to_post(client, slave)
        link = slave.uplink._poster
        assert isinstance(link, PyroLink)
        end_connection(link._sock)
        wait_until(lambda broken=link: slave.uplink._link not in (broken, None))  # type: ignore[misc]
    assert client.one(7) == 7
    assert manager.numberOfTasks() == [{}, {}, {}]


def test_a_connection_that_breaks_as_a_call_is_posted_loses_nothing(
    manager: TaskManager, client: Client, start: Callable[..., Slave]
) -> None:
    slave = start()
    begin = slave.uplink._begin
    for i in range(5):
        begin_to_post(client, slave)
        failed = threading.Event()

        def breaks(link: Any, call: Any, batch: Any, failed: threading.Event = failed) -> None:
            slave.uplink._begin = begin  # type: ignore[method-assign]
            end_connection(link._sock)
            failed.set()
            begin(link, call, batch)

        slave.uplink._begin = breaks  # type: ignore[method-assign]
        assert client.one(i) == i
        assert failed.wait(PATIENCE_S)
        assert client.one(i) == i
    assert manager.numberOfTasks() == [{}, {}, {}]


def test_data_items_that_are_needed_under_a_posted_call(
    manager: TaskManager, client: Client, start: Callable[..., Slave]
) -> None:
    manager.storeData(state_1_x=[b"value"])
    slave = start()
    begin_to_post(client, slave)
    slave.uplink.need("state_1_x")
    wait_until(lambda: any(news.data for news in slave.news))
    assert [news.data for news in slave.news if news.data] == [("state_1_x", [b"value"], "")]
    assert client.one(1) == 1


def test_leaving_under_a_posted_call(
    manager: TaskManager, client: Client, start: Callable[..., Slave]
) -> None:
    slave = start()
    begin_to_post(client, slave)
    assert slave.leave()
    assert manager.status()["slaves"] == []


def test_the_end_of_the_job_under_a_posted_call(
    manager: TaskManager, client: Client, start: Callable[..., Slave]
) -> None:
    slave = start()
    begin_to_post(client, slave)
    manager.terminate()
    wait_until(lambda: any(news.end for news in slave.news))
    assert {news.end for news in slave.news if news.end} == {"terminated"}


def test_a_posted_call_whose_time_is_over_hands_the_waiting_to_the_fetcher(
    client: Client, start: Callable[..., Slave]
) -> None:
    slave = start(poll_s=0.2)
    assert client.one(0) == 0
    wait_until(lambda: slave.uplink._fetching and slave.uplink._posted is None)
    assert client.one(1) == 1


def test_the_fetcher_waits_again_when_the_task_takes_long(
    client: Client, manager: TaskManager, start: Callable[..., Slave]
) -> None:
    """Nothing is handed in, so nobody but `look` wakes the fetcher, which rests."""
    slave = start()
    begin_to_post(client, slave)
    hand_in = slave.uplink.hand_in
    held: list[Any] = []
    slave.uplink.hand_in = lambda *args, **kwargs: held.append((args, kwargs))  # type: ignore[method-assign]
    task_id = manager.addTaskRequest("echo", Codec().encode(1), client.id)
    wait_until(lambda: held)
    wait_until(lambda: slave.uplink._fetching)
    assert manager.cancelTask(task_id)
    wait_until(lambda: any(news.stop for news in slave.news))
    slave.uplink.hand_in = hand_in  # type: ignore[method-assign]


def test_a_lost_slave_registers_again_by_the_answer_to_a_posted_call(
    manager: TaskManager, client: Client, start: Callable[..., Slave]
) -> None:
    slave = start()
    begin_to_post(client, slave)
    manager.lostProcess(slave.uplink.process_id, "a test")
    assert client.one(1) == 1
    assert manager.activeProcesses() == [client.id, slave.uplink.process_id]

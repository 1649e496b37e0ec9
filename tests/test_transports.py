"""One contract for every way to reach a task manager, then what only the network has."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, free_port, wait_until

from masterslave.errors import (
    AuthenticationError,
    ConnectionFailed,
    DataNotFound,
    LabelUnknown,
    MasterSlaveError,
    SettingsError,
    TaskManagerTermination,
    UnknownProcess,
    UnknownTask,
)
from masterslave.manager import TaskManager
from masterslave.records import ProcessInfo, TaskOptions, as_assignment
from masterslave.settings import Settings, split_address
from masterslave.transports.base import Link
from masterslave.transports.memory import MemoryLink
from masterslave.transports.pyro import PyroLink, PyroServer
from masterslave.transports.remote import REMOTE_METHODS

KEY = b"k" * 32
LONG_S = 4 * PATIENCE_S
X = [b"x"]


class Hub:
    """A task manager and the links to it."""

    def __init__(self, connect: Callable[[], Link], manager: TaskManager) -> None:
        self.manager = manager
        self._connect = connect
        self._links: list[Link] = []

    def link(self) -> Link:
        link = self._connect()
        self._links.append(link)
        return link

    def close(self) -> None:
        self.manager.terminate()
        for link in self._links:
            link.close()


def make_manager(label: str = "job") -> TaskManager:
    return TaskManager(label, Settings(key_file=Path("unused")))


@pytest.fixture
def server() -> Iterator[PyroServer]:
    manager = make_manager()
    server = PyroServer(manager, "127.0.0.1", 0, KEY, PATIENCE_S)
    server.start()
    yield server
    manager.terminate()
    server.stop()


def address(server: PyroServer) -> tuple[str, int]:
    return split_address(server.addresses[0])


@pytest.fixture(params=["memory", "pyro"])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    manager = make_manager()
    if request.param == "memory":
        hub = Hub(lambda: MemoryLink(manager), manager)
        yield hub
        hub.close()
        return
    server = PyroServer(manager, "127.0.0.1", 0, KEY, PATIENCE_S)
    server.start()
    hub = Hub(lambda: PyroLink(address(server), "job", KEY, PATIENCE_S), manager)
    yield hub
    hub.close()
    server.stop()


def join(link: Link, token: str = "", resume: int | None = None, held: Any = ()) -> tuple[int, Any]:
    info = list(ProcessInfo(f"slave {token}", 1, "host", 1, token))
    process_id, obsolete, _ = link.call("registerProcess", None, info, resume, list(held))
    link.call("announceTags", process_id, ["sqrt"])
    return process_id, obsolete


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._work = function, args
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        function, args = self._work
        try:
            self._result = function(*args)
        except BaseException as error:
            self._error = error

    def outcome(self) -> Any:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the call is still blocked"
        if self._error is not None:
            raise self._error
        return self._result


def wait_for_line(manager: TaskManager, length: int) -> None:
    def stand() -> bool:
        with manager._lock:
            return len(manager._handout.waiters) == length

    wait_until(stand, f"{length} stand in line")


# --- the contract ---------------------------------------------------------------------------


def test_a_task_goes_there_and_back(hub: Hub) -> None:
    client, slave = hub.link(), hub.link()
    process_id, _ = join(slave)
    options = list(TaskOptions(timeout=2.5))
    assert client.call("addTaskRequest", "sqrt", [b"head", b"buffer"], 0, options) == "sqrt_0"
    tasks, notices = slave.call("exchange", process_id, [], [], True, 0.0)
    assert notices == {}
    (task,) = map(as_assignment, tasks)
    assert task == ("sqrt_0", "sqrt", 1, [b"head", b"buffer"], 2.5)
    done = ["sqrt_0", 1, "result", [b"result", bytes(range(256))], 0.1, ""]
    slave.call("exchange", process_id, [done], ["sqrt_0"], False, 0.0)
    (delivery,) = client.call("getResults", 0, None, 1, 0.0)
    assert list(delivery) == ["sqrt_0", "sqrt", "result", [b"result", bytes(range(256))], ""]


def test_bytes_arrive_as_bytes(hub: Hub) -> None:
    hub.link().call("storeData", item=[b"\x80\x00"])
    (piece,) = hub.link().call("retrieveData", "item")
    assert type(piece) is bytes and piece == b"\x80\x00"


def test_keyword_arguments(hub: Hub) -> None:
    link = hub.link()
    link.call("storeData", **{"a": [b"1"], "with blank": [b"2"]})
    assert link.call("retrieveData", name="with blank") == [b"2"]
    assert link.call("getResults", process_id=3, tag="sqrt", limit=2, timeout=0.0) == []


def test_text_and_numbers_arrive_as_they_are(hub: Hub) -> None:
    link = hub.link()
    value = {"größe ☃": [1, -1, 2**63, 1.5, float("inf"), True, None, "", "\0"]}
    link.call("storeData", item=value)
    assert link.call("retrieveData", "item") == value


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (DataNotFound, ("retrieveData", "nothing")),
        (KeyError, ("deleteData", "nothing")),
        (UnknownProcess, ("ping", 99)),
        (UnknownTask, ("cancelTask", "sqrt_99")),
        (SettingsError, ("addTaskRequest", "sqrt", X, 0, [0, -1.0, 0, 5, None])),
        (TypeError, ("ping",)),
    ],
)
def test_errors_arrive_as_the_same_class(
    hub: Hub, error: type[Exception], call: tuple[Any, ...]
) -> None:
    link = hub.link()
    with pytest.raises(error) as here:
        getattr(hub.manager, call[0])(*call[1:])
    with pytest.raises(error) as there:
        link.call(*call)
    assert there.type is here.type
    if issubclass(error, MasterSlaveError):
        assert str(there.value) == str(here.value)
    assert link.call("numberOfActiveProcesses") == 0  # the link goes on


def test_the_end_arrives_as_termination(hub: Hub) -> None:
    link = hub.link()
    link.call("terminate")
    with pytest.raises(TaskManagerTermination):
        link.call("addTaskRequest", "sqrt", X)
    with pytest.raises(TaskManagerTermination):
        link.call("getResults", 0)


@pytest.mark.parametrize(
    "method", ["lostProcess", "checkLiveness", "_settle", "__class__", "nonsense", "label"]
)
def test_only_remote_methods_can_be_called(hub: Hub, method: str) -> None:
    link = hub.link()
    process_id, _ = join(link)
    with pytest.raises(AttributeError):
        link.call(method)
    assert link.call("activeProcesses") == [process_id]


def test_every_remote_method_is_a_method_of_the_task_manager() -> None:
    for name in REMOTE_METHODS:
        assert callable(getattr(TaskManager, name))


def test_a_long_poll_is_woken(hub: Hub) -> None:
    slave = hub.link()
    process_id, _ = join(slave)
    call = Call(slave.call, "exchange", process_id, [], [], True, LONG_S)
    wait_for_line(hub.manager, 1)
    task_id = hub.link().call("addTaskRequest", "sqrt", X)
    assert call.outcome()[0][0][0] == task_id


def test_a_client_that_waits_is_woken(hub: Hub) -> None:
    client, slave = hub.link(), hub.link()
    process_id, _ = join(slave)
    client.call("addTaskRequest", "sqrt", X)
    slave.call("exchange", process_id)
    call = Call(client.call, "getResults", 0, None, 1, LONG_S)
    wait_until(lambda: hub.manager.status()["client_waits"])
    slave.call("storeResult", "sqrt_0", [b"r"], process_id, 1)
    assert call.outcome()[0][0] == "sqrt_0"


def test_waits_are_bounded(hub: Hub) -> None:
    link = hub.link()
    process_id, _ = join(link)
    assert list(link.call("exchange", process_id, [], [], True, 0.02)) == [[], {}]
    assert link.call("getResults", 0, None, 1, 0.02) == []
    assert link.call("getAnyTask", process_id, 0.02) is None


def test_a_closed_link_is_a_lost_process_and_its_tasks_run_elsewhere(hub: Hub) -> None:
    lost, other = hub.link(), hub.link()
    lost_id, _ = join(lost)
    other_id, _ = join(other)
    hub.manager.addTaskRequest("sqrt", X)
    assert len(lost.call("exchange", lost_id)[0]) == 1
    lost.close()
    tasks, _ = other.call("exchange", other_id, [], [], True, LONG_S)
    assert as_assignment(tasks[0])[:3] == ("sqrt_0", "sqrt", 2)
    assert hub.manager.activeProcesses() == [other_id]


def test_a_closed_link_takes_no_more_calls(hub: Hub) -> None:
    link = hub.link()
    link.close()
    link.close()  # no error
    with pytest.raises(ConnectionFailed):
        link.call("numberOfActiveProcesses")


def test_closing_another_link_of_the_same_process_loses_nothing(hub: Hub) -> None:
    lifeline, second = hub.link(), hub.link()
    process_id, _ = join(lifeline)
    second.call("exchange", process_id)
    second.close()
    third = hub.link()
    third.call("ping", process_id)
    assert third.call("activeProcesses") == [process_id]


def test_after_leaving_in_order_a_closed_link_is_no_loss(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    link = hub.link()
    process_id, _ = join(link)
    link.call("unregisterProcess", process_id)
    assert hub.manager.activeProcesses() == []
    link.close()
    assert hub.link().call("numberOfActiveProcesses") == 0
    assert "was lost" not in caplog.text


def test_who_comes_back_with_its_token_is_recognised(hub: Hub) -> None:
    link = hub.link()
    process_id, _ = join(link, "token")
    hub.manager.addTaskRequest("sqrt", X)
    link.call("exchange", process_id)
    link.close()
    wait_until(lambda: hub.manager.activeProcesses() == [])
    link = hub.link()
    assert join(link, "token", process_id, [["sqrt_0", 1]]) == (process_id, [])
    link.call("storeResult", "sqrt_0", [b"late"], process_id, 1)
    (delivery,) = link.call("getResults", 0)
    assert delivery[3] == [b"late"]


def test_who_comes_back_before_it_was_missed_is_not_lost(hub: Hub) -> None:
    old = hub.link()
    process_id, _ = join(old, "token")
    hub.manager.addTaskRequest("sqrt", X)
    old.call("exchange", process_id)
    new = hub.link()
    assert join(new, "token", process_id, [["sqrt_0", 1]]) == (process_id, [])
    old.close()
    # Whoever calls after this on a third link finds the old link's end dealt with or not: both
    # must leave the process registered, for it hangs on the new link.
    witness = hub.link()
    for _ in range(20):
        assert witness.call("activeProcesses") == [process_id]
    assert new.call("exchange", process_id)[1] == {}


def test_a_stranger_cannot_take_a_process_over(hub: Hub) -> None:
    process_id, _ = join(hub.link(), "token")
    stranger_id, _ = join(hub.link(), "guess", process_id)
    assert stranger_id != process_id


def test_large_frames_arrive_whole(hub: Hub) -> None:
    client, slave = hub.link(), hub.link()
    process_id, _ = join(slave)
    large = os.urandom(1 << 20) * 20
    client.call("addTaskRequest", "sqrt", [b"head", large])
    task = as_assignment(slave.call("exchange", process_id)[0][0])
    assert task.frame == [b"head", large]
    slave.call("storeResult", task.task_id, [large, b"tail"], process_id, task.attempt)
    assert client.call("getResults", 0)[0][3] == [large, b"tail"]


def test_many_threads_with_a_link_each(hub: Hub) -> None:
    threads, each = 10, 40
    barrier = threading.Barrier(threads)

    def be_both(number: int) -> list[str]:
        link = hub.link()
        client = link.call("registerProcess", None, f"client {number}")[0]
        process_id, _ = join(link)
        barrier.wait(PATIENCE_S)
        requested = link.call("addTaskRequests", "sqrt", [[b"%d" % i] for i in range(each)], client)
        got: list[str] = []
        while len(got) < each:
            tasks, _ = link.call("exchange", process_id)
            for task in map(as_assignment, tasks):
                link.call("storeResult", task.task_id, task.frame, process_id, task.attempt)
            got += [item[0] for item in link.call("getResults", client, None, 100, 0.0)]
        assert sorted(got) == sorted(requested)
        return got

    calls = [Call(be_both, number) for number in range(threads)]
    everything = [task_id for call in calls for task_id in call.outcome()]
    assert len(set(everything)) == threads * each
    assert hub.manager.numberOfTasks() == [{}, {}, {}]


# --- the network ----------------------------------------------------------------------------


class SlowToLose(TaskManager):
    """Takes in the loss of a process only when it is told to go on."""

    def __init__(self) -> None:
        super().__init__("job", Settings(key_file=Path("unused")))
        self.losing, self.go_on, self.done = (threading.Event() for _ in range(3))

    def lostProcess(self, process_id: int, reason: str, generation: int | None = None) -> None:
        self.losing.set()
        assert self.go_on.wait(PATIENCE_S)
        super().lostProcess(process_id, reason, generation)
        self.done.set()


def test_who_registers_while_its_old_connection_is_being_noticed_to_close_is_not_lost() -> None:
    manager = SlowToLose()
    server = PyroServer(manager, "127.0.0.1", 0, KEY, PATIENCE_S)
    server.start()
    old, new = (PyroLink(address(server), "job", KEY, PATIENCE_S) for _ in range(2))
    process_id, _ = join(old, "token")
    old.close()
    assert manager.losing.wait(PATIENCE_S)
    assert join(new, "token", process_id) == (process_id, [])
    manager.go_on.set()
    assert manager.done.wait(PATIENCE_S)
    new.call("ping", process_id)
    new.close()  # this one counts
    wait_until(lambda: manager.activeProcesses() == [])
    manager.terminate()
    server.stop()


def test_a_link_may_be_used_by_one_thread_after_another(server: PyroServer) -> None:
    link = PyroLink(address(server), "job", KEY, PATIENCE_S)
    assert link.call("numberOfActiveProcesses") == 0
    assert Call(link.call, "numberOfActiveProcesses").outcome() == 0
    link.close()


def test_another_key_is_refused_with_advice(server: PyroServer) -> None:
    with pytest.raises(AuthenticationError, match="MASTERSLAVE_KEY_FILE") as raised:
        PyroLink(address(server), "job", b"o" * 32, PATIENCE_S)
    assert server.addresses[0] in str(raised.value)


def test_another_label_is_refused(server: PyroServer) -> None:
    link = PyroLink(address(server), "other", KEY, PATIENCE_S)
    with pytest.raises(LabelUnknown, match="'other'"):
        link.call("numberOfActiveProcesses")
    link.close()


def test_nothing_at_the_address_is_told_with_the_address() -> None:
    port = free_port()
    with pytest.raises(ConnectionFailed, match=f"127.0.0.1:{port}"):
        PyroLink(("127.0.0.1", port), "job", KEY, PATIENCE_S)


def test_who_does_not_answer_is_given_up() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(ConnectionFailed, match="no task manager answers"):
        PyroLink(silent.getsockname(), "job", KEY, 0.05)


def test_a_server_that_stops_ends_its_links_at_once() -> None:
    manager = make_manager()
    server = PyroServer(manager, "127.0.0.1", 0, KEY, PATIENCE_S)
    server.start()
    idle, busy = (PyroLink(address(server), "job", KEY, PATIENCE_S) for _ in range(2))
    process_id, _ = join(busy)
    call = Call(busy.call, "exchange", process_id, [], [], True, LONG_S)
    wait_for_line(manager, 1)
    server.stop()
    with pytest.raises(ConnectionFailed):
        idle.call("numberOfActiveProcesses")
    with pytest.raises(ConnectionFailed):
        call.outcome()
    with pytest.raises(ConnectionFailed):
        PyroLink(address(server), "job", KEY, PATIENCE_S)
    idle.close()
    manager.terminate()


def test_a_server_that_stops_does_not_wait_for_silent_connections() -> None:
    server = PyroServer(make_manager(), "127.0.0.1", 0, KEY, LONG_S)
    server.start()
    silent = [socket.create_connection(address(server)) for _ in range(20)]
    link = PyroLink(address(server), "job", KEY, PATIENCE_S)  # so the others have been accepted
    server.stop()
    try:
        for sock in silent:
            sock.settimeout(PATIENCE_S)  # far less than they might be silent
            assert sock.recv(1) == b""
    finally:
        for sock in silent:
            sock.close()
        link.close()


def test_a_stopped_server_leaves_its_port(server: PyroServer) -> None:
    first = PyroServer(make_manager(), "127.0.0.1", 0, KEY, PATIENCE_S)
    first.start()
    link = PyroLink(address(first), "job", KEY, PATIENCE_S)
    first.stop()
    again = PyroServer(make_manager(), "127.0.0.1", first.port, KEY, PATIENCE_S)
    again.start()
    again.stop()
    link.close()
    assert again.port == first.port


# Pyro leaves the socket that it could not bind to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_port_in_use_is_a_clear_error(server: PyroServer) -> None:
    with pytest.raises(ConnectionFailed, match=f"cannot listen on 127.0.0.1:{server.port}"):
        PyroServer(make_manager(), "127.0.0.1", server.port, KEY, PATIENCE_S)


def test_a_result_too_large_for_the_wire_is_an_error_of_that_call_only(
    server: PyroServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from Pyro5 import config

    link = PyroLink(address(server), "job", KEY, PATIENCE_S)
    monkeypatch.setattr(config, "MAX_MESSAGE_SIZE", 100_000)
    with pytest.raises(MasterSlaveError):
        link.call("storeData", item=["x" * 200_000])  # bytes would travel in pieces
    link.close()
    link = PyroLink(address(server), "job", KEY, PATIENCE_S)
    assert link.call("numberOfActiveProcesses") == 0
    link.close()


def test_a_task_whose_way_to_the_slave_broke_is_not_lost() -> None:
    """The slave stands in line on a second connection, which breaks; the first one is well."""
    manager = make_manager()
    server = PyroServer(manager, "127.0.0.1", 0, KEY, PATIENCE_S)
    server.start()
    links = [PyroLink(address(server), "job", KEY, PATIENCE_S) for _ in range(3)]
    lifeline, line, another = links
    process_id, _ = join(lifeline, "token")
    other_id, _ = join(another)
    call = Call(line.call, "exchange", process_id, [], [], True, LONG_S)
    wait_for_line(manager, 1)
    line.close()
    with pytest.raises(ConnectionFailed):
        call.outcome()
    assert join(lifeline, "token", process_id, []) == (process_id, [])  # as slaves do then
    manager.addTaskRequest("sqrt", X)
    # However the thread that serves the broken connection finds out, it is to do no harm.
    wait_until(lambda: len(server._daemon._connections) == 2, "the broken one is forgotten")

    def somebody_gets_it() -> bool:
        tasks, notices = lifeline.call("exchange", process_id)
        if notices.get("register"):
            join(lifeline, "token", process_id, [])
        return bool(tasks or another.call("exchange", other_id)[0])

    try:
        wait_until(somebody_gets_it, "the task is handed out again")
    finally:
        manager.terminate()
        for link in links:
            link.close()
        server.stop()


# --- calls that wait without a thread -------------------------------------------------------


def manager_of(server: PyroServer) -> TaskManager:
    exchanges = server._daemon.exchanges
    assert exchanges is not None
    return exchanges._manager


def test_where_nothing_tells_of_what_comes_calls_wait_in_their_threads(
    server: PyroServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masterslave.transports.channel._HAS_POLL", False)
    manager = manager_of(server)
    link = PyroLink(address(server), "job", KEY, PATIENCE_S)
    assert link.fileno() is None, "its calls cannot be posted"
    process_id, _ = join(link)
    call = Call(link.call, "exchange", process_id, [], [], 1, 4 * PATIENCE_S)
    wait_for_line(manager, 1)
    manager.addTaskRequest("sqrt", [b"x"])
    tasks, notices = call.outcome()
    assert ([task[0] for task in tasks], notices) == (["sqrt_0"], {})
    link.close()


@pytest.mark.parametrize("size", [10, 20_000, 200_000])
def test_a_parked_call_is_answered_whatever_the_size(server: PyroServer, size: int) -> None:
    manager = manager_of(server)
    link = PyroLink(address(server), "job", KEY, PATIENCE_S)
    process_id, _ = join(link)
    frame = [b"head", b"x" * size]
    for _ in range(3):
        link.begin_exchange(process_id, [], [], 1, 4 * PATIENCE_S)
        wait_for_line(manager, 1)
        task_id = manager.addTaskRequest("sqrt", frame)
        tasks, _ = link.end_exchange()
        assert [(task[0], list(map(bytes, task[3]))) for task in tasks] == [(task_id, frame)]
        done = [task_id, tasks[0][2], "result", [b"r"], 0.0, ""]
        assert link.call("exchange", process_id, [done], [], 0, 0.0) == [[], {}]
    link.close()


def test_a_parked_slave_that_is_cut_off_is_noticed_at_once(server: PyroServer) -> None:
    manager = manager_of(server)
    link = PyroLink(address(server), "job", KEY, PATIENCE_S)
    process_id, _ = join(link)
    link.begin_exchange(process_id, [], [], 1, 4 * PATIENCE_S)
    wait_for_line(manager, 1)
    link.close()
    wait_until(lambda: process_id not in manager.activeProcesses(), "it is lost")
    manager.addTaskRequest("sqrt", [b"x"])
    assert manager.numberOfTasks()[0] == {"sqrt": 1}


def test_a_parked_call_ends_with_its_time(server: PyroServer) -> None:
    link = PyroLink(address(server), "job", KEY, PATIENCE_S)
    process_id, _ = join(link)
    assert link.call("exchange", process_id, [], [], 1, 0.05) == [[], {}]
    assert link.call("exchange", process_id, [], [], 1, 0.0) == [[], {}]
    link.close()

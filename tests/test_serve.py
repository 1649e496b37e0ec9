"""``task_manager serve``: a task manager on its own outlives its clients, and its own death."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PATIENCE_S, Program, World, free_port, is_running, wait_until

from masterslave import TaskManagerTermination, naming
from masterslave.keyfile import load_key
from masterslave.payload import Codec
from masterslave.records import TaskOptions
from masterslave.settings import Settings
from masterslave.slavecode import script_record
from masterslave.transports.pyro import PyroLink

SLAVE = """
    import os, time
    from masterslave import startSlaveProcess

    def do_square(x):
        with open("ran", "a") as file:
            print(x, file=file)
        return x * x

    def do_hold(x):
        open(f"holds {x}", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        with open("ran", "a") as file:
            print(-x, file=file)
        return -x

    startSlaveProcess("job")
"""


class Client:
    """A program that uses the served task manager, as far as it goes without a class for it."""

    codec = Codec()

    def __init__(self) -> None:
        settings = Settings.from_environment()
        self.key = load_key(settings.key_file)
        self.link: PyroLink = naming.wait_and_connect("job", None, settings, self.key)
        self.id = self.call("registerProcess", None, "a client")[0]

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.link.call(method, *args, **kwargs)

    def request(self, tag: str, *values: int) -> list[str]:
        frames = [self.codec.encode((value,)) for value in values]
        ids: list[str] = self.call("addTaskRequests", tag, frames, self.id, TaskOptions())
        return ids

    def results(self, count: int) -> dict[str, Any]:
        got: dict[str, Any] = {}
        while len(got) < count:
            deliveries = self.call("getResults", self.id, None, count, PATIENCE_S)
            assert deliveries, f"only {got}"
            for task_id, _, outcome, frame, detail in deliveries:
                assert outcome == "result", detail
                got[task_id] = self.codec.decode(frame)
        return got

    def close(self) -> None:
        self.link.close()


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    """Clients that are closed at the end."""
    made: list[Client] = []
    yield made
    for client in made:
        client.close()


def serve(world: World, *arguments: object) -> Program:
    """Start one that says where it is; return when it has."""
    program = world.task_manager("serve", "job", "-v", *arguments)
    wait_until(lambda: "at 127.0.0.1:" in program.out or program.poll() is not None)
    assert program.poll() is None, program.err
    return program


def port(program: Program) -> int:
    found = re.fullmatch(r"task manager job at 127\.0\.0\.1:(\d+)\n", program.out)
    assert found is not None, program.out
    return int(found[1])


def await_slaves(client: Client, count: int) -> list[int]:
    """Process ids of the slaves, once there are so many that are ready."""

    def pids() -> list[int]:
        slaves = client.call("status")["slaves"]
        return sorted(slave["pid"] for slave in slaves if slave["tags"])

    wait_until(lambda: len(pids()) == count, f"{count} slaves")
    return pids()


def ran(world: World) -> list[int]:
    path = world.path / "ran"
    return sorted(map(int, path.read_text().split())) if path.exists() else []


# --- its life -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_ends_its_slaves(
    world: World, clients: list[Client], number: signal.Signals
) -> None:
    program = serve(world)
    client = Client()
    clients.append(client)
    slave = world.script(SLAVE)
    await_slaves(client, 1)
    workers = psutil.Process(slave.pid).children()
    program.send_signal(number)
    program.finish(0)
    assert slave.finish(0) == ""
    assert "Traceback" not in program.err + slave.err
    assert not any(is_running(worker.pid) for worker in workers)


def test_whoever_waits_for_a_result_is_told_of_the_end(world: World, clients: list[Client]) -> None:
    program = serve(world)
    waiting, looking = Client(), Client()
    clients += [waiting, looking]
    waiting.request("nobody", 1)
    raised: list[Exception] = []

    def wait() -> None:
        try:
            waiting.results(1)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: looking.call("status")["client_waits"])
    program.send_signal(signal.SIGTERM)
    thread.join(PATIENCE_S)
    assert [type(error) for error in raised] == [TaskManagerTermination]
    program.finish(0)


def test_clients_come_and_go(world: World, clients: list[Client]) -> None:
    serve(world)
    first = Client()
    clients.append(first)
    slave_code = script_record(world.write("slave.py", SLAVE))
    first.call("storeData", slave_code={**slave_code, "shared_main": False, "cwd": str(world.path)})
    slave = world.task_manager("slave", "job")
    first.request("square", 2, 3)
    assert sorted(first.results(2).values()) == [4, 9]
    first.call("unregisterProcess", first.id)
    first.close()
    second, third = Client(), Client()
    clients += [second, third]
    second.request("square", 4)
    third.request("square", 5)
    assert list(third.results(1).values()) == [25]
    assert list(second.results(1).values()) == [16]
    assert slave.poll() is None


def test_the_port_and_the_address(world: World) -> None:
    number = free_port()
    program = serve(world, "--port", number)
    assert port(program) == number
    assert f"127.0.0.1:{number}" in world.task_manager("list").finish()
    quiet = world.task_manager("serve", "other")
    world.task_manager("-w", "other").finish()
    quiet.send_signal(signal.SIGTERM)
    assert quiet.finish(0) == ""


# --- with a journal -------------------------------------------------------------------------


def test_killed_and_started_again(world: World, clients: list[Client]) -> None:
    """What had finished is not run again; what runs meanwhile counts; slaves find the new one."""
    before = serve(world, "--journal", "job.db")
    client = Client()
    clients.append(client)
    slaves = [world.script(SLAVE), world.start("script.py")]
    pids = await_slaves(client, 2)
    ids = client.request("square", *range(20))
    assert sorted(client.results(20).values()) == [x * x for x in range(20)]
    assert ran(world) == list(range(20))
    held = client.request("hold", 50)  # is on record when this returns, and so are the results
    wait_until(lambda: (world.path / "holds 50").exists())
    before.send_signal(signal.SIGKILL)
    before.wait()
    client.close()

    (world.path / "go").touch()
    after = serve(world, "--journal", "job.db")
    assert port(after) == port(before)
    client = Client()
    clients.append(client)
    assert client.request("square", *range(25))[:20] == ids
    assert client.request("hold", 50) == held
    got = client.results(26)
    assert sorted(got.values()) == sorted([-50, *(x * x for x in range(25))])
    assert got[held[0]] == -50
    assert ran(world) == [-50, *range(25)]  # each once
    assert await_slaves(client, 2) == pids
    after.send_signal(signal.SIGTERM)
    after.finish(0)
    for slave in slaves:
        slave.finish(0)


def test_a_client_that_comes_back_need_not_be_the_same(world: World, clients: list[Client]) -> None:
    """The journal of a served task manager that has ended is as good as that of a killed one."""
    first = serve(world, "--journal", "job.db")
    client = Client()
    clients.append(client)
    slave = world.script(SLAVE)
    client.request("square", 7, 8)
    client.results(2)
    client.close()
    first.send_signal(signal.SIGTERM)
    first.finish(0)
    slave.finish(0)
    serve(world, "--journal", "job.db")
    client = Client()
    clients.append(client)
    client.request("square", 8, 7)
    assert sorted(client.results(2).values()) == [49, 64]  # and there is no slave
    assert ran(world) == [7, 8]


def test_a_journal_may_be_examined_between_two_runs(world: World, clients: list[Client]) -> None:
    program = serve(world, "--journal", "job.db")
    client = Client()
    clients.append(client)
    client.request("square", 1)
    program.send_signal(signal.SIGKILL)
    program.wait()
    out = world.task_manager("journal", "show", "job.db").finish()
    assert out.startswith(f"journal {world.path / 'job.db'} of job\n")
    assert re.search(r"^square +1 +0 ", out, re.MULTILINE)


# --- refusals -------------------------------------------------------------------------------


def refusal(program: Program, status: int = 1) -> str:
    assert program.finish(status) == ""
    assert program.err.count("\n") == 1 or status == 2
    return program.err


def test_a_label_or_a_journal_in_use(world: World) -> None:
    serve(world, "--journal", "job.db")
    assert "'job'" in refusal(world.task_manager("serve", "job"))
    other = world.task_manager("serve", "other", "--journal", "job.db")
    assert "another process has it open" in refusal(other)


def test_a_journal_of_another_label(world: World) -> None:
    program = serve(world, "--journal", "job.db")
    program.send_signal(signal.SIGTERM)
    program.finish(0)
    assert "'job'" in refusal(world.task_manager("serve", "other", "--journal", "job.db"))


def test_a_file_that_is_no_journal(world: World) -> None:
    path = Path(world.write("job.db", "precious\n" * 100))
    assert "is not a journal" in refusal(world.task_manager("serve", "job", "--journal", path))
    assert path.read_text() == "precious\n" * 100


def test_a_port_that_is_taken(world: World) -> None:
    number = port(serve(world))
    err = refusal(world.task_manager("serve", "other", "--port", number))
    assert str(number) in err


@pytest.mark.parametrize("text", ["x", "-1", "65536", ""])
def test_a_port_that_is_none(world: World, text: str) -> None:
    assert "is not a port" in refusal(world.task_manager("serve", "job", f"--port={text}"), 2)


def test_a_host_of_another_master_makes_no_sense(world: World) -> None:
    assert "-m" in refusal(world.task_manager("serve", "job", "-m", "localhost"))


def test_a_label_that_is_none(world: World) -> None:
    assert "label" in refusal(world.task_manager("serve", "a\nb"))

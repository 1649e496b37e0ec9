"""Served task managers that rival, that move, and clients that are killed or stopped meanwhile."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from conftest import Program, World, free_port, wait_until

from masterslave.connectionfile import path_of

SLAVE = """
    import os, time
    from masterslave import startSlaveProcess

    def do_square(x):
        with open("ran", "a") as file:
            print(x, file=file)
        return x * x

    def do_hold(x):
        open(f"holds-{x}", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        return x

    startSlaveProcess("demo")
"""


def serve(world: World, *arguments: object) -> Program:
    return world.task_manager("serve", "demo", "-v", *arguments)


def is_there(program: Program) -> bool:
    return "task manager demo at" in program.out


def await_serving(program: Program) -> None:
    wait_until(lambda: is_there(program) or program.poll() is not None, "it serves")
    assert program.poll() is None, program.err


def await_slave(manager: Program) -> None:
    wait_until(lambda: re.search("slave .* is ready", manager.err), "a slave is ready")


def end(world: World, manager: Program) -> None:
    manager.send_signal(signal.SIGTERM)
    manager.finish()
    wait_until(lambda: not world.processes(), "nothing is left")
    assert "Traceback" not in manager.err


def connection_file(world: World) -> Path:
    return path_of(world.path / ".masterslave" / "managers", "demo")


def ran(world: World) -> list[int]:
    path = world.path / "ran"
    return sorted(map(int, path.read_text().split())) if path.exists() else []


# --- two of one label -----------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["none", "shared", "one each"])
def test_of_those_that_start_at_once_one_serves_and_the_others_say_why_not(
    world: World, journal: str
) -> None:
    programs = []
    for number in range(3):
        name = "tasks.db" if journal == "shared" else f"tasks-{number}.db"
        programs.append(serve(world, *(() if journal == "none" else ("--journal", name))))
    wait_until(lambda: sum(p.poll() is not None for p in programs) == 2, "two give up")
    (first,) = [program for program in programs if program.poll() is None]
    await_serving(first)
    for program in programs:
        if program is not first:
            program.finish(1)
            assert not is_there(program)
            last = program.err.splitlines()[-1]
            assert re.match("task_manager: (a master with label 'demo' is |journal .* open)", last)
            assert "Traceback" not in program.err
    assert json.loads(connection_file(world).read_text())["pid"] == first.pid
    assert world.task_manager("show", "demo").finish().startswith("task manager demo\n")
    world.script(SLAVE, name="slave.py")
    await_slave(first)
    end(world, first)
    assert not connection_file(world).exists()


# --- another port ---------------------------------------------------------------------------

CLIENTS = {
    "master": """
        from masterslave import MasterProcess

        master = MasterProcess("demo", attach=True)
        master.requestTask("hold", 1)
        master.requestTasks("square", [(x,) for x in range(20)])
        got = sorted(result for _, _, result in master.results())
        print(got == sorted([1, *(x * x for x in range(20))]), flush=True)
        master.shutdown()
    """,
    "executor": """
        import os, time
        from masterslave import ClusterExecutor

        def hold(x):
            open(f"holds-{x}", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.01)
            return x

        def square(x):
            with open("ran", "a") as file:
                print(x, file=file)
            return x * x

        with ClusterExecutor("demo") as executor:
            held = executor.submit(hold, 1)
            got = list(executor.map(square, range(20)))
            print([held.result(), *got] == [1, *(x * x for x in range(20))], flush=True)
    """,
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_started_again_on_another_port_its_clients_and_slaves_find_it(
    world: World, kind: str
) -> None:
    """Killed while clients wait; nothing is lost, and what had finished is not run again."""
    first = serve(world, "--journal", "tasks.db", "--port", free_port())
    await_serving(first)
    world.script(SLAVE, name="slave.py")
    await_slave(first)
    client = world.script(CLIENTS[kind], name="client.py")
    holds = world.path / "holds-1"
    wait_until(lambda: holds.exists() or client.poll() is not None, "a task runs")
    first.kill()
    first.wait()
    second = serve(world, "--journal", "tasks.db", "--port", free_port())
    await_serving(second)
    await_slave(second)
    (world.path / "go").touch()
    assert client.finish() == "True\n", client.err
    assert ran(world) == list(range(20)), "each ran once"
    assert first.out != second.out, "it is elsewhere"
    end(world, second)


# --- clients that go while they cancel ------------------------------------------------------

CANCELLING = """
    import threading
    from masterslave import MasterProcess

    master = MasterProcess("demo", attach=True)
    held = master.requestTask("hold", 1)
    tasks = master.requestTasks("square", [(x,) for x in range(3000)])
    while not master.task_manager.taskIsRunning(held):
        pass

    def cancel(part):
        for number, task in enumerate(part):
            master.cancelTask(task)
            if number == 20:
                print("amid", flush=True)

    threads = [threading.Thread(target=cancel, args=(tasks[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.Event().wait()
"""


@pytest.mark.parametrize("journal", [False, True], ids=["in memory", "journal"])
def test_a_client_that_is_killed_while_it_cancels_leaves_nothing_behind(
    world: World, journal: bool
) -> None:
    world.env["MASTERSLAVE_CLIENT_GRACE"] = "0.5"
    manager = serve(world, *(("--journal", "tasks.db") if journal else ()))
    await_serving(manager)
    world.script(SLAVE, name="slave.py")
    await_slave(manager)
    client = world.script(CANCELLING, name="cancelling.py")
    wait_until(lambda: "amid" in client.out or client.poll() is not None, "it cancels")
    assert client.poll() is None, client.err
    client.kill()
    client.wait()
    wait_until(lambda: "has not come back" in manager.err, "it is given up")
    (world.path / "go").touch()

    def counts() -> tuple[int, ...]:
        status = json.loads(world.task_manager("show", "demo", "--json").finish())
        return tuple(sum(status[part].values()) for part in ("waiting", "running", "finished"))

    wait_until(lambda: counts() == (0, 0, 0), "nothing of it is left")
    assert not ran(world), "what waited was not run"
    # The slave serves others.
    other = world.script(CLIENTS["master"], name="client.py")
    assert other.finish() == "True\n", other.err
    end(world, manager)
    if journal:
        world.task_manager("journal", "check", "tasks.db").finish()  # it is sound


# --- clients that are away for longer than their time of grace ------------------------------

PAUSED = """
    from masterslave import MasterProcess, TaskLost, TaskRaisedException, attached

    attached._PING_S = 0.5  # so it is missed soon
    master = MasterProcess("demo", attach=True)
    tasks = master.requestTasks("hold", [(x,) for x in range(4)])
    print("waits", flush=True)
    lost = 0
    for _ in tasks:
        try:
            master.retrieveResult()
        except TaskRaisedException as error:
            assert isinstance(error.exception, TaskLost), error
            lost += 1
    print("lost", lost, flush=True)
    master.requestTask("square", 5)  # it goes on as a client
    print(master.retrieveResult()[2], flush=True)
    master.shutdown()
"""


@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept"])
def test_a_stopped_client_comes_back_after_its_time_of_grace(world: World, keep: bool) -> None:
    world.env["MASTERSLAVE_CLIENT_GRACE"] = "0.5"
    manager = serve(world, *(["--keep"] if keep else []))
    await_serving(manager)
    world.script(SLAVE, name="slave.py")
    await_slave(manager)
    client = world.script(PAUSED, name="paused.py")
    wait_until(lambda: (world.path / "holds-0").exists() or client.poll() is not None, "it runs")
    client.send_signal(signal.SIGSTOP)
    gone = "lost" if keep else "has not come back"

    def is_gone() -> bool:
        shown = world.task_manager("show", "demo", "-v").finish() if keep else manager.err
        return gone in shown

    wait_until(is_gone, "it is missed")
    client.send_signal(signal.SIGCONT)
    (world.path / "go").touch()
    assert client.finish() == f"waits\nlost {0 if keep else 4}\n25\n", client.err
    end(world, manager)

"""Whole jobs whose tasks take the shortcut, while everything around them goes wrong."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
from collections import Counter

import psutil
import pytest
from conftest import Program, World, is_running, wait_until
from failing_job import PERIOD_S, SLAVE, Job, StartJob
from test_failures_slaves import relay_to
from test_shortcut import descriptors

from masterslave import GlobalStateValue, TaskRaisedException, WorkerCrashed
from masterslave.shortcut import can_have_shortcuts
from masterslave.slavecode import script_record

pytestmark = pytest.mark.skipif(not can_have_shortcuts(), reason="no shortcuts on this system")

HANDLERS = """
    def do_large(size):
        return bytes(size)

    def do_same(value):
        return value

    def do_exit(status):
        sys.exit(status)

    def do_close_all():
        note("closing")
        os.closerange(3, 100)

    def do_close_all_and_open():
        note("closing")
        os.closerange(3, 100)
        kept.extend(os.open(f"opened{i}", os.O_RDWR | os.O_CREAT) for i in range(20))

    def do_fork(count):
        for _ in range(count):
            pid = os.fork()
            if not pid:
                os.setsid()
                time.sleep(1000)
                os._exit(0)
            note(f"child {pid}")
        return count

    def do_count():
        kept.append(1)
        return len(kept)

    kept = []

"""

LEAVING = """
    import os, time
    from masterslave import SlaveProcess

    class Slave(SlaveProcess):
        has_worked = False

        def do_last(self):
            self.has_worked = True
            return os.getpid()

        def do_hold(self, name):
            open("holding", "w").close()
            while not os.path.exists(name):
                time.sleep(0.01)
            return name

        def do_echo(self, x):
            return x

        def terminationTest(self):
            if self.has_worked:
                open("thinking", "w").close()
                while not os.path.exists("thought"):
                    time.sleep(0.01)
            return self.has_worked

    Slave("job", watchdog_period=None).start()
"""


def test_the_handlers_of_this_module_are_put_where_they_belong() -> None:
    assert SLAVE.count("    SlaveProcess(") == 1


class Scene:
    """A job in which it can be seen which way tasks go."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.manager = job.master.task_manager
        self.request = job.request
        self.result = job.result
        text = SLAVE.replace("    SlaveProcess(", HANDLERS + "    SlaveProcess(")
        self.keep(text.replace("PERIOD", repr(None)))

    def keep(self, text: str) -> None:
        """Have slaves run this script."""
        self.job.master.keep_slave_code(script_record(self.job.world.write("slave.py", text)))

    def slave(self, *arguments: object, workers: int = 1, address: str = "") -> Program:
        """A slave, with shortcuts to all its workers, that waits for tasks."""
        before = self.shortcuts()
        slave = self.job.slave("-n", workers, "-v", *arguments, address=address)
        wait_until(lambda: self.shortcuts() == before + workers, "they are open")
        self.wait_for_idle()
        return slave

    def shortcuts(self) -> int:
        with self.manager._lock:
            return sum(map(len, self.manager._shortcuts._of.values()))

    def busy(self) -> int:
        """How many tasks are on shortcuts."""
        with self.manager._lock:
            shortcuts = [one for of in self.manager._shortcuts._of.values() for one in of.values()]
        return sum(len(one.tasks) for one in shortcuts)

    def wait_for_idle(self) -> None:
        """Until a slave waits for tasks whose workers all have shortcuts."""
        wait_until(lambda: self.shortcuts() and len(self.manager._handout.waiters), "it waits")

    def crash(self) -> tuple[TaskRaisedException, str]:
        """The next result, which is a crash, and its story."""
        failure = self.job.failure()
        assert isinstance(failure.exception, WorkerCrashed)
        return failure, failure.exception.story

    def hold(self, name: str = "a", **options: int) -> tuple[str, int]:
        """A task that is seen to run by the shortcut; gives its id and its worker."""
        before = len(self.job.notes(f"begin {name}"))
        task_id = self.request("hold", name, **options)
        pids = self.job.wait_for(f"begin {name}", before + 1)
        assert self.busy(), "it went the long way"
        return task_id, pids[-1]

    def hold_in_the_pipe(self, slave: Program, **options: int) -> tuple[str, psutil.Process]:
        """A task that its worker, which is stopped, has not read; gives its id and the worker."""
        (worker,) = workers_of(slave)
        worker.suspend()
        task_id = self.request("hold", "a", **options)
        assert self.busy() == 1, "it went the long way"
        return task_id, worker


def workers_of(slave: Program) -> list[psutil.Process]:
    return psutil.Process(slave.pid).children()


@pytest.fixture
def scene(start_job: StartJob) -> Scene:
    return Scene(start_job())


@pytest.fixture
def watched(start_job: StartJob) -> Scene:
    """One whose slaves promise signs of life."""
    scene = Scene(start_job(PERIOD_S))
    text = SLAVE.replace("    SlaveProcess(", HANDLERS + "    SlaveProcess(")
    scene.keep(text.replace("PERIOD", repr(PERIOD_S)))
    return scene


def test_a_single_task_does_not_need_the_supervisor(scene: Scene) -> None:
    slave = scene.slave()
    slave.send_signal(signal.SIGSTOP)
    for number in range(20):
        scene.request("echo", number)
        assert scene.result() == number
    slave.send_signal(signal.SIGCONT)


# --- workers and supervisors are killed ---------------------------------------------------------


def test_a_worker_is_killed_while_it_runs_a_task(scene: Scene) -> None:
    scene.slave()
    scene.request("hold", "a", crash_limit=2)
    (worker,) = scene.job.wait_for("begin a")
    os.kill(worker, signal.SIGKILL)
    scene.job.wait_for("begin a", 2)
    scene.job.release("a")
    assert scene.result() == "a"
    assert scene.job.status()["delivered"] == 1


def test_a_task_that_kills_its_worker_is_to_blame(scene: Scene) -> None:
    slave = scene.slave()
    scene.wait_for_idle()
    task_id = scene.request("die", "exit", crash_limit=1)
    failure, story = scene.crash()
    assert failure.task_id == task_id
    assert "exit status 7" in story
    assert "last words before exit" in story
    assert slave.poll() is None


def test_a_worker_is_killed_before_it_has_begun(scene: Scene) -> None:
    slave = scene.slave()
    _, worker = scene.hold_in_the_pipe(slave, crash_limit=1)
    worker.kill()
    scene.job.wait_for("begin a")
    scene.job.release("a")
    assert scene.result() == "a"
    assert len(scene.job.notes("begin a")) == 1


def test_what_a_killed_worker_had_not_begun_goes_to_an_idle_one_of_its_slave(scene: Scene) -> None:
    slave = scene.slave(workers=2)
    first, second = workers_of(slave)
    for worker in (first, second):
        worker.suspend()
    scene.request("hold", "a", crash_limit=1)
    assert scene.busy() == 1
    (number,) = (
        number
        for of in scene.manager._shortcuts._of.values()
        for number, one in of.items()
        if one.tasks
    )
    (first, second)[number].kill()
    (first, second)[1 - number].resume()
    scene.job.release("a")
    assert scene.result() == "a"


def test_workers_are_killed_right_after_their_results(scene: Scene) -> None:
    slave = scene.slave()
    for number in range(10):
        scene.request("echo", number, crash_limit=1)
        assert scene.result() == number
        workers_of(slave)[0].kill()
    assert scene.job.status()["delivered"] == 10  # a death after the result changes nothing


@pytest.mark.parametrize("crash_limit", [1, 2])
def test_a_supervisor_is_killed_while_its_worker_runs_a_task(
    scene: Scene, crash_limit: int
) -> None:
    slave = scene.slave()
    _, worker = scene.hold(crash_limit=crash_limit)
    slave.kill()
    wait_until(lambda: not is_running(worker))
    if crash_limit == 1:
        assert "connection closed" in scene.crash()[1]
        return
    wait_until(lambda: not scene.job.status()["slaves"], "its loss was noticed")
    scene.job.slave()
    scene.job.wait_for("begin a", 2)
    scene.job.release("a")
    assert scene.result() == "a"


def test_supervisor_and_worker_are_killed_before_it_has_begun(scene: Scene) -> None:
    slave = scene.slave()
    _, worker = scene.hold_in_the_pipe(slave)
    slave.kill()
    worker.kill()
    wait_until(lambda: not scene.job.ready(), "they are missed")
    scene.job.slave()
    scene.job.release("a")
    assert scene.result() == "a"
    assert len(scene.job.notes("begin a")) == 1


# --- cancelled tasks ----------------------------------------------------------------------------


def test_a_running_task_is_cancelled(scene: Scene) -> None:
    slave = scene.slave()
    task_id, worker = scene.hold()
    assert scene.job.master.cancelTask(task_id)
    wait_until(lambda: not is_running(worker))
    scene.request("echo", "next")
    assert scene.result() == "next"
    assert scene.job.status()["delivered"] == 1
    assert slave.poll() is None


def test_a_task_is_cancelled_before_it_has_begun(scene: Scene) -> None:
    slave = scene.slave()
    task_id, worker = scene.hold_in_the_pipe(slave)
    assert scene.job.master.cancelTask(task_id)
    wait_until(lambda: not scene.busy(), "the supervisor has taken it out")
    worker.resume()
    scene.request("echo", "next")
    assert scene.result() == "next"
    assert scene.job.notes("begin a") == []
    assert workers_of(slave) == [worker], "nobody was killed for it"


# --- the slave is to end ------------------------------------------------------------------------


def test_a_slave_told_to_end_finishes_what_runs(scene: Scene) -> None:
    slave = scene.slave()
    scene.hold(crash_limit=1)
    slave.send_signal(signal.SIGTERM)
    wait_until(lambda: "told to end" in slave.err)
    wait_until(lambda: scene.job.status()["slaves"][0]["holds"] == 1)
    scene.job.release("a")
    assert scene.result() == "a"
    slave.finish()
    assert len(scene.job.notes("begin a")) == 1


def test_past_its_grace_time_a_slave_gives_back_what_it_runs(world: World, scene: Scene) -> None:
    world.env["MASTERSLAVE_GRACE"] = "0.3"
    slave = scene.slave()
    _, worker = scene.hold(crash_limit=1)
    slave.send_signal(signal.SIGTERM)
    slave.finish()
    assert not is_running(worker)
    scene.job.slave()
    scene.job.wait_for("begin a", 2)
    scene.job.release("a")
    assert scene.result() == "a"


def test_a_slave_told_to_end_gives_back_what_has_not_begun(scene: Scene) -> None:
    slave = scene.slave()
    scene.hold_in_the_pipe(slave, crash_limit=1)
    slave.send_signal(signal.SIGTERM)
    slave.finish()
    scene.job.slave()
    scene.job.release("a")
    assert scene.result() == "a"
    assert len(scene.job.notes("begin a")) == 1


def test_a_slave_that_begins_as_it_is_told_to_end_finishes_it(scene: Scene) -> None:
    """The signal and the task are there before the supervisor and the worker look."""
    slave = scene.slave()
    _, worker = scene.hold_in_the_pipe(slave, crash_limit=1)
    slave.send_signal(signal.SIGSTOP)
    slave.send_signal(signal.SIGTERM)
    worker.resume()
    slave.send_signal(signal.SIGCONT)
    scene.job.wait_for("begin a")
    wait_until(lambda: "told to end" in slave.err)
    scene.job.release("a")
    assert scene.result() == "a"
    slave.finish()
    assert len(scene.job.notes("begin a")) == 1


def test_a_dismissed_slave_finishes_what_runs(scene: Scene) -> None:
    slave = scene.slave()
    scene.hold(crash_limit=1)
    assert scene.manager.dismissSlaves([scene.job.ready()[0]["id"]]) == 1
    wait_until(lambda: "dismissed" in slave.err)
    scene.job.release("a")
    assert scene.result() == "a"
    slave.finish()


def test_a_slave_is_not_idle_while_tasks_take_the_shortcut(scene: Scene) -> None:
    slave = scene.slave("--idle", "1")
    for number in range(250):  # of 10 ms
        scene.request("work", number)
        assert scene.result() == number
    assert slave.poll() is None
    slave.finish()
    assert "idle for 1 s" in slave.err


def test_a_slave_that_was_seen_to_work_becomes_idle(scene: Scene) -> None:
    slave = scene.slave("--idle", "0.5")
    scene.hold()
    wait_until(lambda: scene.manager._queue.tasks["hold_0"].started or slave.poll() is not None)
    scene.job.release("a")
    assert scene.result() == "a"
    slave.finish()


def test_a_task_sent_to_a_worker_that_leaves_is_run_elsewhere(scene: Scene) -> None:
    scene.keep(LEAVING)
    leaving = scene.slave(workers=2)
    scene.request("hold", "held", crash_limit=1)
    there = scene.job.world.path
    wait_until((there / "holding").exists)
    scene.request("last", crash_limit=1)
    scene.result()
    wait_until((there / "thinking").exists)
    scene.request("echo", "on its way", crash_limit=1)
    assert scene.busy() == 2, "it went the long way"
    (there / "thought").touch()
    wait_until(lambda: scene.job.count("waiting") == 1, "it comes back before the slave leaves")
    assert leaving.poll() is None
    scene.job.slave("-n", 1)
    assert scene.result() == "on its way"
    (there / "held").touch()
    assert scene.result() == "held"
    leaving.finish()


# --- odd handlers -------------------------------------------------------------------------------


def test_handlers_that_raise(scene: Scene) -> None:
    scene.slave()
    scene.request("divide", 1, 0)
    assert isinstance(scene.job.failure().exception, ZeroDivisionError)
    scene.wait_for_idle()
    scene.request("odd")
    assert "very odd" in str(scene.job.failure())
    scene.request("lock")
    assert "cannot be pickled" in str(scene.job.failure())
    scene.request("exit", 3)
    assert isinstance(scene.job.failure().exception, SystemExit)
    scene.request("echo", 1)
    assert scene.result() == 1
    assert scene.job.status()["slaves"][0]["finished"] >= 1


@pytest.mark.parametrize("size", [3_000, 5_000, 10_000_000])
def test_results_of_any_size(scene: Scene, size: int) -> None:
    slave = scene.slave()
    for _ in range(3):
        scene.request("large", size)
        assert scene.result() == bytes(size)
        scene.wait_for_idle()
    assert scene.busy() == 0
    assert slave.poll() is None


def test_a_handler_that_needs_global_state(scene: Scene) -> None:
    scene.slave()
    for value in ("first", "second"):
        state = scene.job.master.setGlobalState(x=value)
        scene.wait_for_idle()
        scene.request("same", GlobalStateValue(state, "x"))
        assert scene.result() == value
        scene.job.master.deleteGlobalState(state)


@pytest.mark.parametrize("tag", ["close_all", "close_all_and_open"])
def test_a_handler_that_closes_what_is_not_its_own_has_crashed(scene: Scene, tag: str) -> None:
    slave = scene.slave()
    scene.request(tag, crash_limit=2)
    scene.crash()
    assert len(scene.job.notes("closing")) == 2
    assert not any(path.stat().st_size for path in scene.job.world.path.glob("opened*"))
    scene.request("echo", 1)
    assert scene.result() == 1
    assert slave.poll() is None


def test_children_of_a_handler_that_have_the_pipes_open_do_no_harm(scene: Scene) -> None:
    slave = scene.slave()
    scene.request("fork", 3)
    assert scene.result() == 3
    children = scene.job.wait_for("child", 3)
    for number in range(5):
        scene.request("echo", number)
        assert scene.result() == number
    workers_of(slave)[0].kill()
    wait_until(lambda: scene.shortcuts() == 1 and len(workers_of(slave)) == 1)
    scene.wait_for_idle()
    scene.request("echo", "new worker")
    assert scene.result() == "new worker"
    slave.kill()
    wait_until(lambda: not scene.job.status()["slaves"], "it is missed all the same")
    for child in children:
        os.kill(child, signal.SIGKILL)


def test_a_task_that_waits_behind_one_by_the_shortcut_goes_to_the_other_worker(
    scene: Scene,
) -> None:
    scene.slave(workers=2)
    scene.hold("a")
    scene.job.master.requestTasks("echo", [(number,) for number in range(50)])
    assert sorted(scene.result() for _ in range(50)) == list(range(50))
    scene.job.release("a")
    assert scene.result() == "a"


# --- lost and found -----------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "in the pipe"])
def test_a_slave_that_was_stopped_comes_back_with_its_task(watched: Scene, begun: bool) -> None:
    slave = watched.slave()
    if begun:
        _, pid = watched.hold()
        worker = psutil.Process(pid)
    else:
        _, worker = watched.hold_in_the_pipe(slave)
    slave.send_signal(signal.SIGSTOP)
    worker.suspend()
    wait_until(lambda: not watched.job.status()["slaves"], "it is taken for dead")
    watched.job.release("a")
    slave.send_signal(signal.SIGCONT)
    worker.resume()
    assert watched.result() == "a"
    watched.request("echo", "next")
    assert watched.result() == "next"
    assert watched.job.status()["delivered"] == 2


def test_what_a_stopped_worker_has_not_read_is_run_elsewhere_and_not_by_it(
    watched: Scene,
) -> None:
    slave = watched.slave()
    _, worker = watched.hold_in_the_pipe(slave)
    slave.send_signal(signal.SIGSTOP)
    wait_until(lambda: not watched.job.status()["slaves"], "it is taken for dead")
    other = watched.job.slave()
    watched.job.wait_for("begin a")
    slave.send_signal(signal.SIGCONT)
    wait_until(lambda: watched.shortcuts() == 2, "it is back")
    worker.resume()
    watched.request("echo", "next")
    assert watched.result() == "next"
    watched.job.release("a")
    assert watched.result() == "a"
    assert len(watched.job.notes("begin a")) == 1
    assert other.poll() is None


def test_a_result_comes_while_the_slave_is_cut_off(scene: Scene) -> None:
    with relay_to(scene.job) as relay:
        scene.slave(address=relay.address)
        (row,) = scene.job.ready()
        scene.hold(crash_limit=1)
        relay.cut()
        wait_until(lambda: not scene.job.status()["slaves"], "the closed connection is noticed")
        scene.job.release("a")
        scene.job.wait_for("end a")
        relay.heal()
        assert "connection closed" in scene.crash()[1], "one was allowed"
        wait_until(lambda: [slave["id"] for slave in scene.job.ready()] == [row["id"]])


@pytest.mark.parametrize("when", ["before the cut", "while cut off", "afterwards"])
def test_a_slave_is_cut_off_in_the_midst_of_a_task(scene: Scene, when: str) -> None:
    with relay_to(scene.job) as relay:
        scene.slave(address=relay.address)
        scene.hold()
        if when == "before the cut":
            scene.job.release("a")
            scene.job.wait_for("end a")
        relay.cut()
        wait_until(lambda: not scene.job.status()["slaves"], "the closed connection is noticed")
        if when == "while cut off":
            scene.job.release("a")
            scene.job.wait_for("end a")
        relay.heal()
        wait_until(lambda: scene.shortcuts() == 1, "it is back")
        scene.job.release("a")
        assert scene.result() == "a"
        assert len(scene.job.notes("begin a")) == 1
        scene.wait_for_idle()
        scene.request("echo", "next")
        assert scene.result() == "next"
        assert scene.job.status()["delivered"] == 2


def test_a_task_in_the_pipe_of_a_slave_that_is_cut_off_is_run_once(scene: Scene) -> None:
    with relay_to(scene.job) as relay:
        slave = scene.slave(address=relay.address)
        _, worker = scene.hold_in_the_pipe(slave)
        relay.cut()
        wait_until(lambda: not scene.job.status()["slaves"], "the closed connection is noticed")
        relay.heal()
        wait_until(lambda: scene.job.ready(), "it is back")
        scene.job.release("a")
        wait_until(lambda: scene.job.count("running") == 1, "it has it once more")
        worker.resume()
        assert scene.result() == "a"
        assert len(scene.job.notes("begin a")) == 1


# --- different slaves, served task managers -----------------------------------------------------


def test_a_slave_without_shared_memory_has_no_shortcut(world: World, scene: Scene) -> None:
    near = scene.slave()
    world.env["MASTERSLAVE_SHARED_MEMORY"] = "0"
    far = scene.job.slave("-n", 1)
    wait_until(lambda: len(scene.manager._handout.waiters) == 2)
    assert scene.shortcuts() == 1
    for number in range(100):
        scene.request("echo", number)
        assert scene.result() == number
    near.send_signal(signal.SIGTERM)
    near.finish()
    assert scene.shortcuts() == 0
    scene.request("echo", "far")
    assert scene.result() == "far"
    assert far.poll() is None


SERVED = """
    import os
    from masterslave import startSlaveProcess

    def do_square(x):
        return x * x

    startSlaveProcess("demo", "{where}")
"""

ATTACHED = """
    import os, signal, sys, time
    from masterslave import MasterProcess

    master = MasterProcess("demo", attach=True, master_host="{where}")
    for x in range(200):
        master.requestTask("square", x)
        assert master.retrieveResult(timeout=60)[2] == x * x
    open(f"done{{sys.argv[1]}}", "w").close()
    while not os.path.exists("stopped"):
        time.sleep(0.01)
    if sys.argv[1] == "1":
        master.requestTask("square", 12)
        print(master.retrieveResult(timeout=60)[2])
    master.shutdown()
"""


def test_clients_of_a_served_task_manager(world: World) -> None:
    served = world.task_manager("serve", "demo", "--port", 0, "-v")
    wait_until(lambda: "127.0.0.1:" in served.out or served.poll() is not None)
    port = served.out.partition("127.0.0.1:")[2].split()[0].rstrip(",.;)")
    where = f"127.0.0.1:{port}"
    slave = world.script(SERVED.format(where=where), name="slave.py")
    wait_until(lambda: "is ready" in served.err)
    script = world.write("client.py", ATTACHED.format(where=where))
    clients = [world.start(script, number) for number in (1, 2)]
    for number in (1, 2):
        wait_until((world.path / f"done{number}").exists)
    slave.send_signal(signal.SIGSTOP)
    (world.path / "stopped").touch()
    assert clients[0].finish() == "144\n"
    clients[1].finish()
    slave.send_signal(signal.SIGCONT)
    served.send_signal(signal.SIGTERM)
    served.finish()
    wait_until(lambda: not world.processes(), "nothing is left")


# --- all at once --------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1])
def test_every_task_has_one_result_whatever_is_killed(start_job: StartJob, seed: int) -> None:
    chance = random.Random(seed)
    before = Counter(descriptors().values())
    scene = Scene(start_job())
    slaves = {scene.slave(workers=2): 2, scene.slave(workers=1): 1}
    count = 3000
    kills = set(chance.sample(range(count), 30))
    for number in range(count):
        if number in kills:
            kill_one(scene, slaves, chance)
        scene.request("echo", number, crash_limit=100)
        if number in kills and chance.random() < 0.5:
            kill_one(scene, slaves, chance)
        assert scene.result() == number
    status = scene.job.status()
    assert status["delivered"] == count
    assert scene.job.count("finished") == scene.job.count("running") == 0
    scene.job.master.shutdown()
    wait_until(lambda: not scene.job.world.processes(), "nothing is left")
    gc.collect()  # Pyro leaves its selector to that
    assert not left_open(before), "files that the master has left open"


def left_open(before: Counter[str]) -> Counter[str]:
    """What is open and was not before, but for memory in which others look for a secret of ours."""
    after = Counter(descriptors().values())
    return Counter({name: n for name, n in (after - before).items() if "memfd:" not in name})


def kill_one(scene: Scene, slaves: dict[Program, int], chance: random.Random) -> None:
    """A worker of any slave, or a slave, which is replaced.

    When all are ready: a slave whose workers die as they start gives up.
    """
    wait_until(lambda: scene.shortcuts() == sum(slaves.values()), "all are ready")
    chosen = chance.choice(list(slaves))
    if chance.random() < 0.7:
        workers = workers_of(chosen)  # none, if the only one was just killed
        if workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(workers).kill()
        return
    chosen.kill()
    chosen.wait()
    wait_until(lambda: chosen.pid not in [row["pid"] for row in scene.job.ready()], "it is missed")
    count = slaves.pop(chosen)
    slaves[scene.job.slave("-n", count)] = count


# --- many tiny tasks at once --------------------------------------------------------------------


def batch_of(scene: Scene, count: int, **options: int) -> None:
    """Tiny tasks that are known to be, so that they go by the shortcut, many at once."""
    for number in range(20):
        scene.request("echo", number)
        scene.result()
    scene.job.master.requestTasks("echo", [(number,) for number in range(count)], **options)


@pytest.mark.timeout(600)
def test_batches_amid_kills(scene: Scene) -> None:
    chance = random.Random(1)
    slaves = {scene.slave(workers=2): 2, scene.slave(workers=1): 1}
    count, got = 20_000, []
    batch_of(scene, count, crash_limit=100)
    kills = set(chance.sample(range(count), 10))
    for number in range(count):
        if number in kills:
            kill_one(scene, slaves, chance)
        got.append(scene.result())
    assert sorted(got) == list(range(count))
    assert scene.job.count("running") == scene.job.count("waiting") == 0


def test_a_slave_that_is_told_to_end_amid_a_batch_costs_no_task_anything(scene: Scene) -> None:
    count = 10_000
    slave = scene.slave(workers=2)
    batch_of(scene, count, crash_limit=1)
    got = [scene.result() for _ in range(100)]
    slave.send_signal(signal.SIGTERM)
    slave.finish()
    scene.job.slave("-n", 2)
    got += [scene.result() for _ in range(count - 100)]
    assert sorted(got) == list(range(count))


def test_a_slave_is_cut_off_amid_batches(scene: Scene) -> None:
    count = 10_000
    with relay_to(scene.job) as relay:
        scene.slave(workers=2, address=relay.address)
        batch_of(scene, count, crash_limit=100)
        got = []
        for number in range(count):
            if number % 2000 == 1000:
                relay.cut()
                wait_until(lambda: not scene.job.ready(), "the closed connection is noticed")
                relay.heal()
                wait_until(lambda: scene.job.ready(), "it is back")
            got.append(scene.result())
        assert sorted(got) == list(range(count))


def test_what_stands_behind_a_task_that_turns_out_long_is_run_elsewhere(scene: Scene) -> None:
    """Known to take no time, it takes long this time; its slave has two workers."""
    scene.slave(workers=2)
    (scene.job.world.path / "now").touch()
    for _ in range(20):
        scene.request("hold", "now")
        scene.result()
    scene.job.master.requestTasks("hold", [("late",), *([("now",)] * 200)])
    assert [scene.result() for _ in range(200)] == ["now"] * 200
    scene.job.release("late")
    assert scene.result() == "late"

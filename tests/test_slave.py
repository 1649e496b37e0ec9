"""What handlers may rely on, and how slaves begin and end."""

from __future__ import annotations

import pytest
from conftest import Program, World, wait_until
from scripts import job

from masterslave import SettingsError, SlaveProcess

ONE = 'self.requestTask("one"); print(self.retrieveResult()[2])'


def status(world: World) -> str:
    return world.task_manager("show", "--json", "demo").finish()


# --- in a handler -----------------------------------------------------------------------------


def test_what_handlers_print_shows_up(world: World) -> None:
    text = job(
        ONE,
        """
        def do_one(self):
            print("printed")
            print("complained", file=sys.stderr)
            os.write(1, b"written\\n")
            return "result"
        """,
    )
    program = world.script(text)
    assert sorted(program.finish().splitlines()) == ["printed", "result", "written"]
    assert "complained" in program.err


def test_a_print_shows_up_while_the_task_runs(world: World) -> None:
    text = job(
        ONE,
        """
        def do_one(self):
            print("begun")
            while not os.path.exists("go on"):
                time.sleep(0.01)
            return "result"
        """,
    )
    program = world.script(text)
    wait_until(lambda: program.out == "begun\n", "the print shows up")
    (world.path / "go on").touch()
    assert program.finish() == "begun\nresult\n"


def test_handlers_start_subprocesses(world: World) -> None:
    text = job(
        ONE,
        """
        def do_one(self):
            subprocess.run([sys.executable, "-c", "print('shown')"], check=True)
            pipe = subprocess.run(["cat"], input=b"through a pipe", capture_output=True)
            return pipe.stdout.decode(), os.system("exit 3") >> 8, sys.stdin.read()
        """,
        before="import subprocess",
    )
    assert world.script(text).finish() == "shown\n('through a pipe', 3, '')\n"


def test_handlers_use_multiprocessing(world: World) -> None:
    text = job(
        ONE,
        """
        def do_one(self):
            results = []
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    results += pool.map(double, range(3))
            return results
        """,
        before="import multiprocessing\ndef double(x):\n    return 2 * x",
    ).replace("runJob(", 'if __name__ == "__main__": runJob(')  # as spawned processes need it
    assert world.script(text).finish() == "[0, 2, 4, 0, 2, 4]\n"


def test_handlers_use_threads_and_run_in_the_main_thread(world: World) -> None:
    text = job(
        ONE,
        """
        def do_one(self):
            signal.signal(signal.SIGALRM, lambda number, frame: None)
            with ThreadPoolExecutor(3) as pool:
                return sum(pool.map(abs, range(-9, 0)))
        """,
        before="import signal\nfrom concurrent.futures import ThreadPoolExecutor",
    )
    assert world.script(text).finish() == "45\n"


def test_arrays_are_writable_in_handlers_and_when_they_come_back(world: World) -> None:
    text = job(
        """
        for shape in ((3,), (1250, 1000), (0,)):
            array = numpy.arange(numpy.prod(shape), dtype=float).reshape(shape)
            transposed = array.copy(order="F")
            self.requestTask("add", array, transposed, {"nested": [array]})
            first, second = self.retrieveResult()[2]
            assert (first == array + 1).all() and (second == array + 2).all()
            assert first.flags.writeable and second.flags.writeable
            first += 1
            assert array.size == 0 or array.flat[0] == 0  # the original is untouched
        print("right")
        """,
        """
        def do_add(self, array, transposed, more):
            array += 1
            transposed += 1
            more["nested"][0][...] = transposed + 1
            assert (array == transposed + 1).all()  # one array, given twice, is still one
            array -= 1
            return array, array + 1
        """,
        before="import numpy",
    )
    assert world.script(text).finish() == "right\n"


def test_large_arrays_with_several_workers(world: World) -> None:
    text = job(
        """
        arrays = [numpy.full(1_250_000, float(i)) for i in range(8)]  # 10 MB each
        self.requestTasks("double", [(array,) for array in arrays])
        for task_id, tag, array in self.results():
            assert (array == 2 * arrays[int(task_id.partition("_")[2])]).all()
        print("right")
        """,
        """
        def do_double(self, array):
            array *= 2
            return array
        """,
        launch=2,
        before="import numpy",
    )
    assert world.script(text).finish() == "right\n"


def test_state_is_set_up_once_per_worker_and_kept(world: World) -> None:
    text = job(
        """
        self.requestTasks("count", [()] * 20)
        counts = {}
        for task_id, tag, (pid, parameter, count) in self.results():
            counts.setdefault((pid, parameter), []).append(count)
        for (pid, parameter), seen in counts.items():
            assert sorted(seen) == list(range(1, len(seen) + 1)), seen
        print(len(open("log").read()), {parameter for pid, parameter in counts})
        """,
        """
        def __init__(self, label, master_host=None, watchdog_period=120.0):
            super().__init__(label, master_host, watchdog_period)
            self.table = {"parameter": 7}
            self.count = 0
            open("log", "a").write("x")

        def do_count(self):
            self.count += 1
            return os.getpid(), self.table["parameter"], self.count
        """,
        launch=1,
    )
    assert world.script(text).finish() == "1 {7}\n"


def test_handlers_are_inherited_and_may_be_any_callable(world: World) -> None:
    text = job(
        """
        for tag in ("base", "static", "of_class", "partial", "overridden"):
            self.requestTask(tag, 1)
            print(*self.retrieveResult()[1:])
        """,
        """
        def do_base(self, x): return x
        @staticmethod
        def do_static(x): return x + 1
        @classmethod
        def do_of_class(cls, x): return cls.__name__
        do_partial = functools.partial(max, 5)
        def do_overridden(self, x): return "not called"
        """,
        before="import functools",
    ).replace(
        'runJob("demo", Master, Slave',
        "class Derived(Slave):\n"
        "    def do_overridden(self, x):\n"
        "        return super().do_overridden(x)[4:]\n"
        'runJob("demo", Master, Derived',
    )
    assert world.script(text).finish() == (
        "base 1\nstatic 2\nof_class Derived\npartial 5\noverridden called\n"
    )


def test_numerical_libraries_use_one_thread_per_worker_unless_told(world: World) -> None:
    text = job(
        ONE,
        'def do_one(self): return os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]',
    )
    world.env["MKL_NUM_THREADS"] = "3"
    assert world.script(text).finish() == "('1', '3')\n"


def test_machine_info_of_a_worker(world: World) -> None:
    text = job(
        """
        self.requestTask("one")
        pid, info = self.retrieveResult()[2]
        print(info == getMachineInfo().replace(f"PID {os.getpid()} ", f"PID {pid} "))
        """,
        "def do_one(self): return os.getpid(), getMachineInfo()",
    )
    assert world.script(text).finish() == "True\n"


# --- several workers --------------------------------------------------------------------------


def test_one_slave_with_several_workers_runs_tasks_at_the_same_time(world: World) -> None:
    text = job(
        """
        self.requestTasks("meet", [(0,), (1,), (2,)])
        print(len({pid for task_id, tag, pid in self.results()}))
        """,
        """
        def do_meet(self, number):
            open(f"here{number}", "w").close()
            while not all(os.path.exists(f"here{i}") for i in range(3)):
                time.sleep(0.01)
            return os.getpid()
        """,
        launch=0,
    )
    master = world.script(text)
    slave = world.task_manager("slave", "-w", "-n", 3, "demo")
    assert master.finish() == "3\n"
    slave.finish()


# --- the end of a slave -----------------------------------------------------------------------


def leave_and_count(world: World, tasks: int, slave: str) -> str:
    """Let one slave work until it leaves; what it printed and how many tasks are not lost."""
    text = job(
        f"""
        self.requestTasks("pid", [()] * {tasks})
        self.launchSlaveJobs(1)
        first = self.retrieveResult()
        deadline = time.monotonic() + 20
        while self.task_manager.status()["slaves"] and time.monotonic() < deadline:
            time.sleep(0.01)
        waiting, running, finished = map(sum, (
            counts.values() for counts in self.task_manager.numberOfTasks()))
        print(waiting, running, finished)
        """,
        slave,
        launch=0,
    )
    return world.script(text).finish().strip()


def test_a_true_termination_test_ends_the_slave_after_its_task(world: World) -> None:
    slave = """
        def do_pid(self):
            return os.getpid()
        def terminationTest(self):
            time.sleep(0.3)  # a test may look at files or at the clock of a batch job
            return True
    """
    assert leave_and_count(world, 3, slave) == "2 0 0"


def test_tasks_that_a_leaving_slave_held_in_advance_wait_for_others(world: World) -> None:
    slave = """
        count = 0
        def do_pid(self):
            self.count += 1
            return os.getpid()
        def terminationTest(self):
            return self.count >= 1000
    """
    assert leave_and_count(world, 3000, slave) == "2000 0 999"


def test_a_slave_started_by_hand_leaves_by_itself(world: World) -> None:
    text = job(
        ONE,
        """
        def do_one(self): return "result"
        def terminationTest(self): return True
        """,
        launch=0,
        after='print("the end")',
    )
    master = world.script(text)
    slave = world.task_manager("slave", "-w", "demo")
    slave.finish()
    assert master.finish() == "result\nthe end\n"


# --- a slave that cannot work -----------------------------------------------------------------


def broken_slave(world: World, text: str) -> tuple[Program, Program]:
    """A slave with that script, which cannot work, and the master that waits for it."""
    world.write("slave.py", text)
    master = world.script(
        """
        from masterslave import initializeMasterProcess
        master = initializeMasterProcess("demo", slave_script="slave.py")
        master.requestTask("one")
        master.retrieveResult()
        """,
        name="master.py",
    )
    slave = world.task_manager("slave", "-w", "demo")
    slave.finish(1)
    return slave, master


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module\n", "No module named 'no_such_module'"),
        ("def do_one(:\n", "SyntaxError"),
        ("def do_one():\n    return 1\n", "it ended without starting a slave"),
        ("raise SystemExit(3)\n", "it left with exit status 3"),
        ("from masterslave import startSlaveProcess\nstartSlaveProcess()\n", "handles no tasks"),
    ],
)
def test_code_that_does_not_load_is_told_on_both_sides(
    world: World, text: str, message: str
) -> None:
    slave, master = broken_slave(world, text)
    assert message in slave.err
    assert "slave.py" in slave.err
    assert message in status(world)  # among the failures that slaves report
    assert master.poll() is None  # it waits for a better slave


def test_workers_that_die_while_they_start_are_told_on_both_sides(world: World) -> None:
    text = "import os, sys\nprint('so sorry', file=sys.stderr, flush=True)\nos._exit(4)\n"
    slave, _ = broken_slave(world, text)
    assert "workers die while they start" in slave.err
    assert "exit status 4" in slave.err
    assert "exit status 4" in status(world)


def test_a_master_without_slave_code_refuses_slaves(world: World) -> None:
    world.script(
        """
        from masterslave import initializeMasterProcess
        initializeMasterProcess("demo").retrieveResult()
        """
    )
    slave = world.task_manager("slave", "-w", "demo")
    slave.finish(1)
    assert "keeps no slave code" in slave.err


def test_a_slave_without_handlers_is_refused_in_a_worker_only() -> None:
    """Making the object costs nothing and needs no master."""
    process = SlaveProcess("demo")
    assert not process.terminationTest()
    assert process.watchdog_period == 120.0
    with pytest.raises(SettingsError, match="watchdog_period=True: must be"):
        SlaveProcess("demo", watchdog_period=True)

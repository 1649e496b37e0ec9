"""Whole programs: `runJob` and its relatives with real slaves."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest
from conftest import Program, World, free_port
from scripts import SEPARATE_MASTER, SEPARATE_SLAVE, await_master, job

DEMO = """
    import math
    from masterslave import MasterProcess, SlaveProcess, TaskRaisedException, runJob

    class Master(MasterProcess):
        def run(self):
            for i in range(5):
                self.requestTask("sqrt", float(i - 1))
            for i in range(5):
                try:
                    task_id, tag, result = self.retrieveResult("sqrt")
                    print(task_id, tag, result)
                except TaskRaisedException as e:
                    print(e.task_id, type(e.exception).__name__, "in do_sqrt" in e.traceback)

    class SquareRoot(SlaveProcess):
        def do_sqrt(self, x):
            return (x, math.sqrt(x))

    runJob("demo", Master, SquareRoot, launch_slaves=2)
"""
DEMO_OUTPUT = {
    "sqrt_0 ValueError True",
    "sqrt_1 sqrt (0.0, 0.0)",
    "sqrt_2 sqrt (1.0, 1.0)",
    "sqrt_3 sqrt (2.0, 1.4142135623730951)",
    "sqrt_4 sqrt (3.0, 1.7320508075688772)",
}
RUN_JOB = '    runJob("demo", Master, SquareRoot, launch_slaves=2)'

BY_ROLE = """
    import sys
    if __name__ == "__main__":
        if sys.argv[1] == "master":
            process = Master("demo")
        else:
            process = SquareRoot("demo")
        process.start()
"""


def lines(program: Program) -> set[str]:
    return set(program.finish().splitlines())


# --- scripts of the original library -------------------------------------------------------


def test_master_and_slave_in_one_script(world: World) -> None:
    assert lines(world.script(DEMO)) == DEMO_OUTPUT


def test_the_same_with_a_guard(world: World) -> None:
    guarded = DEMO.replace("    runJob(", '    if __name__ == "__main__":\n        runJob(')
    assert lines(world.script(guarded)) == DEMO_OUTPUT


def test_one_script_started_twice_as_master_and_as_slave(world: World) -> None:
    path = world.write("script.py", DEMO.replace(RUN_JOB, BY_ROLE.strip("\n")))
    master = world.start(path, "master")
    await_master(world)
    slave = world.start(path, "slave")
    assert lines(master) == DEMO_OUTPUT
    slave.finish()


def test_master_and_slave_in_two_scripts(world: World) -> None:
    master = world.script(SEPARATE_MASTER.format(options="", launch=""), name="master.py")
    await_master(world)
    slave = world.script(SEPARATE_SLAVE.format(arguments='"demo"'), name="slave.py")
    assert master.finish() == "[0, 1, 4]\n"
    slave.finish()


def test_master_and_slave_in_two_scripts_without_a_name_server(world: World) -> None:
    port = free_port()
    world.env["MASTERSLAVE_PORT"] = str(port)
    text = SEPARATE_MASTER.format(options=", use_name_server=False", launch="")
    master = world.script(text, name="master.py")
    await_master(world, "-m", f"127.0.0.1:{port}")
    arguments = f'"demo", "127.0.0.1:{port}"'
    slave = world.script(SEPARATE_SLAVE.format(arguments=arguments), name="slave.py")
    assert master.finish() == "[0, 1, 4]\n"
    slave.finish()


def test_a_slave_script_is_kept_by_the_master(world: World) -> None:
    world.write("slave.py", SEPARATE_SLAVE.format(arguments=""))
    text = SEPARATE_MASTER.format(
        options=', slave_script="slave.py"', launch="master.launchSlaveJobs(2)"
    )
    assert world.script(text, name="master.py").finish() == "[0, 1, 4]\n"


def test_a_slave_module_is_named_by_the_master(world: World) -> None:
    world.write("squares.py", "def do_square(x):\n    return x * x\n")
    text = SEPARATE_MASTER.format(
        options=', slave_module="squares"', launch="master.launchSlaveJobs()"
    )
    assert world.script(text, name="master.py").finish() == "[0, 1, 4]\n"


def test_the_command_starts_slaves_for_a_job_without_any(world: World) -> None:
    master = world.script(DEMO.replace("launch_slaves=2", "launch_slaves=0"))
    slave = world.task_manager("slave", "-w", "demo")
    assert lines(master) == DEMO_OUTPUT
    slave.finish()


def test_slaves_start_anywhere_in_the_masters_working_directory(world: World) -> None:
    world.write("data.txt", "kept beside the script")
    text = job(
        'self.requestTask("read"); print(self.retrieveResult()[2])',
        'def do_read(self): return open("data.txt").read()',
        launch=0,
    )
    master = world.script(text)
    elsewhere = world.path / "elsewhere"
    elsewhere.mkdir()
    start = f"import os, sys; os.chdir({str(elsewhere)!r}); from masterslave.cli import main; "
    slave = world.start("-c", start + 'sys.exit(main(["slave", "-w", "demo"]))')
    assert master.finish() == "kept beside the script\n"
    slave.finish()


# --- what a script may look like --------------------------------------------------------------


def test_slaves_run_the_script_as_it_was_when_the_job_began(world: World) -> None:
    text = job(
        """
        open(__file__, "w").write("this is not what the slaves should run")
        self.launchSlaveJobs(1)
        self.requestTask("word")
        print(self.retrieveResult()[2])
        """,
        'def do_word(self): return "as it was"',
        launch=0,
    )
    assert world.script(text).finish() == "as it was\n"


def test_a_script_imports_what_stands_beside_it(world: World) -> None:
    folder = world.path / "folder"
    folder.mkdir()
    (folder / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    text = job(
        'self.requestTask("double", 21); print(self.retrieveResult()[2])',
        "def do_double(self, x): return beside.double(x)",
        before="import beside",
    )
    assert world.script(text, name="folder/script.py").finish() == "42\n"


def test_a_module_of_a_package_run_with_m(world: World) -> None:
    package = world.path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    text = job(
        'self.requestTask("double", 21); print(self.retrieveResult()[2])',
        "def do_double(self, x): return double(x)",
        before="from .beside import double",
    )
    (package / "job.py").write_text(text)
    assert world.start("-m", "package.job").finish() == "42\n"


def test_a_script_may_have_another_encoding(world: World) -> None:
    text = "# -*- coding: latin-1 -*-\n" + job(
        'self.requestTask("word"); print(ascii(self.retrieveResult()[2]))',
        'def do_word(self): return "\u00e9t\u00e9"',
    )
    (world.path / "script.py").write_text(text, encoding="latin-1")
    assert world.start("script.py").finish() == "'\\xe9t\\xe9'\n"


def test_a_script_may_begin_with_a_byte_order_mark(world: World) -> None:
    text = job(
        'self.requestTask("word"); print(self.retrieveResult()[2])', "def do_word(self): return 1"
    )
    (world.path / "script.py").write_text(text, encoding="utf-8-sig")
    assert world.start("script.py").finish() == "1\n"


def test_slaves_compile_the_script_with_its_own_future_statements_only(world: World) -> None:
    text = job(
        """
        self.requestTask("annotation", 1)
        print(self.retrieveResult()[2], Slave.do_annotation.__annotations__["x"])
        """,
        """
        def do_annotation(self, x: int):
            return Slave.do_annotation.__annotations__["x"]
        """,
    )
    assert world.script(text).finish() == "<class 'int'> <class 'int'>\n"


def test_arguments_of_the_script_are_known_in_the_slaves(world: World) -> None:
    text = job(
        'self.requestTask("arguments"); print(self.retrieveResult()[2])',
        "def do_arguments(self): return sys.argv[1:]",
        before="import sys",
    )
    assert world.script(text, "--size", 3).finish() == "['--size', '3']\n"


def test_a_job_may_be_run_by_a_function_with_local_classes(world: World) -> None:
    indented = textwrap.indent(textwrap.dedent(DEMO), "    ")
    text = f"def main():{indented}\nif __name__ == '__main__':\n    main()\n"
    assert lines(world.script(text)) == DEMO_OUTPUT


def test_a_script_under_the_profiler(world: World) -> None:
    path = world.write("script.py", DEMO)
    assert lines(world.start("-m", "cProfile", path)) >= DEMO_OUTPUT


def test_a_compiled_script(world: World) -> None:
    path = world.write("script.py", DEMO)
    program = "import py_compile, sys; py_compile.compile(sys.argv[1], sys.argv[2])"
    world.start("-c", program, path, "script.pyc").finish()
    path.unlink()
    assert lines(world.start("script.pyc")) == DEMO_OUTPUT


def test_code_after_the_job_runs_in_the_master_only(world: World) -> None:
    text = job(
        'self.requestTask("word"); print(self.retrieveResult()[2])',
        'def do_word(self): return "result"',
        before='open("log", "a").write("before\\n")',
        after='open("log", "a").write("after\\n")',
    )
    assert world.script(text).finish() == "result\n"
    log = (world.path / "log").read_text().splitlines()
    assert log[-1] == "after"
    assert log.count("after") == 1
    assert log.count("before") == 2  # the master, and the slave's worker


def test_several_jobs_in_one_script(world: World) -> None:
    text = """
        from masterslave import MasterProcess, SlaveProcess, runJob

        class Master(MasterProcess):
            def run(self):
                self.requestTask("name")
                print(self.label, self.retrieveResult()[2])

        class First(SlaveProcess):
            def do_name(self):
                return type(self).__name__

        runJob("first", Master, First, launch_slaves=1)

        class Second(SlaveProcess):
            def do_name(self):
                return type(self).__name__

        runJob("second", Master, Second, launch_slaves=1)
        runJob("first", Master, First, launch_slaves=1)
    """
    assert world.script(text).finish() == "first First\nsecond Second\nfirst First\n"


def test_a_failing_master_ends_the_job(world: World) -> None:
    text = job(
        """
        print(*self.launchSlaveJobs(1))
        self.requestTask("word")
        self.retrieveResult()
        raise RuntimeError("the master gives up")
        """,
        "def do_word(self): return 1",
        launch=0,
    )
    program = world.script(text)
    slave = int(program.finish(1))
    assert "RuntimeError: the master gives up" in program.err
    assert not Path(f"/proc/{slave}").exists()


def test_sys_exit_in_the_master_is_the_scripts_exit_status(world: World) -> None:
    text = job("raise SystemExit(7)", "def do_word(self): return 1")
    program = world.script(text)
    assert program.finish(7) == ""
    assert program.err == ""


# --- wrong use --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("runJob('demo', Slave, Slave)", "master_class=.*must be a subclass of MasterProcess"),
        ("runJob('demo', Master, Master)", "slave_class=.*must be a subclass of SlaveProcess"),
        ("runJob('demo', 'Master', Slave)", "master_class='Master': must be a subclass"),
        ("runJob('demo', Master, Slave, launch_slaves=-1)", "launch_slaves=-1: must be"),
        ("runJob('demo', Master, Slave, launch_slaves='2')", "launch_slaves='2': must be"),
        ("runJob('demo', Master, Slave, 0)", "watchdog_period=0: must be"),
        ("runJob('demo', Master, Slave, 'often')", "watchdog_period='often': must be"),
        ("runJob('demo', Master, Slave, float('nan'))", "watchdog_period=nan: must be"),
        ("runJob('', Master, Slave)", "label '': must be"),
        ("runJob(None, Master, Slave)", "label None: must be"),
        ("runJob('two\\nlines', Master, Slave)", "label .*must be"),
        ("initializeMasterProcess('demo', 'slave.py', 'slave')", "slave_script= or slave_module="),
        ("initializeMasterProcess('demo', 'no_such_file.py')", "cannot read .*no_such_file.py"),
        ("initializeMasterProcess('demo', slave_module=3)", "slave_module=3: must be"),
        ("startSlaveProcess()", "needs a label"),
        ("startSlaveProcess(3)", "label 3: must be"),
        ("startSlaveProcess('demo', 'host:port')", "the port must be a number"),
        ("startSlaveProcess('demo', 7766)", "master_host=7766: must be"),
        ("SlaveProcess('demo', watchdog_period=-1)", "watchdog_period=-1: must be"),
        ("SlaveProcess('')", "label '': must be"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str, message: str
) -> None:
    import masterslave

    class Master(masterslave.MasterProcess):
        def run(self) -> None:
            raise AssertionError("is not to be run")

    class Slave(masterslave.SlaveProcess):
        pass

    monkeypatch.chdir(world.path)
    monkeypatch.setenv("MASTERSLAVE_PORT", "0")
    names = {**vars(masterslave), **{n: getattr(masterslave, n) for n in masterslave.__all__}}
    with pytest.raises(masterslave.MasterSlaveError, match=message) as caught:
        eval(call, {**names, "Master": Master, "Slave": Slave})
    assert "\n" not in str(caught.value)


def test_a_slave_without_a_master_says_what_to_do(world: World) -> None:
    program = world.script(SEPARATE_SLAVE.format(arguments='"demo"'))
    program.finish(1)
    assert "start the master of 'demo' first" in program.err


def test_no_process_stays_behind(world: World) -> None:
    """Workers and slaves tell where they run; none of them outlives the job."""
    text = job(
        """
        self.requestTasks("pids", [()] * 4)
        for task_id, tag, pids in self.results():
            print(*pids)
        """,
        "def do_pids(self): time.sleep(0.1); return os.getpid(), os.getppid()",
        launch=2,
        before="import os, time",
    )
    pids = {int(pid) for pid in world.script(text).finish().split()}
    assert len(pids) >= 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

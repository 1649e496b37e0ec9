"""Jobs without a script: from standard input, consoles, notebooks."""

from __future__ import annotations

import re
import sys
import textwrap

from conftest import Program, World
from scripts import SEPARATE_MASTER, SEPARATE_SLAVE, await_master

SESSION = """\
from masterslave import MasterProcess, SlaveProcess, runJob

class Point:
    def __init__(self, x):
        self.x = x

factor = 3

def scaled(x):
    return factor * x

class Master(MasterProcess):
    def run(self):
        self.requestTask("apply", lambda p: Point(scaled(p.x)), Point(2))
        point = self.retrieveResult()[2]
        print("result", type(point) is Point, point.x)

class Slave(SlaveProcess):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = 0
    def do_apply(self, f, point):
        assert isinstance(point, Point)
        self.calls += 1
        point = f(point)
        assert isinstance(point, Point)
        point.x += 100 * self.calls
        return point

runJob("demo", Master, Slave, launch_slaves=1)
factor = 4
runJob("demo", Master, Slave, launch_slaves=1)
"""
SESSION_OUTPUT = ["result True 106", "result True 108"]


def typed(world: World, text: str, *arguments: str) -> Program:
    """Start Python with `arguments` and this text on its standard input."""
    path = world.path / "typed"
    path.write_text(text)
    program = (
        f"import os, sys; os.dup2(os.open({str(path)!r}, os.O_RDONLY), 0); "
        f"os.execv(sys.executable, {[sys.executable, *arguments]!r})"
    )
    return world.start("-c", program)


def results(program: Program) -> list[str]:
    return re.findall("result .*", program.finish())


def test_a_program_on_standard_input(world: World) -> None:
    assert results(typed(world, SESSION, "-")) == SESSION_OUTPUT


def test_an_interactive_session(world: World) -> None:
    # PYTHON_BASIC_REPL: what is typed is no terminal, and all versions should read it alike.
    world.env["PYTHON_BASIC_REPL"] = "1"
    program = typed(world, SESSION, "-i")
    assert results(program) == SESSION_OUTPUT
    assert "Error" not in program.err


def test_a_program_on_the_command_line(world: World) -> None:
    assert results(world.start("-c", SESSION)) == SESSION_OUTPUT


def test_an_interactive_console_without_a_script(world: World) -> None:
    world.write("session", SESSION)
    console = """
        import code
        typed = iter(open("session").read().splitlines())
        def read(prompt):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError
        console = code.InteractiveConsole()  # its names live in a __console__ of their own
        console.raw_input = read
        console.interact("", "")
    """
    program = world.start("-c", textwrap.dedent(console))
    assert results(program) == SESSION_OUTPUT
    assert "Error" not in program.err


def test_a_notebook(world: World) -> None:
    cells = SESSION.replace("class Master", "#CELL\nclass Master").replace(
        "\nrunJob", "\n#CELL\nrunJob"
    )
    world.write("cells", cells)
    kernel = """
        import sys, types
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        for number, cell in enumerate(open("cells").read().split("#CELL\\n")):
            exec(compile(cell, f"<cell {number}>", "exec"), main.__dict__)
    """
    assert results(world.script(kernel, name="kernel.py")) == SESSION_OUTPUT


def test_a_slave_of_a_session_works_for_another_master(world: World) -> None:
    master = world.script(SEPARATE_MASTER.format(options="", launch=""), name="master.py")
    await_master(world)
    slave = typed(world, textwrap.dedent(SEPARATE_SLAVE).format(arguments='"demo"'), "-")
    assert master.finish() == "[0, 1, 4]\n"
    slave.finish()


def test_slaves_of_a_session_start_anywhere(world: World) -> None:
    session = SESSION.replace("launch_slaves=1", "launch_slaves=0", 1).partition("factor = 4")[0]
    master = typed(world, session, "-")
    slave = world.task_manager("slave", "-w", "demo")
    assert results(master) == SESSION_OUTPUT[:1]
    slave.finish()

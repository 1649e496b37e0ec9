"""Classes and functions of the script on their way between master and slaves."""

from __future__ import annotations

import textwrap

from conftest import World
from scripts import await_master, job

POINTS = """
    from dataclasses import dataclass
    from enum import Enum

    class Colour(Enum):
        RED = 1

    @dataclass
    class Point:
        x: int
        colour: Colour = Colour.RED

        class Error(Exception):
            pass
"""


def test_classes_of_the_script_are_the_same_in_handlers_and_when_they_come_back(
    world: World,
) -> None:
    text = job(
        """
        self.requestTask("move", Point(1))
        point = self.retrieveResult()[2]
        print(type(point) is Point, point.colour is Colour.RED, point.x)
        self.requestTask("fail", Point(5))
        try:
            self.retrieveResult()
        except TaskRaisedException as error:
            print(type(error.exception) is Point.Error, error.exception.args[0] == Point(5))
        """,
        """
        def do_move(self, point):
            assert isinstance(point, Point) and point.colour is Colour.RED
            return Point(point.x + 1)

        def do_fail(self, point):
            raise Point.Error(point)
        """,
        before=POINTS,
    )
    assert world.script(text).finish() == "True True 2\nTrue True\n"


def test_the_same_when_master_and_slave_are_started_apart(world: World) -> None:
    text = textwrap.dedent(POINTS) + textwrap.dedent("""
        import sys
        from masterslave import MasterProcess, SlaveProcess

        class Master(MasterProcess):
            def run(self):
                self.requestTask("move", Point(1), lambda: Point)
                point = self.retrieveResult()[2]
                print(type(point) is Point, point.colour is Colour.RED, point.x)

        class Slave(SlaveProcess):
            def do_move(self, point, function):
                assert isinstance(point, Point) and function() is Point
                return Point(point.x + 1)

        (Master if sys.argv[1] == "master" else Slave)("demo").start()
    """)
    path = world.write("script.py", text)
    master = world.start(path, "master")
    await_master(world)
    slave = world.start(path, "slave")
    assert master.finish() == "True True 2\n"
    slave.finish()


def test_classes_of_the_masters_script_travel_to_another_script(world: World) -> None:
    world.write(
        "slave.py",
        """
        from masterslave import startSlaveProcess

        class Point:  # has only its name in common with the master's
            pass

        def do_move(point):
            assert type(point) is not Point
            return type(point)(point.x + 1)

        startSlaveProcess()
        """,
    )
    text = textwrap.dedent(POINTS) + textwrap.dedent("""
        from masterslave import initializeMasterProcess

        master = initializeMasterProcess("demo", slave_script="slave.py")
        master.launchSlaveJobs()
        master.requestTask("move", Point(1))
        point = master.retrieveResult()[2]
        print(type(point) is Point, point.colour is Colour.RED, point.x)
    """)
    assert world.script(text, name="master.py").finish() == "True True 2\n"


def test_lambdas_and_closures_are_parameters_and_results(world: World) -> None:
    text = job(
        """
        offset = 10
        self.requestTask("twice", lambda x: x + offset)
        print(self.retrieveResult()[2](1))
        """,
        "def do_twice(self, f): return lambda x: f(f(x))",
    )
    assert world.script(text).finish() == "21\n"

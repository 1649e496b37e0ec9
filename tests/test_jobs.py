"""Whole programs: `runJob` and its relatives with real slaves."""

from conftest import World

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


def test_master_and_slave_in_one_script(world: World) -> None:
    assert set(world.script(DEMO).finish().splitlines()) == DEMO_OUTPUT


def test_the_same_with_a_guard(world: World) -> None:
    guarded = DEMO.replace("    runJob(", '    if __name__ == "__main__":\n        runJob(')
    assert set(world.script(guarded).finish().splitlines()) == DEMO_OUTPUT

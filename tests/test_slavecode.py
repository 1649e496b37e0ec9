"""The slave's code: what the master keeps of it, and how a worker loads it."""

from __future__ import annotations

import pickle
import py_compile
from pathlib import Path
from typing import Any

import pytest
from conftest import World

from masterslave import slavecode
from masterslave.errors import PayloadError, SlaveError
from masterslave.payload import script_id
from masterslave.slavecode import Record

LOADER = """
    import pickle, sys
    from pathlib import Path
    from masterslave import slavecode
    def start(loaded):
        if isinstance(loaded, dict):
            loaded = sorted(name for name in loaded if name.startswith("do_"))
        print("starts", loaded)
    slavecode.load(pickle.loads(Path(sys.argv[1]).read_bytes()), start)
"""


def load(world: World, record: Record) -> list[str]:
    """Load the code in a process of its own, as a worker does; the lines that it prints."""
    path = world.path / "record"
    path.write_bytes(pickle.dumps(record))
    loader = world.script(LOADER, path, name="loader.py")
    return (loader.finish() + loader.err).splitlines()


def script(world: World, text: str, name: str = "slave.py") -> Record:
    return slavecode.script_record(world.write(name, text))


def kept(world: World, *command: object) -> str:
    """What a program finds when it looks for its own script."""
    return world.start(*command).finish()


SHOW = """
    from masterslave import slavecode
    record = slavecode.running_script()
    print(record if record is None else (record["path"], record["package"], record["argv"]))
"""


# --- making records -------------------------------------------------------------------------


def test_a_script_finds_itself(world: World) -> None:
    path = world.write("program.py", SHOW)
    assert kept(world, "program.py", "-x") == f"{(str(path), None, ['program.py', '-x'])}\n"


def test_a_module_that_is_run_finds_itself_and_its_package(world: World) -> None:
    (world.path / "package").mkdir()
    path = world.write("package/tool.py", SHOW)
    assert kept(world, "-m", "package.tool") == f"{(str(path), 'package', [str(path)])}\n"


@pytest.mark.parametrize("command", [("-c",), ("-i", "-c")], ids=" ".join)
def test_without_a_file_there_is_no_script(world: World, command: tuple[str, ...]) -> None:
    text = "from masterslave import slavecode as s; print(s.running_script())"
    assert kept(world, *command, text) == "None\n"


def test_a_compiled_program_has_no_text_to_run_again(world: World) -> None:
    compiled = world.path / "program.pyc"
    py_compile.compile(str(world.write("program.py", SHOW)), str(compiled), doraise=True)
    assert kept(world, compiled) == "None\n"


def test_a_program_of_the_python_installation_is_no_script() -> None:
    assert slavecode.running_script() is None, "the test runner"


def test_a_record_holds_the_script_and_its_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "print('zażółć')\n"
    (tmp_path / "slave.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("relative")
    record = slavecode.script_record("slave.py")
    assert (record["kind"], record["source"]) == ("script", text)
    assert (record["path"], record["cwd"]) == (str(tmp_path / "slave.py"), str(tmp_path))
    assert record["main_id"] == script_id(text)
    assert record["sys_path"][0] == str(tmp_path / "relative")


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlaveError, match=r"cannot read the slave's script .*absent\.py"):
        slavecode.script_record(tmp_path / "absent.py")


def test_a_script_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slave.py").write_bytes(b"print('\xff')\n")
    with pytest.raises(SlaveError, match="cannot read"):
        slavecode.script_record(tmp_path / "slave.py")


def test_a_script_in_an_encoding_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slave.py").write_text("# -*- coding: klingon -*-\n")
    with pytest.raises(SlaveError, match=r"cannot read .*klingon"):
        slavecode.script_record(tmp_path / "slave.py")


def test_an_object_that_cannot_be_pickled_is_refused() -> None:
    with pytest.raises(PayloadError, match="generator"):
        slavecode.object_record(i for i in "x")


def test_records_are_plain_values(world: World) -> None:
    """The task manager keeps them, and they cross wires."""
    records = [
        script(world, "pass"),
        slavecode.module_record("module"),
        slavecode.object_record((dict, 1.0)),
    ]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.items():
                check(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (str, bytes, int, float, bool)

    for record in records:
        check(record)


# --- loading --------------------------------------------------------------------------------


def test_a_script_is_run_as_main(world: World) -> None:
    record = script(
        world,
        """
        import sys
        class Slave: pass
        print(__name__, __file__, Slave.__module__, sys.modules["__main__"].Slave is Slave)
        if __name__ == "__main__":
            print("guarded")
        """,
    )
    assert load(world, record) == [f"__main__ {record['path']} __main__ True", "guarded"]


def test_a_script_is_loaded_without_its_file_and_its_traceback_shows_the_lines(
    world: World,
) -> None:
    record = script(
        world,
        """
        import traceback
        try:
            1 / 0  # the line to be seen
        except ZeroDivisionError:
            print(traceback.format_exc())
        """,
    )
    Path(record["path"]).unlink()
    assert "    1 / 0  # the line to be seen" in load(world, record)


def test_a_script_finds_the_modules_beside_it(world: World) -> None:
    (world.path / "place").mkdir()
    world.write("place/beside.py", "NAME = 'beside'")
    record = script(world, "import beside; print(beside.NAME)", "place/slave.py")
    assert load(world, record) == ["beside"]


def test_a_script_of_a_package_keeps_its_relative_imports(world: World) -> None:
    (world.path / "package").mkdir()
    world.write("package/part.py", "NAME = 'part'")
    path = world.write("package/tool.py", "from . import part; print(__package__, part.NAME)")
    record = slavecode.script_record(path, package="package")
    record["sys_path"].append(str(world.path))
    assert load(world, record) == ["package part"]


def test_what_a_script_defines_is_recognised_by_name(world: World) -> None:
    record = script(
        world,
        """
        from masterslave import payload
        class Point: pass
        codec = payload.Codec({main_id!r})
        print(codec.decode(codec.encode(Point)) is Point)
        """,
    )
    record["source"] = record["source"].replace("{main_id!r}", repr(record["main_id"]))
    assert load(world, record) == ["True"]


def test_a_script_is_compiled_as_python_itself_would(world: World) -> None:
    """Nothing of this library's own compiler settings may reach a user's script."""
    record = script(
        world,
        """
        import __future__, sys
        def f(x: int) -> None: pass
        print(f.__annotations__["x"], "annotations" in globals())
        """,
    )
    assert load(world, record) == ["<class 'int'> False"]


def test_a_script_in_an_encoding_of_its_own_is_read_as_it_says(world: World) -> None:
    path = world.path / "slave.py"
    path.write_bytes("# -*- coding: latin-1 -*-\nprint(ascii('é'))\n".encode("latin-1"))
    assert load(world, slavecode.script_record(path)) == [r"'\xe9'"]


def test_a_script_with_a_byte_order_mark_can_be_run(world: World) -> None:
    path = world.path / "slave.py"
    path.write_bytes(b"\xef\xbb\xbfprint('runs')\r\n")
    assert load(world, slavecode.script_record(path)) == ["runs"]


def test_a_module_is_imported_and_its_namespace_started(world: World) -> None:
    world.write("handlers.py", "def do_b(): pass\ndef do_a(): pass\ndef other(): pass\n")
    record = slavecode.module_record("handlers")
    record["sys_path"].append(str(world.path))
    assert load(world, record) == ["starts ['do_a', 'do_b']"]


def test_an_object_is_unpickled_and_started(world: World) -> None:
    record = slavecode.object_record(("a class", 120.0))
    assert load(world, record) == ["starts ('a class', 120.0)"]


def test_a_class_without_a_script_travels_by_value(world: World) -> None:
    class Slave:
        def __repr__(self) -> str:
            return "a slave of its own"

    assert load(world, slavecode.object_record(Slave())) == ["starts a slave of its own"]


def test_a_worker_takes_over_the_masters_surroundings(world: World) -> None:
    there = world.path / "there"
    there.mkdir()
    record = script(world, "import os, sys; print(os.getcwd(), sys.argv, *sys.path[-1:])")
    record |= {"cwd": str(there), "argv": ["program", "-x"]}
    record["sys_path"] = [str(world.path / "absent"), str(there)]
    assert load(world, record) == [f"{there} ['program', '-x'] {there}"]


def test_the_masters_import_path_comes_after_the_workers_own(world: World) -> None:
    for name in ("first", "second"):
        (world.path / name).mkdir()
    world.write("second/json.py", "raise ImportError('the wrong json')")
    record = script(world, "import json; print('the right json')", "first/slave.py")
    record["sys_path"] = [str(world.path / "second")]
    assert load(world, record) == ["the right json"]


def test_a_working_directory_that_is_not_here_is_told_and_no_more(world: World) -> None:
    record = script(world, "print('runs')")
    record["cwd"] = str(world.path / "absent")
    out = load(world, record)
    assert out[0] == "runs"
    assert "absent is not here: No such file or directory" in out[1]

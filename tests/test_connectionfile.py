"""Connection files: where a task manager is, for all who share a home directory."""

from __future__ import annotations

import json
import os
import platform
import signal
import stat
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Program, World, free_port, wait_until
from labels import master

from masterslave.connectionfile import ConnectionFile, path_of, read, read_all
from masterslave.errors import ConnectionFailed, SettingsError
from masterslave.keyfile import load_key
from masterslave.naming import connect
from masterslave.settings import Settings

HERE = ["10.0.0.1:7766", "127.0.0.1:7766"]


def write(directory: Path, label: str = "job", **changes: object) -> Path:
    """A file as of another process."""
    file = ConnectionFile(directory, label, HERE)
    file.write()
    fields = {**json.loads(file.path.read_text()), **changes}
    file.path.write_text(json.dumps(fields))
    return file.path


def gone() -> int:
    """The id of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_what_is_written_is_read_and_removed(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "managers"
    file = ConnectionFile(directory, "a label/with ünusual signs", HERE)
    file.write()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    found = read(directory, "a label/with ünusual signs")
    assert found is not None
    assert found[1:] == ("a label/with ünusual signs", HERE, platform.node(), os.getpid())
    assert read_all(directory) == [found]
    file.remove()
    assert list(directory.iterdir()) == []
    file.remove()


def test_long_labels_have_files_of_their_own(tmp_path: Path) -> None:
    for end in "ab":
        ConnectionFile(tmp_path, "x" * 300 + end, HERE).write()
    assert read(tmp_path, "x" * 300 + "b") is not None
    assert len(read_all(tmp_path)) == 2


def test_the_file_of_a_later_task_manager_is_left_alone(tmp_path: Path) -> None:
    first = ConnectionFile(tmp_path, "job", HERE)
    first.write()
    ConnectionFile(tmp_path, "job", ["127.0.0.1:1"]).write()
    first.remove()
    found = read(tmp_path, "job")
    assert found is not None
    assert found.addresses == ["127.0.0.1:1"]


@pytest.mark.parametrize("text", [b"nonsense", b"\xff\x00", b"", b"[" * 100_000])
def test_what_makes_no_sense_in_its_place_is_removed_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    file = ConnectionFile(tmp_path, "job", HERE)
    file.write()
    file.path.write_bytes(text)
    file.remove()
    assert not file.path.exists()
    assert "made no sense at the end; removed" in caplog.text


@pytest.mark.parametrize("kind", ["pipe", "folder", "open to others", "link to a pipe"])
def test_what_is_no_file_of_ours_in_its_place_is_left_and_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    file = ConnectionFile(tmp_path, "job", HERE)
    file.write()
    if kind == "open to others":
        file.path.chmod(0o666)
    else:
        file.path.unlink()
        if kind == "folder":
            file.path.mkdir()
        else:
            os.mkfifo(file.path if kind == "pipe" else tmp_path / "pipe")
            if kind != "pipe":
                file.path.symlink_to("pipe")
    file.remove()
    assert file.path.exists()
    assert len(caplog.records) == 1
    assert f"connection file {file.path} is left at the end: " in caplog.text


def test_a_file_that_makes_no_sense_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = path_of(tmp_path, "job")
    path.write_text("nonsense")
    path.chmod(0o600)
    for _ in range(3):
        assert read(tmp_path, "job") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"connection file {path} makes no sense; remove it"
    ]


def test_no_file_no_connection(tmp_path: Path) -> None:
    assert read(tmp_path / "nowhere", "job") is None
    assert read_all(tmp_path / "nowhere") == []
    assert read(None, "job") is None
    assert read_all(None) == []


def test_a_file_whose_process_has_ended_is_removed(tmp_path: Path) -> None:
    path = write(tmp_path, pid=gone())
    assert read(tmp_path, "job") is None
    assert not path.exists()


def test_of_another_host_only_what_can_be_reached_counts(tmp_path: Path) -> None:
    path = write(tmp_path, pid=gone(), host="elsewhere")
    found = read(tmp_path, "job")
    assert found is not None
    assert found.addresses == HERE[:1]
    assert path.exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "nonsense", '{"label": "job"}', '{"label": 1, "host": 2}', "\xff", "[" * 9999],
)
def test_a_file_that_makes_no_sense_is_passed_over(tmp_path: Path, text: str) -> None:
    path = path_of(tmp_path, "job")
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    assert read(tmp_path, "job") is None
    assert read_all(tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [{"label": "other"}, {"pid": "5"}, {"pid": True}, {"addresses": 5}, {"addresses": [5]}],
    ids=str,
)
def test_so_is_one_with_a_wrong_value(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path, **{"host": "elsewhere", **changes})
    assert read(tmp_path, "job") is None


def test_a_file_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.chmod(0o620)
    with pytest.raises(SettingsError, match="others may write to it; remove it"):
        read(tmp_path, "job")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SettingsError, match="is not a regular file"):
        read(tmp_path, "job")


def test_that_it_cannot_be_written_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    file = ConnectionFile(tmp_path / "file", "job", HERE)
    file.write()
    file.remove()
    assert "slaves need the name server or -m" in caplog.text


# --- with task managers ---------------------------------------------------------------------


def find(label: str = "job") -> str:
    settings = Settings.from_environment()
    link = connect(label, None, settings, load_key(settings.key_file))
    try:
        return str(link.call("status")["label"])
    finally:
        link.close()


def served(world: World, label: str, *arguments: object) -> Program:
    program = world.task_manager("serve", label, *arguments)
    file = path_of(world.path / ".masterslave" / "managers", label)
    wait_until(file.exists, "it is there")
    return program


def test_without_a_name_server_a_task_manager_is_found_by_its_file(world: World) -> None:
    with master("job", use_name_server=False, port=0):
        assert find() == "job"
        shown = world.task_manager("show", "job").finish()
        assert "task manager job" in shown
        assert "alive" in world.task_manager("list").finish()
    with pytest.raises(ConnectionFailed, match="no name server"):
        find()
    assert list((world.path / ".masterslave" / "managers").iterdir()) == []


def test_a_slave_waits_for_the_file_and_finds_the_master(world: World) -> None:
    world.write("slave.py", "def do_double(x):\n    return 2 * x\n")
    slave = world.task_manager("slave", "-w", "job")
    world.env["MASTERSLAVE_PORT"] = "0"
    program = world.script(
        f"""
        from masterslave import initializeMasterProcess
        master = initializeMasterProcess("job", slave_module="slave", use_name_server=False)
        master.requestTask("double", 4)
        print(master.retrieveResult(timeout={PATIENCE_S})[2])
        """
    )
    assert program.finish() == "8\n"
    slave.finish()


def test_the_file_of_one_that_was_killed_leads_nobody_astray(world: World) -> None:
    first = served(world, "job")
    first.kill()
    first.wait()
    second = world.task_manager("serve", "job")
    pid = f'"pid": {second.pid}'
    file = path_of(world.path / ".masterslave" / "managers", "job")
    wait_until(lambda: file.exists() and pid in file.read_text(), "the second one is there")
    assert find() == "job"


def test_where_another_label_answers_by_now_the_name_server_is_asked(world: World) -> None:
    with master("other") as other, master("job"):
        directory = world.path / ".masterslave" / "managers"
        write(directory, addresses=[other.address])
        assert find() == "job"


def test_each_address_is_tried(world: World) -> None:
    with master("job", use_name_server=False, port=0) as process:
        dead = [f"127.0.0.1:{free_port()}", "[::1]:1"]
        write(world.path / ".masterslave" / "managers", addresses=[*dead, process.address])
        assert find() == "job"


def test_both_ways_are_told_when_neither_leads_there(world: World) -> None:
    address = f"127.0.0.1:{free_port()}"
    path = write(world.path / ".masterslave" / "managers", addresses=[address])
    with pytest.raises(ConnectionFailed) as caught:
        find()
    assert "no name server answers" in str(caught.value)
    assert str(path) in str(caught.value)
    assert address in str(caught.value)
    write(world.path / ".masterslave" / "managers", host="elsewhere", addresses=[address])
    with pytest.raises(ConnectionFailed, match=r"listens on elsewhere .*MASTERSLAVE_HOST"):
        find()


GARBAGE = [b"nonsense", b"\xff\xfe", b'{"label": "job"}', b""]


@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_garbage_in_the_place_of_a_living_ones_file(world: World, garbage: bytes) -> None:
    """By the name server it is found all the same; without one, what is wrong is said in a line."""
    manager = served(world, "job", "-v")
    path = path_of(world.path / ".masterslave" / "managers", "job")
    path.write_bytes(garbage)
    assert find() == "job"
    world.env["PYRO_NS_PORT"] = str(free_port())
    for command in ("show", "slave"):
        program = world.task_manager(command, "job")
        program.finish(1)
        told = program.err.splitlines()
        assert told[-1].startswith("task_manager: no name server answers")
        assert told[-1].endswith(f"; connection file {path} makes no sense; remove it")
        assert len(told) <= 2, "and in the log, once"
    manager.send_signal(signal.SIGTERM)
    manager.finish()
    assert "made no sense at the end; removed" in manager.err
    assert "Traceback" not in manager.err
    assert not path.exists()

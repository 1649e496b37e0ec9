"""The key file: made once, owner-only, and refused when it cannot be trusted."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from masterslave.errors import SettingsError
from masterslave.keyfile import load_key
from masterslave.proofs import KEY_BYTES

HEX = "0123456789abcdef" * 4


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_is_made_at_first_use_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "directory" / "key"
    key = load_key(path)
    assert len(key) == KEY_BYTES
    assert load_key(path) == key
    assert load_key(tmp_path / "other") != key


def test_only_the_owner_can_read_a_key_that_was_made(tmp_path: Path) -> None:
    path = tmp_path / "home" / "key"
    before = os.umask(0)
    try:
        load_key(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_else_is_left_beside_the_key(tmp_path: Path) -> None:
    load_key(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_processes_that_make_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    barrier = threading.Barrier(16)
    keys: list[bytes] = []

    def load() -> None:
        barrier.wait()
        keys.append(load_key(tmp_path / "new" / "key"))

    threads = [threading.Thread(target=load) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 16
    assert len(set(keys)) == 1


@pytest.mark.parametrize("text", [HEX, HEX + "\n", f"  {HEX.upper()} \r\n"])
def test_a_key_copied_by_hand_can_be_used(tmp_path: Path, text: str) -> None:
    assert load_key(write(tmp_path / "key", text)) == bytes.fromhex(HEX)


@pytest.mark.parametrize("text", ["", HEX[:-2], HEX + "00", HEX * 9, "g" * 64, "é" * 64, "\0" * 32])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="must hold 64 hexadecimal digits"):
        load_key(write(tmp_path / "key", text))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_key_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "key", HEX, mode)
    with pytest.raises(SettingsError, match=f"chmod 600 {path}"):
        load_key(path)


def test_a_key_of_someone_elses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "key", HEX)
    somebody = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: somebody + 1)
    with pytest.raises(SettingsError, match=f"belongs to user {somebody}, not to you"):
        load_key(path)


def test_a_device_is_no_key_file() -> None:
    with pytest.raises(SettingsError, match="not a regular file"):
        load_key(Path(os.devnull))


def test_a_named_pipe_is_no_key_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(SettingsError, match="not a regular file"):
        load_key(tmp_path / "key")


def test_a_directory_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="MASTERSLAVE_KEY_FILE"):
        load_key(tmp_path)


def test_a_place_where_no_file_can_be_made_is_said(tmp_path: Path) -> None:
    write(tmp_path / "file", "")
    with pytest.raises(SettingsError, match="MASTERSLAVE_KEY_FILE"):
        load_key(tmp_path / "file" / "key")


def test_a_link_to_nowhere_is_said(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "nowhere" / "key")
    with pytest.raises(SettingsError, match="No such file"):
        load_key(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]

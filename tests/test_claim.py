"""One process of all has it; that of one which has ended in whatever way is taken over."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import World, is_running, wait_until

from masterslave import claim
from masterslave.claim import LOST_S, Claim, Taken
from masterslave.errors import StartError

HOLD = """
    import sys, time
    from pathlib import Path
    from masterslave.claim import Claim
    claim = Claim(Path(sys.argv[1]))
    print("has it", flush=True)
    time.sleep(600)
"""


def of_another_host(folder: Path, age_s: float) -> None:
    """What a process there has left, which it has touched so long ago."""
    folder.mkdir()
    path = folder / "00000007.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 11, "start": "5"}))
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_the_second_is_told_who_has_it(world: World) -> None:
    folder = world.path / "claim"
    first = world.script(HOLD, folder)
    wait_until(lambda: first.out, "the first one has it")
    with pytest.raises(Taken) as caught:
        Claim(folder)
    assert (caught.value.host, caught.value.pid) == (os.uname().nodename, first.pid)
    first.kill()  # and is not reaped: it has ended all the same
    wait_until(lambda: not is_running(first.pid), "it has ended")
    second = Claim(folder)
    assert second.is_ours()
    second.give_up()
    first.finish(-signal.SIGKILL)


def test_one_that_was_given_up_is_free(tmp_path: Path) -> None:
    for _ in range(3):
        one = Claim(tmp_path / "claim")
        assert one.is_ours()
        with pytest.raises(Taken):
            Claim(tmp_path / "claim")
        one.give_up()
    assert len(list((tmp_path / "claim").iterdir())) == 1


def test_one_of_another_host_is_free_when_it_is_not_touched_any_more(tmp_path: Path) -> None:
    of_another_host(tmp_path / "fresh", LOST_S - 30)
    with pytest.raises(Taken, match="process 11 on elsewhere"):
        Claim(tmp_path / "fresh")
    of_another_host(tmp_path / "old", LOST_S + 30)
    one = Claim(tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["00000008.json"]
    one.give_up()


def test_who_has_it_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_TOUCH_S", 0.01)
    one = Claim(tmp_path / "claim")
    (path,) = (tmp_path / "claim").iterdir()
    os.utime(path, (0, 0))
    wait_until(lambda: path.stat().st_mtime > 0, "it is touched")
    one.give_up()


def test_who_was_taken_for_ended_sees_it(tmp_path: Path) -> None:
    one = Claim(tmp_path / "claim")
    (tmp_path / "claim" / "00000002.json").write_text("{}")
    assert not one.is_ours()
    one.give_up()
    next_one = Claim(tmp_path / "claim")
    assert next_one.is_ours()
    next_one.give_up()


def test_of_many_at_once_one_has_it(tmp_path: Path) -> None:
    of_another_host(tmp_path / "claim", 2 * LOST_S)
    together = threading.Barrier(8)
    got: list[Claim] = []
    refused: list[Taken] = []

    def take() -> None:
        together.wait()
        try:
            got.append(Claim(tmp_path / "claim"))
        except Taken as other:
            refused.append(other)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    assert got[0].is_ours()
    got[0].give_up()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"file/claim cannot be written: Not a directory"):
        Claim(tmp_path / "file" / "claim")

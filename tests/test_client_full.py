"""A client's store on a disk that fills: every result comes, and what could not be kept is said."""

from __future__ import annotations

import re
import signal

import pytest
from conftest import Program, World, wait_until
from disks import Place, SmallDisk

FIRST, ALL = 2, 8

JOB = """
    import logging, os, sys, time
    from masterslave import ClientThread
    from masterslave.errors import JournalFull

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    path, run, end = sys.argv[1:]

    def say(name, text):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, (str(text) + chr(10)).encode())
        os.close(file)

    def large(x):
        say("ran", x)
        return bytes([x]) * 300_000

    def show(job, result):
        assert len(result) == 300_000
        say("got" + run, result[0])

    def wait_for(name):
        while not os.path.exists(name):
            time.sleep(0.01)

    if __name__ == "__main__":
        try:
            with ClientThread(show, workers=1, store=path) as client:
                for x in range({first}):
                    client.submit(large, x)
                client.wait()
                wait_for("go")
                for x in range({first}, {all}):
                    client.submit(large, x, then=show)
                if end == "room":
                    try:
                        client.wait()
                    except JournalFull as error:
                        print("told:", error, flush=True)
                    wait_for("room")
            print("all is kept", flush=True)
        except JournalFull as error:
            print("raised:", error, flush=True)
"""


def start(world: World, place: Place, run: int, end: str = "block") -> Program:
    script = world.write("job.py", JOB.format(first=FIRST, all=ALL))
    return world.start(script, place.path, run, end)


def lines(world: World, name: str) -> list[int]:
    path = world.path / name
    return sorted(map(int, path.read_text().split())) if path.exists() else []


def filled(world: World, place: Place, end: str) -> Program:
    """A client, up to the moment when all results have come and the store is full."""
    program = start(world, place, 1, end)
    wait_until(lambda: len(lines(world, "got1")) == FIRST or program.poll() is not None)
    assert program.poll() is None, program.err
    place.fill(program)
    (world.path / "go").touch()
    wait_until(lambda: "cannot be written" in program.err, "it says so")
    return program


def told(place: Place) -> str:
    small = isinstance(place, SmallDisk)
    remedy = "make room there" if small else "but files .* raise ulimit -f"
    return rf"results {re.escape(str(place.path))} cannot be written: .* \(.*{remedy}\)"


def test_every_result_comes_and_is_kept_when_there_is_room_again(
    world: World, place: Place
) -> None:
    program = filled(world, place, "room")
    wait_until(lambda: "told:" in program.out or program.poll() is not None, "`wait` says so")
    assert lines(world, "got1") == list(range(ALL)), "all came, though there was no room"
    assert re.match(rf"told: {told(place)}; \d results are not in it\n", program.out), program.out
    said = [line for line in program.err.splitlines() if "cannot be written" in line]
    assert len(said) == 1, program.err
    assert re.fullmatch(rf"{told(place)}; results are handed over, .*", said[0]), said[0]
    place.make_room(program)
    (world.path / "room").touch()
    assert program.finish().endswith("all is kept\n")
    assert "the store can be written again" in program.err
    second = start(world, place, 2)
    assert second.finish() == "all is kept\n"
    assert lines(world, "got2") == list(range(ALL))
    assert lines(world, "ran") == list(range(ALL)), "none was called again"


def test_a_block_that_ends_without_room_loses_no_result_and_says_what_is_not_kept(
    world: World, place: Place
) -> None:
    program = filled(world, place, "block")
    found = re.fullmatch(rf"raised: {told(place)}; (\d) results are not in it\n", program.finish())
    assert found is not None, program.out
    assert lines(world, "got1") == list(range(ALL))
    assert "; the next run makes these calls again" in program.err
    assert "Traceback" not in program.err
    if isinstance(place, SmallDisk):
        place.make_room(None)
    again(world, place, int(found[1]))


def test_killed_while_it_is_full_only_what_was_not_kept_is_called_again(
    world: World, place: Place
) -> None:
    program = filled(world, place, "room")
    wait_until(lambda: "told:" in program.out or program.poll() is not None, "`wait` says so")
    program.send_signal(signal.SIGKILL)
    program.finish(-signal.SIGKILL)
    found = re.search(r"(\d) results are not in it", program.out)
    assert found is not None, program.out
    if isinstance(place, SmallDisk):
        place.make_room(None)
    again(world, place, int(found[1]))


def again(world: World, place: Place, lacking: int) -> None:
    """The next run has each result once, and calls what its store lacks."""
    assert 0 < lacking <= ALL - FIRST
    assert start(world, place, 2).finish() == "all is kept\n"
    assert lines(world, "got2") == list(range(ALL))
    ran = lines(world, "ran")
    assert len(ran) == ALL + lacking
    assert set(ran) == set(range(ALL))


def test_a_disk_that_is_full_from_the_start(world: World, small_disk: SmallDisk) -> None:
    small_disk.fill(None)
    program = start(world, small_disk, 1)
    assert re.fullmatch(rf"raised: {told(small_disk)}\n", program.finish()), program.err
    small_disk.make_room(None)
    (world.path / "go").touch()
    assert start(world, small_disk, 2).finish() == "all is kept\n"


def test_other_failures_are_raised_first(world: World, small_disk: SmallDisk) -> None:
    program = world.script(
        """
        import sys
        from masterslave import ClientThread
        from masterslave.errors import JournalFull

        def fill():
            try:
                with open(sys.argv[2], "wb", buffering=0) as file:
                    for size in (4096, 1):
                        try:
                            while True:
                                file.write(bytes(size))
                        except OSError:
                            pass
            except OSError:
                pass

        if __name__ == "__main__":
            client = ClientThread(workers=1, store=sys.argv[1]).start()
            client.submit(pow, 2, 3)
            client.wait()
            fill()
            client.submit(bytes, 100_000)
            client.submit(divmod, 1, 0)
            for _ in range(2):
                try:
                    client.wait()
                except (ZeroDivisionError, JournalFull) as error:
                    print(type(error).__name__)
            client.stop()
            try:
                client.wait()  # nothing of it is forgotten
            except JournalFull as error:
                print(type(error).__name__)
        """,
        small_disk.path,
        small_disk.path.with_name("ballast"),
    )
    assert program.finish() == "ZeroDivisionError\nJournalFull\nJournalFull\n"


@pytest.mark.parametrize("count", [1, 3])
def test_what_fits_is_kept(world: World, small_disk: SmallDisk, count: int) -> None:
    """A large result that does not fit keeps no small one from being kept."""
    script = world.write(
        "job.py",
        """
        import sys
        from masterslave import ClientThread
        from masterslave.errors import JournalFull

        if __name__ == "__main__":
            try:
                with ClientThread(workers=1, store=sys.argv[1]) as client:
                    client.submit(bytes, 6 << 20)
                    for x in range(int(sys.argv[2])):
                        client.submit(pow, x, 2)
            except JournalFull as error:
                print(error)
        """,
    )
    program = world.start(script, small_disk.path, count)
    assert program.finish().endswith("; 1 result is not in it\n"), program.out

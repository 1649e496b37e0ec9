"""Jobs whose large buffers go by shared memory: values, losses, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import PATIENCE_S, Program, World, family, wait_until

from masterslave import GlobalStateValue, MasterProcess, Settings, TaskManager, lending, shared
from masterslave.errors import ConnectionFailed
from masterslave.settings import split_address
from masterslave.shared import loan_of
from masterslave.slavecode import script_record
from masterslave.transports.pyro import PyroLink, PyroServer

KEY = b"k" * 32
DATA = os.urandom(1 << 20)
DATA_BYTES = 1 << 22  # more than any board
SEGMENT = "memfd:masterslave"

pytestmark = pytest.mark.skipif(not shared.available(), reason="the system has no such memory")

SLAVE = """
    import os, resource, signal, time
    import numpy as np
    from masterslave import startSlaveProcess

    seen = []

    def mapped():
        # The segments that this process has mapped.
        with open("/proc/self/maps") as maps:
            return sorted({line.split()[4] for line in maps if "memfd:masterslave" in line})

    def do_add(array, x):
        array += x
        return array

    def do_sum(array):
        return float(array.sum())

    def do_where(array):
        return os.getpid(), mapped(), float(array[0])

    def do_hold(array, name):
        with open("notes", "a") as file:
            file.write(f"{os.getpid()}" + chr(10))
        while not os.path.exists(name):
            time.sleep(0.005)
        return array * 2

    def do_fail_once(array):
        before = float(array[0])
        array[:] = 7
        if not os.path.exists("failed"):
            open("failed", "w").close()
            raise OSError("once")
        return before

    def do_exhaust():
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        try:
            while True:
                seen.append(open("/dev/null"))
        except OSError:
            return os.getpid()

    def do_bytes(data):
        return data[::-1]

    startSlaveProcess()
"""


class Job:
    """A master in this process and slaves that are programs."""

    def __init__(self, world: World, journal: Path | None = None, **settings: Any) -> None:
        self.world = world
        chosen = replace(Settings.from_environment(), port=0, **settings)
        self.master = MasterProcess("job", False, settings=chosen, journal=journal)
        self.master.keep_slave_code(script_record(world.write("slave.py", SLAVE)))
        self.request = self.master.requestTask

    def slave(self, *arguments: object) -> Program:
        before = len(self.ready())
        slave = self.world.task_manager("slave", "job", "-m", self.master.address, *arguments)
        wait_until(lambda: len(self.ready()) > before, "the slave is ready")
        return slave

    def ready(self) -> list[dict[str, Any]]:
        slaves: list[dict[str, Any]] = self.master.task_manager.status()["slaves"]
        return [slave for slave in slaves if slave["tags"] is not None]

    def result(self) -> Any:
        return self.master.retrieveResult(timeout=PATIENCE_S)[2]

    def holders(self, count: int) -> list[int]:
        """The process ids of the workers that have begun do_hold."""
        path = self.world.path / "notes"

        def begun() -> list[str]:
            return path.read_text().split() if path.exists() else []

        wait_until(lambda: len(begun()) >= count, "tasks have begun")
        return [int(pid) for pid in begun()]


@pytest.fixture
def start_job(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []
    monkeypatch.chdir(world.path)

    def start(**settings: Any) -> Job:
        jobs.append(Job(world, **settings))
        return jobs[-1]

    yield start
    for job in jobs:
        job.master.shutdown()


def inodes(pid: int | str) -> list[str]:
    """The segments that a process has open, as often as it has."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if SEGMENT in os.readlink(entry):
                found.append(str(entry.stat().st_ino))
    return found


def segments(pid: int | str) -> int:
    """How many segments a process has open."""
    return len(inodes(pid))


def in_use() -> int:
    """How many segments are in use here; what threads let go of late counts as well."""
    shared.trim()
    return segments("self")


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [1, 64, 100])
def test_arrays_there_and_back(start_job: Callable[..., Job], megabytes: int) -> None:
    job = start_job()
    job.slave()
    array = np.arange(megabytes << 17, dtype=np.float64)
    for x in (1, 2):
        job.request("add", array, x)
    array[:3] = -1  # after the request
    for x in (1, 2):
        got = job.result()
        assert got.shape == array.shape
        assert got[0] == x
        assert got[-1] == array[-1] + x
        assert np.array_equal(got[1000:2000], np.arange(1000, 2000) + x)
        got += 1  # it is the client's own
        assert got[0] == x + 1


def test_large_buffers_do_not_go_through_the_wire(start_job: Callable[..., Job]) -> None:
    job = start_job()
    slave = job.slave()
    job.request("add", np.zeros(10), 1)
    job.result()
    counters = psutil.Process(slave.pid).io_counters
    before = counters().read_chars
    for x in range(4):
        job.request("add", np.zeros(1 << 20), x)
    for _ in range(4):
        job.result()
    assert counters().read_chars - before < 1 << 20  # of 64 MB; sockets count as well


def test_a_retry_gets_the_parameters_as_they_were(start_job: Callable[..., Job]) -> None:
    job = start_job()
    job.slave()
    job.request("fail_once", np.full(1 << 17, 3.0), retries=1)
    assert job.result() == 3.0


def test_equal_tasks_of_one_worker_do_not_see_each_other(start_job: Callable[..., Job]) -> None:
    job = start_job()
    job.slave()
    for _ in range(5):
        job.request("add", np.zeros(1 << 17), 1)
    assert [job.result()[0] for _ in range(5)] == [1.0] * 5


def test_global_state_is_one_segment_for_all_workers(start_job: Callable[..., Job]) -> None:
    job = start_job()
    job.slave("-n", "2")
    state_id = job.master.setGlobalState(x=np.full(1 << 20, 5.0))
    found: dict[int, list[str]] = {}
    while len(found) < 2:
        for _ in range(4):
            job.request("where", GlobalStateValue(state_id, "x"))
        for _ in range(4):
            pid, mapped, value = job.result()
            found[pid] = mapped
            assert value == 5.0
    one, other = found.values()
    assert set(one) & set(other)
    assert set(one) & set(other) & set(inodes("self"))  # it is the one that was filled here


def test_large_bytes_there_and_back(start_job: Callable[..., Job]) -> None:
    job = start_job()
    job.slave()
    for _ in range(3):
        job.request("bytes", DATA)
    assert [job.result() for _ in range(3)] == [DATA[::-1]] * 3


@pytest.mark.parametrize("share", [True, False])
def test_a_journal_has_results_as_they_came(
    world: World, start_job: Callable[..., Job], share: bool
) -> None:
    """The program may change them before they are written."""
    journal = world.path / "journal"
    job = start_job(journal=journal, shared_memory=share)
    job.slave()
    array = np.arange(1 << 19, dtype=np.float64)
    for x in range(8):
        job.request("add", array, x)
    for _ in range(8):
        job.result()[:] = -1
    job.master.shutdown()
    again = start_job(journal=journal)  # without a slave: the results are on record
    for x in range(8):
        again.request("add", array, x)
    for x in range(8):
        assert np.array_equal(again.result(), array + x)


# --- switched off, or not to be had ---------------------------------------------------------


def test_it_can_be_switched_off(
    world: World, start_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.env["MASTERSLAVE_SHARED_MEMORY"] = "0"
    monkeypatch.setenv("MASTERSLAVE_SHARED_MEMORY", "0")
    job = start_job()
    job.slave()
    job.request("add", np.ones(1 << 17), 1)
    assert job.result()[0] == 2.0
    job.request("where", np.ones(1 << 17))
    assert job.result()[1] == []


@pytest.mark.parametrize("side", ["master", "slave"])
def test_one_side_may_have_it_switched_off(
    world: World, start_job: Callable[..., Job], side: str
) -> None:
    if side == "slave":
        world.env["MASTERSLAVE_SHARED_MEMORY"] = "0"
    job = start_job(shared_memory=side != "master")
    job.slave()
    for x in range(3):
        job.request("add", np.ones(1 << 17), x)
        assert job.result()[0] == x + 1


class Hub:
    """A task manager behind a server, and links to it."""

    def __init__(self, share: bool = True) -> None:
        self.manager = TaskManager("job", Settings(key_file=Path("unused")))
        self.server = PyroServer(self.manager, "127.0.0.1", 0, KEY, PATIENCE_S, share=share)
        self.server.start()
        self.links: list[PyroLink] = []

    def link(self, share: bool = True) -> PyroLink:
        link = PyroLink(split_address(self.server.addresses[0]), "job", KEY, PATIENCE_S)
        if share:
            link.share_memory()
        self.links.append(link)
        return link

    def close(self) -> None:
        self.manager.terminate()
        for link in self.links:
            link.close()
        self.server.stop()


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    hub = Hub(getattr(request, "param", True))
    yield hub
    hub.close()


@pytest.fixture
def stored(hub: Hub) -> Callable[[], bool]:
    """Whether what the task manager keeps was lent to it."""
    return lambda: loan_of(hub.manager.retrieveData("x")[1]) is not None


def test_loans_begin_when_both_sides_are_known(hub: Hub, stored: Callable[[], bool]) -> None:
    link = hub.link()
    link.call("numberOfActiveProcesses")
    link.call("storeData", x=[b"head", DATA])
    assert stored()
    frame = link.call("retrieveData", "x")
    assert frame == [b"head", DATA]
    assert loan_of(frame[1]) is not None


def test_a_second_connection_is_known_at_once(hub: Hub, stored: Callable[[], bool]) -> None:
    hub.link().call("numberOfActiveProcesses")
    hub.manager.storeData(x=[b"head", DATA])
    frame = hub.link().call("retrieveData", "x")
    assert frame == [b"head", DATA]
    assert loan_of(frame[1]) is not None


@pytest.mark.parametrize(("hub", "share"), [(True, False), (False, True)], indirect=["hub"])
def test_one_end_alone_lends_nothing(hub: Hub, share: bool, stored: Callable[[], bool]) -> None:
    link = hub.link(share)
    for _ in range(3):
        link.call("storeData", x=[b"head", DATA])
        frame = link.call("retrieveData", "x")
        assert frame == [b"head", DATA]
        assert loan_of(frame[1]) is None
        assert not stored()


def test_where_the_other_side_cannot_be_read_the_wire_is_used(
    hub: Hub, stored: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(pid: int, name: shared.Name) -> memoryview:
        raise shared.LoanError("no such process here")

    monkeypatch.setattr(lending, "borrow_from", elsewhere)
    monkeypatch.setattr(lending.Peer, "_last_read", None)
    link = hub.link()
    for _ in range(3):
        link.call("storeData", x=[b"head", DATA])
        assert link.call("retrieveData", "x") == [b"head", DATA]
        assert not stored()


def test_who_tells_a_wrong_secret_is_lent_nothing(
    hub: Hub, stored: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending.Peer, "_last_read", b"x" * 32)
    real = shared.borrow_from
    monkeypatch.setattr(
        lending, "borrow_from", lambda pid, name: memoryview(bytes(b ^ 1 for b in real(pid, name)))
    )
    link = hub.link()
    for _ in range(3):
        link.call("storeData", x=[b"head", DATA])
        assert link.call("retrieveData", "x") == [b"head", DATA]
        assert not stored()


def test_connections_that_begin_at_the_same_time_are_offered_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lend = lending.lend_anyhow
    others: list[Any] = []

    def meanwhile(data: bytes) -> tuple[memoryview, shared.Name]:
        if not others:  # another thread, which comes between
            others.append(None)
            others[0] = lending._probe(os.getpid())
        return lend(data)

    monkeypatch.setattr(lending, "_probes", {})
    monkeypatch.setattr(lending, "lend_anyhow", meanwhile)
    assert lending._probe(os.getpid()) == others[0]
    assert lending._probe(os.getpid()) == others[0]


def test_a_loan_that_has_gone_is_a_lost_connection(
    hub: Hub, stored: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the lender dies while its message is on its way."""
    link = hub.link()
    link.call("storeData", x=[b"small"])
    with monkeypatch.context() as patch:
        entry = lending.Peer.entry

        def gone(self: lending.Peer, piece: Any) -> tuple[bytes, bool]:
            packed, lent = entry(self, piece)
            return (b"\0" * 6 + b"\x7f\xff" + packed[8:], lent) if lent else (packed, lent)

        patch.setattr(lending.Peer, "entry", gone)
        with pytest.raises(ConnectionFailed):
            link.call("storeData", x=[b"head", DATA])
    assert hub.manager.retrieveData("x") == [b"small"]
    again = hub.link()
    again.call("storeData", x=[b"head", DATA])
    assert hub.manager.retrieveData("x") == [b"head", DATA]


BIG = (1 << 64) - 2


def entry(**changes: int) -> bytes:
    """An announcement of one lent piece, which is there but for the changes."""
    name = shared.Name(descriptor=0, inode=0, size=0, stamp=0, used=1000)
    fields = {**name._asdict(), "start": 0, "length": 1000, **changes}
    return b"MSLS" + struct.pack("!7Q", *fields.values())


@pytest.mark.parametrize(
    "record",
    [
        b"MSLO",
        b"MSLO" + bytes(100),
        b"MSLS",
        b"MSLS" + bytes(55),
        entry(),
        entry(length=0),
        entry(start=900),
        entry(start=BIG, length=BIG),
        entry(descriptor=BIG, inode=BIG, size=BIG, stamp=BIG, used=BIG),
    ],
)
def test_what_cannot_be_ends_the_connection_and_nothing_else(hub: Hub, record: bytes) -> None:
    link = hub.link()
    link.call("numberOfActiveProcesses")
    link.call("numberOfActiveProcesses")
    link._sealed._send_record(record)
    with pytest.raises(ConnectionFailed):
        link.call("numberOfActiveProcesses")
    assert hub.link().call("numberOfActiveProcesses") == 0


def test_an_offer_that_leads_nowhere_is_no_harm(hub: Hub, stored: Callable[[], bool]) -> None:
    for pid, number in ((0, 0), (BIG, BIG), (1, BIG), (os.getpid(), 1 << 33)):
        link = hub.link(share=False)
        offer = struct.pack("!Q5QB32s", pid, *[number] * 5, True, b"x" * 32)
        link._sealed._send_record(b"MSLO" + offer)
        link.call("storeData", x=[b"head", DATA])
        assert not stored()
        assert link.call("retrieveData", "x") == [b"head", DATA]


def test_a_lender_holds_what_the_other_side_has_not_opened_yet(hub: Hub) -> None:
    """What is delivered is nobody's any more but the reply's."""
    link = hub.link()
    client = link.call("registerProcess", None, "client")[0]
    slave = link.call("registerProcess", None, "slave")[0]
    for i in range(20):
        data = bytes([i]) * (1 << 18)
        task_id = link.call("addTaskRequest", "x", [b"head", data], client)
        task = link.call("getTaskWithTag", "x", slave)
        assert task[3] == [b"head", data]
        link.call("storeResult", task_id, [b"head", data], slave, task[2])
        (delivery,) = link.call("getResults", client)
        assert delivery[3] == [b"head", data]


# --- losses, and what is left ---------------------------------------------------------------


def test_files_do_not_grow(start_job: Callable[..., Job]) -> None:
    at_first = in_use()
    job = start_job()
    slave = job.slave("-n", "2")
    state_id = job.master.setGlobalState(x=np.ones(1 << 17))

    def work(count: int) -> None:
        for x in range(count):
            job.request("add", np.zeros(1 << 15), x)
            job.request("where", GlobalStateValue(state_id, "x"))
        for _ in range(2 * count):
            job.result()

    def files() -> Counter[str]:
        processes = [psutil.Process(), *family(slave.pid)]
        return Counter({str(p.pid): segments(p.pid) for p in processes})

    work(30)
    before = files()
    for _ in range(3):
        work(60)
    assert all(files()[pid] <= 80 for pid in before)
    job.master.deleteGlobalState(state_id)
    wait_until(lambda: in_use() <= at_first + 1, "only the probe is left here")


@pytest.mark.parametrize("victim", ["worker", "slave"])
def test_killed_while_it_has_loans(start_job: Callable[..., Job], victim: str) -> None:
    job = start_job()
    before = in_use()
    first = job.slave()
    arrays = [np.full(1 << 18, float(x)) for x in range(3)]
    for array in arrays:
        job.request("hold", array, "go")
    pid = job.holders(1)[0]
    if victim == "worker":
        os.kill(pid, 9)
    else:
        first.kill()
        first.wait()
        wait_until(lambda: not job.ready(), "its loss is known")
        job.slave()
    job.holders(2)
    (job.world.path / "go").touch()
    got = sorted(job.result()[0] for _ in range(3))
    assert got == [0.0, 2.0, 4.0]
    wait_until(lambda: in_use() <= before + 1, "only the probe is left here")
    for process in job.world.processes():
        # a supervisor has its probe; the result that was acknowledged, until its next message
        assert segments(process.pid) <= 4


def test_a_worker_without_files_to_open_is_replaced(start_job: Callable[..., Job]) -> None:
    job = start_job()
    slave = job.slave()
    job.request("exhaust")
    pid = job.result()
    job.request("add", np.zeros(1 << 17), 1)
    assert job.result()[0] == 1.0
    assert not psutil.pid_exists(pid)
    assert "Too many open files" in slave.err


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_a_worker_does_not_keep_the_parameters_of_its_last_task(
    start_job: Callable[..., Job], tasks: int
) -> None:
    job = start_job()
    slave = job.slave()
    (worker,) = psutil.Process(slave.pid).children()
    for _ in range(tasks):
        job.request("sum", np.ones(DATA_BYTES // 8))
    assert [job.result() for _ in range(tasks)] == [DATA_BYTES // 8] * tasks

    def mapped() -> list[str]:
        maps = Path(f"/proc/{worker.pid}/maps").read_text().splitlines()
        return [line for line in maps if SEGMENT in line and bytes_of(line) >= DATA_BYTES]

    def bytes_of(line: str) -> int:
        begin, end = line.split(maxsplit=1)[0].split("-")
        return int(end, 16) - int(begin, 16)

    wait_until(lambda: not mapped(), "nothing of them is mapped")


def test_an_idle_worker_gives_memory_back(start_job: Callable[..., Job]) -> None:
    job = start_job()
    slave = job.slave()
    for x in range(3):
        job.request("add", np.zeros(1 << 17), x)
    for _ in range(3):
        job.result()
    (worker,) = psutil.Process(slave.pid).children()
    wait_until(lambda: not segments(worker.pid), "nothing is kept")


def test_a_killed_master_leaves_nothing(world: World) -> None:
    world.write("slave.py", SLAVE)
    world.env["MASTERSLAVE_PORT"] = "0"
    world.env["MASTERSLAVE_MASTER_GONE"] = "0"
    master = world.script(
        """
        import sys, time
        import numpy as np
        from masterslave import MasterProcess
        from masterslave.slavecode import script_record
        master = MasterProcess("job", False)
        master.keep_slave_code(script_record("slave.py"))
        master.launchSlaveJobs(1)
        for _ in range(3):
            master.requestTask("hold", np.ones(1 << 20), "go")
        time.sleep(1000)
        """
    )
    path = world.path / "notes"
    wait_until(path.exists, "a task has begun")
    processes = world.processes()
    assert sum(segments(process.pid) for process in processes) > 3
    master.kill()
    wait_until(lambda: not world.processes(), "all have ended")


def test_thousands_of_queued_arrays_take_a_bounded_number_of_files(world: World) -> None:
    world.write("slave.py", SLAVE)
    world.env["MASTERSLAVE_PORT"] = "0"
    master = world.script(
        """
        import os, resource
        import numpy as np
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        from masterslave import MasterProcess
        from masterslave.slavecode import script_record
        master = MasterProcess("job", False)
        master.keep_slave_code(script_record("slave.py"))
        for x in range(2000):
            master.requestTask("add", np.zeros(1 << 14), x)
        def files():
            return sum("memfd" in os.readlink(f"/proc/self/fd/{e}")
                       for e in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{e}"))
        print(files())
        master.launchSlaveJobs(1)
        results = [(result[0], result) for _, _, result in master.results()]
        print(files(), sorted(x for x, _ in results) == list(range(2000)))
        results[5][1][:] = 1
        master.shutdown()
        """
    )
    queued, end = master.finish().splitlines()
    assert 20 < int(queued) <= 50
    count, right = end.split()
    assert int(count) <= 100
    assert right == "True"

"""Secrecy: with Pyro's TLS settings, everything is in TLS, and who does not fit is told why.

The certificates beside this file are static; see certificates/make.sh.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Program, World, wait_until

from masterslave.errors import SettingsError
from masterslave.proofs import GREETING, NONCE_BYTES
from masterslave.settings import join_address, split_address
from masterslave.transports.channel import (
    SealedSocket,
    client_handshake,
    server_handshake,
)
from masterslave.transports.tls import check_certificates, server_tls

HERE = Path(__file__).resolve().parent / "certificates"
LABEL = "hidden"
BIG = 5_000_000
SECRET = "a phrase that nobody else may read"
CLIENT = {"SSL_CLIENTCERT": HERE / "client.pem", "SSL_CLIENTKEY": HERE / "client.key"}

JOB = """
    import os, sys, time
    from dataclasses import replace
    from masterslave import MasterProcess, Settings, SlaveProcess, runJob

    class Master(MasterProcess):
        def __init__(self, label):
            settings = replace(Settings.from_environment(), handshake_s=60.0)
            super().__init__(label, settings=settings)

        def run(self):
            with open("address.new", "w") as file:
                file.write(self.address)
            os.rename("address.new", "address")
            self.requestTasks("double", [(i,) for i in range(10)])
            self.requestTask("repeat", "SECRET")
            for task_id, tag, result in self.results():
                print(tag, result, flush=True)

    class Slave(SlaveProcess):
        def do_double(self, x):
            while x == 9 and not os.path.exists("go"):
                time.sleep(0.005)
            return 2 * x

        def do_repeat(self, text):
            return text + text

    runJob("hidden", Master, Slave, launch_slaves=LAUNCH)
"""
RESULTS = sorted([*(f"double {2 * x}" for x in range(10)), f"repeat {SECRET}{SECRET}"])


def job_text(launch_slaves: int) -> str:
    return JOB.replace("LAUNCH", str(launch_slaves)).replace("SECRET", SECRET)


def set_pyro(world: World, **values: object) -> None:
    """Pyro's settings for what `world` starts from now on; empty ones are removed."""
    for name, value in values.items():
        world.env.pop(f"PYRO_{name}", None)
        if value != "":
            world.env[f"PYRO_{name}"] = str(value)


@pytest.fixture
def tls(world: World) -> World:
    """A world in which TLS is on."""
    set_pyro(
        world,
        SSL=1,
        SSL_SERVERCERT=HERE / "server.pem",
        SSL_SERVERKEY=HERE / "server.key",
        SSL_CACERTS=HERE / "authority.pem",
    )
    return world


class Job:
    """A running job; one task waits until `finish` is called."""

    def __init__(self, world: World, launch_slaves: int = 2) -> None:
        self.world = world
        self.master = world.script(job_text(launch_slaves), name="job.py")
        path = world.path / "address"
        wait_until(lambda: path.exists() or self.master.poll() is not None, "the master is there")
        assert path.exists(), self.master.err
        self.address = path.read_text()

    def finish(self) -> None:
        self.world.write("go", "")
        assert sorted(self.master.finish().splitlines()) == RESULTS
        assert "Traceback" not in self.master.err


def bare(address: str) -> socket.socket:
    return socket.create_connection(split_address(address), timeout=PATIENCE_S)


def name_server_of(world: World) -> str:
    return f"127.0.0.1:{world.ns_port}"


def rest(sock: socket.socket) -> bytes:
    """All that still comes until the peer closes; fails when it does not close."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def refusal(program: Program) -> str:
    """The one line with which a command was refused."""
    assert program.finish(1) == ""
    lines = program.err.strip().splitlines()
    assert len(lines) == 1, program.err
    return lines[0]


# --- a job in TLS ---------------------------------------------------------------------------


def test_a_job_runs_from_end_to_end(tls: World) -> None:
    job = Job(tls)
    wait_until(lambda: len(job.master.out.splitlines()) == len(RESULTS) - 1, "all but one are done")
    shown = tls.task_manager(LABEL).finish()
    assert "1 master, 2 slaves with 2 workers" in shown
    assert re.search(r"running tasks +1\b", shown)
    assert re.search(rf"{LABEL} .*alive", tls.task_manager("list").finish())
    job.finish()
    assert "refused" not in job.master.err


def test_slaves_started_by_hand_work(tls: World) -> None:
    job = Job(tls, launch_slaves=0)
    slave = tls.task_manager("slave", LABEL, "-n", "2")
    job.finish()
    slave.finish()


def test_a_job_without_a_name_server(tls: World) -> None:
    text = job_text(1).replace("super().__init__(label,", "super().__init__(label, False,")
    tls.env["MASTERSLAVE_PORT"] = "0"
    tls.write("go", "")
    assert sorted(tls.script(text).finish().splitlines()) == RESULTS


class Recorder:
    """Passes on the connections to an address, and keeps what passes in either direction."""

    def __init__(self, target: str) -> None:
        self._target = split_address(target)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = join_address(*self._server.getsockname()[:2])
        self.streams: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                for ends in ((client, server), (server, client)):
                    stream = bytearray()
                    self.streams.append(stream)
                    thread = threading.Thread(
                        target=self._pass_on, args=(*ends, stream), daemon=True
                    )
                    thread.start()
                    self._threads.append(thread)

    def _pass_on(self, source: socket.socket, sink: socket.socket, stream: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                stream += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()


def is_tls(stream: bytes) -> bool:
    """Whether these bytes are records of TLS and nothing else; the last one may be cut off."""
    while stream:
        kind, version, length = struct.unpack("!BHH", stream[:5].ljust(5, b"\0"))
        if kind not in (20, 21, 22, 23) or version not in (0x0301, 0x0303):
            return False
        stream = stream[5 + length :]
    return True


@pytest.mark.parametrize("on", [True, False])
def test_what_passes_is_hidden_if_tls_is_on(tls: World, on: bool) -> None:
    set_pyro(tls, SSL=int(on))
    job = Job(tls, launch_slaves=0)
    with Recorder(job.address) as recorder:
        slave = tls.task_manager("slave", LABEL, "-m", recorder.address)
        job.finish()
        slave.finish()
    passed = b"".join(recorder.streams)
    assert len(passed) > 1000
    assert [is_tls(bytes(stream)) for stream in recorder.streams] == [on] * len(recorder.streams)
    for word in (SECRET.encode(), b"registerProcess", GREETING):
        assert (word in passed) is not on


SERVED_SLAVE = """
    from masterslave import startSlaveProcess

    def do_repeat(text):
        return text + text

    startSlaveProcess("hidden", "ADDRESS")
"""

CLIENTS = """
    import sys
    from masterslave import ClientThread, ClusterExecutor, MasterProcess

    where = sys.argv[1]
    master = MasterProcess("hidden", attach=True, master_host=where)
    master.requestTask("repeat", "SECRET")
    print(master.retrieveResult()[2])
    master.shutdown()
    with ClusterExecutor("hidden", where) as executor:
        print(executor.submit(lambda text: text.upper(), "SECRET").result())
    with ClientThread(lambda job, text: print(text), where, label="hidden") as client:
        client.submit(str.title, "SECRET")
""".replace("SECRET", SECRET)


def test_clients_of_a_served_task_manager_are_in_tls(tls: World) -> None:
    served = tls.task_manager("serve", LABEL, "-v")
    wait_until(lambda: served.out.endswith("\n") or served.poll() is not None, "it is served")
    address = served.out.split()[-1]
    tls.script(SERVED_SLAVE.replace("ADDRESS", address), name="slave.py")
    with Recorder(address) as recorder:
        client = tls.script(CLIENTS, recorder.address, name="client.py")
        assert client.finish().splitlines() == [SECRET * 2, SECRET.upper(), SECRET.title()]
    assert recorder.streams and all(is_tls(bytes(stream)) for stream in recorder.streams)
    set_pyro(tls, SSL="")
    plain = tls.script(CLIENTS, address, name="client.py")
    plain.finish(1)
    assert "that PYRO_SSL is on for both sides" in plain.err.strip().splitlines()[-1]
    served.terminate()
    wait_until(lambda: not tls.processes(), "slave and task manager have ended")


def test_a_plain_connection_learns_nothing(tls: World) -> None:
    job = Job(tls)
    for address in (job.address, name_server_of(tls)):
        for opening in (GREETING + b"n" * NONCE_BYTES, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 50_000):
            with bare(address) as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(opening)
                answer = rest(sock)
            assert answer == b"" or (is_tls(answer) and answer[0] == 21), answer  # an alert
    job.finish()


def test_silent_connections_hold_up_nobody(tls: World) -> None:
    """The handshake of TLS is long; it must not be in the way of who comes next."""
    job = Job(tls, launch_slaves=0)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    with contextlib.ExitStack() as stack:
        for number in range(20):
            for address in (job.address, name_server_of(tls)):
                sock = stack.enter_context(bare(address))
                sock.sendall(hello[: number % len(hello)])
        slave = tls.task_manager("slave", LABEL)
        assert "1 master" in tls.task_manager(LABEL).finish()
        job.finish()
        slave.finish()


# --- who is refused -------------------------------------------------------------------------


def test_who_has_tls_off_is_refused(tls: World) -> None:
    job = Job(tls)
    set_pyro(tls, SSL=0)
    for command in ("show", "slave"):
        for where in ([], ["-m", job.address]):
            assert "PYRO_SSL" in refusal(tls.task_manager(command, LABEL, *where))
    assert "PYRO_SSL" in refusal(tls.task_manager("list"))
    job.finish()


def test_who_has_tls_on_is_refused_where_it_is_off(tls: World) -> None:
    set_pyro(tls, SSL=0)
    job = Job(tls)
    set_pyro(tls, SSL=1)
    for command in ("show", "slave"):
        for where in ([], ["-m", job.address]):
            assert "PYRO_SSL" in refusal(tls.task_manager(command, LABEL, *where))
    job.finish()


def test_another_authority_is_refused(tls: World) -> None:
    job = Job(tls)
    for authority in (HERE / "other-authority.pem", ""):
        set_pyro(tls, SSL_CACERTS=authority)
        for where in ([], ["-m", job.address]):
            line = refusal(tls.task_manager("show", LABEL, *where))
            assert "certificate" in line
            assert "PYRO_SSL_CACERTS" in line
    # To wait would be in vain.
    assert "PYRO_SSL_CACERTS" in refusal(tls.task_manager("slave", LABEL, "-w", "-m", job.address))
    assert "PYRO_SSL_CACERTS" in refusal(tls.task_manager("list"))
    set_pyro(tls, SSL_CACERTS=HERE / "authority.pem")
    assert re.search(rf"{LABEL} .*alive", tls.task_manager("list").finish())  # nobody removed it
    job.finish()


def test_a_certificate_for_another_host_is_refused(tls: World) -> None:
    set_pyro(tls, SSL_SERVERCERT=HERE / "elsewhere.pem", SSL_SERVERKEY=HERE / "elsewhere.key")
    master = tls.start("-c", "from masterslave import MasterProcess; MasterProcess('x')")
    master.finish(1)
    last = master.err.splitlines()[-1]
    assert "AuthenticationError" in last
    assert "not valid for 'localhost'" in last


def test_members_without_a_certificate_of_their_own_are_refused_where_it_is_asked_for(
    tls: World,
) -> None:
    set_pyro(tls, SSL_REQUIRECLIENTCERT=1, **CLIENT)
    job = Job(tls)
    assert "1 master" in tls.task_manager(LABEL).finish()
    set_pyro(tls, SSL_CLIENTCERT="", SSL_CLIENTKEY="")
    for where in ([], ["-m", job.address]):
        assert "PYRO_SSL" in refusal(tls.task_manager("show", LABEL, *where))
    job.finish()


def test_the_key_is_asked_for_in_tls_too(tls: World) -> None:
    job = Job(tls)
    other = tls.write("other-key", "ab" * 32)
    other.chmod(0o600)
    tls.env["MASTERSLAVE_KEY_FILE"] = str(other)
    assert "MASTERSLAVE_KEY_FILE" in refusal(tls.task_manager("show", LABEL))
    del tls.env["MASTERSLAVE_KEY_FILE"]
    job.finish()


# --- name servers ---------------------------------------------------------------------------


def start_name_server(world: World) -> Program:
    program = world.start("-m", "Pyro5.nameserver", "-n", "127.0.0.1", "-p", world.ns_port, "-x")

    def answers() -> bool:
        with contextlib.suppress(OSError), bare(name_server_of(world)):
            return True
        return False

    wait_until(answers, "the name server is there")
    return program


def test_pyros_own_name_server_in_tls(tls: World) -> None:
    start_name_server(tls)
    job = Job(tls)
    assert re.search(rf"{LABEL} .*alive", tls.task_manager("list").finish())
    job.finish()


def test_a_name_server_without_tls_is_refused(tls: World) -> None:
    set_pyro(tls, SSL=0)
    start_name_server(tls)
    set_pyro(tls, SSL=1)
    master = tls.start("-c", "from masterslave import MasterProcess; MasterProcess('x')")
    master.finish(1)
    last = master.err.splitlines()[-1]
    assert str(tls.ns_port) in last
    assert "PYRO_SSL" in last


# --- settings that cannot be used -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSL_SERVERCERT", ""),
        ("SSL_SERVERCERT", "missing.pem"),
        ("SSL_SERVERKEY", "missing.key"),
        ("SSL_SERVERKEY", HERE / "client.key"),
        ("SSL_SERVERKEY", HERE / "server-locked.key"),
        ("SSL_CACERTS", "missing.pem"),
    ],
)
def test_a_master_with_files_that_cannot_be_used(tls: World, name: str, value: object) -> None:
    set_pyro(tls, **{name: value})
    master = tls.start("-c", "from masterslave import MasterProcess; MasterProcess('x')")
    master.finish(1)
    last = master.err.splitlines()[-1]
    assert last.startswith("masterslave.errors.SettingsError: PYRO_SSL")
    assert f"PYRO_{name}" in last
    assert str(value) in last


def test_a_client_with_files_that_cannot_be_used(tls: World) -> None:
    for name, value in (
        ("SSL_CACERTS", "missing.pem"),
        ("SSL_CLIENTCERT", "missing.pem"),
        ("SSL_CLIENTCERT", CLIENT["SSL_CLIENTCERT"]),  # without its key
    ):
        kept = dict(tls.env)
        set_pyro(tls, **{name: value})
        line = refusal(tls.task_manager("show", LABEL, "-m", "127.0.0.1:1"))
        assert f"PYRO_{name}='{value}'" in line
        tls.env = kept


def test_files_that_cannot_be_used_now_may_be_later(tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    path.write_text("no certificate")
    files = "CLIENT", "", "", "", str(path)
    for _ in range(2):
        with pytest.raises(SettingsError, match="PYRO_SSL_CACERTS"):
            check_certificates(*files)
    path.write_bytes((HERE / "authority.pem").read_bytes())
    check_certificates(*files)


def test_the_servers_key_may_have_a_password(tls: World) -> None:
    set_pyro(tls, SSL_SERVERKEY=HERE / "server-locked.key", SSL_SERVERKEYPASSWD="secret")
    job = Job(tls)
    job.finish()
    set_pyro(tls, SSL_SERVERKEYPASSWD="a wrong one")
    master = tls.start("-c", "from masterslave import MasterProcess; MasterProcess('x')")
    master.finish(1)
    assert "password" in master.err.splitlines()[-1]
    assert "a wrong one" not in master.err


def test_what_is_no_host_name_is_one_line_of_error(world: World) -> None:
    assert "a..b" in refusal(world.task_manager("show", LABEL, "-m", "a..b"))


# --- signed records in TLS ------------------------------------------------------------------


KEY = b"k" * 32


@pytest.fixture
def ends() -> Iterator[tuple[SealedSocket, SealedSocket]]:
    """A client's and a server's end of a signed channel in TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(HERE / "server.pem", HERE / "server.key")
    trusting = ssl.create_default_context(cafile=HERE / "authority.pem")
    near, far = socket.socketpair()
    for end in (near, far):
        end.settimeout(PATIENCE_S)
    found: list[SealedSocket] = []

    def serve() -> None:
        sock = context.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
        server_tls(sock, PATIENCE_S)
        found.append(server_handshake(sock, KEY, PATIENCE_S))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    wrapped = trusting.wrap_socket(near, server_hostname="localhost")
    client = client_handshake(wrapped, KEY, PATIENCE_S)
    thread.join()
    yield client, found[0]
    client.close()
    found[0].close()


def message(kind: int, data: bytes) -> bytes:
    head = struct.pack(
        "!4sHBBHHII16sHH", b"PYRO", 502, kind, 4, 0, 0, len(data), 0, b"\0" * 16, 0, 0x4DC5
    )
    return head + data


def read(sock: SealedSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(60_000, size - len(data)))
        assert piece, "ended early"
        data += piece
    return bytes(data)


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_535, 65_536, BIG])
def test_messages_of_all_sizes_arrive(ends: tuple[SealedSocket, SealedSocket], size: int) -> None:
    client, server = ends
    question, answer = (message(kind, os.urandom(size)) for kind in (4, 5))

    def serve() -> None:
        for _ in range(3):
            assert read(server, len(question)) == question
            server.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for _ in range(3):
        client.sendall(question)
        assert read(client, len(answer)) == answer
    thread.join()


def test_a_reader_is_woken_when_another_thread_ends_the_connection(
    ends: tuple[SealedSocket, SealedSocket],
) -> None:
    client, server = ends
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(server.recv(1)), daemon=True)
    reader.start()
    server.shutdown(socket.SHUT_RDWR)
    reader.join(PATIENCE_S)
    assert got == [b""]
    assert client.recv(1) == b""


def test_nothing_goes_out_in_the_clear_after_the_end(
    ends: tuple[SealedSocket, SealedSocket],
) -> None:
    client, server = ends
    for end in (client, server):
        end.shutdown(socket.SHUT_RDWR)
        assert end.version() is not None  # None says that what is sent now is sent as it is
        with pytest.raises(OSError):
            end.sendall(message(4, b"data"))


MANY_LINKS = """
    import os, threading
    from pathlib import Path
    from masterslave.keyfile import load_key
    from masterslave.manager import TaskManager
    from masterslave.settings import Settings, split_address
    from masterslave.transports.pyro import PyroLink, PyroServer

    settings = Settings.from_environment()
    key = load_key(settings.key_file)
    manager = TaskManager("job", settings)
    server = PyroServer(manager, "127.0.0.1", 0, key, 60.0)
    server.start()
    right = []

    def use(number):
        link = PyroLink(split_address(server.addresses[0]), "job", key, 60.0)
        data = os.urandom(BIG)
        for turn in range(3):
            link.call("storeData", **{f"item {number} {turn}": [data]})
            right.append(link.call("retrieveData", f"item {number} {turn}") == [data])
        link.close()

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(right == [True] * 18)
    server.stop()
"""


def test_many_links_move_large_data_at_the_same_time(tls: World) -> None:
    program = tls.script(MANY_LINKS.replace("BIG", str(BIG)))
    assert program.finish() == "True\n"
    assert program.err == ""


ARRAYS = """
    import numpy
    from masterslave import MasterProcess, SlaveProcess, runJob

    class Master(MasterProcess):
        def run(self):
            array = numpy.arange(SIZE // 8, dtype="int64")
            for _ in range(4):
                self.requestTask("negate", array)
            print(all((result == -array).all() for _, _, result in self.results()))

    class Slave(SlaveProcess):
        def do_negate(self, array):
            return -array

    runJob("arrays", Master, Slave, launch_slaves=2)
"""


def test_large_arrays_go_there_and_back(tls: World) -> None:
    assert tls.script(ARRAYS.replace("SIZE", str(BIG))).finish() == "True\n"

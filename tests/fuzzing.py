"""Seeded messages against a job that runs: what is sent, and what came of each.

Used by `test_fuzz` (a few thousand) and by ``benchmarks/fuzz.py`` (a hundred thousand).

Whoever holds the key may well end the job, take its results or report false ones: that is no
fault to be found. So what is sent with the key is anything but calls that are right *and* meant for
the job's own processes and tasks.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import math
import pickle
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from Pyro5 import protocol
from Pyro5.serializers import serializers

from masterslave.proofs import (
    GREETING,
    NONCE_BYTES,
    PROOF_BYTES,
    RECORD_HEADER,
    REPLY_BYTES,
)
from masterslave.transports.channel import _ANNOUNCEMENT, SealedSocket, client_handshake
from masterslave.transports.remote import REMOTE_METHODS

#: A program under attack: answers count as missing after this time. Nothing takes so long.
PATIENCE_S = 60.0

STRANGERS, NAMES, RECORDS, CALLS = "strangers", "name server", "records", "calls"

#: Of a hundred messages, how many are of each kind. A stranger has a connection per message.
SHARES = {STRANGERS: 20, NAMES: 15, RECORDS: 15, CALLS: 50}

REFUSED, ERROR, ANSWERED, HUNG = "refused", "error", "answered", "hung"

LABEL = "fuzzed"

#: What may be decoded in the master, by whose connection the bytes came: before authentication,
#: nothing. The name server has no authentication, and a reader of its own.
DECODERS: dict[str, tuple[str, ...]] = {
    "stranger": (),
    "name server": ("masterslave.transports.literals",),
    "authenticated": ("msgpack", "MsgpackSerializer"),
    "own threads": ("",),
    "own rows": ("json.loads",),  # of the journal, in whichever thread comes to write to it
}

#: The job: two slaves, a slow stream of tasks until the file `stop` is there. The master counts
#: what is decoded, by the connection for which it is; prints the counts, and whether its results
#: were right.
JOB = '''
    import functools, json, os, sys, threading, time
    from collections import Counter
    from dataclasses import replace
    from masterslave import MasterProcess, Settings, SlaveProcess, runJob

    decoded, here, lock = Counter(), threading.local(), threading.Lock()

    def place():
        """Whose bytes this thread is about to decode."""
        job = getattr(here, "job", None)
        if job is None:
            return "own threads"
        if type(job.daemon).__name__ == "_NameServerDaemon":
            return "name server"
        return "authenticated" if type(job.csock.sock).__name__ == "SealedSocket" else "stranger"

    def counted(owner, name):
        function = getattr(owner, name)
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            caller = sys._getframe(1).f_globals["__name__"]
            whose = "own rows" if caller.startswith("masterslave.stores.") else place()
            with lock:
                decoded[f"{whose}: {owner.__name__}.{name}"] += 1
            return function(*args, **kwargs)
        setattr(owner, name, wrapper)

    def count_decoding():
        import ast, json, marshal, pickle
        import cloudpickle, msgpack, serpent
        from masterslave.transports import literals
        from Pyro5 import serializers, svr_threads

        class Job(svr_threads.ClientConnectionJob):
            def __call__(self):
                here.job = self
                super().__call__()

        svr_threads.ClientConnectionJob = Job
        for kind in ("Serpent", "Marshal", "Json", "Msgpack"):
            for name in ("loads", "loadsCall"):
                counted(getattr(serializers, f"{kind}Serializer"), name)
        for module in (marshal, json, pickle, serpent, literals, cloudpickle):
            counted(module, "loads")
        counted(msgpack, "unpackb")
        counted(ast, "literal_eval")

    class Master(MasterProcess):
        def __init__(self, label, *, journal):
            count_decoding()
            settings = replace(Settings.from_environment(), handshake_s=3.0)
            super().__init__(label, settings=settings, journal=journal)

        def run(self):
            with open("address.new", "w") as file:
                file.write(self.address)
            os.rename("address.new", "address")
            number, got = 0, Counter()
            while not os.path.exists("stop"):
                while number < got.total() + 8:
                    self.requestTask("slow", number)
                    number += 1
                got[self.retrieveResult("slow")[2]] += 1
            got.update(value for _, _, value in self.results("slow"))
            right = got == Counter(range(0, 2 * number, 2))
            print(json.dumps({"tasks": number, "right": right, "decoded": decoded}))

    class Slave(SlaveProcess):
        def do_slow(self, x):
            time.sleep(0.02)
            return 2 * x

    runJob("fuzzed", Master, Slave, launch_slaves=2, journal="journal")
'''


class Target(NamedTuple):
    """What is attacked."""

    manager: tuple[str, int]
    name_server: tuple[str, int]
    key: bytes
    mark: Path  # a file that would be there if something had been unpickled or evaluated


class Mark:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return open, (str(self._path), "w")


class Tally:
    """What came of the messages, by kind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.hung: list[str] = []  # what was not answered in time

    def add(self, kind: str, outcome: str, sent: object = "") -> None:
        with self._lock:
            self.counts[kind, outcome] += 1
            if outcome == HUNG:
                self.hung.append(f"{kind}: {sent!r}"[:300])

    def sent(self, kind: str | None = None) -> int:
        with self._lock:
            counts = self.counts.items()
            return sum(count for (k, _), count in counts if kind is None or k == kind)

    def table(self) -> str:
        """By kind: sent, refused, answered with an error, answered."""
        lines = [f"{'kind':12} {'sent':>8} {'refused':>8} {'error':>8} {'answered':>8} {'hung':>5}"]
        for kind in SHARES:
            row = [self.counts[kind, outcome] for outcome in (REFUSED, ERROR, ANSWERED, HUNG)]
            cells = " ".join(f"{n:8d}" for n in [sum(row), *row[:3]])
            lines.append(f"{kind:12} {cells} {row[3]:5d}")
        return "\n".join(lines)


def faults(target: Target, tally: Tally, report: dict[str, Any], log: str) -> list[str]:
    """What is not as it must be, at the end; `report` is what the master has printed."""
    found = [f"no answer in time: {sent}" for sent in tally.hung]
    found += [f"{kind}: none was sent" for kind in SHARES if not tally.sent(kind)]
    if tally.counts[STRANGERS, ANSWERED] or tally.counts[STRANGERS, ERROR]:
        found.append("a stranger was answered")
    if target.mark.exists():
        found.append("what was sent has been carried out")
    if not report["right"]:
        found.append("the job's results are wrong")
    for name in report["decoded"]:
        whose, _, what = name.partition(": ")
        if not what.startswith(DECODERS[whose]):
            found.append(f"decoded for {whose}: {what}")
    for mark in ("Traceback", "Error:", "Exception ignored", "Warning:"):
        if mark in log:
            at = log.index(mark)
            found.append(f"in the log: {log[max(0, at - 300) : at + 1500]}")
    if len(log) > 1 << 20:
        found.append(f"a log of {len(log)} bytes")
    return found


def fire(target: Target, messages: int, seed: int, tally: Tally, threads: int = 3) -> None:
    """Send that many messages of all kinds, from several threads. Blocks."""
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            _fire(target, messages // threads, random.Random(f"{seed} {index}"), tally)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def _fire(target: Target, messages: int, rng: random.Random, tally: Tally) -> None:
    with contextlib.ExitStack() as stack:
        sources: dict[str, Callable[[], tuple[str, object]]] = {}
        for kind, make in (
            (STRANGERS, Strangers), (NAMES, Names), (RECORDS, Records), (CALLS, Calls),
        ):  # fmt: skip
            sources[kind] = stack.enter_context(contextlib.closing(make(target, rng))).send
        kinds = rng.choices(list(SHARES), list(SHARES.values()), k=messages)
        for kind in kinds:
            outcome, sent = sources[kind]()
            tally.add(kind, outcome, sent)


# --- sockets --------------------------------------------------------------------------------


def connect(address: tuple[str, int]) -> socket.socket:
    """A connection that leaves nothing behind when it is closed, so that ports do not run out."""
    sock = socket.create_connection(address, timeout=PATIENCE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def rest(sock: socket.socket) -> bytes:
    """All that comes until the peer closes. Raises `TimeoutError` when it does not."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly that many bytes, or fewer when the peer has closed."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while len(data) < size and (piece := sock.recv(size - len(data))):
            data += piece
    return data


def end_of_sending(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def flipped(rng: random.Random, data: bytes, times: int = 3) -> bytes:
    """The same with some bits changed, bytes doubled, or a piece cut out."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, times)):
        at = rng.randrange(len(changed)) if changed else 0
        choice = rng.random()
        if choice < 0.7 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif choice < 0.85:
            changed[at:at] = rng.randbytes(rng.randint(1, 4))
        else:
            del changed[at : at + rng.randint(1, 4)]
    return bytes(changed)


def message(
    kind: int,
    serializer: int,
    data: bytes,
    *,
    flags: int = 0,
    seq: int = 0,
    sizes: tuple[int, int] | None = None,
) -> bytes:
    """A message of Pyro's, its sizes told wrong if asked for."""
    return struct.pack(
        "!4sHBBHHII16sHH", b"PYRO", protocol.PROTOCOL_VERSION, kind, serializer, flags, seq,
        *(sizes or (len(data), 0)), b"\0" * 16, 0, 0x4DC5,
    ) + data  # fmt: skip


# --- before authentication ------------------------------------------------------------------


class Strangers:
    """Who does not hold the key, at the task manager's port: one connection per message."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._target = target
        self._rng = rng
        self._held: deque[socket.socket] = deque()  # half-open
        self._recorded = _recorded_handshake(target)

    def close(self) -> None:
        while self._held:
            self._held.popleft().close()

    def send(self) -> tuple[str, object]:
        rng = self._rng
        data = self.opening()
        sock = connect(self._target.manager)
        if rng.random() < 0.02:  # held a while; then an older one ends
            with contextlib.suppress(ConnectionError):
                sock.sendall(data[: rng.randint(0, 30)])
            self._held.append(sock)
            if len(self._held) < 20:
                return REFUSED, data  # as will be seen: none of them gets an answer
            sock, data = self._held.popleft(), b"(held)"
        else:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
        end_of_sending(sock)
        with contextlib.closing(sock):
            try:
                answer = rest(sock)
            except TimeoutError:
                return HUNG, data
        # A greeting is answered by a challenge; who does not pass it hears no more.
        challenged = answer.startswith(GREETING) and len(answer) == REPLY_BYTES
        return (REFUSED if not answer or challenged else ANSWERED), data

    def opening(self) -> bytes:
        rng = self._rng
        greeting = GREETING + rng.randbytes(NONCE_BYTES)
        makers: list[Callable[[], bytes]] = [
            lambda: rng.randbytes(rng.randint(0, 200)),
            lambda: rng.randbytes(20_000) if rng.random() < 0.1 else b"\0" * 100,
            lambda: b"MSL" + rng.randbytes(rng.randint(0, 100)),
            lambda: greeting[: rng.randrange(len(greeting))],
            lambda: flipped(rng, greeting) + rng.randbytes(PROOF_BYTES),
            lambda: greeting + rng.randbytes(PROOF_BYTES),  # a wrong proof
            lambda: greeting + rng.randbytes(rng.randint(0, 5000)),
            lambda: self._recorded,  # replayed
            lambda: flipped(rng, self._recorded),
            lambda: greeting + struct.pack("!Q", 1 << rng.randrange(64)) + rng.randbytes(60),
            lambda: struct.pack("!Q32s", 1 << rng.randrange(64), rng.randbytes(32)),
            lambda: rng.choice([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"]),
            lambda: pyro_opening(rng, self._target.mark),
            lambda: pyro_opening(rng, self._target.mark),
            lambda: flipped(rng, pyro_opening(rng, self._target.mark), 8),
            lambda: greeting + pickle.dumps(Mark(self._target.mark)),
        ]
        return rng.choice(makers)()


def _recorded_handshake(target: Target) -> bytes:
    """What a client with the key has sent: greeting, proof, and a call."""
    sent = bytearray()

    class Recording(socket.socket):
        def sendall(self, data: Any, flags: int = 0) -> None:
            sent.extend(data)
            super().sendall(data, flags)

    with connect(target.manager) as plain, Recording(fileno=plain.detach()) as sock:
        sock.settimeout(PATIENCE_S)
        sealed = client_handshake(sock, target.key, PATIENCE_S)
        sealed.sendall(call_message("status"))
        receive(sock, RECORD_HEADER.size)
    return bytes(sent)


def pyro_opening(rng: random.Random, mark: Path) -> bytes:
    """A first message as Pyro knows it, by any serializer."""
    hello = {"handshake": rng.choice(["hello", None, 1 << 80]), "object": "Pyro.Daemon"}
    payloads = [
        *(lambda name=name: serializers[name].dumps(hello) for name in serializers),
        lambda: b"(\x01\x00\x00\x00" * 100 + b"N",  # marshal, nested
        lambda: marshal.dumps(compile("0", "x", "eval")),
        lambda: json.dumps({"object": "Pyro.Daemon", "__class__": "Pyro5.client.Proxy"}).encode(),
        lambda: rng.randbytes(rng.randint(0, 100)),
        lambda: b"-" * 5000 + b"1",
        lambda: pickle.dumps(Mark(mark)),
        lambda: marshal.dumps(compile(f"open({str(mark)!r}, 'w')", "x", "eval")),
        lambda: f"# serpent utf-8 python3.2\nopen({str(mark)!r}, 'w')".encode(),
    ]
    data = rng.choice(payloads)()
    sizes = rng.choice(
        [None, None, None, (0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (1 << 30, 1 << 30), (len(data), 8)]
    )
    return message(
        rng.choice([1, 1, 1, 4, 6, 0, 2, 5, 255]),
        rng.choice([0, 1, 2, 3, 4, 5, 42, 255]),
        data,
        flags=rng.choice([0, 0, 0, 1 << rng.randrange(16)]),
        seq=rng.randrange(1 << 16),
        sizes=sizes,
    )


# --- at the name server, which is open to all -------------------------------------------------

_SERPENT = serializers["serpent"]
_NAME_SERVER = "Pyro.NameServer"
_PROXY = {
    "__class__": "Pyro5.client.Proxy",
    # Nobody listens there: a name server that went to look would say so.
    "state": ("PYRO:x@127.0.0.1:1", (), ("__iter__",), (), "hello", "marshal"),
}


class Names:
    """Anyone at all, at the name server's port: many messages per connection."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._target = target
        self._rng = rng
        self._sock: socket.socket | None = None

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def send(self) -> tuple[str, object]:
        rng = self._rng
        sock = self._sock
        if sock is None or rng.random() < 0.02:
            self.close()
            sock = self._sock = connect(self._target.name_server)
            hello = _SERPENT.dumps({"handshake": "hello", "object": _NAME_SERVER})
            data = message(protocol.MSG_CONNECT, 1, hello)
            if rng.random() < 0.3:
                data = rng.choice([flipped(rng, data), pyro_opening(rng, self._target.mark)])
        else:
            body = self.body()
            data = message(protocol.MSG_INVOKE, 1, body, seq=rng.randrange(1 << 16))
            if rng.random() < 0.1:
                data = flipped(rng, data[:40]) + data[40:]
        whole = len(data) >= 40 and len(data) == 40 + sum(struct.unpack_from("!II", data, 12))
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        if not whole:
            end_of_sending(sock)
        try:
            header = receive(sock, 40)
            if len(header) < 40:
                self.close()
                return REFUSED, data
            kind, flags = header[6], int.from_bytes(header[8:10], "big")
            answer = receive(sock, sum(struct.unpack_from("!II", header, 12)))
        except TimeoutError:
            self.close()
            return HUNG, data
        if not whole or kind == protocol.MSG_CONNECTFAIL:
            self.close()
        if b"127.0.0.1:1" in answer and flags & protocol.FLAGS_EXCEPTION:
            return HUNG, answer  # it has tried to connect there
        failed = kind == protocol.MSG_CONNECTFAIL or flags & protocol.FLAGS_EXCEPTION
        return (ERROR if failed else ANSWERED), data

    def body(self) -> bytes:
        rng = self._rng
        name = rng.choice(["fuzz", f"fuzz{rng.randrange(10**6)}", f"TaskManager.{LABEL}"])
        uri = rng.choice(["PYRO:x@127.0.0.1:1", "PYRO:x@nowhere", "", "PYRONAME:x"])
        hostile = [None, -1, 1 << 70, 1e308, "", "x" * 5000, [], {}, {"a": [()]}, _PROXY, (1, "a")]
        calls: list[Any] = [
            ("ping", (), {}),
            ("count", (), {}),
            ("lookup", (name,), {"return_metadata": rng.choice([True, False, 3])}),
            ("lookup", (rng.choice(hostile),), {}),
            ("list", (), {"prefix": rng.choice(["fuzz", "TaskManager.", *hostile[:3]])}),
            ("list", (), {"regex": "(a+)+$"}),
            ("list", (None, "(a|a)*b"), {}),
            ("remove", (), {"regex": rng.choice(["(a+)+$", ".*"])}),
            ("remove", (name,), {}),
            ("remove", (), {"prefix": rng.choice(["fuzz", "TaskManager."])}),
            ("register", (name, uri), {"metadata": rng.choice([None, ["a"], {1, "b"}, _PROXY])}),
            ("register", ("a" * 40 + "!", "PYRO:x@h:1"), {"safe": rng.choice([True, False])}),
            ("register", (rng.choice(hostile), rng.choice(hostile)), {}),
            ("set_metadata", (name, rng.choice(hostile)), {}),
            ("yplookup", (), {"meta_any": rng.choice([["a"], _PROXY, [[1]], "a"])}),
            ("yplookup", (rng.choice(hostile),), {}),
            (rng.choice(["__class__", "storage", "", "__getattr__", "close"]), ("storage",), {}),
            (rng.choice(["list", "ping", 7, None]), rng.choice(hostile), rng.choice(hostile)),
        ]
        choice = rng.random()
        if choice < 0.7:
            method, args, kwargs = rng.choice(calls)
            owner = _NAME_SERVER if rng.random() < 0.95 else rng.choice(["Pyro.Daemon", "x", 5])
            data: bytes = _SERPENT.dumps((owner, method, args, kwargs))
            return data if rng.random() < 0.6 else flipped(rng, data)
        return rng.choice(
            [
                b"",
                rng.randbytes(rng.randint(0, 200)),
                b"1+" * rng.randint(1, 8000) + b"1",
                b"a" + b"()" * rng.randint(1, 8000),
                b"-" * rng.randint(1, 16000) + b"1",
                b"[" * rng.randint(1, 8000),
                b"(" * 20 + b"1," + b")" * 20,
                b"'\\q\\N{DIGIT ONE}\\400'",
                b"'\\ud800'",
                b"9" * rng.randint(1, 16000),
                b"lambda:0",
                f"open({str(self._target.mark)!r}, 'w')".encode(),
                pickle.dumps(Mark(self._target.mark)),
                b"[" + b"1," * rng.randint(1, 7000) + b"]",
            ]
        )


# --- with the key: bytes ----------------------------------------------------------------------


def call_message(
    method: Any, *args: Any, owner: Any = f"TaskManager.{LABEL}", **kwargs: Any
) -> bytes:
    """A remote call in Pyro's format."""
    return message(
        protocol.MSG_INVOKE, 4, serializers["msgpack"].dumpsCall(owner, method, args, kwargs)
    )


class Session:
    """A connection by the right handshake."""

    def __init__(self, target: Target) -> None:
        self.sock = connect(target.manager)
        self.sealed: SealedSocket = client_handshake(self.sock, target.key, PATIENCE_S)
        self.sock.settimeout(PATIENCE_S)

    def close(self) -> None:
        self.sock.close()

    def record(self, data: bytes) -> bytes:
        """The next record, rightly signed."""
        header: bytes = self.sealed._outgoing.header(data)
        return header + data

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def reply(self) -> tuple[str, bytes]:
        """What came of it, and the answer."""
        header = receive(self.sock, RECORD_HEADER.size)
        if len(header) < RECORD_HEADER.size:
            return REFUSED, b""
        data = receive(self.sock, RECORD_HEADER.unpack(header)[0])
        flags = int.from_bytes(data[8:10], "big")
        return (ERROR if flags & protocol.FLAGS_EXCEPTION else ANSWERED), data[40:]


class Records:
    """Who holds the key and sends what is no message."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._target = target
        self._rng = rng
        self._session: Session | None = None
        self._last = b""  # record of this session

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def send(self) -> tuple[str, object]:
        rng = self._rng
        if self._session is None:
            self._session = Session(self._target)
            self._last = b""
        session = self._session
        data = self.body()
        ends = rng.random() < 0.12
        if ends:
            sent = self.last_words(session, data)
        else:
            if rng.random() < 0.15:  # Pyro's header
                data = flipped(rng, data[:40], 1)[:40].ljust(40, b"\0") + data[40:]
            sent = self._last = session.record(data)
            if rng.random() < 0.15:
                sent = self.with_pieces(session)
        session.send(sent)
        if ends:
            end_of_sending(session.sock)
        try:
            outcome, _ = session.reply()
        except TimeoutError:
            outcome = HUNG
        if ends or outcome in (REFUSED, HUNG):
            self.close()
        return outcome, sent

    def with_pieces(self, session: Session) -> bytes:
        """A call whose large buffers come before it, and do not belong where it says."""
        rng = self._rng
        pieces = [rng.randbytes(rng.randint(0, 50)) for _ in range(rng.randint(1, 4))]
        lengths = struct.pack(f"!{len(pieces)}Q", *map(len, pieces))
        ways: list[Any] = [
            [], [0], [0, 0], [0, 5], [1], ["a"], [-1], [1 << 62], [[]], None, [0, 0, 0, 0], [{}],
        ]  # fmt: skip
        counts = [1, len(pieces), 0, -1, 1 << 62, None, "1"]
        places = [[rng.choice(ways), rng.choice(counts)] for _ in range(rng.randint(0, 3))]
        left = rng.choice([[["fuzz_1"], {}], [[[None]], {}], [[], []], {}, None, "x", [1, 2, 3]])
        lifted: Any = rng.choice([[left, places], [left, places], [left], [left, None], []])
        call = call_message("cancelTask", *lifted)
        records = [_ANNOUNCEMENT + lengths, *pieces, call]
        return b"".join(map(session.record, records))

    def last_words(self, session: Session, data: bytes) -> bytes:
        """What a connection cannot survive."""
        rng = self._rng
        last, record = self._last, session.record(data)
        length, mac = RECORD_HEADER.unpack_from(record)
        return rng.choice(
            [
                last or record[1:],  # replayed
                RECORD_HEADER.pack(length, rng.randbytes(32)) + data,
                record[:40] + flipped(rng, data),
                record[: rng.randrange(1, len(record))],
                RECORD_HEADER.pack(1 << rng.randrange(20, 64), mac) + data,
                RECORD_HEADER.pack(length - 1, mac) + data,
                session.record(data) + record,  # in the wrong order
                record + rng.randbytes(rng.randint(1, 200)),
                session.record(data + message(4, 2, marshal.dumps("x"))),  # two messages in one
                session.record(b""),
                session.record(data[:39]),
                session.record(rng.randbytes(rng.randint(40, 200))),
                session.record(data[:12] + b"\xff\xff\xff\xff" + data[16:]),
                session.record(_ANNOUNCEMENT) + record,
                session.record(_ANNOUNCEMENT + b"odd") + record,
                session.record(_ANNOUNCEMENT + struct.pack("!Q", 1 << rng.randrange(64))) + record,
                session.record(_ANNOUNCEMENT + bytes(80_000)) + record,
                session.record(_ANNOUNCEMENT + bytes(8)) + session.record(b""),
            ]
        )

    def body(self) -> bytes:
        """A harmless call, changed somewhere; it concerns nobody if a change goes unnoticed."""
        rng = self._rng
        nobody = (1 << 62) + rng.randrange(1 << 40)
        calls: list[tuple[Any, ...]] = [
            ("status",),
            ("numberOfTasks",),
            ("ping", nobody),
            ("activeProcessInfo", nobody),
            ("exchange", nobody, [["fuzz_1", 1, "result", [b"x"], 0.5, ""]], ["fuzz_2"], 1, 0.0),
            ("retrieveData", "fuzz"),
            ("announceTags", nobody, ["fuzz"]),
            ("outstandingTasks", nobody, "fuzz"),
            ("cancelTask", "fuzz_no"),
        ]
        data = call_message(*rng.choice(calls))
        choice = rng.random()
        if choice < 0.2:
            return data
        body = data[40:]
        if choice < 0.8:
            body = flipped(rng, body)
        elif choice < 0.9:
            body = body[: rng.randrange(len(body))]
        else:
            body = rng.choice(
                [
                    rng.randbytes(rng.randint(0, 200)),
                    b"\x94" * rng.randint(1, 3000),  # nested lists
                    b"\xdd\xff\xff\xff\xff",  # a list of 4 G items
                    b"\xc7\x01\x31x" + body,
                    b"\xd8\x30" + b"\xff" * 16,
                    body + body,
                ]
            )
        return message(protocol.MSG_INVOKE, 4, body, seq=rng.randrange(1 << 16))


# --- with the key: calls ------------------------------------------------------------------------

_NO_METHODS = (
    "", "__class__", "__init__", "__getattr__", "__setattr__", "__dict__", "__reduce__", "_lock",
    "_queue", "checkLiveness", "embedClient", "livenessInterval", "lostProcess", "nothing",
    "repeatStragglers", "status.__self__", "waitForSlavesToLeave", "x" * 1000,
)  # fmt: skip

#: What leads furthest: processes with tasks in every state.
_OFTEN = ("registerProcess", "announceTags", "addTaskRequests", *["exchange"] * 8, "getResults")


class Calls:
    """Who holds the key and calls with arguments that cannot be, among some that can.

    Has processes and tasks of its own, of tags that the job does not know.
    """

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._target = target
        self._rng = rng
        self._session: Session | None = None
        self._own: list[int] = []  # processes
        self.answered: Counter[Any] = Counter()  # by method
        self._tasks: deque[str] = deque()
        self._running: list[Any] = []  # assignments

    def close(self) -> None:
        """Take back what is left and go."""
        if self._session is None:
            return
        for task_id in self._tasks:
            self._session.send(self._session.record(call_message("cancelTask", task_id)))
            self._session.reply()
        for process_id in self._own:
            self._session.send(self._session.record(call_message("unregisterProcess", process_id)))
            self._session.reply()
        self._session.close()
        self._session = None

    def send(self) -> tuple[str, object]:
        if self._session is None:
            self._session = Session(self._target)
            self._own, self._running = [], []
        if len(self._tasks) > 100:
            method, args, kwargs, owner = "cancelTask", [self._tasks.popleft()], {}, None
        else:
            method, args, kwargs, owner = self.call()
        if owner is None:
            owner = f"TaskManager.{LABEL}"
        body = serializers["msgpack"].dumpsCall(owner, method, args, kwargs)
        self._session.send(self._session.record(message(protocol.MSG_INVOKE, 4, body)))
        try:
            outcome, answer = self._session.reply()
        except TimeoutError:
            outcome, answer = HUNG, b""
        if outcome in (REFUSED, HUNG):
            self._session.close()
            self._session = None
        elif outcome == ANSWERED:
            self.learn(method, args, serializers["msgpack"].loads(answer))
        return outcome, (method, args, kwargs)

    def learn(self, method: Any, args: Any, result: Any) -> None:
        """Take note of what was answered."""
        self.answered[str(method)] += 1
        if method == "registerProcess":
            self._own.append(result[0])
            if len(self._own) > 5:  # the younger ones will be used
                del self._own[0]
        elif method == "unregisterProcess" and args[0] in self._own:
            self._own.remove(args[0])
        elif method == "addTaskRequest":
            self._tasks.append(result)
        elif method == "addTaskRequests":
            self._tasks.extend(result)
        elif method == "exchange":
            self._running += result[0]
            del self._running[:-50]
        elif method in ("getAnyTask", "getTaskWithTag") and result:
            self._running.append(result)

    # What a call is made of. Never a process or a finished attempt of the job itself.

    def wrong(self) -> Any:
        """What no parameter takes, or few; no integer that might be somebody's number."""
        rng = self._rng
        frame = [rng.randbytes(5), b""]
        if rng.random() < 0.05:  # what Pyro makes an object of, or ends the connection for
            return rng.choice(
                [
                    _PROXY, {"__class__": "x"}, {"__class__": "builtins.SystemExit"},
                    {"__class__": "Pyro5.core.URI", "state": ["PYRO", "x", None, "h", 1]},
                    {"__class__": "masterslave.UnknownTask"}, {"__class__": "Pyro5.server.Daemon"},
                ]
            )  # fmt: skip
        return rng.choice(
            [
                None, True, False, 0.0, 1.0, -1.5, 1e308, math.nan, math.inf, -math.inf,
                -1, -(1 << 63), 1 << 63, (1 << 64) - 1, 1 << 70, 10**400, 3j,
                "", "x", "\0", "fuzz\u1234\n", "y" * 70_000,
                b"", b"z" * 100, [], [[]], [[[[None]]]],
                {}, {"a": {"b": [1]}},
                frame, [frame, None], [1, "a", None, b""], ["fuzz_1", 1], [["fuzz_1", 1]],
                [["fuzz_1", 1.5]], [*range(10**6, 10**6 + 50)],
            ]
        )  # fmt: skip

    def process(self) -> Any:
        rng = self._rng
        if self._own and rng.random() < 0.8:
            return rng.choice(self._own)
        return rng.choice([10**6 + rng.randrange(10**6), (1 << 63) - 1, self.wrong()])

    def name(self) -> Any:
        return f"fuzz{self._rng.randrange(4)}" if self._rng.random() < 0.8 else self.wrong()

    def frame(self) -> Any:
        rng = self._rng
        if rng.random() < 0.1:
            return [pickle.dumps(Mark(self._target.mark))]
        return [rng.randbytes(rng.randint(0, 50))] if rng.random() < 0.85 else self.wrong()

    def task(self) -> Any:
        rng = self._rng
        choice = rng.random()
        if choice < 0.5 and self._tasks:
            return rng.choice(self._tasks)
        return rng.choice(["fuzz_0", "fuzz0_99999999999", "_", "x_" + "9" * 5000, self.wrong()])

    def attempt(self) -> Any:
        if self._rng.random() < 0.7:
            return 1
        return self._rng.choice([2, 0, -1, 1 << 40, (1 << 63) - 1, 1 << 63, self.wrong()])

    def seconds(self) -> Any:
        if self._rng.random() < 0.85:
            return self._rng.choice([0, 0.001])
        return self._rng.choice([-1, 1e300, math.nan, math.inf, "1", [], True, 3j])

    def outcome(self) -> Any:
        if self._rng.random() < 0.1:
            return self._rng.choice(["gone", "", self.wrong()])
        return self._rng.choice(["result", "exception", "crashed", "timed_out", "returned"])

    def completion(self) -> Any:
        rng = self._rng
        if self._running and rng.random() < 0.6:
            task_id, _, attempt, *_ = rng.choice(self._running)
            if rng.random() < 0.6:
                return [task_id, attempt, self.outcome(), [b"done"], 0.001, ""]
        elif rng.random() < 0.3:  # of the job: an attempt that never was
            attempt = rng.choice([0, -1, 10**6, (1 << 63) - 1, 1 << 63, math.nan, None, "1"])
            task_id = f"slow_{rng.randrange(1000)}"
        else:
            task_id, attempt = self.task(), self.attempt()
        seconds = rng.choice([0.0, 0.25, 3, math.nan, math.inf, -1.0, 1e12, "0", None])
        done = [task_id, attempt, self.outcome(), self.frame(), seconds, rng.choice(["", "no", 3])]
        if rng.random() < 0.1:
            del done[rng.randrange(6)]
        elif rng.random() < 0.3:
            done[rng.randrange(2, 6)] = self.wrong()
        return done if rng.random() < 0.95 else self.wrong()

    def options(self) -> Any:
        rng = self._rng
        values = [0, None, 0, 2, None, 0.0]
        if rng.random() < 0.5:
            values[rng.randrange(6)] = self.wrong()
        return values if rng.random() < 0.9 else self.wrong()

    def info(self) -> Any:
        rng = self._rng
        values: list[Any] = ["fuzzer", 1, "nowhere", rng.choice([0, 1, 3]), rng.choice(["", "t"])]
        values.append(rng.choice([None, None, 0.0, 60.0, -1.0]))
        if rng.random() < 0.3:
            values[rng.randrange(6)] = self.wrong()
        return rng.choice([values, values, values, values[:4], "a line", self.wrong()])

    def call(self) -> tuple[Any, Any, Any, Any]:
        """Method, arguments, keyword arguments, and of which object; None: the right one."""
        rng = self._rng
        choice = rng.random()
        if choice < 0.05:
            return rng.choice([*_NO_METHODS, self.wrong()]), [self.wrong()], {}, None
        if choice < 0.08:
            owner = rng.choice(["Pyro.Daemon", "TaskManager.other", self.wrong()])
            methods = ["get_metadata", "registered", "info", "ping", "get_next_stream_item", "x"]
            return rng.choice(methods), [self.wrong()], {}, owner if owner is not None else 0
        if choice < 0.1:  # not even a list of arguments; no call that would be right without any
            return rng.choice(["ping", "exchange", "cancelTask"]), self.wrong(), self.wrong(), None
        method = rng.choice([*sorted(REMOTE_METHODS), *_OFTEN])
        args = list(self.arguments(method))
        if rng.random() < 0.05:
            args += [self.wrong()] * rng.choice([1, 20])
        kwargs = {}
        if method == "storeData" and rng.random() < 0.9:
            kwargs[f"fuzz{rng.randrange(4)}"] = self.wrong()
        if rng.random() < 0.05:
            kwargs[rng.choice(["process_id", "self", "fuzz", "timeout", ""])] = self.wrong()
        return method, args, kwargs, None

    def arguments(self, method: str) -> Iterator[Any]:
        """The arguments of a remote method, most of them right, some of them not."""
        rng, wrong = self._rng, self.wrong
        process, name, frame, task = self.process(), self.name, self.frame, self.task
        either = rng.choice

        def held() -> Any:
            pairs = [[task(), self.attempt()], ["slow_1", 10**6], wrong()]
            return either([[], rng.choices(pairs, k=2)])

        def tags() -> Any:
            right = ["fuzz0", "fuzz1"]
            return either([right, right, right, [wrong()], wrong()])

        makers: dict[str, list[Callable[[], Any]]] = {
            "registerProcess": [
                lambda: either([None, None, None, 5.0, self.seconds(), wrong()]),
                self.info,
                lambda: either([None, None, process]),
                held,
            ],
            "addTaskRequest": [name, frame, lambda: process, self.options],
            "addTaskRequests": [name, lambda: [frame(), frame()], lambda: process, self.options],
            "exchange": [
                lambda: process,
                lambda: [self.completion() for _ in range(either([0, 0, 1, 1, 2]))],
                lambda: either([[], [], [], [], [task()], wrong()]),
                lambda: either([None, None, None, 1, 3, 3, 0, -1, -2, wrong()]),
                self.seconds,
                lambda: either([*[None] * 6, 1, wrong()]),
            ],
            "attachClient": [
                self.info,
                self.seconds,
                lambda: either([None, None, process]),
                lambda: either([[], [task()], [task(), wrong()], wrong()]),
                lambda: either([0, 0, 1, 1 << 40, wrong()]),
                lambda: either([1.0, 1.0, 0.5, 0, -1, 1e300, wrong()]),
            ],
            "submitTasks": [
                lambda: process,
                self.attempt,
                lambda: either([0, 0, 1, 7, 8, -1, wrong()]),
                lambda: either([1, 1, 2, 3, 0, 1 << 40, wrong()]),
                name,
                lambda: either([[frame()], [frame(), frame()], wrong()]),
                self.options,
            ],
            "withdrawTask": [
                lambda: process,
                self.attempt,
                lambda: either([0, 1, 8, wrong()]),
                lambda: either([1, 2, 3, 0, wrong()]),
                task,
                lambda: either([True, False, wrong()]),
            ],
            "collectResults": [
                lambda: process,
                self.attempt,
                lambda: either([0, 0, 1, -1, wrong()]),
                lambda: either([1, 100, 0, wrong()]),
                self.seconds,
            ],
            "storeItems": [
                lambda: process, self.attempt, lambda: either([{"fuzz0": wrong()}, {}, wrong()]),
            ],
            "dismissSlaves": [lambda: either([[process], [process], [], wrong()])],
            "deleteItem": [lambda: process, self.attempt, name],
            "repeatStragglers": [
                name, lambda: either([None, 3.0, 0, -1, float("nan"), wrong()]),
            ],
            "storeResult": [task, frame, lambda: process, self.attempt],
            "storeException": [
                task, frame, lambda: either(["Error: no", wrong()]), lambda: process, self.attempt,
            ],
            "returnTask": [task, lambda: process, self.attempt],
            "getResults": [
                lambda: process,
                lambda: either([None, name()]),
                lambda: either([1, 100, 100, 0, -1, 1 << 70, "1", None]),
                self.seconds,
                lambda: either([True, False, False, 3]),
            ],
            "getAnyResult": [lambda: process, self.seconds],
            "getAnyTask": [lambda: process, self.seconds],
            "getResultWithTag": [name, lambda: process, self.seconds],
            "getTaskWithTag": [name, lambda: process, self.seconds],
            "announceTags": [lambda: process, tags],
            # Each right one is a line in the log.
            "reportFailure": [lambda: process, lambda: either(["it fails", *map(str, range(9)), 3])
                              if rng.random() < 0.1 else wrong()],
            "cancelTask": [task],
            "deleteData": [name],
            "retrieveData": [name],
            "outstandingTasks": [lambda: process, lambda: either([None, name()])],
            "terminate": [wrong],  # one too many
            "storeData": [],  # by keyword
            "status": [],
            "failedTasks": [],
            "numberOfTasks": [],
            "numberOfActiveProcesses": [],
            "activeProcesses": [],
        }  # fmt: skip
        for make in makers.get(method, [lambda: process]):
            yield make()

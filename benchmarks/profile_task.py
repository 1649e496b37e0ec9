"""Where each microsecond of an empty task goes: client, manager, wire, slave, pipe, worker.

    python benchmarks/profile_task.py [--tasks 50000] [--no-job]

Two tables. The first is of a job with two slaves: processor time per task of each process, and of
each kind of thread, as the system accounts for it; nothing is slowed down by looking. The second
calls what is on a task's way in isolation, in one process, many times: the part of each layer in
these sums. What it does not contain are system calls that wait, switches between threads and
processes, and waiting for locks; the difference between the tables is that.

(A module named `profile` beside scripts would take the place of Python's own.)
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from masterslave import MasterProcess, SlaveProcess, runJob

LABEL = "benchmark-profile"

#: How many tasks go into one message, in the second table.
BATCHES = (1, 16, 128)

_CALLS = 4096  # about so many tasks go through each layer per measurement
_REPEATS = 5


# --- the job --------------------------------------------------------------------------------


class Slave(SlaveProcess):
    def do_nothing(self, x: int) -> int:
        return x


class Master(MasterProcess):
    def run(self) -> None:
        options = arguments()
        self.requestTasks("nothing", ((i,) for i in range(5000)))
        for _ in self.results():
            pass
        for name, run in (("one by one", self.one_by_one), ("many at once", self.many)):
            before, begin = processor_times(), time.perf_counter()
            run(options.tasks)
            seconds = time.perf_counter() - begin
            spent = {who: s - before.get(who, 0.0) for who, s in processor_times().items()}
            report_job(f"{options.tasks:,} empty tasks, {name}", spent, seconds, options.tasks)

    def one_by_one(self, count: int) -> None:
        for i in range(count):
            self.requestTask("nothing", i)
        for _ in range(count):
            self.retrieveResult()

    def many(self, count: int) -> None:
        self.requestTasks("nothing", ((i,) for i in range(count)))
        for _ in self.results():
            pass


def processor_times() -> dict[str, float]:
    """Seconds of processor time so far, by kind of process and thread."""
    spent: dict[str, float] = {}

    def add(who: str, seconds: float) -> None:
        spent[who] = spent.get(who, 0.0) + seconds

    master = psutil.Process()
    client = threading.main_thread().native_id
    for thread in master.threads():
        who = "master: client" if thread.id == client else "master: threads of the manager"
        add(who, thread.user_time + thread.system_time)
    for slave in master.children():
        for thread in slave.threads():
            who = "slave: supervisor" if thread.id == slave.pid else "slave: uplink's threads"
            add(who, thread.user_time + thread.system_time)
        for worker in slave.children():
            times = worker.cpu_times()
            add("worker", times.user + times.system)
    return spent


def report_job(title: str, spent: dict[str, float], seconds: float, tasks: int) -> None:
    print(f"\n{title}: {tasks / seconds:,.0f} tasks/s, {1e6 * seconds / tasks:.1f} us each\n")
    print("| processor time per task | us | share |\n|---|---|---|")
    total = sum(spent.values())
    for who, used in spent.items():
        print(f"| {who} | {1e6 * used / tasks:.1f} | {100 * used / total:.0f} % |")
    print(f"| all | {1e6 * total / tasks:.1f} | |", flush=True)


# --- the layers -----------------------------------------------------------------------------


def per_call_us(run: Callable[[], Any], tasks: int) -> float:
    """Microseconds per task of a function that deals with so many; the best of some."""
    number = max(1, _CALLS // tasks)
    best = float("inf")
    for _ in range(_REPEATS):
        begin = time.process_time()  # what other programs take does not count
        for _ in range(number):
            run()
        best = min(best, time.process_time() - begin)
    return 1e6 * best / number / tasks


class Layers:
    """Measures them with so many tasks in each message."""

    def __init__(self, batch: int) -> None:
        from masterslave.payload import Codec
        from masterslave.records import Assignment, Completion

        self.batch = batch
        self.codec = Codec(None, shared_main=True)
        self.parameters = self.codec.encode((4711,), "parameters")
        self.result = self.codec.encode(4711)
        self.assignments = [
            Assignment(f"nothing_{i}", "nothing", 1, self.parameters, None) for i in range(batch)
        ]
        self.completions = [
            Completion(f"nothing_{i}", 1, "result", self.result, 1e-6, "") for i in range(batch)
        ]

    def client_codec(self) -> float:
        def run() -> None:
            self.codec.encode((4711,), "parameters")
            self.codec.decode(self.result, owned=True)

        return per_call_us(run, 1)

    def worker(self) -> float:
        from masterslave.records import Completion

        def handler(x: int) -> int:
            return x

        def run() -> None:
            values = list(self.codec.decode(self.parameters, owned=True))
            begin = time.perf_counter()
            result = handler(*values)
            duration_s = time.perf_counter() - begin
            frame = self.codec.encode(result, "result", copy=False)
            Completion("nothing_0", 1, "result", frame, duration_s, "")

        return per_call_us(run, 1)

    def queue(self) -> float:
        """The state machine alone: request, hand out, complete, deliver."""
        from masterslave.leases import Leases
        from masterslave.queue import TaskQueue
        from masterslave.records import Completion, TaskOptions

        tags, options, queue = frozenset(("nothing",)), TaskOptions(), TaskQueue()
        leases, frames = Leases(queue), [self.parameters] * self.batch

        def run() -> None:
            queue.request_all(0, "nothing", frames, options)
            first = leases.peek(tags)
            assert first is not None
            run = leases.hand_out_run(1, first, tags, self.batch, 1 << 20)
            ended = [Completion(task.task_id, 1, "result", self.result, 1e-6, "") for task in run]
            plain, _ = leases.complete_all(1, ended)
            assert len(plain) == self.batch
            assert len(queue.deliver_all(0, None, self.batch)) == self.batch

        return per_call_us(run, self.batch)

    def manager(self) -> float:
        """All of the task manager without a wire, the queue and its lock included."""
        from masterslave.manager import TaskManager
        from masterslave.records import Completion, ProcessInfo

        manager = TaskManager("profile")
        client = manager.registerProcess(None, "client")[0]
        slave = manager.registerProcess(None, ProcessInfo("slave", 1, "here", 1, "token"))[0]
        manager.announceTags(slave, ["nothing"])
        frames = [self.parameters] * self.batch
        ended: list[Completion] = []

        def run() -> None:
            nonlocal ended
            manager.addTaskRequests("nothing", frames, client)
            tasks, _ = manager.exchange(slave, ended, (), 1)
            ended = [
                Completion(task.task_id, task.attempt, "result", self.result, 1e-6, "")
                for task in tasks
            ]
            manager.exchange(slave, ended, (), 0)
            ended = []
            manager.getResults(client, None, self.batch, 0)

        return per_call_us(run, self.batch)

    def wire(self) -> float:
        """Messages of an exchange and of its answer: packed, signed, verified, unpacked."""
        from Pyro5.serializers import serializers

        from masterslave import pieces
        from masterslave.proofs import RECORD_HEADER, signers
        from masterslave.records import as_assignment, as_completion

        msgpack = serializers["msgpack"]
        key, nonce = b"k" * 32, b"n" * 32
        there, back = signers(key, nonce, nonce, server=False)
        back_server, there_server = signers(key, nonce, nonce, server=True)

        def run() -> None:
            args = (1, self.completions, [], 1, 0.0, 7)
            pieces.lift([args, {}])
            data = msgpack.dumpsCall("TaskManager.profile", "exchange", args, {})
            header = there.header(data)
            there_server.verify(RECORD_HEADER.unpack(header)[1], data)
            got = msgpack.loadsCall(data)[2]
            for item in got[1]:
                as_completion(item)
            answer = [self.assignments, {}]
            pieces.lift([answer])
            data = msgpack.dumps(answer)
            header = back_server.header(data)
            back.verify(RECORD_HEADER.unpack(header)[1], data)
            for item in msgpack.loads(data)[0]:
                as_assignment(item)

        return per_call_us(run, self.batch)

    def dispatch(self) -> float:
        """The slave's own logic: tasks arrive, go to a worker, are finished."""
        from masterslave.dispatch import Dispatch, Send

        dispatch = Dispatch()
        dispatch.worker_ready(0)

        def run() -> None:
            now = 0.0
            dispatch.arrived(self.assignments)
            left = {task.task_id: done for task, done in self.pairs()}
            while left:
                for action in dispatch.tick(now):
                    assert isinstance(action, Send)
                    for task in action.tasks:
                        dispatch.finished(0, left.pop(task.task_id), now)
                dispatch.newly_started(now - 1.0)
                dispatch.next_deadline(now, 0.05)
            dispatch.completions.clear()

        return per_call_us(run, self.batch)

    def pairs(self) -> Any:
        return zip(self.assignments, self.completions, strict=True)

    def pipe(self) -> float:
        """Tasks to a worker in one message, each result back in one of its own."""
        from masterslave.pipe import SupervisorEnd, WorkerEnd
        from masterslave.records import as_assignment, as_completion

        near, far = socket.socketpair()
        supervisor, worker = SupervisorEnd(near), WorkerEnd(far)

        def run() -> None:
            supervisor.send(["tasks", self.assignments])
            got = worker.receive()[1]
            for item in got:
                as_assignment(item)
            for done in self.completions:
                worker.send(["done", done])
            count = 0
            while count < self.batch:
                for message in supervisor.receive():
                    as_completion(message[1])
                    count += 1

        try:
            return per_call_us(run, self.batch)
        finally:
            near.close()
            far.close()


LAYERS = (
    ("client: pickle parameters, unpickle the result", "client_codec"),
    ("manager: all its calls, without a wire", "manager"),
    ("   of these: the queue's state machine", "queue"),
    ("wire: pack, sign, verify, unpack; both ends, both ways", "wire"),
    ("slave: dispatch", "dispatch"),
    ("pipe: both ends, both ways, with its system calls", "pipe"),
    ("worker: unpickle, handler, pickle", "worker"),
)


def report_layers() -> None:
    print(
        "\n| in isolation, us per task | " + " | ".join(f"{n} per message" for n in BATCHES) + " |"
    )
    print("|---" * (1 + len(BATCHES)) + "|")
    sums = [0.0] * len(BATCHES)
    for title, method in LAYERS:
        cells = []
        for index, batch in enumerate(BATCHES):
            try:
                us = getattr(Layers(batch), method)()
            except Exception as error:  # the library has changed: say so, and go on
                print(f"{method}, {batch}: {type(error).__name__}: {error}", file=sys.stderr)
                cells.append("?")
                continue
            cells.append(f"{us:.1f}")
            if not title.startswith(" "):
                sums[index] += us
        print(f"| {title} | {' | '.join(cells)} |", flush=True)
    print(f"| sum | {' | '.join(f'{us:.1f}' for us in sums)} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=50_000, help="default: %(default)s")
    parser.add_argument("--no-job", action="store_true", help="only the second table")
    return parser.parse_args()


def main() -> None:
    if not arguments().no_job:
        runJob(LABEL, Master, Slave, launch_slaves=2)
    report_layers()


if __name__ == "__main__":
    main()

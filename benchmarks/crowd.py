"""Many slaves in one process and one thread: real registrations, real connections, no workers.

    python benchmarks/crowd.py HOST:PORT LABEL

Reads from standard input how many slaves there are to be, a growing number on each line, and
answers with that number when so many are registered. Each has the two connections that a slave
has: one waits in the task manager for tasks, through the other results are handed in. A task is
"run" at once, and its parameters are its result. Tasks `long` claim to have taken a second, so
that each slave is given one at a time; tasks `nothing` claim no time and come in batches.
"""

from __future__ import annotations

import argparse
import os
import selectors
import sys
from typing import Any

from ours import raise_file_limit

from masterslave.keyfile import load_key
from masterslave.settings import Settings, split_address
from masterslave.transports.pyro import PyroLink

DURATIONS_S = {"nothing": 0.0, "long": 1.0}
POLL_S = 20.0

_AS_TOLD = -1  # as the uplink of a slave says it


class Slave:
    """One of them, as the task manager sees it."""

    def __init__(self, number: int, address: tuple[str, int], label: str, key: bytes) -> None:
        self.sender = PyroLink(address, label, key, 60.0)
        self.fetcher = PyroLink(address, label, key, 60.0)
        info = [f"simulated slave {number}", os.getpid(), "localhost", 1, f"{number:016x}", None]
        self.id, _, self.generation = self.sender.call("registerProcess", None, info)
        self.sender.call("announceSlave", self.id)
        self.sender.call("announceTags", self.id, list(DURATIONS_S))
        self._ended: list[Any] = []
        self._sending = False
        self._fetch()

    def _fetch(self) -> None:
        args = (self.id, [], [], _AS_TOLD, POLL_S, self.generation)
        self.fetcher.begin_exchange(*args)

    def hear(self, line: PyroLink) -> bool:
        """An answer has come in; false when the job is over."""
        tasks, notices = line.end_exchange()
        if notices:
            return False
        for task_id, tag, attempt, frame, _ in tasks:
            self._ended.append((task_id, attempt, "result", frame, DURATIONS_S[tag], ""))
        if line is self.fetcher:
            self._fetch()
        else:
            self._sending = False
        if self._ended and not self._sending:
            self._sending = True
            ended, self._ended = self._ended, []
            self.sender.begin_exchange(self.id, ended, [], 1, 0.0, self.generation)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("label")
    options = parser.parse_args()
    raise_file_limit()
    address = split_address(options.address)
    key = load_key(Settings.from_environment().key_file)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    slaves: list[Slave] = []
    while True:
        for ready, _ in selector.select():
            if ready.fileobj is sys.stdin:
                line = sys.stdin.readline()
                if not line:
                    for slave in slaves:
                        slave.sender.call("unregisterProcess", slave.id)
                    return
                while len(slaves) < int(line):
                    slave = Slave(len(slaves), address, options.label, key)
                    slaves.append(slave)
                    for one in (slave.sender, slave.fetcher):
                        selector.register(one, selectors.EVENT_READ, slave)
                print(len(slaves), flush=True)
            elif not ready.data.hear(ready.fileobj):
                return


if __name__ == "__main__":
    main()

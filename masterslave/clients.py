"""The clients of a task manager that are in other processes: what each was answered, who is gone.

A connection may break after a call was carried out and before its answer came. So a client numbers
its calls, and what it was answered last is kept until its next call says that it was heard: the
same number again gets the same answer, and is not carried out twice. Results go the other way
about: the last parcel of results is kept until the client asks for the one after it.

Pure: time is an argument, in seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from masterslave.records import Delivery

#: A client's calls are made one after the other in each of so many lanes at most.
LANES = 8

#: Smallest and largest weight of a client. Beyond: one that has no turn in any useful time.
MIN_WEIGHT, MAX_WEIGHT = 1e-3, 1e3


#: What makes slave code the same: with another working directory, the same script means others.
_CODE = ("kind", "source", "module", "frame", "path", "package", "cwd")


def same_code(one: Any, other: Any) -> bool:
    """Whether two records of slave code, see `slavecode`, are of the same code."""
    both = isinstance(one, Mapping) and isinstance(other, Mapping)
    return both and all(one.get(name) == other.get(name) for name in _CODE)


class Client:
    """One attached client."""

    def __init__(self, process_id: int) -> None:
        self.id = process_id
        self.machine = ""  # which process it is, in words
        self.lost_at: float | None = None  # None: it is there
        self.parcel = 0  # number of the last parcel of results
        self.contents: list[Delivery] = []  # of that parcel, until it is known to have arrived
        self.requested = 0  # entries of the journal, the last one of its last request
        self.items: set[str] = set()  # names of the data items that it has stored
        self._answers: dict[int, tuple[int, Any]] = {}  # lane -> number of its last call, answer

    def answered(self, lane: int, serial: int) -> tuple[bool, Any]:
        """Whether that call was carried out already, and what it was answered.

        Raises `ValueError` for a call from before the last one: nobody waits for it any more.
        """
        last, answer = self._answers.get(lane, (0, None))
        if serial < last:
            raise ValueError(f"call {serial} of lane {lane} is over: {last} was made since")
        return serial == last, answer

    def answer(self, lane: int, serial: int, answer: Any) -> None:
        """Keep what a call is answered."""
        if not 0 <= lane < LANES:
            raise ValueError(f"there is no lane {lane}")
        self._answers[lane] = serial, answer

    def has_answer(self, lane: int, answer: Any) -> bool:
        """Whether this very object is what the last call of a lane was answered."""
        return lane in self._answers and self._answers[lane][1] is answer

    def take_back(self, lane: int) -> None:
        """The last call of a lane was not carried out after all: it may be made again."""
        serial, _ = self._answers[lane]
        self._answers[lane] = serial - 1, None

    def received(self, parcel: int) -> bool:
        """The client says which parcel it has had last; whether that is the last one sent."""
        if parcel == self.parcel:
            self.contents = []
            return True
        return False

    def pack(self, contents: list[Delivery]) -> None:
        """A new parcel is about to be sent."""
        self.parcel += 1
        self.contents = contents


class Clients:
    """All attached clients, those present and those that may come back. The shell locks."""

    def __init__(self, grace_s: float | None) -> None:
        """`grace_s`: how long a client that was lost may come back, in seconds; None: for ever."""
        self._grace_s = grace_s
        self._clients: dict[int, Client] = {}

    @property
    def are_kept(self) -> bool:
        """Whether one that was lost may come back at any time."""
        return self._grace_s is None

    def enter(self, process_id: int, machine: str) -> Client:
        """A client has attached itself, or is back."""
        client = self._clients.get(process_id)
        if client is None:
            client = self._clients[process_id] = Client(process_id)
        client.lost_at = None
        client.machine = machine
        return client

    def find(self, process_id: int) -> Client | None:
        """The client with that process id, present or lost."""
        return self._clients.get(process_id)

    def lose(self, process_id: int, now: float) -> bool:
        """A process is taken for dead; whether it was a client."""
        client = self._clients.get(process_id)
        if client is None:
            return False
        client.lost_at = now
        return True

    def leave(self, process_id: int) -> Client | None:
        """A client is gone for good; None: it was none."""
        return self._clients.pop(process_id, None)

    def overdue(self, now: float) -> list[int]:
        """The clients that were lost for longer than their time of grace."""
        if self._grace_s is None:
            return []
        return [
            client.id
            for client in self._clients.values()
            if client.lost_at is not None and now - client.lost_at >= self._grace_s
        ]

    def rows(self, counts: Mapping[int, tuple[int, int, int]], now: float) -> list[dict[str, Any]]:
        """What ``task_manager LABEL`` shows of them; `counts`: as `TaskQueue.by_client`."""
        rows = []
        for client in self._clients.values():
            waiting, running, finished = counts.get(client.id, (0, 0, 0))
            row: dict[str, Any] = {"id": client.id, "info": client.machine}
            row.update(waiting=waiting, running=running, finished=finished)
            if client.lost_at is not None:
                row["lost_s"] = now - client.lost_at
                if self._grace_s is not None:
                    row["dropped_in_s"] = max(0.0, self._grace_s - row["lost_s"])
            rows.append(row)
        return rows

    def users(self, name: str, but: Client) -> list[Client]:
        """The clients that have stored that data item, but one."""
        return [one for one in self._clients.values() if name in one.items and one is not but]

    def unused(self, names: Iterable[str]) -> list[str]:
        """Those of these data items that none of the clients here has stored."""
        return [name for name in names if not any(name in c.items for c in self._clients.values())]

    def __bool__(self) -> bool:
        return bool(self._clients)

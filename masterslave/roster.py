"""The processes of a job: who is registered, who was lost and may come back, what each holds.

Pure: time is an argument. A process that was lost keeps its entry aside; when it comes back with
the same token it is the same process again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from masterslave.errors import UnknownProcess
from masterslave.liveness import Liveness
from masterslave.pace import Pace
from masterslave.records import ProcessInfo

#: Deleted data items of which a new shortcut is told, as an answer with them may be on its way to
#: its slave. Larger: memory. Smaller: of more that are deleted at once, a task may find one.
_DROPPED = 256

#: Lost processes that are remembered. Larger: memory, in a job whose slaves come and go for weeks.
#: Smaller: of more that were cut off at a time, some come back under another id.
_LOST = 4096


class Member:
    """A registered process: the master, another client, or a slave."""

    def __init__(self, process_id: int, info: ProcessInfo) -> None:
        self.id = process_id
        self.info = info
        self.generation = 0  # number of its registration: calls from before that are void
        self.is_slave = False
        self.tags: frozenset[str] | None = None  # None: its workers are not ready
        self.finished = 0  # tasks that it completed
        self.room = max(1, info.workers)  # its workers that are ready for tasks; 0: wants none
        self.stalled = 0  # its workers that run one task for long, so that nothing goes behind it
        self.behind = 0  # what could not be taken back from behind those
        self.cancelled: list[str] = []  # tasks that it is to stop, told at its next exchange
        self.dropped_data: list[str] = []  # data items that it is to forget
        self.dropped_lately: deque[str] = deque(maxlen=_DROPPED)  # those, and what it was told of
        self.dismissed = False  # it is to be told to leave
        self.has_new_code = False  # other code is kept for slaves than when it came
        self.ends_at: float | None = None  # when it takes no more tasks; None: no end known
        self.too_long: set[str] = set()  # tags that it gave back for want of time

    def may_take(self, tag: str, held: Mapping[str, int], pace: Pace) -> int:
        """How many tasks of that tag it may get; `held`: how many of each it has."""
        if self.room <= 0:
            return 0
        if self.stalled:
            return max(0, self.room - sum(held.values()) + self.behind)
        return pace.more_to_hold(tag, sum(held.values()), pace.load_s(held), self.room)

    def is_idle(self, held: int) -> bool:
        """Whether one of its workers waits for a task, when it holds `held`."""
        return bool(self.tags) and held < self.room

    def left_s(self, now: float) -> float | None:
        """Seconds for which it takes tasks; None: no end known."""
        return None if self.ends_at is None else max(0.0, self.ends_at - now)

    def timely_tags(self, pace: Pace, now: float) -> frozenset[str]:
        """Its tags, without those of tasks that usually take longer than the time it has left.

        Nor does it get again what it knows better to be too long: such tasks would go to and fro.
        """
        tags, left_s = self.tags or frozenset(), self.left_s(now)
        if left_s is None:
            return tags
        if left_s == 0:
            return frozenset()
        return frozenset(
            tag
            for tag in tags - self.too_long
            if (estimate_s := pace.estimate_s(tag)) is None or estimate_s <= left_s
        )

    def has_notices(self) -> bool:
        """Whether it is to be told something."""
        return bool(self.cancelled or self.dropped_data or self.has_new_code or self.dismissed)

    def notices(self) -> dict[str, Any]:
        """What it is to be told at the end of this exchange, once."""
        notices: dict[str, Any] = {}
        if self.cancelled:
            notices["stop"], self.cancelled = self.cancelled, []
        if self.dropped_data:
            notices["forget"], self.dropped_data = self.dropped_data, []
        if self.dismissed:
            notices["leave"], self.dismissed = True, False
        if self.has_new_code:
            notices["code"], self.has_new_code = True, False
        return notices

    def take_back(self, notices: Mapping[str, Any]) -> None:
        """The notices have not reached it."""
        self.cancelled[:0] = notices.get("stop", [])
        self.dropped_data[:0] = notices.get("forget", [])
        self.dismissed = self.dismissed or notices.get("leave", False)
        self.has_new_code = self.has_new_code or "code" in notices

    def as_status(self, holds: int) -> dict[str, Any]:
        """What ``task_manager LABEL`` shows of it."""
        status: dict[str, Any] = {"id": self.id, "info": self.info.machine}
        if self.is_slave:
            status["host"] = self.info.host
            status["pid"] = self.info.pid
            status["workers"] = self.info.workers
            status["tags"] = None if self.tags is None else sorted(self.tags)
            status["holds"] = holds
            status["finished"] = self.finished
        return status


class Roster:
    """All members, those present and those lost. Not thread-safe: the shell locks."""

    def __init__(self, first_generation: int = 0) -> None:
        self.present: dict[int, Member] = {}
        self.liveness = Liveness()
        self._lost: dict[int, Member] = {}
        self._crowded_out: list[Member] = []
        self._next_id = 0
        self._generation = first_generation

    def remember(self, process_id: int, info: ProcessInfo) -> None:
        """A slave of an earlier task manager may come back, under the id it had there."""
        member = Member(process_id, info)
        member.is_slave = True
        self._lost[process_id] = member
        self._next_id = max(self._next_id, process_id + 1)

    def join(
        self, info: ProcessInfo, period_s: float | None, resume: int | None, now: float
    ) -> Member:
        """A process registers, new or under the id that it had and can prove by its token."""
        member = self.known(resume) if resume is not None and info.token else None
        if member is None or member.info.token != info.token:
            member = Member(self._next_id, info)
            self._next_id += 1
        self._generation += 1
        member.generation = self._generation
        member.ends_at = None if info.left_s is None else now + info.left_s
        self._lost.pop(member.id, None)
        self.present[member.id] = member
        self.liveness.register(member.id, period_s, now)
        return member

    def leave(self, process_id: int) -> Member | None:
        """A process leaves for good; None if it was not known."""
        self.liveness.forget(process_id)
        return self.present.pop(process_id, None) or self._lost.pop(process_id, None)

    def lose(self, process_id: int) -> Member | None:
        """A process is taken for dead; None if it was not present."""
        member = self.present.pop(process_id, None)
        if member is not None:
            self.liveness.forget(process_id)
            self._lost[process_id] = member
            if len(self._lost) > _LOST:
                self._crowded_out.append(self._lost.pop(next(iter(self._lost))))
        return member

    def take_crowded_out(self) -> list[Member]:
        """Those that are remembered no more since the last call, as too many others were lost."""
        taken, self._crowded_out = self._crowded_out, []
        return taken

    def get(self, process_id: int) -> Member:
        """The present process with that id. Raises `UnknownProcess`."""
        member = self.present.get(process_id)
        if member is None:
            raise UnknownProcess(f"process {process_id} is not registered, or was taken for dead")
        return member

    def known(self, process_id: int) -> Member | None:
        """The process with that id, present or lost."""
        return self.present.get(process_id) or self._lost.get(process_id)

    def all_known(self) -> list[Member]:
        """Everyone, present or lost."""
        return [*self.present.values(), *self._lost.values()]

    def slaves(self) -> list[Member]:
        """The slaves that are present."""
        return [member for member in self.present.values() if member.is_slave]

"""Which tasks are in an executor's hands, and what follows when it loses them: pure logic.

::

    from the task manager --> backlog --take_off--> in the air --landed--> completions

A flight is one submission: a few tiny tasks, or one of unknown or longer duration. As many are in
the air as the executor has workers. An executor that cannot stop a task keeps its worker busy: such
a flight is *written off*, what it brings is dropped, and it takes up room until it lands.

When the executor breaks (a process pool does when one of its processes dies), all its flights fall
at once and nobody knows who is to blame. One that flew alone is. Of several, each is a *suspect*:
it costs them nothing the first time, and they take off again one after the other, single and
`APART_S` apart, with nothing else in the air. So whoever crashes at once does so alone. Suspects
that fall once more in company count a crash each.

A tag of which one task has taken long is not sent in bundles for a while: what is bundled behind
one that hangs would wait with it.

Where a tag's late tasks may be run twice (`repeat`), one that takes far longer than usual takes off
once more when nothing else waits. The first result wins.

Time is an argument. The shell is `pump`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from masterslave.pace import Pace
from masterslave.records import Assignment, Completion, Frame, Outcome
from masterslave.stragglers import YOUNGEST_S, Stragglers

#: Work in one submission. Larger: the last worker of a job has more than the others. Smaller: an
#: executor that takes a millisecond for a submission is the bottleneck.
CHUNK_S = 0.01

#: Tasks in one submission, whatever they take. Larger: more run again when a worker dies.
CHUNK_TASKS = 64

#: A submission that has lasted so long ends with what is done, and the rest is submitted again.
#: Larger: results wait longer, and more runs again when a worker is killed. Smaller: on a busy
#: machine tiny tasks are taken for uneven ones.
HELD_S = 0.25

#: After a task longer than that, so many of its tag are submitted one by one. Larger: one stray
#: task makes a tag slow for long. Smaller: tiny tasks stand behind a long one again and again.
ALONE_TASKS = 200

#: For so long a suspect has the executor for itself. Larger: after a crash others wait for long.
#: Smaller: what crashes later than that takes others along, and they count a crash.
APART_S = 1.0

#: What is attached is taken for granted so often before its absence counts as a crash.
_ATTEMPTS_TO_ATTACH = 20

#: A submission that others have cancelled is made again so often before that counts as a crash.
_MOST_CANCELS = 10

#: Pause after a submission that was refused, doubled for each further one in a row; after so many
#: there is none. Larger: an executor that is gone for good is told late. Smaller: all attempts of a
#: task are used up in a moment's trouble.
_REST_S, _LONGEST_REST_S, _MOST_RESTS = 0.1, 1.0, 10

_CRASHED, _RETURNED = Outcome.CRASHED.value, Outcome.RETURNED.value


class Flight(NamedTuple):
    """One submission."""

    number: int
    pool: int  # number of the pool that it was given to
    tasks: list[Assignment]
    attach: list[str]  # names of the data items that go with it
    again: bool = False  # whether the same task is in the air already


class _Aloft:
    __slots__ = ("flight", "gone", "since", "suspect")

    def __init__(self, flight: Flight, since: float, suspect: bool) -> None:
        self.flight = flight
        self.since = since
        self.suspect = suspect
        self.gone: set[str] = set()  # ids of its tasks of which nothing is wanted any more

    def wanted(self) -> list[Assignment]:
        return [task for task in self.flight.tasks if task.task_id not in self.gone]


class Flights:
    """See the module's text. Not thread-safe."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: how many submissions the executor runs at a time."""
        self.capacity = capacity
        self.completions: list[Completion] = []  # for the shell to take
        self.unwanted: list[int] = []  # submissions of which nothing is wanted; the same
        self.pool = 0  # number of the present pool; what an earlier one brings is void
        self._backlog: deque[Assignment] = deque()
        self._suspects: deque[Assignment] = deque()  # to take off one after the other
        self._suspected: set[str] = set()  # ids of tasks that fell in company
        self._lacking: deque[tuple[Assignment, list[str]]] = deque()  # what to attach to them
        self._lacked: dict[str, int] = {}  # task id -> how often it came back for want of data
        self._aloft: dict[int, _Aloft] = {}
        self._cancels: dict[str, int] = {}  # task id -> how often others have cancelled it
        self._next = 0
        self._pace = Pace()
        self._alone: dict[str, int] = {}  # tag -> how many more of it are submitted one by one
        self._stragglers = Stragglers()
        self._doubled: set[str] = set()  # ids of tasks that took off once more
        self._refusals = 0  # in a row
        self._rest_until = 0.0
        self._quiet_since = 0.0  # nothing has landed since, or since there is something in the air

    # --- events -----------------------------------------------------------------------------

    def arrived(self, tasks: Iterable[Assignment]) -> None:
        """The task manager has handed these out."""
        for task in tasks:
            suspected = task.task_id in self._suspected
            (self._suspects if suspected else self._backlog).append(task)

    def take_off(self, now: float) -> Flight | None:
        """The next submission; None when there is nothing for now, or no room."""
        if len(self._aloft) >= self.capacity:
            return None
        if max(self._rest_until, self._apart_until(now)) > now:
            return None
        if self._suspects:
            if any(not other.suspect and other.wanted() for other in self._aloft.values()):
                return None  # they were there before, and will land
            return self._launch([self._suspects.popleft()], [], now, suspect=True)
        if self._lacking:
            task, attach = self._lacking.popleft()
            return self._launch([task], attach, now)
        if not self._backlog:
            return self._repeat(now)
        return self._launch(self._chunk(), [], now)

    def landed(
        self,
        number: int,
        done: Iterable[Completion],
        unrun: Sequence[str],
        missing: list[str],
        now: float = 0.0,
    ) -> None:
        """A submission has come back with these completions; the rest lacks these data items."""
        aloft = self._aloft.pop(number, None)
        if aloft is None:
            return  # of a pool that has broken since
        self._quiet_since = now
        self._refusals = 0
        wanted = {(task.task_id, task.attempt): task for task in aloft.wanted()}
        for completion in done:
            task = wanted.pop((completion.task_id, completion.attempt), None)
            if task is not None:
                self._pace.record(task.tag, completion.duration_s)
                if completion.duration_s > HELD_S:
                    self._alone[task.tag] = ALONE_TASKS
                self._end(completion)
        if done and not missing and all(task.task_id in unrun for task in wanted.values()):
            self._backlog.extendleft(reversed(wanted.values()))  # its time was over
            return
        for task in wanted.values():
            self._lacked[task.task_id] = count = self._lacked.get(task.task_id, 0) + 1
            if task.task_id not in unrun or count > _ATTEMPTS_TO_ATTACH:
                self._end(_ended(task, _CRASHED, "its worker has brought back no result of it"))
            else:
                self._lacking.append((task, missing))

    def refused(self, number: int, story: str, now: float) -> None:
        """The executor has not taken this submission. It gets a rest, as it may be in trouble."""
        if self._refusals < _MOST_RESTS:
            self._rest_until = now + min(_LONGEST_REST_S, _REST_S * 2**self._refusals)
        self._refusals += 1
        self.failed(number, story)

    def failed(self, number: int, story: str) -> None:
        """The executor has lost this submission, and no other."""
        aloft = self._aloft.pop(number, None)
        if aloft is not None:
            self._fall(aloft.wanted(), story)

    def broke(self, story: str) -> None:
        """The executor is broken: nothing in the air will land."""
        fallen, self._aloft = list(self._aloft.values()), {}
        self.pool += 1
        tasks = {task.task_id: task for aloft in fallen for task in aloft.wanted()}
        self._fall(list(tasks.values()), story)

    def given_back(self, number: int, why: str) -> None:
        """The executor has not begun with this submission, and will not."""
        aloft = self._aloft.pop(number, None)
        for task in [] if aloft is None else aloft.wanted():
            if self._flies_on(task.task_id):
                continue
            self._cancels[task.task_id] = count = self._cancels.get(task.task_id, 0) + 1
            if count > _MOST_CANCELS:
                story = f"{count} submissions of it were cancelled by others than this library"
                self._end(_ended(task, _CRASHED, story))
            else:
                self.completions.append(_ended(task, _RETURNED, why))

    def cancelled(self, task_ids: Iterable[str]) -> list[int]:
        """Nothing more is wanted of these tasks; gives the submissions with nothing else."""
        gone = set(task_ids)
        self._backlog = deque(task for task in self._backlog if task.task_id not in gone)
        self._suspects = deque(task for task in self._suspects if task.task_id not in gone)
        self._lacking = deque(one for one in self._lacking if one[0].task_id not in gone)
        for task_id in gone:
            self._forget(task_id)
        empty = []
        for number, aloft in self._aloft.items():
            before = len(aloft.wanted())
            aloft.gone |= gone
            if before and not aloft.wanted():
                empty.append(number)
        return empty

    def tick(self, now: float) -> list[int]:
        """End what is past its time limit; gives the submissions of which nothing is wanted."""
        late = []
        for number, aloft in self._aloft.items():
            for task in aloft.wanted():
                if task.timeout is not None and now - aloft.since > task.timeout:
                    story = f"was past its time limit of {task.timeout:g} s"
                    aloft.gone.add(task.task_id)
                    self._end(_ended(task, Outcome.TIMED_OUT.value, story))
                    late.append(number)
        return late

    def repeat(self, tag: str, factor: float | None) -> None:
        """Tasks of that tag that take `factor` times longer than usual may be run twice."""
        self._stragglers.enable(tag, factor)

    def give_back_all(self, why: str) -> None:
        """Give back what is not in the air."""
        waiting = [*self._backlog, *self._suspects, *(task for task, _ in self._lacking)]
        self._backlog.clear()
        self._suspects.clear()
        self._lacking.clear()
        for task in waiting:
            self._end(_ended(task, _RETURNED, why))

    # --- questions --------------------------------------------------------------------------

    def room(self) -> int:
        """How many workers of the executor may be given tasks, idle or busy."""
        written_off = sum(1 for aloft in self._aloft.values() if not aloft.wanted())
        return max(0, self.capacity - written_off)

    def stuck(self) -> list[int]:
        """The submissions of which nothing is wanted and that have not ended."""
        return [number for number, aloft in self._aloft.items() if not aloft.wanted()]

    def aloft(self) -> list[int]:
        """The submissions in the air."""
        return list(self._aloft)

    def quiet_s(self, now: float) -> float:
        """For how long something has been in the air, and nothing has landed."""
        if not any(aloft.wanted() for aloft in self._aloft.values()):
            return 0.0
        return now - self._quiet_since

    def wanted(self) -> list[str]:
        """Ids of the tasks in the air, oldest first."""
        return [task.task_id for aloft in self._aloft.values() for task in aloft.wanted()]

    def next_deadline(self, now: float) -> float | None:
        """Seconds until `tick` or `take_off` has something to do by the clock; None: never."""
        waits = [
            aloft.since + task.timeout - now + 0.001
            for aloft in self._aloft.values()
            for task in aloft.wanted()
            if task.timeout is not None
        ]
        apart_s = max(self._rest_until, self._apart_until(now)) - now
        if apart_s > 0 and (self._suspects or self._backlog or self._lacking):
            waits.append(apart_s)
        if self._stragglers and self._aloft and not self._backlog:
            waits.append(YOUNGEST_S)  # to look for late ones
        return max(0.0, min(waits)) if waits else None

    # --- inside -----------------------------------------------------------------------------

    def _apart_until(self, now: float) -> float:
        """Until when the last suspect has the executor for itself."""
        suspects = [a.since for a in self._aloft.values() if a.suspect and a.wanted()]
        return max(suspects) + APART_S if suspects else now

    def _launch(
        self,
        tasks: list[Assignment],
        attach: list[str],
        now: float,
        *,
        suspect: bool = False,
        again: bool = False,
    ) -> Flight:
        suspect = suspect or any(task.task_id in self._suspected for task in tasks)
        flight = Flight(self._next, self.pool, tasks, attach, again)
        if len(tasks) == 1 and tasks[0].task_id not in self._doubled:
            self._stragglers.began(tasks[0].task_id, tasks[0].tag, flight.number, now)
        self._next += 1
        if not any(aloft.wanted() for aloft in self._aloft.values()):
            self._quiet_since = now
        self._aloft[flight.number] = _Aloft(flight, now, suspect)
        return flight

    def _chunk(self) -> list[Assignment]:
        """Tasks for one submission: its share of what waits, some milliseconds at most."""
        share = -(-len(self._backlog) // max(1, self.capacity - len(self._aloft)))
        chunk = [self._backlog.popleft()]
        if alone := self._alone.get(chunk[0].tag):
            self._alone[chunk[0].tag] = alone - 1
            return chunk
        load_s = self._known_s(chunk[0])
        while self._backlog and load_s is not None and len(chunk) < min(share, CHUNK_TASKS):
            next_s = self._known_s(self._backlog[0])
            if next_s is None or load_s + next_s > CHUNK_S:
                break
            load_s += next_s
            chunk.append(self._backlog.popleft())
        return chunk

    def _known_s(self, task: Assignment) -> float | None:
        """How long it will take; None if nobody knows, or its time is to be taken."""
        if task.timeout is not None or self._alone.get(task.tag):
            return None
        return self._pace.estimate_s(task.tag)

    def _repeat(self, now: float) -> Flight | None:
        """Nothing waits: what takes far too long takes off once more."""
        if not self._stragglers:
            return None
        there = {task.task_id: task for aloft in self._aloft.values() for task in aloft.wanted()}
        tags = {task.tag for task in there.values()}
        task_id = self._stragglers.pick(-1, tags, self._pace, now)
        if task_id is None:
            return None
        self._stragglers.ended(task_id)
        if task_id not in there or task_id in self._suspected:
            return None
        self._doubled.add(task_id)
        return self._launch([there[task_id]], [], now, again=True)

    def _flies_on(self, task_id: str) -> bool:
        """Whether a task that took off twice has another chance still."""
        if task_id not in self._doubled:
            return False
        self._doubled.discard(task_id)
        waits = any(task.task_id == task_id for task, _ in self._lacking)
        return waits or task_id in self.wanted()

    def _land_twice(self, task_id: str) -> None:
        """A task that took off twice has ended: nothing is wanted of its other flight."""
        self._doubled.discard(task_id)
        self._lacking = deque(one for one in self._lacking if one[0].task_id != task_id)
        for number, aloft in self._aloft.items():
            if any(task.task_id == task_id for task in aloft.wanted()):
                aloft.gone.add(task_id)
                if not aloft.wanted():
                    self.unwanted.append(number)

    def _fall(self, suspects: list[Assignment], story: str) -> None:
        suspects = [task for task in suspects if not self._flies_on(task.task_id)]
        alone = len(suspects) == 1
        for task in suspects:
            if alone or task.task_id in self._suspected:
                self._end(_ended(task, _CRASHED, story))
            else:
                self._suspects.append(task)
            self._suspected.add(task.task_id)

    def _end(self, done: Completion) -> None:
        self._stragglers.ended(done.task_id)
        if done.task_id in self._doubled:
            self._land_twice(done.task_id)
        if done.outcome != _CRASHED:
            self._forget(done.task_id)
        self.completions.append(done)

    def _forget(self, task_id: str) -> None:
        self._suspected.discard(task_id)
        self._lacked.pop(task_id, None)
        self._cancels.pop(task_id, None)
        self._doubled.discard(task_id)


def _ended(task: Assignment, outcome: str, story: str) -> Completion:
    frame: Frame = []
    return Completion(task.task_id, task.attempt, outcome, frame, 0.0, story)

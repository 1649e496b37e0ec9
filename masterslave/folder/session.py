"""A slave's side of a shared folder: takes bundles, gives out their tasks, writes the results.

::

    tasks/*.in --rename--> *.lock-HOST-PID --> pool --exchange--> uplink
                           *.lock-HOST-PID --written over, renamed--> *.out

It answers the calls that an uplink makes of a task manager. A call that waits looks into the folder
meanwhile; while all workers are busy it does so only for orders. Results are acknowledged when they
are in this process's memory, and written when their bundle is complete, or after `flush_s`.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from masterslave.errors import ConnectionFailed
from masterslave.folder import names
from masterslave.folder.bundles import flush_s, is_overdue, orders_at_work_s
from masterslave.folder.files import Stamp
from masterslave.folder.finder import Finder
from masterslave.folder.known import KnownData
from masterslave.folder.pauses import Pause, Watch
from masterslave.folder.place import SILENT_S, Place
from masterslave.folder.seal import Refused
from masterslave.pace import HORIZON_S, Pace
from masterslave.records import (
    NO_TIME_LEFT,
    Assignment,
    Completion,
    Outcome,
    Piece,
    as_completion,
)

log = logging.getLogger(__name__)

#: Between two looks for orders, of a slave with nothing to do. Larger: the end of the job is
#: noticed later. Smaller: more operations.
_ORDERS_S = 0.5

#: A slave that has had no task for so long looks more seldom. Larger: idle slaves cost the file
#: server a dozen operations per second for longer. Smaller: a task after a pause is picked up late.
_IDLE_S = 600.0

_MASTER_S = 2.0  # between two looks whether the master lives, of a slave with nothing to do
_TROUBLE_S = 1.0  # before what could not be written is tried again


class _Bundle:
    def __init__(self, name: str, tag: str, lock: str, attempts: set[tuple[str, int]]) -> None:
        self.name = name
        self.tag = tag
        self.lock = lock
        self.pending = attempts
        self.done: list[Completion] = []
        self.since = 0.0  # when the first of those ended

    def give_back(self, key: tuple[str, int], why: str) -> None:
        """A task that was not begun ends so."""
        self.pending.discard(key)
        self.done.append(Completion(*key, Outcome.RETURNED.value, [], 0.0, why))


class _Given(NamedTuple):
    """A task that workers have."""

    tag: str
    cost_s: float  # what it is expected to take
    at: float


class Session:
    """What a slave does in a folder, for all of its links. Safe in several threads."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._cond = threading.Condition()
        self._io = threading.Lock()  # of the thread that looks into the folder
        self._head: dict[str, Any] = {}
        self._tags: frozenset[str] = frozenset()
        self._too_long: set[str] = set()
        self._room = 0
        self._turn = 0  # number of the last call that waits
        self._waiting = 0  # calls that wait at present
        self._pool: deque[Assignment] = deque()
        self._held: dict[tuple[str, int], _Given] = {}
        self._of_task: dict[tuple[str, int], _Bundle] = {}
        self._unwritten: list[_Bundle] = []
        self._notices: dict[str, Any] = {}
        self._pace = Pace()
        self._parts = 0
        self._finder = Finder(place)
        self._pause = Pause(0.01, 0.08, 0.5, _IDLE_S)
        self._orders_at = self._master_at = self._beat_at = self._retry_at = 0.0
        self._orders_watch = Watch()
        self._data = KnownData(place)
        self._data_seen: Any = None  # what the last bundle said of changes of data items
        self._orders_seen: tuple[str, int] = ("", 0)
        self._master_stamp: Stamp | None = None
        self._master_seen_at = time.monotonic()

    # --- calls of a task manager ------------------------------------------------------------

    def registerProcess(
        self,
        period_s: float | None,
        info: Sequence[Any],
        resume: int | None = None,
        held: Sequence[Sequence[Any]] = (),
    ) -> list[Any]:
        """See `TaskManager`. The process id is this slave's own affair here."""
        with self._cond:
            mine = list(self._of_task)
            self._head = {
                "who": list(self._place.me), "period_s": period_s, "info": list(info),
                "tags": self._head.get("tags"), "failure": "",
                "registration": secrets.token_hex(8),
                "held": [list(one) for one in dict.fromkeys([*map(tuple, held), *mine])],
            }  # fmt: skip
        self._master_seen_at = time.monotonic()
        self._write_head()
        return [0 if resume is None else resume, [], 1]

    def announceTags(self, process_id: int, tags: Sequence[str]) -> None:
        """See `TaskManager`."""
        self._head["tags"] = list(tags)
        self._write_head()
        with self._cond:
            self._tags = frozenset(map(names.tag_text, tags))
            self._cond.notify_all()

    def reportFailure(self, process_id: int, text: str) -> None:
        """See `TaskManager`."""
        self._head["failure"] = text
        self._write_head()

    def unregisterProcess(self, process_id: int) -> None:
        """See `TaskManager`. What was not begun goes back."""
        with self._io:
            with self._cond:
                self._pool.clear()
                bundles = dict.fromkeys([*self._of_task.values(), *self._unwritten])
                self._of_task.clear()
                self._unwritten = []
            for bundle in bundles:
                for key in list(bundle.pending):
                    bundle.give_back(key, "not begun")
                if not self._write_out(bundle):
                    raise ConnectionFailed("the last results could not be written into the folder")
        self._place.files.remove(self._place.at("slaves", self._place.owner))
        log.info("%s", self._place.files.story())

    def retrieveData(self, name: str) -> Any:
        """See `TaskManager`."""
        return self._data.read(name)

    def exchange(
        self,
        process_id: int,
        completions: Sequence[Any],
        started: Sequence[str],
        room: int,
        timeout: float,
        generation: int | None = None,
    ) -> list[Any]:
        """See `TaskManager`. Raises `ConnectionFailed` when the master has been silent for long."""
        complete = self._use([as_completion(one) for one in completions], room, timeout > 0)
        turn = self._turn
        if complete:
            with self._io:
                for bundle in complete:
                    self._write_or_keep(bundle)
        if not self._head:  # the network failed its slave, and the other thread registers it
            return [[], {"register": True}]
        deadline = time.monotonic() + timeout
        if not timeout:
            # The other thread, which waits here as a rule, may still be held up by the network.
            with self._io:
                if self._waiting:
                    self._beat(time.monotonic())
                else:
                    self._step()
        with self._cond:
            self._waiting += timeout > 0
        try:
            return self._wait(deadline, turn)
        finally:
            with self._cond:
                self._waiting -= timeout > 0

    def _wait(self, deadline: float, turn: int) -> list[Any]:
        while True:
            with self._cond:
                tasks = self._give()
                notices, self._notices = self._notices, {}
                now = time.monotonic()
                if tasks or notices or now >= deadline or turn != self._turn:
                    return [tasks, notices]
            with self._io:
                news = self._step()
            with self._cond:
                if not news and not self._notices and turn == self._turn:
                    now = time.monotonic()
                    wait_s = self._pause.next_s(now) if self._wants() else _ORDERS_S / 2
                    self._cond.wait(min(wait_s, max(0.0, deadline - now)))

    # --- tasks and results (locked) ---------------------------------------------------------

    def _use(self, ended: list[Completion], room: int, waits: bool) -> list[_Bundle]:
        """Take note of what ended; gives the bundles that are complete."""
        complete: dict[_Bundle, None] = {}
        now = time.monotonic()
        with self._cond:
            for done in ended:
                key = (done.task_id, done.attempt)
                self._held.pop(key, None)
                tag = done.task_id.rpartition("_")[0]
                if done.detail == NO_TIME_LEFT:
                    self._too_long.add(names.tag_text(tag))
                elif done.outcome in ("result", "exception"):
                    self._pace.record(tag, done.duration_s)
                bundle = self._of_task.pop(key, None)
                if bundle is None:  # of before this way was taken, or handed in twice
                    name = names.bundle_name(done.task_id, tag, done.attempt, 1)
                    bundle = _Bundle(name, tag, "", set())
                if not bundle.done:
                    bundle.since = now
                bundle.pending.discard(key)
                bundle.done.append(done)
                if not bundle.pending:
                    complete[bundle] = None
            if room >= 0:
                self._room = room
            self._turn += waits
            if ended or room >= 0:
                self._pause.reset()
                self._cond.notify_all()
        return list(complete)

    def _give(self) -> list[Assignment]:
        tasks = []
        load_s = sum(given.cost_s for given in self._held.values())
        while self._pool and self._room:
            task = self._pool[0]
            estimate_s = self._pace.estimate_s(task.tag)
            tiny = estimate_s is not None and load_s + estimate_s <= HORIZON_S * self._room
            if len(self._held) >= self._room and not tiny:
                break
            self._pool.popleft()
            cost_s = HORIZON_S if estimate_s is None else estimate_s
            self._held[task.task_id, task.attempt] = _Given(task.tag, cost_s, time.monotonic())
            load_s += cost_s
            tasks.append(task)
        return tasks

    def _take_back(self, now: float) -> list[_Bundle]:
        """Tasks that were not begun go back when all that run take far longer than usual."""
        with self._cond:
            long = all(
                is_overdue(now - given.at, self._pace.estimate_s(given.tag))
                for given in self._held.values()
            )
            if not (self._pool and self._held and long) or len(self._held) < self._room:
                return []
            back, self._pool = self._pool, deque()
            bundles: dict[_Bundle, None] = {}
            for task in back:
                key = (task.task_id, task.attempt)
                bundle = self._of_task.pop(key)
                bundle.give_back(key, "not begun, as what runs takes long")
                bundles[bundle] = None
        return list(bundles)

    def _wants(self) -> bool:
        if self._pool or not self._room or not self._tags or self._notices:
            return False
        load_s = sum(given.cost_s for given in self._held.values())
        return len(self._held) < self._room or load_s < HORIZON_S * self._room / 2

    # --- files (with the lock of files) -----------------------------------------------------

    def _write_head(self) -> None:
        try:
            self._place.write(self._head, "slaves", self._place.owner)
        except OSError as error:
            raise ConnectionFailed(f"folder {self._place.path}: {error.strerror}") from error

    def _write_or_keep(self, bundle: _Bundle) -> None:
        if not self._write_out(bundle):
            self._unwritten.append(bundle)
            self._retry_at = time.monotonic() + _TROUBLE_S

    def _write_out(self, bundle: _Bundle) -> bool:
        """Write what ended: a complete bundle's lock becomes its output. False: it cannot be now.

        A lock that is gone was freed by the master: then the results are late, and written anew.
        """
        place = self._place
        with self._cond:  # what ends from now on goes into the next file
            done, is_complete = list(bundle.done), not bundle.pending
        if not done and not is_complete:
            return True
        head = {
            "owner": place.owner,
            "done": [[d.task_id, d.attempt, d.outcome, d.duration_s, d.detail] for d in done],
        }
        frames = [d.frame for d in done]
        try:
            if bundle.lock and is_complete:
                out = f"{bundle.name}.out"
                try:
                    pieces = place.pack(out, head, frames)
                    end = os.path.join(os.path.dirname(bundle.lock), out)
                    place.files.finish(bundle.lock, end, pieces)
                    del bundle.done[: len(done)]
                    return True
                except FileNotFoundError:
                    log.info("the lock of %s was taken away, its results are late", bundle.name)
            self._parts += 1
            part = f"{bundle.name}.part{self._parts}-{place.owner}"
            self._write_part(os.path.dirname(bundle.lock), part, place.pack(part, head, frames))
        except OSError as error:
            log.error(
                "results of %s cannot be written, they are kept and it is tried again: %s",
                bundle.name, error.strerror or error, extra={"action": "folder_trouble"},
            )  # fmt: skip
            return False
        del bundle.done[: len(done)]
        return True

    def _write_part(self, directory: str, name: str, pieces: Sequence[Piece]) -> None:
        """Write it beside its lock, but the master may have removed that directory."""
        files = self._place.files
        if directory:
            try:
                files.replace(os.path.join(directory, name), pieces)
                return
            except FileNotFoundError:
                pass
        files.replace(self._place.at("tasks", name), pieces)

    def _step(self) -> bool:
        """Do what is due in the folder; whether there is anything new."""
        now, before = time.monotonic(), self._place.files.counts.total()
        if self._unwritten and now >= self._retry_at:
            again, self._unwritten = self._unwritten, []
            for bundle in again:
                self._write_or_keep(bundle)
        late = [
            b for b in dict.fromkeys(list(self._of_task.values()))
            if b.done and now - b.since > flush_s(self._pace.estimate_s(b.tag))
        ]  # fmt: skip
        for bundle in late:
            bundle.since = now
            self._write_out(bundle)
        for bundle in self._take_back(now):
            self._write_or_keep(bundle)
        try:
            self._beat(now)
            if now >= self._orders_at:
                self._orders_at = now + self._orders_pause_s()
                self._look_at_orders()
            with self._cond:
                wants = self._wants()
            if wants and self._claim(now):
                self._pause.reset()
                return True
            if wants and not self._held:
                self._look_at_master(now)
                self._place.files.in_vain += self._place.files.counts.total() - before
        except OSError as error:
            raise ConnectionFailed(f"folder {self._place.path}: {error}") from error
        return False

    def _beat(self, now: float) -> None:
        period_s = self._head["period_s"]
        if period_s is None or now < self._beat_at:
            return
        self._beat_at = now + period_s
        with self._cond:
            bundles = dict.fromkeys([*self._of_task.values(), *self._unwritten])
        for bundle in bundles:
            if bundle.lock:
                self._place.files.touch(bundle.lock)  # the master may have taken it away
        if not self._place.files.touch(self._place.at("slaves", self._place.owner)):
            self._write_head()  # somebody has removed it

    def _orders_pause_s(self) -> float:
        with self._cond:
            if not self._held:
                return _ORDERS_S
            estimates = [self._pace.estimate_s(given.tag) for given in self._held.values()]
        return orders_at_work_s(min(estimate or 0.0 for estimate in estimates))

    def _look_at_orders(self) -> None:
        stamp = self._place.files.look(self._place.at("orders"))
        now = time.monotonic()
        if stamp is None or not self._orders_watch.must_list(stamp, now):
            return
        try:
            orders = self._place.read("orders")[0]
        except FileNotFoundError:
            return
        except Refused as error:
            self._place.refuse(error, "orders")
            return
        self._orders_watch.listed(stamp, now)
        changed = self._data.changed()
        run, seen = self._orders_seen
        if run != orders["run"]:
            seen = 0
        with self._cond:
            for seq, owner, notices in orders["to"]:
                if seq > seen and owner == self._place.owner:
                    for name, values in notices.items():
                        if not isinstance(values, list):
                            self._notices[name] = values
                            continue
                        kind = "stop" if name == "outdated" else name
                        items = [v[0] for v in values] if name == "outdated" else values
                        if name == "forget":  # but what was read again since then
                            items = [one for one in values if one not in self._data]
                        if items:
                            self._notices.setdefault(kind, []).extend(items)
            if changed:
                self._notices.setdefault("forget", []).extend(changed)
            self._orders_seen = (orders["run"], orders["seq"])
            if orders["end"]:
                self._notices["terminate"] = True
            stopped = set(self._notices.get("stop", ()))
            if stopped:
                self._let_go(stopped)

    def _let_go(self, task_ids: set[str]) -> None:
        """(Locked.) Nobody wants these tasks any more; they bring no completion."""
        self._pool = deque(task for task in self._pool if task.task_id not in task_ids)
        for key in [key for key in self._of_task if key[0] in task_ids]:
            bundle = self._of_task.pop(key)
            self._held.pop(key, None)
            bundle.give_back(key, "cancelled")
            if not bundle.pending:
                self._unwritten.append(bundle)

    def _look_at_master(self, now: float) -> None:
        if now < self._master_at:
            return
        self._master_at = now + _MASTER_S
        stamp = self._place.files.look(self._place.at("master"))
        if stamp is not None and stamp != self._master_stamp:
            self._master_stamp, self._master_seen_at = stamp, now
        elif now - self._master_seen_at > SILENT_S:
            raise ConnectionFailed(
                f"the master in folder {self._place.path} has been silent for "
                f"{now - self._master_seen_at:.0f} s"
            )

    def _claim(self, now: float) -> bool:
        """Take one bundle; false: there is none."""
        claim = self._finder.claim(now, self._tags - self._too_long)
        return claim is not None and self._open(*claim)

    def _open(self, name: str, where: str, lock: str) -> bool:
        try:
            head, frames = self._place.read("tasks", where, lock, name=f"{name}.in")
            tasks = [
                Assignment(task_id, tag, attempt, frame, timeout)
                for (task_id, tag, attempt, timeout), frame in zip(
                    head["tasks"], frames, strict=True
                )
            ]
        except (Refused, ValueError, KeyError, TypeError) as error:
            self._place.refuse(error, "tasks", where, lock)
            return True
        except FileNotFoundError:
            return True  # the master has freed it at once
        forget: list[str] = []
        if head["data"] != self._data_seen:
            forget, self._data_seen = self._data.changed(), head["data"]
        attempts = {(task.task_id, task.attempt) for task in tasks}
        bundle = _Bundle(name, tasks[0].tag, self._place.at("tasks", where, lock), attempts)
        with self._cond:
            estimate_s = head["estimate_s"]
            if estimate_s is not None and self._pace.estimate_s(tasks[0].tag) is None:
                self._pace.record(tasks[0].tag, estimate_s)
            if forget:  # told with, and heeded before, the first of these tasks
                self._notices.setdefault("forget", []).extend(forget)
            self._of_task.update(dict.fromkeys(attempts, bundle))
            self._pool.extend(tasks)
        return True

"""The master's side of a shared folder: two threads between the task manager and the files.

::

    task manager --shelf's exchange--> publisher --> tasks/*.in
    task manager <--a slave's exchange-- collector <-- tasks/*.lock-*, *.part*, *.out, slaves/*

What lies there changes in both threads: `_bundles` and `_unwritten` with the lock only. The module
is longer than others as nearly all of it is about these.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

from masterslave.errors import JournalError
from masterslave.folder import names
from masterslave.folder.absence import Absence, Vanished
from masterslave.folder.bundles import LOOK_S, MOST, split
from masterslave.folder.enrolled import Crew, Enrolled
from masterslave.folder.holders import Holders
from masterslave.folder.items import Items
from masterslave.folder.late import Late
from masterslave.folder.measure import Measure
from masterslave.folder.orders import Orders, Status
from masterslave.folder.passing import PassingManager
from masterslave.folder.pauses import Pause, Watch
from masterslave.folder.place import BEAT_S, Place
from masterslave.folder.seal import Refused
from masterslave.folder.shelves import Found, Shelves
from masterslave.pace import Pace
from masterslave.records import Assignment, Completion, Outcome, ProcessInfo, as_completion

log = logging.getLogger(__name__)

#: The first pause between two looks for locks and outputs, after there was something new; it grows
#: to `bundles.LOOK_S`. Larger: results of short tasks come later. Smaller: more operations.
_FIRST_LOOK_S = 0.01

#: Between two looks for slaves that come or go, from the first to the last of these pauses; and
#: while those that come find tasks. Larger: slaves are known later. Smaller: more operations.
_SLAVES_FIRST_S, _SLAVES_S, _SLAVES_CALM_S = 0.05, 1.0, 5.0

_WAIT_S = 0.5  # longest sleep of the publisher while enough is laid out
_STATUS_S = 5.0
_TROUBLE_S = 1.0  # before what could not be written is tried again


class Clerk:
    """Serves one folder until `stop`."""

    def __init__(
        self, place: Place, manager: PassingManager, *,
        alone: bool, straggler_fraction: float, gone_s: float,
    ) -> None:  # fmt: skip
        """`alone`: slaves come by the folder only, so tasks may be laid out before any is there.
        `straggler_fraction`: when no more of a tag's tasks are left, slow ones are run twice.
        `gone_s`: how long the folder may be missing before the job is given up.
        """
        self._absence = Absence(place, gone_s)
        self._cancelled: set[str] = set()  # tasks that nobody wants, in bundles that lie there
        self._place = place
        self._manager = manager
        self._alone = alone
        self._lock = threading.Lock()
        self._moved = threading.Event()  # something was taken from the shelf
        self._stopping = threading.Event()
        self._bundles: dict[str, dict[tuple[str, int], Assignment]] = {}
        self._unwritten: set[str] = set()  # of these, those whose files are being written
        self._owners = Holders()
        self._vanished = Vanished()
        self._slaves = Crew()
        self._pace = Pace()
        self._measure = Measure(self._pace, self._slaves)
        self._late = Late(straggler_fraction, self._pace)
        self._slaves_watch = Watch()
        self._slaves_at = 0.0  # when to look for those that come or go, even if all is calm
        self._items = Items(place, manager)
        manager.open_shelf(f"folder {place.path}")
        self._shelves = Shelves(place)
        place.files.remove(place.at("stop"))
        self._orders, self._status = Orders(place), Status(place)
        self._items.sync()
        self._look_at_slaves()
        self._collect(time.monotonic())
        self._publisher = threading.Thread(target=self._publish, name="folder-out", daemon=True)
        self._collector = threading.Thread(target=self._run, name="folder-in", daemon=True)

    def start(self) -> None:
        """Start both threads."""
        self._publisher.start()
        self._collector.start()

    def announce_end(self) -> None:
        """Tell all slaves, those to come as well, that the job is over."""
        try:
            self._place.write(self._place.owner, "stop")
            self._orders.end()
        except OSError as error:
            log.error("the end of the job cannot be written into the folder: %s", error)

    def stop(self) -> None:
        """End both threads and remove what nobody needs. Blocks."""
        self._stopping.set()
        self._moved.set()
        for thread in (self._publisher, self._collector):
            if thread.ident is not None:
                thread.join()
        try:
            self._shelves.clear()
            self._place.clear("aside")
            self._place.clear("slaves")
        except OSError as error:
            log.error("folder %s is not tidied up: %s", self._place.path, error.strerror or error)
        log.info("%s", self._place.files.story())

    # --- laying out -------------------------------------------------------------------------

    def _publish(self) -> None:
        try:
            self._publish_all()
        except Exception:
            log.exception("nothing more can be laid out")
            self._manager.give_up(f"folder {self._place.path}: nothing more can be laid out")

    def _publish_all(self) -> None:
        while not self._stopping.is_set():
            room = self._open_lines()
            if not room:
                self._moved.wait(_WAIT_S)
                self._moved.clear()
                continue
            try:
                shelf = self._manager.shelf
                tasks, notices = self._manager.exchange(shelf, (), (), room, _WAIT_S)
            except JournalError as error:
                log.info("nothing is laid out while the journal cannot be written: %s", error)
                self._stopping.wait(_TROUBLE_S)
                continue
            if notices.get("terminate"):
                return
            self._withdraw(notices.get("stop", ()))
            waiting = self._waiting()
            priorities = self._manager.priorities(task.task_id for task in tasks)

            def size_of(tag: str, here: int, waiting: dict[str, int] = waiting) -> int:
                return self._measure.bundle_size(tag, here + waiting.get(tag, 0))

            for priority, bundle in split(tasks, priorities, size_of):
                self._lay_out(bundle, priority)

    def _waiting(self) -> dict[str, int]:
        return self._manager.numberOfTasks()[0]  # tag -> tasks that were not laid out

    def _open_lines(self) -> int:
        """Have the shelf take tags of which too little is laid out; gives its room, 0: none."""
        tags = self._slaves.tags()
        if not tags and self._alone and not self._slaves:
            tags = set(self._waiting())
            if not tags:
                self._stopping.wait(0.02)
                return 0
        if len(self._bundles) - len(self._owners) >= MOST:
            self._manager.lay_out(())
            return 0
        there = Counter(self._manager.laid_out())
        missing = self._measure.missing(tags, there)
        self._manager.lay_out(missing)
        waiting = self._waiting()  # for a tag of which none wait there is room when some come
        asked = [count for tag, count in missing.items() if tag in waiting]
        return sum(there.values()) + max(sum(asked), *missing.values()) if missing else 0

    def _lay_out(self, tasks: list[Assignment], priority: int = 0) -> None:
        first = tasks[0]
        bundle = names.bundle_name(first.task_id, first.tag, first.attempt, len(tasks), priority)
        with self._lock:
            self._bundles[bundle] = {(task.task_id, task.attempt): task for task in tasks}
            self._unwritten.add(bundle)
        try:
            self._write(bundle, tasks, priority)
        finally:
            with self._lock:
                self._unwritten.discard(bundle)

    def _write(self, bundle: str, tasks: list[Assignment], priority: int) -> None:
        first = tasks[0]
        head: dict[str, Any] = {
            "estimate_s": self._pace.estimate_s(first.tag),
            "tasks": [[t.task_id, t.tag, t.attempt, t.timeout] for t in tasks],
        }
        while not self._stopping.is_set():
            try:
                head["data"] = [self._place.owner, self._items.sync()]
                self._shelves.write(bundle, priority, head, (task.frame for task in tasks))
                return
            except OSError as error:
                log.error(
                    "%s cannot be written, it is tried again: %s", bundle, error.strerror or error,
                    extra={"action": "folder_trouble"},
                )  # fmt: skip
                self._stopping.wait(_TROUBLE_S)

    def _withdraw(self, task_ids: Iterable[str]) -> None:
        """What lies there and was cancelled is taken away, or else stopped when a slave has it."""
        self._cancelled.update(task_ids)
        if not self._cancelled:
            return
        with self._lock:
            lying = [one for one in self._bundles.items() if one[0] not in self._owners]
        for bundle, tasks in lying:
            unwanted = {task_id for task_id, _ in list(tasks)}
            try:
                gone = unwanted <= self._cancelled and self._shelves.take_back(bundle)
            except OSError as error:  # it is tried again with the next one
                log.info("%s cannot be taken back: %s", bundle, error.strerror or error)
                continue
            if gone:
                self._cancelled -= unwanted
                with self._lock:
                    self._bundles.pop(bundle, None)

    # --- taking in --------------------------------------------------------------------------

    def _run(self) -> None:
        pause, slaves_pause = Pause(_FIRST_LOOK_S, LOOK_S), Pause(_SLAVES_FIRST_S, _SLAVES_S)
        beat_at = slaves_at = status_at = 0.0
        lively = False  # the last look showed something new: the next one need not ask whether
        files, place = self._place.files, self._place
        while not self._stopping.is_set():
            now = time.monotonic()
            try:
                if now >= beat_at:
                    beat_at = now + BEAT_S
                    if self._absence.goes_on(files.touch(place.at("master")), now):
                        self._manager.give_up(self._absence.story)
                        return
                if now >= slaves_at:
                    if self._look_at_slaves() or self._orders.has_ended:
                        slaves_pause.reset()
                    slaves_at = now + min(
                        slaves_pause.next_s(now), self._slaves.shortest_period_s() / 2
                    )
                    self._items.sync()
                    self._repeat_late(now)
                self._tell()
                if now >= status_at:
                    status_at = now + _STATUS_S
                    self._status.write(self._manager.status())
                look = bool(self._bundles or self._owners or self._shelves.are_many())
                if look and not lively:
                    look = self._shelves.look(now)
                look = self._vanished.must_look(now) or look
                lively = look and self._collect(now)
                if lively:
                    pause.reset()
                    self._moved.set()
                waiting = self._waiting()
                least_s = self._measure.pause_s(self._bundles, self._owners, waiting, now)
                self._stopping.wait(max(pause.next_s(now), least_s))
                continue
            except JournalError as error:
                log.info("outputs stay in the folder, the journal cannot be written: %s", error)
            except OSError as error:
                log.error("the folder cannot be used at present: %s", error)
            except Exception:
                log.exception("the folder's clerk has failed, and goes on")
            self._stopping.wait(_TROUBLE_S)

    def _collect(self, now: float) -> bool:
        """List the tasks and act upon what is there; whether anything was new."""
        news = False
        seen = set()
        ended = []
        for found in self._shelves.collect(now):
            entry = found.entry
            if entry.kind in ("out", "part"):
                news = True
                if self._take_in(found):
                    ended.append(found)
            else:
                seen.add(entry.bundle)
                if entry.kind == "lock" and self._owners.owner(entry.bundle) != entry.owner:
                    news = self._taken(found) or news
        for found in ended:
            self._place.files.remove(self._shelves.at(found.where, found.name))
        with self._lock:  # a large one takes its time
            written = [bundle for bundle in self._bundles if bundle not in self._unwritten]
        for bundle in self._vanished.look(written, seen, now):
            self._lost(bundle, "its file was refused by its slave, or removed")
        return news

    def _taken(self, found: Found) -> bool:
        """A slave has a bundle."""
        entry = found.entry
        if entry.owner not in self._slaves:  # it has just come
            self._enrol(entry.owner)
        else:
            self._heard(entry.owner)
        slave, tasks = self._slaves.get(entry.owner), self._bundles.get(entry.bundle)
        if slave is None or tasks is None:
            return False
        lock = self._shelves.at(found.where, found.name)
        now = time.monotonic()
        self._owners.take(entry.bundle, entry.owner, lock, now)
        for task in list(tasks.values())[:1]:
            self._late.taken(entry.bundle, task.tag, len(tasks), slave.workers, now)
        self._manager.pass_on(slave.id, list(tasks))
        unwanted = [task_id for task_id, _ in tasks if task_id in self._cancelled]
        if unwanted:
            self._orders.tell(entry.owner, {"stop": unwanted})
            self._cancelled.difference_update(unwanted)
        return True

    def _repeat_late(self, now: float) -> None:
        """Lay out a second time what takes long, when little is left and a worker is idle."""
        waiting, running, _ = self._manager.numberOfTasks()
        idle = self._measure.idle_workers(self._bundles, self._owners)
        late = self._late.pick(now, self._bundles, waiting, running) if idle else ()
        for task_id in islice(late, idle):
            again = self._manager.repeat(task_id)
            if again is not None:
                log.info("%s takes long and is laid out once more", task_id)
                self._lay_out([again], self._manager.priorities([task_id]).get(task_id, 0))

    def _take_in(self, found: Found) -> bool:
        """Hand in what a file brings; whether it is on record, so that the file may go."""
        where, name, entry = found
        try:
            head, frames = self._place.read("tasks", where, name)
            done = [
                as_completion([*fields[:3], frame, *fields[3:]])
                for fields, frame in zip(head["done"], frames, strict=True)
            ]
            owner = head["owner"]
        except FileNotFoundError:
            return False
        except (Refused, ValueError, KeyError, TypeError) as error:
            self._place.refuse(error, "tasks", where, name)
            if entry.kind == "out":
                self._lost(entry.bundle, f"its output {name} was refused: it {error}")
            return False
        slave = self._slaves.get(owner)
        # One that has come and gone while nobody looked has worked for the shelf.
        holder = self._manager.shelf if slave is None else slave.id
        tasks = self._bundles.get(entry.bundle, {})
        if slave is not None and entry.bundle not in self._owners:
            self._manager.pass_on(holder, list(tasks))
        self._owners.heard(entry.bundle, time.monotonic())
        self._orders.tell(owner, self._hand_in(holder, done))
        for one in done:
            task = tasks.pop((one.task_id, one.attempt), None)
            if one.outcome != Outcome.RETURNED.value and task is not None:
                self._late.ended(task.tag)
            if task is not None and one.outcome == Outcome.RESULT.value:
                self._pace.record(task.tag, one.duration_s)
        if entry.kind == "out":
            self._lost(entry.bundle, f"its output {name} did not hold its end")
        return True

    def _lost(self, bundle: str, story: str) -> None:
        """A bundle has come to its end; what is left of it is run again, at its cost."""
        with self._lock:
            tasks = self._bundles.pop(bundle, {})
        slave = self._slaves.get(self._owners.release(bundle))
        self._late.forget(bundle)
        self._vanished.forget(bundle)
        shelf, lying = self._manager.shelf, self._manager.on_shelf(tasks)
        for holder in {shelf, shelf if slave is None else slave.id}:
            held = [key for key in tasks if (key in lying) == (holder == shelf)]
            self._end_as(Outcome.CRASHED, holder, held, story)

    def _end_as(
        self, outcome: Outcome, holder: int, keys: Iterable[tuple[str, int]], why: str
    ) -> None:
        self._hand_in(holder, [Completion(*key, outcome.value, [], 0.0, why) for key in keys])

    def _hand_in(self, holder: int, done: list[Completion]) -> dict[str, Any]:
        """What has ended at a slave, or on the shelf; gives what that slave is to be told."""
        notices: dict[str, Any] = {}
        if done:
            _, notices = self._manager.exchange(holder, done, (), 0)
        if holder != self._manager.shelf:
            return notices
        self._withdraw(notices.get("stop", ()))
        return {}

    # --- slaves -----------------------------------------------------------------------------

    def _look_at_slaves(self) -> bool:
        """Whether any came or went."""
        now, news = time.monotonic(), False
        # Seen before the directory: one that has left in order has removed its file first.
        ended = [owner for owner, slave in self._slaves.items() if slave.who.has_ended()]
        calm = self._measure.is_calm(self._bundles, self._owners, self._waiting())
        if ended or now >= self._slaves_at or not calm:
            self._slaves_at = now + _SLAVES_CALM_S
            news = self._look_who_is_there(now)
        for owner in ended:
            if owner in self._slaves:
                self._collect(now)
                self._manager.lostProcess(self._slaves.pop(owner).id, "its process has ended")
                self._place.files.remove(self._place.at("slaves", owner))
                self._free(owner)
                news = True
        for owner, slave in list(self._slaves.items()):
            if slave.period_s is not None and now >= slave.look_at:
                slave.look_at = now + slave.period_s / 2
                self._look_for_signs(owner, slave, now)
        return news

    def _look_who_is_there(self, now: float) -> bool:
        path = self._place.at("slaves")
        if not self._slaves_watch.must_list(self._place.files.look(path), now):
            return False
        listing = self._place.files.list(path)
        self._slaves_watch.listed(listing.stamp, now)
        for owner in listing.names:  # all: a new file may have the inode of the old one
            self._enrol(owner)
        gone = [one for one in self._slaves if one not in listing.names]
        if gone:
            self._collect(now)  # their last results first
        for owner in gone:
            self._manager.unregisterProcess(self._slaves.pop(owner).id)
            self._free(owner)
        return True

    def _look_for_signs(self, owner: str, slave: Enrolled, now: float) -> None:
        """Whether a slave has renewed its file, and its locks."""
        file = self._place.files.look(self._place.at("slaves", owner))
        if file is not None and file.mtime_ns != slave.mtime_ns:
            slave.mtime_ns = file.mtime_ns
            self._heard(owner)
        elif not slave.is_freed and slave.id not in self._manager.activeProcesses():
            slave.is_freed = True  # it was silent for too long
            self._free(owner)
            return
        locks = self._owners.locks_of(owner)
        stale = slave.stale_lock(self._place, locks, now)
        if stale and self._place.files.remove(stale):
            log.warning("%s is freed: its slave lives and does not renew it", stale)
            self._owners.release(locks[stale])
            self._give_back(locks[stale], slave.id, "its lock was not renewed")

    def _heard(self, owner: str) -> None:
        slave = self._slaves[owner]
        if slave.id in self._manager.activeProcesses():
            self._manager.ping(slave.id)
        else:  # it was taken for dead, and is not
            self._enrol(owner, again=True)

    def _enrol(self, owner: str, *, again: bool = False) -> None:
        slave = Enrolled.read(self._place, owner)
        if slave is None:
            return
        head = slave.head
        known = self._slaves.get(owner)
        if known is not None and known.registration == slave.registration and not again:
            slave.id, slave.mtime_ns, slave.told = known.id, known.mtime_ns, known.told
        else:
            info = ProcessInfo(*head["info"])
            resume = self._manager.find_process(info.token)
            held = [tuple(one) for one in head["held"]] + self._locked_by(owner)
            slave.id, obsolete, _ = self._manager.registerProcess(
                slave.period_s, info, resume, dict.fromkeys(held)
            )
            self._manager.announceSlave(slave.id)
            self._manager.exchange(slave.id, (), (), 0)
            taken = self._manager.pass_on(slave.id, map(tuple, obsolete))  # locks not seen before
            outdated = [list(one) for one in obsolete if tuple(one) not in taken]
            if outdated:
                self._orders.tell(owner, {"outdated": outdated})
        self._slaves[owner] = slave
        if slave.tags is not None and (known is None or known.tags is None or again):
            self._manager.announceTags(slave.id, slave.tags)
        if head["failure"] and head["failure"] != slave.told:
            slave.told = head["failure"]
            self._manager.reportFailure(slave.id, head["failure"])
        self._moved.set()

    def _locked_by(self, owner: str) -> list[tuple[str, int]]:
        """What a slave has in its hands, by its locks."""
        bundles = self._owners.of(owner)
        held = [key for bundle in bundles for key in self._bundles.get(bundle, ())]
        for lock in self._shelves.locks_of(owner):
            bundle = lock.entry.bundle
            tasks = self._bundles.get(bundle)
            if tasks is None:
                tasks = self._shelves.tasks_in(lock)
                if tasks is None:  # it is being written over; its end comes soon
                    continue
                with self._lock:
                    self._bundles[bundle] = tasks
                path = self._shelves.at(lock.where, lock.name)
                self._owners.take(bundle, owner, path, time.monotonic())
            held += tasks
        return held

    def _free(self, owner: str) -> None:
        """A slave has gone: its locks go as well, and what it had not been seen to take."""
        bundles = self._owners.of(owner)
        for where, name, entry in self._shelves.locks_of(owner):
            self._place.files.remove(self._shelves.at(where, name))
            bundles.append(entry.bundle)
        for bundle in bundles:
            self._owners.release(bundle)
            self._give_back(bundle, self._manager.shelf, "its slave was lost")

    def _give_back(self, bundle: str, holder: int, why: str) -> None:
        """What its holder still has of a bundle goes back in line."""
        self._late.forget(bundle)
        with self._lock:
            keys = set(self._bundles.pop(bundle, {}))
        if holder == self._manager.shelf:
            keys = self._manager.on_shelf(keys)
        self._end_as(Outcome.RETURNED, holder, keys, why)

    # --- telling ----------------------------------------------------------------------------

    def _tell(self) -> None:
        for owner, slave in list(self._slaves.items()):
            self._orders.tell(owner, self._manager.notices_for(slave.id))
        self._withdraw(self._manager.notices_for(self._manager.shelf).get("stop", ()))

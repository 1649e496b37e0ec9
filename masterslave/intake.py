"""Requests on their way into the queue: with or without a journal, one by one or in one pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from masterslave import ledger
from masterslave.errors import JournalError
from masterslave.ledger import Ledger
from masterslave.outbox import Outbox
from masterslave.queue import TaskQueue
from masterslave.records import Frame, TaskOptions
from masterslave.states import State
from masterslave.waiters import Monitor, ResultWaiters, Waiters

log = logging.getLogger(__name__)


class Intake:
    """Puts requests into the queue, and has the slaves that wait for them woken."""

    def __init__(
        self,
        lock: Monitor,
        queue: TaskQueue,
        ledger: Ledger | None,
        outbox: Outbox,
        slaves_wait: Waiters,
        clients_wait: ResultWaiters,
    ) -> None:
        self._lock = lock
        self._queue = queue
        self._ledger = ledger
        self._outbox = outbox
        self._slaves_wait = slaves_wait
        self._clients_wait = clients_wait

    def add(
        self,
        process_id: int,
        tag: str,
        frames: Sequence[Frame],
        options: TaskOptions,
        names: Sequence[bytes],
    ) -> list[str]:
        """(Locked.) Put tasks into the queue, and have slaves woken for them; gives their ids.

        `names`: their identities, where those are known already.
        """
        books = self._ledger
        together: list[str] | None
        if books is None and len(frames) == 1 and self._slaves_wait:  # it is handed out at once
            together = [self._queue.request(process_id, tag, frames[0], options).id]
        elif books is None:
            together = self._queue.request_all(process_id, tag, frames, options)
        else:
            together = books.request_all(process_id, tag, frames, options)
        if together is not None:
            for _ in together if self._slaves_wait else ():
                if not self._slaves_wait:
                    break
                self._slaves_wait.wake(tag)
            if self._outbox.is_read:
                for task_id in together:
                    self._outbox.note("task_requested", task_id, tag)
            return together
        assert books is not None
        ids: list[str] = []
        names = names or ledger.names(tag, frames, options)
        for index, frame in enumerate(frames):
            task = books.request(process_id, tag, frame, options, names[index])
            ids.append(task.id)
            if task.state is State.WAITING:
                if self._slaves_wait:
                    self._slaves_wait.wake(tag)
            elif task.state is not State.RUNNING:
                self._clients_wait.notify(process_id)
            if self._outbox.is_read:
                self._outbox.note("task_requested", task.id, tag)
        return ids

    def sync(self, books: Ledger) -> None:
        """(Not locked.) Have the journal hold the requests.

        A failure holds up the next ones, see `Room`.

        They stand in the queue already, so an error here would have them asked for twice.
        """
        try:
            self.record(books)
        except JournalError as error:
            log.debug("requests are not on record yet: %s", error)

    def record(self, books: Ledger) -> None:
        """(Not locked.) Have the journal hold the requests. Raises `JournalError`."""
        books.sync()
        if books.has_heavy():
            with self._lock:
                books.rest()

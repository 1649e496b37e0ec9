"""``task_manager replay``: one task of a journal again, in this process and in the foreground.

The slave's code is loaded as a worker loads it, see `worker.load`; where a worker would begin to
take tasks, the one task is run.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from masterslave import slavecode, worker
from masterslave.entries import Requested
from masterslave.errors import (
    DataNotFound,
    JournalDamaged,
    JournalError,
    MasterSlaveError,
    SlaveError,
)
from masterslave.keyfile import load_key
from masterslave.payload import describe
from masterslave.records import CALL_TAG, Frame
from masterslave.settings import Settings
from masterslave.stores.reader import JournalReader, reading
from masterslave.workerprocess import worker_environment

#: Of a result's repr.
_RESULT_CHARACTERS = 2000


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Run the task; gives 0 when the handler returned, 1 when it raised."""
    if options.pdb and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise MasterSlaveError("replay --pdb needs a terminal; run it in one, or leave --pdb out")
    key = load_key(settings.key_file)
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(reading(options.file, key))
        with _explained(journal):
            request = journal.request(options.task_id)
            record = _slave_code(journal)
            label = journal.note("label")
        rerun = _Rerun(label, record, request, journal, stack.close, debug=options.pdb)
        try:
            problem = worker.load(rerun, record)
        except SystemExit:  # so `worker.serve` ends
            problem = ""
    if problem:
        print(problem, file=sys.stderr)
        raise SlaveError(worker.does_not_load(record, problem))
    return rerun.status


@contextlib.contextmanager
def _explained(journal: JournalReader) -> Iterator[None]:
    try:
        yield
    except JournalDamaged as error:
        raise JournalDamaged(
            f"journal {journal.path} is damaged: {error}, so this cannot be run"
        ) from error


def _slave_code(journal: JournalReader) -> slavecode.Record:
    for name in (slavecode.DATA_NAME, slavecode.DEFAULT_NAME):
        with contextlib.suppress(DataNotFound):
            record: slavecode.Record = journal.item(name)
            return record
    raise JournalError(
        f"journal {journal.path}: keeps no slave code, because its master kept none; "
        "use runJob, slave_script= or slave_module= in the master"
    )


class _Rerun(worker.Role):
    """Runs one task where a worker would take many."""

    def __init__(
        self,
        label: str,
        record: slavecode.Record,
        request: Requested,
        journal: JournalReader,
        release: Callable[[], None],
        *,
        debug: bool,
    ) -> None:
        super().__init__(label, record)
        self.status = 1
        self._request = request
        self._journal = journal
        self._release = release
        self._debug = debug

    def prepare(self) -> None:
        """See `Role.prepare`."""
        os.environ.update(worker_environment(dict(os.environ)))
        faulthandler.enable()

    def loop(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        watchdog_period: float | None,
        termination_test: Callable[[], bool],
    ) -> None:
        """See `Role.loop`."""
        self.started = True
        tag = self._request.tag
        if tag == CALL_TAG:
            with _explained(self._journal):
                function, args, kwargs = self.calls.prepare(self._request.frame)
            self._release()
            self.status = self._call(functools.partial(function, **kwargs), args)
            return
        if tag not in handlers:
            known = ", ".join(sorted(handlers))
            raise SlaveError(f"the slave's code handles no tag {tag!r}; it handles {known}")
        with _explained(self._journal):
            values = self.parameters(self._request.frame)
        self._release()  # debugging may take long, and a master may want the journal meanwhile
        self.status = self._call(handlers[tag], values)

    def fetch(self, name: str) -> Frame:
        """See `Role.fetch`."""
        try:
            frame: Frame = self._journal.item(name)
        except DataNotFound as error:
            raise DataNotFound(
                f"the global state value {name} is not in the journal: it was deleted"
            ) from error
        return frame

    def _call(self, handler: Callable[..., Any], values: Sequence[Any]) -> int:
        try:
            result = handler(*values)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit is the task's, too
            trace: TracebackType | None = error.__traceback__
            if trace is not None and trace.tb_next is not None:
                trace = trace.tb_next  # begin with the handler
            sys.stdout.flush()
            traceback.print_exception(type(error), error, trace)
            if self._debug:
                import pdb  # takes time to load

                pdb.post_mortem(trace)
            return 1
        task_id = f"{self._request.tag}_{self._request.number}"
        print(f"{task_id}: {describe(result, _RESULT_CHARACTERS)}", flush=True)
        return 0

"""Futures of Dask that end in every case.

`ClientExecutor` of Dask hands a result on in a coroutine that knows two ends: a value, and a status
that says otherwise. When the cluster is restarted, or its scheduler is lost, while a result is on
its way to the client, that coroutine raises instead, the error goes to Dask's log, and the future
never ends (seen in Dask 2026.8). Here its fate is the future's, whatever it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any


def submit(pool: Any, function: Callable[..., Any], *args: Any) -> Future[Any]:
    """As `pool.submit`, of Dask's `ClientExecutor`.

    A submission that Dask has cancelled ends with a `CancelledError` of Dask's own.
    """
    # pure: else Dask computes a digest of all arguments, and takes equal calls for one call.
    submitted: Future[Any] = type(pool).submit(_Wrapping(pool), function, *args, pure=False)
    return submitted


class _Wrapping:
    """The pool, but for how it makes a `concurrent.futures.Future` of one of Dask's.

    A Dask that does not call this any more makes them in its own way.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def _wrap_future(self, theirs: Any) -> Future[Any]:
        ours: Future[Any] = Future()

        def pass_on(done: Future[Any]) -> None:
            if done.cancelled() and theirs.status != "cancelled":
                theirs.cancel()

        ours.add_done_callback(pass_on)
        client = self._pool._client
        client.loop.add_callback(_deliver, client, theirs, ours)
        return ours


async def _deliver(client: Any, theirs: Any, ours: Future[Any]) -> None:
    with contextlib.suppress(InvalidStateError):  # it has been cancelled by us
        try:
            ours.set_result(await client.gather(theirs, asynchronous=True))
        except BaseException as error:  # whatever Dask or a worker raises, or its loop at the end
            ours.set_exception(error)

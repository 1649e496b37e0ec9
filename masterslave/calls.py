"""Calls of functions, in a worker: what is behind the tag that every slave handles.

A function is fetched under its content's name, prepared once, and kept for further calls. It finds
the client's working directory, and what the client can import as far as that is here, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from masterslave.errors import DataNotFound, FunctionError, InitializerFailed, PayloadError
from masterslave.functions import MANY, item_name, read_call
from masterslave.payload import Codec, Memory
from masterslave.records import Frame, frame_bytes, getMachineInfo

#: Functions that a worker keeps, so many and of this size as they were sent. Larger: memory.
#: Smaller: functions are fetched from the supervisor and unpickled again.
_KEPT, _KEPT_BYTES = 256, 1 << 28


class Prepared(NamedTuple):
    """A call that can be made: ``function(*args, **kwargs)``."""

    function: Callable[..., Any]
    args: Any
    kwargs: Mapping[str, Any]


class _Kept(NamedTuple):
    function: Callable[..., Any]
    head: dict[str, Any]
    size: int


class Calls:
    """Prepares calls in one worker, one after the other."""

    def __init__(self, fetch: Callable[[str], Frame], memory: Memory | None = None) -> None:
        """`fetch` gives a data item; `memory` is for large buffers of results."""
        self._fetch = fetch
        self.codec = Codec(memory=memory)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one used last is last
        self._size = 0
        self._initialized: dict[str, str] = {}  # initializers that ran -> what came in the way
        self._away_from: str | None = None  # the directory to go back to

    def prepare(self, frame: Frame) -> Prepared:
        """Make a call ready. `leave` must follow, also when this raises.

        Raises `FunctionError` that says what is missing here, and how that can be helped.
        """
        kind, digest, arguments = read_call(frame)
        kept = self._function(item_name(digest))
        head = kept.head
        self._enter(head)
        if head["initializer"]:
            self._initialize(head["initializer"])
        try:
            values = self.codec.decode(arguments, owned=True)
        except PayloadError as error:
            raise _explained("its arguments", head, error) from error
        if kind == MANY:
            return Prepared(call_each, (kept.function, values), {})
        return Prepared(kept.function, *values)

    def leave(self) -> None:
        """A call is over: be where this worker was before."""
        before, self._away_from = self._away_from, None
        if before is not None:
            with contextlib.suppress(OSError):  # deleted meanwhile
                os.chdir(before)

    def forget(self, names: Iterable[str]) -> None:
        """The task manager keeps these items no longer."""
        for name in names:
            kept = self._kept.pop(name, None)
            if kept is not None:
                self._size -= kept.size

    # --- inside -----------------------------------------------------------------------------

    def _function(self, name: str) -> _Kept:
        kept = self._kept.get(name)
        if kept is not None:
            self._kept.move_to_end(name)
            return kept
        try:
            first, *frame = self._fetch(name)
        except DataNotFound:
            raise FunctionError(
                "the task manager keeps this call's function no longer: its client has left"
            ) from None
        head: dict[str, Any] = json.loads(bytes(first))
        _take_over_path(head["sys_path"])
        here = list(sys.version_info[:2])
        if head["by_value"] and head["python"] != here:
            raise FunctionError(
                f"{head['name']} was sent by value from Python {_dotted(head['python'])} on "
                f"{head['host']}, and {getMachineInfo()} runs {_dotted(here)}: use the same "
                "version on both sides, or put the function into a module that both can import"
            )
        size = frame_bytes(frame)
        self._enter(head)
        try:
            function = self.codec.decode(frame, owned=True)
        except PayloadError as error:
            raise _explained(head["name"], head, error) from error
        kept = self._kept[name] = _Kept(function, head, size)
        self._size += size
        while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._size > _KEPT_BYTES):
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.size
        return kept

    def _enter(self, head: Mapping[str, Any]) -> None:
        cwd = head["cwd"]
        if cwd is None:
            return
        before = _directory()
        if before == cwd:
            return
        try:
            os.chdir(cwd)
        except OSError as error:
            raise FunctionError(
                f"the client's working directory {cwd} (on {head['host']}) is not on "
                f"{platform.node()}: {error.strerror}; with cwd=None functions run wherever the "
                "worker is"
            ) from error
        if self._away_from is None:
            self._away_from = before

    def _initialize(self, name: str) -> None:
        """Call the client's initializer, once."""
        if name not in self._initialized:
            self._initialized[name] = ""
            try:
                function, args, _ = self._function(name).function()
                function(*args)
            except BaseException as error:
                self._initialized[name] = f"{type(error).__name__}: {error}"
                raise InitializerFailed(
                    f"the initializer failed on {getMachineInfo()}: {self._initialized[name]}"
                ) from error
        elif self._initialized[name]:
            raise InitializerFailed(
                f"the initializer had failed on {getMachineInfo()}: {self._initialized[name]}"
            )


def call_each(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Several calls as one task."""
    return [function(*args) for args in arguments]


def _take_over_path(entries: Iterable[str]) -> None:
    known = set(sys.path)
    sys.path += [entry for entry in entries if entry not in known and os.path.exists(entry)]


def _explained(what: str, head: Mapping[str, Any], error: PayloadError) -> FunctionError:
    """Why something of the client's cannot be unpickled here, as far as it can be told."""
    host, here = head["host"], platform.node()
    text = f"{what} cannot be unpickled on {here}: {error.__cause__ or error}"
    cause = error.__cause__
    missing = [entry for entry in head["sys_path"] if not os.path.exists(entry)]
    if isinstance(cause, ModuleNotFoundError):
        text += f"; the client on {host} can import it, this worker cannot"
        if missing:
            text += f", as these directories of its sys.path are not on {here}: "
            text += ", ".join(missing)
        module = (cause.name or "").partition(".")[0]
        text += f"; install it here, or have it sent along: modules=[{module!r}]"
    elif head["python"] != list(sys.version_info[:2]):
        text += f"; the client runs Python {_dotted(head['python'])}, this worker "
        text += _dotted(sys.version_info[:2])
    return FunctionError(text)


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None

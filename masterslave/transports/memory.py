"""The transport within one process: calls are calls, and closing a link is losing a process."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from masterslave.errors import ConnectionFailed
from masterslave.manager import TaskManager
from masterslave.transports.remote import REMOTE_METHODS, check_call

#: For each task manager, the link on which each of its processes hangs: the one it registered by.
_lifelines: WeakKeyDictionary[TaskManager, dict[int, MemoryLink]] = WeakKeyDictionary()


class MemoryLink:
    """A `Link` to a task manager of this process."""

    def __init__(self, manager: TaskManager) -> None:
        self._manager = manager
        self._lifelines = _lifelines.setdefault(manager, {})
        self._closed = False

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Link.call`."""
        if self._closed:
            raise ConnectionFailed("the link was closed")
        if method not in REMOTE_METHODS:
            raise AttributeError(f"a task manager has no remote method {method!r}")
        check_call(method, args, kwargs)
        result = getattr(self._manager, method)(*args, **kwargs)
        if method in ("registerProcess", "attachClient"):
            self._lifelines[result[0]] = self
        return result

    def close(self) -> None:
        """See `Link.close`."""
        if not self._closed:
            self._closed = True
            for process_id, link in list(self._lifelines.items()):
                if link is self:
                    del self._lifelines[process_id]
                    self._manager.lostProcess(process_id, "its connection closed")

"""What a transport offers: calls on a task manager, whichever way they travel."""

from __future__ import annotations

from typing import Any, Protocol


class Link(Protocol):
    """A connection to a task manager. Used by one thread at a time."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the task manager and give its result.

        Blocks until the answer is there. Raises `ConnectionFailed` when the way is broken: the
        call may or may not have been carried out, and the link cannot be used any more. Raises
        the error that the task manager raised, as the same class.
        """

    def close(self) -> None:
        """Give the connection up. What was registered through it counts as lost."""

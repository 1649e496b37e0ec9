"""What a transport offers: calls on a task manager, whichever way they travel."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


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


@runtime_checkable
class PostingLink(Link, Protocol):
    """A link on which something else can be done while the answer to an exchange is awaited."""

    def begin_exchange(self, *args: Any) -> None:
        """Send a call of `exchange`. Raises `ConnectionFailed`."""

    def fileno(self) -> int | None:
        """What a selector finds readable when something of an answer has come; None: nothing."""

    def answer_at_hand(self) -> Any:
        """The answer to the last call if it is there, else None; does not block. Raises as `call`.

        None as well when something large comes, for which `end_exchange` is to block.
        """

    def end_exchange(self) -> Any:
        """The answer to the last call. Blocks until it is there; raises as `call`."""

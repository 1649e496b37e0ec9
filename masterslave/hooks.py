"""Hooks through which metrics, progress displays and traces look at a task manager.

An `Observer` is told of what has happened; it cannot change it. Its methods are called by the
thread that caused the event, without the task manager's lock, so they may call the task manager.
An exception that an observer raises is logged and goes no further.
"""

from __future__ import annotations


class Observer:
    """Override what you want to be told of; every method does nothing by default."""

    def task_requested(self, task_id: str, tag: str) -> None:
        """A task was put into the queue."""

    def task_finished(self, task_id: str, tag: str, outcome: str, duration_s: float) -> None:
        """A task reached its end.

        `outcome`: result, exception, crashed, out_of_memory, timed_out or cancelled.
        """

    def task_rescheduled(self, task_id: str, tag: str, reason: str) -> None:
        """A running task went back to the head of the queue."""

    def process_joined(self, process_id: int, info: str) -> None:
        """A slave registered, or came back."""

    def process_left(self, process_id: int, info: str, reason: str) -> None:
        """A slave unregistered, or was lost (its connection closed, or it fell silent)."""

"""A slave as the master of a shared folder knows it."""

from __future__ import annotations

from typing import Any

from masterslave.folder.place import Who


class Enrolled:
    """A slave that has a file in the folder."""

    def __init__(self, head: dict[str, Any]) -> None:
        self.who = Who.of(head["who"])
        self.period_s: float | None = head["period_s"]
        self.workers: int = head["info"][3]
        self.tags: list[str] | None = head["tags"]
        self.registration: str = head["registration"]
        self.id = -1
        self.mtime_ns = 0
        self.look_at = 0.0
        self.told = ""  # its failure that was reported

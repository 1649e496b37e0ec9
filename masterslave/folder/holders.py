"""Which slave has which bundles of a shared folder, and by which lock. Pure."""

from __future__ import annotations


class Holders:
    """Bundle -> the slave that has taken it, as the master has seen it."""

    def __init__(self) -> None:
        self._lock_of: dict[str, tuple[str, str]] = {}  # bundle -> slave, path of its lock
        self._heard_at: dict[str, float] = {}  # bundle -> when its last file was seen
        self._of: dict[str, dict[str, None]] = {}  # slave -> its bundles, the oldest first

    def __len__(self) -> int:
        return len(self._lock_of)

    def __contains__(self, bundle: object) -> bool:
        return bundle in self._lock_of

    def take(self, bundle: str, owner: str, lock: str, now: float) -> None:
        """A slave has a bundle; `lock`: the path of its lock."""
        self.release(bundle)
        self._heard_at[bundle] = now
        self._lock_of[bundle] = owner, lock
        self._of.setdefault(owner, {})[bundle] = None

    def release(self, bundle: str) -> str:
        """Nobody has it any more; gives who had it, empty if nobody."""
        owner, _ = self._lock_of.pop(bundle, ("", ""))
        self._heard_at.pop(bundle, None)
        bundles = self._of.get(owner, {})
        bundles.pop(bundle, None)
        if not bundles:
            self._of.pop(owner, None)
        return owner

    def heard(self, bundle: str, now: float) -> None:
        """Some of its results have come."""
        if bundle in self._lock_of:
            self._heard_at[bundle] = now

    def since_s(self, bundle: str, now: float) -> float:
        """So long ago its last file was seen; 0 if nobody has it."""
        return now - self._heard_at.get(bundle, now)

    def owner(self, bundle: str) -> str:
        """Who has it; empty if nobody."""
        return self._lock_of.get(bundle, ("", ""))[0]

    def of(self, owner: str) -> list[str]:
        """The bundles of a slave, the oldest first."""
        return list(self._of.get(owner, ()))

    def locks_of(self, owner: str) -> dict[str, str]:
        """Path of lock -> bundle, of a slave."""
        return {self._lock_of[bundle][1]: bundle for bundle in self._of.get(owner, ())}

"""How large bundles are, how much is to lie there, and how soon to look again. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from masterslave.folder.bundles import (
    bundle_size,
    bundles_ahead,
    unhurried_amid_many_s,
    unhurried_s,
)
from masterslave.folder.enrolled import Crew
from masterslave.folder.holders import Holders
from masterslave.pace import Pace
from masterslave.records import Assignment

_OLDEST = 100  # bundles by which the master decides how soon it looks again

Bundles = Mapping[str, Mapping[tuple[str, int], Assignment]]


class Measure:
    """What the master of a folder decides by the durations of tasks and the sizes of slaves."""

    def __init__(self, pace: Pace, slaves: Crew) -> None:
        self._pace, self._slaves = pace, slaves

    def bundle_size(self, tag: str, waiting: int | None = None) -> int:
        """Tasks in a bundle of a tag of which so many are left to be laid out; None: very many."""
        left = 1 << 30 if waiting is None else waiting
        estimate_s = self._pace.estimate_s(tag)
        return bundle_size(estimate_s, left, self._slaves.workers(), self._slaves.at_once())

    def missing(self, tags: Iterable[str], there: Mapping[str, int]) -> dict[str, int]:
        """Of which tags more tasks are to lie there, and how many more; `there`: how many do."""
        tags = list(tags)
        ahead = bundles_ahead(self._slaves.workers(), len(tags), self._slaves.at_once())
        missing = {tag: ahead * self.bundle_size(tag) - there.get(tag, 0) for tag in tags}
        return {tag: count for tag, count in missing.items() if count > 0}

    def pause_s(
        self, bundles: Bundles, owners: Holders, waiting: Mapping[str, int], now: float
    ) -> float:
        """A pause between two looks that is short beside what the shortest bundle takes.

        `waiting`: tag -> tasks that wait and were not laid out.
        """
        at_once = self._slaves.at_once()
        first = [
            (bundle, len(tasks), task.tag)
            for bundle in list(bundles)[:_OLDEST]  # at once, as another thread adds some
            for tasks in (bundles.get(bundle, {}),)
            for task in list(tasks.values())[:1]
        ]
        lying = Counter(tag for bundle, _, tag in first if bundle not in owners)
        pauses_s = []
        for bundle, count, tag in first:
            estimate_s, rows = self._pace.estimate_s(tag), -(-count // at_once)
            if waiting.get(tag) or lying[tag] * at_once >= self._slaves.workers() > 0:
                usual, since_s = -(-self.bundle_size(tag) // at_once), owners.since_s(bundle, now)
                pauses_s.append(unhurried_amid_many_s(estimate_s, usual, rows, since_s))
            else:
                pauses_s.append(unhurried_s(estimate_s, rows if bundle in owners else 0))
        return min(pauses_s, default=0.0)

    def idle_workers(self, bundles: Bundles, owners: Holders) -> int:
        """Workers for which their slaves have no task."""
        idle = 0
        for owner, slave in list(self._slaves.items()):
            held = sum(len(bundles.get(bundle, ())) for bundle in owners.of(owner))
            idle += max(0, slave.workers - held)
        return idle

    def is_calm(self, bundles: Bundles, owners: Holders, waiting: Mapping[str, int]) -> bool:
        """Whether a slave that comes finds tasks, whatever it handles, and is seen by its lock."""
        return len(bundles) > len(owners) and not waiting.keys() - self._slaves.tags()

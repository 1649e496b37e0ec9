"""How many tasks go into one file of a shared folder, and how many files are laid out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from masterslave.records import Assignment

#: Work in one bundle, in seconds. Larger: results come late. Smaller: more files per task.
BUNDLE_S = 0.5

#: Tasks in one bundle at most. Larger: more is run again when a slave is lost.
BUNDLE_TASKS = 256

#: Bundles laid out for each worker, and at least. Larger: a task of high priority waits behind
#: more. Smaller: slaves find nothing while the master sleeps.
AHEAD, AT_LEAST = 2, 8

#: Bundles that lie there and that nobody has taken, of all tags together. With it ``tasks`` never
#: holds more than so many inputs, a lock or two per worker, and the outputs of a moment: few enough
#: for one directory. Larger: each listing takes longer. Smaller: thousands of workers wait.
MOST = 1000


def bundle_size(estimate_s: float | None, waiting: int, workers: int) -> int:
    """Tasks in a bundle of a tag: `waiting` are left to be laid out, each takes `estimate_s`."""
    if estimate_s is None:
        return 1
    fair = -(-waiting // (AHEAD * max(1, workers)))
    return max(1, min(BUNDLE_TASKS, fair, int(BUNDLE_S / max(estimate_s, 1e-6))))


def bundles_ahead(workers: int, tags: int) -> int:
    """How many bundles of each of so many tags are to lie there."""
    return max(1, min(max(AT_LEAST, AHEAD * workers), MOST // max(1, tags)))


def split(
    tasks: Iterable[Assignment],
    priorities: Mapping[str, int],
    size_of: Callable[[str, int], int],
) -> Iterator[tuple[int, list[Assignment]]]:
    """Priority and tasks of each bundle, the most urgent first; a bundle has one tag, one priority.

    `priorities`: task id -> its priority, where that is not 0. `size_of`: of a tag, and of how many
    of it are here, the tasks in a bundle.
    """
    lines: dict[tuple[int, str], list[Assignment]] = {}
    for task in tasks:
        lines.setdefault((priorities.get(task.task_id, 0), task.tag), []).append(task)
    for priority, tag in sorted(lines, key=lambda line: -line[0]):
        line = lines[priority, tag]
        rest, size = iter(line), size_of(tag, len(line))
        while bundle := list(islice(rest, size)):
            yield priority, bundle

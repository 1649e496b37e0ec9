"""How many tasks go into one file of a shared folder, and how many files are laid out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from masterslave.records import Assignment

#: Work in one bundle for each worker of the smallest slave, in seconds. Larger: what is urgent
#: waits longer behind what was taken. Smaller: more files per task.
BUNDLE_S = 4.0

#: Longest tasks of which there are two in a bundle for each worker, in seconds. Larger: as above,
#: and results come as much later. Smaller: more tasks have files of their own.
PAIR_S = 5.5

#: Tasks in one bundle at most. Larger: more is run again when a slave is lost.
BUNDLE_TASKS = 256

#: Bundles laid out for each slave of that size, and at least. Larger: a task of high priority waits
#: behind more. Smaller: slaves find nothing while the master sleeps.
AHEAD, AT_LEAST = 2, 8

#: Bundles that lie there and that nobody has taken, of all tags together. Larger: more memory in
#: the master, and more files. Smaller: tens of thousands of workers wait.
MOST = 20_000

#: Files in one directory, see `spread`. Larger: each listing takes longer. Smaller: more
#: directories.
DIRECTORY_MOST = 1000

#: Longest pause of the master between two looks for outputs: of tasks whose results are awaited
#: one by one; of bundles; of tasks of which many more wait, so that slaves lack nothing meanwhile;
#: of those while no result is due. Larger: results come later. Smaller: more operations.
LOOK_S, LOOK_AT_BUNDLES_S, LOOK_AT_MANY_S, LOOK_BEFORE_S = 0.09, 0.25, 1.0, 2.0

#: Results of a bundle that is not complete are written after so long, in seconds, or so many times
#: what one of its tasks takes. Larger: they come late when another task of it takes long. Smaller:
#: more files per task.
FLUSH_S, _FLUSH_TASKS = 1.25, 1.25

#: Tasks that were not begun are given back when all that run take so many times as long as usual,
#: and so many seconds more. Larger: others may lack them. Smaller: usual tasks go to and fro.
_OVERDUE, _OVERDUE_S = 2.0, 2.0

#: Between two looks for orders of a slave at work, in seconds: at least; so many times what its
#: tasks take, as those of seconds end sooner than they could be stopped, but no more than this; of
#: longer ones. Larger: a cancelled task runs on for longer. Smaller: more operations.
ORDERS_S, _ORDERS_TASKS, ORDERS_MOST_S, ORDERS_LONG_S = 2.0, 4.0, 10.0, 5.0

#: Of what is under way, the part by which its end may be noticed late, within these bounds, and
#: that by which it may be if it ends before anybody expects it.
_LATE, _EARLY = 0.1, 0.25

#: A task of "one second" takes a little longer, and is to be bundled as one of one second.
_ROUNDING = 0.2


def bundle_size(estimate_s: float | None, waiting: int, workers: int, at_once: int = 1) -> int:
    """Tasks in a bundle of a tag: `waiting` are left to be laid out, each takes `estimate_s`.

    `at_once`: workers of the smallest slave, which run that many of a bundle at a time. Towards the
    end of a job bundles get smaller, and the last ones are single tasks.
    """
    each = -(-waiting // (AHEAD * max(1, workers)))  # for a worker, if it gets as many turns
    if estimate_s is None or each <= 1:
        return 1
    by_time = int(BUNDLE_S * at_once / max(estimate_s, 1e-6) + _ROUNDING)
    if estimate_s <= PAIR_S:
        by_time = max(by_time, 2 * at_once)
    return max(1, min(BUNDLE_TASKS, each * at_once, by_time))


def bundles_ahead(workers: int, tags: int, at_once: int = 1) -> int:
    """How many bundles of each of so many tags are to lie there."""
    return max(1, min(max(AT_LEAST, AHEAD * workers // at_once), MOST // max(1, tags)))


def unhurried_s(estimate_s: float | None, rows: int) -> float:
    """How late the master may notice the end of a bundle: little beside what it takes.

    `rows`: of its tasks, how many run one after the other; 0: it was not taken when it was last
    looked at, so it is enough to see that it is.
    """
    if estimate_s is None:
        return 0.0
    if rows == 0:
        return min(LOOK_AT_BUNDLES_S, estimate_s / 2)
    return min(LOOK_S if rows == 1 else LOOK_AT_BUNDLES_S, _LATE * rows * estimate_s)


def flush_s(estimate_s: float | None) -> float:
    """For how long a result waits for the rest of its bundle, of a tag whose tasks take so long."""
    return max(FLUSH_S, _FLUSH_TASKS * min(estimate_s or 0.0, PAIR_S))


def due_s(estimate_s: float, rows: int) -> float:
    """When the next file with results of a bundle is due, counted from the last one, or from when
    it was taken; `rows`: of its tasks, how many are left to run one after the other.
    """
    return min(rows * estimate_s, estimate_s + flush_s(estimate_s))


def unhurried_amid_many_s(
    estimate_s: float | None, rows: int, rows_left: int, since_s: float
) -> float:
    """As `unhurried_s`, for a bundle of a tag of which more lie there than slaves can take now.

    `rows`: as many of its tasks were to run one after the other; `rows_left`: are still to.
    `since_s`: so long ago its last file was seen; 0: it was not taken.
    """
    if estimate_s is None:
        return 0.0
    late_s = min(LOOK_AT_MANY_S, _LATE * rows * estimate_s)
    wanted_s = due_s(estimate_s, rows_left)
    return max(late_s, min(LOOK_BEFORE_S, _EARLY * wanted_s, wanted_s - since_s))


def is_overdue(ran_s: float, estimate_s: float | None) -> bool:
    """Whether a task runs for so much longer than usual that what waits behind it is given back."""
    return estimate_s is not None and ran_s > _OVERDUE * estimate_s + _OVERDUE_S


def orders_at_work_s(estimate_s: float) -> float:
    """When a slave looks for orders again of whose tasks the shortest takes that long."""
    if estimate_s > PAIR_S:
        return ORDERS_LONG_S
    return max(ORDERS_S, min(ORDERS_MOST_S, _ORDERS_TASKS * estimate_s))


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
        rest, left = iter(line), len(line)
        while bundle := list(islice(rest, size_of(tag, left))):
            left -= len(bundle)
            yield priority, bundle

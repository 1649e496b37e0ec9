"""Tasks that nothing has happened to since their request, kept so that they cost next to nothing.

A program may request a million tiny tasks at once. An object for each of them, a place in line and
one in a dictionary make Python's garbage collector look at millions of things again and again while
the queue is long. So tiny tasks that are requested one after the other make a `Block`: one object,
one place in line, and a tuple of their parameters, which the collector lets go of when it has seen
it once. A task becomes an object when its turn comes, or when somebody asks for it.

::

    request_all --> Block [data, data, ...] --head, pass_on, take--> task --> handed out
                            ^ Tasks.get(id)        (an object from then on)

Pure: no clock, no lock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from masterslave.lines import Several
from masterslave.records import Frame, TaskOptions

#: Tasks of a block. Larger: their parameters stay in memory until the last one was handed out.
#: Smaller: more objects.
BLOCK_TASKS = 256

#: Parameters up to this size are kept in blocks.
TINY_BYTES = 4096


class Numbered(Protocol):
    """What a task must have."""

    ticket: int
    client: int


T = TypeVar("T", bound=Numbered)

#: Makes a task of id, number, client, tag, parameters and options.
Make = Callable[[str, int, int, str, Frame, TaskOptions], T]


class Block(Several[T]):
    """Tiny tasks of one client, tag and options, whose numbers run on."""

    __slots__ = ("client", "data", "first", "options", "place", "tag", "taken", "tasks")

    def __init__(
        self, tasks: Tasks[T], client: int, tag: str, options: TaskOptions, first: int
    ) -> None:
        self.tasks = tasks
        self.client = client
        self.tag = tag
        self.options = options
        self.first = first  # number of the first task
        self.data: list[bytes] | tuple[bytes, ...] = []  # a tuple when nothing is added any more
        self.place = 0  # of the next one in line
        self.taken: dict[int, T] = {}  # those in line that are objects already, by place

    def head(self) -> T:
        """The task whose turn it is; it may have been cancelled."""
        task = self.taken.get(self.place) if self.taken else None
        return self.task(self.place) if task is None else task

    def pass_on(self) -> bool:
        """That task stands in line no more; true if it was the last."""
        if self.taken:
            self.taken.pop(self.place, None)
        self.place += 1
        if self.place < len(self.data):
            return False
        self.tasks.retire(self)
        return True

    def take(self, limit: int) -> tuple[list[T], bool]:
        """So many tasks at most whose turn it is, if all that are left are no objects yet."""
        if self.taken:
            return [], False
        tag, client, options = self.tag, self.client, self.options
        tasks, make = self.tasks, self.tasks.make
        place, first = self.place, self.first
        self.place = min(place + limit, len(self.data))
        taken = []
        for number, data in enumerate(self.data[place : self.place], first + place):
            task_id = f"{tag}_{number}"
            task = tasks[task_id] = make(task_id, number, client, tag, [data], options)
            taken.append(task)
        is_last = self.place >= len(self.data)
        if is_last:
            tasks.retire(self)
        return taken, is_last

    def task(self, place: int) -> T:
        """Make an object of one that is none yet."""
        number, tag = self.first + place, self.tag
        task_id = f"{tag}_{number}"
        tasks = self.tasks
        task = tasks.make(task_id, number, self.client, tag, [self.data[place]], self.options)
        self.taken[place] = tasks[task_id] = task
        return task


class Tasks(dict[str, T], Generic[T]):
    """All tasks by id, those in blocks as well.

    What is only noted becomes an object when it is asked for. Whoever goes through all of them has
    them in the order of their requests.
    """

    def __init__(self, make: Make[T]) -> None:
        super().__init__()
        self.make = make
        self._blocks: list[Block[T]] = []  # by number
        self._firsts: list[int] = []  # of their first tasks
        self._open: Block[T] | None = None  # the newest, if tasks may be added to it

    def note(
        self, client: int, tag: str, options: TaskOptions, number: int, data: list[bytes]
    ) -> list[Block[T]]:
        """Keep tiny tasks with these parameters, whose numbers begin there, and end all others.

        Gives the blocks that are new, to stand in line.
        """
        block, done = self._open, 0
        new: list[Block[T]] = []
        while done < len(data):
            if (
                block is None
                or block.client != client
                or block.tag != tag
                or block.first + len(block.data) != number + done
                or (block.options is not options and block.options != options)
            ):
                self._close()
                block = self._open = Block(self, client, tag, options, number + done)
                self._blocks.append(block)
                self._firsts.append(block.first)
                new.append(block)
            assert isinstance(block.data, list)
            room = BLOCK_TASKS - len(block.data)
            block.data += data[done : done + room] if done or room < len(data) else data
            done += room
            if len(block.data) >= BLOCK_TASKS:
                self._close()
                block = None
        return new

    def retire(self, block: Block[T]) -> None:
        """All tasks of a block are objects, and stand in line no more."""
        if block is self._open:
            self._open = None
        place = bisect_right(self._firsts, block.first) - 1
        if place >= 0 and self._blocks[place] is block:
            del self._blocks[place], self._firsts[place]

    def forget(self, client: int) -> None:
        """What is noted of a client is nobody's business any more."""
        self._blocks = [block for block in self._blocks if block.client != client]
        self._firsts = [block.first for block in self._blocks]
        if self._open is not None and self._open.client == client:
            self._open = None

    def _close(self) -> None:
        if self._open is not None:
            self._open.data = tuple(self._open.data)
            self._open = None

    def _noted(self, task_id: str) -> tuple[Block[T], int] | None:
        """Where a task is that is no object yet."""
        digits = task_id.rpartition("_")[2]
        if not self._blocks or not digits.isdecimal() or len(digits) > 18:
            return None
        number = int(digits)
        found = bisect_right(self._firsts, number) - 1
        if found < 0:
            return None
        block = self._blocks[found]
        place = number - block.first
        if not block.place <= place < len(block.data) or place in block.taken:
            return None
        return (block, place) if f"{block.tag}_{number}" == task_id else None

    def _take_all(self) -> None:
        for block in self._blocks:
            for place in range(block.place, len(block.data)):
                if place not in block.taken:
                    block.task(place)

    def __missing__(self, task_id: str) -> T:
        found = self._noted(task_id)
        if found is None:
            raise KeyError(task_id)
        return found[0].task(found[1])

    def get(self, task_id: str, default: None = None) -> T | None:  # type: ignore[override]
        """As that of any dictionary."""
        task = super().get(task_id)
        if task is None and self._blocks:
            found = self._noted(task_id)
            return None if found is None else found[0].task(found[1])
        return task

    def __contains__(self, task_id: object) -> bool:
        if super().__contains__(task_id):
            return True
        return isinstance(task_id, str) and self._noted(task_id) is not None

    def __len__(self) -> int:
        noted = sum(len(block.data) - block.place - len(block.taken) for block in self._blocks)
        return super().__len__() + noted

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:  # type: ignore[override]
        """The ids."""
        return [task_id for task_id, _ in self.items()]

    def values(self) -> list[T]:  # type: ignore[override]
        """The tasks."""
        return [task for _, task in self.items()]

    def items(self) -> list[tuple[str, T]]:  # type: ignore[override]
        """The tasks with their ids."""
        self._take_all()
        return sorted(super().items(), key=lambda item: item[1].ticket)

"""How many finished tasks the master takes at once, and what it keeps for whoever comes next."""

from __future__ import annotations

from masterslave.arrivals import Arrivals
from masterslave.payload import Codec
from masterslave.records import Delivery


class Ready:
    """A task manager with so many finished tasks of each tag."""

    is_here = True

    def __init__(self, **counts: int) -> None:
        self.left = {
            tag: [
                Delivery(f"{tag}_{number}", tag, "result", Codec().encode(number), "")
                for number in range(count)
            ]
            for tag, count in counts.items()
        }
        self.limits: list[int] = []

    def getResults(
        self,
        process_id: int,
        tag: str | None,
        limit: int,
        timeout: float | None,
        while_outstanding: bool = False,
    ) -> list[Delivery]:
        self.limits.append(limit)
        got: list[Delivery] = []
        for of_tag, line in self.left.items():
            if tag in (None, of_tag):
                room = limit - len(got)
                got += line[:room]
                del line[:room]
        return got

    def outstandingTasks(self, process_id: int, tag: str | None) -> int:
        return 0


def arrivals(manager: Ready) -> Arrivals:
    return Arrivals(manager, 0, Codec(), owned=True)  # type: ignore[arg-type]


def take_all(mine: Arrivals, tag: str | None) -> list[str]:
    ids = []
    while (one := mine.next(tag, 0.0)) is not None:
        ids.append(one.task_id)
    return ids


def test_while_results_pile_up_twice_as_many_are_taken_each_time() -> None:
    manager = Ready(a=10_000)
    mine = arrivals(manager)
    assert take_all(mine, "a") == [f"a_{number}" for number in range(10_000)]
    batches = manager.limits[: manager.limits.index(64, 1)]
    assert batches == [64, 128, 256, 512, 1024, 2048, 2048, 2048, 2048]  # the last was not full
    manager.limits.clear()
    manager.left["a"] += [Delivery("a_x", "a", "result", [], "")]
    assert take_all(mine, "a") == ["a_x"]
    assert manager.limits[0] == 64


def test_what_was_taken_of_any_tag_is_there_for_who_asks_for_one() -> None:
    manager = Ready(a=100, b=100)
    mine = arrivals(manager)
    first = mine.next(None, 0.0)
    assert first is not None and first.task_id == "a_0"
    assert take_all(mine, "b") == [f"b_{number}" for number in range(100)]
    assert take_all(mine, None) == [f"a_{number}" for number in range(1, 100)]


def test_who_iterates_over_one_tag_gets_no_other_of_what_was_taken() -> None:
    mine = arrivals(Ready(a=3, b=3))
    first = mine.next(None, 0.0)
    assert first is not None and first.task_id == "a_0"
    assert list(mine.each("b", 0.0)) == [(f"b_{number}", "b", number) for number in range(3)]
    assert list(mine.each(None, 0.0)) == [("a_1", "a", 1), ("a_2", "a", 2)]

"""Lines of tasks that wait, and of finished ones: against the simplest models that can be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave.lines import FinishedLine, Several, WaitingLines, head_of, pass_on, take_several

TAGS = ("a", "b", "c")


class Model:
    """One list in order of turn; the first of the highest priority is next."""

    def __init__(self) -> None:
        self.items: list[tuple[int, str, int]] = []  # item, tag, priority

    def first(self, tags: Sequence[str]) -> tuple[int, str, int] | None:
        mine = [item for item in self.items if item[1] in tags]
        return max(mine, key=lambda item: item[2], default=None)  # max gives the first of equals


def drain(lines: WaitingLines[Any], tags: Sequence[str], tag_of: dict[Any, str]) -> list[Any]:
    order = []
    while (item := lines.first(tags)) is not None:
        order.append(item)
        lines.leave(tag_of[item])
    return order


def test_first_come_first_served_within_a_tag() -> None:
    lines = WaitingLines[int]()
    for i in range(5):
        lines.join(i, "a", 0)
    assert drain(lines, ("a",), dict.fromkeys(range(5), "a")) == [0, 1, 2, 3, 4]


def test_first_come_first_served_across_tags() -> None:
    lines = WaitingLines[int]()
    tag_of = {i: "ab"[i % 2] for i in range(6)}
    for i, tag in tag_of.items():
        lines.join(i, tag, 0)
    assert drain(lines, ("b", "a"), tag_of) == [0, 1, 2, 3, 4, 5]


def test_a_higher_priority_goes_first() -> None:
    lines = WaitingLines[str]()
    for item, priority in (("low", -1), ("normal", 0), ("high", 2), ("high too", 2)):
        lines.join(item, "a", priority)
    order = drain(lines, ("a",), dict.fromkeys(("low", "normal", "high", "high too"), "a"))
    assert order == ["high", "high too", "normal", "low"]


def test_who_returns_stands_before_all_others_of_its_priority_only() -> None:
    lines = WaitingLines[str]()
    lines.join("urgent", "a", 1)
    lines.join("normal", "a", 0)
    lines.join_at_head("returned", "b", 0)
    tag_of = {"urgent": "a", "normal": "a", "returned": "b"}
    assert drain(lines, ("a", "b"), tag_of) == ["urgent", "returned", "normal"]


def test_items_of_other_tags_are_not_seen() -> None:
    lines = WaitingLines[int]()
    lines.join(1, "a", 0)
    assert lines.first(("b",)) is None
    assert lines.first(()) is None
    assert lines.first(("b", "a")) == 1


def test_a_priority_may_come_back_after_its_line_was_empty() -> None:
    lines = WaitingLines[int]()
    for item in (1, 2):
        lines.join(item, "a", item)
        lines.leave("a")
    lines.join(3, "a", 2)
    lines.join(4, "a", 1)
    assert drain(lines, ("a",), {3: "a", 4: "a"}) == [3, 4]


class Row(Several[int]):
    """Some numbers, which stand in line as one."""

    def __init__(self, *items: int) -> None:
        self.items = list(items)

    def head(self) -> int:
        return self.items[0]

    def pass_on(self) -> bool:
        del self.items[0]
        return not self.items

    def take(self, limit: int) -> tuple[list[int], bool]:
        taken, self.items = self.items[:limit], self.items[limit:]
        return taken, not self.items


def test_several_stand_in_line_in_their_order() -> None:
    lines = WaitingLines[int]()
    lines.join(0, "a", 0)
    lines.join_several(Row(1, 2), "b", 0)
    lines.join(3, "a", 0)
    lines.join_several(Row(4, 5), "a", 1)
    tag_of = {0: "a", 1: "b", 2: "b", 3: "a", 4: "a", 5: "a"}
    assert drain(lines, TAGS, tag_of) == [4, 5, 0, 1, 2, 3]
    assert not lines


def test_a_line_of_its_own_can_be_emptied_from_outside() -> None:
    lines = WaitingLines[int]()
    lines.join_several(Row(1, 2), "a", 0)
    lines.join(3, "a", 1)
    urgent = lines.only_line("a")
    assert urgent is not None
    assert head_of(urgent) == 3
    pass_on(urgent)
    assert not urgent
    lines.emptied("a")
    assert lines.first("a") == 1
    lines.join(4, "b", 0)
    assert lines.only_line("a") is None  # what is of another tag may come first
    lines.leave("b")
    left = lines.only_line("a")
    assert left is not None
    pass_on(left)
    assert head_of(left) == 2
    pass_on(left)
    assert not left
    lines.emptied("a")
    assert not lines


def test_several_leave_a_line_at_once() -> None:
    lines = WaitingLines[int]()
    lines.join_several(Row(1, 2, 3), "a", 0)
    lines.join(4, "a", 0)
    line = lines.only_line("a")
    assert line is not None
    assert take_several(line, 2) == [1, 2]
    assert head_of(line) == 3
    assert take_several(line, 2) == [3]
    assert take_several(line, 2) == []  # one that stands there by itself
    assert head_of(line) == 4
    pass_on(line)
    assert take_several(line, 2) == []


joins = st.tuples(st.sampled_from(["join", "head"]), st.sampled_from(TAGS), st.integers(-2, 2))
takes = st.tuples(st.just("take"), st.lists(st.sampled_from(TAGS), unique=True), st.just(0))


@settings(deadline=None, database=None)
@given(st.lists(joins | takes, max_size=60))
def test_any_sequence_of_events_agrees_with_a_plain_list(
    events: list[tuple[str, Any, int]],
) -> None:
    lines, model = WaitingLines[int](), Model()
    for number, (kind, tags, priority) in enumerate(events):
        if kind == "join":
            lines.join(number, tags, priority)
            model.items.append((number, tags, priority))
        elif kind == "head":
            lines.join_at_head(number, tags, priority)
            model.items.insert(0, (number, tags, priority))
        else:
            expected = model.first(tags)
            assert lines.first(tags) == (None if expected is None else expected[0])
            if expected is not None:
                lines.leave(expected[1])
                model.items.remove(expected)


class Item(NamedTuple):
    number: int
    tag: str


arrivals = st.tuples(st.just("add"), st.sampled_from(TAGS), st.integers(1, 400))
departures = st.tuples(st.just("take"), st.sampled_from((*TAGS, None)), st.integers(1, 400))


def test_the_order_of_many_tags_does_not_grow_with_what_is_taken() -> None:
    line = FinishedLine[Item]()
    for number in range(2000):
        line.add(Item(number, f"tag {number % 50}"))
    assert line.take_run(None, 9) == [Item(0, "tag 0")]
    for number in range(1, 1000):
        assert line.take_run(f"tag {number % 50}", 1) == [Item(number, f"tag {number % 50}")]
        assert len(line._order or ()) < 150
    got = [line.take_run(None, 9) for _ in range(1000)]
    assert got == [[Item(number, f"tag {number % 50}")] for number in range(1000, 2000)]
    assert len(line) == 0


@settings(deadline=None, database=None)
@given(st.lists(arrivals | departures, max_size=30))
def test_what_has_finished_is_taken_in_order_by_tag_and_of_any(
    events: list[tuple[str, Any, int]],
) -> None:
    line, model, number = FinishedLine[Item](), list[Item](), 0
    for kind, tag, count in events:
        if kind == "add":
            items = [Item(number + i, tag) for i in range(count)]
            number += count
            if count % 2:
                line.add_all(tag, items)
            else:
                for item in items:
                    line.add(item)
            model += items
        else:
            wanted = [item for item in model if tag in (None, item.tag)]
            other = (i for i, item in enumerate(wanted) if item.tag != wanted[0].tag)
            expected = wanted[: min(count, next(other, count))]
            assert line.take_run(tag, count) == expected
            model = [item for item in model if item not in set(expected)]
            first = next(([item] for item in model if tag in (None, item.tag)), [])
            assert line.take_run(tag, 1) == first
            model = [item for item in model if item not in first]
        assert len(line) == len(model)

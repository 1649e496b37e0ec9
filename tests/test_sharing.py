"""Lines of several clients: who gets the slaves how often."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave.sharing import SharedLines

TAGS = ("a", "b", "c")
Entry = tuple[int, str, str]  # client, tag, name


class Lines(SharedLines[Entry]):
    """Lines whose items say whose they are."""

    def add(self, client: int, count: int = 1, tag: str = "a", priority: int = 0) -> None:
        for index in range(count):
            self.join((client, tag, f"{client}{tag}{index}"), client, tag, priority)

    def turns(self, count: int, tags: tuple[str, ...] = TAGS) -> list[int]:
        """Whose tasks the next ones are, until none is left."""
        served = []
        while len(served) < count and (item := self.first(tags)) is not None:
            self.serve(item[0], item[1])
            served.append(item[0])
        return served


def test_clients_take_turns_whoever_has_requested_more_or_earlier() -> None:
    lines = Lines()
    lines.add(1, 10_000)
    assert lines.turns(100) == [1] * 100
    lines.add(2, 10)
    assert Counter(lines.turns(20)) == {1: 10, 2: 10}
    assert lines.turns(3) == [1, 1, 1]


def test_clients_take_turns_though_their_tags_differ() -> None:
    lines = Lines()
    lines.add(1, 100, "a")
    lines.add(2, 100, "b")
    lines.add(3, 100, "a")
    served = lines.turns(30)
    assert Counter(served) == {1: 10, 2: 10, 3: 10}
    assert all(Counter(served[i : i + 3]).keys() == {1, 2, 3} for i in range(0, 30, 3))


def test_a_slave_that_does_not_handle_ones_tags_is_for_the_others() -> None:
    lines = Lines()
    lines.add(1, 10, "a")
    lines.add(2, 10, "b")
    lines.add(3, 10, "b")
    assert lines.turns(4, ("a",)) == [1] * 4
    # What 1 has had so it is not given in addition.
    assert Counter(lines.turns(8)) == {2: 4, 3: 4}
    assert lines.first(("c",)) is None


def test_the_highest_priority_goes_first_and_is_shared() -> None:
    lines = Lines()
    lines.add(1, 10)
    lines.add(2, 2, priority=1)
    lines.add(3, 2, priority=1)
    served = lines.turns(6)
    assert Counter(served[:4]) == {2: 2, 3: 2}
    assert served[4:] == [1, 1]


def test_a_client_with_twice_the_weight_has_twice_the_turns() -> None:
    lines = Lines()
    lines.weigh(1, 2.0)
    lines.add(1, 100)
    lines.add(2, 100)
    assert Counter(lines.turns(30)) == {1: 20, 2: 10}


def test_who_had_nothing_waiting_does_not_catch_up() -> None:
    lines = Lines()
    lines.add(1, 1)
    lines.add(2, 1000)
    lines.turns(500)
    lines.add(1, 1000)
    assert Counter(lines.turns(20)) == {1: 10, 2: 10}


def test_who_was_alone_for_long_does_not_wait_for_those_who_come() -> None:
    lines = Lines()
    lines.add(1, 10, priority=1)
    lines.add(2, 1)
    lines.turns(10)
    lines.add(1, 10)
    lines.add(3, 10)
    assert Counter(lines.turns(11)) == {1: 5, 2: 1, 3: 5}


def test_a_client_that_is_forgotten_leaves_nothing_behind() -> None:
    lines = Lines()
    for client in range(3):
        lines.add(client, 5)
    lines.turns(4)
    lines.forget(0)
    lines.forget(1)
    assert set(lines.turns(9)) == {2}
    assert lines.first(TAGS) is None
    lines.forget(2)
    assert not lines._shares


def test_clients_that_come_and_go_do_not_pile_up() -> None:
    lines = Lines()
    lines.add(1, 1000)
    lines.add(2, 1000)
    for _ in range(400):
        lines.add(3)
        lines.turns(3)
    assert len(lines._order) < 30


class Model:
    """Lists, and the same rule applied by looking at everything."""

    def __init__(self) -> None:
        self.items: dict[int, list[tuple[int, Entry]]] = defaultdict(list)  # priority, item

    def first_of(self, client: int, tags: tuple[str, ...]) -> tuple[int, Entry] | None:
        mine = [one for one in self.items[client] if one[1][1] in tags]
        return max(mine, key=lambda one: one[0], default=None)


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("join"), st.integers(1, 4), st.sampled_from(TAGS), st.sampled_from((0, 0, 0, 1))
        ),
        st.tuples(st.just("serve"), st.sets(st.sampled_from(TAGS), min_size=1)),
        st.tuples(st.just("leave"), st.sets(st.sampled_from(TAGS), min_size=1)),
        st.tuples(st.just("forget"), st.integers(1, 4)),
    ),
    max_size=120,
)


@given(steps)
@settings(max_examples=300, deadline=None)
def test_each_item_is_given_once_in_its_clients_order_and_by_priority(
    what: list[tuple[Any, ...]],
) -> None:
    lines, model = Lines(), Model()
    for number, (kind, *args) in enumerate(what):
        if kind == "join":
            client, tag, priority = args
            item = (client, tag, str(number))
            lines.join(item, client, tag, priority)
            model.items[client].append((priority, item))
        elif kind == "forget":
            lines.forget(args[0])
            model.items.pop(args[0], None)
        else:
            tags = tuple(sorted(args[0]))
            heads = [head for c in list(model.items) if (head := model.first_of(c, tags))]
            got = lines.first(tags)
            if not heads:
                assert got is None
                continue
            assert got is not None
            head = model.first_of(got[0], tags)
            assert head is not None
            assert head[1] == got
            assert head[0] == max(priority for priority, _ in heads)
            turn = {client: share.turn for client, share in lines._waiting.items()}
            equals = [one[0] for priority, one in heads if priority == head[0]]
            assert turn[got[0]] == min(turn[client] for client in equals)
            assert lines.first(tags) == got  # a look changes nothing
            (lines.serve if kind == "serve" else lines.leave)(got[0], got[1])
            model.items[got[0]].remove(head)


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_all_clients_have_had_the_same_after_any_time(clients: int) -> None:
    lines = Lines()
    for client in range(clients):
        lines.add(client, 200, TAGS[client % 3])
    counts: Counter[int] = Counter()
    for _ in range(100):
        counts.update(lines.turns(1))
        assert len(counts) < clients or max(counts.values()) - min(counts.values()) <= 1

"""Which shortcuts a slave lends, and what of them is to be told."""

from __future__ import annotations

from typing import Any

import pytest

from masterslave.offers import Offers
from masterslave.records import Completion

DONE = Completion("square_0", 1, "result", [b"result"], 0.5, "")


class Played:
    """A shortcut in which the test has put something."""

    def __init__(self) -> None:
        self.is_lent = False
        self.results: list[Completion] = []
        self.tasks = ["square_1"]
        self.is_damaged = False

    def read(self) -> list[Completion]:
        if self.is_damaged:
            raise ValueError("no result")
        results, self.results = self.results, []
        return results

    def take_back(self) -> list[Any]:
        if self.is_damaged:
            raise ValueError("no task")
        tasks, self.tasks = self.tasks, []
        return tasks


@pytest.fixture
def one() -> Any:
    return Played()


@pytest.fixture
def offers(one: Any) -> Offers:
    """With one shortcut, to worker 4, that the task manager uses."""
    offers = Offers()
    offers.add(4, one)
    assert offers.are_due
    assert offers.take_offers() == {4: one}
    assert offers.lend(4)
    return offers


def test_each_is_offered_once_for_each_registration(offers: Offers, one: Any) -> None:
    assert one.is_lent
    assert offers.any_lent()
    assert not offers.are_due
    assert offers.take_offers() == {}
    offers.take_back()
    assert not one.is_lent
    assert not offers.any_lent()
    assert offers.take_offers() == {4: one}


def test_one_that_is_refused_is_not_offered_again_until_then(offers: Offers, one: Any) -> None:
    offers.refused(4, one)
    assert not one.is_lent
    assert not offers.are_due
    offers.remove(4)
    assert not offers.settle(), "the task manager knows nothing of it"


def test_it_is_told_as_closed_when_all_is_known_of_its_tasks(offers: Offers) -> None:
    offers.remove(4)
    assert offers.take_closed() == []
    assert not offers.are_due
    assert offers.settle()
    assert offers.are_due
    assert offers.take_closed() == [4]
    assert not offers.are_due
    offers.put_back([4])
    assert offers.take_closed() == [4]


def test_a_registration_has_all_closed(offers: Offers) -> None:
    offers.remove(4)
    offers.settle()
    offers.take_back()
    assert not offers.are_due
    assert offers.take_closed() == []


def test_one_that_was_removed_is_not_lent(one: Any) -> None:
    offers = Offers()
    offers.add(4, one)
    offers.take_offers()
    offers.remove(4)
    assert not offers.lend(4)
    assert not one.is_lent
    offers.add(5, one)
    offers.remove(5)
    assert not offers.are_due


def test_what_lies_in_them_is_read_and_taken_out(
    offers: Offers, one: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other: Any = Played()
    other.is_damaged = True
    offers.add(5, other)
    one.results = [DONE]
    assert offers.read() == [DONE]
    assert offers.read() == []
    offers.empty()
    assert one.tasks == []
    assert "worker 5 has written what is no result" in caplog.text

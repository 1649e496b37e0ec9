"""Our part in an executor's worker, called as the worker would call it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masterslave import GlobalStateValue, guest, payload, slavecode, versions
from masterslave.flights import HELD_S
from masterslave.records import Assignment, Outcome


@pytest.fixture
def ticket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, ...]]:
    """A job that no master of this process has, so it is as in a worker elsewhere."""
    monkeypatch.syspath_prepend(Path(__file__).parent)  # `contract` is the code
    token = secrets.token_hex(16)
    yield tuple(guest.Ticket(token, "demo"))
    guest.unsettle(token)


def code(**more: Any) -> dict[str, tuple[Any, str]]:
    record = {**slavecode.module_record("contract"), "versions": payload.own_versions(), **more}
    return {guest.CODE: (record, "")}


def task(number: int, tag: str, *parameters: Any) -> tuple[Any, ...]:
    frame = guest.plain(payload.Codec().encode(parameters))
    return tuple(Assignment(f"{tag}_{number}", tag, 1, frame, None))


def results(reply: guest.Reply) -> list[Any]:
    assert all(done.outcome == Outcome.RESULT.value for done in reply.done)
    return [payload.Codec().decode(list(done.frame)) for done in reply.done]


def test_a_worker_without_the_code_sends_all_back_and_keeps_the_code_that_comes(
    ticket: tuple[Any, ...],
) -> None:
    tasks = [task(i, "square", i) for i in range(3)]
    reply = guest.run(ticket, tasks, {})
    assert (reply.done, reply.unrun, reply.missing) == ([], [one[0] for one in tasks], [guest.CODE])
    reply = guest.run(ticket, [], code())
    assert "square" in reply.tags
    assert results(guest.run(ticket, tasks, {})) == [0, 1, 4]


def test_what_lacks_a_value_comes_back_and_the_others_are_run(ticket: tuple[Any, ...]) -> None:
    guest.run(ticket, [], code())
    value = GlobalStateValue(7, "values")
    reply = guest.run(ticket, [task(0, "sum", value), task(1, "square", 3)], {})
    assert results(reply) == [9]
    assert (reply.unrun, reply.missing) == (["sum_0"], [value.label])
    frame = guest.plain(payload.Codec().encode([1, 2]))
    reply = guest.run(ticket, [task(0, "sum", value)], {value.label: (frame, "")})
    assert results(reply) == [3]
    assert results(guest.run(ticket, [task(2, "sum", value)], {})) == [3]  # it is kept
    gone = (*ticket[:2], (value.label,))
    assert guest.run(gone, [task(3, "sum", value)], {}).missing == [value.label]


def test_a_submission_ends_after_its_time_with_what_is_done(ticket: tuple[Any, ...]) -> None:
    guest.run(ticket, [], code())
    slow, tiny = task(0, "sleep", 2 * HELD_S), [task(i, "square", i) for i in (1, 2, 3)]
    reply = guest.run(ticket, [tiny[0], slow, *tiny[1:]], {})
    assert results(reply) == [1, "slept"]
    assert (reply.unrun, reply.missing) == (["square_2", "square_3"], [])
    reply = guest.run(ticket, [slow], {})  # one alone is always run
    assert (results(reply), reply.unrun) == (["slept"], [])


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (
            {"python": "2.7.1"},
            r"PID \d+ on .* runs Python 3.*, the master 2\.7\.1: .* use the same",
        ),
        ({"protocol": "0"}, "speaks another protocol than the master's"),
    ],
)
def test_a_worker_of_another_version_says_so(
    ticket: tuple[Any, ...], theirs: dict[str, str], words: str
) -> None:
    line = payload.own_versions()
    told = {name: value for name, _, value in (one.partition("=") for one in line.split())}
    reply = guest.run(ticket, [], code(versions=versions.as_line({**told, **theirs})))
    assert reply.done == []
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(reply.problem)


def test_code_that_does_not_load_is_told_of(ticket: tuple[Any, ...]) -> None:
    reply = guest.run(ticket, [], code(module="no_such_module"))
    assert "No module named 'no_such_module'" in reply.problem

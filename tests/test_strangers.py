"""What strangers may cost: so many connections, the oldest ends first; so many lines of the log."""

from __future__ import annotations

from masterslave.transports.strangers import LINES, PERIOD_S, Strangers, Throttle


def test_of_too_many_connections_the_oldest_is_ended() -> None:
    ended: list[str] = []
    strangers = Strangers(ended.append, most=2)
    for name in "abcd":
        strangers.enter(name)
    assert ended == ["a", "b"]


def test_who_has_proved_himself_counts_no_more() -> None:
    ended: list[str] = []
    strangers = Strangers(ended.append, most=2)
    for name in "abc":
        strangers.enter(name)
        strangers.leave(name)
    strangers.leave("never entered")
    strangers.enter("d")
    strangers.enter("e")
    assert ended == []


def test_so_many_lines_pass_in_a_period_and_no_more() -> None:
    throttle = Throttle(lambda: 0.0)
    assert [throttle.admit() for _ in range(LINES + 2)] == [0] * LINES + [None] * 2


def test_the_next_line_tells_how_many_were_held_back() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    for _ in range(LINES + 3):
        throttle.admit()
    now[0] += PERIOD_S
    assert [throttle.admit(), throttle.admit()] == [3, 0]

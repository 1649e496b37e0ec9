"""Who belongs to a job: joining, leaving, being lost and coming back."""

from __future__ import annotations

import pytest

from masterslave import roster as roster_module
from masterslave.errors import UnknownProcess
from masterslave.pace import HORIZON_S, Pace
from masterslave.records import ProcessInfo
from masterslave.roster import Member, Roster


def info(token: str = "", workers: int = 1) -> ProcessInfo:
    return ProcessInfo("PID 1 on node (arch)", 1, "node", workers, token)


def join(roster: Roster, token: str = "", resume: int | None = None, now: float = 0.0) -> Member:
    return roster.join(info(token), 1.0, resume, now)


def test_each_process_gets_an_id_of_its_own() -> None:
    roster = Roster()
    members = [join(roster, "same token") for _ in range(3)]
    assert [member.id for member in members] == [0, 1, 2]
    assert roster.present == {member.id: member for member in members}


def test_an_id_is_not_used_again() -> None:
    roster = Roster()
    roster.leave(join(roster).id)
    roster.lose(join(roster).id)
    assert join(roster).id == 2


def test_a_present_process_is_found_and_no_other() -> None:
    roster = Roster()
    member = join(roster)
    assert roster.get(member.id) is member
    assert roster.known(7) is None
    with pytest.raises(UnknownProcess, match="process 7"):
        roster.get(7)


def test_who_has_left_is_not_known() -> None:
    roster = Roster()
    member = join(roster, "token")
    assert roster.leave(member.id) is member
    assert roster.leave(member.id) is None
    assert roster.known(member.id) is None
    assert roster.liveness.silent(1e9) == []
    assert join(roster, "token", resume=member.id).id != member.id


def test_who_was_lost_is_known_and_not_present() -> None:
    roster = Roster()
    member = join(roster, "token")
    assert roster.lose(member.id) is member
    assert roster.lose(member.id) is None
    assert roster.known(member.id) is member
    assert roster.liveness.silent(1e9) == []
    with pytest.raises(UnknownProcess):
        roster.get(member.id)


def test_who_was_lost_may_still_leave() -> None:
    roster = Roster()
    member = join(roster)
    roster.lose(member.id)
    assert roster.leave(member.id) is member
    assert roster.known(member.id) is None


@pytest.mark.parametrize("lost", [False, True])
def test_who_comes_back_with_its_token_is_the_same_process(lost: bool) -> None:
    roster = Roster()
    member = join(roster, "token")
    if lost:
        roster.lose(member.id)
    assert join(roster, "token", resume=member.id, now=100.0) is member
    assert list(roster.present) == [member.id]
    assert roster.liveness.silent(103.0) == [], "its deadline begins anew"
    assert roster.leave(member.id) is member
    assert roster.known(member.id) is None, "it does not count as lost any more"


@pytest.mark.parametrize("token", ["", "guessed"])
def test_who_comes_back_without_its_token_is_another_process(token: str) -> None:
    roster = Roster()
    member = join(roster, "token")
    roster.lose(member.id)
    other = join(roster, token, resume=member.id)
    assert other.id != member.id
    assert roster.known(member.id) is member


def test_an_empty_token_proves_nothing() -> None:
    roster = Roster()
    member = join(roster, "")
    assert join(roster, "", resume=member.id).id != member.id


def test_an_unknown_id_cannot_be_resumed() -> None:
    roster = Roster()
    assert join(roster, "token", resume=41).id == 0


def test_the_slaves_are_those_that_are_present() -> None:
    roster = Roster()
    _, lost, slave = (join(roster) for _ in range(3))
    lost.is_slave = slave.is_slave = True
    roster.lose(lost.id)
    assert roster.slaves() == [slave]


def test_a_notice_is_given_once() -> None:
    member = Member(1, info())
    assert not member.has_notices()
    assert member.notices() == {}
    member.cancelled.append("a_0")
    assert member.has_notices()
    member.dropped_data += ["x", "y"]
    assert member.notices() == {"stop": ["a_0"], "forget": ["x", "y"]}
    assert not member.has_notices()
    assert member.notices() == {}
    member.dropped_data.append("z")
    assert member.has_notices()


def test_the_load_of_a_member_decides_what_it_may_take() -> None:
    member, pace = Member(1, info()), Pace()
    pace.record("tiny", HORIZON_S / 8)
    more = [member.may_take("tiny", {"tiny": held}, pace) for held in range(10)]
    assert more == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


def test_nothing_is_put_behind_a_task_of_unknown_length() -> None:
    member, pace = Member(1, info()), Pace()
    pace.record("tiny", HORIZON_S / 100)
    assert member.may_take("tiny", {"tiny": 1}, pace)
    assert not member.may_take("tiny", {"unknown": 1}, pace)
    assert member.may_take("tiny", {"unknown": 0}, pace)


def test_a_worker_that_is_free_is_fed_beside_a_task_of_unknown_length() -> None:
    member, pace = Member(1, info(workers=2)), Pace()
    pace.record("tiny", HORIZON_S / 100)
    left = member.may_take("tiny", {"unknown": 1, "tiny": 1}, pace)
    assert left, "the horizon of the other worker is left"
    assert not member.may_take("tiny", {"unknown": 2}, pace)


def test_only_workers_that_are_ready_get_tasks() -> None:
    member, pace = Member(1, info(workers=3)), Pace()
    pace.record("tiny", HORIZON_S / 100)
    member.room = 1
    assert member.may_take("unknown", {}, pace)
    assert not member.may_take("unknown", {"unknown": 1}, pace)
    assert member.may_take("tiny", {"tiny": 1}, pace)
    member.room = 0
    assert not member.may_take("tiny", {}, pace), "it wants none"


def test_a_slave_is_idle_when_it_holds_less_than_it_has_workers_for() -> None:
    member = Member(1, info(workers=2))
    assert not member.is_idle(0), "its workers are not ready"
    member.tags = frozenset("a")
    assert [member.is_idle(held) for held in (0, 1, 2)] == [True, True, False]
    member.room = 0
    assert not member.is_idle(0)


def test_each_worker_of_a_member_may_have_a_task() -> None:
    member = Member(1, info(workers=3))
    assert [member.may_take("unknown", {"unknown": held}, Pace()) for held in range(5)] == [
        3,
        2,
        1,
        0,
        0,
    ]


def test_the_status_of_a_slave_says_more_than_that_of_a_master() -> None:
    member = Member(4, info(workers=2))
    assert member.as_status(0) == {"id": 4, "info": "PID 1 on node (arch)"}
    member.is_slave = True
    assert member.as_status(3)["tags"] is None
    member.tags, member.finished = frozenset("ba"), 7
    assert member.as_status(3) == {
        "id": 4,
        "info": "PID 1 on node (arch)",
        "host": "node",
        "pid": 1,
        "workers": 2,
        "tags": ["a", "b"],
        "holds": 3,
        "finished": 7,
    }


def test_so_many_of_the_lost_are_remembered_and_no_more() -> None:
    roster = Roster()
    members = [join(roster) for _ in range(5000)]
    for member in members:
        roster.lose(member.id)
    assert roster.known(members[0].id) is None
    assert roster.known(members[-1].id) is members[-1]
    assert len(roster.all_known()) < 5000


def test_who_is_remembered_no_more_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "_LOST", 2)
    roster = Roster()
    members = [join(roster) for _ in range(4)]
    for member in members:
        roster.lose(member.id)
    assert roster.take_crowded_out() == members[:2]
    assert roster.take_crowded_out() == []
    assert [member.id for member in roster.all_known()] == [2, 3]

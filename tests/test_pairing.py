"""Jobs and slaves side by side."""

from __future__ import annotations

from typing import Any

import pytest

from masterslave.pairing import JobView, Note, Progress, Row, has_come, own_job_id, pair

NOTE = Note("run-s1", "7_0", "n1", 4711, "3.11.2 /usr/bin/python3", 1.0)
JOB = JobView("7_0", "run-s1", "slave", "running", "RUNNING")
SLAVE: dict[str, Any] = {
    "host": "n1", "pid": 4711, "info": "PID 4711 on n1", "tags": ["a"], "workers": 2, "finished": 5,
}  # fmt: skip


def row(*notes: Note, job: JobView = JOB, slaves: Any = (), words: str = "", **kw: Any) -> Row:
    (only,) = pair([job], notes, slaves, {job.id: words}, **kw)
    return only


def test_a_job_and_its_slave() -> None:
    note = NOTE._replace(progress=Progress.REGISTERED.value)
    assert row(note, slaves=[SLAVE]) == Row("7_0", "slave", "running", "PID 4711 on n1", 2, 5)


def test_a_slave_without_a_job_of_ours_stands_below() -> None:
    rows = pair([JOB], [NOTE], [{**SLAVE, "pid": 1, "info": "PID 1 on n1"}])
    assert [(one.job, one.slave) for one in rows] == [("7_0", ""), ("", "PID 1 on n1")]


def test_a_job_that_waits_misses_nothing() -> None:
    found = row(job=JOB._replace(phase="pending", word="PENDING"))
    assert (found.remark, found.missing) == ("waits for its turn", False)


@pytest.mark.parametrize(
    ("note", "over", "words", "remark"),
    [
        (None, False, "", "no slave yet"),
        (None, True, "no such file", "ended before its slave said anything; its log: no such file"),
        (None, True, "", "ended before its slave said anything; its log: (nothing)"),
        ({"tries": ("h:1",), "error": "refused"}, False, "",
         "looks for its manager on n1, PID 4711, Python 3.11.2 /usr/bin/python3, tries h:1: "
         "refused"),
        ({"tries": ("h:1",), "error": "refused"}, True, "log",
         "ended; until then its slave looked for its manager on n1, PID 4711, Python 3.11.2 "
         "/usr/bin/python3, tries h:1: refused"),
        ({"progress": "failed", "error": "wrong key"}, True, "log",
         "failed on n1, PID 4711, Python 3.11.2 /usr/bin/python3: wrong key"),
        ({"progress": "registered"}, True, "Killed", "lost on n1, PID 4711; its log: Killed"),
        ({"progress": "registered"}, False, "",
         "not with the manager at present on n1, PID 4711"),
    ],
)  # fmt: skip
def test_why_there_is_no_slave(note: Any, over: bool, words: str, remark: str) -> None:
    notes = [] if note is None else [NOTE._replace(**note)]
    found = row(*notes, job=JOB._replace(over=over), words=words)
    assert (found.remark, found.missing) == (remark, True)


def test_how_a_job_ended_is_told() -> None:
    ended = JOB._replace(over=True, reason="signal 9")
    assert row(job=ended).remark.startswith("ended (signal 9) before its slave said anything; ")
    assert row(NOTE, job=ended).remark.startswith("ended (signal 9); until then its slave looked ")
    note = NOTE._replace(progress=Progress.REGISTERED.value)
    assert row(note, job=ended).remark.startswith("lost (signal 9) on n1, PID 4711; ")
    assert row(job=ended._replace(role="manager")).remark == "ended (signal 9); its log: (nothing)"


def test_one_that_left_in_order_is_not_missed() -> None:
    found = row(NOTE._replace(progress=Progress.LEFT.value), job=JOB._replace(over=True))
    assert (found.remark, found.missing) == ("left in order", False)


def test_the_newest_note_of_a_job_that_was_started_again_counts() -> None:
    first = NOTE._replace(progress=Progress.FAILED.value, error="old")
    second = NOTE._replace(host="n2", began_at=2.0, progress=Progress.REGISTERED.value)
    assert row(second, first, slaves=[{**SLAVE, "host": "n2"}]).slave == "PID 4711 on n1"
    assert has_come(JOB, [first, second])
    assert not has_come(JOB, [first])


def test_nothing_is_missed_when_the_manager_does_not_answer() -> None:
    found = row(NOTE._replace(progress=Progress.REGISTERED.value), answered=False)
    assert (found.remark, found.missing) == ("was on n1, PID 4711", False)


@pytest.mark.parametrize(
    ("note_id", "job_id"),
    [("4711:99", "node1:4711:99"), ("7_0", "7_0")],
    ids=["ssh, whose ids have the host before", "the same"],
)
def test_whose_note_it_is(note_id: str, job_id: str) -> None:
    note = NOTE._replace(job_id=note_id, progress=Progress.REGISTERED.value)
    assert has_come(JOB._replace(id=job_id), [note])
    assert not has_come(JOB._replace(id=job_id + "1"), [note])
    assert not has_come(JOB._replace(job="another"), [note])


@pytest.mark.parametrize(
    ("system", "environ", "job_id"),
    [
        ("slurm", {"SLURM_JOB_ID": "9", "PBS_JOBID": "1"}, "9"),
        ("slurm", {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
         "7_3"),
        ("sge", {"JOB_ID": "5", "SGE_TASK_ID": "undefined"}, "5"),
        ("sge", {"JOB_ID": "5", "SGE_TASK_ID": "2"}, "5.2"),
        ("pbs", {"PBS_JOBID": "3[1].server"}, "3[1].server"),
        ("pbs", {"SLURM_JOB_ID": "8"}, "8"),
        ("htcondor", {"MASTERSLAVE_JOB_ID": "4.1"}, "4.1"),
        ("slurm", {}, ""),
        ("local", {}, "4711:88"),
        ("ssh", {"MASTERSLAVE_JOB_ID": "4700:80"}, "4700:80"),  # in a container
    ],
)  # fmt: skip
def test_the_id_of_ones_own_job(system: str, environ: dict[str, str], job_id: str) -> None:
    assert own_job_id(system, environ, "4711:88") == job_id

"""What launchers would run, as text and lists: nothing is started here."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from masterslave.errors import LauncherError
from masterslave.launchers import htcondor, launcher, pbs, sge, slurm
from masterslave.launchers.base import Container, Job, JobState, Phase, Rendered, safe_name
from masterslave.launchers.containers import process_command
from masterslave.launchers.htcondor import description
from masterslave.launchers.local import SlaveOptions, slave_job
from masterslave.launchers.scripts import clock, script

JOB = Job(
    "demo", ("/usr/bin/python3", "-m", "masterslave", "slave", "-m", "host:1", "--", "a b"),
    count=3, directory="/work dir", log_folder="/logs", walltime_s=5400,
    environment={"WORD": "it's $HOME"}, memory_bytes=2 << 30, cpus=2,
)  # fmt: skip
EXEC = "exec /usr/bin/python3 -m masterslave slave -m host:1 -- 'a b' < /dev/null"
SCRIPT = f"""#!/bin/sh
export WORD='it'"'"'s $HOME'
cd '/work dir' || exit 1
{EXEC}"""
WORDS = [
    "plain",
    "-dash",
    "two  words",
    'it\'s "q"',
    "$HOME;ls `x` $(y)",
    "ü/ö",
    "",
    "a\\b",
    "*",
    "#",
]


def only(rendered: Rendered) -> list[str]:
    (command,) = rendered.commands
    return list(command)


def test_slurm() -> None:
    rendered = launcher("slurm").render(JOB._replace(options=("--partition=low",)))
    assert only(rendered) == [
        "sbatch", "--parsable", "--job-name=demo", "--chdir=/work dir",
        "--output=/logs/demo.%A_%a.log", "--open-mode=append", "--array=0-2", "--time=01:30:00",
        "--mem=2097152K", "--cpus-per-task=2", "--partition=low",
    ]  # fmt: skip
    assert rendered.script == SCRIPT + "\n"


def test_slurm_takes_a_single_copy_as_a_plain_job() -> None:
    command = only(launcher("slurm").render(Job("demo", ("true",), log_folder="/100%")))
    assert command[4:] == ["--output=/100%%/demo.%j.log", "--open-mode=append"]


def test_grid_engine() -> None:
    rendered = launcher("sge").render(JOB._replace(options=("-q", "long.q")))
    assert only(rendered) == [
        "qsub", "-terse", "-N", "demo", "-S", "/bin/sh", "-notify", "-o", "/dev/null", "-j", "y",
        "-t", "1-3", "-l", "h_rt=01:30:00", "-pe", "smp", "2", "-l", "h_vmem=1048576K",
        "-q", "long.q",
    ]  # fmt: skip
    text = SCRIPT.replace("#!/bin/sh\n", "#!/bin/sh\ntrap '' USR1\n")
    assert rendered.script == text + ' >> /logs/demo."$JOB_ID.$SGE_TASK_ID".log 2>&1\n'


def test_sites_name_what_grid_engine_has() -> None:
    settings = {"parallel_environment": "threads", "memory_resource": "mem_free"}
    command = only(launcher("sge", **settings).render(JOB))
    assert command[-5:] == ["-pe", "threads", "2", "-l", "mem_free=1048576K"]


@pytest.mark.parametrize(
    ("dialect", "array", "resources"),
    [
        ("openpbs", "-J", ["-l", "select=1:ncpus=2:mem=2097152kb"]),
        ("torque", "-t", ["-l", "nodes=1:ppn=2", "-l", "mem=2097152kb"]),
    ],
)
def test_pbs(dialect: str, array: str, resources: list[str]) -> None:
    rendered = launcher("pbs", dialect=dialect).render(JOB._replace(options=("-q", "long")))
    assert only(rendered) == [
        "qsub", "-N", "demo", "-S", "/bin/sh", "-j", "oe", "-o", "/logs/demo.pbs",
        array, "0-2", "-l", "walltime=01:30:00", *resources, "-q", "long",
        "/logs/demo.sh",
    ]  # fmt: skip
    assert rendered.file == "/logs/demo.sh"
    assert rendered.script == SCRIPT + ' >> /logs/demo."$PBS_JOBID".log 2>&1\n'


def test_where_pbs_has_no_arrays_each_copy_is_a_job() -> None:
    commands = launcher("pbs", arrays=False).render(JOB).commands
    assert len(commands) == 3 and len(set(commands)) == 1 and "-J" not in commands[0]


def test_htcondor() -> None:
    rendered = launcher("htcondor").render(JOB._replace(options=('+Group = "x"',)))
    assert only(rendered) == ["condor_submit", "-terse", "-"]
    assert rendered.script is not None
    assert rendered.script.splitlines() == [
        "universe = vanilla",
        "executable = /usr/bin/python3",
        "arguments = \"-m masterslave slave -m host:1 -- 'a b'\"",
        "environment = \"'WORD=it''s $(DOLLAR)HOME' MASTERSLAVE_JOB_ID=$(Cluster).$(Process)\"",
        "initialdir = /work dir",
        "output = /logs/demo.$(Cluster).$(Process).log",
        "error = /logs/demo.$(Cluster).$(Process).log",
        "log = /logs/demo.$(Cluster).events",
        "batch_name = demo",
        "transfer_executable = false",
        "should_transfer_files = no",
        "kill_sig = SIGTERM",
        "job_max_vacate_time = 60",
        "request_cpus = 2",
        "request_memory = 2048",
        "periodic_remove = JobStatus == 2 && time() - EnteredCurrentStatus > 5400",
        '+Group = "x"',
        "queue 3",
    ]


def test_the_description_is_written_where_a_person_can_edit_it() -> None:
    rendered = launcher("htcondor", description_file="/w/job.sub").render(JOB)
    assert only(rendered) == ["condor_submit", "-terse", "/w/job.sub"]
    assert rendered.file == "/w/job.sub"
    assert rendered.script == description(JOB)
    assert str(rendered).startswith("cat > /w/job.sub <<'END'\nuniverse = vanilla\n")


def test_htcondor_finds_a_program_by_its_name() -> None:
    lines = description(Job("demo", ("python3", "x.py"))).splitlines()
    assert lines[1:3] == ["executable = /usr/bin/env", 'arguments = "python3 x.py"']


def test_what_htcondor_cannot_express_is_said() -> None:
    with pytest.raises(LauncherError, match="no line breaks"):
        description(Job("demo", ("python3", "a\nb")))


def test_ssh_logs_in_once_per_host() -> None:
    ssh = launcher("ssh", hosts={"n1": 2, "me@n2": 4}, options=["-p", "22"])
    commands = ssh.render(JOB).commands
    head = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-p", "22")
    assert [command[:-1] for command in commands] == [(*head, "n1"), (*head, "me@n2")]
    counts = [shlex.split(command[-1])[4:7] for command in commands]
    assert counts == [["2", "/logs/demo", "n1:"], ["1", "/logs/demo", "me@n2:"]]
    assert shlex.split(commands[0][-1])[7:] == list(JOB.command)


def test_hosts_without_counts_take_turns() -> None:
    ssh = launcher("ssh", hosts=["a", "b"])
    assert ssh.counts(3) == {"a": 2, "b": 1}  # type: ignore[attr-defined]
    assert ssh.counts(1) == {"a": 1}  # type: ignore[attr-defined]


def test_more_copies_than_hosts_have_room_for() -> None:
    with pytest.raises(LauncherError, match="5 copies: the hosts have room for 3"):
        launcher("ssh", hosts={"a": 2, "b": 1}).render(JOB._replace(count=5))


def test_slurm_has_no_numbers_in_names_behind_a_backslash() -> None:
    with pytest.raises(LauncherError, match=r"no backslash in a folder of logs: '/a\\\\b'"):
        launcher("slurm").render(JOB._replace(log_folder="/a\\b"))


@pytest.mark.parametrize("hosts", [[], ["-oProxyCommand=x"], ["a b"], {"a": 0}])
def test_hosts_that_are_none(hosts: object) -> None:
    with pytest.raises(LauncherError):
        launcher("ssh", hosts=hosts)


@pytest.mark.parametrize("kind", ["docker", "podman"])
def test_containers_have_the_addresses_and_process_ids_of_their_host(kind: str) -> None:
    container = Container(kind, "work:1", ("--gpus", "all"), ("/shared", "/a:/b:ro"))
    words = process_command(JOB._replace(container=container, directory="/w"))
    assert words[:2] == ["sh", "-c"]
    assert words[3:5] == ["sh", "demo"]
    words = words[5:]
    assert words[:13] == [
        kind, "run", "--rm", "--network", "host", "--pid", "host", "--workdir", "/w",
        "--volume", "/w:/w", "--volume", "/shared:/shared",
    ]  # fmt: skip
    assert words[13:15] == ["--volume", "/a:/b:ro"]
    end = ["--env", "WORD=it's $HOME", "--gpus", "all", "work:1", *JOB.command]
    assert words[-len(end) :] == end
    told = words[15 : -len(end)]
    assert told[::2] == ["--env"] * (len(told) // 2)
    assert {"MASTERSLAVE_JOB_ID", "SLURM_JOB_ID", "SLURM_JOB_END_TIME"} < set(told[1::2])


def test_apptainer_says_inside_what_must_be_set() -> None:
    """Apptainer itself drops HOME, all of it with --cleanenv, and has a shell evaluate the rest."""
    container = Container("apptainer", "image.sif", ("--nv",), ("/shared", "/w", "/a:/b:ro"))
    words = process_command(JOB._replace(container=container, directory="/w"))
    assert words[:2] == ["sh", "-c"]
    assert words[2].endswith('; exec apptainer "$@"')
    assert words[3:] == [
        "sh", "exec", "--pwd", "/w", "--bind", "/w:/w", "--bind", "/shared:/shared",
        "--bind", "/a:/b:ro", "--nv", "image.sif", "env", "WORD=it's $HOME", *JOB.command,
    ]  # fmt: skip
    alone = process_command(JOB._replace(container=container, environment={}))
    assert alone[-len(JOB.command) - 1 :] == ["image.sif", *JOB.command]


@pytest.mark.parametrize(
    "container",
    [Container("lxc", "i"), Container("docker", ""), Container("docker", "i", (), ("relative",))],
)
def test_containers_that_cannot_be(container: Container) -> None:
    with pytest.raises(LauncherError):
        process_command(JOB._replace(container=container, directory="/w"))


@pytest.mark.parametrize("word", WORDS)
def test_scripts_hand_over_every_word_as_it_is(tmp_path: Path, word: str) -> None:
    command = ("/usr/bin/printf", "%s|", word, "end")
    directory = tmp_path / (f"d{word}".replace("/", "_"))
    directory.mkdir()
    job = Job("x", command, environment={"A": word}, directory=str(directory))
    shown = subprocess.run(
        ["sh"], input=script(job), capture_output=True, text=True, check=True
    )  # fmt: skip
    assert shown.stdout == f"{word}|end|"
    shown = subprocess.run(
        ["sh"], input=script(job._replace(command=("sh", "-c", 'printf "%s|" "$A" "$PWD"'))),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == f"{word}|{directory}|"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": ()}, "no command"),
        ({"count": 0}, "at least 1"),
        ({"environment": {"A B": ""}}, "not a name of a variable"),
        ({"directory": "a\0b"}, "zero byte"),
    ],
)
@pytest.mark.parametrize("name", ["local", "slurm", "sge", "pbs", "htcondor", "memory", "psij"])
def test_jobs_that_cannot_be(name: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        launcher(name).render(JOB._replace(**change))


@pytest.mark.parametrize("name", ["local", "ssh"])
def test_options_that_would_do_nothing_are_refused(name: str) -> None:
    settings = {"hosts": ["a"]} if name == "ssh" else {}
    with pytest.raises(LauncherError, match="no batch system"):
        launcher(name, **settings).render(JOB._replace(options=("-q", "x")))


def test_a_launcher_or_a_setting_that_there_is_not() -> None:
    with pytest.raises(LauncherError, match="no launcher 'lsf'; there are local, ssh, slurm"):
        launcher("lsf")
    with pytest.raises(LauncherError, match="it takes kill_after_s"):
        launcher("local", hosts=["a"])
    with pytest.raises(LauncherError, match="openpbs, torque"):
        launcher("pbs", dialect="lsf")


def test_the_walltime_is_handed_to_the_slave() -> None:
    job = slave_job("a b", "host:1", JOB, SlaveOptions(workers=2), python="python3")
    assert job.command == (
        "python3", "-m", "masterslave", "slave", "-m", "host:1", "-n", "2",
        "--lifetime", "5400", "--", "a b",
    )  # fmt: skip


def test_a_dry_run_shows_what_a_person_could_run(tmp_path: Path) -> None:
    rendered = Rendered((("cat", "-"),), "one\n$HOME\n")
    shown = subprocess.run(["sh", "-c", str(rendered)], capture_output=True, text=True, check=True)
    assert shown.stdout == "one\n$HOME\n"


@pytest.mark.parametrize(
    ("name", "safe"), [("demo", "demo"), ("1 a/ü", "j1_a__"), ("", "j"), ("-x", "j-x")]
)
def test_names_that_all_systems_take(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_times_as_batch_systems_read_them() -> None:
    assert [clock(s) for s in (0.5, 59.9, 3600, 90061)] == [
        "00:00:01", "00:00:59", "01:00:00", "25:01:01",
    ]  # fmt: skip


QSTAT_SGE = """\
job-ID  prior   name       user         state submit/start at     queue             slots ja-task-ID
----------------------------------------------------------------------------------------------------
      1 0.50000 ms-a-long- root         r     11/28/2026 05:00:54 test.q@vm             1 4
       Full jobname:     ms-a-long-label-abcdef-s0
       Master Queue:     test.q@vm
      1 0.50000 ms-a-long- root         qw    11/28/2026 05:00:54                       1 5
       Full jobname:     ms-a-long-label-abcdef-s0
      2 0.50000 ms-a-long- root         qw    11/28/2026 05:00:54                       1
       Full jobname:     ms-a-long-label-abcdef-s1
      3 0.50000 ms-a-long- root         r     11/28/2026 05:00:54 test.q@vm             4
       Full jobname:     ms-a-long-label-abcdef-s10
"""
QSTAT_PBS = """\
Job Id: 11[].server
    Job_Name = ms-a_l-90caba42
    job_state = B
    Output_Path = host:/home/me/.masterslave/starts/a-long-label/logs/ms-a-long-la
\tbel-abcdef-s0.pbs
Job Id: 12.server
    Job_Name = ms-a_l-90caba42
    job_state = F

Job Id: 13.server
    Job_Name = ms-a_l-90caba43
    job_state = R
Job Id:\t14
\tJob_Name = ms-a_l-90caba42
\tjob_state = Q
"""


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("ms-a-long-label-abcdef-s0", ["1.4", "1.5"]),
        ("ms-a-long-label-abcdef-s1", ["2"]),
        ("ms-a-long-label-abcdef-s10", ["3"]),
        ("ms-a-long-", []),
    ],
)
def test_jobs_of_grid_engine_by_their_full_name(name: str, ids: list[str]) -> None:
    assert sge._named(QSTAT_SGE, name) == ids


def test_why_a_job_waits() -> None:
    """Where the reason is not that others are before it."""
    states = slurm._read("1|PENDING|JobHeldUser\n2|PENDING|Resources\n3_1|RUNNING|None\n4|FAILED\n")
    assert {one: state.reason for one, state in states.items()} == {
        "1": "JobHeldUser", "2": "", "3_1": "", "4": "",
    }  # fmt: skip
    assert states["4"].phase is Phase.ENDED
    assert "qmod -cj" in sge._reason("Eqw")
    assert [sge._reason(word) for word in ("hqw", "qw")] == ["it is held", ""]
    assert pbs._read("Job Id: 1\n    job_state = H\n")["1"].reason == "it is held"


def test_jobs_of_pbs_by_name_that_have_not_ended() -> None:
    assert pbs._named(QSTAT_PBS, "ms-a_l-90caba42") == ["11[].server", "14"]


def test_short_names_are_as_different_as_long_ones() -> None:
    names = [f"ms-simulation-{digit}-s{i}" for digit in "abc" for i in range(100)]
    short = {pbs._short_name(name) for name in names}
    assert len(short) == len(names)
    assert max(map(len, short)) == 15
    assert pbs._short_name("ms-a-b-s0") == "ms-a-b-s0"


def test_how_jobs_of_grid_engine_ended() -> None:
    """Of an array, a job that ran twice, and one that nobody has accounted for."""
    text = """
==============================================================
jobnumber    7
taskid       1
failed       0
exit_status  0
==============================================================
jobnumber    7
taskid       1
failed       100 : assumedly after job
exit_status  137                  (Killed)
deleted_by   root
==============================================================
jobnumber    8
taskid       undefined
failed       0
exit_status  127
deleted_by   NONE
"""
    assert sge._accounted(text) == {
        "7.1": "exit status 137 (Killed), failed 100 : assumedly after job, deleted by root",
        "8": "exit status 127",
    }


def test_how_jobs_of_htcondor_ended() -> None:
    text = """7 0 1 undefined undefined
7 1 undefined 9 undefined
8 0 undefined undefined via condor_rm (by user work)
9 0 undefined undefined undefined
"""
    assert htcondor._kept(text) == {
        "7.0": "exit status 1", "7.1": "signal 9", "8.0": "via condor_rm (by user work)",
    }  # fmt: skip


def test_how_jobs_of_pbs_ended() -> None:
    text = "Job Id: 7.s\n    job_state = C\n    exit_status = 271\n"
    assert pbs._read(text) == {"7.s": JobState(Phase.ENDED, "C", "exit status 271")}

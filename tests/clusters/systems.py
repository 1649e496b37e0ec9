"""Real batch systems, sshd and container systems, started here by the scripts beside this module.

Each test process has its own, in a folder named after that process, on free ports. Of Slurm there
are three: one whose nodes can be cut off ("slurm-cut"), and one of PSI/J's own, which cannot read
the states of any job where one of all has failed for a reason that it does not know. A process that
was killed leaves its systems behind: whoever comes next ends them by what they have recorded.
Inside CI (MASTERSLAVE_CI=1) a system that is missing is a failure, elsewhere a reason to skip.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from distribution import uses_pool

SCRIPTS = Path(__file__).resolve().parent / "scripts"
#: What is unpacked once: HTCondor with its Debian, apptainer, and the commands of PBS.
CACHE = Path(os.environ.get("MASTERSLAVE_TEST_CACHE", "/var/cache/masterslave-clusters"))
START_S = 400.0  # the first start of HTCondor unpacks a distribution

NEEDS = {
    "slurm": ("slurmctld", "slurmd", "munged", "sbatch"),
    "sge": ("sge_qmaster", "sge_execd", "qconf"),
    "ssh": ("/usr/sbin/sshd", "ssh", "ssh-keygen"),
    "slurm-cut": ("slurmctld", "slurmd", "munged", "sbatch", "ip", "nsenter"),
    "slurm-psij": ("slurmctld", "slurmd", "munged", "sbatch"),
    "docker": ("docker", "dockerd", "containerd", "runc"),
    "podman": ("podman", "runc"),
    "apptainer": ("apt-get", "dpkg", "flock", "patchelf", "mksquashfs"),
    "condor": ("debootstrap",),
    "pbs": ("slurmctld", "slurmd", "munged", "sbatch", "dpkg"),
}


def require(*names: str) -> None:
    """Skip the test, or fail inside CI, where a system cannot be had."""
    reasons = [] if os.geteuid() == 0 else ["not root"]
    for name in names:
        reasons += [f"no {program}" for program in NEEDS[name] if shutil.which(program) is None]
    if reasons:
        missing(*reasons)


def missing(*reasons: str) -> NoReturn:
    """Something cannot be had here."""
    if os.environ.get("MASTERSLAVE_CI") == "1":
        pytest.fail(f"missing in CI: {', '.join(reasons)}", pytrace=False)
    pytest.skip(", ".join(reasons))


def say(line: str) -> None:
    """Without a pytest that catches what is printed."""
    print(line, file=sys.stderr, flush=True)


class Systems:
    """The systems of this process, each started when it is first asked for."""

    def __init__(self, tell: Callable[[str], object] = say) -> None:
        self._tell = tell  # people, why a test waits
        me = psutil.Process()
        self._parent = Path(tempfile.gettempdir()) / f"ms-clusters-{os.getuid()}"
        self.path = self._parent / f"{me.pid}-{round(me.create_time() * 100)}"
        self._clean = dict(os.environ)  # not that of the test which comes first
        self._ports: dict[str, int] = {}
        self._condor_lock: int | None = None
        # Of "slurm-cut", whose nodes are network namespaces: their names, and where they are.
        self.prefix = f"m{me.pid}c"
        self.network = f"10.{100 + me.pid // 250 % 100}.{me.pid % 250}"

    def variables(self, name: str) -> dict[str, str]:
        """What the scripts of a system are told."""
        folder = CACHE / name if name in ("condor", "pbs") else self.path / name
        port = self._ports.setdefault(name, free_ports(4))
        kind, _, purpose = name.partition("-")
        own = {f"{kind.upper()}_{'DIR' if name == 'pbs' else 'TEST_DIR'}": str(folder)}
        if name == "slurm" and Path("/sys/fs/cgroup/memory/cgroup.procs").exists():
            own["MEM"] = "1"  # jobs are killed over their memory
        if name == "slurm-cut":
            own.update(NETNS=self.prefix, NET=self.network, NODE_TIMEOUT="6", MESSAGE_TIMEOUT="5")
        if name == "apptainer":
            own["APPTAINER_DIR"] = str(CACHE / name)
        node = f"m{os.getpid()}{purpose[:1] or 'n'}"
        return {**self._clean, **own, "PORT0": str(port), "PORT": str(port), "NODE": node}

    def folder(self, name: str) -> Path:
        return CACHE / name if name in ("condor", "pbs") else self.path / name

    def start(self, name: str) -> dict[str, str]:
        """Start it unless it runs; gives the variables by which its commands find it."""
        require(name)
        self.end_those_of_the_dead()
        self.path.mkdir(parents=True, exist_ok=True)
        found: dict[str, str] = {}
        if name == "pbs":
            found = self.start("slurm")
            CACHE.mkdir(parents=True, exist_ok=True)
        if name == "condor" and self._condor_lock is None:
            self._condor_lock = take_lock(CACHE / "lock", self._tell)  # one pool on a machine
            run("condor-stop.sh", self.variables(name))
        script = {"podman": "podman-setup.sh", "apptainer": "apptainer-setup.sh",
                  "pbs": "pbs-over-slurm.sh", "slurm-cut": "slurm-start.sh",
                  "slurm-psij": "slurm-start.sh"}  # fmt: skip
        run(script.get(name, f"{name}-start.sh"), {**self.variables(name), **found})
        if name == "pbs":
            return {**found, "PATH": f"{self.folder(name)}/usr/bin:{os.environ['PATH']}"}
        found = {**found, **read_variables(self.folder(name) / "env")}
        if name == "apptainer":
            found["PATH"] = f"{CACHE / name / 'bin'}:{os.environ['PATH']}"
        return found

    def image(self, kind: str) -> str:
        """The image that there is of a container system that was started."""
        return str(self.folder(kind) / "work.sif") if kind == "apptainer" else "work:1"

    def pids(self, name: str) -> list[int]:
        """The recorded process ids of its daemons that live."""
        files = [*self.folder(name).glob("run/*.pid"), *self.folder(name).glob("pid")]
        recorded = [int(path.read_text()) for path in files if path.read_text().strip()]
        return [pid for pid in recorded if psutil.pid_exists(pid)]

    def kill(self, name: str) -> None:
        """What becomes of it when a session is killed: no daemon ends in order."""
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def release_condor(self) -> None:
        """End the pool, which is the machine's only one: other sessions may wait for it."""
        if self._condor_lock is not None:
            run("condor-stop.sh", self.variables("condor"))
            os.close(self._condor_lock)
            self._condor_lock = None

    def stop(self) -> None:
        self.release_condor()
        self._end(self.path)

    def end_those_of_the_dead(self) -> None:
        for path in self._parent.glob("*-*"):
            pid, _, began = path.name.partition("-")
            try:
                alive = round(psutil.Process(int(pid)).create_time() * 100) == int(began)
            except (psutil.NoSuchProcess, ValueError):
                alive = False
            if not alive:
                self._end(path)

    def _end(self, path: Path) -> None:
        for name in ("slurm", "slurm-cut", "slurm-psij", "sge", "ssh", "docker", "podman"):
            if (path / name).exists():
                kind = name.partition("-")[0]
                variables = {**self._clean, f"{kind.upper()}_TEST_DIR": str(path / name)}
                run(f"{kind}-stop.sh", variables, "--purge")
            if name == "slurm-cut" and shutil.which("ip") is not None:
                run("netns-stop.sh", self._clean, f"m{path.name.partition('-')[0]}c")
        shutil.rmtree(path, ignore_errors=True)


def take_lock(path: Path, tell: Callable[[str], object], limit_s: float = START_S) -> int:
    """A descriptor that holds the lock until it is closed. Says who else has it, and waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + limit_s
    told = ""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            owner = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "starting"
            if owner != told:
                tell(f"waiting for {path}, {limit_s:g} s at most: it belongs to process {owner}")
                told = owner
            if time.monotonic() >= deadline:
                os.close(descriptor)
                pytest.fail(
                    f"{path} has belonged to process {owner} for {limit_s:g} s: a test session "
                    "that uses the machine's only HTCondor pool; wait for it, or end it",
                    pytrace=False,
                )
            time.sleep(0.1)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def run(script: str, variables: Mapping[str, str], *arguments: str) -> None:
    """Run one of the scripts; what it printed is the message when it fails."""
    with tempfile.TemporaryFile() as output:  # no pipe: daemons would keep it open
        done = subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments], env=dict(variables),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=START_S, check=False,
        )  # fmt: skip
        output.seek(0)
        text = output.read().decode(errors="replace")
    assert done.returncode == 0, f"{script}: {text[-2000:]}"


def read_variables(path: Path) -> dict[str, str]:
    """Of a file with ``export NAME=VALUE NAME=VALUE`` lines."""
    words = path.read_text().split() if path.exists() else []
    return dict(word.split("=", 1) for word in words if "=" in word)


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    while True:
        first = random.randrange(16000, 30000)
        try:
            for port in range(first, first + count):
                with socket.socket() as sock:
                    sock.bind(("0.0.0.0", port))
        except OSError:
            continue
        return first


_MADE = pytest.StashKey[Systems]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """The pool is started once for tests that follow each other, and is not kept for later ones."""
    try:
        yield
    finally:
        if nextitem is None or not uses_pool(nextitem.nodeid):
            made = item.config.stash.get(_MADE, None)
            if made is not None:
                made.release_condor()


@pytest.fixture(scope="session")
def systems(pytestconfig: pytest.Config) -> Iterator[Systems]:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            say(line)

    made = pytestconfig.stash[_MADE] = Systems(tell)
    yield made
    made.stop()

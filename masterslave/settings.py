"""What can be set from outside: one frozen value, and the only place that reads the environment.

| variable                    | field            | meaning                                        |
|-----------------------------|------------------|------------------------------------------------|
| `MASTERSLAVE_KEY_FILE`      | `key_file`       | file with the 32-byte key (64 hex digits)      |
| `MASTERSLAVE_HOST`          | `host`           | address a task manager listens on              |
| `MASTERSLAVE_PORT`          | `port`           | its port (0: any free one)                     |
| `MASTERSLAVE_BROADCAST`     | `broadcast`      | look for a name server by broadcast (0 or 1)   |
| `MASTERSLAVE_MASTER_GONE`   | `master_gone_s`  | seconds a slave goes on looking for its master |
| `MASTERSLAVE_GRACE`         | `grace_s`        | seconds that running tasks get at SIGTERM      |
| `MASTERSLAVE_CLIENT_GRACE`  | `client_grace_s` | seconds in which a lost client may come back   |
| `MASTERSLAVE_MEMORY`        | `memory_bytes`   | budget for tasks and results: bytes, or 2G     |
| `MASTERSLAVE_WHEN_FULL`     | `when_full`      | requests beyond it: "block" or "raise"         |
| `MASTERSLAVE_SHARED_MEMORY` | `shared_memory`  | use it between processes of a host (0 or 1)    |
| `MASTERSLAVE_CHAOS`         | `chaos`          | what goes wrong in slaves on purpose, `chaos`  |
| `SLURM_JOB_END_TIME`        | `lifetime_s`     | set by Slurm: when the job ends, in Unix time  |
| `PBS_WALLTIME`              | `lifetime_s`     | set by PBS: seconds that the job may run       |

Pyro's own variables (`PYRO_NS_HOST`, `PYRO_NS_PORT`, `PYRO_SSL...`) are read by Pyro and obeyed.
"""

from __future__ import annotations

import math
import os
import pwd
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from masterslave.chaos import Chaos
from masterslave.errors import SettingsError
from masterslave.units import parse_bytes

#: Longest label, in characters. Larger: name servers take no message with such a name, and the
#: command line of a slave no such argument. Smaller: somebody's label is too long.
LABEL_LENGTH = 1000

DEFAULT_PORT = 7766  # of a task manager that is not registered with a name server


def _half_of_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return 1 << 32


_HALF_OF_MEMORY = _half_of_memory()


@dataclass(frozen=True)
class Settings:
    """Everything a process of this library can be told from outside. Durations in seconds."""

    key_file: Path  # holds the shared key; made at first use, owner-only
    host: str = "127.0.0.1"  # "0.0.0.0" for all interfaces
    port: int | None = None  # None: any free port with a name server, 7766 without
    broadcast: bool = True  # whether slaves and the command line may look for a name server so
    master_gone_s: float = 60.0  # then a slave gives up and ends
    grace_s: float = 30.0  # then a draining slave kills what still runs and gives it back
    client_grace_s: float = 60.0  # then the tasks of a client that disappeared are dropped
    memory_bytes: int = _HALF_OF_MEMORY  # of frames in a task manager; then they go to its journal
    when_full: str = "block"  # what a request does that finds no room: "block" or "raise"
    shared_memory: bool = True  # for large buffers between processes of one host, where it can be
    resume_s: float = 10.0  # longest time a restarted master waits for its slaves of before
    chaos: Chaos | None = None  # of the slaves started; None: nothing goes wrong on purpose
    connections: Path | None = None  # directory of connection files; None: none are used
    handshake_s: float = 10.0  # then a connection that has not proved itself is closed
    poll_s: float = 20.0  # longest time that a call waits in the task manager for a task
    stall_s: float = 5.0  # then a job that does not move says why in the log
    renewal_s: float = 2.0  # between two looks at the name server
    shutdown_s: float = 10.0  # longest time a master waits for its slaves to leave
    lifetime_s: float | None = None  # what a batch job may still run, when this was read

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, unix_time: float | None = None
    ) -> Settings:
        """Read the settings from `environ` (default: this process's environment).

        `unix_time`: what time it is (default: the system's). Raises `SettingsError` naming the
        variable that cannot be used.
        """
        env = os.environ if environ is None else environ
        key_file = env.get("MASTERSLAVE_KEY_FILE")
        try:
            home: Path | None = home_directory(env) / ".masterslave"
        except SettingsError:
            if not key_file:
                raise
            home = None  # no file says where task managers are, then
        settings = cls(
            key_file=_expanded(key_file) if home is None or key_file else home / "key",
            host=env.get("MASTERSLAVE_HOST") or cls.host,
            connections=None if home is None else home / "managers",
        )
        port = _number(env, "MASTERSLAVE_PORT", 0, 65535, whole=True)
        gone = _number(env, "MASTERSLAVE_MASTER_GONE", 0, None)
        grace = _number(env, "MASTERSLAVE_GRACE", 0, None)
        client_grace = _number(env, "MASTERSLAVE_CLIENT_GRACE", 0, None)
        broadcast = _switch(env, "MASTERSLAVE_BROADCAST")
        shared_memory = _switch(env, "MASTERSLAVE_SHARED_MEMORY")
        memory = _size(env, "MASTERSLAVE_MEMORY")
        when_full = env.get("MASTERSLAVE_WHEN_FULL") or cls.when_full
        if when_full not in ("block", "raise"):
            raise SettingsError(f"MASTERSLAVE_WHEN_FULL={when_full!r}: must be block or raise")
        return replace(
            settings,
            memory_bytes=settings.memory_bytes if memory is None else memory,
            when_full=when_full,
            chaos=Chaos.parse(env.get("MASTERSLAVE_CHAOS", "")),
            port=settings.port if port is None else int(port),
            master_gone_s=settings.master_gone_s if gone is None else gone,
            grace_s=settings.grace_s if grace is None else grace,
            client_grace_s=settings.client_grace_s if client_grace is None else client_grace,
            broadcast=broadcast,
            shared_memory=shared_memory,
            lifetime_s=_batch_lifetime(env, time.time() if unix_time is None else unix_time),
        )


def home_directory(environ: Mapping[str, str] | None = None) -> Path:
    """The home directory, which all nodes share. Raises `SettingsError` where it is not known."""
    home = (os.environ if environ is None else environ).get("HOME")
    if not home:  # `expanduser` would take an empty one for "/"
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = ""
    if not os.path.isabs(home):
        raise SettingsError(
            f"HOME={home!r}: must be an absolute path; set HOME to your home directory, or "
            "MASTERSLAVE_KEY_FILE to your key file"
        )
    return Path(home)


def _expanded(key_file: str | None) -> Path:
    assert key_file
    try:
        return Path(key_file).expanduser()
    except RuntimeError as error:  # nobody's home
        raise SettingsError(f"MASTERSLAVE_KEY_FILE={key_file!r}: {error}") from error


#: Longer than any job: what batch systems give where there is no limit.
_ENDLESS_S = 10 * 365 * 86400.0


def _batch_lifetime(env: Mapping[str, str], unix_time: float) -> float | None:
    """Seconds until the batch system ends this job; None: it does not, or says nothing usable.

    The variables are not ours: a value that makes no sense, or an end that is past, is left over
    from something else, and no reason to fail.
    """
    end, walltime = env.get("SLURM_JOB_END_TIME", ""), env.get("PBS_WALLTIME", "")
    left = []
    if end.isdecimal() and int(end) > unix_time:
        left.append(int(end) - unix_time)
    if walltime.isdecimal() and int(walltime):
        left.append(float(walltime))  # slaves start when their job does, or nearly so
    return min((seconds for seconds in left if seconds < _ENDLESS_S), default=None)


def _switch(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name, "1")
    if text not in ("0", "1"):
        raise SettingsError(f"{name}={text!r}: must be 0 or 1")
    return text == "1"


def _number(
    env: Mapping[str, str], name: str, low: float, high: float | None, *, whole: bool = False
) -> float | None:
    text = env.get(name)
    if not text:
        return None
    bound = f"from {low:g} to {high:g}" if high is not None else f"of at least {low:g}"
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    good = math.isfinite(value) and value >= low and (high is None or value <= high)
    if not good or (whole and not value.is_integer()):
        kind = "a whole number" if whole else "a number"
        raise SettingsError(f"{name}={text!r}: must be {kind} {bound}")
    return value


def _size(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    try:
        return parse_bytes(text) if text else None
    except SettingsError as error:
        raise SettingsError(f"{name}: {error}") from error


def split_address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Split ``host``, ``host:port`` or ``[ipv6]:port`` into host and port.

    Raises `SettingsError` when the port is not a number from 1 to 65535 or the host is missing.
    """
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise SettingsError(f"address {text!r}: must read [IPV6]:PORT")
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    if not host:
        raise SettingsError(f"address {text!r}: must read HOST or HOST:PORT")
    if not port_text:
        return host, default_port
    if not port_text.isdecimal() or not 0 < int(port_text) < 65536:
        raise SettingsError(f"address {text!r}: the port must be a number from 1 to 65535")
    return host, int(port_text)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def checked_path(name: str, path: object) -> str:
    """The path that an argument of that name gives. Raises `SettingsError` for what is none.

    An empty one is none, though the system takes it for the working directory in places.
    """
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if not text or "\0" in text:
        raise SettingsError(f"{name}={path!r}: must be a path; for the working directory write '.'")
    return text


def check_label(label: object) -> None:
    """Raise `SettingsError` unless `label` can be a label: a short line of visible characters."""
    if not isinstance(label, str) or not label.strip() or not label.isprintable():
        raise SettingsError(f"label {label!r:.80}: must be a line of visible characters")
    if len(label) > LABEL_LENGTH:
        raise SettingsError(
            f"label {label[:20]!r}...: must be of {LABEL_LENGTH} characters at most, not of "
            f"{len(label)}"
        )

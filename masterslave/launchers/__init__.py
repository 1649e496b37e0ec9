"""Ways to start slaves: a family with one interface, `base.Launcher`.

| name       | starts                                                  | module        |
|------------|---------------------------------------------------------|---------------|
| `local`    | processes of this machine                               | `ssh`         |
| `ssh`      | processes on a list of hosts                            | `ssh`         |
| `slurm`    | batch jobs                                              | `slurm`       |
| `sge`      | batch jobs of Grid Engine                               | `sge`         |
| `pbs`      | batch jobs of OpenPBS or Torque                         | `pbs`         |
| `htcondor` | batch jobs                                              | `htcondor`    |
| `psij`     | batch jobs of whatever psij-python can submit to        | `psij`        |
| `memory`   | nothing: what tests are told was started                | `memory`      |
"""

from __future__ import annotations

import inspect
from typing import Any

from masterslave.errors import LauncherError
from masterslave.launchers.base import Launcher
from masterslave.launchers.htcondor import HtcondorLauncher
from masterslave.launchers.memory import MemoryLauncher
from masterslave.launchers.pbs import PbsLauncher
from masterslave.launchers.psij import PsijLauncher
from masterslave.launchers.sge import SgeLauncher
from masterslave.launchers.slurm import SlurmLauncher
from masterslave.launchers.ssh import LocalLauncher, SshLauncher

_LAUNCHERS: dict[str, type[Launcher]] = {
    cls.name: cls
    for cls in (
        LocalLauncher, SshLauncher, SlurmLauncher, SgeLauncher, PbsLauncher, HtcondorLauncher,
        PsijLauncher, MemoryLauncher,
    )
}  # fmt: skip

#: What is looked for, in this order, where nothing was chosen.
_CHOICE = ("slurm", "sge", "pbs", "htcondor")


def launcher(name: str, **settings: Any) -> Launcher:
    """The launcher of that name. `settings`: as its class takes them.

    Raises `LauncherError` for a name or a setting that does not exist.
    """
    cls = _LAUNCHERS.get(name)
    if cls is None:
        raise LauncherError(f"no launcher {name!r}; there are {', '.join(_LAUNCHERS)}")
    try:
        inspect.signature(cls).bind(**settings)
    except TypeError as error:
        known = ", ".join(inspect.signature(cls).parameters) or "no settings"
        raise LauncherError(f"launcher {name}: {error}; it takes {known}") from None
    return cls(**settings)


def available_launcher() -> Launcher:
    """The batch system that answers here; this machine where none does. Takes seconds at most."""
    for name in _CHOICE:
        found = launcher(name)
        if found.is_available():
            return found
    return launcher("local")

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

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from masterslave.errors import LauncherError

if TYPE_CHECKING:
    from masterslave.launchers.base import Launcher

#: Module and class of each; loaded when chosen, as every master imports this package.
_LAUNCHERS = {
    "local": ("ssh", "LocalLauncher"),
    "ssh": ("ssh", "SshLauncher"),
    "slurm": ("slurm", "SlurmLauncher"),
    "sge": ("sge", "SgeLauncher"),
    "pbs": ("pbs", "PbsLauncher"),
    "htcondor": ("htcondor", "HtcondorLauncher"),
    "psij": ("psij", "PsijLauncher"),
    "memory": ("memory", "MemoryLauncher"),
}

#: What is looked for, in this order, where nothing was chosen.
_CHOICE = ("slurm", "sge", "pbs", "htcondor")


def launcher(name: str, **settings: Any) -> Launcher:
    """The launcher of that name. `settings`: as its class takes them.

    Raises `LauncherError` for a name or a setting that does not exist.
    """
    if name not in _LAUNCHERS:
        raise LauncherError(f"no launcher {name!r}; there are {', '.join(_LAUNCHERS)}")
    module, class_name = _LAUNCHERS[name]
    cls: type[Launcher] = getattr(
        importlib.import_module(f"masterslave.launchers.{module}"), class_name
    )
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

"""The pool of HTCondor, which lives in a folder with another system, and our commands inside it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from conftest import PATIENCE_S, ROOT, World

from clusters.systems import Systems

LIBRARY = "/home/work/library"
_COMMANDS = "export CONDOR_CONFIG=/home/work/condor_config PATH=/usr/bin:/bin"


class Pool:
    """Started, with this library in it; the world's path exists inside, and belongs to its user."""

    def __init__(self, world: World, systems: Systems) -> None:
        systems.start("condor")
        self.root = systems.folder("condor")
        self.world = world
        self._copy_library()
        user = (self.root / "home" / "work").stat()
        self.there = Path(f"{self.root}{world.path}")
        (self.there / "logs").mkdir(parents=True)
        for path in (self.there, self.there / "logs"):
            os.chown(path, user.st_uid, user.st_gid)
        for path in reversed(self.there.parents):  # of pytest's, for their owner only
            if path.is_relative_to(self.root / "tmp"):
                path.chmod(0o755)

    def _copy_library(self) -> None:
        library = Path(f"{self.root}{LIBRARY}")
        python = self.root / "usr" / "bin" / (self.root / "usr" / "bin" / "python3").readlink()
        shutil.rmtree(library, ignore_errors=True)
        shutil.copytree(ROOT / "masterslave", library / "masterslave")
        for name in ("Pyro5", "serpent", "msgpack", "cloudpickle", "psutil", "rich", "pygments"):
            spec = importlib.util.find_spec(name)
            assert spec is not None and spec.origin is not None
            origin = Path(spec.origin)
            if origin.name == "__init__.py":
                shutil.copytree(origin.parent, library / name)
            else:
                shutil.copy(origin, library)
        installed = self.root / "usr" / "local" / "lib" / python.name / "dist-packages"
        installed.mkdir(parents=True, exist_ok=True)
        (installed / "work.pth").write_text(f"{LIBRARY}\n")

    def give(self, path: Path) -> None:
        """Make a file or folder of ours, in the world's path, the user's own inside."""
        user = self.there.stat()
        target = self.there / path.name
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy(path, target)
        for one in (target, *target.rglob("*")):
            os.chown(one, user.st_uid, user.st_gid)

    def prefix(self, home: str) -> str:
        """Shell words that run inside, as its user, the command whose words are appended in one."""
        inside = f"cd {home} && export HOME={home} && {_COMMANDS} && "
        return f"chroot {self.root} su work -s /bin/bash -c {shlex.quote(inside)}"

    def run(self, *command: Any) -> str:
        """Run a command inside; its home is the world's path. Gives what it has printed."""
        variables = (f"PYRO_NS_PORT={self.world.ns_port}", "MASTERSLAVE_BROADCAST=0")
        text = shlex.join(["env", *variables, *map(str, command)])
        done = subprocess.run(
            ["sh", "-c", self.prefix(str(self.world.path)) + shlex.quote(text)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3 * PATIENCE_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def task_manager(self, *arguments: Any) -> str:
        """Run ``task_manager ARGUMENTS`` inside."""
        return self.run("python3", "-m", "masterslave", *arguments)

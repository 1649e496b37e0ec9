"""Hosts on one machine: network namespaces joined by a bridge, whose cables can be cut.

Needs root, `ip` and `iptables`. Nothing outside the namespaces is touched but a bridge of our own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator


class Namespaces:
    """So many hosts, numbered from 1, each with an address and a loopback of its own."""

    def __init__(self, count: int) -> None:
        self._mark = f"ms{uuid.uuid4().hex[:6]}"
        self._network = f"10.{int(self._mark[2:4], 16)}.{int(self._mark[4:6], 16)}"
        self._count = count

    def name(self, host: int) -> str:
        return f"{self._mark}{host}"

    def address(self, host: int) -> str:
        return f"{self._network}.{host}"

    def command(self, host: int, *command: object) -> list[str]:
        """The command that runs another one on that host."""
        return ["ip", "netns", "exec", self.name(host), *map(str, command)]

    def cut(self, host: int, *, silently: bool = True) -> None:
        """No packet reaches the host, or leaves it; or each one is answered with a reset."""
        for chain in ("INPUT", "OUTPUT"):
            rule = ["-A", chain, "!", "-i" if chain == "INPUT" else "-o", "lo"]
            if silently:
                _run(*self.command(host, "iptables", *rule, "-j", "DROP"))
            else:
                reset = ["-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"]
                _run(*self.command(host, "iptables", *rule, *reset))

    def heal(self, host: int) -> None:
        _run(*self.command(host, "iptables", "-F"))

    def build(self) -> None:
        bridge = f"br-{self._mark}"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for host in range(1, self._count + 1):
            name, cable = self.name(host), f"v{self._mark}{host}"
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", cable, "master", bridge, "up")
            _run("ip", "-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "set", "eth0", "up")

    def remove(self) -> None:
        for host in range(1, self._count + 1):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", self.name(host))
            with contextlib.suppress(subprocess.CalledProcessError):  # most often gone by itself
                _run("ip", "link", "del", f"v{self._mark}{host}")
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", f"br-{self._mark}")


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[Namespaces]:
    """Hosts for as long as the context lasts."""
    hosts = Namespaces(count)
    try:
        hosts.build()
        yield hosts
    finally:
        hosts.remove()


def why_not() -> str:
    """Why there can be no namespaces here; empty when there can."""
    missing = [name for name in ("ip", "iptables") if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)} here"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    hosts = Namespaces(1)
    try:
        hosts.build()
        _run(*hosts.command(1, "iptables", "-L"))
    except subprocess.CalledProcessError as error:
        return (
            "the kernel makes no network namespace with a bridge, veth and iptables' filter here: "
            f"{error.stderr.strip()}"
        )
    finally:
        hosts.remove()
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)

"""Versions of clients and slaves, and what is to be said when they do not go together.

They travel as one line, such as ``python=3.11.7 cloudpickle=3.1.3 masterslave=0.1.0 protocol=1``.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Of the calls between processes. It is raised when one that knows another number cannot take part.
PROTOCOL = 1


def as_line(versions: Mapping[str, str]) -> str:
    """Versions by name as they are told at registration."""
    return " ".join(f"{name}={version}" for name, version in versions.items())


def mismatch(client: str, slave: str) -> str:
    """Why a slave of these versions does not do for a client of those; empty if it does.

    What one of them does not say does not matter.
    """
    ours, theirs = _by_name(client), _by_name(slave)
    for name in ("protocol", "python", "cloudpickle"):
        if name in ours and name in theirs and _part(name, ours) != _part(name, theirs):
            return _WORDS[name].format(ours=ours, theirs=theirs)
    return ""


_WORDS = {
    "protocol": "has masterslave {theirs[masterslave]}, which speaks another protocol than the "
    "client's {ours[masterslave]}: install the same version on both sides",
    "python": "runs Python {theirs[python]}, the client {ours[python]}: functions and classes that "
    "travel by value cannot be used there; use the same 3.x on both sides",
    "cloudpickle": "has cloudpickle {theirs[cloudpickle]}, the client {ours[cloudpickle]}: what "
    "travels by value may not be understood; install the same major version on both sides",
}

#: How many parts of a version must agree.
_PARTS = {"protocol": 1, "python": 2, "cloudpickle": 1}


def _part(name: str, versions: Mapping[str, str]) -> list[str]:
    return versions[name].split(".")[: _PARTS[name]]


def _by_name(line: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in line.split())
    return {"masterslave": "of unknown version", **{name: version for name, _, version in pairs}}

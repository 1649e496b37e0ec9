"""Chaos on purpose: what may go wrong in a slave, and how likely, so that programs can be tried.

Written as one line, ``kill=0.01,delay=0.1,seed=7``: on the command line (`--chaos`), in
`launchSlaveJobs(chaos=)` or in `MASTERSLAVE_CHAOS`.

| name        | is the probability per | that                                                      |
|-------------|------------------------|-----------------------------------------------------------|
| `kill`      | task given to a worker | the worker is killed within `kill_s` seconds from then    |
| `stop`      | task given to a worker | the worker is stopped for up to `stop_s` seconds          |
| `delay`     | result                 | it is held back for up to `delay_s` seconds               |
| `duplicate` | message with results   | its results are handed in twice                           |
| `drop`      | sign of life           | it is not sent                                            |
| `cut`       | call to the manager    | the connection breaks, before it or before its answer     |

Who makes it happen: `disturbance` decides for the workers, `transports.disturbed` for the calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from masterslave.errors import SettingsError

#: Highest probability of those that keep a slave from its master: with more of it, no job ends.
_SELDOM = {"cut": 0.5, "drop": 0.9}


@dataclass(frozen=True)
class Chaos:
    """Probabilities from 0 to 1, and longest times in seconds; see the module's table."""

    kill: float = 0.0
    stop: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    drop: float = 0.0  # at most 0.9
    cut: float = 0.0  # at most 0.5
    kill_s: float = 1.0  # most kills come much earlier, so that short tasks are hit as well
    stop_s: float = 0.5
    delay_s: float = 0.2
    seed: int | None = None  # of all that is drawn; None: a new one each time

    @classmethod
    def parse(cls, text: str) -> Chaos | None:
        """Read ``name=number,...``; None for an empty text.

        Raises `SettingsError` naming the part that cannot be used.
        """
        values: dict[str, float | int] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            name, equals, number = map(str.strip, part.partition("="))
            if name not in _NAMES or not equals:
                known = ", ".join(_NAMES)
                raise SettingsError(f"chaos: {part!r} must be NAME=NUMBER; the names are {known}")
            if name in values:
                raise SettingsError(f"chaos: {name!r} stands there twice")
            values[name] = _number(part, name, number)
        return cls(**values) if values else None  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The text that `parse` reads; what is as by default is left out."""
        return ",".join(
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )

    def seeded(self, seed: int) -> Chaos:
        """The same with that seed, unless it has one."""
        return replace(self, seed=seed) if self.seed is None else self

    def of_slave(self, number: int) -> Chaos:
        """The same for one of several slaves, which must not all draw the same."""
        return self if self.seed is None else replace(self, seed=self.seed + number)


_NAMES = tuple(field.name for field in fields(Chaos))


def _number(part: str, name: str, text: str) -> float | int:
    if name == "seed":
        if not text.isdecimal():
            raise SettingsError(f"chaos: {part!r} must be a whole number of at least 0")
        return int(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if name.endswith("_s"):
        if not 0 < value < math.inf:
            raise SettingsError(f"chaos: {part!r} must be a number of seconds above 0")
        return value
    most = _SELDOM.get(name, 1.0)
    if not 0 <= value <= most:
        raise SettingsError(f"chaos: {part!r} must be a probability from 0 to {most:g}")
    return value

"""What the tasks of the benchmarks do, ours and the peers' alike.

A module of its own, so that every system's workers find it by name.
"""

from __future__ import annotations

import time
from typing import Any


def nothing(x: int) -> int:
    return x


def echo(array: Any) -> Any:
    return array


def use(array: Any, index: int) -> float:
    """Use an array that is the same for all tasks."""
    return float(array[index])


def spin(seconds: float) -> None:
    """Need so much time of a processor."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

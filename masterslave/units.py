"""Durations and sizes as people write and read them: ``90m``, ``1:30:00``, ``1.5G``."""

from __future__ import annotations

import math
import re

from masterslave.errors import SettingsError

#: Factors of the letters after a duration.
_TIME_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(duration: float | str) -> float:
    """A duration in seconds: a number, or a text such as ``90m``, ``1:30:00`` or ``2-12:00:00``.

    Fields count from the right: seconds, minutes, hours, then days with a hyphen. Raises
    `SettingsError` unless it is positive.
    """
    text = str(duration).strip().lower()
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
    fields = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    value = 0.0
    if number is not None:
        value = float(number[1]) * _TIME_UNITS[number[2]]
    elif fields is not None:
        days, hours, minutes, seconds = (int(field or 0) for field in fields.groups())
        value = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if isinstance(duration, bool) or not 0 < value < math.inf:
        raise SettingsError(
            f"duration {duration!r}: must be positive seconds, or read like 90m or 1:30:00"
        )
    return value


def format_duration(seconds: float) -> str:
    """A duration for people: ``1:30:00``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


#: Factors of the letters after a size.
_SIZE_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(size: int | str) -> int:
    """A size in bytes: a number, or a text such as ``512M`` or ``1.5G`` (powers of 1024).

    Raises `SettingsError` unless it is at least one byte.
    """
    text = str(size).strip().upper()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([BKMGT]?)(?:I?B)?", text)
    value = 0 if match is None else int(float(match[1]) * _SIZE_UNITS[match[2]])
    if isinstance(size, bool) or value < 1:
        raise SettingsError(f"size {size!r}: must be a number of bytes, such as 2147483648 or 2G")
    return value


def format_bytes(size: float) -> str:
    """A size for people, such as ``1.5G``."""
    units = iter("KMGT")
    unit = ""
    while size >= 1000 and unit != "T":
        size /= 1024
        unit = next(units)
    return f"{size:.3g}{unit}"

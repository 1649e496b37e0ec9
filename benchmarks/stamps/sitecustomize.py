"""Stamps the time at places in the library, in every process of a job that `profile_trip.py` runs.

Python imports a module of this name when it starts, so slaves and workers, which are processes of
their own, have it from the environment's ``PYTHONPATH``. Each process writes its stamps into a
file of its own in `STAMPS`, which survives whatever becomes of it: 8 bytes for the time in ns of
the clock that all processes share, 8 for the number of the place.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

STAMPS = "MASTERSLAVE_BENCHMARK_STAMPS"

#: What is stamped, before and after: module, class, method. A place's number is twice the index
#: here, and one more after it.
PLACES = (
    ("master", "MasterProcess", "requestTask"),
    ("shortcut", "ManagerShortcut", "send"),
    ("shortcut", "WorkerShortcut", "receive"),
    ("shortcut", "WorkerShortcut", "send"),
    ("shortcuts", "Shortcuts", "hear"),
    ("manager", "TaskManager", "getResults"),
    ("master", "MasterProcess", "retrieveResult"),
)

_STAMP = struct.Struct("<QQ")
_FILE_BYTES = 1 << 23


class _Book:
    """This process's stamps."""

    def __init__(self, folder: str) -> None:
        with open(os.path.join(folder, str(os.getpid())), "w+b") as file:
            file.truncate(_FILE_BYTES)
            self._memory = mmap.mmap(file.fileno(), _FILE_BYTES)
        self._end = 0

    def stamp(self, place: int) -> None:
        begin, self._end = self._end, self._end + _STAMP.size
        if self._end <= _FILE_BYTES:
            _STAMP.pack_into(self._memory, begin, time.monotonic_ns(), place)


def read(path: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """The stamps in a file: time in ns, and place."""
    with open(path, "rb") as file:
        stamps = [(at, place) for at, place in _STAMP.iter_unpack(file.read())]
    return [stamp for stamp in stamps if stamp[0]]


def _stamped(method: Callable[..., Any], place: int, book: Callable[[], _Book]) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        book().stamp(place)
        try:
            return method(*args, **kwargs)
        finally:
            book().stamp(place + 1)

    return call


class _Loader(importlib.abc.Loader):
    """Loads a module as another loader does, and stamps its methods."""

    def __init__(self, loader: importlib.abc.Loader, book: Callable[[], _Book]) -> None:
        self._loader = loader
        self._book = book

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for index, (name, owner, method) in enumerate(PLACES):
            if module.__name__ == f"masterslave.{name}":
                cls = getattr(module, owner)
                setattr(cls, method, _stamped(cls.__dict__[method], 2 * index, self._book))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, folder: str) -> None:
        self._book = functools.cache(lambda: _Book(folder))
        self._names = {f"masterslave.{name}" for name, _, _ in PLACES}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._names:
            return None
        self._names.remove(name)  # others find it now
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._book)
        return spec


if STAMPS in os.environ:
    sys.meta_path.insert(0, _Finder(os.environ[STAMPS]))

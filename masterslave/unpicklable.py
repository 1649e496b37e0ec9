"""Finds what in a value cannot be pickled, and the way there.

A pickler says "cannot pickle '_thread.lock' object" and not where that is. Here the value is taken
apart as a pickler does it, and each part is tried by itself, until one is found that fails and of
whose parts none fails: ``parameters[1].model.lock``.

Halves of a long list are tried before its items, so that one bad item among a million is found in
twenty attempts. An attempt costs about as much as pickling, and this runs only after that failed.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

#: Attempts at pickling a part. Larger: a value that fails takes long to say so. Smaller: deep or
#: tangled values are described by their whole.
_ATTEMPTS = 500

#: Parts of parts of parts... Larger: the same. A pickler's own limit is a few hundred.
_DEPTH = 100

#: Of a dictionary's key in a path.
_KEY_CHARACTERS = 40


class Found(NamedTuple):
    """The part to blame."""

    path: str
    part: Any
    error: Exception  # what a pickler says of it


#: Where a part is, as it continues a path, and the part.
_Part = tuple[str, Any]


class _GivenUp(Exception):
    """The limits were reached."""


def find(value: Any, name: str, failure: Callable[[Any], Exception | None]) -> Found | None:
    """The deepest part of `value` that cannot be pickled by itself; None if none can be told.

    `name`: what the path begins with. `failure`: pickles something and gives the error, None if
    there is none.
    """
    try:
        return _Search(failure).find(value, name, 0)
    except Exception:  # given up; or the attributes of somebody's class do what they like
        return None


class _Search:
    def __init__(self, failure: Callable[[Any], Exception | None]) -> None:
        self._failure = failure
        self._left = _ATTEMPTS
        self._seen: dict[int, Any] = {}  # looked into already; kept, so that ids stay theirs

    def _fails(self, part: Any) -> Exception | None:
        if self._left == 0:
            raise _GivenUp
        self._left -= 1
        error = self._failure(part)
        if isinstance(error, (MemoryError, RecursionError)) or isinstance(
            getattr(error, "__cause__", None), RecursionError
        ):
            raise _GivenUp  # a matter of size, of which no part is to blame
        return error

    def find(self, value: Any, path: str, depth: int) -> Found | None:
        error = self._fails(value)
        if error is None:
            return None
        if depth == _DEPTH:
            raise _GivenUp
        self._seen[id(value)] = value
        alone = True
        for suffix, part in self._failing(_parts(value)):
            alone = False
            if id(part) not in self._seen:
                found = self.find(part, path + suffix, depth + 1)
                if found is not None:
                    return found
        return Found(path, value, error) if alone else None

    def _failing(self, parts: Sequence[_Part]) -> Iterator[_Part]:
        """Those parts that fail, found by halves."""
        if not parts or self._fails([part for _, part in parts]) is None:
            return
        if len(parts) == 1:
            yield parts[0]
            return
        half = len(parts) // 2
        yield from self._failing(parts[:half])
        yield from self._failing(parts[half:])


def _parts(value: Any) -> list[_Part]:
    """What a pickler goes on to when it pickles this; empty for what it takes or refuses whole."""
    if isinstance(value, FunctionType):
        return _parts_of_function(value)
    if isinstance(value, MethodType):
        return [(".__self__", value.__self__), (".__func__", value.__func__)]
    if isinstance(value, type):
        own = {name: part for name, part in vars(value).items() if name not in _OF_EVERY_CLASS}
        return [(f".{name}", part) for name, part in own.items()]
    if isinstance(value, (staticmethod, classmethod)):
        return [(".__func__", value.__func__)]
    if isinstance(value, property):
        return [(f".{name}", getattr(value, name)) for name in ("fget", "fset", "fdel")]
    if type(value) is functools.partial:
        return [
            (".func", value.func),
            *_items(".args", value.args),
            *_entries(".keywords", value.keywords),
            *_attributes(vars(value)),
        ]
    kind = type(value)
    if kind is dict:
        return _entries("", value)
    if kind in (list, tuple):
        return _items("", value)
    if kind in (set, frozenset):
        return [("{...}", part) for part in value]
    return _parts_of_object(value)


_OF_EVERY_CLASS = frozenset(
    ("__dict__", "__weakref__", "__module__", "__doc__", "__slots__", "__abstractmethods__")
)


def _items(prefix: str, values: Any) -> list[_Part]:
    return [(f"{prefix}[{i}]", part) for i, part in enumerate(values)]


def _entries(prefix: str, values: Any) -> list[_Part]:
    parts: list[_Part] = []
    for key, part in values.items() if isinstance(values, dict) else values:
        text = _shown(key)
        parts.append((f"{prefix}[{text}]", part))
        if not isinstance(key, (str, int, float, bytes)):
            parts.append((f"{prefix}<key {text}>", key))
    return parts


def _attributes(state: Any) -> list[_Part]:
    return [(f".{name}", part) for name, part in state.items()]


def _shown(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:  # a repr of the user's may do anything
        text = "..."
    return text if len(text) <= _KEY_CHARACTERS else text[: _KEY_CHARACTERS - 3] + "..."


def _parts_of_function(function: FunctionType) -> list[_Part]:
    """Of a function that is pickled by value: what it refers to."""
    parts: list[_Part] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts.append((f".<closure>.{name}", cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    names = sorted(names_used(function.__code__) & function.__globals__.keys())
    parts += [(f".<globals>.{name}", function.__globals__[name]) for name in names]
    parts += _items(".__defaults__", function.__defaults__ or ())
    parts += _entries(".__kwdefaults__", function.__kwdefaults__ or {})
    return parts + _attributes(vars(function))


def names_used(code: CodeType) -> set[str]:
    """The global names that a function's code may refer to, and some that are attributes."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_used(constant)
    return names


def _parts_of_object(value: Any) -> list[_Part]:
    """By the object's own account of how it is pickled, so that what it leaves out is left out."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        account = reduce(value) if reduce is not None else value.__reduce_ex__(5)
    except Exception:  # refuses as a whole
        return []
    if not isinstance(account, tuple):
        return []
    arguments, state, items, entries = (*account[1:5], *[None] * 4)[:4]
    states = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    parts: list[_Part] = []
    for one in states:
        if isinstance(one, dict):
            parts += _attributes(one)
        elif one is not None:
            parts.append((".<state>", one))
    if items is not None:
        parts += _items("", items)
    if entries is not None:
        parts += _entries("", entries)
    names = {id(type(value)): ".__class__"}
    names.update((id(part), f".{name}") for name, part in getattr(value, "__dict__", {}).items())
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", ())  # of a named tuple
        names.update((id(part), f".{name}") for name, part in zip(fields, value, strict=False))
    if isinstance(value, BaseException):
        names.update((id(part), f".args[{i}]") for i, part in enumerate(value.args))
    for i, part in enumerate(arguments or ()):
        parts.append((names.get(id(part), f".<argument {i}>"), part))
    return parts

"""The identity of a call, for results that outlive the program that asked for them.

Pickles do not do for that: cloudpickle gives classes random numbers, and what is shared within a
value shows in its pickle. So a function counts as the same if its name and code are, and what it
refers to is, as far as it would travel by value; an argument if it is pickled to the same.

Where that cannot be told (a set of strings within a list, whose order differs from run to run) the
identity differs, and the call is made again: no wrong result comes of it. Not seen is a change in
what a module's function calls in its turn.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import types
from collections.abc import Callable
from typing import Any

from masterslave.functions import is_by_reference
from masterslave.payload import Codec
from masterslave.unpicklable import names_used


def call_identity(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bytes:
    """32 bytes that are the same for the same call, in every run of a program.

    Raises `PayloadError` for an argument that cannot be pickled.
    """
    feed = _Feed()
    feed.value(function)
    for value in args:
        feed.value(value)
    for name in sorted(kwargs):
        feed.text(name)
        feed.value(kwargs[name])
    return feed.digest.digest()


class _Feed:
    """What a value is, written into a digest."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: set[int] = set()
        self._codec = Codec(shared_main=True)

    def text(self, text: str) -> None:
        self._bytes(b"t", text.encode("utf-8", "surrogatepass"))

    def value(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.value(value.__func__)
            self.value(value.__self__)
        elif type(value) is functools.partial:
            self.value(value.func)
            for part in (*value.args, *sorted(value.keywords.items())):
                self.value(part)
        elif isinstance(value, (type, types.BuiltinFunctionType)):
            self.text(f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, types.ModuleType):
            self.text(value.__name__)
        elif type(value) in (set, frozenset):  # in no order, or in another one in each run
            for digest in sorted(map(_digest_of, value)):
                self._bytes(b"s", digest)
        elif isinstance(value, types.CodeType):
            self._code(value)
        else:
            self._pickled(value)

    def _function(self, function: types.FunctionType) -> None:
        self.text(f"{function.__module__}.{function.__qualname__}")
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        self._code(function.__code__)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.value(default)
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:  # not assigned yet
                self.text("nothing")
        if is_by_reference(function):
            return  # what else its module has is the module's
        for name in sorted(names_used(function.__code__) & function.__globals__.keys()):
            self.text(name)
            self.value(function.__globals__[name])

    def _code(self, code: types.CodeType) -> None:
        self._bytes(b"c", code.co_code)
        for name in (*code.co_names, *code.co_varnames, *code.co_freevars):
            self.text(name)
        for constant in code.co_consts:
            self.value(constant)

    def _pickled(self, value: Any) -> None:
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, 5)
        pickler.fast = True  # without marks of what is shared
        try:
            pickler.dump(value)
            self._bytes(b"p", stream.getbuffer())
        except Exception:  # it refers to itself, or only cloudpickle can do it
            for piece in self._codec.encode(value, "argument", copy=False):
                self._bytes(b"p", piece)

    def _bytes(self, kind: bytes, data: Any) -> None:
        self.digest.update(kind + len(data).to_bytes(8, "big"))
        self.digest.update(data)


def _digest_of(value: Any) -> bytes:
    feed = _Feed()
    feed.value(value)
    return feed.digest.digest()

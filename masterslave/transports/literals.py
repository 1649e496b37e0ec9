"""Reads what Pyro's name servers and their clients say: serpent, which is Python's literals.

Serpent itself has Python's own parser read them (`ast`), which runs out of stack on a deep
expression, warns on standard error about odd escapes, and in Python 3.11 keeps what it reads in
several threads at once and fails (SystemError, "recursion depth mismatch"). Pyro then makes objects
of what names a class, proxies included, which connect to wherever the sender says. Anyone may speak
to a name server, and anyone may pretend to be one, so here nothing is made but None, truth values,
numbers, strings, tuples, lists, sets and dictionaries. Pure.
"""

from __future__ import annotations

import re
from typing import Any

#: Containers within containers. Pyro's own messages have four. Larger: a deep recursion.
_DEEPEST = 16

_TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*\n)*(?:
    (?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    |(?P<number>-?[0-9]{1,20}(?:\.[0-9]{1,40})?(?:e[-+]?[0-9]{1,5})?)
    |(?P<word>None|True|False)
    |(?P<mark>[][(){},:])
    )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([\\'\"nrt])|.)")
_WORDS = {"None": None, "True": True, "False": False}
_PLAIN_ESCAPES = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def loads(data: bytes | bytearray) -> Any:
    """The value that `data` states. Raises `ValueError` for everything else."""
    reader = _Reader(bytes(data).decode("utf-8").rstrip())
    value = reader.value(0)
    reader.end()
    return value


class _Reader:
    """Reads tokens from the left."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def _next(self) -> tuple[str, str]:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            raise ValueError(f"no plain literal at character {self._at}")
        self._at = match.end()
        kind = match.lastgroup
        assert kind is not None
        return kind, match[kind]

    def _passes(self, mark: str) -> bool:
        """Step over that mark if it comes next."""
        match = _TOKEN.match(self._text, self._at)
        found = match is not None and match["mark"] == mark
        if found and match is not None:
            self._at = match.end()
        return found

    def _expect(self, mark: str) -> None:
        if not self._passes(mark):
            raise ValueError(f"{mark!r} is missing at character {self._at}")

    def end(self) -> None:
        if self._at != len(self._text):
            raise ValueError(f"more than one value, from character {self._at} on")

    def value(self, depth: int) -> Any:
        kind, token = self._next()
        if kind == "text":
            text = _ESCAPE.sub(_unescaped, token[1:-1])
            text.encode("utf-8")  # half a character could not be passed on
            return text
        if kind == "number":
            return int(token) if token.lstrip("-").isdecimal() else float(token)
        if kind == "word":
            return _WORDS[token]
        if token not in _CLOSING or depth >= _DEEPEST:
            raise ValueError(f"{token!r} is out of place at character {self._at}")
        return self._container(token, depth + 1)

    def _container(self, opening: str, depth: int) -> Any:
        closing = _CLOSING[opening]
        items: list[Any] = []
        pairs: dict[Any, Any] = {}
        count, comma = 0, False
        while not self._passes(closing):
            if count and not comma:
                self._expect(",")
                comma = True
                continue
            item = self.value(depth)
            if opening == "{" and not items and self._passes(":"):
                pairs[_hashable(item)] = self.value(depth)
            elif pairs:
                raise ValueError("neither a set nor a dictionary")
            else:
                items.append(item)
            count, comma = count + 1, False
        if opening == "[":
            return items
        if opening == "(":
            return items[0] if count == 1 and not comma else tuple(items)
        return {_hashable(item) for item in items} if items else pairs


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code is not None:
        return chr(int(code, 16))
    if match[4] is None:
        raise ValueError(f"unknown escape {match[0]!r}")
    return _PLAIN_ESCAPES[match[4]]


def _hashable(item: Any) -> Any:
    try:
        hash(item)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return item

"""Reads what Pyro's name servers and their clients say: serpent, which is Python's literals.

Serpent itself has Python's own parser read whatever comes, which runs out of stack on a deep
expression and warns on standard error about odd escapes; Pyro then makes objects of what names a
class, proxies included, which connect to wherever the sender says. Anyone may speak to a name
server, and anyone may pretend to be one. So here the parser sees only text that was found to be a
shallow literal, and nothing is made but None, truth values, numbers, strings, tuples, lists, sets
and dictionaries. Pure.
"""

from __future__ import annotations

import ast
import re
from typing import Any

#: Containers within containers. Pyro's own messages have four. Larger: a deep recursion.
_DEEPEST = 16

# Of the escapes those that Python knows, without halves of characters, which cannot be sent on.
_ESCAPE = (
    r"""\\(?:[\\'"nrt]|x[0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"""
    r"""|U(?:000[1-9a-fA-F]|0010)[0-9a-fA-F]{4})"""
)
_TOKEN = re.compile(
    rf"""(?:\s|\#[^\n]*\n)*(?:
    (?P<opening>[\[({{])
    |(?P<closing>[])}}])
    |(?P<between>[,:])
    |(?P<atom>'(?:[^'\\\n\r\0]|{_ESCAPE})*'|"(?:[^"\\\n\r\0]|{_ESCAPE})*"
        |-?(?:0|[1-9][0-9]{{0,19}})(?:\.[0-9]{{1,40}})?(?:e[-+]?[0-9]{{1,5}})?(?![\w.])
        |(?:None|True|False)(?!\w))
    |(?P<end>\Z))""",
    re.VERBOSE,
)


def loads(data: bytes | bytearray) -> Any:
    """The value that `data` states. Raises `ValueError` for everything else."""
    text = bytes(data).decode("utf-8")
    _check(text)
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f"no plain literal: {error}") from error


def _check(text: str) -> None:
    """Raise `ValueError` unless these are tokens of literals, and none of them nests deeply.

    A bracket after a value would be a call or an index, and a chain of those is deep as well.
    """
    at = depth = 0
    may_begin = True
    while (match := _TOKEN.match(text, at)) is not None:
        kind = match.lastgroup
        if kind == "end":
            return
        if kind in ("opening", "atom") and not may_begin:
            break
        may_begin = kind in ("opening", "between")
        depth += (kind == "opening") - (kind == "closing")
        if depth > _DEEPEST:
            break
        at = match.end()
    raise ValueError(f"no plain literal at character {at}")

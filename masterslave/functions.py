"""Functions on their way from a client to workers: what is kept of them, and under which name.

A function is pickled once and kept as a data item under a name that is made of its content
(SHA-256), so that a slave fetches it once, however many calls there are. A call holds that name and
its own arguments.

| item of a function | holds                                                                     |
|--------------------|---------------------------------------------------------------------------|
| first piece        | JSON: `Surroundings`, `by_value`, version of Python, name to be shown     |
| others             | a frame (`payload`): the pickled function                                 |

| frame of a call | bytes  | holds                                                                 |
|-----------------|--------|-----------------------------------------------------------------------|
| first piece     | 0-3    | ``MSCA``                                                              |
|                 | 4      | ``1``: arguments of one call; ``n``: a list of those of several       |
|                 | 5-36   | SHA-256 of the function's item                                        |
|                 | 37-    | the arguments' frame, if it is a single piece; else nothing           |
| others          |        | the arguments' frame, if it is more than that                         |

A function is always sent as it is when it is submitted. To pickle it again for each call would
cost more than the call, so what was sent before is compared with what it refers to now: by identity
where that cannot change (numbers, text, bytes, functions made of such), else by content.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import platform
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import cloudpickle

from masterslave.payload import Codec, describe
from masterslave.records import Frame, Piece, frame_bytes
from masterslave.unpicklable import names_used

MAGIC = b"MSCA"
ONE, MANY = b"1", b"n"
HEADER_BYTES = len(MAGIC) + 1 + 32

#: Functions that no call needs at present are kept for the next one, so many and of this size
#: together. Larger: memory in the task manager and on each node. Smaller: a program that makes the
#: same function again and again has it sent again.
IDLE_FUNCTIONS, IDLE_BYTES = 64, 1 << 26

#: How many parts of a function are looked at to see whether it can change. Larger: a function that
#: refers to very much costs time at each call. Smaller: more functions are pickled for comparison.
_MOST_PARTS = 200

#: Living functions that are known to be what they were. Larger: those that refer to themselves
#: through others stay in memory. Smaller: programs with many functions pickle them for each call.
_MOST_KNOWN = 1000

#: Pieces below this size are looked at to see how a function was pickled; code is in them.
_HEAD_BYTES = 1 << 20

_ATOMS = (
    int, float, complex, str, bytes, bool, type(None), type(Ellipsis), types.ModuleType,
    types.CodeType,
)  # fmt: skip


def item_name(digest: bytes) -> str:
    """The name of the data item of the function with that digest."""
    return f"function_{digest.hex()}"


def call_frame(kind: bytes, digest: bytes, arguments: Frame) -> Frame:
    """The frame of a call, from the frame of its arguments."""
    header = MAGIC + kind + digest
    if len(arguments) == 1:
        return [header + bytes(arguments[0])]
    return [header, *arguments]


def read_call(frame: Frame) -> tuple[bytes, bytes, Frame]:
    """The inverse of `call_frame`: kind, digest, the frame of the arguments."""
    head = memoryview(frame[0])
    if bytes(head[: len(MAGIC)]) != MAGIC or len(head) < HEADER_BYTES:
        raise ValueError("this is not the frame of a call")
    kind = bytes(head[len(MAGIC) : len(MAGIC) + 1])
    digest = bytes(head[len(MAGIC) + 1 : HEADER_BYTES])
    if len(head) > HEADER_BYTES:
        return kind, digest, [head[HEADER_BYTES:], *frame[1:]]
    return kind, digest, frame[1:]


class Surroundings(NamedTuple):
    """What a function expects to find around it."""

    cwd: str | None  # the client's working directory; None: it does not matter
    sys_path: tuple[str, ...]  # the client's, absolute
    host: str  # of the client
    initializer: str  # name of the item of what a worker calls first; "": nothing


class Functions:
    """The functions of one client that task managers and slaves have. Used by many threads."""

    def __init__(
        self,
        codec: Codec,
        store: Callable[[str, Frame], object],
        delete: Callable[[str], object],
        surroundings: Callable[[], Surroundings],
    ) -> None:
        """`store` and `delete` keep a data item, and drop it; both may block."""
        self._codec = codec
        self._store = store
        self._delete = delete
        self._surroundings = surroundings
        self._lock = threading.RLock()
        self._known: OrderedDict[int, _Known] = OrderedDict()  # by the function's identity
        self._dead: deque[tuple[int, _Known]] = deque()  # their function has gone
        self._items: dict[bytes, _Item] = {}  # by digest
        self._idle: OrderedDict[bytes, int] = OrderedDict()  # digest -> size, oldest use first

    def use(self, function: Callable[..., Any], count: int = 1) -> bytes:
        """Have the function kept, as it is now, until so many calls are released.

        Gives its digest.

        Raises `PayloadError` when it cannot be pickled, and what `store` raises.
        """
        around = self._surroundings()
        with self._lock:
            self._bury()
            known = self._known.get(id(function))
            if known is not None and (known.ref() is not function or known.around != around):
                known = None
            if known is not None and self._is_unchanged(function, known):
                digest = known.digest
            else:
                digest = self._keep(function, around)
            self._take(digest, count)
            return digest

    def release(self, digest: bytes, count: int = 1) -> None:
        """So many calls do not need their function any more."""
        with self._lock:
            self._bury()
            self._let_go(digest, count)

    def close(self) -> None:
        """Have all dropped."""
        with self._lock:
            names = list(map(item_name, self._items))
            self._items.clear()
            self._idle.clear()
            self._known.clear()
        for name in names:
            self._delete(name)

    # --- inside (all with the lock held) ----------------------------------------------------

    def _is_unchanged(self, function: Callable[..., Any], known: _Known) -> bool:
        if known.by_reference:
            return True
        parts = lasting_parts(function)
        if parts is not None and known.parts is not None and _are_same(parts, known.parts):
            return True
        now = self._codec.encode(function, _name(function), copy=False)
        if not _are_equal(now, self._items[known.digest].pieces[1:]):
            return False
        known.parts = parts
        return True

    def _keep(self, function: Callable[..., Any], around: Surroundings) -> bytes:
        """Have a function kept that is new, or has changed; gives its digest."""
        frame = self._codec.encode(function, _name(function))
        heads = (bytes(piece) for piece in frame if len(piece) < _HEAD_BYTES)
        head = {
            **around._asdict(),
            "by_value": any(b"cloudpickle" in piece for piece in heads),
            "python": list(sys.version_info[:2]),
            "name": _name(function),
        }
        pieces: Frame = [json.dumps(head, sort_keys=True).encode(), *frame]
        digest = _digest(pieces)
        if digest not in self._items:
            self._store(item_name(digest), pieces)
            self._items[digest] = _Item(pieces)
            self._idle[digest] = frame_bytes(pieces)
        self._remember(function, around, digest)
        return digest

    def _remember(self, function: Callable[..., Any], around: Surroundings, digest: bytes) -> None:
        key = id(function)
        before = self._known.pop(key, None)
        if before is not None:
            self._take(digest)  # it is not to be dropped for want of room meanwhile
            self._let_go(before.digest)
            self._let_go(digest)
        known = _Known(around, digest)
        dead = self._dead
        try:
            # Called anywhere, in the middle of anything: so it only leaves a note.
            known.ref = weakref.ref(function, lambda ref: dead.append((key, known)))
        except TypeError:  # pickled and digested each time
            return
        known.by_reference = is_by_reference(function)
        known.parts = lasting_parts(function)
        self._take(digest)
        self._known[key] = known
        if len(self._known) > _MOST_KNOWN:
            _, oldest = self._known.popitem(last=False)
            self._let_go(oldest.digest)

    def _bury(self) -> None:
        while self._dead:
            key, known = self._dead.popleft()
            if self._known.get(key) is known:
                del self._known[key]
                self._let_go(known.digest)

    def _take(self, digest: bytes, count: int = 1) -> None:
        self._idle.pop(digest, None)
        self._items[digest].uses += count

    def _let_go(self, digest: bytes, count: int = 1) -> None:
        item = self._items.get(digest)
        if item is None:
            return  # closed
        item.uses -= count
        if item.uses:
            return
        self._idle[digest] = frame_bytes(item.pieces)
        while len(self._idle) > IDLE_FUNCTIONS or (
            len(self._idle) > 1 and sum(self._idle.values()) > IDLE_BYTES
        ):
            oldest, _ = self._idle.popitem(last=False)
            del self._items[oldest]
            self._delete(item_name(oldest))


class _Item:
    """What is kept under one digest."""

    __slots__ = ("pieces", "uses")

    def __init__(self, pieces: Frame) -> None:
        self.pieces = pieces
        self.uses = 0  # calls and living functions that need it


class _Known:
    """A function that lives in the client, as it was when it was last looked at."""

    def __init__(self, around: Surroundings, digest: bytes) -> None:
        self.around = around
        self.digest = digest
        self.ref: Callable[[], object] = lambda: None
        self.by_reference = False  # it is a module's, which workers import
        self.parts: list[Any] | None = None  # see `lasting_parts`


def is_by_reference(value: Any) -> bool:
    """Whether it is a module's, and pickled as its name."""
    if not isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return False
    name = getattr(value, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or name == "__main__" or _is_by_value(str(name)):
        return False
    found: Any = module
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _is_by_value(module: str) -> bool:
    """Whether what a module defines is pickled by value, on request."""
    registered = cloudpickle.list_registry_pickle_by_value()
    parts = module.split(".")
    return bool(registered) and any(
        ".".join(parts[:count]) in registered for count in range(1, len(parts) + 1)
    )


def lasting_parts(function: Any) -> list[Any] | None:
    """All that a function refers to that is pickled by value; None if some of it can change.

    As long as these are the same objects, it would be pickled to the same.
    """
    parts: list[Any] = []
    left = [function]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if len(parts) > _MOST_PARTS:
            return None
        if value is not function:  # it would be kept from going
            parts.append(value)
        if isinstance(value, _ATOMS) or is_by_reference(value):
            continue
        if type(value) in (tuple, frozenset):
            left += value
        elif type(value) is types.FunctionType:
            if id(value) not in seen:  # it may refer to itself
                seen.add(id(value))
                left += _parts_of(value)
        else:
            return None
    return parts


def _parts_of(function: types.FunctionType) -> list[Any]:
    parts: list[Any] = [function.__code__, function.__defaults__]
    for cell in function.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            parts.append(_EMPTY)
    used = names_used(function.__code__)
    parts += [function.__globals__.get(name, _EMPTY) for name in sorted(used)]
    for named in (function.__kwdefaults__ or {}, vars(function)):
        for key in sorted(named):
            parts += [key, named[key]]
    return parts


_EMPTY = types.ModuleType("nothing")  # an atom, and nobody else's


def _are_same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _are_equal(some: Frame, others: Frame) -> bool:
    return len(some) == len(others) and all(map(_is_equal, some, others))


def _is_equal(piece: Piece, other: Piece) -> bool:
    if type(piece) is bytes and type(other) is bytes:
        return piece == other
    if len(piece) != len(other):
        return False
    some, others = memoryview(piece).cast("B"), memoryview(other).cast("B")
    whole = len(some) & ~7  # eight bytes at a time, as views are compared item by item
    same = some[:whole].cast("Q") == others[:whole].cast("Q")
    return same and some[whole:] == others[whole:]


def _digest(pieces: Frame) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)
    return digest.digest()


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or describe(function)


def client_surroundings(cwd: str | None, initializer: str = "") -> Surroundings:
    """What calls find around them that are submitted now."""
    global _path_seen
    seen = _path_seen
    if seen[0] != sys.path or seen[1] != cwd:
        entries = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        seen = _path_seen = list(sys.path), cwd, tuple(dict.fromkeys(entries))
    return Surroundings(cwd, seen[2], _HOST, initializer)


#: The import path and directory that were last made absolute, and what came of it.
_path_seen: tuple[list[str], str | None, tuple[str, ...]] = [], None, ()
_HOST = platform.node()

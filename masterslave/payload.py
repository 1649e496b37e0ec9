"""Payloads: how parameters and results become frames of bytes, and come back.

A frame is a list: first the pickle (protocol 5), then the large buffers that it refers to, out of
band (PEP 574) and unjoined. Only clients and workers use this module; the task manager moves
frames without looking into them.

No item of a frame is longer than `pieces.PIECE_BYTES`, so that messages of every kind can carry
it; values may be of any size. What is longer is cut, and then an index comes first:

| item of the frame | bytes | plain frame                     | cut frame                          |
|-------------------|-------|---------------------------------|------------------------------------|
| first             | 0-3   | beginning of the pickle, 80 05  | ``MSCF``, which no such pickle is  |
|                   | 4-    | rest of the pickle              | length of the pickle, then of each |
|                   |       |                                 | buffer, 8 bytes each, big-endian   |
| others            |       | one buffer each                 | pickle and buffers in pieces of    |
|                   |       |                                 | any length; each begins a new one  |

What a program's own script defines (``__main__``) is pickled by name when the receiver runs the
same script, so that classes stay the same class on both sides, and by value (cloudpickle)
otherwise: a notebook's functions and classes travel too.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import cloudpickle

from masterslave import pieces, unpicklable, versions
from masterslave.errors import PayloadError, RemoteException
from masterslave.records import Frame, Piece

#: Buffers of at least this size travel beside the pickle instead of inside it. Larger: big arrays
#: are copied once more. Smaller: a frame of many small arrays costs more in pieces than in copies.
OUT_OF_BAND_BYTES = 65536

#: Of an exception's text where the exception itself cannot be brought over.
_TEXT_CHARACTERS = 10_000

#: Begins the index of a cut frame.
_CUT = b"MSCF"

#: A pickler hands over bytes objects of at least this size as they are: they become pieces without
#: a copy. Its own output comes in parts of about 64 KiB, and those are joined. Larger: bytes
#: objects are copied once more. Smaller: output is taken for such an object, and stays in parts.
_KEPT_BYTES = 1 << 20

#: Buffers are lent whole up to this part of `pieces.PIECE_BYTES`, larger ones in parts. Larger:
#: the first of a few large arrays is on its way later, as one thread copies it. Smaller: two
#: threads are at work on what one does as well.
_WHOLE_PART = 2

#: Begins each pickle of protocol 2 and later.
_PROTO = b"\x80"

#: Values of these types are pickled as they are; texts if they are no longer than this.
_NUMBERS = frozenset((int, float, bool, complex, type(None)))
_TEXTS = frozenset((str, bytes))
_SHORT = 4096


class Memory(Protocol):
    """Where large buffers may be that other processes are to get; `shared` is one."""

    def lend(self, data: Piece) -> Piece | None:
        """A copy of the buffer that can be handed to others as it is; None: it is not to be."""

    def lend_parts(self, data: Piece) -> Sequence[Piece] | None:
        """The same of a larger buffer, in parts of `PIECE_BYTES` at most."""

    def take(self, parts: Sequence[Piece], *, owned: bool) -> Piece | None:
        """One writable buffer, nobody else's, of parts that are in such memory, without a copy.

        None where that cannot be. `owned`: the parts themselves may be taken.
        """


class Codec:
    """Turns values into frames and back, for one program.

    `main_id` identifies the script that is this process's ``__main__``: None where there is none
    (interactive), or where peers may run another one. `shared_main` says that every peer runs the
    same script, which allows the fastest way. `memory` takes large buffers, if it is given.
    `modules_by_value`: there are modules (`cloudpickle.register_pickle_by_value`) that peers cannot
    import, so that nothing may be pickled the fast way.
    """

    def __init__(
        self,
        main_id: str | None = None,
        *,
        shared_main: bool = False,
        memory: Memory | None = None,
        modules_by_value: bool = False,
    ) -> None:
        self.main_id = main_id
        self.modules_by_value = modules_by_value
        self.shared_main = shared_main
        self.memory = memory

    def encode(self, value: Any, name: str = "", *, copy: bool = True) -> Frame:
        """Pickle `value`. Raises `PayloadError` that says what in it cannot be pickled, and why.

        `name`: what the path to that begins with. `copy`: False where the frame is used up before
        anything can change the value's arrays; the frame refers to their memory then.
        """
        plain = plain_frame(value)
        if plain is not None:
            return plain
        buffers: list[Piece] = []

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if len(view) < OUT_OF_BAND_BYTES:
                return True
            buffers.append(view)
            return False

        head: list[bytes] = []
        try:
            pickle.Pickler(_sink(head.append), protocol=5, buffer_callback=keep_inside).dump(value)
            by_value = not self.shared_main and any(map(_names_main, head))
        except Exception:
            by_value = True  # a lambda, a closure, a local class
        # Or the receiver may not have what is named of this script, or of such a module.
        if by_value or self.modules_by_value:
            head.clear()
            buffers.clear()
            try:
                _ByValuePickler(self.main_id, _sink(head.append), keep_inside).dump(value)
            except Exception as error:
                raise self._refusal(value, name, error) from error
        if len(head) == 1 and not buffers and len(head[0]) < _KEPT_BYTES:
            return [head[0]]  # most values
        frame: Frame = list(_joined_parts(head))
        whole = pieces.PIECE_BYTES  # so many bytes are not cut
        may_stay = len(frame) == 1 and len(frame[0]) <= whole
        if self.memory is not None:
            whole //= _WHOLE_PART
        if may_stay and all(len(buffer) <= whole for buffer in buffers):
            return frame + [self._kept(buffer, copy) for buffer in buffers]
        lengths = [sum(map(len, frame)), *map(len, buffers)]
        index = _CUT + struct.pack(f"!{len(lengths)}Q", *lengths)
        frame = [piece for part in frame for piece in pieces.cut(part)]
        for buffer in buffers:
            if len(buffer) <= whole:
                frame.append(self._kept(buffer, copy))
                continue
            lent = self.memory.lend_parts(buffer) if self.memory is not None else None
            if lent is not None:
                frame += lent
            else:
                frame += map(_own, pieces.cut(buffer)) if copy else pieces.cut(buffer)
        return [index, *frame]

    def _kept(self, buffer: Piece, copy: bool) -> Piece:
        lent = self.memory.lend(buffer) if self.memory is not None else None
        if lent is not None:
            return lent
        return _own(buffer) if copy else buffer

    def _refusal(self, value: Any, name: str, error: Exception) -> PayloadError:
        """What is to be said when a value cannot be pickled."""

        def failure(part: Any) -> Exception | None:
            try:
                _ByValuePickler(self.main_id, _sink(len), lambda buffer: False).dump(part)
            except Exception as refusal:
                return refusal
            return None

        found = unpicklable.find(value, name or "value", failure)
        if found is None:
            return PayloadError(f"{describe(value)} cannot be pickled: {error}")
        kind = type(found.part)
        where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        return PayloadError(
            f"{found.path} (a {where}{kind.__qualname__}) cannot be pickled: {found.error}"
        )

    def decode(self, frame: Frame, *, owned: bool = False) -> Any:
        """Rebuild the value. Arrays are writable. Raises `PayloadError` with the reason.

        `owned`: nobody else needs the frame: arrays may take over its memory, and when it was cut
        it is emptied, so that joining its pieces takes little more memory than the value itself.
        """
        try:
            if len(frame) == 1 and type(frame[0]) is bytes and frame[0][:1] == _PROTO:
                return pickle.loads(frame[0])  # most values
            if frame[0][: len(_CUT)] != _CUT:
                buffers = frame[1:] and [
                    self._writable(deque((part,)), owned) for part in frame[1:]
                ]
                return pickle.loads(frame[0], buffers=buffers)
            parts = deque(frame)
            if owned:
                frame.clear()
            head = parts.popleft()
            head_length, *lengths = (n for (n,) in struct.iter_unpack("!Q", head[len(_CUT) :]))
            stream = _Stream(_taken(parts, head_length))
            arrays = (self._writable(_taken(parts, length), owned) for length in lengths)
            return pickle.Unpickler(stream, buffers=arrays).load()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PayloadError(f"a value cannot be unpickled here: {reason}") from error

    def _writable(self, parts: deque[Piece], owned: bool) -> Piece:
        """One buffer that may be written to, made of these parts."""
        taken = None
        if self.memory is not None and parts:
            taken = self.memory.take(parts, owned=owned)
        return _joined(parts, owned) if taken is None else taken

    def encode_exception(self, error: BaseException) -> Frame:
        """Pickle an exception so that it surely can be unpickled, else a stand-in for it."""
        error = error.with_traceback(None)
        try:
            frame = self.encode(error)
            self.decode(frame)
        except Exception:  # its class decides what can go wrong there
            kind = type(error)
            stand_in = RemoteException(f"{kind.__module__}.{kind.__qualname__}", _text(error))
            frame = self.encode(stand_in)
        return frame

    def decode_exception(self, frame: Frame, detail: str) -> BaseException:
        """Rebuild an exception; where that fails, a stand-in made of the remote traceback."""
        try:
            value = self.decode(frame)
        except PayloadError:
            last = detail.strip().rpartition("\n")[2]
            name, _, text = last.partition(": ")
            return RemoteException(name, text)
        return value if isinstance(value, BaseException) else RemoteException(repr(value), "")


def plain_frame(value: Any) -> Frame | None:
    """The frame of a number, a short text or the like, or a tuple of such, whose codec does not
    matter: nothing is to be taken out of it, and nothing is of a script. None: it is no such.
    """
    kind = type(value)
    if kind is tuple:
        for item in value:
            kind = type(item)
            if kind not in _NUMBERS and (kind not in _TEXTS or len(item) > _SHORT):
                return None
    elif kind not in _NUMBERS and (kind not in _TEXTS or len(value) > _SHORT):
        return None
    return [pickle.dumps(value, 5)]


class _Sink:
    """A pickler's file, whose `write` is given to it."""

    __slots__ = ("write",)
    write: Callable[[bytes], object]


def _sink(write: Callable[[bytes], object]) -> _Sink:
    sink = _Sink()
    sink.write = write
    return sink


def _names_main(part: bytes) -> bool:
    return len(part) < _KEPT_BYTES and b"__main__" in part


def _joined_parts(parts: list[bytes]) -> Iterator[bytes]:
    """A pickler's output, which is used up, in large parts.

    The pickler's own small parts are joined. Large bytes objects that it only passed stay as they
    are.
    """
    small: list[bytes] = []
    size = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        kept = len(part) >= _KEPT_BYTES
        if small and (kept or size + len(part) > pieces.PIECE_BYTES):
            yield b"".join(small)
            small, size = [], 0
        if kept:
            yield bytes(part)  # itself, but a bytearray, which may change, is copied
        else:
            small.append(part)
            size += len(part)
    if small:
        yield b"".join(small)


def _own(part: Piece) -> bytes:
    """A copy of what a buffer shows now."""
    return bytes(part)


def _writable(part: Piece, owned: bool) -> Piece:
    """The part itself if it may be written to, else a copy."""
    return part if owned and isinstance(part, bytearray) else bytearray(part)


def _taken(parts: deque[Piece], length: int) -> deque[Piece]:
    """Take the pieces that make up so many bytes off the left."""
    taken: deque[Piece] = deque()
    while length > 0:
        taken.append(parts.popleft())
        length -= len(taken[-1])
    if length:
        raise ValueError("the pieces of a frame are not those of its index")
    return taken


def _joined(parts: deque[Piece], owned: bool) -> Piece:
    """One writable buffer made of pieces; each is let go of as soon as it is copied."""
    if len(parts) == 1:
        return _writable(parts[0], owned)
    whole = bytearray()  # grows with what comes; at its full size it would take memory at once
    while parts:
        whole += parts.popleft()
    return whole


_NOTHING = memoryview(b"")  # an empty view of a piece would keep the piece


class _Stream:
    """A file for an unpickler over pieces; each is let go of when it has been read."""

    def __init__(self, parts: deque[Piece]) -> None:
        self._parts = parts
        self._rest = _NOTHING

    def readinto(self, target: Any) -> int:
        view = memoryview(target)
        got = 0
        while got < len(view) and (self._rest or self._parts):
            if not self._rest:
                self._rest = memoryview(self._parts.popleft())
            count = min(len(view) - got, len(self._rest))
            view[got : got + count] = self._rest[:count]
            self._rest = self._rest[count:] or _NOTHING
            got += count
        return got

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: self.readinto(data)])

    def readline(self) -> bytes:  # unpicklers ask for it; protocol 5 has no lines
        line = b""
        while not line.endswith(b"\n") and (byte := self.read(1)):
            line += byte
        return line


def own_versions() -> str:
    """This process's line for `ProcessInfo.versions`."""
    return versions.as_line(
        {
            "python": ".".join(map(str, sys.version_info[:3])),
            "cloudpickle": cloudpickle.__version__,
            "masterslave": sys.modules["masterslave"].__version__,
            "protocol": str(versions.PROTOCOL),
        }
    )


def describe(value: Any, limit: int = 60) -> str:
    """A short description of a value for messages: its type and the beginning of its repr."""
    try:
        text = repr(value)
    except Exception:  # a repr of the user's may do anything
        text = "..."
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return f"{type(value).__name__} {text}"


def script_id(source: str) -> str:
    """Identifies a script by its text: the same text is the same script on every machine."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()


def set_main_id(main_id: str | None) -> None:
    """State which script is this process's ``__main__``, for what peers pickle by name."""
    _Main.id = main_id


def is_main(main_id: str | None) -> bool:
    """Whether that script is this process's ``__main__``, as far as it has been stated."""
    return main_id is not None and main_id == _Main.id


class _Main:
    """The identity of this process's ``__main__``; a class so that there is one of it."""

    id: str | None = None


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a __str__ of the user's may do anything
        return "(its text cannot be shown)"
    return clean(text, _TEXT_CHARACTERS)


def clean(text: str, limit: int) -> str:
    """The text as every encoder takes it, and at most so long: the middle is left out."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n...\n{text[-limit // 2 :]}"
    return text.encode("utf-8", "replace").decode("utf-8")


#: What other programs' scripts define and was brought here by value: where it is from, and, of what
#: `keep_named` was told, the way to it.
_origins: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()
_brought: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()


def resolve_main(main_id: str, qualname: str, by_value: bytes) -> Any:
    """Called while unpickling: what a peer's script defines, taken from here if it is the same."""
    here = main_id == _Main.id
    found = _named_in_main(qualname) if here else _brought.get((main_id, qualname))
    if found is None:
        found = cloudpickle.loads(by_value)
        _origins[found] = main_id, qualname
    return found


def named_in_main(value: Any) -> dict[str, Any]:
    """The classes and functions of this process's script that `value` refers to, by name.

    Sent beside it by value and given to `keep_named` there, they stay the same classes on both
    sides, though the receiver never runs the script. What cannot be pickled ends the search.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # `Codec.encode` says what cannot be pickled, and why
        _Finder(found).dump(value)
    return found


def keep_named(main_id: str, named: dict[str, Any]) -> None:
    """What was brought here by value is that of the script `main_id` by these names."""
    for qualname, value in named.items():
        _origins[value] = main_id, qualname
        _brought[main_id, qualname] = value


def _named_in_main(qualname: str) -> Any:
    """What ``__main__`` has under a qualified name; None if nothing."""
    found: Any = sys.modules["__main__"]
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


#: What cloudpickle gives as the file of all code.
_NO_FILE = "<dynamic-code>"


class _ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, except that classes and functions of a known script carry its identity."""

    def __init__(self, main_id: str | None, stream: _Sink, keep_inside: Any) -> None:
        super().__init__(stream, protocol=5, buffer_callback=keep_inside)
        self._main_id = main_id

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, CodeType):
            # With its file's name, which cloudpickle leaves out: a traceback without is of no use.
            make, args, *_ = self.dispatch_table[CodeType](obj)
            named = (obj.co_filename if arg == _NO_FILE else arg for arg in args)
            return make, tuple(named)
        if _is_of_main(obj):
            origin = _origins.get(obj)
            if origin is None and self._main_id is not None and _is_named(obj):
                origin = self._main_id, obj.__qualname__
            if origin is not None:
                return resolve_main, (*origin, cloudpickle.dumps(obj, 5))
        return super().reducer_override(obj)


class _Finder(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles to nowhere and takes note of what it meets of this process's script."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__(_sink(len), protocol=5, buffer_callback=lambda buffer: False)
        self._found = found

    def reducer_override(self, obj: Any) -> Any:
        if _is_of_main(obj) and _is_named(obj):
            self._found[obj.__qualname__] = obj
        return super().reducer_override(obj)


def _is_of_main(obj: Any) -> bool:
    return isinstance(obj, (type, FunctionType)) and obj.__module__ == "__main__"


def _is_named(obj: Any) -> bool:
    return _named_in_main(obj.__qualname__) is obj

"""Payloads: how parameters and results become frames of bytes, and come back.

A frame is a list: first the pickle (protocol 5), then the large buffers that it refers to, out of
band (PEP 574) and unjoined. Only clients and workers use this module; the task manager moves
frames without looking into them.

What a program's own script defines (``__main__``) is pickled by name when the receiver runs the
same script, so that classes stay the same class on both sides, and by value (cloudpickle)
otherwise: a notebook's functions and classes travel too.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from types import FunctionType
from typing import Any

import cloudpickle

from masterslave.errors import PayloadError, RemoteException
from masterslave.records import MAX_FRAME_BYTES, Frame

#: Buffers of at least this size travel beside the pickle instead of inside it. Larger: big arrays
#: are copied once more. Smaller: a frame of many small arrays costs more in pieces than in copies.
OUT_OF_BAND_BYTES = 65536

#: Of an exception's text where the exception itself cannot be brought over.
_TEXT_CHARACTERS = 10_000


class Codec:
    """Turns values into frames and back, for one program.

    `main_id` identifies the script that is this process's ``__main__``: None where there is none
    (interactive), or where peers may run another one. `shared_main` says that every peer runs the
    same script, which allows the fastest way.
    """

    def __init__(self, main_id: str | None = None, *, shared_main: bool = False) -> None:
        self.main_id = main_id
        self.shared_main = shared_main

    def encode(self, value: Any) -> Frame:
        """Pickle `value`. Raises `PayloadError` with the reason when that cannot be done."""
        buffers: list[pickle.PickleBuffer] = []

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            if buffer.raw().nbytes < OUT_OF_BAND_BYTES:
                return True
            buffers.append(buffer)
            return False

        head = None
        try:
            head = pickle.dumps(value, protocol=5, buffer_callback=keep_inside)
        except Exception:
            buffers.clear()  # a lambda, a closure, a local class: by value, below
        if head is not None and not self.shared_main and b"__main__" in head:
            buffers.clear()
            head = None  # names something of this script, which the receiver may not have
        if head is None:
            stream = io.BytesIO()
            pickler = _ByValuePickler(self.main_id, stream, keep_inside)
            try:
                pickler.dump(value)
            except Exception as error:
                raise PayloadError(f"{describe(value)} cannot be pickled: {error}") from error
            head = stream.getvalue()
        size = len(head) + sum(buffer.raw().nbytes for buffer in buffers)
        if size > MAX_FRAME_BYTES:
            raise PayloadError(
                f"{describe(value)} takes {size} bytes, and at most {MAX_FRAME_BYTES} can travel: "
                "divide it, or pass a file's name"
            )
        return [head, *(bytes(buffer.raw()) for buffer in buffers)]

    def decode(self, frame: Frame) -> Any:
        """Rebuild the value. Arrays are writable. Raises `PayloadError` with the reason."""
        try:
            return pickle.loads(frame[0], buffers=[bytearray(piece) for piece in frame[1:]])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PayloadError(f"a value cannot be unpickled here: {reason}") from error

    def encode_exception(self, error: BaseException) -> Frame:
        """Pickle an exception so that it surely can be unpickled, else a stand-in for it."""
        error = error.with_traceback(None)
        try:
            frame = self.encode(error)
            pickle.loads(frame[0], buffers=[bytearray(piece) for piece in frame[1:]])
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


def resolve_main(main_id: str, qualname: str, by_value: bytes) -> Any:
    """Called while unpickling: what a peer's script defines, taken from here if it is the same."""
    found = _named_in_main(qualname) if main_id == _Main.id else None
    return cloudpickle.loads(by_value) if found is None else found


def _named_in_main(qualname: str) -> Any:
    """What ``__main__`` has under a qualified name; None if nothing."""
    found: Any = sys.modules["__main__"]
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


class _ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, except that classes and functions of a known script carry its identity."""

    def __init__(self, main_id: str | None, stream: io.BytesIO, keep_inside: Any) -> None:
        super().__init__(stream, protocol=5, buffer_callback=keep_inside)
        self._main_id = main_id

    def reducer_override(self, obj: Any) -> Any:
        if (
            self._main_id is not None
            and isinstance(obj, (type, FunctionType))
            and obj.__module__ == "__main__"
            and _named_in_main(obj.__qualname__) is obj
        ):
            return resolve_main, (self._main_id, obj.__qualname__, cloudpickle.dumps(obj, 5))
        return super().reducer_override(obj)

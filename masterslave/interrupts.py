"""Ctrl-C and SIGTERM in a master's program: raised where they do no harm.

Python raises what a signal's handler raises in the main thread, at whatever instruction that is. In
the midst of the task manager's bookkeeping this would leave its lock taken or its queue half
changed, and the program would hang instead of ending; a moment later, results would have been taken
that nobody ever gets. So the handlers here look where the main thread is. What counts is the
innermost function of these:

| function                                       | what happens                                |
|------------------------------------------------|---------------------------------------------|
| `interruptible`: it waits, and holds nothing   | raised at once                              |
| `uninterrupted`: it keeps books, or has results | a millisecond later they look again         |
| none of them: the user's own program           | raised at once, as ever                     |

It costs nothing as long as there is no signal. After two seconds it is raised in any case: a
function of somebody else that is called in between, or a disk, may hang.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import NoReturn, TypeVar

#: Until the handlers look again. Larger: an interrupt comes late. Smaller: they take the time that
#: the bookkeeping needs to come to its end.
_AGAIN_S = 0.001

#: After so long it is raised wherever the main thread is. Larger: what hangs there takes longer to
#: be interrupted. Smaller: on a busy machine, the bookkeeping is not at its end.
_PATIENCE_S = 2.0

_Thing = TypeVar("_Thing", bound=Callable[..., object])

_INTERRUPTIBLE: set[CodeType] = set()
_UNINTERRUPTED: set[CodeType] = set()


def interruptible(thing: _Thing) -> _Thing:
    """Decorates a function, or a class with all its methods, in which signals raise at once.

    But for methods that are `uninterrupted` themselves.
    """
    _INTERRUPTIBLE.update(code for code in _codes(thing) if code not in _UNINTERRUPTED)
    return thing


def uninterrupted(thing: _Thing) -> _Thing:
    """Decorates a function, or a class with all its methods, which signals let come to its end."""
    _UNINTERRUPTED.update(_codes(thing))
    return thing


def _codes(thing: Callable[..., object]) -> Iterator[CodeType]:
    functions = vars(thing).values() if isinstance(thing, type) else [thing]
    for function in functions:
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code


def _is_harmless(frame: FrameType | None) -> bool:
    """Whether an exception that is raised in this frame leaves all in order."""
    if frame is not None and frame.f_code is threading.Condition.wait.__code__:
        return True  # it has let go of the lock, and takes it again
    while frame is not None:
        if frame.f_code in _INTERRUPTIBLE:
            return True
        if frame.f_code in _UNINTERRUPTED:
            return False
        frame = frame.f_back
    return True


class _Handler:
    """Of one signal; called in the main thread, and so by one thread at a time."""

    def __init__(self, number: int, strike: Callable[[int, FrameType | None], NoReturn]) -> None:
        self._number = number
        self._strike = strike  # raises
        self._since: float | None = None  # when the signal came that is still to be raised
        self._looks_again = False  # whether a thread sends it once more
        self._is_sent_again = False  # whether it has: not every signal is a new one

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._is_sent_again:
            self._looks_again = self._is_sent_again = False
            if self._since is None:
                return  # another one came in between, and was raised
        elif self._since is None:
            self._since = now
        assert self._since is not None
        if now - self._since >= _PATIENCE_S or _is_harmless(frame) or not self._look_again():
            self._since = None
            self._strike(number, frame)

    def _look_again(self) -> bool:
        """False where that cannot be."""
        if not self._looks_again:
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                # Not by `threading`: the main thread may be within it, and hold its locks.
                _thread.start_new_thread(self._send_again, ())
                self._looks_again = True
        return self._looks_again

    def _send_again(self) -> None:
        time.sleep(_AGAIN_S)
        self._is_sent_again = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, self._number)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


_SIGINT = _Handler(signal.SIGINT, signal.default_int_handler)
_SIGTERM = _Handler(signal.SIGTERM, _leave)

_masters = 0
_lock = threading.Lock()


def begin() -> None:
    """A task manager is in this process: Ctrl-C is raised where it does no harm.

    Unless the program handles it itself, and only in the main thread. `asyncio.run` leaves it where
    it is, so Ctrl-C raises in its loop, as it did before Python 3.11.
    """
    global _masters
    with _lock:
        _masters += 1
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _SIGINT)


def end() -> None:
    """It is there no more."""
    global _masters
    with _lock:
        _masters -= 1
        is_ours = not _masters and signal.getsignal(signal.SIGINT) is _SIGINT
        if is_ours and _in_main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within it, SIGTERM raises SystemExit in the main thread, so that slaves are told to leave.

    Unless the program handles it itself.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()

"""A worker as its supervisor sees it: a child process, its pipe, its standard error, its death."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

from masterslave.board import Board, can_have_boards, create
from masterslave.memory import died_of_memory, private_bytes
from masterslave.pipe import SupervisorEnd
from masterslave.records import getMachineInfo
from masterslave.shortcut import Shortcut, can_have_shortcuts
from masterslave.slavecode import Record
from masterslave.units import format_bytes

#: Numerical libraries that would otherwise start as many threads as there are cores, in each
#: worker. Dask's nanny does the same.
_SINGLE_THREADED = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

#: Lines of a worker's standard error that are kept for the story of its death.
_TAIL_LINES = 20

_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent)
_BOOT = (
    "import sys; sys.path.insert(0, {parent!r}); import masterslave.worker as w; "
    "sys.path.remove({parent!r}); w.main({descriptor}, {pid}, {board}, {shortcut})"
)


def worker_command(
    descriptor: int,
    supervisor_pid: int,
    board: int | None = None,
    shortcut: tuple[int, int, int] | None = None,
) -> list[str]:
    """The command that starts a worker on an inherited socket, `board` and ends of a `shortcut`."""
    boot = _BOOT.format(
        parent=_PACKAGE_PARENT,
        descriptor=descriptor,
        pid=supervisor_pid,
        board=board,
        shortcut=shortcut,
    )
    return [sys.executable, "-c", boot]


def worker_environment(environ: dict[str, str]) -> dict[str, str]:
    """A worker's environment: one thread per numerical library unless the user said otherwise."""
    return {**dict.fromkeys(_SINGLE_THREADED, "1"), **environ}


class WorkerProcess:
    """Starts a worker at once; everything else is for the supervisor's loop."""

    def __init__(
        self,
        number: int,
        label: str,
        record: Record,
        memory: int | None = None,
        *,
        share: bool = True,
        shortcut: bool = False,
    ) -> None:
        """`memory`: bytes that it may have; None: no limit. `share`: as `SupervisorEnd` has it.

        `shortcut`: whether it is to have one, where that can be.
        """
        ours, theirs = socket.socketpair()
        self.number = number
        self.memory = memory
        self.memory_used = 0  # when last looked at
        self.ready = False
        self.pipe_closed = False
        self.stderr_ended = False
        self.shortcut: Shortcut | None = None
        self.shortcut_is_watched = False  # whether the selector tells of results there
        self.turns = 0  # by the shortcut, at the supervisor's last look
        with theirs, contextlib.ExitStack() as stack:
            board = None
            if share and can_have_boards():
                with contextlib.suppress(OSError):  # too many files: all goes by the pipe
                    board = create()
                    stack.callback(os.close, board)
            ends: tuple[int, int, int] | None = None
            if shortcut and board is not None and can_have_shortcuts():
                with contextlib.suppress(OSError):  # too many files: all goes by the pipe
                    self.shortcut = Shortcut()
                    ends = self.shortcut.worker_ends
            self.pipe = SupervisorEnd(
                ours, share=share, board=None if board is None else Board(board)
            )
            descriptors = [theirs.fileno(), *([] if board is None else [board]), *(ends or ())]
            self._process = subprocess.Popen(
                worker_command(theirs.fileno(), os.getpid(), board, ends),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
                env=worker_environment(dict(os.environ)),
                start_new_session=True,  # a terminal's ^C is the supervisor's to handle
            )
        assert self._process.stderr is not None
        self.stderr = self._process.stderr
        os.set_blocking(self.stderr.fileno(), False)
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._partial = ""
        self.exit_descriptor = _pidfd(self._process.pid)
        self.pipe.send(["code", label, record, memory, share])

    # --- its standard error -----------------------------------------------------------------

    def relay_stderr(self) -> bool:
        """Pass on what it wrote to standard error, keep the last lines.

        Reads what is there without waiting; false when there is nothing more, now or ever.
        """
        try:
            data = os.read(self.stderr.fileno(), 65536)
        except BlockingIOError:
            return False
        if not data:
            self.stderr_ended = True
            return False
        text = data.decode("utf-8", "replace")
        with contextlib.suppress(OSError, ValueError):  # our own standard error may be closed
            sys.stderr.write(text)
            sys.stderr.flush()
        lines = (self._partial + text).split("\n")
        self._partial = lines.pop()[-1000:]
        self._tail.extend(line[:1000] for line in lines)
        return True

    # --- its memory -------------------------------------------------------------------------

    def look_at_memory(self) -> None:
        """Note how much it uses now, for the story of its death."""
        self.memory_used = private_bytes(self._process.pid) or self.memory_used

    def ran_out_of_memory(self) -> bool:
        """Whether it died, as far as can be told from outside, of its memory limit."""
        status = self._process.returncode
        if self.memory is None or status is None:
            return False
        return died_of_memory(status, self.memory_used, self.memory, self._last_lines())

    # --- its end ----------------------------------------------------------------------------

    def has_ended(self) -> bool:
        """Whether the process is dead; does not wait.

        What it left in its process group is killed before its id can be given to another.
        """
        if self._process.returncode is None and hasattr(os, "waitid"):
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self._process.pid, options) is None:
                return False
            self.kill()
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill it, and what its handlers have started in its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def pause(self, paused: bool) -> None:
        """Stop it and what its handlers have started, or let them go on; for chaos."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def ask_to_leave(self) -> None:
        """Tell it to end when it has nothing to do."""
        self.pipe.send(["end"])

    def wait_or_kill(self, timeout_s: float) -> bool:
        """Wait for its end, and bring it about after `timeout_s` seconds; true if that was done."""
        if self.exit_descriptor is not None:
            poll = select.poll()
            poll.register(self.exit_descriptor, select.POLLIN)
            poll.poll(1000 * timeout_s)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        if self._process.returncode is not None or self.has_ended():
            return False
        self.kill()  # not reaped: its id is still its own
        self._process.wait()
        return True

    def close(self) -> None:
        """Free what belongs to a worker that has ended."""
        while self.relay_stderr():
            pass
        self.pipe.close()
        if self.shortcut is not None:
            self.shortcut.close()
        self.stderr.close()
        if self.exit_descriptor is not None:
            os.close(self.exit_descriptor)

    def beside(self) -> tuple[str, int] | None:
        """Id and attempt of the task by the shortcut that it runs, or ran when it died, or None."""
        return None if self.shortcut is None else self.shortcut.under_way()

    def was_told_to_end(self) -> bool:
        """Whether it died of a signal that batch systems send to all processes of a job."""
        return self._process.returncode in (-signal.SIGTERM, -signal.SIGUSR2)

    def left_by_itself(self) -> bool:
        """Whether it ended with status 0."""
        return self._process.returncode == 0

    def story(self) -> str:
        """How it ended: process, host, signal or exit status, last lines of standard error."""
        status = self._process.returncode
        if status is None:
            end = "is running"
        elif status >= 0:
            end = f"ended with exit status {status}"
        else:
            end = f"was killed by {_signal_name(-status)}"
        tail = self._last_lines()
        text = f"{getMachineInfo(self._process.pid)} {end}"
        if self.memory is not None:
            used, limit = format_bytes(self.memory_used), format_bytes(self.memory)
            text += f", using {used} of the {limit} of memory that it may have"
        if tail:
            text += "; last lines of standard error:\n" + "\n".join("    " + line for line in tail)
        return text

    def _last_lines(self) -> list[str]:
        return [*self._tail, *([self._partial] if self._partial else [])]


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def _pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, where the system has them."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None

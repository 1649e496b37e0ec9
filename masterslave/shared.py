"""Large buffers that travel by shared memory between processes of one host.

The lender copies a buffer into anonymous memory (a *segment*) and says where it is; the borrower
maps it, privately: writable, without a copy until it writes, and what it writes it alone sees::

    lender    array --copy--> segment (memfd: no name, freed by the system with its last holder)
                                 |   supervisor <-> worker: the descriptor itself (SCM_RIGHTS)
                                 |   over TCP: its name, to be opened as /proc/PID/fd/N
    borrower  array <--maps------+

In a frame both show as a `memoryview`, like any buffer; its `obj` knows which segment it belongs
to (`loan_of`). So everything else handles them as bytes: the journal, the wire to other hosts.

Nobody but the lender can change a segment (seals), and no one its size, so a borrower cannot be
killed by memory that has gone. A borrower asks the open descriptor for its owner, inode, size,
seals and stamp before it uses it.

**In parts.** What is large is lent in several segments, which the borrower maps one after the
other. They are of one class, so that those of arrays of one size serve for arrays of another.

**Used again.** Pages new from the system cost about eight times as much as the copy into them.
So a segment that came back is filled again, once nobody else has it: that is asked of the system,
which grants a write lease to the only one who has a file open. Borrowers have it open or mapped by
descriptors of their own, so it knows of all of them, those on their way and those killed included.
A name that is followed late finds another stamp. The order is: lease, new stamp, lease again; who
came before the second has the old contents, who comes later sees the new stamp.

Lender and borrower are one module, as each check of the one answers a duty of the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import pickle
import secrets
import signal
import stat
import struct
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from masterslave import pieces
from masterslave.records import Piece

try:
    import fcntl
    import resource
except ImportError:  # not on every system; `available` is false there
    fcntl = resource = None  # type: ignore[assignment]

#: Buffers of at least this size are lent. Larger: more is copied and signed. Smaller: what a
#: segment costs, some system calls on each side, is more than that.
LEND_BYTES = 1 << 17

#: Segments that are kept to be used again, together and each. Larger: an idle process keeps
#: more memory. Smaller: more buffers are copied into new pages.
_KEPT_BYTES = 192 << 20
_KEPT = 64

#: Part of the files that a process may have open which loans may take, those for one message only
#: included or not. Larger: the program itself may run out of files. Smaller: more is copied.
_PART_OF_FILES, _PART_FOR_ALL = 4, 2

#: Parts of a large buffer are no longer than this part of `pieces.PIECE_BYTES`, and at least half
#: of that. Larger parts: segments fit fewer sizes. Smaller: more files.
_PART = 4

#: Parts are pieces where they would be more than these, or loans take up more than that part of the
#: files that the process may have open. Larger, smaller: files are scarce sooner, later.
_MOST_PARTS, _PART_OF_FILES_FOR_PARTS = 8, 8

#: Segments of one class that are looked at for one that nobody has any more.
_LOOKS = 8

_F_SETSIG, _F_SETLEASE, _F_ADD_SEALS, _F_GET_SEALS = 10, 1024, 1033, 1034
_SEAL, _SHRINK, _GROW, _FUTURE_WRITE = 1, 2, 4, 16  # linux/fcntl.h, Linux 5.1
_NOT_EXECUTABLE = 8  # linux/memfd.h, Linux 6.3
_PROT_NONE, _MAP_FIXED = 0, 0x10  # linux/mman-common.h
_MADV_POPULATE_READ = 22  # linux/mman-common.h, Linux 5.14
_SEALS = _SHRINK | _GROW | _FUTURE_WRITE
_PAGE = mmap.PAGESIZE
_STAMP = struct.Struct("=Q")


class LoanError(OSError):
    """A loan cannot be used here: it is not there, or not what was announced."""


class Name(NamedTuple):
    """A segment, as its lender or holder names it to others."""

    descriptor: int  # of the process that names it
    inode: int
    size: int  # bytes of the segment
    stamp: int  # of its contents
    used: int  # bytes of it


# --- memory -----------------------------------------------------------------------------------


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def _map(
    descriptor: int,
    size: int,
    flags: int,
    address: int | None = None,
    protection: int = mmap.PROT_READ | mmap.PROT_WRITE,
) -> int:
    """The address of a mapping. Not by `mmap.mmap`, which keeps one more descriptor for each."""
    found = _libc().mmap(address, size, protection, flags, descriptor, 0)
    if found is None or found == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found)


def _populate(address: int, size: int) -> bool:
    """Have the pages of a mapping there at once; false when there is no memory for them.

    One by one, as they are first written to, they take twice as long as what is written.
    """
    if not _libc().madvise(address, size, _MADV_POPULATE_READ):
        return True
    return ctypes.get_errno() == errno.EINVAL  # an older system: one by one, then


def _reserve(size: int) -> int:
    """The address of so many bytes that nothing else is mapped to; they cannot be used."""
    return _map(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, None, _PROT_NONE)


class _Bytes:
    """What a view of a loan shows: memory, and the loan it belongs to."""

    loan: Loan


@functools.cache
def _bytes_type(capacity: int) -> Any:
    fields = {"_type_": ctypes.c_ubyte, "_length_": capacity}
    return type("_LoanBytes", (_Bytes, ctypes.Array), fields)


def _view(loan: Loan) -> memoryview:
    """The memory of a loan, which lives as long as the view or anything made of it."""
    memory = _bytes_type(_capacity(loan.name.used)).from_address(loan.address)
    memory.loan = loan
    return pickle.PickleBuffer(memory).raw()[: loan.name.used]


def _capacity(size: int) -> int:
    """Sizes come in powers of two, so that a segment fits again. What is not used costs nothing."""
    return max(_PAGE, 1 << (size - 1).bit_length())


_open_here: set[int] = set()  # descriptors of loans in this process


# What ends with its last use may end with the interpreter, when globals and modules are gone.


def _close(descriptor: int, close: Any = os.close, open_here: set[int] = _open_here) -> None:
    if descriptor >= 0:
        open_here.discard(descriptor)
        close(descriptor)


def _unmap(address: int, size: int, libc: Any = _libc) -> None:
    if address:
        libc().munmap(address, size)


def _has_files(part: int) -> bool:
    return len(_open_here) < resource.getrlimit(resource.RLIMIT_NOFILE)[0] // part


# --- the lender -------------------------------------------------------------------------------


def _anonymous_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("masterslave", flags | _NOT_EXECUTABLE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # an older system, which does not insist on it either
            raise
    return os.memfd_create("masterslave", flags)


class _Segment:
    """Memory of this process that others can map and not write to."""

    def __init__(self, data: Piece) -> None:
        self.pid = os.getpid()
        self.capacity = _capacity(len(data))
        self.size = self.capacity + _PAGE  # the stamp comes last
        self.touched = self.used = len(data)
        self._populated = 0  # bytes whose pages this process has, see `fill`
        self.stamp = secrets.randbits(64)
        self.address = 0
        self.descriptor = -1
        first = _anonymous_file()
        try:  # the system counts only what was opened in the ordinary way
            os.fchmod(first, stat.S_IRUSR | stat.S_IWUSR)
            self.descriptor = os.open(f"/proc/self/fd/{first}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(first)
        _open_here.add(self.descriptor)
        view = memoryview(data)
        written = 0
        while written < len(view):  # cheaper than the faults of a mapping that is new
            written += os.write(self.descriptor, view[written:])
        os.ftruncate(self.descriptor, self.size)
        os.pwrite(self.descriptor, _STAMP.pack(self.stamp), self.capacity)
        self.address = _map(self.descriptor, self.size, mmap.MAP_SHARED)
        fcntl.fcntl(self.descriptor, _F_ADD_SEALS, _SEALS | _SEAL)
        with contextlib.suppress(OSError):  # one who opens it now must not have us killed (SIGIO)
            fcntl.fcntl(self.descriptor, _F_SETSIG, signal.SIGURG)
        self.inode = os.fstat(self.descriptor).st_ino

    def is_ours_alone(self) -> bool:
        """Whether nobody else has it open or mapped."""
        try:
            fcntl.fcntl(self.descriptor, _F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False
        fcntl.fcntl(self.descriptor, _F_SETLEASE, fcntl.F_UNLCK)
        return True

    def fill(self, data: Piece) -> bool:
        """Put other contents into it; false, with the old ones in place, when that cannot be.

        That is when somebody has them, or there is no memory.
        """
        if not self.is_ours_alone():
            return False
        if len(data) > self._populated:  # it was written to, but not by the mapping
            if not _populate(self.address, -(-len(data) // _PAGE) * _PAGE):
                return False
            self._populated = len(data)
            self.touched = max(self.touched, self._populated)
        memory = _bytes_type(2 * self.capacity).from_address(self.address)
        self.stamp = secrets.randbits(64)
        _STAMP.pack_into(memory, self.capacity, self.stamp)
        if not self.is_ours_alone():
            return False
        view = pickle.PickleBuffer(memory).raw()
        view[: len(data)] = data
        self.used = len(data)
        return True

    def __del__(self, unmap: Any = _unmap, close: Any = _close) -> None:
        unmap(self.address, self.size)
        close(self.descriptor)


_kept: list[_Segment] = []  # may be used again; changed by single steps, as `__del__` comes anywhen


def _keep(segment: _Segment) -> None:
    if segment.pid != os.getpid() or not _can_use_again():
        return  # a fork has come between: it is the parent's, too
    _kept.append(segment)
    while len(_kept) > _KEPT or sum(one.touched for one in list(_kept)) > _KEPT_BYTES:
        try:
            _kept.pop(0)
        except IndexError:
            break


def trim() -> None:
    """Give what is kept to be used again back to the system; for a process that is idle."""
    _kept.clear()


def keeps() -> bool:
    """Whether there is anything to `trim`."""
    return bool(_kept)


def _used_again(data: Piece) -> _Segment | None:
    capacity, looks = _capacity(len(data)), 0
    for segment in list(_kept):
        if segment.capacity != capacity:
            continue
        try:
            _kept.remove(segment)
        except ValueError:  # another thread has it
            continue
        if segment.pid != os.getpid():
            continue
        if segment.fill(data):
            return segment
        _kept.append(segment)
        looks += 1
        if looks == _LOOKS:
            break
    return None


class Loan:
    """A segment's contents in use in this process; ends with the last view of them."""

    name: Name
    address: int

    @property
    def descriptor(self) -> int:
        """Through which others can be given it; -1 where there is none any more."""
        return self.name.descriptor


class _Lent(Loan):
    """What this process lends; its own view must not be written to."""

    def __init__(self, segment: _Segment) -> None:
        self._segment = segment
        self.address = segment.address
        self.name = Name(
            segment.descriptor, segment.inode, segment.size, segment.stamp, segment.used
        )

    def __del__(self) -> None:
        if _keep is not None:  # else the interpreter ends
            _keep(self._segment)


def lend(data: Piece, *, part: int = _PART_OF_FILES) -> memoryview | None:
    """A copy of `data` that can be handed to other processes; None where that is not to be.

    Not for small buffers, nor when loans take up too many of the files that may be open.
    """
    if len(data) < LEND_BYTES or not available():
        return None
    segment = _used_again(data)
    if segment is None:
        if not _has_files(part):
            return None
        try:
            segment = _Segment(data)
        except OSError:  # no memory, no file
            return None
    return _view(_Lent(segment))


def lend_parts(data: Piece) -> list[memoryview] | None:
    """As `lend`, of what is large: in parts, which `take` makes one of again.

    Two threads copy them. New pages cost more than the copy into them, and the system makes them
    in parallel for different segments only: of 100 MB it takes two thirds of the time.
    """
    longest = pieces.PIECE_BYTES // _PART
    if len(data) > _MOST_PARTS * longest or not _has_files(_PART_OF_FILES_FOR_PARTS):
        longest = pieces.PIECE_BYTES
    count = max(2, -(-len(data) // longest))
    parts = list(pieces.cut(data, -(-len(data) // (count * _PAGE)) * _PAGE))
    lent: list[memoryview | None] = [None] * len(parts)
    places = iter(range(len(parts)))

    def lend_some() -> None:
        for place in places:
            lent[place] = lend(parts[place])

    other = threading.Thread(target=lend_some, daemon=True)
    try:
        other.start()
    except RuntimeError:  # this user has too many
        lend_some()
    else:
        lend_some()
        other.join()
    return None if None in lent else lent  # type: ignore[return-value]


def lend_anyhow(data: Piece) -> tuple[memoryview, Name]:
    """A copy of `data`, of any size, in a segment of its own. Raises `OSError`."""
    loan = _Lent(_Segment(data))
    return _view(loan), loan.name


def lend_for_a_message(data: Piece) -> memoryview | None:
    """As `lend`, of what is kept no longer than it takes to be received."""
    return lend(data, part=_PART_FOR_ALL)


def lend_large(frame: Any) -> Any:
    """A frame with its large buffers lent where that is possible; anything else as it is."""
    if not isinstance(frame, list):
        return frame
    return [piece if _is_loan(piece) else _lent_if_large(piece) for piece in frame]


def _is_loan(piece: Any) -> bool:
    return type(piece) is memoryview and isinstance(piece.obj, _Bytes)


def _lent_if_large(piece: Any) -> Any:
    if isinstance(piece, (bytes, bytearray, memoryview)) and (lent := lend(piece)) is not None:
        return lent
    return piece


def loan_of(piece: Piece) -> tuple[Loan, int] | None:
    """The loan that a buffer shows, and from which of its bytes on, if others can be given it."""
    if not _is_loan(piece):
        return None
    assert isinstance(piece, memoryview)
    loan: Loan = piece.obj.loan  # type: ignore[attr-defined]
    if loan.descriptor < 0 or not len(piece):
        return None
    return loan, _address(piece) - loan.address


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


def for_another(loan: Loan) -> int:
    """A descriptor of its own to be sent to another process, and to be closed here then.

    Raises `OSError`.
    """
    return os.open(f"/proc/self/fd/{loan.descriptor}", os.O_RDONLY | os.O_CLOEXEC)


# --- the borrower -----------------------------------------------------------------------------


class _Borrowed(Loan):
    """What another process lends, mapped here; it may be written to."""

    def __init__(self, descriptor: int, name: Name) -> None:
        """Takes the descriptor over. Raises `OSError` when it cannot be mapped."""
        self.address = _map(descriptor, name.used, mmap.MAP_PRIVATE)
        self.name = name._replace(descriptor=descriptor)
        _open_here.add(descriptor)

    def let_go(self) -> None:
        """Close the descriptor; the memory stays."""
        descriptor, self.name = self.name.descriptor, self.name._replace(descriptor=-1)
        _close(descriptor)

    def __del__(self, unmap: Any = _unmap, close: Any = _close) -> None:
        if hasattr(self, "name"):
            unmap(self.address, self.name.used)
            close(self.name.descriptor)


class _Joined(Loan):
    """Loans of other processes, mapped here one after the other; may be written to."""

    def __init__(self, loans: Sequence[tuple[int, int]]) -> None:
        """Of each the descriptor, which stays the caller's, and its bytes. Raises `OSError`."""
        size = sum(used for _, used in loans)
        self.name = Name(-1, 0, size, 0, size)
        self.address = 0
        self.address = address = _reserve(size)
        for descriptor, used in loans:
            _map(descriptor, used, mmap.MAP_PRIVATE | _MAP_FIXED, address)
            address += used

    def __del__(self, unmap: Any = _unmap) -> None:
        unmap(self.address, self.name.size)


def borrow(descriptor: int, name: Name, *, keep: bool = True) -> memoryview:
    """The contents of a segment that is open here, writable; the descriptor is taken over.

    `keep`: whether it may have to be handed on. Raises `LoanError` for what is not such a segment,
    `MemoryError` when there is no memory for it.
    """
    try:
        _check(descriptor, name)
        loan = _Borrowed(descriptor, name)
    except LoanError:
        os.close(descriptor)
        raise
    except OSError:  # too many mappings, or too little memory: then for this as well
        try:
            return memoryview(_read(descriptor, name.used))
        finally:
            os.close(descriptor)
    may_be_joined = name.used >= pieces.PIECE_BYTES // (2 * _PART)  # see `lend_parts`
    if not (keep or may_be_joined) or not _has_files(_PART_OF_FILES):
        loan.let_go()
    return _view(loan)


def _read(descriptor: int, size: int) -> bytearray:
    data = bytearray(size)
    with memoryview(data) as view:
        got = 0
        while got < size:
            got += os.preadv(descriptor, [view[got:]], got)
    return data


def _check(descriptor: int, name: Name) -> None:
    try:
        status = os.fstat(descriptor)
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
        stamp = os.pread(descriptor, _STAMP.size, status.st_size - _PAGE)
    except (OSError, ValueError) as error:
        raise LoanError(f"not shared memory: {error}") from error
    for good, what in (
        (stat.S_ISREG(status.st_mode), "kind"),
        (status.st_uid == os.geteuid(), "owner"),
        (status.st_ino == name.inode, "inode"),
        (status.st_size == name.size, "size"),
        (0 < name.used <= name.size - _PAGE, "length"),
        (seals & _SEALS == _SEALS, "seals"),
        (stamp == _STAMP.pack(name.stamp), "contents"),
    ):
        if not good:
            raise LoanError(f"shared memory has not the {what} that it should have")


def borrow_from(pid: int, name: Name) -> memoryview:
    """The contents of a segment that a process of this host has open; see `borrow`."""
    path = f"/proc/{pid}/fd/{name.descriptor}"
    try:
        # Should it be something else by now, it must neither block nor become our terminal.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise LoanError(f"shared memory of process {pid} cannot be opened: {error}") from error
    return borrow(descriptor, name)


def take(parts: Sequence[Piece], *, owned: bool = True) -> memoryview | None:
    """One private, writable buffer of borrowed parts that follow each other in one loan.

    Or of the whole contents of several. None where they do not, or are this process's own. Others
    may go on using the parts; `owned`: nobody does, and they may be taken where they cannot be
    mapped once more.
    """
    first = parts[0]
    if len(parts) > 1 and (joined := _joined(parts)) is not None:
        return joined
    if type(first) is not memoryview or not isinstance(first.obj, _Bytes):
        return None
    loan = first.obj.loan
    if not isinstance(loan, _Borrowed):
        return None
    start = end = _address(first) - loan.address
    for part in parts:
        if type(part) is not memoryview or part.obj is not first.obj:
            return None
        if _address(part) - loan.address != end:
            return None
        end += len(part)
    whole = first.obj
    if loan.descriptor >= 0:
        try:
            mine = borrow(for_another(loan), loan.name, keep=False)
        except OSError:
            return None
        return mine[start:end]
    return pickle.PickleBuffer(whole).raw()[start:end] if owned else None


def _joined(parts: Sequence[Piece]) -> memoryview | None:
    """One private, writable buffer of loans that are mapped one after the other; None: they cannot.

    Each part must be of another loan, its whole contents, and in whole pages but for the last.
    """
    loans: list[tuple[int, int]] = []  # descriptor, bytes
    for part in parts:
        if type(part) is not memoryview or not isinstance(part.obj, _Bytes):
            return None
        loan = part.obj.loan
        if (
            not isinstance(loan, _Borrowed)
            or loan.descriptor < 0
            or len(part) != loan.name.used
            or (len(part) % _PAGE and part is not parts[-1])
        ):
            return None
        loans.append((loan.descriptor, len(part)))
    try:
        return _view(_Joined(loans))
    except OSError:
        return None


# --- whether it can be done -------------------------------------------------------------------


@functools.cache
def available() -> bool:
    """Whether this system has what is needed; asked by trying."""
    if fcntl is None or not hasattr(os, "memfd_create"):
        return False
    try:
        probe, name = lend_anyhow(b"\0" * _PAGE)
        there = borrow_from(os.getpid(), name)
        there[0] = 1
        return probe[0] == 0
    except (OSError, ValueError, AttributeError):
        return False


@functools.cache
def _can_use_again() -> bool:
    """Whether the system tells who else has a segment; else each is used once."""
    try:
        segment = _Segment(b"\0" * _PAGE)
        if not segment.is_ours_alone():
            return False
        other = os.open(f"/proc/self/fd/{segment.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not segment.is_ours_alone()
    finally:
        os.close(other)

"""Calls that not every operating system has, and what stands in for them.

Linux has all of them. Where one is missing the same promises hold, but for what is said here:

- Without locks (Windows has locks that are not shared) two jobs on one file are told apart by the
  note in PATH.lock alone, and what a kill leaves behind stays.
- Without positioned reads and writes, threads of one process take turns.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

fcntl: ModuleType | None
msvcrt: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None

WINDOWS = os.name == "nt"
_LOCKED_BYTE = 1 << 40
"""Windows keeps others from reading what is locked, so a byte behind all data is."""
_turns = threading.Lock()


def _flag(name: str) -> int:
    """A flag of `os.open`, 0 where there is none."""
    value: int = vars(os).get(name, 0)
    return value


OURS = _flag("O_CLOEXEC") | _flag("O_NOINHERIT") | _flag("O_BINARY")
"""Flags of every file that we open: not for child processes, and bytes as they are."""
NO_LINK = _flag("O_NOFOLLOW")
"""Refuses a link."""
NO_WAIT = _flag("O_NONBLOCK") | _flag("O_NOCTTY")
"""Does not wait for the other end of a pipe, and takes no terminal."""


def released(fd: int) -> int:
    """Closes a file where open ones cannot be renamed; returns what is left to close, or -1."""
    if fd >= 0 and WINDOWS:
        os.close(fd)
        return -1
    return fd


def close(fd: int) -> None:
    """Closes a file that is open; -1 is none."""
    if fd >= 0:
        os.close(fd)


def lock(fd: int, *, shared: bool = False, wait: bool = True) -> None:
    """Takes the lock on an open file, until `unlock` or the end of the process; a BlockingIOError
    if another has it and `wait` is false, an OSError where there are no locks."""
    if fcntl is not None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
    elif msvcrt is not None:
        _lock_byte(msvcrt, fd, wait)
    else:
        raise OSError(errno.ENOSYS, "this system has no file locks")


def _lock_byte(windows: Any, fd: int, wait: bool) -> None:
    """Locks one byte, for one process alone: there are no shared locks."""
    while True:
        try:
            with _at_locked_byte(fd):
                windows.locking(fd, windows.LK_LOCK if wait else windows.LK_NBLCK, 1)
            return
        except OSError as error:
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "another process has the lock") from error
            if error.errno != errno.EDEADLK:  # what waiting for ten seconds ends with
                raise


@contextmanager
def _at_locked_byte(fd: int) -> Iterator[None]:
    """Moves the position of a file for the block, which is where Windows locks."""
    place = os.lseek(fd, 0, os.SEEK_CUR)
    os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
    try:
        yield
    finally:
        os.lseek(fd, place, os.SEEK_SET)


def unlock(fd: int) -> None:
    """Gives a lock back; an OSError where there are no locks."""
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_UN)
    elif msvcrt is not None:
        with _at_locked_byte(fd):
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
    else:
        raise OSError(errno.ENOSYS, "this system has no file locks")


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Writes at an offset, and returns how many bytes the system took."""
    if "pwrite" in vars(os):
        return os.pwrite(fd, data, offset)
    with _turns:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Reads from an offset into a buffer of bytes, and returns how many there were."""
    if "preadv" in vars(os):
        return os.preadv(fd, [buffer], offset)
    with _turns:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def allocate(fd: int, size: int, *, start: int = 0) -> bool:
    """Claims bytes of disk for a file, from a place on; false where that cannot be asked for, an
    OSError if the disk is full or the file system refuses it."""
    if "posix_fallocate" not in vars(os):
        return False
    os.posix_fallocate(fd, start, size)
    return True


def usable_processors() -> int:
    """How many processors this process may use."""
    if "sched_getaffinity" in vars(os):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

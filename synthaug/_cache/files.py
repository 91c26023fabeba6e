"""Files that appear whole or not at all, and writes that finish or say why not."""

import errno
import io
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from synthaug._support import files, locks, system
from synthaug._support.reading import check_local
from synthaug._types import StrPath
from synthaug.errors import CacheError, MismatchError

_ZEROS = bytes(1 << 20)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def parts_folder(path: Path) -> Path:
    """Where the parts of the cache at `path` are while several processes draw it."""
    return path.with_name(f"{path.name}.parts")


def refuse_remote(path: StrPath) -> None:
    """Refuses a URL where a file is written.

    Raises:
        CacheError: Naming the URL and the remedy.
    """
    try:
        check_local(path)
    except ValueError as error:
        raise CacheError(str(error)) from error


@contextmanager
def filling(path: StrPath, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Makes the block the only job that fills the cache at `path`; readers need no such leave.

    Args:
        path: The cache; it need not exist yet.
        shared: Others that say so too may run at the same time: they write parts of their own.
        wait: Wait until the job that fills it now has ended.

    Raises:
        CacheError: Another job fills it, and the text says whose it is; or `path` is a URL.
        ValueError: The name of its lock is taken by a file of somebody else.
    """
    refuse_remote(path)
    with locks.claimed(path, shared=shared, patience=math.inf if wait else 0) as mine:
        if not mine:
            raise CacheError(
                f"{path} is being filled by {locks.owner_of(path)}. Run this again when that job "
                "has ended; `generate(..., wait=True)`, or `synthaug generate --wait`, waits."
            )
        yield


def pwrite(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`: the system may take it in several pieces."""
    view = memoryview(data).cast("B")
    while len(view):
        written = system.write_at(fd, view, offset)
        if not written:
            raise OSError(errno.EIO, "the system wrote nothing")
        view, offset = view[written:], offset + written


def pread_into(fd: int, buffer: memoryview, offset: int) -> None:
    """Fills `buffer` from `offset` on; an unreadable medium is an `OSError`."""
    view = buffer.cast("B")
    while len(view):
        got = system.read_at(fd, view, offset)
        if not got:
            raise OSError(errno.EIO, "the file ended before its last row")
        view, offset = view[got:], offset + got


def check_same(path: Path, file_id: tuple[int, int], size: int, fd: int) -> None:
    """Refuses a file that took the place of the one that was opened, or that was cut short."""
    info = os.fstat(fd)
    if (info.st_dev, info.st_ino) != file_id:
        raise MismatchError(
            f"{path} was replaced by another file after it was opened. Open it again."
        )
    check_length(path, size, info)


def check_length(path: Path, size: int, info: os.stat_result) -> None:
    """Refuses a file that was cut short since it was opened."""
    if info.st_size < size:
        raise CacheError(
            f"{path} has {info.st_size:,} of {size:,} bytes: it was cut short since it was opened. "
            "Restore it from a copy, or delete it and generate it again."
        )


class AbstractHDF5Target(io.RawIOBase):
    """A file that HDF5 writes to and reads from: the position and the size are kept here."""

    def __init__(self) -> None:
        self.size = 0
        self._position = 0

    @abstractmethod
    def _store(self, data: bytes, start: int) -> None:
        """Keeps `data` as the bytes from `start` on."""

    @abstractmethod
    def _load(self, buffer: memoryview, start: int) -> None:
        """Fills `buffer` with the bytes from `start` on."""

    def _resize(self) -> None:
        """Called when `size` was set by HDF5."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self._store(piece, self._position)
        self._position += len(piece)
        self.size = max(self.size, self._position)
        return len(piece)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        self._load(view, self._position)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        self.size = self._position if size is None else size
        self._resize()
        return self.size


class Patient(AbstractHDF5Target):
    """A file for HDF5 to write, which keeps an error for later instead of raising it.

    HDF5 does not survive a failing write: the file cannot be closed then, and the process crashes
    when it ends. So what cannot be written is dropped, and `check` raises the error in good time.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._error: OSError | None = None

    def check(self) -> None:
        """Raises the first error there was."""
        if self._error is not None:
            raise self._error

    def _store(self, data: bytes, start: int) -> None:
        self._try(lambda: pwrite(self._fd, data, start))

    def _load(self, buffer: memoryview, start: int) -> None:
        self._try(lambda: pread_into(self._fd, buffer, start))

    def _resize(self) -> None:
        self._try(lambda: os.ftruncate(self._fd, self.size))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            if self._error is None:
                action()
        except OSError as error:
            self._error = error


def check_room(size: int, path: Path) -> None:
    """Refuses a file with a CacheError if fewer than `size` bytes are free, as far as the system
    says."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise _no_room(size, path, "there are fewer", free)


def _no_room(size: int, path: Path, reason: str, free: int, *, begun: bool = False) -> CacheError:
    kept = "Rows that are done stay; run again to continue." if begun else "Nothing was written."
    return CacheError(
        f"{path} needs {size:,} bytes, and the system refused them ({reason}); {free:,} bytes are "
        f"free in {path.parent}. Free some space, choose another folder, or plan fewer images. "
        f"{kept}"
    )


def reserve(fd: int, size: int, path: Path, *, present: int = 0) -> None:
    """Claims `size` bytes of disk, so that a full disk is met now and not halfway.

    Args:
        fd: The open file.
        size: Bytes of the whole file.
        path: Where it will be, or is.
        present: Bytes of it that it has already; only those after them are claimed.

    Raises:
        CacheError: The disk is full, or the file would exceed a limit; says how much was needed.
    """
    try:
        try:
            allocated = system.allocate(fd, size - present, start=present)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise
            allocated = False
        if not allocated:
            # macOS lacks the call, some file systems refuse it: there, zeros claim the space.
            for start in range(present, size, len(_ZEROS)):
                pwrite(fd, memoryview(_ZEROS)[: size - start], start)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise _no_room(size, path, str(error.strerror), free, begun=present > 0) from error


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """A file descriptor for what becomes `path` once the block has ended without an error.

    The bytes go to a temporary file beside `path`, in a folder that is made if need be. An error
    removes the file; after a kill the next `new_file` for the same path does.

    Raises:
        CacheError: `path` exists, also if another process made it meanwhile; or the file cannot be
            written.
    """
    with _appearing(path):
        fd, temporary = files.open_temporary(path)
        try:
            yield fd
            files.sync_file(fd)
            fd = system.released(fd)
            _publish(temporary, path)
        finally:
            fd = system.released(fd)
            with suppress(OSError):  # renamed already, or left for the next `remove_orphans`
                os.unlink(temporary)
            system.close(fd)


def refuse_taken(path: Path) -> None:
    """Raises a CacheError if something has that name already."""
    if os.path.lexists(path):
        raise _exists(path)


@contextmanager
def _appearing(path: Path) -> Iterator[None]:
    """Checks that `path` is free, and makes its new name last once the block has ended."""
    files.remove_orphans(path)  # also where the kill came just after the file had its name
    refuse_taken(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        files.sync_folder(path.parent)
    except OSError as error:
        raise CacheError(
            f"Cannot create {path}: {error.strerror}. Choose another folder, or make room."
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder for what becomes `path` once the block has ended without an error; as `new_file`. A
    CacheError if `path` exists or something cannot be written."""
    with _appearing(path):
        temporary = files.temporary_name(path)
        os.mkdir(temporary)
        fd = -1
        with suppress(OSError):  # a system that opens no folders, or has no locks
            fd = os.open(temporary, os.O_RDONLY | system.OURS)
            system.lock(fd)
        try:
            yield temporary
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            system.close(fd)


def _publish(temporary: Path, path: Path) -> None:
    """Gives the finished file its name, unless another process took the name first."""
    try:
        os.link(temporary, path)  # unlike a rename, this fails if `path` exists
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise _exists(path) from None
        os.replace(temporary, path)


def _exists(path: Path) -> CacheError:
    return CacheError(
        f"{path} exists already. Open it with `SynthCache(path)`, continue it with "
        "`SynthCache.open_for_writing`, or choose another name."
    )

"""How rows come out of a file: through a memory map, or, for compressed copies, through HDF5."""

import io
import mmap
import os
import weakref
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from synthaug._cache.files import pread_into
from synthaug._cache.format import checksums
from synthaug._cache.schema import CacheContents, open_stream
from synthaug._types import Indices
from synthaug.errors import CacheError, MismatchError

_RESIDENT = 64 * 2**20
"""Bytes of images above which the workers of a loader read instead of mapping."""


class Reader(Protocol):
    """The rows of one file, as one process sees them."""

    contents: CacheContents
    state: NDArray[np.uint8]
    """Of each row, now."""
    checksum: NDArray[np.uint32]
    served: NDArray[np.uint8]
    """1 for rows whose pixels this process has checked."""

    def gather(self, rows: Indices) -> NDArray[np.uint8]:
        """Pixels of `rows`, uint8 (n, C, H, W), in any order."""
        ...

    def intact(self, rows: Indices) -> NDArray[np.bool_]:
        """Which of `rows` match their checksum."""
        ...

    def stored_checksums(self, fd: int, start: int, stop: int) -> NDArray[np.uint32]:
        """CRC-32C of what the medium holds in rows start to stop."""
        ...


def open_reader(contents: CacheContents) -> Reader:
    """The fastest way to read this file."""
    return Mapped(contents) if contents.plain else Unpacked(contents)


class Mapped:
    """Maps the file: a batch is one indexing call, and nothing is read before it is indexed.

    A mapping has no state that two processes could disturb, so a forked process goes on with its
    parent's.
    """

    def __init__(self, contents: CacheContents) -> None:
        self.contents = contents
        try:
            self._fd = os.open(contents.path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd)
            self._map = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CacheError(f"Cannot map {contents.path}: {error.strerror}.") from error
        check_same(contents, self._fd)
        self.images = self._array("images")
        self.state = self._array("state")
        self.checksum = self._array("checksum")
        self.served = np.zeros(len(self.state), np.uint8)

    def _array(self, name: str) -> NDArray[Any]:
        # A plain array: `numpy.memmap` costs time on every index.
        region = self.contents.regions[name]
        assert region.offset is not None
        flat = np.frombuffer(self._map, region.dtype, int(np.prod(region.shape)), region.offset)
        return flat.reshape(region.shape)

    def gather(self, rows: Indices) -> NDArray[np.uint8]:
        if get_worker_info() is not None and self.images.nbytes > _RESIDENT and len(rows):
            return self._read(rows)
        return self.images.take(rows, axis=0)

    def _read(self, rows: Indices) -> NDArray[np.uint8]:
        """`gather` without the mapping, for workers.

        Pages count as memory of every process that maps them, and one random row may map two
        megabytes. Reading is slower, but far cheaper than handing the batch to the main process.
        """
        region = self.contents.regions["images"]
        assert region.offset is not None
        size = region.row_bytes
        pixels = np.empty((len(rows), *self.contents.image_shape), np.uint8)
        view = pixels.data.cast("B")
        try:
            for i, row in enumerate((rows % len(self.images)).tolist()):
                pread_into(self._fd, view[i * size : (i + 1) * size], region.offset + row * size)
        except OSError as error:
            raise CacheError(
                f"Cannot read {self.contents.path}: {error.strerror}. Check the disk."
            ) from error
        return pixels

    def intact(self, rows: Indices) -> NDArray[np.bool_]:
        return checksums(self.gather(rows)) == self.checksum[rows]

    def stored_checksums(self, fd: int, start: int, stop: int) -> NDArray[np.uint32]:
        # Not through the mapping: there, an unreadable medium would be a signal.
        region = self.contents.regions["images"]
        assert region.offset is not None
        images = np.empty((stop - start, region.row_bytes), np.uint8)
        pread_into(fd, images.data, region.offset + start * region.row_bytes)
        return checksums(images)


class Unpacked:
    """Reads chunked or compressed copies through HDF5, row by row: many times slower."""

    def __init__(self, contents: CacheContents) -> None:
        self.contents = contents
        self._owner = 0
        file = self._open()
        self.state = file["state"][()]
        self.checksum = file["checksum"][()]
        self.served = np.zeros(len(self.state), np.uint8)

    def _open(self) -> h5py.File:
        # A handle must not cross into a forked process: two would share one file position.
        if self._owner != os.getpid():
            stream = open_stream(self.contents.path)
            check_same(self.contents, stream.fileno())
            self._file = h5py.File(stream, "r")
            weakref.finalize(self, _close, self._file, stream)
            self._owner = os.getpid()
        return self._file

    def gather(self, rows: Indices) -> NDArray[np.uint8]:
        images = self._open()["images"]
        unique, inverse = np.unique(rows % len(self.state), return_inverse=True)
        pixels = np.empty((len(unique), *self.contents.image_shape), np.uint8)
        for i, row in enumerate(unique.tolist()):
            try:
                images.read_direct(pixels, row, i)
            except (
                OSError
            ):  # cannot be unpacked: zeros, which the checksum then tells from an image
                pixels[i] = 0
                self.served[row] = 0
        return pixels[inverse]

    def intact(self, rows: Indices) -> NDArray[np.bool_]:
        return checksums(self.gather(rows)) == self.checksum[rows]

    def stored_checksums(self, fd: int, start: int, stop: int) -> NDArray[np.uint32]:
        del fd  # HDF5 has its own
        return checksums(self.gather(np.arange(start, stop)))


def _close(file: h5py.File, stream: io.FileIO) -> None:
    file.close()
    stream.close()


def check_same(contents: CacheContents, fd: int) -> None:
    """Refuses a file that took the place of the one that was opened."""
    info = os.fstat(fd)
    if (info.st_dev, info.st_ino) != contents.file_id:
        raise MismatchError(f"{contents.path} was replaced since. Open it again.")

"""How rows come out of a file: through a memory map, or, for compressed copies, through HDF5."""

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from synthaug._cache.files import pread_into, pwrite
from synthaug._cache.format import checksums, runs
from synthaug._cache.schema import CacheContents, Region, open_stream
from synthaug._cache.stored_rows import close
from synthaug._cache.tombstones import read_tombstones
from synthaug._support import system
from synthaug._types import Array, Bytes, Flags, Indices, Labels, Unsigned
from synthaug.errors import CacheError

_RESIDENT = 64 * 2**20
"""Bytes of images above which the workers of a loader read instead of mapping."""
_MAPPED = ("images", "index", "labels", "state", "checksum")


class Reader(Protocol):
    """The rows of one file, as one process sees them."""

    contents: CacheContents
    served: Bytes
    """1 for rows whose pixels this process has checked."""
    faults: dict[int, str]
    """Why a row is no image, where it could not even be decoded."""
    sequential: bool
    """Whether rows come one after the other, as in copying. They are then read, not mapped: pages
    that were mapped count as memory of the process."""

    def column(
        self, name: Literal["state", "checksum"], rows: Indices | slice = slice(None)
    ) -> Array:
        """State or recorded checksum of rows, in any order, as they are now."""
        ...

    def labels(self, rows: Indices) -> Labels:
        """Class indices of `rows`, int64 (n,), in any order."""
        ...

    def tombstones(self) -> Unsigned:
        """Content keys of what was forgotten, in the order of the file."""
        ...

    def gather(self, rows: Indices) -> Bytes:
        """Pixels of `rows`, uint8 (n, C, H, W), in any order."""
        ...

    def intact(self, rows: Indices) -> Flags:
        """Returns a mask of the `rows` that match their checksum."""
        ...

    def recorded(self, fd: int, rows: Indices) -> NDArray[np.uint32]:
        """Recorded checksum of `rows`, ascending, as the medium has it."""
        ...

    def stored(self, fd: int, rows: Indices) -> Bytes:
        """Pixels of `rows`, ascending, as the medium has them; zeros for what does not decode."""
        ...

    def stored_checksums(self, fd: int, rows: Indices) -> NDArray[np.uint32]:
        """CRC-32C of what the medium holds in `rows`, ascending."""
        ...


class Mapped:
    """Maps the file: a batch is one indexing call, and nothing is read before it is indexed.

    A mapping has no state that two processes could disturb, so a forked process goes on with its
    parent's.
    """

    def __init__(self, contents: CacheContents) -> None:
        self.contents = contents
        try:
            self._fd = os.open(contents.path, os.O_RDONLY | system.OURS)
            weakref.finalize(self, os.close, self._fd)
            self._map = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CacheError(
                f"Cannot map {contents.path} into memory: {error.strerror}. Check the disk, "
                "or copy the file to a local one."
            ) from error
        contents.check_same(self._fd)
        self._mapped = {name: self._array(name) for name in _MAPPED if name in contents.regions}
        self.faults: dict[int, str] = {}
        self.sequential = False
        self._size = contents.size
        self._image_bytes = self._mapped["images"].nbytes if "images" in self._mapped else 0
        self.served = np.zeros(len(self._mapped["state"]), np.uint8)

    def _array(self, name: str) -> Array:
        # A plain array: `numpy.memmap` costs time on every index.
        region = self.contents.regions[name]
        assert region.offset is not None
        flat = np.frombuffer(self._map, region.dtype, int(np.prod(region.shape)), region.offset)
        return flat.reshape(region.shape)

    def column(
        self, name: Literal["state", "checksum"], rows: Indices | slice = slice(None)
    ) -> Array:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.contents.regions[name].shape[0])
            return self._read(name, np.array([start]), length=stop - start)
        return self._values(name, rows)

    def labels(self, rows: Indices) -> Labels:
        return self._values("labels", rows)

    def tombstones(self) -> Unsigned:
        return read_tombstones(
            self.contents.path,
            self.contents.tombstone_places,
            self.contents.sealed,
            lambda start, length: self._read("tombstones", np.array([start]), length=length),
        )

    def gather(self, rows: Indices) -> Bytes:
        return self._values("images", rows)

    def _values(self, name: str, rows: Indices) -> Array:
        if self.sequential:
            with self._readable():
                return read_runs(self._fd, self.contents.regions[name], rows)
        if self._image_bytes > _RESIDENT and get_worker_info() is not None:
            return self._read(name, rows)
        # To touch a page beyond the end of a file that was cut short would end the process.
        if os.lseek(self._fd, 0, os.SEEK_END) < self._size:  # a third of the time of `fstat`
            self.contents.check_same(self._fd)
        return self._mapped[name].take(rows, axis=0)

    def _read(self, name: str, rows: Indices, *, length: int = 1) -> Array:
        """`_values` without the mapping, for workers; from each of `rows` on `length` rows.

        Pages count as memory of every process that maps them, and one random row may map two
        megabytes. Reading is slower, but far cheaper than handing the batch to the main process.
        """
        region = self.contents.regions[name]
        assert region.offset is not None
        size = length * region.row_bytes
        values = np.empty((len(rows) * length, *region.shape[1:]), region.dtype)
        view = values.reshape(-1).view(np.uint8).data
        with self._readable():
            for i, row in enumerate((rows % region.shape[0]).tolist()):
                offset = region.offset + row * region.row_bytes
                pread_into(self._fd, view[i * size : (i + 1) * size], offset)
        return values

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Names the file in errors about reading it."""
        try:
            yield
        except OSError as error:
            raise CacheError(
                f"Cannot read {self.contents.path}: {error.strerror}. Check the disk."
            ) from error

    def intact(self, rows: Indices) -> Flags:
        return checksums(self.gather(rows)) == self.column("checksum", rows)

    def recorded(self, fd: int, rows: Indices) -> NDArray[np.uint32]:
        # Not through the mapping: there, an unreadable medium would be a signal.
        return read_runs(fd, self.contents.regions["checksum"], rows)

    def stored(self, fd: int, rows: Indices) -> Bytes:
        return read_runs(fd, self.contents.regions["images"], rows)

    def stored_checksums(self, fd: int, rows: Indices) -> NDArray[np.uint32]:
        return checksums(self.stored(fd, rows))


def read_runs(fd: int, region: Region, rows: Indices) -> Array:
    """The values at rows of one data set as the file has them now; neighbors in one piece."""
    assert region.offset is not None
    values = np.empty((len(rows), *region.shape[1:]), region.dtype)
    for start, stop in runs(rows):
        offset = region.offset + int(rows[start]) * region.row_bytes
        pread_into(fd, values[start:stop].data, offset)
    return values


def write_runs(fd: int, region: Region, rows: Indices, values: Array) -> None:
    """Writes `values` at ascending rows of one data set: one call per run of neighbors."""
    assert region.offset is not None
    for start, stop in runs(rows):
        block = np.ascontiguousarray(values[start:stop], region.dtype).view(np.uint8)
        pwrite(fd, block.data, region.offset + int(rows[start]) * region.row_bytes)


class Unpacked:
    """Reads chunked or compressed copies through HDF5, row by row: many times slower."""

    def __init__(self, contents: CacheContents) -> None:
        self.contents = contents
        self._owner = 0
        file = self._open()
        self.faults: dict[int, str] = {}
        self._columns = {name: file[name][()] for name in ("state", "checksum")}
        self.served = np.zeros(len(self._columns["state"]), np.uint8)
        self.sequential = True

    def _open(self) -> h5py.File:
        # A handle must not cross into a forked process: two would share one file position.
        if self._owner != os.getpid():
            stream = open_stream(self.contents.path)
            self.contents.check_same(stream.fileno())
            self._file = h5py.File(stream, "r")
            weakref.finalize(self, close, self._file, stream)
            self._owner = os.getpid()
        return self._file

    def column(
        self, name: Literal["state", "checksum"], rows: Indices | slice = slice(None)
    ) -> Array:
        values = self._columns[name]
        return values[rows].copy() if isinstance(rows, slice) else values.take(rows)

    def labels(self, rows: Indices) -> Labels:
        return self.contents.plan.at("label", rows)

    def tombstones(self) -> Unsigned:
        return read_tombstones(
            self.contents.path,
            self.contents.tombstone_places,
            self.contents.sealed,
            lambda start, length: self._open()["tombstones"][start : start + length],
        )

    def gather(self, rows: Indices) -> Bytes:
        images = self._open()["images"]
        unique, inverse = np.unique(rows % len(self.served), return_inverse=True)
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

    def intact(self, rows: Indices) -> Flags:
        return checksums(self.gather(rows)) == self.column("checksum", rows)

    def recorded(self, fd: int, rows: Indices) -> NDArray[np.uint32]:
        del fd  # HDF5 has its own
        return self.column("checksum", rows)

    def stored(self, fd: int, rows: Indices) -> Bytes:
        del fd
        return self.gather(rows)

    def stored_checksums(self, fd: int, rows: Indices) -> NDArray[np.uint32]:
        return checksums(self.stored(fd, rows))


@contextmanager
def descriptor(contents: CacheContents, flags: int) -> Iterator[int]:
    """The open file of a cache, for one call; any system error inside becomes a CacheError."""
    doing = "read" if flags == os.O_RDONLY else "write"
    try:
        fd = os.open(contents.path, flags | system.OURS)
        try:
            contents.check_same(fd)
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise CacheError(
            f"Cannot {doing} {contents.path}: {error.strerror}. Every row is either done and "
            "intact or still pending: repair the cause, then run again to continue."
        ) from error

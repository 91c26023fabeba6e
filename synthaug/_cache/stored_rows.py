"""Rows of a plan that stay in the file of their cache, and are read when they are asked for."""

import io
import os
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import h5py
import numpy as np

from synthaug._cache.files import check_same, pread_into
from synthaug._plan import AbstractRows, Selection
from synthaug._support import system
from synthaug._types import Array, Indices
from synthaug.errors import CacheError

_NEAR = 2**16
"""Rows that are read in one piece, if two of them at its ends are wanted."""


def data_set_of(column: str) -> str:
    """The name of the data set that holds a column of a plan."""
    return "labels" if column == "label" else f"plan/{column}"


class AbstractStoredRows(AbstractRows):
    """Reads the columns of one file.

    Args:
        path: The file.
        file_id: Device and inode.
        size: Bytes of the file.
        dtypes: Dtypes of every column.
        length: Rows.
    """

    def __init__(
        self,
        path: Path,
        file_id: tuple[int, int],
        size: int,
        dtypes: Mapping[str, np.dtype[Any]],
        length: int,
    ) -> None:
        self.path, self.file_id, self.size = path, file_id, size
        self.dtypes = {name: dtype.newbyteorder("=") for name, dtype in dtypes.items()}
        self._length = length

    def __len__(self) -> int:
        return self._length

    @abstractmethod
    def _span(self, name: str, start: int, stop: int) -> Array:
        """A column from row `start` up to `stop`."""

    def read(self, names: Sequence[str], rows: Selection) -> dict[str, Array]:
        try:
            if isinstance(rows, range) and rows.step == 1:
                return {name: self._span(name, rows.start, rows.stop) for name in names}
            at = np.asarray(rows, np.int64)
            values = {name: np.empty(len(at), self.dtypes[name]) for name in names}
            for chosen in _near(at):
                near = at[chosen]
                start, stop = int(near[0]), int(near[-1]) + 1
                for name in names:
                    values[name][chosen] = self._span(name, start, stop)[near - start]
            return values
        except OSError as error:
            raise CacheError(
                f"Cannot read {self.path}: {error.strerror or error}. Check the disk, or restore "
                "the file from a copy."
            ) from error


def _near(at: Indices) -> Iterator[slice | Indices]:
    """Groups of rows that lie near each other, each ascending, as places in `at`."""
    if not len(at):
        return
    if (at[1:] >= at[:-1]).all():  # so are most, and there may be very many: no array of places
        limits = np.arange(at[0] // _NEAR, at[-1] // _NEAR + 2) * _NEAR
        edges = np.unique(np.searchsorted(at, limits)).tolist()
        yield from map(slice, edges, edges[1:])
    else:
        order = np.argsort(at, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(at[order] // _NEAR)) + 1)


@final
class PlainRows(AbstractStoredRows):
    """Reads contiguous columns with ordinary file calls; `offsets` says where each begins."""

    def __init__(self, offsets: Mapping[str, int], *args: Any) -> None:
        super().__init__(*args)
        self._offsets = offsets
        self._fd = -1

    def _open(self) -> int:
        if self._fd < 0:
            fd = os.open(self.path, os.O_RDONLY | system.OURS)
            weakref.finalize(self, os.close, fd)
            check_same(self.path, self.file_id, self.size, fd)
            self._fd = fd
        return self._fd

    def _span(self, name: str, start: int, stop: int) -> Array:
        dtype = self.dtypes[name]
        values = np.empty(stop - start, dtype.newbyteorder("<"))
        view = values.view(np.uint8).data
        pread_into(self._open(), view, self._offsets[name] + start * dtype.itemsize)
        return values.astype(dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": -1}


@final
class PackedRows(AbstractStoredRows):
    """Reads compressed columns through HDF5."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._owner = 0

    def _open(self) -> h5py.File:
        # A handle must not cross into a forked process: two would share one file position.
        if self._owner != os.getpid():
            stream = io.FileIO(self.path)
            check_same(self.path, self.file_id, self.size, stream.fileno())
            self._file = h5py.File(stream, "r")
            weakref.finalize(self, close, self._file, stream)
            self._owner = os.getpid()
        return self._file

    def _span(self, name: str, start: int, stop: int) -> Array:
        values = self._open()[data_set_of(name)][start:stop]
        return np.asarray(values, self.dtypes[name])

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_owner": 0}
        state.pop("_file", None)
        return state


def close(file: h5py.File, stream: io.FileIO) -> None:
    """Closes a file that HDF5 reads, and what it reads through."""
    file.close()
    stream.close()

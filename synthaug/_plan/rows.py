"""Rows of a plan that are not in memory: read from a file, or computed, when they are asked for.

A plan of 100 million rows has 4 GB of columns. So a large plan keeps a recipe of its rows in place
of arrays, and whatever goes over all of them goes piece by piece.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from synthaug._support.rows import row_numbers
from synthaug._types import Array, Indices

REQUIRED = ("label", "source", "source_key", "variant", "seed")
"""Columns that every plan has; all others are parameters of the synthesizer."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "label": np.dtype(np.int64),
    "source": np.dtype(np.int64),
    "source_key": np.dtype(np.uint64),
    "variant": np.dtype(np.int64),
    "seed": np.dtype(np.uint64),
}

PIECE = 2**16
"""Rows that are read, computed or compared at once."""
KEPT = 64 * 2**20
"""Bytes of columns up to which a plan is kept in memory, some 1.5 million rows."""

Selection: TypeAlias = range | Indices
"""Row numbers from 0 on: neighbors, or any."""


def canonical_order(names: Iterable[str]) -> list[str]:
    """The names of columns in the order in which plans are hashed and shown."""
    return [*REQUIRED, *sorted({*names} - {*REQUIRED})]


def column_dtype(name: str, values: Array) -> np.dtype[Any]:
    """The dtype that a plan keeps a column in."""
    default = np.dtype(np.float64 if values.dtype.kind == "f" else np.int64)
    return DTYPES.get(name, default)


def numbers(rows: Selection) -> Indices:
    """The row numbers one by one, int64 (n,)."""
    return np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows


class AbstractRows(ABC):
    """Columns of equal length, of which any rows can be had."""

    dtypes: Mapping[str, np.dtype[Any]]
    """Of every column."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, names: Sequence[str], rows: Selection) -> dict[str, Array]:
        """Some columns at some rows, each (len(rows),)."""

    @property
    def nbytes(self) -> int:
        """The size of all columns in memory."""
        return len(self) * sum(dtype.itemsize for dtype in self.dtypes.values())

    def pieces(self, name: str) -> Iterator[tuple[int, Array]]:
        """A column in order, a few rows at a time, each piece with the number of its first row."""
        for start in range(0, len(self), PIECE):
            rows = range(start, min(start + PIECE, len(self)))
            yield start, self.read([name], rows)[name]

    def column(self, name: str) -> Array:
        """A whole column in memory."""
        values = np.empty(len(self), self.dtypes[name])
        for start, piece in self.pieces(name):
            values[start : start + len(piece)] = piece
        return values


@final
class Columns(Mapping[str, Array]):
    """The columns of a large plan, each made when it is asked for, and as a whole."""

    def __init__(self, rows: AbstractRows) -> None:
        self.rows = rows

    def __getitem__(self, name: str) -> Array:
        if name not in self.rows.dtypes:
            raise KeyError(name)
        column = self.rows.column(name)
        column.setflags(write=False)
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(canonical_order(self.rows.dtypes))

    def __len__(self) -> int:
        return len(self.rows.dtypes)

    def __contains__(self, name: object) -> bool:
        return name in self.rows.dtypes


@final
class Held(AbstractRows):
    """Rows that are in memory."""

    def __init__(self, columns: Mapping[str, Array]) -> None:
        self._columns = columns
        self.dtypes = {name: column.dtype for name, column in columns.items()}

    def __len__(self) -> int:
        return len(self._columns["label"])

    def read(self, names: Sequence[str], rows: Selection) -> dict[str, Array]:
        neighbors = isinstance(rows, range) and rows.step == 1
        chosen = slice(rows[0], rows[-1] + 1) if neighbors and len(rows) else numbers(rows)
        return {name: self._columns[name][chosen] for name in names}


@final
class Picked(AbstractRows):
    """Some of other rows, in any order, possibly repeated."""

    def __init__(self, rows: AbstractRows, chosen: Selection) -> None:
        self._rows, self._chosen = rows, chosen
        self.dtypes = rows.dtypes

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, names: Sequence[str], rows: Selection) -> dict[str, Array]:
        chosen = self._chosen
        if not isinstance(chosen, range):
            return self._rows.read(names, chosen[numbers(rows)])
        if isinstance(rows, range):
            first = chosen.start + rows.start * chosen.step
            step = rows.step * chosen.step
            return self._rows.read(names, range(first, first + len(rows) * step, step))
        return self._rows.read(names, chosen.start + rows * chosen.step)


@final
class Joined(AbstractRows):
    """Rows of several plans, one behind the other; all have the same columns."""

    def __init__(self, parts: Sequence[AbstractRows]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.dtypes = {  # of one plan the values of a parameter may be whole, of another not
            name: np.result_type(*(part.dtypes[name] for part in parts)) for name in parts[0].dtypes
        }

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, names: Sequence[str], rows: Selection) -> dict[str, Array]:
        at = numbers(rows)
        where = np.searchsorted(self._ends, at, side="right")
        values = {name: np.empty(len(at), self.dtypes[name]) for name in names}
        for i in np.unique(where).tolist():
            inside, start = where == i, int(self._ends[i]) - len(self._parts[i])
            local: Selection = at[inside] - start
            if isinstance(rows, range) and rows.step == 1:
                local = range(int(local[0]), int(local[-1]) + 1)
            for name, piece in self._parts[i].read(names, local).items():
                values[name][inside] = piece
        return values


def chosen_rows(index: Any, length: int) -> Selection:
    """The rows that an index of numpy's kinds names: a slice, a mask, or numbers. Anything else is
    a TypeError or ValueError, a row that is not there an IndexError."""
    if isinstance(index, slice):
        return range(length)[index]
    rows = row_numbers(index, length, "rows")
    outside = rows[(rows < -length) | (rows >= length)]
    if len(outside):
        raise IndexError(f"Row {outside[0]} does not exist; the plan has {length:,} rows.")
    return np.where(rows < 0, rows + length, rows)

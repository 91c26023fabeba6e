"""One rule for rows that a caller selects: numbers, or a mask of full length, and nothing else."""

from itertools import pairwise
from operator import index
from typing import Any, SupportsIndex

import numpy as np

from synthaug._types import Indices, Integers, Labels


def row_numbers(rows: Any, count: int, name: str = "indices") -> Integers:
    """Row numbers of a selection, int64 (n,); whether they exist is left to whoever reads them.

    Args:
        rows: Whole numbers, int (n,), or a mask, bool (count,). An empty list selects nothing.
        count: Number of rows to select from.
        name: Name of the argument, for messages.

    Raises:
        TypeError: For anything else, such as floats, which would be cut.
        ValueError: For a mask of another length.
    """
    values = np.asarray(rows)
    if values.dtype.kind == "b" and values.shape == (count,):
        return np.flatnonzero(values)
    if values.ndim == 1 and values.dtype.kind == "b":
        raise ValueError(
            f"`{name}` is a mask of {len(values)} values, and there are {count} rows. Give a mask "
            "with one value per row, or row numbers."
        )
    return whole_numbers(values, name)


def row_number(row: Any, count: int, name: str = "index") -> int:
    """One row in [0, count), of a number that counts from the end if it is negative. A row that
    there is not is an IndexError, which ends a `for` loop; other types, and `True`, are a
    TypeError."""
    # The usual kind comes first: to ask for a protocol takes longer than to read an image.
    if type(row) is not int and (
        isinstance(row, bool | np.bool_) or not isinstance(row, SupportsIndex)
    ):
        raise TypeError(f"`{name}` is {row!r}, expected a whole number.")
    number = index(row)
    if not -count <= number < count:
        raise IndexError(f"Index {number} is out of range for {count} items.")
    return number % count


def whole_numbers(values: Any, name: str) -> Integers:
    """Row numbers or class indices as int64 (n,); floats, masks and no sequences are a
    TypeError."""
    numbers = np.asarray(values)
    if numbers.shape == (0,):  # an empty list is float64 to numpy
        return np.empty(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise TypeError(
            f"`{name}` is {numbers.dtype} with shape {numbers.shape}, expected integers (n,)."
        )
    return numbers.astype(np.int64, copy=False)


def rows_by_class(rows: Indices, labels: Labels, num_classes: int) -> list[Indices]:
    """Rows of each class, in the order in which they are given; of many classes in one pass.

    Args:
        rows: Any numbers, int64 (n,).
        labels: The class of each, int64 (n,); those below 0 are of no class.
        num_classes: How many classes there are.
    """
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(num_classes + 1))
    return [rows[order[start:end]] for start, end in pairwise(ends)]

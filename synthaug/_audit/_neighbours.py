"""Exact nearest neighbours, found by FAISS and measured again in float64.

FAISS is fast because it expands |a - b|^2 into |a|^2 + |b|^2 - 2 a.b for large batches. For near
duplicates, the very case an audit is about, that difference of large numbers keeps few correct
digits, and whether FAISS expands at all depends on how many queries were sent together. So FAISS
only retrieves; the distances that we report come from direct subtraction in float64.

Notation as in FAISS: `xb` the database, `xq` the queries, `D` distances, `ids` row numbers in the
database, `k` neighbours.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthaug._types import Features

_SLACK = 8
"""Candidates retrieved beyond k, so that rounding cannot push a true neighbour off the list."""

_CHUNK_VALUES = 4_000_000
"""Numbers that re-scoring holds at a time: 32 MB in float64."""


def search(xb: Features, xq: Features, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The `k` nearest rows of `xb` for every row of `xq`, by Euclidean distance.

    Args:
        xb: float32 (n, d).
        xq: float32 (m, d).
        k: At most n.

    Returns:
        D, float64 (m, k), ascending: Euclidean distances, not squared. ids, int64 (m, k): row
        numbers in `xb`; of equally distant rows the lower number comes first.
    """
    return Index(xb).search(xq, k)


class Index:
    """A database that is searched more than once."""

    def __init__(self, xb: Features) -> None:
        self._xb = np.ascontiguousarray(xb, np.float32)

    def __len__(self) -> int:
        return len(self._xb)

    def search(self, xq: Features, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """As the function `search`."""
        import faiss

        xq = np.ascontiguousarray(xq, np.float32)
        # `knn` reads the array where it lies; an `IndexFlatL2` would keep a second copy of it.
        _, candidates = faiss.knn(xq, self._xb, min(k + _SLACK, len(self._xb)))
        D = distances(self._xb, xq, candidates)
        return _nearest_first(D, candidates, k)


def distances(xb: Features, xq: Features, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Euclidean distances float64 (m, k) of every query to its own candidates int64 (m, k)."""
    D = np.empty(candidates.shape, np.float64)
    rows = max(1, _CHUNK_VALUES // (candidates.shape[1] * xb.shape[1]))
    for start in range(0, len(xq), rows):
        part = slice(start, start + rows)
        difference = xb[candidates[part]].astype(np.float64) - xq[part, None]
        D[part] = np.sqrt(np.einsum("qkd,qkd->qk", difference, difference))
    return D


def merge(
    D: NDArray[np.float64], ids: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Joins several result lists of each query into one without repetition.

    Args:
        D: float64 (m, l), results of all lists side by side.
        ids: int64 (m, l), the same row of the database may appear more than once.
        k: Number of results to keep; every query must have as many different rows.

    Returns:
        D, float64 (m, k), ascending; ids, int64 (m, k), all different within a row; and the columns
        they came from, int64 (m, k).
    """
    nearest = np.lexsort((ids, D), axis=-1)
    D, ids = np.take_along_axis(D, nearest, 1), np.take_along_axis(ids, nearest, 1)
    by_row = np.argsort(ids, axis=1, kind="stable")  # stable: of equal rows the nearest stays first
    grouped = np.take_along_axis(ids, by_row, 1)
    repeated = np.zeros(ids.shape, bool)
    np.put_along_axis(repeated, by_row[:, 1:], grouped[:, 1:] == grouped[:, :-1], 1)
    keep = np.argsort(repeated, axis=1, kind="stable")[:, :k]
    return (
        np.take_along_axis(D, keep, 1),
        np.take_along_axis(ids, keep, 1),
        np.take_along_axis(nearest, keep, 1),
    )


def _nearest_first(
    D: NDArray[np.float64], ids: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    order: NDArray[Any] = np.lexsort((ids, D), axis=-1)[:, :k]
    return np.take_along_axis(D, order, 1), np.take_along_axis(ids, order, 1)

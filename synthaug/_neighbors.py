"""Nearest neighbors, found by FAISS and measured again in float64.

FAISS is fast because it expands |a - b|^2 into |a|^2 + |b|^2 - 2 a.b for large batches. For near
duplicates, the very case an audit is about, that difference of large numbers keeps few correct
digits, and whether FAISS expands at all depends on how many queries were sent together. So FAISS
only retrieves; the distances that we report come from direct subtraction in float64.

The search is exact unless another index is asked for by name. Exact search runs on a GPU if there
is one and the installed FAISS can use it. It takes the database block by block, so that one in a
file (`numpy.load(path, mmap_mode="r")`, float16 or float32) may be larger than the memory.

Notation as in FAISS: `xb` the database, `xq` the queries, `D` distances, `ids` row numbers in the
database, `k` neighbors.
"""

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from synthaug._support.torch_state import one_thread_after_fork
from synthaug._types import Array, Doubles, Features, Indices, Integers, Singles

INDEXES = ("exact", "auto", "ivf", "hnsw", "sq", "pq", "ivfpq")
"""What `Index` can be: brute force; brute force up to `LARGE` rows and ivf beyond; an inverted
file, a graph of neighbors, 8 bits per number, 8 bits per subvector, and an inverted file of 64
bytes per row, which is for databases larger than the memory."""

LARGE = 1_000_000

_SLACK = 8
"""Candidates retrieved beyond k, so that rounding cannot push a true neighbor off the list."""

_APPROXIMATE_SLACK = 100
"""The same where FAISS measures with compressed vectors."""

_BLOCK_VALUES = 64_000_000
"""Numbers of the database that are searched at a time: 256 MB in float32."""

_CHUNK_VALUES = 4_000_000
"""Numbers that re-scoring holds at a time: 32 MB in float64."""


def checked_features(
    features: Any,
    name: str,
    dtype: type[np.floating[Any]] = np.float32,
    network: str = "extractor",
) -> Array:
    """Features, or logits of a classifier, as a contiguous array (n, d) of one dtype.

    Raises:
        ValueError: For another shape, another kind of numbers, or a value that is not finite.
    """
    array = np.asarray(features)
    if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"`{name}` must be floating point of shape (n, d), got {array.dtype} {array.shape}."
        )
    array = np.ascontiguousarray(array, dtype)
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(f"`{name}` is not finite in row {row}. Look at the {network}.")
    return array


def search(xb: Features, xq: Features, k: int) -> tuple[Doubles, Integers]:
    """The `k` nearest rows of `xb` for every row of `xq`, by Euclidean distance.

    Args:
        xb: float32 (n, d).
        xq: float32 (m, d).
        k: At most n.

    Returns:
        D, float64 (m, k), ascending: Euclidean distances, not squared. ids, int64 (m, k): row
        numbers in `xb`; of equally distant rows the lower number comes first.
    """
    with threads():
        return Index(xb).search(xq, k)


class Index:
    """A database that is searched more than once.

    Args:
        xb: float16 or float32 (n, d); may be a memory map.
        kind: One of `INDEXES`.
        rows: Row numbers of those that are searched, ascending; all by default. Results number
            them from 0.
    """

    def __init__(self, xb: Features, kind: str = "exact", *, rows: Indices | None = None) -> None:
        self._xb = Database(xb, rows)
        if kind == "auto":
            kind = "exact" if len(self._xb) <= LARGE else "ivf"
        self.kind = kind
        self._faiss = None if kind == "exact" else _built(self._xb, kind)

    def __len__(self) -> int:
        return len(self._xb)

    def search(self, xq: Features, k: int) -> tuple[Doubles, Integers]:
        """Works like the function `search`; an approximate index may miss a neighbor for a farther
        one.
        """
        xq = np.ascontiguousarray(xq, np.float32)
        if self._faiss is None:
            return self._exact(xq, k)
        _, candidates = self._faiss.search(xq, min(k + _APPROXIMATE_SLACK, len(self._xb)))
        D = self._xb.distances(xq, candidates.clip(min=0))
        D[candidates < 0] = np.inf  # lists that were looked at held too few rows
        D, ids = nearest_first(D, candidates, k)
        short = np.isinf(D).any(axis=1)
        if short.any():
            D[short], ids[short] = self._exact(xq[short], k)
        return D, ids

    def _exact(self, xq: Features, k: int) -> tuple[Doubles, Integers]:
        candidates = _retrieved(xq, self._xb, min(k + _SLACK, len(self._xb)))
        return nearest_first(self._xb.distances(xq, candidates), candidates, k)

    def recall(self, xq: Features, k: int) -> float:
        """Share of the exact `k` nearest rows that `search` finds."""
        approximate, exact = self.search(xq, k)[0], self._exact(np.ascontiguousarray(xq), k)[0]
        # By distance and not by row, so that equally distant rows count as found.
        return float((approximate <= exact[:, -1:]).sum(axis=1).clip(max=k).mean() / k)


@contextmanager
def threads() -> Iterator[None]:
    """Lets FAISS use as many threads as torch does, and afterwards as many as before.

    FAISS may bring its own OpenMP, which knows nothing of `torch.set_num_threads`: unlimited, it
    crowds out other processes wherever torch was limited on purpose.
    """
    import faiss

    one_thread_after_fork()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Database:
    """Rows that are looked at in blocks or one by one, always as float32.

    Args:
        xb: float16 or float32 (n, d); of a memory map only what is looked at is in memory.
        rows: Same as in `Index`.
    """

    def __init__(self, xb: Features, rows: Indices | None = None) -> None:
        self._xb, self._rows = xb, rows
        self.shape = (len(xb) if rows is None else len(rows), xb.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Integers) -> Features:
        """Some rows, float32 (..., d)."""
        return float32(self._xb[ids if self._rows is None else self._rows[ids]])

    def blocks(self) -> Iterator[tuple[int, Features]]:
        """The number of its first row, and a block, float32 (b, d), for one block after another."""
        size = max(1, _BLOCK_VALUES // self.shape[1])
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield start, float32(self._xb[part if self._rows is None else self._rows[part]])
            release(self._xb)

    def distances(self, xq: Features, candidates: Integers) -> Doubles:
        """Works like the function `distances`."""
        D = distances(self, xq, candidates)
        release(self._xb)
        return D


def float32(array: Features) -> Features:
    """The same numbers, contiguous; float16 is converted by torch, which is faster at it."""
    if array.dtype == np.float16:
        return torch.from_numpy(np.array(array)).float().numpy()
    return np.ascontiguousarray(array, np.float32)


def release(xb: Features) -> None:
    """Lets go of the pages of a read-only memory map, which else count as memory in use."""
    if isinstance(xb, np.memmap) and xb.mode == "r":
        held: Any = xb._mmap  # type: ignore[attr-defined]
        if "MADV_DONTNEED" in vars(mmap):  # Windows lacks it, and drops pages by itself
            held.madvise(mmap.MADV_DONTNEED)


def _retrieved(xq: Features, xb: Database, k: int) -> Integers:
    """Row numbers of about the nearest rows, int64 (m, k), by brute force."""
    best: Any = ()
    for first, block in xb.blocks():
        D, ids = _knn(xq, block, min(k, len(block)))
        if first:
            D, ids = np.hstack([best[0], D]), np.hstack([best[1], ids + first])
        order = np.argsort(D, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(D, order, 1), np.take_along_axis(ids, order, 1)
    return best[1]


def _knn(xq: Features, xb: Features, k: int) -> tuple[Singles, Integers]:
    import faiss

    # `knn` reads the array where it lies; an `IndexFlatL2` would keep a second copy of it. Not
    # every build of FAISS for the CPU has the function that counts GPUs.
    if getattr(faiss, "get_num_gpus", lambda: 0)() > 0 and k <= 2048:  # the most that a GPU sorts
        D, ids = faiss.knn_gpu(faiss.StandardGpuResources(), xq, xb, k)
    else:
        D, ids = faiss.knn(xq, xb, k)
    return D, np.asarray(ids, np.int64)


def _built(xb: Database, kind: str) -> Any:
    """A trained and filled FAISS index."""
    import faiss

    n, d = xb.shape
    # As the guidelines of FAISS have it: 4 sqrt(n) lists, fewer where each would hold little.
    lists = max(1, min(int(4 * math.sqrt(n)), n // 39))
    if kind == "ivfpq":  # every row is compared with all centers: with fewer of them, in time
        lists = min(lists, 1024)
    # Product quantization needs equal subvectors; of 4 numbers, as 8 bits cannot say much more.
    parts = max(p for p in range(1, max(1, d // 4) + 1) if d % p == 0)
    few = max(p for p in range(1, min(64, parts) + 1) if d % p == 0)
    bits = max(1, min(8, int(math.log2(max(2, n // 39)))))
    factory = {
        "ivf": f"IVF{lists},Flat",
        "hnsw": "HNSW32",
        "sq": "SQ8",
        "pq": f"PQ{parts}x{bits}",
        "ivfpq": f"IVF{lists},PQ{few}x{bits}",
    }
    index: Any = faiss.index_factory(d, factory[kind])
    if not index.is_trained:
        step = max(1, n // (39 * max(lists if kind.startswith("ivf") else 0, 256)))
        index.train(xb[np.arange(0, n, step)])
    for _, block in xb.blocks():
        index.add(block)
    if kind == "ivfpq":
        index.nprobe = max(8, lists // 32)
    elif kind == "ivf":
        index.nprobe = max(8, lists // 16)
    elif kind == "hnsw":
        index.hnsw.efSearch = 256
    return index


def distances(xb: Features | Database, xq: Features, candidates: Integers) -> Doubles:
    """Euclidean distances float64 (m, k) of every query to its own candidates int64 (m, k)."""
    D = np.empty(candidates.shape, np.float64)
    rows = max(1, _CHUNK_VALUES // (candidates.shape[1] * xb.shape[1]))
    for start in range(0, len(xq), rows):
        part = slice(start, start + rows)
        difference = xb[candidates[part]].astype(np.float64) - xq[part, None]
        D[part] = np.sqrt(np.einsum("qkd,qkd->qk", difference, difference))
    return D


def merge(D: Doubles, ids: Integers, k: int) -> tuple[Doubles, Integers, Integers]:
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


def nearest_first(D: Doubles, ids: Integers, k: int) -> tuple[Doubles, Integers]:
    """The k nearest of the results of each query, ascending; of equally near ones the lower row."""
    order: Array = np.lexsort((ids, D), axis=-1)[:, :k]
    return np.take_along_axis(D, order, 1), np.take_along_axis(ids, order, 1)

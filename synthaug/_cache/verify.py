"""Comparing every row of a file with its checksum."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from synthaug._cache.format import BLOCK, State, erased_checksum
from synthaug._cache.readers import Reader
from synthaug._support.progress import bar, counted
from synthaug._types import Indices


def verify(reader: Reader, fd: int, *, workers: int, progress: bool) -> Indices:
    """Rows whose bytes are wrong, int64, ascending; `fd` is the open file."""
    erased = erased_checksum(reader.contents.image_shape)
    state, recorded = np.array(reader.state), np.array(reader.checksum)  # in this order
    expected = np.where(state == State.WITHDRAWN, np.uint32(erased), recorded)
    step = max(1, BLOCK // reader.contents.regions["images"].row_bytes)

    def wrong(start: int) -> Indices:
        rows = np.arange(start, min(start + step, len(state)))
        differs = reader.stored_checksums(fd, start, start + len(rows)) != expected[rows]
        differs |= (state[rows] == State.WITHDRAWN) & (recorded[rows] != erased)
        return rows[differs & (state[rows] != State.PENDING)]

    starts = range(0, len(state), step)
    # Threads: while one waits for the disk, another computes. HDF5 has one lock for all.
    pool = ThreadPoolExecutor(workers if reader.contents.plain else 1)
    try:
        shown = bar(len(starts), "verify", "block", progress=progress)
        found = np.concatenate(list(counted(pool.map(wrong, starts), shown)))
    finally:
        pool.shutdown(cancel_futures=True)
    return found[reader.state[found] == state[found]]  # others changed while we were reading

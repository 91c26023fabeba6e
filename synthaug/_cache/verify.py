"""Comparing the rows of a file with their checksums."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from synthaug._cache.format import State, blocks, erased_checksum
from synthaug._cache.readers import Reader, check_same
from synthaug._support.progress import bar, counted
from synthaug._types import Indices


def verify(reader: Reader, fd: int, *, workers: int, progress: bool) -> Indices:
    """Rows whose bytes are wrong, int64, ascending; `fd` is the open file."""
    state, recorded = reader.column("state"), reader.column("checksum")  # in this order
    erased = erased_checksum(reader.contents.image_shape)

    def wrong(rows: Indices) -> Indices:
        withdrawn, expected = state[rows] == State.WITHDRAWN, recorded[rows]
        stored = reader.stored_checksums(fd, rows)
        return rows[(stored != expected) | withdrawn & (expected != erased)]

    # Of a pending row nothing is known, and nothing is read.
    pieces = list(blocks(np.flatnonzero(state != State.PENDING), reader.contents.image_shape))
    # Threads: while one waits for the disk, another computes. HDF5 has one lock for all.
    pool = ThreadPoolExecutor(workers if reader.contents.plain else 1)
    try:
        shown = bar(len(pieces), "verify", "block", progress=progress)
        found = [np.empty(0, np.int64), *counted(pool.map(wrong, pieces), shown)]
    finally:
        pool.shutdown(cancel_futures=True)
    check_same(reader.contents, fd)  # still as long as when we began
    bad = np.concatenate(found)
    return bad[reader.column("state")[bad] == state[bad]]  # others changed while we were reading

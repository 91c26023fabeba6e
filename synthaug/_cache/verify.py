"""Comparing the rows of a file with their checksums."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from synthaug._cache.format import ChosenRows, State, erased_checksum, slices
from synthaug._cache.readers import Reader
from synthaug._support.progress import bar, counted
from synthaug._types import Indices


def verify(reader: Reader, fd: int, *, workers: int, progress: bool) -> Indices:
    """Rows whose bytes are wrong, int64, ascending; `fd` is the open file."""
    state = reader.column("state")
    erased = erased_checksum(reader.contents.image_shape)

    # Of a pending row nothing is known, and nothing is read.
    written = ChosenRows(state != State.PENDING)

    def wrong(piece: slice) -> Indices:
        rows = written[piece]
        withdrawn, expected = state[rows] == State.WITHDRAWN, reader.recorded(fd, rows)
        stored = reader.stored_checksums(fd, rows)
        return rows[(stored != expected) | withdrawn & (expected != erased)]

    pieces = list(slices(len(written), reader.contents.image_shape))
    # Threads: while one waits for the disk, another computes. HDF5 has one lock for all.
    pool = ThreadPoolExecutor(workers if reader.contents.plain else 1)
    try:
        shown = bar(len(pieces), "verify", "block", progress=progress)
        found = [np.empty(0, np.int64), *counted(pool.map(wrong, pieces), shown)]
    finally:
        pool.shutdown(cancel_futures=True)
    reader.contents.check_same(fd)  # still as long as when we began
    bad = np.concatenate(found)
    return bad[reader.column("state", bad) == state[bad]]  # others changed while we were reading

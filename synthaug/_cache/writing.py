"""How rows are written in place: in an order in which a kill at any instant loses nothing."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import numpy as np

from synthaug._cache.compare import listed
from synthaug._cache.encoded_rows import Encoded
from synthaug._cache.format import State, blocks, checksums, erased_checksum
from synthaug._cache.readers import Reader, descriptor, read_runs, write_runs
from synthaug._cache.tombstones import content_keys, seals
from synthaug._support import system
from synthaug._support.files import sync_file
from synthaug._types import Array, Bytes, Indices, Unsigned

Fsync = Literal["never", "batch"]
OnWithdrawn = Literal["raise", "skip"]


class Writer:
    """Writes rows of an open cache. Processes that write or withdraw at once take turns.

    Args:
        reader: The open file. Its note of the rows that were checked is kept true.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._contents = reader.contents

    def commit(
        self,
        rows: Indices,
        images: Bytes,
        files: list[bytes] | None,
        *,
        fsync: Fsync,
        on_withdrawn: OnWithdrawn,
    ) -> None:
        """Writes images, or their files if the cache has such, in order, and marks them as done.

        Args:
            rows: Row numbers, each at most once, int64 (n,).
            images: uint8 (n, C, H, W).
            files: The same images as the cache encodes them; `None` if it stores pixels.
            fsync: "batch" orders the steps on the disk too.
            on_withdrawn: Treatment of rows that were withdrawn.

        Raises:
            ValueError: A row was withdrawn.
            CacheError: The system refused to write.
        """
        order = np.argsort(rows)
        rows, images = rows[order], images[order]
        stored = images if files is None else np.array(files, object)[order]
        with self._writing() as fd:
            state = self._get(fd, "state", rows)
            gone = state == State.WITHDRAWN
            if gone.any():
                if on_withdrawn == "raise":
                    raise ValueError(
                        f"{self._contents.path}: {listed(rows[gone])} cannot be written: withdrawn "
                        "rows stay empty. Leave them out."
                    )
                rows, images, state, stored = (
                    each[~gone] for each in (rows, images, state, stored)
                )
            again = rows[state == State.DONE]
            self._reader.served[again] = 0
            self._put(fd, "state", again, State.PENDING, fsync=fsync)
            self._store(fd, rows, stored, fsync)
            self._put(fd, "checksum", rows, checksums(images), fsync=fsync)
            self._put(fd, "state", rows, State.DONE, fsync=fsync)

    def invalidate(self, rows: Indices) -> None:
        """Makes those of ascending rows pending that are done."""
        with self._writing() as fd:
            rows = rows[self._get(fd, "state", rows) == State.DONE]
            self._reader.served[rows] = 0
            self._put(fd, "state", rows, State.PENDING, fsync="batch")

    def withdraw(self, rows: Indices, forgotten: Unsigned) -> None:
        """Erases ascending rows for good.

        State first, then a tombstone for each image that is there, then pixels, and last, as proof
        of the erasure, the checksum of zeros. `forgotten` become tombstones before all else.
        """
        self._reader.served[rows] = 0
        shape = self._contents.image_shape
        with self._writing() as fd:
            self._bury(fd, forgotten)
            self._put(fd, "state", rows, State.WITHDRAWN, fsync="batch")
            for block in blocks(rows, shape):
                images = self._reader.stored(fd, block)
                intact = checksums(images) == self._get(fd, "checksum", block)
                there = intact & images.any(axis=(1, 2, 3))  # neither pending nor erased already
                self._bury(fd, content_keys(images[there]))
                self._erase(fd, block)
            self._put(fd, "checksum", rows, erased_checksum(shape), fsync="batch")

    def _store(self, fd: int, rows: Indices, stored: Array, fsync: Fsync) -> None:
        if isinstance(self._reader, Encoded):
            self._reader.appending.store(fd, rows, stored.tolist(), sync=fsync == "batch")
        else:
            self._put(fd, "images", rows, stored)

    def _erase(self, fd: int, rows: Indices) -> None:
        if isinstance(self._reader, Encoded):
            self._reader.appending.erase(fd, rows)
        else:
            zeros = np.zeros((len(rows), *self._contents.image_shape), np.uint8)
            self._put(fd, "images", rows, zeros, fsync="batch")

    def _bury(self, fd: int, keys: Unsigned) -> None:
        """Adds to the tombstones those keys that are not there yet."""
        if not self._contents.tombstone_places or not len(keys):
            return
        stored = self._reader.tombstones()
        new = np.setdiff1d(keys, np.append(stored, np.uint64(0)))
        room = self._contents.tombstone_places - len(stored)
        if len(new) > room:
            warnings.warn(
                f"{self._contents.path} has room for {room:,} of {len(new):,} tombstones: name the "
                "others again when you merge or import.",
                stacklevel=4,
            )
        total = self._contents.tombstone_places
        keys = np.append(stored, new[:room])
        old, sealed = seals(stored, total), seals(keys, total)
        if len(stored) and len(old) > len(sealed):  # no room for complements any more
            self._put(fd, "tombstones", np.arange(total - len(old), total), 0, fsync="batch")
        # All of them: where a power failure left a gap, the keys behind it move up.
        self._put(fd, "tombstones", np.arange(len(keys)), keys, fsync="batch")
        self._put(fd, "tombstones", np.arange(total - len(sealed), total), sealed, fsync="batch")

    def _put(
        self, fd: int, name: str, rows: Indices, values: Array | int, *, fsync: Fsync = "never"
    ) -> None:
        """Writes `values` at ascending `rows` of one data set: one call per run of neighbors."""
        region = self._contents.regions[name]
        if not len(rows):  # nothing to order on the disk either
            return
        if isinstance(values, int):
            values = np.full(len(rows), values, region.dtype)
        write_runs(fd, region, rows, values)
        if fsync == "batch":
            sync_file(fd)

    def _get(self, fd: int, name: str, rows: Indices) -> Array:
        return read_runs(fd, self._contents.regions[name], rows)

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """The open file, while nobody else writes to it: writers of all processes take turns."""
        with descriptor(self._contents, os.O_RDWR) as fd:
            with suppress(OSError):  # a file system without locks: there, nothing guards
                system.lock(fd)
            try:
                yield fd
            finally:
                with suppress(OSError):
                    system.unlock(fd)  # also for what was forked meanwhile

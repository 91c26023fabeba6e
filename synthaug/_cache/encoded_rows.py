"""Images of a cache as files, one behind the other, and an index that says where each lies.

    index     uint64 (N, 2)   where the file of a row begins in `encoded`, and its bytes
    used      uint64 (1,)     bytes of `encoded` that are given away
    encoded   uint8  (B,)     the files; the last data set, which becomes longer in steps

A row gets its place in the index first, then its file is written there. So whatever a kill leaves
in `encoded` belongs to a row that the index names: it is overwritten when the row is drawn again,
and erased when the row is withdrawn.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from synthaug._cache.encodings import UndecodableError, check_installed, on_threads
from synthaug._cache.files import pread_into, pwrite, reserve
from synthaug._cache.format import checksums, erased_checksum, growth_step, spans
from synthaug._cache.growing import grow, length_of
from synthaug._cache.readers import Mapped, Reader, Unpacked, read_runs, write_runs
from synthaug._cache.schema import CacheContents
from synthaug._support.files import sync_file
from synthaug._types import Bytes, Flags, Indices, Unsigned

Entries = Unsigned
"""Of the index, (n, 2): where a file begins, and its bytes."""

_ZEROS = bytes(1 << 20)


def open_reader(contents: CacheContents) -> Reader:
    """The fastest way to read this file."""
    if not contents.encoding.raw:
        return Encoded(contents)
    return Mapped(contents) if contents.plain else Unpacked(contents)


class Encoded(Mapped):
    """Decodes rows when they are read, on threads; their files are read with ordinary calls."""

    def __init__(self, contents: CacheContents) -> None:
        check_installed(contents.encoding)
        super().__init__(contents)
        self.appending = Appending(contents, self._intact_on_medium)
        # Noise takes a little more as a file than its raw pixels do.
        self._most = 2 * int(np.prod(contents.image_shape)) + 2**16
        """Bytes of the largest file that a row may have."""

    def gather(self, rows: Indices) -> Bytes:
        numbers = rows % len(self.served)
        entries = self._values("index", numbers)
        with self._readable():
            pixels, faults = self._decoded(self._fd, entries)
        for place, fault in faults.items():
            row = int(numbers[place])
            self.served[row] = 0  # its checksum, or that of zeros, tells it from an image
            self.faults[row] = fault
        return pixels

    def files(self, rows: Indices) -> list[bytes]:
        """The files of `rows` as stored; an UndecodableError if the index points beyond the
        file."""
        with self._readable():
            end = self._end(self._fd)
            return [bytes(self._file(self._fd, e, end)) for e in self._values("index", rows)]

    def stored_checksums(self, fd: int, rows: Indices) -> NDArray[np.uint32]:
        entries, end = read_runs(fd, self.contents.regions["index"], rows), self._end(fd)
        pixels, faults = self._decoded(fd, entries)
        stored = checksums(pixels)
        for place in faults:
            # Zeros are what a withdrawn row must hold; anything else that is no image never fits.
            entry = entries[place]
            inside = self._inside(entry, end)
            if entry.any() and (not inside or self._file(fd, entry, end).any()):
                stored[place] = erased_checksum(self.contents.image_shape) ^ 0xFFFFFFFF
        return stored

    def stored(self, fd: int, rows: Indices) -> Bytes:
        return self._decoded(fd, read_runs(fd, self.contents.regions["index"], rows))[0]

    def _intact_on_medium(self, fd: int, rows: Indices) -> Flags:
        """Returns a mask of the ascending rows that match their checksum."""
        return self.stored_checksums(fd, rows) == self.recorded(fd, rows)

    def _decoded(self, fd: int, entries: Entries) -> tuple[Bytes, dict[int, str]]:
        """Images, zeros where there is none, and why there is none by place."""
        contents = self.contents
        pixels = np.empty((len(entries), *contents.image_shape), np.uint8)
        faults, end = {}, self._end(fd)

        def decode(place: int) -> None:
            try:
                data = self._file(fd, entries[place], end)
                contents.encoding.decode_into(data, pixels[place])
            except UndecodableError as error:
                pixels[place] = 0
                faults[place] = str(error)

        on_threads(decode, range(len(entries)))
        return pixels, faults

    def _end(self, fd: int) -> int:
        """Bytes that the file has for encoded images now."""
        return os.fstat(fd).st_size - self._offset

    def _inside(self, entry: Entries, end: int) -> bool:
        """Whether the index names bytes that the file has."""
        start, length = map(int, entry)
        return 0 < length <= self._most and start + length <= end

    def _file(self, fd: int, entry: Entries, end: int) -> Bytes:
        start, length = map(int, entry)
        if not self._inside(entry, end):
            raise UndecodableError(
                f"the index names {length:,} bytes from {start:,} on, which the file does not have"
                if length <= self._most
                else f"the index names {length:,} bytes, too many for one image"
            )
        data = np.empty(length, np.uint8)
        pread_into(fd, data.data, self._offset + start)
        return data

    @property
    def _offset(self) -> int:
        offset = self.contents.regions["encoded"].offset
        assert offset is not None
        return offset


class Appending:
    """Gives rows places in the index, and writes their files. Its user holds the cache's lock."""

    def __init__(self, contents: CacheContents, intact: Callable[[int, Indices], Flags]) -> None:
        self._contents = contents
        self._intact = intact
        """Says which rows of an open file match their checksum."""
        self._counted = False

    def store(self, fd: int, rows: Indices, files: list[bytes], *, sync: bool) -> None:
        """Writes the files of ascending rows that are pending.

        A file of the same length takes the place of the one before; any other is appended, after
        the one before was erased.
        """
        if not len(rows):
            return
        regions = self._contents.regions
        lengths = np.array([len(file) for file in files], np.uint64)
        entries = read_runs(fd, regions["index"], rows)
        own = self._own(fd, rows, entries)
        moved = ~own | (entries[:, 1] != lengths)
        self._zero(fd, entries[own & moved], sync=sync)
        self._erase_lost(fd, rows, entries, own)
        end = self._end(fd)
        places = end + np.cumsum(lengths[moved]) - lengths[moved]
        new_end = int(end + lengths[moved].sum())
        self._make_room(fd, new_end)
        entries[moved] = np.stack([places, lengths[moved]], axis=1)
        write_runs(fd, regions["used"], np.array([0]), np.array([new_end], np.uint64))
        write_runs(fd, regions["index"], rows, entries)
        if sync:
            sync_file(fd)
        offset = regions["encoded"].offset
        assert offset is not None
        for (start, _), file in zip(entries.tolist(), files, strict=True):
            pwrite(fd, file, offset + start)

    def erase(self, fd: int, rows: Indices) -> None:
        """Overwrites the files of ascending rows with zeros."""
        entries = read_runs(fd, self._contents.regions["index"], rows)
        own = self._own(fd, rows, entries)
        self._zero(fd, entries[own], sync=True)
        lost = self._erase_lost(fd, rows, entries, own)
        write_runs(fd, self._contents.regions["index"], lost, np.zeros((len(lost), 2), "<u8"))

    def _erase_lost(self, fd: int, rows: Indices, entries: Entries, own: Flags) -> Indices:
        """Erases the files of those rows whose index is damaged, and returns the rows.

        Such a file may lie anywhere, so all bytes are erased that no other row has.
        """
        recorded = read_runs(fd, self._contents.regions["checksum"], rows)
        written = (recorded != 0) & (recorded != erased_checksum(self._contents.image_shape))
        lost = rows[~own & (written | entries.any(axis=1))]
        if len(lost):
            self._zero(fd, self._nobodys(fd, lost), sync=True)
        return lost

    def _end(self, fd: int) -> int:
        """Where the next file goes. Counted anew by each process, for a kill may have come between
        `used` and the index, and so that a job that was killed writes the same file."""
        if self._counted:
            return int(read_runs(fd, self._contents.regions["used"], np.array([0]))[0])
        self._counted = True
        ends = [0, *(int(entries.sum(axis=1).max()) for _, entries in self._entries(fd))]
        return max(ends)

    def _entries(self, fd: int) -> Iterator[tuple[int, Entries]]:
        """The index in pieces, each with its first row; 0, 0 for what lies outside of the file."""
        region = self._contents.regions["index"]
        size = length_of(fd, self._contents.encoded_header)
        for span in spans(region.shape[0]):
            entries = read_runs(fd, region, np.arange(span.start, span.stop))
            starts, lengths = entries.T
            entries[(starts > size) | (lengths > size) | (starts + lengths > size)] = 0
            yield span.start, entries

    def _own(self, fd: int, rows: Indices, entries: Entries) -> Flags:
        """Returns a mask of the `entries` whose bytes no other row shares."""
        if not entries.any():
            return np.zeros(len(rows), bool)
        inside = np.zeros(len(rows), bool)
        overlapping = np.zeros(len(rows), np.int64)
        starts, stops = entries[:, 0], entries.sum(axis=1)
        for first, others in self._entries(fd):
            here = (rows >= first) & (rows < first + len(others))
            inside[here] = others[rows[here] - first, 1] > 0
            begins, lengths = others[others[:, 1] > 0].T
            ends = np.sort(begins + lengths)
            # How many files begin before this one ends, less those that end before it begins.
            overlapping += np.searchsorted(np.sort(begins), stops)
            overlapping -= np.searchsorted(ends, starts, side="right")
        return inside & (overlapping == 1)  # itself

    def _nobodys(self, fd: int, rows: Indices) -> Entries:
        """The bytes that are given away to none but `rows`, as entries.

        A row whose index leads into a file of `rows` has bytes there only if they are its image:
        otherwise it is that index which is damaged.
        """
        taken, lost = [np.zeros((1, 2), np.uint64)], [np.empty((0, 2), np.uint64)]
        for first, entries in self._entries(fd):
            lost.append(entries[rows[(rows >= first) & (rows < first + len(entries))] - first])
        for first, entries in self._entries(fd):
            entries[rows[(rows >= first) & (rows < first + len(entries))] - first] = 0
            overlapping = np.zeros(len(entries), bool)
            for start, length in np.concatenate(lost):
                overlapping |= (entries[:, 0] < start + length) & (entries.sum(axis=1) > start)
            rivals = np.flatnonzero(overlapping)
            entries[rivals[~self._intact(fd, rivals + first)]] = 0
            taken.append(entries[entries[:, 1] > 0])
        begins, ends = np.concatenate(taken).T
        order = np.argsort(begins, kind="stable")
        size = length_of(fd, self._contents.encoded_header)
        stops = np.append(begins[order][1:], np.uint64(size))
        starts = np.maximum.accumulate((begins + ends)[order])
        gaps = stops > starts
        return np.stack([starts[gaps], stops[gaps] - starts[gaps]], axis=1)

    def _zero(self, fd: int, entries: Entries, *, sync: bool) -> None:
        offset = self._contents.regions["encoded"].offset
        assert offset is not None
        for start, length in entries.tolist():
            for at in range(0, length, len(_ZEROS)):
                piece = memoryview(_ZEROS)[: length - at]
                pwrite(fd, piece, offset + start + at)
        if sync and len(entries):
            sync_file(fd)

    def _make_room(self, fd: int, end: int) -> None:
        """Makes `encoded` long enough, in steps, and claims the disk space for it first."""
        contents = self._contents
        if end <= (length := length_of(fd, contents.encoded_header)):
            return
        step = growth_step(contents.regions["index"].shape[0], contents.image_shape)
        offset = contents.regions["encoded"].offset
        assert offset is not None
        longer = -(-end // step) * step
        reserve(fd, offset + longer, contents.path, present=offset + length)
        sync_file(fd)
        grow(fd, contents.encoded_header, longer, offset + longer)

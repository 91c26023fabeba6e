"""A data set at the end of an HDF5 file that becomes longer in place.

HDF5 itself makes a data set longer by new structures, and a process that is killed meanwhile leaves
a file that nothing opens. Here the two numbers that must change, the end of the file and the length
of the data set, are written each by one call of a few hundred bytes: a kill comes before or after.
The file is made longer first, then it says so, and then the data set does, so that every state in
between is a valid file.
"""

import errno
import struct
from typing import NamedTuple

from synthaug._cache.files import pread_into, pwrite
from synthaug._support.files import sync_file
from synthaug._types import ImageShape

_SUPERBLOCK = 48
"""Bytes of a superblock of version 2 or 3 whose addresses and lengths take 8 bytes."""
_END_OF_FILE = 28
_DATASPACE, _LAYOUT = 1, 8
"""Kinds of messages in the header of a data set."""


class _Header(NamedTuple):
    """The header of a data set, as the file has it."""

    data: bytearray
    """With its checksum."""
    length_places: tuple[int, ...]
    """Where in it the length of the data set is written, as 8 bytes."""

    @property
    def length(self) -> int:
        """Bytes of the data set."""
        (length,) = {struct.unpack_from("<Q", self.data, at)[0] for at in self.length_places}
        return int(length)


def length_of(fd: int, header_address: int) -> int:
    """How many bytes the data set has whose header is there; an OSError if the header is damaged
    or cannot be read."""
    return _header(fd, header_address).length


def grow(fd: int, header_address: int, length: int, end: int) -> None:
    """Makes the last data set of a file, of bytes, longer; the file has `end` bytes already.

    Raises:
        OSError: The structure of the file is damaged, or the file cannot be written.
    """
    header = _header(fd, header_address)
    superblock = _read(fd, 0, _SUPERBLOCK)
    if superblock[8] not in (2, 3) or superblock[9:11] != b"\x08\x08":
        raise OSError(errno.EIO, "the HDF5 superblock is of another kind")
    struct.pack_into("<Q", superblock, _END_OF_FILE, end)
    for at in header.length_places:
        struct.pack_into("<Q", header.data, at, length)
    for data, address in ((superblock, 0), (header.data, header_address)):
        struct.pack_into("<I", data, len(data) - 4, checksum(bytes(data[:-4])))
        pwrite(fd, bytes(data), address)
        sync_file(fd)


def _read(fd: int, address: int, size: int) -> bytearray:
    """A structure that ends with its checksum."""
    data = bytearray(size)
    pread_into(fd, memoryview(data), address)
    if struct.unpack_from("<I", data, size - 4)[0] != checksum(bytes(data[:-4])):
        raise OSError(errno.EIO, "the HDF5 structure is damaged")
    return data


def _header(fd: int, address: int) -> _Header:
    """Reads a header of version 2 in one piece: messages of (kind, size, flags, data)."""
    start = bytearray(10)
    pread_into(fd, memoryview(start), address)
    flags = start[5]
    if start[:5] != b"OHDR\x02" or flags & ~0b111:
        raise OSError(errno.EIO, "the header of the data set is of another kind")
    width = 1 << (flags & 0b11)
    begin = 6 + width
    stop = begin + int.from_bytes(start[6:10][:width], "little")
    if stop > 2**16:
        raise OSError(errno.EIO, "the header of the data set is of another kind")
    data = _read(fd, address, stop + 4)
    message, places = 6 if flags & 0b100 else 4, []
    at = begin
    while at + message <= stop:
        kind, size = struct.unpack_from("<BH", data, at)
        body = at + message
        if kind == _DATASPACE:  # version, rank, flags, kind; lengths; largest lengths
            places += [body + 4, body + 12] if data[body + 2] & 1 else [body + 4]
        elif kind == _LAYOUT:  # version, class, address, size
            places.append(body + 10)
        at = body + size
    header = _Header(data, tuple(places))
    lengths = {bytes(data[place : place + 8]) for place in places}
    if len(places) < 2 or len(lengths) != 1:
        raise OSError(errno.EIO, "the header of the data set is of another kind")
    return header


def checksum(data: bytes) -> int:
    """Bob Jenkins's hash "lookup3" of 32 bits, by which HDF5 checks its metadata."""
    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    blocks = max(0, -(-len(data) // 12) - 1)  # the last twelve bytes or fewer are mixed otherwise
    words = struct.unpack_from(f"<{3 * blocks}I", data)
    for i in range(0, len(words), 3):
        a, b, c = _mixed(_sum(a, words[i]), _sum(b, words[i + 1]), _sum(c, words[i + 2]))
    rest = data[12 * blocks :]
    if not rest:
        return c
    x, y, z = struct.unpack("<3I", rest.ljust(12, b"\0"))
    a, b, c = _sum(a, x), _sum(b, y), _sum(c, z)
    for turn in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, _difference(c ^ b, _turned(b, turn)), a
    return b  # of the last round


def _mixed(a: int, b: int, c: int) -> ImageShape:
    for turn in (4, 6, 8, 16, 19, 4):
        a = _difference(a, c) ^ _turned(c, turn)
        a, b, c = b, _sum(c, b), a
    return a, b, c


def _sum(x: int, y: int) -> int:
    return (x + y) & 0xFFFFFFFF


def _difference(x: int, y: int) -> int:
    return (x - y) & 0xFFFFFFFF


def _turned(x: int, by: int) -> int:
    return (x << by | x >> (32 - by)) & 0xFFFFFFFF

"""Layout of a cache file, format versions 2 and 3, and how a new one comes into being."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import google_crc32c
import h5py
import numpy as np
from numpy.typing import NDArray

from synthaug._cache.encodings import Encoding, check_installed
from synthaug._cache.files import AbstractHDF5Target, check_room, new_file, pwrite, reserve
from synthaug._cache.stored_rows import data_set_of
from synthaug._cache.tombstones import SEALED, seals
from synthaug._plan import Plan
from synthaug._support.extras import installed_version
from synthaug._types import Array, Bytes, Flags, Indices, Integers

FORMAT = "synthaug-cache"
FORMAT_VERSION = 2
ENCODED_VERSION = 3
READABLE_VERSIONS = (1, FORMAT_VERSION, ENCODED_VERSION)
"""Version 1 has no tombstones. Version 3 holds files of images where version 2 holds pixels."""

MAX_ROWS = 2**31
MAX_COLUMNS = 256
MAX_SIDE = 2**14
MAX_MANIFEST = 64 * 2**20  # bytes
PAGE = 4096
"""Where data sets start: numbers lie aligned in memory, large rows on whole pages."""

_LARGEST_STEP = 64 * 2**20
"""Bytes by which the part of a cache that holds encoded images becomes longer, at most."""
BLOCK = 16 * 2**20
"""Bytes of images that are read, copied or erased at once."""
SPAN = 2**20
"""Rows whose states are read at once."""

_LIBRARIES = ("synthaug", "torch", "diffusers", "numpy", "h5py")


class State(IntEnum):
    """Names the states of a row. PENDING becomes DONE when it is written; both become
    WITHDRAWN.
    """

    PENDING = 0
    """Not generated yet."""
    DONE = 1
    """Image and checksum are complete."""
    WITHDRAWN = 2
    """Taken back for good: the pixels are zero, and no resumed job draws them again."""


def checksums(images: Bytes) -> NDArray[np.uint32]:
    """CRC-32C of every image, uint8 (n, ...) -> uint32 (n,)."""
    values = [google_crc32c.value(image.tobytes()) for image in images]
    return np.array(values, np.uint32)


def erased_checksum(image_shape: tuple[int, ...]) -> int:
    """CRC-32C of an image of zeros: the proof that a withdrawn row was erased to its last byte."""
    return google_crc32c.value(bytes(int(np.prod(image_shape))))


def data_sets(
    rows: int,
    image_shape: tuple[int, ...],
    parameters: Mapping[str, np.dtype[Any]],
    version: int = FORMAT_VERSION,
    encoded: int | None = None,
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Name, dtype and shape of every data set that a cache of `rows` rows has; no others exist.

    Args:
        rows: N.
        image_shape: (C, H, W).
        parameters: dtype of each plan column other than `label`.
        version: Version of the format.
        encoded: Bytes for encoded images, in a file of version 3; usually those of a new file.
    """
    # One for the image of each row, and one for each real image that a row may derive from.
    tombstones = rows * (1 + sum(name.endswith("_key") for name in parameters))
    images: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    images, last = {"images": (np.dtype("u1"), (rows, *image_shape))}, {}
    if version == ENCODED_VERSION:
        images = {"index": (np.dtype("<u8"), (rows, 2)), "used": (np.dtype("<u8"), (1,))}
        size = growth_step(rows, image_shape) if encoded is None else encoded
        last = {"encoded": (np.dtype("u1"), (size,))}
    return {
        **images,
        "labels": (np.dtype("<i8"), (rows,)),
        "state": (np.dtype("u1"), (rows,)),
        "checksum": (np.dtype("<u4"), (rows,)),
        **{f"plan/{name}": (d.newbyteorder("<"), (rows,)) for name, d in parameters.items()},
        **({"tombstones": (np.dtype("<u8"), (tombstones,))} if version > 1 else {}),
        **last,
    }


def growth_step(rows: int, image_shape: Sequence[int]) -> int:
    """By how many bytes the part for encoded images becomes longer: whole pages, a small share of
    what the images take raw."""
    share = rows * int(np.prod(image_shape)) // 64
    return PAGE * max(1, min(share, _LARGEST_STEP) // PAGE)


def data_sets_of(
    plan: Plan, image_shape: tuple[int, ...], version: int = FORMAT_VERSION
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """`data_sets` of a new cache of a plan."""
    dtypes = {name: plan.rows.dtypes[name] for name in plan.columns if name != "label"}
    return data_sets(len(plan), image_shape, dtypes, version)


def complete_manifest(
    plan: Plan, manifest: Mapping[str, Any], encoding: Encoding
) -> dict[str, Any]:
    """`manifest` with all that every cache says about itself.

    An encoding with losses decides the images too, so it is named there. One without does not:
    a raw and a losslessly encoded cache of the same images have the same manifest.

    Raises:
        ValueError: `manifest` is no JSON, or contradicts what the cache itself records.
    """
    versions = {library: installed_version(library) or "unknown" for library in _LIBRARIES}
    own = {
        "classes": list(plan.classes),
        "settings": dict(plan.settings),
        "synthetic": True,
        "value_range": [0, 255],
        **({"encoding": str(encoding)} if encoding.lossy else {}),
    }
    for name, value in own.items():
        if name in manifest and manifest[name] != value:
            raise ValueError(
                f"`manifest` says {name!r} is {manifest[name]!r}, but the cache records {value!r}. "
                f"Leave {name!r} out."
            )
    defaults = {
        "recipe": {},
        "source": None,
        "license": {"generator": None, "source": None},
        "versions": versions,
    }
    full = {**defaults, **manifest, **own}
    if not isinstance(full["recipe"], Mapping):
        raise ValueError(f"`manifest['recipe']` must be a dict, got {full['recipe']!r}.")
    try:
        return json.loads(json.dumps(full, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`manifest` cannot be written as JSON: {error}.") from None


def text_digest(text: str) -> str:
    """32 hexadecimal digits of blake2b."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def create(
    path: Path,
    plan: Plan,
    *,
    image_shape: tuple[int, ...],
    manifest: Mapping[str, Any],
    encoding: Encoding,
) -> None:
    """Lays out a cache in which every row is pending.

    HDF5 never touches the disk here: it writes the structure, a few kilobytes, to memory, and that
    is copied into the reserved file. So a full disk is an exception and not a crash of the library,
    and `path` appears only once its file is complete.

    Rows of a large plan are computed once, while they are written, and so is the plan's digest.

    Raises:
        ValueError: An argument cannot be stored.
        CacheError: `path` exists, or the disk is full.
    """
    check_arguments(plan, image_shape)
    check_installed(encoding)
    text = json.dumps(complete_manifest(plan, manifest, encoding), sort_keys=True)
    if len(text) > MAX_MANIFEST:
        raise ValueError(
            f"`manifest`, with the classes and settings of the plan, is {len(text):,} bytes of "
            f"JSON; a cache holds {MAX_MANIFEST:,}. Leave out what is not needed to make the "
            "images again."
        )
    facts = None if encoding.raw else (str(encoding), image_shape)
    sets = data_sets_of(plan, image_shape, FORMAT_VERSION if encoding.raw else ENCODED_VERSION)
    structure, offsets = _structure(sets, text, "0" * 32, facts)  # digests have as many digits
    check_room(structure.size, path)
    with new_file(path) as fd:
        reserve(fd, structure.size, path)

        def store(name: str, start: int, values: Array) -> None:
            little_endian = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
            place = offsets[name] + start * values.itemsize
            pwrite(fd, little_endian.view(np.uint8).data, place)

        empty = seals(np.empty(0, np.uint64), places := sets["tombstones"][1][0])
        store("tombstones", places - len(empty), empty)
        digest = plan.visited(lambda column, *piece: store(data_set_of(column), *piece))
        structure, _ = _structure(sets, text, digest, facts)
        for start, piece in structure.pieces:
            pwrite(fd, piece, start)


def _structure(
    sets: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    manifest: str,
    plan_digest: str,
    encoded: tuple[str, tuple[int, ...]] | None,
) -> tuple["_Structure", dict[str, int]]:
    """The metadata of a cache, and the places of its data sets."""
    structure = _Structure()
    with new_hdf5(structure, manifest, plan_digest, alignment=PAGE, encoded=encoded) as file:
        offsets = _allocate(file, {name: sets[name] for name in sets if name != "encoded"})
        if encoded is not None:
            file.flush()  # what HDF5 has put off comes before the data set that becomes longer
            offsets |= _allocate(file, {"encoded": sets["encoded"]})
    assert encoded is None or offsets["encoded"] + sets["encoded"][1][0] == structure.size
    return structure, offsets


def check_arguments(plan: Plan, image_shape: tuple[int, ...]) -> None:
    """Refuses rows that a cache cannot hold, before anything is written."""
    if not 1 <= len(plan) <= MAX_ROWS:
        raise ValueError(
            f"`plan` has {len(plan):,} rows, a cache holds 1 to {MAX_ROWS:,}. Make several caches: "
            "slices of a plan are plans."
        )
    if len(plan.columns) > MAX_COLUMNS:
        raise ValueError(f"`plan` has {len(plan.columns)} columns, a cache holds {MAX_COLUMNS}.")
    for name in plan.columns:
        if not valid_column(name):
            raise ValueError(
                f"Column {name!r} cannot be stored: use 1 to 64 printable characters, without '/'."
            )
    check_shape(image_shape)


def check_shape(image_shape: tuple[int, ...]) -> None:
    """Refuses a shape that is not (C, H, W) within the limits of a cache with a ValueError."""
    if not valid_shape(image_shape):
        raise ValueError(
            f"`image_shape` must be (C, H, W) with C 1 or 3 and sides of 1 to {MAX_SIDE:,} pixels, "
            f"got {tuple(image_shape)}."
        )


def spans(rows: int) -> Iterator[slice]:
    """All rows in slices: what has a value for each of very many is looked at piece by piece."""
    for start in range(0, rows, SPAN):
        yield slice(start, min(start + SPAN, rows))


def blocks(rows: "Indices | ChosenRows", image_shape: Sequence[int]) -> Iterator[Indices]:
    """`rows` in pieces of a few megabytes of images."""
    for piece in slices(len(rows), image_shape):
        yield rows[piece]


def slices(rows: int, image_shape: Sequence[int]) -> Iterator[slice]:
    """Slices of so many rows of images, of a few megabytes each, and of not too many rows."""
    step = max(1, min(BLOCK // int(np.prod(image_shape)), SPAN // 16))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


@final
class ChosenRows:
    """Ascending row numbers, kept as a mask, bool (N,): a byte for each row, where numbers take 8.

    A slice of it is an array of row numbers, int64.
    """

    def __init__(self, mask: Flags) -> None:
        self._mask = mask
        self._found = 0, 0, np.empty(0, np.int64)  # slices mostly come in order
        counts = [0, *(int(np.count_nonzero(mask[span])) for span in spans(len(mask)))]
        self._begins: Integers = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, piece: slice) -> Indices:
        start, stop, _ = piece.indices(len(self))
        first = int(np.searchsorted(self._begins, start, side="right")) - 1
        last = int(np.searchsorted(self._begins, stop, side="left"))
        found = self._found
        if (first, last) != found[:2]:
            rows = np.flatnonzero(self._mask[first * SPAN : last * SPAN]) + first * SPAN
            self._found = found = first, last, rows
        skipped = int(self._begins[first])
        return found[2][start - skipped : stop - skipped]


def runs(rows: Indices) -> Iterator[tuple[int, int]]:
    """Where each run of neighbors among ascending rows starts and stops."""
    if len(rows):
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        yield from pairwise([0, *ends.tolist(), len(rows)])


def valid_column(name: str) -> bool:
    """Whether a plan column may have this name in the file."""
    return 1 <= len(name) <= 64 and name.isprintable() and "/" not in name and name != "."


def valid_shape(image_shape: tuple[int, ...]) -> bool:
    """Whether images of this shape can be stored."""
    if len(image_shape) != 3 or image_shape[0] not in (1, 3):
        return False
    return all(1 <= side <= MAX_SIDE for side in image_shape[1:])


@contextmanager
def new_hdf5(
    target: io.RawIOBase,
    manifest: str,
    plan_digest: str,
    *,
    alignment: int = 1,
    encoded: tuple[str, tuple[int, ...]] | None = None,
) -> Iterator[h5py.File]:
    """A new HDF5 file in `target` with the attributes of a cache and the empty group "plan".

    `encoded` is the encoding of the images and their shape (C, H, W), in a file of version 3.

    Since version 1.10 HDF5 protects its metadata with checksums, so damage there is noticed too.
    """
    attributes = {"format": FORMAT, "manifest": manifest, "plan_digest": plan_digest}
    with _new_file(target, alignment) as file:
        attributes["manifest_digest"] = text_digest(manifest)
        version = FORMAT_VERSION
        if encoded is not None:
            version = ENCODED_VERSION
            attributes["encoding"] = encoded[0]
            file.attrs.create("image_shape", encoded[1], dtype="<i8")
        for name, text in attributes.items():
            data = text.encode()
            file.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", len(data)))
        file.attrs.create("format_version", version, dtype="<i8")
        h5py.h5g.create(file.id, b"plan", gcpl=_timeless(h5py.h5p.GROUP_CREATE))
        yield file


def _new_file(target: io.RawIOBase, alignment: int) -> h5py.File:
    """An empty HDF5 file in the format of version 1.10."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_alignment(1, alignment)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, target)
    created = _timeless(h5py.h5p.FILE_CREATE)
    return h5py.File(h5py.h5f.create(b"cache", h5py.h5f.ACC_TRUNC, created, access))


def _timeless(kind: Any) -> Any:
    """Properties of what is created, without the time, which HDF5 before 2.0 keeps by default:
    equal caches are equal files."""
    properties = h5py.h5p.create(kind)
    properties.set_obj_track_times(False)
    return properties


def mark_sealed(file: h5py.File) -> None:
    """Says that the list of tombstones has a seal even while it is empty."""
    file["tombstones"].attrs.create(SEALED, 1, dtype="<i8")


def _allocate(
    file: h5py.File, sets: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> dict[str, int]:
    """Gives every data set its place in the file, and returns the places."""
    contiguous = _timeless(h5py.h5p.DATASET_CREATE)
    contiguous.set_layout(h5py.h5d.CONTIGUOUS)
    contiguous.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    contiguous.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the reserved file is zero already
    offsets = {}
    for name, (dtype, shape) in sets.items():
        created = h5py.h5d.create(
            file.id,
            name.encode(),
            h5py.h5t.py_create(dtype, logical=True),
            h5py.h5s.create_simple(shape),
            contiguous,
        )
        offsets[name] = created.get_offset()
        if name == "tombstones":
            mark_sealed(file)
    return offsets


class _Structure(AbstractHDF5Target):
    """A file in memory that keeps only what was written, however far apart: HDF5's metadata."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[tuple[int, bytes]] = []

    def _store(self, data: bytes, start: int) -> None:
        self.pieces.append((start, data))

    def _load(self, buffer: memoryview, start: int) -> None:
        stop = start + len(buffer)
        buffer[:] = bytes(len(buffer))
        for at, piece in self.pieces:  # later pieces overwrite earlier ones
            low, high = max(start, at), min(stop, at + len(piece))
            if low < high:
                buffer[low - start : high - start] = piece[low - at : high - at]

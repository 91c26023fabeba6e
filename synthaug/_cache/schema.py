"""The closed schema: what a file must be, and may only be, before a pixel of it is read.

A cache may come from a stranger. HDF5 lets a file name other files on the reader's disk (external
storage, external links, virtual data sets), run filter plug-ins, and declare shapes far larger than
itself. None of that has a place in a cache, so each is refused. Compressed copies, which `export`
and `h5repack` make, may be read if their filters are among those that come with h5py.
"""

import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from synthaug._cache.encodings import Encoding
from synthaug._cache.files import check_same
from synthaug._cache.format import (
    ENCODED_VERSION,
    FORMAT,
    MAX_COLUMNS,
    MAX_MANIFEST,
    MAX_ROWS,
    READABLE_VERSIONS,
    State,
    data_sets,
    spans,
    text_digest,
    valid_column,
    valid_shape,
)
from synthaug._cache.stored_rows import AbstractStoredRows, PackedRows, PlainRows, data_set_of
from synthaug._cache.tombstones import SEALED
from synthaug._plan import REQUIRED, Plan, check_values
from synthaug._support.reading import parse_json
from synthaug._support.storage import storage_fault
from synthaug._types import ImageShape
from synthaug.errors import CacheError, SynthaugError

_ROOT = {"images": "dataset", "labels": "dataset", "state": "dataset", "checksum": "dataset"} | {
    "plan": "group"
}
_SINCE_2 = {"tombstones": "dataset"}
_ENCODED = {name: "dataset" for name in ("index", "used", "encoded")}
"""What version 3 has in the place of "images"."""
_TEXTS = ("format", "manifest", "manifest_digest", "plan_digest")
_MANIFEST = {"classes": list, "settings": dict, "value_range": list} | {
    name: dict for name in ("recipe", "license", "versions")
}
_PROBED = 2**30  # bytes; a sparse file can declare a larger plan than it holds
_MAX_CHUNK = 64 * 2**20  # bytes, unpacked whole for a single value
_MAX_RATIO = 256  # declared over stored bytes of a compressed plan, whose seeds do not compress
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32} | {
    h5py.h5z.FILTER_LZF
}
_WRITING = 0.02
"""Seconds in which a writer has long written the few hundred bytes of HDF5's structure."""
_TRIES = 20
"""To open a file while a writer makes it longer again and again."""
_RESTORE = "Restore it from a copy, or generate it again."
_IMPORT = "If the images are yours, `synthaug cache import` makes a cache of them."


@dataclass(frozen=True)
class Region:
    """Where a data set lies in the file."""

    offset: int | None
    """Of the first byte; `None` if HDF5 keeps the rows in chunks."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True, eq=False)
class CacheContents:
    """Contents of a cache file besides pixels, states and checksums."""

    path: Path
    file_id: tuple[int, int]
    """Device and inode: tells this file from one that was put in its place."""
    version: int
    """Of the format."""
    size: int
    """Bytes of the file, which never change."""
    image_shape: ImageShape
    plan: Plan
    plan_digest: str
    manifest: dict[str, Any]
    manifest_digest: str
    regions: dict[str, Region]
    encoding: Encoding
    encoded_header: int
    """Where HDF5 keeps how long "encoded" is; 0 if the images are raw."""
    sealed: bool
    """Whether the list of tombstones has a seal while it is empty; older files have none."""

    @property
    def tombstone_places(self) -> int:
        """How many tombstones the file has room for."""
        region = self.regions.get("tombstones")
        return 0 if region is None else region.shape[0]

    def check_same(self, fd: int) -> None:
        """Refuses an open file that took the place of ours since, or that was cut short."""
        check_same(self.path, self.file_id, self.size, fd)

    @property
    def raw(self) -> bool:
        """Whether pixels lie in the file as they are, so that nothing need be unpacked."""
        return self.plain and self.encoding.raw

    @property
    def plain(self) -> bool:
        """Whether every data set is contiguous, as in the files that we write."""
        return all(region.offset is not None for region in self.regions.values())


class _Refused(Exception):
    """Why a file cannot be read as a cache, and what to do; `inspect` adds its path."""

    def __init__(self, fault: str, remedy: str = _RESTORE) -> None:
        super().__init__(f"{fault}. {remedy}")


def inspect(path: Path) -> CacheContents:
    """Opens a cache file and checks all of it except the rows' pixels.

    Raises:
        CacheError: The file is missing, unreadable or no cache; its plan, manifest or states are
            damaged; or it has a structure that we refuse to read.
    """
    before = None
    for _ in range(_TRIES):
        before, last = _superblock(path), before
        try:
            return _opened(path)
        except CacheError as error:
            # A writer may just be making the file longer: what is half written now is whole soon.
            growing = isinstance(error.__cause__, OSError | RuntimeError | KeyError)
            if not growing or before == last or not path.exists():
                raise
        time.sleep(_WRITING)
    return _opened(path)


def _superblock(path: Path) -> bytes:
    """The bytes by which HDF5 knows the length of the file."""
    with suppress(OSError), open_stream(path) as stream:
        return stream.read(48)
    return b""


def _opened(path: Path) -> CacheContents:
    with open_stream(path) as stream:
        try:
            with h5py.File(stream, "r") as file:
                return _inspect(path, file, stream.fileno())
        except _Refused as error:
            raise CacheError(f"{path}: {error}") from error.__cause__
        except SynthaugError:  # of reading the plan: says all that there is to say
            raise
        except Exception as error:  # what HDF5 raises for damaged metadata is not documented
            if isinstance(error, OSError) and error.errno == errno.EIO:
                raise CacheError(f"Cannot read {path}: {error.strerror}.") from error
            raise CacheError(f"{path} is not an intact HDF5 file ({error}). {_RESTORE}") from error


def open_stream(path: Path) -> io.FileIO:
    """The file for HDF5 to read through.

    HDF5 opening the path itself would take locks, which read-only media may not have and which the
    metadata, never changing, does not need; and would refuse if this process has the file open
    with others.

    Raises:
        CacheError: `path` is missing, unreadable, or something other than a file.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for a writer
            raise CacheError(f"{path} is not a file. Give the path of a cache: cache.h5.")
        return io.FileIO(path)
    except OSError as error:
        raise CacheError(
            f"Cannot open {path}: {error.strerror}. Check the name, or generate the cache first."
        ) from error


def _inspect(path: Path, file: h5py.File, fd: int) -> CacheContents:
    version, texts = _root_attributes(file)
    encoded = version == ENCODED_VERSION
    manifest = _manifest(texts["manifest"])
    if text_digest(texts["manifest"]) != texts["manifest_digest"]:
        raise _Refused("the manifest is not the one that was written")
    root = {**_ROOT, **(_SINCE_2 if version > 1 else {}), **(_ENCODED if encoded else {})}
    if encoded:
        del root["images"]
    sets = dict(_data_sets(file, root))
    regions = {name: _region(name, dataset) for name, dataset in sets.items()}
    info = os.fstat(fd)  # after the lengths were read, which a writer may just be changing
    image_shape = _check_shapes(regions, version, _declared_shape(file) if encoded else None)
    encoding = _encoding(texts.get("encoding", "raw"), image_shape)
    if encoding.raw == encoded:
        raise _Refused("'encoding' does not fit the format version")
    _check_extent(regions, info.st_size, fd)
    plan = _plan(_rows(path, info, regions), manifest)
    if plan.digest != texts["plan_digest"]:
        raise _Refused(
            f"the plan is not the one that was written; its digest is {plan.digest}, recorded is "
            f"{texts['plan_digest']}"
        )
    for span in spans(len(plan)):
        largest = int(sets["state"][span].max())
        if largest > max(State):
            raise _Refused(f"a row has the state {largest}, not 0 to 2")
    return CacheContents(
        path=path,
        file_id=(info.st_dev, info.st_ino),
        version=version,
        size=info.st_size,
        image_shape=image_shape,
        plan=plan,
        plan_digest=texts["plan_digest"],
        manifest=manifest,
        manifest_digest=texts["manifest_digest"],
        regions=regions,
        encoding=encoding,
        encoded_header=h5py.h5o.get_info(file.id, b"encoded").addr if encoded else 0,
        sealed=version > 1 and h5py.h5a.exists(sets["tombstones"].id, SEALED.encode()),
    )


def _declared_shape(file: h5py.File) -> tuple[int, ...]:
    """(C, H, W) of encoded images, of which no data set has the shape."""
    attribute = file.attrs.get_id("image_shape")
    if attribute.shape != (3,) or attribute.dtype != np.dtype("<i8"):
        raise _Refused("attribute 'image_shape' is not (C, H, W)")
    return tuple(int(side) for side in file.attrs["image_shape"])


def _encoding(text: str, image_shape: tuple[int, ...]) -> Encoding:
    try:
        return Encoding.chosen(text, image_shape)
    except ValueError:
        raise _Refused(f"the encoding {text!r} is not known") from None


def _root_attributes(file: h5py.File) -> tuple[int, dict[str, str]]:
    """Format version and the text attributes, after their sizes were checked."""
    expected = {*_TEXTS, "format_version"}
    if h5py.h5a.get_num_attrs(file.id) > 2 * len(expected):
        raise _Refused("too many attributes for a cache", _IMPORT)
    names = set(file.attrs)
    if "format" not in names or _text(file, "format") != FORMAT:
        raise _Refused(f"HDF5, but not a {FORMAT} file", _IMPORT)
    version = file.attrs.get_id("format_version") if "format_version" in names else None
    if version is None or version.shape != () or version.dtype.kind not in "iu":
        raise _Refused("the file lacks a format_version")
    number = int(file.attrs["format_version"])
    if number not in READABLE_VERSIONS:
        raise _Refused(
            f"format version {number}, this synthaug reads the versions 1 to "
            f"{max(READABLE_VERSIONS)}",
            "Install the synthaug that wrote it, or generate the cache again.",
        )
    more = {"encoding"} if number == ENCODED_VERSION else set()
    expected |= {*more, "image_shape"} if more else set()
    if names != expected:
        odd = min(names ^ expected)
        fault = "is missing" if odd in expected else "is not part of a cache"
        raise _Refused(f"attribute {odd!r} {fault}")
    return number, {name: _text(file, name) for name in {*_TEXTS, *more}}


def _text(file: h5py.File, name: str) -> str:
    """A text attribute; fixed-length, so that its size is known before it is read."""
    attribute = file.attrs.get_id(name)
    kind = attribute.get_type()
    if (
        not isinstance(kind, h5py.h5t.TypeStringID)
        or kind.is_variable_str()
        or attribute.shape != ()
        or attribute.get_storage_size() > MAX_MANIFEST
    ):
        raise _Refused(f"attribute {name!r} is not a text of fixed length")
    value = file.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def _manifest(text: str) -> dict[str, Any]:
    try:
        manifest = parse_json(text)
    except ValueError:
        raise _Refused("the manifest is not JSON") from None
    for name, kind in _MANIFEST.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(name), kind):
            raise _Refused(f"the manifest has no valid {name!r}")
    if "source" not in manifest:
        raise _Refused("the manifest has no 'source'")
    classes = manifest["classes"]
    if not classes or not all(isinstance(c, str) for c in classes):
        raise _Refused("'classes' in the manifest are not names")
    if not isinstance(manifest.get("encoding", ""), str):
        raise _Refused("'encoding' in the manifest is not a name")
    if manifest["value_range"] != [0, 255]:
        raise _Refused("'value_range' is not [0, 255] in the manifest")
    return manifest


def _data_sets(file: h5py.File, root: dict[str, str]) -> Iterator[tuple[str, h5py.Dataset]]:
    """All data sets, after every link was found to be a plain one to something expected."""
    _check_links(file, "", root)
    missing = sorted(set(root) - set(file))
    if missing:
        raise _Refused(f"no {missing[0]!r}")
    for name, kind in root.items():
        if h5py.h5o.get_info(file.id, name.encode()).type != (
            h5py.h5o.TYPE_GROUP if kind == "group" else h5py.h5o.TYPE_DATASET
        ):
            raise _Refused(f"{name!r} is not a {kind}")
        if kind == "dataset":
            yield name, file[name]
    _check_links(file["plan"], "plan/", None)
    for name in file["plan"]:
        if not valid_column(name) or name == "label":
            raise _Refused(f"{name!r} cannot be a column of a plan")
        if h5py.h5o.get_info(file["plan"].id, name.encode()).type != h5py.h5o.TYPE_DATASET:
            raise _Refused(f"'plan/{name}' is not a dataset")
        yield f"plan/{name}", file["plan"][name]
    missing = sorted({*REQUIRED} - {"label"} - set(file["plan"]))
    if missing:
        raise _Refused(f"no 'plan/{missing[0]}'")


def _check_links(group: h5py.Group, prefix: str, expected: dict[str, str] | None) -> None:
    """Refuses links to elsewhere, and names that are not expected; `None` expects columns."""
    if len(group) > (MAX_COLUMNS if expected is None else len(expected)):
        raise _Refused("more objects than a cache has", _IMPORT)
    for name in group:
        if expected is not None and name not in expected:
            raise _Refused(f"{name!r} is not part of a cache", _IMPORT)
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
            raise _Refused(f"{prefix + name!r} is {kind}, which could lead to other data", _IMPORT)


def _region(name: str, dataset: h5py.Dataset) -> Region:
    """Where `dataset` lies, after its storage was found to be harmless."""
    fault = storage_fault(dataset, size=None, largest_chunk=_MAX_CHUNK)
    if fault is not None:
        raise _Refused(f"{name!r} {fault}", _IMPORT)
    storage = dataset.id.get_create_plist()
    layout = storage.get_layout()
    filters = {storage.get_filter(i)[0] for i in range(storage.get_nfilters())}
    chunk = storage.get_chunk() if layout == h5py.h5d.CHUNKED else ()
    faults = {
        "is neither contiguous nor chunked": layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED),
        "needs a filter that does not come with h5py": not filters <= _FILTERS,
        "is empty": not dataset.shape or 0 in dataset.shape,
        "has chunks that do not fit it": bool(chunk) and len(chunk) != len(dataset.shape or ()),
    }
    for fault, found in faults.items():
        if found:
            raise _Refused(f"{name!r} {fault}", _IMPORT)
    offset = dataset.id.get_offset()
    if layout == h5py.h5d.CONTIGUOUS and offset is None:
        raise _Refused(f"{name!r} has no place in the file", _IMPORT)
    # Exact HDF5 type: numpy's view of an enumeration or a boolean would pass for an integer.
    if not dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype.newbyteorder("<"))):
        raise _Refused(f"{name!r} has an unexpected type", _IMPORT)
    return Region(offset=offset, dtype=dataset.dtype, shape=dataset.shape)


def _check_shapes(
    regions: dict[str, Region], version: int, declared: tuple[int, ...] | None
) -> ImageShape:
    """The shape of the images, (C, H, W): that of their data set, or the one that is declared."""
    if declared is None:
        shape = regions["images"].shape
    else:
        shape = (*regions["labels"].shape[:1], *declared)
    if len(shape) != 4 or shape[0] > MAX_ROWS or not valid_shape(shape[1:]):
        raise _Refused(f"'images' has the shape {shape}, not (N, C, H, W)")
    parameters = {}
    for name, region in regions.items():
        if name.startswith("plan/"):
            parameters[name.removeprefix("plan/")] = region.dtype
            if region.dtype not in (np.dtype("<i8"), np.dtype("<u8"), np.dtype("<f8")):
                raise _Refused(f"{name!r} has dtype {region.dtype}")
    encoded = None if declared is None else regions["encoded"].shape[0]
    sets = data_sets(shape[0], shape[1:], parameters, version, encoded)
    for name, (dtype, expected) in sets.items():
        if regions[name].dtype != dtype or regions[name].shape != expected:
            raise _Refused(
                f"{name!r} is {regions[name].dtype} {regions[name].shape}, expected {dtype} "
                f"{expected}"
            )
    return shape[1], shape[2], shape[3]


def _check_extent(regions: dict[str, Region], size: int, fd: int) -> None:
    """Every data set lies inside the file, no two share a byte, and the plan is no empty claim."""
    end = 0
    placed = [(r.offset, name, r) for name, r in regions.items() if r.offset is not None]
    for offset, name, region in sorted(placed, key=lambda item: item[0]):
        stop = offset + region.nbytes
        if stop > size:
            raise _Refused(f"{name!r} would end at byte {stop:,}, the file at {size:,}")
        if offset < end:
            raise _Refused(f"{name!r} overlaps another data set")
        end = stop
    encoded = regions.get("encoded")
    if encoded is not None and (
        len(placed) != len(regions) or (encoded.offset or 0) + encoded.nbytes != end
    ):
        raise _Refused("'encoded' is not at the end of a file without chunks", _IMPORT)
    unread = "images", "tombstones", "encoded", "index"  # at opening
    plan = sum(region.nbytes for name, region in regions.items() if name not in unread)
    seed = regions["plan/seed"]
    # Seeds are hashes, which leave no hole in a file, and to read a hole takes time.
    hole = plan > _PROBED and seed.offset is not None and _has_hole(fd, seed.offset, seed.nbytes)
    if hole or plan > _MAX_RATIO * size:
        raise _Refused(f"a plan of {plan:,} bytes is not plausible")


def _has_hole(fd: int, start: int, size: int) -> bool:
    """Whether a sparse file lacks some of its bytes, as far as the file system says."""
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        return os.lseek(fd, start, os.SEEK_HOLE) < start + size
    except OSError:  # a file system that does not know holes
        return False
    finally:
        os.lseek(fd, position, os.SEEK_SET)


def _rows(path: Path, info: os.stat_result, regions: dict[str, Region]) -> AbstractStoredRows:
    """The rows of the plan, where they lie in the file."""
    names = ["label", *(name[5:] for name in regions if name.startswith("plan/"))]
    columns = {name: regions[data_set_of(name)] for name in names}
    facts = (
        path,
        (info.st_dev, info.st_ino),
        info.st_size,
        {name: region.dtype for name, region in columns.items()},
        columns["label"].shape[0],
    )
    offsets = {name: r.offset for name, r in columns.items() if r.offset is not None}
    return PlainRows(offsets, *facts) if len(offsets) == len(columns) else PackedRows(*facts)


def _plan(rows: AbstractStoredRows, manifest: dict[str, Any]) -> Plan:
    classes = tuple(manifest["classes"])
    try:
        plan = Plan.of_rows(rows, classes, manifest["settings"])
        plan.visited(lambda name, start, values: check_values(name, values, len(classes)))
    except ValueError as error:
        raise _Refused(f"the plan is damaged: {error}".rstrip(".")) from error
    return plan

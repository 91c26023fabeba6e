"""The inputs of an audit, brought to one form and checked: caches, data sets, images, features."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._images.loaders import own_data_set
from synthaug._images.source import ImageSource
from synthaug._images.stores import open_hdf5
from synthaug._neighbors import float32, release
from synthaug._pixels import content_fingerprint
from synthaug._types import JSON, Features, Indices, Labels, Pixels
from synthaug.errors import DataError

if TYPE_CHECKING:
    from synthaug._cache import SynthCache

Samples: TypeAlias = Pixels | Features
"""Images, or features of images that are not given."""

Keys: TypeAlias = NDArray[np.bytes_]
"""16 bytes per image: images of one shape are equal if these are."""

_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class AuditSet:
    """One input of an audit: its images or features, and their keys."""

    name: str
    """The argument they came from: `synthetic`, `train` or `holdout`."""
    samples: Samples
    """Images, a uint8 tensor (n, C, H, W); or features, a float32 or float16 array (n, d), perhaps
    a memory map."""
    rows: Indices
    """Row number of each image in what was given, int64 (n,)."""
    keys: Keys
    """As the function `keys` makes them, (n,)."""
    total: int
    """Rows in what was given, at least n."""
    labels: Labels
    """Class of each image, int64 (n,); -1 if unknown."""
    classes: tuple[str, ...]
    """Names of the classes; empty if unknown."""
    identity: dict[str, JSON]
    """What was given: a cache's own identity, else the number and a digest of the images."""
    source: str | None
    """How a command line would name it; `None` if it could not."""
    images: ImageSource
    """What was given, opened: all rows, with their labels."""
    cache: "SynthCache | None"
    """The cache that was given; `None` for anything else."""

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: NDArray[np.bool_]) -> "AuditSet":
        """Some of the images, under their old row numbers."""
        chosen = np.flatnonzero(keep)
        return replace(
            self,
            samples=take(self.samples, chosen),
            rows=self.rows[chosen],
            keys=self.keys[chosen],
            labels=self.labels[chosen],
        )

    def labels_with(self, rows: Indices) -> Labels:
        """Class of each image, and behind them of other rows of what was given, int64 (n + w,)."""
        more = self.images.labels_of(rows) if len(rows) else self.labels[:0]
        return np.concatenate([self.labels, more])

    @property
    def pixels(self) -> Pixels:
        """The images.

        Raises:
            TypeError: Only their features are given.
        """
        if not isinstance(self.samples, Tensor):
            raise TypeError(
                f"`{self.name}` holds features, and this needs images. Give the images themselves."
            )
        return self.samples


def read_set(given: Any, name: str, *, progress: bool) -> AuditSet:
    """Reads the argument called `name`.

    Args:
        given: uint8 tensor or array (n, C, H, W); a floating-point array (n, d) of features; a
            cache, of which the finished rows are read; any map-style image data set; the path of
            a .npy, .npz or HDF5 file of images or features; or what `load_dataset` reads.
        name: For messages.
        progress: Shows a bar if reading takes long.

    Raises:
        TypeError: It is none of these, or an array of another dtype.
        ValueError: It holds no image, an array has another shape, or a feature is not finite.
        DataError: A file cannot be read.
    """
    spec = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    labels: Labels | None = None
    if spec is not None:
        given, labels = _loaded(spec, name)
    if isinstance(given, Tensor | np.ndarray):
        given = _checked(given, name)
    from synthaug._cache import SynthCache
    from synthaug._cache.tombstones import content_keys

    source = ImageSource.open(given, f"`{name}`")
    if labels is not None:
        source = source.relabeled(labels)
    if len(source) == 0:
        raise ValueError(f"`{name}` holds no image.")
    rows, samples = source.done_rows("audited"), given
    if not isinstance(given, Tensor | np.ndarray):
        samples = source.pixels(rows, progress=progress).contiguous()
    identity = source.identity
    digest = hashlib.blake2b(repr(tuple(samples.shape)).encode(), digest_size=16)
    # One pass for all that needs every row: features in a file may be many.
    image_keys = keys(samples, name, digest if identity == {"fingerprint": None} else None)
    if set(identity) == {"fingerprint"}:
        identity = {
            "fingerprint": identity["fingerprint"] or digest.hexdigest(),
            "rows": len(samples),
        }
        if name == "synthetic" and isinstance(samples, Tensor):  # as a cache of them has it
            identity["imported"] = content_fingerprint(content_keys(samples.numpy()))
    return AuditSet(
        name=name,
        samples=samples,
        rows=rows,
        keys=image_keys,
        total=len(source),
        # Where most rows have an image all labels are read, and kept; else there may be very many.
        labels=source.labels[rows] if len(source) < 2 * len(rows) else source.labels_of(rows),
        classes=source.classes or (),
        identity=identity,
        source=spec or source.spec,
        images=source,
        cache=source.dataset if isinstance(source.dataset, SynthCache) else None,
    )


def keys(samples: Samples, name: str = "samples", digest: Any = None) -> Keys:
    """The key of every image, (n,).

    Args:
        samples: Images, or features.
        name: For the message.
        digest: A hash object, which is told all bytes in order.

    Raises:
        ValueError: A feature is not finite.
    """
    found = np.empty(len(samples), "S16")
    for start in range(0, len(samples), _CHUNK):
        part = np.asarray(samples[start : start + _CHUNK])
        rows = part.reshape(len(part), -1)
        if digest is not None:
            digest.update(np.ascontiguousarray(part).reshape(-1))
        if rows.dtype.kind == "f":
            rows = float32(rows)
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                row = start + int(np.flatnonzero(~finite)[0])
                raise ValueError(
                    f"`{name}` holds a value that is not finite in row {row}. Check the network "
                    "that computed it, or leave the row out."
                )
        found[start : start + len(part)] = [
            hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(rows)
        ]
        if isinstance(samples, np.ndarray):
            release(samples)
    return found


def key_text(key: bytes) -> str:
    """The key of an image as 32 hexadecimal digits."""
    return key.ljust(16, b"\0").hex()  # NumPy drops zeros at the end


class Contents:
    """The distinct images of a set: 32 bytes per image, so that there may be very many.

    Args:
        keys: Keys of the images.
    """

    distinct: Indices
    """Row number of the first of each group of equal images, ascending."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._order = np.argsort(keys, kind="stable")  # of equal images the first comes first
        ordered = keys[self._order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self.distinct = np.sort(self._order[new])

    def __len__(self) -> int:
        """Number of different images."""
        return len(self.distinct)

    def find(self, keys: Keys) -> Indices:
        """The first row that is equal to each of these images, int64; -1 if there is none."""
        place = np.searchsorted(self.keys, keys, sorter=self._order)
        row = self._order[place.clip(max=len(self.keys) - 1)]
        return np.where(self.keys[row] == keys, row, -1)


def take(samples: Samples, rows: Indices) -> Samples:
    """Some of the images, or of the features, these as float32."""
    if isinstance(samples, Tensor):
        return samples[torch.from_numpy(rows)]
    return float32(samples[rows])


def joined(parts: Sequence[Samples]) -> Samples:
    """Images, or features, one set behind the other."""
    images = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(images) if images else np.concatenate([np.asarray(p) for p in parts])


def _checked(given: Tensor | np.ndarray, name: str) -> Samples:
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    if array.ndim == 2 and array.dtype.kind == "f":
        # Those in files stay there, as they are: there may be more of them than fit in memory.
        mapped = isinstance(array, np.memmap) and array.flags.c_contiguous
        keep = mapped and array.dtype in (np.float16, np.float32)
        return array if keep else np.ascontiguousarray(array, np.float32)
    if array.dtype != np.uint8:
        raise TypeError(
            f"`{name}` has dtype {array.dtype} and shape {array.shape}, expected images, uint8 "
            "(n, C, H, W) with values 0 to 255, or features, floating point (n, d)."
        )
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"`{name}` has shape {array.shape}, expected (n, C, H, W) with C 1 or 3.")
    return torch.from_numpy(np.array(array))  # a copy: torch warns of memory that is read-only


def _loaded(text: str, name: str) -> tuple[Any, Labels | None]:
    """Images or features of a file, and labels if it holds some; or a data set."""
    suffix = Path(text).suffix.lower()
    if suffix not in (".npy", ".npz", ".h5", ".hdf5") or text.startswith("hdf5:"):
        if ":" in text:
            return ImageSource.open(text), None
        raise ValueError(
            f"`{name}` {text!r} is not understood. Give a .npy, .npz or HDF5 file, or a data set "
            "such as 'folder:PATH'."
        )
    if not os.path.isfile(text):
        raise DataError(f"`{name}` {text} does not exist, or is not a file.")
    if suffix in (".h5", ".hdf5"):
        features = _hdf5_features(text)
        return (ImageSource.open(f"hdf5:{text}"), None) if features is None else features
    try:
        # Mapped, so that features larger than the memory can be searched. Nothing is unpickled.
        file = np.load(text, mmap_mode="r", allow_pickle=False)
        if isinstance(file, np.ndarray):
            return _channels_first(file), None
        with file:
            held = [key for key in ("images", "features", "arr_0") if key in file.files]
            if len(held) != 1:
                raise DataError(
                    f"`{name}` {text} holds {', '.join(file.files) or 'nothing'}; expected one "
                    "array `images` or `features`, and `labels` if there are any."
                )
            labels = file["labels"].astype(np.int64) if "labels" in file.files else None
            array = file[held[0]]
    except DataError:
        raise
    except Exception as error:  # NumPy and its zip files raise whatever the bytes provoke
        raise DataError(f"`{name}` {text} cannot be read: {error}.") from error
    if labels is not None and labels.shape != array.shape[:1]:
        raise DataError(f"`{name}` {text} has {len(array)} rows, but labels {labels.shape}.")
    return _channels_first(array), labels


def _hdf5_features(path: str) -> tuple[Features, None] | None:
    """The data set `features` of an HDF5 file; `None` if there is none."""
    try:
        with open_hdf5(path) as file:
            dataset = own_data_set(file, "features")
            return None if dataset is None else (dataset[()], None)
    except DataError:
        raise
    except Exception as error:  # what HDF5 raises for damaged metadata is not documented
        raise DataError(f"{path} is not a readable HDF5 file ({error}).") from error


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """Images of a file as (n, C, H, W): many files have the channels last, or none for gray."""
    if array.dtype != np.uint8:
        return array
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)  # NHWC => NCHW
    return array


def check_comparable(*sets: AuditSet) -> None:
    """All sets hold images of one shape, or features of one length.

    Their classes may differ: a generator may have been trained on other classes than it is used
    for, and can copy those as well.

    Raises:
        ValueError: Naming the two sets, both shapes and the remedy.
    """
    first = sets[0]
    for other in sets[1:]:
        kinds = [isinstance(s.samples, Tensor) for s in (first, other)]
        if kinds[0] != kinds[1]:
            what = ["images" if kind else "features" for kind in kinds]
            raise ValueError(
                f"`{first.name}` holds {what[0]}, `{other.name}` {what[1]}. Give images for all, "
                "or features for all."
            )
        if other.samples.shape[1:] != first.samples.shape[1:]:
            remedy = (
                "Load the real images with the `image_size` and `channels` of the synthetic ones."
                if kinds[0]
                else "Take all features from one network."
            )
            raise ValueError(
                f"`{first.name}` holds {'images' if kinds[0] else 'features'} of shape "
                f"{tuple(first.samples.shape[1:])}, `{other.name}` of shape "
                f"{tuple(other.samples.shape[1:])}. {remedy}"
            )

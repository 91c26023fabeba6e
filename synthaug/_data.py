"""Real images in: `load_dataset` reads class folders, torchvision, HDF5 files and digits.

Whatever can be wrong with a folder of images is found here, before any long work starts. Images
that fit in memory are decoded once, at loading; a larger data set has its headers checked at
loading and its images decoded when they are read.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from synthaug._adapt import label_like as label_like
from synthaug._adapt import like as like
from synthaug._adapt import pixels_of as pixels_of
from synthaug._errors import DataError
from synthaug._noise import counter_rng
from synthaug._pixels import to_pil
from synthaug._types import Labels, Pixels

log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Files with one of these must be images; files with any other are passed over, and counted."""

MEMORY_LIMIT = 4 << 30
"""Bytes of decoded images above which images are decoded when they are read."""

_SPECIFICATIONS = "`folder:PATH`, `torchvision:NAME?root=DIR`, `hdf5:PATH` or `digits`"
_CHUNK = 256  # images per task of the thread pool


@runtime_checkable
class Store(Protocol):
    """Where pixels come from: equal shapes, any order."""

    shape: tuple[int, int, int]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (len(rows), C, H, W)."""
        ...


class LabelledImages(Dataset[tuple[Any, Any]]):
    """Labelled images of one size, as a map-style data set.

        train = load_dataset("folder:cifar10/train")
        train[0]                    # (PIL image of mode L or RGB, class index), then the transforms
        train.read([5, 3])          # uint8 (2, C, H, W), without the transforms
        train.subset(indices)       # shares the memory

    It has what others read from torchvision's data sets: `classes`, `class_to_idx`, `targets`, and
    `transform` and `target_transform`, which may be assigned.
    """

    def __init__(
        self,
        images: Tensor | Store,
        labels: ArrayLike,
        classes: Sequence[str],
        *,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        name: str = "images",
        paths: Sequence[str] | None = None,
    ) -> None:
        """Wraps images that are already decoded.

        Args:
            images: uint8 (N, C, H, W) with C 1 or 3, or a `Store`.
            labels: Class indices, int (N,).
            classes: Names of the classes.
            transform: Called with the PIL image.
            target_transform: Called with the class index.
            name: For `repr` and messages.
            paths: The file of every image, if there is one.

        Raises:
            DataError: For labels beyond the classes, or class names that are not unique.
            ValueError: For images of another shape or dtype, or another number of labels.
        """
        self._store = _Memory(images) if isinstance(images, Tensor) else images
        if isinstance(images, Tensor) and len(images) != len(np.asarray(labels)):
            raise ValueError(f"Got {len(images)} images and {len(np.asarray(labels))} labels.")
        self.classes = tuple(str(c) for c in classes)
        self.labels: Labels = _checked_labels(labels, self.classes, name)
        self.transform = transform
        self.target_transform = target_transform
        self.name = name
        self._rows = np.arange(len(self.labels))
        self._paths = paths
        self._fingerprint: str | None = None

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class name to class index."""
        return {name: i for i, name in enumerate(self.classes)}

    @property
    def targets(self) -> list[int]:
        """Class index of every image, as Python ints."""
        return self.labels.tolist()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self._store.shape

    @property
    def paths(self) -> list[str] | None:
        """The file of every image; `None` if they did not come from files."""
        return None if self._paths is None else [self._paths[row] for row in self._rows.tolist()]

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over class names, labels and pixels, in their order.

        The same images give the same fingerprint whether they come from a folder or from an HDF5
        file. Computed when first asked for.
        """
        if self._fingerprint is None:
            hashed = hashlib.blake2b(digest_size=16)
            hashed.update(json.dumps([self.classes, len(self), self.image_shape]).encode())
            hashed.update(np.ascontiguousarray(self.labels).tobytes())
            for start in range(0, len(self), 1024):
                hashed.update(self._store.read(self._rows[start : start + 1024]).tobytes())
            self._fingerprint = hashed.hexdigest()
        return self._fingerprint

    def read(self, indices: ArrayLike) -> Pixels:
        """The pixels of some images, uint8 (n, C, H, W), without any transform."""
        return torch.from_numpy(self._store.read(self._rows[np.asarray(indices, np.int64)]))

    def subset(self, indices: ArrayLike) -> "LabelledImages":
        """Some of the images, with everything else kept.

        Args:
            indices: Integers (n,) or a mask, bool (N,).
        """
        chosen = np.arange(len(self))[np.asarray(indices)]
        other = LabelledImages(
            self._store,
            self.labels[chosen],
            self.classes,
            transform=self.transform,
            target_transform=self.target_transform,
            name=self.name,
            paths=self._paths,
        )
        other._rows = self._rows[chosen]
        return other

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):  # what ends a `for` loop over us
            raise IndexError(f"Index {index} is out of range for {len(self)} images.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """A whole batch at once; `DataLoader` and `Subset` call it."""
        rows = np.asarray(indices, np.int64)
        items = []
        for pixels, label in zip(self.read(rows), self.labels[rows].tolist(), strict=True):
            image = to_pil(pixels)
            items.append(
                (
                    image if self.transform is None else self.transform(image),
                    label if self.target_transform is None else self.target_transform(label),
                )
            )
        return items

    def __repr__(self) -> str:
        c, h, w = self.image_shape
        lines = [
            f"Dataset {type(self).__name__}",
            f"    Number of datapoints: {len(self)}",
            f"    Source: {self.name}",
            f"    Classes: {len(self.classes)}",
            f"    Image shape: ({c}, {h}, {w})",
        ]
        if self.transform is not None:
            lines.append(f"    Transform: {self.transform!r}")
        return "\n".join(lines)


def load_dataset(
    spec: str,
    *,
    split: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool | None = None,
) -> LabelledImages:
    """Loads labelled images, and finds what is wrong with them before any long work starts.

        load_dataset("folder:cifar10/train")                     # one folder per class
        load_dataset("folder:cifar10", split="train")            # the same
        load_dataset("folder:photos", image_size=64, channels=3)
        load_dataset("torchvision:CIFAR10?root=data&download=true", split="train")
        load_dataset("hdf5:cifar.h5")                            # a cache, or `images` and `labels`
        load_dataset("digits")                                   # 1,797 scans, shipped with sklearn

    Args:
        spec: `folder:PATH`: one folder per class, the class names sorted, images in subfolders
            included. `torchvision:NAME?root=DIR`: a class of `torchvision.datasets`; what follows
            `?` are its arguments; `root` is `data` if not given; nothing is downloaded unless
            `download=true` is among them. `hdf5:PATH`: a synthaug cache, of which the finished
            rows are taken, or any file with `images`, uint8 (N, C, H, W) or (N, H, W, C), and
            `labels`, int (N,). `digits`: handwritten digits of scikit-learn, uint8 1x8x8, the
            17 levels spread over [0, 255].
        split: `folder`: a subfolder. `torchvision`: "train", "test" or what the class knows.
            `digits`: "train", the first half, or "test", the second; other people wrote it.
        image_size: Resizes the shorter side to it (bicubic, antialiased) and cuts out the centre.
        channels: 1 converts to grey, 3 to RGB. Without it nothing is converted.
        classes: The class names in the order that is wanted. Without it, what the source says.
        transform: Called with the PIL image.
        target_transform: Called with the class index.
        memory_limit: Bytes of decoded images; a larger data set is decoded when it is read.
        progress: Shows a bar if loading takes more than two seconds; `None`: on a terminal only.

    Raises:
        DataError: For images that cannot be used; the message names a file and the remedy.
        ValueError: For arguments that make no sense.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _LOADERS or (kind == "digits") != (rest == ""):
        raise ValueError(f"Got the data set {spec!r}, expected {_SPECIFICATIONS}.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"`image_size` must be at least 1, got {image_size}.")
    if channels not in (None, 1, 3):
        raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), got {channels}.")
    if classes is not None and len(set(classes)) != len(classes):
        raise ValueError("`classes` names a class twice.")
    conform = _Conform(image_size, channels)
    store, labels, names, paths = _LOADERS[kind](rest, split, conform, classes, progress)
    if len(labels) == 0:
        raise DataError(f"{spec} holds no image.")
    if len(labels) * int(np.prod(store.shape)) <= memory_limit:
        store = _Memory(_gather(store, np.arange(len(labels)), progress, f"Loading {rest or kind}"))
    name = spec if split is None else f"{spec}, {split}"
    return LabelledImages(
        store,
        labels,
        names,
        transform=transform,
        target_transform=target_transform,
        name=name,
        paths=paths,
    )


def split_labelled(
    dataset: LabelledImages, per_class: int, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Splits off the same number of images of every class, for a task with few labels.

    Args:
        dataset: What to split.
        per_class: Images of every class in the first part.
        seed: The choice is a pure function of it and of the labels.

    Returns:
        The chosen images and the rest, each in the order of `dataset`.

    Raises:
        DataError: If a class has fewer images.
    """
    if per_class < 1:
        raise ValueError(f"`per_class` must be at least 1, got {per_class}.")
    chosen = np.zeros(len(dataset), bool)
    for c, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.labels == c)
        if len(members) < per_class:
            raise DataError(
                f"Class {name!r} has {len(members)} images, {per_class} per class were asked for."
            )
        order = np.argsort(counter_rng(seed, c).random(len(members)), kind="stable")
        chosen[members[order[:per_class]]] = True
    return dataset.subset(chosen), dataset.subset(~chosen)


# Any map-style data set ------------------------------------------------------------------------


def as_pixels(
    dataset: Any, indices: ArrayLike | None = None, *, progress: bool | None = False
) -> Pixels:
    """The images of any map-style data set, gathered.

    Args:
        dataset: Anything with `len` and `dataset[i] -> (image, ...)` or `{"image": ...}`. If it has
            `read`, that is called, and gives the images without their transforms; of any other
            data set they come as it gives them, so take random or normalising transforms off.
        indices: Which images, int (n,); all of them if `None`.
        progress: Shows a bar if it takes more than two seconds; `None`: on a terminal only.

    Returns:
        uint8 (n, C, H, W).

    Raises:
        DataError: If the images have different shapes, or one is not an image that we know.
    """
    rows = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
    if hasattr(dataset, "read"):
        pixels: Tensor = dataset.read(rows)
        return pixels
    if isinstance(dataset, Subset):
        inner = np.asarray(dataset.indices, np.int64)
        return as_pixels(dataset.dataset, inner[rows], progress=progress)
    if len(rows) == 0:
        raise ValueError("`indices` is empty: there is no image to gather.")
    store = _Indexed(dataset, int(rows[0]))
    return _gather(store, rows, progress, "Reading images")


def labels_of(dataset: Any) -> Labels:
    """The class index of every image of any map-style data set, int64 (N,).

    Looks for `labels` or `targets`, through `Subset` and `ConcatDataset`; only a data set with
    neither is read from end to end.

    Raises:
        DataError: If the labels are not one integer per image.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[np.asarray(dataset.indices, np.int64)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([labels_of(part) for part in dataset.datasets])
    for name in ("labels", "targets", "_labels"):  # the last one: Food101, Flowers102, DTD, ...
        found = getattr(dataset, name, None)
        if found is not None and not callable(found) and len(found) == len(dataset):
            break
    else:
        found = [int(field(dataset[i], "label")) for i in range(len(dataset))]
    labels = np.asarray(found)
    if labels.shape != (len(dataset),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"The labels of {type(dataset).__name__} have shape {labels.shape} and dtype "
            f"{labels.dtype}, expected one class index per image, shape ({len(dataset)},)."
        )
    return labels.astype(np.int64)


def classes_of(dataset: Any) -> tuple[str, ...] | None:
    """The class names of any data set, through `Subset` and `ConcatDataset`; `None` if unknown.

    Raises:
        DataError: If the parts of a `ConcatDataset` have different classes.
    """
    if isinstance(dataset, Subset):
        return classes_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        found = {names for part in dataset.datasets if (names := classes_of(part)) is not None}
        if len(found) > 1:
            first, second = sorted(found)[:2]
            raise DataError(
                f"The parts of the ConcatDataset have different classes: {', '.join(first)} and "
                f"{', '.join(second)}."
            )
        return found.pop() if found else None
    names = getattr(dataset, "classes", None)
    return None if names is None else tuple(str(name) for name in names)


_FIELDS = {
    "image": (0, ("image", "img", "pixel_values", "images")),
    "label": (1, ("label", "labels", "target", "targets")),
}


def field_key(item: Any, name: str) -> Any:
    """Where an item of a data set has its "image" or its "label": a position, or a key.

    Raises:
        TypeError: If the item is neither a tuple, a list nor a dict, or has no such key.
    """
    position, keys = _FIELDS[name]
    if isinstance(item, dict):
        for key in keys:
            if key in item:
                return key
        raise TypeError(
            f"An item of the data set has the keys {', '.join(map(repr, item))}, and no {name}: "
            f"expected one of {', '.join(map(repr, keys))}."
        )
    if isinstance(item, tuple | list) and len(item) >= 2:
        return position
    raise TypeError(
        f"An item of the data set is {type(item).__name__}, expected (image, label, ...) or "
        '{"image": ..., "label": ...}.'
    )


def field(item: Any, name: str) -> Any:
    """The "image" or the "label" of an item of a data set."""
    return item[field_key(item, name)]


# Stores ----------------------------------------------------------------------------------------


class _Memory:
    """Decoded images. A tensor, since workers started by `spawn` share it instead of copying it."""

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"`images` is {pixels.dtype} with shape {tuple(pixels.shape)}, expected uint8 "
                "(N, C, H, W) with C 1 or 3."
            )
        self.pixels = pixels.contiguous()
        self.shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.pixels.numpy()[rows]


class _Files:
    """Image files of one shape, decoded when read."""

    def __init__(
        self, paths: Sequence[str], conform: "_Conform", shape: tuple[int, int, int]
    ) -> None:
        self.paths = paths
        self.conform = conform
        self.shape = shape

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(rows), *self.shape), np.uint8)
        for i, row in enumerate(rows):
            out[i] = self._decode(self.paths[row])
        return out

    def _decode(self, path: str) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                return self.conform(image, path)
        except DataError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever the bytes provoke
            raise DataError(_unreadable(path, error)) from error


class _Indexed:
    """A map-style data set of images of one shape."""

    def __init__(self, dataset: Any, first: int, conform: "_Conform | None" = None) -> None:
        self.dataset = dataset
        self.conform = conform
        self.shape = tuple(self._image(first).shape)

    def _image(self, row: int) -> NDArray[np.uint8]:
        image = field(self.dataset[row], "image")
        where = f"Image {row} of {type(self.dataset).__name__}"
        if self.conform is not None and isinstance(image, Image.Image):
            return self.conform(image, where)
        try:
            array = pixels_of(image).numpy()
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} cannot be used. {error}") from error
        if self.conform is not None:
            return self.conform(to_pil(torch.from_numpy(array)), where)
        return array

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(rows), *self.shape), np.uint8)
        for i, row in enumerate(rows):
            image = self._image(int(row))
            if image.shape != self.shape:
                raise DataError(
                    f"Image {row} of {type(self.dataset).__name__} has shape {image.shape}, others "
                    f"have {self.shape}. Bring all to one size and mode when loading, for example "
                    "with `image_size=32, channels=3` (`--image-size 32 --channels 3`)."
                )
            out[i] = image
        return out


class _HDF5:
    """Images of an HDF5 file. Opened in each process, since a handle must not cross a fork."""

    def __init__(self, path: str, rows: NDArray[np.int64], last: bool, conform: "_Conform") -> None:
        self.path = path
        self.rows = rows
        self.last = last  # whether the channels are the last axis
        self.conform = conform
        self.file: Any = None
        self.pid = -1
        self.shape = tuple(self.read(np.zeros(1, np.int64)).shape[1:])

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        import h5py

        if self.pid != os.getpid():
            self.file, self.pid = h5py.File(self.path, "r"), os.getpid()
        wanted, back = np.unique(self.rows[rows], return_inverse=True)
        images = self.file["images"][wanted][back]  # h5py wants increasing indices
        if self.last:
            images = images.transpose(0, 3, 1, 2)  # NHWC => NCHW
        if self.conform.changes:
            where = f"An image of {self.path}"
            images = [self.conform(to_pil(torch.from_numpy(x.copy())), where) for x in images]
        return np.ascontiguousarray(images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None, "pid": -1}


def _gather(store: Any, rows: NDArray[np.int64], progress: bool | None, description: str) -> Tensor:
    """All images of a store in one tensor, uint8 (n, C, H, W), decoded by a thread per CPU."""
    from tqdm.auto import tqdm

    out = torch.empty((len(rows), *store.shape), dtype=torch.uint8)
    starts = range(0, len(rows), _CHUNK)

    def fill(start: int) -> int:
        part = rows[start : start + _CHUNK]
        out[start : start + len(part)] = torch.from_numpy(store.read(part))
        return len(part)

    disable = None if progress is None else not progress
    # Foreign data sets and h5py promise nothing about threads; files are ours.
    workers = (os.cpu_count() or 1) if isinstance(store, _Files) else 1
    with (
        tqdm(total=len(rows), desc=description, unit="img", delay=2, disable=disable) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for done in pool.map(fill, starts):
            bar.update(done)
    return out


# What an image file may be ---------------------------------------------------------------------


class _Conform:
    """An opened image to uint8 (C, H, W): converts what may be, refuses what may not be."""

    def __init__(self, image_size: int | None, channels: int | None) -> None:
        self.image_size = image_size
        self.channels = channels

    @property
    def changes(self) -> bool:
        """Whether it does anything to an image of mode L or RGB."""
        return self.image_size is not None or self.channels is not None

    def refuse(self, image: Image.Image) -> str | None:
        """Why an image cannot be used, judged by its header alone; `None` if it can."""
        if getattr(image, "is_animated", False):
            return f"has {getattr(image, 'n_frames', 'several')} frames. Save the frame you want."
        if image.mode in ("I", "F") or image.mode.startswith("I;") or _is_16_bit(image):
            return (
                f"has more than 8 bits per value (mode {image.mode}). Convert it to 8 bits first, "
                "since only you know which range of values matters."
            )
        if self.channels is None and image.mode not in ("L", "RGB"):
            what = {"P": "a palette", "1": "two levels", "CMYK": "printing inks"}.get(
                image.mode, "an alpha channel" if _has_alpha(image) else "an unusual colour space"
            )
            return (
                f"has mode {image.mode} ({what}). Convert all images when loading, with "
                "`channels=3` (`--channels 3`) to RGB or `channels=1` to grey."
            )
        return None

    def __call__(self, image: Image.Image, where: str) -> NDArray[np.uint8]:
        reason = self.refuse(image)
        if reason is not None:
            raise DataError(f"{where} {reason}")
        if _has_alpha(image):
            lowest = int(np.asarray(image.convert("RGBA").getchannel("A")).min())
            if lowest < 255:
                raise DataError(
                    f"{where} has transparent pixels. Lay it on a background of your choice first."
                )
        mode = {1: "L", 3: "RGB", None: image.mode}[self.channels]
        image = image.convert(mode)  # loads the pixels; a truncated file fails here
        if self.image_size is not None:
            size = (self.image_size, self.image_size)
            image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        return pixels_of(image).numpy()


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _is_16_bit(image: Image.Image) -> bool:
    # Pillow opens 16-bit RGB as mode RGB and drops the lower half without a word.
    return any("16" in str(tile[3]) for tile in getattr(image, "tile", ()) if len(tile) > 3)


def _unreadable(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | PermissionError):
        return f"{path} cannot be opened: {error.strerror}."
    return (
        f"{path} cannot be decoded ({error}). The file is damaged or is not an image: "
        "replace it or delete it."
    )


# folder: -----------------------------------------------------------------------------------------

Loaded = tuple[Any, Any, Sequence[str], Sequence[str] | None]


def _folder(
    path: str,
    split: str | None,
    conform: _Conform,
    classes: Sequence[str] | None,
    progress: bool | None,
) -> Loaded:
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; expected a folder with one subfolder per class.")
    if split is not None:
        if not (root / split).is_dir():
            raise DataError(
                f"{root} has no subfolder {split!r}. "
                f"It has: {', '.join(_subfolders(root)) or 'none'}."
            )
        root = root / split
    names = _subfolders(root)
    if not names:
        raise DataError(
            f"{root} has no subfolders. Images must lie in one folder per class: "
            f"{root / 'cat' / '1.png'}, {root / 'dog' / '1.png'}, ..."
        )
    if set(names) <= {"train", "test", "val", "valid", "validation"}:
        raise DataError(
            f"The subfolders of {root} are splits and not classes: {', '.join(names)}. Choose one: "
            f"folder:{root / names[-1]}, or `split={names[-1]!r}`."
        )
    if classes is not None:
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise DataError(
                f"{root} has a class folder {unknown[0]!r}, which is not among the {len(classes)} "
                f"classes that were given: {', '.join(classes)}."
            )
    order = tuple(names) if classes is None else tuple(classes)
    paths: list[str] = []
    labels: list[int] = []
    others: list[str] = []
    empty: list[str] = []
    for label, name in enumerate(order):
        found = sorted(_walk(root / name)) if name in names else []
        images = [f for f in found if os.path.splitext(f)[1].lower() in IMAGE_EXTENSIONS]
        others += sorted(set(found) - set(images))
        if not images:
            empty.append(name)
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise DataError(
            f"{root} holds no image. "
            f"Expected files ending in {', '.join(sorted(IMAGE_EXTENSIONS))}."
        )
    if empty:
        raise DataError(
            f"Class {empty[0]!r} has no image in {root}"
            + (f" (and {len(empty) - 1} more classes have none)" if len(empty) > 1 else "")
            + ". Add images, or delete the folder or leave the name out of `classes`."
        )
    if others:
        log.warning("Passed over %d files that are not images, e.g. %s", len(others), others[0])
    return _Files(paths, conform, _check_headers(paths, conform, progress)), labels, order, paths


def _subfolders(root: Path) -> list[str]:
    """Sorted names of the folders in `root`, but for hidden ones, which tools leave behind."""
    return sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))


def _walk(folder: Path) -> Iterator[str]:
    for where, _, files in os.walk(folder, followlinks=True):
        for name in files:
            yield os.path.join(where, name)


def _check_headers(
    paths: Sequence[str], conform: _Conform, progress: bool | None
) -> tuple[int, int, int]:
    """Opens every file without decoding it; returns the shape that all will have."""
    from tqdm.auto import tqdm

    def header(path: str) -> tuple[str, tuple[int, int], str | None]:
        try:
            with Image.open(path) as image:
                reason = conform.refuse(image)
                return image.mode, image.size, None if reason is None else f"{path} {reason}"
        except Exception as error:  # Pillow's readers raise whatever the bytes provoke
            return "", (0, 0), _unreadable(path, error)

    problems: list[str] = []
    seen: dict[tuple[str, tuple[int, int]], str] = {}
    disable = None if progress is None else not progress
    with (
        tqdm(paths, desc="Checking files", unit="img", delay=2, disable=disable) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for path, (mode, size, problem) in zip(paths, pool.map(header, paths), strict=True):
            bar.update()
            if problem is not None:
                problems.append(problem)
            else:
                seen.setdefault((mode, size), path)
    if problems:
        more = f" ({len(problems) - 1} more files cannot be used either.)" if problems[1:] else ""
        raise DataError(problems[0] + more)
    (mode, size), path = next(iter(seen.items()))
    for (other_mode, other_size), other in seen.items():
        if conform.image_size is None and other_size != size:
            raise DataError(
                f"Images differ in size: {path} is {size[0]}x{size[1]}, {other} is "
                f"{other_size[0]}x{other_size[1]}. Resize them when loading, for example with "
                f"`image_size={min(size)}` (`--image-size {min(size)}`)."
            )
        if conform.channels is None and other_mode != mode:
            raise DataError(
                f"Some images are grey and some are coloured: {path} has mode {mode}, {other} has "
                f"mode {other_mode}. Convert them when loading, with `channels=3` "
                "(`--channels 3`) or `channels=1`."
            )
    channels = conform.channels or {"L": 1, "RGB": 3}[mode]
    width, height = (conform.image_size,) * 2 if conform.image_size is not None else size
    return channels, height, width


# torchvision:, hdf5:, digits ---------------------------------------------------------------------


def _torchvision(
    text: str,
    split: str | None,
    conform: _Conform,
    classes: Sequence[str] | None,
    progress: bool | None,
) -> Loaded:
    import inspect

    from torchvision import datasets

    name, _, query = text.partition("?")
    kind = getattr(datasets, name, None)
    if name not in datasets.__all__ or not isinstance(kind, type):
        raise ValueError(
            f"torchvision has no data set {name!r}. It has, among others, CIFAR10, "
            "CIFAR100, MNIST, FashionMNIST, SVHN, STL10."
        )
    options: dict[str, Any] = {"root": "data", **dict(parse_qsl(query))}
    for key, value in options.items():
        options[key] = {"true": True, "false": False}.get(value.lower(), value)
    options["root"] = str(Path(options["root"]).expanduser())
    known = inspect.signature(kind).parameters
    if split is not None and "train" in known:
        if split not in ("train", "test"):
            raise ValueError(
                f'torchvision\'s {name} has the splits "train" and "test", not {split!r}.'
            )
        options["train"] = split == "train"
    elif split is not None and "split" in known:
        options["split"] = split
    elif split is not None:
        raise ValueError(f"torchvision's {name} has no splits, got `split={split!r}`.")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"torchvision's {name} has no argument {unknown[0]!r}. It has: {', '.join(known)}."
        )
    try:
        dataset = kind(**options)
    except (RuntimeError, FileNotFoundError) as error:
        hint = f"torchvision:{name}?root={options['root']}&download=true"
        raise DataError(
            f"torchvision's {name} is not in {options['root']!r} ({error}). To download it: {hint}"
        ) from error
    labels = labels_of(dataset)
    found = classes_of(dataset) or tuple(str(i) for i in range(int(labels.max()) + 1))
    labels, names = _reorder(labels, found, classes, f"torchvision's {name}")
    return _Indexed(dataset, 0, conform), labels, names, None


def _hdf5(
    text: str,
    split: str | None,
    conform: _Conform,
    classes: Sequence[str] | None,
    progress: bool | None,
) -> Loaded:
    import h5py

    if split is not None:
        raise ValueError(f"An HDF5 file has no splits, got `split={split!r}`.")
    path = str(Path(text).expanduser())
    if not os.path.isfile(path):
        raise DataError(f"{path} does not exist, or is not a file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is not a readable HDF5 file ({error}).") from error
    with file:
        for name in ("images", "labels"):
            link = file.get(name, getlink=True)
            # A link or external storage could make us read any file of this machine.
            if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
                raise DataError(
                    f"{path} has no data set {name!r}. Expected `images`, uint8 (N, C, H, W) or "
                    "(N, H, W, C), and `labels`, int (N,)."
                )
            if file[name].external or file[name].is_virtual:
                raise DataError(f"{path} keeps {name!r} in other files, which we do not follow.")
        images, labels = file["images"], file["labels"]
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        last = images.ndim == 4 and images.shape[3] in (1, 3) and not first
        if images.dtype != np.uint8 or not (first or last) or labels.shape != images.shape[:1]:
            raise DataError(
                f"{path} has `images` {images.dtype} {images.shape} and `labels` {labels.dtype} "
                f"{labels.shape}, expected uint8 (N, C, H, W) or (N, H, W, C) with C 1 or 3, "
                "and int (N,)."
            )
        values = labels[:]
        rows = np.arange(len(values))
        if isinstance(file.get("state"), h5py.Dataset):
            rows = np.flatnonzero(file["state"][:] == 1)  # done; not pending, not withdrawn
            if len(rows) == 0:
                raise DataError(f"{path} has no finished row. Generate its images first.")
            if len(rows) < len(values):
                log.warning("%s: %d of %d rows are done", path, len(rows), len(values))
        found = _hdf5_classes(file)
    if len(rows) == 0:
        raise DataError(f"{path} holds no image.")
    values = values[rows]
    if found is None:
        found = tuple(classes or (str(i) for i in range(int(values.max()) + 1)))
    values, names = _reorder(_checked_labels(values, found, path), found, classes, path)
    return _HDF5(path, rows, last, conform), values, names, None


def _hdf5_classes(file: Any) -> tuple[str, ...] | None:
    """Class names: of a cache's manifest, or of an attribute `classes`."""
    if "manifest" in file.attrs:
        try:
            names = json.loads(file.attrs["manifest"]).get("classes")
        except (ValueError, AttributeError):
            names = None
        if isinstance(names, list):
            return tuple(str(name) for name in names)
    if "classes" in file.attrs:
        values = np.atleast_1d(file.attrs["classes"])
        return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values)
    return None


def _digits(
    text: str,
    split: str | None,
    conform: _Conform,
    classes: Sequence[str] | None,
    progress: bool | None,
) -> Loaded:
    from sklearn.datasets import load_digits

    if split not in (None, "train", "test"):
        raise ValueError(f'The digits have the splits "train" and "test", not {split!r}.')
    bunch = load_digits()
    half = len(bunch.target) // 2
    rows = {None: slice(None), "train": slice(half), "test": slice(half, None)}[split]
    pixels = (bunch.images[rows] * (255 / 16)).round().astype(np.uint8)[:, None]
    names = tuple(str(i) for i in range(10))
    labels, names = _reorder(bunch.target[rows], names, classes, "digits")
    store: Any = _Memory(torch.from_numpy(pixels))
    if conform.changes:
        store = _Indexed(LabelledImages(torch.from_numpy(pixels), labels, names), 0, conform)
    return store, labels, names, None


_LOADERS: dict[str, Callable[..., Loaded]] = {
    "folder": _folder,
    "torchvision": _torchvision,
    "hdf5": _hdf5,
    "digits": _digits,
}


def _reorder(
    labels: ArrayLike, found: Sequence[str], wanted: Sequence[str] | None, where: str
) -> tuple[Labels, tuple[str, ...]]:
    """Renumbers labels from the order of `found` to that of `wanted`, by name."""
    values = np.asarray(labels, np.int64)
    if wanted is None:
        return values, tuple(found)
    unknown = [name for name in found if name not in wanted]
    if unknown:
        raise DataError(
            f"{where} has a class {unknown[0]!r}, which is not among the {len(wanted)} classes "
            f"that were given: {', '.join(wanted)}."
        )
    return np.array([list(wanted).index(name) for name in found], np.int64)[values], tuple(wanted)


def _checked_labels(labels: ArrayLike, classes: Sequence[str], where: str) -> Labels:
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` is {values.dtype} with shape {values.shape}, expected integers (N,)."
        )
    if len(set(classes)) != len(classes):
        twice = next(name for i, name in enumerate(classes) if name in classes[:i])
        raise DataError(f"{where}: the class name {twice!r} occurs twice.")
    if len(values) and not (values.min() >= 0 and values.max() < len(classes)):
        bad = int(values.max() if values.max() >= len(classes) else values.min())
        row = int(np.flatnonzero(values == bad)[0])
        raise DataError(
            f"{where}: image {row} has label {bad}, but there are {len(classes)} classes "
            f"(labels 0 to {len(classes) - 1}). Correct it, or give all class names with "
            "`classes=`."
        )
    return values.astype(np.int64)


__all__ = [
    "LabelledImages",
    "as_pixels",
    "classes_of",
    "field",
    "field_key",
    "label_like",
    "labels_of",
    "like",
    "load_dataset",
    "pixels_of",
    "split_labelled",
]

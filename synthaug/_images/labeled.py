"""Real images in: `load_dataset` reads class folders, torchvision, HDF5 files and digits.

Whatever can be wrong with a folder of images is found here, before any long work starts. Images
that fit in memory are decoded once, at loading; a larger data set has its headers checked at
loading and its images decoded when they are read.
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from synthaug._images.dataset import AbstractLabeledDataset
from synthaug._images.folders import is_flat
from synthaug._images.loaders import LOADERS, parse_spec, spec_of
from synthaug._images.requests import ImageRequest, check_labeled_images, checked_labels
from synthaug._images.stores import Conform, Files, Memory, Problem, Store, gather
from synthaug._pixels import to_pil
from synthaug._support.arguments import check_distinct, check_type, check_whole
from synthaug._support.names import class_names
from synthaug._support.rows import row_numbers
from synthaug._types import ImageShape, Labels, Pixels, StrPath
from synthaug.errors import DataError


class LabeledImages(AbstractLabeledDataset):
    """Labeled images of one size, as a map-style data set.

        train = load_dataset("folder:cifar10/train")
        train[0]                    # (PIL image of mode L or RGB, class index), then the transforms
        train.read([5, 3])          # uint8 (2, C, H, W), without the transforms
        train.subset(indices)       # shares the memory

    It has what others read from torchvision's data sets: `classes`, `class_to_idx`, `targets`, and
    `transform` and `target_transform`, which may be assigned.
    """

    canaries: str | None = None
    """Digest of the plan of canaries, if there are marked images among them; see
    `synthaug.memorization.plant`."""

    def __init__(
        self,
        images: Tensor | Store,
        labels: ArrayLike,
        classes: Sequence[str],
        *,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        name: str = "images",
        files: Files | None = None,
    ) -> None:
        """Wraps images that are already decoded.

        Args:
            images: uint8 (N, C, H, W) with C 1 or 3, or a `Store`.
            labels: Class indices, int (N,).
            classes: Names of the classes.
            transform: Called with the PIL image.
            target_transform: Called with the class index.
            name: For `repr` and messages.
            files: The files that the images were read from, if they were.

        Raises:
            DataError: For labels beyond the classes, or class names that are not unique.
            ValueError: For images of another shape or dtype, or another number of labels.
        """
        self._store = Memory(images) if isinstance(images, Tensor) else images
        if isinstance(images, Tensor) and len(images) != len(np.asarray(labels)):
            raise ValueError(
                f"Got {len(images)} images and {len(np.asarray(labels))} labels. Give one "
                "label per image."
            )
        self.classes = class_names(classes)
        self.labels: Labels = checked_labels(labels, self.classes, name)
        self.transform = transform
        self.target_transform = target_transform
        self.name = name
        self._rows = np.arange(len(self.labels))
        self._files = files
        self._fingerprint: str | None = None
        self.skipped: tuple[str, ...] = ()
        """What was wrong with each file that `load_dataset(skip_bad=True)` left out."""

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of every image."""
        return self._store.shape

    @property
    def paths(self) -> list[str] | None:
        """The file of every image; `None` if they did not come from files."""
        return None if self.files is None else [*self.files.paths]

    @property
    def files(self) -> Files | None:
        """The files that the images were read from, and how; `None` if they came from none."""
        if self._files is None:
            return None
        paths = [self._files.paths[row] for row in self._rows.tolist()]
        return Files(paths, self._files.conform, self._files.shape, self._files.folder)

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
        """The pixels of some images, uint8 (n, C, H, W), without any transform.

        Args:
            indices: Integers (n,) or a mask, bool (N,).
        """
        return torch.from_numpy(self._store.read(self._rows[row_numbers(indices, len(self))]))

    def subset(self, indices: ArrayLike) -> "LabeledImages":
        """Some of the images, with everything else kept.

        Args:
            indices: Integers (n,) or a mask, bool (N,).
        """
        chosen = np.arange(len(self))[row_numbers(indices, len(self))]
        other = copy.copy(self)
        other.labels, other._rows = self.labels[chosen], self._rows[chosen]
        other._fingerprint = None
        return other

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """A whole batch at once; `DataLoader` and `Subset` call it."""
        rows = row_numbers(indices, len(self))
        return self._transformed(map(to_pil, self.read(rows)), self.labels[rows].tolist())

    def _facts(self) -> list[str]:
        return [
            f"Source: {self.name}",
            f"Classes: {len(self.classes)}",
            f"Image shape: {self.image_shape}",
        ]


def load_dataset(
    spec: StrPath,
    *,
    split: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    image_shape: ImageShape | None = None,
    classes: Sequence[str] | None = None,
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
    memory_limit: int = 4_294_967_296,
    upright: bool = True,
    skip_bad: bool = False,
    progress: bool | None = None,
) -> LabeledImages:
    """Loads labeled images, and finds what is wrong with them before any long work starts.

        load_dataset("folder:cifar10/train")                     # one folder per class
        load_dataset("folder:cifar10", split="train")            # the same
        load_dataset("folder:photos", image_size=64, channels=3)
        load_dataset("folder:photos", image_shape=cache.image_shape)
        load_dataset("torchvision:CIFAR10:test?root=data&download=true")
        load_dataset("hdf5:cifar.h5")                            # a cache, or `images` and `labels`
        load_dataset("digits")                                   # 1,797 scans, shipped with sklearn
        load_dataset("digits:train")                             # the first half of them

    Args:
        spec: `folder:PATH`: one folder per class, the class names sorted, images in subfolders
            included. `torchvision:NAME[:SPLIT][?root=DIR]`: a class of `torchvision.datasets`; what
            follows `?` are its arguments; `root` is `data` if not given; nothing is downloaded
            unless `download=true` is among them. `hdf5:PATH`: a synthaug cache, of which the
            finished rows are taken, or any file with `images`, uint8 (N, C, H, W) or (N, H, W, C),
            and `labels`, int (N,). `digits[:SPLIT]`: handwritten digits of scikit-learn, uint8
            1x8x8, the 17 levels spread over [0, 255]. A `pathlib.Path` is a folder or an HDF5
            file.
        split: The same as `:SPLIT`. `torchvision`: "train", "test" or what the class knows; without
            it the class's default. `digits`: "train", the first half, or "test", the second; the
            scans come writer by writer, so the two share one writer at most. `folder`: a subfolder.
        image_size: Resizes the shorter side to it (bicubic, antialiased) and cuts out the center.
        channels: 1 converts to gray, 3 to RGB. Without it nothing is converted.
        image_shape: (C, H, W), in place of these two: for example that of a cache or a checkpoint.
            Images that have it already stay as they are.
        classes: The class names in the order that is wanted. Without it, what the source says. If
            the source has two classes of one name, new names in its own order. One name is that
            of all images of a folder without subfolders: `classes=["all"]`.
        transform: Called with the PIL image.
        target_transform: Called with the class index.
        memory_limit: Bytes of decoded images, 4 GiB by default; a larger data set is decoded when
            it is read.
        upright: Turn photos of a folder as their EXIF orientation says.
        skip_bad: Leave out files of a folder that cannot be used, in place of an error that lists
            them. The result names them in `skipped`. Above `memory_limit`, files that are damaged
            behind their header are found only when they are read.
        progress: Shows a bar if loading takes more than two seconds; `None`: on a terminal only.

    Raises:
        DataError: For images that cannot be used; the message names a file and the remedy.
        ValueError: For arguments that make no sense.
    """
    if isinstance(spec, os.PathLike):
        spec = spec_of(spec)
    check_type(str, "a text such as `folder:PATH`, or a path", spec=spec)
    kind, where, split = parse_spec(spec, split)
    size, channels = _checked_shape(image_size, channels, image_shape)
    check_whole(0, memory_limit=memory_limit)
    classes = None if classes is None else class_names(classes)
    check_distinct(classes=classes or ())
    conform = Conform(size, channels, upright=upright and kind == "folder")
    asked = ImageRequest(where, split, conform, classes, progress, skip_bad)
    store, labels, names = LOADERS[kind](asked)
    files = store if isinstance(store, Files) else None
    if len(labels) == 0:
        raise DataError(f"{spec} holds no image.")
    if len(labels) * int(np.prod(store.shape)) <= memory_limit:
        problems: dict[int, Problem] = {}
        rows = np.arange(len(labels))
        pixels = gather(store, rows, progress, f"Loading {where or kind}", problems)
        if problems and files is not None:
            named = {files.paths[row]: problems[row] for row in sorted(problems)}
            asked.usable(named, len(files.paths))
            rows = np.setdiff1d(rows, list(problems))
            labels, pixels = labels[rows], pixels[rows]
            paths = [files.paths[row] for row in rows.tolist()]
            files = Files(paths, conform, files.shape, files.folder)
            check_labeled_images(labels, names, where, asked)
        store = Memory(pixels)
    loaded = LabeledImages(
        store,
        labels,
        names,
        transform=transform,
        target_transform=target_transform,
        name=", ".join(filter(None, [f"{kind}:{where}".rstrip(":"), split])),
        files=files,
    )
    loaded.skipped = tuple(asked.skipped)
    return loaded


UNDIVIDED = ("all",)
"""Classes of a folder of images without subfolders, which are no classes of other sets."""


def load_unlabeled(spec: str, **how: Any) -> LabeledImages:
    """Loads as `load_dataset` does; images of a folder without subfolders are one class, "all"."""
    kind, where, split = parse_spec(spec, how.get("split"))
    if (
        kind == "folder"
        and how.get("classes") is None
        and is_flat(os.path.join(where, split or ""))
    ):
        how["classes"] = UNDIVIDED
    return load_dataset(spec, **how)


def _checked_shape(
    image_size: int | None, channels: int | None, image_shape: ImageShape | None
) -> tuple[tuple[int, int] | None, int | None]:
    """The size (H, W) and the number of channels that images are brought to, if any."""
    size = None if image_size is None else (image_size, image_size)
    if image_shape is not None:
        if image_size is not None or channels is not None:
            raise ValueError("`image_shape` takes the place of `image_size` and `channels`.")
        channels, size = image_shape[0], image_shape[1:]
    for side in size or ():
        check_whole(1, image_size=side)
    check_whole(1, channels=channels)
    if channels not in (None, 1, 3):
        raise ValueError(f"`channels` must be 1 (gray) or 3 (RGB), got {channels}.")
    return size, channels

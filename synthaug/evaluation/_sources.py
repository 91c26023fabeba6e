"""How an evaluation reads data sets: pixels in memory where possible, else batch by batch.

A data set is *plain* if an item is always the same image: our loaders, a cache, torchvision's data
sets without transform, and `Subset` and `ConcatDataset` of those. Plain data is read once. Any
other one, such as `MixedDataset` or a data set with a transform, is asked anew for every batch, so
what it does with an index is part of what is evaluated.
"""

import hashlib
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from synthaug._images.convert import is_probabilities, pixels_of
from synthaug._images.foreign import (
    classes_of,
    field,
    labels_of,
    leaves,
    parts_of,
    without_transforms,
)
from synthaug._images.labeled import as_pixels
from synthaug._pixels import digest
from synthaug._types import Indices, Pixels
from synthaug.errors import DataError, MismatchError

MEMORY_LIMIT = 4 << 30
"""Plain data sets up to so many bytes are held in memory."""

_TRANSFORMS = ("transform", "target_transform", "transforms")


class Source(Protocol):
    """A data set as the trainer sees it."""

    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def batch(self, epoch: int, indices: Indices) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (n, C, H, W) and labels of items of an epoch: int64 (n,), or of a mixture
        with soft labels float32 (n, num_classes)."""

    def forget_seen(self) -> None:
        """Starts the count of `seen` anew."""

    def seen(self) -> tuple[int, int]:
        """Different real and different synthetic images in all batches."""


def open_source(
    dataset: Dataset[Any], name: str, classes: Sequence[str], device: torch.device
) -> Source:
    """Opens a data set for reading; labels are counted in the order of `classes`.

    Raises:
        TypeError: If it is not map-style.
        ValueError: If it is a mixture whose length changes from epoch to epoch.
        DataError: If it is empty, has other classes, or items that are no labelled images.
    """
    size = _length(dataset, name)
    if not all(getattr(leaf, "has_fixed_length", True) for leaf in leaves(dataset)):
        raise ValueError(
            f"{name} has another length in every epoch, since its `ratio` changes; an evaluation "
            'counts steps over data sets of one length. Schedule the `fraction` of mode="replace".'
        )
    relabel = _Relabel(classes_of(dataset), classes, name)
    image, _ = _items(dataset, [0], name)
    shape = cast(tuple[int, int, int], tuple(image.shape[1:]))
    try:
        if is_plain(dataset) and size * image.numel() <= MEMORY_LIMIT:
            return _InMemory(dataset, relabel, device)
        return _Asked(dataset, name, relabel, shape)
    except (DataError, MismatchError) as error:
        raise error if name in str(error) else type(error)(f"{name}: {error}") from error


def is_plain(dataset: Any) -> bool:
    """Whether an item of `dataset` is always the same image."""
    from torchvision.datasets import VisionDataset

    return all(
        (hasattr(leaf, "read") or isinstance(leaf, TensorDataset | VisionDataset))
        and not (hasattr(leaf, "set_epoch") or _transforms(leaf))
        for leaf in leaves(dataset)
    )


def digests(dataset: Any, name: str) -> NDArray[np.uint64]:
    """Content digests of all images that a data set can show, before transforms, uint64 (n,).

    Of a mixture, which has a `.real` and a `.synthetic` data set, of both. Where the transform
    cannot be taken off, images count as they come.
    """
    images = _shown(dataset, np.arange(_length(dataset, name)))
    return np.fromiter((digest(image) for image in images), np.uint64)


def _shown(dataset: Any, rows: Indices) -> Iterator[Tensor]:
    """All images that some items can show, uint8 (C, H, W), which may differ in size."""
    if isinstance(dataset, Subset):
        yield from _shown(dataset.dataset, np.asarray(dataset.indices, np.int64)[rows])
    elif isinstance(dataset, ConcatDataset):
        for p, _, local in parts_of(dataset, rows):
            yield from _shown(dataset.datasets[p], local)
    elif hasattr(dataset, "real") and hasattr(dataset, "synthetic"):
        yield from _shown(dataset.real, rows[rows < len(dataset.real)])
        yield from _shown(dataset.synthetic, np.arange(len(dataset.synthetic)))
    elif hasattr(dataset, "read"):
        if hasattr(dataset, "done"):
            rows = rows[np.asarray(dataset.done)[rows]]  # what is not generated cannot be shown
        for start in range(0, len(rows), 1024):
            yield from dataset.read(rows[start : start + 1024])
    else:
        try:
            raw = without_transforms(dataset)[0]
        except ValueError:  # they cannot be taken off
            raw = dataset
        for i in rows.tolist():
            try:
                image = pixels_of(field(raw[i], "image"))
            except (TypeError, ValueError):  # of a mode that only the transform makes usable
                image = pixels_of(field(dataset[i], "image"))
            yield image


def fingerprint(dataset: Any, name: str, keys: NDArray[np.uint64]) -> str:
    """32 hexadecimal digits over the content digests and what is made of the images.

    Mixtures of the same images differ in how they choose (`recipe`) and in what they chose for the
    epochs 0 and 1; transforms differ in the first items of epoch 0.
    """
    hashed = hashlib.blake2b(keys.tobytes(), digest_size=16)
    hashed.update(repr((_length(dataset, name), classes_of(dataset))).encode())
    for leaf in leaves(dataset):
        if hasattr(leaf, "synthetic_rows") and hasattr(leaf, "recipe"):
            hashed.update(json.dumps(leaf.recipe(), sort_keys=True).encode())
    for epoch in (1, 0):
        _set_epoch(dataset, epoch)
        hashed.update(_synthetic_rows(dataset, np.arange(len(dataset))).tobytes())
    torch.manual_seed(0)
    pixels, labels = _items(dataset, range(min(_length(dataset, name), 256)), name)
    hashed.update(pixels.numpy().tobytes())
    hashed.update(labels.tobytes())
    hashed.update(labels_of(dataset).tobytes() if is_plain(dataset) else b"")
    return hashed.hexdigest()


def synthetic_facts(dataset: Any) -> str:
    """How many synthetic images a data set may show, and what an audit said; "" if there are none.

    A mixture knows. Of a cache alone nobody said which of its images may be served.
    """
    found = []
    for leaf in leaves(dataset):
        if hasattr(leaf, "served"):
            found.append(str(leaf.served))
        elif hasattr(leaf, "plan_digest"):
            found.append(f"{int(np.sum(leaf.done)):,} images, no audit report")
    return "; ".join(dict.fromkeys(found))


@final
class _InMemory:
    """A plain data set, read once."""

    def __init__(self, dataset: Any, relabel: "_Relabel", device: torch.device) -> None:
        self.pixels = as_pixels(dataset).to(device)
        self.labels = torch.from_numpy(relabel(labels_of(dataset))).to(device)
        self.image_shape = cast(tuple[int, int, int], tuple(self.pixels.shape[1:]))
        self._synthetic = _synthetic_rows(dataset, np.arange(len(self.labels))) >= 0
        self.forget_seen()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, epoch: int, indices: Indices) -> tuple[Tensor, Tensor]:
        del epoch  # plain data is the same in every epoch
        self._seen[indices] = True
        rows = torch.from_numpy(indices).to(self.pixels.device)
        return self.pixels[rows], self.labels[rows]

    def forget_seen(self) -> None:
        self._seen = np.zeros(len(self), bool)

    def seen(self) -> tuple[int, int]:
        synthetic = int((self._seen & self._synthetic).sum())
        return int(self._seen.sum()) - synthetic, synthetic


@final
class _Asked:
    """Any other data set, asked anew for every batch."""

    def __init__(
        self, dataset: Any, name: str, relabel: "_Relabel", image_shape: tuple[int, int, int]
    ) -> None:
        self.image_shape = image_shape
        self._dataset = dataset
        self._name = name
        self._relabel = relabel
        # A mixture without transforms gives the pixels of a batch without a detour over PIL.
        soft = any(getattr(leaf, "has_soft_labels", False) for leaf in leaves(dataset))
        has_pixels = hasattr(dataset, "read") and not (_transforms(dataset) or soft)
        self._labels = labels_of(dataset) if has_pixels else None
        self.forget_seen()

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, epoch: int, indices: Indices) -> tuple[Tensor, Tensor]:
        _set_epoch(self._dataset, epoch)
        if self._labels is None:
            pixels, labels = _items(self._dataset, indices, self._name)
        else:
            pixels, labels = self._dataset.read(indices), self._labels[indices]
        if tuple(pixels.shape[1:]) != self.image_shape:
            raise MismatchError(
                f"{self._name}: images have shape {tuple(pixels.shape[1:])}, the first one had "
                f"{self.image_shape}. Bring all to one shape in the data set's transform."
            )
        self._note(indices)
        return pixels, torch.from_numpy(self._relabel(labels))

    def _note(self, indices: Indices) -> None:
        rows = _synthetic_rows(self._dataset, indices)
        self._synthetic.update(rows[rows >= 0].tolist())
        self._real.update(indices[rows < 0].tolist())

    def forget_seen(self) -> None:
        self._real: set[int] = set()
        self._synthetic: set[int] = set()

    def seen(self) -> tuple[int, int]:
        return len(self._real), len(self._synthetic)


@final
class _Relabel:
    """Labels in the order of other class names: matched by name, kept if there are none."""

    def __init__(self, own: Sequence[str] | None, classes: Sequence[str], name: str) -> None:
        if own is not None and sorted(own) != sorted(classes):
            missing = sorted(set(classes) - set(own)) or ["none"]
            extra = sorted(set(own) - set(classes)) or ["none"]
            raise MismatchError(
                f"{name} has other classes than the test set. Missing: {', '.join(missing[:5])}; "
                f"not in the test set: {', '.join(extra[:5])}."
            )
        self.name = name
        place = {c: i for i, c in enumerate(classes)}
        self.table = np.array([place[c] for c in own or classes], np.int64)

    def __call__(self, labels: NDArray[Any]) -> NDArray[Any]:
        if labels.ndim == 2:  # class probabilities
            return labels[:, np.argsort(self.table)]
        if labels.min() < 0 or labels.max() >= len(self.table):
            bad = labels.min() if labels.min() < 0 else labels.max()
            raise DataError(
                f"{self.name} holds label {bad}, but there are {len(self.table)} classes."
            )
        return self.table[labels]


def _length(dataset: Any, name: str) -> int:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}; an evaluation needs a map-style data set, with "
            "`__len__` and `__getitem__`."
        )
    if len(dataset) == 0:
        raise DataError(f"{name} is empty.")
    return len(dataset)


def _items(
    dataset: Any, indices: Sequence[int] | Indices, name: str
) -> tuple[Pixels, NDArray[Any]]:
    """Items, after the data set's transforms, as pixels and labels, which may be vectors."""
    numbers = [int(i) for i in indices]
    batched = hasattr(dataset, "__getitems__")
    items = dataset.__getitems__(numbers) if batched else [dataset[i] for i in numbers]
    images, labels = [], []
    for i, item in zip(numbers, items, strict=True):
        try:
            images.append(pixels_of(field(item, "image")))
            label = field(item, "label")
            labels.append(np.asarray(label) if is_probabilities(label) else operator.index(label))
        except (TypeError, ValueError) as error:
            raise DataError(f"Item {i} of {name} cannot be used. {error}") from error
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise MismatchError(
            f"Images of {name} have different shapes, {shapes[0]} and {shapes[1]}. Bring all to "
            "one shape in its transform."
        )
    found = np.array(labels)
    return torch.stack(images), found.astype(np.float32 if found.ndim == 2 else np.int64)


def _set_epoch(dataset: Any, epoch: int) -> None:
    for leaf in leaves(dataset):
        if hasattr(leaf, "set_epoch"):
            leaf.set_epoch(epoch)


@contextmanager
def epochs_kept(datasets: Iterable[Any]) -> Iterator[None]:
    """Gives data sets that know their `epoch` back in the one that they were in."""
    before = [
        (leaf, leaf.epoch)
        for dataset in datasets
        for leaf in leaves(dataset)
        if hasattr(leaf, "set_epoch") and hasattr(leaf, "epoch")
    ]
    try:
        yield
    finally:
        for leaf, epoch in before:
            leaf.set_epoch(epoch)


def _transforms(dataset: Any) -> list[str]:
    return [name for name in _TRANSFORMS if getattr(dataset, name, None) is not None]


def _synthetic_rows(dataset: Any, indices: Indices) -> Indices:
    """What tells the synthetic images among some items apart, -1 for the real ones.

    A mixture says it itself, for its epoch. Of others, a cache is synthetic: it alone has a plan.
    """
    if hasattr(dataset, "synthetic_rows"):
        rows: Indices = dataset.synthetic_rows(indices)
        return rows
    if isinstance(dataset, Subset):
        return _synthetic_rows(dataset.dataset, np.asarray(dataset.indices, np.int64)[indices])
    if isinstance(dataset, ConcatDataset):
        rows = np.full(len(indices), -1, np.int64)
        for p, mask, local in parts_of(dataset, indices):
            found = _synthetic_rows(dataset.datasets[p], local)
            rows[mask] = np.where(found < 0, -1, found + (p << 40))  # rows of another cache
        return rows
    return indices if hasattr(dataset, "plan_digest") else np.full(len(indices), -1, np.int64)

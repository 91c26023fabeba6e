"""How an evaluation reads data sets: pixels in memory where possible, else item by item.

A data set is *plain* if an item is always the same image: our loaders, a cache, torchvision's data
sets without transform, and `Subset` and `ConcatDataset` of those. Plain data is read once. Any
other one, such as `MixedDataset` or a data set with a transform, is asked for every item of every
batch, so what it does with an index is part of what is evaluated.
"""

import copy
import hashlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from synthaug._adapt import pixels_of
from synthaug._errors import DataError
from synthaug._pixels import digest
from synthaug._types import Indices, Pixels

MEMORY_LIMIT = 4 * 2**30
"""Plain data sets up to so many bytes are held in memory."""

_TRANSFORMS = ("transform", "target_transform", "transforms")


class Source(Protocol):
    """A data set as the trainer sees it."""

    name: str
    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def batch(self, epoch: int, indices: Indices) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (n, C, H, W) and labels int64 (n,) of items of an epoch."""

    def forget_seen(self) -> None:
        """Starts the count of `seen` anew."""

    def seen(self) -> tuple[int, int] | None:
        """Different real and different synthetic images in all batches; `None` if not known."""


def open_source(
    dataset: Dataset[Any], name: str, classes: Sequence[str], device: torch.device
) -> Source:
    """Opens a data set for reading; `classes` gives the order in which labels are counted.

    Raises:
        DataError: If it is empty, has other classes, or items that are no labelled images.
    """
    size = _length(dataset, name)
    mapping = _label_mapping(class_names(dataset), classes, name)
    image, _ = _items(dataset, [0], name)
    shape = cast(tuple[int, int, int], tuple(image.shape[1:]))
    if is_plain(dataset) and size * image[0].numel() <= MEMORY_LIMIT:
        return _InMemory(dataset, name, mapping, device)
    return _Indexed(dataset, name, mapping, shape, size)


def is_plain(dataset: Any) -> bool:
    """Whether an item of `dataset` is always the same image."""
    if isinstance(dataset, Subset):
        return is_plain(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return all(is_plain(part) for part in dataset.datasets)
    if isinstance(dataset, TensorDataset):
        return True
    if hasattr(dataset, "set_epoch") or any(getattr(dataset, t, None) for t in _TRANSFORMS):
        return False
    return hasattr(dataset, "read") or _is_torchvision(dataset)


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """The class list of a data set, looked for through `Subset` and `ConcatDataset`."""
    classes = getattr(dataset, "classes", None)
    if classes is not None:
        return tuple(map(str, classes))
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        lists = {class_names(part) for part in dataset.datasets}
        if len(lists) > 1:
            raise DataError(
                f"Parts of a ConcatDataset have different classes: {sorted(map(str, lists))}."
            )
        return lists.pop()
    return None


def largest_label(dataset: Any, name: str) -> int:
    """The largest label of a data set, found by reading all of it."""
    return int(_items(dataset, range(_length(dataset, name)), name)[1].max())


def content(dataset: Any, name: str) -> Iterator[tuple[Indices, Pixels]]:
    """Every image that a data set can show, before transforms, with its number, in chunks.

    Of a data set that mixes a `.real` and a `.synthetic` one, the images of both.
    """
    if hasattr(dataset, "real") and hasattr(dataset, "synthetic"):
        yield from content(dataset.real, f"{name}, real part")
        yield from content(dataset.synthetic, f"{name}, synthetic part")
        return
    raw = _without_transform(dataset)
    rows = np.arange(_length(dataset, name))
    if hasattr(raw, "done"):
        rows = np.flatnonzero(raw.done)  # what is not generated yet cannot be shown
    for start in range(0, len(rows), 1024):
        chunk = rows[start : start + 1024]
        yield chunk, _items(raw, chunk, name)[0]


def digests(dataset: Any, name: str) -> NDArray[np.uint64]:
    """Content digests of `content(dataset)`, uint64 (n,)."""
    keys = [digest(image) for _, pixels in content(dataset, name) for image in pixels]
    return np.array(keys, np.uint64)


def fingerprint(dataset: Any, name: str, keys: NDArray[np.uint64]) -> str:
    """32 hexadecimal digits over the content digests and what the first items of epoch 0 look like.

    The first items tell two mixtures of the same images apart.
    """
    hashed = hashlib.blake2b(keys.tobytes(), digest_size=16)
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = range(min(_length(dataset, name), 256))
        pixels, labels = _items(dataset, first, name)
    hashed.update(f"{_length(dataset, name)}:{class_names(dataset)}".encode())
    hashed.update(pixels.numpy().tobytes())
    hashed.update(labels.tobytes())
    return hashed.hexdigest()


@final
class _InMemory:
    """A plain data set, read once."""

    def __init__(
        self, dataset: Dataset[Any], name: str, mapping: NDArray[np.int64], device: torch.device
    ) -> None:
        self.name = name
        pixels, labels = _items(dataset, range(_length(dataset, name)), name)
        self.pixels = pixels.to(device)
        self.labels = torch.from_numpy(_mapped(labels, mapping, name)).to(device)
        self.image_shape = cast(tuple[int, int, int], tuple(pixels.shape[1:]))
        self._synthetic = _is_synthetic(dataset)
        self._seen = np.zeros(len(labels), bool)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, epoch: int, indices: Indices) -> tuple[Tensor, Tensor]:
        del epoch  # plain data is the same in every epoch
        self._seen[indices] = True
        rows = torch.from_numpy(indices).to(self.pixels.device)
        return self.pixels[rows], self.labels[rows]

    def forget_seen(self) -> None:
        self._seen[:] = False

    def seen(self) -> tuple[int, int] | None:
        synthetic = int((self._seen & self._synthetic).sum())
        return int(self._seen.sum()) - synthetic, synthetic


@final
class _Indexed:
    """Any other data set, asked through its own indexing."""

    def __init__(
        self,
        dataset: Any,
        name: str,
        mapping: NDArray[np.int64],
        image_shape: tuple[int, int, int],
        size: int,
    ) -> None:
        self.name = name
        self.image_shape = image_shape
        self._dataset = dataset
        self._mapping = mapping
        self._size = size
        self._plain = is_plain(dataset)
        self._seen: tuple[set[Any], set[Any]] = (set(), set())

    def __len__(self) -> int:
        return self._size

    def batch(self, epoch: int, indices: Indices) -> tuple[Tensor, Tensor]:
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        pixels, labels = _items(self._dataset, indices, self.name)
        if tuple(pixels.shape[1:]) != self.image_shape:
            raise DataError(
                f"{self.name}: images have shape {tuple(pixels.shape[1:])}, the first one had "
                f"{self.image_shape}. Resize all to one shape in the data set's transform."
            )
        self._note(indices)
        return pixels, torch.from_numpy(_mapped(labels, self._mapping, self.name))

    def _note(self, indices: Indices) -> None:
        real, synthetic = self._seen
        if hasattr(self._dataset, "provenance") and hasattr(self._dataset, "is_synthetic"):
            for index in indices.tolist():
                if self._dataset.is_synthetic(index):
                    synthetic.add(_row_key(self._dataset.provenance(index)))
                else:
                    real.add(index)
        elif self._plain or hasattr(self._dataset, "transform"):
            (synthetic if _is_synthetic(self._dataset).any() else real).update(indices.tolist())

    def forget_seen(self) -> None:
        self._seen = (set(), set())

    def seen(self) -> tuple[int, int] | None:
        real, synthetic = self._seen
        return (len(real), len(synthetic)) if real or synthetic else None


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
) -> tuple[Pixels, NDArray[np.int64]]:
    """Items as pixels uint8 (n, C, H, W) and labels int64 (n,), by the fastest way there is."""
    if isinstance(dataset, Subset) and is_plain(dataset):
        rows = np.asarray(dataset.indices, np.int64)[np.asarray(indices, np.int64)]
        return _items(dataset.dataset, rows, name)
    numbers = [int(i) for i in indices]
    if hasattr(dataset, "read") and is_plain(dataset):
        pixels: Tensor = dataset.read(np.array(numbers, np.int64))
        return pixels, np.asarray(dataset.targets, np.int64)[numbers]
    batched = hasattr(dataset, "__getitems__")
    items = dataset.__getitems__(numbers) if batched else [dataset[i] for i in numbers]
    images, labels = [], []
    for i, item in zip(numbers, items, strict=True):
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise DataError(
                f"Item {i} of {name} is a {type(item).__name__}, expected a pair (image, label)."
            )
        try:
            images.append(pixels_of(item[0]))
            labels.append(operator.index(item[1]))
        except (TypeError, ValueError) as error:
            raise DataError(f"Item {i} of {name}: {error}") from error
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(
            f"Images of {name} have different shapes: {', '.join(map(str, sorted(shapes)[:3]))}. "
            "Bring all to one shape in its transform."
        )
    return torch.stack(images), np.array(labels, np.int64)


def _label_mapping(
    own: Sequence[str] | None, classes: Sequence[str], name: str
) -> NDArray[np.int64]:
    """Where each of our own labels is in `classes`; without names, labels stay as they are."""
    if own is None:
        return np.arange(len(classes))
    if sorted(own) != sorted(classes):
        missing = sorted(set(classes) - set(own)) or ["none"]
        extra = sorted(set(own) - set(classes)) or ["none"]
        raise DataError(
            f"{name} has other classes than the test set. Missing: {', '.join(missing[:5])}; "
            f"not in the test set: {', '.join(extra[:5])}."
        )
    return np.array([list(classes).index(c) for c in own], np.int64)


def _mapped(labels: NDArray[np.int64], mapping: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    if labels.min() < 0 or labels.max() >= len(mapping):
        bad = labels.max() if labels.max() >= len(mapping) else labels.min()
        raise DataError(f"{name} holds label {bad}, but there are {len(mapping)} classes.")
    return mapping[labels]


def _without_transform(dataset: Any) -> Any:
    """The data set with its images as they are stored, if we know how to get at them."""
    if isinstance(dataset, Subset):
        return Subset(_without_transform(dataset.dataset), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([_without_transform(part) for part in dataset.datasets])
    if is_plain(dataset) or not (hasattr(dataset, "read") or _is_torchvision(dataset)):
        return dataset
    raw = copy.copy(dataset)
    for transform in _TRANSFORMS:
        if hasattr(raw, transform):
            setattr(raw, transform, None)
    return raw


def _is_torchvision(dataset: Any) -> bool:
    from torchvision.datasets import VisionDataset

    return isinstance(dataset, VisionDataset)


def _is_synthetic(dataset: Any) -> NDArray[np.bool_]:
    """For every item of a plain data set whether it comes from a cache, which alone has a plan."""
    if isinstance(dataset, Subset):
        return _is_synthetic(dataset.dataset)[np.asarray(dataset.indices, np.int64)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([_is_synthetic(part) for part in dataset.datasets])
    return np.full(len(dataset), hasattr(dataset, "plan_digest"))


def _row_key(provenance: Any) -> Any:
    """What tells one synthetic image from another in a record of provenance."""
    return provenance["row"] if isinstance(provenance, dict) and "row" in provenance else provenance

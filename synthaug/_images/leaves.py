"""Data sets that hold images themselves, of any library: their labels, class names and pixels.

A leaf is a data set that is neither a `Subset` nor a `ConcatDataset`: one of torchvision, of timm
or of the `datasets` library, a list, tensors, or one of ours.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import TensorDataset

from synthaug._images.fields import USUAL_LABELS, field, key_among
from synthaug._images.stores import Indexed, gather
from synthaug._types import Indices, Labels, Pixels
from synthaug.errors import DataError

_COPIED = 64 * 2**20
"""Bytes of labels up to which they are copied; larger ones are shared with the data set."""
MAX_NUMBERED = 2**20
"""The most classes that a data set without names may have."""


@runtime_checkable
class Labeled(Protocol):
    """Images of which the labels of some can be had without those of all, as those of a cache.

    It has methods alone: to ask whether something has a property is to read that property.
    """

    def __len__(self) -> int:
        """How many there are."""
        ...

    def labels_of(self, rows: Indices | slice) -> Labels:
        """Class index of some rows, int64 (n,)."""
        ...

    def read(self, indices: ArrayLike) -> Pixels:
        """uint8 (n, C, H, W)."""
        ...


def labels_at(leaf: Any, rows: Indices | None, key: Any = None) -> Labels:
    """The class index of some images, int64 (n,), or of all; -1 for bare pixels.

    Only a data set that lists its labels nowhere has these items read.

    Args:
        leaf: The data set.
        rows: Which images.
        key: Where items have their label, if not in a usual place. Lists of labels may then be
            about another field, and are not asked.

    Raises:
        DataError: If the labels are not one integer per image.
    """
    if is_pixels(leaf):
        return np.full(len(leaf if rows is None else rows), -1, np.int64)
    if rows is not None and key is None and isinstance(leaf, Labeled):
        return leaf.labels_of(rows)
    values, count = _label_column(leaf, key), len(leaf)
    if listed := values is not None:
        values = list(values) if isinstance(values, list | tuple) else np.asarray(values)
    else:
        rows = np.arange(count) if rows is None else rows
        items = (leaf[i] for i in rows.tolist())
        values = [field(item, "label") if key is None else item[key] for item in items]
        count = len(rows)
    labels = np.asarray([np.asarray(x) for x in values] if isinstance(values, list) else values)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"The labels of {type(leaf).__name__} have shape {labels.shape} and dtype "
            f"{labels.dtype}, expected one class index per image, shape ({count},)."
        )
    chosen = labels[rows] if listed and rows is not None else labels
    return chosen.astype(np.int64, copy=chosen.nbytes <= _COPIED)


def _label_column(leaf: Any, key: Any) -> Any:
    """The labels that a data set lists without reading its images; `None` if it does not."""
    if isinstance(leaf, TensorDataset) and len(leaf.tensors) > 1:
        return leaf.tensors[1 if key is None else key].cpu()
    if is_table(leaf):
        return leaf.with_format("numpy")[_column(leaf, key)][:]
    if key in (None, 1) and hasattr(getattr(leaf, "reader", None), "samples"):  # timm's
        return [label for _, label in leaf.reader.samples]
    # The last name: Food101, Flowers102, DTD and more of torchvision's.
    for name in ("labels", "targets", "_labels") if key in (None, *USUAL_LABELS) else ():
        listed: Any = getattr(leaf, name, None)
        if hasattr(listed, "__len__") and len(listed) == len(leaf):
            return listed
    return None


def numbered_classes(labels: ArrayLike, where: str) -> tuple[str, ...]:
    """Class names "0", "1", ... for labels that have none.

    Raises:
        DataError: There would be more of them than data sets have classes.
    """
    values = np.asarray(labels)
    largest = int(values.max(initial=0))
    if largest >= MAX_NUMBERED:
        row = int(np.flatnonzero(values == largest)[0])
        raise DataError(
            f"{where}: image {row} has label {largest:,}; without class names, labels must be "
            f"below {MAX_NUMBERED:,}. Correct it, or give the names of all classes."
        )
    return tuple(map(str, range(largest + 1)))


def class_names(leaf: Any, key: Any = None) -> tuple[str, ...] | None:
    """The class names of a data set, by the field of its labels; `None` if it does not know them.

    Raises:
        DataError: If its `classes` and `class_to_idx` disagree.
    """
    if is_table(leaf):
        names = getattr(leaf.features[_column(leaf, key)], "names", None)
    else:
        index = getattr(getattr(leaf, "reader", leaf), "class_to_idx", None)  # timm's, or its own
        names = getattr(leaf, "classes", None)
        if isinstance(index, dict):
            names = sorted(index, key=index.__getitem__) if names is None else names
            for c, name in enumerate(names):  # labels follow one of the two, and nobody knows which
                if index.get(name, c) != c:
                    raise DataError(
                        f"`classes` and `class_to_idx` of {type(leaf).__name__} disagree: {name!r} "
                        f"is class {c} in one and {index[name]} in the other. Set both to what its "
                        "labels mean."
                    )
    return None if names is None else tuple(map(str, names))


def pixels_at(leaf: Any, rows: Indices, progress: bool | None = False) -> Pixels:
    """Some images, uint8 (n, C, H, W), without transforms if the data set has a method `read`."""
    if reads(leaf):
        return torch.from_numpy(np.asarray(leaf)[rows]) if is_pixels(leaf) else leaf.read(rows)
    return gather(Indexed(leaf, int(rows[0])), rows, progress, "Reading images")


def reads(leaf: Any) -> bool:
    """Whether the pixels of a data set can be read without its transforms."""
    return is_pixels(leaf) or hasattr(leaf, "read")


def is_pixels(leaf: Any) -> bool:
    """Whether it is an array of pixels without labels."""
    return isinstance(leaf, np.ndarray | torch.Tensor)


def is_table(leaf: Any) -> bool:
    """Whether it is a table of the `datasets` library: its columns can be read alone."""
    return all(hasattr(leaf, name) for name in ("features", "column_names", "with_format"))


def has_transforms(dataset: Any) -> bool:
    """Whether a data set, or a wrapper of one, applies a transform to its items."""
    names = ("transform", "target_transform", "transforms")
    return any(getattr(dataset, name, None) is not None for name in names)


def is_plain(leaf: Any) -> bool:
    """Whether an item is always the same image, with no transform on it."""
    from torchvision.datasets import VisionDataset

    known = reads(leaf) or isinstance(leaf, TensorDataset | VisionDataset)
    return known and not hasattr(leaf, "set_epoch") and not has_transforms(leaf)


def _column(table: Any, key: Any) -> Any:
    return key_among(table.column_names, "label") if key is None else key

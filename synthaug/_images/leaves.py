"""Data sets that hold images themselves, of any library: their labels, class names and pixels.

A leaf is a data set that is neither a `Subset` nor a `ConcatDataset`: one of torchvision, of timm
or of the `datasets` library, a list, tensors, or one of ours.
"""

import logging
import operator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import TensorDataset

from synthaug._images.calls import changes
from synthaug._images.convert import label_of
from synthaug._images.dataset import AbstractLabeledDataset
from synthaug._images.fields import USUAL_LABELS, field, key_among
from synthaug._images.stores import Indexed, gather
from synthaug._support.names import class_names as as_names
from synthaug._types import Array, Indices, Labels, Pixels
from synthaug.errors import DataError

log = logging.getLogger(__name__)

_COPIED = 64 * 2**20
"""Bytes of labels up to which they are copied; larger ones are shared with the data set."""
MAX_NUMBERED = 2**20
"""The most classes that a data set without names may have."""
_SAMPLED = 64
"""Items of a foreign data set whose labels are compared with those that it lists."""


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

    Of a data set that lists its labels only some items are read, to see that the list is theirs.
    All are read if it lists none that could be class indices.

    Args:
        leaf: The data set.
        rows: Images by number; all if `None`.
        key: Where items have their label, if not in a usual place. Lists of labels may then be
            about another field, and are not asked.

    Raises:
        DataError: If the labels are not one integer per image, or no list agrees with the items.
    """
    if is_pixels(leaf):
        return np.full(len(leaf if rows is None else rows), -1, np.int64)
    if rows is not None and key is None and isinstance(leaf, Labeled):
        return leaf.labels_of(rows)
    listed = _label_lists(leaf, key)
    if listed and _is_known(leaf, listed):
        labels = _one_list(leaf, listed)
        return labels if rows is None else labels[rows]
    rows = np.arange(len(leaf)) if rows is None else rows
    if listed:
        return _list_of_items(leaf, listed, rows, key)[rows]
    items = (leaf[i] for i in rows.tolist())
    values = [field(item, "label") if key is None else item[key] for item in items]
    return _indices(leaf, _as_array(values), len(rows))


def _label_lists(leaf: Any, key: Any) -> dict[str, Labels]:
    """The labels that a data set lists without reading its images, int64 (N,), by their names.

    A list that cannot be class indices, such as one of names or of several labels per image, is
    passed over. Where labels lie in a column, there is no other place to look for them.

    Raises:
        DataError: If the labels of a column are not one integer per image.
    """
    if isinstance(leaf, TensorDataset) and len(leaf.tensors) > 1:
        column = _as_array(leaf.tensors[1 if key is None else key].cpu())
        return {"tensors": _indices(leaf, column, len(leaf))}
    if is_table(leaf):
        column = _as_array(leaf.with_format("numpy")[_column(leaf, key)][:])
        return {"column": _indices(leaf, column, len(leaf))}
    lists: dict[str, Any] = {}
    if key in (None, 1):
        for name, owner in (("reader", _reader(leaf)), ("samples", leaf)):
            samples = getattr(owner, "samples", None)  # timm's; `DatasetFolder`'s
            if isinstance(samples, list) and all(
                isinstance(sample, tuple) and len(sample) == 2 for sample in samples
            ):
                lists[name] = [label for _, label in samples]
    if key in (None, *USUAL_LABELS):
        # The last name: Food101, Flowers102, DTD and more of torchvision's.
        ours = isinstance(leaf, AbstractLabeledDataset)  # whose `targets` are its labels
        names = ("labels",) if ours else ("labels", "targets", "_labels")
        lists |= {name: getattr(leaf, name, None) for name in names}
    arrays = {name: _as_array(x) for name, x in lists.items() if x is not None}
    return {
        name: labels.astype(np.int64, copy=labels.nbytes <= _COPIED)
        for name, labels in arrays.items()
        if _are_indices(labels, len(leaf))
    }


def _reader(leaf: Any) -> Any:
    """The part of timm's data sets that knows samples and classes; `None` of others."""
    return getattr(leaf, "reader", None)


def _as_array(values: Any) -> Array:
    """Labels of any kind as an array; of vectors of different length one of objects."""
    if not isinstance(values, list | tuple):
        return np.asarray(values)
    if all(type(x) is int for x in values):  # by far the most usual, and the longest
        return np.array(values, np.int64)
    try:
        return np.asarray([np.asarray(x) for x in values])
    except ValueError:
        return np.empty(len(values), object)


def _are_indices(labels: Array, count: int) -> bool:
    return labels.shape == (count,) and labels.dtype.kind in "iu"


def _indices(leaf: Any, labels: Array, count: int) -> Labels:
    if not _are_indices(labels, count):
        raise DataError(
            f"The labels of {type(leaf).__name__} have shape {labels.shape} and dtype "
            f"{labels.dtype}, expected one class index per image, shape ({count},)."
        )
    return labels.astype(np.int64, copy=labels.nbytes <= _COPIED)


def _is_known(leaf: Any, listed: dict[str, Labels]) -> bool:
    """Whether we know how a data set makes its items of the labels that it lists."""
    home = type(leaf).__module__.partition(".")[0]
    timm = "reader" in listed
    return reads(leaf) or is_table(leaf) or timm or home in ("torch", "torchvision")


def _one_list(leaf: Any, listed: dict[str, Labels]) -> Labels:
    """Returns the labels that all lists agree on.

    Raises:
        DataError: If two disagree: items are made of one of them, and users read the other.
    """
    (first, labels), *others = listed.items()
    for name, other in others:
        wrong = np.flatnonzero(other != labels)
        if len(wrong):
            i = wrong[0]
            raise DataError(
                f"`{first}` and `{name}` of {type(leaf).__name__} disagree about {len(wrong)} "
                f"labels: that of item {i} is {labels[i]} in one and {other[i]} in the other. Set "
                "both, as in `data.targets = [label for _, label in data.samples]`."
            )
    return labels


def _list_of_items(leaf: Any, listed: dict[str, Labels], rows: Indices, key: Any) -> Labels:
    """The first list of labels that agrees with those items of a foreign data set that are read; a
    DataError if none does."""
    sample = label_sample(leaf, rows, key)
    agree = [x for x in listed.values() if all(x[i] == label for i, label in sample.items())]
    if not agree:
        check_sample(next(iter(listed.values())), sample, type(leaf).__name__)
    return agree[0]


def check_sample(labels: Labels, sample: dict[int, int], name: str) -> None:
    """Refuses listed labels that are not those that were read from items."""
    for i, label in sample.items():
        if labels[i] != label:
            raise DataError(
                f"The labels that {name} lists are not those of its items: item {i} has the label "
                f"{label}, listed is {labels[i]}. Its `targets` or `labels` must be in the order "
                f"of its items, and mean the same. ({len(sample)} of {len(labels)} items were "
                "looked at.)"
            )


def label_sample(dataset: Any, rows: Indices, key: Any) -> dict[int, int]:
    """Class indices of up to 64 items that are spread evenly over some rows, read from the items.

    Empty for labels that are no class indices, or that a `target_transform` changes.
    """
    if changes(getattr(dataset, "target_transform", None)):
        return {}
    places = np.linspace(0, len(rows) - 1, min(_SAMPLED, len(rows))).astype(np.int64)
    sample = {}
    for i in rows[places].tolist():
        item = dataset[i]
        try:
            sample[i] = operator.index(label_of(field(item, "label") if key is None else item[key]))
        except (TypeError, LookupError):  # what is no labeled image is refused where it is used
            continue
    log.info(
        "Compared the labels of %d of %d items of %s with those that it lists.",
        len(sample),
        len(dataset),
        type(dataset).__name__,
    )
    return sample


def numbered_classes(labels: ArrayLike, where: str) -> tuple[str, ...]:
    """Class names "0", "1", ... for labels that have none; too many of them are a DataError."""
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
    """The class names of a data set, by the field of its labels; `None` if it does not know them, a
    DataError if its `classes` and `class_to_idx` disagree."""
    if is_table(leaf):
        names = getattr(leaf.features[_column(leaf, key)], "names", None)
    else:
        index = getattr(_reader(leaf) or leaf, "class_to_idx", None)
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
    return None if names is None else as_names(names)


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
    return any(changes(getattr(dataset, name, None)) for name in names)


def is_plain(leaf: Any) -> bool:
    """Whether an item is always the same image, with no transform on it."""
    from torchvision.datasets import VisionDataset

    known = reads(leaf) or isinstance(leaf, TensorDataset | VisionDataset)
    return known and not hasattr(leaf, "set_epoch") and not has_transforms(leaf)


def _column(table: Any, key: Any) -> Any:
    return key_among(table.column_names, "label") if key is None else key

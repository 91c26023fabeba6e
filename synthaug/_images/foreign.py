"""Data sets of others: fields of their items, labels, class names, transforms, parts.

Whatever is asked of a map-style data set that we did not make is asked here: torchvision's, those
of timm and of the `datasets` library, lists, tensors, and `Subset` and `ConcatDataset` of them.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from synthaug._images.convert import Transform
from synthaug._types import Indices, Labels
from synthaug.errors import DataError, MismatchError

_FIELDS = {
    "image": (0, ("image", "img", "pixel_values", "images")),
    "label": (1, ("label", "labels", "target", "targets")),
}


def field_key(item: Any, name: str) -> Any:
    """Where an item of a data set has its "image" or its "label": a position, or a key.

    Raises:
        TypeError: If the item is neither a tuple, a list nor a dict, or has no such key.
    """
    if isinstance(item, dict):
        return _key_among(item, name)
    if isinstance(item, tuple | list) and len(item) >= 2:
        return _FIELDS[name][0]
    raise TypeError(
        f"An item of the data set is {type(item).__name__}, expected (image, label, ...) or "
        '{"image": ..., "label": ...}.'
    )


def _key_among(names: Iterable[str], name: str) -> str:
    for key in _FIELDS[name][1]:
        if key in names:
            return key
    raise TypeError(
        f"An item of the data set has the keys {', '.join(map(repr, names))}, and no {name}: "
        f"expected one of {', '.join(map(repr, _FIELDS[name][1]))}."
    )


def field(item: Any, name: str) -> Any:
    """The "image" or the "label" of an item of a data set."""
    return item[field_key(item, name)]


def labels_of(dataset: Any, key: Any = None) -> Labels:
    """The class index of every image of any map-style data set, int64 (N,).

    Looks for a column of labels, or for `labels` or `targets`, through `Subset` and
    `ConcatDataset`; only a data set with none of them is read from end to end.

    Args:
        dataset: The data set.
        key: Where items have their label, if not where `field_key` finds it. If that is an unusual
            place, `labels` and `targets` may be about another one, and are not asked.

    Raises:
        DataError: If the labels are not one integer per image.
    """
    return _labels_at(dataset, np.arange(len(dataset)), key)


def _labels_at(dataset: Any, rows: Indices, key: Any) -> Labels:
    if isinstance(dataset, Subset):
        return _labels_at(dataset.dataset, np.asarray(dataset.indices, np.int64)[rows], key)
    if isinstance(dataset, ConcatDataset):
        labels = np.empty(len(rows), np.int64)
        for p, mask, local in parts_of(dataset, rows):
            labels[mask] = _labels_at(dataset.datasets[p], local, key)
        return labels
    listed = _listed_labels(dataset, key)
    if listed is not None:
        return _class_indices(listed, dataset, len(dataset))[rows]
    items = (dataset[i] for i in rows.tolist())
    read = [field(item, "label") if key is None else item[key] for item in items]
    return _class_indices(read, dataset, len(rows))


def _listed_labels(dataset: Any, key: Any) -> Any:
    """What a data set has a list of, without reading its images; `None` if it has none."""
    position, keys = _FIELDS["label"]
    usual = key in (None, position, *keys)
    # The last name: Food101, Flowers102, DTD and more of torchvision's.
    names = ("labels", "targets", "_labels") if usual else ()
    candidates = chain([_label_column(dataset, key)], (getattr(dataset, n, None) for n in names))
    return next((x for x in candidates if hasattr(x, "__len__") and len(x) == len(dataset)), None)


def _class_indices(found: Any, dataset: Any, count: int) -> Labels:
    labels = (
        np.array([np.asarray(x) for x in found]) if isinstance(found, list) else np.asarray(found)
    )
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"The labels of {type(dataset).__name__} have shape {labels.shape} and dtype "
            f"{labels.dtype}, expected one class index per image, shape ({count},)."
        )
    return labels.astype(np.int64)


def _label_column(dataset: Any, key: Any) -> Any:
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return dataset.tensors[1 if key is None else key].cpu()
    if is_table(dataset):
        name = _key_among(dataset.column_names, "label") if key is None else key
        return dataset.with_format("numpy")[name][:]
    if key in (None, 1) and hasattr(_reader(dataset), "samples"):
        return [label for _, label in dataset.reader.samples]
    return None


def _reader(dataset: Any) -> Any:
    """What a data set of timm reads its files with."""
    return getattr(dataset, "reader", None)


def is_table(dataset: Any) -> bool:
    """Whether it is a data set of the `datasets` library: its columns can be read alone."""
    return hasattr(dataset, "features") and hasattr(dataset, "column_names")


def parts_of(
    dataset: ConcatDataset[Any], indices: Indices
) -> Iterator[tuple[int, NDArray[np.bool_], Indices]]:
    """Where some items of a `ConcatDataset` lie, part by part.

    Yields:
        The number of the part, which of `indices` lie in it, and what these are called there.
    """
    ends = np.asarray(dataset.cumulative_sizes)
    indices = np.where(indices < 0, indices + ends[-1], indices)
    parts = np.searchsorted(ends, indices, side="right")
    for p in np.unique(parts).tolist():
        yield p, parts == p, indices[parts == p] - (ends[p - 1] if p else 0)


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets below `Subset` and `ConcatDataset`; a data set that is neither is its own."""
    if isinstance(dataset, Subset):
        yield from leaves(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from leaves(part)
    else:
        yield dataset


def classes_of(dataset: Any, key: Any = None) -> tuple[str, ...] | None:
    """The class names of any data set, through `Subset` and `ConcatDataset`; `None` if unknown.

    Args:
        dataset: The data set.
        key: Where items have their label, if not where `field_key` finds it.

    Raises:
        DataError: If the parts of a `ConcatDataset` have different classes or count them in another
            order, or if `classes` and `class_to_idx` of a data set disagree.
    """
    if isinstance(dataset, Subset):
        return classes_of(dataset.dataset, key)
    if isinstance(dataset, ConcatDataset):
        parts = dataset.datasets
        found = {names for part in parts if (names := classes_of(part, key)) is not None}
        if len(found) > 1:
            first, second = sorted(found)[:2]
            raise MismatchError(
                f"The parts of the ConcatDataset have different classes: {', '.join(first)} and "
                f"{', '.join(second)}. Their labels must mean the same."
            )
        return found.pop() if found else None
    if is_table(dataset):
        name = _key_among(dataset.column_names, "label") if key is None else key
        names = getattr(dataset.features[name], "names", None)
    elif isinstance(index := getattr(_reader(dataset), "class_to_idx", None), dict):
        names = tuple(sorted(index, key=index.__getitem__))
    else:
        names = getattr(dataset, "classes", None)
        index = getattr(dataset, "class_to_idx", None)
        if names is None and isinstance(index, dict):
            names = tuple(sorted(index, key=index.__getitem__))
        elif names is not None and isinstance(index, dict):
            _check_agree(dataset, names, index)
    return None if names is None else tuple(str(name) for name in names)


def _check_agree(dataset: Any, names: Sequence[Any], index: dict[Any, int]) -> None:
    """Labels follow one of the two, and nobody knows which if someone changed one of them."""
    for c, name in enumerate(names):
        if index.get(name, c) != c:
            raise DataError(
                f"`classes` and `class_to_idx` of {type(dataset).__name__} disagree: {name!r} is "
                f"class {c} in one and {index[name]} in the other. Set both to what its labels "
                "mean."
            )


def without_transforms(dataset: Any) -> tuple[Any, Transform | None, Transform | None]:
    """Takes `transform` and `target_transform` off a data set, also below its wrappers.

    Returns:
        A shallow copy that gives raw items (or `dataset` itself if it applies neither), and the two
        transforms that it does not apply any more.

    Raises:
        ValueError: If they cannot be taken off: joint `transforms` of image and label, those of
            whole batches, different ones in the parts of a `ConcatDataset`, or transforms on two
            levels.
    """
    if is_table(dataset) and dataset.format["type"] == "custom":
        raise ValueError(
            "The data set has a transform of whole batches (`with_transform`), which cannot be "
            "taken over here: `synthaug.huggingface.MixedDataset` does. Or pass "
            "`real.with_format(None)`, and a `transform` of one image."
        )
    own = {n: getattr(dataset, "__dict__", {}).get(n) for n in ("transform", "target_transform")}
    own = {name: value for name, value in own.items() if callable(value)}
    raw, transform, target_transform = _without_transforms_below(dataset)
    if not own:
        if getattr(dataset, "transforms", None) is not None:
            raise ValueError(
                f"{type(dataset).__name__} has joint `transforms` of image and label, which cannot "
                "be applied to a synthetic image alone. Give it `transform` and "
                "`target_transform`."
            )
        return raw, transform, target_transform
    if transform is not None or target_transform is not None:
        raise ValueError(
            f"Both {type(dataset).__name__} and the data set inside it have a transform. Make it "
            "one, and pass it as `transform=` to the outer one."
        )
    raw = copy.copy(dataset)
    for name in own:
        setattr(raw, name, _same)  # not None: some call theirs without asking whether there is one
    if getattr(raw, "transforms", None) is not None:  # torchvision's pair of the two
        raw.transforms = _same_pair
    return raw, own.get("transform"), own.get("target_transform")


def _without_transforms_below(dataset: Any) -> tuple[Any, Transform | None, Transform | None]:
    if isinstance(dataset, Subset):
        below, transform, target_transform = without_transforms(dataset.dataset)
        raw: Any = dataset
        if below is not dataset.dataset:
            raw = copy.copy(dataset)
            raw.dataset = below
        return raw, transform, target_transform
    if isinstance(dataset, ConcatDataset):
        parts = [without_transforms(part) for part in dataset.datasets]
        _, transform, target_transform = parts[0]
        if any(p[1] is not transform or p[2] is not target_transform for p in parts):
            raise ValueError(
                "The parts of the ConcatDataset have different transforms. Give all of them the "
                "same object, or take them off and pass `transform=` to the outer data set."
            )
        raw = dataset
        if transform is not None or target_transform is not None:
            raw = copy.copy(dataset)
            raw.datasets = [p[0] for p in parts]
        return raw, transform, target_transform
    return dataset, None, None


def _same(value: Any) -> Any:
    return value


def _same_pair(image: Any, target: Any) -> tuple[Any, Any]:
    return image, target

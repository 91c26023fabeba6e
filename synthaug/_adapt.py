"""Images and labels of any common type to our pixels, and back to the type that they came in.

Real and synthetic images must leave a data set in one type, or the first batch that mixes them
fails in `default_collate`. So each foreign type is converted in one place, here:

    pixels_of(image) -> uint8 (C, H, W)        # what the cache, the digests and the audit speak
    like(pixels, example) -> an image of the type of `example`
    label_like(label, example) -> a label of the type of `example`
    probabilities_like(values, example) -> class probabilities of the type of `example`

Float images are in [0, 1], as torchvision has them. Our model space [-1, 1] never comes here.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from synthaug._errors import DataError, DataMismatchError
from synthaug._pixels import to_pil
from synthaug._types import Indices, Labels

Transform = Callable[[Any], Any]

_MODES = {"L": 1, "RGB": 3}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SLACK = 1e-4
"""Resizing and bfloat16 overshoot [0, 1] a little; normalised images do so by far more."""


def describe(image: Any) -> str:
    """A few words on the type of an image, for messages."""
    if isinstance(image, Image.Image):
        return f"a PIL image of mode {image.mode}, {image.width}x{image.height}"
    if isinstance(image, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(image, Tensor) else "an array"
        return f"{kind} of {image.dtype} with shape {tuple(image.shape)}"
    return f"{type(image).__module__}.{type(image).__qualname__}"


def pixels_of(image: Any) -> Tensor:
    """One image of any common type as uint8 (C, H, W), C 1 or 3.

    Args:
        image: A PIL image of mode L or RGB; a tensor (C, H, W), also a `tv_tensors.Image`, uint8 or
            floating point in [0, 1]; an array (H, W) or (H, W, C), uint8 or floating point in
            [0, 1]. Float images are rounded to the nearest of the 256 levels.

    Returns:
        A tensor on the CPU. It may share memory with `image`: do not write to it.

    Raises:
        TypeError: For any other type or dtype.
        ValueError: For another PIL mode, another shape, or values outside [0, 1].
    """
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise ValueError(
                f"Got {describe(image)}, expected mode L or RGB. Convert it first, "
                'for example with `image.convert("RGB")`.'
            )
        array = np.array(image)  # a copy: torch warns about memory that it must not write to
        return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
            raise ValueError(
                f"Got {describe(image)}, expected (H, W) or (H, W, C) with C 1 or 3. "
                "Arrays have their channels last, tensors have them first."
            )
        hwc = image[..., None] if image.ndim == 2 else image
        return _levels(
            torch.from_numpy(np.require(hwc.transpose(2, 0, 1), requirements=["C", "W"])), image
        )
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(
                f"Got {describe(image)}, expected (C, H, W) with C 1 or 3. "
                "Tensors have their channels first, arrays have them last."
            )
        return _levels(image.detach().as_subclass(Tensor).cpu(), image)
    raise TypeError(f"Got {describe(image)}, expected a PIL image, a tensor or a numpy array.")


def _levels(chw: Tensor, image: Any) -> Tensor:
    if chw.dtype == torch.uint8:
        return chw
    if not chw.is_floating_point():
        raise TypeError(f"Got {describe(image)}, expected uint8, or floating point in [0, 1].")
    low, high = (float(v) for v in chw.aminmax()) if chw.numel() else (0.0, 0.0)
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # a NaN fails this too
        raise ValueError(
            f"Got {describe(image)} with values from {low:.4g} to {high:.4g}, expected [0, 1]. "
            "Normalise after the images of both kinds came together: take `Normalize` off this "
            "data set, and give it where the images are used."
        )
    return (chw.float() * 255).round().clamp(0, 255).to(torch.uint8)


def like(pixels: Tensor, example: Any) -> Any:
    """One image, uint8 (C, H, W), in the type of `example`.

    Args:
        pixels: uint8 (C, H, W).
        example: An image that `pixels_of` accepts. Its type, PIL mode, dtype, device and axes are
            followed, its size is not.

    Raises:
        TypeError: If `example` has a type that `pixels_of` refuses.
        ValueError: If the numbers of channels differ.
    """
    channels = pixels.shape[0]
    if isinstance(example, Image.Image):
        if _MODES.get(example.mode) != channels:
            raise ValueError(f"An image of {channels} channels cannot be like {describe(example)}.")
        return to_pil(pixels)
    if isinstance(example, np.ndarray):
        if (1 if example.ndim == 2 else example.shape[2]) != channels:
            raise ValueError(f"An image of {channels} channels cannot be like {describe(example)}.")
        hwc = np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))  # CHW => HWC
        array = hwc[:, :, 0] if example.ndim == 2 else hwc
        return (
            array
            if example.dtype == np.uint8
            else array.astype(example.dtype) / example.dtype.type(255)
        )
    if isinstance(example, Tensor):
        if example.shape[0] != channels:
            raise ValueError(f"An image of {channels} channels cannot be like {describe(example)}.")
        image = pixels.clone() if example.dtype == torch.uint8 else pixels.to(example.dtype) / 255
        image = image.to(example.device)
        if type(example) is Tensor:
            return image
        from torchvision import tv_tensors

        return tv_tensors.wrap(image, like=example)
    raise TypeError(f"An image cannot be like {describe(example)}.")


def label_like(label: int, example: Any) -> Any:
    """A class index in the type of `example`: int, numpy integer, or integer tensor without axes.

    Raises:
        TypeError: If `example` is none of these.
    """
    if isinstance(example, bool | np.bool_):
        raise TypeError(f"Labels must be class indices, got {example!r}.")
    if isinstance(example, int):
        return int(label)
    if isinstance(example, np.integer):
        return type(example)(label)
    if isinstance(example, np.ndarray) and example.ndim == 0 and example.dtype.kind in "iu":
        return np.asarray(label, example.dtype)
    if isinstance(example, Tensor) and example.ndim == 0 and example.dtype in _INTEGERS:
        return torch.tensor(label, dtype=example.dtype, device=example.device)
    raise TypeError(
        f"Labels must be class indices (int, numpy integer or integer tensor without axes), "
        f"got {example!r}."
    )


def is_probabilities(label: Any) -> bool:
    """Whether a label is a vector of class probabilities: a tensor or an array, float (K,)."""
    if isinstance(label, Tensor):
        return label.ndim == 1 and label.is_floating_point()
    return isinstance(label, np.ndarray) and label.ndim == 1 and label.dtype.kind == "f"


def probabilities_like(values: NDArray[np.floating[Any]], example: Any) -> Any:
    """Class probabilities (K,) in the type of `example`, for which `is_probabilities` holds."""
    if isinstance(example, Tensor):
        return torch.tensor(values, dtype=example.dtype, device=example.device)
    return np.array(values, example.dtype)


# Items and data sets


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
            raise DataMismatchError(
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

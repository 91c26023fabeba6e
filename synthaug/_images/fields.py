"""The adapter: how an item of any data set is taken apart and put together.

Nothing else here knows whether items are pairs, tuples with extras or dicts. What images and labels
are, `synthaug._images.convert` knows.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol, final

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from synthaug._images.convert import is_probabilities
from synthaug._images.foreign import field_key, labels_of
from synthaug._types import Labels
from synthaug.errors import DataError


class Adapter(Protocol):
    """What a class of your own needs, for items of another structure."""

    def get(self, item: Any) -> tuple[Any, Any]:
        """The image and the label of an item of the data set."""
        ...

    def put(self, item: Any, image: Any, label: Any) -> Any:
        """A copy of an item with another image and label; everything else stays."""
        ...


@final
@dataclass(frozen=True)
class Fields:
    """Where an item of a data set has its image and its label: keys of a dict, or positions.

        Fields("img", "fine_label")        # {"img": ..., "fine_label": ..., "coarse_label": ...}
        Fields(0, 2)                       # (image, path, label)

    All other fields of a replaced item stay those of the real one. For items of another structure
    write a class with the same two methods:

        class Nested:
            def get(self, item):
                return item["inputs"]["pixels"], item["y"]

            def put(self, item, image, label):
                return {**item, "inputs": {**item["inputs"], "pixels": image}, "y": label}
    """

    image: str | int = 0
    """Key or position of the image."""
    label: str | int = 1
    """Key or position of the label."""

    def __post_init__(self) -> None:
        for where in (self.image, self.label):
            if isinstance(where, int) and where < 0:
                raise ValueError(f"Positions are counted from 0, got {where} in {self}.")

    @classmethod
    def of(cls, item: Any) -> "Fields":
        """The fields of (image, label, ...), or of a dict with "image" (or "img", "pixel_values",
        "images") and "label" (or "labels", "target", "targets").

        Raises:
            TypeError: For any other item.
        """
        try:
            return cls(field_key(item, "image"), field_key(item, "label"))
        except TypeError as error:
            where = "`items=mixing.ItemFormat(fields=mixing.Fields(IMAGE, LABEL))`"
            raise TypeError(f"{error} Or say where they are: {where}.") from None

    def get(self, item: Any) -> tuple[Any, Any]:
        """The image and the label of an item."""
        try:
            return item[self.image], item[self.label]
        except (LookupError, TypeError):
            found = list(item) if isinstance(item, dict) else type(item).__name__
            raise TypeError(f"{self} do not fit an item of the data set: {found}.") from None

    def put(self, item: Any, image: Any, label: Any) -> Any:
        """A copy of an item, of the same type, with another image and label."""
        changed = {self.image: image, self.label: label}
        if isinstance(item, dict):
            copied = copy.copy(item)
            copied.update(changed)
            return copied
        values = [changed.get(position, value) for position, value in enumerate(item)]
        return item._make(values) if hasattr(item, "_make") else type(item)(values)  # namedtuple


@final
class ArrayDataset(Dataset[Any]):
    """A pair of arrays as a map-style data set."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.targets = images, np.asarray(labels)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        label = self.targets[index]
        return self.images[index], label if label.ndim else label.item()


def as_dataset(real: Any) -> Any:
    """A pair (images, labels) of arrays or tensors as a data set; others as they are.

    Raises:
        TypeError: For what is not a map-style data set.
    """
    if isinstance(real, str | PathLike):
        raise TypeError(
            f"`real` is the text {str(real)!r}, expected a data set: `synthaug.load_dataset(...)`."
        )
    if isinstance(real, IterableDataset | Mapping) or not (
        hasattr(real, "__len__") and hasattr(real, "__getitem__")
    ):
        raise TypeError(
            f"`real` is a {type(real).__name__}, which has no length or no `real[0]`; expected a "
            "map-style data set. Choose a split of several, read the items of a stream into a "
            "list, and give a data set and not its loader."
        )
    if not isinstance(real, tuple):
        return real
    if len(real) != 2 or not all(isinstance(part, np.ndarray | Tensor) for part in real):
        raise TypeError(
            f"`real` is a tuple of {', '.join(type(part).__name__ for part in real)}, expected a "
            "data set, or a pair of arrays (images, labels)."
        )
    images, labels = real
    if len(images) != len(labels):
        raise ValueError(f"`real` has {len(images)} images and {len(labels)} labels.")
    if isinstance(images, Tensor) and isinstance(labels, Tensor):
        return TensorDataset(images, labels)
    return ArrayDataset(images, labels)


def class_indices(raw: Any, fields: Adapter, example: Any) -> Labels:
    """The class of every item, int64 (N,); of class probabilities the most probable one.

    Raises:
        DataError: For vectors that are no class probabilities, such as those of several labels.
    """
    if is_probabilities(fields.get(example)[1]):
        vectors = np.stack([np.asarray(fields.get(raw[i])[1]) for i in range(len(raw))])
        wrong = np.flatnonzero((vectors < 0).any(1) | (np.abs(vectors.sum(1) - 1) > 0.01))
        if len(wrong):
            raise DataError(
                f"The label of item {wrong[0]} of `real` is {vectors[wrong[0]]}, and class "
                "probabilities are not negative, and 1 in sum. Images of several classes at once "
                "cannot be mixed."
            )
        return vectors.argmax(axis=1)
    if not isinstance(fields, Fields):
        return np.array([int(fields.get(raw[i])[1]) for i in range(len(raw))], np.int64)
    return labels_of(raw, fields.label)


@final
class JustImages(Dataset[Any]):
    """The images of a data set with items of any structure, as (image, None)."""

    def __init__(self, raw: Any, fields: Adapter) -> None:
        self._raw, self._fields = raw, fields

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: int) -> tuple[Any, None]:
        return self._fields.get(self._raw[index])[0], None

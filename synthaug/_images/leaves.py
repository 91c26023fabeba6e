"""Data sets that hold images themselves, of any library: their labels, class names and pixels.

Whatever is asked of a data set that we did not make is asked here and in `synthaug._images.source`:
torchvision's, those of timm and of the `datasets` library, lists, tensors, and our own.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from synthaug._images.fields import USUAL_LABELS, field, key_among
from synthaug._images.stores import Indexed, gather
from synthaug._types import JSON, Indices, Labels, Pixels
from synthaug.errors import DataError

_TRANSFORMS = ("transform", "target_transform", "transforms")


class Leaf:
    """A data set that is neither a `Subset` nor a `ConcatDataset`.

    This class knows torchvision's names, which our own data sets and many others share; subclasses
    know those of other libraries.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    # Labels and classes

    def labels(self, rows: Indices, key: Any = None) -> Labels:
        """The class index of some images, int64 (n,).

        Only a data set that lists its labels nowhere has these items read.

        Args:
            rows: Which images.
            key: Where items have their label, if not in a usual place. Lists of labels may then be
                about another field, and are not asked.

        Raises:
            DataError: If the labels are not one integer per image.
        """
        listed = self._label_column(key)
        if listed is not None:
            return self._class_indices(listed, len(self.dataset))[rows]
        items = (self.dataset[i] for i in rows.tolist())
        read = [field(item, "label") if key is None else item[key] for item in items]
        return self._class_indices(read, len(rows))

    def _label_column(self, key: Any) -> Any:
        """The labels that the data set lists without reading its images; `None` if it does not."""
        # The last name: Food101, Flowers102, DTD and more of torchvision's.
        for name in ("labels", "targets", "_labels") if key in (None, *USUAL_LABELS) else ():
            found: Any = getattr(self.dataset, name, None)
            if hasattr(found, "__len__") and len(found) == len(self.dataset):
                return found
        return None

    def _class_indices(self, values: Any, count: int) -> Labels:
        if isinstance(values, list):
            values = np.array([np.asarray(x) for x in values])
        labels = np.asarray(values)
        if labels.shape != (count,) or labels.dtype.kind not in "iu":
            raise DataError(
                f"The labels of {type(self.dataset).__name__} have shape {labels.shape} and dtype "
                f"{labels.dtype}, expected one class index per image, shape ({count},)."
            )
        return labels.astype(np.int64)

    def classes(self, key: Any = None) -> tuple[str, ...] | None:
        """The class names; `None` if the data set does not know them.

        Raises:
            DataError: If its `classes` and `class_to_idx` disagree.
        """
        names = getattr(self.dataset, "classes", None)
        index = getattr(self.dataset, "class_to_idx", None)
        if not isinstance(index, dict):
            return _texts(names)
        for c, name in enumerate(() if names is None else names):
            if index.get(name, c) != c:  # labels follow one of the two, and nobody knows which
                raise DataError(
                    f"`classes` and `class_to_idx` of {type(self.dataset).__name__} disagree: "
                    f"{name!r} is class {c} in one and {index[name]} in the other. Set both to "
                    "what its labels mean."
                )
        return _texts(sorted(index, key=index.__getitem__) if names is None else names)

    # Images

    @property
    def reads(self) -> bool:
        """Whether it has a method `read`, which gives pixels without transforms."""
        return hasattr(self.dataset, "read")

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(C, H, W) of its images, if it says so."""
        shape = getattr(self.dataset, "image_shape", None)
        return None if shape is None else tuple(shape)

    def pixels(self, rows: Indices, progress: bool | None) -> Pixels:
        """Some images, uint8 (n, C, H, W), without transforms if it `reads`."""
        if self.reads:
            pixels: Pixels = self.dataset.read(rows)
            return pixels
        return gather(Indexed(self.dataset, int(rows[0])), rows, progress, "Reading images")

    @property
    def done(self) -> NDArray[np.bool_] | None:
        """Which images can be read, bool (N,), of a cache or another data set that says so."""
        done = getattr(self.dataset, "done", None)
        return None if done is None else np.asarray(done, bool)

    @property
    def has_transforms(self) -> bool:
        """Whether it applies a transform to its items."""
        return any(getattr(self.dataset, name, None) is not None for name in _TRANSFORMS)

    @property
    def is_plain(self) -> bool:
        """Whether an item is always the same image."""
        from torchvision.datasets import VisionDataset

        return (
            (self.reads or isinstance(self.dataset, TensorDataset | VisionDataset))
            and not self.has_epochs
            and not self.has_transforms
        )

    # Mixtures, caches, and data sets with epochs

    @property
    def has_epochs(self) -> bool:
        """Whether it has a method `set_epoch`."""
        return hasattr(self.dataset, "set_epoch")

    @property
    def epoch(self) -> int | None:
        """The epoch that it is in, if it says so."""
        return getattr(self.dataset, "epoch", None)

    @property
    def has_fixed_length(self) -> bool:
        """Whether every epoch has as many items."""
        return bool(getattr(self.dataset, "has_fixed_length", True))

    @property
    def has_soft_labels(self) -> bool:
        """Whether labels are vectors of class probabilities."""
        return bool(getattr(self.dataset, "has_soft_labels", False))

    @property
    def mixture(self) -> tuple[Any, Any] | None:
        """The real and the synthetic data set of a mixture."""
        if hasattr(self.dataset, "real") and hasattr(self.dataset, "synthetic"):
            return self.dataset.real, self.dataset.synthetic
        return None

    @property
    def recipe(self) -> dict[str, JSON] | None:
        """What decides, besides the images and the epoch, which synthetic images a mixture has."""
        if hasattr(self.dataset, "synthetic_rows") and hasattr(self.dataset, "recipe"):
            recipe: dict[str, JSON] = self.dataset.recipe()
            return recipe
        return None

    def synthetic_rows(self, rows: Indices) -> Indices:
        """What tells the synthetic images among some items apart, -1 for the real ones.

        A mixture says it itself, for its epoch. Of others, a cache is synthetic: it alone has a
        plan.
        """
        if hasattr(self.dataset, "synthetic_rows"):
            synthetic: Indices = self.dataset.synthetic_rows(rows)
            return synthetic
        return rows if self.plan_digest is not None else np.full(len(rows), -1, np.int64)

    @property
    def plan_digest(self) -> str | None:
        """The digest of the plan of a cache."""
        return getattr(self.dataset, "plan_digest", None)

    @property
    def served(self) -> str | None:
        """How many synthetic images it may show, and what an audit said of them.

        A mixture knows. Of a cache alone nobody said which of its images may be served.
        """
        if hasattr(self.dataset, "served"):
            return str(self.dataset.served)
        if self.plan_digest is not None:
            return f"{int(np.sum(self.dataset.done)):,} images, no audit report"
        return None


@final
class TensorLeaf(Leaf):
    """A `TensorDataset`: its second tensor holds the labels."""

    def _label_column(self, key: Any) -> Any:
        if len(self.dataset.tensors) > 1:
            labels: torch.Tensor = self.dataset.tensors[1 if key is None else key]
            return labels.cpu()
        return super()._label_column(key)


@final
class TableLeaf(Leaf):
    """A table of the `datasets` library: its columns can be read alone."""

    def _label_column(self, key: Any) -> Any:
        return self.dataset.with_format("numpy")[self._column(key)][:]

    def classes(self, key: Any = None) -> tuple[str, ...] | None:
        """The names of the column's `ClassLabel`."""
        return _texts(getattr(self.dataset.features[self._column(key)], "names", None))

    def _column(self, key: Any) -> Any:
        return key_among(self.dataset.column_names, "label") if key is None else key


@final
class TimmLeaf(Leaf):
    """A data set of timm: its `reader` knows its files."""

    def _label_column(self, key: Any) -> Any:
        if key in (None, 1) and hasattr(self.dataset.reader, "samples"):
            return [label for _, label in self.dataset.reader.samples]
        return super()._label_column(key)

    def classes(self, key: Any = None) -> tuple[str, ...] | None:
        """The names of the reader's `class_to_idx`."""
        index = getattr(self.dataset.reader, "class_to_idx", None)
        if isinstance(index, dict):
            return tuple(map(str, sorted(index, key=index.__getitem__)))
        return super().classes(key)


@final
class PixelLeaf(Leaf):
    """Pixels without labels, uint8 (n, C, H, W)."""

    reads = True

    def labels(self, rows: Indices, key: Any = None) -> Labels:
        """-1 for every image."""
        del key
        return np.full(len(rows), -1, np.int64)

    def pixels(self, rows: Indices, progress: bool | None) -> Pixels:
        """Some images, uint8 (n, C, H, W)."""
        del progress
        return torch.as_tensor(self.dataset)[torch.from_numpy(rows)]


def leaf_of(dataset: Any) -> Leaf:
    """The kind of a data set that is neither a `Subset` nor a `ConcatDataset`."""
    if isinstance(dataset, np.ndarray | torch.Tensor):
        return PixelLeaf(dataset)
    if isinstance(dataset, TensorDataset):
        return TensorLeaf(dataset)
    if is_table(dataset):
        return TableLeaf(dataset)
    return TimmLeaf(dataset) if hasattr(dataset, "reader") else Leaf(dataset)


def is_table(dataset: Any) -> bool:
    """Whether it is a data set of the `datasets` library."""
    return all(hasattr(dataset, name) for name in ("features", "column_names", "with_format"))


def _texts(names: Sequence[Any] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(map(str, names))

"""Real images that rows start from: checked when they are given, and again when they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthaug._pixels import digest
from synthaug._plan import Plan
from synthaug._types import Labels, Pixels
from synthaug.errors import MismatchError


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RealImages:
    """A labelled set of images, and what a plan needs to know of it."""

    images: Any
    """Has `read(indices)`: uint8 (n, C, H, W)."""
    labels: Labels
    num_classes: int

    @classmethod
    def checked(
        cls,
        real: Any,
        labels: ArrayLike | None,
        *,
        classes: Sequence[str],
        image_shape: tuple[int, int, int],
    ) -> "RealImages":
        """Real images that fit a model.

        Args:
            real: Has `read(indices)`, and `targets` unless `labels` are given.
            labels: Class indices int (n,), in the order of `classes`.
            classes: The model's.
            image_shape: The model's (C, H, W).

        Raises:
            DataError: For images of another shape, or other or differently ordered classes.
            ValueError: For labels beyond the classes, or not one for every image.
        """
        shape = tuple(getattr(real, "image_shape", image_shape))
        if shape != image_shape:
            raise MismatchError(
                f"The real images have shape {shape}, the model draws {image_shape}. Load them "
                f"with `image_size={image_shape[1]}` and `channels={image_shape[0]}`."
            )
        names = tuple(map(str, getattr(real, "classes", classes)))
        if labels is None and names != tuple(classes):
            raise MismatchError(
                f"The real images have the classes {', '.join(names)}, the model "
                f"{', '.join(classes)}. Load them with the model's `classes`, in its order."
            )
        found = np.asarray(real.targets if labels is None else labels, np.int64)
        if hasattr(real, "__len__") and len(found) != len(real):
            raise ValueError(f"Got {len(found)} `labels` for {len(real)} real images.")
        if len(found) and not (found.min() >= 0 and found.max() < len(classes)):
            raise ValueError(
                f"`labels` must be in [0, {len(classes) - 1}], the model's classes; got "
                f"{found.min()} to {found.max()}."
            )
        return cls(images=real, labels=found, num_classes=len(classes))

    def by_class(self) -> list[NDArray[np.int64]]:
        """The indices of each class's images."""
        return [np.flatnonzero(self.labels == c) for c in range(self.num_classes)]

    def keys(self) -> NDArray[np.uint64]:
        """Content digest of every image, uint64 (n,)."""
        keys = np.zeros(len(self.labels), np.uint64)
        for start in range(0, len(keys), 1024):
            block = np.arange(start, min(start + 1024, len(keys)))
            keys[block] = [digest(image) for image in self.images.read(block)]
        return keys

    def read(self, rows: Plan) -> Pixels:
        """The images that rows start from, uint8 (n, C, H, W).

        Raises:
            DataError: If one is not the image that the plan was made with.
        """
        pixels: Pixels = self.images.read(rows["source"])
        for i, image in enumerate(pixels):
            if digest(image) != int(rows["source_key"][i]):
                raise MismatchError(
                    f"Real image {rows['source'][i]} is not the one that the plan was made with. "
                    "Give the same data set in the same order, or make a new plan."
                )
        return pixels

"""A synthesizer without weights, for testing a pipeline before there is a model."""

import hashlib
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from synthaug._images.leaves import numbered_classes
from synthaug._pixels import to_images
from synthaug._plan import Plan
from synthaug._support.names import class_names
from synthaug._support.rows import rows_by_class, whole_numbers
from synthaug._types import JSON, Images, ImageShape, Pixels
from synthaug.synthesizers._base import AbstractSynthesizer


@final
class Constant(AbstractSynthesizer):
    """Returns given images: row after row of a class gets that class's images in turn.

    Args:
        pixels: The images, uint8 (n, C, H, W).
        labels: Their class indices, int (n,).
        classes: Names of the classes; by default "0", "1", ...

    Raises:
        ValueError: If the lengths differ, or a class has no image.
    """

    def __init__(
        self, pixels: Pixels, labels: ArrayLike, *, classes: Sequence[str] | None = None
    ) -> None:
        label = whole_numbers(labels, "labels")
        if len(pixels) != len(label) or not len(label):
            raise ValueError(
                f"`pixels` and `labels` must be of equal length and not empty; got {len(pixels)} "
                f"and {len(label)}."
            )
        self.classes = (
            numbered_classes(label, "`labels`") if classes is None else class_names(classes)
        )
        self.pixels = pixels
        self._by_class = rows_by_class(np.arange(len(label)), label, len(self.classes))
        empty = [
            name for name, rows in zip(self.classes, self._by_class, strict=True) if not len(rows)
        ]
        if empty:
            raise ValueError(f"`labels` holds no image of class {empty[0]!r}.")

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W)."""
        c, h, w = self.pixels.shape[1:]
        return c, h, w

    def draw(self, rows: Plan) -> Images:
        """The class's images in turn, float32 (n, C, H, W) in [-1, 1].

        Raises:
            ValueError: If the plan is about other classes.
        """
        self.check_classes(rows)
        chosen = [
            self._by_class[label][variant % len(self._by_class[label])]
            for label, variant in zip(rows["label"], rows["variant"], strict=True)
        ]
        return to_images(self.pixels[np.array(chosen, np.int64)])

    def recipe(self) -> dict[str, JSON]:
        """The digest of the images stands in for weights."""
        digest = hashlib.blake2b(self.pixels.numpy().tobytes(), digest_size=16)
        for rows in self._by_class:
            digest.update(rows.tobytes() + b"|")
        return {
            "synthesizer": "Constant",
            "settings": {},
            "weights": {"pixels": digest.hexdigest()},
        }

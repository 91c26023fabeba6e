"""Real images that rows start from: checked when they are given, and again when they are read."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from synthaug._images.source import ImageSource
from synthaug._pixels import digest
from synthaug._plan import Plan
from synthaug._types import ImageShape, Pixels
from synthaug.errors import MismatchError


def fitting_images(
    real: Any, labels: ArrayLike | None = None, *, classes: tuple[str, ...], image_shape: ImageShape
) -> ImageSource:
    """Real images that fit a model.

    Args:
        real: Whatever `ImageSource.open` opens.
        labels: Class indices int (n,), in the order of `classes`, in place of those of `real`.
        classes: The model's.
        image_shape: The model's (C, H, W).

    Raises:
        MismatchError: For images of another shape, or other or differently ordered classes.
        ValueError: For labels beyond the classes, or not one for every image.
    """
    source = ImageSource.open(real, "`real`")
    check_shape(source, image_shape, "the model draws")
    if labels is not None:
        source = source.relabeled(labels)
    elif source.classes not in (None, classes):
        raise MismatchError(
            f"The real images have the classes {', '.join(source.classes or ())}, the model "
            f"{', '.join(classes)}. Load them with the model's `classes`, in its order."
        )
    if len(source) and not (source.labels.min() >= 0 and source.labels.max() < len(classes)):
        raise ValueError(
            f"`labels` must be in [0, {len(classes) - 1}], the model's classes; got "
            f"{source.labels.min()} to {source.labels.max()}."
        )
    return source


def check_shape(source: ImageSource, shape: ImageShape, drawn: str, also: str = "") -> None:
    """Refuses real images of another shape than a model's.

    Args:
        source: The real images.
        shape: The model's (C, H, W).
        drawn: Name of that shape, such as "the model draws".
        also: Another remedy than to load them otherwise.

    Raises:
        MismatchError: Naming both shapes.
    """
    if source.image_shape != shape:
        raise MismatchError(
            f"The real images have shape {source.image_shape}, {drawn} {shape}. Load them with "
            f"`image_size={shape[1]}` and `channels={shape[0]}`{also}."
        )


def read_sources(source: ImageSource | None, rows: Plan) -> Pixels:
    """The images that rows start from, uint8 (n, C, H, W); a ValueError without real images, a
    MismatchError if one is not the image that the plan was made with."""
    if source is None:
        raise ValueError(
            "The plan starts from real images, but this synthesizer has none. Call "
            "`with_sources(real)` first."
        )
    pixels = source.pixels(rows["source"])
    keys = np.array([digest(image) for image in pixels], np.uint64)
    wrong = np.flatnonzero(keys != rows["source_key"])
    if len(wrong):
        raise MismatchError(
            f"Real image {rows['source'][wrong[0]]} is not the one that the plan was made with. "
            "Give the same data set in the same order, or make a new plan."
        )
    return pixels

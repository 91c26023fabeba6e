"""Finds annotations of places in an image, which would be wrong beside another image."""

from collections.abc import Iterator
from types import NoneType
from typing import Any

import numpy as np
from torch import Tensor

from synthaug._images.convert import pixels_of, size_of

_NAMES = frozenset(
    (
        *("bbox", "bboxes", "boxes", "mask", "masks", "segmentation", "segmentation_mask"),
        *("semantic_mask", "instance_mask", "keypoint", "keypoints", "key_points", "landmarks"),
        *("polygons", "polygon", "contours", "rects", "box", "objects", "depth", "flow"),
        *("joints", "pose", "heatmaps", "segm", "segmentations", "seg_map", "annotations"),
    )
)
"""Usual names of boxes, masks, key points and the like."""


def annotations_of(item: Any, image: Any = None, label: Any = None) -> list[str]:
    """Returns the annotations of places in an item's image: boxes, masks, key points, depth.

    They are known by the names of dicts, by the classes of `tv_tensors`, by having the height and
    the width of the image, and by the shape of boxes, floating point (k, 4).

    Args:
        item: An item, or a whole batch of them.
        image: The image in it; `None` to go by names and classes alone.
        label: The label in it, which is not looked at.

    Returns:
        Names or positions, for messages.
    """
    size = None if image is None else tuple(pixels_of(image).shape[1:])
    return list(dict.fromkeys(_annotations(item, (image, label), size, "item")))


def _annotations(
    value: Any, known: tuple[Any, Any], size: tuple[int, ...] | None, name: str
) -> Iterator[str]:
    if any(value is part for part in known):
        return
    if isinstance(value, dict):
        for key, part in value.items():
            if str(key).lower() in _NAMES and not isinstance(part, int | float | str | NoneType):
                yield repr(key)
            else:
                yield from _annotations(part, known, size, repr(key))
    elif isinstance(value, tuple | list):
        for position, part in enumerate(value):
            yield from _annotations(part, known, size, f"position {position}")
    elif (kind := annotation_class(value)) is not None:
        yield f"{name}: a {kind}"
    elif size is not None and (size_of(value) == size or has_shape_of_boxes(value)):
        yield name


def has_shape_of_boxes(value: Any) -> bool:
    """Whether a tensor or an array is floating point (k, 4) with k >= 1, as boxes without a name
    are. So are the probabilities of 4 classes of k images, in a batch."""
    if not isinstance(value, Tensor | np.ndarray) or value.ndim != 2:
        return False
    floating = value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"
    return floating and len(value) > 0 and value.shape[1] == 4


def annotation_class(value: Any) -> str | None:
    """The class of a `tv_tensors` object that is no image; `None` for others."""
    if not isinstance(value, Tensor) or type(value) is Tensor:
        return None
    from torchvision import tv_tensors

    other = isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.Image)
    return type(value).__name__ if other else None

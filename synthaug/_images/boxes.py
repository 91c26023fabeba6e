"""Boxes around objects in real images: from a COCO file or a list, resized as their images were."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from synthaug._images.masks import sizes_of
from synthaug._images.source import ImageSource
from synthaug._printable import shortened
from synthaug._support.reading import parse_json, read_text
from synthaug._types import Doubles, ImageShape, StrPath
from synthaug.errors import DataError, MismatchError

log = logging.getLogger(__name__)

_MOST_BYTES = 2**31
_LEAST = 1.0
"""Pixels that a box must have left, either way, after its image was resized and cut."""


class ObjectBoxes:
    """Boxes of each image of a data set, in pixels of the images as it gives them."""

    def __init__(self, boxes: list[Doubles], names: dict[int, str]) -> None:
        self._boxes = boxes
        """Left, top, right, bottom, category, and whether it is a crowd: float64 (n, 6) each."""
        self.names = names
        """The names of the categories, by their numbers."""

    @classmethod
    def of(
        cls, given: StrPath | Sequence[Any], images: ImageSource, *, progress: bool | None = None
    ) -> "ObjectBoxes":
        """Reads boxes of images from a COCO file, or checks a list of them.

        Args:
            given: A COCO file, for images that `load_dataset` read from a folder; or for each image
                a dict with `boxes`, (n, 4), left, top, right and bottom in its pixels, and
                `labels`, int (n,), as torchvision's detectors take them.
            images: The images.
            progress: Shows a bar, as `load_dataset` does.

        Raises:
            ValueError: For another number of boxes than of images, or a file for images that were
                not read from files.
            DataError: If the file cannot be read or lacks an image, or boxes are none.
            MismatchError: If an image has another size than the file says.
        """
        if isinstance(given, str | os.PathLike):
            return cls(*_from_coco(os.path.expanduser(os.fspath(given)), images, progress))
        if len(given) != len(images):
            raise ValueError(
                f"`boxes` is for {len(given):,} images, and `real` has {len(images):,}. Give a "
                "dict of boxes and labels for each image, in the same order."
            )
        boxes = [_checked(i, target, images.image_shape) for i, target in enumerate(given)]
        labels = sorted({int(label) for one in boxes for label in one[:, 4]})
        return cls(boxes, {label: str(label) for label in labels})

    def __len__(self) -> int:
        return len(self._boxes)

    def corners(self, index: int) -> Doubles:
        """Left, top, right and bottom of the boxes of an image, float64 (n, 4)."""
        return self._boxes[index][:, :4]

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The boxes of an image as COCO writes them."""
        found = []
        for left, top, right, bottom, category, crowd in self._boxes[index].tolist():
            width, height = right - left, bottom - top
            found.append(
                {
                    "category_id": int(category),
                    "bbox": [round(value, 3) for value in (left, top, width, height)],
                    "area": round(width * height, 3),
                    "iscrowd": int(crowd),
                }
            )
        return found


def _checked(index: int, target: Any, shape: ImageShape) -> Doubles:
    """Boxes of one image of a list."""
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        raise DataError(f"`boxes` {index} is no dict with `boxes` (n, 4) and `labels` (n,).")
    form = getattr(target["boxes"], "format", None)
    if form is not None and form.value != "XYXY":
        raise DataError(f"`boxes` {index} has the format {form.value}. Convert it to XYXY.")
    labels = np.asarray(target["labels"])
    corners = np.asarray(target["boxes"], np.float64)
    corners = corners.reshape(0, 4) if corners.size == 0 else corners
    if corners.shape != (len(labels), 4) or (labels.size and labels.dtype.kind not in "iu"):
        raise DataError(
            f"`boxes` {index} has boxes {corners.shape} and labels {labels.dtype} {labels.shape}, "
            "expected (n, 4) and integers (n,)."
        )
    limits = np.array([shape[2], shape[1]] * 2)
    wrong = (corners < -1) | (corners > limits + 1) | ~np.isfinite(corners)
    wrong[:, 2:] |= corners[:, 2:] < corners[:, :2]
    if wrong.any():
        one = corners[wrong.any(axis=1)][0].tolist()
        raise DataError(
            f"`boxes` {index} has {one}, expected left, top, right and bottom in pixels of an "
            f"image of {shape[2]}x{shape[1]}."
        )
    kinds = np.stack([labels.astype(np.float64), np.zeros(len(labels))], axis=1)
    return np.hstack([corners.clip(0, limits), kinds])


def _from_coco(
    path: str, images: ImageSource, progress: bool | None
) -> tuple[list[Doubles], dict[int, str]]:
    """The boxes of all images, and the names of their categories."""
    files = images.files()
    if files is None:
        raise ValueError(
            f"`boxes` is the file {path!r}, which names the files of images, and `real` was not "
            "read from files by `load_dataset`. Load it so, or give a list of boxes."
        )
    names, listed, boxes = _read_coco(path)
    sizes = sizes_of(files, progress)
    found, seen, cut = [], dict[int, str](), 0
    for (file, row), (width, height) in zip(files, sizes, strict=True):
        image = file.paths[row]
        name = PurePath(os.path.relpath(image, file.folder))
        entry = listed.get(name.as_posix(), listed.get(name.name))
        if entry is None:
            raise DataError(
                f"{path} does not name {image}, neither as {name.as_posix()!r} nor as "
                f"{name.name!r}. An image without boxes is listed, too, under `images`."
            )
        if seen.setdefault(entry[0], image) != image:
            raise DataError(
                f"{path} names one image {name.name!r}, which could be {image} or "
                f"{seen[entry[0]]}. Write the names with their folders."
            )
        if entry[1:] != (width, height):
            raise MismatchError(
                f"{path} says that {image} is {entry[1]}x{entry[2]}, and it is {width}x{height}, "
                "upright. Boxes must be those of this file."
            )
        whole = boxes.get(entry[0], np.empty((0, 6)))
        given = torch.from_numpy(whole[:, :4].clip(0, [width, height] * 2))
        corners = file.conform.boxed(given, (height, width)).numpy()
        left = ((corners[:, 2:] - corners[:, :2]) >= _LEAST).all(axis=1)
        cut += int((~left).sum())
        found.append(np.hstack([corners, whole[:, 4:]])[left])
    if cut:
        log.warning(
            "%s: %s of %s boxes are left out: less than a pixel of each is in the images as they "
            "were resized and cut.",
            *(path, f"{cut:,}", f"{cut + sum(map(len, found)):,}"),
        )
    return found, names


def _read_coco(
    path: str,
) -> tuple[dict[int, str], dict[str, tuple[int, int, int]], dict[int, Doubles]]:
    """Names of categories; number, width and height of images by their names; and boxes by the
    numbers of images, float64 (n, 6)."""
    boxes: dict[int, list[ArrayLike]] = {}
    try:
        record = parse_json(read_text(path, _MOST_BYTES))
        names = {int(one["id"]): str(one["name"]) for one in record["categories"]}
        listed = {
            str(one["file_name"]): (int(one["id"]), int(one["width"]), int(one["height"]))
            for one in record["images"]
        }
        for one in record["annotations"]:
            left, top, width, height = map(float, one["bbox"])
            category, crowd = int(one["category_id"]), int(one.get("iscrowd", 0))
            names[category]  # a KeyError if it has none
            box = (left, top, left + width, top + height, category, crowd)
            boxes.setdefault(int(one["image_id"]), []).append(box)
        arrays = {image: np.array(rows, np.float64) for image, rows in boxes.items()}
        if not all(np.isfinite(rows).all() for rows in arrays.values()):
            raise ValueError("a box is not finite")
    except OSError as error:
        raise DataError(f"`boxes` {path!r} cannot be read: {error.strerror}.") from error
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = shortened(f"{type(error).__name__}: {error}")
        raise DataError(
            f"{path} is no COCO file of boxes ({reason}). It needs `images`, `categories` and "
            "`annotations`, each with a `bbox`: left, top, width, height."
        ) from error
    if len(listed) < len(record["images"]):  # the boxes of one would be taken for those of another
        raise DataError(
            f"{path} gives several of its `images` one `file_name`. Write the names with their "
            "folders."
        )
    return names, listed, arrays

"""Masks and boxes of exported variants: those of the real images that they were made from."""

import io
import logging
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from synthaug._cache.format import blocks
from synthaug._cache.store import SynthCache
from synthaug._cache.tools import check_sources
from synthaug._images.boxes import ObjectBoxes
from synthaug._images.edges import edge_agreement
from synthaug._images.masks import MaskFiles
from synthaug._images.source import ImageSource
from synthaug._support.arguments import check_within
from synthaug._support.progress import bar
from synthaug._support.rows import row_numbers
from synthaug._types import Doubles, Indices, StrPath
from synthaug.errors import DataError, MismatchError

logger = logging.getLogger("synthaug")

_MOST_CLASSES = 2**16


class Masks(Protocol):
    """A list of masks, or an array of them."""

    def __len__(self) -> int:
        """Number of masks."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The mask of one image."""
        ...


class SourceMasks:
    """Segmentation masks and boxes of the real images that the rows of a cache were made from.

        masks = caches.SourceMasks(train, "masks", min_edge_agreement=0.8)
        caches.export(cache, "out", format="folder", masks=masks)

    A variant of little strength keeps the outlines of its source, and with them mask and boxes. So
    a cache holds neither: its plan names the source of each row, and they are looked up there.
    """

    def __init__(
        self,
        real: Any,
        masks: Masks | StrPath | None = None,
        *,
        boxes: Sequence[Any] | StrPath | None = None,
        min_edge_agreement: float = 0.8,
    ) -> None:
        """Keeps them; pixels are read when a cache is compared.

        Args:
            real: The real data set, map-style, that the plan was made for.
            masks: A mask for each of its images in the same order: integers (H, W) in [0, 65535] as
                an array, a tensor, or a PIL image (of mode P its indices). Or a folder, for images
                that `load_dataset` read from one: `MASKS/cat/1.png` is the mask of
                `IMAGES/cat/1.jpg`, of the size of its file, and is resized as the image was.
                With neither masks nor boxes edges are compared alone, for key points: those of
                row i belong to image `cache.plan["source"][i]`.
            boxes: For each image a dict with `boxes`, (n, 4), left, top, right and bottom in its
                pixels, and `labels`, int (n,), as torchvision's detectors take them. Or a COCO
                file, for images that `load_dataset` read from a folder: `file_name` is the path in
                that folder, or the bare name, and boxes are resized and cut as the image was.
            min_edge_agreement: Rows whose edges agree less with their source are left out, by
                `synthaug.metrics.edge_agreement`, in (0, 1].

        Raises:
            ValueError: For another number of masks or boxes than of images, another agreement, or
                files of masks or boxes for images that were read from none.
            DataError: If `real` cannot be read; for a mask in a folder that is missing, damaged, or
                one of several; for boxes that are none, or that lack an image.
            MismatchError: For a mask in a folder, or boxes in a file, of another size than the
                image; for a mask with colors.
        """
        check_within("(0, 1]", min_edge_agreement=min_edge_agreement)
        self._given, self._images = real, ImageSource.open(real, "`real`")
        if isinstance(masks, str | os.PathLike):
            masks = MaskFiles(masks, self._images)
        if masks is not None and len(masks) != len(self._images):
            raise ValueError(
                f"`masks` has {len(masks):,} masks, and `real` has {len(self._images):,} images. "
                "Give one for each image, in the same order."
            )
        self._boxes = None if boxes is None else ObjectBoxes.of(boxes, self._images)
        self._masks, self._least = masks, min_edge_agreement
        self._compared: tuple[str, Doubles] = ("", np.empty(0))

    @property
    def has_masks(self) -> bool:
        """Whether there are masks, and not only edges to compare."""
        return self._masks is not None

    @property
    def has_boxes(self) -> bool:
        """Whether there are boxes."""
        return self._boxes is not None

    def agreement(
        self, cache: SynthCache, rows: ArrayLike | None = None, *, progress: bool = False
    ) -> Doubles:
        """How well the edges of rows lie where those of their sources do.

        Args:
            cache: A cache of variants of `real`.
            rows: Row numbers, or a mask, bool (N,); by default all that are done.
            progress: Show a bar.

        Returns:
            float64 (n,) in [-1, 1], by `synthaug.metrics.edge_agreement`; NaN without a source.

        Raises:
            MismatchError: The cache was made from other images, or has images of another shape.
        """
        chosen = row_numbers(cache.done if rows is None else rows, len(cache), "rows")
        known, compared = self._compared
        if known != str(cache.identity):
            check_sources(cache, self._given)
            if cache.image_shape != self._images.image_shape:
                raise MismatchError(
                    f"Images of {cache.path} have the shape {cache.image_shape}, and those of "
                    f"`real` {self._images.image_shape}. Masks are for variants of the shape of "
                    "their sources."
                )
            compared = np.full(len(cache), np.nan)
            self._compared = str(cache.identity), compared
        new = chosen[np.isnan(compared[chosen])]
        new = new[cache.plan.at("source", new) >= 0]
        with bar(len(new), "compare edges", "image", progress=progress) as shown:
            for block in blocks(new, cache.image_shape):
                real = self._images.pixels(cache.plan.at("source", block))
                compared[block] = edge_agreement(real, cache.read(block))
                shown.update(len(block))
        return compared[chosen]

    def fitting(self, cache: SynthCache, rows: Indices, *, progress: bool = False) -> Indices:
        """The rows that keep the outlines of their source, int64, ascending; tells of the others.

        Raises:
            MismatchError: The cache was made from other images, or has images of another shape.
            DataError: No row has a source, or one whose outlines it keeps.
        """
        agreement = self.agreement(cache, rows, progress=progress)
        without, fits = np.isnan(agreement), agreement >= self._least
        if without.all():
            raise DataError(
                f"None of {len(rows):,} rows of {cache.path} was made from a real image, so they "
                "have neither masks nor boxes. Leave `masks` out, or draw variants of real images."
            )
        middle = " to ".join(f"{x:.2f}" for x in np.nanquantile(agreement, (0.25, 0.75)))
        if not fits.any():
            raise DataError(
                f"None of {len(rows):,} rows of {cache.path} has a source whose edges agree with "
                f"it by {self._least}. Draw variants of less strength, or lower "
                f"`min_edge_agreement`: the middle half agree by {middle}."
            )
        if not fits.all():
            logger.warning(
                "%s: %s of %s rows are left out: %s have no source, and the edges of the others "
                "agree less with it than %s, so what is marked there would not fit; the middle "
                "half of all agree by %s.",
                cache.path,
                f"{(~fits).sum():,}",
                f"{len(rows):,}",
                f"{without.sum():,}",
                self._least,
                middle,
            )
        return rows[fits]

    def annotations(self, cache: SynthCache, row: int) -> list[dict[str, Any]]:
        """The boxes of a row as COCO writes them; none without boxes."""
        if self._boxes is None:
            return []
        return self._boxes.annotations(int(cache.plan.at("source", [row])[0]))

    def category(self, number: int) -> str:
        """The name of a category of boxes."""
        return "" if self._boxes is None else self._boxes.names[number]

    def categories(self) -> list[dict[str, Any]]:
        """The categories of the boxes as COCO writes them."""
        names = {} if self._boxes is None else self._boxes.names
        return [{"id": number, "name": names[number]} for number in sorted(names)]

    def png(self, cache: SynthCache, row: int) -> bytes:
        """The mask of a row as a PNG file of 8 bits, or of 16 if it has more than 256 classes.

        Raises:
            DataError: The mask has another size than the image, or other values than class numbers.
        """
        assert self._masks is not None
        source = int(cache.plan.at("source", [row])[0])
        mask = np.asarray(self._masks[source])
        if mask.shape != cache.image_shape[1:] or mask.dtype.kind not in "biu":
            raise DataError(
                f"Mask {source} is {mask.dtype} {mask.shape}, expected integers "
                f"{cache.image_shape[1:]}, the size of the images in {cache.path}."
            )
        if mask.min() < 0 or mask.max() >= _MOST_CLASSES:
            raise DataError(
                f"Mask {source} has values from {mask.min()} to {mask.max()}, expected class "
                f"numbers from 0 to {_MOST_CLASSES - 1:,}."
            )
        buffer = io.BytesIO()
        kind = np.uint8 if mask.max() < 256 else np.uint16
        Image.fromarray(mask.astype(kind)).save(buffer, format="PNG")
        return buffer.getvalue()

"""Segmentation masks of exported variants: those of the real images that they were made from."""

import io
import logging
from typing import Any, Protocol

import numpy as np
from PIL import Image

from synthaug._cache.format import blocks
from synthaug._cache.store import SynthCache
from synthaug._cache.tools import check_sources
from synthaug._images.edges import edge_agreement
from synthaug._images.source import ImageSource
from synthaug._support.arguments import check_within
from synthaug._types import Indices
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
    """Segmentation masks of the real images that the rows of a cache were made from.

        masks = caches.SourceMasks(train, train_masks, min_edge_agreement=0.8)
        caches.export(cache, "out", format="folder", masks=masks)

    A variant of little strength keeps the outlines of its source, and with them the mask. So a
    cache holds no masks: its plan names the source of each row, and the mask is looked up there.
    """

    def __init__(self, real: Any, masks: Masks, *, min_edge_agreement: float = 0.8) -> None:
        """Keeps both; nothing is read before the export.

        Args:
            real: The real data set, map-style, that the plan was made for.
            masks: A mask for each of its images in the same order: integers (H, W) in [0, 65535] as
                an array, a tensor, or a PIL image (of mode P its indices).
            min_edge_agreement: Rows whose edges agree less with their source are left out, by
                `synthaug.metrics.edge_agreement`, in (0, 1].

        Raises:
            ValueError: For another number of masks than of images, or another agreement.
            DataError: If `real` cannot be read.
        """
        check_within("(0, 1]", min_edge_agreement=min_edge_agreement)
        self._given, self._images = real, ImageSource.open(real, "`real`")
        if len(masks) != len(self._images):
            raise ValueError(
                f"`masks` has {len(masks):,} masks, and `real` has {len(self._images):,} images. "
                "Give one for each image, in the same order."
            )
        self._masks, self._least = masks, min_edge_agreement

    def fitting(self, cache: SynthCache, rows: Indices) -> Indices:
        """The rows that keep the outlines of their source, int64, ascending; tells of the others.

        Raises:
            MismatchError: The cache was made from other images, or has images of another shape.
            DataError: No row has a source, or one whose outlines it keeps.
        """
        check_sources(cache, self._given)
        if cache.image_shape != self._images.image_shape:
            raise MismatchError(
                f"Images of {cache.path} have the shape {cache.image_shape}, and those of `real` "
                f"{self._images.image_shape}. Masks are for variants of the shape of their sources."
            )
        fits = np.zeros(len(rows), bool)
        sources = cache.plan.at("source", rows)
        with_source = np.flatnonzero(sources >= 0)
        if not len(with_source):
            raise DataError(
                f"None of {len(rows):,} rows of {cache.path} was made from a real image, so they "
                "have no masks. Leave `masks` out, or draw variants of real images."
            )
        for places in blocks(with_source, cache.image_shape):
            real = self._images.pixels(sources[places])
            fits[places] = edge_agreement(real, cache.read(rows[places])) >= self._least
        if not fits.any():
            raise DataError(
                f"None of {len(rows):,} rows of {cache.path} has a source whose edges agree with "
                f"it by {self._least}. Draw variants of less strength, or lower "
                "`min_edge_agreement`."
            )
        if not fits.all():
            logger.warning(
                "%s: %s of %s rows are left out: %s have no source, and the edges of the others "
                "agree less with it than %s, so its mask would not fit.",
                cache.path,
                f"{(~fits).sum():,}",
                f"{len(rows):,}",
                f"{len(rows) - len(with_source):,}",
                self._least,
            )
        return rows[fits]

    def png(self, cache: SynthCache, row: int) -> bytes:
        """The mask of a row as a PNG file of 8 bits, or of 16 if it has more than 256 classes.

        Raises:
            DataError: The mask has another size than the image, or other values than class numbers.
        """
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

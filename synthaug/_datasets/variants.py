"""Cached variants of real images, found by the content of the image: what transforms look up."""

import logging
from typing import Any, Literal

import numpy as np
from torch import Tensor

from synthaug._cache.serving import servable
from synthaug._pixels import digest
from synthaug._support.arguments import check_choice
from synthaug._types import Indices
from synthaug.errors import DataError, MismatchError

log = logging.getLogger(__name__)

_PATIENCE = 64
"""So many images without a variant, and none with one, are no accident."""


class Variants:
    """The rows of a cache that were made from real images, by the content digest of their source.

    Of a plan's row, `source_key` is the digest of the pixels that it started from.
    """

    def __init__(self, cache: Any, audit: Any, on_missing: Literal["keep", "raise"]) -> None:
        """Finds the variants that may be served.

        Args:
            cache: A `SynthCache`.
            audit: A report about it, or `None`.
            on_missing: "keep" or "raise", for an image without a variant.

        Raises:
            ValueError: For another value of `on_missing`.
            MismatchError: If the report judges another cache.
            DataError: If no row may be served that was made from a real image.
        """
        check_choice(("keep", "raise"), on_missing=on_missing)
        self.cache, self.on_missing = cache, on_missing
        rows = np.flatnonzero(servable(cache, audit).mask)
        rows = rows[cache.plan.at("source", rows) >= 0]
        if len(rows) == 0:
            raise DataError(
                "No row of the cache that may be served was made from a real image. Use "
                "`synthaug.MixedDataset`, which mixes by class, or generate from source images "
                "(`synthaug generate --source`)."
            )
        keys = cache.plan.at("source_key", rows)
        order = np.argsort(keys, kind="stable")
        self.keys, self.rows = keys[order], rows[order]  # variants of one image are neighbours
        self._missed = 0

    def rows_of(self, key: int) -> Indices:
        """The rows whose source has this content digest."""
        first, last = (np.searchsorted(self.keys, np.uint64(key), s) for s in ("left", "right"))
        return self.rows[first:last]

    def draw(self, pixels: Tensor, choice: float) -> Tensor | None:
        """One variant of an image.

        Args:
            pixels: uint8 (C, H, W).
            choice: In [0, 1): which of the variants.

        Returns:
            uint8 of the same shape; `None` if there is none and that is allowed.

        Raises:
            DataError: If there is none, with `on_missing="raise"`.
            MismatchError: If variants have another shape.
        """
        rows = self.rows_of(digest(pixels))
        if len(rows) == 0:
            self._note_missing(pixels)
            return None
        self._missed = -1
        variant: Tensor = self.cache.read([rows[int(choice * len(rows))]])[0]
        if variant.shape != pixels.shape:
            raise MismatchError(
                f"Variants have shape {tuple(variant.shape)}, their source has "
                f"{tuple(pixels.shape)}. Generate them in the size of the images."
            )
        return variant

    def _note_missing(self, pixels: Tensor) -> None:
        advice = (
            "Put this transform before all others, and give it the images that the plan was made "
            "for, colours in the order RGB."
        )
        if self.on_missing == "raise":
            raise DataError(
                f"An image with the digest {digest(pixels):016x} has no variant in the cache. "
                + advice
            )
        if self._missed >= 0:  # none was found yet
            self._missed += 1
            if self._missed == _PATIENCE:
                log.warning("None of %d images has a variant in the cache. %s", _PATIENCE, advice)

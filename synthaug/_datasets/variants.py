"""Cached variants of real images, found by the content of the image: what transforms look up."""

import logging
import math
from typing import Any, Literal

import numpy as np
from torch import Tensor

from synthaug._cache.serving import servable
from synthaug._images.convert import size_of
from synthaug._images.edges import edge_agreement
from synthaug._pixels import digest
from synthaug._support.arguments import check_choice, check_within
from synthaug._types import Flags, Indices
from synthaug.errors import DataError, MismatchError

log = logging.getLogger(__name__)

_CHANCE = 0.001
"""Images without a variant, and none with one, are mentioned when chance is below this."""

_ADVICE = (
    "Put this transform before all others but `Fit(cache.image_shape)`, which resizes as "
    "`load_dataset` does, and give it the images that the plan was made for, colors in the order "
    "RGB."
)


class Variants:
    """The rows of a cache that were made from real images, by the content digest of their source.

    Of a plan's row, `source_key` is the digest of the pixels that it started from.
    """

    def __init__(
        self,
        cache: Any,
        audit: Any,
        on_missing: Literal["keep", "raise"],
        min_edge_agreement: float | None = None,
    ) -> None:
        """Finds the variants that may be served.

        Args:
            cache: A `SynthCache`.
            audit: A report about it, or `None`.
            on_missing: "keep" or "raise", for an image without a variant.
            min_edge_agreement: Variants whose edges agree less with their source do not count.

        Raises:
            ValueError: For another value of `on_missing` or of `min_edge_agreement`.
            MismatchError: If the report judges another cache.
            DataError: If no row may be served that was made from a real image.
        """
        check_choice(("keep", "raise"), on_missing=on_missing)
        check_within("(0, 1]", min_edge_agreement=min_edge_agreement)
        self.cache, self.on_missing = cache, on_missing
        self.min_edge_agreement = min_edge_agreement
        self._agreements: dict[int, float] = {}
        rows = np.flatnonzero(servable(cache, audit).mask)
        rows = rows[cache.plan.at("source", rows) >= 0]
        if len(rows) == 0:
            raise DataError(
                "No row of the cache that may be served was made from a real image. Use "
                "`synthaug.MixedDataset`, which mixes by class, or draw variants of real images "
                "(`synthaug generate --source DATA --strength 0.5`)."
            )
        keys = cache.plan.at("source_key", rows)
        order = np.argsort(keys, kind="stable")
        self.keys, self.rows = keys[order], rows[order]  # variants of one image are neighbors
        self._missed = 0
        self._patience = self._misses_beyond_chance()

    def _misses_beyond_chance(self) -> int:
        """Images without a variant, one after the other, that are no accident."""
        source = self.cache.manifest["source"]
        told = source.get("images") if isinstance(source, dict) else None
        images = max(int(self.cache.plan["source"].max()) + 1, told or 0)
        share = min(len(np.unique(self.keys)) / images, 0.9)
        return min(math.ceil(math.log(_CHANCE) / math.log(1 - share)), 64)

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
        if tuple(pixels.shape) != self.cache.image_shape:
            raise self._other_size(tuple(pixels.shape))
        rows = self.rows_of(digest(pixels))
        moved = len(rows)
        if self.min_edge_agreement is not None:
            rows = rows[self._agreeing(pixels, rows)]
        moved -= len(rows)
        if len(rows) == 0:
            self._note_missing(pixels, moved)
            return None
        self._missed = -1
        variant: Tensor = self.cache.read([rows[int(choice * len(rows))]])[0]
        return variant

    def _agreeing(self, pixels: Tensor, rows: Indices) -> Flags:
        """Finds the variants that have their edges where the image has them."""
        new = [row for row in rows.tolist() if row not in self._agreements]
        if new:
            variants = self.cache.read(new)
            agreement = edge_agreement(pixels.expand_as(variants), variants)
            self._agreements.update(zip(new, agreement.tolist(), strict=True))
        return np.array([self._agreements[row] for row in rows.tolist()]) >= self.min_edge_agreement

    def check_size(self, image: Any) -> None:
        """Refuses an image of another size than the variants, which none can be exchanged for, with
        a MismatchError that names both."""
        size = size_of(image)
        if size != self.cache.image_shape[1:]:
            raise self._other_size(size)

    def _other_size(self, size: tuple[int, ...] | None) -> MismatchError:
        return MismatchError(
            f"The image has the size {size}, its variants would have {self.cache.image_shape}. "
            f"{_ADVICE}"
        )

    def _note_missing(self, pixels: Tensor, moved: int) -> None:
        """Raises, or counts an image without a variant; of `moved` ones the edges do not agree."""
        lacks, advice = "variant in the cache", _ADVICE
        if moved:
            lacks = f"variant whose edges agree with its own by {self.min_edge_agreement}"
            advice = "Draw variants of less strength, or lower `min_edge_agreement`."
        if self.on_missing == "raise":
            raise DataError(
                f"An image with the digest {digest(pixels):016x} has no {lacks}. {advice}"
            )
        if self._missed >= 0:  # none was found yet
            self._missed += 1
            if self._missed == self._patience:
                log.warning("None of %d images has a %s. %s", self._patience, lacks, advice)

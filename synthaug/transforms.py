"""Transforms for `torchvision.transforms.v2`."""

from typing import Any, Literal

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from synthaug._adapt import like, pixels_of
from synthaug._errors import CacheMismatchError, DataError
from synthaug._pixels import digest
from synthaug._serving import servable

__all__ = ["SyntheticVariant"]


class SyntheticVariant(v2.Transform):
    """An image becomes a cached variant of itself.

        transform = v2.Compose([
            SyntheticVariant(cache, p=0.5, audit=report),  # first: it must see the image unchanged
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ])

    For synthesizers that start from real images: the variants of an image are the rows of the cache
    whose `source_key` is the content digest of its pixels. So the image must come here as it was
    when the plan was made, before any other transform. Floating point images are compared after
    rounding to the nearest of 256 levels.

    Accepts PIL images of mode L and RGB, `tv_tensors.Image` and tensors (C, H, W), uint8 in
    [0, 255] or floating point in [0, 1]; the type is kept. Labels pass through. All images of one
    sample share the draw. Randomness comes from torch's global generator, as everywhere in
    torchvision, so it differs between workers and epochs.

    A batch transform of this kind does not exist: apply it to single images.
    """

    def __init__(
        self,
        cache: Any,
        *,
        audit: Any,
        p: float = 0.5,
        on_missing: Literal["keep", "raise"] = "keep",
    ) -> None:
        """Finds the variants that may be served.

        Args:
            cache: A `SynthCache`.
            audit: A report about it; variants that it did not pass are not served. `None` skips the
                audit.
            p: Probability of a change, in [0, 1].
            on_missing: What becomes of an image without a variant: "keep" leaves it unchanged,
                "raise" raises a `DataError`.

        Raises:
            ValueError: For other values of `p` or `on_missing`.
            AuditError: If the report judges another cache.
            DataError: If no row that may be served has a source image.
        """
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"`p` must be in [0, 1], got {p}.")
        if on_missing not in ("keep", "raise"):
            raise ValueError(f'`on_missing` must be "keep" or "raise", got {on_missing!r}.')
        self.p = p
        self.on_missing = on_missing
        self.cache = cache
        rows = np.flatnonzero(servable(cache, audit) & (cache.plan["source"] >= 0))
        if len(rows) == 0:
            raise DataError(
                "No row of the cache that may be served was made from a real image. Use "
                "`synthaug.MixedDataset`, which mixes by class, or generate from source images."
            )
        keys = cache.plan["source_key"][rows]
        order = np.argsort(keys, kind="stable")
        self._keys, self._rows = keys[order], rows[order]  # variants of one image are neighbours

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuses boxes, masks, key points and videos: a variant of the image does not fit them."""
        for value in flat_inputs:
            if isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.Image):
                raise TypeError(
                    f"{type(value).__name__} cannot follow an image into a synthetic variant. Use "
                    "this transform for classification only."
                )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws whether to change, and which variant, once per sample."""
        del flat_inputs
        apply, choice = torch.rand(2, dtype=torch.float64).tolist()
        return {"apply": apply < self.p, "choice": choice}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Replaces one image, if it was drawn and has variants."""
        if not params["apply"]:
            return inpt
        pixels = pixels_of(inpt)
        key = np.uint64(digest(pixels))
        first, last = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        if first == last:
            if self.on_missing == "keep":
                return inpt
            raise DataError(
                f"An image with the digest {int(key):016x} has no variant in the cache. Put this "
                "transform before all others, and give it the images that the plan was made for."
            )
        row = self._rows[first + int(params["choice"] * (last - first))]
        variant = self.cache.read([row])[0]
        if variant.shape != pixels.shape:
            raise CacheMismatchError(
                f"Variants have shape {tuple(variant.shape)}, their source has "
                f"{tuple(pixels.shape)}. Generate them in the size of the images."
            )
        return like(variant, inpt)

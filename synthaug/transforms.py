"""Transforms for `torchvision.transforms.v2`."""

from typing import Any, Literal

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from synthaug._adapt import like, pixels_of
from synthaug._restoration import ColdRestorer, Restoration
from synthaug._variants import Variants

__all__ = ["ColdRestore", "SyntheticVariant"]


class ColdRestore(v2.Transform):
    """Takes part of an image away and has a network invent it anew; the label stays.

        transform = v2.Compose([
            v2.RandomHorizontalFlip(),
            ColdRestore(cold, severity_range=(0.1, 0.4), p=0.3),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ])
        images = ColdRestore(cold, severity_range=(0.1, 0.4), p=0.3)(images)   # a whole batch

    For `synthaug.ColdDiffusion`. Each image is degraded to a severity s / T drawn uniformly from
    the range, and restored from there; what is random in the degradation is drawn anew each time.

    Accepts PIL images of mode L and RGB, `tv_tensors.Image` and tensors, uint8 in [0, 255] or
    floating point in [0, 1], of the checkpoint's shape (C, H, W); and batches of them (n, C, H, W),
    in which every image has its own draw. The type is kept. Labels pass through. All images of one
    sample share the draws. Randomness comes from torch's global generator.

    The network runs where it is: in the workers of a loader on the CPU, or on the training device
    if the transform is given batches after the loader. An image costs one network evaluation per
    level, or `num_steps` of the checkpoint's settings; batches on a GPU are by far the fastest, and
    `plan` and `generate` keep restored views in a cache, to be made once.
    """

    draws_per_image = True
    """Of a batch, every image has its own draw."""

    def __init__(
        self,
        cold: ColdRestorer,
        *,
        severity_range: tuple[float, float] = (0.1, 0.4),
        p: float = 0.3,
    ) -> None:
        """Checks the settings.

        Args:
            cold: A `ColdDiffusion`.
            severity_range: Smallest and largest s / T, in (0, 1].
            p: Probability of a change, in [0, 1], for each image.

        Raises:
            TypeError: If `cold` is something else.
            ValueError: For other values of `severity_range` or `p`.
        """
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"`p` must be in [0, 1], got {p}.")
        self._restoration = Restoration(cold, severity_range)
        self.severity_range = severity_range
        self.p = p

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuses boxes, masks, key points and videos."""
        _check_only_images(flat_inputs)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws which images to change, how much, and their seeds; once per sample or batch."""
        sizes = {len(x) for x in flat_inputs if isinstance(x, torch.Tensor) and x.ndim == 4}
        if len(sizes) > 1:
            raise ValueError(f"Batches of different size came together: {sorted(sizes)}.")
        n = sizes.pop() if sizes else 1
        apply, uniform = torch.rand(2, n, dtype=torch.float64)
        seeds = torch.randint(2**63 - 1, (n,))
        chosen = (apply < self.p).nonzero()[:, 0]
        return {
            "chosen": chosen.tolist(),
            "severity": self._restoration.severity(uniform[chosen]).tolist(),
            "seeds": seeds[chosen].tolist(),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Restores one image or some of a batch."""
        if not params["chosen"]:
            return inpt
        return self._restoration(inpt, **params)


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
                audit, with a warning.
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
        self.p = p
        self.on_missing = on_missing
        self._variants = Variants(cache, audit, on_missing)

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuses boxes, masks, key points and videos: a variant of the image does not fit them."""
        _check_only_images(flat_inputs)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws whether to change, and which variant, once per sample."""
        del flat_inputs
        apply, choice = torch.rand(2, dtype=torch.float64).tolist()
        return {"apply": apply < self.p, "choice": choice}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Replaces one image, if it was drawn and has variants."""
        if not params["apply"]:
            return inpt
        variant = self._variants.draw(pixels_of(inpt), params["choice"])
        return inpt if variant is None else like(variant, inpt)


def _check_only_images(flat_inputs: list[Any]) -> None:
    for value in flat_inputs:
        if isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.Image):
            raise TypeError(
                f"{type(value).__name__} cannot follow an image into a synthetic variant. Use "
                "this transform for classification only."
            )

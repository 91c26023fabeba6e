"""The base of all degradations: D(x, s, realization), a pure function."""

import abc
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from synthaug._noise import Streams
from synthaug._support.arguments import check_at_least, check_fields
from synthaug._support.devices import sent
from synthaug._support.torch_state import torch_defaults
from synthaug._types import JSON, Images, ImageShape

Realization: TypeAlias = Mapping[str, Tensor]
"""What a random degradation drew for each image (mask center, snow layer, ...): every tensor has
one row per image. Empty for a deterministic one. It is drawn once and held for a whole trajectory:
with a fresh draw at every level even a perfect restorer would not get back to the image."""

Leaves: TypeAlias = Literal["nothing", "color", "image"]
"""What the last level leaves of the image: nothing (the realization alone decides), one color for
the whole image, or more than that."""


class AbstractDegradation(abc.ABC):
    """Degrades images gradually, from level 0 (the image) to level `num_levels` (T).

        blur = degradations.Blur(num_levels=50)
        realization = blur.realize(generators, (3, 32, 32))
        x_s = blur(x, 20, realization)

    Subclasses are final and frozen; they implement `_degrade`. For one of your own see `Custom`.
    """

    num_levels: int
    """T, the last level."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, num_levels=self.num_levels)

    def __call__(
        self, x: Images, s: int | Tensor, realization: Realization | None = None
    ) -> Images:
        """D(x, s): the images at level s. D(x, 0) is x itself, to the bit.

        Computed in at least float32, also under autocast. Values are not clipped, unless clipping
        is part of the degradation: the restoring recursion relies on it.

        Args:
            x: Images, floating point (n, C, H, W) in [-1, 1], on any device.
            s: Level of all images, or of each, int64 (n,), in [0, num_levels].
            realization: From `realize`; on the device of `x`.

        Raises:
            ValueError: For a level out of range, a realization that lacks something, or images that
                this cannot degrade.
        """
        levels = s if isinstance(s, Tensor) else torch.tensor(s, dtype=torch.int64, device="cpu")
        levels = levels.to(torch.int64)
        if levels.ndim > 1 or (levels.ndim == 1 and len(levels) != len(x)):
            raise ValueError(
                f"`s` has shape {tuple(levels.shape)}; give one level, or one for each of the "
                f"{len(x)} images."
            )
        if levels.device.type == "cpu":  # elsewhere looking at them would wait for the device
            if levels.numel() and not 0 <= levels.min() <= levels.max() <= self.num_levels:
                bad = levels.max() if levels.max() > self.num_levels else levels.min()
                raise ValueError(f"`s` must be in [0, {self.num_levels}], got {int(bad)}.")
            if levels.ndim and levels.numel() and (levels == levels[0]).all():
                levels = levels[0]
        levels = sent(levels.reshape(-1), x.device)
        with _without_autocast(x.device.type):
            images = x if x.dtype == torch.float64 else x.float()
            try:
                degraded = self._degrade(images, levels, realization or {})
            except KeyError as missing:
                raise ValueError(
                    f"`realization` lacks {missing}. Draw it with `realize`, and pass the same one "
                    "at every level."
                ) from missing
        return torch.where(levels.view(-1, 1, 1, 1) == 0, images, degraded)

    @abc.abstractmethod
    def _degrade(self, x: Images, s: Tensor, realization: Realization) -> Images:
        """D(x, s) for s of shape (n,), or (1,) where all images share a level, on x's device."""

    def realize(self, generators: Streams, image_shape: ImageShape) -> Realization:
        """Draws the random part, for one trajectory per generator; on the CPU.

        Args:
            generators: One stream per image (`_noise.streams`); row i comes from generator i alone.
            image_shape: (C, H, W).
        """
        del generators, image_shape
        return {}

    def leaves(self, image_shape: ImageShape) -> Leaves:
        """Returns the remains of an image at level T. Images can be generated unless that is
        "image".
        """
        del image_shape
        return "image"

    def config(self) -> dict[str, JSON]:
        """Name and settings as JSON; `from_config` reads them."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"name": type(self).__name__, **plain}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Custom(AbstractDegradation):
    """A degradation of your own.

        fade = Custom(name="fade", num_levels=20, function=lambda x, s, _: x * (1 - s / 20))

    A checkpoint names it, but cannot hold its code: pass it again to `from_pretrained`.
    """

    name: str
    """Identifies it in checkpoints and recipes. Change it whenever the function changes."""
    num_levels: int
    function: Callable[[Images, Tensor, Realization], Images]
    """`function(x, s, realization)`: D(x, s) for images (n, C, H, W) in [-1, 1] and levels s of
    shape (n, 1, 1, 1) or (1, 1, 1, 1), int64. A pure function, without clipping. Level 0 need not
    be handled."""
    realization: Callable[[torch.Generator, ImageShape], Realization] | None = None
    """`realization(generator, image_shape)`: what is random for one image, without a row axis."""
    remains: Leaves = "image"
    """What the last level leaves."""

    def _degrade(self, x: Images, s: Tensor, realization: Realization) -> Images:
        with torch_defaults():  # `s / 20` is a tensor of the default dtype
            return self.function(x, s.view(-1, 1, 1, 1), realization)

    def realize(self, generators: Streams, image_shape: ImageShape) -> Realization:
        """Draws image by image."""
        if self.realization is None:
            return {}
        with torch_defaults():
            drawn = [self.realization(generator, image_shape) for generator in generators]
        return {name: torch.stack([row[name] for row in drawn]) for name in drawn[0]}

    def leaves(self, image_shape: ImageShape) -> Leaves:
        """Returns the value of `remains`."""
        del image_shape
        return self.remains

    def config(self) -> dict[str, JSON]:
        """Its name stands in for the function."""
        return {"name": "Custom", "custom": self.name, "num_levels": self.num_levels}


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)

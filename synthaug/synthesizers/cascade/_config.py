"""Configuration of a stage of a cascade, for Python and the command line alike."""

from dataclasses import dataclass
from typing import Literal, final, get_args

from synthaug._support import arguments

Augmentation = Literal["none", "blur", "gaussian"]
Padding = Literal["replicate", "reflect", "circular"]
Upsampling = Literal["bilinear", "bicubic", "nearest"]


@final
@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Configuration of the enlargement that a stage learns.

    Raises:
        ValueError: For a value out of range.
    """

    low_size: int | tuple[int, int]
    """Shorter side of the smaller copies, or (height, width), in pixels."""
    conditioning_augmentation: Augmentation = "gaussian"
    """What the smaller copies go through, so that the stage bears the faults of drawn ones:
    "gaussian" noise of a level s that the network is told; "blur", without its knowing; "none"."""
    max_noise_level: int = 500
    """Levels are drawn uniformly from 0 (clean) to this one, in timesteps of a cosine schedule of
    1,000 steps. Any of them can be chosen when sampling."""
    blur_probability: float = 0.5
    """Fraction of the copies that is blurred, by a filter of 3 x 3 pixels."""
    blur_std_range: tuple[float, float] = (0.4, 0.6)
    """The filter's standard deviation is drawn uniformly from this range, in pixels of the copy."""
    blur_padding: Padding = "replicate"
    """What the filter sees beyond the border: the border continued, the image mirrored, or the
    image again. Which of them the paper has is not known to us."""
    upsampling: Upsampling = "bilinear"
    """How the copies are enlarged before the network sees them."""

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        sides = self.low_size if isinstance(self.low_size, tuple | list) else [self.low_size]
        for side in sides:
            arguments.check_whole(1, "Give pixels, or (height, width).", low_size=side)
        if self.low_size is None or len(sides) not in (1, 2):
            raise ValueError(
                f"`low_size` must be a whole number of pixels, or (height, width), got "
                f"{self.low_size}."
            )
        augmentation = self.conditioning_augmentation
        if augmentation in ("truncated", "non-truncated"):
            raise ValueError(
                f"`conditioning_augmentation` is {augmentation!r}: both are trained with "
                "'gaussian'. Choose between them when you sample (`truncated`)."
            )
        arguments.check_choice(get_args(Augmentation), conditioning_augmentation=augmentation)
        arguments.check_choice(get_args(Padding), blur_padding=self.blur_padding)
        arguments.check_choice(get_args(Upsampling), upsampling=self.upsampling)
        arguments.check_fraction(blur_probability=self.blur_probability)
        if not 0 < self.blur_std_range[0] <= self.blur_std_range[1]:
            raise ValueError(
                f"`blur_std_range` must be two positive numbers, the smaller first, got "
                f"{self.blur_std_range}."
            )
        arguments.check_within("[1, 1000]", max_noise_level=self.max_noise_level)

    @property
    def takes_levels(self) -> bool:
        """Whether the network is told a noise level."""
        return self.conditioning_augmentation == "gaussian"

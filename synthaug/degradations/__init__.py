"""Degradations of images in levels, for cold diffusion (Bansal et al. 2022).

    degradations.Blur(num_levels=50)            # kernels composed; one pass for any level
    degradations.Inpainting()                   # a hole that grows, to gray or to one color
    degradations.SuperResolution(num_levels=3)  # size / 2 per level
    degradations.Snow()                         # after ImageNet-C
    degradations.Decolorization()
    degradations.Animorphosis(others=animals)   # towards images of another set
    degradations.GaussianNoise()                # the "hot" case
    degradations.Custom(name="fade", num_levels=20, function=fade)

Each is a pure function `D(x, s, realization)` of images in [-1, 1], levels s from 0 to T, and what
was drawn for each image. Batched, each image at its own level; on any device.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from synthaug.degradations._base import AbstractDegradation, Custom, Realization
from synthaug.degradations._linear import Blur, Decolorization, SuperResolution
from synthaug.degradations._random import Animorphosis, GaussianNoise, Inpainting, Snow
from synthaug.errors import CheckpointError

__all__ = [
    "AbstractDegradation",
    "Animorphosis",
    "Blur",
    "Custom",
    "Decolorization",
    "GaussianNoise",
    "Inpainting",
    "Realization",
    "Snow",
    "SuperResolution",
    "from_config",
    "named",
]

_BY_NAME: dict[str, type[AbstractDegradation]] = {
    "blur": Blur,
    "inpainting": Inpainting,
    "super-resolution": SuperResolution,
    "snow": Snow,
    "decolorization": Decolorization,
    "animorphosis": Animorphosis,
    "noise": GaussianNoise,
}


def named(name: str, **settings: Any) -> AbstractDegradation:
    """A degradation by its short name: blur, inpainting, super-resolution, snow, decolorization,
    animorphosis or noise.

    Args:
        name: The short name.
        settings: The settings that differ from the defaults; animorphosis needs `others`.

    Raises:
        ValueError: For a name or a setting that is not known.
    """
    if name not in _BY_NAME:
        raise ValueError(
            f"The degradation {name!r} is unknown. Known are {', '.join(_BY_NAME)}. For "
            "others, make the object itself, from `synthaug.degradations`."
        )
    cls: Any = _BY_NAME[name]
    names = [f.name for f in fields(cls)]
    unknown = sorted(set(settings) - set(names))
    if unknown:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(names)}.")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    degradation: AbstractDegradation = cls(**values)
    return degradation


def from_config(config: Mapping[str, Any]) -> AbstractDegradation:
    """Builds what `config()` described.

    Raises:
        CheckpointError: If it cannot be made from its description: one of your own, one that needs
            images, or one of a later version.
    """
    settings = dict(config)
    kind = settings.pop("name", None)
    for name, cls in _BY_NAME.items():
        if cls.__name__ == kind and cls is not Animorphosis:
            try:
                return named(name, **settings)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"The degradation {kind} cannot be made: {error}") from None
    what = config.get("custom", kind)
    raise CheckpointError(
        f"The checkpoint was trained with the degradation {what!r}, which cannot be made from its "
        "description. Make the same one and pass it as `degradation`."
    )

"""What several commands do with their arguments."""

from collections.abc import Sequence
from typing import Any


def names(given: str | Sequence[str]) -> list[str]:
    """The names in "a,b", or in a list."""
    parts = given.split(",") if isinstance(given, str) else given
    return [part.strip() for part in parts]


def synthetic_images(spec: str, image_size: int | None, channels: int | None) -> Any:
    """A cache, or a data set brought to a size; a cache has one already."""
    from synthaug._cache import SynthCache
    from synthaug._data import load_dataset

    if ":" in spec:
        return load_dataset(spec, image_size=image_size, channels=channels)
    cache = SynthCache(spec)
    if image_size is not None or channels is not None:
        raise ValueError(
            "`image_size` and `channels` are for folders; with a cache, real images are "
            f"brought to its shape, {cache.image_shape}."
        )
    return cache


def load(spec: str, image_shape: tuple[int, int, int], classes: Sequence[str] | None = None) -> Any:
    """A data set, brought to the shape (C, H, W) of what it goes with."""
    from synthaug._data import load_dataset

    return load_dataset(spec, image_shape=image_shape, classes=classes)

"""What several commands do with their arguments."""

from collections.abc import Sequence
from typing import Any


def names(given: str | Sequence[str]) -> list[str]:
    """The names in "a,b", or in a list."""
    parts = given.split(",") if isinstance(given, str) else given
    return [part.strip() for part in parts]


def load(spec: str, image_shape: tuple[int, int, int], classes: Sequence[str] | None = None) -> Any:
    """A data set, brought to the shape (C, H, W) of what it goes with."""
    from synthaug._data import load_dataset

    return load_dataset(spec, image_shape=image_shape, classes=classes)

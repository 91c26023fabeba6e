"""Displays a cache: as text, and with a few of its images in a notebook."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from synthaug._cache.format import ChosenRows, State
from synthaug._pixels import to_pil
from synthaug._support.html import blocks, data_uri, preformatted, thumbnails
from synthaug._types import ImageShape, Indices, Pixels

ORDER = (State.DONE, State.PENDING, State.WITHDRAWN)


def text(path: Path, image_shape: ImageShape, num_classes: int, counts: Mapping[State, int]) -> str:
    """Describes a cache, with its rows in each state, as torchvision does a data set."""
    c, h, w = image_shape
    lines = [
        "Dataset SynthCache",
        f"    Number of datapoints: {sum(counts.values())}",
        f"    Rows: {', '.join(f'{counts[one]:,} {one.name.lower()}' for one in ORDER)}",
        f"    Classes: {num_classes}",
        f"    Images: {c} x {h} x {w}, synthetic",
        f"    Location: {path}",
    ]
    return "\n".join(lines)


def page(text: str, images: Pixels, captions: list[str]) -> str:
    """Shows text and images, with a caption each that a pointer shows, as HTML."""
    pictures = zip((data_uri(to_pil(image)) for image in images), captions, strict=True)
    return str(blocks(preformatted(text), thumbnails(pictures)))


def evenly(rows: Indices | ChosenRows, count: int) -> Indices:
    """Chooses at most `count` rows, spread over all of them."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)
    return np.concatenate([rows[i : i + 1] for i in places.tolist()] or [rows[:0]])

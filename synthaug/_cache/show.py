"""What a cache shows of itself: text, and a few of its images in a notebook."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthaug._cache.format import State
from synthaug._pixels import to_pil
from synthaug._support.html import blocks, data_uri, preformatted, thumbnails
from synthaug._types import Indices, Pixels

ORDER = (State.DONE, State.PENDING, State.WITHDRAWN)


def text(
    path: Path, image_shape: tuple[int, int, int], num_classes: int, state: NDArray[np.uint8]
) -> str:
    """Describes a cache as torchvision does a data set."""
    c, h, w = image_shape
    counts = np.bincount(state, minlength=len(State))
    lines = [
        "Dataset SynthCache",
        f"    Number of datapoints: {len(state)}",
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


def evenly(rows: Indices, count: int) -> Indices:
    """Chooses at most `count` rows, spread over all of them."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]

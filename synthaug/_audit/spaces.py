"""The spaces that propose training images, and which parts of images they compare."""

import numpy as np

from synthaug._audit.matches import without_repeats
from synthaug._audit.rectangles import HALVES, MIDDLE, WHOLE, Rectangle
from synthaug._neighbors import Index
from synthaug._types import Indices, Pixels
from synthaug.features import Extractor, Pixel, Spectrum, extract

_OF_WHOLE_IMAGES = (Pixel(8, standardize=True), Spectrum())

PROPOSERS_OF_SMALL_IMAGES: tuple[tuple[Extractor, Rectangle], ...] = tuple(
    (extractor, WHOLE) for extractor in _OF_WHOLE_IMAGES
)
"""As below, for images too small to be compared in part."""

PROPOSERS: tuple[tuple[Extractor, Rectangle], ...] = (
    *PROPOSERS_OF_SMALL_IMAGES,
    (Pixel(8, standardize=True), MIDDLE),
)
"""Spaces that propose but do not judge, with the part of a query that is compared with training
images. The few large pixels of the first forgive a crop, the second forgives a shift; both forgive
brightness. Among 50,000 CIFAR-10 images the original of a copy is one of 10 proposals of the first
for 0.96 of crops to 80 %, but for 0.08 of shifts by 4 pixels; of the second for 0.84 and 0.95. The
third finds the originals of copies in a frame: of 40 among 10,000 CIFAR-100 images all, where the
others find 0.12."""

PROPOSERS_OF_HALVES: tuple[tuple[Extractor, Rectangle], ...] = tuple(
    (Pixel(4, standardize=True), half) for half in HALVES
)
"""Spaces that propose images of which a half may have been copied: the halves of a query are
compared with those of training images."""

PROPOSED = 10
"""Nearest neighbors in each space of `PROPOSERS` that are aligned."""

_AT_ONCE = 4096


def proposals(pixels: Pixels, *, batch_size: int = 512) -> Indices:
    """For every image others, and itself, that may be near-duplicates of it: int64 (n, K).

    Looks at each image and its mirror image; -1 fills up where a proposal would be repeated.
    """
    k = min(PROPOSED, len(pixels))
    lists = []
    for extractor in _OF_WHOLE_IMAGES:
        index = Index(extract(extractor, pixels, batch_size=batch_size))
        for shown in (pixels, pixels.flip(-1)):
            features = extract(extractor, shown, batch_size=batch_size)
            parts = [
                index.search(features[i : i + _AT_ONCE], k)[1]
                for i in range(0, len(features), _AT_ONCE)
            ]
            lists.append(np.concatenate(parts))
    return without_repeats(np.hstack(lists))

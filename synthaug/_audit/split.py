"""Setting real images aside before a generator is trained, so that it can be audited later."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthaug._audit.alignment import Aligner
from synthaug._audit.competition import components
from synthaug._audit.inputs import keys, read_set
from synthaug._audit.matching import proposals
from synthaug._noise import counter_rng
from synthaug._types import Indices, Pixels

NEAR_DUPLICATE = 0.3
"""Up to this aligned distance, a correlation of 0.955, two images go to the same side. Grouping too
many costs nothing but a little randomness; grouping too few puts copies into the hold-out, where
they blind an audit."""


def split_for_audit(
    dataset: Any, *, holdout: float = 0.1, seed: int = 0, progress: bool = True
) -> tuple[Indices, Indices]:
    """Splits real images at random into a part to train on and a hold-out to audit with.

    Near-duplicates (images that are alike when mirrored, shifted a little, cropped a little or made
    brighter) go to the same side. Do this before a generator is trained:

        train, holdout = synthaug.split_for_audit(real, holdout=0.1)
        ... Subset(real, train) ...                       # trains the generator
        synthaug.audit(cache, Subset(real, train), holdout=Subset(real, holdout))

    Args:
        dataset: Any map-style image data set, or uint8 pixels (n, C, H, W).
        holdout: Share of the images to hold out, between 0 and 1.
        seed: Seed of the split.
        progress: Shows a bar if reading takes long.

    Returns:
        Indices of the training images and of the hold-out, int64, ascending; together all images.
        The hold-out has the share asked for within the size of one group of near-duplicates.

    Raises:
        ValueError: If `holdout` is out of range, there are fewer than two images, or all images
            are near-duplicates of each other.
    """
    if not 0 < holdout < 1:
        raise ValueError(f"`holdout` must lie between 0 and 1, got {holdout}.")
    images = read_set(dataset, "dataset", progress=progress)
    groups = near_duplicates(images.pixels)
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        raise ValueError(
            f"`dataset` holds {len(images)} images that are all alike: nothing can be held out."
        )
    wanted = holdout * len(images)
    order = counter_rng(seed, 3).permutation(len(sizes))
    # Group by group until the share is reached, at least one group on either side.
    before = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
    count = int(np.clip((before + sizes[order] / 2 <= wanted).sum(), 1, len(sizes) - 1))
    held = np.isin(groups, order[:count])
    return images.rows[~held], images.rows[held]


def near_duplicates(pixels: Pixels) -> NDArray[np.int64]:
    """Numbers groups of images that are equal or nearly so, int64 (n,), from 0.

    Groups are joined through chains: two images may be in one group for what lies between them.
    """
    return groups_within(pixels, NEAR_DUPLICATE)[0]


def groups_within(pixels: Pixels, *limits: float) -> list[NDArray[np.int64]]:
    """For each limit, the groups of images that chains of aligned distances up to it join, (n,).

    Equal images are in one group in any case.
    """
    n = len(pixels)
    first: dict[bytes, int] = {}
    equal = np.array([first.setdefault(key, i) for i, key in enumerate(keys(pixels))], np.int64)
    candidates = proposals(pixels)
    candidates[candidates == np.arange(n)[:, None]] = -1  # itself: nothing to learn there
    distance, _ = Aligner(pixels).distances(pixels, candidates)
    groups = []
    for limit in limits:
        left, column = np.nonzero(distance <= limit)
        links = np.r_[equal, candidates[left, column]]
        groups.append(components(np.r_[np.arange(n), left], links, n))
    return groups

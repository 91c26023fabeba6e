"""Setting real images aside before a generator is trained, so that it can be audited later."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthaug._audit.alignment import Aligner
from synthaug._audit.competition import components
from synthaug._audit.inputs import keys, read_set
from synthaug._audit.spaces import proposals
from synthaug._noise import checked_seed, counter_rng
from synthaug._types import Indices, Pixels

NEAR_DUPLICATE = 0.3
"""Up to this aligned distance, a correlation of 0.955, two images go to the same side. Grouping too
many costs nothing but a little randomness; grouping too few puts copies into the hold-out, where
they blind an audit."""


def split_for_audit(
    dataset: Any,
    *,
    holdout: float = 0.1,
    labels: ArrayLike | None = None,
    seed: int = 0,
    progress: bool = True,
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
        labels: Class of every image, int (n,). With it the share is held out of every class, where
            a group of near-duplicates counts for the class of its first image.
        seed: Seed of the split.
        progress: Shows a bar if reading takes long.

    Returns:
        Indices of the training images and of the hold-out, int64, ascending; together all images.
        The hold-out has the share asked for within the size of one group of near-duplicates. Of a
        class whose images are all near-duplicates nothing is held out.

    Raises:
        ValueError: If `holdout` is out of range, there are fewer than two images, all images are
            near-duplicates of each other, or `labels` has another length.
    """
    checked_seed(seed)
    if not 0 < holdout < 1:
        raise ValueError(
            f"`holdout` must lie between 0 and 1, got {holdout}. Give the share to hold "
            "out, such as 0.2."
        )
    images = read_set(dataset, "dataset", progress=progress)
    groups = near_duplicates(images.pixels)
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        raise ValueError(
            f"All {len(images)} images of `dataset` are alike, so none can be held out. "
            "Give other images."
        )
    first = np.unique(groups, return_index=True)[1]
    class_of_group = np.zeros(len(sizes), np.int64)
    if labels is not None:
        if np.shape(labels) != (len(images),):
            raise ValueError(f"`labels` has shape {np.shape(labels)}, expected ({len(images)},).")
        class_of_group = np.asarray(labels)[first]
    order = counter_rng(seed, 3).permutation(len(sizes))
    held = np.zeros(len(images), bool)
    for label in np.unique(class_of_group):
        candidates = order[class_of_group[order] == label]
        held |= np.isin(groups, _held_groups(candidates, sizes[candidates], holdout))
    return images.rows[~held], images.rows[held]


def _held_groups(
    groups: NDArray[np.int64], sizes: NDArray[np.int64], share: float
) -> NDArray[np.int64]:
    """The first groups, until the share is reached, and at least one group on either side.

    A single group stays with the training images.
    """
    before = np.cumsum(sizes) - sizes
    count = int((before + sizes / 2 <= share * sizes.sum()).sum())
    return groups[: min(max(count, 1), len(groups) - 1)]


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

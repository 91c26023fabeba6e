"""How close images are to training images: what is kept of a comparison, and its statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from synthaug._types import Indices

NEAR_ALIGNED, ALONE = 0.03, 0.2
"""Up to this aligned distance, a correlation of 0.9995, and with all other proposals at least five
times as far away, an image is a training image moved, recolored or compressed. Of 8,000 fresh
CIFAR-100 images two are, both taken from a training image, and the next is at 0.041; of 597 digits
none is, the next at 0.056. Without the second condition smooth gradients would be copies too."""


ALIKE = 0.25
"""Up to this score an image that was registered resembles one training image as near-duplicates do:
the other proposals are four times as far away. Of 1,200 fresh CIFAR-100 images 0.02 are
below 0.21, and 0.97 above 0.42; what the former show was not looked at."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """How close each of n images is to the training images, by each of s statistics."""

    scores: NDArray[np.float64]
    """The statistics, (n, s). Of a space: d_1 / mean(d_2 ... d_k), well below 1 if one training
    image is much closer than all others are, and 0 if d_1 is. Aligned: d_1 over the median of the
    distances to the other proposals."""
    distances: NDArray[np.float64]
    """d_1 of each space, and of the aligned distances, (n, s)."""
    neighbors: Indices
    """The training image that each statistic is about, (n, s)."""
    flipped: NDArray[np.bool_]
    """Whether it is the mirrored image that comes so close, (n, s)."""
    usual: NDArray[np.float64]
    """Mean of d_2 ... d_k in the first space, (n,)."""
    twins: Indices
    """A training image with the same pixels but for rounding, or that becomes all but equal when
    aligned, (n,); -1 if there is none."""
    twin_flipped: NDArray[np.bool_]
    """Whether it is the mirrored image that does, (n,)."""
    resembling: NDArray[np.bool_]
    """Whether an image has a twin or is as like one training image as near-duplicates are, (n,)."""

    def split(self, parts: int) -> "list[Matches]":
        """The same in as many equal parts."""
        split = {name: np.split(values, parts) for name, values in vars(self).items()}
        return [
            Matches(**{name: values[i] for name, values in split.items()}) for i in range(parts)
        ]

    def select(self, rows: "NDArray[np.bool_] | Indices") -> "Matches":
        """Some of the images."""
        return Matches(**{name: values[rows] for name, values in vars(self).items()})

    @property
    def near_equal(self) -> NDArray[np.bool_]:
        """Images that have such a twin, (n,)."""
        return self.twins >= 0


@dataclass(frozen=True)
class Near:
    """The nearest images of each of n images in one space."""

    D: NDArray[np.float64]
    """(n, k), ascending."""
    ids: Indices
    """(n, k), all different within a row."""
    flipped: NDArray[np.bool_]
    """(n, k)."""

    def part(self, rows: slice) -> "Near":
        """Returns those of some of the images."""
        return Near(self.D[rows], self.ids[rows], self.flipped[rows])


Record = TypeVar("Record", Matches, Near)


@dataclass(frozen=True)
class Aligned:
    """Distances of n images to proposals, once one is laid over the other."""

    candidates: Indices
    """(n, K), -1 for none. Within a row different, or there as it is and mirrored."""
    D: NDArray[np.float64]
    """(n, K), infinite for none."""
    flipped: NDArray[np.bool_]
    """(n, K)."""


def matches(
    near: Sequence[Near],
    aligned: Sequence[Aligned],
    twins: Indices,
    twin_flipped: NDArray[np.bool_],
) -> Matches:
    """The statistics, from what was found.

    Args:
        near: The nearest images in each space that judges.
        aligned: Correlated and registered proposals; empty where there are no images.
        twins: Twins as in `Matches`, without those that alignment adds.
        twin_flipped: Whether the mirrored image has that twin.
    """
    scores = [_quotient(space.D[:, 0], space.D[:, 1:].mean(axis=1)) for space in near]
    distances = [space.D[:, 0] for space in near]
    neighbors = [space.ids[:, 0] for space in near]
    flipped = [space.flipped[:, 0] for space in near]
    every = np.arange(len(twins))
    for i, proposals in enumerate(aligned):
        best = proposals.D.argmin(axis=1)
        candidate, flip = proposals.candidates[every, best], proposals.flipped[every, best]
        nearest = proposals.D[every, best]
        score = _quotient(nearest, _median_of_others(proposals.D))
        if i == 0:
            copied = (twins < 0) & (nearest <= NEAR_ALIGNED) & (score <= ALONE)
            twins = np.where(copied, candidate, twins)
            twin_flipped = np.where(copied, flip, twin_flipped)
        scores.append(score)
        distances.append(nearest)
        neighbors.append(candidate)
        flipped.append(flip)
    resembling = twins >= 0
    if aligned:
        resembling |= scores[-1] <= ALIKE
    return Matches(
        scores=np.stack(scores, axis=1),
        distances=np.stack(distances, axis=1),
        neighbors=np.stack(neighbors, axis=1),
        flipped=np.stack(flipped, axis=1),
        usual=near[0].D[:, 1:].mean(axis=1),
        twins=twins,
        twin_flipped=twin_flipped,
        resembling=resembling,
    )


def concatenated(parts: Sequence[Record]) -> Record:
    """Concatenates what was found for several sets of images."""
    return type(parts[0])(
        **{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])}
    )


def _median_of_others(D: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of the finite distances of each row but the smallest; of a single one itself."""
    ordered, count = np.sort(D, axis=1), np.isfinite(D).sum(axis=1)
    middle = [np.minimum(1 + (count - i) // 2, count - 1) for i in (2, 1)]
    low, high = (np.take_along_axis(ordered, m[:, None], 1)[:, 0] for m in middle)
    return (low + high) / 2


def _quotient(nearest: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.float64]:
    # Where the others are at distance 0 as well, so is the first: a copy, not 0 / 0.
    return np.divide(nearest, usual, out=np.zeros(len(nearest)), where=usual > 0)


def without_repeats(candidates: Indices) -> Indices:
    """Each row with every repetition replaced by -1."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, 1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    different = np.empty_like(candidates)
    np.put_along_axis(different, order, ordered, 1)
    return different

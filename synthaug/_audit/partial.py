"""How alike two images are where they fit best: for copies of which a part was covered or changed.

A copy with a bar of letters, with a square cut out of it, or that shares only a half with its
original is as far from it as a stranger where it was changed, and equal where it was not. So the
reference is laid over the query as in `registration`, with its colors fitted, but only half of the
image counts: the cells of a grid of 8 x 8 that fit best for the contrast they have, smoothed over
neighboring cells, since what covers a part of an image is connected. Which cells count is decided
anew in every step.

A copy need not be near its original any more when all of it is compared. So what is compared here
is proposed by the halves of images as well: left, right, upper and lower.

On CIFAR-100, copies with a square cut out of 0.4 of their side came closer than all of 400 held-out
images in 1.00 of cases, with a bar of letters over a quarter in 0.68, and with 0.55 of their width
alone in 0.78; registered as a whole in 0.00.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug._audit.alignment import SIDE, reduced, smoothed
from synthaug._audit.registration import HALVED_FROM, follow, map_of
from synthaug._types import Pixels

SMALLEST = 16
"""Pixels of the shorter side, as images are compared, from which on they are in part: half of a
smaller one fits many. Of marked digits of 8 x 8 pixels that a model had seen eight times, 0.40 were
found where parts were compared too, and 0.67 where they were not."""

FOLLOWED = 2
"""Proposals that are followed at full size: those that fit best at half size, as they are."""

_COUNTED = 0.5
"""Share of the cells that count. Half of an image is the least that a viewer takes for a copy."""

_CELLS = 8
"""Cells on each side of an image."""

_LEAST_COVER = 0.6
"""Share of the query that the reference must cover: there must be cells to choose from."""

_SETTLING = 2
"""How often the cells are chosen before the first step, at first by how all of the image fits."""

_STEPS = 2
"""With more steps more strangers fit: some half of a stranger fits somewhere too."""

_SMALLEST_ERROR, _SMALLEST_CONTRAST = 1e-5, 4e-4
"""Added to squared errors and variances of cells, of values in [0, 1]: less than a gray level, and
less contrast than a standard deviation of 5 gray levels, say nothing."""


_EXCHANGES = "12457801346712457803584736142547426442"
"""Pairs of places to be put in order, after which the middle of nine is the fifth: the network of
Devillard 1998, "Fast median search"."""


def cleaned(pixels: Pixels) -> Tensor:
    """Images as they are compared, at most 32 pixels on the longer side.

    Each pixel is the median of its 3 x 3 neighbors, so that single pixels that were changed, such
    as salt and pepper, are gone; then they are smoothed.
    """
    if max(pixels.shape[-2:]) <= SIDE:  # which of nine is the middle one, whole numbers say sooner
        return smoothed(reduced(median(pixels)))
    return smoothed(median(reduced(pixels)))


def median(images: Tensor) -> Tensor:
    """The median of the 3 x 3 neighbors of each pixel."""
    h, w = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    near = [padded[..., i : i + h, j : j + w] for i in range(3) for j in range(3)]
    for a, b in zip(map(int, _EXCHANGES[::2]), map(int, _EXCHANGES[1::2]), strict=True):
        near[a], near[b] = torch.minimum(near[a], near[b]), torch.maximum(near[a], near[b])
    return near[4]


def glance(queries: Tensor, references: Tensor) -> Tensor:
    """The distance of each query to its reference where they fit best, as they lie, at half size.

    Args and result are those of `fit`.
    """
    if min(queries.shape[-2:]) >= HALVED_FROM:
        queries, references = (F.avg_pool2d(images, 2) for images in (queries, references))
    return _fitted(queries, references, steps=0)


def fit(queries: Tensor, references: Tensor) -> Tensor:
    """The distance of each query to its reference where they fit best, laid over it.

    Args:
        queries: float32 (n, C, h, w) in [0, 1].
        references: The image to compare with each, of the same shape.

    Returns:
        float32 (n,), in [0, sqrt(2)], as by `registration.register`, of the cells that count.
    """
    return _fitted(queries, references, steps=_STEPS)


def _fitted(queries: Tensor, references: Tensor, steps: int) -> Tensor:
    # As in `registration`: in float64 no difference in the last digit parts the steps.
    queries, references = queries.double(), references.double()
    maps = map_of(0, 1.0, queries).expand(len(queries), 2, 3)
    found = follow(
        queries,
        references,
        maps,
        steps,
        weigh=_best_cells,
        settling=_SETTLING,
        least_cover=_LEAST_COVER,
    )
    return (2 - 2 * found.r).clamp(min=0).sqrt().float()


def _best_cells(goal: Tensor, fitted: Tensor, inside: Tensor, size: tuple[int, int]) -> Tensor:
    """1 for pixels of the cells that fit best for their contrast, 0 for others, (n, h w)."""

    def means(values: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(values.unflatten(2, size), _CELLS)

    error = means(((goal - fitted).square().mean(1) * inside)[:, None])
    contrast = (means(goal.square()) - means(goal).square()).mean(1, keepdim=True)
    misfit = ((error + _SMALLEST_ERROR) / (contrast + _SMALLEST_CONTRAST)).log()
    misfit = F.avg_pool2d(F.pad(misfit, (1, 1, 1, 1), mode="replicate"), 3, 1).flatten(1)
    misfit = misfit.masked_fill(means(inside[:, None]).flatten(1) <= 0.5, float("inf"))
    limit = misfit.kthvalue(round(_COUNTED * _CELLS**2), 1, keepdim=True).values
    cells = (misfit <= limit).to(goal.dtype).unflatten(1, (_CELLS, _CELLS))[:, None]
    return F.interpolate(cells, size, mode="nearest").flatten(1)

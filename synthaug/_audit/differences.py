"""Differences of pixels: which images are equal but for rounding."""

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._types import Indices, Pixels

NEAR_RMSE = 2.0
"""Up to this root mean square difference, in gray levels of 0 to 255, two images are equal but for
rounding and mild compression: nobody sees a difference, and none is meant."""

_SPARSE = 4
"""Only every so many pixels of a side are compared first."""

_AT_ONCE = 4096
"""Images whose differences are taken at a time."""


def near_rmse(
    pixels: Pixels, train: Pixels, rows: Indices, flipped: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Returns the `rmse`, but infinity where some of the pixels alone differ by more than
    `NEAR_RMSE`.

    The squares of some differences are no more than those of all, and few images pass.
    """
    limit = NEAR_RMSE**2 * pixels[0].numel()
    views = (view[..., ::_SPARSE, ::_SPARSE] for view in (pixels, pixels.flip(-1), train))
    plain, mirrored, of_train = views
    shown = torch.where(torch.from_numpy(flipped)[:, None, None, None], mirrored, plain)
    squares = (shown.int() - of_train[torch.from_numpy(rows)]).flatten(1).square().sum(1)
    near = (squares <= limit).numpy()
    result = np.full(len(pixels), np.inf)
    if near.any():
        chosen = pixels[torch.from_numpy(near)]
        result[near] = rmse(chosen, train, rows[near], flipped[near])
    return result


def rmse(
    pixels: Pixels, train: Pixels, rows: Indices, flipped: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Root mean square difference of images, mirrored where `flipped`, to rows of `train`, (n,)."""
    parts = []
    for start in range(0, len(pixels), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        images = pixels[part]
        mirror = torch.from_numpy(flipped[part])[:, None, None, None]
        shown = torch.where(mirror, images.flip(-1), images).float()
        difference = shown - train[torch.from_numpy(rows[part])]
        parts.append(difference.flatten(1).square().mean(1).sqrt().double().numpy())
    return np.concatenate(parts)

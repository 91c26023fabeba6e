"""How alike two images are when one may be mirrored, shifted, cropped, brighter or blurred.

Nearest neighbours propose a few training images for every query; here each proposal is laid over
the query in all ways that a copy may have been moved. A window of the query is brought to mean 0
and norm 1 and correlated with every window of the training image of the same size, normalised the
same way: the normalised cross-correlation r of Lewis 1995, "Fast Normalized Cross-Correlation",
with Fourier transforms for the correlation and running sums for the norms. The distance is
sqrt(2 - 2 r), which is the Euclidean distance of the two normalised windows. Both images are
smoothed a little first, since a copy is most easily lost in its finest detail: on CIFAR-10 that
raised the share of blurred copies below the 0.1 % quantile of real images from 0.34 to 0.96.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from synthaug._types import Indices, Pixels

SIDE = 32
"""Larger images are averaged down to this many pixels on their longer side."""

REACH = 1 / 8
"""A copy may be shifted by up to this share of its side."""

SCALES = (0.9, 0.8)
"""A copy may show this share of its original, enlarged."""

_ROWS = 32
"""Queries compared at a time: few enough for the caches of a processor."""

_SMALLEST_NORM = 1e-3
"""Windows with less structure than this, in units of 255 grey levels, are of one colour."""


@dataclass(frozen=True)
class _Template:
    """Normalised windows of the queries, ready to be slid over training images."""

    spectrum: Tensor
    """Complex conjugate of the Fourier transform, (n, C, H, W // 2 + 1)."""
    size: tuple[int, int]


class Aligner:
    """Compares images with some of the training images under all alignments.

    Args:
        train: uint8 (n, C, H, W).
    """

    def __init__(self, train: Pixels) -> None:
        self._train = train

    def distances(
        self, pixels: Pixels, candidates: Indices
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The distance of every image to each of its candidates under the best alignment.

        Args:
            pixels: uint8 (n, C, H, W).
            candidates: Rows of the training images, int64 (n, K); -1 for none.

        Returns:
            sqrt(2 - 2 r), float64 (n, K), in [0, 2], infinite where there is no candidate; and
            whether it is the mirrored image that fits best, (n, K).
        """
        parts = [
            self._distances(pixels[i : i + _ROWS], candidates[i : i + _ROWS])
            for i in range(0, len(pixels), _ROWS)
        ]
        return np.concatenate([d for d, _ in parts]), np.concatenate([f for _, f in parts])

    def _distances(
        self, pixels: Pixels, candidates: Indices
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        query, column = np.nonzero(candidates >= 0)
        rows, which = np.unique(candidates[query, column], return_inverse=True)
        train = small(self._train[torch.from_numpy(rows)])
        spectra = torch.fft.rfft2(train)
        left, right = torch.from_numpy(query), torch.from_numpy(which)
        queries = small(pixels)
        h, w = train.shape[-2:]
        norms: dict[tuple[int, int], Tensor] = {}
        best = []
        for images in (queries, queries.flip(-1)):
            r = torch.full((len(query),), -1.0)
            for template in _templates(images):
                if template.size not in norms:
                    norms[template.size] = _inverse_norms(train, template.size)
                inverse = norms[template.size][right]
                product = (template.spectrum[left] * spectra[right]).sum(1)
                correlation = torch.fft.irfft2(product, s=(h, w))
                valid = correlation[:, : inverse.shape[1], : inverse.shape[2]] * inverse
                r = torch.maximum(r, valid.flatten(1).amax(1))
            best.append(r.clamp(-1, 1).double().numpy())
        distances = np.full(candidates.shape, np.inf)
        distances[query, column] = np.sqrt(2 - 2 * np.maximum(*best))
        flipped = np.zeros(candidates.shape, bool)
        flipped[query, column] = best[1] > best[0]
        return distances, flipped


def small(pixels: Pixels) -> Tensor:
    """float32 in [0, 1], at most `SIDE` pixels on the longer side, smoothed with (1, 2, 1) / 4."""
    h, w = pixels.shape[-2:]
    images = pixels.float() / 255
    scale = SIDE / max(h, w)
    if scale < 1:
        size = max(1, round(h * scale)), max(1, round(w * scale))
        images = F.adaptive_avg_pool2d(images, size)
    # By slices: a convolution of each channel alone takes several times as long.
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16


def _templates(images: Tensor) -> list[_Template]:
    """The middle of each image, and the image made smaller as if its original were larger."""
    h, w = images.shape[-2:]
    top, left = round(h * REACH), round(w * REACH)
    windows = [images[..., top : h - top, left : w - left]]
    for scale in SCALES:
        size = max(1, round(h * scale)), max(1, round(w * scale))
        windows.append(
            F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        )
    templates = []
    for window in windows:
        size = window.shape[-2], window.shape[-1]
        window = window - window.mean((1, 2, 3), keepdim=True)
        norm = window.flatten(1).norm(dim=1)[:, None, None, None]
        window = torch.where(norm > _SMALLEST_NORM, window / norm.clamp(min=_SMALLEST_NORM), 0)
        padded = F.pad(window, (0, w - size[1], 0, h - size[0]))
        templates.append(_Template(torch.fft.rfft2(padded).conj(), size))
    return templates


def _inverse_norms(images: Tensor, size: tuple[int, int]) -> Tensor:
    """1 / norm of every window of the images about its own mean; 0 for windows of one colour."""

    def sums(values: Tensor) -> Tensor:
        total = F.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
        h, w = size
        return total[:, h:, w:] - total[:, :-h, w:] - total[:, h:, :-w] + total[:, :-h, :-w]

    count = images.shape[1] * size[0] * size[1]
    squares = sums(images.square().sum(1)) - sums(images.sum(1)).square() / count
    norms = squares.clamp(min=0).sqrt().float()
    return torch.where(norms > _SMALLEST_NORM, 1 / norms.clamp(min=_SMALLEST_NORM), 0)

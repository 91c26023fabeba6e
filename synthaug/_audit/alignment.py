"""How alike two images are when one may be mirrored, shifted, cropped, brighter or blurred.

Nearest neighbors propose a few training images for every query; here each proposal is laid over
the query in all ways that a copy may have been moved. A window of the query is brought to mean 0
and norm 1 and correlated with every window of the training image of the same size, normalized the
same way: the normalized cross-correlation r of Lewis 1995, "Fast Normalized Cross-Correlation",
with Fourier transforms for the correlation and running sums for the norms. The distance is
sqrt(2 - 2 r), which is the Euclidean distance of the two normalized windows. Both images are
smoothed a little first, since a copy is most easily lost in its finest detail.

What no shift and no scaling undoes is tried on the training image: it is also shown blurred, with
its highlights clipped (what is left of a brighter copy) and compressed. On CIFAR-100, with 1 %
copies among 2,500 images at a false discovery rate of 0.1, that raised the power from 0.00 to 1.00
for blurred copies, from 0.48 to 1.00 for brighter and from 0.14 to 1.00 for compressed ones.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from synthaug._audit.disturbances import jpeg
from synthaug._types import Indices, Pixels

SIDE = 32
"""Larger images are averaged down to this many pixels on their longer side."""

REACH = 1 / 8
"""A copy may be shifted by up to this share of its side."""

SCALES = (0.9, 0.8)
"""A copy may show this share of its original, enlarged."""

_CLIPPED = 212
"""Highest gray level that stays below 255 in an image made brighter by 1.2."""

_ROWS = 16
"""Queries compared at a time: with their training images few enough for the caches of a
processor."""

_PREPARED = 64
"""Training images prepared at a time, for the same reason."""

_PLACES = 3
"""Rows of places that share a matrix: with fewer the product is too narrow to be fast, with more
most of the matrix is zeros."""

_KEPT_BYTES = 2**28
"""Of what is kept of training images, for the next queries that are compared with them."""

_SMALLEST_NORM = 1e-3
"""Windows with less structure than this, in units of 255 gray levels, are of one color."""


@dataclass(frozen=True)
class _Window:
    """A size of windows that are slid over training images."""

    height: int
    width: int
    versions: int
    """How many versions of the training image they are slid over."""


class Aligner:
    """Compares images with some of the training images under all alignments.

    Args:
        train: uint8 (n, C, H, W).
    """

    def __init__(self, train: Pixels) -> None:
        self._train = train
        self._height, self._width = small(train[:1]).shape[-2:]
        # In large images compression changes nothing that is left when they are made small.
        self._compresses = max(train.shape[-2:]) <= SIDE
        self._windows = _windows(self._height, self._width, 4 if self._compresses else 3)
        self._compressed: dict[int, Pixels] = {}
        self._inverse_norms: dict[int, Tensor] = {}
        """Of all windows of a training image, one window size and version after the other."""

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

    def difference(self, image: Pixels, row: int) -> Pixels:
        """Returns the rest of an image, uint8 (1, C, H, W), without a training image laid over
        it.

        Returns:
            uint8 (C, h, w), the window that fits best: mid-gray (128) where both are equal once
            the training image has the brightness and contrast of the window.
        """
        best, shown = -2.0, small(image)[0]
        versions, inverse_norms = self._versions(np.array([row]))
        templates = self._templates(image)
        for window, template, inverse in zip(self._windows, templates, inverse_norms, strict=True):
            r = _correlations(template[0], versions[:, : window.versions]) * inverse
            if float(r.max()) <= best:
                continue
            best = float(r.max())
            mirrored, _, version, top, left = np.unravel_index(int(r.argmax()), r.shape)
            h, w = window.height, window.width
            original = versions[0, version, top : top + h, :, left : left + w].transpose(0, 1)
            original = original - original.mean()
            norm = original.norm().clamp(min=_SMALLEST_NORM)
            shown = template[0, mirrored] * norm - best * original
        return (128 + 255 * shown).round().clamp(0, 255).to(torch.uint8)

    def _distances(
        self, pixels: Pixels, candidates: Indices
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        distances = np.full(candidates.shape, np.inf)
        flipped = np.zeros(candidates.shape, bool)
        rows = np.unique(candidates[candidates >= 0])
        if not len(rows):
            return distances, flipped
        versions, inverse_norms = self._versions(rows)
        templates = self._templates(pixels)
        for i, wanted in enumerate(candidates >= 0):
            which = torch.from_numpy(np.searchsorted(rows, candidates[i, wanted]))
            images = versions[which]
            best = torch.full((2, len(which)), -1.0, dtype=torch.float32, device="cpu")
            for window, template, inverse in zip(
                self._windows, templates, inverse_norms, strict=True
            ):
                r = _correlations(template[i], images[:, : window.versions]) * inverse[which]
                best = torch.maximum(best, r.amax((2, 3, 4)))
            as_it_is, mirrored = best.clamp(-1, 1).double().numpy()
            distances[i, wanted] = np.sqrt(2 - 2 * np.maximum(as_it_is, mirrored))
            flipped[i, wanted] = mirrored > as_it_is
        return distances, flipped

    def _templates(self, pixels: Pixels) -> list[Tensor]:
        """Windows of images, as they are and mirrored, with mean 0 and norm 1.

        These are the middle of an image, and the image made smaller as if its original were larger.

        Returns:
            float32 (n, 2, C, height, width), for each size of windows.
        """
        images = small(pixels)
        images = torch.stack([images, images.flip(-1)], 1).flatten(0, 1)
        top, left = ((s - t) // 2 for s, t in zip(images.shape[-2:], self._middle, strict=True))
        shown = [images[..., top : top + self._middle[0], left : left + self._middle[1]]]
        shown += [
            F.interpolate(
                images,
                (window.height, window.width),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
            for window in self._windows[1:]
        ]
        return [_normalized(window).unflatten(0, (len(pixels), 2)) for window in shown]

    @property
    def _middle(self) -> tuple[int, int]:
        return self._windows[0].height, self._windows[0].width

    def _versions(self, rows: Indices) -> tuple[Tensor, list[Tensor]]:
        """The training images as they may look in a copy, as they are first.

        Returns:
            float32 (n, versions, H, C, W), each with mean 0; and the inverse norms of the windows
            in them, for each size of windows, (n, versions, y, x).
        """
        h, w, channels = self._height, self._width, self._train.shape[1]
        count = self._windows[0].versions
        versions = torch.empty(len(rows), count, h, channels, w, dtype=torch.float32, device="cpu")
        inverse_norms = []
        for start in range(0, len(rows), _PREPARED):
            part = slice(start, start + _PREPARED)
            images, norms = self._prepared(rows[part])
            centered = images - images.mean((2, 3, 4), keepdim=True)
            versions[part] = centered.transpose(2, 3)
            inverse_norms.append(norms)
        shapes = [(x.versions, h - x.height + 1, w - x.width + 1) for x in self._windows]
        parts = torch.cat(inverse_norms).split([math.prod(shape) for shape in shapes], 1)
        return versions, [x.unflatten(1, shape) for x, shape in zip(parts, shapes, strict=True)]

    def _prepared(self, rows: Indices) -> tuple[Tensor, Tensor]:
        """The versions of some training images, (n, versions, C, H, W), and inverse norms."""
        pixels = self._train[torch.from_numpy(rows)]
        missing = [i for i, row in enumerate(rows.tolist()) if row not in self._inverse_norms]
        new = rows[missing].tolist()
        plain = small(pixels)
        # Smoothed twice more they are blurred with a standard deviation of one pixel.
        versions = [plain, smoothed(smoothed(plain)), small(pixels.clamp(max=_CLIPPED))]
        if self._compresses:
            if new:
                self._compressed.update(zip(new, jpeg(pixels[missing], 50), strict=True))
            versions.append(small(torch.stack([self._compressed[row] for row in rows.tolist()])))
        images = torch.stack(versions, 1)
        if new:
            norms = [
                _inverse_norms(images[missing, : x.versions].flatten(0, 1), (x.height, x.width))
                .unflatten(0, (len(new), x.versions))
                .flatten(1)
                for x in self._windows
            ]
            self._inverse_norms.update(zip(new, torch.cat(norms, 1), strict=True))
        kept = torch.stack([self._inverse_norms[row] for row in rows.tolist()])
        compressed = pixels[0].nbytes if self._compresses else 0
        if len(self._inverse_norms) * (kept[0].nbytes + compressed) > _KEPT_BYTES:
            self._inverse_norms.clear()
            self._compressed.clear()
        return images, kept


def _windows(h: int, w: int, versions: int) -> list[_Window]:
    """The sizes of the windows in images of h x w pixels.

    Only the middle is compared with all versions, since each takes its time.
    """
    scaled = [(max(1, round(h * scale)), max(1, round(w * scale)), 1) for scale in SCALES]
    middle = h - 2 * round(h * REACH), w - 2 * round(w * REACH), versions
    return [_Window(*size) for size in (middle, *scaled)]


def _normalized(windows: Tensor) -> Tensor:
    """Windows (n, C, h, w) with mean 0 and norm 1; 0 where they are of one color."""
    windows = windows - windows.mean((1, 2, 3), keepdim=True)
    norm = windows.flatten(1).norm(dim=1)[:, None, None, None]
    return torch.where(norm > _SMALLEST_NORM, windows / norm.clamp(min=_SMALLEST_NORM), 0)


def _correlations(windows: Tensor, images: Tensor) -> Tensor:
    """Sums of the products of windows with images, for all places of the windows.

    Args:
        windows: float32 (m, C, h, w).
        images: float32 (n, versions, H, C, W).

    Returns:
        float32 (m, n, versions, H - h + 1, W - w + 1).
    """
    n, versions, height, channels, width = images.shape
    m, _, h, w = windows.shape
    y, x = height - h + 1, width - w + 1
    # A matrix holds the windows at some places, with zeros around them. A step of an image's rows
    # later it holds them at the places below.
    together = math.ceil(y / math.ceil(y / _PLACES))
    rows = h + together - 1
    matrix = windows.new_zeros(together, m, x, rows, channels, width)
    down, of_window, right, row, channel, column = matrix.stride()
    at_places = matrix.as_strided(
        (together, m, x, h, channels, w),
        (down + row, of_window, right + column, row, channel, column),
    )
    at_places.copy_(windows.transpose(1, 2)[None, :, None])
    matrix = matrix.view(together * m * x, rows * channels * width)
    images = images.flatten(0, 1)
    sums = windows.new_empty(y, m, x, n * versions)
    for top in range(0, y, together):
        top = min(top, y - together)
        shown = images[:, top : top + rows].flatten(1)
        torch.mm(matrix, shown.T, out=sums[top : top + together].view(len(matrix), n * versions))
    return sums.view(y, m, x, n, versions).permute(1, 3, 4, 0, 2)


def small(pixels: Pixels) -> Tensor:
    """float32 in [0, 1], at most `SIDE` pixels on the longer side, smoothed with (1, 2, 1) / 4."""
    return smoothed(reduced(pixels))


def reduced(pixels: Pixels) -> Tensor:
    """float32 in [0, 1], at most `SIDE` pixels on the longer side."""
    h, w = pixels.shape[-2:]
    images = pixels.float() / 255
    scale = SIDE / max(h, w)
    if scale < 1:
        size = max(1, round(h * scale)), max(1, round(w * scale))
        images = F.adaptive_avg_pool2d(images, size)
    return images


def smoothed(images: Tensor) -> Tensor:
    """The images under (1, 2, 1) / 4 along both sides."""
    # By slices: a convolution of each channel alone takes several times as long.
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    # In place: new memory for every sum costs more than the sums.
    rows = padded[..., :-2, :].add(padded[..., 1:-1, :], alpha=2).add_(padded[..., 2:, :])
    return rows[..., :-2].add(rows[..., 1:-1], alpha=2).add_(rows[..., 2:]).div_(16)


def _inverse_norms(images: Tensor, size: tuple[int, int]) -> Tensor:
    """1 / norm of every window of the images about its own mean; 0 for windows of one color."""

    def sums(values: Tensor) -> Tensor:
        total = F.pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))
        h, w = size
        return total[:, h:, w:] - total[:, :-h, w:] - total[:, h:, :-w] + total[:, :-h, :-w]

    # Squares in float32 would hide the structure of windows that are almost of one color.
    images, count = images.double(), images.shape[1] * size[0] * size[1]
    squares = sums(images.square().sum(1)) - sums(images.sum(1)).square() / count
    norms = squares.clamp(min=0).sqrt().float()
    return torch.where(norms > _SMALLEST_NORM, 1 / norms.clamp(min=_SMALLEST_NORM), 0)

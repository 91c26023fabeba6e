"""The agreement of edges in two images."""

import numpy as np
from torch import Tensor

from synthaug._types import Doubles, Pixels


def edge_agreement(images: Pixels, others: Pixels) -> Doubles:
    """How well edges of images lie at the same places: 1 for the same edges, about 0 for unrelated.

    The correlation, over the pixels, of the strengths of edges: gray levels, smoothed by a Gaussian
    of one pixel, and the length of Sobel's gradient. It does not change with contrast, with
    brightness, or where light and dark are exchanged; JPEG artifacts and noise cost little, a shift
    by two pixels much. It is one number for the whole image: a small part that moved alone hardly
    shows.

    Args:
        images: uint8 (n, C, H, W).
        others: uint8 (n, C, H, W), the same shape.

    Returns:
        float64 (n,) in [-1, 1]; images without any edge agree with each other alone.

    Raises:
        ValueError: If the shapes differ.
    """
    if images.shape != others.shape:
        raise ValueError(
            f"`others` has the shape {tuple(others.shape)}, and `images` "
            f"{tuple(images.shape)}. To compare edges, give images of one size."
        )
    first, second = _edges(images), _edges(others)
    lengths = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    both_flat = ~first.any(axis=1) & ~second.any(axis=1)
    agreement = (first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return np.where(both_flat, 1.0, agreement.clip(-1, 1))


def _edges(images: Tensor) -> Doubles:
    """Strengths of edges less their mean, float64 (n, H * W)."""
    from scipy import ndimage

    gray = images.detach().cpu().numpy().astype(np.float64).mean(axis=1)
    smooth = ndimage.gaussian_filter(gray, (0, 1, 1), mode="nearest")
    across, down = _slope(smooth, 2, 1), _slope(smooth, 1, 2)
    strength = np.hypot(across, down).reshape(len(gray), -1)
    strength[strength < 1e-6 * 255] = 0  # rounding of flat images
    return np.asarray(strength - strength.mean(axis=1, keepdims=True))


def _slope(gray: Doubles, along: int, across: int) -> Doubles:
    """Sobel's filter along one axis, smoothed over the other; SciPy's smooths over images too."""
    from scipy.ndimage import correlate1d

    steps = correlate1d(gray, [-1, 0, 1], axis=along, mode="nearest")
    return np.asarray(correlate1d(steps, [1, 2, 1], axis=across, mode="nearest"))

"""At least how many of some rows are copies: a bound that holds for all sets of rows at once.

Take the synthetic images that are no copies, and the held-out ones, in order of closeness. If they
are exchangeable within their classes, whatever comes next in that order is synthetic with a chance
of at most s_h = max over classes of m / (m + n - h), once h held-out images have come; m and n are
the numbers of the class. So before the held-out image h + 1 there are at most as many of them as
the sum of h + 1 independent geometric numbers, for all h together. From that follow limits b_h
that, with the confidence asked for, none of these counts exceeds. Whatever exceeds b_h is copies:
of any set of rows at least max over h of (rows of the set before held-out image h + 1) - b_h.

This is closed testing with a local test that is monotone, so that its shortcut is exact (Goeman and
Solari 2011; Blanchard, Neuvial and Roquain 2020, "Post hoc confidence bounds on false positives
using reference families"): the set may be chosen after looking. No number of copies and no place of
theirs is assumed, and none of the limits is simulated.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from synthaug._audit.precedence import Flags
from synthaug._types import Indices

CONFIDENCE = 0.95

_DEPTH = 60
"""Held-out images up to which is counted: copies that lie behind so many cannot be told apart."""

_LARGEST_SHARE = 0.95
"""Where nearly every image is synthetic, nothing can be told from their number."""

_STEPS = 20


def fewest_copies(is_synthetic: Flags, strata: Indices, chosen: Flags, level: float) -> int:
    """A number that no more than the copies among some synthetic images exceed.

    Args:
        is_synthetic: Whether each image is, (N,), the closest to training first; of images that
            resemble each other only the closest.
        strata: Class of each, int64 (N,); all alike if unknown.
        chosen: The images in question, (N,).
        level: Chance that the bound is too high.
    """
    classes = np.unique(strata, return_inverse=True)[1]
    sizes = [np.bincount(classes[part], minlength=1) for part in (is_synthetic, ~is_synthetic)]
    width = max(map(len, sizes))
    m, n = (np.pad(size, (0, width - len(size))) for size in sizes)
    depth = min(_DEPTH, int(n[m > 0].min(initial=_DEPTH)))
    if depth == 0 or not is_synthetic.any():
        return 0
    after = np.arange(depth)[:, None]
    shares = (m[m > 0] / (m[m > 0] + n[m > 0] - after)).max(axis=1)
    shares = shares[shares <= _LARGEST_SHARE]
    if not len(shares):
        return 0
    before = np.cumsum(~is_synthetic)[is_synthetic & chosen]
    counts = np.cumsum(np.bincount(before, minlength=len(shares))[: len(shares)])
    return max(0, int((counts - most_by_chance(tuple(shares.tolist()), level)).max()))


@cache
def most_by_chance(shares: tuple[float, ...], level: float) -> Indices:
    """The limits b_h that counts of images which are no copies keep to together, int64 (h,).

    Args:
        shares: Chance s_h that the next image is synthetic, once h held-out ones have come.
        level: Chance that one of the limits is exceeded.
    """
    # Beyond the mean and twelve standard deviations: what is cut off counts as too many.
    odds = np.array(shares) / (1 - np.array(shares))
    length = int(odds.sum() + 12 * np.sqrt((odds + odds**2).sum())) + 40
    beyond, counts = [], np.eye(1, length)[0]
    for share in shares:
        counts = _one_more(counts, share)
        beyond.append(1 - np.cumsum(counts))

    def limits(each: float) -> Indices:
        return np.array([np.argmax(chance <= each) for chance in beyond], np.int64)

    low, high = level / len(shares), level  # of the chances that each limit may be exceeded with
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        kept = _kept(shares, limits(middle), length)
        low, high = (middle, high) if 1 - kept <= level else (low, middle)
    return limits(low)


def _kept(shares: tuple[float, ...], limits: Indices, length: int) -> float:
    """The chance that no limit is exceeded."""
    counts = np.eye(1, length)[0]
    for share, limit in zip(shares, limits.tolist(), strict=True):
        counts = _one_more(counts, share)
        counts[limit + 1 :] = 0
    return float(counts.sum())


def _one_more(counts: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The distribution of a count to which a geometric number is added."""
    added: NDArray[np.float64] = lfilter([1 - share], [1, -share], counts)
    return added

"""Other ways to look for copies, beside the audit: how high they rank the copies among all images.

Used by `audit_copies.py --peers`. Nearest-neighbor distances and ratios (Carlini et al. 2023),
authenticity (AuthPct, Alaa et al. 2022) and C_T (Meehan et al. 2020) are computed here from their
formulas, on pixels averaged to 16 x 16. The hashes are imagededup's, if it is installed:
`pip install imagededup`.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score
from torch.nn.functional import adaptive_avg_pool2d

HASHES = ("PHash", "DHash", "AHash", "WHash")
FALSE_ALARMS = 0.01
"""Share of the honest images that each way is allowed to flag where flags are compared."""

Suspicion = NDArray[np.float64]
"""One number for each image, small is suspicious."""


class Peers:
    """Ranks images by how closely they resemble training images.

    Args:
        train: uint8 (n, C, H, W).
        holdout: Same as `train`.
    """

    def __init__(self, train: Any, holdout: Any) -> None:
        self._train = _small(train)
        self._own = torch.cdist(self._train, self._train).topk(2, largest=False).values[:, 1]
        self._usual = torch.cdist(_small(holdout), self._train).min(dim=1).values
        hashes = HASHES if find_spec("imagededup") else ()
        self._hashers = {name: _Hasher(name) for name in hashes}
        self._codes = {name: hasher(train) for name, hasher in self._hashers.items()}

    def suspicions(self, images: Any) -> dict[str, Suspicion]:
        """How suspicious each way finds images, uint8 (n, C, H, W)."""
        distance, nearest = torch.cdist(_small(images), self._train).topk(50, largest=False)
        found = {
            "nearest-neighbor distance": distance[:, 0],
            "nearest-neighbor ratio": distance[:, 0] / distance[:, 1:].mean(dim=1),
            "authenticity (AuthPct)": distance[:, 0] / self._own[nearest[:, 0]].clamp(min=1e-6),
        }
        ranked = {name: values.double().numpy() for name, values in found.items()}
        for name, codes in self._codes.items():
            differing = self._hashers[name](images)[:, None] ^ codes[None]
            ranked[f"imagededup {name}"] = np.bitwise_count(differing).min(axis=1).astype(float)
        return ranked

    def data_copying(self, images: Any) -> float:
        """One-sided p-value of C_T in one cell: are images closer to training than the hold-out?"""
        distance = torch.cdist(_small(images), self._train).min(dim=1).values
        return float(mannwhitneyu(distance, self._usual, alternative="less").pvalue)


def judged(suspicion: Suspicion, is_copy: NDArray[np.bool_]) -> dict[str, float]:
    """Average precision, and the share of copies below as many false alarms as all are allowed."""
    limit = np.quantile(suspicion[~is_copy], FALSE_ALARMS, method="lower")
    return {
        "average_precision": float(average_precision_score(is_copy, -suspicion)),
        "found": float((suspicion[is_copy] < limit).mean()),
    }


def by_audit(report: Any) -> Suspicion:
    """The audit's own ranking: flagged for its pixels first, then by p-value, then by score."""
    p = np.where(np.isnan(report.p_values), 0, report.p_values)
    rank = np.empty(len(p))
    rank[np.lexsort((report.scores.min(axis=1), p))] = np.arange(len(p))
    return rank


def _small(images: Any) -> torch.Tensor:
    return adaptive_avg_pool2d(torch.as_tensor(images).float(), 16).flatten(1)


class _Hasher:
    """One of imagededup's hashes, 64 bits each; remembers those of images it has seen."""

    def __init__(self, name: str) -> None:
        from imagededup import methods

        self._encode: Callable[..., str] = getattr(methods, name)(verbose=False).encode_image
        self._codes: dict[bytes, int] = {}

    def __call__(self, images: Any) -> NDArray[np.uint64]:
        photos = np.asarray(images)
        photos = np.broadcast_to(photos, (len(photos), 3, *photos.shape[2:])).transpose(0, 2, 3, 1)
        return np.array([self._code(np.ascontiguousarray(photo)) for photo in photos], np.uint64)

    def _code(self, photo: NDArray[np.uint8]) -> int:
        content = photo.tobytes()
        if content not in self._codes:
            self._codes[content] = int(self._encode(image_array=photo), 16)
        return self._codes[content]

"""The training image to name for each image, and both of them as a report shows them."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from synthaug._audit.calibration import conformal_p_values
from synthaug._audit.differences import rmse
from synthaug._audit.inputs import AuditSet, key_text
from synthaug._audit.matches import Matches
from synthaug._audit.matching import Matcher
from synthaug._pixels import to_pil
from synthaug._support.html import data_uri
from synthaug._types import JSON

_SHOWN_SIDE = 96


class Pick:
    """The one training image to name for each of n images.

    Its twin if it has one, else the neighbor by the statistic in which the image ranks lowest
    among the hold-out; without a hold-out by the first statistic.
    """

    def __init__(self, matches: Matches, null: Matches | None, T: AuditSet) -> None:
        n, s = matches.scores.shape
        ranks = np.zeros((n, s))
        if null is not None:
            ranks = np.stack(
                [conformal_p_values(matches.scores[:, j], null.scores[:, j]) for j in range(s)],
                axis=1,
            )
        self.lowest_p = ranks.min(axis=1)
        self.statistic = ranks.argmin(axis=1)
        chosen = np.arange(n), self.statistic
        twin = matches.twins >= 0
        self.neighbors = np.where(twin, matches.twins, matches.neighbors[chosen])
        self.flipped = np.where(twin, matches.twin_flipped, matches.flipped[chosen])


def rmse_of(images: AuditSet, T: AuditSet, pick: Pick) -> NDArray[np.float64]:
    """Root mean square difference of each image to the one named for it, (n,); NaN for features.

    `pick` may name images for withdrawn rows behind them.
    """
    if not isinstance(images.samples, Tensor):
        return np.full(len(images), np.nan)
    n = len(images)
    return rmse(images.pixels, T.pixels, pick.neighbors[:n], pick.flipped[:n])


def pair_of(
    i: int, images: AuditSet, T: AuditSet, matches: Matches, pick: Pick, matcher: Matcher
) -> dict[str, JSON]:
    """Returns the report's entry for image `i` and its nearest training image."""
    row, neighbor = int(images.rows[i]), int(pick.neighbors[i])
    flipped, statistic = bool(pick.flipped[i]), int(pick.statistic[i])
    pair: dict[str, JSON] = {
        "row": row,
        "class": _class_name(images, int(images.labels[i])),
        "file": images.images.file_names([row])[0],
        "train_row": int(T.rows[neighbor]),
        "train_class": _class_name(T, int(T.labels[neighbor])),
        "train_file": T.images.file_names(T.rows[[neighbor]])[0],
        "flipped": flipped,
        "statistic": matcher.statistics[statistic],
        "score": float(matches.scores[i, statistic]),
        "distance": float(matches.distances[i, statistic]),
        "rmse": None,
        "image": None,
        "train_image": None,
        "difference": None,
        "digest": key_text(images.keys[i]),
        "train_digest": key_text(T.keys[neighbor]),
    }
    if not isinstance(images.samples, Tensor):
        return pair
    image, counterpart = images.pixels[i : i + 1], T.pixels[neighbor]
    difference = rmse(image, T.pixels, pick.neighbors[[i]], pick.flipped[[i]])
    return pair | {
        "rmse": float(difference[0]),
        "image": _shown(image[0]),
        # Mirrored for the eye, so that both images show the same side.
        "train_image": _shown(counterpart.flip(-1) if flipped else counterpart),
        "difference": _shown(matcher.difference(image, neighbor)),
    }


def counterpart(H: AuditSet, best: Matches, j: int, statistic: int) -> dict[str, JSON]:
    """The hold-out image closest to a shown one, by the statistic that its pair is shown for."""
    row = int(best.neighbors[j, statistic])
    image = H.pixels[row] if isinstance(H.samples, Tensor) else None
    if image is not None and best.flipped[j, statistic]:
        image = image.flip(-1)
    return {
        "holdout_row": int(H.rows[row]),
        "holdout_distance": float(best.distances[j, statistic]),
        "holdout_image": None if image is None else _shown(image),
    }


def _class_name(images: AuditSet, label: int) -> str | None:
    if label < 0:
        return None
    return images.classes[label] if label < len(images.classes) else str(label)


def _shown(pixels: Tensor) -> str:
    image = to_pil(pixels)
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return data_uri(image)

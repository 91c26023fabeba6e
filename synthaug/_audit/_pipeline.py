"""The memorization audit: are synthetic images copies of training images?

Every synthetic image is compared with all training images, of all classes, as it is and mirrored.
Two tiers judge the comparison:

1. equal or nearly equal pixels are flagged, always. No statistics;
2. of the rest, those are flagged which come closer to a training image than held-out real images
   do, as far as that can be told at a given false discovery rate (`_calibration`). The hold-out
   takes the very same path, and its images that fall under 1 are set aside as well, so that what
   remains of both is compared like with like.

The score is the distance to the nearest training image over the mean distance to the next ones
(after Carlini et al. 2023, https://arxiv.org/abs/2301.13188). Against the bare distance it keeps
its calibration when a generator makes images that are more typical, and so closer to everything,
than real ones: with such images and 1 % planted copies, the share of wrong flags at a nominal 0.1
was 0.27 for the bare distance and 0.125 for the ratio.

Every audit also measures itself: it plants copies of training images, disturbed in several ways,
among the synthetic ones and reports how many it flagged.
"""

import math
import platform
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._audit._calibration import conformal_p_values, q_values, resolution
from synthaug._audit._disturbances import disturbances
from synthaug._audit._inputs import ImageSet, check_comparable, image_set, keys
from synthaug._audit._matching import Matcher, Matches
from synthaug._audit._report import CALIBRATED, CLEAR, EXACT, NOT_JUDGED, AuditReport, Power
from synthaug._audit._verdict import Counts, judge, smallest_visible
from synthaug._html import data_uri
from synthaug._noise import counter_rng
from synthaug._pixels import to_pil
from synthaug._types import JSON
from synthaug.features import Extractor, Pixel, describe

NEEDED_POWER = 0.9
"""Share of the planted copies of each required kind that must be flagged."""

_PLANTED_AT_LEAST = 50
_HALVINGS = 100
_SHOWN_SIDE = 96
_HOLDOUT_PAIRS = 5


def audit(
    synthetic: Any,
    train: Any,
    *,
    holdout: Any = None,
    features: Extractor | None = None,
    fdr: float = 0.05,
    k: int | None = None,
    max_pairs: int = 50,
    batch_size: int = 512,
    deduplicate: bool = False,
    progress: bool = True,
    seed: int = 0,
) -> AuditReport:
    """Looks for copies of training images among synthetic ones.

    Args:
        synthetic: A cache, any map-style image data set, or uint8 pixels (n, C, H, W). Of a cache
            the finished rows are judged.
        train: All real images that the generator was trained on, in any of these forms, of the
            same shape. Every class is searched for every row.
        holdout: Real images from the same source that the generator has never seen, a random split
            made before it was trained. Without them the verdict is at best "inconclusive".
        features: The space in which distances are taken; `features.Pixel(16)` by default. Equal
            and nearly equal pixels are looked for in any case.
        fdr: False discovery rate: the share of flagged rows, on average, that may be no copies.
            Also the chance to flag anything if the generator copies nothing.
        k: Neighbours that the score looks at. By default 50, or the root of the number of training
            images if that is less.
        max_pairs: Pairs kept in the report as images.
        batch_size: Images per call of `features`.
        deduplicate: Sets hold-out images aside that are also training images, instead of refusing.
        progress: Shows a bar with the rate and the time left.
        seed: For choosing and disturbing the planted copies.

    Returns:
        The report.

    Raises:
        TypeError: An argument is not of a kind named above.
        ValueError: A value out of range, no images, images of different shapes, classes that
            differ, a hold-out that overlaps the training images, or features that are not finite.
    """
    from tqdm.auto import tqdm

    if not 0 < fdr < 1:
        raise ValueError(f"`fdr` must lie between 0 and 1, got {fdr}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if max_pairs < 0:
        raise ValueError(f"`max_pairs` must not be negative, got {max_pairs}.")
    extractor: Extractor = Pixel() if features is None else features
    if not isinstance(extractor, Extractor):
        raise TypeError(
            f"`features` is a {type(features).__name__}, expected an extractor such as "
            "`features.Pixel()` or `features.TorchModule(network)`."
        )

    S = image_set(synthetic, "synthetic", progress=progress)
    T = image_set(train, "train", progress=progress)
    H = None if holdout is None else image_set(holdout, "holdout", progress=progress)
    check_comparable(S, T, *([] if H is None else [H]))
    overlap = 0
    if H is not None:
        H, overlap = _without_overlap(H, T, deduplicate)
    num_distinct = len(set(keys(T.pixels)))
    k = k if k is not None else min(50, max(2, int(num_distinct**0.5)))
    num_planted = min(len(T), max(_PLANTED_AT_LEAST, smallest_visible(len(S))))
    kinds = disturbances((S.pixels.shape[1], S.pixels.shape[2], S.pixels.shape[3]))

    total = num_distinct + len(S) + (0 if H is None else len(H)) + len(kinds) * num_planted
    with tqdm(
        total=total, desc="Auditing", unit="image", disable=None if progress else True
    ) as bar:
        matcher = Matcher(T.pixels, extractor, k=k, batch_size=batch_size, tick=bar.update)
        found = matcher.match(S.pixels)
        null = None if H is None else matcher.match(H.pixels)
        originals = counter_rng(seed, 1).choice(len(T), num_planted, replace=False)
        copies = T.pixels[torch.from_numpy(originals)]
        plants = [matcher.match(kind.apply(copies, seed)) for kind in kinds]

    tier = np.where(found.near_equal, EXACT, CLEAR).astype(np.int8)
    p = np.full(len(S), np.nan)
    q = np.full(len(S), np.nan)
    fresh = None if null is None else null.scores[~null.near_equal]
    self_test: dict[str, JSON] = {}
    if fresh is not None and len(fresh):
        rest = ~found.near_equal
        p[rest] = _p_values(found.scores[rest], fresh)
        q[rest] = q_values(p[rest])
        tier[rest & (q <= fdr)] = CALIBRATED
        self_test = _halvings(fresh, fdr, seed)
    train_keys = np.array(keys(T.pixels), dtype=object)
    power = []
    for kind, planted in zip(kinds, plants, strict=True):
        found_again = train_keys[planted.neighbours] == train_keys[originals]
        share, needed = _power(planted, fresh, len(S), fdr)
        power.append(
            Power(
                kind=kind.name,
                required=kind.required,
                planted=min(len(S), smallest_visible(len(S))),
                power=share,
                found=float(found_again.mean()),
                needed=needed,
            )
        )
    counts = Counts(
        synthetic_rows=S.total,
        synthetic_judged=len(S),
        train=len(T),
        train_distinct=num_distinct,
        holdout=0 if H is None else len(H),
        holdout_dropped=overlap,
        holdout_near_equal=0 if null is None else int(null.near_equal.sum()),
        resolution=None if fresh is None else resolution(len(S), len(fresh), fdr),
    )
    verdict, reasons = judge(
        exact=int((tier == EXACT).sum()),
        calibrated=int((tier == CALIBRATED).sum()),
        counts=counts,
        power=power,
        self_test=self_test,
        fdr=fdr,
    )
    shown = _closest(tier, found)[:max_pairs]
    closest_null = np.zeros(0, np.int64) if null is None else np.argsort(null.scores, kind="stable")
    return AuditReport(
        verdict=verdict,
        reasons=tuple(reasons),
        identity=S.identity,
        tier=_spread(tier, S, NOT_JUDGED),
        p_values=_spread(p, S, np.nan),
        q_values=_spread(q, S, np.nan),
        scores=_spread(found.scores, S, np.nan),
        distances=_spread(found.distances, S, np.nan),
        rmse=_spread(found.rmse, S, np.nan),
        neighbours=_spread(T.rows[found.neighbours], S, -1),
        neighbour_flipped=_spread(found.flipped, S, False),
        labels=S.labels,
        classes=S.classes,
        holdout_scores=np.zeros(0) if null is None else null.scores,
        holdout_distances=np.zeros(0) if null is None else null.distances,
        power=tuple(power),
        self_test=self_test,
        settings={
            "fdr": fdr,
            "k": k,
            "seed": seed,
            "features": describe(extractor),
            "train_identity": T.identity,
            "holdout_identity": None if H is None else H.identity,
            **asdict(counts),
        },
        environment=_environment(),
        pairs=tuple(
            _pair(i, S, T, found)
            | {"tier": int(tier[i]), "p_value": _number(p[i]), "q_value": _number(q[i])}
            for i in shown.tolist()
        ),
        holdout_pairs=()
        if null is None or H is None
        else tuple(_pair(i, H, T, null) for i in closest_null[:_HOLDOUT_PAIRS].tolist()),
    )


def _p_values(scores: NDArray[np.float64], fresh: NDArray[np.float64]) -> NDArray[np.float64]:
    return conformal_p_values(scores[:, None], fresh[:, None])


def _without_overlap(H: ImageSet, T: ImageSet, deduplicate: bool) -> tuple[ImageSet, int]:
    known = set(keys(T.pixels))
    overlapping = np.array([key in known for key in keys(H.pixels)])
    count = int(overlapping.sum())
    if count == 0:
        return H, 0
    if not deduplicate:
        raise ValueError(
            f"{count} of the {len(H)} images in `holdout` are also in `train` (the first: hold-out "
            f"image {H.rows[overlapping][0]}). Give images that the generator has never seen, or "
            "set these aside with `deduplicate=True`."
        )
    if count == len(H):
        raise ValueError("All images in `holdout` are also in `train`: nothing is held out.")
    return H.select(~overlapping), count


def _power(
    planted: Matches, fresh: NDArray[np.float64] | None, m: int, fdr: float
) -> tuple[float, int | None]:
    """Share of planted copies that is flagged among m rows, and how many copies it takes.

    All other rows are taken to be far from suspicious; where they are not, that helps the copies.
    """
    if fresh is None or not len(fresh):
        share = float(planted.near_equal.mean())
        return share, 1 if share >= NEEDED_POWER else None
    copies = np.where(planted.near_equal, 0.0, _p_values(planted.scores, fresh))
    count = min(m, smallest_visible(m))
    among = np.concatenate([np.resize(copies, count), np.ones(m - count)])
    share = float((q_values(among)[:count] <= fdr).mean())
    hardest = float(np.quantile(copies, NEEDED_POWER, method="inverted_cdf"))
    if hardest == 0:
        return share, 1
    # Of j copies at least the share that has p <= hardest is flagged as soon as
    # hardest <= fdr * share * j / m.
    needed = math.ceil(hardest * m / (fdr * float((copies <= hardest).mean())) - 1e-9)
    return share, needed if needed <= m else None


def _halvings(fresh: NDArray[np.float64], fdr: float, seed: int) -> dict[str, JSON]:
    """Audits one half of the hold-out against the other, many times: hardly any may flag."""
    if len(fresh) < 4:
        return {}
    half = len(fresh) // 2
    flagged = []
    for i in range(_HALVINGS):
        order = counter_rng(seed, 2, i).permutation(len(fresh))
        p = _p_values(fresh[order[:half]], fresh[order[half:]])
        flagged.append(int((q_values(p) <= fdr).sum()))
    counts = np.array(flagged)
    return {
        "halvings": _HALVINGS,
        "rows": half,
        "any_flagged": int((counts > 0).sum()),
        "mean_flagged": float(counts.mean()),
    }


def _closest(tier: NDArray[np.int8], found: Matches) -> NDArray[np.int64]:
    """All rows, flagged ones first, the lowest scores first within each."""
    return np.lexsort((found.rmse, found.scores, tier == CLEAR))


def _pair(i: int, images: ImageSet, T: ImageSet, found: Matches) -> dict[str, JSON]:
    row, neighbour = int(images.rows[i]), int(found.neighbours[i])
    flipped = bool(found.flipped[i])
    counterpart = T.pixels[neighbour]
    return {
        "row": row,
        "class": _class_name(images, row),
        "train_row": int(T.rows[neighbour]),
        "train_class": _class_name(T, int(T.rows[neighbour])),
        "flipped": flipped,
        "score": float(found.scores[i]),
        "distance": float(found.distances[i]),
        "rmse": float(found.rmse[i]),
        "image": _shown(images.pixels[i]),
        # Mirrored for the eye, so that both images show the same side.
        "train_image": _shown(counterpart.flip(-1) if flipped else counterpart),
    }


def _class_name(images: ImageSet, row: int) -> str | None:
    label = int(images.labels[row])
    if label < 0:
        return None
    return images.classes[label] if label < len(images.classes) else str(label)


def _shown(pixels: Tensor) -> str:
    image = to_pil(pixels)
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return data_uri(image)


def _spread(values: NDArray[Any], images: ImageSet, missing: Any) -> NDArray[Any]:
    """Values of the judged rows at their places among all rows."""
    spread = np.full(images.total, missing, values.dtype)
    spread[images.rows] = values
    return spread


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _environment() -> dict[str, JSON]:
    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{
            name: installed(name)
            for name in ("synthaug", "torch", "numpy", "faiss-cpu", "scipy", "pillow")
        },
    }

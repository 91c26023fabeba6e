"""The memorization audit: are synthetic images copies of training images?

Every synthetic image is compared with all training images, of all classes, as it is and mirrored.
Three tiers judge the comparison:

1. equal or nearly equal pixels, as they are or once aligned, are flagged always. No statistics;
2. of the rest, those are flagged which come closer to a training image than held-out real images
   do, as far as that can be told at a given false discovery rate (`_calibration`). The hold-out
   takes the very same path, and its images that fall under 1 are set aside as well, so that what
   remains of both is compared like with like;
3. training and hold-out images compete for being the closest match (`_competition`). That needs
   more copies to see any, but holds for synthetic images that as a whole are closer to real ones
   than real ones are to each other. If they are so, this tier decides and not the second.

Every statistic says how much closer than usual an image comes to one training image (`_matching`):
in every feature space the distance to the nearest training image over the mean distance to the next
ones (after Carlini et al. 2023, https://arxiv.org/abs/2301.13188), and likewise the distance under
the best alignment. Such ratios keep their calibration better than bare distances when a generator
makes images that are more typical, and so closer to everything, than real ones: with such images
and 1 % planted copies, the share of wrong flags at a nominal 0.1 was 0.27 for the bare distance and
0.125 for the ratio.

Every audit also measures itself: it plants copies of training images, disturbed in several ways,
among the synthetic ones and reports how many it flagged.
"""

import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, norm, rankdata
from torch import Tensor

from synthaug._audit._calibration import Scores, conformal_p_values, q_values, resolution
from synthaug._audit._competition import Competition, compete
from synthaug._audit._crew import crew_of
from synthaug._audit._descriptive import descriptive
from synthaug._audit._disturbances import Disturbance, disturbances, vector_disturbances
from synthaug._audit._inputs import (
    Contents,
    ImageSet,
    check_comparable,
    image_set,
    joined,
    keys,
    take,
)
from synthaug._audit._matches import Matches
from synthaug._audit._matching import Matcher, resembling, rmse
from synthaug._audit._report import (
    CALIBRATED,
    CLEAR,
    COMPETED,
    EXACT,
    NOT_JUDGED,
    AuditReport,
    Power,
)
from synthaug._audit._verdict import Counts, judge, smallest_visible
from synthaug._engines import RayEngine
from synthaug._html import data_uri
from synthaug._neighbours import INDEXES, threads
from synthaug._noise import counter_rng
from synthaug._pixels import to_pil
from synthaug._progress import bar
from synthaug._types import JSON
from synthaug.features import Extractor, Pixel, describe, named

NEEDED_POWER = 0.9
"""Share of the planted copies of each required kind that must be flagged."""

_SHIFT_SHARE, _SHIFT_LEVEL = 0.6, 0.001
"""Copies among a fifth of all rows raise the share of p-values up to 0.5 from 0.5 to 0.6, no more:
beyond that, with a chance of 1 in 1,000 that it is an accident, all rows are closer, and p-values
may be too small. Of fresh CIFAR-10 images of less and less contrast, p-values up to 0.1 have a
share of 0.11 where those up to 0.5 have 0.6, of 0.16 where these have 0.74, and of 0.36 where
these have 0.92 (`benchmarks/audit_nulls.py`)."""

_PLANTED_AT_LEAST = 50
_HALVINGS = 100
_SHOWN_SIDE = 96
_HOLDOUT_PAIRS = 5
_RECALLED = 1000


def audit(
    synthetic: Any,
    train: Any,
    *,
    holdout: Any = None,
    features: str | Extractor | Sequence[str | Extractor] | None = None,
    fdr: float = 0.05,
    k: int | None = None,
    index: str = "exact",
    features_dir: str | os.PathLike[str] | None = None,
    max_pairs: int = 50,
    batch_size: int = 512,
    deduplicate: bool = False,
    engine: Literal["local", "ray"] | RayEngine = "local",
    progress: bool = True,
    seed: int = 0,
    command: str | None = None,
) -> AuditReport:
    """Looks for copies of training images among synthetic ones.

    Args:
        synthetic: A cache, any map-style image data set, uint8 pixels (n, C, H, W), features
            (n, d), or the path of a .npy, .npz or HDF5 file of either. Of a cache the finished rows
            are judged.
        train: All real images that the generator was trained on, in any of these forms, of the
            same shape. Every class is searched for every row. Test images, to ask whether these
            leaked into the synthetic ones.
        holdout: Real images from the same source that the generator has never seen, a random split
            made before it was trained. Without them the verdict is at best "inconclusive". Where
            `train` are test images: any other real ones.
        features: The space in which distances are taken, or several, each an extractor or a name
            that `features.named` knows; `features.Pixel(16)` by default. Equal and nearly equal
            pixels, and images that were shifted, cropped or recoloured, are looked for in any case.
        fdr: False discovery rate: the share of flagged rows, on average, that may be no copies.
            Also the chance to flag anything if the generator copies nothing.
        k: Neighbours that the score looks at. By default 50, or the root of the number of training
            images if that is less.
        index: "exact"; or for very many training images "ivf", "hnsw", "sq", "pq" or "ivfpq", which
            may miss neighbours, and say how many they found; "auto" is ivf from a million images
            on.
        features_dir: Folder in which the features of networks are kept, for another audit of the
            same images and so that they need not fit in memory.
        max_pairs: Pairs kept in the report as images.
        batch_size: Images per call of `features`.
        deduplicate: Sets hold-out images aside that are also training images, instead of refusing.
        engine: "local" works in this process. "ray", or a `RayEngine` with its settings, has the
            features of networks computed and shards of the training images searched, exactly, by
            the actors of a Ray cluster. The result is the same.
        progress: Shows a bar with the rate and the time left.
        seed: For choosing and disturbing the planted copies.
        command: What repeats the audit, for the report; made from these arguments if not given.

    Returns:
        The report.

    Raises:
        TypeError: An argument is not of a kind named above.
        ValueError: A value out of range, no images, images of different shapes, a hold-out that
            overlaps the training images, or features that are not finite.
        DataError: A file cannot be read.
        EngineError: If Ray's actors find no place, or die again and again.
    """

    if not 0 < fdr < 1:
        raise ValueError(f"`fdr` must lie between 0 and 1, got {fdr}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if max_pairs < 0:
        raise ValueError(f"`max_pairs` must not be negative, got {max_pairs}.")
    if index not in INDEXES:
        raise ValueError(f"`index` must be one of {', '.join(INDEXES)}, got {index!r}.")
    if engine not in ("local", "ray") and not isinstance(engine, RayEngine):
        raise ValueError(f"`engine` must be 'local', 'ray' or a RayEngine, got {engine!r}.")
    if engine != "local" and index != "exact":
        raise ValueError(f"`index` is {index!r}, but over Ray the search is exact. Leave it out.")
    S = image_set(synthetic, "synthetic", progress=progress)
    T = image_set(train, "train", progress=progress)
    H = None if holdout is None else image_set(holdout, "holdout", progress=progress)
    check_comparable(S, T, *([] if H is None else [H]))
    images = isinstance(S.samples, Tensor)
    if not images and features is not None:
        raise ValueError("`features` cannot be computed, since features are given and no images.")
    extractors = _extractors(features) if images else [_Given()]
    known = Contents(T.keys)
    overlap = 0
    if H is not None:
        H, overlap = _without_overlap(H, known, deduplicate)
    k = k if k is not None else min(50, max(2, int(len(known) ** 0.5)))
    if not 2 <= k <= len(known):
        raise ValueError(
            f"`k` is {k}, but must lie between 2 and {len(known)}, the number of different "
            "training images."
        )
    num_planted = min(len(T), max(_PLANTED_AT_LEAST, smallest_visible(len(S))))
    originals = counter_rng(seed, 1).choice(len(T), num_planted, replace=False)
    num_kinds = len(_kinds(T, 1.0))
    folder = None if features_dir is None else Path(features_dir)
    total = len(known) + len(S) + num_kinds * num_planted + (0 if H is None else 2 * len(H))
    with (
        threads(),
        crew_of(engine, extractors) as crew,
        bar(total, "audit", "image", progress=progress) as counter,
    ):

        def searched(images: ImageSet, contents: Contents) -> Matcher:
            return Matcher(
                images.samples,
                extractors,
                k=k,
                batch_size=batch_size,
                index=index,
                features_dir=folder,
                contents=contents,
                crew=crew,
                tick=counter.update,
            )

        matcher = searched(T, known)
        recall = {} if index == "exact" else matcher.recall(S.samples[:_RECALLED])
        contest = null = decoys = None
        isolation = matcher.isolation(originals)
        if H is None:
            found, isolated = matcher.ask(matcher.alone(S.samples), isolation)
        else:
            decoys = searched(H, Contents(H.keys))
            null, (found, pooled), isolated = matcher.ask(
                matcher.alone(H.samples), matcher.both(decoys, S.samples), isolation
            )
            links = resembling(
                S.samples,
                extractors[0],
                pooled.distances[:, 0],
                batch_size=batch_size,
                features_dir=folder,
            )
            contest = _contest(pooled, links, len(known), len(T), len(known) + len(decoys), fdr)
        kinds = _kinds(T, float(np.median(isolated)))
        copies = take(T.samples, originals)
        planted, *isolated = matcher.ask(
            matcher.alone(joined([kind.apply(copies, seed) for kind in kinds])),
            *(matcher.isolation(m.neighbours[:, 0]) for m in (found, null) if m is not None),
        )
        plants = planted.split(len(kinds))
        described = descriptive(found, null, isolated)

    # Hold-out images that are twins of training images are set aside, as synthetic ones are.
    fresh = None if null is None or null.near_equal.all() else null.scores[~null.near_equal]
    tier, p, q = _tiers(found, fresh, fdr)
    q_decoy = np.full(len(S), np.nan)
    if contest is not None:
        rows, competition = contest
        q_decoy[rows] = competition.q_values
    shift = _shift(found, null, p)
    shifted = bool(shift.get("shifted"))
    if shifted:
        tier[(tier == CLEAR) & (q_decoy <= fdr)] = COMPETED
    self_test = {} if fresh is None else _halvings(fresh, fdr, seed)
    pick = _Pick(found, fresh, T)
    power = tuple(
        _power(kind, planted, _Pick(planted, fresh, T), T, originals, fresh, len(S), fdr)
        for kind, planted in zip(kinds, plants, strict=True)
    )
    counts = Counts(
        synthetic_rows=S.total,
        synthetic_judged=len(S),
        train=len(T),
        train_distinct=len(known),
        holdout=0 if H is None else len(H),
        holdout_dropped=overlap,
        holdout_near_equal=0 if null is None else int(null.near_equal.sum()),
        resolution=None if fresh is None else resolution(len(S), len(fresh), fdr),
        competition_resolution=None if contest is None else contest[1].resolution,
    )
    verdict, reasons = judge(
        flagged=int((tier > CLEAR).sum()),
        exact=int((tier == EXACT).sum()),
        calibrated=int((tier == CALIBRATED).sum()),
        competed=int((q_decoy <= fdr).sum()),
        shifted=shifted,
        leaning=contest is not None and contest[1].leaning,
        counts=counts,
        power=power,
        self_test=self_test,
        fdr=fdr,
    )
    # Flagged rows first, then by how suspicious they are.
    suspicious = np.where(tier == EXACT, -1, p)
    shown = np.lexsort((found.scores[:, 0], suspicious, tier == CLEAR))[:max_pairs]
    pairs = [
        _pair(i, S, T, found, pick, matcher)
        | {"tier": int(tier[i]), "p_value": _number(p[i]), "q_value": _number(q[i])}
        for i in shown.tolist()
    ]
    holdout_pairs = []
    if H is not None and decoys is not None and null is not None:
        if len(shown):
            best = decoys.match(take(S.samples, shown))
            for j, (pair, i) in enumerate(zip(pairs, shown.tolist(), strict=True)):
                pair |= _counterpart(H, best, j, int(pick.statistic[i]))
        closest = _Pick(null, fresh, T)
        order = np.lexsort((null.scores[:, 0], closest.lowest_p))[:_HOLDOUT_PAIRS]
        holdout_pairs = [_pair(i, H, T, null, closest, matcher) for i in order.tolist()]
    num_statistics = len(matcher.statistics)
    return AuditReport(
        verdict=verdict,
        reasons=tuple(reasons),
        identity=S.identity,
        statistics=matcher.statistics,
        tier=_spread(tier, S, NOT_JUDGED),
        p_values=_spread(p, S, np.nan),
        q_values=_spread(q, S, np.nan),
        q_decoy=_spread(q_decoy, S, np.nan),
        scores=_spread(found.scores, S, np.nan),
        distances=_spread(found.distances, S, np.nan),
        decided_by=_spread(pick.statistic, S, -1),
        neighbours=_spread(T.rows[pick.neighbours], S, -1),
        neighbour_flipped=_spread(pick.flipped, S, False),
        rmse=_spread(_rmse(S, T, pick), S, np.nan),
        labels=S.labels,
        classes=S.classes,
        holdout_scores=np.zeros((0, num_statistics)) if null is None else null.scores,
        holdout_distances=np.zeros((0, num_statistics)) if null is None else null.distances,
        power=power,
        self_test=self_test,
        competition={} if contest is None else _summary(contest[1]),
        shift=shift,
        descriptive=tuple(described),
        settings={
            "fdr": fdr,
            "k": k,
            "seed": seed,
            "kind": "images" if images else "features",
            "features": [describe(extractor) for extractor in extractors],
            "index": index,
            "recall": recall,
            "command": command or _command(S, T, H, features, fdr, k, index, deduplicate, seed),
            "train_identity": T.identity,
            "holdout_identity": None if H is None else H.identity,
            **asdict(counts),
        },
        environment=_environment(),
        pairs=tuple(pairs),
        holdout_pairs=tuple(holdout_pairs),
    )


class _Pick:
    """The one training image to name for each of n images.

    Its twin if it has one, else the neighbour by the statistic in which the image ranks lowest
    among the hold-out; without a hold-out by the first statistic.
    """

    def __init__(self, found: Matches, fresh: Scores | None, T: ImageSet) -> None:
        n, s = found.scores.shape
        ranks = np.zeros((n, s))
        if fresh is not None:
            ranks = np.stack(
                [conformal_p_values(found.scores[:, [j]], fresh[:, [j]]) for j in range(s)], axis=1
            )
        self.lowest_p = ranks.min(axis=1)
        self.statistic = ranks.argmin(axis=1)
        chosen = np.arange(n), self.statistic
        twin = found.twins >= 0
        self.neighbours = np.where(twin, found.twins, found.neighbours[chosen])
        self.flipped = np.where(twin, found.twin_flipped, found.flipped[chosen])


class _Given:
    """Stands for the network that made features of images that are not given."""

    name = "features as given"
    dim = None

    def __call__(self, pixels: Any) -> Any:
        raise TypeError("These features were given: there is no network to compute others.")


def _extractors(
    features: str | Extractor | Sequence[str | Extractor] | None,
) -> list[Extractor]:
    listed: list[Any] = [Pixel()]
    if features is not None:
        listed = list(features) if isinstance(features, list | tuple) else [features]
    listed = [named(one) if isinstance(one, str) else one for one in listed]
    for extractor in listed:
        if not isinstance(extractor, Extractor):
            raise TypeError(
                f"`features` holds a {type(extractor).__name__}, expected names or extractors such "
                "as `features.Pixel()` or `features.TorchModule(network)`."
            )
    names = [extractor.name for extractor in listed]
    if not names:
        raise ValueError("`features` is empty. Leave it out to compare pixels.")
    if len(set(names)) < len(names):
        raise ValueError(f"`features` holds two extractors of one name: {', '.join(names)}.")
    return listed


def _kinds(T: ImageSet, usual: float) -> list[Disturbance]:
    if not isinstance(T.samples, Tensor):
        return vector_disturbances(usual)
    return disturbances((T.pixels.shape[1], T.pixels.shape[2], T.pixels.shape[3]))


def _command(
    S: ImageSet,
    T: ImageSet,
    H: ImageSet | None,
    features: Any,
    fdr: float,
    k: int,
    index: str,
    deduplicate: bool,
    seed: int,
) -> str:
    """What reproduces the audit: a line for the shell if everything has a name there."""
    sets = [S, T] if H is None else [S, T, H]
    listed = [] if features is None else features
    listed = list(listed) if isinstance(listed, list | tuple) else [listed]
    sources = [s.source for s in sets]
    if all(sources) and all(isinstance(one, str) for one in listed):
        words = ["synthaug", "audit", *map(str, sources[:2])]
        words += [] if H is None else ["--holdout", str(H.source)]
        words += ["--features", ",".join(listed)] if listed else []
        words += ["--fdr", str(fdr), "--k", str(k), "--index", index, "--seed", str(seed)]
        return shlex.join(words + (["--deduplicate"] if deduplicate else []))
    text = [s.name if s.source is None else repr(s.source) for s in sets]
    text[2:] = [f"holdout={text[2]}"] if H is not None else []
    names = [one if isinstance(one, str) else one.name for one in listed]
    text += [f"features={names}"] if names else []
    text += [f"fdr={fdr}", f"k={k}", f"index={index!r}"]
    text += ["deduplicate=True"] if deduplicate else []
    return f"synthaug.audit({', '.join(text)}, seed={seed})"


def _tiers(
    found: Matches, fresh: Scores | None, fdr: float
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
    """Tier, p-value and q-value of each row; the last two NaN where the hold-out has no say."""
    tier = np.where(found.near_equal, EXACT, CLEAR).astype(np.int8)
    p, q = np.full((2, len(tier)), np.nan)
    if fresh is not None:
        rest = ~found.near_equal
        p[rest] = conformal_p_values(found.scores[rest], fresh)
        q[rest] = q_values(p[rest])
        tier[rest & (q <= fdr)] = CALIBRATED
    return tier, p, q


def _without_overlap(H: ImageSet, known: Contents, deduplicate: bool) -> tuple[ImageSet, int]:
    overlapping = known.find(H.keys) >= 0
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


def _contest(
    pooled: Matches,
    links: NDArray[np.int64],
    num_train: int,
    first_holdout: int,
    num_pooled: int,
    fdr: float,
) -> tuple[NDArray[np.int64], Competition] | None:
    """Lets training and hold-out images compete for the rows, and says which rows took part.

    Rows with a twin in either are left out, as the first tier has judged them.
    """
    rows = np.flatnonzero(~pooled.near_equal)
    if not len(rows) or num_pooled == num_train:
        return None
    # Ranks among the rows themselves: nothing here knows which matches are training images.
    ranks = rankdata(pooled.scores[rows], method="min", axis=0)
    matches = pooled.neighbours[rows, ranks.argmin(axis=1)]
    place = np.full(len(pooled.twins), -1, np.int64)
    place[rows] = np.arange(len(rows))
    links = place[links]
    return rows, compete(
        ranks.min(axis=1),
        matches,
        matches < first_holdout,
        links[(links >= 0).all(axis=1)],
        num_targets=num_train,
        num_decoys=num_pooled - num_train,
        fdr=fdr,
    )


def _summary(competition: Competition) -> dict[str, JSON]:
    return {
        "clusters": competition.num_clusters,
        "targets": competition.targets,
        "share": competition.share,
        "expected_share": competition.expected_share,
        "share_p_value": competition.share_p_value,
        "leaning": competition.leaning,
        "resolution": competition.resolution,
        "detectable_share": competition.detectable_share,
    }


def _shift(found: Matches, null: Matches | None, p: NDArray[np.float64]) -> dict[str, JSON]:
    """Whether synthetic images as a whole are closer to training images than real ones are.

    Then a small p-value need not mean a copy.
    """
    judged = p[np.isfinite(p)]
    if null is None or not len(judged):
        return {}
    # The mean distance to the second to k-th neighbour, in the first space.
    rows, fresh = (
        m.distances[m.scores[:, 0] > 0, 0] / m.scores[m.scores[:, 0] > 0, 0] for m in (found, null)
    )
    low = float((judged <= 0.5).mean())
    # Where the middle of the hold-out lies is as uncertain as the hold-out is small.
    size = 1 / (1 / len(judged) + 1 / len(null.scores))
    z = (low - _SHIFT_SHARE) / (_SHIFT_SHARE * (1 - _SHIFT_SHARE) / size) ** 0.5
    shift: dict[str, JSON] = {
        "share_of_low_p_values": low,
        "shifted": bool(norm.sf(z) < _SHIFT_LEVEL),
    }
    if len(rows) and len(fresh):
        compared = ks_2samp(rows, fresh)
        shift |= {"ks_distance": float(compared.statistic), "ks_p_value": float(compared.pvalue)}
    return shift


def _power(
    kind: Disturbance,
    planted: Matches,
    pick: _Pick,
    T: ImageSet,
    originals: NDArray[np.int64],
    fresh: Scores | None,
    m: int,
    fdr: float,
) -> Power:
    """What becomes of planted copies of one kind among m rows, and how many of them it takes.

    All other rows are taken to be far from suspicious; where they are not, that helps the copies.
    """
    share, needed = float(planted.near_equal.mean()), None
    count = min(m, smallest_visible(m))
    if fresh is None:
        needed = 1 if share >= NEEDED_POWER else None
    else:
        p = np.where(planted.near_equal, 0.0, conformal_p_values(planted.scores, fresh))
        among = np.concatenate([np.resize(p, count), np.ones(m - count)])
        share = float((q_values(among)[:count] <= fdr).mean())
        hardest = float(np.quantile(p, NEEDED_POWER, method="inverted_cdf"))
        # Of j copies at least the share that has p <= hardest is flagged as soon as
        # hardest <= fdr * share * j / m.
        least = math.ceil(hardest * m / (fdr * float((p <= hardest).mean())) - 1e-9)
        needed = max(1, least) if least <= m else None
    # Training images may repeat: any of equal ones is the original.
    content, wanted = (keys(take(T.samples, rows)) for rows in (pick.neighbours, originals))
    return Power(
        kind=kind.name,
        required=kind.required,
        planted=count,
        power=share,
        found=float((content == wanted).mean()),
        needed=needed,
    )


def _halvings(fresh: Scores, fdr: float, seed: int) -> dict[str, JSON]:
    """Audits one half of the hold-out against the other, many times: hardly any may flag."""
    if len(fresh) < 4:
        return {}
    half = len(fresh) // 2
    flagged = []
    for i in range(_HALVINGS):
        order = counter_rng(seed, 2, i).permutation(len(fresh))
        p = conformal_p_values(fresh[order[:half]], fresh[order[half:]])
        flagged.append(int((q_values(p) <= fdr).sum()))
    counts = np.array(flagged)
    return {
        "halvings": _HALVINGS,
        "rows": half,
        "any_flagged": int((counts > 0).sum()),
        "mean_flagged": float(counts.mean()),
    }


def _rmse(images: ImageSet, T: ImageSet, pick: _Pick) -> NDArray[np.float64]:
    if not isinstance(images.samples, Tensor):
        return np.full(len(images), np.nan)
    return rmse(images.pixels, T.pixels, pick.neighbours, pick.flipped)


def _pair(
    i: int, images: ImageSet, T: ImageSet, found: Matches, pick: _Pick, matcher: Matcher
) -> dict[str, JSON]:
    row, neighbour = int(images.rows[i]), int(pick.neighbours[i])
    flipped, statistic = bool(pick.flipped[i]), int(pick.statistic[i])
    pair: dict[str, JSON] = {
        "row": row,
        "class": _class_name(images, row),
        "train_row": int(T.rows[neighbour]),
        "train_class": _class_name(T, int(T.rows[neighbour])),
        "flipped": flipped,
        "statistic": matcher.statistics[statistic],
        "score": float(found.scores[i, statistic]),
        "distance": float(found.distances[i, statistic]),
        "rmse": None,
        "image": None,
        "train_image": None,
        "difference": None,
    }
    if not isinstance(images.samples, Tensor):
        return pair
    image, counterpart = images.pixels[i : i + 1], T.pixels[neighbour]
    difference = rmse(image, T.pixels, pick.neighbours[[i]], pick.flipped[[i]])
    return pair | {
        "rmse": float(difference[0]),
        "image": _shown(image[0]),
        # Mirrored for the eye, so that both images show the same side.
        "train_image": _shown(counterpart.flip(-1) if flipped else counterpart),
        "difference": _shown(matcher.difference(image, neighbour)),
    }


def _counterpart(H: ImageSet, best: Matches, j: int, statistic: int) -> dict[str, JSON]:
    """The hold-out image closest to a shown one, by the statistic that its pair is shown for."""
    row = int(best.neighbours[j, statistic])
    image = H.pixels[row] if isinstance(H.samples, Tensor) else None
    if image is not None and best.flipped[j, statistic]:
        image = image.flip(-1)
    return {
        "holdout_row": int(H.rows[row]),
        "holdout_distance": float(best.distances[j, statistic]),
        "holdout_image": None if image is None else _shown(image),
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
    spread = np.full((images.total, *values.shape[1:]), missing, values.dtype)
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

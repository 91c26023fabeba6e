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
from torch import Tensor

from synthaug._audit.calibration import resolution
from synthaug._audit.cluster import crew_of
from synthaug._audit.decisions import (
    contest_of,
    halvings,
    power_of,
    shift_of,
    summary,
    tiers,
)
from synthaug._audit.descriptive import descriptive
from synthaug._audit.disturbances import Disturbance, disturbances, vector_disturbances
from synthaug._audit.inputs import (
    Contents,
    ImageSet,
    check_comparable,
    image_set,
    joined,
    take,
)
from synthaug._audit.matching import Matcher, resembling
from synthaug._audit.pairs import Pick, counterpart, pair_of, rmse_of
from synthaug._audit.report import (
    CALIBRATED,
    CLEAR,
    COMPETED,
    EXACT,
    NOT_JUDGED,
    AuditReport,
)
from synthaug._audit.verdict import Counts, judge, smallest_visible
from synthaug._cluster import RayEngine
from synthaug._neighbors import INDEXES, threads
from synthaug._noise import counter_rng
from synthaug._support.progress import bar
from synthaug._types import JSON
from synthaug.features import Extractor, Pixel, describe, named

_PLANTED_AT_LEAST = 50
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
            contest = contest_of(pooled, links, len(known), len(T), len(known) + len(decoys), fdr)
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
    tier, p, q = tiers(found, fresh, fdr)
    q_decoy = np.full(len(S), np.nan)
    if contest is not None:
        rows, competition = contest
        q_decoy[rows] = competition.q_values
    shift = shift_of(found, null, p)
    shifted = bool(shift.get("shifted"))
    if shifted:
        tier[(tier == CLEAR) & (q_decoy <= fdr)] = COMPETED
    self_test = {} if fresh is None else halvings(fresh, fdr, seed)
    pick = Pick(found, fresh, T)
    power = tuple(
        power_of(kind, planted, Pick(planted, fresh, T), T, originals, fresh, len(S), fdr)
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
        pair_of(i, S, T, found, pick, matcher)
        | {"tier": int(tier[i]), "p_value": _number(p[i]), "q_value": _number(q[i])}
        for i in shown.tolist()
    ]
    holdout_pairs = []
    if H is not None and decoys is not None and null is not None:
        if len(shown):
            best = decoys.match(take(S.samples, shown))
            for j, (pair, i) in enumerate(zip(pairs, shown.tolist(), strict=True)):
                pair |= counterpart(H, best, j, int(pick.statistic[i]))
        closest = Pick(null, fresh, T)
        order = np.lexsort((null.scores[:, 0], closest.lowest_p))[:_HOLDOUT_PAIRS]
        holdout_pairs = [pair_of(i, H, T, null, closest, matcher) for i in order.tolist()]
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
        rmse=_spread(rmse_of(S, T, pick), S, np.nan),
        labels=S.labels,
        classes=S.classes,
        holdout_scores=np.zeros((0, num_statistics)) if null is None else null.scores,
        holdout_distances=np.zeros((0, num_statistics)) if null is None else null.distances,
        power=power,
        self_test=self_test,
        competition={} if contest is None else summary(contest[1]),
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

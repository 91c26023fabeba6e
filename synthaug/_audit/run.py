"""The memorization audit: are synthetic images copies of training images?

Every synthetic image is compared with all training images, of all classes, as it is and mirrored.
Held-out images take the very same path. What follows from it, in `decisions`:

1. rows with equal or nearly equal pixels, and rows that resemble a training image as
   near-duplicates do, are withheld, unless held-out images resemble the same one as often;
2. rows are flagged that come closer to a training image than held-out real images do, as far as
   that can be told at a given false discovery rate (`calibration`);
3. a test of all rows together notices copies that are too few to be flagged one by one
   (`precedence`);
4. training and hold-out images compete for being the closest match (`competition`). That needs more
   copies to see any, but holds for synthetic images that as a whole are closer to real ones than
   real ones are to each other. If they are so, this decides, and not 2 and 3.

Every statistic says how much closer than usual an image comes to one training image (`_matching`):
in every feature space the distance to the nearest training image over the mean distance to the next
ones (after Carlini et al. 2023, https://arxiv.org/abs/2301.13188), and likewise the distance under
the best alignment, and once registered. Such ratios keep their calibration better than bare
distances when a generator makes images that are more typical, and so closer to everything, than
real ones: with such images and 1 % planted copies, the share of wrong flags at a nominal 0.1 was
0.27 for the bare distance and 0.125 for the ratio.

Every audit also measures itself: it plants copies of training images, changed at random, among the
synthetic ones, repeats its tests, and reports how many copies it would have noticed and flagged
(`power`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from synthaug._audit.cluster import crew_of
from synthaug._audit.competition import Competition
from synthaug._audit.decisions import (
    EXACT_SHARE,
    GROUP_REACH,
    AuditPool,
    Calibrated,
    calibrated,
    contest_of,
    levels,
    pooled,
    shift_of,
    strata_of,
    summary,
)
from synthaug._audit.descriptive import descriptive
from synthaug._audit.disturbances import Disturbance, disturbances, vector_disturbances
from synthaug._audit.inputs import AuditSet, Contents, check_comparable, joined, read_set, take
from synthaug._audit.matches import Matches
from synthaug._audit.matching import Matcher, linked
from synthaug._audit.pairs import Pick, counterpart, pair_of, rmse_of
from synthaug._audit.power import PLANTED, Planting, power_without_holdout, share_found
from synthaug._audit.precedence import Excess
from synthaug._audit.report import (
    ALIKE,
    CALIBRATED,
    CLEAR,
    COMPETED,
    EXACT,
    NAMED,
    NOT_JUDGED,
    AuditReport,
    Power,
)
from synthaug._audit.settings import AuditSettings, FeaturesAsGiven, environment
from synthaug._audit.verdict import Counts, Findings, judge, resolution
from synthaug._neighbors import threads
from synthaug._noise import counter_rng
from synthaug._support.progress import bar
from synthaug._types import JSON, Indices
from synthaug.features import ExtractionConfig, Extractor, describe

LEVEL = 0.01
"""Chance that the tests of the whole set find something if the generator copies nothing."""

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
    extraction: ExtractionConfig | None = None,
    max_pairs: int = 50,
    deduplicate: bool = False,
    progress: bool = True,
    seed: int = 0,
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
        fdr: False discovery rate: the share of flagged rows, on average, that may be no copies,
            and the chance to flag anything at all if nothing is copied. Both hold if synthetic
            images that are no copies come as close to training images as held-out ones do.
        k: Neighbours that the score looks at. By default 50, or the root of the number of training
            images if that is less.
        index: "exact"; or for very many training images "ivf", "hnsw", "sq", "pq" or "ivfpq", which
            may miss neighbours, and say how many they found; "auto" is ivf from a million images
            on.
        extraction: How features are computed, where they are kept, and whether the actors of a Ray
            cluster compute and search them, exactly. It changes no result.
        max_pairs: Pairs kept in the report as images.
        deduplicate: Sets hold-out images aside that are also training images, instead of refusing.
        progress: Shows a bar with the rate and the time left.
        seed: For choosing and changing the planted copies, and for random assignments.

    Returns:
        The report.

    Raises:
        TypeError: An argument is not of a kind named above.
        ValueError: A value out of range, no images, images of different shapes, a hold-out that
            overlaps the training images, or features that are not finite.
        DataError: A file cannot be read.
        EngineError: If Ray's actors find no place, or die again and again.
    """
    settings = AuditSettings(
        features=features,
        fdr=fdr,
        k=k,
        index=index,
        extraction=extraction or ExtractionConfig(),
        max_pairs=max_pairs,
        deduplicate=deduplicate,
        seed=seed,
    )
    sets = _open_sets(synthetic, train, holdout, settings, progress)
    comparison = _compare(sets, settings, progress)
    decision = _decide(sets, comparison, settings)
    pairs, holdout_pairs = _pairs(sets, comparison, decision, settings)
    return _report(sets, comparison, decision, settings, pairs, holdout_pairs)


@dataclass(frozen=True, kw_only=True)
class _Sets:
    """The images of an audit, opened and found to fit each other."""

    S: AuditSet
    """Synthetic images."""
    T: AuditSet
    """Training images."""
    H: AuditSet | None
    """Hold-out images, those that are training images set aside."""
    distinct: Contents
    """The different training images."""
    overlap: Indices
    """Training images to which hold-out images were equal that were set aside."""
    extractors: list[Extractor]
    k: int
    """Neighbors that a score looks at."""

    @property
    def are_images(self) -> bool:
        """Whether these are images, and not features of images."""
        return isinstance(self.S.samples, Tensor)


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """How close synthetic, held-out and planted images come to the training images."""

    matcher: Matcher
    decoys: Matcher | None
    """Searches the hold-out images."""
    rows: Matches
    """Of the synthetic images."""
    null: Matches | None
    """Of the hold-out images."""
    pool: AuditPool | None
    """Synthetic and hold-out images together; `None` without a hold-out."""
    contest: tuple[Indices, Competition] | None
    originals: Indices
    """Training images of which copies are planted."""
    kinds: list[Disturbance]
    planted: list[Matches]
    """Of the planted copies, one kind after the other."""
    recall: dict[str, float]
    described: list[dict[str, JSON]]


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """What follows from a comparison, for every judged row and as a whole."""

    tier: NDArray[np.int8]
    p: NDArray[np.float64]
    q: NDArray[np.float64]
    q_decoy: NDArray[np.float64]
    pick: Pick
    shift: dict[str, JSON]
    set_test: dict[str, JSON]
    power: tuple[Power, ...]
    counts: Counts
    verdict: Any
    reasons: Sequence[str]


def _open_sets(
    synthetic: Any, train: Any, holdout: Any, settings: AuditSettings, progress: bool
) -> _Sets:
    """Opens all images, and refuses those that cannot be compared."""
    S = read_set(synthetic, "synthetic", progress=progress)
    T = read_set(train, "train", progress=progress)
    H = None if holdout is None else read_set(holdout, "holdout", progress=progress)
    check_comparable(S, T, *([] if H is None else [H]))
    are_images = isinstance(S.samples, Tensor)
    if not are_images and settings.features is not None:
        raise ValueError("`features` cannot be computed, since features are given and no images.")
    distinct = Contents(T.keys)
    overlap = np.zeros(0, np.int64)
    if H is not None:
        H, overlap = _without_overlap(H, distinct, settings.deduplicate)
    return _Sets(
        S=S,
        T=T,
        H=H,
        distinct=distinct,
        overlap=overlap,
        extractors=settings.extractors if are_images else [FeaturesAsGiven()],
        k=settings.neighbors(len(distinct)),
    )


def _compare(sets: _Sets, settings: AuditSettings, progress: bool) -> _Comparison:
    """Searches the training images for all others, and for copies that are planted among them."""
    S, T, H = sets.S, sets.T, sets.H
    extraction = settings.extraction
    num_planted = min(len(T), PLANTED)
    originals = counter_rng(settings.seed, 1).choice(len(T), num_planted, replace=False)
    num_kinds = len(_kinds(T, 1.0))
    total = len(sets.distinct) + len(S) + num_kinds * num_planted + (0 if H is None else 2 * len(H))
    with (
        threads(),
        crew_of(extraction.engine, sets.extractors) as crew,
        bar(total, "audit", "image", progress=progress) as counter,
    ):
        searched = partial(
            Matcher,
            extractors=sets.extractors,
            k=sets.k,
            extraction=extraction,
            index=settings.index,
            crew=crew,
            tick=counter.update,
        )
        matcher = searched(T.samples, contents=sets.distinct)
        recall = {} if settings.index == "exact" else matcher.recall(S.samples[:_RECALLED])
        contest = null = decoys = pool = None
        isolation = matcher.isolation(originals)
        if H is None:
            rows, isolated = matcher.ask(matcher.compare(S.samples), isolation)
        else:
            decoys = searched(H.samples, contents=Contents(H.keys))
            null, (rows, together), isolated = matcher.ask(
                matcher.compare(H.samples), matcher.compare_pooled(decoys, S.samples), isolation
            )
            nearest = 0.5 * together.distances[:, 0]
            links = linked(S.samples, sets.extractors[0], nearest, extraction)
            num_train = len(sets.distinct)
            contest = contest_of(
                together,
                links,
                num_train,
                len(T),
                num_train + len(decoys),
                fdr=settings.fdr,
                level=levels(LEVEL)["contest"],
                seed=settings.seed,
            )
            both = joined([S.samples, H.samples])
            reach = GROUP_REACH * np.concatenate([rows.usual, null.usual])
            links = linked(both, sets.extractors[0], reach, extraction)
            pool = pooled(rows, null, links, S, H, sets.overlap)
        kinds = _kinds(T, float(np.median(isolated)))
        copies = take(T.samples, originals)
        planted, *isolated = matcher.ask(
            matcher.compare(joined([kind.apply(copies, settings.seed) for kind in kinds])),
            *(matcher.isolation(m.neighbours[:, 0]) for m in (rows, null) if m is not None),
        )
        return _Comparison(
            matcher=matcher,
            decoys=decoys,
            rows=rows,
            null=null,
            pool=pool,
            contest=contest,
            originals=originals,
            kinds=kinds,
            planted=planted.split(len(kinds)),
            recall=recall,
            described=descriptive(rows, null, isolated),
        )


def _decide(sets: _Sets, comparison: _Comparison, settings: AuditSettings) -> _Decision:
    """Judges every row, measures how much the audit sees, and reaches a verdict."""
    S, H, fdr = sets.S, sets.H, settings.fdr
    rows, null, pool, contest = (
        comparison.rows,
        comparison.null,
        comparison.pool,
        comparison.contest,
    )
    tested = None if pool is None else calibrated(pool, LEVEL, settings.seed)
    nan = np.full(len(S), np.nan)
    p, q, q_decoy = (nan, nan, nan.copy()) if tested is None else (tested.p, tested.q, nan)
    if contest is not None:
        q_decoy[contest[0]] = contest[1].q_values
    shift = shift_of(rows, null, p)
    shifted = bool(shift.get("shifted"))
    excess, named = _named(tested, contest, shifted)
    tier = _tiers(rows, pool, q <= fdr, (q_decoy <= fdr) & shifted, named)
    power = _power(sets, comparison, tested, settings)
    counts = Counts(
        synthetic_rows=S.total,
        synthetic_judged=len(S),
        train=len(sets.T),
        train_distinct=len(sets.distinct),
        holdout=0 if H is None else len(H),
        holdout_dropped=len(sets.overlap),
        holdout_near_equal=0 if null is None else int(null.near_equal.sum()),
        holdout_resembling=0 if null is None else int(null.resembling.sum()),
        holdout_distinct=0 if tested is None else tested.num_null,
        resolution=None if tested is None else resolution(len(S), tested.num_null, fdr),
        competition_resolution=None if contest is None else contest[1].resolution,
    )
    findings = Findings(
        exact=int((tier == EXACT).sum()),
        copied=_copied(tier == EXACT, pool, fdr),
        calibrated=int((q <= fdr).sum()),
        competed=int((q_decoy <= fdr).sum()),
        alike=int((tier == ALIKE).sum()),
        named=int((tier == NAMED).sum()),
        excess=None if excess is None else (excess.count, excess.depth, excess.expected),
        contested=excess is not None and contest is not None and excess is contest[1].excess,
        shifted=shifted,
        leaning=contest is not None and contest[1].leaning,
    )
    missing = () if H is None else strata_of(S, H)[1]
    verdict, reasons = judge(findings, counts, power=power, missing=missing, fdr=fdr, level=LEVEL)
    return _Decision(
        tier=tier,
        p=p,
        q=q,
        q_decoy=q_decoy,
        pick=Pick(rows, null, sets.T),
        shift=shift,
        set_test=_set_test(tested, contest),
        power=power,
        counts=counts,
        verdict=verdict,
        reasons=reasons,
    )


def _named(
    tested: Calibrated | None, contest: tuple[Indices, Competition] | None, shifted: bool
) -> tuple[Excess | None, Indices]:
    """The test of all rows that rejects, and the rows that it names.

    Where synthetic images as a whole are closer to training images, they also are among the closest
    ones: then only the test of training against hold-out images counts, which no shift disturbs.
    """
    rejecting: list[tuple[Excess, Indices]] = []
    if contest is not None:
        found = contest[1].excess
        if found.p_value <= levels(LEVEL)["contest"]:
            rejecting.append((found, contest[0][contest[1].closest]))
    if tested is not None and not shifted:
        rejecting += [
            (test.excess, test.rows)
            for name, test in tested.tests.items()
            if test.excess.p_value <= levels(LEVEL)[name]
        ]
    if not rejecting:
        return None, np.zeros(0, np.int64)
    strongest = min(rejecting, key=lambda test: test[0].p_value)
    return strongest[0], np.unique(np.concatenate([rows for _, rows in rejecting]))


def _copied(exact: NDArray[np.bool_], pool: AuditPool | None, fdr: float) -> bool:
    """Whether rows with equal pixels are copies; without a hold-out nothing else explains them."""
    if pool is None:
        return bool(exact.any())
    return pool.exact_p_value(exact) <= EXACT_SHARE * fdr


def _tiers(
    rows: Matches,
    pool: AuditPool | None,
    calibrated: NDArray[np.bool_],
    competed: NDArray[np.bool_],
    named: Indices,
) -> NDArray[np.int8]:
    """The tier of each row, the strongest reason first."""
    often = np.zeros(len(rows.twins), bool) if pool is None else pool.as_often()
    is_named = np.isin(np.arange(len(rows.twins)), named)
    reasons = [
        (rows.near_equal & ~often, EXACT),
        (calibrated, CALIBRATED),
        (competed, COMPETED),
        (is_named, NAMED),
        (rows.resembling & ~often, ALIKE),
    ]
    conditions, tiers = zip(*reasons, strict=True)
    return np.select(conditions, tiers, CLEAR).astype(np.int8)


def _power(
    sets: _Sets,
    comparison: _Comparison,
    tested: Calibrated | None,
    settings: AuditSettings,
) -> tuple[Power, ...]:
    """What becomes of the planted copies, kind by kind."""
    pool, T, power = comparison.pool, sets.T, []
    planting = None
    if pool is not None and tested is not None:
        planting = Planting(pool, tested, settings.fdr, settings.seed)
    kinds = zip(comparison.kinds, comparison.planted, strict=True)
    for number, (kind, planted) in enumerate(kinds):
        pick = Pick(planted, comparison.null, T)
        found = share_found(pick, T, comparison.originals)
        power.append(
            power_without_holdout(kind, planted, found)
            if planting is None
            else planting.power(kind, planted, found, number)
        )
    return tuple(power)


def _set_test(
    tested: Calibrated | None, contest: tuple[Indices, Competition] | None
) -> dict[str, JSON]:
    """What a report says of the tests of all rows together."""
    if tested is None:
        return {}
    tests = {name: test.excess for name, test in tested.tests.items()}
    if contest is not None:
        tests["contest"] = contest[1].excess
    return {
        name: {
            "level": levels(LEVEL)[name],
            "p_value": test.p_value,
            "closest": test.depth,
            "count": test.count,
            "expected": test.expected,
        }
        for name, test in tests.items()
    }


def _pairs(
    sets: _Sets, comparison: _Comparison, decision: _Decision, settings: AuditSettings
) -> tuple[list[dict[str, JSON]], list[dict[str, JSON]]]:
    """The most suspicious synthetic images, and hold-out images to compare them with, as shown."""
    S, T, H = sets.S, sets.T, sets.H
    rows, null, decoys = comparison.rows, comparison.null, comparison.decoys
    # Rows with the strongest reason first, then by how suspicious they are.
    suspicious = np.where(decision.tier == EXACT, -1, decision.p)
    withheld = np.where(decision.tier == CLEAR, ALIKE + 1, decision.tier)
    order = np.lexsort((rows.scores[:, 0], suspicious, withheld))
    shown = order[: settings.max_pairs]
    pairs = [
        pair_of(i, S, T, rows, decision.pick, comparison.matcher)
        | {
            "tier": int(decision.tier[i]),
            "p_value": _number(decision.p[i]),
            "q_value": _number(decision.q[i]),
        }
        for i in shown.tolist()
    ]
    if H is None or decoys is None or null is None:
        return pairs, []
    if len(shown):
        best = decoys.match(take(S.samples, shown))
        for j, (pair, i) in enumerate(zip(pairs, shown.tolist(), strict=True)):
            pair |= counterpart(H, best, j, int(decision.pick.statistic[i]))
    closest = Pick(null, null, T)
    first = np.lexsort((null.scores[:, 0], closest.lowest_p))[:_HOLDOUT_PAIRS]
    return pairs, [pair_of(i, H, T, null, closest, comparison.matcher) for i in first.tolist()]


def _report(
    sets: _Sets,
    comparison: _Comparison,
    decision: _Decision,
    settings: AuditSettings,
    pairs: list[dict[str, JSON]],
    holdout_pairs: list[dict[str, JSON]],
) -> AuditReport:
    """Puts everything at the places of all rows, those that were not judged included."""
    S, T, H = sets.S, sets.T, sets.H
    rows, null, contest = comparison.rows, comparison.null, comparison.contest
    pick = decision.pick
    none = np.zeros((0, len(comparison.matcher.statistics)))
    return AuditReport(
        verdict=decision.verdict,
        reasons=tuple(decision.reasons),
        identity=S.identity,
        statistics=comparison.matcher.statistics,
        tier=_spread(decision.tier, S, NOT_JUDGED),
        p_values=_spread(decision.p, S, np.nan),
        q_values=_spread(decision.q, S, np.nan),
        q_decoy=_spread(decision.q_decoy, S, np.nan),
        scores=_spread(rows.scores, S, np.nan),
        distances=_spread(rows.distances, S, np.nan),
        decided_by=_spread(pick.statistic, S, -1),
        neighbours=_spread(T.rows[pick.neighbours], S, -1),
        neighbour_flipped=_spread(pick.flipped, S, False),
        rmse=_spread(rmse_of(S, T, pick), S, np.nan),
        labels=S.labels,
        classes=S.classes,
        holdout_scores=none if null is None else null.scores,
        holdout_distances=none if null is None else null.distances,
        power=decision.power,
        set_test=decision.set_test,
        competition={} if contest is None else summary(contest[1]),
        shift=decision.shift,
        descriptive=tuple(comparison.described),
        settings={
            "fdr": settings.fdr,
            "level": LEVEL,
            "k": sets.k,
            "seed": settings.seed,
            "kind": "images" if sets.are_images else "features",
            "features": [describe(extractor) for extractor in sets.extractors],
            "index": settings.index,
            "recall": comparison.recall,
            "command": settings.command(sets.k, [S, T] if H is None else [S, T, H]),
            "train_identity": T.identity,
            "holdout_identity": None if H is None else H.identity,
            **asdict(decision.counts),
        },
        environment=environment(),
        pairs=tuple(pairs),
        holdout_pairs=tuple(holdout_pairs),
    )


def _kinds(T: AuditSet, usual: float) -> list[Disturbance]:
    if not isinstance(T.samples, Tensor):
        return vector_disturbances(usual)
    return disturbances(max(T.pixels.shape[2:]))


def _without_overlap(H: AuditSet, known: Contents, deduplicate: bool) -> tuple[AuditSet, Indices]:
    """Sets hold-out images aside that are training images, and says which training images."""
    equal = known.find(H.keys)
    overlapping = equal >= 0
    count = int(overlapping.sum())
    if count and not deduplicate:
        raise ValueError(
            f"{count} of the {len(H)} images in `holdout` are also in `train` (the first: hold-out "
            f"image {H.rows[overlapping][0]}). Give images that the generator has never seen, or "
            "set these aside with `deduplicate=True`."
        )
    if count == len(H):
        raise ValueError("All images in `holdout` are also in `train`: nothing is held out.")
    return (H.select(~overlapping) if count else H), equal[overlapping]


def _spread(values: NDArray[Any], images: AuditSet, missing: Any) -> NDArray[Any]:
    """Values of the judged rows at their places among all rows."""
    spread = np.full((images.total, *values.shape[1:]), missing, values.dtype)
    spread[images.rows] = values
    return spread


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

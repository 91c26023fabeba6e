"""Judges every row and all of them together, and measures how much the audit sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from synthaug._audit.bound import CONFIDENCE, fewest_copies
from synthaug._audit.comparison import AuditComparison
from synthaug._audit.competition import Competition
from synthaug._audit.decisions import (
    EXACT_SHARE,
    LEVEL,
    AuditPool,
    Calibrated,
    ShareTest,
    calibrated,
    levels,
    shift_of,
    strata_of,
)
from synthaug._audit.inputs import take
from synthaug._audit.matches import Matches
from synthaug._audit.pairs import Pick
from synthaug._audit.power import Planting, power_without_holdout, share_found
from synthaug._audit.precedence import Excess, Flags
from synthaug._audit.sets import AuditSets
from synthaug._audit.settings import AuditSettings
from synthaug._audit.tiers import ALIKE, CALIBRATED, CLEAR, COMPETED, EXACT, NAMED, Power, Verdict
from synthaug._audit.verdict import Counts, Findings, judge, resolution
from synthaug._types import JSON, Indices


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """The outcome of a comparison, for every judged row and for all rows together."""

    tier: NDArray[np.int8]
    p: NDArray[np.float64]
    q: NDArray[np.float64]
    q_decoy: NDArray[np.float64]
    pick: Pick
    shift: dict[str, JSON]
    set_test: dict[str, JSON]
    fewest_copies: dict[str, JSON]
    power: tuple[Power, ...]
    counts: Counts
    verdict: Verdict
    reasons: Sequence[str]


def judgment_of(sets: AuditSets, comparison: AuditComparison, settings: AuditSettings) -> Judgment:
    """Judges every row, measures how much the audit sees, and reaches a verdict."""
    S, H, fdr = sets.S, sets.H, settings.fdr
    rows, null = comparison.rows, comparison.null
    pool, contest = comparison.pool, comparison.contest
    tested = None if pool is None else calibrated(pool, LEVEL, settings.seed)
    nan = np.full(len(rows.twins), np.nan)
    p, q, q_decoy = (nan, nan, nan.copy()) if tested is None else (tested.p, tested.q, nan)
    if contest is not None:
        q_decoy[contest[0]] = contest[1].q_values
    shift = shift_of(rows, null, p)
    shifted = bool(shift.get("shifted"))
    excess, named = _named(tested, contest, shifted)
    often = np.zeros(len(rows.twins), bool) if pool is None else pool.as_often()
    tier = _tiers(rows, often, q <= fdr, (q_decoy <= fdr) & shifted, named)
    alike = None
    if pool is not None:
        alike = pool.share_test(rows.resembling & ~often, pool.null.resembling)
    power = _power(sets, comparison, tested, settings)
    counts = _counts(sets, comparison, tested, fdr)
    bound = _fewest_copies(tested, pool, tier > CLEAR, shifted)
    judged = np.concatenate([S.rows, comparison.withdrawn.rows])
    findings = Findings(
        exact=int((tier == EXACT).sum()),
        identical=_identical(sets, comparison, tier == EXACT),
        copied=_copied(tier == EXACT, pool, fdr),
        calibrated=int((q <= fdr).sum()),
        competed=int((q_decoy <= fdr).sum()),
        alike=int((tier == ALIKE).sum()),
        alike_p=1.0 if alike is None or shifted else alike.p_value,
        named=tuple(judged[tier == NAMED].tolist()),
        excess=None if excess is None else (excess.count, excess.depth, excess.expected),
        contested=excess is not None and contest is not None and excess is contest[1].excess,
        shifted=shifted,
        leaning=contest is not None and contest[1].leaning,
        withheld=int((tier > CLEAR).sum()),
        fewest_copies=bound,
    )
    missing: tuple[str, ...] = ()
    if H is not None:
        missing = strata_of(S, H, comparison.withdrawn.rows, sets.overlap_labels)[1]
    verdict, reasons = judge(findings, counts, power=power, missing=missing, fdr=fdr, level=LEVEL)
    return Judgment(
        tier=tier,
        p=p,
        q=q,
        q_decoy=q_decoy,
        pick=Pick(rows, null, sets.T),
        shift=shift,
        set_test=_set_test(tested, contest, alike),
        fewest_copies={}
        if bound is None
        else {"confidence": CONFIDENCE, "rows": findings.withheld, "copies": bound},
        power=power,
        counts=counts,
        verdict=verdict,
        reasons=reasons,
    )


def _identical(sets: AuditSets, comparison: AuditComparison, exact: NDArray[np.bool_]) -> int:
    """How many of the rows with equal or nearly equal pixels have equal ones, mirrored or not."""
    samples = take(sets.S.samples, np.flatnonzero(exact[: len(sets.S)]))
    if not isinstance(samples, Tensor):
        return 0
    equal = [comparison.matcher.equal(shown) >= 0 for shown in (samples, samples.flip(-1))]
    return int(np.logical_or(*equal).sum())


def _counts(
    sets: AuditSets, comparison: AuditComparison, tested: Calibrated | None, fdr: float
) -> Counts:
    """How many images the audit has seen."""
    H, null, contest, withdrawn = sets.H, comparison.null, comparison.contest, comparison.withdrawn
    m = len(comparison.rows.twins)
    return Counts(
        synthetic_rows=sets.S.total,
        synthetic_judged=m,
        withdrawn=len(withdrawn.rows),
        withdrawn_unranked=withdrawn.unranked,
        withdrawn_incomparable=withdrawn.other_basis,
        forgotten=withdrawn.forgotten,
        train=len(sets.T),
        train_distinct=len(sets.distinct),
        holdout=0 if H is None else len(H),
        holdout_dropped=len(sets.overlap),
        holdout_near_equal=0 if null is None else int(null.near_equal.sum()),
        holdout_resembling=0 if null is None else int(null.resembling.sum()),
        holdout_distinct=0 if tested is None else tested.num_null,
        resolution=None if tested is None else resolution(m, tested.num_null, fdr),
        competition_resolution=None if contest is None else contest[1].resolution,
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
    return pool.share_test(exact, pool.null.near_equal).p_value <= EXACT_SHARE * fdr


def _tiers(
    rows: Matches,
    often: NDArray[np.bool_],
    calibrated: NDArray[np.bool_],
    competed: NDArray[np.bool_],
    named: Indices,
) -> NDArray[np.int8]:
    """The tier of each row, the strongest reason first."""
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
    sets: AuditSets,
    comparison: AuditComparison,
    tested: Calibrated | None,
    settings: AuditSettings,
) -> tuple[Power, ...]:
    """Returns the power for planted copies, kind by kind."""
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


def _fewest_copies(
    tested: Calibrated | None, pool: AuditPool | None, withheld: Flags, shifted: bool
) -> int | None:
    """How many of the rows that are withheld are copies at least.

    Both comparisons are asked, each at half the level. Where synthetic images as a whole are closer
    to training images there is no answer, since they are not exchangeable with held-out ones.
    """
    if tested is None or pool is None or shifted:
        return None
    m, level = len(withheld), (1 - CONFIDENCE) / len(tested.tests)
    bounds = []
    for test in tested.tests.values():
        is_synthetic = test.ranking < m
        chosen = is_synthetic & withheld[test.ranking.clip(max=m - 1)]
        bounds.append(fewest_copies(is_synthetic, pool.strata[test.ranking], chosen, level))
    return max(bounds)


def _set_test(
    tested: Calibrated | None,
    contest: tuple[Indices, Competition] | None,
    alike: ShareTest | None,
) -> dict[str, JSON]:
    """Returns the results of the tests of all rows together for the report."""
    if tested is None or alike is None:
        return {}
    excesses = {name: test.excess for name, test in tested.tests.items()}
    if contest is not None:
        excesses["contest"] = contest[1].excess
    tests = {name: (e.p_value, e.depth, e.count, e.expected) for name, e in excesses.items()}
    tests["alike"] = alike.p_value, alike.total, alike.count, alike.expected
    return {
        name: {
            "level": levels(LEVEL)[name],
            "p_value": p_value,
            "closest": closest,
            "count": count,
            "expected": expected,
        }
        for name, (p_value, closest, count, expected) in tests.items()
    }

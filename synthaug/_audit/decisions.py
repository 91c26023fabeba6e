"""What follows from the comparisons: tiers, the contest, a shift, and how much the audit sees."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, norm, rankdata

from synthaug._audit.calibration import Scores, conformal_p_values, q_values
from synthaug._audit.competition import Competition, compete
from synthaug._audit.disturbances import Disturbance
from synthaug._audit.inputs import AuditSet, keys, take
from synthaug._audit.matches import Matches
from synthaug._audit.pairs import Pick
from synthaug._audit.report import CALIBRATED, CLEAR, EXACT, Power
from synthaug._audit.verdict import smallest_visible
from synthaug._noise import counter_rng
from synthaug._types import JSON

NEEDED_POWER = 0.9
"""Share of the planted copies of each required kind that must be flagged."""

_SHIFT_SHARE, _SHIFT_LEVEL = 0.6, 0.001
"""Copies among a fifth of all rows raise the share of p-values up to 0.5 from 0.5 to 0.6, no more:
beyond that, with a chance of 1 in 1,000 that it is an accident, all rows are closer, and p-values
may be too small. Of fresh CIFAR-10 images of less and less contrast, p-values up to 0.1 have a
share of 0.11 where those up to 0.5 have 0.6, of 0.16 where these have 0.74, and of 0.36 where
these have 0.92 (`benchmarks/audit_nulls.py`)."""

_HALVINGS = 100


def tiers(
    synthetic: Matches, fresh: Scores | None, fdr: float
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
    """Tier, p-value and q-value of each row; the last two NaN where the hold-out has no say."""
    tier = np.where(synthetic.near_equal, EXACT, CLEAR).astype(np.int8)
    p, q = np.full((2, len(tier)), np.nan)
    if fresh is not None:
        rest = ~synthetic.near_equal
        p[rest] = conformal_p_values(synthetic.scores[rest], fresh)
        q[rest] = q_values(p[rest])
        tier[rest & (q <= fdr)] = CALIBRATED
    return tier, p, q


def contest_of(
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


def summary(competition: Competition) -> dict[str, JSON]:
    """What a report says of the contest."""
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


def shift_of(synthetic: Matches, null: Matches | None, p: NDArray[np.float64]) -> dict[str, JSON]:
    """Whether synthetic images as a whole are closer to training images than real ones are.

    Then a small p-value need not mean a copy.
    """
    judged = p[np.isfinite(p)]
    if null is None or not len(judged):
        return {}
    rows, fresh = (_usual_distances(matches) for matches in (synthetic, null))
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


def _usual_distances(matches: Matches) -> NDArray[np.float64]:
    """Mean distance of each image to its second to k-th neighbor, in the first space."""
    scores, distances = matches.scores[:, 0], matches.distances[:, 0]
    return distances[scores > 0] / scores[scores > 0]


def power_of(
    kind: Disturbance,
    planted: Matches,
    pick: Pick,
    T: AuditSet,
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


def halvings(fresh: Scores, fdr: float, seed: int) -> dict[str, JSON]:
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

"""Statistics of an audit: p-values, tests of the whole set, a shift, and tiers."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, ks_2samp, norm, rankdata

from synthaug._audit.calibration import closeness, conformal_p_values, q_values, units
from synthaug._audit.competition import Competition, Entrants, compete, components
from synthaug._audit.inputs import AuditSet
from synthaug._audit.matches import Matches
from synthaug._audit.precedence import Flags, Precedence, precedence
from synthaug._images.labeled import UNDIVIDED
from synthaug._types import JSON, Indices, Labels

GROUP_REACH = 0.4
"""Images belong together if they are closer to each other than this share of the distance that
either has to its usual neighbors among the training images."""

ROWS_SHARE, EXACT_SHARE = 0.45, 0.1
"""How the false discovery rate is shared: each of the two comparisons of the rows has the first
part of it, and the test whether equal pixels are more frequent than in the hold-out the second."""

_SHIFT_SHARE, _SHIFT_LEVEL = 0.6, 0.001
"""Copies among a fifth of all rows raise the share of p-values up to 0.5 from 0.5 to 0.6, no more:
beyond that, with a chance of 1 in 1,000 that it is an accident, all rows are closer, and p-values
may be too small."""

_AS_OFTEN_AT_LEAST, _AS_OFTEN_LEVEL = 2, 0.05
"""Held-out images match a training image as often as synthetic ones do if at least two do, and if
the number of synthetic ones among all has at least this chance."""


TOGETHER = 4
"""Power by which scores are combined where all images are tested together. Of 10 copies among 1,000
CIFAR-100 images, of 30 kinds, 0.80 of draws were noticed with 4 and 0.78 with 2; one by one, copies
among images that are all typical are told better with 2."""

LEVEL = 0.01
"""Chance that the tests of the whole set find something if the generator copies nothing."""


def levels(level: float) -> dict[str, float]:
    """How the level of the tests of the whole set is shared among them, by name."""
    shares = {"all": 0.25, "rest": 0.3, "alike": 0.05, "contest": 0.2, "lean": 0.2}
    return {name: share * level for name, share in shares.items()}


@dataclass(frozen=True, kw_only=True)
class ShareTest:
    """Compares how many synthetic and held-out images are of one kind, as groups."""

    p_value: float
    """Chance of so many synthetic ones; 1 if there are none."""
    total: int
    """Images of the kind."""
    count: int
    """Synthetic ones among them."""
    expected: float
    """How many chance explains."""


@dataclass(frozen=True, kw_only=True)
class AuditPool:
    """Synthetic and held-out images together, the synthetic ones first."""

    rows: Matches
    """Of the m synthetic images."""
    null: Matches
    """Of the n held-out images."""
    strata: Indices
    """Class of each, int64 (m + n,); 0 for all if classes are unknown."""
    group: Indices
    """Number of the group of images that resemble each other, int64 (m + n,)."""
    dropped: Indices
    """Training images to which held-out images were equal that were set aside, int64 (k,)."""
    dropped_strata: Indices
    """Class of each of these held-out images, int64 (k,)."""

    @property
    def is_synthetic(self) -> Flags:
        """Mask of the synthetic images, (m + n,)."""
        return np.arange(len(self.group)) < len(self.rows.twins)

    @cached_property
    def resembling(self) -> Flags:
        """Mask of the images that resemble a training image as near-duplicates do, (m + n,)."""
        return np.concatenate([self.rows.resembling, self.null.resembling])

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The statistics of all images, (m + n, s)."""
        return np.concatenate([self.rows.scores, self.null.scores])

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """How often images of the same class are synthetic over how often they are held out."""
        m = len(self.rows.twins)
        number = np.unique(self.strata, return_inverse=True)[1]
        synthetic, held_out = (
            np.bincount(part, minlength=number.max() + 1) for part in (number[:m], number[m:])
        )
        share = (synthetic / m) / (held_out.clip(min=1) / (len(number) - m))
        return share[number]

    @cached_property
    def distinct(self) -> Indices:
        """Places of the held-out images that count: the closest one of each group, ascending."""
        m = len(self.rows.twins)
        order = m + np.argsort(closeness(self.scores)[m:], kind="stable")
        return np.sort(order[np.unique(self.group[order], return_index=True)[1]])

    def p_values(self, keep: Flags) -> NDArray[np.float64]:
        """p-values of the synthetic images among `keep`, (m,); NaN for others.

        Args:
            keep: Mask of the images that take part, (m + n,), chosen alike among synthetic and
                held-out ones.
        """
        p = np.full(len(self.rows.twins), np.nan)
        tested = np.flatnonzero(keep & self.is_synthetic)
        p[tested] = self.p_of(self.scores[tested], keep, self.weights[tested])
        return p

    def p_of(
        self,
        scores: NDArray[np.float64],
        keep: Flags,
        weights: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """p-values of images with these scores, (k,), among the held-out images in `keep`."""
        null = self.distinct[keep[self.distinct]]
        if not (len(scores) and len(null)):
            return np.full(len(scores), np.nan)
        unit = units(self.scores[keep])
        return conformal_p_values(
            closeness(scores, unit),
            closeness(self.scores[null], unit),
            weights=weights,
            null_weights=self.weights[null],
        )

    def precedence(self, keep: Flags, level: float, seed: int) -> Precedence:
        """Tests the synthetic against the held-out images among `keep`, as `precedence` does.

        Its positions are those in the pool.
        """
        chosen = np.flatnonzero(keep)
        strata = self.strata[chosen]
        test = precedence(
            closeness(self.scores[chosen], power=TOGETHER),
            self.is_synthetic[chosen],
            group=self.group[chosen],
            strata=strata,
            level=level,
            seed=seed,
        )
        return Precedence(excess=test.excess, rows=chosen[test.rows], ranking=chosen[test.ranking])

    def share_test(self, counted: Flags, null: Flags) -> ShareTest:
        """Asks whether more synthetic than held-out images are of a kind.

        If synthetic and held-out images are exchangeable within a class, the number of synthetic
        ones among those is hypergeometric in every class. Held-out images that were set aside as
        equal to training images count among both.

        Args:
            counted: The synthetic images that are, (m,). Groups of images count once.
            null: The held-out images that are, (n,).
        """
        m, k = len(self.rows.twins), len(self.dropped)
        synthetic = np.arange(len(self.group) + k) < m
        some = np.concatenate([counted, null, np.ones(k, bool)])
        # Equal training images were met by equal held-out ones: these are one group.
        twins = len(self.group) + np.unique(self.dropped, return_inverse=True)[1]
        group = np.concatenate([self.group, twins])
        strata = np.concatenate([self.strata, self.dropped_strata])
        number = np.unique(strata, return_inverse=True)[1]

        def groups(keep: Flags) -> Indices:
            """How many there are of each class, (c,)."""
            pairs = np.unique(np.stack([number[keep], group[keep]]), axis=1)
            return np.bincount(pairs[0], minlength=number.max() + 1)

        ours, theirs = (groups(some & side) for side in (synthetic, ~synthetic))
        sizes = [groups(side) for side in (synthetic, ~synthetic)]
        chance, expected = np.ones(1), 0.0
        for c in np.flatnonzero(ours + theirs):
            total, everything = ours[c] + theirs[c], sizes[0][c] + sizes[1][c]
            of_class = hypergeom.pmf(np.arange(total + 1), everything, sizes[0][c], total)
            chance = np.convolve(chance, of_class)
            expected += total * sizes[0][c] / everything
        found = int(ours.sum())
        return ShareTest(
            p_value=float(min(1.0, chance[found:].sum())) if found else 1.0,
            total=found + int(theirs.sum()),
            count=found,
            expected=float(expected),
        )

    def as_often(self) -> Flags:
        """Synthetic images whose training image held-out images resemble as often, (m,).

        That is so for blank frames, for example. Training images count as one if images that belong
        together resemble them.
        """
        m, k = len(self.rows.twins), len(self.dropped)
        places = np.flatnonzero(self.resembling)
        neighbors = np.concatenate([self.rows.neighbors[:, -1], self.null.neighbors[:, -1]])
        twins = np.concatenate([self.rows.twins, self.null.twins])
        matched = np.concatenate([np.where(twins >= 0, twins, neighbors)[places], self.dropped])
        often = np.zeros(m, bool)
        if not len(places):
            return often
        groups = np.unique(self.group[places], return_inverse=True)[1]
        groups = np.concatenate([groups, groups.max() + 1 + np.arange(k)])
        images = np.unique(matched, return_inverse=True)[1]
        number = components(groups, 1 + groups.max() + images, 2 + groups.max() + images.max())
        number = number[groups]
        synthetic = np.concatenate([places < m, np.zeros(k, bool)])
        all_of = np.bincount(number)
        ours = np.bincount(number[synthetic], minlength=len(all_of))
        chance = hypergeom.sf(ours - 1, len(self.group) + k, m, all_of)
        is_often = (all_of - ours >= _AS_OFTEN_AT_LEAST) & (chance >= _AS_OFTEN_LEVEL)
        often[places[places < m]] = is_often[number[synthetic]]
        return often


def pooled(
    rows: Matches, null: Matches, links: Indices, strata: Indices, dropped: Indices
) -> AuditPool:
    """Puts synthetic and held-out images together.

    Args:
        rows: Rows of the synthetic images.
        null: Null of the held-out images.
        links: Pairs of images that belong together, the synthetic ones first, int64 (l, 2).
        strata: Class of each, the synthetic ones first, and behind them of the held-out images that
            were set aside, int64 (m + n + k,).
        dropped: Training images to which these were equal, int64 (k,).
    """
    size = len(strata) - len(dropped)
    return AuditPool(
        rows=rows,
        null=null,
        strata=strata[:size],
        group=components(links[:, 0], links[:, 1], size),
        dropped=dropped,
        dropped_strata=strata[size:],
    )


def strata_of(
    S: AuditSet, H: AuditSet, withdrawn: Indices, set_aside: Labels
) -> tuple[Indices, tuple[str, ...]]:
    """The class of each synthetic and held-out image, and synthetic classes that are not held out.

    Classes are the same if they have the same name. Where any label is unknown, one side alone is a
    folder without classes, or a synthetic class is not held out, all images count as of one class.

    Args:
        S: The synthetic images.
        H: The held-out images.
        withdrawn: Rows of the synthetic images that are ranked behind the others, int64 (w,).
        set_aside: Labels of the held-out images that are not in `H`, since they are training
            images, int64 (k,). Their classes stand behind the others.
    """
    labels = [S.labels_with(withdrawn), np.concatenate([H.labels, set_aside])]
    one = np.zeros(sum(map(len, labels)), np.int64)
    if any((own < 0).any() for own in labels) or (S.classes == UNDIVIDED) != (
        H.classes == UNDIVIDED
    ):
        return one, ()
    if S.classes and H.classes and S.classes != H.classes:
        place = {name: i for i, name in enumerate(S.classes)}
        number = [place.get(name, len(place) + i) for i, name in enumerate(H.classes)]
        labels[1] = np.array(number)[labels[1]]
    missing = np.setdiff1d(labels[0], labels[1][: len(H)]).tolist()
    names = tuple(S.classes[c] if c < len(S.classes) else str(c) for c in missing)
    return (one if missing else np.concatenate(labels)), names


def contest_of(
    pooled: Matches,
    links: NDArray[np.int64],
    num_train: int,
    first_holdout: int,
    num_pooled: int,
    *,
    fdr: float,
    level: float,
    seed: int,
) -> tuple[NDArray[np.int64], Competition] | None:
    """Lets training and hold-out images compete for the rows, and says which rows took part.

    Rows with a twin in either are left out, as the first tier has judged them.
    """
    rows = np.flatnonzero(~pooled.near_equal)
    if not len(rows) or num_pooled == num_train:
        return None
    # Ranks among the rows themselves: nothing here knows which matches are training images.
    ranks = rankdata(pooled.scores[rows], method="min", axis=0)
    matches = pooled.neighbors[rows, ranks.argmin(axis=1)]
    place = np.full(len(pooled.twins), -1, np.int64)
    place[rows] = np.arange(len(rows))
    links = place[links]
    entrants = Entrants(
        ranks=ranks.min(axis=1),
        matches=matches,
        is_target=matches < first_holdout,
        links=links[(links >= 0).all(axis=1)],
    )
    return rows, compete(
        entrants,
        num_targets=num_train,
        num_decoys=num_pooled - num_train,
        fdr=fdr,
        level=level,
        seed=seed,
    )


def summary(competition: Competition) -> dict[str, JSON]:
    """Returns the competition's entries for the report."""
    return {
        "clusters": competition.num_clusters,
        "targets": competition.targets,
        "share": competition.share,
        "expected_share": competition.expected_share,
        "share_p_value": competition.share_p_value,
        "leaning": competition.leaning,
        "excess_p_value": competition.excess.p_value,
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
    rows, fresh = (x.usual[np.isfinite(x.usual)] for x in (synthetic, null))
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


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Scores of all rows, calibrated on the held-out images."""

    p: NDArray[np.float64]
    """p-values of the rows, (m,)."""
    q: NDArray[np.float64]
    """Their q-values, (m,)."""
    num_null: int
    """Distinct held-out images that resemble no training image."""
    tests: dict[str, Precedence]
    """Tests of all rows together: of all, and of those that resemble no training image."""


def calibrated(pool: AuditPool, level: float, seed: int) -> Calibrated:
    """Compares the synthetic images with the held-out ones, row by row and as a whole.

    Data repeat themselves: some held-out images resemble a training image as a copy does. Among
    them copies that are changed a little would go unseen. So everything is tested twice, with all
    images, and without those that resemble a training image; synthetic ones are left out by the
    same rule as held-out ones, so that what is compared is alike.
    """
    everything = np.ones(len(pool.group), bool)
    kept = {"all": everything, "rest": ~pool.resembling}
    p = {name: pool.p_values(keep) for name, keep in kept.items()}
    q = np.full(len(p["all"]), np.inf)
    for values in p.values():
        tested = np.isfinite(values)
        if tested.any():
            q[tested] = np.minimum(q[tested], q_values(values[tested]) / ROWS_SHARE)
    return Calibrated(
        p=np.where(np.isfinite(p["rest"]), p["rest"], p["all"]),
        q=np.where(np.isfinite(q), np.minimum(q, 1), np.nan),
        num_null=int((~pool.resembling[pool.distinct]).sum()),
        tests={
            name: pool.precedence(keep, levels(level)[name], seed) for name, keep in kept.items()
        },
    )

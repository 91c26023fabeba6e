"""Rows that were withdrawn from a cache: ranked by the scores that were kept of them.

Their images are erased. Were they left out, an audit after a withdrawal would pass over what the
generator has copied. So `AuditReport.withdraw_from` keeps their scores, and the next audit ranks
them among all others, if it compares with the same images in the same way. Rows that were made of
images which were forgotten (`caches.forget`) are left out, and counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthaug._audit.inputs import AuditSet
from synthaug._audit.matches import ALIKE, Matches
from synthaug._audit.notes import KeptScores, notes_path, read_notes
from synthaug._audit.sets import AuditSets
from synthaug._audit.settings import environment
from synthaug._plan import Plan, canonical_json
from synthaug._types import JSON, Indices

_BASIS = (
    "kind",
    "features",
    "k",
    "index",
    "train_identity",
    "holdout_identity",
    "holdout_dropped",
)
"""Settings of a report that scores rest on."""


def _basis(
    settings: Mapping[str, JSON], identity: Mapping[str, JSON], made_by: Mapping[str, JSON]
) -> dict[str, JSON]:
    """Returns the settings, weights and version that the scores depend on."""
    basis = {name: settings[name] for name in _BASIS}
    return {**basis, "weights": identity.get("weights", {}), "synthaug": made_by.get("synthaug")}


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """Rows whose images were erased."""

    rows: Indices
    """Row numbers of those that are ranked, int64 (w,)."""
    matches: Matches
    """How close they came, as far as it was kept."""
    rmse: NDArray[np.float64]
    """Difference to the training images that they came closest to, (w,)."""
    groups: tuple[KeptScores, ...]
    """The records that they are from, which say what belonged together."""
    unranked: int
    """Others, of which no scores were kept that can be compared."""
    forgotten: int
    """Rows that were made of images which were forgotten: left out."""
    other_basis: bool
    """Whether scores of rows that are not ranked were kept, but cannot be compared."""


def withdrawn_of(sets: AuditSets, index: str, num_statistics: int) -> Withdrawn:
    """The withdrawn rows of the synthetic images; none if these are no cache.

    Args:
        sets: The images of the audit.
        index: How neighbors are searched.
        num_statistics: How many statistics there are.

    Raises:
        AuditError: If the notes beside the cache cannot be read.
    """
    S, T, cache = sets.S, sets.T, sets.S.cache
    if cache is None:
        return _none(num_statistics)
    from synthaug._cache.format import State
    from synthaug._cache.tombstones import rows_from_sources

    gone = cache.rows_in(State.WITHDRAWN)[:]
    forgotten = np.intersect1d(gone, rows_from_sources(cache.plan, cache.tombstones))
    gone = np.setdiff1d(gone, forgotten)
    notes = read_notes(notes_path(cache)).withdrawn if len(gone) else ()
    basis = canonical_json(_basis(sets.facts(index), S.identity, environment()))
    usable = [
        kept
        for kept in notes
        if canonical_json(kept.basis) == basis and len(kept.scores) == num_statistics
    ]
    # The last record of a row counts.
    place = {seed: (r, i) for r, kept in enumerate(usable) for i, seed in enumerate(kept.seed)}
    seeds = cache.plan.at("seed", gone)
    is_ranked = np.array([seed in place for seed in seeds.tolist()], bool)
    ranked, unranked = gone[is_ranked], set(seeds[~is_ranked].tolist())
    found = replace(
        _none(num_statistics),
        unranked=len(unranked),
        forgotten=len(forgotten),
        other_basis=any(unranked & set(kept.seed.tolist()) for kept in notes),
    )
    if not len(ranked):
        return found
    places = [place[seed] for seed in seeds[is_ranked].tolist()]

    def column(name: str) -> NDArray[Any]:
        return np.array([vars(usable[r])[name][i] for r, i in places])

    def table(name: str) -> NDArray[np.float64]:
        return np.array([[values[i] for values in vars(usable[r])[name]] for r, i in places])

    scores, near_equal = table("scores"), column("near_equal")
    neighbor = np.searchsorted(T.rows, column("neighbor"))
    flipped = column("neighbor_flipped")
    resembling = near_equal | (scores[:, -1] <= ALIKE) if sets.are_images else near_equal
    matches = Matches(
        scores=scores,
        distances=table("distances"),
        neighbors=np.repeat(neighbor[:, None], num_statistics, axis=1),
        flipped=np.repeat(flipped[:, None], num_statistics, axis=1),
        usual=np.full(len(ranked), np.nan),
        twins=np.where(near_equal, neighbor, -1),
        twin_flipped=flipped & near_equal,
        resembling=resembling,
    )
    return replace(found, rows=ranked, matches=matches, rmse=column("rmse"), groups=tuple(usable))


def _none(num_statistics: int) -> Withdrawn:
    table, flags = np.zeros((0, num_statistics)), np.zeros((0, num_statistics), bool)
    none = Matches(
        scores=table,
        distances=table,
        neighbors=table.astype(np.int64),
        flipped=flags,
        usual=table[:, 0],
        twins=np.zeros(0, np.int64),
        twin_flipped=flags[:, 0],
        resembling=flags[:, 0],
    )
    return Withdrawn(
        rows=np.zeros(0, np.int64),
        matches=none,
        rmse=table[:, 0],
        groups=(),
        unranked=0,
        forgotten=0,
        other_basis=False,
    )


def with_withdrawn(links: Indices, S: AuditSet, withdrawn: Withdrawn) -> Indices:
    """Links among synthetic and held-out images, with those of withdrawn rows between the two.

    Args:
        links: Pairs of places, int64 (l, 2): the m judged synthetic images, then the held-out ones.
        S: The synthetic images.
        withdrawn: The w withdrawn rows, which come to the places m to m + w - 1.
    """
    m, w = len(S), len(withdrawn.rows)
    shifted = np.where(links >= m, links + w, links)
    if not w or S.cache is None:
        return shifted
    seeds = S.cache.plan.at("seed", np.concatenate([S.rows, withdrawn.rows])).tolist()
    place = {seed: i for i, seed in enumerate(seeds)}
    pairs: list[tuple[int, int]] = []
    for kept in withdrawn.groups:
        first: dict[int, int] = {}
        members = [*zip(kept.group.tolist(), kept.seed.tolist(), strict=True), *kept.others]
        places = [(group, place[seed]) for group, seed in members if seed in place and group >= 0]
        places += [(group, m + w + image) for group, image in kept.held_out]
        pairs += [(first.setdefault(group, at), at) for group, at in places]
    return np.concatenate([shifted, np.array(pairs, np.int64).reshape(-1, 2)])


def kept_scores(report: Any, plan: Plan, rows: Indices) -> KeptScores:
    """Returns the scores of some rows in a report, for `withdrawn_of`.

    Args:
        report: An `AuditReport`.
        plan: Plan of its cache.
        rows: Row numbers.
    """
    group = report.at("group", rows)
    wanted = np.unique(group[group >= 0])
    others = np.setdiff1d(report.judged[np.isin(report.of_judged("group"), wanted)], rows)
    held_out = np.flatnonzero(np.isin(report.holdout_group, wanted))
    return KeptScores(
        basis=_basis(report.settings, report.identity, report.environment),
        created=str(report.environment.get("created")),
        seed=plan.at("seed", rows),
        scores=tuple(report.at("scores", rows).T),
        distances=tuple(report.at("distances", rows).T),
        neighbor=report.at("neighbors", rows),
        neighbor_flipped=report.at("neighbor_flipped", rows),
        rmse=report.at("rmse", rows),
        near_equal=report.at("near_equal", rows),
        group=group,
        others=_pairs(report.at("group", others), plan.at("seed", others)),
        held_out=_pairs(report.holdout_group[held_out], held_out),
    )


def _pairs(first: NDArray[Any], second: NDArray[Any]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(first.tolist(), second.tolist(), strict=True))

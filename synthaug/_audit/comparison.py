"""Searches the training images for all others, and for copies that are planted among them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from synthaug._audit.cluster import crew_of
from synthaug._audit.competition import Competition
from synthaug._audit.decisions import (
    GROUP_REACH,
    LEVEL,
    AuditPool,
    contest_of,
    levels,
    pooled,
    strata_of,
)
from synthaug._audit.descriptive import descriptive
from synthaug._audit.disturbances import Disturbance, disturbances, vector_disturbances
from synthaug._audit.inputs import AuditSet, Contents, Samples, joined, take
from synthaug._audit.matches import Matches, concatenated
from synthaug._audit.matching import Matcher, linked
from synthaug._audit.power import PLANTED
from synthaug._audit.sets import AuditSets
from synthaug._audit.settings import AuditSettings
from synthaug._audit.withdrawn import Withdrawn, with_withdrawn, withdrawn_of
from synthaug._neighbors import threads
from synthaug._noise import counter_rng
from synthaug._support.progress import Bar, bar
from synthaug._types import JSON, Indices

_RECALLED = 1000


@dataclass(frozen=True, kw_only=True)
class AuditComparison:
    """How close synthetic, held-out and planted images come to the training images."""

    matcher: Matcher
    decoys: Matcher | None
    """Searches the hold-out images."""
    rows: Matches
    """Of the synthetic images, and behind them of withdrawn rows whose scores were kept."""
    withdrawn: Withdrawn
    """Rows of the synthetic images that were withdrawn."""
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


def compare(sets: AuditSets, settings: AuditSettings, progress: bool) -> AuditComparison:
    """Searches the training images for all others, and for copies that are planted among them."""
    S, T, H = sets.S, sets.T, sets.H
    extraction = settings.extraction
    num_planted = min(len(T), PLANTED)
    originals = counter_rng(settings.seed, 1).choice(len(T), num_planted, replace=False)
    num_kinds = len(_kinds(T, 1.0))
    num_copies = num_kinds * num_planted
    # Training images are indexed, synthetic ones and planted copies compared, held-out ones both.
    total = len(sets.distinct) + len(S) + num_copies + (0 if H is None else 2 * len(H))
    with (
        threads(),
        crew_of(extraction.engine, sets.extractors) as crew,
        bar(total, "audit, real images", "image", progress=progress) as counter,
    ):
        searched = partial(
            Matcher,
            extractors=sets.extractors,
            k=sets.k,
            extraction=extraction,
            index=settings.index,
            crew=crew,
        )
        matcher = searched(T.samples, contents=sets.distinct, tick=partial(_count, counter))
        recall = {} if settings.index == "exact" else matcher.recall(S.samples[:_RECALLED])
        withdrawn = withdrawn_of(sets, settings.index, len(matcher.statistics))
        contest = null = decoys = pool = None
        isolation = matcher.isolation(originals)
        if H is None:
            counter.set_description(f"audit, {len(S):,} synthetic images")
            rows, isolated = matcher.ask(matcher.compare(S.samples), isolation)
        else:
            decoys = searched(H.samples, contents=Contents(H.keys))
            counter.update(len(H))
            counter.set_description(f"audit, {len(S):,} synthetic and {len(H):,} held-out images")
            null, (rows, together), isolated = matcher.ask(
                matcher.compare(H.samples), matcher.compare_pooled(decoys, S.samples), isolation
            )
            contest = _contest(sets, settings, together, len(decoys))
            pool = _pool(sets, settings, rows, null, withdrawn)
        kinds = _kinds(T, float(np.median(isolated)))
        copies = [_planted(kind, T, originals, settings.seed) for kind in kinds]
        counter.set_description(f"audit, {num_copies:,} planted copies")
        planted, *isolated = matcher.ask(
            matcher.compare(joined([made for _, made in copies])),
            *(matcher.isolation(m.neighbors[:, 0]) for m in (rows, null) if m is not None),
        )
        return AuditComparison(
            matcher=matcher,
            decoys=decoys,
            rows=concatenated([rows, withdrawn.matches]),
            withdrawn=withdrawn,
            null=null,
            pool=pool,
            contest=contest,
            originals=originals,
            kinds=[kind for kind, _ in copies],
            planted=planted.split(num_kinds),
            recall=recall,
            described=descriptive(rows, null, isolated),
        )


def _count(counter: Bar, images: int, before: bool) -> None:
    """Counts images; those that an earlier run compared are named, and say nothing of the rate."""
    if before:
        counter.initial += images
        earlier: dict[str, Any] = {"from an earlier run": f"{counter.initial:,}"}
        counter.set_postfix(refresh=False, **earlier)
    counter.update(images)


def _contest(
    sets: AuditSets, settings: AuditSettings, together: Matches, num_decoys: int
) -> tuple[Indices, Competition] | None:
    """Lets training and hold-out images compete, which were searched together."""
    nearest = 0.5 * together.distances[:, 0]
    num_train = len(sets.distinct)
    return contest_of(
        together,
        linked(sets.S.samples, sets.extractors[0], nearest, settings.extraction),
        num_train,
        len(sets.T),
        num_train + num_decoys,
        fdr=settings.fdr,
        level=levels(LEVEL)["contest"],
        seed=settings.seed,
    )


def _pool(
    sets: AuditSets, settings: AuditSettings, rows: Matches, null: Matches, withdrawn: Withdrawn
) -> AuditPool:
    """Puts synthetic images, withdrawn ones behind them, and held-out images together."""
    S, H = sets.S, sets.H
    assert H is not None
    reach = GROUP_REACH * np.concatenate([rows.usual, null.usual])
    both = joined([S.samples, H.samples])
    links = linked(both, sets.extractors[0], reach, settings.extraction)
    strata = strata_of(S, H, withdrawn.rows, sets.overlap_labels)[0]
    ranked = concatenated([rows, withdrawn.matches])
    return pooled(ranked, null, with_withdrawn(links, S, withdrawn), strata, sets.overlap)


def _planted(
    kind: Disturbance, T: AuditSet, originals: Indices, seed: int
) -> tuple[Disturbance, Samples]:
    """Copies of training images, and what the report calls them.

    What becomes of an image in another file is done to the whole image, where training images came
    from files. The result is resized and converted as they were.
    """
    if kind.to_files is not None:
        made = T.images.changed(T.rows[originals], partial(kind.to_files, seed=seed))
        if made is not None:
            return replace(kind, name=f"{kind.name}, whole files"), made
    return kind, kind.apply(take(T.samples, originals), seed)


def _kinds(T: AuditSet, usual: float) -> list[Disturbance]:
    if not isinstance(T.samples, Tensor):
        return vector_disturbances(usual)
    return disturbances(max(T.pixels.shape[2:]))

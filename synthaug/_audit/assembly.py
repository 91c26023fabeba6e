"""Puts the report together: everything at the places of all rows, and the pairs that are shown."""

from collections import defaultdict
from dataclasses import asdict

import numpy as np

from synthaug._audit.acceptance import Acceptance, with_accepted
from synthaug._audit.comparison import AuditComparison
from synthaug._audit.decisions import LEVEL, summary
from synthaug._audit.inputs import key_text, take
from synthaug._audit.judgment import Judgment
from synthaug._audit.notes import notes_path, read_notes
from synthaug._audit.pairs import Pick, counterpart, pair_of, rmse_of
from synthaug._audit.report import AuditReport
from synthaug._audit.sets import AuditSets
from synthaug._audit.settings import AuditSettings, environment
from synthaug._audit.spread import Places
from synthaug._audit.tiers import ALIKE, CLEAR, EXACT, NOT_JUDGED
from synthaug._types import JSON, Indices

_HOLDOUT_PAIRS = 5


def shown_pairs(
    sets: AuditSets, comparison: AuditComparison, judgment: Judgment, settings: AuditSettings
) -> tuple[list[dict[str, JSON]], list[dict[str, JSON]]]:
    """The most suspicious synthetic images, and hold-out images to compare them with, as shown."""
    S, T, H = sets.S, sets.T, sets.H
    rows, null, decoys = comparison.rows, comparison.null, comparison.decoys
    # Rows with the strongest reason first, then by how suspicious they are.
    suspicious = np.where(judgment.tier == EXACT, -1, judgment.p)
    withheld = np.where(judgment.tier == CLEAR, ALIKE + 1, judgment.tier)
    order = np.lexsort((rows.scores[:, 0], suspicious, withheld))
    shown = order[order < len(S)][: settings.max_pairs]  # withdrawn images cannot be shown
    pairs = [
        pair_of(i, S, T, rows, judgment.pick, comparison.matcher)
        | {
            "tier": int(judgment.tier[i]),
            "p_value": _number(judgment.p[i]),
            "q_value": _number(judgment.q[i]),
        }
        for i in shown.tolist()
    ]
    if H is None or decoys is None or null is None:
        return pairs, []
    if len(shown):
        best = decoys.match(take(S.samples, shown))
        for j, (pair, i) in enumerate(zip(pairs, shown.tolist(), strict=True)):
            pair |= counterpart(H, best, j, int(judgment.pick.statistic[i]))
    closest = Pick(null, null, T)
    first = np.lexsort((null.scores[:, 0], closest.lowest_p))[:_HOLDOUT_PAIRS]
    return pairs, [pair_of(i, H, T, null, closest, comparison.matcher) for i in first.tolist()]


def report_of(
    sets: AuditSets,
    comparison: AuditComparison,
    judgment: Judgment,
    settings: AuditSettings,
    pairs: list[dict[str, JSON]],
    holdout_pairs: list[dict[str, JSON]],
) -> AuditReport:
    """Puts everything at the places of all rows, those that were not judged included."""
    S, T = sets.S, sets.T
    rows, null, contest = comparison.rows, comparison.null, comparison.contest
    pick, pool = judgment.pick, comparison.pool
    withdrawn = comparison.withdrawn
    places = Places(np.concatenate([S.rows, withdrawn.rows]), S.total)
    group = np.full(len(rows.twins), -1) if pool is None else pool.group
    none = np.zeros((0, len(comparison.matcher.statistics)))
    accepted = _accepted(sets, judgment)
    labels = (
        S.images.labels if places.keeps_all else places.spread(S.labels_with(withdrawn.rows), -1)
    )
    return AuditReport(
        verdict=judgment.verdict,
        reasons=with_accepted(judgment.reasons, accepted),
        accepted=accepted,
        identity=S.identity,
        statistics=comparison.matcher.statistics,
        tier=places.spread(judgment.tier, NOT_JUDGED),
        p_values=places.spread(judgment.p),
        q_values=places.spread(judgment.q),
        q_decoy=places.spread(judgment.q_decoy),
        scores=places.spread(rows.scores),
        distances=places.spread(rows.distances),
        decided_by=places.spread(pick.statistic, -1),
        neighbors=places.spread(T.rows[pick.neighbors], -1),
        neighbor_flipped=places.spread(pick.flipped, False),
        rmse=places.spread(np.concatenate([rmse_of(S, T, pick), withdrawn.rmse])),
        near_equal=places.spread(rows.near_equal, False),
        group=places.spread(group[: len(rows.twins)], -1),
        holdout_group=group[len(rows.twins) :],
        labels=labels,
        classes=S.classes,
        holdout_scores=none if null is None else null.scores,
        holdout_distances=none if null is None else null.distances,
        power=judgment.power,
        set_test=judgment.set_test,
        fewest_copies=judgment.fewest_copies,
        competition={} if contest is None else summary(contest[1]),
        shift=judgment.shift,
        descriptive=tuple(comparison.described),
        settings=_settings(sets, comparison, judgment, settings),
        environment=environment(),
        pairs=tuple(pairs),
        holdout_pairs=tuple(holdout_pairs),
        withheld_files=_withheld_files(sets, np.concatenate([S.rows, withdrawn.rows]), judgment),
    )


def _withheld_files(
    sets: AuditSets, rows: Indices, judgment: Judgment
) -> tuple[dict[str, JSON], ...]:
    """The rows that are withheld and their training images by file, if there are files."""
    withheld = judgment.tier > CLEAR
    rows, train_rows = rows[withheld], sets.T.rows[judgment.pick.neighbors[withheld]]
    files, train_files = sets.S.images.file_names(rows), sets.T.images.file_names(train_rows)
    columns = zip(rows.tolist(), files, train_rows.tolist(), train_files, strict=True)
    return tuple(
        {"row": row, "file": file, "train_row": train_row, "train_file": train_file}
        for row, file, train_row, train_file in sorted(columns)
        if file is not None or train_file is not None
    )


def _settings(
    sets: AuditSets, comparison: AuditComparison, judgment: Judgment, settings: AuditSettings
) -> dict[str, JSON]:
    """All arguments and counts, and the command that repeats the audit."""
    S, T, H = sets.S, sets.T, sets.H
    return {
        "fdr": settings.fdr,
        "level": LEVEL,
        "seed": settings.seed,
        **sets.facts(settings.index),
        "recall": comparison.recall,
        "command": settings.command(sets.k, [S, T] if H is None else [S, T, H]),
        **asdict(judgment.counts),
    }


def _accepted(sets: AuditSets, judgment: Judgment) -> tuple[Acceptance, ...]:
    """Returns acceptances of earlier reports whose rows are still withheld and unchanged."""
    S, T = sets.S, sets.T
    withheld: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for i in np.flatnonzero(judgment.tier[: len(S)] > CLEAR).tolist():
        neighbor = int(judgment.pick.neighbors[i])
        digests = key_text(S.keys[i]), key_text(T.keys[neighbor])
        withheld[digests].append((int(S.rows[i]), int(T.rows[neighbor])))
    notes = read_notes(notes_path(S.cache or S.source))
    return tuple(acceptance.among(withheld) for acceptance in notes.accepted)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

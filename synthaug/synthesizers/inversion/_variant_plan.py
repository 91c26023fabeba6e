"""Plans of variants: which images they come from, how far they go, and towards which partner."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthaug._plan import Plan
from synthaug._types import Features
from synthaug.synthesizers.inversion._embeddings import EmbeddingTable

ROW = {"guidance_scale": 2.0, "noise": 0.1, "interpolation": 0.1}
"""Row parameters and their defaults, beside `snapshot`, which is the last by default."""


def checked_parameters(given: Mapping[str, Any], table: EmbeddingTable) -> dict[str, Any]:
    """Row parameters with defaults.

    Raises:
        ValueError: For an unknown parameter, a value out of range, or a missing snapshot.
    """
    row: dict[str, Any] = {**ROW, "snapshot": table.last, **given}
    unknown = sorted(set(row) - {*ROW, "snapshot"})
    if unknown:
        raise ValueError(
            f"Unknown row parameter {unknown[0]!r}; known: {', '.join(ROW)}, snapshot."
        )
    for name in ROW:
        values = np.atleast_1d(np.asarray(row[name], float))
        if not (values >= 0).all() or (name == "interpolation" and not (values <= 1).all()):
            bounds = "in [0, 1]" if name == "interpolation" else "at least 0"
            raise ValueError(f"`{name}` must be {bounds}, got {row[name]}.")
    snapshots = np.atleast_1d(np.asarray(row["snapshot"], float))
    absent = [s for s in snapshots.tolist() if s not in table.snapshots]
    if absent:
        raise ValueError(
            f"There is no snapshot {absent[0]:g}; there are {', '.join(map(str, table.snapshots))}."
        )
    return {**row, "snapshot": snapshots.astype(np.int64)}


def with_partners(plan: Plan, table: EmbeddingTable, *, cross_class: bool) -> Plan:
    """The plan with the columns `partner` (its index, else -1), `partner_key` (the bits of its
    content digest) and `partner_label`.

    Raises:
        ValueError: If a row interpolates and no image can be its partner.
    """
    partner = _partners(plan, table, cross_class)
    has = partner >= 0
    columns = {
        **plan.columns,
        "partner": partner,
        "partner_key": np.where(has, table.keys[partner], np.uint64(0)).view(np.int64),
        "partner_label": np.where(has, table.labels[partner], -1),
    }
    return Plan(columns=columns, classes=plan.classes, settings=plan.settings)


def soft_labels(rows: Plan) -> Features:
    """Class probabilities of every row, float32 (n, num_classes).

    1 - s for the source's class and s for the partner's, where s is `interpolation`: one-hot unless
    the plan was made with `cross_class=True`.
    """
    weights = np.zeros((len(rows), len(rows.classes)), np.float32)
    at, share = np.arange(len(rows)), np.asarray(rows["interpolation"], np.float32)
    partner = rows["partner_label"]
    np.add.at(weights, (at, rows["label"]), 1 - share)
    np.add.at(weights, (at, np.where(partner < 0, rows["label"], partner)), share)
    return weights


def _partners(plan: Plan, table: EmbeddingTable, cross_class: bool) -> NDArray[np.int64]:
    """The image that each row interpolates with, -1 for none; never one of equal content.

    A row's seed is a hash, so its upper bits are the random number that chooses.
    """
    partner = np.full(len(plan), -1, np.int64)
    choice = (plan["seed"] >> np.uint64(11)) * 2.0**-53
    for c, name in enumerate(plan.classes):
        rows = np.flatnonzero((plan["label"] == c) & (plan["interpolation"] > 0))
        if not len(rows):
            continue
        pool = np.flatnonzero((table.labels == c) != cross_class)
        keys, first = np.unique(table.keys[pool], return_index=True)
        own = plan["source_key"][rows]
        place = np.searchsorted(keys, own)
        present = keys[np.minimum(place, len(keys) - 1)] == own if len(keys) else own != own
        others = len(keys) - present
        if (others < 1).any():
            where = "in another class" if cross_class else f"in class {name!r}"
            raise ValueError(
                f"`interpolation` needs a second image {where}, and there is none. Use "
                "`interpolation=0`, or `cross_class=True` and soft labels."
            )
        found = np.floor(choice[rows] * others).astype(np.int64)
        found += present & (found >= place)
        partner[rows] = pool[first[found]]
    return partner

"""Plans of variants: which images they come from, how far they go, and towards which partner."""

import numpy as np
from numpy.typing import NDArray

from synthaug._plan import Plan
from synthaug._types import Features
from synthaug.synthesizers.inversion._embeddings import EmbeddingTable


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
    labels, source_keys = plan["label"], plan["source_key"]
    between = plan["interpolation"] > 0
    for c, name in enumerate(plan.classes):
        rows = np.flatnonzero((labels == c) & between)
        if not len(rows):
            continue
        pool = np.flatnonzero((table.labels == c) != cross_class)
        keys, first = np.unique(table.keys[pool], return_index=True)
        own = source_keys[rows]
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

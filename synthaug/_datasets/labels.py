"""Forms of labels: class indices, or vectors of class probabilities."""

import hashlib
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike

from synthaug._cache.format import spans
from synthaug._cache.serving import Planned, SyntheticImages, labels_of, num_rows
from synthaug._datasets.real import RealItems
from synthaug._images.convert import is_probabilities, label_like, probabilities_like
from synthaug._types import Doubles, Indices, Labels, Singles


@final
class ItemLabels:
    """Gives real and synthetic items labels of one kind."""

    def __init__(
        self,
        soft_labels: bool | ArrayLike,
        real: RealItems,
        synthetic: SyntheticImages,
        rows: Indices,
        weights: Doubles | None = None,
    ) -> None:
        """Decides which kind.

        Args:
            soft_labels: True for those of the plan, False for none, or float (N, num_classes).
            real: The real items. If their labels are vectors, all labels are vectors.
            synthetic: The cache.
            rows: The rows that may be served.
            weights: Factors of the vectors of all rows, float64 (N,).

        Raises:
            ValueError: If a row that may be served has no class probabilities.
        """
        table, example = real.class_table, real.label
        given = is_probabilities(example)
        self.vectors = given or soft_labels is not False
        """Whether labels are vectors."""
        self.changes_real = self.vectors and not given
        """Whether real items get a vector in the place of their class index."""
        if weights is not None and not self.vectors:
            raise ValueError(
                "`weights` scale vectors of class probabilities, but the labels here are "
                "class indices. Give `soft_labels=True` too, or serve rows with their "
                "weight as probability: `draw=mixing.WeightedDraws(weights)`."
            )
        self._weights = weights
        self._table, self._synthetic = table, synthetic
        self._num_classes = len(real.classes)
        self._example = (
            torch.zeros(self._num_classes, dtype=torch.float32, device="cpu")
            if self.changes_real
            else example
        )
        # Probabilities of many rows and classes are large: those of a plan are made when asked for.
        self._given: Singles | None = None
        self._partner: Indices | None = None
        self._share: Doubles | None = None
        if soft_labels is True:
            if isinstance(synthetic, Planned) and "partner_label" in synthetic.plan.columns:
                partner = synthetic.plan["partner_label"]
                self._partner = np.where(partner < 0, partner, table[partner])
                self._share = synthetic.plan["interpolation"]
        elif soft_labels is not False:
            shape = num_rows(synthetic), self._num_classes
            self._given = _checked(soft_labels, shape, rows)
            if self._num_classes == len(table):
                _check_order(self._given[rows], table, synthetic, rows)

    @property
    def weighted(self) -> bool:
        """Whether vectors are scaled by a weight per row."""
        return self._weights is not None

    def of_row(self, row: int, label: int) -> Any:
        """The label of a row of the cache, of which this is the class index."""
        if not self.vectors:
            return label_like(label, self._example)
        if self._given is not None:
            return probabilities_like(self._scaled(row, self._given[row]), self._example)
        vector = self._one_hot(label)
        if self._partner is not None and self._share is not None and self._partner[row] >= 0:
            vector[label] -= self._share[row]
            vector[self._partner[row]] += self._share[row]
        return probabilities_like(self._scaled(row, vector), self._example)

    def _scaled(self, row: int, vector: Singles) -> Singles:
        return vector if self._weights is None else vector * np.float32(self._weights[row])

    def of_real(self, label: Any) -> Any:
        """The label of a real item."""
        if not self.changes_real:
            return label
        return probabilities_like(self._one_hot(int(label)), self._example)

    def digest(self) -> str:
        """32 hexadecimal digits over the labels of all rows."""
        hashed = hashlib.blake2b(digest_size=16)
        if self._weights is not None:
            hashed.update(np.ascontiguousarray(self._weights).data)
        if self._given is not None:
            hashed.update(np.ascontiguousarray(self._given).data)
        else:
            for values, neutral in ((self._partner, -1), (self._share, 0.0)):
                for span in spans(num_rows(self._synthetic)):
                    same: Any = np.full(span.stop - span.start, neutral)
                    piece = same if values is None else np.ascontiguousarray(values[span])
                    hashed.update(piece.data)
        return hashed.hexdigest()

    def _one_hot(self, label: int) -> Singles:
        vector = np.zeros(self._num_classes, np.float32)
        vector[label] = 1
        return vector


def _checked(given: ArrayLike, shape: tuple[int, int], rows: Indices) -> Singles:
    values = np.asarray(given, np.float32)
    if values.shape != shape:
        raise ValueError(
            f"`soft_labels` has shape {values.shape}, expected one probability per row and class, "
            f"{shape}."
        )
    bad = rows[~((values[rows] >= 0).all(1) & (np.abs(values[rows].sum(1) - 1) < 1e-3))]
    if len(bad):
        raise ValueError(
            f"`soft_labels` of row {bad[0]} are not probabilities: {values[bad[0]]}. "
            "They must be at least 0 and sum to 1."
        )
    return values


def _check_order(values: Singles, table: Labels, synthetic: SyntheticImages, rows: Indices) -> None:
    """Refuses columns in the order of the cache, where the real data have another one."""
    theirs = labels_of(synthetic, rows)
    each = np.arange(len(rows))
    if values[each, theirs].sum() > values[each, table[theirs]].sum():
        raise ValueError(
            "The columns of `soft_labels` seem to be in the order of the classes of the cache "
            f"({', '.join(synthetic.classes)}). They must be in that of the classes of `real`."
        )

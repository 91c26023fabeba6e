"""What the labels of items look like: class indices, or vectors of class probabilities."""

from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from synthaug._adapt import is_probabilities, label_like, probabilities_like
from synthaug._serving import SyntheticImages
from synthaug._types import Indices


@final
class ItemLabels:
    """Gives real and synthetic items labels of one kind."""

    def __init__(
        self,
        soft_labels: bool | ArrayLike,
        example: Any,
        synthetic: SyntheticImages,
        rows: Indices,
    ) -> None:
        """Decides which kind.

        Args:
            soft_labels: The argument of `MixedDataset`.
            example: The label of a real item. If it is a vector, all labels are vectors.
            synthetic: The cache.
            rows: Those that may be served.

        Raises:
            ValueError: If a row that may be served has no class probabilities.
        """
        self._classes = np.asarray(synthetic.labels)
        self._one_hot = np.eye(len(synthetic.classes), dtype=np.float32)
        given = is_probabilities(example)
        if given and soft_labels is False:
            soft_labels = self._one_hot[self._classes]
        self.probabilities = _row_probabilities(soft_labels, synthetic, rows)
        """Of every row of the cache, float32 (N, num_classes); `None` for class indices."""
        self.changes_real = self.probabilities is not None and not given
        """Whether real items get a vector in the place of their class index."""
        self._example = torch.zeros(len(self._one_hot)) if self.changes_real else example

    def of_row(self, row: int) -> Any:
        """The label of a row of the cache."""
        if self.probabilities is None:
            return label_like(int(self._classes[row]), self._example)
        return probabilities_like(self.probabilities[row], self._example)

    def of_real(self, label: Any) -> Any:
        """The label of a real item."""
        if not self.changes_real:
            return label
        return probabilities_like(self._one_hot[int(label)], self._example)


def _row_probabilities(
    given: Any, synthetic: SyntheticImages, rows: Indices
) -> NDArray[np.float32] | None:
    """Class probabilities of every row of the cache, float32 (N, num_classes).

    Args:
        given: `soft_labels`: True for those of the plan, False for none, or such an array.
        synthetic: The cache.
        rows: Those that may be served.

    Raises:
        ValueError: If a served row has no probabilities.
    """
    if given is False:
        return None
    one_hot = np.eye(len(synthetic.classes), dtype=np.float32)
    if given is True:
        plan: Any = getattr(synthetic, "plan", None)
        if "partner_label" not in getattr(plan, "columns", {}):
            return one_hot[np.asarray(synthetic.labels)]
        from synthaug.synthesizers import soft_labels

        return np.asarray(soft_labels(plan), np.float32)
    values = np.asarray(given, np.float32)
    shape = (len(synthetic.labels), len(synthetic.classes))
    if values.shape != shape:
        raise ValueError(
            f"`soft_labels` has shape {values.shape}, expected one probability per row and class, "
            f"{shape}."
        )
    bad = rows[~((values[rows] >= 0).all(1) & (np.abs(values[rows].sum(1) - 1) < 1e-3))]
    if len(bad):
        raise ValueError(
            f"`soft_labels` of row {bad[0]} are no probabilities: {values[bad[0]]}. They must be "
            "at least 0 and sum to 1."
        )
    return values

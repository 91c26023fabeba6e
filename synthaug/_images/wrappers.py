"""The walk through `Subset` and `ConcatDataset` to the data sets below them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset

from synthaug._support.rows import whole_numbers
from synthaug._types import Indices


def flattened(dataset: Any) -> tuple[list[Any], NDArray[np.int32], Indices]:
    """The data sets below `Subset` and `ConcatDataset`, and for every item the number of its data
    set and its row there."""
    if isinstance(dataset, Subset):
        leaves, leaf, row = flattened(dataset.dataset)
        chosen = _subset_rows(dataset)
        return leaves, leaf[chosen], row[chosen]
    if not isinstance(dataset, ConcatDataset):
        return [dataset], np.zeros(len(dataset), np.int32), np.arange(len(dataset))
    every: list[Any] = []
    places = []
    for part in dataset.datasets:
        leaves, leaf, row = flattened(part)
        places.append((leaf + np.int32(len(every)), row))
        every += leaves
    leaf, row = (np.concatenate(parts) for parts in zip(*places, strict=True))
    return every, leaf, row


def only_selects(dataset: Any) -> bool:
    """Whether no wrapper above the leaves could change labels: `Subset` and others of torch."""
    if not isinstance(dataset, Subset | ConcatDataset):
        return True
    inside = [dataset.dataset] if isinstance(dataset, Subset) else dataset.datasets
    return type(dataset).__module__.startswith("torch.") and all(map(only_selects, inside))


def _subset_rows(subset: Any) -> Indices:
    """The rows of a `Subset`, which itself would take a mask for rows 0 and 1."""
    try:
        return whole_numbers(subset.indices, "indices")
    except TypeError as error:
        raise TypeError(
            f"A `Subset` cannot be read: {error} Torch takes a mask for rows 0 and 1: make the "
            "Subset with `np.flatnonzero(mask)`."
        ) from error

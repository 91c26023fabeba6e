"""Classes of very different size."""

import math
from typing import Any

import numpy as np
from torch.utils.data import Subset

from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng
from synthaug._support.arguments import check_finite
from synthaug._support.rows import rows_by_class
from synthaug.errors import DataError


def long_tail(real: Any, *, imbalance: float = 100.0, seed: int = 0) -> Subset[Any]:
    """Takes a part of a data set in which classes get rarer one after the other.

        tail = long_tail(cifar10, imbalance=100)        # 5,000 ... 50 images, 12,406 in all

    As CIFAR10-LT is made (Cao et al. 2019, https://arxiv.org/abs/1906.07413): of C classes class c
    keeps n * imbalance^(-c / (C - 1)) images, cut to a whole number, where n is the size of the
    smallest class. Test such a training on balanced images.

    Args:
        real: Labeled images that name their classes.
        imbalance: Size of the first class by that of the last one, at least 1.
        seed: Seed of the choice of images; a stronger imbalance keeps some of the same.

    Returns:
        A subset, its items in the order of `real`.

    Raises:
        DataError: If a class would have no image.
    """
    check_finite(1, imbalance=imbalance)
    source = ImageSource.open(real, "`real`")
    names = source.named_classes()
    order = counter_rng(seed, 0).permutation(len(source))
    by_class = rows_by_class(order, source.labels[order], len(names))
    size = min(map(len, by_class))
    # The factor guards against a product that rounding has left a little below a whole number.
    kept = [
        math.floor(size * imbalance ** (-c / max(1, len(names) - 1)) * (1 + 1e-12))
        for c in range(len(names))
    ]
    if min(kept) < 1:
        c = kept.index(min(kept))
        raise DataError(
            f"Class {names[c]!r} would have no image: the smallest class of `real` has {size}, "
            f"divided by `imbalance`={imbalance:g}. Give more images, or a smaller imbalance."
        )
    rows = np.concatenate([rows[:n] for rows, n in zip(by_class, kept, strict=True)])
    return Subset(real, np.sort(rows).tolist())

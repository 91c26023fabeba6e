"""The three sets of an improvement: training, validation and test, apart from each other."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Subset

from synthaug._audit import split_for_audit
from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng
from synthaug._support.rows import rows_by_class
from synthaug._types import Indices, Labels
from synthaug.errors import DataError
from synthaug.improvement._config import ImproveConfig

logger = logging.getLogger("synthaug")

LEAST = 20
"""Validation or test images below which nothing is tried."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The three sets, which share no near-duplicates if we made them."""

    train: ImageSource
    validation: ImageSource
    test: ImageSource
    made: list[str]
    """Names of those that were set aside here."""

    @classmethod
    def open(
        cls, train: Any, validation: Any, test: Any, config: ImproveConfig, progress: bool
    ) -> "Splits":
        """Opens the sets, and sets aside what was not given; a set that is too small is a
        DataError."""
        real = ImageSource.open(train, "`train`")
        real.named_classes()
        given = {"validation": validation, "test": test}
        held = {
            name: ImageSource.open(one, f"`{name}`")
            for name, one in given.items()
            if one is not None
        }
        rows = np.arange(len(real))
        made = [name for name in ("test", "validation") if name not in held]
        for number, name in enumerate(made):
            part = Subset(real.dataset, rows.tolist())
            keep, aside = _divided(part, real.labels[rows], config, number, progress)
            held[name] = ImageSource.open(Subset(real.dataset, rows[aside].tolist()), f"`{name}`")
            rows = rows[keep]
        if made:
            real = ImageSource.open(Subset(real.dataset, rows.tolist()), "`train`")
        for name, source in held.items():
            if len(source) < LEAST:
                raise DataError(
                    f"`{name}` has {len(source)} images, and at least {LEAST} are needed to tell a "
                    "gain from chance. Give more images, or give this set yourself."
                )
        return cls(train=real, validation=held["validation"], test=held["test"], made=made)


def _divided(
    part: Any, labels: Labels, config: ImproveConfig, number: int, progress: bool
) -> tuple[Indices, Indices]:
    """Rows to keep and rows to set aside, by class, near-duplicates on one side if there are few.

    Where most images of a class count as near-duplicates, as small digits do, groups cannot be
    kept together, and images are divided at random.
    """
    seed = config.seed + number
    keep, aside = split_for_audit(
        part, holdout=config.set_aside, labels=labels, seed=seed, progress=progress
    )
    total, taken = np.bincount(labels), np.bincount(labels[aside], minlength=int(labels.max()) + 1)
    many = total * config.set_aside >= 2
    shares = taken[many] / total[many]
    if np.all((shares >= config.set_aside / 2) & (shares <= 2 * config.set_aside)):
        return keep, aside
    logger.warning(
        "So many of the %d images look alike that a share of every class cannot be set aside with "
        "near-duplicates on one side. They are divided at random.",
        len(labels),
    )
    rng = counter_rng(seed, 4)
    chosen = np.zeros(len(labels), bool)
    for rows in rows_by_class(np.arange(len(labels)), labels, int(labels.max()) + 1):
        chosen[rng.permutation(rows)[: round(config.set_aside * len(rows))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)

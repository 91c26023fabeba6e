"""The arms of an evaluation: a data set each, and how its images are augmented."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from synthaug._cache.serving import Servable, Verdicts, class_table, labels_of, servable
from synthaug._images.source import ImageSource
from synthaug._plan import rounded_multiple
from synthaug._support import arguments
from synthaug._support.rows import rows_by_class
from synthaug._types import Indices, Labels, Pixels
from synthaug.errors import DataError
from synthaug.evaluation._augment import Augment, AugmentName

CAS = "synthetic only (CAS)"
"""Name of the arm whose test accuracy is the classification accuracy score."""

STRONG: tuple[AugmentName, ...] = ("randaugment", "trivialaugment", "cutmix", "mixup")
"""The strongest standard augmentations."""

BalanceName: TypeAlias = Literal["balanced", "effective-number", "logit-adjustment"]
"""Ways to count rare classes more, by name."""

_MOST = 3
"""Synthetic images per real one up to which Azizi et al. 2023 saw gains at 256 pixels."""


@final
@dataclass(frozen=True, eq=False)
class Arm:
    """A data set to train on, and the augmentation of its images.

    Arm(real)                                        # images as they are
    Arm(real, augment="standard")
    Arm(real, augment=StandardAugment(padding=2))
    Arm(real, augment="standard", synthetic=cache, share=0.5)   # half of every batch

    To `evaluate`, a data set alone is an arm with the augmentation of the evaluation. All arms make
    equally many steps of equally large batches, so a share takes the place of real images.

    Raises:
        ValueError: For a share without synthetic images, or the other way round, or outside (0, 1).
    """

    dataset: Dataset[Any]
    """Map-style: an item is a pair (image, label)."""
    augment: Augment | AugmentName | None = None
    """As in `evaluate`."""
    synthetic: Dataset[Any] | None = None
    """Map-style: images that have a fixed share of every batch, such as a cache, or with an audit
    `MixedDataset(real, cache, audit=report, fraction=1.0)`."""
    share: float | None = None
    """Share of `synthetic` in every batch, in (0, 1), rounded to whole images."""
    augment_synthetic: bool = True
    """Whether images of `synthetic` are augmented too."""
    balanced: bool = False
    """Whether every class is equally often among the images of `dataset` in the batches."""
    effective_number: float | None = None
    """Weighs losses of images of `dataset` by class: by (1 - beta) / (1 - beta^n) of a class of n
    images, for this beta in [0, 1), scaled so that the mean over the images is 1 (Cui et al. 2019,
    https://arxiv.org/abs/1901.05555). 0 weighs all alike, close to 1 inversely to n."""
    logit_adjustment: float | None = None
    """Adds so many times the logarithm of its class's share of `dataset` to each logit in the loss
    of images of `dataset`; tests are without it (Menon et al. 2021,
    https://arxiv.org/abs/2007.07314). 1 aims at the balanced accuracy."""

    def __post_init__(self) -> None:
        if (self.synthetic is None) != (self.share is None):
            raise ValueError(
                f"`synthetic` and `share` of an arm go together, got `share`={self.share}. "
                "For a mixture, leave both out."
            )
        arguments.check_within("(0, 1)", share=self.share)
        arguments.check_type(bool, "True or False", balanced=self.balanced)
        arguments.check_within("[0, 1)", effective_number=self.effective_number)
        arguments.check_positive(logit_adjustment=self.logit_adjustment)
        arguments.check_finite(0, logit_adjustment=self.logit_adjustment)
        given = self.counts_rare_classes_more
        if len(given) > 1:
            raise ValueError(
                f"`{given[0]}` and `{given[1]}` of an arm both compensate for rare classes. "
                "Choose one."
            )

    @property
    def counts_rare_classes_more(self) -> list[str]:
        """The ways in which it does, by their names."""
        ways = {
            "balanced": self.balanced or None,
            "effective_number": self.effective_number,
            "logit_adjustment": self.logit_adjustment,
        }
        return [name for name, value in ways.items() if value is not None]


def standard_arms(
    real: Dataset[Any], *, mixed: Dataset[Any] | None = None, synthetic: Dataset[Any] | None = None
) -> dict[str, Dataset[Any] | Arm]:
    """The four arms that answer whether synthetic images help.

    Args:
        real: The real training images, the baseline with and without augmentation.
        mixed: Real and synthetic images, for example a `MixedDataset`.
        synthetic: Synthetic images alone, for example
            `MixedDataset(real, cache, audit=report, fraction=1.0)`.

    Returns:
        Arms for `evaluate`, all but the first with its augmentation. The second one, augmented real
        images, is the one to beat.
    """
    arms: dict[str, Dataset[Any] | Arm] = {"real": Arm(real), "real, augmented": real}
    if mixed is not None:
        arms["real + synthetic"] = mixed
    if synthetic is not None:
        arms[CAS] = synthetic
    return arms


def augmentation_arms(
    real: Dataset[Any], names: Sequence[AugmentName] = STRONG
) -> dict[str, Dataset[Any] | Arm]:
    """Arms of real images alone under stronger augmentations, which synthetic images must beat.

    Args:
        real: The real training images.
        names: Names of augmentations: "randaugment", "trivialaugment", "cutmix", "mixup",
            "affine".

    Returns:
        Arms for `evaluate`, such as "real, cutmix".

    Raises:
        ValueError: For an unknown name, or one that is given twice.
    """
    arguments.check_distinct(names=names)
    for name in names:
        arguments.check_choice(get_args(AugmentName), names=name)
    return {f"real, {name}": Arm(real, augment=name) for name in names}


def balanced_arms(
    real: Dataset[Any],
    names: Sequence[BalanceName] = get_args(BalanceName),
    *,
    augment: Augment | AugmentName | None = "standard",
    synthetic: Dataset[Any] | None = None,
    share: float | None = None,
) -> dict[str, Dataset[Any] | Arm]:
    """Arms that count rare classes more: what synthetic images for rare classes must beat.

    Args:
        real: The real training images.
        names: "balanced" draws all classes equally often, "effective-number" weighs the loss
            (beta 0.9999), "logit-adjustment" shifts the logits in the loss (once the logarithm of
            class shares). `Arm` has the numbers to choose.
        augment: The augmentation of all these arms.
        synthetic: Synthetic images that these arms add, as of an `Arm`.
        share: Their share of every batch.

    Returns:
        Arms for `evaluate`, such as "real, balanced", or "real + synthetic, balanced".

    Raises:
        ValueError: For an unknown name, or one that is given twice.
    """
    ways: dict[str, dict[str, Any]] = {
        "balanced": {"balanced": True},
        "effective-number": {"effective_number": 0.9999},
        "logit-adjustment": {"logit_adjustment": 1.0},
    }
    arguments.check_distinct(names=names)
    for name in names:
        arguments.check_choice(ways, names=name)
    images = "real" if synthetic is None else "real + synthetic"
    return {
        f"{images}, {name}": Arm(
            real, augment=augment, synthetic=synthetic, share=share, **ways[name]
        )
        for name in names
    }


def scaling_arms(
    real: Any, synthetic: Any, *, audit: Verdicts | None, ratios: Sequence[float] = (0, 1, 2, 3)
) -> dict[str, Dataset[Any]]:
    """Real images with more and more synthetic ones: does more of them help?

        arms = scaling_arms(real, cache, audit=report, ratios=[0, 1, 2, 3, 5, 10])
        table = synthaug.evaluate(arms, test=test, config=ClassifierConfig(steps=10_000))

    `evaluate` trains all arms for equal optimizer steps, so a larger arm is seen fewer times. Every
    arm has as many synthetic images of each class as of any other, within one image, and holds all
    those of the smaller arms.

    Args:
        real: The real training images, all of them in each arm.
        synthetic: A cache with enough images of every class. Classes are matched by name.
        audit: A report about it; images that it did not pass are left out. `None` takes all.
        ratios: Synthetic images per real image, at least 0; 0 is real images alone.

    Raises:
        ValueError: For ratios that are negative or given twice.
        DataError: If a class has too few synthetic images.
        MismatchError: If the names of the classes differ.
    """
    if not ratios or len(set(ratios)) < len(ratios):
        raise ValueError(f"`ratios` must be different numbers, at least one, got {list(ratios)}.")
    if not all(0 <= ratio < math.inf for ratio in ratios):
        raise ValueError(f"`ratios` must be finite and not negative, got {list(ratios)}.")
    if max(ratios) > _MOST:
        warnings.warn(
            f"{max(ratios):g} synthetic images per real one: Azizi et al. (2023) saw gains up to "
            f"{_MOST} and losses beyond at 256 pixels.",
            stacklevel=2,
        )
    served = servable(synthetic, audit)
    source = ImageSource.open(real, "`real`")
    classes = source.classes or tuple(synthetic.classes)
    table = class_table(synthetic, classes)
    servable_rows = np.flatnonzero(served.mask)
    labels = table[labels_of(synthetic, servable_rows)]
    by_class = rows_by_class(servable_rows, labels, len(classes))
    pools = {c: by_class[c] for c in np.unique(source.labels).tolist()}  # of classes in use
    arms: dict[str, Dataset[Any]] = {}
    for ratio in ratios:
        total = rounded_multiple(ratio, len(real))
        rows = []
        for place, (c, pool) in enumerate(pools.items()):
            count = (total + len(pools) - 1 - place) // len(pools)
            if count > len(pool):
                raise DataError(
                    f"`ratios` holds {ratio:g}, for which each class needs {count} synthetic "
                    f"images; of {classes[c]!r} {len(pool)} may be served. Generate "
                    "more, or take a smaller ratio."
                )
            rows.append(pool[:count])
        chosen = np.sort(np.concatenate(rows))
        part = _Part(synthetic, chosen, table[labels_of(synthetic, chosen)], classes, served)
        name = f"real + {ratio:g} x synthetic" if total else "real"
        arms[name] = ConcatDataset([real, part]) if total else real
    return arms


@final
class _Part(Dataset[Any]):
    """Some rows of a cache."""

    def __init__(
        self,
        synthetic: Any,
        rows: Indices,
        labels: Labels,
        classes: tuple[str, ...],
        served: Servable,
    ) -> None:
        self.labels, self.classes, self.served = labels, classes, served
        self._synthetic, self._rows = synthetic, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._synthetic[int(self._rows[index])][0], int(self.labels[index])

    def read(self, indices: Indices) -> Pixels:
        """The pixels of some images, uint8 (n, C, H, W)."""
        pixels: Pixels = self._synthetic.read(self._rows[np.asarray(indices)])
        return pixels

    def synthetic_rows(self, indices: Indices) -> Indices:
        """The rows of the cache that some images are."""
        return self._rows[np.asarray(indices)]

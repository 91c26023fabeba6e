"""What is compared: a data set and how its images are augmented."""

from dataclasses import dataclass
from typing import Any, Literal, final

from torch.utils.data import Dataset

from synthaug._evaluation._augment import Augment

CAS = "synthetic only (CAS)"
"""Name of the arm whose test accuracy is the classification accuracy score."""


@final
@dataclass(frozen=True, eq=False)
class Arm:
    """A data set to train on, and the augmentation of its images.

    Arm(real)                                        # images as they are
    Arm(real, augment="standard")
    Arm(real, augment=StandardAugment(padding=2))

    To `evaluate`, a data set alone is an arm with the augmentation of the evaluation.
    """

    dataset: Dataset[Any]
    """Map-style: an item is a pair (image, label)."""
    augment: Augment | Literal["standard"] | None = None
    """As in `evaluate`."""


def standard_arms(
    real: Dataset[Any],
    *,
    mixed: Dataset[Any] | None = None,
    synthetic: Dataset[Any] | None = None,
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

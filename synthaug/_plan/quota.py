"""How many images each class gets."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthaug._support.arguments import check_at_least, check_choice, check_number, check_whole
from synthaug._support.names import class_name
from synthaug._support.rows import whole_numbers
from synthaug._types import Labels


def balanced_quota(num_classes: int, *, per_class: int) -> Labels:
    """The same number of images for every class, int64 (num_classes,)."""
    if isinstance(per_class, bool) or not isinstance(per_class, int | np.integer):
        raise TypeError(
            f"`per_class` must be a whole number, got {per_class!r}. Numbers by class are `counts`."
        )
    check_at_least(1, per_class=per_class)
    return np.full(num_classes, per_class, np.int64)


def rounded_multiple(ratio: float, count: int) -> int:
    """`ratio * count` as a whole number, halves up; 0.35 is taken for the decimal that it shows."""
    return math.floor(Fraction(repr(float(ratio))) * count + Fraction(1, 2))


def matching_quota(labels: ArrayLike, num_classes: int, *, ratio: float) -> Labels:
    """`ratio` images per real image with the class proportions of `labels`.

    The total is `ratio * len(labels)`, rounded, halves up; classes get theirs by largest remainder,
    so each is within one image of its exact share.
    """
    check_number(ratio=ratio)
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ValueError(f"`ratio` must be positive and finite, got {ratio}.")
    indices = whole_numbers(labels, "labels")
    check_labels(indices, num_classes)
    exact = np.bincount(indices, minlength=num_classes) * ratio
    return largest_remainders(exact, rounded_multiple(ratio, len(indices)))


def filling_quota(labels: ArrayLike, num_classes: int, *, fill_to: int | str) -> Labels:
    """Returns the images that each class lacks to reach a number, int64 (num_classes,).

    Args:
        labels: Labels of the real images, int (n,).
        num_classes: How many classes there are.
        fill_to: The number, or "largest" for that of the largest class.

    Raises:
        ValueError: If no class lacks any.
    """
    indices = whole_numbers(labels, "labels")
    check_labels(indices, num_classes)
    sizes = np.bincount(indices, minlength=num_classes)
    if isinstance(fill_to, str):
        check_choice(("largest",), "Or give a whole number.", fill_to=fill_to)
    else:
        check_whole(1, fill_to=fill_to)
    goal = int(sizes.max()) if isinstance(fill_to, str) else int(fill_to)
    quota: Labels = (goal - sizes).clip(min=0)
    if not quota.any():
        raise ValueError(
            f"`fill_to`={fill_to!r} leaves nothing to draw: the smallest class has {sizes.min()} "
            "images. Give a larger number, or `per_class`."
        )
    return quota


def check_labels(labels: Labels, num_classes: int) -> None:
    """Refuses labels of which there is no class."""
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"Label {outside[0]} is not one of the {num_classes} classes.")


def largest_remainders(exact: NDArray[np.floating[Any]], total: int) -> Labels:
    """Numbers rounded to whole ones with a given sum, each by less than one, int64 (n,)."""
    whole = np.floor(exact).astype(np.int64)
    missing = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole


def given_quota(counts: Mapping[str, int], classes: Sequence[str]) -> Labels:
    """A number of images for each class name; classes not named get none."""
    counts = {class_name(name): n for name, n in counts.items()}
    unknown = sorted(set(counts) - set(classes))
    if unknown:
        raise ValueError(
            f"`counts` names {unknown[0]!r}, which is not a class. Classes: {', '.join(classes)}."
        )
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise TypeError(f"`counts` must be whole numbers, got {number!r} for {name!r}.")
        if number < 0:
            raise ValueError(f"`counts` must not be negative, got {number} for {name!r}.")
    return np.array([counts.get(name, 0) for name in classes], np.int64)

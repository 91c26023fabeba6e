"""Whether real and synthetic images fit together: arguments, classes and labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthaug._cache.serving import Servable, SyntheticImages, class_table
from synthaug._datasets.fractions import Balance
from synthaug._images.convert import describe, is_probabilities, label_like, pixels_of
from synthaug._images.fields import Adapter, Fields
from synthaug._images.source import ImageSource
from synthaug._types import Labels
from synthaug.errors import DataError, MismatchError

_LOOKED_AT = 8
"""Items whose labels are compared with those that a data set lists."""


def checked_share(mode: str, fraction: Any, ratio: Any) -> tuple[str, Any]:
    """The name and the value of the one that goes with the mode."""
    if mode not in ("replace", "append"):
        raise ValueError(f'`mode` must be "replace" or "append", got {mode!r}.')
    needed, other = ("fraction", "ratio") if mode == "replace" else ("ratio", "fraction")
    value, unused = (fraction, ratio) if mode == "replace" else (ratio, fraction)
    if value is None or unused is not None:
        raise ValueError(
            f'mode="{mode}" needs `{needed}` and no `{other}`; got {needed}={value}, '
            f"{other}={unused}."
        )
    if mode == "replace" and isinstance(value, Balance):
        raise ValueError(
            'Replacing does not change the size of a class. Fill up with mode="append" and '
            f"ratio={value}."
        )
    return needed, value


def checked_classes(
    real: ImageSource, synthetic: SyntheticImages, given: Sequence[str] | None
) -> tuple[tuple[str, ...], Labels]:
    """The class names as `real` counts them, and where those of the synthetic images are there."""
    try:
        known = real.classes
    except (DataError, MismatchError):
        if given is None:
            raise
        known = None
    found = known if given is None else tuple(str(name) for name in given)
    if found is None:
        raise DataError(
            f"{type(real.dataset).__name__} does not know its class names. Pass `items="
            f"mixing.ItemFormat(classes=...)`; the synthetic "
            f"images have {', '.join(synthetic.classes)}."
        )
    if known is not None and found != known and sorted(found) == sorted(known):
        raise DataError(
            f"`classes` are {', '.join(found)}, and `real` counts its classes as "
            f"{', '.join(known)}. Leave `classes` out: classes are matched by name."
        )
    return found, class_table(synthetic, found)


def check_example(
    raw: Any,
    fields: Adapter,
    labels: Labels,
    synthetic: SyntheticImages,
    *,
    appended: bool,
    any_size: bool,
) -> None:
    """Refuses real items that synthetic ones cannot be made like.

    Args:
        raw: The real data set, without transforms.
        fields: Where its items have what.
        labels: Its labels, as it lists them.
        synthetic: The cache.
        appended: Whether synthetic items stand alone, and not in the place of a real one.
        any_size: Whether sizes may differ.
    """
    example = raw[0]
    image, label = fields.get(example)
    try:
        shape = tuple(pixels_of(image).shape)
        _class_of(label, synthetic)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Item 0 of `real` cannot be mixed. {error}") from error
    for i in np.unique(np.linspace(0, len(raw) - 1, _LOOKED_AT).astype(np.int64)).tolist():
        found = _class_of(fields.get(raw[i])[1], synthetic)
        if found != labels[i]:
            raise DataError(
                f"The labels that `real` lists are not those of its items: item {i} has the label "
                f"{found}, listed is {labels[i]}. Its `targets` or `labels` must be in the order "
                "of its items, and mean the same."
            )
    if appended and isinstance(fields, Fields) and len(example) > 2:
        names = list(example) if isinstance(example, dict) else len(example)
        raise TypeError(
            f"An item of `real` has the fields {names}. Appended images have no more than an "
            'image and a label: leave the others away, or use mode="replace".'
        )
    channels, height, width = synthetic.image_shape
    if shape[0] != channels:
        raise MismatchError(
            f"Synthetic images have {channels} channels, item 0 of `real` has {shape[0]}: "
            f"{describe(image)}. Load the real images with `channels={channels}`."
        )
    if shape[1:] != (height, width) and not any_size:
        raise MismatchError(
            f"Synthetic images are {height}x{width} (height x width), item 0 of `real` is "
            f"{shape[1]}x{shape[2]}. Load the real images with the size of the synthetic ones "
            "(`image_shape=cache.image_shape`); or, if the transform makes all of one size, pass "
            "`items=mixing.ItemFormat(any_size=True)`."
        )


def check_supply(
    needed: NDArray[np.bool_],
    available: Labels,
    row_labels: Labels,
    synthetic: SyntheticImages,
    served: Servable,
    classes: Sequence[str],
) -> None:
    """Refuses a class that needs synthetic images and has none that may be served.

    Args:
        needed: Classes that need some, bool (num_classes,).
        available: Rows that can be drawn, of each class.
        row_labels: Class of every row, as `classes` counts them.
        synthetic: The cache.
        served: Which of its rows may be served.
        classes: Names of the classes.
    """
    short = np.flatnonzero(needed & (available == 0))
    if len(short):
        c = int(short[0])
        of_class = row_labels == c
        done = int(np.asarray(synthetic.done)[of_class].sum())
        allowed = int(served.mask[of_class].sum())
        passed = f"{allowed or 'none'} of them passed the audit"
        judged = "" if served.verdict is None else f" and {passed}"
        left = ", and the filters or weights leave none" if allowed else ""
        raise MismatchError(
            f"Class {classes[c]!r} has no synthetic image that may be served: of "
            f"{of_class.sum()} rows, {done} are done{judged}{left}. Generate more images of it, or "
            "leave the class out of `real`."
        )


def _class_of(label: Any, synthetic: SyntheticImages) -> int:
    if is_probabilities(label):
        if len(label) != len(synthetic.classes):
            raise ValueError(
                f"Its label has {len(label)} class probabilities, but there are "
                f"{len(synthetic.classes)} classes."
            )
        return int(label.argmax())
    label_like(0, label)  # knows what a class index may be
    return int(label)

"""The real side of a mixture: what its items are, and whether synthetic ones can be like them."""

import os
from typing import Any, final

import numpy as np

from synthaug._cache.serving import SyntheticImages, class_table
from synthaug._datasets.items import ItemFormat
from synthaug._images.convert import describe, is_probabilities, label_like, pixels_of
from synthaug._images.fields import Adapter, Fields
from synthaug._images.loaders import checked_labels
from synthaug._images.source import ImageSource
from synthaug._images.untransformed import without_transforms
from synthaug.errors import DataError, MismatchError

_LOOKED_AT = 8
"""Items whose labels are compared with those that a data set lists."""


@final
class RealItems:
    """Real items without their transforms; their form is that of the first one."""

    def __init__(
        self, real: Any, items: ItemFormat, synthetic: SyntheticImages, *, appended: bool
    ) -> None:
        """Opens the data set, and refuses items that synthetic ones cannot be made like.

        Args:
            real: The data set.
            items: What it does not say itself.
            synthetic: The cache.
            appended: Whether synthetic items stand alone, and not in the place of a real one.

        Raises:
            TypeError, ValueError, DataError, MismatchError: As `MixedDataset`.
        """
        if isinstance(real, str | os.PathLike):  # only its owner knows the shape it is to have
            raise TypeError(
                f"`real` is the text {str(real)!r}, expected a data set: "
                "`synthaug.load_dataset(...)`."
            )
        source = ImageSource.open(real, "`real`", fields=items.fields)
        if len(source) == 0:
            raise DataError("`real` holds no image.")
        if not source.has_fixed_length:
            raise ValueError(
                "`real` is a mixture whose `ratio` changes, so that it has another length in every "
                "epoch. Mix in the other order: with that ratio last."
            )
        self.dataset = source.dataset
        """The data set as it was given."""
        self.raw, self.transform, self.target_transform = without_transforms(self.dataset)
        self.source = ImageSource(self.raw, "`real`", items.fields)
        """The same images without transforms."""
        self.example = self.raw[0]
        self.fields: Adapter = Fields.of(self.example) if items.fields is None else items.fields
        """Where items have what."""
        self.image, self.label = self.fields.get(self.example)
        self.classes = self._class_names(source, items, synthetic)
        self.class_table = class_table(synthetic, self.classes)
        """Where the classes of the cache are among the real ones, int64 (num_classes,)."""
        self.labels = checked_labels(self.source.class_indices(), self.classes, "`real`")
        self._check_labels(synthetic)
        plain = isinstance(self.fields, Fields)
        if appended and plain and len(self.example) > 2:
            names = list(self.example) if isinstance(self.example, dict) else len(self.example)
            raise TypeError(
                f"An item of `real` has the fields {names}. Appended images have no more than an "
                'image and a label: leave the others away, or use mode="replace".'
            )
        self.has_extras = not appended and not (plain and len(self.example) == 2)
        """Whether a replaced item keeps more of the real one than its label."""
        two = type(self.example) is tuple and len(self.example) == 2
        self.pairs = two and self.fields == Fields(0, 1)
        """Whether items are (image, label)."""
        self._check_shape(synthetic, items.any_size)

    def _class_names(
        self, source: ImageSource, items: ItemFormat, synthetic: SyntheticImages
    ) -> tuple[str, ...]:
        """The class names as the data set counts them."""
        try:
            listed = source.classes
        except (DataError, MismatchError):
            if items.classes is None:
                raise
            listed = None
        names = listed if items.classes is None else tuple(map(str, items.classes))
        if names is None:
            raise DataError(
                f"{type(self.dataset).__name__} does not know its class names. Pass `items="
                "mixing.ItemFormat(classes=...)`; the synthetic images have "
                f"{', '.join(synthetic.classes)}."
            )
        if listed is not None and names != listed and sorted(names) == sorted(listed):
            raise DataError(
                f"`classes` are {', '.join(names)}, and `real` counts its classes as "
                f"{', '.join(listed)}. Leave `classes` out: classes are matched by name."
            )
        return names

    def _check_labels(self, synthetic: SyntheticImages) -> None:
        """Refuses labels that are not of one class, or that are not those of the items."""
        num_classes = len(synthetic.classes)
        try:
            pixels_of(self.image)
            _class_of(self.label, num_classes)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Item 0 of `real` cannot be mixed. {error}") from error
        looked_at = np.linspace(0, len(self.raw) - 1, _LOOKED_AT).astype(np.int64)
        for i in np.unique(looked_at).tolist():
            label = _class_of(self.fields.get(self.raw[i])[1], num_classes)
            if label != self.labels[i]:
                raise DataError(
                    f"The labels that `real` lists are not those of its items: item {i} has the "
                    f"label {label}, listed is {self.labels[i]}. Its `targets` or `labels` must be "
                    "in the order of its items, and mean the same."
                )

    def _check_shape(self, synthetic: SyntheticImages, any_size: bool) -> None:
        """Refuses another number of channels, and another size unless it may differ."""
        ours, (channels, height, width) = pixels_of(self.image).shape, synthetic.image_shape
        if ours[0] != channels:
            raise MismatchError(
                f"Synthetic images have {channels} channels, item 0 of `real` has {ours[0]}: "
                f"{describe(self.image)}. Load the real images with `channels={channels}`."
            )
        if tuple(ours[1:]) != (height, width) and not any_size:
            raise MismatchError(
                f"Synthetic images are {height}x{width} (height x width), item 0 of `real` is "
                f"{ours[1]}x{ours[2]}. Load the real images with the size of the synthetic ones "
                "(`image_shape=cache.image_shape`); or, if the transform makes all of one size, "
                "pass `items=mixing.ItemFormat(any_size=True)`."
            )


def _class_of(label: Any, num_classes: int) -> int:
    if is_probabilities(label):
        if len(label) != num_classes:
            raise ValueError(
                f"Its label has {len(label)} class probabilities, but there are {num_classes} "
                "classes."
            )
        return int(label.argmax())
    label_like(0, label)  # knows what a class index may be
    return int(label)

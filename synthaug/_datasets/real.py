"""The real side of a mixture: what its items are, and whether synthetic ones can be like them."""

import os
from collections.abc import Sequence
from typing import Any, final

from synthaug._cache.serving import SyntheticImages, class_table
from synthaug._datasets.items import ItemFormat
from synthaug._images.annotations import annotations_of
from synthaug._images.calls import Form, Placeholder, first_item, form_of
from synthaug._images.convert import describe, is_probabilities, label_like, pixels_of
from synthaug._images.fields import Adapter, Fields
from synthaug._images.requests import checked_labels
from synthaug._images.source import ImageSource
from synthaug._images.untransformed import without_transforms
from synthaug._support.names import class_names
from synthaug.errors import DataError, MismatchError


@final
class RealItems:
    """Real items without their transforms; their form is that of the first one."""

    def __init__(
        self, real: Any, items: ItemFormat, synthetic: SyntheticImages, *, appended: bool
    ) -> None:
        """Opens the data set, and refuses items that synthetic ones cannot be made like.

        Args:
            real: The data set.
            items: Properties that it does not state itself.
            synthetic: The cache.
            appended: Whether synthetic items stand alone, and not in the place of a real one.

        Raises:
            TypeError, ValueError, DataError, MismatchError: Under the same conditions as
                `MixedDataset`.
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
        stripped = without_transforms(self.dataset)
        self.raw = stripped.raw
        self.transform, self.target_transform = stripped.transform, stripped.target_transform
        self.source = ImageSource(self.raw, "`real`", items.fields)
        """The same images without transforms."""
        self.example = first_item(self.raw, stripped.placeholders)
        self.fields: Adapter = Fields.of(self.example) if items.fields is None else items.fields
        """Where items have what."""
        self.image, self.label = self.fields.get(self.example)
        self.form = self._form(stripped.placeholders)
        """How the data set calls its transform."""
        self.classes = self._class_names(source, items, synthetic)
        self.class_table = class_table(synthetic, self.classes)
        """Where the classes of the cache are among the real ones, int64 (num_classes,); -1 for
        classes without rows that the real images do not have."""
        self.labels = checked_labels(self.source.class_indices(), self.classes, "`real`")
        self._check_item(len(self.classes))
        plain = isinstance(self.fields, Fields)
        if appended and plain and len(self.example) > 2:
            names = list(self.example) if isinstance(self.example, dict) else len(self.example)
            raise TypeError(
                f"An item of `real` has the fields {names}. Appended images have no more "
                "than an image and a label: leave the other fields out, or use "
                'mode="replace".'
            )
        self.has_extras = not appended and not (plain and len(self.example) == 2)
        """Whether a replaced item keeps more of the real one than its label."""
        if self.has_extras and not items.annotations_hold:
            self._check_annotations()
        two = type(self.example) is tuple and len(self.example) == 2
        self.pairs = two and self.fields == Fields(0, 1)
        """Whether items are (image, label)."""
        self._check_shape(synthetic, items.any_size)

    def _form(self, placeholders: Sequence[Placeholder]) -> Form:
        """How the data set, in all of its parts, calls the transform that was taken off it."""
        if self.transform is None:
            return "image"
        firsts = self.source.first_rows()
        forms = [form_of(self.raw, row, placeholders, self.fields.get) for row in firsts]
        name = type(self.dataset).__name__
        if forms[0] is None or len(set(forms)) > 1:
            how = "does not call its `transform` for every item"
            if len(set(forms)) > 1:
                how = "calls its `transform` in other ways in its parts"
            raise ValueError(
                f"{name} {how}. Take it off the data set, and pass it as `transform=` here."
            )
        return forms[0]

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
        names = listed if items.classes is None else class_names(items.classes)
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

    def _check_item(self, num_classes: int) -> None:
        """Refuses an image or a label of another kind."""
        try:
            pixels_of(self.image)
            _check_label(self.label, num_classes)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Item 0 of `real` cannot be mixed. {error}") from error

    def _check_annotations(self) -> None:
        """Refuses items with annotations of places in the real image."""
        names = annotations_of(self.example, self.image, self.label)
        if names:
            raise TypeError(
                f"Items of `real` have annotations of places in the image: {', '.join(names)}. "
                "They would stay beside a synthetic image, which shows other things there. Take "
                "them out of the items; or, if they hold for synthetic images too, pass "
                "`items=mixing.ItemFormat(annotations_hold=True)`."
            )

    def _check_shape(self, synthetic: SyntheticImages, any_size: bool) -> None:
        """Refuses another number of channels, and another size unless it may differ."""
        ours, (channels, height, width) = pixels_of(self.image).shape, synthetic.image_shape
        other_size = tuple(ours[1:]) != (height, width) and not any_size
        if ours[0] != channels:
            size = f" of {height}x{width} (height x width)" if other_size else ""
            remedy = "Load the real images with `load_dataset(..., image_shape=cache.image_shape)`"
            if channels in (1, 3):
                mode = "L" if channels == 1 else "RGB"
                remedy += f", or open them with `Image.open(path).convert('{mode}')`"
            raise MismatchError(
                f"Synthetic images have {channels} {'channel' if channels == 1 else 'channels'}"
                f"{size}, item 0 of `real` has {ours[0]}: {describe(self.image)}. {remedy}."
            )
        if other_size:
            raise MismatchError(
                f"Synthetic images are {height}x{width} (height x width), item 0 of `real` is "
                f"{ours[1]}x{ours[2]}. Load the real images with the size of the synthetic ones "
                "(`image_shape=cache.image_shape`); or, if the transform makes all of one size, "
                "pass `items=mixing.ItemFormat(any_size=True)`."
            )


def _check_label(label: Any, num_classes: int) -> None:
    if not is_probabilities(label):
        label_like(0, label)  # knows what a class index may be
    elif len(label) != num_classes:
        raise ValueError(
            f"Its label has {len(label)} class probabilities, but there are {num_classes} classes."
        )

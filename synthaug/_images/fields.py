"""The adapter: how an item of any data set is taken apart and put together.

Nothing else here knows whether items are pairs, tuples with extras or dicts. What images and labels
are, `synthaug._images.convert` knows.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, final

_POSITIONS = {"image": 0, "label": 1}
_KEYS = {
    "image": ("image", "img", "pixel_values", "images"),
    "label": ("label", "labels", "target", "targets"),
}
USUAL_LABELS = (_POSITIONS["label"], *_KEYS["label"])
"""Where items have their label if nobody says otherwise."""


def field(item: Any, name: str) -> Any:
    """The "image" or the "label" of an item of a data set."""
    return item[field_key(item, name)]


def field_key(item: Any, name: str) -> Any:
    """Where an item of a data set has its "image" or its "label": a position, or a key. A TypeError
    if the item is neither a tuple, a list nor a dict, or has no such key."""
    if isinstance(item, dict):
        return key_among(item, name)
    if isinstance(item, tuple | list) and len(item) >= 2:
        return _POSITIONS[name]
    raise TypeError(
        f"An item of the data set is {type(item).__name__}, expected (image, label, ...) or "
        '{"image": ..., "label": ...}.'
    )


def key_among(names: Iterable[str], name: str) -> str:
    """The name of the "image" or the "label" among keys or columns; a TypeError if there is
    none."""
    for key in _KEYS[name]:
        if key in names:
            return key
    raise TypeError(
        f"An item of the data set has the keys {', '.join(map(repr, names))}, and no {name}: "
        f"expected one of {', '.join(map(repr, _KEYS[name]))}."
    )


class Adapter(Protocol):
    """Interface of your own class for items of another structure."""

    def get(self, item: Any) -> tuple[Any, Any]:
        """The image and the label of an item of the data set."""
        ...

    def put(self, item: Any, image: Any, label: Any) -> Any:
        """A copy of an item with another image and label; everything else stays."""
        ...


@final
@dataclass(frozen=True)
class Fields:
    """Where an item of a data set has its image and its label: keys of a dict, or positions.

        Fields("img", "fine_label")        # {"img": ..., "fine_label": ..., "coarse_label": ...}
        Fields(0, 2)                       # (image, path, label)

    All other fields of a replaced item stay those of the real one. For items of another structure
    write a class with the same two methods:

        class Nested:
            def get(self, item):
                return item["inputs"]["pixels"], item["y"]

            def put(self, item, image, label):
                return {**item, "inputs": {**item["inputs"], "pixels": image}, "y": label}
    """

    image: str | int = 0
    """Key or position of the image."""
    label: str | int = 1
    """Key or position of the label."""

    def __post_init__(self) -> None:
        for where in (self.image, self.label):
            if isinstance(where, int) and where < 0:
                raise ValueError(f"Positions are counted from 0, got {where} in {self}.")

    @classmethod
    def of(cls, item: Any) -> "Fields":
        """The fields of (image, label, ...), or of a dict with "image" (or "img", "pixel_values",
        "images") and "label" (or "labels", "target", "targets"); any other item is a TypeError."""
        try:
            return cls(field_key(item, "image"), field_key(item, "label"))
        except TypeError as error:
            where = "`items=mixing.ItemFormat(fields=mixing.Fields(IMAGE, LABEL))`"
            raise TypeError(f"{error} Or say where they are: {where}.") from None

    def get(self, item: Any) -> tuple[Any, Any]:
        """The image and the label of an item."""
        try:
            return item[self.image], item[self.label]
        except (LookupError, TypeError):
            found = list(item) if isinstance(item, dict) else type(item).__name__
            raise TypeError(f"{self} do not fit an item of the data set: {found}.") from None

    def put(self, item: Any, image: Any, label: Any) -> Any:
        """A copy of an item, of the same type, with another image and label."""
        changed = {self.image: image, self.label: label}
        if isinstance(item, dict):
            copied = copy.copy(item)
            copied.update(changed)
            return copied
        values = [changed.get(position, value) for position, value in enumerate(item)]
        return item._make(values) if hasattr(item, "_make") else type(item)(values)  # namedtuple

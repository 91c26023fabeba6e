"""How transforms are called: each data set has its way, and what we take over is called so too.

A placeholder takes the place of a transform that was taken off a data set. It changes nothing, and
notes how the data set calls it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import numpy as np
from PIL import Image

Form = Literal["image", "keyword", "pair", "item"]
"""How a data set calls its transform: `f(image)`, `f(image=image)["image"]`, which is the form of
albumentations, `f(image, label)`, or `f(item)` with a whole dict or tuple."""

_FORMS = (
    '`transform(image)`, `transform(image=image)["image"]`, `transform(image, label)` or '
    "`transform(item)`"
)


@final
class Placeholder:
    """A transform that returns what it is given, in the form in which it is asked."""

    def __init__(self, owner: str, *, joint: bool = False) -> None:
        """Nothing is called yet.

        Args:
            owner: Class of the data set, for messages.
            joint: Whether it takes the place of torchvision's `transforms`, which gives an image
                and a label to a transform each.
        """
        self.owner, self.joint = owner, joint
        self.calls: list[tuple[Form, Any]] = []
        """The forms of the calls and the images or items that came, until `form_of` looks."""
        self.listens = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the arguments: one alone, two as a pair, and those with names as a dict."""
        if len(args) == 1 and not kwargs:
            whole = isinstance(args[0], dict | tuple | list)
            self._note("item" if whole else "image", args[0])
            return args[0]
        if len(args) == 2 and not kwargs:
            self._note("image" if self.joint else "pair", args[0])
            return args
        if not args and set(kwargs) == {"image"}:
            self._note("keyword", kwargs["image"])
            return kwargs
        arguments = [*("..." for _ in args), *(f"{name}=..." for name in kwargs)]
        raise TypeError(
            f"{self.owner} calls its transform as `transform({', '.join(arguments)})`, which "
            f"cannot be done with a synthetic image. Call it as {_FORMS}; or take it off the data "
            "set, and pass it as `transform=` here."
        )

    def _note(self, form: Form, value: Any) -> None:
        if self.listens:
            self.calls.append((form, value))


def called(transform: Callable[..., Any]) -> Callable[[Any], Any]:
    """A transform as a function of an image, also one of albumentations, which wants its name."""
    return (
        (lambda image: _by_keyword(transform, image))
        if _is_albumentations(transform)
        else transform
    )


def apply(transform: Callable[..., Any], form: Form, image: Any, label: Any) -> tuple[Any, Any]:
    """An image and its label after a transform, called as "image", "keyword" or "pair"."""
    if form == "keyword" or _is_albumentations(transform):
        return _by_keyword(transform, image), label
    if form == "pair":
        image, label = transform(image, label)
        return image, label
    return transform(image), label


def _by_keyword(transform: Callable[..., Any], image: Any) -> Any:
    if isinstance(image, Image.Image) and _is_albumentations(transform):
        image = np.asarray(image)  # it takes arrays alone
    return transform(image=image)["image"]


def _is_albumentations(transform: Any) -> bool:
    return any(c.__module__.startswith("albumentations.") for c in type(transform).__mro__)


def changes(transform: Any) -> bool:
    """Whether an attribute of a data set is a transform, and not a placeholder of ours."""
    return transform is not None and not isinstance(transform, Placeholder)


def form_of(dataset: Any, row: int, placeholders: Sequence[Placeholder], get: Any) -> Form | None:
    """How a data set calls its transform, by one of its items.

    Args:
        dataset: With placeholders.
        row: Number of the item.
        placeholders: In the places of its transforms.
        get: Item => (image, label).

    Returns:
        `None` if it calls none of them.

    Raises:
        TypeError: For a call in another form.
        ValueError: If an image is changed after the transform, so that synthetic ones would go
            through both in another order.
    """
    item, calls = _heard(dataset, row, placeholders)
    if not calls:
        return None
    image = get(item)[0]
    for form, value in calls:
        if value is (item if form == "item" else image):
            return form
    raise _changed(placeholders[0].owner)


def first_item(dataset: Any, placeholders: Sequence[Placeholder]) -> Any:
    """Item 0 of a data set whose transforms were taken off.

    Raises:
        ValueError: If it cannot do without what they return.
    """
    return _heard(dataset, 0, placeholders)[0]


def _heard(
    dataset: Any, row: int, placeholders: Sequence[Placeholder]
) -> tuple[Any, list[tuple[Form, Any]]]:
    """An item, and the calls of transforms that made it."""

    def calls() -> list[tuple[Form, Any]]:
        return [call for p in placeholders for call in p.calls]

    for placeholder in placeholders:
        placeholder.listens = True
    try:
        return dataset[row], calls()
    except (AttributeError, TypeError, ValueError) as error:
        if calls():  # `transform(image).float()`, and there is an image still
            raise _changed(placeholders[0].owner) from error
        raise
    finally:
        for placeholder in placeholders:
            placeholder.listens, placeholder.calls = False, []


def _changed(owner: str) -> ValueError:
    return ValueError(
        f"{owner} changes its images after it called its transform, which cannot be done with a "
        "synthetic image. Let its items have what the transform returns, and put what follows "
        "into the transform."
    )

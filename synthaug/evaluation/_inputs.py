"""All data sets of one evaluation, opened and checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._images.source import ImageSource
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation._batches import Batches, naming


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The data sets of one evaluation, with one order of the classes and one image shape."""

    arms: Mapping[str, Batches]
    """Training images of each arm."""
    test: Batches
    validation: Batches | None
    classes: tuple[str, ...]
    """Class names in the order in which labels are counted: the test set's."""
    sets: Mapping[str, Batches]
    """All of them by the names that messages use."""

    @classmethod
    def open(
        cls, arms: Mapping[str, Any], test: Any, validation: Any, device: torch.device
    ) -> "Inputs":
        """Opens every data set; one that several arms share is read once.

        Raises:
            MismatchError: If they differ in classes or image shape.
            DataError: If one cannot be read.
        """
        given = {"`test`": test, **({} if validation is None else {"`validation`": validation})}
        given.update({f"Arm {name!r}": dataset for name, dataset in arms.items()})
        sources = {name: ImageSource.open(one, name) for name, one in given.items()}
        classes = _classes(sources)
        opened: dict[int, Batches] = {}
        for source in sources.values():
            if id(source.dataset) not in opened:
                opened[id(source.dataset)] = Batches(source, classes, device)
        sets = {name: opened[id(source.dataset)] for name, source in sources.items()}
        shape = sets["`test`"].image_shape
        for name, images in sets.items():
            if images.image_shape != shape:
                raise MismatchError(
                    f"{name} has images of shape {images.image_shape}, `test` has {shape}. "
                    "Load both with the same image size and number of channels."
                )
        return cls(
            arms={name: sets[f"Arm {name!r}"] for name in arms},
            test=sets["`test`"],
            validation=sets.get("`validation`"),
            classes=classes,
            sets=sets,
        )


def digests(dataset: Any, name: str) -> NDArray[np.uint64]:
    """Content digests of all images that a data set can show, before transforms, uint64 (n,).

    Of a mixture, which has a `.real` and a `.synthetic` data set, of both. Where the transform
    cannot be taken off, images count as they come.

    Raises:
        DataError: If there is no image.
    """
    source = ImageSource.open(dataset, name)
    if len(source) == 0:
        raise DataError(f"{name} is empty.")
    return source.digests()


def check_overlap(
    contents: Mapping[str, NDArray[np.uint64]], *, allow: bool
) -> dict[str, dict[str, int]]:
    """Counts images of `test` and `validation` that another data set holds too, pixel for pixel.

    Returns:
        For "test" and "validation" the number of their images found in each other data set; those
        with none are left out.

    Raises:
        DataError: If there are any, unless `allow`.
    """
    shared: dict[str, dict[str, int]] = {}
    messages = []
    for held_out in ("`validation`", "`test`"):
        if held_out not in contents:
            continue
        counts = {}
        for name, keys in contents.items():
            if name == held_out or name == "`test`":  # `validation` against `test` counts once
                continue
            both = np.isin(contents[held_out], keys)
            if both.any():
                counts[name] = int(both.sum())
                example = int(np.argmax(both))
                messages.append(
                    f"{counts[name]} of {len(both)} images of {held_out} are in {name} too, "
                    f"the first is number {example}."
                )
        if counts:
            shared[held_out.strip("`")] = counts
    if messages and not allow:
        raise MismatchError(
            " ".join(messages) + " Take them out of one of the two, or go on with "
            "`allow_overlap=True`: the report then says how many there were."
        )
    return shared


def _classes(sources: Mapping[str, ImageSource]) -> tuple[str, ...]:
    for name, source in sources.items():  # the test set comes first
        with naming(name):
            names = source.classes
        if names is not None:
            if len(set(names)) < len(names):
                raise DataError(f"{name} has two classes of one name: {', '.join(names)}.")
            return names
    largest = max(source.labels.max(initial=0) for source in sources.values())
    return tuple(str(c) for c in range(int(largest) + 1))

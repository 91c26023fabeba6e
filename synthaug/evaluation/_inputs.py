"""All data sets of one evaluation, opened and checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._images.source import ImageSource
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation._batches import Batches, fingerprint


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The data sets of one evaluation, with one order of the classes and one image shape."""

    arms: Mapping[str, Batches]
    """Training images of each arm."""
    test: Batches
    validation: Batches | None
    classes: tuple[str, ...]
    """Class names in the order in which labels are counted: the test set's."""
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    sources: Mapping[str, ImageSource]
    """The data sets themselves, by the name that messages use."""

    @classmethod
    def open(
        cls,
        arms: Mapping[str, Any],
        test: Any,
        validation: Any,
        device: torch.device,
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
        batches: dict[str, Batches] = {}
        for name, source in sources.items():
            if id(source.dataset) not in opened:
                opened[id(source.dataset)] = Batches(source, classes, device)
            batches[name] = opened[id(source.dataset)]
        shape = batches["`test`"].image_shape
        for name, read in batches.items():
            if read.image_shape != shape:
                raise MismatchError(
                    f"{name} has images of shape {read.image_shape}, `test` has {shape}. "
                    "Load both with the same image size and number of channels."
                )
        return cls(
            arms={name: batches[f"Arm {name!r}"] for name in arms},
            test=batches["`test`"],
            validation=batches.get("`validation`"),
            classes=classes,
            image_shape=shape,
            sources=sources,
        )

    def contents(self) -> dict[str, NDArray[np.uint64]]:
        """Content digests of all images, before transforms, of every data set of `sources`."""
        read: dict[int, NDArray[np.uint64]] = {}
        for name, source in self.sources.items():
            if id(source.dataset) not in read:
                try:
                    read[id(source.dataset)] = source.digests()
                except (DataError, MismatchError) as error:
                    raise type(error)(f"{name}: {error}") from error
                except (TypeError, ValueError) as error:
                    raise DataError(f"{name}: {error}") from error
        return {name: read[id(source.dataset)] for name, source in self.sources.items()}

    def fingerprints(self, contents: Mapping[str, NDArray[np.uint64]]) -> dict[str, str]:
        """A fingerprint of every data set of `sources`."""
        return {name: fingerprint(self.sources[name], keys) for name, keys in contents.items()}


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
        found = {}
        for name, keys in contents.items():
            if name == held_out or name == "`test`":  # `validation` against `test` counts once
                continue
            both = np.isin(contents[held_out], keys)
            if both.any():
                found[name] = int(both.sum())
                example = int(np.argmax(both))
                messages.append(
                    f"{found[name]} of {len(both)} images of {held_out} are in {name} too, "
                    f"the first is number {example}."
                )
        if found:
            shared[held_out.strip("`")] = found
    if messages and not allow:
        raise MismatchError(
            " ".join(messages) + " Take them out of one of the two, or go on with "
            "`allow_overlap=True`: the report then says how many there were."
        )
    return shared


def _classes(sources: Mapping[str, ImageSource]) -> tuple[str, ...]:
    for name, source in sources.items():  # the test set comes first
        try:
            names = source.classes
        except (DataError, MismatchError) as error:
            raise type(error)(f"{name}: {error}") from error
        if names is not None:
            if len(set(names)) < len(names):
                raise DataError(f"{name} has two classes of one name: {', '.join(names)}.")
            return names
    largest = max(source.labels.max(initial=0) for source in sources.values())
    return tuple(str(c) for c in range(int(largest) + 1))

"""All data sets of one evaluation, opened and checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from synthaug._images.foreign import classes_of, labels_of
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation._sources import Source, digests, fingerprint, open_source


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The data sets of one evaluation, with one order of the classes and one image shape."""

    sources: Mapping[str, Source]
    """Training images of each arm."""
    test: Source
    validation: Source | None
    classes: tuple[str, ...]
    """Class names in the order in which labels are counted: the test set's."""
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    raw: Mapping[str, Dataset[Any]]
    """The data sets themselves, by the name that messages use."""

    @classmethod
    def open(
        cls,
        arms: Mapping[str, Dataset[Any]],
        test: Dataset[Any],
        validation: Dataset[Any] | None,
        device: torch.device,
    ) -> "Inputs":
        """Opens every data set; one that several arms share is read once.

        Raises:
            DataError: If they differ in classes or image shape, or cannot be read.
        """
        raw = {"`test`": test, **({} if validation is None else {"`validation`": validation})}
        raw.update({f"Arm {name!r}": dataset for name, dataset in arms.items()})
        classes = _classes(raw)
        opened: dict[int, Source] = {}
        sources: dict[str, Source] = {}
        for name, dataset in raw.items():
            if id(dataset) not in opened:
                opened[id(dataset)] = open_source(dataset, name, classes, device)
            sources[name] = opened[id(dataset)]
        shape = sources["`test`"].image_shape
        for name, source in sources.items():
            if source.image_shape != shape:
                raise MismatchError(
                    f"{name} has images of shape {source.image_shape}, `test` has {shape}. "
                    "Load both with the same image size and number of channels."
                )
        return cls(
            sources={name: sources[f"Arm {name!r}"] for name in arms},
            test=sources["`test`"],
            validation=sources.get("`validation`"),
            classes=classes,
            image_shape=shape,
            raw=raw,
        )

    def contents(self) -> dict[str, NDArray[np.uint64]]:
        """Content digests of all images, before transforms, of every data set of `raw`."""
        known: dict[int, NDArray[np.uint64]] = {}
        for name, dataset in self.raw.items():
            if id(dataset) not in known:
                try:
                    known[id(dataset)] = digests(dataset, name)
                except (DataError, MismatchError) as error:
                    raise type(error)(f"{name}: {error}") from error
                except (TypeError, ValueError) as error:
                    raise DataError(f"{name}: {error}") from error
        return {name: known[id(dataset)] for name, dataset in self.raw.items()}

    def fingerprints(self, contents: Mapping[str, NDArray[np.uint64]]) -> dict[str, str]:
        """A fingerprint of every data set of `raw`."""
        return {name: fingerprint(self.raw[name], name, keys) for name, keys in contents.items()}


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


def _classes(raw: Mapping[str, Dataset[Any]]) -> tuple[str, ...]:
    for name, dataset in raw.items():  # the test set comes first
        try:
            names = classes_of(dataset)
        except (DataError, MismatchError) as error:
            raise type(error)(f"{name}: {error}") from error
        if names is not None:
            if len(set(names)) < len(names):
                raise DataError(f"{name} has two classes of one name: {', '.join(names)}.")
            return names
    largest = max(labels_of(dataset).max() for dataset in raw.values())
    return tuple(str(c) for c in range(int(largest) + 1))

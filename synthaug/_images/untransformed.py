"""Transforms taken off a data set, also below `Subset` and `ConcatDataset`."""

import copy
from typing import Any, NamedTuple

from torch.utils.data import ConcatDataset, Subset

from synthaug._images.calls import Placeholder
from synthaug._images.convert import Transform
from synthaug._images.dataset import AbstractLabeledDataset
from synthaug._images.leaves import is_table


class Untransformed(NamedTuple):
    """A data set that gives raw items, and what it does not apply any more."""

    raw: Any
    """A shallow copy of the data set, or itself if it applies no transform."""
    transform: Transform | None
    target_transform: Transform | None
    placeholders: tuple[Placeholder, ...] = ()
    """What it has in the places of transforms of images."""


def without_transforms(dataset: Any) -> Untransformed:
    """Takes `transform` and `target_transform` off a data set, also below its wrappers.

    Raises:
        ValueError: If they cannot be taken off: joint `transforms` of image and label, those of
            whole batches, different ones in the parts of a `ConcatDataset`, or transforms on two
            levels.
    """
    if is_table(dataset) and dataset.format["type"] == "custom":
        raise ValueError(
            "The data set has a transform of whole batches (`with_transform`), which cannot be "
            "taken over here: `synthaug.huggingface.MixedDataset` does. Or pass "
            "`real.with_format(None)`, and a `transform` of one image."
        )
    own = {n: getattr(dataset, "__dict__", {}).get(n) for n in ("transform", "target_transform")}
    joint = getattr(dataset, "transforms", None) is not None  # torchvision's pair of the two
    own = {name: value for name, value in own.items() if callable(value)}
    below = _without_transforms_below(dataset)
    if not own:
        if joint:
            raise ValueError(
                f"{type(dataset).__name__} has joint `transforms` of image and label, which cannot "
                "be applied to a synthetic image alone. Give it `transform` and "
                "`target_transform`."
            )
        return below
    if below.transform is not None or below.target_transform is not None:
        raise ValueError(
            f"Both {type(dataset).__name__} and the data set inside it have a transform. Make it "
            "one, and pass it as `transform=` to the outer one."
        )
    raw = copy.copy(dataset)
    if isinstance(dataset, AbstractLabeledDataset):
        raw.__dict__.update(dataset.__dict__)  # also the epoch, which other copies do not share
    placeholders = {name: Placeholder(type(dataset).__name__) for name in own}
    for name, placeholder in placeholders.items():
        setattr(raw, name, placeholder)  # not None: some call theirs without asking
    if joint:
        raw.transforms = placeholders["transforms"] = Placeholder(type(raw).__name__, joint=True)
    placeholders.pop("target_transform", None)
    return Untransformed(
        raw, own.get("transform"), own.get("target_transform"), tuple(placeholders.values())
    )


def _without_transforms_below(dataset: Any) -> Untransformed:
    if isinstance(dataset, Subset):
        below = without_transforms(dataset.dataset)
        raw: Any = dataset
        if below.raw is not dataset.dataset:
            raw = copy.copy(dataset)
            raw.dataset = below.raw
        return below._replace(raw=raw)
    if isinstance(dataset, ConcatDataset):
        parts = [without_transforms(part) for part in dataset.datasets]
        first = parts[0]
        if any(
            p.transform is not first.transform or p.target_transform is not first.target_transform
            for p in parts
        ):
            raise ValueError(
                "The parts of the ConcatDataset have different transforms. Give all of them the "
                "same object, or take them off and pass `transform=` to the outer data set."
            )
        raw = dataset
        if first.transform is not None or first.target_transform is not None:
            raw = copy.copy(dataset)
            raw.datasets = [part.raw for part in parts]
        every = tuple(placeholder for part in parts for placeholder in part.placeholders)
        return first._replace(raw=raw, placeholders=every)
    return Untransformed(dataset, None, None)

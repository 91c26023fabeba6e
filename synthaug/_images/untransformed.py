"""Transforms taken off a data set, also below `Subset` and `ConcatDataset`."""

import copy
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from synthaug._images.convert import Transform
from synthaug._images.leaves import is_table


def without_transforms(dataset: Any) -> tuple[Any, Transform | None, Transform | None]:
    """Takes `transform` and `target_transform` off a data set, also below its wrappers.

    Returns:
        A shallow copy that gives raw items (or `dataset` itself if it applies neither), and the two
        transforms that it does not apply any more.

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
    own = {name: value for name, value in own.items() if callable(value)}
    raw, transform, target_transform = _without_transforms_below(dataset)
    if not own:
        if getattr(dataset, "transforms", None) is not None:
            raise ValueError(
                f"{type(dataset).__name__} has joint `transforms` of image and label, which cannot "
                "be applied to a synthetic image alone. Give it `transform` and "
                "`target_transform`."
            )
        return raw, transform, target_transform
    if transform is not None or target_transform is not None:
        raise ValueError(
            f"Both {type(dataset).__name__} and the data set inside it have a transform. Make it "
            "one, and pass it as `transform=` to the outer one."
        )
    raw = copy.copy(dataset)
    for name in own:
        setattr(raw, name, _same)  # not None: some call theirs without asking whether there is one
    if getattr(raw, "transforms", None) is not None:  # torchvision's pair of the two
        raw.transforms = _same_pair
    return raw, own.get("transform"), own.get("target_transform")


def _without_transforms_below(dataset: Any) -> tuple[Any, Transform | None, Transform | None]:
    if isinstance(dataset, Subset):
        below, transform, target_transform = without_transforms(dataset.dataset)
        raw: Any = dataset
        if below is not dataset.dataset:
            raw = copy.copy(dataset)
            raw.dataset = below
        return raw, transform, target_transform
    if isinstance(dataset, ConcatDataset):
        parts = [without_transforms(part) for part in dataset.datasets]
        _, transform, target_transform = parts[0]
        if any(p[1] is not transform or p[2] is not target_transform for p in parts):
            raise ValueError(
                "The parts of the ConcatDataset have different transforms. Give all of them the "
                "same object, or take them off and pass `transform=` to the outer data set."
            )
        raw = dataset
        if transform is not None or target_transform is not None:
            raw = copy.copy(dataset)
            raw.datasets = [p[0] for p in parts]
        return raw, transform, target_transform
    return dataset, None, None


def _same(value: Any) -> Any:
    return value


def _same_pair(image: Any, target: Any) -> tuple[Any, Any]:
    return image, target

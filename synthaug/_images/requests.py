"""Requests to `load_dataset`, and checks of the labels and classes in them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from synthaug._images.leaves import numbered_classes
from synthaug._images.stores import Conform, Problem, Store
from synthaug._support.names import class_names
from synthaug._types import Labels
from synthaug.errors import DataError, MismatchError

log = logging.getLogger(__name__)

_LISTED = 20
"""How many files, or names, an error lists."""


@dataclass(frozen=True)
class ImageRequest:
    """Arguments of `load_dataset`."""

    where: str
    """A path, or the name of a data set with its options."""
    split: str | None
    conform: Conform
    classes: Sequence[str] | None
    """The class names in the order that is wanted."""
    progress: bool | None
    skip_bad: bool = False
    """Leave out files that cannot be used."""
    skipped: list[str] = field(default_factory=list)
    """What was wrong with those that were left out."""

    def usable(self, problems: Mapping[str, Problem], total: int) -> None:
        """Records the files that cannot be used as left out, or refuses them.

        Args:
            problems: Why each of them cannot be used; a message that names the file.
            total: How many files there are.

        Raises:
            DataError, MismatchError: Naming them, if there are some and they are not left out.
        """
        if not problems:
            return
        listed = [str(problem) for problem in problems.values()]
        more = len(listed) - _LISTED
        lines = [*listed[:_LISTED], *([f"... and {more:,} more."] if more > 0 else [])]
        text = f"{len(listed):,} of {total:,} files cannot be used"
        if self.skip_bad:
            self.skipped.extend(listed)
            log.warning("%s, and are left out:\n  %s", text, "\n  ".join(lines))
            return
        kind = type(next(iter(problems.values())))
        if len(listed) == 1:
            raise kind(listed[0])
        remedy = "Repair or delete them, or leave them out with `skip_bad=True`."
        raise kind("\n  ".join([f"{text}:", *lines]) + f"\n{remedy}")


Loaded = tuple[Store, Labels, tuple[str, ...]]


def check_labeled_images(
    labels: Iterable[int], classes: Sequence[str], where: str, asked: ImageRequest
) -> None:
    """Refuses classes without an image with a DataError that names them."""
    present = set(map(int, labels))
    empty = [repr(name) for label, name in enumerate(classes) if label not in present]
    if empty:
        more = f" (nor have {', '.join(empty[1:_LISTED])})" if len(empty) > 1 else ""
        remedy = "delete the folder" if asked.classes is None else "leave it out of `classes`"
        raise DataError(f"Class {empty[0]} has no image in {where}{more}. Add images, or {remedy}.")


def ordered(
    labels: ArrayLike, found: Sequence[str] | None, wanted: Sequence[str] | None, where: str
) -> tuple[Labels, tuple[str, ...]]:
    """Checks labels, and renumbers them from the order of `found` to that of `wanted`, by name."""
    found = None if found is None else class_names(found)
    if found is not None and wanted is not None and len({*found}) < len(found) == len(wanted):
        found = wanted  # the same classes, each under a name of its own
    if found is None:  # SVHN, FakeData, a file with labels alone
        found = wanted or numbered_classes(labels, where)
    values = checked_labels(labels, found, where)
    if wanted is None:
        return values, tuple(found)
    check_known(found, wanted, f"{where} has a class")
    number = {name: index for index, name in enumerate(wanted)}
    return np.array([number[name] for name in found], np.int64)[values], tuple(wanted)


def check_known(names: Sequence[str], wanted: Sequence[str] | None, what: str) -> None:
    """Refuses class names that are not among those given with a MismatchError that names them."""
    known = set(wanted or ())
    unknown = [] if wanted is None else [repr(name) for name in names if name not in known]
    if wanted is not None and unknown:
        raise MismatchError(
            f"{what} {', '.join(unknown[:_LISTED])}, which is not among the {len(wanted)} classes "
            f"that were given: {', '.join(wanted)}."
        )


def checked_labels(labels: ArrayLike, classes: Sequence[str], where: str) -> Labels:
    """Labels as int64 (N,), each of them one of the classes, whose names differ."""
    values = np.asarray(labels)
    if values.shape == (0,):
        values = values.astype(np.int64)  # of an empty list
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` is {values.dtype} with shape {values.shape}, expected integers (N,)."
        )
    if len(set(classes)) != len(classes):
        twice = next(name for i, name in enumerate(classes) if name in classes[:i])
        raise DataError(
            f"{where}: the class name {twice!r} occurs twice. Give each class a name of its own: "
            f"`classes=[...]`, {len(classes)} names in the order of the labels; `MixedDataset` "
            "takes them as `items=mixing.ItemFormat(classes=[...])`."
        )
    if len(values) and not (values.min() >= 0 and values.max() < len(classes)):
        bad = int(values.max() if values.max() >= len(classes) else values.min())
        row = int(np.flatnonzero(values == bad)[0])
        raise DataError(
            f"{where}: image {row} has label {bad}, but there are {len(classes)} classes "
            f"(labels 0 to {len(classes) - 1}). Correct it, or give the names of all "
            "classes."
        )
    return values.astype(np.int64)

"""Selects the synthetic images that may be served: those that are done and passed the audit.

Shared by everything that hands synthetic images to a training loop. What an audit did not clear is
said aloud, once per process and cache: images that may be copies are never served silently.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from synthaug._images.leaves import Labeled
from synthaug._plan import Plan
from synthaug._printable import amount
from synthaug._support.names import class_names
from synthaug._types import JSON, Array, Flags, ImageShape, Indices, Labels, Pixels
from synthaug.errors import MismatchError

log = logging.getLogger(__name__)

_warned: set[str] = set()


@runtime_checkable
class SyntheticImages(Protocol):
    """Interface of caches whose images are served."""

    @property
    def labels(self) -> Labels:
        """Class index of every row, int64 (N,)."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    @property
    def done(self) -> Flags:
        """Mask of the rows that can be read, bool (N,)."""
        ...

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W)."""
        ...

    @property
    def identity(self) -> dict[str, JSON]:
        """The identity that reports about these images refer to."""
        ...

    def read(self, indices: ArrayLike) -> Pixels:
        """uint8 (n, C, H, W)."""
        ...


@runtime_checkable
class Planned(Protocol):
    """Images that were made by a plan, as all that we make are."""

    @property
    def plan(self) -> Plan:
        """One row per image."""
        ...


@runtime_checkable
class Traced(Protocol):
    """Images of which each says where it comes from."""

    def provenance(self, row: int) -> dict[str, Any]:
        """Returns the provenance of one row's image."""
        ...


@runtime_checkable
class Verdicts(Protocol):
    """Interface of audit reports that decide which images are served."""

    @property
    def identity(self) -> dict[str, JSON]:
        """The identity of the images that were judged."""
        ...

    @property
    def passed(self) -> Flags:
        """Mask of the rows that may be served, bool (N,)."""
        ...

    @property
    def verdict(self) -> str:
        """The verdict of the audit: "pass", "fail" or "inconclusive"."""
        ...


@runtime_checkable
class OtherThanCopies(Protocol):
    """Interface of judgments of something else than copies, which an audit may join."""

    @property
    def audited(self) -> Flags | None:
        """Mask of the rows that an audit passed, bool (N,); `None` if there was none."""
        ...


@runtime_checkable
class Scored(Protocol):
    """Interface of reports with a score per image."""

    @property
    def identity(self) -> dict[str, JSON]:
        """The identity of the images that were scored."""
        ...

    @property
    def row_scores(self) -> Array:
        """The score of every row, float (N,); NaN for rows without one."""
        ...

    @property
    def score_name(self) -> str:
        """The name of the score, for people."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Servable:
    """The rows of a cache that may be served, and the result of their audit."""

    mask: Flags
    """Rows that are done and passed, bool (N,)."""
    num_done: int
    """Rows that are done."""
    verdict: str | None
    """Of the audit; `None` without one."""
    judged: bool
    """Whether a report was asked, which may be of labels alone."""

    def __str__(self) -> str:
        count = int(self.mask.sum())
        text = f"{amount(count, 'image')}, "
        text += "not audited" if self.verdict is None else f"audit: {self.verdict}"
        return text + f", {self.num_done - count:,} withheld" * self.judged


_UNAUDITED = "Copies of training images may be among them; an audit looks for them"


def servable(synthetic: Any, audit: Any, *, soft_labels: bool = False) -> Servable:
    """Returns the rows that may be served.

    Logs a warning if there was no audit, or if it did not end with a pass.

    Args:
        synthetic: A cache.
        audit: A report about it, or `None` to serve whatever is done.
        soft_labels: Whether rows are served with class probabilities, so that those between two
            classes may be served too.

    Raises:
        TypeError: For something that is not a cache, or not a report.
        MismatchError: For a report about another cache.
    """
    is_cache = isinstance(synthetic, Labeled | SyntheticImages)
    if not is_cache:
        raise TypeError(
            f"`synthetic` is a {type(synthetic).__name__}, expected a cache: "
            '`synthaug.SynthCache("PATH.h5")`.'
        )
    done = np.asarray(synthetic.done, bool)
    if not soft_labels and isinstance(synthetic, Planned):
        between = between_classes(synthetic.plan)
        if len(between):
            done = done.copy()
            done[between] = False
    if audit is None:
        found = Servable(done, int(done.sum()), None, judged=False)
        _warn_once(synthetic, found, _UNAUDITED)
        return found
    if not isinstance(audit, Verdicts):
        raise TypeError(
            f"`audit` is a {type(audit).__name__}, expected a report or None. Make one with "
            '`synthaug.audit(...)`, or read one with `synthaug.AuditReport.from_json("PATH.json")`.'
        )
    check_identity(
        synthetic,
        audit,
        "The report",
        "Audit this cache, or pass `audit=None` to use it unaudited.",
    )
    passed = np.asarray(audit.passed, bool)
    if passed.shape != done.shape:
        raise MismatchError(
            f"The report has {len(passed)} verdicts for {len(done)} rows. Audit the cache again."
        )
    asked = not isinstance(audit, OtherThanCopies) or audit.audited is not None
    verdict = audit.verdict if asked else None
    found = Servable(done & passed, int(done.sum()), verdict, judged=True)
    if verdict is None:
        _warn_once(synthetic, found, _UNAUDITED)
    elif verdict == "pass":
        log.info("Synthetic images: %s.", found)
    elif verdict == "fail":
        _warn_once(synthetic, found, "Copies of training images were found and are left out")
    else:
        _warn_once(synthetic, found, "Copies of training images may have gone unseen")
    return found


def num_rows(synthetic: SyntheticImages) -> int:
    """How many rows there are, done or not."""
    return len(synthetic if isinstance(synthetic, Labeled) else synthetic.labels)


def labels_of(synthetic: SyntheticImages, rows: Indices | slice) -> Labels:
    """The class index of some rows, int64 (n,), as the cache counts classes."""
    if isinstance(synthetic, Labeled):
        return synthetic.labels_of(rows)
    return np.asarray(synthetic.labels)[rows]


def class_table(synthetic: SyntheticImages, classes: Sequence[str]) -> Labels:
    """The index of every class of synthetic images among those of real ones, matched by name.

    `class_table(cache, classes)[cache.labels]` are the labels of a cache as real data with
    `classes` count them: a folder of images sorts its classes, another source may not.

    Args:
        synthetic: A cache.
        classes: Names of the classes of the real images, in their order.

    Returns:
        int64 (num_classes,); -1 for a class that the real images do not have and no row either.

    Raises:
        MismatchError: If a row has a class that the real images do not have. The reverse is no
            error: for some classes there may be no synthetic images.
    """
    classes, theirs = class_names(classes), class_names(synthetic.classes)
    place = {name: c for c, name in enumerate(classes)}
    unknown = [c for c, name in enumerate(theirs) if name not in place]
    if unknown:  # of many rows it takes a while to see which classes they have
        every = labels_of(synthetic, np.arange(num_rows(synthetic)))
        unknown = np.intersect1d(unknown, every).tolist()
    if unknown:
        named = {*theirs}
        missing = [name for name in classes if name not in named]
        where, name = ("real", missing[0]) if missing else ("synthetic", theirs[unknown[0]])
        raise MismatchError(
            f"The classes differ: only the {where} images have {name!r}. Real: "
            f"{', '.join(classes)}. Synthetic: {', '.join(theirs)}. Every class of synthetic "
            "images must be one of the real ones; `MixSynthetic` and `mixing.ItemFormat` take "
            "other names of the real classes as `classes=`."
        )
    times = Counter(classes)
    twice = next((name for name in theirs if times[name] > 1), None)
    if twice is not None:
        raise MismatchError(
            f"Two classes of the real images are called {twice!r}, so they cannot be matched by "
            "name. Give different names: `classes=`, in the order of the labels."
        )
    return np.array([place.get(name, -1) for name in theirs], np.int64)


def passed_too(report: Verdicts, identity: dict[str, JSON], name: str) -> Flags:
    """Rows that an audit passed too, bool (N,), for another judgment of the same images.

    Args:
        report: The audit.
        identity: Identity of the images that were judged otherwise.
        name: Name of the judgment in messages: "label check".

    Raises:
        MismatchError: For a report about another cache.
    """
    if report.identity != identity:
        raise MismatchError(
            f"The audit judges another cache than the {name}. Make both for the same cache."
        )
    return np.asarray(report.passed, bool)


def check_identity(
    synthetic: SyntheticImages,
    report: Verdicts | Scored,
    name: str,
    remedy: str = "Score this cache.",
) -> None:
    """Refuses a report about other images.

    Args:
        synthetic: A cache.
        report: Report of these images, if all is well.
        name: Its name at the head of a sentence, in messages.
        remedy: The remedy that a message names.

    Raises:
        MismatchError: Naming what differs.
    """
    ours, theirs = synthetic.identity, report.identity
    if ours == theirs or _imported(synthetic, theirs):
        return
    if "fingerprint" in theirs:
        raise MismatchError(
            f"{name} is about a data set, and not about this cache. It fits the cache that "
            "`synthaug cache import` makes of these images, with the same size and channels and "
            f"without loss. {remedy}"
        )
    lines = [
        f"  {key}: {ours.get(key)!r} in the cache, {theirs.get(key)!r} in the report"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]
    raise MismatchError(f"{name} judges another cache:\n" + "\n".join(lines) + f"\n{remedy}")


def _imported(synthetic: SyntheticImages, identity: dict[str, JSON]) -> bool:
    """Whether images are those of a data set, in its order, imported without loss."""
    imported = identity.get("imported")
    if imported is None or "encoding" in synthetic.identity or not isinstance(synthetic, Planned):
        return False
    plan = synthetic.plan
    if plan.settings.get("imported") != imported:
        return False
    # Some of its rows, or all in another order, would have the same settings.
    counts = np.bincount(plan["label"], minlength=len(plan.classes))
    whole = Plan.build(counts, classes=plan.classes, settings=plan.settings, seed=0)
    return whole.digest == plan.digest


def between_classes(plan: Plan) -> Indices:
    """Rows of a plan that are mixed from two classes, int64 (n,): no single label is right."""
    if "partner_label" not in plan.columns:
        return np.empty(0, np.int64)
    partners = zip(plan.pieces("partner_label"), plan.pieces("label"), strict=True)
    between = np.concatenate(
        [
            np.flatnonzero((partner >= 0) & (partner != label)) + start
            for (start, partner), (_, label) in partners
        ]
    )
    if len(between):
        log.warning(
            "%s images are mixed from two classes and are not served under one label; "
            "`MixedDataset(..., items=mixing.ItemFormat(soft_labels=True))` serves them.",
            f"{len(between):,}",
        )
    return between


def _warn_once(synthetic: SyntheticImages, found: Servable, meaning: str) -> None:
    key = json.dumps([synthetic.identity, str(found)], sort_keys=True)
    if key not in _warned:
        _warned.add(key)
        log.warning("Synthetic images: %s. %s.", found, meaning)

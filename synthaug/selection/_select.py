"""Over-draw, then select: rules take images away one after the other, and the report says why."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from synthaug._cache.serving import SyntheticImages, Verdicts, class_table, passed_too
from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng
from synthaug._pixels import grid
from synthaug._support.arguments import check_choice, check_whole, check_within
from synthaug._support.html import Part, data_uri, heading, thumbnails
from synthaug._support.report import Report, text_table
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import JSON, Flags, Indices, Labels
from synthaug.errors import AuditError, MismatchError
from synthaug.features import Extractor, describe
from synthaug.selection._folds import Judges, check_folds
from synthaug.selection._rules import JUDGING, RULES, Candidates, Rule

_PICTURES = 12
_KEPT, _NOT_DONE = -1, -2


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSelection(Report):
    """The synthetic images that are worth training on, made by `selection.select`.

        chosen = select(cache, real, keep=0.5)
        mixed = MixedDataset(real, cache, audit=report, fraction=0.5, filters=[chosen])
        chosen.to_html("selection.html")

    It stands wherever filters do, beside the report of an audit. In the place of one, its verdict
    is "inconclusive": whether the images are copies was not asked. `with_audit` joins both; what
    an audit added is not part of the JSON file.
    """

    _FORMAT = "synthaug selection"
    _NOUN = "a selection"
    _REMEDY = "Select again."
    _ERROR = AuditError
    _TITLE = "Selection of synthetic images"
    _INDENT = None

    identity: dict[str, JSON]
    """Of the cache that was selected from."""
    classes: tuple[str, ...]
    labels: Labels
    """Class of every row, int64 (N,)."""
    rules: tuple[str, ...]
    """In their order; the last one is the number of images to keep."""
    taken_by: Indices
    """The rule that took each row away, int64 (N,): -1 for rows that are kept, -2 for rows that
    were not done."""
    settings: dict[str, JSON]
    """How it was decided."""
    pictures: dict[str, tuple[str, ...]]
    """Some images that each rule took and some that are kept, as `data:` addresses."""
    audited: Flags | None = None
    """Rows that an audit passed, bool (N,); see `with_audit`."""
    verdict: str = "inconclusive"
    """Of that audit."""

    def __post_init__(self) -> None:
        if self.taken_by.shape != self.labels.shape or not (self.taken_by < len(self.rules)).all():
            raise ValueError(
                "taken_by and labels differ in length, or name a rule that is not there"
            )

    @property
    def passed(self) -> Flags:
        """Rows that are kept, and that an audit passed if there was one, bool (N,)."""
        kept = self.taken_by == _KEPT
        return kept if self.audited is None else kept & self.audited

    def with_audit(self, report: Verdicts) -> "ImageSelection":
        """The same selection, which also withholds what the audit did not pass.

        Raises:
            MismatchError: For a report about another cache.
        """
        audited = passed_too(report, self.identity, "selection")
        return replace(self, audited=audited, verdict=report.verdict)

    @property
    def counts(self) -> dict[str, Labels]:
        """How many images of each class every rule took, and are kept, int64 (num_classes,)."""
        names = {**dict(enumerate(self.rules)), _KEPT: "kept"}
        return {
            name: np.bincount(self.labels[self.taken_by == i], minlength=len(self.classes))
            for i, name in names.items()
        }

    def _summary(self) -> list[Part]:
        done = np.bincount(self.labels[self.taken_by != _NOT_DONE], minlength=len(self.classes))
        columns = {"images": done, **self.counts}
        lines = [["class", *columns]]
        for c, name in enumerate(self.classes):
            lines.append([name, *(f"{n[c]:,}" for n in columns.values())])
        lines.append(["all", *(f"{n.sum():,}" for n in columns.values())])
        return [lines]

    def _text(self) -> str:
        kept, done = int(self.passed.sum()), int((self.taken_by != _NOT_DONE).sum())
        return f"{kept:,} of {done:,} images kept\n\n{super()._text()}"

    def _pictures(self) -> list[Part]:
        parts: list[Part] = []
        for name, shown in self.pictures.items():
            title = "Kept:" if name == "kept" else f"Taken by {name}:"
            parts += [title, thumbnails((image, name) for image in shown)]
        return parts

    def _sections(self) -> list[Part]:
        return [
            "Rules take images away one after the other; a column says how many each of them took.",
            *self._summary(),
            heading("Examples"),
            *self._pictures(),
        ]

    def _record(self) -> dict[str, Any]:
        """Returns the selection without an audit."""
        record = super()._record()
        del record["audited"], record["verdict"]
        return record

    def _columns(self) -> Mapping[str, Any]:
        """Returns a row per row of the cache."""
        names = np.array([*self.rules, "not done", "kept"], object)  # numbers from the end: -2, -1
        return {
            "class": np.array(self.classes, object)[self.labels],
            "kept": self.passed,
            "taken by": names[self.taken_by],
        }


def select(
    cache: SyntheticImages,
    real: Any,
    *,
    keep: float = 1.0,
    rules: Sequence[str | Rule] = ("label", "support", "distinct", "k-center"),
    features: Extractor | None = None,
    runs: int = 1,
    folds: int = 2,
    config: ClassifierConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ImageSelection:
    """Chooses the synthetic images that are worth training on, out of more than are needed.

        chosen = select(cache, real, keep=0.5, rules=["label", "support", "distinct", "k-center"])

    Everything is decided within classes, by real training images alone: never give test images.
    With `keep=1.0` and no rules all images are kept.

    Args:
        cache: A `SynthCache`; its rows that are done are chosen from.
        real: Labeled training images that name the same classes.
        keep: How many images of each class to keep at most: a share of those that are done, in
            (0, 1], rounded up, or a whole number. What rules leave beyond it is drawn by lot.
        rules: Applied in order. "label" (classifiers that have not learned from an image's source
            take it for its class), "support" (no farther from real images than they from each
            other), "useful" (neither the easiest nor the hardest), "distinct" (near-duplicates go),
            "k-center", "facility-location" (cover the class), "mmd" (like the real images); or
            objects of these classes with other numbers: `selection.Recognized(threshold=0.2)`.
        features: Extractor in whose space distances are; by default the last layer of a classifier
            trained on `real`.
        runs: How often the classifiers of "label" and "useful" are trained.
        folds: Number of folds, as for `difficulty`.
        config: Network and training of the classifiers; by default `ClassifierConfig()`.
        seed: Seed of classifiers and lots.
        progress: Show bars.

    Raises:
        ValueError: For an unknown rule, or a number out of range.
        MismatchError: If classes or image shapes differ.
        DataError: If a class has too few real images.
    """
    judges = Judges(
        runs=runs, folds=folds, seed=seed, config=config or ClassifierConfig(), progress=progress
    )
    plan = planned(cache, real, keep=keep, rules=rules, features=features, judges=judges)
    candidates, named = plan.candidates, plan.names
    rows, labels = candidates.rows, np.asarray(cache.labels, np.int64)
    taken = np.full(len(labels), _NOT_DONE, np.int64)
    taken[rows] = _KEPT
    for c, (_, target) in enumerate(plan.classes.values()):
        own = np.flatnonzero(candidates.labels == c)
        for i, rule in enumerate([*plan.rules, None]):
            if len(own):
                mask = _kept(candidates, rule, own, c, target)
                taken[rows[own[~mask]]] = i
                own = own[mask]
    return ImageSelection(
        identity=cache.identity,
        classes=tuple(cache.classes),
        labels=labels,
        rules=(*named, "number"),
        taken_by=taken,
        settings={
            "keep": keep,
            "runs": runs,
            "folds": folds,
            "seed": seed,
            "steps": judges.config.steps,
            **judges.config.changes(),
            "features": "of a classifier" if features is None else describe(features),
            "real": candidates.real.fingerprint,
        },
        pictures=_examples(cache, taken, [*named, "number"]),
    )


@final
@dataclass(frozen=True, kw_only=True)
class SelectionPlan:
    """The start of a selection; nothing is computed yet."""

    candidates: Candidates
    names: list[str]
    """Of the rules."""
    rules: list[Rule]
    classes: dict[str, tuple[int, int]]
    """For each class of the real images how many images there are, and how many to keep."""

    @property
    def classifiers(self) -> int:
        """How many classifiers are trained on real images."""
        judges = self.candidates.judges
        judging = [isinstance(rule, JUDGING) for rule in self.rules]
        measuring = self.candidates.extractor is None and not all(judging)
        return any(judging) * judges.runs * judges.folds + measuring

    def __str__(self) -> str:
        lines = [["class", "images", "to keep"]]
        lines += [[c, f"{n:,}", f"{min(n, m):,}"] for c, (n, m) in self.classes.items()]
        rules = ", ".join(self.names) or "none, by lot"
        return f"Rules: {rules}. Classifiers: {self.classifiers}.\n{text_table(lines)}"


def planned(
    cache: SyntheticImages,
    real: Any,
    *,
    keep: float,
    rules: Sequence[str | Rule],
    features: Extractor | None,
    judges: Judges,
) -> SelectionPlan:
    """Checks the arguments of `select`, and computes nothing yet."""
    names = _checked_names(keep, rules)
    made = [RULES[rule]() if isinstance(rule, str) else rule for rule in rules]
    source = ImageSource.open(real, "`real`")
    classes = source.named_classes()
    table = class_table(cache, classes)
    _check_shapes(cache, source)
    if any(isinstance(rule, JUDGING) for rule in made):
        check_folds(source.labels, classes, judges.folds)
    rows = np.flatnonzero(cache.done)
    labels = table[np.asarray(cache.labels, np.int64)[rows]]
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    share = isinstance(keep, float)
    return SelectionPlan(
        candidates=Candidates(
            cache=cache, real=source, rows=rows, labels=labels, judges=judges, extractor=features
        ),
        names=names,
        rules=made,
        classes={
            name: (n, math.ceil(keep * n - 1e-9) if share else int(keep))
            for name, n in zip(classes, counts, strict=True)
        },
    )


def _checked_names(keep: float | int, rules: Sequence[str | Rule]) -> list[str]:
    """Names of the rules, once they and the number are found good."""
    share = isinstance(keep, float)
    check_within("(0, 1]", "Or give a whole number of images.", keep=keep if share else None)
    check_whole(1, keep=None if share else keep)
    for rule in rules:
        if isinstance(rule, str):
            check_choice(RULES, rules=rule)
    return [rule if isinstance(rule, str) else _name(rule) for rule in rules]


def _kept(
    candidates: Candidates, rule: Rule | None, own: Indices, label: int, target: int
) -> Flags:
    """Returns a mask of the images of a class that a rule keeps; `None` draws lots."""
    if rule is None:
        lots = counter_rng(candidates.judges.seed, label, len(own)).random(len(own))
        return np.argsort(np.argsort(lots, kind="stable"), kind="stable") < target
    return rule.keep(candidates, own, label, target)


def _name(rule: Rule) -> str:
    return type(rule).__name__.lower()


def _check_shapes(cache: SyntheticImages, source: ImageSource) -> None:
    if tuple(source.image_shape) != tuple(cache.image_shape):
        raise MismatchError(
            f"The cache holds images of shape {tuple(cache.image_shape)}, `real` of shape "
            f"{tuple(source.image_shape)}. Load the real ones with that of the cache "
            "(`image_shape=cache.image_shape`)."
        )


def _examples(
    cache: SyntheticImages, taken: Indices, rules: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The first images that each rule took, of different classes where there are, and are kept."""
    shown = {}
    labels = np.asarray(cache.labels)
    for i, name in [*enumerate(rules), (_KEPT, "kept")]:
        rows = np.flatnonzero(taken == i)
        turn = np.zeros(len(rows), np.int64)
        for c in np.unique(labels[rows]):
            turn[labels[rows] == c] = np.arange((labels[rows] == c).sum())
        rows = np.sort(rows[np.argsort(turn, kind="stable")][:_PICTURES])
        if len(rows):
            images = cache.read(rows)
            shown[name] = tuple(data_uri(grid(x[None], columns=1, padding=0)) for x in images)
    return shown

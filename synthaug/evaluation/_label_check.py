"""Do synthetic images look like their labels? Classifiers trained on the real images decide.

A generator that is guided weakly, or embeddings that are perturbed strongly, give images of another
class now and then. What classifiers disagree with is withheld: counted and recorded, not deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from synthaug._cache.serving import SyntheticImages, Verdicts, class_table, passed_too
from synthaug._images.source import ImageSource
from synthaug._printable import printable_line
from synthaug._support.arguments import check_within
from synthaug._support.charts import histogram
from synthaug._support.html import Part
from synthaug._support.report import Report, decode_array
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import JSON, Features, Flags, Labels, Singles
from synthaug.errors import AuditError
from synthaug.evaluation._predict import class_probabilities


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LabelCheck(Report):
    """The synthetic images that classifiers take for their class.

        check = synthaug.evaluation.check_labels(cache, real, percentile=10)
        mixed = MixedDataset(real, cache, audit=check.with_audit(report), fraction=0.5)

    It stands wherever an audit's report does. Without one its verdict is "inconclusive": whether
    the images are copies was not asked. What an audit added is not part of the JSON file.
    """

    _FORMAT = "synthaug label check"
    _NOUN = "a label check"
    _REMEDY = "Check the labels again."
    _ERROR = AuditError
    _TITLE = "Labels of synthetic images"
    _INDENT = None
    score_name = "label agreement"

    identity: dict[str, JSON]
    """Of the cache that was judged."""
    classes: tuple[str, ...]
    labels: Labels
    """Class of every row, int64 (N,)."""
    scores: Singles
    """Mean probability that the classifiers give to the row's label, float32 (N,); NaN for rows
    that were not done."""
    withheld: Flags
    """Rows that the check withholds, bool (N,)."""
    settings: dict[str, JSON]
    """How it was decided."""
    audited: Flags | None = None
    """Rows that an audit passed; see `with_audit`."""
    verdict: str = "inconclusive"
    """Of that audit."""

    @property
    def passed(self) -> Flags:
        """Rows that may be served, bool (N,)."""
        passed = ~self.withheld & np.isfinite(self.scores)
        return passed if self.audited is None else passed & self.audited

    @property
    def row_scores(self) -> Singles:
        """The agreement of every row, which filters and weights go by."""
        return self.scores

    def with_audit(self, report: Verdicts) -> "LabelCheck":
        """The same check, which also withholds what the audit did not pass.

        Raises:
            MismatchError: For a report about another cache.
        """
        audited = passed_too(report, self.identity, "label check")
        return replace(self, audited=audited, verdict=report.verdict)

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """For each class the rows withheld by the check, and the rows judged."""
        done = np.isfinite(self.scores)
        return {
            name: (int((self.withheld & own).sum()), int((done & own).sum()))
            for name, own in ((n, self.labels == c) for c, n in enumerate(self.classes))
        }

    def _text(self) -> str:
        judged = int(np.isfinite(self.scores).sum())
        lines = [f"{int(self.withheld.sum()):,} of {judged:,} images withheld"]
        lines += [
            f"  {printable_line(name)}: {n:,} of {total:,}"
            for name, (n, total) in self.counts.items()
        ]
        return "\n".join(lines)

    def _summary(self) -> list[Part]:
        header = ["class", "withheld", "judged", "median probability"]
        rows = []
        for c, (name, (withheld, judged)) in enumerate(self.counts.items()):
            scores = self.scores[np.isfinite(self.scores) & (self.labels == c)]
            median = f"{np.median(scores):.3f}" if len(scores) else "-"
            rows.append([name, f"{withheld:,}", f"{judged:,}", median])
        return [str(self).splitlines()[0] + ".", [header, *rows]]

    def _columns(self) -> dict[str, Any]:
        """Returns a row per row of the cache; the score of rows that were not done is NaN."""
        return {
            "class": np.array(self.classes, object)[self.labels],
            "score": self.scores,
            "withheld": self.withheld,
            "passed": self.passed,
        }

    def _sections(self) -> list[Part]:
        """Returns the table, and a histogram of the probabilities."""
        scores = {
            name: values
            for name, rows in (("kept", ~self.withheld), ("withheld", self.withheld))
            if len(values := self.scores[rows & np.isfinite(self.scores)])
        }
        label = "probability of the image's own label"
        return [*self._summary(), *([histogram(scores, x_label=label)] if scores else [])]

    def _record(self) -> dict[str, Any]:
        """Returns the check without an audit; probabilities keep six digits."""
        record = super()._record()
        del record["audited"], record["verdict"]
        scores = np.array([round(float(x), 6) for x in self.scores])
        withheld = np.flatnonzero(self.withheld)
        return {**record, "counts": self.counts, "scores": scores, "withheld": withheld}

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> "LabelCheck":
        del record["counts"]
        if len(record["scores"]) != len(record["labels"]):
            raise ValueError("labels and scores differ in length")
        withheld = np.zeros(len(record["labels"]), bool)
        withheld[decode_array(np.int64, record["withheld"], "withheld")] = True
        return super()._from_record({**record, "withheld": withheld.tolist()})


def check_labels(
    cache: SyntheticImages,
    real: Any,
    *,
    threshold: float | None = None,
    percentile: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    config: ClassifierConfig | None = None,
    progress: bool = True,
) -> LabelCheck:
    """Trains classifiers on the real images, and withholds synthetic ones that they disagree with.

    Give exactly one rule: `threshold` withholds rows whose label has a lower probability;
    `percentile` withholds that share of the rows of each class, those with the lowest probability.

    Args:
        cache: A `SynthCache`; its rows that are done are judged.
        real: Labeled real images that name the same classes, in any order. Those that the
            classifiers of your task are trained on: never test images.
        threshold: Probability in (0, 1).
        percentile: In (0, 100).
        seeds: One classifier each; their probabilities are averaged.
        config: Network and training of the classifiers; by default `ClassifierConfig()`.
        progress: Show a bar.

    Raises:
        ValueError: For no rule or two, or one out of range.
        MismatchError: If the names of the classes differ.
    """
    if (threshold is None) == (percentile is None):
        raise ValueError(
            "Give exactly one of `threshold` and `percentile`; got "
            f"{'none' if threshold is None else 'both'}."
        )
    check_within("(0, 1)", threshold=threshold)
    check_within("(0, 100)", percentile=percentile)
    config = config or ClassifierConfig()
    source = ImageSource.open(real, "`real`")
    table = class_table(cache, source.classes or ())
    done = np.flatnonzero(cache.done)
    labels = np.asarray(cache.labels, np.int64)
    scores = np.full(len(labels), np.nan, np.float32)
    if len(done):
        probabilities = class_probabilities(
            source, cache.read(done), seeds=seeds, config=config, progress=progress
        )
        scores[done] = probabilities[np.arange(len(done)), table[labels[done]]]
    return LabelCheck(
        identity=cache.identity,
        classes=tuple(cache.classes),
        labels=labels,
        scores=scores,
        withheld=withhold(scores, labels, threshold=threshold, percentile=percentile),
        settings={
            "threshold": threshold,
            "percentile": percentile,
            "steps": config.steps,
            **config.changes(),
            "seeds": list(seeds),
            "real": source.fingerprint,
        },
    )


def withhold(
    scores: Features, labels: Labels, *, threshold: float | None, percentile: float | None
) -> Flags:
    """The rule of `check_labels`, bool (N,); rows whose score is NaN are not withheld but pending.

    A percentile rounds down: of 15 images in a class, 10 percent withhold one.
    """
    if threshold is not None:
        return scores < threshold  # False for NaN
    withheld = np.zeros(len(scores), bool)
    for c in np.unique(labels):
        rows = np.flatnonzero((labels == c) & np.isfinite(scores))
        count = int(len(rows) * (percentile or 0) / 100)
        withheld[rows[np.argsort(scores[rows], kind="stable")[:count]]] = True
    return withheld

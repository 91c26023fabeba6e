"""The report of a membership test: the verdict, what it rests on, and how far it reaches."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from synthaug._audit.discrimination import Discrimination, OperatingPoint
from synthaug._audit.scope import scope_sentence
from synthaug._audit.verdict_report import VerdictReport
from synthaug._support.charts import Line, histogram, line_chart
from synthaug._support.html import Part, heading, table
from synthaug._types import JSON

MembershipVerdict = Literal["pass", "fail", "not interpretable"]
REFERENCE_LEVEL = 0.01
"""Level of the reference: an honest random split looks uneven with this chance."""
_POINTS = 200
"""Points of a ROC curve in the chart."""


@dataclass(frozen=True, kw_only=True)
class ClassMembership:
    """How well the images of one class are told apart."""

    name: str
    train: int
    """Training images of the class."""
    holdout: int
    """Held-out images of it."""
    auc: float | None
    """`None` where either set has fewer than five."""
    interval: tuple[float, float] | None
    """Within which it lies with a confidence of 0.95."""
    recognized: int | None
    """Training images of the class that score higher than all but 1 % of the held-out images of
    all classes; `None` with fewer than 100 of these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipReport(VerdictReport):
    """Report of a membership test; made by `synthaug.membership`.

        report.verdict, report.reasons     # "pass", "fail" or "not interpretable", and why
        report.told.auc, report.told.interval, report.p_value
        report.to_html("membership.html")
        report.to_json("membership.json"), MembershipReport.from_json("membership.json")

    Arrays have one entry per image, training images first, N in all.
    """

    _FORMAT = "synthaug-membership"
    _FORMAT_VERSION = 1
    _NOUN = "a membership report"
    _REMEDY = "Check the name, or test again."
    _TITLE = "Membership"
    _MEANINGS: ClassVar[dict[str, str]] = {
        "pass": "The model does not tell its training images apart",
        "fail": "The model tells its training images apart",
        "not interpretable": "Look at the reasons below",
    }
    _WAY = "membership"
    _LOOKED_AT = "tested"
    _PRIVATE = True

    verdict: MembershipVerdict
    """`fail`: training images are told from held-out ones. `pass`: they are not, within the
    interval. `not interpretable`: the sets are not known to come from one random split, or differ
    anyway."""
    random_split: bool | None
    """Whether one random split made both sets; `None`: nobody said."""
    p_value: float
    """Chance that a model which learned nothing of single images looks like this."""
    told: Discrimination
    """How well losses tell training images from held-out ones."""
    closest: dict[str, JSON]
    """Among how many of the images restored best (`depth`) training images are most in excess:
    their `count`, how many are `expected`, and the `p_value`."""
    low_false_positives: OperatingPoint | None
    """What is recognized at 1 % false positives; `None` with fewer than 100 held-out images."""
    reference: Discrimination
    """How well a classifier on fixed features, which never saw the model, tells the sets apart."""
    by_class: tuple[ClassMembership, ...]
    """Class by class; empty if classes are unknown."""
    scores: NDArray[np.float64]
    """How much better an image is restored than others of its class, in standard deviations, (N,):
    the mean over all noises."""
    reference_scores: NDArray[np.float64]
    """How much an image looks like a training image to the reference, (N,)."""
    member: NDArray[np.bool_]
    """Whether it is a training image, (N,)."""
    rows: NDArray[np.int64]
    """Row number of the image in its set, (N,)."""
    group: NDArray[np.int64]
    """Number of its group of near-duplicates, (N,)."""
    labels: NDArray[np.int64]
    """Class of the image; -1 if unknown, (N,)."""
    classes: tuple[str, ...]
    """Names of the classes; empty if unknown."""
    identity: dict[str, JSON]
    """What was tested: the model, and both sets."""
    settings: dict[str, JSON]
    """All arguments and counts."""
    environment: dict[str, JSON]
    """Versions of Python and of the libraries, and the time in UTC."""

    def __len__(self) -> int:
        return len(self.scores)

    def _table(self) -> list[list[str]]:
        rows = [["", "AUC", "95 % interval", "p"]]
        for name, found in (("losses", self.told), ("reference", self.reference)):
            rows.append([name, f"{found.auc:.3f}", span(found.interval), f"{found.p_value:.2g}"])
        return rows

    def _columns(self) -> dict[str, Any]:
        """Returns a row per image."""
        names = np.array([*self.classes, ""])
        return {
            "set": np.where(self.member, "train", "holdout"),
            "row": self.rows,
            "class": names[self.labels] if self.classes else self.labels,
            "score": self.scores,
            "reference_score": self.reference_scores,
            "group": self.group,
        }

    def _summary(self) -> list[Part]:
        return [*self._said(), self._table()]

    def _sections(self) -> list[Part]:
        """Returns verdict, curves, tables, and what a pass means and does not mean."""
        train, held = (np.sort(self.scores[chosen]) for chosen in (self.member, ~self.member))
        parts: list[Part] = [
            self._verdict_box(),
            heading("How well the sets are told apart"),
            self._table(),
            self._curves(),
            "The share of training images that are recognized against the share of held-out images "
            "that are taken for training images, for all thresholds. The reference is a classifier "
            "on fixed features of the images, which never saw the model.",
            *self._operating_point(),
            heading("How well single images are restored"),
            histogram(
                {"training": train, "held out": held},
                x_label="restored better than others of its class, standard deviations",
            ),
        ]
        if self.by_class:
            parts += [heading("By class"), self._class_table()]
        return [*parts, *self._scope()]

    def _curves(self) -> Markup:
        lines = []
        for name, scores in (("losses", self.scores), ("reference", self.reference_scores)):
            thresholds = np.quantile(scores, np.linspace(1, 0, _POINTS))
            x, y = (
                np.r_[0, [(scores[chosen] >= t).mean() for t in thresholds]]
                for chosen in (~self.member, self.member)
            )
            lines.append(Line(name, x, y))
        lines.append(Line("chance", [0, 1], [0, 1]))
        return line_chart(
            lines, x_label="held-out images above the threshold", y_label="training images above"
        )

    def _operating_point(self) -> list[Part]:
        held, point = int((~self.member).sum()), self.low_false_positives
        if point is None:
            return [
                f"With {held:,} held-out images nothing can be said about 1 % false positives: "
                "that takes at least 100."
            ]
        return [
            f"At {point.false_positives:,} of {held:,} held-out images taken for training images "
            f"({span(point.false_positive_interval)} of all such images), "
            f"{point.true_positives:,} of {int(self.member.sum()):,} training images are "
            f"recognized: {point.rate:.3f} ({span(point.interval)})."
        ]

    def _class_table(self) -> Markup:
        header = ["class", "training", "held out", "AUC", "95 % interval", "recognized at 1 %"]
        rows = [
            [
                one.name,
                f"{one.train:,}",
                f"{one.holdout:,}",
                "-" if one.auc is None else f"{one.auc:.3f}",
                "-" if one.interval is None else span(one.interval),
                "-" if one.recognized is None else f"{one.recognized:,}",
            ]
            for one in self.by_class
        ]
        return table(header, rows)

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> "MembershipReport":
        report = super()._from_record(record)
        columns = (report.scores, report.reference_scores, report.member, report.rows)
        lengths = {len(column) for column in (*columns, report.group, report.labels)}
        if len(lengths) != 1 or not 0 < report.member.sum() < len(report):
            raise ValueError("the columns of images do not fit each other")
        if report.classes and not report.labels.max() < len(report.classes):
            raise ValueError("labels holds a class without a name")
        return report


def span(interval: tuple[float, float]) -> str:
    """An interval as text."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def judge(
    told: Discrimination,
    reference: Discrimination,
    point: OperatingPoint | None,
    *,
    p_value: float,
    level: float,
    random_split: bool | None,
    other_images: bool,
) -> tuple[MembershipVerdict, tuple[str, ...]]:
    """The verdict, and the sentences that explain it.

    Args:
        told: How well losses tell the sets apart.
        reference: How well a classifier does that never saw the model.
        point: The operating point at 1 % false positives.
        p_value: The p-value of both tests of the losses together.
        level: At which it rejects.
        random_split: The caller's statement about the sets.
        other_images: Whether the model's record names other training images than `train`.
    """
    if random_split is not True:
        verdict: MembershipVerdict = "not interpretable"
        origin = "came from different places" if random_split is False else "may differ anyway"
        first = (
            f"Training images and hold-out {origin}, so what tells them apart need not be the "
            "model. If one random split made both, say so (`random_split=True`)."
        )
    elif reference.p_value < REFERENCE_LEVEL:
        verdict = "not interpretable"
        first = (
            "The sets differ without any model: a classifier that never saw it tells them apart "
            f"with an AUC of {reference.auc:.3f} ({span(reference.interval)}). A random split "
            f"looks so with a chance of {reference.p_value:.2g}."
        )
    elif p_value <= level:
        verdict = "fail"
        first = (
            "The model restores its training images better than held-out ones, so whoever has it "
            "can tell who was trained on."
        )
    else:
        verdict = "pass"
        first = (
            "The model does not restore its training images better than held-out ones: an AUC "
            f"above {told.interval[1]:.3f} would have been noticed."
        )
    reasons = [
        first,
        f"Losses tell training images from held-out ones with AUC {told.auc:.3f} "
        f"({span(told.interval)}), p = {p_value:.2g}.",
    ]
    if point is not None:
        reasons.append(
            f"At 1 % false positives {point.rate:.1%} of the training images are recognized."
        )
    if other_images:
        reasons.append(
            "The model's record names other training images than these: that is as it should be "
            "for a random part of them, and else this test says nothing."
        )
    return verdict, (*reasons, scope_sentence("membership"))
